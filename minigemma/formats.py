"""What a file or a directory is that minigemma does not read, and which one to take instead.

Files are told apart by their names and first bytes. Nothing in them is unpacked or executed.
"""

import os
from fnmatch import fnmatchcase
from pathlib import Path

from .errors import Error

SAFETENSORS = "take the model's safetensors files, or a GGUF file"
SAVED = "load it where it was made and save it with save_pretrained(..., safe_serialization=True)"
PICKLED = "pickled PyTorch weights, which can run code when they are read", f"{SAFETENSORS}; or {SAVED}"
ADAPTER = "a LoRA adapter without its base model", "merge it with peft's merge_and_unload, and save that"
BEGINNINGS = (  # the first bytes of a file -> what it is, what to do
    (b"version https://git-lfs", "a pointer of Git LFS, not the file itself", "run: git lfs pull, or hf download"),
    (b"<!DOCTYPE", "a web page, not the file itself", "accept the terms on the hub, then run: hf download"),
    (b"<html", "a web page, not the file itself", "accept the terms on the hub, then run: hf download"),
    (b"GGUF", "a GGUF file under another name", "rename it so that it ends in .gguf"),
    (b"\x89HDF", "an HDF5 file, as Keras saves it", SAFETENSORS),
    (b"\x1f\x8b", "a compressed archive", "unpack it, and give the directory"),
)
NAMES = (  # what a name looks like -> what it is, what to do
    ("adapter_config.json", *ADAPTER),
    ("adapter_model.*", *ADAPTER),
    ("*.incomplete", "an unfinished download", "download it again"),
    ("*.gguf", "GGUF", "give the file, not the directory"),
    ("*.bin", *PICKLED),
    ("*.pth", *PICKLED),
    ("*.pt", *PICKLED),
    ("*.ckpt", *PICKLED),
    ("*.distcp", "a distributed checkpoint of PyTorch", SAVED),
    ("*.msgpack", "Flax weights", SAFETENSORS),
    ("_METADATA", "an Orbax checkpoint of JAX", SAFETENSORS),
    ("_CHECKPOINT_METADATA", "an Orbax checkpoint of JAX", SAFETENSORS),
    ("*.h5", "Keras weights", SAFETENSORS),
    ("*.keras", "Keras weights", SAFETENSORS),
    ("*.onnx", "an ONNX graph", SAFETENSORS),
    ("*.tflite", "a LiteRT graph", SAFETENSORS),
    ("*.task", "a LiteRT bundle for phones", SAFETENSORS),
    ("*.litertlm", "a LiteRT bundle for phones", SAFETENSORS),
    ("*.mlmodel", "a Core ML model", SAFETENSORS),
    ("*.engine", "a TensorRT engine", SAFETENSORS),
    ("*.npz", "NumPy arrays without a model's config", SAFETENSORS),
    ("*.zip", "an archive", "unpack it, and give the directory"),
    ("*.tar*", "an archive", "unpack it, and give the directory"),
)
INSTEAD = "take the checkpoint of 16 bits, one of compressed-tensors' pack-quantized format (w4a16), or a GGUF file"
BYTES = 64  # of a file's beginning


def explain(path):
    """Raise Error if a file or a directory is of a kind that people hold and minigemma does not read: it says which.

    Beside safetensors files, other files of a directory do not count.
    """
    path = Path(path)
    alone = os.path.isfile(path)
    weights = [] if alone else sorted(path.glob("*.safetensors"))
    for file in [path] if alone else weights or sorted(path.iterdir()):
        found = _beginning(file) if os.path.isfile(file) else None
        found = found or next(((what, do) for form, what, do in NAMES if fnmatchcase(file.name, form)), None)
        if found:
            where = path if alone else f"{path} (its {file.name})"
            raise Error(f"{where}: is {found[0]}; {found[1]}")


def _beginning(file):
    try:
        with open(file, "rb") as opened:
            first = opened.read(BYTES)
    except OSError:
        return None
    if file.suffix == ".gguf" and first.startswith(b"GGUF"):
        return None
    return next(((what, do) for start, what, do in BEGINNINGS if first.lower().startswith(start.lower())), None)


def check_quantization(raw, where):
    """Raise Error if a config.json says that the weights are in a format that is not read."""
    about = raw.get("quantization_config") or raw.get("quantization")
    if about is None:
        return
    about = about if isinstance(about, dict) else {"quant_method": about}
    method, mode = about.get("quant_method", "MLX"), about.get("mode", "affine")
    form = about.get("format", "pack-quantized")
    if method == "MLX" and mode == "affine":
        return
    if method == "MLX":
        raise Error(f"{where}: the weights are in MLX's mode {mode!r}, not affine; {INSTEAD}")
    if method != "compressed-tensors":
        raise Error(f"{where}: the weights are quantised by {method!r}; {INSTEAD}")
    if form != "pack-quantized":
        raise Error(f"{where}: the weights are in compressed-tensors' format {form!r}; {INSTEAD}")
