"""What was to be delivered by now and is not there."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection

from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.sources import SourcesPolicy


class Overdue(BaseModel):
    """A file that has not arrived by its day."""

    model_config = ConfigDict(frozen=True)

    table: str
    month: str
    file: str
    due: dt.date


def overdue_files(policy: SourcesPolicy, present: Collection[str], today: dt.date) -> list[Overdue]:
    """Expected files of all months that were due before ``today`` and are not ``present``, oldest first.

    Args:
        present: file names in the delivery folder.
    """
    found = []
    for month in policy.months:
        year, number = (int(part) for part in month.split("-"))
        following = dt.date(year + number // 12, number % 12 + 1, 1)
        for table, expected in policy.expected.items():
            name = expected.pattern.replace("{month}", month)
            due = following.replace(day=expected.delivery_day)
            if due < today and name not in present:
                found.append(Overdue(table=table, month=month, file=name, due=due))
    return found
