"""The gguf package's names for the towers, and a file that its writer made of the tiny weights' tower."""

import re

import gguf_files
import numpy as np
import pytest
from family import random_picture

import minigemma
from minigemma.account.towers import TOWERS
from minigemma.checkpoint import find_tensors
from minigemma.packed import widen
from minigemma.tensors import BOUNDS, VISION, checkpoint_tensors

gguf = pytest.importorskip("gguf")
TABLE = gguf.get_tensor_name_map(gguf.MODEL_ARCH.MMPROJ, 27)  # layers, as 31B has
ENDS = (".weight", ".bias", *(f".{bound}" for bound in BOUNDS))


def published_name(name):
    """The name that llama.cpp's conversion gives a tensor of a tower, with the gguf package's table."""
    if "audio" in name:
        name = name.replace("model.audio_tower.", "conformer.").replace(".linear.", ".")
    else:
        name = name.replace("model.vision_tower.encoder.", "vision_model.model.").replace(".linear.weight", ".weight")
    if name.endswith(("per_dim_scale", "position_embedding_table")):
        name += ".weight"
    return TABLE.get_name(name, try_suffixes=ENDS)


@pytest.mark.parametrize("member", ["E2B", "31B"])
def test_the_towers_tensors_have_the_names_of_the_gguf_package(member):
    config = minigemma.count(member).config
    for tensor in checkpoint_tensors(config, TOWERS[member]):
        if re.search("vision|audio", tensor.name):
            bare = tensor.name.removeprefix("model.")
            assert gguf_files.tower_name(bare, unified=False) == published_name(tensor.name), tensor.name


def test_the_tiny_tower_sees_the_same_from_a_file_that_the_gguf_package_wrote(tiny, tmp_path):
    gguf_files.write(tmp_path / "tiny.gguf", *gguf_files.describe(tiny))
    writer = gguf.GGUFWriter(tmp_path / "mmproj-tiny.gguf", "clip")
    writer.add_clip_vision_projector_type(gguf.VisionProjectorType.GEMMA4V)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_uint32("clip.vision.projector.scale_factor", tiny.config.vision.pooling_kernel_size)  # without it: 3
    for name, stored in find_tensors(tiny.directory).items():
        if name.startswith(VISION):
            array = np.ascontiguousarray(gguf_files.tower_layout(name, widen(stored.map())))
            writer.add_tensor(published_name(f"model.{name}"), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    picture = random_picture(48, 64)
    np.testing.assert_array_equal(minigemma.load(tmp_path / "tiny.gguf").see(picture, 70), tiny.see(picture, 70))
