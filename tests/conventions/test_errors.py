"""Every refusal tells programs what its text tells people: at least the remedy, or the file or field that is wrong."""

import ast

import pytest

from e2i_dagster.errors import InputError
from e2i_dagster.policy_files.environment import CHECKOUT

#: Classes whose constructor takes the message and the fields.
TOLD = {"InputError", "ConfigError", "CohortInputError", "UnavailableError"}
FIELDS = {"remedy", "file", "field"}


@pytest.mark.parametrize("room", ["e2i_dagster", "assets", "commands", "jobs", "resources", "sensors"])
def test_every_refusal_has_a_remedy_a_file_or_a_field(room):
    bare = [
        f"{path.relative_to(CHECKOUT)}:{node.lineno}"
        for path in sorted((CHECKOUT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id in TOLD
        and not any(one.arg is None or one.arg in FIELDS for one in node.keywords)
    ]
    assert not bare, f"Give each of them its fields: {', '.join(bare)}"


def test_the_text_of_a_refusal_has_its_remedy_once():
    told = InputError("n: 1; at least 2 are needed.", field="n", value=1, remedy="Give more units.")
    assert str(told) == "n: 1; at least 2 are needed. Give more units."
    again = InputError(str(told), remedy="Give more units.")
    assert str(again) == str(told) and again.to_record()["remedy"] == "Give more units."
