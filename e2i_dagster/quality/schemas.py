"""Layer 1: structural rules of a raw table, checked on a frame in memory.

The rules come from the table description (``rules``), so a column that is described once is checked here without a
line of its own. All failures come at once; each is a rule, a column and the positions of its rows, so that it can
be attributed to months.

:func:`pandera_schema` gives the same rules as a schema of Pandera, for those who check frames of their own in a
notebook or a pipeline; nothing here uses it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.quality.rules import Rule, rules_for
from e2i_dagster.quality.typed import TypedFrame, smallest_keys, typed
from e2i_dagster.tables.arrow import compute
from e2i_dagster.tables.constraints import families, violating

if TYPE_CHECKING:
    import pyarrow as pa
    from pandera.pandas import DataFrameSchema

_OF_COLUMNS = ("required_column", "expected_column")


@dataclass(frozen=True)
class SchemaFault:
    """One violated rule: how many rows, and which (positions in the input, ascending).

    An absent column concerns every row.
    """

    rule: Rule
    count: int
    checked: int
    positions: np.ndarray

    def keys(self, read: TypedFrame) -> tuple[str, ...]:
        """The smallest few keys of the rows that violate the rule (``read``: the frame of the check)."""
        return () if self.rule.kind in _OF_COLUMNS else smallest_keys(read, self.positions)


@dataclass(frozen=True)
class SchemaResult:
    """All violated rules of one frame and the number of rules that were checked."""

    table: str
    rows: int
    rules_checked: int
    faults: tuple[SchemaFault, ...]


def check_schema(given: pd.DataFrame | TypedFrame, table: str, policy: QualityPolicy) -> SchemaResult:
    """Check every rule of ``table`` and list every violated one (not the first only).

    An empty frame is checked for its columns. Counts are exact however many rows fail.

    Raises:
        InputError: the frame has two columns of one name.
    """
    read = given if isinstance(given, TypedFrame) else typed(given, table)
    rules = rules_for(table, policy)
    masks = _masks(rules, read)
    rows = read.cells.num_rows
    found = []
    for rule in rules:
        absent = rule.kind in _OF_COLUMNS and rule.column in read.absent
        positions = (
            np.arange(rows) if absent else np.flatnonzero(masks[rule]) if rule in masks else np.empty(0, int)
        )
        if not len(positions) and not absent:
            continue
        whole = rule.kind in (*_OF_COLUMNS, "not_null", "type")
        checked = rows if whole else rows - read.cells.column(rule.column).null_count
        found.append(SchemaFault(rule, len(positions), checked, positions))
    return SchemaResult(table, rows, len(rules), tuple(found))


def _masks(rules: Sequence[Rule], given: TypedFrame) -> dict[Rule, np.ndarray]:
    """Rows that violate each rule on cells; what cannot be read is said by ``type`` alone."""
    present = [rule for rule in rules if given.absent.isdisjoint({rule.column, rule.other or rule.column})]
    masks: dict[Any, np.ndarray] = {
        rule: given.faults[rule.column]
        for rule in present
        if rule.kind == "type" and rule.column in given.faults
    }
    masks |= violating(
        [rule for rule in present if rule.kind not in (*_OF_COLUMNS, "type", "unique_key")], given.cells
    )
    for rule in present:
        if rule.kind == "not_null" and rule.column in given.faults:
            masks[rule] = masks[rule] & ~given.faults[rule.column]
        elif rule.kind == "unique_key" and _repeats(given.cells.column(rule.column)):
            # Keys are compared in half the time in pandas.
            masks |= violating([rule], given.frame[[rule.column]])
    return masks


def _repeats(cells: pa.ChunkedArray) -> bool:
    return compute().count_distinct(cells).as_py() < len(cells) - cells.null_count


#: Types of the frames that the product hands out (:mod:`e2i_dagster.tables.frames`).
_DTYPES = {
    "integer": "Int64",
    "number": "float64",
    "boolean": "boolean",
    "date": "datetime64[us]",
    "timestamp": "datetime64[us, UTC]",
}


def pandera_schema(table: str, policy: QualityPolicy) -> DataFrameSchema:
    """The rules of ``table`` as a schema of Pandera: its columns, their types, and one named check for each rule.

    It takes a frame in the types of the product (``conform``, or what a stage hands out) and coerces nothing; a
    violated convention is a warning. Findings of a check hold the failing cells: do not log them.
    """
    import pandera.pandas as pandera

    rules = rules_for(table, policy)

    def checks(of: list[Rule]) -> list[Any]:
        return [
            pandera.Check(
                lambda data, rule=rule: _satisfied(rule, data),
                name=rule.label,
                error=rule.label,
                ignore_na=False,
                raise_warning=rule.severity != "fatal",
            )
            for rule in of
        ]

    columns = {}
    for name, kind in families(table).items():
        asked = {rule.kind: rule for rule in rules if rule.column == name and rule.other is None}
        on_cells = [rule for kind, rule in asked.items() if kind not in (*_OF_COLUMNS, "type")]
        columns[name] = pandera.Column(
            _DTYPES.get(kind, "string[pyarrow]"),
            checks(on_cells),
            nullable=True,  # asked by a check of the rule's name
            required="required_column" in asked,
            title=name,
        )
    return pandera.DataFrameSchema(
        columns, checks([rule for rule in rules if rule.other is not None]), name=table
    )


def _satisfied(rule: Rule, data: pd.Series | pd.DataFrame) -> pd.Series | bool:
    if isinstance(data, pd.Series):
        data = data.to_frame(rule.column)
    if rule.other is not None and not {rule.column, rule.other} <= set(data.columns):
        return True
    return pd.Series(~violating([rule], data)[rule], index=data.index)
