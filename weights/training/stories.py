"""Short plain-English stories, and questions about them, from a seed: the corpus of the tiny weights.

    python weights/training/stories.py --split heldout -n 5          prints five held-out stories with their labels
    python weights/training/stories.py --split heldout -n 990 --jsonl > weights/texts.jsonl

Standard library only. The words and sentences are in frames.toml. Story number n of a split depends on (SEED, split, n)
alone and is the same on every machine. A story follows one plot. Its first part gives facts (where the kite is, who has
the drum). They come back, in prose or as a question, after more tokens than a window of 32. Words with two senses are
labelled.
"""

import argparse
import json
import random
import re
import tomllib
from bisect import bisect
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

SEED = 4
SPLITS = ("train", "validation", "heldout")
PEOPLE = {"girl": ("she", "her", "her", "daughter"), "boy": ("he", "him", "his", "son")}
PRONOUNS = ("kind", "he", "him", "his", "child", "He", "His")  # slots that belong to a person
FILLED = ("A", "B", "X", "V", "V2", "N", "M")  # slots that no list fills
SLOT = re.compile(r"\{(a )?(\w+)(?:\.(\w+))?\}(s\b)?")
SENSE = re.compile(r"<([^<>:]+):([^<>]+)>")
MARK = re.compile("\x01([^\x01\x02\x03]*)\x02([^\x01\x02\x03]*)\x03")


@dataclass
class Question:
    """A question about a story. `span`: the last mention of its answer in the text, as character offsets, or None."""

    question: str
    answer: str
    kind: str
    value: str
    span: tuple[int, int] | None
    rivals: list[str]  # the values of the same kind in the same story, the answer included


@dataclass
class Story:
    """A text with its labels: senses are (start, end, word, sense), character offsets into text."""

    text: str
    senses: list[tuple[int, int, str, str]] = field(default_factory=list)
    questions: list[Question] = field(default_factory=list)
    people: tuple[str, str] = ("", "")
    thing: str = ""
    brief: bool = False  # facts without a plot: training needs these easy texts too


class Zipf:
    """Draws from a list; the item of rank r has weight r**-power."""

    def __init__(self, items, power=1.0):
        self.items = items
        self.edges = list(accumulate((rank + 1.0) ** -power for rank in range(len(self.items))))

    def draw(self, rng):
        return self.items[bisect(self.edges, rng.random() * self.edges[-1])]

    def sample(self, rng, count):
        """`count` different items."""
        found = []
        while len(found) < count:
            item = self.draw(rng)
            if item not in found:
                found.append(item)
        return found


def read_frames(path):
    """frames.toml -> nested dict whose leaves are lists: words split at commas, other texts split at the line ends.

    Stops with one line if the file is not TOML, or if a frame has an unknown slot.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise SystemExit(f"{path}: {error}") from None
    slots = {*raw["words"], "hour", *PRONOUNS, *FILLED}

    def read(value, *keys):
        if isinstance(value, dict):
            return {key: read(below, *keys, key) for key, below in value.items()}
        items = value.split(",") if keys[0] in ("names", "words") else value.splitlines()
        items = [" ".join(item.split()) for item in items]
        for item in items:
            if wrong := _problem(item, keys, slots):
                raise SystemExit(f"{path}: {'.'.join(keys)}: {item!r}: {wrong}")
        return items

    frames = read(raw)
    if len(frames["names"]["girls"]) != len(frames["names"]["boys"]):
        raise SystemExit(f"{path}: names.girls and names.boys must have the same number of names")
    return frames


def _problem(frame, keys, slots):
    """What is wrong with a frame or a word, or None. keys: where it is in frames.toml."""
    if not frame:
        return "there is an empty word or line"
    for match in SLOT.finditer(frame):
        for name in match.group(2, 3):
            if name and not name.isdigit() and name not in slots:
                return f"there is no slot {name!r}; use a list of [words] or a name from the head of the file"
    if re.search("[{}]", SLOT.sub("", frame)):
        return "a slot must be like {animal}, {a animal}, {animal.1} or {B.he}"
    if keys[0] == "senses" and not re.search(f"<{keys[1]}s?>", frame, re.IGNORECASE):
        return f"the word must be marked as <{keys[1]}>"
    return None


def _steps(lines):
    """The lines of a plot -> for each step the frames that say it; "/" starts another frame of the same step."""
    steps = []
    for line in lines:
        if line.startswith("/ "):
            steps[-1].append(line.removeprefix("/ "))
        else:
            steps.append([line])
    return steps


def _moments(senses):
    """Small scenes -> [frame] with <bats> written as <bats:bat animal>: the word and its sense."""
    return [
        re.sub("<([A-Za-z]+)>", rf"<\1:{word} {sense}>", frame)
        for word, kinds in senses.items()
        for sense, frames in kinds.items()
        for frame in frames
    ]


FRAMES = read_frames(Path(__file__).with_name("frames.toml"))
PARTS, FACTS, SUM, TALK = FRAMES["parts"], FRAMES["facts"], FRAMES["sum"], FRAMES["talk"]
PLOTS = [_steps(lines) for lines in FRAMES["plots"].values()]
MOMENTS = _moments(FRAMES["senses"])
NUMBERS = FRAMES["words"]["number"]
# The values of facts are spread more evenly than other words, so that nobody can guess them without the story.
LISTS = {name: Zipf(items) for name, items in FRAMES["words"].items()}
LISTS["home"] = Zipf(LISTS["home"].items, 0.5)
LISTS["hour"] = Zipf(NUMBERS[1:], 0.0)
GIRLS, BOYS = FRAMES["names"]["girls"], FRAMES["names"]["boys"]
NAMES = Zipf([name for pair in zip(GIRLS, BOYS, strict=True) for name in pair], 0.8)
FACT_NAMES = Zipf(NAMES.items, 0.5)
PETS = Zipf(FRAMES["names"]["pets"], 0.5)
THINGS, PLACES = Zipf(LISTS["thing"].items, 0.7), Zipf(LISTS["place"].items, 0.4)
COLOURS, FOODS, TOWNS = (Zipf(LISTS[name].items, 0.4) for name in ("colour", "food", "town"))
ANIMALS, EVENTS, COUNTABLE = (Zipf(LISTS[name].items, 0.6) for name in ("animal", "event", "countable"))
DAYS = Zipf(LISTS["day"].items, 0.0)
SMALL = Zipf(NUMBERS[2:11], 0.5)
KINDS = {  # kind -> where X and V are drawn from, and its share of the facts
    "where": (THINGS, PLACES, 6),
    "who has": (THINGS, FACT_NAMES, 3),
    "colour": (THINGS, COLOURS, 2),
    "called": (ANIMALS, PETS, 2),
    "ate": (FACT_NAMES, FOODS, 2),
    "went": (FACT_NAMES, TOWNS, 2),
    "when": (EVENTS, DAYS, 1),
    "count": (COUNTABLE, SMALL, 2),
}


def a(noun):
    """The noun after "a" or "an"; a mark may come before it."""
    return ("an " if noun.lstrip("\x01")[0] in "aeiou" else "a ") + noun


def many(noun):
    """The plural of a noun of the lists."""
    if noun in ("sheep", "deer"):
        return noun
    if noun == "goose":
        return "geese"
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("ch", "sh", "s", "x")) else "s")


def capitalise(text):
    """A capital at the start, after a full stop, and after the quotation mark that opens a sentence."""
    return re.sub(r'(^"?|[.!?]"? "|[.!?] )(\x01?[a-z])', lambda m: m[1] + m[2].upper(), text)


class Teller:
    """Fills the slots of frames, and remembers what the story has said."""

    def __init__(self, rng):
        self.rng = rng
        self.slots = {}
        self.reserved = set()  # words of a fact: no other sentence may hold them
        self.names = NAMES.sample(rng, 2)
        for letter, name in zip("AB", self.names, strict=True):
            kind = "girl" if name in GIRLS else "boy"
            he, him, his, child = PEOPLE[kind]
            words = (kind, he, him, his, child, he.capitalize(), his.capitalize())
            self.slots[letter] = name
            self.slots |= {f"{letter}.{key}": word for key, word in zip(PRONOUNS, words, strict=True)}

    def fill(self, frame, **values):
        """The frame as text; \x01 word \x02 label \x03 stands for a word with a label."""
        values = self.slots | values

        def slot(match):
            article, name, key, plural = match.groups()
            full = f"{name}.{key}" if key else name
            word = values.get(full) or values.get(f"A.{full}") or LISTS[name].draw(self.rng)
            if key and key.isdigit():
                self.slots[full] = values[full] = word
            word = self.fill(word, **values) if "{" in word else word
            word = many(word) if plural else word
            return a(word) if article else word

        def sense(match):
            return f"\x01{match[1]}\x02{match[2]}\x03"

        return capitalise(SENSE.sub(sense, SLOT.sub(slot, frame)))

    def forget(self):
        """Draw the numbered slots again, for another adventure with other animals. The family stays."""
        self.slots = {slot: word for slot, word in self.slots.items() if not slot[-1].isdigit() or "relative" in slot}

    def say(self, options, **values):
        """One of the frames, filled without reserved words; "" if twelve tries do not find one."""
        for _ in range(12):
            slots = dict(self.slots)
            text = self.fill(self.rng.choice(options), **values)
            if not self.reserved & set(re.findall(r"[\w-]+", MARK.sub(r"\1", text).lower())):
                return text
            self.slots = slots
        return ""


def facts(teller, brief):
    """One to four facts of one kind -> (sentences, how one comes back, [(ask, answer, x, value, kind, mark)], values).

    brief: whether the facts are the whole text; then there are two or more.
    """
    rng = teller.rng
    kind = rng.choices(list(KINDS), [share for *_, share in KINDS.values()])[0]
    keys, values, _ = KINDS[kind]
    count = rng.choices((1, 2, 3, 4), (0 if brief else 1, 4, 4, 2))[0]
    frames = FACTS[kind]
    xs, vs = [], []
    while len(xs) < count:
        x, v = keys.draw(rng), values.draw(rng)
        taken = [*xs, *vs, *teller.names]
        if x not in taken and v not in taken and x not in v:
            xs.append(x)
            vs.append(v)
    sentences, asked = [teller.fill(rng.choice(frames["lead"]))], []
    sums = kind == "count" and rng.random() < 0.4
    for number, (x, v) in enumerate(zip(xs, vs, strict=True)):
        mark = f"fact {number}"
        teller.reserved |= {x.lower(), v.split()[-1].lower()}
        if sums:
            first = SMALL.draw(rng)
            total = NUMBERS.index(first)
            grow = total < 5 or (total < 10 and rng.random() < 0.5)
            change = rng.randint(1, min(12 - total, 6) if grow else total - 2)
            last = NUMBERS[total + change if grow else total - change]
            options = SUM["more" if grow else "fewer"]
            marked = f"\x01{last}\x02{mark}\x03"
            sentences.append(teller.fill(rng.choice(options), X=x, N=first, M=NUMBERS[change], V=marked))
            vs[number] = last
            asked.append((SUM["ask"], SUM["answer"], x, last, "sum", mark))
            teller.reserved |= {last}
        else:
            sentences.append(teller.fill(rng.choice(frames["tell"]), X=x, V=f"\x01{v}\x02{mark}\x03"))
            asked.append((frames["ask"], frames["answer"], x, v, kind, mark))
    pick = rng.randrange(count)
    value = vs[pick]
    marked = f"\x01{value}\x02fact {pick}\x03"
    come_back = teller.fill(rng.choice(frames["back"]), X=xs[pick], V=marked, V2=value.capitalize())
    return sentences, come_back, asked, vs


def tell_story(split, number):
    """Story `number` of a split; the same arguments give the same story on every machine."""
    rng = random.Random(f"{SEED} {split} {number}")
    teller = Teller(rng)
    brief = rng.random() < 0.3
    sentences, come_back, asked, values = facts(teller, brief) if brief or rng.random() < 0.85 else ([], "", [], [])
    if brief:
        return unmark(" ".join(sentences), teller, asked, values, brief)
    paragraphs = [[teller.say(PARTS["opening"])]]
    if sentences and rng.random() < 0.5:
        paragraphs[0] += sentences
    elif sentences:
        paragraphs.append(sentences)
    plots = rng.sample(PLOTS, rng.choices((0, 1, 2), (12, 73, 15))[0])
    events, before, after = [], [], []
    for plot in plots:
        if events:
            teller.forget()
            events.append("\n" + teller.say(PARTS["next"]))
        events += [teller.say(step) for step in plot if rng.random() < 0.95]
    for _ in range(rng.choices((0, 1, 2, 3), (1, 3, 4, 2))[0] + (not plots)):
        moment = teller.say(MOMENTS)
        if moment and rng.random() < 0.35:
            link = teller.fill(rng.choice(PARTS["link"]))
            moment = f"{link} {moment if moment.startswith(tuple(teller.names)) else moment[:1].lower() + moment[1:]}"
        (before if rng.random() < 0.5 else after).append(moment)
    middle = rng.randint(0, len(events))
    paragraphs += [before + events[:middle], events[middle:] + after]
    if sentences and rng.random() < 0.5:
        paragraphs[-1].append(come_back)
    if rng.random() < 0.85:
        paragraphs[-1].append(teller.say(PARTS["ending"]))
    marked = "\n".join(" ".join(filter(None, paragraph)) for paragraph in paragraphs if any(paragraph))
    marked = re.sub(r"\s*\n", "\n", marked)
    return unmark(marked, teller, asked, values, brief)


def unmark(marked, teller, asked, values, brief):
    """A marked text -> the Story: its plain text, and the places of the marks as labels."""
    story, spans = Story("", people=tuple(teller.names), brief=brief), {}
    end = 0
    for match in MARK.finditer(marked):
        story.text += marked[end : match.start()]
        start = len(story.text)
        story.text += match[1]
        end = match.end()
        word, sense = match[2].split()
        if word == "fact":
            spans[match[2]] = (start, len(story.text))
        else:
            story.senses.append((start, len(story.text), word, sense))
    story.text += marked[end:]
    for asks, (answer,), x, value, kind, mark in asked:
        question = teller.rng.choice(asks).replace("{X}", x)
        reply = answer.replace("{X}", x).replace("{V}", value)
        reply = reply[0].upper() + reply[1:]
        story.questions.append(Question(question, reply, kind, value, spans.get(mark), list(values)))
    story.thing = asked[0][2] if asked else ""
    return story


def turns(split, number):
    """A document as [(role, text)]: one turn of role "" for a plain story, else a chat about it."""
    rng = random.Random(f"{SEED} {split} {number} turns")
    story = tell_story(split, number)
    if not story.brief and rng.random() < 0.35:
        return [("", story.text)]
    talk = [("system", rng.choice(TALK["system"]))] if rng.random() < 0.08 else []
    fields = {"A": story.people[0], "B": story.people[1], "X": story.thing or "dog"}
    questions = list(story.questions)
    rng.shuffle(questions)
    pairs = [(q.question, q.answer) for q in questions]
    both = all(name in story.text for name in story.people)
    if both and not story.brief and rng.random() < 0.2:
        (answer,) = TALK["about_answer"]
        pairs.append((rng.choice(TALK["about_ask"]), _simple(answer, fields)))
    if not pairs or (not story.brief and rng.random() < 0.12):
        requests = [request for request in TALK["request"] if both or "{B}" not in request]
        talk += [("user", _simple(rng.choice(requests), fields)), ("model", story.text)]
    else:
        before = rng.choice(TALK["before"]) + "\n" if rng.random() < 0.4 else ""
        question, answer = pairs.pop(0)
        talk += [("user", f"{before}{story.text}\n{question}"), ("model", answer)]
    for question, answer in pairs:
        talk += [("user", question), ("model", answer)]
    if rng.random() < 0.1:
        question, answer = rng.choice(TALK["thanks"]).split(" | ")
        talk += [("user", question), ("model", answer)]
    return talk


def _simple(text, fields):
    return re.sub(r"\{(\w+)\}", lambda m: fields[m[1]], text)


def document(split, number):
    """A document as the model reads it, with its special tokens."""
    talk = turns(split, number)
    if talk[0][0] == "":
        return f"<bos>{talk[0][1]}<eos>"
    return "<bos>" + "".join(f"<|turn>{role}\n{text}<turn|>\n" for role, text in talk)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("-n", type=int, default=3, help="how many stories")
    parser.add_argument("--documents", action="store_true", help="print what the model is trained on instead")
    parser.add_argument("--jsonl", action="store_true", help="print as JSON lines those that stand alone")
    args = parser.parse_args()
    for number in range(args.n):
        if args.documents:
            print(document(args.split, number), end="\n\n")
            continue
        story = tell_story(args.split, number)
        if args.jsonl:
            if not story.brief:
                print(json.dumps({"text": story.text, "senses": story.senses}))
            continue
        print(story.text)
        for start, end, word, sense in story.senses:
            print(f"  {start}-{end} {story.text[start:end]}: {word} ({sense})")
        for question in story.questions:
            print(f"  [{question.kind}] {question.question} -> {question.answer} {question.span}")
        print()


if __name__ == "__main__":
    main()
