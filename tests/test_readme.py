"""The README is true: its Python runs as written, and its tree names every file of the package."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_python_of_the_readme_runs_as_written(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names = {}
    exec(code, names)
    assert names["trace"]["layers.4.attn.pattern"].shape == (4, len(names["tokens"]), len(names["tokens"]))
    assert (names["logits_without_ple"] != names["logits"]).any()
    assert len(capsys.readouterr().out) > 50


def test_the_file_tree_has_a_line_for_every_file_of_the_package():
    for path in (ROOT / "minigemma").rglob("*.py"):
        if path.name != "__init__.py":
            assert re.search(rf"^ {{2,6}}(\w+\.py )*{re.escape(path.name)} +\S", README, re.MULTILINE), path.name


def test_every_command_of_the_readme_exists_and_every_command_is_in_it():
    from minigemma.__main__ import parser

    (commands,) = (action.choices for action in parser()._actions if action.choices)
    assert set(commands) == set(re.findall(r"^python -m minigemma ([\w-]+) ", README, re.MULTILINE))


def test_every_link_of_the_readme_leads_to_a_file():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


def test_the_catalogue_has_as_many_mistakes_as_the_readme_says():
    from minigemma.debug.catalogue import FAULTS

    tried = sum(bool(fault.changes) for fault in FAULTS.values())
    assert f"{tried} known mistakes of real ports" in README and f"has {len(FAULTS)} entries" in README
