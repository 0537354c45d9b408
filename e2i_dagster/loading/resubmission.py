"""Rejects loaded again: rows that a person corrected, and rows that waited for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from e2i_dagster.errors import InputError
from e2i_dagster.loading import staging
from e2i_dagster.loading.load import LoadReport, load_table, new_load_id
from e2i_dagster.loading.rejects import LINE, REASONS, ROW, open_rows
from e2i_dagster.loading.reversals import Reversals, rules_of
from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, primary_key

if TYPE_CHECKING:
    from e2i_dagster.sources.files import DeliveredTable

#: Reasons that a row has not of itself: it waits.
_WAITING = ("parent_rejected",)
_TEXT = pd.StringDtype("pyarrow")


def resubmit(
    engine: sa.Engine, folder: str | Path | None = None, *, load_id: str | None = None, **settings: Any
) -> LoadReport:
    """Load corrected rows, and the rows that waited for them.

    Args:
        folder: files as :func:`export` wrote them, corrected. Rows taken out of a file stay open.
            Without a folder, every open reject is tried as it is (for orphans whose parent has come).
        load_id: with no folder, only rejects of this load.
        settings: those of :func:`e2i_dagster.loading.load.load`; every row stands for itself, so
            there is no threshold.

    Returns:
        The report of the load. Rows that were taken are no longer open, rows that broke a rule again
        are open under the new load.
    """
    corrected = _corrected(engine, folder, load_id)
    new_id = settings.pop("new_load_id", None) or new_load_id()
    settings = {**settings, "engine": engine, "load_id": new_id, "success_threshold": 0.0}
    done: dict[str, Any] = {}
    arrived: dict[str, set[str]] = {}
    last = None
    for table in RAW_TABLES + OPTIONAL_RAW_TABLES:
        parts = [corrected[table]] if table in corrected else []
        waiting = _waiting_for(engine, table, arrived)
        if parts and ROW in parts[0]:
            waiting = waiting[~waiting[ROW].isin(parts[0][ROW])]
        parts = [part for part in (*parts, waiting) if len(part)]
        if not parts:
            continue
        rows = pd.concat(parts, ignore_index=True)
        frame = rows.drop(columns=[name for name in (ROW, REASONS, LINE) if name in rows.columns])
        before = open_rows(engine, table)[ROW] if settings.get("dry_run") else None
        delivered = _as_declared(engine, table, rows, frame)
        frame = delivered.frame
        reversals = _reversals_among(engine, table, rows, frame)
        last = load_table(table, frame, delivered=delivered, reversals=reversals, **settings)
        done[table] = last.tables[table]
        if before is None:
            _settle(engine, table, rows[ROW] if ROW in rows else pd.Series(dtype=_TEXT), new_id)
        for home, column in _keys_of(table):
            if column in frame.columns:
                arrived.setdefault(home, set()).update(frame[column].dropna().tolist())
    if last is None:
        raise InputError("There are no rejects to resubmit.", remedy="See `e2i rejects list`.")
    return LoadReport(
        **{
            **last.model_dump(exclude={"tables"}),
            "success": all(table.success for table in done.values()),
            "seconds": sum(table.seconds for table in done.values()),
            "tables": done,
        }
    )


def _as_declared(engine: sa.Engine, table: str, rows: pd.DataFrame, frame: pd.DataFrame) -> DeliveredTable:
    """The corrected rows under the types and rules that their loads declared; of two, the newer load's."""
    from e2i_dagster.sources.files import DeliveredTable, complete_dates
    from e2i_dagster.tables.description.control import ml_table_loads as loads

    given = rows[ROW] if ROW in rows else pd.Series(dtype=_TEXT)
    ids = given.dropna().str.rsplit("/", n=2).str[0].unique().tolist()
    statement = (
        sa.select(loads.c.own_columns, loads.c.partial_dates)
        .where(loads.c.table_name == table, loads.c.load_id == sa.func.any(staging.text_list(ids)))
        .order_by(loads.c.loaded_at)
    )
    with engine.connect() as connection:
        declared = connection.execute(statement).all()
    own = {name: kind for types, _ in declared for name, kind in types.items()}
    partial = {name: rule for _, rules_of_load in declared for name, rule in rules_of_load.items()}
    here = {name: rule for name, rule in partial.items() if name in frame.columns}
    completed, cells = complete_dates(frame, here)
    return DeliveredTable(
        frame=completed,
        raw=frame,
        row_numbers=np.arange(1, len(frame) + 1),
        files=(),
        malformed=pd.DataFrame(columns=["file", "row_number", "text"]),
        own=own,
        completed=cells,
        partial_dates=partial,
    )


def _reversals_among(
    engine: sa.Engine, table: str, rows: pd.DataFrame, frame: pd.DataFrame
) -> Reversals | None:
    """Reversals among resubmitted rows: of those whose load had a rule, by the rule of the newest such load."""
    if ROW not in rows:
        return None
    loads = rows[ROW].str.rsplit("/", n=2).str[0]
    rules_by_load = rules_of(engine, table, loads.dropna().unique().tolist())
    if not rules_by_load:
        return None
    newest = list(rules_by_load.values())[-1]
    return Reversals.of(newest, frame, loads.isin(list(rules_by_load)).to_numpy(dtype=bool))


def _keys_of(table: str) -> list[tuple[str, str]]:
    keys = [(table, primary_key(table))]
    return [*keys, (table, "patient_id")] if table == "patient_journeys" else keys


def _corrected(
    engine: sa.Engine, folder: str | Path | None, load_id: str | None
) -> Mapping[str, pd.DataFrame]:
    if folder is not None:
        from e2i_dagster.sources.files import read

        return dict(read(folder))
    names = RAW_TABLES + OPTIONAL_RAW_TABLES
    found = {table: open_rows(engine, table, load_id) for table in names}
    # A line that is no row has to be corrected by a person.
    return {
        table: rows[~rows[REASONS].str.contains("malformed_row")].reset_index(drop=True)
        for table, rows in found.items()
        if len(rows)
    }


def _waiting_for(engine: sa.Engine, table: str, arrived: Mapping[str, set[str]]) -> pd.DataFrame:
    """Open rows of ``table`` that were rejected only because of parents, of which one has arrived."""
    from e2i_dagster.tables.description.control import load_rejects as found

    if not arrived:
        return pd.DataFrame({ROW: []})
    came = sa.or_(
        *(
            sa.and_(
                found.c.parent_table == home,
                found.c.parent_key == sa.func.any(staging.text_list(sorted(keys))),
            )
            for home, keys in arrived.items()
        )
    )
    of_row = (found.c.load_id, found.c.row_number)
    statement = (
        sa.select(*of_row)
        .where(found.c.table_name == table, found.c.state == "open")
        .group_by(*of_row)
        .having(sa.func.bool_and(found.c.reason.in_(_WAITING)), sa.func.bool_or(came))
    )
    with engine.connect() as connection:
        wanted = {f"{row[0]}/{row[1]}" for row in connection.execute(statement)}
    if not wanted:
        return pd.DataFrame({ROW: []})
    rows = open_rows(engine, table)
    return rows[rows[ROW].str.rsplit("/", n=1).str[0].isin(wanted)].reset_index(drop=True)


def _settle(engine: sa.Engine, table: str, given: pd.Series, load_id: str) -> None:
    """Mark the rows ``given`` as resubmitted by ``load_id``."""
    from e2i_dagster.tables.description.control import load_rejects as found

    of_row = sa.func.concat(
        found.c.load_id, "/", found.c.row_number, "/", sa.func.md5(sa.cast(found.c.raw_row, sa.Text))
    )
    statement = (
        sa.update(found)
        .where(found.c.table_name == table, found.c.state == "open", found.c.load_id != load_id)
        .where(of_row == sa.func.any(staging.text_list(given.dropna().tolist())))
        .values(state="resubmitted", resubmitted_load_id=load_id)
    )
    with engine.begin() as connection:
        connection.execute(statement)
