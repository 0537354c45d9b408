"""Whether the rule of a mapping for reversals can find originals in a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from e2i_dagster.errors import InputError
from e2i_dagster.tables import date_column, raw_table, tables_referring_to
from e2i_dagster.tables.cells import kind_of

if TYPE_CHECKING:
    from e2i_dagster.config.mapping import ReversalRule

_MATCHED = ("text", "integer", "boolean", "date", "timestamp")


def check_rule(table: str, rule: ReversalRule, delivered: Sequence[str]) -> list[InputError]:
    """What is wrong with ``rule`` for ``table``, whose delivered columns have our names ``delivered``."""
    problems: list[tuple[str, str]] = []
    referring = tables_referring_to(table)
    if referring:
        said = f"rows of {', '.join(referring)} refer to its rows, so none can be taken back."
        problems.append((said, "Leave it out."))
    named = (
        rule.where.column,
        *rule.matches_on,
        *rule.amounts,
        *([rule.refers_to] if rule.refers_to else []),
    )
    absent = sorted(set(named) - set(delivered))
    if absent:
        said = f"{', '.join(absent)} is no column of the delivery."
        problems.append((said, f"Found: {', '.join(delivered)}."))
    columns = raw_table(table).columns
    for name in dict.fromkeys((*rule.matches_on, *rule.amounts)):
        if name in columns:
            kind = kind_of(columns[name])
            if name in rule.amounts and kind not in ("integer", "number"):
                problems.append((f"amounts names {name}, which is no number.", "Name columns of numbers."))
            if name in rule.matches_on and kind not in _MATCHED:
                said = f"matches_on names {name} ({kind})."
                problems.append((said, "Name columns of text, days or whole numbers."))
        elif "extra" not in columns and name in delivered:
            said = f"{name} is not kept in {table}, so an original has none to compare."
            problems.append((said, "Rename it to a column of the table, or leave it out."))
    dated = date_column(table)
    if rule.refers_to is None and dated is not None and dated not in rule.matches_on:
        said = f"matches_on is without {dated}, so that any repeat of the row on another day would match."
        problems.append((said, "Add it, or declare `refers_to`."))
    return [
        InputError(
            f"{table}: `reversals` of the mapping: {said}", field="reversals", value=table, remedy=remedy
        )
        for said, remedy in problems
    ]
