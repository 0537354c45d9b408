"""CDISC Dataset-JSON 1.1: one dataset with its columns described, as one JSON document or as NDJSON.

Days, moments and times are ISO text, whole or partial, and decimals are text; numbers and booleans are typed.
A row that is no list with a cell for each column, or has a cell of another type than its column, is malformed.
"""

from __future__ import annotations

import io
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from e2i_dagster.errors import InputError
from e2i_dagster.sources.formats.records import (
    BATCH_BYTES,
    ColumnNotes,
    FileSummary,
    Format,
    Records,
    open_bytes,
    refusal,
    with_nulls,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from e2i_dagster.config.mapping import FileFormat

_VERSION = re.compile(rb'\s*(?:\xef\xbb\xbf)?\s*\{(?s:.*?)"datasetJSONVersion"\s*:\s*"')
_ENCODE = "Dataset-JSON is UTF-8: write it again."
#: Rows that become one batch.
_ROWS = 20_000
#: What is not text: the Python types of its JSON values.
_TYPES: dict[str, tuple[type, ...]] = {
    "integer": (int,),
    "float": (float, int),
    "double": (float, int),
    "boolean": (bool,),
}


def _open(path: Path, form: FileFormat) -> Records:
    import pyarrow as pa

    summary = FileSummary()
    by_lines = _is_ndjson(path)
    try:
        with _text(path) as stream:
            about = json.loads(stream.readline()) if by_lines else _Document(path, stream).about()
    except UnicodeDecodeError:
        raise refusal(path, "is not UTF-8 text", _ENCODE) from None
    columns = about.get("columns")
    if not isinstance(columns, list) or not all(
        isinstance(column, dict) and column.get("name") for column in columns
    ):
        raise refusal(path, "has no list `columns` with a name for each")
    names = [str(column["name"]) for column in columns]
    if len(set(names)) < len(names):
        raise refusal(path, "has two columns of one name")
    version = str(about.get("datasetJSONVersion"))
    if not version.startswith("1.1"):
        raise refusal(path, f"is Dataset-JSON {version}, and 1.1 is read", "Write it by version 1.1.")
    kinds = {"integer": pa.int64(), "float": pa.float64(), "double": pa.float64(), "boolean": pa.bool_()}
    schema = pa.schema(
        [
            (name, kinds.get(column.get("dataType"), pa.string()))
            for name, column in zip(names, columns, strict=True)
        ]
    )
    summary.columns = {
        name: ColumnNotes(label=column.get("label"), display=column.get("displayFormat"))
        for name, column in zip(names, columns, strict=True)
    }
    types = [_TYPES.get(column.get("dataType"), (str,)) for column in columns]

    def batches() -> Iterator[pa.RecordBatch]:
        seen = 0
        with _text(path) as stream:
            rows = _lines(stream, summary) if by_lines else _Document(path, stream).rows()
            try:
                while taken := list(itertools.islice(rows, _ROWS)):
                    good = [
                        row
                        for number, row in enumerate(taken, seen + 1)
                        if _fits(row, types, number, summary)
                    ]
                    seen += len(taken)
                    cells = zip(*good, strict=True) if good else ([] for _ in names)
                    arrays = [
                        pa.array(column, kind) for column, kind in zip(cells, schema.types, strict=True)
                    ]
                    yield with_nulls(pa.record_batch(arrays, schema=schema), form)
            except UnicodeDecodeError:
                raise refusal(path, "is not UTF-8 text", _ENCODE) from None
            except OverflowError:
                raise refusal(
                    path, "has a whole number beyond 64 bits", "Declare its column as string."
                ) from None
        declared = about.get("records")
        if isinstance(declared, int) and declared != seen - len(summary.blank):
            raise refusal(path, f"says {declared:,} records and has {seen - len(summary.blank):,}")

    return Records(schema, batches(), summary)


def _text(path: Path) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_bytes(path), encoding="utf-8-sig")


def _fits(row: Any, types: list[tuple[type, ...]], number: int, summary: FileSummary) -> bool:
    """Whether a row has a cell of the right type for each column; what does not is kept as malformed."""
    # True is an int for Python alone.
    if (
        isinstance(row, list)
        and len(row) == len(types)
        and all(
            cell is None or (isinstance(cell, kind) and (type(cell) is not bool or kind == (bool,)))
            for cell, kind in zip(row, types, strict=True)
        )
    ):
        return True
    if row is not _BLANK:
        summary.malformed.append(
            (number, row if isinstance(row, str) else json.dumps(row, ensure_ascii=False))
        )
    return False


# --- NDJSON: the description in the first line, a row in each further one

_BLANK = object()


def _is_ndjson(path: Path) -> bool:
    with open_bytes(path) as stream:
        line = stream.readline(BATCH_BYTES)
    try:
        return "rows" not in json.loads(line)
    except ValueError:
        return False


def _lines(stream: io.TextIOWrapper, summary: FileSummary) -> Iterator[Any]:
    stream.readline()
    summary.lines = 0
    for number, line in enumerate(stream, 1):
        text = line.strip()
        if not text:
            summary.blank.append(number)
            yield _BLANK
            continue
        summary.lines += 1
        try:
            yield json.loads(text)
        except ValueError:
            yield text


# --- one document


class _Document:
    """A JSON document that is read from its beginning in pieces."""

    def __init__(self, path: Path, stream: io.TextIOWrapper) -> None:
        self.path, self.stream = path, stream
        self.buffer, self.place = "", 0
        self.decode = json.JSONDecoder().raw_decode
        self.begun = False

    def about(self) -> dict[str, Any]:
        """What stands beside the rows; where the columns stand after the rows, all of it is read."""
        found, reached = self.members()
        if reached and "columns" not in found:
            for _ in self.items():
                pass
            found |= self.members()[0]
        return found

    def rows(self) -> Iterator[Any]:
        """The rows, up to the end of the document."""
        if self.members()[1]:
            yield from self.items()
            self.members()

    def members(self) -> tuple[dict[str, Any], bool]:
        """Members of the document up to ``rows``, and whether it was reached (else the document ends)."""
        found: dict[str, Any] = {}
        mark = self._mark()
        while mark == ("," if self.begun else "{"):
            self.begun = True
            if self._next() == "}":
                mark = self._mark()
                break
            name = self._value()
            if self._mark() != ":":
                raise self._broken()
            if name == "rows":
                if self._mark() != "[":
                    raise self._broken()
                return found, True
            found[name] = self._value()
            mark = self._mark()
        if mark != "}":
            raise self._broken()
        return found, False

    def items(self) -> Iterator[Any]:
        """The items of the list that was entered, up to its end."""
        if self._next() == "]":
            self._mark()
            return
        count = 0
        while True:
            yield self._value(count)
            count += 1
            mark = self._mark()
            if mark == "]":
                return
            if mark != ",":
                raise self._broken(count)

    def _more(self) -> bool:
        piece = self.stream.read(BATCH_BYTES)
        self.buffer, self.place = self.buffer[self.place :] + piece, 0
        return bool(piece)

    def _next(self) -> str:
        """The next character that is no blank, not taken; empty at the end."""
        while True:
            while self.place < len(self.buffer) and self.buffer[self.place] in " \t\r\n":
                self.place += 1
            if self.place < len(self.buffer) or not self._more():
                return self.buffer[self.place : self.place + 1]

    def _mark(self) -> str:
        mark = self._next()
        self.place += 1
        return mark

    def _value(self, count: int | None = None) -> Any:
        self._next()
        while True:
            try:
                value, end = self.decode(self.buffer, self.place)
            except json.JSONDecodeError:
                end = len(self.buffer)
            # A number may go on in the next piece.
            if end < len(self.buffer):
                self.place = end
                return value
            if not self._more():
                raise self._broken(count)

    def _broken(self, count: int | None = None) -> InputError:
        where = "" if count is None else f" after row {count:,}"
        return refusal(self.path, f"is no JSON{where}: it is cut off or damaged")


FORMAT = Format("CDISC Dataset-JSON", lambda start: bool(_VERSION.match(start)), _open, gzipped=True)
