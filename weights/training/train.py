"""Trains the tiny weights: tokenizer, corpus, model, from one seed.

    python weights/training/train.py --out weights/tiny

The model is transformers' own Gemma4ForCausalLM; whole.py makes a whole directory of what transformers saves. Only the
attention is our own: it works in blocks, so a window of 32 needs little time. `--resume` goes on from the last
checkpoint in `--work`. `--no-ple` and `--intermediate-size` make twins to compare.
"""

import argparse
import csv
import functools
import itertools
import json
import math
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import whole
from stories import document, tell_story
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import Gemma4ForCausalLM, Gemma4TextConfig, GenerationConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

DOCUMENTS = 56_000  # one pass over these is the whole training
FOCUS = 90_000  # from these further documents: those with questions that are learned last, and every fifth
LEARNED_LAST = {"ate", "went", "who has", "count"}
VALIDATION = 200
ROW = 512  # tokens of one training row; whole documents are packed into it
VOCABULARY = 2560
WINDOW = 32
PAD, EOS, BOS, UNK, TURN, END_OF_TURN, NEWLINE = 0, 1, 2, 3, 105, 106, 107
FIRST = ["<pad>", "<eos>", "<bos>", "<unk>"]
LAST = ["<|image>", "<image|>", "<|image|>", "<|audio>", "<audio|>", "<|audio|>", "<|video|>"]
ANSWER_WEIGHT = 5.0  # weight of the loss on short model turns: only these few tokens need recall


# --------------------------------------------------------------------------------------------------------- tokenizer
def train_tokenizer(texts):
    """A byte-fallback BPE in Gemma's shape: spaces become "▁", special tokens at Gemma's ids, no other splitting.

    The merges are learned within words, so applying them by rank to a whole text can never join two words.
    """
    learner = Tokenizer(BPE(unk_token="<unk>"))
    learner.normalizer = normalizers.Replace(" ", "▁")
    word = Regex(r"▁?[A-Za-z]+|▁?[0-9]|▁?[^A-Za-z0-9▁\n]|\n|▁")
    learner.pre_tokenizer = pre_tokenizers.Split(word, "isolated")
    alphabet = [chr(code) for code in range(33, 127)] + ["▁"]
    low = FIRST + [f"<unused{i}>" for i in range(TURN - len(FIRST))] + ["<|turn>", "<turn|>", "\n", "\n\n", "\n\n\n"]
    low += [f"<0x{byte:02X}>" for byte in range(256)]
    room = VOCABULARY - len(low) - len(LAST)
    trainer = BpeTrainer(vocab_size=room + 2, initial_alphabet=alphabet, special_tokens=["<unk>"], show_progress=False)
    learner.train_from_iterator(texts, trainer)
    learned = json.loads(learner.to_str())["model"]
    pieces = [piece for piece in sorted(learned["vocab"], key=learned["vocab"].get) if piece not in ("<unk>", "\n")]
    tokens = (low + pieces)[: VOCABULARY - len(LAST)] + LAST
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [("\n", "\n"), ("\n\n", "\n")] + [tuple(m) for m in learned["merges"] if "".join(m) in vocab]
    tokenizer = Tokenizer(BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = low[: NEWLINE] + LAST
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


# ------------------------------------------------------------------------------------------------------------ corpus
def documents(split, count):
    """The first `count` documents of a split, in order, made on all cores."""
    with multiprocessing.Pool() as pool:
        return pool.starmap(document, [(split, number) for number in range(count)], chunksize=500)


def focus_document(number):
    """Training document `number`, or "" if it gives no practice with what is learned last."""
    kinds = {question.kind for question in tell_story("train", number).questions}
    text = document("train", number)
    return text if number % 5 == 0 or (kinds & LEARNED_LAST and "<|turn>" in text) else ""


def focus_documents():
    """The practice documents, in order."""
    with multiprocessing.Pool() as pool:
        return list(filter(None, pool.map(focus_document, range(DOCUMENTS, DOCUMENTS + FOCUS), chunksize=500)))


def loss_weights_of(ids):
    """[T] -> the weight of the loss on each token: more on short model turns, which answer a question."""
    loss_weights = np.ones(len(ids), np.float32)
    opened = np.flatnonzero(ids == TURN)
    closed = np.flatnonzero(ids == END_OF_TURN)
    for turn, (start, end) in enumerate(zip(opened, closed, strict=True)):
        if turn and end - start < 30 and ids[start + 1] != ids[opened[0] + 1]:
            loss_weights[start + 3 : end] = ANSWER_WEIGHT
    return loss_weights


def pack(encoded, row=ROW):
    """Pack whole documents into rows of `row` tokens -> (ids [R, row], loss weights [R, row]); padding has weight 0.

    A document goes into the fullest open row that has room for it. A document longer than a row is left out.
    """
    rows, opened = [], []
    for ids in encoded:
        if len(ids) > row:
            continue
        fits = [bin_ for bin_ in opened if bin_[0] + len(ids) <= row]
        best = max(fits, key=lambda bin_: bin_[0]) if fits else [0, []]
        if not fits:
            opened.append(best)
            rows.append(best)
        best[0] += len(ids)
        best[1].append(ids)
        if best[0] > row - 40 or len(opened) > 64:
            opened.remove(max(opened, key=lambda bin_: bin_[0]))
    tokens, loss_weights = np.zeros((len(rows), row), np.int16), np.zeros((len(rows), row), np.float16)
    for number, (length, parts) in enumerate(rows):
        tokens[number, :length] = np.concatenate(parts)
        loss_weights[number, :length] = np.concatenate([loss_weights_of(part) for part in parts])
    return tokens, loss_weights


def encode(tokenizer, texts):
    """Texts -> list of ids [T]; special tokens come from the text itself."""
    return [np.array(e.ids, np.int16) for e in tokenizer.encode_batch(texts, add_special_tokens=False)]


# ------------------------------------------------------------------------------------------------------------- model
def block_attention(module, query, key, value, attention_mask, sliding_window=None, **_):
    """Causal attention, scale 1.0; a sliding layer's queries meet only their own block of keys and the one before.

    query [B, N, T, H], key and value [B, 1, T, H] -> [B, T, N, H]. T must be a multiple of the window.
    """
    batch, heads, length, width = query.shape
    if sliding_window is None:
        key, value = key.expand(-1, heads, -1, -1), value.expand(-1, heads, -1, -1)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask, scale=1.0)
        return out.transpose(1, 2), None
    blocks = length // sliding_window

    def with_previous(x):
        x = x.reshape(batch, blocks, sliding_window, width)
        return torch.cat([F.pad(x, (0, 0, 0, 0, 1, 0))[:, :-1], x], dim=2)  # [B, blocks, 2W, H]

    query = query.reshape(batch, heads, blocks, sliding_window, width).transpose(1, 2)
    query = query.reshape(batch, blocks, heads * sliding_window, width)  # one kv head: query heads are rows
    scores = query @ with_previous(key).transpose(2, 3)  # [B, blocks, N*W, 2W]
    back = torch.arange(sliding_window)[:, None] + sliding_window - torch.arange(2 * sliding_window)
    seen = ((back >= 0) & (back < sliding_window)).repeat(heads, 1).expand(blocks, -1, -1)
    first = (torch.arange(blocks) == 0)[:, None, None] & (torch.arange(2 * sliding_window) < sliding_window)
    scores = scores.float().masked_fill(~seen | first, -1e9)
    out = scores.softmax(-1).to(value.dtype) @ with_previous(value)  # [B, blocks, N*W, H]
    out = out.reshape(batch, blocks, heads, sliding_window, width).permute(0, 1, 3, 2, 4)
    return out.reshape(batch, length, heads, width), None


ALL_ATTENTION_FUNCTIONS.register("block", block_attention)


def make_config(args):
    """E2B's pattern with small sizes. A twin differs only in what the arguments say."""
    return Gemma4TextConfig(
        vocab_size=VOCABULARY,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size=128,
        hidden_size_per_layer_input=0 if args.no_ple else 32,
        intermediate_size=args.intermediate_size,
        use_double_wide_mlp=True,
        num_hidden_layers=10,
        layer_types=(["sliding_attention"] * 4 + ["full_attention"]) * 2,
        num_kv_shared_layers=5,
        num_attention_heads=4,
        num_key_value_heads=1,
        head_dim=32,
        global_head_dim=64,
        sliding_window=WINDOW,
        max_position_embeddings=32768,
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
        },
        final_logit_softcapping=30.0,
        attention_k_eq_v=False,
        enable_moe_block=False,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        eos_token_id=EOS,
        bos_token_id=BOS,
    )


def make_model(config):
    """A new model in which every part has about unit variance; layer_scalar is trained too."""
    config._attn_implementation = "block"
    model = Gemma4ForCausalLM(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:
                weight.normal_(std=weight.shape[1] ** -0.5)
            if "k_norm" in name:
                weight.fill_(1.5 * weight.numel() ** -0.5)  # scores are not scaled: begin with soft attention
            if "post_" in name and "norm" in name:
                weight.fill_(0.5)
        start_copying(model)
        if config.hidden_size_per_layer_input:  # its rows hold one vector a layer: unit variance after sqrt(P)
            model.model.embed_tokens_per_layer.weight.normal_(std=config.hidden_size_per_layer_input**-0.5)
    for layer in model.model.layers:  # a buffer in transformers; here a parameter until it is saved
        del layer.layer_scalar
        layer.layer_scalar = torch.nn.Parameter(torch.full((1,), 0.8))
    return model


def start_copying(model):
    """Let half of the heads of each global layer start as copiers, so that recall is learned within minutes.

    They attend where the hidden state is like their own (q = k) and write back what they find (o = v transposed).
    """
    donor = None
    for layer in model.model.layers:
        attention = layer.self_attn
        if attention.is_sliding:
            continue
        width = attention.head_dim
        if not attention.is_kv_shared_layer:
            donor = attention
            donor.k_norm.weight.fill_(0.75 * width**-0.5)  # softer still: every query is most like itself
        for head in range(attention.config.num_attention_heads // 2):
            attention.q_proj.weight[head * width : (head + 1) * width] += donor.k_proj.weight
            attention.o_proj.weight[:, head * width : (head + 1) * width] += donor.v_proj.weight.T


def save_model(model, tokenizer, out):
    """Write the files beside `out`, then rename: after an error the old directory is still whole."""
    config = Gemma4TextConfig.from_dict(model.config.to_dict())
    config.dtype = "bfloat16"
    saved = Gemma4ForCausalLM(config).to(torch.bfloat16)
    missing, unexpected = saved.load_state_dict(model.state_dict(), strict=False)
    if missing or unexpected:
        raise SystemExit(f"error: cannot save the model: missing {missing}, unexpected {unexpected}")
    saved.generation_config = GenerationConfig(
        do_sample=True, temperature=0.8, top_k=64, top_p=0.95, bos_token_id=BOS, pad_token_id=PAD,
        eos_token_id=[EOS, END_OF_TURN])
    beside = out.with_name(out.name + ".part")
    shutil.rmtree(beside, ignore_errors=True)
    saved.save_pretrained(beside)
    tokenizer.save(str(beside / "tokenizer.json"))
    whole.complete(beside)
    shutil.rmtree(out, ignore_errors=True)
    beside.rename(out)


def hidden(model, ids):
    """ids [B, T] -> the final hidden states [B, T, D].

    A global layer sees only its own document of the row. A sliding layer also sees the last tokens of the document
    before; these are few, so nothing prevents it.
    """
    number = (ids == BOS).cumsum(1)
    mask = (number[:, None, :, None] == number[:, None, None, :]).tril()  # [B, 1, T, T]
    masks = {"full_attention": mask, "sliding_attention": None}
    # transformers fails without output_hidden_states where PLE is off
    extra = {} if model.config.hidden_size_per_layer_input else {"output_hidden_states": True}
    return model.model(input_ids=ids, attention_mask=masks, use_cache=False, **extra).last_hidden_state


def loss_of(model, ids, loss_weights, short=True):
    """ids, loss_weights [B, T] -> cross-entropy in nats per token, weighted and plain. short: bfloat16 products."""
    with torch.autocast("cpu", torch.bfloat16, enabled=short):
        states = hidden(model, ids)[:, :-1].flatten(0, 1)
        logits = states @ model.model.embed_tokens.weight.T
    cap = model.config.final_logit_softcapping
    logits = cap * torch.tanh(logits.float() / cap)
    each = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="none")
    loss_weights = loss_weights[:, 1:].flatten()
    return (each * loss_weights).sum() / loss_weights.sum(), each[loss_weights > 0].mean().detach()


# ---------------------------------------------------------------------------------------------------------- training
def make_optimizers(model, args):
    """[Muon for the matrices, Adam for tables, norms and scalars]"""
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and p.requires_grad]
    rest = [p for n, p in model.named_parameters() if p.ndim != 2 or "embed" in n]
    return [
        torch.optim.Muon(matrices, lr=args.lr, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True),
    ]


def schedule(step, steps, more):
    """The fraction of the peak learning rate at `step`.

    100 steps of warm-up, then constant, then linear to 2% over the last 60%. The `more` steps of practice after them
    warm up to 60% over 20 steps and fall to 0.
    """
    if step >= steps:
        return 0.6 * min((step - steps + 1) / 20, (steps + more - step) / more)
    return min(1.0, (step + 1) / 100, max(0.02, (steps - step) / (0.6 * steps)))


@torch.no_grad()
def validation_loss(compute, model, tokens, loss_weights, batch):
    slices = [slice(i, i + batch) for i in range(0, len(tokens), batch)]
    total = [compute(model, tokens[part], loss_weights[part])[1] for part in slices]
    return float(torch.stack(total).mean())


def rows_of(work, tokenizer, split, count):
    """Packed rows of a split, or of the practice documents ("focus"), kept in `work` for a resumed run."""
    path = work / f"{split}-{count}.npz"
    if not path.exists():
        texts = focus_documents() if split == "focus" else documents(split, count)
        tokens, loss_weights = pack(encode(tokenizer, texts))
        with open(path.with_suffix(".part"), "wb") as file:
            np.savez(file, tokens=tokens, loss_weights=loss_weights)
        os.replace(path.with_suffix(".part"), path)
    stored = np.load(path)
    return stored["tokens"], stored["loss_weights"]


def batches(tokens, loss_weights, size, seed):
    """Yield (ids, loss_weights) [size, row] in a seeded order, each row once; an incomplete last batch is dropped."""
    order = np.random.default_rng(seed).permutation(len(tokens))
    for start in range(0, len(order) - size + 1, size):
        pick = order[start : start + size]
        yield torch.from_numpy(tokens[pick].astype(np.int64)), torch.from_numpy(loss_weights[pick].astype(np.float32))


def train(args):
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    work = args.work
    work.mkdir(parents=True, exist_ok=True)
    if not (work / "tokenizer.json").exists():
        train_tokenizer(documents("train", 10_000)).save(str(work / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    tokens, loss_weights = rows_of(work, tokenizer, "train", args.documents)
    held, held_weights = (torch.from_numpy(x) for x in rows_of(work, tokenizer, "validation", VALIDATION))
    held, held_weights = held.long(), held_weights.float()
    model = make_model(make_config(args))
    optimizers = make_optimizers(model, args)
    steps = min(len(tokens) // args.batch, args.steps or sys.maxsize)
    stages, more = [batches(tokens, loss_weights, args.batch, args.seed)], 0
    if args.focus:
        practice = rows_of(work, tokenizer, "focus", FOCUS)
        more = min(len(practice[0]) // args.batch, args.focus)
        stages = [itertools.islice(stages[0], steps), batches(*practice, args.batch, args.seed)]
    done, seconds, seen, log = 0, 0.0, 0, []
    checkpoint = work / "checkpoint.pt"
    if args.resume and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        done, seconds, seen, log = state["step"], state["seconds"], state["seen"], state["log"]
        model.load_state_dict(state["model"])
        for optimizer, kept in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
    size = sum(p.numel() for p in model.parameters())
    learned = int((loss_weights > 0).sum())
    print(f"{size:,} parameters, {len(tokens):,} rows, {learned:,} tokens, {steps:,} + {more:,} steps")
    measure = functools.partial(loss_of, short=not args.float32)
    compute = torch.compile(measure) if args.compile else measure
    start, running = time.time() - seconds, []
    for step, (ids, weight) in enumerate(itertools.islice(itertools.chain(*stages), steps + more)):
        if step < done:
            continue
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = args.lr * schedule(step, steps, more)
        loss, plain = compute(model, ids, weight)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        running.append(float(plain))
        seen += int((weight > 0).sum())
        if (step + 1) % args.every == 0 or step + 1 == steps + more:
            seconds = time.time() - start
            test = validation_loss(measure, model, held, held_weights, args.batch)
            log.append([step + 1, seen, round(sum(running) / len(running), 4), round(test, 4),
                        round(args.lr * schedule(step, steps, more), 6), round(seconds)])
            running = []
            print("step {} tokens {} loss {} validation {} lr {} seconds {}".format(*log[-1]), flush=True)
            state = {"step": step + 1, "seconds": seconds, "seen": seen, "log": log, "model": model.state_dict(),
                     "optimizers": [optimizer.state_dict() for optimizer in optimizers]}
            torch.save(state, checkpoint.with_suffix(".part"))
            os.replace(checkpoint.with_suffix(".part"), checkpoint)
    if not math.isfinite(log[-1][3]):
        raise SystemExit("error: the loss is not finite; nothing was saved. Try a lower --lr")
    save_model(model, tokenizer, args.out)
    if args.log:
        args.log.parent.mkdir(parents=True, exist_ok=True)
        with open(args.log, "w", newline="") as file:
            csv.writer(file).writerows([["step", "tokens", "loss", "validation_loss", "lr", "seconds"], *log])


def arguments(given=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory to write")
    parser.add_argument("--log", type=Path, help="write the training log here, as CSV")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "minigemma-tiny",
                        help="directory for tokens and checkpoints; one for each run (default: %(default)s)")
    parser.add_argument("--documents", type=int, default=DOCUMENTS, help="documents to train on (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="stop, and end the schedule, after this number of steps")
    parser.add_argument("--focus", type=int, default=0, metavar="STEPS",
                        help="then practise this many steps on the questions that are learned last")
    parser.add_argument("--batch", type=int, default=8, help=f"rows of {ROW} tokens a step (default: %(default)s)")
    parser.add_argument("--lr", type=float, default=6e-3, help="peak learning rate (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int, default=200, help="steps between checkpoints (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--compile", action="store_true", help="use torch.compile: needs a C++ compiler")
    parser.add_argument("--float32", action="store_true",
                        help="train without bfloat16: faster on a processor that has no instructions for it")
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --work")
    parser.add_argument("--no-ple", action="store_true", help="train the twin without per-layer embeddings")
    parser.add_argument("--intermediate-size", type=int, default=256, help="MLP width (default: %(default)s)")
    return parser.parse_args(given)


if __name__ == "__main__":
    train(arguments())
