"""A picture becomes soft tokens: the pass, its taps, and the tensors it reads. parity/ compares with transformers."""

import numpy as np
import pytest
from family import VISION, hearing, random_audio, random_picture, random_vision, seeing, small, write_tower

from minigemma import Config, Edit, Error, Finite, Trace, forward, load, random_weights, taps
from minigemma.checkpoint import read_vision, save
from minigemma.config import VisionEmbedder
from minigemma.taps import VISION_TAPS, fits, tap_kind, vision_names
from minigemma.vision import embed_image, encode_image


def see(config, weights, grid=(2, 3), seed=0, **options):
    """The soft tokens of a picture that is a grid of so many."""
    image = random_picture(*(config.vision.side * n for n in grid), seed)
    encode = embed_image if isinstance(config.vision, VisionEmbedder) else encode_image
    return encode(image, weights, config, **options)


@pytest.fixture(params=VISION)
def seer(request):
    """Config and float64 weights of each kind of vision in turn."""
    config = Config.from_dict(seeing(request.param))
    return config, random_vision(config, dtype=np.float64)


def whole_trace(config, weights):
    trace = Trace(["*", "*heads*"] if hasattr(config.vision, "head_dim") else None)
    return see(config, weights, tap=trace), trace


def test_a_picture_has_exactly_the_taps_of_the_table_with_its_shapes(seer):
    config, weights = seer
    soft, trace = whole_trace(config, weights)
    vision = config.vision
    size, D, _ = vision.patches
    letters = {"X": 3 * size**2, "D": D, "M": 6, "Y": config.hidden_size, "T": 6 * (vision.side // size) ** 2}
    if hasattr(vision, "head_dim"):
        letters |= {"N": vision.num_attention_heads, "K": vision.num_key_value_heads, "H": vision.head_dim}
        letters |= {"F": vision.intermediate_size}
    assert list(trace) == vision_names(vision)
    for name, array in trace.items():
        assert array.shape == tuple(letters[axis] for axis in VISION_TAPS[tap_kind(name)].axes.split()), name
    assert np.array_equal(soft, trace["vision.soft_tokens"])


def test_a_block_adds_attention_and_mlp_to_the_residual(seer):
    _, trace = whole_trace(*seer)
    for name in [name for name in trace if name.endswith("resid_post")]:
        at = name.removesuffix("resid_post")
        total = trace[at + "resid_pre"] + trace[at + "attn_out"] + trace[at + "mlp_out"]
        np.testing.assert_allclose(trace[name], total, rtol=1e-14, atol=1e-14)


def test_without_pooling_each_patch_becomes_a_soft_token():
    config, trace = Config.from_dict(seeing("E2B", VISION["E2B"] | {"pooling_kernel_size": 1})), Trace()
    see(config, random_vision(config), (3, 1), tap=trace)
    last = trace["vision.layers.1.resid_post"]
    np.testing.assert_allclose(trace["vision.pooled"], last * config.vision.hidden_size**0.5, rtol=1e-6)


def test_the_scores_and_patterns_of_all_heads_lie_in_one_array():
    config, arrays = Config.from_dict(seeing("E2B")), []
    see(config, random_vision(config), tap=lambda name, x: arrays.append(x) or x if ".0.attn.heads." in name else x)
    assert len(arrays) == 2 * config.vision.num_attention_heads
    assert all(np.shares_memory(array, arrays[0]) for array in arrays)


def test_a_tap_that_changes_a_shape_is_refused_by_name(seer):
    with pytest.raises(Error, match=r"vision\.patches: the tap returned"):
        see(*seer, tap=lambda name, x: x[:1])


def test_every_patch_sees_every_patch():
    config = Config.from_dict(seeing("E2B"))
    _, trace = whole_trace(config, random_vision(config))
    for n in range(config.vision.num_attention_heads):
        pattern = trace[f"vision.layers.0.attn.heads.{n}.pattern"]
        assert (pattern > 0).all()
        np.testing.assert_allclose(pattern.sum(-1), 1, rtol=1e-5)


def test_an_edited_head_changes_the_mix_of_that_head_alone():
    config = Config.from_dict(seeing("E2B"))
    weights, plain, edited = random_vision(config), Trace(), Trace()
    see(config, weights, tap=plain)
    edit = Edit({"vision.layers.0.attn.heads.1.pattern": np.zeros_like})
    see(config, weights, tap=lambda name, array: edited(name, edit(name, array)))
    name = "vision.layers.0.attn.z"
    assert not edited[name][:, 1].any()
    others = [0, 2, 3]
    assert np.array_equal(edited[name][:, others], plain[name][:, others])


def test_a_trace_keeps_the_heads_only_where_a_pattern_names_them(monkeypatch):
    config = Config.from_dict(seeing("E2B"))
    weights = random_vision(config)
    for only in (None, "vision.*", "vision.layers.0.attn.*"):
        trace = Trace(only)
        see(config, weights, tap=trace)
        assert trace and not any(".heads." in name for name in trace)
    trace = Trace("vision.layers.1.attn.heads.*.scores")
    see(config, weights, tap=trace)
    assert len(trace) == config.vision.num_attention_heads
    size = sum(array.nbytes for array in trace.values())
    for free, enough in ((2 * size, True), (2 * size - 2, False)):
        monkeypatch.setattr(taps, "free_memory", lambda free=free: free)
        trace = Trace("vision.layers.1.attn.heads.*.scores")
        if enough:
            see(config, weights, tap=trace)
            continue
        with pytest.raises(Error, match=r"heads\.0\.scores.*4 arrays.*name fewer"):
            see(config, weights, tap=trace)
        assert not trace


def test_one_trace_records_a_picture_and_the_text_behind_it():
    config = Config.from_dict(seeing("E2B"))
    trace = Trace(["vision.soft_tokens", "embed"])
    soft = see(config, random_vision(config), tap=trace)
    ids = [2, 101, *[102] * len(soft), 103]
    where = np.flatnonzero(np.array(ids) == 102)
    forward(ids, random_weights(config), config, tap=trace, soft_tokens=(where, soft))
    assert set(trace) == {"vision.soft_tokens", "embed"}
    assert np.array_equal(trace["embed"][where], trace["vision.soft_tokens"])


def test_a_tap_of_a_picture_is_refused_by_a_model_that_cannot_see():
    config, weights = small("E2B")
    with pytest.raises(Error, match="no tap of this model"):
        forward([1], weights, config, tap=Trace("vision.pooled"))
    with pytest.raises(Error, match=r"vision\.soft_tokens"):
        Trace("vision.soft_token")


def test_the_first_nan_of_a_picture_is_named():
    config = Config.from_dict(seeing("31B"))
    weights = random_vision(config)
    weights.layers[1].q_norm[2] = np.nan
    with pytest.raises(Error, match=r"vision\.layers\.1\.attn\.q: .*T N H"):
        see(config, weights, tap=Finite())


def test_patches_are_whole_values_of_the_picture_from_minus_one_to_one():
    """12B reads them from 0 to 1."""
    for member, low in (("E2B", -1), ("12B", 0)):
        config, trace = Config.from_dict(seeing(member)), Trace("vision.patches")
        side, size = config.vision.side, config.vision.patches[0]
        image = np.zeros((side, 2 * side, 3), np.uint8)
        image[0, size + 1] = 255, 0, 51  # in the second patch, the second pixel of its first row
        encode = embed_image if member == "12B" else encode_image
        encode(image, random_vision(config), config, tap=trace)
        values = (trace["vision.patches"] - low) / (1 - low)
        assert values.min() == 0 and values.max() == 1
        np.testing.assert_allclose(values[1, 3:6], [1, 0, 0.2], rtol=1e-6)
        assert np.count_nonzero(values) == 2


@pytest.mark.parametrize("member", VISION)
@pytest.mark.parametrize("prefix", ["model.", ""])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float64"])
def test_the_vision_of_a_checkpoint_is_read_whole(tmp_path, member, prefix, dtype):
    config = Config.from_dict(seeing(member))
    weights = random_vision(config)
    write_tower(tmp_path / "model.safetensors", config, "vision", weights, prefix)
    again = read_vision(tmp_path, config, dtype)
    assert np.array_equal(see(config, again), see(config, random_vision(config, dtype=again_dtype(dtype))))


def again_dtype(dtype):
    return "float64" if dtype == "float64" else "float32"


def test_a_missing_clip_bound_is_refused_by_name(tmp_path):
    config = Config.from_dict(seeing("E2B"))
    bound = "encoder.layers.1.mlp.up_proj.output_max"
    write_tower(tmp_path / "model.safetensors", config, "vision", random_vision(config), leave_out=(bound,))
    with pytest.raises(Error, match=f"1 missing .*{bound}"):
        read_vision(tmp_path, config)


@pytest.mark.parametrize(
    ("prefix", "problem"), [("model.vision_tower.", "unknown .vision_tower.vision_tower"), ("mmproj.", "no file holds")]
)
def test_a_tower_under_names_that_nobody_knows_is_one_line(tmp_path, prefix, problem):
    config = Config.from_dict(seeing("E2B"))
    write_tower(tmp_path / "model.safetensors", config, "vision", random_vision(config), prefix)
    with pytest.raises(Error, match=problem) as caught:
        read_vision(tmp_path, config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("member", [*VISION, "E2B that hears"])
def test_a_whole_checkpoint_is_saved_and_loaded_bit_for_bit(tmp_path, member):
    name, hears = member.split()[0], "hears" in member
    config = Config.from_dict(hearing(name) if hears else seeing(name))
    text, vision, audio = random_weights(config), random_vision(config), random_audio(config) if hears else None
    save(tmp_path / "exact", text, config, "float32", vision, audio)
    exact = load(tmp_path / "exact")
    assert np.array_equal(see(exact.config, exact.vision), see(config, vision))
    assert np.array_equal(exact([2, 5])[0], forward([2, 5], text, config)[0])
    save(tmp_path / "half", exact.weights, exact.config, "bfloat16", exact.vision, exact.audio if hears else None)
    half = load(tmp_path / "half")
    save(tmp_path / "again", half.weights, half.config, "bfloat16", half.vision, half.audio if hears else None)
    files = [tmp_path / folder / "model.safetensors" for folder in ("half", "again")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert load(tmp_path / "again").config.to_dict(["vision"]) == half.config.to_dict(["vision"])


def test_a_tower_that_the_config_does_not_describe_is_not_saved(tmp_path):
    config, weights = small("E2B")
    with pytest.raises(Error, match="no vision_config"):
        save(tmp_path / "new", weights, config, vision=random_vision(Config.from_dict(seeing("E2B"))))
    assert not (tmp_path / "new").exists()


def test_bounds_without_limits_change_nothing():
    config = Config.from_dict(seeing("E2B"))
    clipping, plain, unlimited = (random_vision(config) for _ in range(3))
    for model, bounds in ((plain, None), (unlimited, (-np.inf, np.inf, -np.inf, np.inf))):
        for w in model.layers:
            for name, value in vars(w).items():
                if hasattr(value, "bounds"):
                    setattr(w, name, value._replace(bounds=bounds))
    assert np.array_equal(see(config, plain), see(config, unlimited))
    assert not np.allclose(see(config, plain), see(config, clipping), rtol=0.1)


def test_weights_of_another_model_are_refused_before_any_work():
    tower, embedder = (Config.from_dict(seeing(member)) for member in ("E2B", "12B"))
    for config, weights, encode in (
        (tower, random_vision(embedder), encode_image),
        (embedder, random_vision(tower), encode_image),
        (embedder, random_vision(embedder), encode_image),
        (tower, random_vision(tower), embed_image),
        (tower, random_weights(tower), encode_image),
    ):
        with pytest.raises(Error, match="belong to another config"):
            encode(random_picture(12, 12), weights, config)
    text, _ = small("E2B")
    with pytest.raises(Error, match="cannot see"):
        encode_image(random_picture(12, 12), random_vision(tower), text)


@pytest.mark.parametrize("shape", [(12, 13, 3), (12, 12), (0, 12, 3), (12, 12, 4), (12 * 101, 12, 3)], ids=str)
def test_a_picture_that_does_not_fit_the_model_is_refused(shape):
    config = Config.from_dict(seeing("E2B"))
    with pytest.raises(Error, match="picture"):
        encode_image(np.zeros(shape, np.uint8), random_vision(config), config)
    with pytest.raises(Error, match="uint8"):
        encode_image(np.zeros((12, 12, 3)), random_vision(config), config)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("head_dim", 6), ("num_hidden_layers", 0), ("hidden_size", "20"), ("standardize", 1), ("rms_norm_eps", 0),
        ("num_key_value_heads", 3), ("hidden_activation", "gelu"), ("attention_bias", True), ("patch_size", 10**6),
        ("rope_parameters", {"rope_type": "yarn"}), ("rope_parameters", {"rope_type": "axial", "rope_theta": -1}),
        ("intermediate_size", None),
    ],
)  # fmt: skip
def test_a_vision_config_that_the_pass_cannot_do_is_refused_by_its_field(field, value):
    raw = seeing("E2B")
    raw["vision_config"] = raw["vision_config"] | {field: value}
    with pytest.raises(Error, match=f"vision_config.*{field}"):
        Config.from_dict(raw)


def test_the_released_spelling_of_the_two_directional_rope_means_the_same_as_transformers_own():
    turns = []
    for kind in ("default", "axial"):
        vision = VISION["E2B"] | {"rope_parameters": {"rope_type": kind, "rope_theta": 100.0}}
        turns.append(Config.from_dict(seeing("E2B", vision)).vision.inv_freq)
    assert np.array_equal(*turns) and len(turns[0]) == VISION["E2B"]["head_dim"] // 4
    assert turns[0][0] == 1 and turns[0][1] == 100 ** (-2 / (VISION["E2B"]["head_dim"] / 2))


def test_patterns_of_pictures_fit_what_they_name():
    names = vision_names(Config.from_dict(seeing("31B")).vision)
    assert fits("vision.standardized", names) and fits("*.heads.[0-2].pattern", names)
    assert not fits("vision.standardized", vision_names(Config.from_dict(seeing("E2B")).vision))
    assert vision_names(None) == []
