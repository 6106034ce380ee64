"""The vision tower beside transformers': the same weights and picture, in turn, each run in a fresh process.

    python -m pip install -r requirements.txt -r tests/speed/requirements.txt
    python -m minigemma synth E2B weights/synthetic-e2b
    python tests/speed/pictures.py weights/synthetic-e2b

transformers reads the tower alone, in float32. minigemma reads it mapped ("bfloat16") or in float32. A run gives the
time of a picture behind a very small one, and the most memory that no file backs, imports included.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from minigemma import threads  # before NumPy, so that its BLAS gets one thread

# isort: split
import numpy as np

from minigemma.tools.bench import PeakAnonymous, machine

ENGINES = ("transformers float32", "minigemma bfloat16", "minigemma float32")
GRIDS = {70: (7, 10), 140: (10, 14), 280: (14, 20), 560: (20, 28), 1120: (28, 40)}  # each fills its budget


def transformers_engine(directory, _):
    """A function from pixels [h, w, 3] to soft tokens, in transformers."""
    import torch
    from safetensors import safe_open
    from transformers import AutoConfig
    from transformers.models.gemma4 import modeling_gemma4 as theirs
    from transformers.models.gemma4.image_processing_pil_gemma4 import convert_image_to_patches

    config = AutoConfig.from_pretrained(directory)
    parts = {"vision_tower": theirs.Gemma4VisionModel(config.vision_config)}
    parts["embed_vision"] = theirs.Gemma4MultimodalEmbedder(config.vision_config, config.text_config)
    with safe_open(Path(directory) / "model.safetensors", "pt") as file:
        for name, part in parts.items():
            prefix = f"model.{name}."
            names = [key for key in file.keys() if key.startswith(prefix)]  # noqa: SIM118
            part.load_state_dict({key.removeprefix(prefix): file.get_tensor(key).float() for key in names})
            part.eval()

    @torch.inference_mode()
    def see(pixels):
        size = config.vision_config.patch_size
        rows, columns = pixels.shape[0] // size, pixels.shape[1] // size
        patches = torch.tensor(convert_image_to_patches(pixels.transpose(2, 0, 1) / np.float32(255), size))
        places = np.stack([np.tile(np.arange(columns), rows), np.repeat(np.arange(rows), columns)], -1)
        seen = parts["vision_tower"](patches[None].float(), torch.tensor(places)[None]).last_hidden_state
        return parts["embed_vision"](seen).numpy()

    return see


def minigemma_engine(directory, dtype):
    """The same function here."""
    from minigemma import Config, encode_image, read_vision

    config = Config.from_json(directory)
    weights = read_vision(directory, config, dtype)
    return lambda pixels: encode_image(pixels, weights, config)


def child(engine, directory, budget, output):
    """The seconds of a picture and the peak of memory, measured in this process; the soft tokens go to a file."""
    name, dtype = engine.split()
    rows, columns = GRIDS[budget]
    pixels = np.random.default_rng(0).integers(0, 256, (48 * rows, 48 * columns, 3), np.uint8)
    with PeakAnonymous() as peak:
        see = (transformers_engine if name == "transformers" else minigemma_engine)(directory, dtype)
        see(pixels[:48, :48])
        begin = time.perf_counter()
        soft = see(pixels)
        seconds = time.perf_counter() - begin
    np.save(output, soft)
    return {"seconds": seconds, "peak": peak.bytes or 0}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", help="a checkpoint directory, such as one that `minigemma synth` wrote")
    parser.add_argument("--budgets", nargs="+", type=int, default=[280, 1120], choices=GRIDS)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each engine (default 5)")
    parser.add_argument("--engines", nargs="+", default=ENGINES, choices=ENGINES, metavar="ENGINE")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        engine, budget, output = args.child
        print(json.dumps(child(engine, args.directory, int(budget), output)))
        return
    print(f"{machine()}; {threads.count()} threads; medians of {args.rounds} rounds, min to max in brackets")
    with tempfile.TemporaryDirectory() as scratch:
        for budget in args.budgets:
            compare(args, budget, Path(scratch))


def compare(args, budget, scratch):
    runs = {engine: [] for engine in args.engines}
    outputs = {engine: scratch / f"{engine.replace(' ', '-')}.npy" for engine in args.engines}
    for _ in range(args.rounds):
        for engine, output in outputs.items():
            command = [sys.executable, __file__, args.directory, "--child", engine, str(budget), str(output)]
            done = subprocess.run(
                command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | {"HF_HUB_OFFLINE": "1"}
            )
            runs[engine].append(json.loads(done.stdout.splitlines()[-1]))
            print(f"  {engine}: {runs[engine][-1]['seconds']:.2f} s", file=sys.stderr)
    first = next(iter(runs))
    middle = {engine: statistics.median(run["seconds"] for run in turns) for engine, turns in runs.items()}
    print(f"\n{budget} soft tokens")
    for engine, turns in runs.items():
        seconds = [run["seconds"] for run in turns]
        ratios = [run["seconds"] / other["seconds"] for run, other in zip(turns, runs[first], strict=True)]
        ours, theirs = np.load(outputs[engine]), np.load(outputs[first])
        print(
            f"  {engine:22}{middle[engine]:8.2f} s [{min(seconds):.2f} to {max(seconds):.2f}], "
            f"{statistics.median(ratios):.2f} times {first} [{min(ratios):.2f} to {max(ratios):.2f}], "
            f"peak {max(run['peak'] for run in turns) / 1e9:.2f} GB, "
            f"distance {np.linalg.norm(ours - theirs) / np.linalg.norm(theirs):.1e}"
        )


if __name__ == "__main__":
    main()
