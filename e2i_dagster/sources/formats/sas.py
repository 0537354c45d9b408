"""SAS: transport files (XPT, versions 5 and 8) and sas7bdat, values by pyreadstat.

Numbers with a SAS date or datetime format are days and moments without a zone, those with a time format are text
(``HH:MM:SS``, hours may exceed 23). A special missing value (``.A`` to ``.Z``, ``._``) is null, counted by its letter.
Trailing blanks are no part of a text. pyreadstat takes what follows the rows of a transport file for rows, and a file
that was cut off for a whole one, so that its layout is judged here
(SAS technical support document TS-140 for version 5, its supplement for version 8).
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from e2i_dagster.sources.formats.records import (
    BATCH_BYTES,
    ColumnNotes,
    FileSummary,
    Format,
    Records,
    first_line,
    refusal,
    with_nulls,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from e2i_dagster.config.mapping import FileFormat

_LIBRARY = re.compile(rb"HEADER RECORD\*{7}(LIBRARY |LIBV8   )HEADER RECORD!{7}")
_DATASET = b"\x00" * 12 + bytes.fromhex("c2ea8160b31411cfbd92080009c7318c181f1011")
_CARD = 80
#: Bytes that are looked through at a time, whole cards.
_BLOCK = 100_000 * _CARD
#: Bytes of a sas7bdat whose values are Python objects at a time; what lies before them is skipped each time.
_CHUNK = 1 << 25
#: SAS counts from the first day of 1960; Arrow from that of 1970.
_EPOCH_DAYS = 3653
_DAY_SECONDS = 86_400
#: What a SAS format shows; the stored value is a day, a second since 1960, or a second of the day.
_KINDS = {
    "datetime": r"DATETIME|DATEAMPM|MDYAMPM|DT(DATE|MONYY|WKDATX|YEAR|YYQC)|[EB]8601D[TNXZ]|IS8601D[TNZ]|NLDATM\w*",
    "time": r"TIME|TIMEAMPM|HHMM|HOUR|MMSS|TOD|[EB]8601[TL][MXZ]|IS8601T[MZ]|NLTIM\w*",
    "date": (
        r"DATE|DAY|(DDMMYY|MMDDYY|YYMMDD|MMYY|YYMM|YYQR?)[BCDNPS]?|DOWNAME|JULDAY|JULIAN|MONNAME|MONTH|MONYY|QTRR?"
        r"|WEEK(DATE|DATX|DAY|[UVW])|WORDDAT[EX]|YEAR|YYMON|YYWEEK[UVW]|[EB]8601DA|IS8601DA|NLDATE\w*|EURDF\w*|PDJUL[GI]"
    ),
}


def kind_of(display: str | None) -> str | None:
    """What numbers of a SAS format are: ``date``, ``datetime``, ``time``; None for plain numbers."""
    # Width and decimals follow the name, whose own digits are those of ISO 8601.
    name = re.sub(r"(?<!8601)\d*\.?\d*$", "", (display or "").upper())
    return next((kind for kind, names in _KINDS.items() if re.fullmatch(names, name)), None)


def _options(form: FileFormat) -> dict[str, Any]:
    """Options for pyreadstat; an encoding only where one is declared, since files name theirs."""
    declared = {"encoding": form.encoding} if "encoding" in form.model_fields_set else {}
    return {"disable_datetime_conversion": True, "output_format": "dict", **declared}


def _read(path: Path, name: str, read: Callable[..., Any], source: Any, **options: Any) -> tuple[Any, Any]:
    """Columns and metadata as pyreadstat reads them."""
    import pyreadstat

    try:
        return read(source, **options)
    except (pyreadstat.ReadstatError, pyreadstat.PyreadstatError, UnicodeError) as error:
        said = first_line(error)
        if "encoding" in said or "convert string" in said or isinstance(error, UnicodeError):
            remedy = "Say in the mapping what its text is, for example `encoding: cp1252`."
        else:
            remedy = (
                "It is cut off, damaged, encrypted or password protected: deliver it again, written without "
                "`encrypt=` and `pw=`, or as XPT."
            )
        raise refusal(path, f"not readable as {name} ({said})", remedy) from None


def _columns(meta: Any) -> dict[str, ColumnNotes]:
    return {
        name: ColumnNotes(label=label, display=meta.original_variable_types[name])
        for name, label in zip(meta.column_names, meta.column_labels, strict=True)
    }


def _schema(meta: Any) -> pa.Schema:
    import pyarrow as pa

    kinds = {None: pa.float64(), "date": pa.date32(), "datetime": pa.timestamp("us"), "time": pa.string()}
    return pa.schema(
        [
            (name, pa.string() if meta.readstat_variable_types[name] == "string" else kinds[kind_of(display)])
            for name, display in meta.original_variable_types.items()
        ]
    )


def _batch(
    path: Path, cells: Mapping[str, Sequence[Any]], schema: pa.Schema, summary: FileSummary
) -> pa.RecordBatch:
    import pyarrow as pa

    arrays = []
    for name, kind in zip(schema.names, schema.types, strict=True):
        values = cells[name]
        notes = summary.columns[name]
        shown = kind_of(notes.display)
        if pa.types.is_string(kind) and shown is None:
            arrays.append(pa.array(values, kind))
            continue
        try:
            numbers = np.array(values, dtype=float)
        except ValueError:
            # Kinds of missing values are letters among the numbers.
            notes.missing.update(value for value in values if isinstance(value, str))
            numbers = np.array([None if isinstance(value, str) else value for value in values], dtype=float)
        arrays.append(_typed(path, name, numbers, shown))
    return pa.record_batch(arrays, schema=schema)


def _typed(path: Path, name: str, numbers: np.ndarray, kind: str | None) -> pa.Array:
    """Numbers as their SAS format means them; NaN is null."""
    import pyarrow as pa

    empty = np.isnan(numbers)
    if kind is None:
        return pa.array(numbers, pa.float64(), mask=empty)
    filled = np.where(empty, 0.0, numbers)
    days = np.floor(filled / (1 if kind == "date" else _DAY_SECONDS)) - _EPOCH_DAYS
    # From the first day of year 1 to the last of 9999, counted from 1970.
    if kind != "time" and ((days < -719_162) | (days > 2_932_896)).any():
        raise refusal(
            path,
            f"column {name} has a value beyond the years 1 to 9999 under a {kind} format",
            "Correct the value, or take the format from the column.",
            field=name,
        )
    if kind == "date":
        return pa.array(days.astype(np.int32), pa.date32(), mask=empty)
    if kind == "datetime":
        micros = np.round(filled * 1_000_000).astype(np.int64) - _EPOCH_DAYS * _DAY_SECONDS * 1_000_000
        return pa.array(micros, pa.timestamp("us"), mask=empty)
    texts = [None if missing else _clock(value) for value, missing in zip(filled, empty, strict=True)]
    return pa.array(texts, pa.string())


def _clock(seconds: float) -> str:
    whole, micros = divmod(round(abs(seconds) * 1_000_000), 1_000_000)
    text = f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"
    return ("-" if seconds < 0 else "") + text + (f".{micros:06d}".rstrip("0") if micros else "")


# --- transport files


@dataclass(frozen=True)
class _Layout:
    """The rows of a transport file: how many of how many bytes, and place and length of each number in them."""

    rows: int
    width: int
    numbers: dict[str, tuple[int, int]]


def _card(content: bytes, name: str, after: int = 0) -> int:
    """Where the header card ``name`` is in ``content``, which begins with a card; -1 where it is not."""
    mark = f"HEADER RECORD*******{name:8}HEADER RECORD!!!!!!!".encode()
    found = content.find(mark, after)
    while found >= 0 and found % _CARD:
        found = content.find(mark, found + 1)
    return found


def _layout(path: Path) -> tuple[_Layout, bytes]:
    """The layout of a transport file with one dataset, and what stands before its rows.

    Raises:
        InputError: it is cut off, or holds none or several datasets.
    """
    with path.open("rb") as stream:
        beginning = stream.read(_BLOCK)
        new = beginning[20:28] == b"LIBV8   "
        member, named, observed = ("MEMBV8", "NAMSTV8", "OBSV8") if new else ("MEMBER", "NAMESTR", "OBS")
        first, names, start = (_card(beginning, name) for name in (member, named, observed))
        length = beginning[first + 75 : first + 78]
        if min(first, names, start) < 0 or not length.isdigit():
            raise refusal(path, "cut off before its first row, or without a dataset")
        head = beginning[: start + _CARD]
        stream.seek(len(head))
        datasets, last = 1, b""
        while block := stream.read(_BLOCK):
            place = -_CARD
            while (place := _card(block, member, place + _CARD)) >= 0:
                datasets += 1
            last = (last + block)[1 - _CARD :]
        size = stream.tell() - len(head)
    if datasets > 1:
        raise refusal(path, f"holds {datasets} datasets", "Write one file for each, named after it.")
    # Labels of more than 40 characters follow in a block of their own.
    labels = [place for name in ("LABELV8", "LABELV9") if (place := _card(head, name, names)) > 0]
    width, numbers = _fields(head[names + _CARD : min([*labels, start])], int(length), new=new)
    declared = head[start + 48 : start + 63].strip()
    if new and declared.isdigit() and int(declared):
        rows = int(declared)
        whole = 0 <= size - rows * width < _CARD
    else:
        # The last card is filled with blanks, among which short rows of blanks cannot be distinguished.
        blanks = len(last) - len(last.rstrip(b" "))
        rows = -(-(size - blanks) // width) if width else 0
        whole = size % _CARD == 0 and 0 <= size - rows * width < _CARD
    if not whole:
        raise refusal(
            path,
            f"cut off: its rows of {width:,} bytes do not fill its {size:,} bytes",
            "Deliver it again; binary transfer keeps every byte.",
        )
    return _Layout(rows, width, numbers), head


def _fields(block: bytes, length: int, *, new: bool) -> tuple[int, dict[str, tuple[int, int]]]:
    """Bytes of a row, and place and length of each number, of descriptions of ``length`` bytes each."""
    numbers: dict[str, tuple[int, int]] = {}
    width = 0
    for begin in range(0, len(block) - length + 1, length):
        row = block[begin : begin + length]
        size, place = int.from_bytes(row[4:6], "big"), int.from_bytes(row[84:88], "big")
        width = max(width, place + size)
        if row[:2] == b"\x00\x01":
            name = row[88:120] if new else row[8:16]
            numbers[name.decode("ascii", errors="replace").strip()] = (place, size)
    return width, numbers


def _open_transport(path: Path, form: FileFormat) -> Records:
    import pyreadstat

    options = _options(form)
    if path.stat().st_size == 0:
        raise refusal(path, "the file is empty (0 bytes)")
    layout, head = _layout(path)
    _, meta = _read(
        path, "XPT", pyreadstat.read_xport, io.BytesIO(_whole(head, b"", 0)), metadataonly=True, **options
    )
    summary = FileSummary(columns=_columns(meta))
    schema = _schema(meta)

    def batches() -> Iterator[pa.RecordBatch]:
        step = max(1, BATCH_BYTES // max(layout.width, 1))
        with path.open("rb") as stream:
            stream.seek(len(head))
            for first in range(0, layout.rows, step):
                count = min(step, layout.rows - first)
                rows = stream.read(count * layout.width)
                source = io.BytesIO(_whole(head, rows, count))
                cells, _ = _read(path, "XPT", pyreadstat.read_xport, source, **options)
                parsed = len(next(iter(cells.values()), []))
                if parsed != count:
                    raise refusal(path, f"{count:,} rows by its length, {parsed:,} by the parser")
                _count_missing(rows, layout, summary)
                yield with_nulls(_batch(path, cells, schema, summary), form)

    return Records(schema, batches(), summary)


def _whole(head: bytes, rows: bytes, count: int) -> bytes:
    """A transport file of the ``count`` rows alone."""
    if head[20:28] == b"LIBV8   ":
        head = head[: 48 - _CARD] + f"{count:15d}".encode() + head[63 - _CARD :]
    return head + rows + b" " * (-len(rows) % _CARD)


def _count_missing(rows: bytes, layout: _Layout, summary: FileSummary) -> None:
    """Count the special missing values of numbers: a letter or ``_`` and then zeros."""
    cells = np.frombuffer(rows, np.uint8).reshape(-1, layout.width)
    for name, (place, size) in layout.numbers.items():
        first = cells[:, place]
        special = ((first >= ord("A")) & (first <= ord("Z"))) | (first == ord("_"))
        if special.any():
            special &= ~cells[:, place + 1 : place + size].any(axis=1)
            kinds, counts = np.unique(first[special], return_counts=True)
            for kind, count in zip(kinds, counts, strict=True):
                summary.columns[name].missing[chr(kind)] += int(count)


# --- sas7bdat


def _open_dataset(path: Path, form: FileFormat) -> Records:
    import pyreadstat

    options = {**_options(form), "user_missing": True}
    _, meta = _read(path, "sas7bdat", pyreadstat.read_sas7bdat, path, metadataonly=True, **options)
    if not meta.column_names:
        raise refusal(
            path,
            "no column of it can be read",
            "It is encrypted or damaged: deliver it again, written without `encrypt=`, or as XPT.",
        )
    summary = FileSummary(columns=_columns(meta))
    _label_values(path, summary)
    schema = _schema(meta)

    def batches() -> Iterator[pa.RecordBatch]:
        step = max(1, int(_CHUNK * meta.number_rows / max(path.stat().st_size, 1)))
        for first in range(0, meta.number_rows, step):
            asked = min(step, meta.number_rows - first)
            cells, _ = _read(
                path, "sas7bdat", pyreadstat.read_sas7bdat, path, row_offset=first, row_limit=asked, **options
            )
            parsed = len(next(iter(cells.values()), []))
            if parsed != asked:
                raise refusal(
                    path,
                    f"{meta.number_rows:,} rows by its header, {first + parsed:,} by the parser",
                    "It is encrypted or damaged: deliver it again, written without `encrypt=`, or as XPT.",
                )
            yield with_nulls(_batch(path, cells, schema, summary), form)

    return Records(schema, batches(), summary)


def _label_values(path: Path, summary: FileSummary) -> None:
    """Take the labels of values from the catalogues (sas7bcat) in the folder of the file."""
    import pyreadstat

    for catalogue in sorted(path.parent.glob("*.sas7bcat")):
        _, meta = _read(catalogue, "sas7bcat", pyreadstat.read_sas7bcat, catalogue)
        labels = {name.upper().rstrip("."): values for name, values in meta.value_labels.items()}
        for notes in summary.columns.values():
            display = (notes.display or "").upper().rstrip(".")
            found = labels.get(display, labels.get(re.sub(r"\d+$", "", display), {}))
            notes.values |= {
                f"{code:g}" if isinstance(code, float) else str(code): label for code, label in found.items()
            }


TRANSPORT = Format(
    "SAS transport (XPT)",
    lambda start: bool(_LIBRARY.match(start)),
    _open_transport,
    endings=(".xpt", ".xport"),
)
DATASET = Format(
    "SAS dataset (sas7bdat)", lambda start: start.startswith(_DATASET), _open_dataset, endings=(".sas7bdat",)
)
