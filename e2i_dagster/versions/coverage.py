"""Which days the tables cover: those of months that were loaded. Of other days nothing is known."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, date_column
from e2i_dagster.versions import ledger

if TYPE_CHECKING:
    import numpy as np

#: First and last day of a stretch, both in it.
Days = tuple[dt.date, dt.date]


@dataclass(frozen=True)
class Coverage:
    """First and last day that is covered, and the stretches in between that are not.

    Attributes:
        start, end: None where that is not said.
        unobserved: stretches between them, in order, apart from each other.
    """

    start: dt.date | None = None
    end: dt.date | None = None
    unobserved: tuple[Days, ...] = ()

    @classmethod
    def of_months(cls, months: Sequence[str], loaded: Collection[str]) -> Coverage:
        """What the ``loaded`` ones of ``months`` (``YYYY-MM``, in order, without gaps) cover; without any: no day."""
        known = [place for place, month in enumerate(months) if month in loaded]
        if not known:
            return cls(_days_of(months[0])[0], _days_of(months[-1])[1], (_span(months),))
        within = months[known[0] : known[-1] + 1]
        return cls(*_span(within), tuple(map(_span, _without(within, loaded))))

    def words(self) -> str:
        """As ``2022-01-01 to 2024-12-31 without 2023-03-01 to 2023-03-31 (never loaded)``."""
        holes = ", ".join(f"{first} to {last}" for first, last in self.unobserved)
        return f"{self.start} to {self.end}" + (f" without {holes} (never loaded)" if holes else "")

    def covers(self, since: Any, until: Any) -> np.ndarray:
        """Whether every day from ``since`` to ``until`` (arrays of datetime64[D]) is covered; not where one is NaT."""
        import numpy as np

        covered = since <= until
        if self.start is not None:
            covered &= since >= np.datetime64(self.start)
        if self.end is not None:
            covered &= until <= np.datetime64(self.end)
        for first, last in self.unobserved:
            covered &= (until < np.datetime64(first)) | (since > np.datetime64(last))
        return covered


#: Nothing is said, so every day counts as covered.
EVERY_DAY = Coverage()


def coverage(engine: sa.Engine, tables: Sequence[str], months: Sequence[str]) -> Coverage:
    """The days of ``months`` that every one of ``tables`` covers; one that is not kept by month covers all of them.

    A table that nobody delivers (``absent``) is read as without rows and says nothing of the days that the others
    cover; where all are absent, no day is covered.
    """
    loaded = set(months)
    dated = [table for table in tables if date_column(table) is not None]
    absent = {table for table in dated if ledger.why_absent(engine, table)}
    for table in dated:
        if table not in absent or absent.issuperset(dated):
            loaded &= {month for month in ledger.current(engine, table, months=months) if month is not None}
    return Coverage.of_months(months, loaded)


def never_loaded(bind: ledger.Bind, months: Sequence[str]) -> dict[str, list[str]]:
    """Of each table that is kept by month and of which something was loaded: what of ``months`` never was.

    Returns:
        Table -> stretches ``YYYY-MM`` or ``first..last`` in order; nothing of tables that lack none.
    """
    found = {}
    for table in filter(date_column, (*RAW_TABLES, *OPTIONAL_RAW_TABLES)):
        if (loaded := ledger.current(bind, table)) and (holes := _without(months, loaded)):
            found[table] = ["..".join(dict.fromkeys((hole[0], hole[-1]))) for hole in holes]
    return found


def _without(months: Sequence[str], loaded: Collection[str | None]) -> list[list[str]]:
    """Stretches of ``months`` that were not loaded."""
    holes: list[list[str]] = [[]]
    for month in months:
        if month in loaded:
            holes.append([])
        else:
            holes[-1].append(month)
    return [hole for hole in holes if hole]


def _span(months: Sequence[str]) -> Days:
    return _days_of(months[0])[0], _days_of(months[-1])[1]


def _days_of(month: str) -> Days:
    first = dt.date.fromisoformat(f"{month}-01")
    return first, (first + dt.timedelta(days=31)).replace(day=1) - dt.timedelta(days=1)
