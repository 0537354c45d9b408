"""A raw table in its described types: what every layer of quality control looks at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from e2i_dagster.errors import InputError
from e2i_dagster.tables import primary_key
from e2i_dagster.tables.arrow import numpy_mask
from e2i_dagster.tables.cells import Kind, read, to_arrow
from e2i_dagster.tables.constraints import families

if TYPE_CHECKING:
    import pyarrow as pa

#: Keys of failing rows that a fault names.
SAMPLE = 5


@dataclass(frozen=True, eq=False)
class TypedFrame:
    """A raw table with exactly the described columns in their described types.

    Attributes:
        cells: one row per input row in input order. A cell that could not be read as its type is null here and
            marked in ``faults``; an absent column is all null.
        absent: described columns that the input does not have.
        faults: column to a mask of the cells that could not be read (only columns with any).
        extra: input columns that the description does not know; they are checked by nothing.
    """

    table: str
    cells: pa.Table
    absent: frozenset[str] = frozenset()
    faults: Mapping[str, np.ndarray] = field(default_factory=dict)
    extra: tuple[str, ...] = ()

    @cached_property
    def frame(self) -> pd.DataFrame:
        """``cells`` in pandas, index 0..n-1."""
        import pyarrow as pa

        dtypes = {
            pa.large_string(): pd.StringDtype("pyarrow"),
            pa.int32(): pd.Int64Dtype(),
            pa.bool_(): pd.BooleanDtype(),
        }
        return self.cells.to_pandas(types_mapper=dtypes.get)


def smallest_keys(given: TypedFrame, positions: np.ndarray) -> tuple[str, ...]:
    """At most :data:`SAMPLE` keys of the rows at ``positions``, the smallest first; rows without key are left out."""
    listed = given.frame[primary_key(given.table)].iloc[positions].dropna().sort_values()
    return tuple(listed.head(SAMPLE).tolist())


def typed(frame: pd.DataFrame, table: str) -> TypedFrame:
    """``frame`` as its described types, read as the loader reads it, with every cell marked that says nothing.

    Raises:
        InputError: the frame has two columns of one name.
    """
    import pyarrow as pa

    if not frame.columns.is_unique:
        twice = sorted({str(name) for name in frame.columns[frame.columns.duplicated()]})
        raise InputError(
            f"{table}: columns occur twice: {', '.join(twice)}.", remedy="Rename or drop one of each."
        )
    described = families(table)
    columns: dict[str, Any] = {}
    faults: dict[str, np.ndarray] = {}
    for name, kind in described.items():
        if name not in frame.columns:
            columns[name] = pa.nulls(len(frame), _type_of(kind))
            continue
        found = read(kind, to_arrow(frame[name]), infinite=True)
        lost = np.logical_or.reduce(
            [numpy_mask(mask) for mask in found.refused.values()] or [np.zeros(0, bool)]
        )
        if lost.any():
            faults[name] = lost
        columns[name] = found.values.cast(_type_of(kind))
    return TypedFrame(
        table,
        pa.table(columns),
        frozenset(name for name in described if name not in frame.columns),
        faults,
        tuple(str(name) for name in frame.columns if name not in described),
    )


def _type_of(kind: Kind) -> pa.DataType:
    import pyarrow as pa

    types: Mapping[str, pa.DataType] = {
        "integer": pa.int32(),
        "number": pa.float64(),
        "boolean": pa.bool_(),
        "date": pa.timestamp("us"),
        "timestamp": pa.timestamp("us", "UTC"),
    }
    return types.get(kind, pa.large_string())
