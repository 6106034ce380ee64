"""`bench` measures what it says: fresh processes, medians with their spread, files and other memory told apart."""

import json
import time
from pathlib import Path

import needs
import numpy as np
import pytest
from family import small
from processes import command, one_line

import minigemma
from minigemma import Error, threads
from minigemma.tools import bench

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def result():
    return json.loads(command("bench", "--repeats", 1, "--json").stdout)


def test_every_figure_has_all_its_runs(result):
    names = ["load", "cold start", "prefill 32", "prefill 512", "prefill 2048", "decode", bench.BUSY]
    assert list(result["seconds"]) == names
    assert all(len(runs) == 1 and min(runs) > 0 for runs in result["seconds"].values())
    assert all(min(runs) > 0 for runs in result["ceilings"].values())


def test_the_table_shows_medians_with_their_spread(result):
    # as if there had been three runs
    seconds = {name: [9 * run, run, 2 * run] for name, (run,) in result["seconds"].items()}
    text = bench.bench_text(result | {"seconds": seconds})
    for name, runs in seconds.items():
        (line,) = [line for line in text.splitlines() if line.startswith(f"{name}  ")]
        assert f"{np.median(runs):.3f}" in line
        assert f"{min(runs):.3f} to {max(runs):.3f}" in line
    assert "PLE table, resident" in text
    assert f"BLAS: {threads.BLAS}" in text


def test_the_busy_process_ends_with_its_block_even_after_an_error():
    with pytest.raises(ZeroDivisionError), bench.busy_process() as process:
        assert process.poll() is None
        raise ZeroDivisionError
    assert process.poll() is not None


def test_the_bytes_that_a_token_reads_are_all_matrices_but_the_ple_table(tiny):
    table = tiny.weights.embed_tokens_per_layer
    everything = sum(array.nbytes for layer in tiny.weights.layers for array in vars(layer).values())
    everything += sum(array.nbytes for name, array in vars(tiny.weights).items() if name != "layers")
    left_out = table.nbytes + tiny.weights.per_layer_projection_norm.nbytes
    assert bench.bytes_read(tiny) == everything - left_out


@needs.PROC
def test_the_peak_of_anonymous_memory_sees_what_comes_and_goes():
    with bench.PeakAnonymous() as peak:
        before = peak.bytes
        block = np.ones(200_000_000, np.uint8)
        time.sleep(0.2)  # ten looks
        del block
    assert peak.bytes - before > 150_000_000


@needs.PROC
def test_only_the_touched_part_of_a_mapping_is_resident(tmp_path):
    np.zeros(50_000_000, np.uint8).tofile(tmp_path / "file")
    mapped = np.memmap(tmp_path / "file", np.uint8, "r")
    assert bench.resident(mapped) < 5_000_000
    mapped.sum()
    assert bench.resident(mapped) >= 49_000_000


def test_a_model_of_few_positions_is_measured_as_far_as_they_go_or_refused(tmp_path):
    for positions, prompts in ((64, ["prefill 32"]), (47, None)):
        config, weights = small("E2B", max_position_embeddings=positions)
        minigemma.save(tmp_path / f"{positions}", weights, config, "float32")
        if prompts:
            found = bench.measure_speed(tmp_path / f"{positions}", "bfloat16", 1)
            assert [name for name in found["seconds"] if name.startswith("prefill")] == prompts
            assert sum(found["memory run"]) <= positions
        else:
            with pytest.raises(Error, match="47 positions are too few"):
                bench.measure_speed(tmp_path / f"{positions}", "bfloat16", 1)


def test_a_measuring_process_that_fails_is_told_in_one_line(tmp_path):
    with pytest.raises(Error, match=r"measures .* ended with status 1"):
        bench.in_fresh_process(tmp_path / "nowhere", "bfloat16", [1], 1)


def test_repeats_below_one_are_refused(run):
    one_line(run("bench", "--repeats", 0), "repeats")
