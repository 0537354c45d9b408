"""Names are words that an engineer of the field would search for, and the list of planted defects follows the code."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2i_dagster.policy_files.environment import CHECKOUT

#: Where no such name is.
ROOMS = (
    *sorted(f"e2i_dagster/{path.parent.name}" for path in CHECKOUT.glob("e2i_dagster/*/__init__.py")),
    *("assets", "benchmarks", "commands", "jobs", "resources", "sensors"),
)
#: What is refused, and what to write instead.
REFUSED = {
    r"one": "the singular of what is looped over, or what the value is",
    r"_?told": "record, metadata, message, summary",
    r"_?held": "stored, known, withheld, or what the value is",
    r"_?judge(_\w+)?": "check, assess, grade, audit",
    r"_?hand(ed|s)?_over": "store, return, pass",
    r"_?marks": "flags, patterns",
    r"_?(Told|Judge)": "a noun for what the values are",
}


def names_of(source: str) -> Iterator[tuple[int, str]]:
    """Line and name of everything that ``source`` names."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case (
                ast.Name(id=name, ctx=ast.Store())
                | ast.arg(arg=name)
                | ast.Attribute(attr=name, ctx=ast.Store())
            ):
                yield node.lineno, name
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name


@pytest.mark.parametrize("room", ROOMS)
def test_no_private_idiom_names_anything(room: str) -> None:
    wrong = []
    for path in sorted((CHECKOUT / room).rglob("*.py")):
        for line, name in names_of(path.read_text(encoding="utf-8")):
            instead = next((text for pattern, text in REFUSED.items() if re.fullmatch(pattern, name)), None)
            if instead is not None:
                wrong.append(f"{path.relative_to(CHECKOUT)}:{line}: {name}; rather {instead}")
    assert wrong == []


def test_what_is_refused_is_found() -> None:
    source = "def judge_it(told):\n    for one in told:\n        self.held = [one for marks, one in ()]\n"
    found = {name for _, name in names_of(source) if any(re.fullmatch(pattern, name) for pattern in REFUSED)}
    assert found == {"judge_it", "told", "one", "held", "marks"}


def test_every_planted_defect_has_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1]))
    import mutants

    assert mutants.misplaced(list(mutants.mutants())) == []
    sys.modules.pop("mutants", None)
