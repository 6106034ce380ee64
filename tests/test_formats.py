"""What people hold that is not read: one line says what it is, and what to take instead."""

import json
import shutil

import pytest

import minigemma
from minigemma import Error


@pytest.mark.parametrize(
    ("name", "start", "what"),
    [
        ("model.bin", b"PK\3\4", "pickled PyTorch weights, which can run code"),
        ("consolidated.00.pth", b"\x80\x02", "pickled PyTorch weights"),
        ("model.pt", b"", "pickled PyTorch weights"),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        ("model.gguf", b"version https://git-lfs.github.com/spec/v1\n", "has .* bytes|a pointer of Git LFS|not a GGUF"),
        ("model.safetensors", b"<!doctype html><html>", "a web page, not the file itself"),
        ("model.bin", b"GGUF\3\0\0\0", "a GGUF file under another name"),
        ("model.h5", b"\x89HDF\r\n", "an HDF5 file"),
        ("model.weights.keras", b"PK\3\4", "Keras weights"),
        ("flax_model.msgpack", b"\x81", "Flax weights"),
        ("model.onnx", b"\x08", "an ONNX graph"),
        ("model.tflite", b"\x1c\0\0\0TFL3", "a LiteRT graph"),
        ("gemma.task", b"PK\3\4", "a LiteRT bundle"),
        ("gemma.litertlm", b"LITERTLM", "a LiteRT bundle"),
        ("model.tar.gz", b"\x1f\x8b", "a compressed archive"),
        ("model.zip", b"PK\3\4", "an archive"),
        ("model.safetensors.incomplete", b"", "an unfinished download"),
        ("adapter_model.bin", b"", "a LoRA adapter without its base model"),
        ("model.engine", b"", "a TensorRT engine"),
        ("__0_0.distcp", b"", "a distributed checkpoint"),
        ("_METADATA", b"{}", "an Orbax checkpoint"),
    ],
)
def test_a_file_that_is_not_read_is_named_alone_and_in_a_directory(name, start, what, tmp_path):
    (tmp_path / name).write_bytes(start)
    paths = [tmp_path / name] if name == "model.gguf" else [tmp_path / name, tmp_path]
    for _ in range(2):
        for path in paths:
            with pytest.raises(Error, match=what) as caught:
                minigemma.load(path)
            assert len(str(caught.value).splitlines()) == 1
        shutil.copyfile(minigemma.TINY / "config.json", tmp_path / "config.json")


def test_a_directory_with_a_gguf_file_is_answered_with_the_file(tmp_path):
    (tmp_path / "gemma.gguf").write_bytes(b"GGUF\3\0\0\0")
    with pytest.raises(Error, match=r"its gemma\.gguf\): is GGUF; give the file, not the directory"):
        minigemma.load(tmp_path)


@pytest.mark.parametrize(
    ("about", "what"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised by 'gptq'"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantised by 'awq'"),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            "quantised by 'bitsandbytes'",
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, "quantised by 'fp8'"),
        ({"quantization_config": {"quant_method": "exl2"}}, "quantised by 'exl2'"),
        ({"quantization_config": {"quant_method": "modelopt"}}, "quantised by 'modelopt'"),
        ({"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}, "in MLX's mode 'mxfp4', not affine"),
        ({"quantization_config": {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}}, "'nvfp4-"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "format": "float-quantized"}},
            "'float-quantized'",
        ),
        ({"quantization_config": "gptq"}, "quantised by 'gptq'"),
    ],
)
def test_a_quantisation_that_is_not_read_is_named(about, what, checkpoint):
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    (checkpoint / "config.json").write_text(json.dumps(config | about))
    for ask in (minigemma.load, minigemma.count):
        with pytest.raises(Error, match=f"{what}.*take the checkpoint of 16 bits"):
            ask(checkpoint)
