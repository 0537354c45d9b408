"""A run over several days of one scope: the result of each."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.errors import E2IError, InputError
from e2i_dagster.modelling.model_input import Kind
from e2i_dagster.monitoring.compare import compare_with_profile
from e2i_dagster.monitoring.history import record_drift, record_performance
from e2i_dagster.monitoring.page import severities_by_day, write_page
from e2i_dagster.monitoring.performance import PerformanceHistory, PerformanceReport
from e2i_dagster.monitoring.profile import ReferenceProfile


def made_by_day(
    days: Mapping[str | None, dt.date], make: Callable[[dt.date], Any]
) -> tuple[dict[str | None, Any], dict[str, str]]:
    """What ``make`` gives for each day, and why not for those on which it failed.

    Of a run over several days a day that fails is withheld, and the others go on; a run of one day fails.
    """
    made: dict[str | None, Any] = {}
    withheld: dict[str, str] = {}
    for key, day in days.items():
        try:
            made[key] = make(day)
        except Exception as error:
            if len(days) == 1:
                raise
            # What no error of the product says may hold values of patients.
            withheld[str(key)] = str(error) if isinstance(error, E2IError) else type(error).__name__
    if not made:
        raise InputError(
            f"every one of the {len(days)} days failed: {'; '.join(dict.fromkeys(withheld.values()))}",
            field="day",
            value=len(days),
            remedy="Run one of them alone to see its whole error (`e2i monitor --scope SCOPE --from DAY`).",
        )
    return made, withheld


def only_one(made: Mapping[str | None, Any]) -> Any | None:
    """The result of a run of one day; None of several."""
    return next(iter(made.values())) if len(made) == 1 else None


def performance_by_day(
    engine: sa.Engine, history: PerformanceHistory, days: Mapping[str | None, dt.date], *, run_id: str
) -> tuple[dict[str | None, Any], dict[str, str]]:
    """Report and record the performance of each day (:func:`made_by_day`)."""

    def report_of(day: dt.date) -> PerformanceReport:
        report = history.report(day)
        with engine.begin() as connection:
            record_performance(connection, report, run_id)
        return report

    return made_by_day(days, report_of)


def drift_by_day(
    engine: sa.Engine,
    profile: ReferenceProfile,
    days: Mapping[str | None, dt.date],
    *,
    read: Callable[[str | None], tuple[pd.DataFrame, PerformanceReport]],
    kinds: Mapping[str, Kind],
    policy: DriftPolicy,
    scope: str,
    model_id: str,
    run_id: str,
) -> tuple[dict[str | None, Any], dict[str, str], dict[str, Any]]:
    """Report and record the drift of each day (:func:`made_by_day`), and write its page.

    Args:
        read: prediction log and performance report of a partition.

    Returns:
        Reports, what was withheld, and what the newest page tells (:func:`.page.write_page`).
    """
    keys = {day: key for key, day in days.items()}
    page: dict[str, Any] = {}

    def report_of(day: dt.date) -> Any:
        log, performance = read(keys[day])
        about: dict[str, Any] = {"scope": scope, "day": day, "model_id": model_id, "label": performance.label}
        report = compare_with_profile(profile, log, kinds=kinds, policy=policy, **about)
        with engine.begin() as connection:
            record_drift(connection, report, performance, run_id)
            history = severities_by_day(connection, scope, until=day)
        page.update(write_page(report, performance, history))
        return report

    return *made_by_day(days, report_of), page
