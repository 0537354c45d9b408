"""What a folder of foreign files is: which file holds which table, which column is ours, what is left over.

The answer is a proposed import mapping, to be read by a person. Nothing is loaded. What a rule of a cohort
makes of the mapped rows is :mod:`e2i_dagster.cohorts.coverage`.
"""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa
import yaml
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.computed import Expression
from e2i_dagster.config.mapping import FileFormat, ImportMapping, TableMapping
from e2i_dagster.errors import InputError
from e2i_dagster.sources.compute import expanded
from e2i_dagster.sources.files import (
    IGNORED_COLUMNS,
    Delivery,
    complete_dates,
    frame_of,
    not_read,
    placed,
    read,
    readable_files,
    refused_files,
    stem_of,
    with_decimal_point,
)
from e2i_dagster.sources.formats import READ, open_records, recognise
from e2i_dagster.sources.formats.delimited import FORMAT as CSV
from e2i_dagster.sources.formats.delimited import (
    empty_file,
    open_text,
    proposed_quoting,
    records_of,
    text_ending,
)
from e2i_dagster.sources.formats.records import ColumnNotes, open_bytes, refusal
from e2i_dagster.sources.numbered import proposed_lists
from e2i_dagster.sources.shapes import Recognised, recognised
from e2i_dagster.tables import (
    MAINTAINED_COLUMNS,
    OPTIONAL_RAW_TABLES,
    RAW_TABLES,
    facts,
    moments,
    primary_key,
    raw_table,
    required_columns,
)
from e2i_dagster.tables.cells import FALSE, TRUE, kind_of, numbers_of
from e2i_dagster.tables.codes import cell_shape
from e2i_dagster.tables.constraints import spans
from e2i_dagster.tables.frames import cell_text
from e2i_dagster.tables.moments import Completion, iso_text
from e2i_dagster.tables.own_columns import read_as
from e2i_dagster.tables.own_types import OWN_TABLE, OwnType
from e2i_dagster.tables.rules import check
from e2i_dagster.tables.vocabulary import ColumnMatching, VocabularyPolicy

_TABLES = (*RAW_TABLES, *OPTIONAL_RAW_TABLES)
_ENCODINGS = ("utf-8-sig", "cp1252")
_SEPARATORS = (",", ";", "\t", "|")
#: Formats of days that are tried, those without ambiguity first.
_DATE_FORMATS = (
    "%Y-%m-%d", "%Y%m%d", "%d.%m.%Y", "%Y/%m/%d", "%d-%b-%Y", "%d %b %Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y",
    "%m-%d-%Y", "%b %Y", "%b-%Y",
)  # fmt: skip
#: So many values without a match are named; further ones are counted.
_MOST_VALUES = 12
_ROWS_TO_NAME_A_VALUE = 11
#: Distinct days that tell a date format; ten formats are tried on them.
_MOST_DAYS = 1_000
#: Share of the values that must be of a column's kind to be its values at all.
_MOSTLY = 0.5
#: Share of distinct values of a key, some rows delivered twice aside.
_DISTINCT = 0.9
#: From this score on nobody is asked whether a column is really the key.
_SURE = 0.8
#: What the likeness to a label counts beside that to a name.
_OF_LABEL = 0.95
#: Likeness of the letters of two words that are one, shortened or misspelt.
_SAME_WORD = 0.75


class ColumnMatch(BaseModel):
    """A column of a file and the column of ours that it seems to be.

    ``notes`` say what a person should look at: a date format that is ambiguous, values without a match.
    """

    model_config = ConfigDict(frozen=True)

    file_column: str
    column: str
    score: float
    date_format: str | None = None
    values: dict[str, str] = {}
    notes: tuple[str, ...] = ()


class PartialDates(BaseModel):
    """Cells of a date column that are a month or a year without a day, and the rule that completes them."""

    model_config = ConfigDict(frozen=True)

    column: str
    rule: str
    months: int
    years: int

    @property
    def note(self) -> str:
        """How many there are, and what each rule would make of them."""
        found = [
            f"{count:,} {what}" for count, what in ((self.months, "a month"), (self.years, "a year")) if count
        ]
        return (
            f"{' and '.join(found)} without a day; `partial_dates: {self.rule}` completes them. `first` is up to 30 "
            "days (of a year 365) too early, so that something may be known before it happened; `last` is as much "
            "too late; `middle` (the 15th, 1 July) is off by about half of that at most; `reject` leaves the rows out"
        )


class TableCheck(BaseModel):
    """What one file, or several of the same kind, seem to hold.

    Attributes:
        matches: proposed columns. unmatched: file columns without one.
        lists: list column -> the pattern of the numbered columns that are its cells.
        missing_required: our columns without which no row can be loaded.
        not_delivered: columns without a single value, delivered or not, which lower the completeness that quality
            control asks for (``config/quality.yaml``, ``expected``), of those that apply to every row.
        own: types of the columns that are kept under their own names, as declared or proposed.
        rows: rows of the files. rejected: reason -> rows that a load would reject, references aside.
        left_out: rule of the mapping -> rows that it leaves out.
        partial_dates: date columns with cells that have no day, and what the mapping makes of them.
        formats: file to its format, as people call it. labels: file column to what the file calls it in words.
        notes: what the files say of their rows besides the cells.
    """

    model_config = ConfigDict(frozen=True)

    table: str
    files: tuple[str, ...]
    format: FileFormat
    matches: tuple[ColumnMatch, ...]
    unmatched: tuple[str, ...]
    lists: dict[str, str] = {}
    missing_required: tuple[str, ...]
    not_delivered: tuple[str, ...] = ()
    own: dict[str, OwnType] = {}
    rows: int = 0
    rejected: dict[str, int] = {}
    left_out: dict[str, int] = {}
    partial_dates: tuple[PartialDates, ...] = ()
    formats: dict[str, str] = {}
    labels: dict[str, str] = {}
    notes: tuple[str, ...] = ()

    @property
    def kept_as_own(self) -> tuple[str, ...]:
        """Columns that are kept under their own name although we have none like them."""
        return self.unmatched if self.table == OWN_TABLE else ()


@dataclass(frozen=True)
class ImportCheck:
    """The proposal for a folder.

    Attributes:
        mapping: what would be written as ``mapping.yaml``.
        unassigned: files that hold none of our tables: the nearest table and what is missing for it.
        not_read: files and folders that a load with this mapping does not read, with the reasons.
        problems: why the folder could not be read with the mapping; empty when it could.
        delivery: the mapped rows; None when there are problems.
        errors: one for each problem, with its file, column and remedy.
        shape: the published shape that the folder has, whose mapping is proposed; None where it has none.
        notes: what a person should look at in the mapping of a shape.
    """

    folder: Path
    tables: tuple[TableCheck, ...]
    mapping: ImportMapping
    unassigned: Mapping[str, str]
    problems: tuple[str, ...]
    delivery: Delivery | None
    not_read: Mapping[str, str] = field(default_factory=dict)
    errors: tuple[InputError, ...] = ()
    shape: str | None = None
    notes: tuple[str, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """Everything but the rows, for ``--json``."""
        return {
            "folder": str(self.folder),
            "shape": self.shape,
            "notes": list(self.notes),
            "tables": [table.model_dump(mode="json") for table in self.tables],
            "unassigned": dict(self.unassigned),
            "problems": list(self.problems),
            "not_read": dict(self.not_read),
            "mapping": mapping_document(self.mapping),
        }


def check_folder(
    folder: str | Path,
    vocabulary: VocabularyPolicy,
    mapping: ImportMapping | None = None,
    *,
    expected: Mapping[str, Sequence[str]] | None = None,
) -> ImportCheck:
    """Look at every CSV and Parquet file of ``folder`` and propose a mapping, or judge a given one.

    Args:
        mapping: judged instead of proposing one; what it leaves unsaid is not guessed.
        expected: columns of each table that quality control expects to be filled.

    Raises:
        InputError: the folder does not exist or holds no such file.
    """
    folder = Path(folder)
    paths = _files(folder)
    differing: list[InputError] = []
    errors: tuple[InputError, ...] = ()
    tables: list[TableCheck] = []
    unassigned: dict[str, str] = {}
    shape = None
    proposed = mapping is None
    if mapping is None:
        formats = _formats(paths)
        shape = _shape(formats)
        if shape is not None:
            mapping = shape.mapping
        else:
            tables, unassigned, differing = _propose(formats, vocabulary)
            mapping = _mapping(tables, [path.name for path in paths])
    delivery: Delivery | None = None
    problems: tuple[str, ...] = ()
    asked = [table.table for table in tables] or None
    try:
        delivery = read(folder, mapping, asked, vocabulary=vocabulary)
        if proposed and (completions := _completions(delivery)):
            mapping = _with_completions(mapping, completions)
            delivery = read(folder, mapping, asked, vocabulary=vocabulary)
    except InputError as error:
        said = [line.strip(" -") for line in str(error).splitlines()[1:]]
        delivery, problems = None, (*map(str, differing), *said)
        ours = tuple(part for part in (error.parts or (error,)) if isinstance(part, InputError))
        errors = (*(placed(folder, error) for error in differing), *ours)
    if delivery is not None and proposed:
        mapping, delivery = _with_own_types(mapping, delivery)
    if delivery is not None:
        tables = [
            _with_counts(name, delivery, tables, mapping, vocabulary, (expected or {}).get(name, ()))
            for name in delivery
        ]
    return ImportCheck(
        folder,
        tuple(tables),
        mapping,
        unassigned,
        problems,
        delivery,
        not_read(folder, mapping),
        errors,
        shape=None if shape is None else shape.title,
        notes=() if shape is None else shape.notes,
    )


def mapping_document(mapping: ImportMapping) -> dict[str, Any]:
    """``mapping`` as plain values without what is default."""
    document = _short_names(mapping.model_dump(mode="json", exclude_defaults=True, by_alias=True))
    if "separator" in mapping.format.model_fields_set:
        # Text files need it said, also where it is a comma.
        document.setdefault("format", {})["separator"] = mapping.format.separator
    return document


def quality_yaml(found: ImportCheck, expected: Mapping[str, Sequence[str]]) -> str | None:
    """The ``quality.yaml`` of the source: what is expected of each table that lacks columns; None where none does.

    Args:
        expected: columns of each table that quality control expects to be filled.
    """
    delivered = {
        table.table: [name for name in expected.get(table.table, ()) if name not in table.not_delivered]
        for table in found.tables
        if table.not_delivered
    }
    tables = {name: {"expected": columns} for name, columns in delivered.items() if columns}
    if not tables:
        return None
    head = (
        "# Proposed by `e2i import check`: columns whose empty cells count, without those that have no value at all.\n"
        "# It holds once `source` of config/sources.yaml names the mapping beside it (docs/own_data.md).\n"
    )
    return head + yaml.safe_dump({"tables": tables}, sort_keys=False, width=110, default_flow_style=None)


def _short_names(value: Any) -> Any:
    """``{from: dx1}`` as ``dx1``, and what is alone in a list of names without the list."""
    if isinstance(value, dict):
        return (
            value["from"]
            if list(value) == ["from"]
            else {key: _short_names(item) for key, item in value.items()}
        )
    return [_short_names(item) for item in value] if isinstance(value, list) else value


def mapping_yaml(found: ImportCheck) -> str:
    """The mapping as a file for people: what is unsure stands as a comment at the top."""
    notes = [f"#   {note}" for note in found.notes]
    notes += [
        f"#   {table.table}.{match.column}: {note}"
        for table in found.tables
        for match in table.matches
        for note in match.notes
    ]
    notes += [
        f"#   {table.table}.{partial.column}: {partial.note}"
        for table in found.tables
        for partial in table.partial_dates
    ]
    notes += [
        f"#   {table.table}: no match for file column(s) {', '.join(table.unmatched)}"
        + (" (kept under their own names)" if table.kept_as_own else " (not loaded)")
        for table in found.tables
        if table.unmatched
    ]
    notes += [
        f"#   {table.table}.own: types proposed from all cells; what is not certain is text, as which it is kept"
        for table in found.tables
        if table.own
    ]
    notes += [f"#   {name}: holds none of our tables; {why}" for name, why in found.unassigned.items()]
    head = f"# Read as {found.shape}.\n" if found.shape else ""
    head += "# Proposed by `e2i import check`: read it before you load. docs/loading.md says what each key means.\n"
    if notes:
        head += "# To look at:\n" + "\n".join(notes) + "\n"
    body = yaml.safe_dump(
        mapping_document(found.mapping),
        sort_keys=False,
        allow_unicode=True,
        width=110,
        default_flow_style=None,
    )
    return head + body


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "does not exist"
        raise InputError(
            f"{folder}: {what}.", file=folder, remedy="Give the folder that holds the supplier's files."
        )
    paths = readable_files(folder)
    if not paths:
        refused = "".join(f"\n  - {said}" for said in refused_files(folder))
        remedy = "Save what you have as one of them."
        raise InputError(f"{folder}: no file that is read ({READ}).{refused}", file=folder, remedy=remedy)
    return paths


# What a file looks like.


def _formats(paths: Sequence[Path]) -> dict[Path, FileFormat]:
    """The format of each file; one without a decimal number takes the decimal mark of its siblings."""
    formats: dict[Path, FileFormat] = {}
    undecided = []
    for path in paths:
        if recognise(path) is not CSV:
            formats[path] = FileFormat()
            continue
        encoding, text = _beginning(path)
        header, _, body = text.partition("\n")
        separator = max(_SEPARATORS, key=header.count)
        # A comma goes without saying, but not in .txt and .tsv files.
        said = {} if separator == "," and text_ending(path) == ".csv" else {"separator": separator}
        cell = rf'(?:^|[{re.escape(separator)}])"?-?\d+{{}}\d+"?(?=[{re.escape(separator)}\r\n])'
        comma, point = (len(re.findall(cell.format(mark), body, re.MULTILINE)) for mark in (",", r"\."))
        if not comma and not point and separator != ",":
            undecided.append(path)
        decimal = "," if separator != "," and comma > point else "."
        form = FileFormat.model_validate({**said, "encoding": encoding, "decimal": decimal})
        formats[path] = form.model_copy(update=proposed_quoting(path, form))
    for path in undecided:
        own = formats[path]
        siblings = [
            form.decimal
            for other, form in formats.items()
            if other not in undecided and (form.separator, form.encoding) == (own.separator, own.encoding)
        ]
        if siblings:
            formats[path] = own.model_copy(update={"decimal": max(siblings, key=siblings.count)})
    return formats


def _beginning(path: Path) -> tuple[str, str]:
    """Encoding and first lines of a text file."""
    with open_bytes(path) as stream:
        start = stream.read(1 << 16)
    if start[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return "utf-16", start.decode("utf-16", errors="ignore")
    # The chunk may end inside a character.
    lines = start[: start.rfind(b"\n") + 1 or len(start)]
    for encoding in _ENCODINGS:
        try:
            return "utf-8" if encoding == "utf-8-sig" else encoding, lines.decode(encoding)
        except UnicodeDecodeError:
            continue
    return "latin-1", lines.decode("latin-1")


def _sample(path: Path, form: FileFormat, rows: int) -> tuple[pd.DataFrame, Mapping[str, ColumnNotes]]:
    """The first rows of a file as text, nulls as null, and what it says of its columns."""
    if recognise(path) is not CSV:
        records = open_records(path, form)
        given = frame_of(records.head(rows))
        # As the loader keeps own columns: lists, structures and bytes have no text of their own.
        return pd.DataFrame(
            {str(name): cell_text(given[name]) for name in given.columns}
        ), records.summary.columns
    with open_text(path, form) as stream:
        # By records and not by lines: a cell may hold line breaks.
        records = list(itertools.islice(records_of(stream, path, form, strict=False), rows + 1))
    records = [record for record in records if record]
    if not records:
        raise empty_file(path)
    header = [name.strip() for name in records[0]]
    body = [record for record in records[1:] if len(record) == len(header)]
    frame = pd.DataFrame(body, columns=header, dtype="string[pyarrow]")
    return frame.mask(frame.apply(lambda column: column.str.strip() == "")), {}


# Which table, which column.


def _shape(formats: Mapping[Path, FileFormat]) -> Recognised | None:
    """The published shape of a folder, by the headers of its files."""
    headers = {
        path.name: [str(name) for name in _sample(path, form, 1)[0].columns] for path, form in formats.items()
    }
    said = {
        path.name: form.model_dump(exclude_unset=True, exclude_defaults=True)
        for path, form in formats.items()
    }
    return recognised(headers, said)


def _propose(
    formats: Mapping[Path, FileFormat], vocabulary: VocabularyPolicy
) -> tuple[list[TableCheck], dict[str, str], list[InputError]]:
    """Each file's best table; files without one, and why; files with another header than their table's first."""
    found: dict[str, list[tuple[Path, FileFormat, list[ColumnMatch], list[str]]]] = {}
    unassigned: dict[str, str] = {}
    lists_of: dict[Path, dict[str, str]] = {}
    for path, form in formats.items():
        sample, about = _sample(path, form, vocabulary.column_matching.sample_rows)
        columns = [_FileColumn(str(name), sample[name], about.get(str(name))) for name in sample.columns]
        named = [table for table in _TABLES if _is_named(path, table)]
        ranked = sorted(
            (
                (_fit(table, path, sample, matches), table, matches)
                for table in named or _TABLES
                for matches in [_match_columns(table, path, columns, form, vocabulary)]
            ),
            key=lambda match: -match[0],
        )
        possible = [match for match in ranked if not _lacking(match[1], match[2])]
        if not possible or possible[0][0] <= 0:
            read_as = "" if (of := recognise(path)) in (CSV, None) else f"read as {of.name}; "
            unassigned[path.name] = read_as + _nearest(named, ranked, columns, vocabulary.column_matching)
            continue
        _, table, matches = possible[0]
        lists = _lists(table, columns, vocabulary.column_matching)
        names = list(sample.columns)
        in_lists = {name for pattern in lists.values() for name in expanded(pattern, names).values()}
        lists_of[path] = lists
        matches = [match for match in matches if match.file_column not in in_lists or match.score >= _SURE]
        taken = {match.file_column for match in matches} | in_lists
        rest = [name for name in sample.columns if name not in taken and name not in IGNORED_COLUMNS]
        found.setdefault(table, []).append((path, form, matches, rest))
    tables, differing = [], []
    for table in (name for name in _TABLES if name in found):
        files = found[table]
        first, form, matches, rest = files[0]
        header = {*(match.file_column for match in matches), *rest}
        for path, _, its_matches, its_rest in files[1:]:
            other = {*(match.file_column for match in its_matches), *its_rest}
            if header - other:
                lacks, has = (", ".join(sorted(names)) for names in (header - other, other - header))
                what = (
                    f"not the columns of {first.name}, which holds {table} too (without {lacks}; "
                    f"with {has or 'no other'})"
                )
                remedy = "Write `parts` in the mapping, one for each shape, or give them one header."
                differing.append(refusal(path, what, remedy, field="parts"))
        tables.append(
            TableCheck(
                table=table,
                files=tuple(path.name for path, *_ in files),
                format=form,
                matches=tuple(matches),
                unmatched=tuple(rest),
                lists=lists_of[first],
                missing_required=_lacking(table, matches),
            )
        )
    return tables, unassigned, differing


def _lists(table: str, columns: Sequence[_FileColumn], rules: ColumnMatching) -> dict[str, str]:
    """Lists of a table that numbered columns of a file are, with the pattern of these."""
    meanings = _meanings(columns, rules)
    return proposed_lists(
        table, {column.name: column.text for column in columns}, lambda name: _words(name, meanings)
    )


def _lacking(table: str, matches: Sequence[ColumnMatch]) -> tuple[str, ...]:
    """Required columns of a table that no file column is."""
    matched = {match.column for match in matches}
    return tuple(name for name in required_columns(table) if name not in matched)


def _nearest(
    named: Sequence[str],
    ranked: Sequence[tuple[float, str, list[ColumnMatch]]],
    given: Sequence[_FileColumn],
    rules: ColumnMatching,
) -> str:
    """The table that holds most of what a file says, and what is missing for it.

    A file with the name of a table (``named``) is nearest to that one.
    """

    def understood(table: str, matches: Sequence[ColumnMatch]) -> float:
        required = required_columns(table)
        return sum(match.score for match in matches) + 1 - len(_lacking(table, matches)) / len(required)

    _, table, matches = max(ranked, key=lambda match: (understood(match[1], match[2]), match[0]))
    lacking = _lacking(table, matches)
    repeated = "".join(f". {said}" for said in _repeated_keys(table, lacking, given, rules))
    if named:
        return (
            f"named like {table}, without {', '.join(lacking)}: a load takes it for that table and refuses it. "
            f"Deliver these columns, map columns to them, or rename the file{repeated}"
        )
    if not matches and not repeated:
        return "no column is like one of any table"
    lacks = f"without {', '.join(lacking)}" if lacking else "but little else is alike"
    return f"nearest to {table}, {lacks}{repeated}"


def _repeated_keys(
    table: str,
    lacking: Sequence[str],
    given: Sequence[_FileColumn],
    rules: ColumnMatching,
) -> list[str]:
    """File columns that are called like the key of ``table``, which is ``lacking``, and cannot be it."""
    key = primary_key(table)
    if key not in lacking:
        return []
    meanings = _meanings(given, rules)
    return [
        f"{column.name} is called like its key {key} but repeats ({column.text.nunique():,} values in "
        f"{len(column.text):,} rows), so it is no key"
        for column in given
        if column.repeats and _alike(column.name, key, meanings) >= rules.minimum
    ]


def _is_named(path: Path, table: str) -> bool:
    """Whether a load would take the file for ``table`` by its name alone."""
    return re.fullmatch(rf"{table}([_.-].*)?", stem_of(path), re.IGNORECASE) is not None


def _fit(table: str, path: Path, sample: pd.DataFrame, matches: Sequence[ColumnMatch]) -> float:
    """How well a file fits a table: matched columns, covered requirements, and its name."""
    if _is_named(path, table):
        return 10.0
    matched = {match.column for match in matches}
    required = required_columns(table)
    covered = sum(name in matched for name in required) / len(required)
    share = sum(match.score for match in matches) / max(len(sample.columns), 1)
    name = difflib.SequenceMatcher(None, stem_of(path).lower(), table).ratio()
    # Without its key a table cannot be loaded, so a file that lacks it is hardly this table.
    return share + covered + 0.5 * name - 1.2 if covered else -1.0


def _match_columns(
    table: str, path: Path, given: Sequence[_FileColumn], form: FileFormat, vocabulary: VocabularyPolicy
) -> list[ColumnMatch]:
    """Pairs of file column and ours, best first, each column once.

    An identifier is ours only where its name or that of the file says what it identifies: a ``member_id`` is no
    ``patient_journey_id``, but the ``id`` of ``doctors.csv`` is an ``hcp_id``. A key does not repeat.
    """
    rules = vocabulary.column_matching
    aliases = vocabulary.column_aliases.get(table, {})
    meanings = _meanings(given, rules)
    key = primary_key(table)
    of_file = [
        word for part in _words(stem_of(path), {}) for word in _words(part.removesuffix("s"), rules.words)
    ]
    candidates = []
    for other in given:
        if other.name in IGNORED_COLUMNS:
            continue
        for column in raw_table(table).columns:
            if column.name in MAINTAINED_COLUMNS or column.name == "extra":
                continue
            is_ours = column.name in (other.name, aliases.get(other.name))
            name = 1.0 if is_ours else other.alike(column.name, meanings)
            if name < rules.minimum * 2 / 3:
                continue
            if not is_ours and column.name == key and other.repeats:
                continue
            if not is_ours and column.name.endswith("_id"):
                said = [*_words(other.name, meanings), *_words(other.label, meanings), *of_file]
                if not _says(said, column.name.removesuffix("_id").rpartition("_")[2]):
                    continue
            values = _value_fit(other, column, form, vocabulary)
            if values is None:
                continue
            same = other.name == column.name and not values.notes
            score = 1.0 if same else 0.75 * name + 0.25 * values.share
            if score >= rules.minimum:
                candidates.append((score, other.name, column.name, values))
    candidates.sort(key=lambda candidate: (-candidate[0], candidate[1], candidate[2]))
    matches: list[ColumnMatch] = []
    used: set[tuple[str, str]] = set()
    for score, file_column, name, values in candidates:
        if ("file", file_column) in used or ("ours", name) in used:
            continue
        used |= {("file", file_column), ("ours", name)}
        matches.append(
            ColumnMatch(
                file_column=file_column,
                column=name,
                score=round(score, 2),
                date_format=values.date_format,
                values=values.values,
                notes=(
                    *values.notes,
                    *_generic_notes(file_column, name, rules, aliases),
                    *(
                        ("is it really the key, another one in every row?",)
                        if name == key and score < _SURE
                        else ()
                    ),
                ),
            )
        )
    order = {column.name: place for place, column in enumerate(given)}
    return sorted(matches, key=lambda match: order[match.file_column])


def _meanings(given: Sequence[_FileColumn], rules: ColumnMatching) -> dict[str, str]:
    """What words stand for in this file; a generic one where another column says a word of its meaning."""
    said = {word for column in given for word in _words(column.name, rules.words)}
    generic = {word: meaning for word, meaning in rules.generic_words.items() if said & set(meaning.split())}
    return {**generic, **rules.words}


def _generic_notes(
    given: str, ours: str, rules: ColumnMatching, aliases: Mapping[str, str]
) -> tuple[str, ...]:
    if given == ours or aliases.get(given) == ours:
        return ()
    # Only its own words are compared: none of them is translated here.
    return tuple(
        f"{word!r} has many meanings: is it really the {rules.generic_words[word]}?"
        for word in _words(given, {})
        if word in rules.generic_words
    )


def _words(name: str, meanings: Mapping[str, str]) -> list[str]:
    split = re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", name)
    parts = [part for part in re.split(r"[^a-z0-9]+", split.lower()) if part]
    return [word for part in parts for word in meanings.get(part, part).split()]


def _alike(given: str, ours: str, meanings: Mapping[str, str]) -> float:
    """Likeness of two column names from 0 to 1: shared words, or shared letters."""
    left, right = _words(given, meanings), _words(ours, meanings)
    if left == right:
        return 1.0
    shared = len(set(left) & set(right))
    dice = 2 * shared / (len(set(left)) + len(set(right)))
    return max(dice, 0.9 * _shared_letters("".join(left), "".join(right)))


def _says(said: Sequence[str], asked: str) -> bool:
    """Whether the word ``asked`` is among ``said``: as it is, as a part of one, or shortened or misspelt."""
    return any(asked in word or _shared_letters(word, asked) >= _SAME_WORD for word in said)


@cache
def _shared_letters(left: str, right: str) -> float:
    """The likeness of two names by their letters; names of ours come back in many tables."""
    return difflib.SequenceMatcher(None, left, right).ratio()


@dataclass(frozen=True)
class _Values:
    share: float
    date_format: str | None = None
    values: dict[str, str] = None  # type: ignore[assignment]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.values is None:
            object.__setattr__(self, "values", {})


class _FileColumn:
    """The filled cells of a file's column as text; whether they are days is asked once, not for each table."""

    def __init__(self, name: str, values: pd.Series, about: ColumnNotes | None) -> None:
        self.name = name
        self.label = (about and about.label) or ""
        self.value_labels = about.values if about else {}
        self.text = values.dropna().astype("string[pyarrow]").str.strip()

    def alike(self, ours: str, meanings: Mapping[str, str]) -> float:
        """Likeness of a column of ours to its name, or to its label, which says it in more words."""
        by_label = _OF_LABEL * _alike(self.label, ours, meanings) if self.label else 0.0
        return max(_alike(self.name, ours, meanings), by_label)

    @cached_property
    def repeats(self) -> bool:
        """Whether values come again and again, as those of a key do not, some delivered twice aside."""
        return self.text.nunique() < _DISTINCT * len(self.text)

    @cached_property
    def days(self) -> _Values | None:
        return _dates(self.text)


def _value_fit(
    given: _FileColumn, column: sa.Column[Any], form: FileFormat, vocabulary: VocabularyPolicy
) -> _Values | None:
    """How well values fit a column of ours; None when they cannot be its values."""
    text = given.text
    if not len(text):
        return _Values(0.5)
    kind = kind_of(column)
    about = facts(column)
    if kind in ("date", "timestamp"):
        return given.days
    if kind in ("number", "integer"):
        return _numbers(text, column, form)
    if about.vocabulary:
        return _vocabulary_fit(text, about.vocabulary, vocabulary, given.value_labels)
    return _boolean_fit(text) if kind == "boolean" else _text_fit(text, column.name)


def _text_fit(text: pd.Series, name: str) -> _Values | None:
    if name.endswith("diagnosis_code"):
        shape = cell_shape(("icd10cm",))
        share = float(text.str.fullmatch(shape.removeprefix("^").removesuffix("$")).mean())
        return _Values(share) if share > 0 else None
    return _Values(0.5)


def _numbers(text: pd.Series, column: sa.Column[Any], form: FileFormat) -> _Values | None:
    about = facts(column)
    plain = text.str.replace(",", ".", regex=False) if form.decimal == "," else text
    numbers = numbers_of(plain)
    share = float(numbers.notna().mean())
    if share < _MOSTLY:
        return None
    inside = (about.minimum is None or float(numbers.min()) >= about.minimum) and (
        about.maximum is None or float(numbers.max()) <= about.maximum
    )
    notes = () if inside else ("some values lie outside our range: another unit?",)
    return _Values(share if inside else share / 2, notes=notes)


def _dates(text: pd.Series) -> _Values | None:
    import pyarrow as pa

    distinct = pd.Series(text.unique()[:_MOST_DAYS], dtype=object)
    judged = moments.days(pa.array(distinct.tolist(), pa.large_string()))
    # A month or year without a day is one by a rule that the mapping declares.
    known = judged.values.is_valid().to_numpy(zero_copy_only=False)
    partial = np.array([moments.completed(value, "first") is not None for value in distinct], dtype=bool)
    taken = float((known | partial).mean())
    fits = {
        form: float(np.mean([iso_text(value, form) is not None for value in distinct]))
        for form in _DATE_FORMATS
    }
    if taken >= max(fits.values()):
        return _Values(taken) if taken >= _MOSTLY else None
    best = max(fits, key=lambda form: fits[form])
    if fits[best] < _MOSTLY:
        return None
    equal = [form for form, share in fits.items() if share == fits[best] and form != best]
    notes = (f"{best} and {' and '.join(equal)} fit equally well: which one is it?",) if equal else ()
    return _Values(fits[best], date_format=best, notes=notes)


def _boolean_fit(text: pd.Series) -> _Values | None:
    lower = text.str.lower()
    share = float(lower.isin((*TRUE, *FALSE)).mean())
    if share == 1.0:
        return _Values(1.0)
    distinct = list(lower.unique())
    if len(distinct) > 3:
        return None
    return _Values(
        max(share, 0.3),
        notes=(f"{len(distinct)} spellings that are not true or false: add them to `values`",),
    )


def _vocabulary_fit(
    text: pd.Series, name: str, policy: VocabularyPolicy, labels: Mapping[str, str]
) -> _Values | None:
    accepted = policy.values(name)
    known = {**{value.lower(): value for value in accepted}}
    known |= {alias.lower(): target for alias, target in policy.aliases(name).items() if target}
    distinct = [str(value) for value in text.unique()]
    exact = set(accepted) | set(policy.aliases(name))
    translated: dict[str, str] = {}
    left = []
    for value in distinct:
        if value in exact:
            continue
        word = labels.get(value, value).lower()
        target = known.get(word.replace(" ", "_"), known.get(word))
        begins = [value for value in accepted if len(word) > 2 and value.lower().startswith(word)]
        if target is None and len(begins) == 1:
            target = begins[0]
        if target is None:
            left.append(value)
        else:
            translated[value] = target
    share = float((~text.isin(left)).mean())
    if share == 0 and len(left) > _MOST_VALUES:
        return None
    notes: tuple[str, ...] = ()
    if left:
        # A value of a few rows could be one patient's.
        counts = text[text.isin(left)].value_counts()
        named = sorted(str(value) for value in counts.index[counts >= _ROWS_TO_NAME_A_VALUE][:_MOST_VALUES])
        more = len(left) - len(named)
        said = [*map(repr, named), *([f"{more} other value(s)"] if more else [])]
        notes = (
            f"not in the vocabulary {name!r}: {', '.join(said)}. Map them under `values`, or add them to "
            f"config/vocabulary.yaml ({name}) if they are yours",
        )
    return _Values(max(share, 0.3), values=translated, notes=notes)


def _pattern(files: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    """Several files as one pattern that the next month's file fits too, where it names no other file."""
    letters = zip(*(Path(name).stem for name in files), strict=False)
    shared = itertools.takewhile(lambda of_all: len(set(of_all)) == 1, letters)
    beginning = "".join(of_all[0] for of_all in shared).rstrip("0123456789")
    pattern = f"{beginning}*{Path(files[0]).name.removeprefix(stem_of(Path(files[0])))}"
    exact = len(files) > 1 and beginning and sorted(fnmatch.filter(names, pattern)) == sorted(files)
    return (pattern,) if exact else tuple(files)


def _mapping(tables: Sequence[TableCheck], names: Sequence[str]) -> ImportMapping:
    """The mapping that says what the proposal found; a format that all files share is said once."""
    formats = [table.format for table in tables]
    alike = bool(formats) and all(form == formats[0] for form in formats)
    common = max(formats, key=lambda form: len(form.model_fields_set)) if alike else FileFormat()
    own: dict[str, TableMapping] = {}
    for table in tables:
        differs = (
            {}
            if table.format == common
            else {
                name: value
                for name, value in table.format.model_dump(exclude={"nulls"}).items()
                if value != getattr(common, name) or name in table.format.model_fields_set
            }
        )
        plain = all(_is_named(Path(name), table.table) for name in table.files)
        own[table.table] = TableMapping(
            files=() if plain else _pattern(table.files, names),
            rename={m.file_column: m.column for m in table.matches if m.file_column != m.column},
            columns={name: Expression.model_validate({"list": codes}) for name, codes in table.lists.items()},
            dates={m.column: m.date_format for m in table.matches if m.date_format},
            values={m.column: m.values for m in table.matches if m.values},
            **differs,
        )
    own = {name: mapping for name, mapping in own.items() if mapping != TableMapping()}
    return ImportMapping(format=common, tables=own)


def _with_own_types(mapping: ImportMapping, delivery: Delivery) -> tuple[ImportMapping, Delivery]:
    """The mapping with a type for each own column, by all of its cells, and the rows as it would read them."""
    if OWN_TABLE not in delivery:
        return mapping, delivery
    known = raw_table(OWN_TABLE).columns.keys()
    frame = delivery[OWN_TABLE]
    comma = mapping.format_of(OWN_TABLE).decimal == ","
    texts = {str(name): frame[name] for name in frame.columns if name not in known}
    readings = {name: with_decimal_point(cells) if comma else cells for name, cells in texts.items()}
    own = {name: proposed_type(cells) for name, cells in readings.items()}
    if not own:
        return mapping, delivery
    numbers = {name: cells for name, cells in readings.items() if own[name] == "number"}
    table = replace(delivery.delivered[OWN_TABLE], frame=frame.assign(**numbers), own=own)
    described = mapping.table(OWN_TABLE).model_copy(update={"own": own})
    return (
        mapping.model_copy(update={"tables": {**mapping.tables, OWN_TABLE: described}}),
        replace(delivery, delivered={**delivery.delivered, OWN_TABLE: table}),
    )


def proposed_type(cells: pd.Series) -> OwnType:
    """The type to propose for an own column: another one than text only where no cell would lose anything by it.

    A number: every cell can be written again from its value, so there is no leading zero, there are at most 15
    significant digits, and zeros at the end only where all cells have as many decimals. A day: ``YYYY-MM-DD``.
    A boolean: true and false, or yes and no, both seen.
    """
    given = cells.dropna()
    if given.empty:
        return "text"
    if set(given.str.lower().unique()) in ({"true", "false"}, {"yes", "no"}):
        return "boolean"
    if given.str.fullmatch(r"\d{4}-\d{2}-\d{2}").all() and not read_as(given, "date")[1]:
        return "date"
    plain = given.str.fullmatch(r"-?(0|[1-9]\d*)(\.\d+)?").all()
    digits = given.str.replace(r"^-?[0.]*|\.", "", regex=True).str.len()
    decimals = given.str.extract(r"\.(\d+)$", expand=False).str.len().fillna(0)
    rounded = given.str.fullmatch(r".*\.\d*0").any() and decimals.nunique() > 1
    return "number" if plain and not (digits > 15).any() and not rounded else "text"


def _completions(delivery: Delivery) -> dict[str, dict[str, Completion]]:
    """Table -> date column with cells that have no day -> the rule to propose.

    The first day, as is usual, and the last for what ends a span, so that no end comes to lie before its start.
    """
    found: dict[str, dict[str, Completion]] = {}
    for name, frame in delivery.items():
        ends = {span.other for span in spans(name)}
        for column in raw_table(name).columns:
            if kind_of(column) not in ("date", "timestamp") or column.name not in frame.columns:
                continue
            rule: Completion = "last" if column.name in ends else "first"
            if len(complete_dates(frame, {column.name: rule})[1]):
                found.setdefault(name, {})[column.name] = rule
    return found


def _with_completions(
    mapping: ImportMapping, completions: Mapping[str, Mapping[str, Completion]]
) -> ImportMapping:
    tables = {
        name: mapping.table(name).model_copy(update={"partial_dates": dict(rules)})
        for name, rules in completions.items()
    }
    return mapping.model_copy(update={"tables": {**mapping.tables, **tables}})


def _partial_dates(delivery: Delivery, name: str) -> tuple[PartialDates, ...]:
    cells = delivery.delivered[name].completed
    return tuple(
        PartialDates(
            column=str(column),
            rule=str(of_column["rule"].iloc[0]),
            months=int((of_column["precision"] == "month").sum()),
            years=int((of_column["precision"] == "year").sum()),
        )
        for column, of_column in cells.groupby("column", sort=False)
    )


def _with_counts(
    name: str,
    delivery: Delivery,
    tables: Sequence[TableCheck],
    mapping: ImportMapping,
    vocabulary: VocabularyPolicy,
    expected: Sequence[str],
) -> TableCheck:
    """The table with its rows and what a load would reject, references and repeated keys aside."""
    frame = delivery[name]
    checked = check(name, frame, vocabulary, delivery.delivered[name].own)
    counts: dict[str, int] = {}
    for fault in checked.faults:
        what = f"{fault.reason} in {fault.column}" if fault.column else fault.reason
        counts[what] = counts.get(what, 0) + len(fault.positions)
    before = next((table for table in tables if table.table == name), None)
    if before is None:
        known = raw_table(name).columns.keys()
        before = TableCheck(
            table=name,
            files=tuple(file.name for file in delivery.delivered[name].files),
            format=mapping.format_of(name),
            matches=tuple(
                ColumnMatch(file_column=given, column=ours, score=1.0)
                for given, ours in mapping.table(name).rename.items()
            ),
            unmatched=tuple(str(column) for column in frame.columns if column not in known),
            missing_required=(),
        )
    columns = raw_table(name).columns
    return before.model_copy(
        update={
            "own": dict(delivery.delivered[name].own),
            "formats": {file.name: file.format_name for file in delivery.delivered[name].files},
            "labels": {
                column: notes.label
                for file in delivery.delivered[name].files
                for column, notes in file.summary.columns.items()
                if notes.label
            },
            "notes": delivery.delivered[name].notes,
            "rows": len(frame),
            "rejected": counts,
            "left_out": dict(delivery.delivered[name].left_out),
            "partial_dates": _partial_dates(delivery, name),
            "not_delivered": tuple(
                column
                for column in expected
                if _without_a_value(frame, column) and not facts(columns[column]).applies_to
            ),
        }
    )


def _without_a_value(frame: pd.DataFrame, column: str) -> bool:
    """Whether ``column`` is not there, or no row of a table with rows has a value in it."""
    if column not in frame.columns:
        return True
    cells = frame[column]
    return len(frame) > 0 and bool((cells.isna() | (cells.astype(str).str.strip() == "")).all())


def readable_rows(table: str, frame: pd.DataFrame, vocabulary: VocabularyPolicy) -> pd.DataFrame:
    """The rows of ``frame`` in canonical form, each key once; cells that cannot be read are null.

    Rows that a load would reject for one cell are among them, so that their other cells can be looked at.
    """
    from e2i_dagster.tables.frames import conform

    columns = raw_table(table).columns
    # Lists are parsed into the database's own notation, which frames do not have.
    rows = check(table, frame, vocabulary).rows.to_pandas()
    rows = rows[[name for name in rows.columns if kind_of(columns[str(name)]) != "list"]]
    key = primary_key(table)
    return conform(table, rows[rows[key].notna()].drop_duplicates(key).reset_index(drop=True))
