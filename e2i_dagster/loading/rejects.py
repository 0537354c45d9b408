"""Rows that a load did not take: stored with reason, listed, exported, corrected, resubmitted."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from e2i_dagster.errors import UnavailableError
from e2i_dagster.loading import staging
from e2i_dagster.local_files import replacing
from e2i_dagster.tables import (
    OPTIONAL_RAW_TABLES,
    RAW_TABLES,
    frame_columns,
    primary_key,
    references,
    rules,
)
from e2i_dagster.tables.cells import as_text

if TYPE_CHECKING:
    pass

#: Keys of ``raw_row`` and columns of exported files that are no column of the table.
AS_DELIVERED, FILE, LINE = "_as_delivered", "_file", "_line"
ROW, REASONS = "_reject", "_reasons"

#: NUL in a JSON text, but not an escaped backslash before ``u0000``.
_NUL = re.compile(r"(?<!\\)((?:\\\\)*)\\u0000")
_CHUNK = 20_000
_TEXT = pd.StringDtype("pyarrow")


@dataclass(frozen=True)
class Rejected:
    """The rejected rows of one table of one load.

    Attributes:
        faults: one line per row and broken rule: ``position``, ``reason``, ``column``, ``value``,
            ``parent_table``, ``parent_key``.
        frame: the delivered rows under our names, dates without their day as they came; ``raw``: untouched,
            None if that is the same.
        reversal: True for rows of ``frame`` that take another row back.
        row_numbers: number of each row of ``frame`` in its file.
        files: file of each position, or None.
        malformed: ``file``, ``row_number``, ``text`` of lines that are no rows.
    """

    table: str
    faults: pd.DataFrame
    frame: pd.DataFrame
    raw: pd.DataFrame | None
    reversal: np.ndarray
    row_numbers: np.ndarray
    delivered: Any
    malformed: pd.DataFrame

    @classmethod
    def of(cls, checked: rules.Checked, considered: np.ndarray, delivered: Any) -> Rejected:
        """What was rejected in ``checked`` among the rows that were looked at."""
        faults = checked.faults_frame()
        faults = faults[considered[faults["position"].to_numpy(dtype=np.int64)]].reset_index(drop=True)
        parents = {column: _home_of(parent) for column, parent in references(checked.table)}
        about_parent = faults["reason"].astype(_TEXT).str.startswith("orphan_").astype(bool) | faults[
            "reason"
        ].eq("parent_rejected")
        faults["parent_table"] = faults["column"].map(parents).where(about_parent, None)
        faults["parent_key"] = faults["value"].where(about_parent, None)
        none = pd.DataFrame(columns=["file", "row_number", "text"])
        return cls(
            table=checked.table,
            faults=faults,
            frame=_before_completion(checked.given, delivered),
            raw=None if delivered is None else delivered.raw,
            reversal=checked.reversal,
            row_numbers=np.arange(1, len(checked.bad) + 1) if delivered is None else delivered.row_numbers,
            delivered=delivered,
            malformed=none if delivered is None else delivered.malformed,
        )


def _before_completion(frame: pd.DataFrame, delivered: Any) -> pd.DataFrame:
    """``frame`` with the dates that were completed as they were delivered: they are completed when it comes again."""
    cells = getattr(delivered, "completed", None)
    if cells is None or cells.empty:
        return frame
    frame = frame.copy(deep=False)
    for name, of_column in cells.groupby("column", sort=False):
        column = frame[name].astype(object)
        column.iloc[of_column["position"].to_numpy(dtype=np.int64)] = of_column["delivered"].to_numpy()
        frame[name] = column.astype(_TEXT)
    return frame


def _home_of(parent: str) -> str:
    return "patient_journeys" if parent == "patient" else parent


def store(engine: sa.Engine, load_id: str, rejected: Rejected) -> None:
    """Write ``rejected`` in a transaction of its own, which survives a roll-back of the table.

    Writing the same load and table again replaces. A row that was open from an earlier load, and is
    delivered and rejected again unchanged, counts as resubmitted: only its newest reject is open.
    """
    import pyarrow as pa
    from psycopg import sql

    columns = [
        "load_id",
        "table_name",
        "row_number",
        "row_key",
        "reason",
        "column_name",
        "value",
        "parent_table",
        "parent_key",
        "raw_row",
    ]
    statement = sql.SQL("COPY load_rejects ({}) FROM STDIN (FORMAT csv)").format(
        sql.SQL(", ").join(map(sql.Identifier, columns))
    )
    of_this = (load_id, rejected.table)
    with staging.connected(engine) as connection:
        connection.execute("DELETE FROM load_rejects WHERE load_id = %s AND table_name = %s", of_this)
        if len(rejected.faults) or len(rejected.malformed):
            with connection.cursor().copy(statement) as copy:
                for part in _chunks(rejected):
                    chunk = part.assign(load_id=load_id, table_name=rejected.table)[columns].astype(_TEXT)
                    for name in ("row_key", "value", "parent_key"):
                        chunk[name] = chunk[name].str.replace("\x00", "", regex=False)
                    texts = pa.Table.from_pandas(chunk, preserve_index=False)
                    copy.write(memoryview(staging.encode(texts)))
            connection.execute(
                "UPDATE load_rejects old SET state = 'resubmitted', resubmitted_load_id = %s "
                "FROM (SELECT DISTINCT md5(raw_row::text) AS row FROM load_rejects WHERE load_id = %s AND "
                "table_name = %s) again WHERE old.table_name = %s AND old.state = 'open' AND old.load_id <> %s "
                "AND md5(old.raw_row::text) = again.row",
                (load_id, *of_this, rejected.table, load_id),
            )
        connection.commit()


def _chunks(rejected: Rejected) -> Any:
    """Rows of ``load_rejects`` in portions, so that memory does not grow with the rejects."""
    key = primary_key(rejected.table)
    for first in range(0, len(rejected.faults), _CHUNK):
        faults = rejected.faults.iloc[first : first + _CHUNK].reset_index(drop=True)
        positions, inverse = np.unique(faults["position"].to_numpy(dtype=np.int64), return_inverse=True)
        documents = np.array(_documents(rejected, positions), dtype=object)
        keys = [None] * len(positions)
        if key in rejected.frame.columns:
            keys = as_text(rejected.frame[key].iloc[positions])
        yield pd.DataFrame(
            {
                "row_number": rejected.row_numbers[positions][inverse],
                "row_key": np.array(keys, dtype=object)[inverse],
                "reason": faults["reason"],
                "column_name": faults["column"],
                "value": faults["value"],
                "parent_table": faults["parent_table"],
                "parent_key": faults["parent_key"],
                "raw_row": documents[inverse],
            }
        )
    if len(rejected.malformed):
        lines = [
            json.dumps({LINE: line.replace("\x00", ""), FILE: file}, ensure_ascii=False)
            for line, file in zip(rejected.malformed["text"], rejected.malformed["file"], strict=True)
        ]
        empty = {name: None for name in ("row_key", "column_name", "value", "parent_table", "parent_key")}
        yield pd.DataFrame(
            {"row_number": rejected.malformed["row_number"], "reason": "malformed_row", "raw_row": lines}
        ).assign(**empty)


def _documents(rejected: Rejected, positions: np.ndarray) -> list[str]:
    """Each row as JSON under our names; with the untouched row where the mapping changed it."""
    rows = rules.row_documents(rejected.frame.iloc[positions])
    if rejected.raw is not None:
        from e2i_dagster.sources.files import IGNORED_COLUMNS

        kept = [name for name in rejected.raw.columns if str(name).strip() not in IGNORED_COLUMNS]
        untouched = rules.row_documents(rejected.raw[kept].iloc[positions])
        rows = [
            row if row == before else _with_key(row, AS_DELIVERED, before)
            for row, before in zip(rows, untouched, strict=True)
        ]
    if rejected.delivered is not None and len(rejected.delivered.files) > 1:
        names = rejected.delivered.file_of_rows(positions)
        rows = [_with_key(row, FILE, json.dumps(name)) for row, name in zip(rows, names, strict=True)]
    rows = [
        _with_key(row, staging.REVERSAL_MARK, "true") if reversal else row
        for row, reversal in zip(rows, rejected.reversal[positions], strict=True)
    ]
    return [_without_nul(row) for row in rows]


def documents_of(checked: rules.Checked) -> Callable[[np.ndarray], list[str]]:
    """Gives rows of ``checked`` by position, as delivered under our names, as JSON."""
    return lambda positions: [_without_nul(row) for row in rules.row_documents(checked.given.iloc[positions])]


def _without_nul(document: str) -> str:
    """JSONB cannot hold NUL; the reason invalid_text says that there was one."""
    return _NUL.sub(r"\1", document) if "\\u0000" in document else document


def _with_key(document: str, key: str, value: str) -> str:
    separator = "" if document == "{}" else ","
    return f'{document[:-1]}{separator}"{key}":{value}}}'


def waiting_keys(engine: sa.Engine, table: str, key: str, keys: Any) -> Any:
    """Those of ``keys`` whose row of ``table`` is an open reject (``key``: column of that row)."""
    import pyarrow as pa

    from e2i_dagster.tables.description.control import load_rejects as found

    value = found.c.raw_row[key].astext
    statement = (
        sa.select(value)
        .distinct()
        .where(found.c.table_name == table, found.c.state == "open")
        .where(value == sa.func.any(staging.text_list(keys.to_pylist())))
    )
    with engine.connect() as connection:
        return pa.array(connection.execute(statement).scalars().all(), pa.large_string())


# --- for people ----------------------------------------------------------------------------------


def summary(engine: sa.Engine, table: str | None = None, load_id: str | None = None) -> pd.DataFrame:
    """Open rejects by table, reason and column: ``table``, ``reason``, ``column``, ``rows``, ``newest``.

    A row that breaks two rules is in two lines. No value of a row is shown.
    """
    from e2i_dagster.tables.description.control import load_rejects as found

    statement = (
        sa.select(
            found.c.table_name.label("table"),
            found.c.reason,
            found.c.column_name.label("column"),
            sa.func.count(sa.distinct(sa.func.concat(found.c.load_id, "/", found.c.row_number))).label(
                "rows"
            ),
            sa.func.max(found.c.rejected_at).label("newest"),
        )
        .where(found.c.state == "open")
        .group_by(found.c.table_name, found.c.reason, found.c.column_name)
        .order_by(found.c.table_name, sa.text("4 DESC"), found.c.reason)
    )
    statement = _narrowed(statement, found, table, load_id)
    with staging.speaking_errors(engine), engine.connect() as connection:
        return pd.DataFrame(connection.execute(statement).mappings().all(), columns=_SUMMARY)


_SUMMARY = ["table", "reason", "column", "rows", "newest"]


def _narrowed(statement: Any, found: sa.Table, table: str | None, load_id: str | None) -> Any:
    if table is not None:
        _known(table)
        statement = statement.where(found.c.table_name == table)
    return statement if load_id is None else statement.where(found.c.load_id == load_id)


def _known(table: str) -> None:
    from e2i_dagster.tables import raw_table

    raw_table(table)


def export(
    engine: sa.Engine, folder: str | Path, table: str | None = None, load_id: str | None = None
) -> list[Path]:
    """Write open rejects into ``folder``, one CSV per table, ready to be corrected.

    Each file has our column names and the values as delivered, led by ``_reject`` (which row it is;
    leave it as it is) and ``_reasons``. A line that was no row is in ``_line``: move its fields into
    their columns. Existing files are replaced.

    Raises:
        UnavailableError: the folder cannot be written to.
    """
    folder = Path(folder)
    written = []
    for name in [table] if table else RAW_TABLES + OPTIONAL_RAW_TABLES:
        rows = open_rows(engine, name, load_id)
        if rows.empty:
            continue
        path = folder / f"{name}.csv"
        try:
            with replacing(path) as aside:
                rows.to_csv(aside, index=False)
        except OSError as error:
            raise UnavailableError(
                f"{path}: cannot be written ({error.strerror or error}).",
                remedy="Choose another folder or correct it.",
            ) from None
        written.append(path)
    return written


def open_rows(engine: sa.Engine, table: str, load_id: str | None = None) -> pd.DataFrame:
    """Open rejected rows of ``table`` as text, one line per row: ``_reject``, ``_reasons``, columns."""
    from e2i_dagster.tables.description.control import load_rejects as found

    _known(table)
    statement = (
        sa.select(
            sa.func.concat(
                found.c.load_id, "/", found.c.row_number, "/", sa.func.md5(_text(found.c.raw_row))
            ).label(ROW),
            sa.func.string_agg(
                sa.distinct(sa.func.concat_ws(" ", found.c.reason, found.c.column_name)), "; "
            ).label(REASONS),
            _text(found.c.raw_row).label("row"),
        )
        .where(found.c.table_name == table, found.c.state == "open")
        .group_by(found.c.load_id, found.c.row_number, _text(found.c.raw_row))
        .order_by(found.c.load_id, found.c.row_number)
    )
    statement = _narrowed(statement, found, None, load_id)
    with staging.speaking_errors(engine), engine.connect() as connection:
        rows = connection.execute(statement).mappings().all()
    return _unpacked(table, rows)


def _text(column: Any) -> Any:
    return sa.cast(column, sa.Text)


def _unpacked(table: str, rows: Sequence[Any]) -> pd.DataFrame:
    documents = pd.DataFrame.from_records([json.loads(row["row"]) for row in rows])
    own_keys = (AS_DELIVERED, FILE, staging.REVERSAL_MARK)
    documents = documents.drop(columns=[name for name in own_keys if name in documents.columns])
    known = [name for name in frame_columns(table) if name in documents.columns]
    others = [name for name in documents.columns if name not in known]
    heads = pd.DataFrame({ROW: [row[ROW] for row in rows], REASONS: [row[REASONS] for row in rows]})
    if not rows:
        return heads
    return pd.concat([heads, documents[known + others]], axis=1).astype(_TEXT)
