"""Rows that are inserted, or replace what has their key."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import Insert, insert


def upsert(
    table: sa.Table, columns: Iterable[str], *, keep: Iterable[str] = (), change: dict[str, Any] | None = None
) -> Insert:
    """An INSERT that updates the row with the same primary key.

    Args:
        columns: columns of the rows that are inserted.
        keep: columns that stay as they are in a row that exists.
        change: SQL expressions for further columns of a row that exists.
    """
    statement = insert(table)
    kept = {*table.primary_key.columns.keys(), *keep}
    changed: dict[str, Any] = {name: statement.excluded[name] for name in columns if name not in kept}
    return statement.on_conflict_do_update(index_elements=table.primary_key, set_=changed | (change or {}))


__all__ = ["upsert"]
