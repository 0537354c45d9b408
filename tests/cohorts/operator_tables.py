"""The specification of three-valued logic as tables, and the page that shows them.

``python tests/cohorts/operator_tables.py`` writes ``docs/cohorts/operators.md``.
"""

from __future__ import annotations

import itertools
from datetime import date
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/cohorts/operators.md"
T, F, U = "true", "false", "unknown"
D1, D2 = date(2024, 1, 1), date(2024, 1, 2)

#: Criterion (without the field), kind of the column, and the answer to each value of the column.
OPERATORS: list[tuple[dict, str, list[tuple[object, str]]]] = [
    ({"operator": "==", "value": 18}, "number", [(17, F), (18, T), (19, F), (None, U)]),
    ({"operator": "==", "value": True}, "boolean", [(True, T), (False, F), (None, U)]),
    ({"operator": "==", "value": "a"}, "text", [("a", T), ("A", F), ("", F), (None, U)]),
    ({"operator": "==", "value": "2024-01-01"}, "date", [(D1, T), (D2, F), (None, U)]),
    ({"operator": "!=", "value": 18}, "number", [(17, T), (18, F), (19, T), (None, U)]),
    ({"operator": "!=", "value": True}, "boolean", [(True, F), (False, T), (None, U)]),
    ({"operator": "!=", "value": "a"}, "text", [("a", F), ("A", T), ("", T), (None, U)]),
    ({"operator": ">", "value": 18}, "number", [(17, F), (18, F), (19, T), (None, U)]),
    ({"operator": ">=", "value": 18}, "number", [(17, F), (18, T), (19, T), (None, U)]),
    ({"operator": ">=", "value": "2024-01-02"}, "date", [(D1, F), (D2, T), (None, U)]),
    ({"operator": "<", "value": 18}, "number", [(17, T), (18, F), (19, F), (None, U)]),
    ({"operator": "<=", "value": 18}, "number", [(17, T), (18, T), (19, F), (None, U)]),
    ({"operator": "in", "value": [17, 19]}, "number", [(17, T), (18, F), (19, T), (None, U)]),
    ({"operator": "in", "value": ["a", "b"]}, "text", [("a", T), ("b", T), ("ab", F), (None, U)]),
    ({"operator": "not_in", "value": [17, 19]}, "number", [(17, F), (18, T), (19, F), (None, U)]),
    ({"operator": "not_in", "value": ["a", "b"]}, "text", [("a", F), ("b", F), ("ab", T), (None, U)]),
    ({"operator": "between", "value": [18, 19]}, "number", [(17, F), (18, T), (19, T), (20, F), (None, U)]),
    ({"operator": "contains", "value": "tive"}, "text", [("positive", T), ("Tive", F), ("", F), (None, U)]),
    ({"operator": "contains", "value": "."}, "text", [("p.", T), ("p", F), (None, U)]),
    (
        {"operator": "in", "value": ["L50.*"], "code_system": "icd10cm"},
        "text",
        [("L50", T), ("l501", T), (" L50.1 ", T), ("M50.1", F), (None, U)],
    ),
    (
        {"operator": "==", "value": "L50.1", "code_system": "icd10cm"},
        "text",
        [("L50.1", T), ("l501", T), ("L50.10", F), (None, U)],
    ),
    (
        {"operator": "==", "value": "L50.1", "code_system": "icd10cm", "descendants": True},
        "text",
        [("L50.1", T), ("L50.10", T), ("L50", F), (None, U)],
    ),
]

PAIRS = list(itertools.product((T, F, U), repeat=2))
#: Answer of a group of two members, in the order of ``PAIRS``.
GROUPS: dict[str, list[str]] = {
    "all_of": [T, F, U, F, F, F, U, F, U],
    "any_of": [T, T, T, T, F, U, T, U, U],
}
TRIPLES = [(T, T, U), (T, U, U), (T, F, U), (T, F, F), (F, F, U), (U, U, U), (U, U, F), (F, F, F)]
#: Answer of ``at_least: {n: 2}`` of three members, in the order of ``TRIPLES``.
TWO_OF_THREE: list[str] = [T, U, U, F, F, U, U, F]
_TEN_DAYS = {"event": "rx", "within": [-10, -1]}
#: Event criterion, and the answer to the days of the events when days -10 to -1 were observed as a whole and
#: when only days -5 to -1 were.
EVENTS: list[tuple[dict, list[tuple[list[int], str, str]]]] = [
    (
        {"has_event": {**_TEN_DAYS, "at_least": 2}},
        [([-4, -2], T, T), ([-4], F, U), ([], F, U), ([-11, 0], F, U)],
    ),
    (
        {"has_event": {**_TEN_DAYS, "at_least": 1, "at_most": 2}},
        [([], F, U), ([-4], T, U), ([-4, -2], T, U), ([-4, -3, -2], F, F)],
    ),
    ({"no_event": _TEN_DAYS}, [([], T, U), ([-4], F, F), ([-11, 0], T, U)]),
    ({"washout": {"event": "rx", "days": 10}}, [([], T, U), ([-4], F, F), ([-11, 0], T, U)]),
    ({"gap": {**_TEN_DAYS, "days": 4}}, [([], T, U), ([-8, -4], F, F), ([-4], T, U)]),
    ({"prior_outcome": {"event": "rx"}}, [([], F, F), ([-11], T, T), ([0], F, F)]),
]
#: (side, on_unknown as written, answer of the criterion): whether the patient is kept.
KEPT: dict[tuple[str, str | None, str], bool] = {
    ("inclusion", None, T): True,
    ("inclusion", None, F): False,
    ("inclusion", None, U): False,
    ("inclusion", "exclude", U): False,
    ("inclusion", "include", U): True,
    ("inclusion", "report", U): True,
    ("exclusion", None, T): False,
    ("exclusion", None, F): True,
    ("exclusion", None, U): True,
    ("exclusion", "exclude", U): False,
    ("exclusion", "include", U): True,
    ("exclusion", "report", U): True,
}
#: Unknown patients that are kept and counted as such: a criterion that says ``report``, or an exclusion rule
#: that says nothing.
REPORTED = {("inclusion", "report"), ("exclusion", "report"), ("exclusion", None)}


def _cell(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return "[" + ", ".join(map(_cell, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def page() -> str:
    lines = [
        "# Operators, groups and unknown values",
        "",
        "Written from the specification tests of the cohort language (`python tests/cohorts/operator_tables.py`):",
        "pandas and DuckDB are held to every line. See [cohorts](../cohorts.md) for the language.",
        "",
        "## Operators",
        "",
        "A null is unknown for every operator, also for `!=` and `not_in`.",
        "",
        "| column | criterion | value of the column: answer |",
        "|---|---|---|",
    ]
    for criterion, kind, answers in OPERATORS:
        said = f"`{criterion['operator']} {_cell(criterion['value'])}`"
        said += f", code_system {criterion['code_system']}" if "code_system" in criterion else ""
        said += ", descendants" if criterion.get("descendants") else ""
        found = "; ".join(f"`{_cell(value)}`: {answer}" for value, answer in answers)
        lines.append(f"| {kind} | {said} | {found} |")
    lines += ["", "## Groups", "", "| first | second | `all_of` | `any_of` |", "|---|---|---|---|"]
    for place, (first, second) in enumerate(PAIRS):
        lines.append(f"| {first} | {second} | {GROUPS['all_of'][place]} | {GROUPS['any_of'][place]} |")
    lines += ["", "| members | `at_least: {n: 2}` |", "|---|---|"]
    lines += [f"| {', '.join(one)} | {answer} |" for one, answer in zip(TRIPLES, TWO_OF_THREE, strict=True)]
    lines += [
        "",
        "## Counts of events",
        "",
        "Events that were not seen can only raise a count or close a gap. Where the window was not observed as a",
        "whole, a count that is reached is true, one that is exceeded is false, and the rest is unknown. An open end",
        "of a window takes what was recorded: `prior_outcome` is never unknown on an observed index date.",
        "",
        "| criterion | days with an event | days -10 to -1 observed | only days -5 to -1 observed |",
        "|---|---|---|---|",
    ]
    for criterion, answers in EVENTS:
        ((kind, asked),) = criterion.items()
        said = ", ".join(f"{key}: {_cell(value)}" for key, value in asked.items())
        for days, whole, partly in answers:
            lines.append(
                f"| `{kind}: {{{said}}}` | {', '.join(map(str, days)) or 'none'} | {whole} | {partly} |"
            )
    lines += [
        "",
        "## What becomes of a patient",
        "",
        "| rule | on_unknown | answer | patient |",
        "|---|---|---|---|",
    ]
    for (side, written, answer), kept in KEPT.items():
        counted = " and reported" if answer == U and (side, written) in REPORTED else ""
        lines.append(
            f"| {side} | {written or 'not given'} | {answer} | {'kept' + counted if kept else 'removed'} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(page(), encoding="utf-8")
