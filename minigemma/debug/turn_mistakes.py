"""Mistakes of chat templates and of history that the ids of a prompt show, without a forward pass.

The mistakes are T1 to T26 of the catalogue. Ids do not show T10 (thinking that nobody asked for; it shows as T3), T12
and T13 (where a reader of the answer begins), nor a forged turn of a user that is well formed.
"""

import re
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import NamedTuple

from .. import turns
from ..errors import Error
from ..media import KINDS
from ..tokenizer import IMAGE, VIDEO
from .catalogue import FAULTS

FOREIGN_TURNS = re.compile(r"<start_of_turn>|<\|im_start\|>|<\|turn>")
FOREIGN_THOUGHT = re.compile(r"\s*<(think|\|/think\||\|thinking\||reasoning)>")
CUT_CALL = re.compile(r"(call|response):[\w.-]+\{")
OPENED = ["\n", turns.CHANNEL, f"{turns.NAME}\n"]
REPEATS = 4  # the same call so many times in a row
# The tokens of a turn. A user who typed the name of another one gave it as text.
MEDIA = {kind.mark for kind in KINDS.values()}
ALLOWED = {"user": MEDIA, "system": {turns.THINK, turns.TOOL, turns.END_OF_TOOL, turns.QUOTE}}


@dataclass(frozen=True)
class Mistake:
    """An entry of the catalogue in the ids of a prompt.

    position: of the id that shows it. blame: False for what may be meant so, or what a model may have written itself.
    """

    id: str
    title: str
    position: int
    sentence: str
    remedy: str
    blame: bool


class Piece(NamedTuple):
    """A special token, or the text between two of them."""

    position: int
    mark: str | None
    text: str


@dataclass
class Turn:
    """One turn. end: the position of its <turn|>, None where it is open."""

    role: str
    position: int
    body: list
    end: int | None = None


def mistakes_in(ids, tokenizer, small):
    """The ids of a prompt -> [Mistake, ...]. small: whether the model has the cue of E2B and E4B.

    A prompt in the form of the release template (2026-04-02) gives one mistake without blame, which lists its signs.
    """
    search = _Search(_pieces(ids, tokenizer), small)
    search.run()
    return search.findings()


def _pieces(ids, tokenizer):
    ids, pieces = [int(id) for id in ids], []
    if any(not 0 <= id < 2**31 for id in ids):
        raise Error("these are not the ids of a prompt: some are below 0 or above 2,147,483,647")
    for mark, run in groupby(enumerate(ids), lambda pair: tokenizer.marks.get(pair[1])):
        positions, run_ids = zip(*run, strict=True)
        if mark is None:
            pieces.append(Piece(positions[0], None, tokenizer.decode(run_ids)))
        else:
            pieces += [Piece(position, mark, str(mark)) for position in positions]
    return pieces


class _Search:
    """The pieces of a prompt, and what is found in them."""

    def __init__(self, pieces, small):
        self.pieces, self.small = pieces, small
        self.thinks = any(piece.mark == turns.THINK for piece in pieces[:4])
        self.found = []  # (entry, position, sentence, whether the release template writes this)
        self.newest = False  # whether something is as only the later templates write it

    def find(self, id, position, sentence, release=False, blame=True):
        self.found.append((id, position, sentence, release, blame))

    def findings(self):
        """What was found, each sentence once. If all signs speak for the release template, they are one mistake."""
        found = {(one[0], one[2]): one for one in reversed(self.found)}  # the first of each
        found = sorted(found.values(), key=lambda one: one[1])
        signs = [] if self.newest else [one for one in found if one[3]]
        mistakes = [_mistake(id, *rest, blame) for id, *rest, release, blame in found if not (release and signs)]
        if signs:
            named = [sentence + f" ({id})" * (id != "T25") for id, _, sentence, *_ in signs]
            sentence = f"release template, the form of 2026-04-02: {'; '.join(named)}"
            mistakes.append(_mistake("T25", signs[0][1], sentence, blame=False))
        return mistakes

    def run(self):
        starts = [piece.position for piece in self.pieces if piece.mark == turns.BOS]
        parts = list(self.split())
        if starts[:1] != [0]:
            self.find("T23", 0, "the ids do not begin with <bos>", blame=bool(parts))  # the ids of a probe need none
        if 1 in starts:
            self.find("T23", 1, "<bos> is there twice")
        if not parts:
            text = "".join(piece.text for piece in self.pieces if piece.mark is None)
            if foreign := FOREIGN_TURNS.search(text):
                self.find("T4", 0, f"no <|turn> token: a turn is written with the text {foreign[0]}")
            return
        last_user = max((i for i, turn in enumerate(parts) if turn.role == "user"), default=-1)
        for before, i, turn, after in zip([None, *parts], range(len(parts)), parts, [*parts[1:], None], strict=False):
            if turn.role == "system":
                self.system(turn)
            elif turn.role == "model":
                self.model(turn.body, earlier=i < last_user)
                self.sequence(before, turn, after)
            elif turn.role == "tool":
                self.find("T16", turn.position, "a reply is a turn of role tool", release=True)
            elif turn.role != "user":
                self.find("T9", turn.position, f"a turn of role {turn.role[:40]!r}")
            self.media(turn.body)
        if parts[-1].role == "model" and parts[-1].end is None:
            self.cue(parts[-1])

    def split(self):
        """The turns, in order. Tokens that a user typed, and turns that are not balanced, are found on the way."""
        pieces = self.pieces
        turn = None  # the open one
        forged = False  # it holds tokens that a user typed
        between = False  # a turn was closed, and nothing wrong stands behind it
        for i, piece in enumerate(pieces):
            after = pieces[i + 1].text if i + 1 < len(pieces) else "\n"
            allowed = ALLOWED.get(turn.role) if turn else None
            ends = piece.mark == turns.END_OF_TURN and (allowed is None or after == "\n")
            if allowed is not None and piece.mark and not ends and piece.mark not in allowed:
                if not forged:
                    self.find("T24", piece.position, f"a {turn.role} turn holds {piece.text} as a token, not as text")
                forged = True
            elif piece.mark == turns.TURN:
                if turn:
                    self.find("T17", piece.position, f"a turn begins before the {turn.role} turn is closed")
                    yield turn
                turn = Turn(after.partition("\n")[0], piece.position, [])
            elif ends and turn:
                turn.end, forged, between = piece.position, False, True
                yield turn
                turn = None
            elif turn and pieces[i - 1].mark == turns.TURN and not piece.mark:
                rest = piece.text.partition("\n")[2]
                turn.body += [Piece(piece.position, None, rest)] if rest else []
            elif turn:
                turn.body.append(piece)
            elif between and piece.text != "\n" and not (self.thinks and [one.text for one in pieces[-3:]] == OPENED):
                between = False
                if piece.mark and pieces[i - 1].text == "\n":
                    self.find("T17", piece.position, f"{piece.text} stands outside a turn")
                else:
                    self.find("T5", piece.position, "<turn|> did not end the text: more than a newline follows")
        if turn:
            if turn.role in ALLOWED:
                self.find("T17", turn.position, f"the last {turn.role} turn is not closed")
            yield turn

    def system(self, turn):
        body = [*turn.body, Piece(turn.end or turn.position, None, "")]
        if body[0].mark == turns.THINK:
            if body[1].text.startswith("\n"):
                self.newest = True
            else:
                self.find("T25", body[0].position, "no newline behind <|think|>", release=True)
        elif body[0].text.startswith(turns.THINK):
            self.find("T11", body[0].position, "<|think|> is text, not the token")
        if any(piece.text.lstrip().startswith("[{'type':") for piece in body[:2]):
            self.find("T25", body[0].position, "parts of a system message are printed as a Python list", release=True)
        for parts, position, _ in _enclosed(body, turns.TOOL, turns.END_OF_TOOL):
            outside = _outside(parts)
            if re.search(r"\{,|[\]}]type:", outside):
                self.find("T25", position, "commas of a declaration are wrong", release=True)
            elif '"' in outside:
                self.find("T19", position, "a declaration has JSON quotes")
            else:
                self.declaration(parts, position)

    def declaration(self, parts, position):
        try:
            name, function = turns.parse_object(parts, "declaration")
        except (ValueError, RecursionError):
            return
        schemas = [function.get("parameters")]
        for schema in schemas:  # it grows
            if not isinstance(schema, dict):
                continue
            properties = schema.get("properties")
            properties = properties if isinstance(properties, dict) else {}
            schemas += [*properties.values(), schema.get("items")]
            required = schema.get("required")
            for one in required if isinstance(required, list) else []:
                if isinstance(one, str) and one not in properties:
                    dropped = one in turns.SCHEMA_WORDS  # by the release template
                    self.find("T22", position, f"{name} requires {one}, which is not declared", release=dropped)

    def model(self, body, earlier):
        """The inside of a model turn. earlier: a user turn follows later."""
        if body and not body[0].mark:
            if body[0].text.startswith(f"{turns.NAME}\n") or CUT_CALL.match(body[0].text):
                self.find("T8", body[0].position, "a model turn begins with what special tokens left behind")
            elif foreign := FOREIGN_THOUGHT.match(body[0].text):
                self.find("T9", body[0].position, f"a thought is marked with the text {foreign[0].strip()}")
        thoughts = list(_enclosed(body, turns.CHANNEL, turns.END_OF_CHANNEL))
        calls = list(_enclosed(body, turns.CALL, turns.END_OF_CALL))
        replies = list(_enclosed(body, turns.REPLY, turns.END_OF_REPLY))
        for parts, position, follows in thoughts if earlier else []:
            if not follows or follows.mark != turns.CALL:
                empty = "".join(parts).strip() == turns.NAME
                what = "an empty thought" if empty else "a thought"
                self.find("T26" if empty else "T14", position, f"{what} is left in an earlier turn")
        thought = False  # before the calls of this step
        for piece, follows in pairwise([*body, None]):
            thought = (thought or piece.mark == turns.CHANNEL) and piece.mark != turns.END_OF_REPLY
            if piece.mark == turns.CALL and self.thinks and not earlier and not thought:
                self.find("T15", piece.position, "no thought before a call, though thinking is on", True, blame=False)
            if piece.mark == turns.REPLY and follows is None:
                self.newest = True  # the release template closes the turn here
            elif piece.mark == turns.REPLY and (follows.mark or not follows.text.startswith("response:")):
                self.find("T6", piece.position, "<|tool_response> did not end the answer: no reply follows")
        for kind, found in (("call", calls), ("response", replies)):
            for parts, position, _ in found:
                self.values(parts, position, kind)
        texts = ["".join(parts) for parts, _, _ in calls]
        for i in range(len(texts) - REPEATS + 1):
            if len(set(texts[i : i + REPEATS])) == 1:
                self.find("T7", calls[i][1], "the same call is written again and again", blame=False)

    def values(self, parts, position, kind):
        """The inside of a call or a reply."""
        outside = _outside(parts)
        if re.search(r"[:\[,]null(?=[,\]}])", outside):
            self.newest = True
        nothing = re.search(r"[:\[,]None(?=[,\]}])", outside)
        if nothing:
            self.find("T21", position, f"a {kind} has None in place of null", release=True)
        if kind == "call" and re.match(r"[^{]*\{\s*\{", outside):
            self.find("T20", position, "the arguments of a call are JSON text, with braces of their own", release=True)
        elif '"' in outside:
            self.find("T19", position, f"a {kind} has JSON quotes")
        elif not nothing:
            try:
                turns.parse_object(parts, kind)
            except (ValueError, RecursionError):
                self.find("T18", position, f"a {kind} is cut: its braces or strings do not close")

    def sequence(self, before, turn, after):
        """A model turn between its neighbours."""
        if turn.end is None:
            return
        last = turn.body[-1].mark if turn.body else None
        follows = after.role if after else None
        if last == turns.END_OF_REPLY and follows == "model":
            self.find("T17", turn.end, "the turn is closed behind a reply, and the answer is a turn of its own")
        elif last == turns.END_OF_CALL and follows in ("user", "system"):
            self.find("T16", turn.end, f"a call is closed without a reply, and a {follows} turn follows")
        elif last == turns.END_OF_CALL and follows != "tool":
            self.find("T17", turn.end, "the turn is closed behind a call", release=True)
        elif before and before.role == "model" and not (before.body and before.body[-1].mark):
            self.find("T17", turn.position, "two model turns follow one another", release=True)

    def media(self, body):
        for before, piece in zip([None, *body], body, strict=False):
            if piece.mark in (IMAGE, VIDEO) and not (before and before.mark):
                if before and before.text.endswith("\n\n"):
                    self.find("T25", piece.position, f"empty lines around {piece.mark}", release=True)
                else:
                    self.newest = True

    def cue(self, turn):
        """The end of the prompt, where the model is to speak."""
        tail = [turns.TURN, *(piece.text for piece in turn.body if piece.mark not in ALLOWED["user"])]
        position, closed = turn.body[-1].position if turn.body else turn.position, [*OPENED[1:], turns.END_OF_CHANNEL]
        if tail[-3:] == closed and tail[-4] == turns.END_OF_REPLY:
            self.find("T1", position, "the cue closes an empty thought behind a reply", release=not self.small)
        elif tail[1:] == closed and (self.small or self.thinks):
            why = "though thinking is on" if self.thinks else "as only larger models have it"
            self.find("T1", position, f"the cue closes an empty thought, {why}")
        elif tail[-2:] == OPENED[1:] and not (self.thinks and tail[-3] == turns.END_OF_REPLY):
            self.find("T3", position, "the cue opens a thought")
        elif not turn.body and not self.small and not self.thinks:
            self.find("T2", position, "the cue of a larger model lacks the closed empty thought")


def _mistake(id, position, sentence, blame):
    return Mistake(id, FAULTS[id].title, position, sentence, FAULTS[id].remedy, blame)


def _enclosed(body, opening, closing):
    """(the pieces between the two marks, the position, the piece behind them), for each such pair."""
    start = None
    for i, piece in enumerate(body):
        if piece.mark == opening:
            start = i
        elif piece.mark == closing and start is not None:
            parts = [one.mark or one.text for one in body[start + 1 : i]]
            yield parts, body[start].position, body[i + 1] if i + 1 < len(body) else None
            start = None


def _outside(parts):
    """The text around strings."""
    quotes, text = 0, ""
    for part in parts:
        is_mark = isinstance(part, turns.Mark)
        quotes += is_mark
        text += part if quotes % 2 == 0 and not is_mark else ""
    return text
