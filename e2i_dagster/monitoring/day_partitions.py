"""Which days of which scope the partitions of a run are."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from e2i_dagster.errors import InputError


def days_of_scope(keys: Sequence[str]) -> tuple[dict[str | None, dt.date], str]:
    """The day of each partition ``DAY|SCOPE``, oldest first, and their scope.

    Raises:
        InputError: the partitions are of several scopes.
    """
    parts = {key: key.split("|") for key in map(str, keys)}
    scopes = sorted({scope for _, scope in parts.values()})
    if len(scopes) != 1:
        raise InputError(
            f"a run watches days of one scope, this one has {len(scopes)}: {', '.join(scopes)}.",
            field="scope",
            value=scopes,
            remedy="Start a run for each scope (`e2i monitor --scope SCOPE --from DAY --to DAY`).",
        )
    days: dict[str | None, dt.date] = {key: dt.date.fromisoformat(day) for key, (day, _) in parts.items()}
    return dict(sorted(days.items(), key=lambda item: item[1])), scopes[0]
