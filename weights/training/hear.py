"""Trains the audio tower of the tiny weights on spoken words. The text model stays as it is.

    python weights/training/hear.py --weights weights/tiny --work work/hear --log weights/training/logs/hear.csv

Three parts, one after the other, as in see.py. First the last soft tokens of a clip learn to be the embedding of its
word. Then the clipped linears get their bounds. Then the text model answers questions about sentences in which the clip
stands for a word, and the loss of its answers goes through it into the tower.
"""

import csv
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from see import answers, arguments, begin, distances, learn, prepare, save, set_bounds
from tokenizers import Tokenizer
from words import ACCENTS, FACTS, FORMS, SEED, SPOKEN, VARIANTS, clip, question, version

from minigemma.audio import log_mel

AUDIO = {  # audio_config: E2B's in small
    "attention_chunk_size": 12, "attention_context_left": 13, "attention_context_right": 0,
    "attention_invalid_logits_value": -1e9, "attention_logit_cap": 50.0, "conv_kernel_size": 5,
    "gradient_clipping": 1e10, "hidden_act": "silu", "hidden_size": 72, "initializer_range": 0.02,
    "model_type": "gemma4_audio", "num_attention_heads": 4, "num_hidden_layers": 3, "output_proj_dims": 128,
    "residual_weight": 0.5, "rms_norm_eps": 1e-6, "subsampling_conv_channels": [64, 16], "use_clipped_linears": True,
}  # fmt: skip
BINS = AUDIO["subsampling_conv_channels"][0]  # of the log mel
SAID, FILLER = 4, " the"  # soft tokens at the end of a clip that imitate its word; what those before them imitate


class Text:
    """The frozen text model's words: ids of text, and the rows that soft tokens learn to imitate."""

    def __init__(self, directory, model):
        self.tokenizer, self.config = Tokenizer.from_file(str(directory / "tokenizer.json")), model.config
        words = [id for text in (FILLER, *(f" {word}" for _, word in SPOKEN)) for id in self.encode(text)]
        self.rows = model.model.language_model.embed_tokens(torch.tensor(words)).detach()  # [1+words, D]

    def encode(self, text):
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def example(self, number, length, form, rng):
        """A question about clip `number`, which becomes `length` soft tokens -> (ids up to the answer, its ids)."""
        before, behind, answer = question(number, form, rng)
        # transformers takes soft tokens that are ready only of pictures. The text model treats both alike.
        sound = [self.config.boa_token_id, *[self.config.image_token_id] * length, self.config.eoa_token_id]
        return [*self.encode(f"<bos>{before}"), *sound, *self.encode(behind)], self.encode(answer)


class Clips:
    """The log mels of the first clips of a split. They are kept in a file of the folder `work`."""

    def __init__(self, split, count, work):
        path = work / f"{split}-{count}.npz"
        if not path.exists():
            mels = [log_mel(clip(split, number).samples, BINS).astype(np.float16) for number in range(count)]
            work.mkdir(parents=True, exist_ok=True)
            np.savez(path, sizes=[len(mel) for mel in mels], mels=np.concatenate(mels))
        with np.load(path) as file:
            self.sizes, self.mels = file["sizes"], file["mels"]  # [count], [all R, C]
        self.starts = np.cumsum(self.sizes) - self.sizes

    def __getitem__(self, number):
        return self.mels[self.starts[number] :][: self.sizes[number]]  # [R, C]

    def batches(self, size, rng):
        """Numbers of clips without end, `size` at a time; clips of about one length come together."""
        while True:
            order = rng.permutation(len(self.sizes))
            for start in range(0, len(order) - 8 * size + 1, 8 * size):
                group = order[start : start + 8 * size]
                yield from rng.permutation(group[np.argsort(self.sizes[group])].reshape(8, size))


def shifted(mel, rng):
    """A log mel [R, C] moved by up to three bins, as of a longer or a shorter throat."""
    start = rng.integers(7)
    return np.pad(mel, ((0, 0), (3, 3)), "edge")[:, start : start + BINS]


def hear(model, mels):
    """Log mels [R, C] of several clips -> their soft tokens, a list of [M, D]."""
    sizes = torch.tensor([len(mel) for mel in mels])
    padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(mel).float() for mel in mels], batch_first=True)
    there = torch.arange(padded.shape[1]) < sizes[:, None]  # [B, R]
    heard = model.model.get_audio_features(padded, there, return_dict=True).pooler_output  # [B, M, D]
    return [soft[:count] for soft, count in zip(heard, -(-sizes // 4), strict=True)]


def imitation(soft, text, numbers):
    """How far soft tokens, a list of [M, D], are from the embeddings of their words -> (loss, share of words right)."""
    classes = [torch.zeros(len(each), dtype=torch.long) for each in soft]
    for each, number in zip(classes, numbers, strict=True):
        each[-SAID:] = 1 + number % len(SPOKEN)
    flat, classes = torch.cat(soft), torch.cat(classes)
    distance = distances(flat, text.rows)
    each = F.cross_entropy(-distance, classes, reduction="none") + 0.02 * (flat - text.rows[classes]).square().mean(-1)
    said = classes > 0
    return each[said].mean() + each[~said].mean(), (distance.argmin(-1) == classes)[said].float().mean()


@torch.no_grad()
def measure(model, text, clips, batch=45):
    """Whether each answer about each clip is right -> {(form, kind, word): [bool]}. An answer counts whole."""
    rng, right = np.random.default_rng(0), {}
    for start in range(0, len(clips.sizes), batch):
        numbers = range(start, min(start + batch, len(clips.sizes)))
        soft = hear(model, [clips[number] for number in numbers])
        for form in FORMS:
            examples = [text.example(n, len(s), form, rng) for n, s in zip(numbers, soft, strict=True)]
            for number, ok in zip(numbers, answers(model, examples, soft)[1].tolist(), strict=True):
                right.setdefault((form, *SPOKEN[number % len(SPOKEN)]), []).append(ok)
    return right


def share(right, *wanted):
    """The share of right answers among those whose form, kind or word is `wanted`."""
    return round(float(np.mean([ok for key, oks in right.items() for ok in oks if {*wanted} <= {*key}])), 4)


def train(args, model, text):
    rng = np.random.default_rng(args.seed)
    clips, others = Clips("train", args.clips, args.work), Clips("validation", 450, args.work)
    print(version())
    tensors, optimizer = begin(model, "audio", args.lr)
    log, seconds, batches, end = [], 0.0, clips.batches(args.batch, rng), args.imitate + args.answer
    for step in range(end):
        began = time.perf_counter()
        lr = args.lr * min(1, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * step / end))
        if step == args.imitate:
            some = [[clips[number] for number in next(batches)] for _ in range(16)]
            set_bounds(model.model.audio_tower, some, lambda mels: hear(model, mels))
        numbers = next(batches)
        soft = hear(model, [shifted(clips[number], rng) for number in numbers])
        loss, words = imitation(soft, text, numbers)
        if step >= args.imitate:
            asked = zip(numbers[::2], soft[::2], strict=True)  # the text model costs more time than the tower
            examples = [text.example(n, len(s), rng.choice(list(FORMS)), rng) for n, s in asked]
            loss = answers(model, examples, soft[::2])[0].mean() + args.keep * loss
        learn(optimizer, loss, max(lr, args.lr * 0.02))
        seconds += time.perf_counter() - began
        if step % 20 == 0:
            print(step, f"loss {loss:.3f} words {words:.3f} seconds {seconds:.0f}", flush=True)
        if (step + 1) % args.every == 0 or step + 1 == end:
            right = measure(model, text, others)
            shares = [share(right, form) for form in FORMS]
            log.append([step + 1, round(loss.item(), 4), round(words.item(), 4), *shares, round(seconds)])
            print("step", *log[-1], flush=True)
            torch.save({name: tensor.detach() for name, tensor in tensors.items()}, args.work / "tower.pt")
            with open(args.log, "w", newline="") as file:
                file.write(f"# {version()}; seed of the clips {SEED}; seed of the run {args.seed}\n# {made_of()}\n")
                csv.writer(file).writerows([["step", "loss", "words", *FORMS, "seconds"], *log])


def made_of():
    """The voices, in one line of the log."""
    variants = (f"{split}: {' '.join(names.split())}" for split, names in VARIANTS.items())
    return f"accents: {' '.join(ACCENTS)}; variants for {'; for '.join(variants)}"


def main():
    parser = arguments(__doc__, imitate=2000, answer=500, keep=0.3, batch=64, lr=3e-3, measure=900, every=250)
    parser.add_argument("--work", type=Path, default=Path("work/hear"), help="folder of the clips and of the tower")
    parser.add_argument("--log", type=Path, help="train, and write the log here, as CSV; without it only measure")
    parser.add_argument("--clips", type=int, default=12000, help="training clips")
    args = parser.parse_args()
    model = prepare(args, audio_config=AUDIO)
    text = Text(args.weights, model)
    if args.log:
        train(args, model, text)
        model = save(args.weights, model, "audio", AUDIO)
    right = measure(model, text, Clips("heldout", args.measure, args.work))
    for form in FORMS:
        print(form, share(right, form), *(f"{kind}: {share(right, form, kind)}" for kind in FACTS))
    print(*(f"{word} {share(right, 'fact', word):.2f}" for _, word in SPOKEN))


if __name__ == "__main__":
    main()
