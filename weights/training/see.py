"""Trains the vision tower of the tiny weights on drawn pictures. The text model stays as it is.

    python weights/training/see.py --weights weights/tiny --work work/see.pt --log weights/training/logs/see.csv

Three parts, one after the other. First each soft token learns to be the embedding of one word of a caption (`caption`).
Then the inputs and outputs of the clipped linears get their bounds from what training saw. Then the text model answers
questions about each picture, and the loss of its answer goes through it into the tower. transformers' own classes
compute everything.
"""

import argparse
import csv
import itertools
import json
import math
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
import whole
from pictures import COLOURS, COUNTED, GRID, LEADS, SIDE, THINGS, amount, picture
from stories import NUMBERS
from tokenizers import Tokenizer
from transformers import Gemma4Config, Gemma4ForConditionalGeneration

VISION = {  # vision_config: E2B's in small
    "attention_bias": False, "attention_dropout": 0.0, "head_dim": 24, "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 96, "initializer_range": 0.02, "intermediate_size": 256, "model_type": "gemma4_vision",
    "num_attention_heads": 4, "num_hidden_layers": 4, "num_key_value_heads": 4, "patch_size": 8,
    "pooling_kernel_size": 2, "position_embedding_size": 256, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 100.0, "rope_type": "default"}, "standardize": False, "use_clipped_linears": True,
}  # fmt: skip
SOFT = GRID * GRID  # soft tokens of a picture
FORMS = (  # what stands before the picture, behind it, and before the answer
    ("<|turn>user\n", "{question}", "<turn|>\n<|turn>model\n"),
    ("<|turn>user\n", "\n{question}", "<turn|>\n<|turn>model\n"),
    ("<|turn>user\n", "{lead} {question}", "<turn|>\n<|turn>model\n"),
    ("<|turn>user\n", "\n{lead}\n{question}", "<turn|>\n<|turn>model\n"),
    ("<|turn>user\n{lead}", "\n{question}", "<turn|>\n<|turn>model\n"),
    ("", "", ""),  # no question: the text goes on, as {start}
)
QUANTILE = 1e-4  # of a clipped linear's inputs and outputs: so many lie below its bounds, and so many above


class Text:
    """The frozen text model's words: ids of text, and the rows that soft tokens learn to imitate."""

    def __init__(self, directory, model):
        self.tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        config = model.config
        self.picture = [config.boi_token_id, *[config.image_token_id] * SOFT, config.eoi_token_id]
        texts = ["The was.", *(f"There {amount(thing, number)}." for thing in COUNTED for number in range(1, 10))]
        texts += [f" {word}" for word in (*THINGS, *COLOURS)]
        self.words = sorted({id for text in texts for id in self.encode(text)})  # of captions, as ids
        self.rows = model.model.language_model.embed_tokens(torch.tensor(self.words)).detach()  # [words, D]
        # A number is one word of eight in its caption, and harder to see than the others.
        numbers = self.encode("".join(f" {number}" for number in NUMBERS[1:10]))
        self.importance = torch.tensor([8.0 if id in numbers else 1.0 for id in self.words])

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def caption(self, drawn):
        """A picture -> the number of the word that each of its soft tokens imitates, [SOFT].

        Four words a thing, in each row of its quarter: "The hat was red". A quarter without a thing repeats a
        neighbour's words. A picture of many says in each of its rows how many there are.
        """
        grid = np.empty((GRID, GRID), int)
        if drawn.kind == "count":
            ((thing, number),) = drawn.facts
            grid[:] = self._places(f"There {amount(thing, number)}.", GRID)
            return grid.ravel()
        by_quarter = {quarter: (thing, colour) for thing, colour, quarter in drawn.facts}
        for quarter in range(4):
            near = next(q for q in (quarter, quarter ^ 1, quarter ^ 2, quarter ^ 3) if q in by_quarter)
            rows, columns = (slice(4 * part, 4 * part + 4) for part in divmod(quarter, 2))
            grid[rows, columns] = self._places("The {} was {}".format(*by_quarter[near]), 4)
        return grid.ravel()

    def _places(self, text, length):
        """The words of a text by their places in `words`, with full stops behind them."""
        ids = self.encode(text)
        return [self.words.index(id) for id in ids + self.encode(".") * (length - len(ids))]

    def example(self, drawn, form, pick):
        """One question about a picture, in a form -> (ids up to the answer, ids of the answer)."""
        before, behind, last = form
        question, answer = drawn.questions[pick % len(drawn.questions)]
        before, behind = (part.format(lead=LEADS[drawn.kind], question=question) for part in (before, behind))
        if not last:
            start, answer = answer.split(" is " if drawn.kind == "colour" else " ", 1)
            behind, answer = (start + " was", f" {answer}") if drawn.kind == "colour" else (start, f" {answer}")
        ids = [*self.encode(f"<bos>{before}"), *self.picture, *self.encode(behind + last)]
        return ids, self.encode(answer + "<turn|>" * bool(last))


def load(directory, **parts):
    """The model of a checkpoint directory, with these parts of its config -> a model of transformers in float32."""
    fields = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    config = Gemma4Config.from_dict(fields | parts)
    model = Gemma4ForConditionalGeneration.from_pretrained(directory, config=config, dtype=torch.float32)
    return model.requires_grad_(False)


def begin(model, kind, lr):
    """Draw a new tower, to be trained -> its tensors by their names in the checkpoint, and its optimizer."""
    tensors = tower(model, kind)
    for name, tensor in tensors.items():
        if tensor.ndim > 1:
            std = 0.02 if "position" in name else tensor[0].numel() ** -0.5
            torch.nn.init.normal_(tensor, std=std)
        if tensor.ndim:
            tensor.requires_grad_(True)
    print("parameters", sum(tensor.numel() for tensor in tensors.values()), flush=True)
    learned = [tensor for tensor in tensors.values() if tensor.requires_grad]
    return tensors, torch.optim.AdamW(learned, lr=lr, betas=(0.9, 0.98), weight_decay=0.01)


def learn(optimizer, loss, lr):
    """One step of the optimizer at this learning rate."""
    (group,) = optimizer.param_groups
    group["lr"] = lr
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(group["params"], 1.0)
    optimizer.step()


def tower(model, kind):
    """The tensors that make soft tokens, by their names in the checkpoint. kind: "vision" or "audio"."""
    parts = {f"model.{name}": getattr(model.model, name) for name in (f"{kind}_tower", f"embed_{kind}")}
    return {
        f"{at}.{name}": tensor for at, part in parts.items() for name, tensor in part.state_dict(keep_vars=True).items()
    }


def see(model, images):
    """Pictures [B, SIDE, SIDE, 3] of uint8 -> soft tokens [B, SOFT, D]."""
    size = VISION["patch_size"]
    side = SIDE // size
    x = torch.from_numpy(images).float().div_(255).reshape(-1, side, size, side, size, 3).transpose(2, 3)
    grid = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), -1).reshape(1, -1, 2)
    patches = x.reshape(len(images), side**2, -1)  # [B, T, X]
    seen = model.model.vision_tower(pixel_values=patches, pixel_position_ids=grid.expand(len(images), -1, -1))
    return model.model.embed_vision(seen.last_hidden_state).reshape(len(images), SOFT, -1)  # [B, SOFT, D]


def distances(soft, rows):
    """Squared distances of soft tokens [..., D] from rows [words, D], divided by 64 -> [..., words]."""
    return (soft.square().sum(-1, keepdim=True) - 2 * soft @ rows.T + rows.square().sum(-1)) / 64


def imitation(soft, text, captions):
    """How far soft tokens [B, SOFT, D] are from the words [B, SOFT] -> (loss, share of them nearest to their word)."""
    distance = distances(soft, text.rows)
    loss = F.cross_entropy(-distance.flatten(0, 1), captions.flatten(), weight=text.importance)
    squared = (soft - text.rows[captions]).square().mean()
    return loss + 0.02 * squared, (distance.argmin(-1) == captions).float().mean()


def answers(model, examples, soft):
    """The text model's loss on each answer [B], and whether greedy decoding gives it whole [B]."""
    width = max(len(ids) + len(answer) for ids, answer in examples)
    inputs, labels = torch.zeros(2, len(examples), width, dtype=torch.long)  # padded at the front, so answers are last
    for row, (ids, answer) in enumerate(examples):
        inputs[row, -len(ids) - len(answer) :] = torch.tensor(ids + answer)
        labels[row, -len(answer) - 1 : -1] = torch.tensor(answer)
    image, last = SimpleNamespace(pooler_output=tuple(soft)), max(len(answer) for _, answer in examples) + 1
    states = model.model(
        input_ids=inputs, attention_mask=(inputs != 0).long(), mm_encoder_outputs={"image": image}, use_cache=False,
        logits_to_keep=last,  # the layers that share K and V compute only these
    ).last_hidden_state  # fmt: skip
    states, labels = states[:, -last:], labels[:, -last:]
    row, at = labels.nonzero(as_tuple=True)
    logits = states[row, at] @ model.lm_head.weight.T
    cap = model.config.text_config.final_logit_softcapping
    logits = cap * torch.tanh(logits / cap)
    each = F.cross_entropy(logits, labels[row, at], reduction="none")
    wrong = (logits.argmax(-1) != labels[row, at]).float()
    loss, errors = (torch.zeros(len(examples)).index_add(0, row, value) for value in (each, wrong))
    return loss, errors == 0


@torch.no_grad()
def measure(model, text, split, count, forms=FORMS):
    """Right answers to every question about pictures 0 to count - 1 -> {(form, kind, things or number): [bool]}."""
    result, drawn = {}, [picture(split, number) for number in range(count)]
    for start in range(0, count, 32):
        batch = drawn[start : start + 32]
        soft = see(model, np.stack([each.image for each in batch]))
        for number, form in enumerate(forms):
            owners = [i for i, each in enumerate(batch) for _ in each.questions]
            examples = [text.example(each, form, pick) for each in batch for pick in range(len(each.questions))]
            _, right = answers(model, examples, soft[owners])
            for i, ok in zip(owners, right.tolist(), strict=True):
                facts = batch[i].facts
                much = len(facts) if batch[i].kind == "colour" else facts[0][1]
                result.setdefault((number, batch[i].kind, much), []).append(ok)
    return result


def summary(result):
    """The shares that are right: of one thing's colour, of a colour among more, of counts; then counts by number."""

    def share(kind, *much, form=None):
        found = [ok for (f, k, m), oks in result.items() for ok in oks if k == kind and m in much and form in (None, f)]
        return round(sum(found) / max(len(found), 1), 4)

    forms = sorted({form for form, *_ in result})
    table = [
        [share("colour", 1, form=f), share("colour", 2, 3, 4, form=f), share("count", *range(1, 10), form=f)]
        for f in forms
    ]
    return table, [share("count", number) for number in range(1, 10)]


@torch.no_grad()
def set_bounds(part, batches, feed):
    """Give every clipped linear of a tower its bounds, from the quantiles of what it reads and writes.

    feed: what is done with each batch, for example `see`.
    """
    linears = {n: m for n, m in part.named_modules() if hasattr(m, "input_min")}
    ends = {}

    def keep(name):
        def hook(module, args, output):
            for side, values in (("input", args[0]), ("output", output)):
                flat = values.flatten().sort().values
                skip = int(QUANTILE * len(flat))
                low, high = ends.get((name, side), (math.inf, -math.inf))
                ends[name, side] = min(low, float(flat[skip])), max(high, float(flat[-1 - skip]))

        return hook

    hooks = [module.register_forward_hook(keep(name)) for name, module in linears.items()]
    for batch in batches:
        feed(batch)
    for hook in hooks:
        hook.remove()
    for (name, side), (low, high) in ends.items():
        for end, value in (("min", low), ("max", high)):
            getattr(linears[name], f"{side}_{end}").fill_(torch.tensor(value).bfloat16())


def training_pictures(step, count, skip):
    """The pictures of a step. skip: the share of those with coloured things that are left out, to practise counting."""
    drawn = (picture("train", 1000 * step + number) for number in range(1000))
    kept = (each for number, each in enumerate(drawn) if each.kind == "count" or (number + 1) * skip % 1 < 1 - skip)
    return list(itertools.islice(kept, count))


def train(args, model, text):
    rng = np.random.default_rng(args.seed)
    tensors, optimizer = begin(model, "vision", args.lr)
    log, seconds, first = [], 0.0, 0
    if args.resume:
        state = torch.load(args.work)
        for name, tensor in tensors.items():
            tensor.data.copy_(state["tower"][name])
        optimizer.load_state_dict(state["optimizer"])
        log, seconds, first = state["log"], state["seconds"], state["step"]
        rng = np.random.default_rng([args.seed, first])
    end = args.imitate + args.answer
    for step in range(first, end):
        began = time.perf_counter()
        done = step - args.restart
        lr = args.lr * min(1, (done + 1) / 50) * (0.5 + 0.5 * math.cos(math.pi * done / (end - args.restart)))
        if step == args.imitate:
            some = [np.stack([picture("train", at + i).image for i in range(32)]) for at in range(0, 256, 32)]
            set_bounds(model.model.vision_tower, some, lambda images: see(model, images))
        drawn = training_pictures(step, args.batch, args.skip)
        soft = see(model, np.stack([each.image for each in drawn]))
        captions = torch.from_numpy(np.stack([text.caption(each) for each in drawn]))
        loss, words = imitation(soft, text, captions)
        right = torch.zeros(1)
        if step >= args.imitate:
            asked = drawn[::2]  # the text model costs as much time as the tower
            examples = [text.example(each, FORMS[rng.integers(len(FORMS))], rng.integers(4)) for each in asked]
            each, right = answers(model, examples, soft[::2])
            loss = each.mean() + args.keep * loss
        learn(optimizer, loss, max(lr, args.lr * 0.02))
        seconds += time.perf_counter() - began
        if step % 20 == 0:
            share = right.float().mean().item()
            shown = f"loss {loss.item():.3f} words {words.item():.3f} right {share:.2f} seconds {seconds:.0f}"
            print(step, shown, flush=True)
        if (step + 1) % args.every == 0 or step + 1 == end:
            table, numbers = summary(measure(model, text, "validation", 96))
            shares = np.mean(table, 0).round(4).tolist()
            log.append([step + 1, round(loss.item(), 4), round(words.item(), 4), *shares, round(seconds)])
            print("step", *log[-1], table, numbers, flush=True)
            state = {"tower": {n: t.detach() for n, t in tensors.items()}, "optimizer": optimizer.state_dict()}
            torch.save(state | {"log": log, "seconds": seconds, "step": step + 1}, args.work)
            if args.log:
                with open(args.log, "w", newline="") as file:
                    header = ["step", "loss", "words", "one_colour", "colours", "counts", "seconds"]
                    csv.writer(file).writerows([header, *log])


def arguments(description, **defaults):
    """A parser with the arguments that the training of both towers has, and these defaults of them."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="the checkpoint directory whose text model reads")
    parser.add_argument("--imitate", type=int, help="steps of the first part")
    parser.add_argument("--answer", type=int, help="steps of the last part")
    parser.add_argument("--keep", type=float, help="weight of imitation in the last part")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--lr", type=float)
    parser.add_argument("--measure", type=int, help="held-out pictures or clips that are asked about at the end")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--every", type=int)
    parser.add_argument("--threads", type=int, default=1)
    parser.set_defaults(**defaults)
    return parser


def prepare(args, **parts):
    """Seed PyTorch and hold it to the threads that were asked for -> the model, with these parts of its config."""
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    return load(args.weights, **parts)


def save(directory, model, kind, fields):
    """Write a trained tower beside the text model -> the model as it is saved, in bfloat16."""
    arrays = {name: tensor.detach().numpy() for name, tensor in tower(model, kind).items()}
    whole.add_tower(directory, kind, fields, arrays)
    return load(directory, **{f"{kind}_config": fields})


def main():
    parser = arguments(__doc__, imitate=1250, answer=1000, keep=1.0, batch=32, lr=2e-3, measure=320, every=200)
    parser.add_argument(
        "--work", type=Path, help="file of the training state; without it the tower is only measured"
    )
    parser.add_argument("--log", type=Path, help="write the training log here, as CSV")
    parser.add_argument("--skip", type=float, default=0.0, help="share of the pictures of coloured things to leave out")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--restart", type=int, default=0, help="the step at which the learning rate starts again")
    args = parser.parse_args()
    model = prepare(args, vision_config=VISION)
    text = Text(args.weights, model)
    if args.work:
        train(args, model, text)
        model = save(args.weights, model, "vision", VISION)
    table, numbers = summary(measure(model, text, "heldout", args.measure))
    for form, shares in zip(FORMS, table, strict=True):
        print(*shares, repr("".join(form)))
    print("counts of one to nine", *numbers)


if __name__ == "__main__":
    main()
