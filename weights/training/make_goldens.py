"""Writes goldens.json beside weights: what transformers computes with them in float32, for `minigemma verify`.

    python weights/training/make_goldens.py --weights weights/tiny

The prompts are "Once upon a time", a chat, and held-out stories of four lengths: the window - 1, the window, the window
+ 1, and more than twice the window. The tokenizers library alone makes ids of text. minigemma computes nothing in the
file; its `replacing` only helps to write it.
"""

import argparse
import json
import sys
from pathlib import Path

import tokenizers
import torch
import transformers
from stories import tell_story

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where minigemma lies
from minigemma.files import replacing

TOP, FIRST, GREEDY = 8, 8, 16
QUESTION = "Tom has a red kite. He put the kite in the barn. Where is the kite?"
TOLERANCE = {
    "logits": 1e-4,
    "hidden": 2e-5,
    "why": "minigemma and transformers compute in float32 from the same weights and differ by the order of sums: on "
    "the tiny weights logits by 1e-5 and hidden states by 2e-6, where GELU by erf for tanh moves logits by up to 1e-3",
}


def prompts(tokenizer, window):
    """name -> (the text or the messages, ids)."""
    long = 2 * window + window // 4
    story = ""
    for number in range(10_000):
        story = f"{story}\n{tell_story('heldout', number).text}".strip()
        if len(encode(tokenizer, story)) > long + 20:
            break
    result = {"short": "Once upon a time"}
    for name, length in (("window - 1", window - 1), ("window", window), ("window + 1", window + 1), ("long", long)):
        result[name] = cut(tokenizer, story, length)
    result = {name: (text, [tokenizer.token_to_id("<bos>"), *encode(tokenizer, text)]) for name, text in result.items()}
    chat = f"<bos><|turn>user\n{QUESTION}<turn|>\n<|turn>model\n"
    return result | {"chat": ([{"role": "user", "content": QUESTION}], encode(tokenizer, chat))}


def encode(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids


def cut(tokenizer, text, length):
    """The start of the text that has `length` ids, <bos> included."""
    for end in range(1, len(text)):
        if len(encode(tokenizer, text[:end])) == length - 1:
            return text[:end]
    raise SystemExit(f"no beginning of the story is {length} tokens long")


@torch.no_grad()
def golden(model, ids):
    """Top logits, greedy tokens and hidden states of the last position, as JSON holds them."""
    result = run(model, ids)
    values, indices = result.logits[0, -1].topk(TOP)
    greedy, step = [], result
    while True:
        greedy.append(int(step.logits[0, -1].argmax()))
        if len(greedy) == GREEDY:
            break
        step = run(model, [*ids, *greedy])  # the whole text again, so that no cache is used
    return {
        "top_logits": {"indices": indices.tolist(), "values": rounded(values)},
        "greedy_tokens": greedy,
        "hidden": hidden(model.config.get_text_config(), [state[0, -1] for state in result.hidden_states]),
    }


def run(model, ids):
    return model(torch.tensor(ids)[None], use_cache=False, output_hidden_states=True)


def hidden(config, states):
    """The embedding, the first layer, the first global one, the first that shares K and V, the last but one, the norm.

    transformers' list begins with the embedding and ends with the final norm in the last layer's place.
    """
    last = config.num_hidden_layers - 1
    layers = [0, config.layer_types.index("full_attention"), config.num_hidden_layers - config.num_kv_shared_layers]
    layers = sorted({layer for layer in [*layers, last - 1] if layer < last})
    kept = {"embed": states[0]} | {f"layers.{i}.resid_post": states[i + 1] for i in layers} | {"final_norm": states[-1]}
    return [
        {"taps": [tap], "l2_norm": rounded([state.norm()])[0], "first_8": rounded(state[:FIRST])}
        for tap, state in kept.items()
    ]


def rounded(values):
    """Eight digits: all that float32 has."""
    return [float(f"{float(value):.8g}") for value in values]


def load(directory):
    """transformers' model in float32, from Google's files or a text-only save. Stops if tensors do not fit.

    It must be loaded in float32. Loaded in bfloat16 and then converted, it keeps rounded scales of the embeddings.
    """
    options = {"dtype": torch.float32, "attn_implementation": "eager", "output_loading_info": True}
    model, info = transformers.AutoModelForCausalLM.from_pretrained(directory, **options)
    if problems := {name: sorted(found)[:3] for name, found in info.items() if found}:
        raise SystemExit(f"{directory}: the tensors do not fit config.json: {problems}")
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True, help="the checkpoint directory; goldens.json goes there")
    directory = parser.parse_args().weights
    torch.set_num_threads(1)
    model = load(directory)
    tokenizer = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    versions = (
        f"transformers {transformers.__version__}, torch {torch.__version__}, tokenizers {tokenizers.__version__}"
    )
    lines = []
    for name, (source, ids) in prompts(tokenizer, model.config.get_text_config().sliding_window).items():
        about = {
            "name": name,
            "model": directory.resolve().name,
            "source": "goldens.json, made by weights/training/make_goldens.py",
        }
        about |= {"compute": f"{versions}, float32", "tolerance": "float32"}
        about["prompt" if isinstance(source, str) else "messages"] = source
        lines.append(json.dumps(about | {"ids": ids} | golden(model, ids)))
    with replacing(directory / "goldens.json") as path:
        head = f'{{"tolerances": {json.dumps({"float32": TOLERANCE})},\n"goldens": [\n'
        path.write_text(head + ",\n".join(lines) + "\n]}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
