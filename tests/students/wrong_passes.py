"""Sixty wrong passes: right.py with one line changed, which function is wrong then, and which mistake it is.

    python tests/students/wrong_passes.py [NUMBER ...]

grades them all, or those with these numbers, and prints how many are found in the right function and named. The first
thirty are mistakes of the catalogue as a student makes them; the others are not in it, and must get no name.
"""

import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

RIGHT = (ROOT / "tests" / "students" / "right.py").read_text(encoding="utf-8")


class Wrong(NamedTuple):
    """A wrong pass. id: of the catalogue, "" if it is not there."""

    id: str
    function: str
    taps: str  # the parts of the first wrong tap: one of them must be named
    old: str
    new: str

    def text(self):
        """The student's file."""
        assert RIGHT.count(self.old) == 1, self.old
        return RIGHT.replace(self.old, self.new)


NORM, ROPE, Z = "attn.in ple.context", "attn.rot_q attn.rot_k", "attn.z"
TURN = "        out[:, :, j] = a * cos - b * sin\n        out[:, :, j + half] = b * cos + a * sin"
REPEATED = "    keys = np.repeat(keys, count, axis=1)\n    values = np.repeat(values, count, axis=1)"
PART = "        out[:, i] = (part + rows[:, columns]) * 2**-0.5"
PLE_END = "    h = h + rms_norm(p, w.post_per_layer_input_norm, eps)\n    h = h * w.layer_scalar"

WRONG = (
    # in the catalogue
    Wrong("A4", "rms_norm", NORM, "out = out * scale", "out = out * (1 + scale)"),
    Wrong("E8", "rope", ROPE, TURN,
          "        a, b = heads[:, :, 2 * j], heads[:, :, 2 * j + 1]\n"
          "        out[:, :, 2 * j] = a * cos - b * sin\n        out[:, :, 2 * j + 1] = b * cos + a * sin"),
    Wrong("E1", "rope", ROPE, "half = heads.shape[2] // 2", "half = turning"),
    Wrong("E2", "rope", ROPE, "base ** (-2 * j / dim)", "base ** (-j / turning)"),
    Wrong("E3", "rope", ROPE, "for j in range(turning)", "for j in range(half)"),
    Wrong("G1", "visible", "attn.pattern", "if window is not None", "if window is not None and window < 0"),
    Wrong("G2", "visible", "attn.pattern", "p - keys < window", "p - keys <= window"),
    Wrong("G2b", "visible", "attn.pattern", "p - keys < window", "p - keys < window - 1"),
    Wrong("D11", "visible", "attn.pattern", "row = keys <= p", "row = keys > -1"),
    Wrong("D1", "attention", Z, 'scores = np.einsum("tnh,snh->nts", q, keys)',
          'scores = np.einsum("tnh,snh->nts", q, keys) / math.sqrt(q.shape[-1])'),
    Wrong("D6b", "attention", Z, REPEATED, "    keys = np.tile(keys, (1, count, 1))\n"
          "    values = np.tile(values, (1, count, 1))"),
    Wrong("D8", "attention", Z, "np.where(np.asarray(mask)[None], scores, -1e30)",
          "np.where(np.asarray(mask)[None], 0 * scores, -1e30)"),
    Wrong("A8", "mlp", "mlp.down", "hidden = gelu(g) * u", "hidden = g / (1 + np.exp(-g)) * u"),
    Wrong("M1", "mlp", "mlp.down", "hidden = gelu(g) * u", "hidden = gelu(u) * g"),
    Wrong("B3", "ple", "ple", "rows = rows * size**0.5", "rows = rows * 1.0"),
    Wrong("B4", "ple", "ple", "rows = rows * size**0.5", "rows = rows * rows.shape[1] ** 0.5"),
    Wrong("B7", "ple", "ple", PART, "        out[:, i] = part + rows[:, columns]"),
    Wrong("B16", "ple", "ple",
          "part = rms_norm(context[:, columns], model.per_layer_projection_norm, cfg.rms_norm_eps)",
          "part = context[:, columns]"),
    Wrong("B18", "ple", "ple", PART, "        out[:, i] = part * 2**-0.5"),
    Wrong("B19", "ple", "ple", PART, "        out[:, i] = rows[:, columns] * 2**-0.5"),
    Wrong("D2", "layer", "attn.v", "own_v = rms_norm(own_v, None, eps)", "own_v = own_v * 1.0"),
    Wrong("D9", "layer", "attn.q attn.rot_q", "q = rms_norm(q, w.q_norm, eps)", "q = q * 1.0"),
    Wrong("D9b", "layer", "attn.k attn.rot_k", "own_k = rms_norm(own_k, w.k_norm, eps)", "own_k = own_k * 1.0"),
    Wrong("M2", "layer", "attn_out resid_mid mlp.in", "h = h + rms_norm(o, w.post_attention_layernorm, eps)",
          "h = h + o"),
    Wrong("B17", "layer", "ple.gate ple.proj resid_post", "g = gelu(h @ w.per_layer_input_gate.T)",
          "g = h @ w.per_layer_input_gate.T"),
    Wrong("C1", "layer", "resid_post", "    h = h * w.layer_scalar\n", ""),
    Wrong("C2", "layer", "resid_post", PLE_END,
          "    h = h * w.layer_scalar + rms_norm(p, w.post_per_layer_input_norm, eps)"),
    Wrong("A1", "forward", "embed resid_pre ple", "h = h * cfg.hidden_size**0.5", "h = h * 1.0"),
    Wrong("A7", "forward", "logits", "return cap * np.tanh(logits / cap)", "return logits"),
    Wrong("F5", "forward", "attn.scores attn.z",
          "source = facts.kv_from",
          "source = next(other.index for other in cfg.layers if other.kind == facts.kind)"),
    # not in the catalogue
    Wrong("", "rms_norm", NORM, "/ values.shape[-1]", "/ 1"),
    Wrong("", "rms_norm", NORM, "(squares + epsilon) ** 0.5", "(squares + epsilon)"),
    Wrong("", "rms_norm", NORM, "(squares + epsilon) ** 0.5", "(squares**0.5 + epsilon)"),
    Wrong("", "rms_norm", NORM, "np.sum(values**2,", "np.sum((values - values.mean(-1, keepdims=True)) ** 2,"),
    Wrong("", "rms_norm", NORM, "epsilon=1e-6):", "epsilon=1e-6):\n    epsilon = 1e-6"),
    Wrong("", "rope", ROPE, "angle = where *", "angle = (where + 1) *"),
    Wrong("", "rope", ROPE, "np.cos(angle)[:, None], np.sin(angle)", "np.sin(angle)[:, None], np.cos(angle)"),
    Wrong("", "rope", ROPE, TURN,
          "        out[:, :, j] = a * cos + b * sin\n        out[:, :, j + half] = b * cos - a * sin"),
    Wrong("", "rope", ROPE, "-2 * j / dim", "-j / dim"),
    Wrong("", "visible", "attn.pattern", "row = keys <= p", "row = keys < p"),
    Wrong("", "visible", "attn.pattern", "row = keys <= p", "row = keys >= p"),
    Wrong("", "visible", "attn.pattern", "row & (p - keys < window)", "row & (p // window == keys // window)"),
    Wrong("", "attention", Z, 'np.einsum("nts,snh->tnh", pattern, values)',
          'np.einsum("nts,snh->tnh", pattern[::-1], values)'),
    Wrong("", "attention", Z, "np.max(scores, axis=-1, keepdims=True))\n    return powers / np.sum(powers, axis=-1,",
          "np.max(scores, axis=-1, keepdims=True))\n    return powers / np.sum(powers, axis=0,"),
    Wrong("", "attention", Z, REPEATED, "    keys = np.repeat(keys, count, axis=1)\n"
          "    values = np.tile(values, (1, count, 1))"),
    Wrong("", "mlp", "mlp.down", "hidden = gelu(g) * u", "hidden = np.maximum(g, 0) * u"),
    Wrong("", "mlp", "mlp.down", "hidden = gelu(g) * u", "hidden = gelu(g) + u"),
    Wrong("", "mlp", "mlp.down", "hidden = gelu(g) * u", "hidden = gelu(g * u)"),
    Wrong("", "ple", "ple", PART, "        out[:, i] = (part - rows[:, columns]) * 2**-0.5"),
    Wrong("", "ple", "ple", "columns = slice(i * size, (i + 1) * size)", "columns = slice(i, None, layers)"),
    Wrong("", "ple", "ple", PART, "        out[:, i] = (part + rows[:, columns]) / 2"),
    Wrong("", "layer", "attn.q attn.rot_q", "q = rope(q, where, base, turning, size)",
          "q = rope(q, where + 1, base, turning, size)"),
    Wrong("", "layer", "attn.v", "own_v = rms_norm(own_v, None, eps)",
          "own_v = rms_norm(own_v, None, eps)\n        own_v = rope(own_v, where, base, turning, size)"),
    Wrong("", "layer", "resid_mid mlp.in", "h = h + rms_norm(o, w.post_attention_layernorm, eps)",
          "h = a + rms_norm(o, w.post_attention_layernorm, eps)"),
    Wrong("", "layer", "resid_ffn ple.proj resid_post mlp_out",
          "h = h + rms_norm(m, w.post_feedforward_layernorm, eps)",
          "h = rms_norm(m, w.post_feedforward_layernorm, eps)"),
    Wrong("", "layer", "resid_post ple.proj ple.gated", "p = (g * vectors)", "p = (g + vectors)"),
    Wrong("", "layer", "resid_post", "    h = h * w.layer_scalar\n", "    h = h / w.layer_scalar\n"),
    Wrong("", "forward", "logits final_norm", "h = rms_norm(h, model.norm, cfg.rms_norm_eps)",
          "h = rms_norm(h, cfg.hidden_size * model.norm, 1.0)"),
    Wrong("", "forward", "logits", "return cap * np.tanh(logits / cap)", "return np.clip(logits, -2, 2)"),
    Wrong("", "forward", "ple resid_pre ple.gated ple.proj resid_post",
          "layer(h, vectors[:, facts.index], cache", "layer(h, vectors[:, -1 - facts.index], cache"),
)  # fmt: skip


def judged(wrong):
    """The first wrong Grade of a wrong pass; whether it is the right function and tap; whether its name is right."""
    from minigemma.taps import part_of
    from minigemma.tools.grade import grade_file

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "mygemma.py")
        path.write_text(wrong.text(), encoding="utf-8")
        first = next((grade for grade in grade_file(path) if grade.verdict == "wrong"), None)
    located = first is not None and first.name == wrong.function and part_of(first.tap or "") in wrong.taps.split()
    return first, located, first is not None and (first.fault or "") == wrong.id


def main():
    """Grade all, or those of the command line, and print what was found."""
    numbers = [int(number) for number in sys.argv[1:]] or range(len(WRONG))
    found = {True: [0, 0, 0], False: [0, 0, 0]}  # in the catalogue or not: tried, located, named right or not at all
    for number in numbers:
        first, located, named = judged(WRONG[number])
        counts = found[bool(WRONG[number].id)]
        counts[:] = counts[0] + 1, counts[1] + located, counts[2] + named
        if not (located and named):
            print(f"{number} {WRONG[number][:3]}: {first and (first.name, first.tap, first.fault, first.sentence)}")
    for known, (tried, located, named) in found.items():
        what = "named" if known else "given no name"
        print(f"{'in' if known else 'not in'} the catalogue: {tried} tried, {located} located, {named} {what}")


if __name__ == "__main__":
    main()
