"""OMOP tables of a folder as relations of a DuckDB connection, columns checked and typed.

``person.csv``, ``person.csv.gz``, ``person.parquet`` or a folder ``person/`` of such parts; names and column
names in any case, delimiters as found. In CSV an empty cell, NA, NULL and NaN are missing values.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from e2i_dagster.cohorts.omop.domains import TABLES
from e2i_dagster.cohorts.omop.sql_plan import Plan
from e2i_dagster.config.mapping import FileFormat
from e2i_dagster.errors import InputError
from e2i_dagster.tables import moments

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection, DuckDBPyRelation

Kind = Literal["csv", "parquet"]
#: The mark around cells that hold a separator, or none where a quotation mark is text like any other.
Quote = Literal['"', "none"]
SUFFIXES: dict[str, Kind] = {".csv": "csv", ".csv.gz": "csv", ".parquet": "parquet"}
MISSING_IN_CSV = ["", "NA", "NULL", "NaN"]
_MISSING_SQL = ", ".join(f"'{text}'" for text in MISSING_IN_CSV)
#: Marks an error of ours among those of DuckDB.
READ_MARK = "omop column "
#: What may stand between the cells of a CSV file.
SEPARATORS = ",\t;|"
DAY_FUNCTION = "day_of_text"
TYPES = {"id": "BIGINT", "date": "DATE", "number": "DOUBLE", "text": "VARCHAR"}
#: Tables that events are joined to, by this column.
UNIQUE = {"person": "person_id", "visit_occurrence": "visit_occurrence_id"}
INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}
DATES = {"DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"}
MOMENTS = {"TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ_NS"}
#: Days from here on (2099-12-31, 9999-12-31) are written for an end that nobody knows.
FAR_AWAY = dt.date(2099, 12, 31)
PERIOD_START, PERIOD_END = "observation_period_start_date", "observation_period_end_date"
EXPECTED = {"id": "whole numbers", "date": "dates (YYYY-MM-DD)", "number": "numbers", "text": "text"}


@dataclass(frozen=True)
class OpenPeriods:
    """Observation periods that were delivered without an end: their persons were still observed.

    Attributes:
        count: number of such periods.
        subjects: their persons, ascending.
        until: the day that stands for their end; None when there are none.
    """

    count: int = 0
    subjects: tuple[int, ...] = ()
    until: dt.date | None = None


@dataclass(frozen=True)
class TableFiles:
    """The files of one table."""

    table: str
    paths: tuple[Path, ...]
    kind: Kind

    @property
    def name(self) -> str:
        """Name for messages: the file, or the folder of the parts."""
        return self.paths[0].name if len(self.paths) == 1 else f"{self.paths[0].parent.name}/"


def find_tables(folder: Path, plan: Plan) -> list[TableFiles]:
    """The files of every table that the plan reads.

    Raises:
        InputError: there is no such folder, or needed tables are missing, all of them named.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder.", remedy="Give a folder of OMOP tables.")
    found: dict[str, TableFiles] = {}
    for entry in sorted(folder.iterdir()):
        files = _table_files(entry)
        if files is None or files.table not in TABLES:
            continue
        if files.table in found:
            raise InputError(
                f"{folder}: the table {files.table} is there twice ({found[files.table].name}, {files.name}).",
                remedy="Remove one.",
            )
        found[files.table] = files
    missing = [(table, path) for table, path in plan.needed.items() if table not in found]
    if missing:
        listed = "; ".join(f"{table} (read at {path})" for table, path in missing)
        raise InputError(
            f"{folder}: needed tables are missing: {listed}.",
            remedy="Add each as TABLE.csv or TABLE.parquet.",
        )
    wanted = [*plan.needed, *(["concept"] if "concept" in found else [])]
    return [found[table] for table in wanted]


def _table_files(entry: Path) -> TableFiles | None:
    name = entry.name.lower()
    if entry.is_dir():
        parts = [part for part in sorted(entry.iterdir()) if _suffix(part.name)]
        kinds: set[Kind] = {SUFFIXES[str(_suffix(part.name))] for part in parts}
        if len(kinds) > 1:
            raise InputError(f"{entry}: CSV and Parquet parts are mixed.", remedy="Keep one kind.")
        return TableFiles(name, tuple(parts), kinds.pop()) if parts else None
    suffix = _suffix(name)
    return None if suffix is None else TableFiles(name.removesuffix(suffix), (entry,), SUFFIXES[suffix])


def _suffix(name: str) -> str | None:
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)


def load_tables(
    connection: DuckDBPyConnection,
    files: list[TableFiles],
    plan: Plan,
    data_end: dt.date | None = None,
    quote: Quote = '"',
) -> OpenPeriods:
    """Make ``cdm_<table>`` of each, with the columns of :data:`.domains.TABLES`.

    Parquet with the right types is read by the statements that need it; everything else is read and
    checked once, here. Without a file ``concept`` there is no concept known to be invalid.

    Args:
        data_end: the end of observation periods that have none; the last day of the data by default.
        quote: the mark around cells of CSV files.

    Raises:
        InputError: a file cannot be read, a quotation mark in it is text, or a column that the definition asks
            for is missing.
    """
    import duckdb

    # DuckDB's own casts of text differ between its versions and take 05-01-23 for the year 5.
    day: dict[str, Any] = {"parameters": ["VARCHAR"], "return_type": "DATE", "type": "arrow"}
    connection.create_function(DAY_FUNCTION, _day, null_handling="special", **day)  # type: ignore[arg-type]
    for file in files:
        try:
            if file.kind == "parquet":
                paths: Any = [
                    str(path) for path in file.paths
                ]  # DuckDB takes lists, its signatures know files only
                given = connection.read_parquet(paths, union_by_name=True)
            else:
                given = _read_csv(connection, file, quote)
            types = {
                name.lower(): (name, str(kind)) for name, kind in zip(given.columns, given.types, strict=True)
            }
            columns = _columns(file, types, plan)
            wanted = given.project(", ".join(columns))
            checked = any(READ_MARK in column for column in columns)
            if file.kind == "parquet" and not checked and file.table != "observation_period":
                wanted.create_view(f"cdm_{file.table}")
            else:
                _create(wanted, file, given, types)
            _check_unique(connection, file)
            _check_calendar(connection, file)
            _check_starts(connection, file)
        except duckdb.Error as error:
            raise _unreadable(file, error) from None
    connection.execute("CREATE TABLE IF NOT EXISTS cdm_concept (concept_id BIGINT, invalid_reason VARCHAR)")
    return _close_periods(connection, [file.table for file in files], data_end)


def _read_csv(connection: DuckDBPyConnection, files: TableFiles, quote: Quote) -> DuckDBPyRelation:
    """The cells of CSV files as text.

    Raises:
        InputError: rows would be folded into one cell, or the rows by the lines are not those of the parser.
    """
    from e2i_dagster.sources.formats.delimited import count_lines, count_rows

    advice = (
        'Where the file is written without quoting, say `--quote none` (`build(..., quote="none")`); else '
        'double the mark inside quoted cells (""), or write the table as Parquet.'
    )
    separators = sorted({_separator(path) for path in files.paths})
    if len(separators) > 1:
        raise InputError(
            f"{files.name}: its parts are separated by {' and '.join(map(repr, separators))}.",
            remedy="Use one.",
        )
    form = FileFormat(separator=separators[0], quote=quote)
    paths: Any = [str(path) for path in files.paths]  # DuckDB takes lists, its signatures know files only
    mark = "" if quote == "none" else quote
    by_lines = None
    if mark and any(count_lines(path, form)[1] for path in files.paths):
        by_lines = sum(count_rows(path, form, advice).rows for path in files.paths)
    given = connection.read_csv(
        paths,
        all_varchar=True,
        header=True,
        na_values=MISSING_IN_CSV,
        union_by_name=True,
        delimiter=form.separator,
        quotechar=mark,
        escapechar=mark,
    )
    if by_lines is not None:
        ((parsed,),) = given.aggregate("count(*)").fetchall()
        if by_lines != parsed:
            raise InputError(
                f"{files.name}: {by_lines:,} rows by its lines, {parsed:,} by the parser.",
                file=files.name,
                field="--quote",
                remedy=advice,
            )
    return given


def _separator(path: Path) -> str:
    """The one of :data:`SEPARATORS` that stands most often in the header."""
    from e2i_dagster.sources.formats.delimited import open_text

    with open_text(path, FileFormat()) as stream:
        header = stream.readline()
    return max(SEPARATORS, key=header.count)


def _create(
    wanted: DuckDBPyRelation, files: TableFiles, given: DuckDBPyRelation, types: dict[str, tuple[str, str]]
) -> None:
    """The checked columns as a table; a cell that is no certain day is counted by its reason."""
    import duckdb

    try:
        wanted.create(f"cdm_{files.table}")
    except duckdb.Error as error:
        said = str(error).splitlines()[0]
        column = said.partition(READ_MARK)[2].partition(":")[0]
        if TABLES[files.table].get(column, TABLES[files.table].get(f"{column}*")) != "date":
            raise
        name, kind = types[column]
        reasons = _reasons(given, _quoted(name), kind)
        raise InputError(
            f"{files.name}: {column}: a value is not one of {EXPECTED['date']}"
            + (f": {reasons}. Write the days as YYYY-MM-DD." if reasons else ". Correct the file."),
            file=files.name,
            field=column,
        ) from None


def _reasons(given: DuckDBPyRelation, quoted: str, kind: str) -> str:
    """How many cells of a column are refused for which reason; empty where no cell is text."""
    import pyarrow as pa

    if kind.split("(", maxsplit=1)[0] not in {"VARCHAR", *INTEGERS}:
        return ""
    cells = given.filter(f"{quoted}::VARCHAR NOT IN ({_MISSING_SQL})")
    cells = cells.aggregate(f"{quoted}::VARCHAR AS cell, count(*) AS rows").to_arrow_table()
    texts = pa.concat_arrays(cells.column("cell").chunks).cast(pa.large_string())
    rows = cells.column("rows").to_numpy()
    counts = {
        reason: int(rows[mask.to_numpy(zero_copy_only=False)].sum())
        for reason, mask in moments.days(texts).refused.items()
    }
    return ", ".join(
        f"{count:,} {'date_format' if reason == 'format' else reason}"
        for reason, count in counts.items()
        if count
    )


def _check_unique(connection: DuckDBPyConnection, files: TableFiles) -> None:
    """Rows that others are joined to must be there once, or events would count twice."""
    key = UNIQUE.get(files.table)
    if key is None:
        return
    repeated = f"SELECT count({key}) - count(DISTINCT {key}) FROM cdm_{files.table}"
    ((extra,),) = connection.execute(repeated).fetchall()
    if extra:
        raise InputError(
            f"{files.name}: {key} is not unique ({extra:,} rows too many).", remedy="Keep one row of each."
        )


def _unreadable(files: TableFiles, error: Exception) -> InputError:
    """The first line of what DuckDB said: the next ones would quote the data."""
    said = str(error).splitlines()[0]
    if READ_MARK in said:
        return InputError(f"{files.name}: {said.split(READ_MARK, 1)[1]}.", remedy="Correct the file.")
    return InputError(
        f"{files.name}: cannot be read as {files.kind.upper()} ({said[:200]}).", remedy="Write it again."
    )


def _columns(files: TableFiles, types: dict[str, tuple[str, str]], plan: Plan) -> list[str]:
    columns, problems = [], []
    for key, kind in TABLES[files.table].items():
        column, required = key.removesuffix("*"), key.endswith("*")
        asked = plan.asked.get((files.table, column))
        if column in types:
            columns.append(f"{_typed(column, kind, *types[column])} AS {column}")
        elif required or asked:
            problems.append(f"{column} ({f'asked for at {asked}' if asked else 'always needed'})")
        else:
            columns.append(f"NULL::{TYPES[kind]} AS {column}")
    if problems:
        raise InputError(
            f"{files.name}: columns are missing: {', '.join(problems)}. "
            f"Found: {', '.join(sorted(types)) or 'none'}.",
            file=files.name,
            field=problems[0].partition(" ")[0],
            remedy="Add them to the table.",
        )
    return columns


def _typed(column: str, kind: str, name: str, given: str) -> str:
    """SQL that gives the column in its type, or stops with a message that carries no value."""
    quoted = _quoted(name)
    base = given.split("(", maxsplit=1)[0]
    if kind == "text" or (kind == "id" and base in INTEGERS) or (kind == "date" and base in DATES):
        return f"{quoted}::{TYPES[kind]}"
    value, missing = _value(kind, quoted, base), f"{quoted} IS NULL"
    if kind != "date" and base in ("DOUBLE", "FLOAT"):
        missing += f" OR isnan({quoted})"
    if kind == "date" and base == "VARCHAR":
        # Text in Parquet says missing as text in CSV does.
        missing += f" OR {quoted} IN ({_MISSING_SQL})"
    stop = f"error('{READ_MARK}{column}: a value is not one of {EXPECTED[kind]}')"
    return f"CASE WHEN {missing} THEN NULL WHEN {value} IS NULL THEN {stop} ELSE {value} END"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _value(kind: str, quoted: str, base: str) -> str:
    """SQL of the value, null when there is none in what the cell holds."""
    if kind == "number":
        return f"TRY_CAST({quoted} AS DOUBLE)"
    if kind == "id":
        # Columns of whole numbers with gaps arrive as 12.0 from many tools.
        number = f"TRY_CAST({quoted} AS DOUBLE)"
        return f"CASE WHEN {number} = floor({number}) THEN TRY_CAST({quoted} AS BIGINT) END"
    if base in MOMENTS:
        return f"({quoted}::TIMESTAMPTZ AT TIME ZONE 'UTC')::DATE"
    if base == "VARCHAR" or base in INTEGERS:
        return f"{DAY_FUNCTION}({quoted}::VARCHAR)"
    return "NULL::DATE"


def _day(cells: Any) -> Any:
    import pyarrow as pa

    array = cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
    return moments.days(array.cast(pa.large_string())).values


def _check_calendar(connection: DuckDBPyConnection, files: TableFiles) -> None:
    """Types hold days before the year 1 and after 9999, which are no dates as text either."""
    names = [key.removesuffix("*") for key, kind in TABLES[files.table].items() if kind == "date"]
    if not names:
        return
    beyond = (f"count(*) FILTER ({name} NOT BETWEEN '0001-01-01' AND '9999-12-31')" for name in names)
    counts = connection.execute(f"SELECT {', '.join(beyond)} FROM cdm_{files.table}").fetchall()[0]
    for name, count in zip(names, counts, strict=True):
        if count:
            remedy = "Write the days as YYYY-MM-DD."
            raise InputError(
                f"{files.name}: {name}: a value is not one of {EXPECTED['date']}: {count:,} date_format. {remedy}",
                file=files.name,
                field=name,
                remedy=remedy,
            )


def _check_starts(connection: DuckDBPyConnection, files: TableFiles) -> None:
    """A period without its start would leave out its person without a word."""
    if files.table != "observation_period":
        return
    empty = f"SELECT count(*) - count({PERIOD_START}) FROM cdm_observation_period"
    ((count,),) = connection.execute(empty).fetchall()
    if count:
        raise InputError(
            f"{files.name}: {PERIOD_START} is empty in {count:,} rows. OMOP requires it: write the first day "
            "that the data cover.",
            file=files.name,
            field=PERIOD_START,
        )


def _close_periods(
    connection: DuckDBPyConnection, tables: list[str], data_end: dt.date | None
) -> OpenPeriods:
    """Give periods without an end the last day of the data: their persons were observed when it was taken.

    OMOP requires the end and has no spelling for a period that goes on; OHDSI's own loads take the day on which
    the data were last collected (ETL-LambdaBuilder, CPRD Aurum, OBSERVATION_PERIOD).
    """
    still = f"FROM cdm_observation_period WHERE {PERIOD_END} IS NULL"
    ((count,),) = connection.execute(f"SELECT count(*) {still}").fetchall()
    if not count:
        return OpenPeriods()
    subjects = connection.execute(f"SELECT DISTINCT person_id {still} ORDER BY person_id").fetchall()
    until = data_end or _last_day(connection, tables)
    connection.execute(
        f"UPDATE cdm_observation_period SET {PERIOD_END} = greatest({PERIOD_START}, $until) "
        f"WHERE {PERIOD_END} IS NULL",
        {"until": until},
    )
    return OpenPeriods(count, tuple(int(subject) for (subject,) in subjects), until)


def _last_day(connection: DuckDBPyConnection, tables: list[str]) -> dt.date:
    """The latest day on which something begins, or an observation ends, in the tables that are read."""
    days = " UNION ALL ".join(
        f"SELECT max({column}) FILTER ({column} < $far) AS day FROM cdm_{table}"
        for table in tables
        for column in (key.removesuffix("*") for key, kind in TABLES.get(table, {}).items() if kind == "date")
        if "_end_" not in column or column == PERIOD_END
    )
    ((day,),) = connection.execute(f"SELECT max(day) FROM ({days})", {"far": FAR_AWAY}).fetchall()
    return day or FAR_AWAY
