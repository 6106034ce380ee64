"""Prefill, sampling, streaming."""

import warnings
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import pairwise

import numpy as np

from .cache import EMPTY
from .errors import Error
from .inputs import as_soft_tokens, as_tokens
from .model import forward, no_tap
from .ops import horizon
from .tokenizer import BOS
from .turns import raw_pieces, to_prompt

SCORE_BYTES = 64 * 2**20  # most bytes of one chunk's attention scores; three to four such arrays exist at once
CHUNK = 512

SETTINGS = "temperature", "top_k", "top_p"
# Settings of a generation_config.json that transformers applies and `sample` does not, with the values that change
# nothing (beside null). Those in SAMPLED matter only where a token is drawn, not where the most probable one is taken.
SAMPLED = {"min_p": 0, "typical_p": 1, "top_h": 0, "epsilon_cutoff": 0, "eta_cutoff": 0}
NOT_APPLIED = SAMPLED | {
    "repetition_penalty": 1, "encoder_repetition_penalty": 1, "no_repeat_ngram_size": 0, "min_length": 0,
    "encoder_no_repeat_ngram_size": 0, "min_new_tokens": 0, "num_beams": 1, "penalty_alpha": 0, "guidance_scale": 1,
    "exponential_decay_length_penalty": [], "begin_suppress_tokens": [], "bad_words_ids": [],
    "sequence_bias": [], "forced_bos_token_id": None, "forced_eos_token_id": None, "stop_strings": [],
    "watermarking_config": {}, "max_time": None,
}  # fmt: skip


def prefill(ids, weights, config, cache=EMPTY, tap=no_tap, soft_tokens=None):
    """A prompt in chunks -> logits [V] of its last position and the cache. soft_tokens as in `forward`.

    Only the last chunk asks for logits, so the KV-sharing layers run for one position of the whole prompt. A chunk is
    so small that its attention scores, N x T x S, stay under SCORE_BYTES. Where a picture sees itself whole it is not
    cut: the chunk then ends behind it. Raises Error as `forward` does.
    """
    ids = as_tokens(ids, cache, config)  # [T]
    fitting = SCORE_BYTES // (4 * config.num_attention_heads * (cache.length + len(ids)))
    chunk = max(1, min(CHUNK, fitting))
    edges = [*range(chunk, len(ids), chunk), len(ids)]
    if soft_tokens is not None:
        where, rows = as_soft_tokens(soft_tokens, ids, config)  # [M], [M, D]
        last = horizon(ids, np.arange(len(ids)), config)  # [T]
        edges = sorted({int(last[edge - 1]) + 1 for edge in edges})
    for start, end in pairwise([0, *edges]):
        soft = None
        if soft_tokens is not None and (here := (where >= start) & (where < end)).any():
            soft = where[here] - start, rows[here]
        logits = "last" if end == len(ids) else None
        logits, cache = forward(ids[start:end], weights, config, cache, tap=tap, logits=logits, soft_tokens=soft)
    return logits[0], cache


@np.errstate(over="ignore")  # a very low temperature gives -infinity: probability 0, as it should
def sample(logits, rng, temperature=1.0, top_k=0, top_p=1.0):
    """logits [V] -> an id: temperature, then the top_k largest, then the smallest set of probability top_p.

    temperature 0 takes the largest logit; top_k 0 and top_p 1 keep all tokens. The order is transformers'.
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


def settings(defaults, temperature=None, top_k=None, top_p=None, source="generation_config"):
    """temperature, top_k and top_p: as given, else from the checkpoint's generation_config, else as in transformers.

    defaults: the generation_config; a setting that is null counts as missing. source: where it was read, for messages.
    Raises Error for a value that cannot be used.
    """
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    defaults = {name: value for name, value in defaults.items() if value is not None}
    sampled = defaults.get("do_sample", False)
    if not isinstance(sampled, bool):
        raise Error(f"{source}: do_sample must be true or false, not {sampled!r}")
    fallback = {"temperature": 1.0, "top_k": 50, "top_p": 1.0} | defaults
    if not sampled:
        fallback["temperature"] = 0.0  # the most probable token
    chosen = {}
    for name, low, high in (("temperature", 0, 1e3), ("top_k", 0, 2**31), ("top_p", 0, 1)):
        value = fallback[name] if given[name] is None else given[name]
        where = f"{source}: " if given[name] is None else ""
        if not _is_number(value) or not low <= value <= high or (name == "top_k" and value != int(value)):
            kind = "whole number" if name == "top_k" else "number"
            raise Error(f"{where}{name} must be a {kind} from {low} to {high:g}, not {value!r}")
        if name == "top_p" and value == 0:
            raise Error(f"{where}top_p must be above 0; temperature 0 always takes the most probable token")
        chosen[name] = int(value) if name == "top_k" else value
    return chosen


def _is_number(value):
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def not_applied(defaults, temperature):
    """Names of the generation_config's settings that would change the text in transformers and are not applied here."""
    greedy = temperature == 0
    neutral = {name: value for name, value in NOT_APPLIED.items() if not (greedy and name in SAMPLED)}
    return [name for name, value in neutral.items() if defaults.get(name) not in (None, value)]


def generate_ids(
    model, ids, max_new_tokens, cache=EMPTY, seed=None, tap=no_tap, stop=(), soft_tokens=None, **sampling
):
    """Continue ids: yields each new id with the cache that it was drawn from, until a stop id or max_new_tokens.

    stop: ids that end the text beside those of the generation_config, whose suppress_tokens are never drawn.
    soft_tokens as in `forward`, of the prompt. sampling: temperature, top_k, top_p, see `settings`. Raises Error for
    arguments that cannot be used. Warns once of settings in the checkpoint's generation_config that are not applied.
    """
    source = model.generation_source
    for name in sorted(sampling.keys() - set(SETTINGS)):
        known = [*SETTINGS, "max_new_tokens", "seed", "tap", "budget"]
        near = get_close_matches(name, known, 1) or [", ".join(known)]
        raise Error(f"there is no option {name}; did you mean {near[0]}?")
    chosen = settings(model.generation_config, source=source, **sampling)
    if seed is not None:
        _check_whole("seed", seed, 0)
    if not isinstance(ids, Sequence | np.ndarray):
        raise Error(f"the prompt must be a list of token ids, not {type(ids).__name__}")
    if len(ids) == 0:
        raise Error("the prompt is empty; give at least one token")
    check_room(model, cache.length + len(ids), max_new_tokens)
    vocab = model.config.vocab_size
    stop = stop_ids(model.generation_config, vocab, source) | set(stop)
    never = [id for id in ids_in(model.generation_config, "suppress_tokens", source) if id < vocab]
    if ignored := not_applied(model.generation_config, chosen["temperature"]):
        warnings.warn(f"{source}: minigemma does not apply {', '.join(ignored)}", stacklevel=2)
    rng = np.random.default_rng(seed)
    logits, cache = prefill(ids, model.weights, model.config, cache, tap, soft_tokens)
    for remaining in reversed(range(max_new_tokens)):
        if not np.isfinite(logits).all():
            raise Error("the logits are not finite; --check, or tap=minigemma.Finite(), names the first such array")
        if never:
            logits = logits.copy()  # a tap may hold it
            logits[never] = -np.inf
        id = sample(logits, rng, **chosen)
        if id in stop:
            return
        yield id, cache
        if remaining:
            logits, cache = forward([id], model.weights, model.config, cache, tap=tap, logits="last")
            logits = logits[0]


def check_room(model, length, max_new_tokens):
    """Raise Error unless a prompt of `length` tokens and the new ones fit into the model's positions."""
    _check_whole("max_new_tokens", max_new_tokens, 1)
    limit = model.config.max_position_embeddings
    if length + max_new_tokens > limit:
        raise Error(
            f"{length} prompt tokens and {max_new_tokens} new ones are more than the model's {limit} positions; "
            "shorten the prompt or ask for fewer"
        )


def _check_whole(name, value, low):
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < low:
        raise Error(f"{name} must be a whole number from {low}, not {value!r}")


def stop_ids(generation_config, vocab_size, source="generation_config"):
    """The ids that end a text: eos_token_id of a generation_config, which is one id, a list, or missing -> a set.

    Raises Error for anything else. source: where the generation_config was read, for messages.
    """
    stop = ids_in(generation_config, "eos_token_id", source)
    if stop and max(stop) >= vocab_size:
        raise Error(f"{source}: eos_token_id {max(stop)} is not an id below {vocab_size}")
    return set(stop)


def ids_in(generation_config, name, source):
    """An id or a list of them in a generation_config -> list; empty if missing or null. Raises Error for others."""
    ids = generation_config.get(name)
    ids = [] if ids is None else ids if isinstance(ids, list) else [ids]
    for id in ids:
        if not _is_number(id) or not 0 <= id < 2**31 or id != int(id):
            raise Error(f"{source}: {name} must be an id or a list of them, not {id!r}")
    return [int(id) for id in ids]


def generate(model, prompt, max_new_tokens=100, budget=None, **options):
    """Yields pieces of text that continue `prompt`: text, a list of ids, or parts of a message, such as a picture.

    budget: the most soft tokens of a picture. options: seed, tap, and temperature, top_k and top_p, which default to
    the checkpoint's generation_config. Raises Error for a prompt that cannot be used, or if the model has no tokenizer.
    """
    written = isinstance(prompt, str) or (isinstance(prompt, list) and any(isinstance(one, dict) for one in prompt))
    ids, soft = read_prompt(model, prompt, budget, tap=options.get("tap", no_tap)) if written else (prompt, None)
    drawn = generate_ids(model, ids, max_new_tokens, soft_tokens=soft, **options)
    return tokenizer_of(model).stream(id for id, _ in drawn)


def read_prompt(model, prompt, budget=None, special=False, tap=no_tap):
    """A prompt, text or parts as a message has them -> its ids, and its soft tokens for `forward`, or None.

    <bos> stands in front, and nothing else is added: `Conversation` writes turns. special: names such as "<|turn>" in
    the text become these tokens. The tap sees the passes of pictures. Raises Error for what cannot be used, and if the
    model has no tokenizer.
    """
    tokenizer = tokenizer_of(model)
    if not prompt:
        raise Error("the prompt is empty; give at least one character")
    if isinstance(prompt, str):
        return tokenizer.encode(prompt, special=special), None
    pieces = raw_pieces(prompt)
    typed = special and "".join(pieces).startswith(BOS)
    pieces = pieces if typed or tokenizer.bos is None else [BOS, *pieces]
    read = to_prompt(pieces, tokenizer, model.config, budget, special)
    return read.ids, read.soft_tokens(model, tap=tap)


def tokenizer_of(model):
    """The model's tokenizer. Raises Error if it has none."""
    if model.tokenizer is None:
        raise Error(
            f"{model.directory}: has no tokenizer.json, so minigemma cannot read or print text. Download the whole "
            "repository, or pass token ids in Python"
        )
    return model.tokenizer
