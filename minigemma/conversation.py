"""A conversation with a model: messages, and the caches of what the next prompt shares with those before it.

Every prompt is the whole conversation as the chat template writes it (turns.py). Ids at its start that a kept cache
holds are not read again; pictures are compared by their pixels. The template often writes other ids than those that the
model drew: earlier turns lose their thoughts, larger models lose the empty thought of the cue, text is trimmed.
Therefore two caches are kept: one from before the cue of the last user turn, and one from the last id that was drawn.
"""

from .cache import EMPTY
from .messages import check_list
from .model import no_tap
from .sampling import check_room, generate_ids, prefill, tokenizer_of
from .turns import ENDS, render, stream, to_answer, to_ids, to_prompt


class Conversation:
    """messages: all so far, answers included, as `turns.render` takes them. answer: the last one, a turns.Answer.

    budget: the most soft tokens of a picture. A picture is opened again for each prompt, so its file must stay as it
    is; the tower reads only those that no cache holds.

        conversation = Conversation(model, system="Be brief.")
        for kind, piece in conversation.read(conversation.draw([{"role": "user", "content": "Hello"}], 100)): ...

    Raises Error if the model has no tokenizer for turns, or for tools that the format cannot express.
    """

    def __init__(self, model, system=None, tools=None, think=False, budget=None):
        self.model, self.tools, self.think, self.budget = model, tools, think, budget
        self.tokenizer = tokenizer_of(model)
        self.stop = {self.tokenizer.id(mark) for mark in ENDS} - {None}
        self.messages = [] if system is None else [{"role": "system", "content": system}]
        self.answer = None
        self.prompt, self.length_read = [], 0  # the ids of the last prompt, and how many of them no cache held
        self._new = []  # the messages of the last prompt that its answer will confirm
        self._kept = [([], EMPTY)]  # (keys, cache): the cache holds what the first cache.length of the keys stand for
        self._rendered([{"role": "user", "content": ""}])  # what is wrong with the tools shows now

    def _rendered(self, messages):
        """The whole conversation with further messages -> its Prompt up to the cue, and the ids of the cue."""
        messages = [*self.messages, *check_list(messages)]
        options = {"think": self.think, "small": self.model.small_cue}
        before = render(messages, self.tools, cue=False, **options)
        cue = render(messages, self.tools, **options)[len(before) :]
        prompt = to_prompt(before, self.tokenizer, self.model.config, self.budget)
        return prompt, to_ids(cue, self.tokenizer)

    def draw(self, messages, max_new_tokens, tap=no_tap, **options):
        """Further messages -> the ids of the answer, one by one; `read` makes an answer of them.

        options: seed, temperature, top_k and top_p, see `generate_ids`. Raises Error for what cannot be used.
        """
        model, (prompt, cue) = self.model, self._rendered(messages)
        ids, keys = [*prompt.ids, *cue], [*prompt.keys, *cue]
        check_room(model, len(ids), max_new_tokens)
        stable = min(len(prompt.ids), len(ids) - 1)  # an answer that goes on behind a reply has no cue
        kept = [(cache.length, cache) for seen, cache in self._kept if seen[: cache.length] == keys[: cache.length]]
        _, cache = max((one for one in kept if one[0] <= stable), key=lambda one: one[0], default=(0, EMPTY))
        self.prompt, self.length_read, self._new = ids, len(ids) - cache.length, messages
        in_turn = messages[-1]["role"] == "tool"

        def drawn(cache, seen):
            if new := ids[cache.length : stable]:
                soft = prompt.soft_tokens(model, cache.length, tap)
                _, cache = prefill(new, model.weights, model.config, cache, tap, soft)
            base = self._kept[0] if in_turn else (seen, cache)
            rest = ids[cache.length :]
            for id, behind in generate_ids(model, rest, max_new_tokens, cache, tap=tap, stop=self.stop, **options):
                self._kept = [base, (seen, behind)]
                seen.append(id)
                yield id

        return drawn(cache, keys)

    def read(self, ids):
        """The ids of `draw` -> pairs (kind, piece), as of `turns.stream`. Then the answer is one of the messages.

        A caller who stops before the end keeps what was said so far; after an Error nothing is kept.
        """
        said, pairs = [], []

        def watched():
            for id in ids:
                said.append(id)
                yield id

        try:
            for pair in stream(watched(), self.tokenizer, self.prompt):
                pairs.append(pair)
                yield pair
        except (GeneratorExit, KeyboardInterrupt):
            self._add(to_answer(pairs, said))
            raise
        self._add(to_answer(pairs, said))

    def _add(self, answer):
        self.answer = answer
        self.messages += [*self._new, *answer.messages()]
