"""Prefill, sampling, streaming."""

import numpy as np

from .cache import EMPTY
from .errors import Error
from .model import forward

SCORE_BYTES = 64 * 2**20  # the largest array of attention scores in a chunk of a prompt; three to four are alive
CHUNK = 512


def prefill(ids, weights, config, cache=EMPTY):
    """A prompt in chunks -> logits [V] of its last position and the cache.

    All chunks but the last ask for no logits, so the KV-sharing layers run for one position of the whole prompt, and a
    chunk is small enough that its scores, N x T x S, stay under SCORE_BYTES.
    """
    rows = SCORE_BYTES // (4 * config.num_attention_heads * (cache.length + len(ids)))
    chunk = max(1, min(CHUNK, rows))
    *starts, last = range(0, max(1, len(ids)), chunk)
    for start in starts:
        _, cache = forward(ids[start : start + chunk], weights, config, cache, logits=None)
    logits, cache = forward(ids[last:], weights, config, cache, logits="last")
    return logits[0], cache


def sample(logits, rng, temperature=1.0, top_k=0, top_p=1.0):
    """logits [V] -> an id: temperature, then the top_k largest, then the smallest set of probability top_p.

    temperature 0 takes the largest; top_k 0 and top_p 1 leave everything in. The order is transformers'.
    """
    if temperature == 0:
        return int(logits.argmax())
    scaled = logits.astype(np.float64) / temperature
    count = min(top_k or len(scaled), len(scaled))
    ids = np.argpartition(-scaled, count - 1)[:count]
    ids = ids[np.argsort(-scaled[ids], kind="stable")]  # the most probable first
    probs = np.exp(scaled[ids] - scaled[ids[0]])
    probs /= probs.sum()
    before = np.cumsum(probs) - probs  # the probability of everything more probable
    kept = probs * (before < top_p)
    return int(rng.choice(ids, p=kept / kept.sum()))


def settings(defaults, temperature=None, top_k=None, top_p=None):
    """The sampling arguments: the given ones, else the checkpoint's generation_config, else transformers' defaults."""
    chosen = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    fallback = {"temperature": 1.0, "top_k": 50, "top_p": 1.0} | defaults
    if not defaults.get("do_sample", False):
        fallback["temperature"] = 0.0
    chosen = {name: fallback[name] if value is None else value for name, value in chosen.items()}
    for name, low, high in (("temperature", 0, 1e3), ("top_k", 0, 2**31), ("top_p", 0, 1)):
        value = chosen[name]
        whole = name != "top_k" or isinstance(value, int)
        if isinstance(value, bool) or not isinstance(value, int | float) or not whole or not low <= value <= high:
            raise Error(f"{name} must be a {'whole ' * (name == 'top_k')}number from {low} to {high:g}, not {value!r}")
    if chosen["top_p"] == 0:
        raise Error("top_p must be above 0; temperature 0 always takes the most probable token")
    return chosen


def generate_ids(model, ids, max_new_tokens, cache=EMPTY, seed=None, **sampling):
    """ids continued, one id at a time, with the cache they were drawn from, until a stop id or max_new_tokens."""
    chosen = settings(model.generation_config, **sampling)
    limit = model.config.max_position_embeddings
    if max_new_tokens < 1:
        raise Error(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    if len(ids) == 0:
        raise Error("the prompt is empty; give at least one token")
    if cache.length + len(ids) + max_new_tokens > limit:
        raise Error(
            f"{cache.length + len(ids)} prompt tokens and {max_new_tokens} new ones are more than the model's "
            f"{limit} positions; shorten the prompt or ask for fewer"
        )
    rng, stop = np.random.default_rng(seed), stop_ids(model.generation_config)
    logits, cache = prefill(ids, model.weights, model.config, cache)
    for remaining in reversed(range(max_new_tokens)):
        id = sample(logits, rng, **chosen)
        if id in stop:
            return
        yield id, cache
        if remaining:
            logits, cache = forward([id], model.weights, model.config, cache, logits="last")
            logits = logits[0]


def stop_ids(generation_config):
    """eos_token_id of a generation_config: one id, several, or none."""
    stop = generation_config.get("eos_token_id")
    return set(stop) if isinstance(stop, list) else {stop}


def generate(model, prompt, max_new_tokens=100, **options):
    """Pieces of text that continue `prompt` (text, or a list of ids).

    options: temperature, top_k, top_p (by default what the checkpoint's generation_config says), seed.
    """
    ids = prompt_ids(model, prompt) if isinstance(prompt, str) else prompt
    return model.tokenizer.stream(id for id, _ in generate_ids(model, ids, max_new_tokens, **options))


def prompt_ids(model, prompt):
    """A prompt's ids, <bos> in front. Raises Error where there is no tokenizer or no prompt."""
    if model.tokenizer is None:
        raise Error(f"{model.directory}: has no tokenizer.json, so text cannot be read; download the whole repository")
    if not prompt:
        raise Error("the prompt is empty; give at least one character")
    return model.tokenizer.encode(prompt)
