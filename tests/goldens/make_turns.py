"""Make turns.json from a file of renderings: python tests/goldens/make_turns.py FACTS.json

The facts file holds what Google's chat templates of 2026-04-02 (release) and 2026-07-09 (newest) make of 46
conversations for small and larger models, answers to read back, and a published sequence of ids. This script keeps each
conversation once, one a line, with what a larger model gets in addition.
"""

import json
import sys
from pathlib import Path

SOURCE = (
    "Google's chat templates for Gemma 4 of 2026-04-02 and 2026-07-09, rendered by jinja2 3.1.6. Newest: that of "
    "google/gemma-4-31B-it at b9ea41a, and for small models that of ollama 8a0016f82. Release: ollama 96b202d34; "
    "for larger models it ends with the closing block of llama.cpp 75f1ba7. The conversations are our own words. "
    "The shapes of the answers come from the source that each one names."
)
FORMS = {"2026-04-02": "release", "2026-07-09": "newest"}


def main(path):
    facts = json.loads(Path(path).read_text(encoding="utf-8"))
    conversations = {}
    for case in facts["cases"]:
        options = case["options"]
        one = conversations.setdefault(case["name"], {"name": case["name"], "messages": case["messages"]})
        if case["tools"]:
            one["tools"] = case["tools"]
        think, keep = options.get("enable_thinking", False), options.get("preserve_thinking", False)
        one["options"] = {"think": think, "cue": options["add_generation_prompt"], "keep_thoughts": keep}
        form, small = FORMS[case["template_version"]], case["model"].startswith("E2B")
        if small:
            one[form] = case.get("expected")  # None: the template refuses it
        elif one[form] is None:
            assert "expected_error" in case, case["name"]
        else:
            assert case["expected"].startswith(one[form]), case["name"]
            one[f"{form}, larger models add"] = case["expected"].removeprefix(one[form])
    keys = ("name", "prompt_tail", "text", "thought", "content", "calls", "kind", "source")
    answers = [{key: answer[key] for key in keys} for answer in facts["answers"]]
    target = Path(__file__).with_name("turns.json")
    lines = {"conversations": conversations.values(), "answers": answers}
    parts = [f'"source": {json.dumps(SOURCE)}', f'"published": {json.dumps(facts["ids"])}']
    for key, values in lines.items():
        inside = ",\n".join(json.dumps(value, ensure_ascii=False) for value in values)
        parts.append(f'"{key}": [\n{inside}\n]')
    target.write_text("{" + ",\n".join(parts) + "}\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
