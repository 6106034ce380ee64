"""What an entry of the catalogue holds."""

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

# The probe ladder: the cheapest input on which a mistake shows.
PROBES = {
    "one": "one token (<bos>): softmax over one key is 1, so RoPE, masks, q and k have no effect",
    "nine": "about nine tokens without a cache: RoPE and the causal mask have an effect",
    "far": "more than 64 positions: the slow RoPE pairs have turned far enough to show",
    "window": "one more token than the sliding window, and two more",
    "cached": "a prompt, then tokens one by one with the cache, compared with the same ids in one call",
    "soft": "a prompt with image or audio rows in it",
    "picture": "a picture that is not square, in the tower alone",
    "sound": "a second of sound, in the audio tower alone",
    "ids": "the ids that their tokenizer and template make; no forward pass is needed",
}


@dataclass(frozen=True)
class Change:
    """One form of a mistake: call it with a Port to put the mistake in. Errors then name the id of the mistake."""

    id: str
    function: Callable

    def __call__(self, port):
        port.mistakes.append(self.id)
        with port.named_errors():
            self.function(port)


@dataclass(frozen=True)
class Fault:
    """One known mistake, or something that looks like a mistake.

    changes: a function of a Port that puts the mistake in, built from those of changes.py; or a tuple of functions, one
    for each form of the mistake. Two engineers can make one mistake in two places: the logits are the same then, the
    taps are not. Empty where the activations of the right ids cannot show the mistake. Kept as a tuple of `Change`.
    """

    id: str
    title: str
    _: KW_ONLY
    first: str | None = None  # the first tap at which it shows, in every layer that has this tap
    probe: str  # a key of PROBES
    symptom: str
    remedy: str
    seen: str  # the public thread or file where it was made, nearly made, or described as a trap
    needs: tuple = ()  # of the model, or of the run: see `applicable` and runs.Run.facts
    benign: str = ""  # why it changes nothing that matters; "" if it does
    rounds: str = ""  # a pattern of taps that it rounds to float16: an error of that size there is explained
    flips: bool = False  # it rounds, and may round a number the other way than we do: small errors may be left
    changes: tuple = ()

    def __post_init__(self):
        changes = self.changes if isinstance(self.changes, tuple) else (self.changes,)
        object.__setattr__(self, "changes", tuple(Change(self.id, change) for change in changes))
