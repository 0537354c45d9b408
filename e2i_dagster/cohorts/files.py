"""Rules on columns over a Parquet file of any length: one pass, row group by row group, on all cores.

A row group is read, answered on arrays (:mod:`.on_columns`), counted and written before the next but a few.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute

from e2i_dagster.cohorts.attrition import Counts, combinations
from e2i_dagster.cohorts.columns import arrow_column, is_ascending, kind_of_arrow
from e2i_dagster.cohorts.engine import count_keys
from e2i_dagster.cohorts.on_columns import answers, date_fields, reads_columns_only
from e2i_dagster.config.cohort import CohortDefinition, Criterion

pc: Any = pyarrow.compute

ROW_FIELDS = ("patient_id", "patient_journey_id", "index_date", "followup_end")
REASONS, ELIGIBLE = "reasons.parquet", "eligible.parquet"
_KEYS = ROW_FIELDS[:2]
_SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in _KEYS),
        *((name, pa.date32()) for name in ROW_FIELDS[2:]),
        ("mask", pa.int64()),
        ("unknown_mask", pa.int64()),
    ]
)


def pass_over(
    definition: CohortDefinition,
    patients: Any,
    covered: tuple[date | None, date | None],
    *,
    folder: Path | None = None,
) -> Counts | None:
    """Answer ``definition`` over the Parquet file ``patients``, and write reasons and eligible into ``folder``.

    ``covered``: first and last day that the data cover, None where that is not said.

    Returns:
        The counts of the attrition; None, with nothing written, when this is work for an engine: ``patients``
        is no single file, a rule reads more than columns, a column is missing or of no plain type, or a
        patient has several rows.

    Raises:
        CohortInputError: CC_004, a key is empty or repeated.
    """
    if not reads_columns_only(definition) or not isinstance(patients, (str, Path)):
        return None
    path = Path(patients)
    if not path.is_file() or not _is_plain(definition, path):
        return None
    counts = _counted(definition, path, covered, folder, ordered=True)
    if counts is None:
        keys = count_keys(path)
        if keys.persons == keys.rows:
            counts = _counted(definition, path, covered, folder, ordered=False)
    return counts


def _is_plain(definition: CohortDefinition, path: Path) -> bool:
    """Whether each column that the definition reads is there, once, and of a kind that its use allows."""
    import pyarrow.parquet as pq

    schema = pq.read_schema(path)
    dates = date_fields(definition)
    for name in definition.required_fields:
        if schema.names.count(name) != 1:
            return False
        dtype = schema.field(name).type
        kind = kind_of_arrow(dtype)
        if kind is None or (name in dates and kind != "date"):
            return False
        if name in _KEYS and not pa.types.is_string(dtype):
            return False
    return True


@dataclass(frozen=True)
class _Part:
    """One row group: its rows and the eligible ones as they are written, and its counts."""

    rows: pa.Table
    eligible: pa.Table
    counts: tuple[np.ndarray, np.ndarray, np.ndarray]
    ascending: bool


def _counted(
    definition: CohortDefinition,
    path: Path,
    covered: tuple[date | None, date | None],
    folder: Path | None,
    *,
    ordered: bool,
) -> Counts | None:
    """One pass. With ``ordered`` it proves both keys unique by their order, and stops with None if it cannot."""
    last = None
    counts = []
    with ExitStack() as stack:
        writers = None if folder is None else stack.enter_context(_Writers(folder))
        for part in _parts(definition, path, covered):
            if ordered and part.rows.num_rows:
                first = [part.rows[name][0].as_py() for name in _KEYS]
                if not part.ascending or (last and any(a >= b for a, b in zip(last, first, strict=True))):
                    return None
                last = [part.rows[name][-1].as_py() for name in _KEYS]
            counts.append(part.counts)
            if writers is not None:
                writers.write(part)
        if writers is not None:
            writers.finish()
    joined = (np.concatenate(masks) for masks in zip(*counts, strict=True))
    return Counts.of_single(*combinations(*joined))


def _parts(
    definition: CohortDefinition, path: Path, covered: tuple[date | None, date | None]
) -> Iterator[_Part]:
    """The row groups in their order, a few of them in work at a time."""
    import pyarrow.parquet as pq

    metadata = pq.read_metadata(path)
    fields = list(definition.required_fields)
    texts = [
        field.name
        for field in metadata.schema.to_arrow_schema()
        if field.name in fields and field.name not in _KEYS and kind_of_arrow(field.type) == "text"
    ]

    def answered(groups: list[int]) -> _Part:
        with pq.ParquetFile(path, metadata=metadata, read_dictionary=texts) as file:
            return _answered(definition, file.read_row_groups(groups, fields, use_threads=False), covered)

    workers = os.cpu_count() or 1
    # A file without row groups is one part without rows.
    groups = [[group] for group in range(metadata.num_row_groups)] or [[]]
    waiting: deque[Future[_Part]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for group in groups:
            waiting.append(pool.submit(answered, group))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _answered(
    definition: CohortDefinition, rows: pa.Table, covered: tuple[date | None, date | None]
) -> _Part:
    fields = {c.field for c in definition.conditions if isinstance(c, Criterion)}
    arrays = {name: rows[name].combine_chunks() for name in rows.column_names}
    typed = {name: arrow_column(arrays[name], name) for name in fields.union(date_fields(definition))}
    found = answers(definition, typed, typed, covered[1], covered[0])
    columns = [
        *(arrays[name] for name in _KEYS),
        *(pa.array(days, type=pa.date32()) for days in (found.index_date, found.followup_end)),
        found.mask,
        found.unknown_mask,
    ]
    table = pa.table(columns, schema=_SCHEMA)
    return _Part(
        rows=table,
        eligible=table.select(ROW_FIELDS).filter(pc.equal(table["mask"], 0)),
        counts=combinations(found.mask, found.unknown_mask),
        ascending=all(is_ascending(arrays[name]) for name in _KEYS),
    )


class _Writers:
    """Reasons and eligible rows, written aside and renamed when both are whole."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> _Writers:
        import pyarrow.parquet as pq

        self._folder.mkdir(parents=True, exist_ok=True)
        schemas = {REASONS: _SCHEMA, ELIGIBLE: pa.schema([_SCHEMA.field(name) for name in ROW_FIELDS])}
        # Keys hardly ever repeat: a dictionary of them is work for nothing. Patients are looked up, so that
        # their smallest and largest key of a row group are worth keeping, journeys are not.
        options: dict[str, Any] = {
            "use_dictionary": _SCHEMA.names[len(_KEYS) :],
            "write_statistics": [name for name in _SCHEMA.names if name != "patient_journey_id"],
        }
        self._writers = {
            name: self._stack.enter_context(pq.ParquetWriter(self._aside(name), schema, **options))
            for name, schema in schemas.items()
        }
        return self

    def write(self, part: _Part) -> None:
        self._writers[REASONS].write_table(part.rows)
        self._writers[ELIGIBLE].write_table(part.eligible)

    def finish(self) -> None:
        self._stack.close()
        for name in self._writers:
            self._aside(name).replace(self._folder / name)

    def __exit__(self, *_: object) -> None:
        self._stack.close()
        for name in self._writers:
            self._aside(name).unlink(missing_ok=True)

    def _aside(self, name: str) -> Path:
        return self._folder / f".{name}.part"
