"""Pictures of coloured things, and questions about them, from a seed: what the tiny vision tower is trained on.

    python weights/training/pictures.py --split heldout -n 5 --out FOLDER      draws five, and prints their questions

NumPy draws them. Things, colours and numbers are words that the text model knows from frames.toml. Picture number n of
a split depends on (SEED, split, n) alone. It has 128 x 128 pixels and is of one of two kinds: one to four things, each
in a quarter of its own and with a colour of its own, or one to nine copies of one thing.

Inside a thing u goes from -1 at the left to 1 at the right, and v from -1 at the top to 1 at the bottom.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from stories import NUMBERS, SPLITS, many

SEED, SIDE, SMOOTH = 11, 128, 2  # SMOOTH: points a pixel in each direction, for smooth edges
GRID = 8  # rows and columns of soft tokens; each quarter of a picture becomes 4 x 4 of them
COLOURS = {
    "red": (205, 35, 40), "blue": (45, 80, 210), "green": (40, 145, 55), "yellow": (240, 215, 50),
    "white": (244, 244, 242), "black": (24, 24, 26), "brown": (115, 70, 35), "pink": (246, 150, 185),
    "orange": (240, 130, 25), "purple": (125, 50, 160),
}  # fmt: skip
LEADS = {  # the sentence before the question, as the text model knows it from stories
    "colour": "In the shop window everything had its own colour.",
    "count": "Anna had learned to count up to ten.",
}


@dataclass
class Picture:
    """image [SIDE, SIDE, 3] of uint8; facts: (thing, colour, quarter) each, or one (thing, number)."""

    image: np.ndarray
    kind: str  # "colour" or "count"
    facts: list

    @property
    def questions(self):
        """[(question, answer)] in the words of the text model's corpus."""
        if self.kind == "colour":
            return [(f"What colour is the {thing}?", f"The {thing} is {colour}.") for thing, colour, _ in self.facts]
        ((thing, number),) = self.facts
        return [(f"How many {many(thing)} were there?", f"There {amount(thing, number)}.")]


def amount(thing, number):
    """("duck", 3) -> "were three ducks"; ("duck", 1) -> "was one duck"."""
    return f"were {NUMBERS[number]} {many(thing)}" if number > 1 else f"was one {thing}"


# Each thing: u and v -> its parts, one over the other: where the part is (bool), and how dark it is (1: as the colour)


def ring(u, v, inner, outer):
    distance = np.hypot(u, v)
    return (distance < outer) & (distance > inner)


def kite(u, v):
    body = abs(u) / 0.75 + abs(v + 0.25) / 0.75 < 1
    tail = (abs(u - 0.12 * np.sin(14 * v)) < 0.06) & (v > 0.4)
    return (body | tail, 1), (body & ((abs(u) < 0.06) | (abs(v + 0.25) < 0.06)), 0.55)


def ball(u, v):
    body = np.hypot(u, v) < 0.85
    return (body, 1), (body & (abs(np.hypot(u - 0.9, v + 0.9) - 1.1) < 0.09), 0.55)


def drum(u, v):
    body = (abs(u) < 0.8) & (abs(v) < 0.5) | (np.hypot(u / 0.8, (abs(v) - 0.5) / 0.25) < 1)
    top = np.hypot(u / 0.8, (v + 0.5) / 0.25) < 1
    lines = body & (abs(v - 0.1 - 0.35 * abs(((u + 0.8) / 0.4) % 2 - 1) + 0.15) < 0.07)
    return (body, 1), (lines, 0.5), (top, 0.72)


def boat(u, v):
    hull = (v > 0.35) & (v < 0.85) & (abs(u) < 1.15 - 0.55 * v)
    sail = (u > 0.05) & (v < 0.2) & (v > -0.95) & (u < (v + 0.95) * 0.65)
    mast = (abs(u) < 0.05) & (v > -0.95) & (v < 0.4)
    return (sail, 1), (hull, 1), (mast, 0.5)


def book(u, v):
    cover = (abs(u) < 0.65) & (abs(v) < 0.85)
    return (cover, 1), (cover & (u < -0.42), 0.6), ((abs(u - 0.12) < 0.3) & (abs(v + 0.4) < 0.12), 0.6)


def hat(u, v):
    brim = np.hypot(u / 0.95, (v - 0.5) / 0.25) < 1
    crown = (abs(u) < 0.52 + 0.05 * v) & (v > -0.7) & (v < 0.5)
    return (brim, 1), (crown, 1), (crown & (v > 0.12) & (v < 0.36), 0.5)


def key(u, v):
    shaft = (abs(v) < 0.12) & (u > -0.3) & (u < 0.95)
    teeth = (v > 0) & (v < 0.42) & ((abs(u - 0.8) < 0.1) | (abs(u - 0.48) < 0.1))
    return ((ring(u + 0.55, v, 0.2, 0.42) | shaft | teeth), 1)


def cup(u, v):
    body = (abs(v) < 0.65) & (abs(u + 0.15) < 0.62 - 0.12 * v)
    handle = ring(u - 0.5, v + 0.02, 0.24, 0.42) & (u > 0.3)
    return (body | handle, 1), (body & (v < -0.45), 0.6)


def apple(u, v):
    body = (np.hypot(u + 0.28, v - 0.15) < 0.6) | (np.hypot(u - 0.28, v - 0.15) < 0.6)
    stem = (abs(u - 0.1 * v) < 0.08) & (v > -0.9) & (v < -0.3)
    leaf = np.hypot((u - 0.3) / 0.3, (v + 0.7) / 0.14) < 1
    return (body, 1), (stem | leaf, 0.5)


def egg(u, v):
    return ((np.hypot(u / (0.62 + 0.12 * v), v / 0.85) < 1), 1)


def button(u, v):
    holes = np.hypot(abs(u) - 0.24, abs(v) - 0.24) < 0.14
    return (np.hypot(u, v) < 0.85, 1), (ring(u, v, 0.62, 0.72) | holes, 0.45)


def candle(u, v):
    flame = np.hypot(u / 0.2, (v + 0.65) / 0.3) < 1
    return ((abs(u) < 0.28) & (v > -0.3) & (v < 0.95), 1), (flame, 0.6)


def pear(u, v):
    body = (np.hypot(u, v - 0.35) < 0.55) | (np.hypot(u, v + 0.2) < 0.36)
    return (body, 1), ((abs(u - 0.15 * v) < 0.08) & (v > -0.95) & (v < -0.45), 0.5)


def duck(u, v):
    body = (np.hypot((u - 0.1) / 0.75, (v - 0.35) / 0.42) < 1) | (np.hypot(u + 0.4, v + 0.35) < 0.36)
    beak = np.hypot((u + 0.8) / 0.2, (v + 0.28) / 0.1) < 1
    return (body, 1), (beak | (np.hypot(u + 0.48, v + 0.42) < 0.08), 0.45)


THINGS = {draw.__name__: draw for draw in (kite, ball, drum, boat, book, hat, key, cup)}
COUNTED = {draw.__name__: draw for draw in (apple, egg, button, candle, pear, duck)}


def paint(image, draw, colour, centre, radius):
    """Draw a thing into image [h, w, 3] of float: centre (x, y) and radius in pixels."""
    left, top = (int(np.floor(c - radius)) for c in centre)
    right, bottom = (int(np.ceil(c + radius)) for c in centre)
    points = (np.arange(2 * SMOOTH * SIDE) + 0.5) / SMOOTH - SIDE / 2
    x = points[(points > left) & (points < right)]
    y = points[(points > top) & (points < bottom)]
    u, v = np.meshgrid((x - centre[0]) / radius, (y - centre[1]) / radius)
    parts = draw(u, v)
    place = image[top:bottom, left:right]  # [h, w, 3] of the thing, a view
    for where, dark in parts if isinstance(parts[0], tuple) else (parts,):
        share = where.reshape(bottom - top, SMOOTH, right - left, SMOOTH).mean((1, 3))[..., None]  # [h, w, 1]
        shade = colour * dark + 60 * (1 - dark)  # black becomes lighter where others become darker
        place += share * (shade - place)


def picture(split, number):
    """Picture `number` of a split."""
    rng = np.random.default_rng([SEED, SPLITS.index(split), number])
    kind = "colour" if rng.random() < 0.6 else "count"
    ground = rng.uniform(95, 165) + rng.uniform(-18, 18, 3)  # [3]
    image = np.tile(ground, (SIDE, SIDE, 1))  # [SIDE, SIDE, 3]
    for size, strength in ((16, 14), (2, 9)):  # blotches and grains, without colour
        noise = rng.uniform(-strength, strength, (SIDE // size, SIDE // size, 1))
        image += noise.repeat(size, 0).repeat(size, 1)

    def shade(colour):
        return np.clip(np.array(COLOURS[colour]) * rng.uniform(0.9, 1.08) + rng.uniform(-12, 12, 3), 0, 255)

    if kind == "colour":
        count = rng.integers(1, 5)
        things, quarters = rng.permutation(list(THINGS))[:count], sorted(rng.permutation(4)[:count])
        facts = [
            (str(thing), str(rng.choice(list(COLOURS))), int(q)) for thing, q in zip(things, quarters, strict=True)
        ]
        for thing, colour, quarter in facts:
            radius = rng.uniform(20, 28)
            centre = 64 * np.array([quarter % 2, quarter // 2]) + 32 + rng.uniform(-1, 1, 2) * (31 - radius)
            paint(image, THINGS[thing], shade(colour), centre, radius)
    else:
        thing, number = str(rng.choice(list(COUNTED))), int(rng.integers(1, 10))
        colour = shade(rng.choice(list(COLOURS)))
        for cell in rng.permutation(16)[:number]:
            radius = rng.uniform(10, 14)
            centre = 32 * np.array([cell % 4, cell // 4]) + 16 + rng.uniform(-1, 1, 2) * (15.5 - radius)
            paint(image, COUNTED[thing], colour, centre, radius)
        facts = [(thing, number)]
    return Picture(np.clip(image.round(), 0, 255).astype(np.uint8), kind, facts)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("-n", type=int, default=3, help="how many pictures")
    parser.add_argument("--out", type=Path, help="a folder for PNG files")
    args = parser.parse_args()
    for number in range(args.n):
        drawn = picture(args.split, number)
        print(number, *(f"{question} -> {answer}" for question, answer in drawn.questions), sep="  ")
        if args.out:
            from PIL import Image

            args.out.mkdir(exist_ok=True)
            Image.fromarray(drawn.image).save(args.out / f"{number}.png")


if __name__ == "__main__":
    main()
