"""Reading accepted rows of a raw table back, as frames in canonical form."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.tables import (
    OPTIONAL_RAW_TABLES,
    RAW_TABLES,
    date_column,
    frame_columns,
    primary_key,
    raw_table,
)
from e2i_dagster.tables.frames import DATE, TEXT, TIMESTAMP, canonical_dtype, conform

if TYPE_CHECKING:
    from psycopg import sql


def read_accepted(engine: sa.Engine, table: str, months: Sequence[str] | None = None) -> pd.DataFrame:
    """All accepted rows of the raw ``table``, or those dated in ``months`` (``YYYY-MM``), in order of the key.

    Live predictions are the prediction log and no part of the raw table ``ml_predictions``.

    Returns:
        The columns of ``frame_columns(table)`` in canonical dtypes.
    """
    from psycopg import sql

    names = frame_columns(table)
    conditions: list[sql.Composable] = []
    dated_by = date_column(table)
    if months is not None and dated_by is not None:
        conditions.append(
            sql.SQL("date_trunc('month', {} AT TIME ZONE 'UTC') = ANY({})").format(
                sql.Identifier(dated_by), sql.Literal([f"{month}-01" for month in months])
            )
            if isinstance(raw_table(table).columns[dated_by].type, sa.DateTime)
            else sql.SQL("date_trunc('month', {}::timestamp) = ANY({})").format(
                sql.Identifier(dated_by), sql.Literal([f"{month}-01" for month in months])
            )
        )
    if table == "ml_predictions":
        conditions.append(sql.SQL("origin = 'import'"))
    query = sql.SQL("SELECT {} FROM {} {} ORDER BY {}").format(
        sql.SQL(", ").join(map(_selected(table), names)),
        sql.Identifier(table),
        sql.SQL("WHERE ") + sql.SQL(" AND ").join(conditions) if conditions else sql.SQL(""),
        sql.Identifier(primary_key(table)),
    )
    with engine.connect() as connection:
        return conform(table, _copied(connection, query, table, names))


def rows_not_kept(connection: sa.Connection, table: str, kept: tuple[str, str]) -> dict[str, int]:
    """Rows of the raw ``table`` by why they are not kept: loaded when the range was wider, read by nothing now.

    Args:
        kept: first and last month (``YYYY-MM``) that event tables are kept for.

    Returns:
        Rows under ``before_first_month`` and ``after_data_end``, where there are some; nothing of tables without
        months.
    """
    dated_by = date_column(table)
    if dated_by is None:
        return {}
    found = raw_table(table)
    day = found.c[dated_by]
    if isinstance(day.type, sa.DateTime):
        day = sa.func.timezone("UTC", day)
    month = sa.func.to_char(day, "YYYY-MM")
    counted = sa.select(
        sa.func.count().filter(month < kept[0]).label("before_first_month"),
        sa.func.count().filter(month > kept[1]).label("after_data_end"),
    ).select_from(found)
    if table == "ml_predictions":
        counted = counted.where(found.c.origin == "import")
    row = connection.execute(counted).one()
    return {reason: rows for reason, rows in row._mapping.items() if rows}


def read_columns(connection: sa.Connection, table: str, columns: Sequence[str]) -> pd.DataFrame:
    """Those ``columns`` of all rows of the raw ``table``, in any order.

    Returns:
        Canonical dtypes; documents as Postgres writes them.
    """
    from psycopg import sql

    query = sql.SQL("SELECT {} FROM {}").format(
        sql.SQL(", ").join(map(_selected(table), columns)), sql.Identifier(table)
    )
    return _copied(connection, query, table, columns)


def _copied(
    connection: sa.Connection, query: sql.Composable, table: str, columns: Sequence[str]
) -> pd.DataFrame:
    """The answer of ``query``, which selects ``columns`` of ``table``, by COPY; documents as Postgres writes them."""
    import pyarrow as pa
    from psycopg import sql
    from pyarrow import csv

    arrow_types = {
        "boolean": pa.bool_(),
        "Int64": pa.int64(),
        "float64": pa.float64(),
        DATE: pa.timestamp("us"),
        TIMESTAMP: pa.timestamp("us", tz="UTC"),
        TEXT: pa.string(),
    }
    dtypes = {
        pa.string(): pd.StringDtype("pyarrow"),
        pa.int64(): pd.Int64Dtype(),
        pa.bool_(): pd.BooleanDtype(),
    }
    described = raw_table(table).columns
    buffer = io.BytesIO()
    driver = connection.connection.driver_connection
    statement = sql.SQL("COPY ({}) TO STDOUT (FORMAT csv, HEADER true)").format(query)
    with driver.cursor() as cursor, cursor.copy(statement) as copy:  # type: ignore[union-attr]
        for block in copy:
            buffer.write(block)
    buffer.seek(0)
    rows = csv.read_csv(
        buffer,
        parse_options=csv.ParseOptions(newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            column_types={name: arrow_types[canonical_dtype(described[name].type)] for name in columns},
            strings_can_be_null=True,
            # COPY writes an empty text as "" and null as nothing.
            quoted_strings_can_be_null=False,
            null_values=[""],
            true_values=["t"],
            false_values=["f"],
        ),
    )
    return rows.to_pandas(types_mapper=dtypes.get)


def _selected(table: str) -> Callable[[str], sql.Composable]:
    from psycopg import sql
    from sqlalchemy.dialects.postgresql import ARRAY

    columns = raw_table(table).columns

    def select(name: str) -> sql.Composable:
        # Frames hold arrays as JSON text, COPY would write them as {a,b}.
        if isinstance(columns[name].type, ARRAY):
            return sql.SQL("to_json({}) AS {}").format(sql.Identifier(name), sql.Identifier(name))
        return sql.Identifier(name)

    return select


def recorded_load(engine: sa.Engine, load_id: str) -> dict[str, Any]:
    """What ``ml_table_loads`` says of a load, in the form of ``e2i load --json``.

    ``source = loaded + unchanged + rejected + duplicate + reversal + left out`` for each table, in load order. A load
    that ended before its first table has no tables and no success.
    """
    from e2i_dagster.loading.rejects import summary
    from e2i_dagster.tables.description.control import load_completed_dates, ml_table_loads
    from e2i_dagster.tables.rules import fault_words

    table, cells = ml_table_loads, load_completed_dates
    faults: dict[str, dict[str, int]] = {}
    for entry in summary(engine, load_id=load_id).to_dict("records"):
        words = fault_words(entry["table"], entry["reason"], entry["column"])
        faults.setdefault(entry["table"], {})[words] = int(entry["rows"])
    with engine.connect() as connection:
        rows = {
            row["table_name"]: row
            for row in connection.execute(sa.select(table).where(table.c.load_id == load_id)).mappings()
        }
        counted = connection.execute(
            sa.select(cells.c.table_name, cells.c.column_name, cells.c.precision, sa.func.count())
            .where(cells.c.load_id == load_id)
            .group_by(cells.c.table_name, cells.c.column_name, cells.c.precision)
            .order_by(cells.c.table_name, cells.c.column_name, cells.c.precision)
        ).all()
    completed: dict[str, dict[str, dict[str, int]]] = {}
    for name, column, precision, count in counted:
        completed.setdefault(name, {}).setdefault(column, {})[precision] = count
    tables = {
        name: {
            "source": row["delivered"],
            "loaded": row["inserted"] + row["updated"],
            "inserted": row["inserted"],
            "updated": row["updated"],
            "unchanged": row["unchanged"],
            "rejected": row["rejected"],
            "duplicate": row["duplicates"],
            "reversal": row["reversals"],
            "withdrawn": row["withdrawn"],
            "restored": row["restored"],
            "lines": row["lines"],
            "left_out": dict(row["left_out"]),
            "added": row["added"],
            "completed": completed.get(name, {}),
            "seconds": row["seconds"],
            "status": row["status"],
            "reasons": dict(row["reasons"]),
            "faults": faults.get(name, {}),
            "partitions": sorted(row["partitions"]),
            "message": row["message"],
        }
        for name in (*RAW_TABLES, *OPTIONAL_RAW_TABLES)
        if (row := rows.get(name)) is not None
    }
    good = bool(tables) and all(table["status"] in ("loaded", "empty") for table in tables.values())
    return {"success": good, "load_id": load_id, "tables": tables}
