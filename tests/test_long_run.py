"""A long generation on the tiny weights: past many windows, in bounded memory, with the tokens of an uncached pass.

The default is short. The long one, which prints what it took: LONG_RUN=20000 python -m pytest tests/test_long_run.py -s
"""

import os
import time
import tracemalloc

import numpy as np
import pytest

import minigemma
from minigemma import EMPTY, Error, Trace, forward, generate_ids, ops, prefill
from minigemma.inputs import as_tokens

TOKENS = int(os.environ.get("LONG_RUN", "400"))  # the window of the tiny weights is 32


@pytest.fixture(scope="module")
def run():
    """TOKENS drawn from the tiny weights, and what was seen on the way: sizes at each token, caches at some."""
    model = minigemma.load(minigemma.TINY)
    model.generation_config.pop("eos_token_id")  # a story ends; this run does not
    prompt = model.tokenizer.encode("Once upon a time")
    ids, kept, traced = list(prompt), {}, []
    sizes, stamps = np.zeros((TOKENS, len(model.config.layers)), int), np.zeros(TOKENS)
    wanted = {
        *np.linspace(0, TOKENS // 3, 4).astype(int),
        TOKENS - 1,
    }  # none while memory is watched: each one keeps some
    for i, (id, cache) in enumerate(generate_ids(model, prompt, TOKENS, seed=1, temperature=1.0, top_k=0)):
        ids.append(id)
        stamps[i] = time.process_time()  # not the clock: other programs run too
        for layer, entry in cache.entries.items():
            sizes[i, layer] = len(entry.buffer.k)
        if i == TOKENS // 3 + 10:
            tracemalloc.start()
            untraced = _growing(model.config, cache)  # until a larger array takes its place
        if i in (TOKENS // 3 + 100, TOKENS - 1):
            growing = _growing(model.config, cache)
            traced.append(tracemalloc.get_traced_memory()[0] - (growing if growing != untraced else 0))
        if i in wanted:
            kept[len(ids)] = cache
    tracemalloc.stop()
    return model, prompt, ids, sizes, stamps, kept, traced


def _growing(config, cache):
    """Bytes of the arrays behind the global layers' cache, with their room to grow."""
    buffers = [entry.buffer for layer, entry in cache.entries.items() if config.layers[layer].window is None]
    return sum(buffer.k.nbytes + buffer.v.nbytes for buffer in buffers)


def test_every_token_was_generated(run):
    _, prompt, ids, *_ = run
    assert len(ids) == len(prompt) + TOKENS
    assert len(set(ids)) > 50  # a text, not one token again and again


def test_sliding_layers_stay_within_two_windows_and_global_ones_within_twice_the_sequence(run):
    model, prompt, _, sizes, *_ = run
    for i, seen in enumerate(sizes):
        for layer, rows in enumerate(seen):
            window = model.config.layers[layer].window
            assert rows <= (2 * window if window else 2 * (len(prompt) + i)), (i, layer)


def test_memory_grows_by_the_global_layers_cache_and_by_nothing_else(run):
    *_, (before, after) = run
    assert after - before < 100 * TOKENS + 100_000  # bytes: the list of ids, and sliding buffers full or half full


def test_the_next_tokens_logits_are_those_of_a_pass_without_the_cache(run):
    """In float32, what a step with the cache is off by, in root mean square, is what a pass without it is off by."""
    model, _, ids, _, _, kept, _ = run
    double = minigemma.load(minigemma.TINY, "float64")
    for length, cache in kept.items():
        step, _ = forward([ids[length - 1]], model.weights, model.config, cache, logits="last")
        whole, _ = prefill(ids[:length], model.weights, model.config)
        exact, _ = prefill(ids[:length], double.weights, double.config)
        assert np.linalg.norm(step[0] - exact) < 10 * np.linalg.norm(whole - exact)


def test_a_step_meets_a_window_of_keys_on_sliding_layers_and_all_on_global_ones(run):
    model, _, ids, _, _, kept, _ = run
    length, cache = max(kept.items())
    trace = Trace("*.attn.scores")
    forward([ids[length - 1]], model.weights, model.config, cache, tap=trace)
    for name, scores in trace.items():
        window = model.config.layers[int(name.split(".")[1])].window
        assert scores.shape[-1] == (length if window is None else window)


def seconds_of_global_attention(model, cache):
    """Processor time of one token's attention over all keys of `cache`, in the global layers together."""
    times = []
    for _ in range(50):
        start = time.process_time()
        for layer in model.config.layers:
            if layer.window is None:
                k, v = cache.entries[layer.kv_from].k, cache.entries[layer.kv_from].v
                q = np.ones((1, model.config.num_attention_heads, layer.head_dim), np.float32)
                scores = ops.attention_scores(q, k)
                seen = ops.visible(np.array([len(k) - 1]), len(k), None, len(k))
                ops.attention_values(ops.softmax(np.where(seen, scores, -np.inf)), v)
        times.append(time.process_time() - start)
    return np.median(times)


@pytest.mark.skipif(TOKENS < 10_000, reason="a time on a short run says nothing; set LONG_RUN=20000")
def test_a_late_token_takes_as_long_as_an_early_one_but_for_the_global_layers(run):
    model, _, ids, _, stamps, kept, _ = run
    steps = np.diff(stamps)
    tenths = [np.median(part) for part in np.array_split(steps[100:], 10)]
    slope, base = np.polyfit(np.arange(10), tenths, 1)
    print(
        f"\n{len(ids)} tokens in {stamps[-1] - stamps[0]:.0f} s of processor time; ms a token by tenths:",
        *np.round(1e3 * np.array(tenths), 2),
    )
    straight = base + slope * np.arange(10)
    assert np.abs(tenths - straight).max() < 0.5 * np.max(straight)  # linear, as far as a busy machine shows
    cost = seconds_of_global_attention(model, kept[max(kept)])
    print(f"attention of the global layers at the end: {1e3 * cost:.2f} ms")
    assert tenths[-1] - tenths[4] < 2 * cost * 5 / 10  # what half of the keys cost, with room for a busy machine


def test_the_position_limit_is_told_before_anything_is_generated():
    model = minigemma.load(minigemma.TINY)
    limit = model.config.max_position_embeddings
    with pytest.raises(
        Error, match=f"1 prompt tokens and {limit} new ones are more than the model's {limit} positions"
    ):
        next(generate_ids(model, [2], limit))
    with pytest.raises(
        Error, match=rf"{limit - 1} cached and 2 new tokens are more than the model's {limit} positions"
    ):
        as_tokens([2, 3], EMPTY._replace(length=limit - 1), model.config)
