"""Reading a folder of CSV or Parquet files into raw tables.

Here belongs everything about files: which file holds which table, encoding, separator, the
supplier's names and codes. What a row must look like to be accepted is ``warehouse.rules``.
Every CSV value is read as text, so leading zeros of codes, ZIP and NDC survive.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from e2i_dagster.config.mapping import FileFormat, ImportMapping, TableMapping
from e2i_dagster.errors import InputError
from e2i_dagster.warehouse.tables import (
    MAINTAINED_COLUMNS,
    OPTIONAL_RAW_TABLES,
    RAW_TABLES,
    date_column,
    facts,
    raw_table,
    required_columns,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from e2i_dagster.config.vocabulary import VocabularyPolicy

_SUFFIXES = (".csv", ".parquet")
_TEXT = pd.StringDtype("pyarrow")
_ALL_TABLES = RAW_TABLES + OPTIONAL_RAW_TABLES

#: Columns that a file may have and that nobody reads: the split registry says which split a patient
#: is in, and the database keeps its own times.
IGNORED_COLUMNS = ("data_split", "split_config_id", *MAINTAINED_COLUMNS)


@dataclass(frozen=True)
class SourceFile:
    """One file of a table and the rows that came from it (``first_row`` counts from 0 in the frame)."""

    name: str
    first_row: int
    rows: int


@dataclass(frozen=True)
class DeliveredTable:
    """What was read for one table.

    Attributes:
        frame: rows under our column names, after the mapping; all CSV columns are text.
        raw: the same rows untouched, under the file's column names.
        row_numbers: for each row its number within its file, from 1, the header not counted.
        files: the files in the order of the rows.
        malformed: rows with a wrong number of fields: columns ``file``, ``row_number``, ``text``.
        restates: ``month`` when the rows are all that there are of their months.
    """

    frame: pd.DataFrame
    raw: pd.DataFrame
    row_numbers: np.ndarray
    files: tuple[SourceFile, ...]
    malformed: pd.DataFrame
    restates: str | None = None

    def file_of_rows(self, positions: np.ndarray) -> list[str]:
        """Name of the file of each row position in ``frame``."""
        starts = np.array([file.first_row for file in self.files if file.rows])
        names = np.array([file.name for file in self.files if file.rows], dtype=object)
        return list(names[np.searchsorted(starts, positions, side="right") - 1]) if len(names) else []


@dataclass(frozen=True)
class Delivery(Mapping[str, pd.DataFrame]):
    """A mapping of table name to frame, with where each row came from (``delivered``)."""

    delivered: Mapping[str, DeliveredTable] = field(default_factory=dict)
    folder: Path | None = None

    def __getitem__(self, table: str) -> pd.DataFrame:
        return self.delivered[table].frame

    def __iter__(self) -> Iterator[str]:
        return iter(self.delivered)

    def __len__(self) -> int:
        return len(self.delivered)


def read(
    folder: str | Path,
    mapping: ImportMapping | str | Path | None = None,
    tables: Sequence[str] | None = None,
    *,
    vocabulary: VocabularyPolicy | None = None,
) -> Delivery:
    """Read every table that ``folder`` holds, or only ``tables``.

    Args:
        folder: files ``<table>.csv|parquet`` or several ``<table>_<anything>.csv|parquet`` per table;
            sub-folders are not read. The mapping may name other files.
        mapping: the import mapping or the path of its YAML file.
        tables: names of raw tables that must be there; the files of others are not touched.
        vocabulary: gives the known aliases of columns and values; the shipped one by default.

    Raises:
        InputError: anything wrong with folder, files or columns; every problem is listed, each with
            file, what was found, what was expected and what to do. Nothing was loaded.
        ConfigError: the mapping file is wrong.
    """
    if not isinstance(mapping, ImportMapping):
        mapping = ImportMapping() if mapping is None else ImportMapping.load(Path(mapping))
    if vocabulary is None:
        from e2i_dagster.config.vocabulary import load_vocabulary

        vocabulary = load_vocabulary()
    folder = Path(folder)
    found, problems = _find_files(folder, mapping, tables)
    delivered: dict[str, DeliveredTable] = {}
    for table, paths in found.items():
        try:
            delivered[table] = _read_table(table, paths, mapping, vocabulary)
        except _Problems as error:
            problems.extend(error.found)
    if problems:
        raise InputError(_listing(folder, problems))
    return Delivery(delivered, folder)


class _Problems(Exception):
    def __init__(self, found: Sequence[str]) -> None:
        super().__init__("\n".join(found))
        self.found = list(found)


def _listing(folder: Path, problems: Sequence[str]) -> str:
    head = f"{folder}: {len(problems)} problem{'s' if len(problems) > 1 else ''}; nothing was loaded."
    return "\n".join([head, *(f"  - {problem}" for problem in problems)])


def _find_files(
    folder: Path, mapping: ImportMapping, tables: Sequence[str] | None
) -> tuple[dict[str, list[Path]], list[str]]:
    """Files per table in load order, and what is wrong with the names."""
    problems = [
        f"{name}: not a raw table. Known: {', '.join(_ALL_TABLES)}."
        for name in dict.fromkeys([*(tables or ()), *mapping.tables])
        if name not in _ALL_TABLES
    ]
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder}: {what}. Give the folder that holds <table>.csv or <table>.parquet.")
    candidates = sorted(
        path for path in folder.iterdir() if path.is_file() and path.suffix.lower() in _SUFFIXES
    )
    found: dict[str, list[Path]] = {}
    claimed: dict[Path, str] = {}
    for table in _ALL_TABLES:
        patterns = mapping.table(table).files
        if patterns:
            paths = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
            if not paths and (tables is None or table in tables):
                problems.append(
                    f"{table}: no file matches {', '.join(patterns)}. Correct `files` in the mapping."
                )
        else:
            name = re.compile(rf"{table}([_.-].*)?", re.IGNORECASE)
            paths = [path for path in candidates if name.fullmatch(path.stem)]
        for path in paths:
            if path in claimed:
                problems.append(f"{path.name}: matches both {claimed[path]} and {table}. Make `files` exact.")
            claimed[path] = table
        if len({path.suffix.lower() for path in paths}) > 1:
            names = ", ".join(path.name for path in paths)
            problems.append(f"{table}: found CSV and Parquet ({names}). Keep one of them.")
        if paths:
            found[table] = paths
    problems.extend(
        f"{path.name}: belongs to no raw table{_near(path.stem, _ALL_TABLES)}. Expected <table>.csv or "
        "<table>.parquet; rename it, name it under `files` in the mapping, or move it to a sub-folder."
        for path in candidates
        if path not in claimed and tables is None
    )
    if tables is not None:
        found = {table: paths for table, paths in found.items() if table in tables}
        problems.extend(
            f"{table}: no file {table}.csv or {table}.parquet."
            for table in tables
            if table in _ALL_TABLES and table not in found and not mapping.table(table).files
        )
    if not found and not problems:
        problems.append(
            "no CSV or Parquet file. Expected <table>.csv or <table>.parquet with <table> one of "
            f"{', '.join(_ALL_TABLES)}; see docs/templates."
        )
    return found, problems


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _read_table(
    table: str, paths: Sequence[Path], mapping: ImportMapping, vocabulary: VocabularyPolicy
) -> DeliveredTable:
    import pyarrow as pa

    own = mapping.table(table)
    form = mapping.format_of(table)
    problems: list[str] = []
    if own.restates and date_column(table) is None:
        problems.append(
            f"{table}: the mapping says `restates: {own.restates}`, but the table is not kept by month. Leave it out."
        )
    raws: list[pa.Table] = []
    mapped: list[pd.DataFrame] = []
    numbers: list[np.ndarray] = []
    files: list[SourceFile] = []
    malformed: list[dict[str, Any]] = []
    first = 0
    for path in paths:
        try:
            rows, bad = read_file(path, form)
            _check_columns(table, path, rows.column_names, own, vocabulary)
        except _Problems as error:
            problems.extend(error.found)
            continue
        frame = apply_mapping(table, _pandas(rows), own, form, vocabulary)
        raws.append(rows)
        mapped.append(frame)
        bad_numbers = np.array([number for number, _ in bad], dtype=np.int64)
        numbers.append(np.setdiff1d(np.arange(1, rows.num_rows + len(bad) + 1), bad_numbers))
        files.append(SourceFile(path.name, first, rows.num_rows))
        malformed.extend({"file": path.name, "row_number": number, "text": text} for number, text in bad)
        first += rows.num_rows
    if problems:
        raise _Problems(problems)
    return DeliveredTable(
        frame=mapped[0] if len(mapped) == 1 else pd.concat(mapped, ignore_index=True),
        raw=_pandas(pa.concat_tables(raws, promote_options="permissive")),
        row_numbers=np.concatenate(numbers),
        files=tuple(files),
        malformed=pd.DataFrame(malformed, columns=["file", "row_number", "text"]),
        restates=own.restates,
    )


def _pandas(rows: pa.Table) -> pd.DataFrame:
    import pyarrow as pa

    def dtype(kind: pa.DataType) -> Any:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return _TEXT
        if pa.types.is_integer(kind):
            return pd.Int64Dtype()
        return pd.BooleanDtype() if pa.types.is_boolean(kind) else None

    return rows.to_pandas(types_mapper=dtype, date_as_object=True)


def read_file(path: Path, form: FileFormat) -> tuple[pa.Table, list[tuple[int, str]]]:
    """All rows of one file, and the (row number, text) of rows with a wrong number of fields."""
    try:
        if path.suffix.lower() == ".parquet":
            return _read_parquet(path), []
        return _read_csv(path, form)
    except PermissionError:
        raise _Problems([f"{path.name}: no permission to read it. Correct the file's permissions."]) from None


def _read_parquet(path: Path) -> pa.Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.stat().st_size == 0:
        raise _Problems([f"{path.name}: the file is empty (0 bytes). Deliver it again."])
    try:
        with pq.ParquetFile(path) as parquet:
            return parquet.read()
    except (pa.ArrowInvalid, pa.ArrowIOError) as error:
        reason = str(error).split("\n", 1)[0]
        raise _Problems(
            [f"{path.name}: not readable as Parquet ({reason[:120]}). Deliver it again."]
        ) from None


def _read_csv(path: Path, form: FileFormat) -> tuple[pa.Table, list[tuple[int, str]]]:
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    header, has_rows = _read_header(path, form)
    if not has_rows:
        return pa.table({name: pa.array([], pa.string()) for name in header}), []

    def parse(threads: bool, handler: Any) -> pa.Table:
        return arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(
                use_threads=threads, encoding=_python_encoding(form), block_size=1 << 22
            ),
            # Free text may hold line breaks inside quotes.
            parse_options=arrow_csv.ParseOptions(
                delimiter=form.separator, newlines_in_values=True, invalid_row_handler=handler
            ),
            convert_options=arrow_csv.ConvertOptions(
                column_types={name: pa.string() for name in header},
                strings_can_be_null=True,
                null_values=["", *form.nulls],
            ),
        )

    bad: list[Any] = []

    def skip(row: Any) -> str:
        bad.append(row)
        return "skip"

    try:
        rows = parse(True, skip)
        if bad:
            # Only the reader with one thread knows row numbers.
            bad.clear()
            rows = parse(False, skip)
    except pa.ArrowInvalid as error:
        reason = str(error).split("\n", 1)[0]
        if "UTF" in reason:
            raise _Problems([_not_encoded(path, form)]) from None
        hint = "Look for an opening quote that is never closed."
        raise _Problems([f"{path.name}: not a readable CSV file ({reason[:120]}). {hint}"]) from None
    except UnicodeError:
        raise _Problems([_not_encoded(path, form)]) from None
    return rows, [(row.number - 1, row.text) for row in bad]


def _python_encoding(form: FileFormat) -> str:
    return "utf8" if form.encoding == "utf-8" else form.encoding


def _not_encoded(path: Path, form: FileFormat) -> str:
    return (
        f"{path.name}: not {form.encoding} text. Save it as UTF-8, or say in the mapping what it is, "
        "for example `encoding: latin-1` or `encoding: cp1252`."
    )


def _read_header(path: Path, form: FileFormat) -> tuple[list[str], bool]:
    """Column names, and whether any row follows."""
    with path.open("rb") as stream:
        start = stream.read(1 << 16)
    if not start.strip(b"\xef\xbb\xbf \t\r\n"):
        raise _Problems(
            [f"{path.name}: the file is empty, without even a header. Deliver it again or remove it."]
        )
    wide = form.encoding.startswith(("utf-16", "utf-32"))
    if not wide and (start[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\x00" in start[:4096]):
        raise _Problems(
            [
                f"{path.name}: the file is UTF-16, expected {form.encoding}. Save it as UTF-8, or write "
                "`encoding: utf-16` in the mapping."
            ]
        )
    encoding = "utf-8-sig" if form.encoding == "utf-8" else form.encoding
    try:
        # A chunk may end inside a character.
        decoder = codecs.getincrementaldecoder(encoding)()
        beginning = path.read_text(encoding=encoding) if wide else decoder.decode(start)
    except UnicodeError:
        raise _Problems([_not_encoded(path, form)]) from None
    text = io.StringIO(beginning)
    header = next((line for line in csv.reader(text, delimiter=form.separator) if line), [])
    has_rows = bool(text.read(1 << 12).strip()) or path.stat().st_size > 1 << 16
    problems = []
    others = [mark for mark in (",", ";", "\t", "|") if mark != form.separator]
    if len(header) == 1 and (mark := max(others, key=header[0].count)) in header[0]:
        shown = {"\t": "\\t"}.get(mark, mark)
        problems.append(
            f'{path.name}: the fields are separated by "{shown}", expected "{form.separator}". Write '
            f'`separator: "{shown}"` in the mapping, or save it with "{form.separator}".'
        )
    names = [name.strip() for name in header]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        problems.append(f"{path.name}: the header repeats {', '.join(twice)}. Keep each column once.")
    if "" in names and not problems:
        problems.append(f"{path.name}: column {names.index('') + 1} has no name. Name or remove it.")
    if problems:
        raise _Problems(problems)
    return header, has_rows


def apply_mapping(
    table: str, frame: pd.DataFrame, own: TableMapping, form: FileFormat, vocabulary: VocabularyPolicy
) -> pd.DataFrame:
    """``frame`` under our column names and values; columns that nobody knows stay as they are.

    Order: rename, ignored columns, known column aliases, constants, declared values, decimal mark,
    known value aliases, date formats. A value that a date format does not fit stays as delivered and
    is rejected by the loader, so that its reject shows what was delivered.
    """
    columns = {
        final: frame[name]
        for name, final in zip(
            frame.columns, _final_names(table, list(frame.columns), own, vocabulary), strict=True
        )
        if final is not None
    }
    result = pd.DataFrame(columns, index=frame.index)
    for name, value in own.constants.items():
        result[name] = pd.Series([value], dtype=_TEXT).repeat(len(frame)).set_axis(frame.index)
    known = raw_table(table).columns
    for name in result.columns:
        if name in own.values:
            result[name] = _map_values(result[name], own.values[name])
        if name not in known:
            if form.decimal == "," and table == "patient_clinical":
                result[name] = _own_numbers(result[name])
            if name in own.dates:
                result[name] = _map_dates(result[name], own.dates[name])
            continue
        column = known[name]
        if form.decimal == "," and _is_number(column) and result[name].dtype == _TEXT:
            result[name] = result[name].str.replace(",", ".", regex=False)
        vocabulary_name = facts(column).vocabulary
        if vocabulary_name and (aliases := vocabulary.aliases(vocabulary_name)):
            result[name] = _map_values(result[name], aliases)
        if name in own.dates:
            result[name] = _map_dates(result[name], own.dates[name])
    return result


def _own_numbers(series: pd.Series) -> pd.Series:
    """A clinical column of the user's own with a decimal point, if all of it is numbers with a comma."""
    if series.dtype != _TEXT:
        return series
    given = series.dropna()
    if len(given) and given.str.fullmatch(r"\s*[+-]?\d+(,\d+)?\s*").all():
        return series.str.replace(",", ".", regex=False)
    return series


def _is_number(column: Any) -> bool:
    import sqlalchemy as sa

    return isinstance(column.type, sa.Numeric | sa.Float | sa.Integer)


def _final_names(
    table: str, names: Sequence[str], own: TableMapping, vocabulary: VocabularyPolicy
) -> list[str | None]:
    """Our name of each file column; None for a column that is dropped."""
    known = set(raw_table(table).columns.keys())
    aliases = vocabulary.column_aliases.get(table, {})
    stripped = [str(name).strip() for name in names]
    renamed = [own.rename.get(name, name) for name in stripped]
    final: list[str | None] = []
    for before, name in zip(stripped, renamed, strict=True):
        alias = aliases.get(name)
        if before in own.ignore or name in IGNORED_COLUMNS:
            final.append(None)
        elif name not in known and alias and alias not in renamed:
            final.append(alias)
        else:
            final.append(name)
    return final


def _check_columns(
    table: str, path: Path, names: Sequence[str], own: TableMapping, vocabulary: VocabularyPolicy
) -> None:
    """Raise every problem of the columns of one file."""
    stripped = [str(name).strip() for name in names]
    final = [name for name in _final_names(table, names, own, vocabulary) if name is not None]
    problems = []
    for name in required_columns(table):
        if name not in final and name not in own.constants:
            near = difflib.get_close_matches(name, final, n=1)
            hint = f"; column {near[0]} looks like it" if near else ""
            problems.append(
                f"{path.name}: required column {name} is missing{hint}. Add it, or map a column to it: "
                f"`tables: {{{table}: {{rename: {{<file column>: {name}}}}}}}`. Found: {', '.join(stripped)}."
            )
    problems.extend(
        f"{path.name}: the mapping renames {name}, which the file lacks. Found: {', '.join(stripped)}."
        for name in own.rename
        if name not in stripped
    )
    problems.extend(
        f"{path.name}: two columns become {name} after the mapping. Rename or ignore one of them."
        for name in sorted({name for name in final if final.count(name) > 1})
    )
    problems.extend(
        f"{path.name}: {name} is a constant of the mapping, but the file has that column. Remove one of them."
        for name in own.constants
        if name in final
    )
    problems.extend(
        f"{path.name}: the mapping's `{part}` names {name}, no column after renaming. Use our name."
        for part, given in (("dates", own.dates), ("values", own.values))
        for name in given
        if name not in final and name not in own.constants
    )
    if problems:
        raise _Problems(problems)


def _map_values(series: pd.Series, to: Mapping[str, str | None]) -> pd.Series:
    """Replace whole values; an empty target means null. Works on the distinct values."""
    text = series.astype(_TEXT)
    codes, distinct = pd.factorize(text)
    mapped = [to.get(value, value) or None for value in distinct.tolist()]
    taken = pd.array(mapped, dtype=_TEXT).take(codes, allow_fill=True)
    return pd.Series(taken, index=series.index, name=series.name)


def _map_dates(series: pd.Series, form: str) -> pd.Series:
    """Values that fit ``form`` as ISO text, all others unchanged."""
    codes, distinct = pd.factorize(series.astype(_TEXT))
    parsed = pd.to_datetime(pd.Series(distinct, dtype=object), format=form, errors="coerce")
    midnight = parsed.dt.normalize().eq(parsed).where(parsed.notna(), True).all()
    iso = parsed.dt.strftime("%Y-%m-%d" if midnight else "%Y-%m-%dT%H:%M:%S%z")
    values = iso.where(parsed.notna(), pd.Series(distinct, dtype=object))
    taken = pd.array(values.tolist(), dtype=_TEXT).take(codes, allow_fill=True)
    return pd.Series(taken, index=series.index, name=series.name)
