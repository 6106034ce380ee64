"""Trains a twin of the tiny weights in the five parts of the training of `tiny/` (see ../README.md).

    python weights/training/twins.py --no-ple --out weights/tiny-no-ple --work work/no-ple
    python weights/training/twins.py --no-ple --intermediate-size 278 --out weights/tiny-wide --work work/wide

With an MLP width of 278 a model without PLE computes as many parameters per token as `tiny/`, or a few more: PLE's
projection, gates and norms are 124,192, and one unit of width in ten layers, five of them double, is 5,760.
"""

import argparse
from pathlib import Path

import train

# (documents of practice, options of train.py): each part goes on from the checkpoint of the one before
PARTS = (
    (train.FOCUS, ["--steps", "2000"]),
    (train.FOCUS, ["--lr", "9e-3"]),
    (30_000, ["--focus", "420"]),
    (30_000, ["--focus", "549", "--lr", "9e-3"]),
    (train.FOCUS, ["--focus", "949", "--lr", "12e-3"]),
)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="directory of this run's tokens and checkpoints")
    args, others = parser.parse_known_args()
    for focus, options in PARTS:
        train.FOCUS = focus
        train.train(train.arguments(["--resume", "--work", str(args.work), *options, *others]))


if __name__ == "__main__":
    main()
