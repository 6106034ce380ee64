"""Prefill, sampling, streaming."""

from collections.abc import Sequence

import numpy as np

from .cache import EMPTY
from .errors import Error
from .model import forward, no_tap

SCORE_BYTES = 64 * 2**20  # the largest array of attention scores in a chunk of a prompt; three to four are alive
CHUNK = 512


def prefill(ids, weights, config, cache=EMPTY, tap=no_tap):
    """A prompt in chunks -> logits [V] of its last position and the cache.

    All chunks but the last ask for no logits, so the KV-sharing layers run for one position of the whole prompt, and a
    chunk is small enough that its scores, N x T x S, stay under SCORE_BYTES.
    """
    rows = SCORE_BYTES // (4 * config.num_attention_heads * (cache.length + len(ids)))
    chunk = max(1, min(CHUNK, rows))
    *starts, last = range(0, max(1, len(ids)), chunk)
    for start in starts:
        _, cache = forward(ids[start : start + chunk], weights, config, cache, tap=tap, logits=None)
    logits, cache = forward(ids[last:], weights, config, cache, tap=tap, logits="last")
    return logits[0], cache


@np.errstate(over="ignore")  # a very low temperature leaves -infinity, which is right: probability 0
def sample(logits, rng, temperature=1.0, top_k=0, top_p=1.0):
    """logits [V] -> an id: temperature, then the top_k largest, then the smallest set of probability top_p.

    temperature 0 takes the largest; top_k 0 and top_p 1 leave everything in. The order is transformers'.
    """
    if temperature == 0:
        return int(logits.argmax())
    scaled = (logits.astype(np.float64) - logits.max()) / temperature  # at most 0
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
    if not isinstance(defaults.get("do_sample", False), bool):
        raise Error(f"do_sample must be true or false, not {defaults['do_sample']!r}")
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


def generate_ids(model, ids, max_new_tokens, cache=EMPTY, seed=None, tap=no_tap, **sampling):
    """ids continued, one id at a time, with the cache they were drawn from, until a stop id or max_new_tokens."""
    chosen = settings(model.generation_config, **sampling)
    limit = model.config.max_position_embeddings
    for name, value, low in (("max_new_tokens", max_new_tokens, 1), ("seed", 0 if seed is None else seed, 0)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
            raise Error(f"{name} must be a whole number, at least {low}, not {value!r}")
    if not isinstance(ids, Sequence | np.ndarray):
        raise Error(f"the prompt must be a list of token ids, not {type(ids).__name__}")
    if len(ids) == 0:
        raise Error("the prompt is empty; give at least one token")
    if cache.length + len(ids) + max_new_tokens > limit:
        raise Error(
            f"{cache.length + len(ids)} prompt tokens and {max_new_tokens} new ones are more than the model's "
            f"{limit} positions; shorten the prompt or ask for fewer"
        )
    rng, stop = np.random.default_rng(seed), stop_ids(model.generation_config, model.config.vocab_size)
    logits, cache = prefill(ids, model.weights, model.config, cache, tap)
    for remaining in reversed(range(max_new_tokens)):
        if not np.isfinite(logits).all():
            raise Error("the logits are not finite; minigemma.Finite, or --check, names the first array that is not")
        id = sample(logits, rng, **chosen)
        if id in stop:
            return
        yield id, cache
        if remaining:
            logits, cache = forward([id], model.weights, model.config, cache, tap=tap, logits="last")
            logits = logits[0]


def stop_ids(generation_config, vocab_size):
    """eos_token_id of a generation_config: one id, several, or none -> a set of ids of the vocabulary."""
    stop = generation_config.get("eos_token_id")
    stop = [] if stop is None else stop if isinstance(stop, list) else [stop]
    for id in stop:
        if type(id) is not int or not 0 <= id < vocab_size:
            raise Error(f"the checkpoint's eos_token_id must hold ids below {vocab_size}, not {id!r}")
    return set(stop)


def generate(model, prompt, max_new_tokens=100, **options):
    """Pieces of text that continue `prompt` (text, or a list of ids).

    options: temperature, top_k, top_p (by default what the checkpoint's generation_config says), seed, tap.
    """
    ids = prompt_ids(model, prompt) if isinstance(prompt, str) else prompt
    return _tokenizer(model).stream(id for id, _ in generate_ids(model, ids, max_new_tokens, **options))


def prompt_ids(model, prompt, special=False):
    """A prompt's ids, <bos> in front; with `special`, "<|turn>" and the like are the tokens of that name.

    Raises Error where there is no tokenizer or no prompt.
    """
    tokenizer = _tokenizer(model)
    if not prompt:
        raise Error("the prompt is empty; give at least one character")
    return tokenizer.encode(prompt, special=special)


def _tokenizer(model):
    if model.tokenizer is None:
        raise Error(
            f"{model.directory}: has no tokenizer.json, so there is no text, only ids; download the whole repository"
        )
    return model.tokenizer
