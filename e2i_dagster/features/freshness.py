"""How long ago each view was materialized, against the limits of the policy."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.current_features import feature_views
from e2i_dagster.config.feast_materialization import FreshnessLimits
from e2i_dagster.display import Table
from e2i_dagster.features.ages import FreshnessStatus

_WORSE: list[FreshnessStatus] = ["fresh", "warning", "stale", "never"]


class ViewFreshness(BaseModel):
    """One view: when it was last materialized and what that means at the time of asking."""

    model_config = ConfigDict(frozen=True)

    view: str
    last_materialization: dt.datetime | None
    age_seconds: float | None
    status: FreshnessStatus


class FreshnessReport(BaseModel):
    """All views at one time."""

    model_config = ConfigDict(frozen=True)

    at: dt.datetime
    warn_after_seconds: int
    stale_after_seconds: int
    views: tuple[ViewFreshness, ...]

    @property
    def status(self) -> FreshnessStatus:
        """The worst status of a view."""
        return max((view.status for view in self.views), key=_WORSE.index)

    @property
    def words(self) -> str:
        """The status as an adjective for people."""
        return {"warning": "getting old", "never": "not online"}.get(self.status, self.status)

    def sentence(self) -> str:
        """Views that are not fresh with their ages, and the limits; in hours."""
        late = [view for view in self.views if view.status != "fresh"]
        ages = ", ".join(
            f"{view.view} {'never' if view.age_seconds is None else f'{view.age_seconds / 3600:.1f} h'}"
            for view in late
        )
        limits = f"{self.warn_after_seconds / 3600:g} h warns, {self.stale_after_seconds / 3600:g} h is stale"
        return f"Since they were last made or found up to date: {ages or 'all fresh'} ({limits})"

    def to_metadata(self) -> dict[str, Any]:
        """Status, and a table with a line per view."""
        return {
            "status": self.status,
            "warn_after_seconds": self.warn_after_seconds,
            "stale_after_seconds": self.stale_after_seconds,
            "views": Table(
                ("view", "last materialization", "age (s)", "status"),
                [
                    (view.view, view.last_materialization or "never", view.age_seconds, view.status)
                    for view in self.views
                ],
            ),
        }


def freshness(
    completed: Mapping[str, dt.datetime], limits: FreshnessLimits, now: dt.datetime
) -> FreshnessReport:
    """Status of every declared view: ``warning`` above the first limit, ``stale`` above the second.

    Args:
        completed: when each view's last materialization ended (a view may be absent).
        limits: the policy.
        now: the time of asking, with zone.
    """
    return FreshnessReport(
        at=now,
        warn_after_seconds=limits.warn_after_seconds,
        stale_after_seconds=limits.stale_after_seconds,
        views=tuple(
            view_freshness(view.name, completed.get(view.name), limits, now) for view in feature_views()
        ),
    )


def view_freshness(
    name: str, last: dt.datetime | None, limits: FreshnessLimits, now: dt.datetime
) -> ViewFreshness:
    """Status of one view that was last materialized at ``last`` (None: never)."""
    if last is None:
        return ViewFreshness(view=name, last_materialization=None, age_seconds=None, status="never")
    age = (now - last).total_seconds()
    status: FreshnessStatus = "fresh"
    if age > limits.stale_after_seconds:
        status = "stale"
    elif age > limits.warn_after_seconds:
        status = "warning"
    return ViewFreshness(view=name, last_materialization=last, age_seconds=age, status=status)
