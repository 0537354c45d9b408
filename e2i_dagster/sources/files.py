"""Reading a folder of files into raw tables: which file holds which table, the supplier's names and codes.

How the formats of files are read is :mod:`.formats`, what a row must look like to be accepted
:mod:`e2i_dagster.tables.rules`.
"""

from __future__ import annotations

import difflib
import gzip
import re
import zlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd

from e2i_dagster.config.mapping import FileFormat, ImportMapping, PartMapping, ReversalRule, TableMapping
from e2i_dagster.errors import E2IError, InputError
from e2i_dagster.sources.compute import (
    Chosen,
    OtherFile,
    choose,
    expanded,
    one_row_mask,
    text_of,
    unknown_names,
)
from e2i_dagster.sources.formats import READ, Format, Refused, is_read, open_records, recognise
from e2i_dagster.sources.formats.delimited import FORMAT as CSV
from e2i_dagster.sources.formats.delimited import text_ending
from e2i_dagster.sources.formats.records import FileRows, FileSummary, refusal
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
from e2i_dagster.tables.cells import as_text, kind_of
from e2i_dagster.tables.frames import cell_text
from e2i_dagster.tables.own_types import OWN_TABLE

if TYPE_CHECKING:
    import pyarrow as pa

    from e2i_dagster.tables.own_types import OwnType
    from e2i_dagster.tables.vocabulary import VocabularyPolicy

_TEXT = pd.StringDtype("pyarrow")
_ALL_TABLES = RAW_TABLES + OPTIONAL_RAW_TABLES

#: Columns that a file may have and that nobody reads: the split registry says which split a patient
#: is in, and the database keeps its own times.
IGNORED_COLUMNS = ("data_split", "split_config_id", *MAINTAINED_COLUMNS)


_COMPLETED = ("position", "column", "delivered", "precision", "rule")


@dataclass(frozen=True)
class SourceFile:
    """One file of a table, the rows from it (``first_row`` counts from 0 in the frame), and what it says of them."""

    path: Path
    first_row: int
    rows: int
    summary: FileSummary = field(default_factory=FileSummary)

    @property
    def lines(self) -> int | None:
        """Its lines below the header, blank ones aside; None where the format has no lines."""
        return self.summary.lines

    @property
    def format_name(self) -> str:
        """Its format, as people call it."""
        return found.name if isinstance(found := recognise(self.path), Format) else CSV.name

    @property
    def notes(self) -> tuple[str, ...]:
        """What it says of its rows besides their cells."""
        return tuple(f"{self.name}: {said}" for said in (*self.summary.notes, *self.summary.missing_kinds()))

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
        left_out: rule of the mapping -> delivered rows that it left out; they are in no frame.
        added: rows that the mapping made of numbered columns, beside the first of each line.
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
    left_out: Mapping[str, int] = field(default_factory=dict)
    added: int = 0

    @property
    def lines(self) -> int | None:
        """Lines of the files below their headers, blank ones aside; None where a file has no lines."""
        counts = [file.lines for file in self.files]
        known = [count for count in counts if count is not None]
        return sum(known) if known and len(known) == len(counts) else None

    @property
    def notes(self) -> tuple[str, ...]:
        """What its files say of the rows besides their cells: special missing values, references; counts alone."""
        return tuple(said for file in self.files for said in file.notes)

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
    uses = Counter(path for shapes in found.values() for _, paths in shapes for path in paths)
    uses.update(_matching(folder, mapping.looked_up_files))
    reader = _Reader(folder, {path for path, times in uses.items() if times > 1})
    for table, shapes in found.items():
        try:
            delivered[table] = _read_table(table, shapes, mapping, vocabulary, reader)
        except InputError as error:
            problems.extend(error.parts or [error])
    if problems:
        parts = [placed(folder, problem) for problem in problems]
        raise InputError(_listing(folder, problems), **parts[0].known, parts=parts if len(parts) > 1 else ())
    return Delivery(delivered, folder, not_read(folder, mapping, tables))


def placed(folder: Path, problem: E2IError) -> InputError:
    """``problem`` as an error of its file in ``folder``; of the folder where it names none."""
    return InputError(str(problem), **{**problem.known, "file": folder / (problem.file or "")})


def _listing(folder: Path, problems: Sequence[E2IError]) -> str:
    head = f"{folder}: {len(problems)} problem{'s' if len(problems) > 1 else ''}; nothing was loaded."
    return "\n".join([head, *(f"  - {problem}" for problem in problems)])


#: Files of a table, by their shapes.
_Shapes = list[tuple[PartMapping, list[Path]]]


def _find_files(
    folder: Path, mapping: ImportMapping, tables: Sequence[str] | None
) -> tuple[dict[str, _Shapes], list[E2IError]]:
    """Files per table in load order, and what is wrong with the names."""
    problems: list[E2IError] = [
        InputError(
            f"{name}: not a raw table.",
            field="tables",
            value=name,
            remedy=f"Known: {', '.join(_ALL_TABLES)}.",
        )
        for name in dict.fromkeys([*(tables or ()), *mapping.tables])
        if name not in _ALL_TABLES
    ]
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        remedy = "Give the folder that holds <table>.csv or <table>.parquet."
        raise InputError(f"{folder}: {what}. {remedy}", file=folder, remedy=remedy)
    named = set(_matching(folder, mapping.named_files))
    looked_up = set(_matching(folder, mapping.looked_up_files))
    ignored = set(_matching(folder, mapping.ignore))
    problems.extend(
        refusal(
            path,
            "named under `files` and under `ignore` of the mapping",
            "Take it out of one of them.",
            field="ignore",
            value=path.name,
        )
        for path in sorted((named | looked_up) & ignored)
    )
    candidates = [path for path in readable_files(folder) if path not in ignored]
    found: dict[str, _Shapes] = {}
    for table in _ALL_TABLES:
        of_table = re.compile(rf"{table}([_.-].*)?", re.IGNORECASE)
        for part in mapping.table(table).as_parts:
            if part.files:
                paths = _matching(folder, part.files)
                if not paths and (tables is None or table in tables):
                    said = f"no file matches {', '.join(part.files)}."
                    problems.append(_of_table(table, said, "Correct `files` in the mapping."))
            else:
                # What is named for another table holds this one only where it is named for it, too.
                paths = [
                    path for path in candidates if of_table.fullmatch(stem_of(path)) and path not in named
                ]
            problems.extend(_ill_assorted(table, paths, mapping.format_of(table, part)))
            if paths:
                found.setdefault(table, []).append((part, paths))
    claimed = looked_up | {path for shapes in found.values() for _, paths in shapes for path in paths}
    problems.extend(
        refusal(
            path,
            f"belongs to no raw table{_near(stem_of(path), _ALL_TABLES)}. Expected <table>.csv or <table>.parquet",
            "Rename it, name it under `files` in the mapping, or move it to a sub-folder.",
            field="files",
        )
        for path in candidates
        if path not in claimed and tables is None and text_ending(path) != ".txt"
    )
    if tables is not None:
        found = {table: shapes for table, shapes in found.items() if table in tables}
        problems.extend(
            _of_table(
                table,
                f"no file {table}.csv or {table}.parquet.",
                "Deliver it, or name its file under `files` in the mapping.",
            )
            for table in tables
            if table in _ALL_TABLES and table not in found and not mapping.table(table).as_parts[0].files
        )
    if not found and not problems:
        remedy = (
            f"Expected <table>.csv or <table>.parquet with <table> one of {', '.join(_ALL_TABLES)}; "
            "see docs/templates."
        )
        problems.append(InputError(f"no file that is read ({READ}).", field="files", remedy=remedy))
        problems.extend(refused_files(folder))
    return found, problems


def _of_table(table: str, said: str, remedy: str, field: str = "files") -> InputError:
    """What is wrong with the files of a table, or with the key ``field`` of it in the mapping."""
    return InputError(f"{table}: {said}", field=field, value=table, remedy=remedy)


def _matching(folder: Path, patterns: Iterable[str]) -> list[Path]:
    """The files of ``folder`` that fit one of the patterns, by name."""
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})


def _ill_assorted(table: str, paths: Sequence[Path], form: FileFormat) -> Iterator[InputError]:
    """What is wrong with the names of the files of one shape."""
    if len({recognise(path) for path in paths}) > 1 or len({stem_of(path).lower() for path in paths}) < len(
        paths
    ):
        names = ", ".join(path.name for path in paths)
        remedy = (
            "Keep one of them; where they hold different rows, move those of one format to another folder and "
            "load it after this one."
        )
        yield _of_table(table, f"the same rows in two formats? ({names}).", remedy)
    for path in paths:
        if text_ending(path) == ".txt" and "separator" not in form.model_fields_set:
            remedy = f'Write for example `tables: {{{table}: {{separator: "|"}}}}` in the mapping.'
            yield refusal(path, "a text file whose separator is not declared", remedy, field="separator")


def stem_of(path: Path) -> str:
    """The name of a file without its ending, ``.gz`` included."""
    return Path(path.stem).stem if path.suffix.lower() == ".gz" else path.stem


def readable_files(folder: Path) -> list[Path]:
    """The files of a folder that are of a format that is read, by name."""
    return sorted(path for path in folder.iterdir() if path.is_file() and is_read(path))


def refused_files(folder: Path) -> list[InputError]:
    """What to do with each file of a folder that is of a known format that is not read."""
    known = {path: recognise(path) for path in sorted(folder.iterdir()) if path.is_file()}
    return [found.error(path) for path, found in known.items() if isinstance(found, Refused)]


def tables_of(folder: Path, mapping: ImportMapping) -> tuple[str, ...]:
    """The tables that the files of ``folder`` hold, by their names alone; none where the names are wrong."""
    if not folder.is_dir():
        return ()
    found, problems = _find_files(folder, mapping, None)
    return () if problems else tuple(found)


def not_read(folder: Path, mapping: ImportMapping, tables: Sequence[str] | None = None) -> dict[str, str]:
    """Each file and folder inside ``folder`` that a load does not read, with the reason."""
    assigned, _ = _find_files(folder, mapping, None)
    tables_of: dict[Path, list[str]] = {path: [] for path in _matching(folder, mapping.looked_up_files)}
    for table, shapes in assigned.items():
        for path in (path for _, paths in shapes for path in paths):
            tables_of.setdefault(path, []).append(table)
    ignored = _matching(folder, mapping.ignore)
    parents = {parent for path in tables_of for parent in path.parents}
    reasons: dict[str, str] = {}
    for path in sorted(folder.iterdir()):
        tables_there = tables_of.get(path)
        if path.is_dir():
            if path not in parents:
                reasons[path.name] = (
                    "expectations of quality control, no data"
                    if path.name == "expectations" and any(path.glob("*.yaml"))
                    else "a folder inside the folder; move its files up, or name them under `files`"
                )
        elif path in ignored:
            reasons[path.name] = "left out by the mapping (`ignore`)"
        elif tables_there is not None:
            if tables is not None and tables_there and not set(tables_there) & set(tables):
                reasons[path.name] = (
                    f"holds {', '.join(dict.fromkeys(tables_there))}, which was not asked for"
                )
        elif isinstance(found := recognise(path), Format):
            reasons[path.name] = "belongs to no raw table; rename it or name it under `files` in the mapping"
        elif path.suffix.lower() in (".yaml", ".yml"):
            reasons[path.name] = "a mapping or another document, no data"
        else:
            reasons[path.name] = found.reason if found else f"not {READ}"
    return reasons


def _near(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name.lower(), known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


class _Reader:
    """The files of a folder; those that are ``shared`` by tables or lookups are read once and kept."""

    def __init__(self, folder: Path, shared: Collection[Path]) -> None:
        self._folder = folder
        self._shared = shared
        self._read: dict[tuple[Path, str], FileRows] = {}
        self._others: dict[tuple[tuple[str, ...], str], pd.DataFrame] = {}

    def rows(self, path: Path, form: FileFormat) -> FileRows:
        if path not in self._shared:
            return read_file(path, form)
        key = (path, repr(sorted(form.model_dump(exclude_unset=True).items())))
        if key not in self._read:
            self._read[key] = read_file(path, form)
        return self._read[key]

    def other(self, form: FileFormat) -> OtherFile:
        """What reads the files that columns are looked up in."""

        def rows(patterns: tuple[str, ...]) -> pd.DataFrame:
            key = (patterns, repr(form))
            if key not in self._others:
                paths = _matching(self._folder, patterns)
                if not paths:
                    named = ", ".join(patterns)
                    raise InputError(
                        f"no file matches {named}, in which a column of the mapping is looked up.",
                        field="file",
                        value=named,
                        remedy="Deliver it, or correct `file` in the mapping.",
                    )
                frames = [_text_frame(self.rows(path, form).rows) for path in paths]
                self._others[key] = pd.concat(frames, ignore_index=True)
            return self._others[key]

        return rows


def _text_frame(rows: pa.Table) -> pd.DataFrame:
    frame = frame_of(rows)
    return pd.DataFrame({str(name).strip(): text_of(frame[name]) for name in frame.columns})


def _read_table(
    table: str, shapes: _Shapes, mapping: ImportMapping, vocabulary: VocabularyPolicy, reader: _Reader
) -> DeliveredTable:
    import pyarrow as pa

    own = mapping.table(table)
    problems: list[E2IError] = []
    if own.restates:
        problems.extend(_cannot_restate(table, own.restates))
    found: list[tuple[Path, PartMapping, FileRows]] = []
    for part, paths in shapes:
        for path in paths:
            try:
                read_rows = reader.rows(path, mapping.format_of(table, part))
                _check_columns(table, path, read_rows.rows.column_names, part, own, vocabulary)
            except InputError as error:
                problems.extend(error.parts or [error])
                continue
            found.append((path, part, read_rows))
    if problems:
        raise InputError.joined(problems)
    mapped: list[pd.DataFrame] = []
    numbers: list[np.ndarray] = []
    files: list[SourceFile] = []
    malformed: list[dict[str, Any]] = []
    completed: list[pd.DataFrame] = []
    left_out: Counter[str] = Counter()
    raws: list[pa.Table] = []
    first = added = 0
    counted: set[Path] = set()
    for (path, part, read_rows), rows in zip(
        found, _of_one_type([read_rows.rows for *_, read_rows in found]), strict=True
    ):
        form = mapping.format_of(table, part)
        frame, chosen = _mapped(table, rows, part, own, form, vocabulary, reader.other(form))
        frame, filled = complete_dates(frame, own.partial_dates)
        completed.append(filled.assign(position=filled["position"] + first))
        mapped.append(frame)
        raws.append(rows if not part.computes else rows.take(chosen.taken))
        left_out.update(chosen.left_out)
        added += chosen.added
        numbers.append(read_rows.numbers[chosen.taken])
        # A file that feeds the table by two shapes has its lines once.
        summary = FileSummary(lines=0) if path in counted else read_rows.summary
        files.append(SourceFile(path, first, len(frame), summary))
        malformed.extend(
            {"file": path.name, "row_number": number, "text": text} for number, text in summary.malformed
        )
        counted.add(path)
        first += len(frame)
    if own.reversals is not None and mapped:
        names = list(dict.fromkeys(str(name) for frame in mapped for name in frame.columns))
        if wrong := check_rule(table, own.reversals, names):
            raise InputError.joined(wrong)
    return _one_row(
        DeliveredTable(
            frame=mapped[0] if len(mapped) == 1 else pd.concat(mapped, ignore_index=True),
            raw=frame_of(pa.concat_tables(raws, promote_options="permissive")),
            row_numbers=np.concatenate(numbers),
            files=tuple(files),
            malformed=pd.DataFrame(malformed, columns=["file", "row_number", "text"]),
            restates=own.restates,
            own=own.own,
            reversals=own.reversals,
            completed=pd.concat(completed, ignore_index=True),
            partial_dates=own.partial_dates,
            left_out=dict(left_out),
            added=added,
        ),
        own,
    )


def _mapped(
    table: str,
    rows: pa.Table,
    part: PartMapping,
    own: TableMapping,
    form: FileFormat,
    vocabulary: VocabularyPolicy,
    other: OtherFile,
) -> tuple[pd.DataFrame, Chosen]:
    """The rows of one file under our names, and which of them the mapping chose."""
    frame = frame_of(rows)
    if part.computes:
        frame.columns = [str(name).strip() for name in frame.columns]
    chosen = choose(frame, part, form, list(raw_table(table).columns.keys()), other)
    return apply_mapping(table, chosen.frame, own, form, vocabulary, part, chosen.computed), chosen


def _one_row(read: DeliveredTable, own: TableMapping) -> DeliveredTable:
    """The table with one of the rows that agree in a column, as ``one_row`` of the mapping says."""
    if own.one_row is None:
        return read
    kept = one_row_mask(read.frame, own.one_row)
    files, rows = [], 0
    for file in read.files:
        its = int(kept[file.first_row : file.first_row + file.rows].sum())
        files.append(replace(file, first_row=rows, rows=its))
        rows += its
    places = np.cumsum(kept) - 1
    cells = read.completed[kept[read.completed["position"].to_numpy(dtype=np.int64)]]
    left_out = len(kept) - rows
    return replace(
        read,
        frame=read.frame[kept].reset_index(drop=True),
        raw=read.raw[kept].reset_index(drop=True),
        row_numbers=read.row_numbers[kept],
        files=tuple(files),
        completed=cells.assign(position=places[cells["position"].to_numpy(dtype=np.int64)]),
        left_out={**read.left_out, **({own.one_row.broken: left_out} if left_out else {})},
    )


def _cannot_restate(table: str, restates: str) -> Iterator[InputError]:
    """Why ``restates`` cannot be said of ``table``; nothing if it can."""
    dated = date_column(table) is not None
    referring = tables_referring_to(table)
    if restates == "month" and not dated:
        why, remedy = "the table has no date, so it is not kept by month", _restates_all(table)
    elif restates != "month" and dated:
        why, remedy = "the table is kept by month", "Write `restates: month`."
    elif restates != "month" and referring:
        why = f"rows of {', '.join(referring)} refer to its rows, so none can be withdrawn"
        remedy = "Leave it out."
    else:
        return
    said = f"the mapping says `restates: {restates}`, but {why}."
    yield _of_table(table, said, remedy, "restates")


def _restates_all(table: str) -> str:
    if tables_referring_to(table):
        return "Leave it out."
    return "Write `restates: all` if the delivery holds every row of the table, else leave it out."


def frame_of(rows: pa.Table) -> pd.DataFrame:
    """Rows as a frame that keeps what is delivered: whole numbers beside gaps, days of any year, text as Arrow text."""
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


def read_file(path: Path, form: FileFormat) -> FileRows:
    """All rows of one file, as text where the file is text.

    Raises:
        InputError: the file cannot be read as ``form`` says.
    """
    try:
        return open_records(path, form).read()
    except PermissionError:
        raise refusal(path, "no permission to read it", "Correct the file's permissions.") from None
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise refusal(path, f"not readable as gzip ({str(error)[:120]})") from None


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
        return pa.array(as_text(frame_of(given)[name]), pa.string()) if name in unlike else given.column(0)

    return [
        pa.table({name: column(rows, name) for name in rows.column_names}) if unlike else rows
        for rows in files
    ]


def apply_mapping(
    table: str,
    frame: pd.DataFrame,
    own: TableMapping,
    form: FileFormat,
    vocabulary: VocabularyPolicy,
    part: PartMapping | None = None,
    computed: Mapping[str, pd.Series] | None = None,
) -> pd.DataFrame:
    """``frame`` under our column names and values; columns that nobody knows stay as they are.

    Order: rename, ignored columns, known column aliases, computed columns, constants, declared values, decimal mark,
    known value aliases, date formats, time zone. Columns of one's own are text, to which only what the mapping declares
    is done: their ``values``, ``dates``, and the decimal mark where ``own`` says number. A value that a date
    format does not fit stays as delivered and is rejected by the loader, so that its reject shows what was
    delivered.
    """
    part = part or own
    columns = {
        final: frame[name]
        for name, final in zip(
            frame.columns, _final_names(table, list(frame.columns), part, vocabulary), strict=True
        )
        if final is not None
    }
    result = pd.DataFrame({**columns, **(computed or {})}, index=frame.index)
    for name, value in part.constants.items():
        result[name] = pd.Series([value], dtype=_TEXT).repeat(len(frame)).set_axis(frame.index)
    known = raw_table(table).columns
    for name in result.columns:
        if name not in known and table == OWN_TABLE:
            result[name] = cell_text(result[name])
        if name in part.values:
            result[name] = _map_values(result[name], part.values[name])
        if name not in known:
            number = own.own.get(name) == "number" or _marks_reversals(own, name)
            if form.decimal == "," and number:
                result[name] = with_decimal_point(result[name])
            if name in part.dates:
                result[name] = _map_dates(result[name], part.dates[name])
            continue
        column = known[name]
        if form.decimal == "," and _is_number(column) and result[name].dtype == _TEXT:
            result[name] = result[name].str.replace(",", ".", regex=False)
        vocabulary_name = facts(column).vocabulary
        if vocabulary_name and (aliases := vocabulary.aliases(vocabulary_name)):
            result[name] = _map_values(result[name], aliases)
        if name in part.dates:
            result[name] = _map_dates(result[name], part.dates[name])
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
    table: str, names: Sequence[str], own: PartMapping, vocabulary: VocabularyPolicy
) -> list[str | None]:
    """Our name of each file column; None for a column that is dropped."""
    known = set(raw_table(table).columns.keys())
    aliases = vocabulary.column_aliases.get(table, {})
    stripped = [str(name).strip() for name in names]
    dropped = {name for pattern in own.ignore for name in expanded(pattern, stripped).values()}
    # A pattern takes none of what is renamed.
    dropped -= {name for name in own.rename if name not in own.ignore}
    renamed = [own.rename.get(name, name) for name in stripped]
    final: list[str | None] = []
    for before, name in zip(stripped, renamed, strict=True):
        alias = aliases.get(name)
        if before in dropped or name in IGNORED_COLUMNS:
            final.append(None)
        elif name not in known and alias and alias not in renamed:
            final.append(alias)
        else:
            final.append(name)
    return final


def _check_columns(
    table: str,
    path: Path,
    names: Sequence[str],
    part: PartMapping,
    own: TableMapping,
    vocabulary: VocabularyPolicy,
) -> None:
    """Raise every problem of the columns of one file."""
    stripped = [str(name).strip() for name in names]
    final = [name for name in _final_names(table, names, part, vocabulary) if name is not None]
    found = f"Found: {', '.join(stripped)}."
    problems: list[InputError] = []
    for name in required_columns(table):
        if name not in final and name not in part.made:
            near = difflib.get_close_matches(name, final, n=1)
            hint = f"; column {near[0]} looks like it" if near else ""
            remedy = (
                "Add it, or map a column to it: "
                f"`tables: {{{table}: {{rename: {{<file column>: {name}}}}}}}`. {found}"
            )
            problems.append(refusal(path, f"required column {name} is missing{hint}", remedy, field=name))
    problems.extend(
        refusal(path, f"the mapping renames {name}, which the file lacks", found, field="rename", value=name)
        for name in part.rename
        if name not in stripped
    )
    problems.extend(
        refusal(
            path,
            f"two columns become {name} after the mapping",
            "Rename or ignore one of them.",
            field="rename",
            value=name,
        )
        for name in sorted({name for name in final if final.count(name) > 1})
    )
    problems.extend(
        refusal(
            path,
            f"{name} is a constant of the mapping, but the file has that column",
            "Remove one of them.",
            field="constants",
            value=name,
        )
        for name in part.constants
        if name in final
    )
    problems.extend(
        refusal(path, f"the mapping's `{place}` {said}", remedy, field=place, value=name)
        for place, name, said, remedy in unknown_names(part, stripped)
    )
    known = raw_table(table).columns
    for name in own.own:
        said = f"the mapping's `own` declares {name},"
        if name in known:
            said, remedy = f"{said} which is a column of {table} and has its type", "Take it out of `own`."
        elif name not in final and name not in part.made:
            said = f"{said} no column after renaming{_near(name, final)}"
            remedy = f"Found: {', '.join(final)}."
        else:
            continue
        problems.append(refusal(path, said, remedy, field="own", value=name))
    problems.extend(
        refusal(
            path,
            f"the mapping's `{key}` names {name}, no column after renaming",
            "Use our name.",
            field=key,
            value=name,
        )
        for key, given in (("dates", part.dates), ("values", part.values))
        for name in given
        if name not in final and name not in part.made
    )
    dated = [column.name for column in raw_table(table).columns if kind_of(column) in ("date", "timestamp")]
    dated += [name for name, kind in own.own.items() if kind == "date"]
    problems.extend(
        refusal(
            path,
            f"the mapping's `partial_dates` names {name}, no date column of {table} that the file has",
            f"Date columns are {', '.join(dated)}.",
            field="partial_dates",
            value=name,
        )
        for name in own.partial_dates
        if name not in dated or (name not in final and name not in part.made)
    )
    if problems:
        raise InputError.joined(problems)


def _map_values(series: pd.Series, to: Mapping[str, str | None]) -> pd.Series:
    """Replace whole values; an empty target means null. Works on the distinct values."""
    codes, distinct = pd.factorize(text_of(series))
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
    instants = moments.in_zone(pa.array(distinct.tolist(), pa.large_string()), zone)
    taken = pd.array(instants.to_pylist(), dtype=_TEXT).take(codes, allow_fill=True)
    return pd.Series(taken, index=series.index, name=series.name)


def _map_dates(series: pd.Series, form: str) -> pd.Series:
    """Values that fit ``form`` as ISO text, all others unchanged; by ``%Y-%m`` it is a month without a day."""
    codes, distinct = pd.factorize(text_of(series))
    values = [moments.iso_text(str(value), form) or value for value in distinct]
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
        codes, distinct = pd.factorize(text_of(frame[name]))
        filled = [moments.completed(str(value), cast("moments.Completion", rule)) for value in distinct]
        positions = np.flatnonzero(np.array([*(moment is not None for moment in filled), False])[codes])
        if not len(positions):
            continue
        values = [
            value if moment is None else moment.day.isoformat()
            for value, moment in zip(distinct, filled, strict=True)
        ]
        taken = pd.array(values, dtype=_TEXT).take(codes, allow_fill=True)
        result[name] = pd.Series(taken, index=frame.index)
        precisions = np.array([moment and moment.precision for moment in filled], dtype=object)
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
