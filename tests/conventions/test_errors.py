"""Every refusal tells programs what its text tells people: at least the remedy, or the file or field that is wrong."""

import ast
from pathlib import Path

from e2i_dagster.errors import InputError
from e2i_dagster.policy_files.environment import CHECKOUT

#: Classes whose constructor takes the message and the fields.
TOLD = {"InputError", "ConfigError", "CohortInputError"}
FIELDS = {"remedy", "file", "field"}
#: Refusals that are a single text, by part of the core. This number only falls; 0 is the aim.
UNTOLD = {
    "causal": 9,
    "cohorts": 18,
    "config": 5,
    "database": 4,
    "experiments": 47,
    "explain": 1,
    "features": 18,
    "loading": 3,
    "modelling": 8,
    "policy_files": 2,
    "quality": 5,
    "registry": 3,
    "selection": 1,
    "serving": 16,
    "splits": 14,
    "synthetic": 9,
    "tables": 2,
}


def bare(path: Path) -> int:
    """Constructors in ``path`` that give none of the fields and pass none on."""
    calls = (
        node
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in TOLD
    )
    return sum(not any(one.arg is None or one.arg in FIELDS for one in call.keywords) for call in calls)


def test_no_part_of_the_core_gets_more_refusals_without_fields():
    core = CHECKOUT / "e2i_dagster"
    found: dict[str, int] = {}
    for path in core.rglob("*.py"):
        if count := bare(path):
            part = path.relative_to(core).parts[0]
            found[part] = found.get(part, 0) + count
    assert found == UNTOLD, "Give the new one its fields; lower the number where one was mended."


def test_the_text_of_a_refusal_has_its_remedy_once():
    told = InputError("n: 1; at least 2 are needed.", field="n", value=1, remedy="Give more units.")
    assert str(told) == "n: 1; at least 2 are needed. Give more units."
    again = InputError(str(told), remedy="Give more units.")
    assert str(again) == str(told) and again.to_record()["remedy"] == "Give more units."
