"""What each format gives of a file: its rows in batches as delivered, and what it says of them besides."""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from e2i_dagster.errors import InputError
from e2i_dagster.tables.arrow import compute

if TYPE_CHECKING:
    import pyarrow as pa

    from e2i_dagster.config.mapping import FileFormat

#: Rows of a batch, and bytes of the file that become one, where a format has no batches of its own.
BATCH_ROWS = 100_000
BATCH_BYTES = 1 << 23


def refusal(
    path: Path, what: str, remedy: str = "Deliver it again.", *, field: str | None = None, value: Any = None
) -> InputError:
    """The error that ``what`` (a sentence without its full stop) is wrong with a file."""
    return InputError(f"{path.name}: {what}.", file=path.name, field=field, value=value, remedy=remedy)


@dataclass
class ColumnNotes:
    """What a file says of a column besides its values.

    Attributes:
        label: what people call it. display: its SAS format, such as ``DATE9``, or its place in a FHIR resource.
        values: delivered code to its label. missing: kind of missing value (``A`` for ``.A``) to cells, which are null.
    """

    label: str | None = None
    display: str | None = None
    values: dict[str, str] = field(default_factory=dict)
    missing: Counter[str] = field(default_factory=Counter)


@dataclass
class FileSummary:
    """What is known of a file; counts are complete when its batches were read.

    Attributes:
        malformed: (row number, text) of rows that are none, from 1, the header not counted.
        blank: numbers of blank lines, where these count. lines: lines below the header that are not blank, counted
            apart from the parser; None for formats without lines.
        columns: by name. notes: what a person should know of the rows, counts and no values.
    """

    malformed: list[tuple[int, str]] = field(default_factory=list)
    blank: list[int] = field(default_factory=list)
    lines: int | None = None
    columns: dict[str, ColumnNotes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def missing_kinds(self) -> list[str]:
        """Kinds of missing values by column, in words."""
        return [
            f"{name}: special missing values "
            + ", ".join(f".{kind} {cells:,}" for kind, cells in sorted(of.missing.items()))
            for name, of in self.columns.items()
            if of.missing
        ]


@dataclass(frozen=True)
class FileRows:
    """All rows of one file (text where the file is text) and what it says of them."""

    rows: pa.Table
    summary: FileSummary

    @property
    def malformed(self) -> list[tuple[int, str]]:
        """Number and text of the rows that are none."""
        return self.summary.malformed

    @property
    def lines(self) -> int | None:
        """Lines that are not blank, the header aside; None where the format has no lines."""
        return self.summary.lines

    @property
    def numbers(self) -> np.ndarray:
        """For each row its number in the file, from 1."""
        left_out = [number for number, _ in self.summary.malformed] + self.summary.blank
        return np.setdiff1d(np.arange(1, self.rows.num_rows + len(left_out) + 1), left_out)


@dataclass(frozen=True)
class Records:
    """An opened file. ``batches`` is read once; what reading finds out is in ``summary`` afterwards."""

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    summary: FileSummary

    def read(self) -> FileRows:
        """All rows; text is ``large_string``, which frames hold without a copy."""
        import pyarrow as pa

        schema = pa.schema(
            [
                schema_field.with_type(pa.large_string())
                if pa.types.is_string(schema_field.type)
                else schema_field
                for schema_field in self.schema
            ]
        )
        rows = pa.Table.from_batches((batch.cast(schema) for batch in self.batches), schema)
        return FileRows(rows, self.summary)

    def head(self, rows: int) -> pa.Table:
        """The first ``rows`` rows; no more of the file is read than they need."""
        import pyarrow as pa

        taken, count = [], 0
        for batch in self.batches:
            taken.append(batch)
            count += batch.num_rows
            if count >= rows:
                break
        return pa.Table.from_batches(taken, self.schema).slice(0, rows)


@dataclass(frozen=True)
class Format:
    """A format that is read.

    Attributes:
        name: as people call it.
        recognise: whether a file is of it, by its first bytes, decompressed.
        open: the file as records; raises :class:`InputError`.
        endings: of a file that is of no other format by its content.
        gzipped: whether it is read compressed by gzip, too.
    """

    name: str
    recognise: Callable[[bytes], bool]
    open: Callable[[Path, FileFormat], Records]
    endings: tuple[str, ...] = ()
    gzipped: bool = False


def with_nulls(batch: pa.RecordBatch, form: FileFormat) -> pa.RecordBatch:
    """``batch`` with null for text that is an empty field in CSV."""
    import pyarrow as pa

    pc = compute()
    for number, kind in enumerate(batch.schema.types):
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            continue
        empty = pc.is_in(batch.column(number), value_set=pa.array(["", *form.nulls], kind))
        if pc.any(empty).as_py():
            filled = pc.if_else(empty, pa.scalar(None, kind), batch.column(number))
            batch = batch.set_column(number, batch.schema.field(number), filled)
    return batch


def open_bytes(path: Path) -> IO[bytes]:
    """The bytes of a file, decompressed where its name ends in ``.gz``."""
    return cast("IO[bytes]", gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def first_line(text: Exception) -> str:
    """What a library said, short enough for a message, without places of this machine."""
    return re.sub(r"\S*/(?=\S)", "", str(text).split("\n", 1)[0])[:120]
