"""Try many inputs and print, by kind, how many there were and what came of them.

    PYTHONPATH=.:tests python -m fuzz.run 20000 [--seed S] [--kind KIND] [--only NUMBER]

An input is its seed, kind and number: `--kind` and `--only` try one again alone, with its traceback.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from .harness import Broken, Unavailable, attempt, rng_of
from .kinds import KINDS, Base


def numbers(total):
    """How many inputs of each kind make about `total`."""
    whole = sum(share for _, share in KINDS.values())
    return {kind: max(1, round(total * share / whole)) for kind, (_, share) in KINDS.items()}


def one(base, kind, number, seed):
    """One input -> "accepted", "refused" or "left out", where this system cannot make it.

    Raises Broken, with the words that try it again.
    """
    try:
        return attempt(KINDS[kind][0](base, rng_of(seed, kind, number)), base.scratch)
    except Unavailable:
        return "left out"
    except Broken as error:
        raise Broken(f"{error}\n  again: --seed {seed} --kind {kind!r} --only {number}") from error


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("total", type=int, nargs="?", default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS)
    parser.add_argument("--only", type=int)
    args = parser.parse_args()
    broken = 0
    with tempfile.TemporaryDirectory() as scratch:
        base = Base(Path(scratch))
        if args.only is not None:
            print(one(base, args.kind, args.only, args.seed))
            return 0
        print(f"{'kind':<20} {'inputs':>7} {'accepted':>9} {'refused':>8} {'broken':>7} {'seconds':>8}")
        for kind, count in numbers(args.total).items():
            if args.kind not in (None, kind):
                continue
            outcomes, start = Counter(), time.monotonic()
            for number in range(count):
                try:
                    outcomes[one(base, kind, number, args.seed)] += 1
                except Broken as error:
                    outcomes["broken"] += 1
                    print(f"  {kind}: {error}", file=sys.stderr, flush=True)
            broken += outcomes["broken"]
            row = (count, outcomes["accepted"], outcomes["refused"], outcomes["broken"], time.monotonic() - start)
            print(f"{kind:<20} {row[0]:>7} {row[1]:>9} {row[2]:>8} {row[3]:>7} {row[4]:>8.1f}", flush=True)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
