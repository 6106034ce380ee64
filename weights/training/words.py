"""Spoken words from a seed, and questions that need them: what the tiny audio tower is trained on.

    python weights/training/words.py --split heldout -n 5 --out FOLDER      speaks five, and prints their questions

espeak-ng 1.51 speaks them (Debian's package espeak-ng; another version may sound different). The words are words of the
text model. Clip number n of a split depends on (SEED, split, n) and on espeak-ng alone: its word is the n-th of WORDS,
counted round and round; voice, speed, pitch, loudness, noise and the silence around the word are drawn.
"""

import argparse
import io
import subprocess
import sys
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from stories import LISTS, NAMES, SPLITS

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # where minigemma lies
from minigemma.sounds import RATE, resample

SEED = 12
WORDS = {  # kind of fact -> what can be said in its place
    "colour": "red blue green yellow white black brown pink orange purple",
    "count": "two three four five six seven eight nine ten",
    "ate": "bread soup cake cheese rice honey porridge pasta",
    "who has": "Mia Tom Anna Ben Lily Sam Rosa Leo",
    "thing": "kite ball drum boat book hat key lamp cup basket",
}
SPOKEN = [(kind, word) for kind, words in WORDS.items() for word in words.split()]
ACCENTS = ("en-gb", "en-us", "en-gb-scotland", "en-gb-x-rp", "en-gb-x-gbclan", "en-gb-x-gbcwmd", "en-029", "en-us-nyc")
VARIANTS = {  # a voice is an accent and a variant; no variant is in two splits
    "train": """
        Alex Alicia Andy AnxiousAndy Denis Diogo Gene Gene2 Henrique Hugo Jacky Lee Marco Mario Michael Nguyen
        RicishayMax RicishayMax2 RicishayMax3 Storm Tweaky anika antonio aunty boris croak ed edward edward2 f1 f2 f3 f4
        grandpa gustave iven iven2 iven3 iven4 john kaukovalta klatt klatt2 klatt3 klatt4 klatt5 klatt6 m1 m2 m3 m4 m5
        m7 m8 max michel miguel norbert pablo quincy rob robert robosoft robosoft2 robosoft3 robosoft4 robosoft5
        robosoft6 robosoft7 robosoft8 shelby steph steph2 steph3 zac
    """,
    "validation": "Annie caleb f5 m6 pedro victor",
    "heldout": "Andrea adam belinda benjamin david grandma linda marcelo Mike paul sandro travis",
}
SLOTS = {name: LISTS[name].items[:12] for name in ("thing", "countable", "place")} | {"name": NAMES.items[:12]}
FACTS = {  # kind -> what x is, a sentence before the fact, the fact, a question, its answer, a text that goes on
    "colour": ("thing", "In the shop window everything had its own colour.", "The {x} was {audio}.",
               "What colour is the {x}?", "The {x} is {word}.", '"What colour was the {x}?" asked Greta. "It was'),
    "count": ("countable", "Anna had learned to count up to ten.", "There were {audio} {x}.",
              "How many {x} were there?", "There were {word} {x}.", "Greta counted the {x} again. There were"),
    "ate": ("name", "At noon everybody was hungry.", "{x} ate {audio}.",
            "What did {x} eat?", "{x} ate {word}.", "{x} was still full of"),
    "who has": ("thing", "There were presents for all the children.", "{audio} had the {x}.",
                "Who has the {x}?", "{word} has the {x}.", '"Who has the {x}?" asked Greta. "'),
    "thing": ("place", "Everything had its own place.", "The {word} was {x}. The robot was on the roof.",
              "Where is the {audio}?", "The {word} is {x}.", '"Where is the'),
}  # fmt: skip
CHAT = "<|turn>user\n{0}<turn|>\n<|turn>model\n"
FORMS = {  # what stands before the answer; gap is a space or a line break
    "fact": CHAT.format("{fact}{gap}{question}"),
    "lead": CHAT.format("{lead}{gap}{fact}{gap}{question}"),
    "on": "{lead} {fact} {on}",  # the text goes on, without a turn
}


@dataclass
class Clip:
    """samples [n] from -1 to 1 in float32, 16,000 a second; kind: of WORDS; voice: as espeak-ng -v names it."""

    samples: np.ndarray
    kind: str
    word: str
    voice: str
    speed: int  # words a minute
    pitch: int  # 0 to 99


def clip(split, number):
    """Clip `number` of a split."""
    rng = np.random.default_rng([SEED, SPLITS.index(split), number])
    kind, word = SPOKEN[number % len(SPOKEN)]
    voice = f"{rng.choice(ACCENTS)}+{rng.choice(VARIANTS[split].split())}"
    speed, pitch = int(rng.integers(120, 211)), int(rng.integers(20, 81))
    spoken = speak(word, voice, speed, pitch)
    before, after = rng.integers(0, RATE // 8), rng.integers(RATE // 5, 3 * RATE // 10)  # of silence
    samples = np.pad(spoken * (10 ** rng.uniform(-1.2, -0.1) / np.abs(spoken).max()), (before, after))
    samples += noise(len(samples), rng.uniform(0, 1), rng) * 10 ** rng.uniform(-4.5, -2.5)
    samples = np.round(samples.clip(-1, 32767 / 32768) * 32768) / 32768  # as a file of 16 bits holds them
    return Clip(samples.astype(np.float32), kind, word, voice, speed, pitch)


def speak(word, voice, speed, pitch):
    """One word -> its samples [n] at 16,000 a second, without the silence at the ends."""
    command = ["espeak-ng", "-v", voice, "-s", str(speed), "-p", str(pitch), "--stdout", word]
    with wave.open(io.BytesIO(subprocess.run(command, check=True, capture_output=True).stdout)) as file:
        rate, raw = file.getframerate(), file.readframes(2**31 - 1)
    samples = resample(np.frombuffer(raw, "<i2") / 32768, rate)
    (loud,) = np.nonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    return samples[loud[0] : loud[-1] + 1]


def noise(length, slope, rng):
    """Noise [length] of rms 1; its magnitude falls with frequency to the power of -slope."""
    spectrum = np.fft.rfft(rng.standard_normal(length)) / np.maximum(np.arange(length // 2 + 1), 20) ** slope
    samples = np.fft.irfft(spectrum, length)
    return samples / samples.std()


def question(number, form, rng):
    """A text in which clip `number` stands for a word -> (text before the sound, text behind it, the answer)."""
    kind, word = SPOKEN[number % len(SPOKEN)]
    slot, lead, fact, ask, answer, on = FACTS[kind]
    x = str(rng.choice([each for each in SLOTS[slot] if each != word]))
    if form == "on":
        answer = "{word}" if on.endswith('"') else " {word}"
        fact = "The {audio} was {x}." if kind == "thing" else fact
    gap = "\n" if rng.random() < 0.5 else " "
    before, behind = FORMS[form].format(lead=lead, fact=fact, question=ask, on=on, gap=gap).split("{audio}")
    before = before.rstrip(" ") if rng.random() < 0.5 else before  # people write a space there, chats do not
    answer += "<turn|>" * (form != "on")
    return tuple(part.format(x=x, word=word) for part in (before, behind, answer))


def write_wav(path, samples):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes((samples * 32768).astype("<i2").tobytes())


def version():
    """What `espeak-ng --version` says of itself."""
    return subprocess.run(["espeak-ng", "--version"], check=True, capture_output=True, text=True).stdout.split("  ")[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("-n", type=int, default=3, help="how many clips")
    parser.add_argument("--out", type=Path, help="a folder for WAV files")
    args = parser.parse_args()
    for number in range(args.n):
        spoken = clip(args.split, number)
        seconds = len(spoken.samples) / RATE
        print(number, spoken.word, f"{seconds:.2f} s", spoken.voice, f"speed {spoken.speed}", f"pitch {spoken.pitch}")
        before, behind, answer = question(number, "fact", np.random.default_rng(number))
        print("   ", repr(f"{before}{{audio}}{behind}"), "->", repr(answer))
        if args.out:
            args.out.mkdir(exist_ok=True)
            write_wav(args.out / f"{spoken.word}-{number}.wav", spoken.samples)


if __name__ == "__main__":
    main()
