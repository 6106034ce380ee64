"""The exercises of notebook 11."""

from functools import cache

from minigemma import Trace
from minigemma.inputs import grid_of, read_image

from . import FOLDER, Values

E2B_SIDE = 48  # of a soft token, in pixels


@cache
def seen(model):
    """The trace of the shop window."""
    trace = Trace()
    model.see(read_image(FOLDER.parent / "figures" / "shop-window.png"), 70, tap=trace)
    return trace


TARGETS = {
    "11.1": lambda model: Values(grid_of(1080, 1920, 280, E2B_SIDE)),
    "11.2": lambda model: Values(seen(model)["vision.patches"]),
    "11.3": lambda model: Values(seen(model)["vision.layers.0.attn.rot_q"], "T N H"),
    "11.4": lambda model: Values(seen(model)["vision.pooled"], "T D"),
}
