"""OMOP tables of a folder as relations of a DuckDB connection, columns checked and typed.

``person.csv``, ``person.csv.gz``, ``person.parquet`` or a folder ``person/`` of such parts; names and column
names in any case, delimiters as found. In CSV an empty cell, NA, NULL and NaN are missing values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from e2i_dagster.cohorts.omop.domains import TABLES
from e2i_dagster.cohorts.omop.plan import Plan
from e2i_dagster.errors import InputError
from e2i_dagster.warehouse import moments

if TYPE_CHECKING:
    from duckdb import DuckDBPyConnection

Kind = Literal["csv", "parquet"]
SUFFIXES: dict[str, Kind] = {".csv": "csv", ".csv.gz": "csv", ".parquet": "parquet"}
MISSING_IN_CSV = ["", "NA", "NULL", "NaN"]
#: Marks an error of ours among those of DuckDB.
READ_MARK = "omop column "
DAY_FUNCTION = "day_of_text"
TYPES = {"id": "BIGINT", "date": "DATE", "number": "DOUBLE", "text": "VARCHAR"}
#: Tables that events are joined to, by this column.
UNIQUE = {"person": "person_id", "visit_occurrence": "visit_occurrence_id"}
INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}
DATES = {"DATE", "TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"}
EXPECTED = {"id": "whole numbers", "date": "dates (YYYY-MM-DD)", "number": "numbers", "text": "text"}


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
        raise InputError(f"{folder}: there is no such folder. Give a folder of OMOP tables.")
    found: dict[str, TableFiles] = {}
    for entry in sorted(folder.iterdir()):
        files = _table_files(entry)
        if files is None or files.table not in TABLES:
            continue
        if files.table in found:
            raise InputError(
                f"{folder}: the table {files.table} is there twice ({found[files.table].name}, "
                f"{files.name}). Remove one."
            )
        found[files.table] = files
    missing = [(table, path) for table, path in plan.needed.items() if table not in found]
    if missing:
        listed = "; ".join(f"{table} (read at {path})" for table, path in missing)
        raise InputError(
            f"{folder}: needed tables are missing: {listed}. Add each as TABLE.csv or TABLE.parquet."
        )
    wanted = [*plan.needed, *(["concept"] if "concept" in found else [])]
    return [found[table] for table in wanted]


def _table_files(entry: Path) -> TableFiles | None:
    name = entry.name.lower()
    if entry.is_dir():
        parts = [part for part in sorted(entry.iterdir()) if _suffix(part.name)]
        kinds: set[Kind] = {SUFFIXES[str(_suffix(part.name))] for part in parts}
        if len(kinds) > 1:
            raise InputError(f"{entry}: CSV and Parquet parts are mixed. Keep one kind.")
        return TableFiles(name, tuple(parts), kinds.pop()) if parts else None
    suffix = _suffix(name)
    return None if suffix is None else TableFiles(name.removesuffix(suffix), (entry,), SUFFIXES[suffix])


def _suffix(name: str) -> str | None:
    return next((suffix for suffix in SUFFIXES if name.lower().endswith(suffix)), None)


def load_tables(connection: DuckDBPyConnection, files: list[TableFiles], plan: Plan) -> None:
    """Make ``cdm_<table>`` of each, with the columns of :data:`.domains.TABLES`.

    Parquet with the right types is read by the statements that need it; everything else is read and
    checked once, here. Without a file ``concept`` there is no concept known to be invalid.

    Raises:
        InputError: a file cannot be read, or a column that the definition asks for is missing.
    """
    import duckdb

    # DuckDB's own casts of text differ between its versions and take 05-01-23 for the year 5.
    day: dict[str, Any] = {"parameters": ["VARCHAR"], "return_type": "DATE", "type": "arrow"}
    connection.create_function(DAY_FUNCTION, _day, null_handling="special", **day)  # type: ignore[arg-type]
    for one in files:
        paths: Any = [str(path) for path in one.paths]  # DuckDB takes lists, its signatures know files only
        try:
            if one.kind == "parquet":
                given = connection.read_parquet(paths, union_by_name=True)
            else:
                given = connection.read_csv(
                    paths, all_varchar=True, header=True, na_values=MISSING_IN_CSV, union_by_name=True
                )
            types = {
                name.lower(): (name, str(kind)) for name, kind in zip(given.columns, given.types, strict=True)
            }
            columns = _columns(one, types, plan)
            wanted = given.project(", ".join(columns))
            if one.kind == "parquet" and not any(READ_MARK in column for column in columns):
                wanted.create_view(f"cdm_{one.table}")
            else:
                wanted.create(f"cdm_{one.table}")
            _check_unique(connection, one)
            _check_ends(connection, one)
        except duckdb.Error as error:
            raise _unreadable(one, error) from None
    connection.execute("CREATE TABLE IF NOT EXISTS cdm_concept (concept_id BIGINT, invalid_reason VARCHAR)")


def _check_unique(connection: DuckDBPyConnection, files: TableFiles) -> None:
    """Rows that others are joined to must be there once, or events would count twice."""
    key = UNIQUE.get(files.table)
    if key is None:
        return
    repeated = f"SELECT count({key}) - count(DISTINCT {key}) FROM cdm_{files.table}"
    ((extra,),) = connection.execute(repeated).fetchall()
    if extra:
        raise InputError(
            f"{files.name}: {key} is not unique ({extra:,} rows too many). Keep one row of each."
        )


def _unreadable(files: TableFiles, error: Exception) -> InputError:
    """The first line of what DuckDB said: the next ones would quote the data."""
    said = str(error).splitlines()[0]
    if READ_MARK in said:
        return InputError(f"{files.name}: {said.split(READ_MARK, 1)[1]}. Correct the file.")
    return InputError(f"{files.name}: cannot be read as {files.kind.upper()} ({said[:200]}). Write it again.")


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
            f"Found: {', '.join(sorted(types)) or 'none'}."
        )
    return columns


def _typed(column: str, kind: str, name: str, given: str) -> str:
    """SQL that gives the column in its type, or stops with a message that carries no value."""
    quoted = '"' + name.replace('"', '""') + '"'
    base = given.split("(", maxsplit=1)[0]
    if kind == "text" or (kind == "id" and base in INTEGERS) or (kind == "date" and base in DATES):
        return f"{quoted}::{TYPES[kind]}"
    value, missing = _value(kind, quoted, base), f"{quoted} IS NULL"
    if kind != "date" and base in ("DOUBLE", "FLOAT"):
        missing += f" OR isnan({quoted})"
    stop = f"error('{READ_MARK}{column}: a value is not one of {EXPECTED[kind]}')"
    return f"CASE WHEN {missing} THEN NULL WHEN {value} IS NULL THEN {stop} ELSE {value} END"


def _value(kind: str, quoted: str, base: str) -> str:
    """SQL of the value, null when there is none in what the cell holds."""
    if kind == "number":
        return f"TRY_CAST({quoted} AS DOUBLE)"
    if kind == "id":
        # Columns of whole numbers with gaps arrive as 12.0 from many tools.
        number = f"TRY_CAST({quoted} AS DOUBLE)"
        return f"CASE WHEN {number} = floor({number}) THEN TRY_CAST({quoted} AS BIGINT) END"
    if base == "TIMESTAMP WITH TIME ZONE":
        return f"({quoted} AT TIME ZONE 'UTC')::DATE"
    if base == "VARCHAR" or base in INTEGERS:
        return f"{DAY_FUNCTION}({quoted}::VARCHAR)"
    return "NULL::DATE"


def _day(cells: Any) -> Any:
    import pyarrow as pa

    array = cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells
    return moments.days(array.cast(pa.large_string())).values


def _check_ends(connection: DuckDBPyConnection, files: TableFiles) -> None:
    """A period without its end would leave out its person without a word."""
    if files.table != "observation_period":
        return
    days = ("observation_period_start_date", "observation_period_end_date")
    counts = ", ".join(f"count(*) - count({day})" for day in days)
    ((*empty,),) = connection.execute(f"SELECT {counts} FROM cdm_observation_period").fetchall()
    for day, count in zip(days, empty, strict=True):
        if count:
            raise InputError(
                f"{files.name}: {day} is empty in {count:,} rows. OMOP requires it: write the first or the last "
                "day that the data cover."
            )
