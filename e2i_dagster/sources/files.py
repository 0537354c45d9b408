"""Reading a folder of CSV or Parquet files into raw tables.

Here belongs everything about files: which file holds which table, encoding, separator, the
supplier's names and codes. What a row must look like to be accepted is ``warehouse.rules``.
Every CSV value is read as text, so leading zeros of codes, ZIP and NDC survive.
"""

from __future__ import annotations

import codecs
import csv
import datetime as dt
import difflib
import gzip
import io
import re
import sys
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from e2i_dagster.config.mapping import FileFormat, ImportMapping, ReversalRule, TableMapping
from e2i_dagster.errors import InputError
from e2i_dagster.sources.reversal_rules import check_rule
from e2i_dagster.tables import (
    MAINTAINED_COLUMNS,
    OPTIONAL_RAW_TABLES,
    RAW_TABLES,
    date_column,
    facts,
    moments,
    raw_table,
    required_columns,
    tables_referring_to,
)
from e2i_dagster.tables.arrow import compute
from e2i_dagster.tables.cells import as_text, kind_of
from e2i_dagster.tables.frames import cell_text
from e2i_dagster.tables.own_types import OWN_TABLE

if TYPE_CHECKING:
    import pyarrow as pa

    from e2i_dagster.tables.own_types import OwnType
    from e2i_dagster.tables.vocabulary import VocabularyPolicy

#: Endings that are read; all but Parquet also with ``.gz`` after them.
_TEXT_ENDINGS = (".csv", ".tsv", ".txt")
_READ = "CSV, TSV, text (.txt, with a declared separator), each also as .gz, or Parquet"
_TEXT = pd.StringDtype("pyarrow")
# A cell may hold a document; what is too much is decided by rows, not by this reader.
csv.field_size_limit(sys.maxsize)
_ALL_TABLES = RAW_TABLES + OPTIONAL_RAW_TABLES

#: Columns that a file may have and that nobody reads: the split registry says which split a patient
#: is in, and the database keeps its own times.
IGNORED_COLUMNS = ("data_split", "split_config_id", *MAINTAINED_COLUMNS)


_COMPLETED = ("position", "column", "delivered", "precision", "rule")


@dataclass(frozen=True)
class SourceFile:
    """One file of a table and the rows that came from it (``first_row`` counts from 0 in the frame).

    ``lines`` are its lines below the header, blank ones aside; None for Parquet.
    """

    path: Path
    first_row: int
    rows: int
    lines: int | None = None

    @property
    def name(self) -> str:
        """The file's name without its folder."""
        return self.path.name


@dataclass(frozen=True)
class DeliveredTable:
    """What was read for one table.

    Attributes:
        frame: rows under our column names, after the mapping; all CSV columns are text.
        raw: the same rows untouched, under the file's column names.
        row_numbers: for each row its number within its file, from 1, the header not counted.
        files: the files in the order of the rows.
        malformed: rows with a wrong number of fields: columns ``file``, ``row_number``, ``text``.
        completed: cells that were delivered without a day and completed by ``partial_dates``: columns
            ``position`` (in ``frame``), ``column``, ``delivered``, ``precision``, ``rule``.
        partial_dates: date columns to the rule by which they are completed.
        restates: ``month`` when the rows are all that there are of their months, ``all`` of their table.
        own: declared types of columns of one's own.
        reversals: which of the rows take others back; None when none does.
    """

    frame: pd.DataFrame
    raw: pd.DataFrame
    row_numbers: np.ndarray
    files: tuple[SourceFile, ...]
    malformed: pd.DataFrame
    restates: str | None = None
    own: Mapping[str, OwnType] = field(default_factory=dict)
    reversals: ReversalRule | None = None
    completed: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=list(_COMPLETED)))
    partial_dates: Mapping[str, str] = field(default_factory=dict)

    @property
    def lines(self) -> int | None:
        """Lines of the files below their headers, blank ones aside; None where a file has no lines."""
        counts = [file.lines for file in self.files if file.lines is not None]
        return sum(counts) if counts and len(counts) == len(self.files) else None

    def file_of_rows(self, positions: np.ndarray) -> list[str]:
        """Name of the file of each row position in ``frame``."""
        starts = np.array([file.first_row for file in self.files if file.rows])
        names = np.array([file.name for file in self.files if file.rows], dtype=object)
        return list(names[np.searchsorted(starts, positions, side="right") - 1]) if len(names) else []


@dataclass(frozen=True)
class Delivery(Mapping[str, pd.DataFrame]):
    """A mapping of table name to frame, with where each row came from (``delivered``).

    ``not_read`` says for each file and folder of ``folder`` that was not read why.
    """

    delivered: Mapping[str, DeliveredTable] = field(default_factory=dict)
    folder: Path | None = None
    not_read: Mapping[str, str] = field(default_factory=dict)

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
        folder: files ``<table>.csv|tsv|txt|parquet`` or several ``<table>_<anything>`` per table, text
            also as ``.gz``; sub-folders are not read. The mapping may name other files.
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
        from e2i_dagster.tables.vocabulary import load_vocabulary

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
        parts = [_placed(folder, one) for one in problems]
        raise InputError(_listing(folder, problems), **parts[0].known, parts=parts if len(parts) > 1 else ())
    return Delivery(delivered, folder, not_read(folder, mapping, tables))


class _Problems(InputError):
    def __init__(self, found: Sequence[str | InputError]) -> None:
        super().__init__("\n".join(map(str, found)))
        self.found = list(found)


def _placed(folder: Path, problem: str | InputError) -> InputError:
    """``problem`` as an error of its file in ``folder``; of the folder where it begins with the name of none."""
    if isinstance(problem, InputError):
        return InputError(str(problem), **{**problem.known, "file": folder / (problem.file or "")})
    names = [path.name for path in readable_files(folder) if problem.startswith(path.name)]
    return InputError(problem, file=folder / max(names, key=len, default=""))


def _listing(folder: Path, problems: Sequence[str | InputError]) -> str:
    head = f"{folder}: {len(problems)} problem{'s' if len(problems) > 1 else ''}; nothing was loaded."
    return "\n".join([head, *(f"  - {problem}" for problem in problems)])


def _find_files(
    folder: Path, mapping: ImportMapping, tables: Sequence[str] | None
) -> tuple[dict[str, list[Path]], list[str | InputError]]:
    """Files per table in load order, and what is wrong with the names."""
    problems: list[str | InputError] = [
        f"{name}: not a raw table. Known: {', '.join(_ALL_TABLES)}."
        for name in dict.fromkeys([*(tables or ()), *mapping.tables])
        if name not in _ALL_TABLES
    ]
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        remedy = "Give the folder that holds <table>.csv or <table>.parquet."
        raise InputError(f"{folder}: {what}. {remedy}", file=folder, remedy=remedy)
    candidates = readable_files(folder)
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
            paths = [path for path in candidates if name.fullmatch(stem_of(path))]
        for path in paths:
            if path in claimed:
                problems.append(f"{path.name}: matches both {claimed[path]} and {table}. Make `files` exact.")
            claimed[path] = table
        if len({path.suffix.lower() == ".parquet" for path in paths}) > 1 or len(
            {stem_of(path).lower() for path in paths}
        ) < len(paths):
            names = ", ".join(path.name for path in paths)
            problems.append(f"{table}: the same rows in two formats? ({names}). Keep one of them.")
        problems.extend(
            f"{path.name}: a text file whose separator is not declared. Write for example "
            f'`tables: {{{table}: {{separator: "|"}}}}` in the mapping.'
            for path in paths
            if ending_of(path) == ".txt" and "separator" not in mapping.format_of(table).model_fields_set
        )
        if paths:
            found[table] = paths
    problems.extend(
        InputError(
            f"{path.name}: belongs to no raw table{_near(stem_of(path), _ALL_TABLES)}. Expected <table>.csv or "
            "<table>.parquet.",
            file=path.name,
            field="files",
            remedy="Rename it, name it under `files` in the mapping, or move it to a sub-folder.",
        )
        for path in candidates
        if path not in claimed and tables is None and ending_of(path) != ".txt"
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
            f"no file that is read ({_READ}). Expected <table>.csv or <table>.parquet with <table> one of "
            f"{', '.join(_ALL_TABLES)}; see docs/templates."
        )
    return found, problems


def ending_of(path: Path) -> str:
    """What kind of file it is: ``.csv``, ``.tsv``, ``.txt`` or ``.parquet``; empty for what is not read."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes[-1:] == [".gz"]:
        return suffixes[-2] if len(suffixes) > 1 and suffixes[-2] in _TEXT_ENDINGS else ""
    last = suffixes[-1] if suffixes else ""
    return last if last in (*_TEXT_ENDINGS, ".parquet") else ""


def stem_of(path: Path) -> str:
    """The name of a file without its ending, ``.gz`` included."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def readable_files(folder: Path) -> list[Path]:
    """The files of a folder that are of a kind that is read, by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and ending_of(path))


def not_read(folder: Path, mapping: ImportMapping, tables: Sequence[str] | None = None) -> dict[str, str]:
    """Each file and folder inside ``folder`` that a load does not read, with the reason."""
    found, _ = _find_files(folder, mapping, None)
    table_of = {path: table for table, paths in found.items() for path in paths}
    parents = {parent for path in table_of for parent in path.parents}
    reasons: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        table = table_of.get(path)
        if path.is_dir():
            if path not in parents:
                reasons[path.name] = (
                    "a folder inside the folder; move its files up, or name them under `files`"
                )
        elif table is not None:
            if tables is not None and table not in tables:
                reasons[path.name] = f"holds {table}, which was not asked for"
        elif ending_of(path):
            reasons[path.name] = "belongs to no raw table; rename it or name it under `files` in the mapping"
        elif path.suffix.lower() in (".yaml", ".yml"):
            reasons[path.name] = "a mapping or another document, no data"
        else:
            reasons[path.name] = f"not {_READ}"
    return reasons


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _read_table(
    table: str, paths: Sequence[Path], mapping: ImportMapping, vocabulary: VocabularyPolicy
) -> DeliveredTable:
    import pyarrow as pa

    own = mapping.table(table)
    form = mapping.format_of(table)
    problems: list[str | InputError] = []
    if own.restates:
        problems.extend(_cannot_restate(table, own.restates))
    found: list[tuple[Path, FileRows]] = []
    mapped: list[pd.DataFrame] = []
    numbers: list[np.ndarray] = []
    files: list[SourceFile] = []
    malformed: list[dict[str, Any]] = []
    completed: list[pd.DataFrame] = []
    first = 0
    for path in paths:
        try:
            read_rows = read_file(path, form)
            _check_columns(table, path, read_rows.rows.column_names, own, vocabulary)
        except _Problems as error:
            problems.extend(error.found)
            continue
        found.append((path, read_rows))
    if problems:
        raise _Problems(problems)
    raws = _of_one_type([read_rows.rows for _, read_rows in found])
    for (path, read_rows), rows in zip(found, raws, strict=True):
        bad = read_rows.malformed
        frame = apply_mapping(table, _pandas(rows), own, form, vocabulary)
        frame, filled = complete_dates(frame, own.partial_dates)
        completed.append(filled.assign(position=filled["position"] + first))
        mapped.append(frame)
        bad_numbers = np.array([number for number, _ in bad], dtype=np.int64)
        numbers.append(np.setdiff1d(np.arange(1, rows.num_rows + len(bad) + 1), bad_numbers))
        files.append(SourceFile(path, first, rows.num_rows, read_rows.lines))
        malformed.extend({"file": path.name, "row_number": number, "text": text} for number, text in bad)
        first += rows.num_rows
    if own.reversals is not None and mapped:
        names = list(dict.fromkeys(str(name) for frame in mapped for name in frame.columns))
        if wrong := check_rule(table, own.reversals, names):
            raise _Problems(list(wrong))
    return DeliveredTable(
        frame=mapped[0] if len(mapped) == 1 else pd.concat(mapped, ignore_index=True),
        raw=_pandas(pa.concat_tables(raws, promote_options="permissive")),
        row_numbers=np.concatenate(numbers),
        files=tuple(files),
        malformed=pd.DataFrame(malformed, columns=["file", "row_number", "text"]),
        restates=own.restates,
        own=own.own,
        reversals=own.reversals,
        completed=pd.concat(completed, ignore_index=True),
        partial_dates=own.partial_dates,
    )


def _cannot_restate(table: str, restates: str) -> list[str]:
    """Why ``restates`` cannot be said of ``table``; empty if it can."""
    said = f"{table}: the mapping says `restates: {restates}`, but"
    if restates == "month":
        if date_column(table) is not None:
            return []
        return [f"{said} the table has no date, so it is not kept by month. {_restates_all(table)}"]
    if date_column(table) is not None:
        return [f"{said} the table is kept by month. Write `restates: month`."]
    referring = tables_referring_to(table)
    if referring:
        return [
            f"{said} rows of {', '.join(referring)} refer to its rows, so none can be withdrawn. Leave it out."
        ]
    return []


def _restates_all(table: str) -> str:
    if tables_referring_to(table):
        return "Leave it out."
    return "Write `restates: all` if the delivery holds every row of the table, else leave it out."


def _pandas(rows: pa.Table) -> pd.DataFrame:
    import pyarrow as pa

    def dtype(kind: pa.DataType) -> Any:
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return _TEXT
        if pa.types.is_integer(kind):
            return pd.UInt64Dtype() if kind == pa.uint64() else pd.Int64Dtype()
        return pd.BooleanDtype() if pa.types.is_boolean(kind) else None

    frame = rows.to_pandas(types_mapper=dtype, date_as_object=True)
    # In lists and structures pandas makes whole numbers beside a gap fractions, and gaps NaN.
    nested = [
        name
        for name, kind in zip(rows.column_names, rows.schema.types, strict=True)
        if pa.types.is_nested(kind)
    ]
    return frame.assign(**{name: pd.Series(rows[name].to_pylist(), dtype=object) for name in nested})


@dataclass(frozen=True)
class FileRows:
    """One file: its rows, the (row number, text) of rows with a wrong number of fields, and its lines.

    ``lines`` are the lines below the header that are not blank, counted apart from the parser; more than
    rows where cells hold line breaks. None for Parquet, which has no lines.
    """

    rows: pa.Table
    malformed: list[tuple[int, str]]
    lines: int | None


def read_file(path: Path, form: FileFormat) -> FileRows:
    """All rows of one file, as text where the file is text.

    Raises:
        InputError: the file cannot be read as ``form`` says.
    """
    try:
        if path.suffix.lower() == ".parquet":
            return FileRows(_read_parquet(path, form), [], None)
        return _read_csv(path, form)
    except PermissionError:
        raise _Problems([f"{path.name}: no permission to read it. Correct the file's permissions."]) from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise _Problems(
            [f"{path.name}: not readable as gzip ({str(error)[:120]}). Deliver it again."]
        ) from None


def read_rows(path: Path, form: FileFormat) -> FileRows:
    """All rows of one file that is no raw table.

    Raises:
        InputError: it cannot be read as ``form`` says; names the file.
    """
    try:
        return read_file(path, form)
    except _Problems as error:
        raise InputError(str(error), file=path.name) from None


def _read_parquet(path: Path, form: FileFormat) -> pa.Table:
    """The rows of a Parquet file; text that is an empty field in CSV is null here, too."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if path.stat().st_size == 0:
        raise _Problems([f"{path.name}: the file is empty (0 bytes). Deliver it again."])
    try:
        with pq.ParquetFile(path) as parquet:
            rows = parquet.read()
    except (pa.ArrowInvalid, pa.ArrowIOError) as error:
        reason = str(error).split("\n", 1)[0]
        raise _Problems(
            [f"{path.name}: not readable as Parquet ({reason[:120]}). Deliver it again."]
        ) from None
    return _with_nulls(rows, form)


def _with_nulls(rows: pa.Table, form: FileFormat) -> pa.Table:
    import pyarrow as pa

    pc = compute()
    for number, kind in enumerate(rows.schema.types):
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            continue
        empty = pc.is_in(rows.column(number), value_set=pa.array(["", *form.nulls], kind))
        if pc.any(empty).as_py():
            filled = pc.if_else(empty, pa.scalar(None, kind), rows.column(number))
            rows = rows.set_column(number, rows.field(number), filled)
    return rows


def _of_one_type(files: Sequence[pa.Table]) -> list[pa.Table]:
    """Files of one table, with columns as text where their types in Parquet cannot be brought together."""
    import pyarrow as pa

    unlike = []
    for name in dict.fromkeys(name for rows in files for name in rows.column_names):
        fields = [pa.schema([rows.field(name)]) for rows in files if name in rows.column_names]
        try:
            pa.unify_schemas(fields, promote_options="permissive")
        except pa.ArrowTypeError:
            unlike.append(name)

    def column(rows: pa.Table, name: str) -> Any:
        given = rows.select([name])
        return pa.array(as_text(_pandas(given)[name]), pa.string()) if name in unlike else given.column(0)

    return [
        pa.table({name: column(rows, name) for name in rows.column_names}) if unlike else rows
        for rows in files
    ]


def _read_csv(path: Path, form: FileFormat, block_size: int = 1 << 22) -> FileRows:
    """Rows of a text file; ``block_size`` is how many bytes the parser takes at once.

    Lines are counted on the bytes, apart from the parser, and both counts must agree: a quotation mark
    that is text would otherwise fold the lines that follow into one cell without a word.
    """
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    header, has_rows = _read_header(path, form)
    if not has_rows:
        return FileRows(pa.table({name: pa.array([], pa.string()) for name in header}), [], 0)
    lines, quoted = count_lines(path, form)
    wide = _is_wide(form)
    judged = judge_lines(path, form) if quoted or wide else None

    def parse(threads: bool, handler: Any) -> pa.Table:
        return arrow_csv.read_csv(
            path,
            read_options=arrow_csv.ReadOptions(
                use_threads=threads, encoding=_python_encoding(form), block_size=block_size
            ),
            # Free text may hold line breaks inside quotes.
            parse_options=arrow_csv.ParseOptions(
                delimiter=separator_of(path, form),
                quote_char=False if form.quote == "none" else form.quote,
                newlines_in_values=judged is not None and judged.lines > judged.rows,
                invalid_row_handler=handler,
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
        raise _Problems(
            [f"{path.name}: not a readable text file ({reason[:120]}). Deliver it again."]
        ) from None
    except UnicodeError:
        raise _Problems([_not_encoded(path, form)]) from None
    parsed = rows.num_rows + len(bad)
    if judged is None and lines != parsed + 1:
        # Blank lines are no rows.
        judged = judge_lines(path, form)
    if judged is not None and judged.rows != parsed:
        raise _Problems(
            [
                f"{path.name}: {judged.rows:,} rows by its lines, {parsed:,} by the parser. Write "
                "`quote: none` in the mapping if the file is written without quoting, or deliver it again."
            ]
        )
    return FileRows(
        rows, [(row.number - 1, row.text) for row in bad], parsed if judged is None else judged.lines
    )


@dataclass(frozen=True)
class JudgedLines:
    """What the lines of a text file are, header and blank lines aside.

    Attributes:
        rows: rows. lines: the lines that they take; more than rows where cells hold line breaks.
        uneven: rows with another number of fields than the header.
    """

    rows: int
    lines: int
    uneven: int


def _is_wide(form: FileFormat) -> bool:
    return form.encoding.startswith(("utf-16", "utf-32"))


def open_bytes(path: Path) -> IO[bytes]:
    """The bytes of a file, decompressed."""
    return cast("IO[bytes]", gzip.open(path)) if path.suffix.lower() == ".gz" else path.open("rb")


def open_text(path: Path, form: FileFormat) -> io.TextIOWrapper:
    """The text of a file, decompressed, its line ends as they are."""
    encoding = "utf-8-sig" if form.encoding == "utf-8" else form.encoding
    return io.TextIOWrapper(open_bytes(path), encoding=encoding, newline="")


def separator_of(path: Path, form: FileFormat) -> str:
    """The declared separator; without one a tab in ``.tsv`` files and a comma in others."""
    tabs = "separator" not in form.model_fields_set and ".tsv" in (part.lower() for part in path.suffixes)
    return "\t" if tabs else form.separator


def records_of(lines: Iterable[str], path: Path, form: FileFormat, *, strict: bool) -> Any:
    """The standard library's reader over ``lines`` in the format of the file."""
    quoting: dict[str, Any] = (
        {"quoting": csv.QUOTE_NONE} if form.quote == "none" else {"quotechar": form.quote}
    )
    return csv.reader(lines, delimiter=separator_of(path, form), strict=strict, **quoting)


def count_lines(path: Path, form: FileFormat) -> tuple[int, bool]:
    """Lines of a file, blank ones too, and whether it has a quotation mark; nothing is parsed."""
    mark = b"" if form.quote == "none" else form.quote.encode()
    lines, quoted, last = 0, False, b"\n"
    with open_bytes(path) as stream:
        while block := stream.read(1 << 22):
            lines += block.count(b"\n")
            if returns := block.count(b"\r"):
                lines += returns - block.count(b"\r\n")
            # The pair of a line's end may lie in two blocks.
            lines -= last == b"\r" and block[:1] == b"\n"
            quoted = quoted or (bool(mark) and mark in block)
            last = block[-1:]
    return lines + (last not in (b"\n", b"\r")), quoted


def judge_lines(path: Path, form: FileFormat, advice: str | None = None) -> JudgedLines:
    """Count the rows of a text file and the lines they take, by the rules of quoting (RFC 4180).

    Args:
        advice: what to do about a quotation mark that is text, for files that no mapping describes.

    Raises:
        InputError: a quotation mark that is text: text follows a closing quote, a quote is never closed,
            a row over several lines has another number of fields than the header, or a cell holds line
            breaks together with separators (accepted where the format declares ``line_breaks``).
    """
    separator = separator_of(path, form)
    rows = lines = uneven = width = end = 0
    with open_text(path, form) as stream:
        reader = records_of(stream, path, form, strict=True)
        try:
            for record in reader:
                first, end = end + 1, reader.line_num
                if not record:
                    continue
                several = end > first
                if several and not form.line_breaks:
                    folded = not width or any(
                        separator in cell and ("\n" in cell or "\r" in cell) for cell in record
                    )
                    if folded or len(record) != width or width == 1:
                        what = "a cell holds line breaks together with separators"
                        raise _stray_quote(path, first, form, what, advice, breaks=True)
                if not width:
                    width = len(record)
                    continue
                rows += 1
                lines += end - first + 1
                uneven += len(record) != width
        except csv.Error as error:
            closed = "unexpected end" not in str(error)
            what = "text follows a closing quotation mark" if closed else "a quotation mark is never closed"
            raise _stray_quote(path, end + 1, form, what, advice) from None
        except UnicodeError:
            raise _Problems([_not_encoded(path, form)]) from None
    return JudgedLines(rows, lines, uneven)


def _stray_quote(
    path: Path, line: int, form: FileFormat, what: str, advice: str | None, *, breaks: bool = False
) -> _Problems:
    meant = (
        ", or `line_breaks: true` if such cells are meant so"
        if breaks
        else f", or double the mark inside quoted cells ({form.quote * 2})"
    )
    advice = advice or (
        f"Write `quote: none` in the mapping if the file is written without quoting and {form.quote} is "
        f"text{meant}."
    )
    said = f"{path.name}, line {line}: {what}, so lines or text would be lost."
    return _Problems([InputError(said, file=path.name, field="quote", value=f"line {line}", remedy=advice)])


def proposed_quoting(path: Path, form: FileFormat) -> dict[str, Any]:
    """What a mapping must say about the quotes of a file: nothing, ``quote: none`` or ``line_breaks: true``.

    Where quotes do not hold, that reading is proposed under which fewer rows have a wrong number of fields.
    """
    readings: list[tuple[float, dict[str, Any]]] = []
    for said in ({}, {"quote": "none"}, {"line_breaks": True}):
        try:
            judged = judge_lines(path, form.model_copy(update=said))
        except _Problems:
            continue
        if not said:
            return {}
        readings.append((judged.uneven / max(judged.rows, 1), said))
    return min(readings, key=lambda one: one[0])[1] if readings else {}


def _python_encoding(form: FileFormat) -> str:
    return "utf8" if form.encoding == "utf-8" else form.encoding


def _not_encoded(path: Path, form: FileFormat) -> str:
    return (
        f"{path.name}: not {form.encoding} text. Save it as UTF-8, or say in the mapping what it is, "
        "for example `encoding: latin-1` or `encoding: cp1252`."
    )


def _read_header(path: Path, form: FileFormat) -> tuple[list[str], bool]:
    """Column names, and whether any row follows."""
    with open_bytes(path) as stream:
        start = stream.read(1 << 16)
        more = bool(stream.read(1))
    if not start.strip(b"\xef\xbb\xbf \t\r\n"):
        raise _Problems(
            [f"{path.name}: the file is empty, without even a header. Deliver it again or remove it."]
        )
    wide = _is_wide(form)
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
        beginning = codecs.getincrementaldecoder(encoding)().decode(start)
    except UnicodeError:
        raise _Problems([_not_encoded(path, form)]) from None
    text = io.StringIO(beginning, newline="")
    header = next((line for line in records_of(text, path, form, strict=False) if line), [])
    if any("\n" in name or "\r" in name for name in header) and not form.line_breaks:
        raise _stray_quote(
            path, 1, form, "a quotation mark of the header is not closed in its line", None, breaks=True
        )
    has_rows = bool(text.read().strip()) or more
    problems = []
    separator = separator_of(path, form)
    others = [mark for mark in (",", ";", "\t", "|") if mark != separator]
    if len(header) == 1 and (mark := max(others, key=header[0].count)) in header[0]:
        shown = {"\t": "\\t"}.get(mark, mark)
        problems.append(
            f'{path.name}: the fields are separated by "{shown}", expected "{separator}". Write '
            f'`separator: "{shown}"` in the mapping, or save it with "{separator}".'
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
    known value aliases, date formats, time zone. Columns of one's own are text, to which only what the mapping declares
    is done: their ``values``, ``dates``, and the decimal mark where ``own`` says number. A value that a date
    format does not fit stays as delivered and is rejected by the loader, so that its reject shows what was
    delivered.
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
        if name not in known and table == OWN_TABLE:
            result[name] = cell_text(result[name])
        if name in own.values:
            result[name] = _map_values(result[name], own.values[name])
        if name not in known:
            number = own.own.get(name) == "number" or _marks_reversals(own, name)
            if form.decimal == "," and number:
                result[name] = with_decimal_point(result[name])
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
        if kind_of(column) == "timestamp" and form.time_zone != "UTC":
            result[name] = _with_offset(result[name], form.time_zone)
    return result


def with_decimal_point(texts: pd.Series) -> pd.Series:
    """Numbers with a decimal comma as numbers with a point; every other text as it is."""
    fits = texts.str.fullmatch(r"\s*[+-]?(\d+,\d*|,\d+)([eE][+-]?\d+)?\s*").fillna(False).astype(bool)
    return texts.mask(fits, texts.str.replace(",", ".", regex=False))


def _marks_reversals(own: TableMapping, name: str) -> bool:
    """True for a column that is read as a number, whose sign tells reversals from other rows."""
    rule = own.reversals
    return rule is not None and rule.where.sign is not None and rule.where.column == name


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
    problems: list[str | InputError] = []
    for name in required_columns(table):
        if name not in final and name not in own.constants:
            near = difflib.get_close_matches(name, final, n=1)
            hint = f"; column {near[0]} looks like it" if near else ""
            remedy = (
                "Add it, or map a column to it: "
                f"`tables: {{{table}: {{rename: {{<file column>: {name}}}}}}}`. Found: {', '.join(stripped)}."
            )
            said = f"{path.name}: required column {name} is missing{hint}. {remedy}"
            problems.append(InputError(said, file=path.name, field=name, remedy=remedy))
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
    known = raw_table(table).columns
    problems.extend(
        f"{path.name}: the mapping's `own` declares {name}, "
        + (
            f"which is a column of {table} and has its type. Take it out of `own`."
            if name in known
            else f"no column after renaming{_near(name, final)}. Found: {', '.join(final)}."
        )
        for name in own.own
        if name in known or (name not in final and name not in own.constants)
    )
    problems.extend(
        f"{path.name}: the mapping's `{part}` names {name}, no column after renaming. Use our name."
        for part, given in (("dates", own.dates), ("values", own.values))
        for name in given
        if name not in final and name not in own.constants
    )
    dated = [column.name for column in raw_table(table).columns if kind_of(column) in ("date", "timestamp")]
    dated += [name for name, kind in own.own.items() if kind == "date"]
    problems.extend(
        f"{path.name}: the mapping's `partial_dates` names {name}, no date column of {table} that the file has. "
        f"Date columns are {', '.join(dated)}."
        for name in own.partial_dates
        if name not in dated or (name not in final and name not in own.constants)
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


def _with_offset(series: pd.Series, zone: str) -> pd.Series:
    """Moments without an offset as those of ``zone``; days, moments with an offset and all else unchanged."""
    import pyarrow as pa

    if isinstance(series.dtype, np.dtype) and series.dtype.kind == "M":
        local = pa.array(series.dt.as_unit("us"), pa.timestamp("us"), from_pandas=True)
        return pd.Series(moments.in_zone(local, zone).to_pandas().array, index=series.index, name=series.name)
    if series.dtype != _TEXT:
        return series
    codes, distinct = pd.factorize(series)
    told = moments.in_zone(pa.array(distinct.tolist(), pa.large_string()), zone)
    taken = pd.array(told.to_pylist(), dtype=_TEXT).take(codes, allow_fill=True)
    return pd.Series(taken, index=series.index, name=series.name)


def _map_dates(series: pd.Series, form: str) -> pd.Series:
    """Values that fit ``form`` as ISO text, all others unchanged; by ``%Y-%m`` it is a month without a day."""
    codes, distinct = pd.factorize(series.astype(_TEXT))
    values = [iso_text(str(value), form) or value for value in distinct]
    taken = pd.array(values, dtype=_TEXT).take(codes, allow_fill=True)
    return pd.Series(taken, index=series.index, name=series.name)


def complete_dates(frame: pd.DataFrame, rules: Mapping[str, str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """``frame`` with the dates that have no day completed by ``rules`` (column to rule), and which these are.

    Returns:
        The second frame has ``position`` in ``frame``, ``column``, ``delivered``, ``precision`` (month or year) and
        ``rule``, one row for each completed cell.
    """
    found = [pd.DataFrame(columns=list(_COMPLETED)).astype({"position": np.int64})]
    result = frame.copy(deep=False)
    for name, rule in rules.items():
        if rule == "reject" or pd.api.types.is_datetime64_any_dtype(frame[name]):
            continue
        codes, distinct = pd.factorize(frame[name].astype(_TEXT))
        filled = [moments.completed(str(value), cast("moments.Completion", rule)) for value in distinct]
        positions = np.flatnonzero(np.array([*(one is not None for one in filled), False])[codes])
        if not len(positions):
            continue
        values = [
            value if one is None else one.day.isoformat() for value, one in zip(distinct, filled, strict=True)
        ]
        taken = pd.array(values, dtype=_TEXT).take(codes, allow_fill=True)
        result[name] = pd.Series(taken, index=frame.index)
        precisions = np.array([one and one.precision for one in filled], dtype=object)
        found.append(
            pd.DataFrame(
                {
                    "position": positions,
                    "column": name,
                    "delivered": np.asarray(distinct, dtype=object)[codes[positions]],
                    "precision": precisions[codes[positions]],
                    "rule": rule,
                }
            )
        )
    return result, pd.concat(found, ignore_index=True)


def iso_text(text: str, form: str) -> str | None:
    """``text`` read by the strptime format ``form``, as ISO text; None where it does not fit."""
    # Not pandas, whose nanoseconds end in 2262 while open ends are written as 9999-12-31.
    text = text.strip()
    try:
        moment = dt.datetime.strptime(text, form)
    except ValueError:
        return None
    if re.search("%[YymdjHMS]%[mdjHMS]", form) and len(text) < len(moment.strftime(form)):
        # Without separators 201312 would be 2 January by %Y%m%d.
        return None
    if not re.search("%[djxcuwaA]", form):
        return f"{moment.year:04d}-{moment.month:02d}" if re.search("%[mbB]", form) else f"{moment.year:04d}"
    plain = moment.tzinfo is None and not re.search("%[HIMSfXcTR]", form)
    return moment.date().isoformat() if plain else moment.isoformat()
