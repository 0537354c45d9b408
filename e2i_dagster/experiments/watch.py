"""What the monitor of running experiments looks at: enrolment rate, ratios of the arms, stale data."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.experiment import ExperimentSpec, LifecyclePolicy
from e2i_dagster.experiments.looks import arm_counts
from e2i_dagster.experiments.srm import SequentialSrm, sequential_srm_test, srm_test
from e2i_dagster.experiments.store import Records
from e2i_dagster.warehouse.tables import experiments as tables

Severity = Literal["low", "medium", "high", "critical"]


@dataclass(frozen=True)
class Finding:
    """Something a person should look at: what, how bad, why, and the next command."""

    kind: Literal["enrolment", "srm", "stale", "fidelity", "look"]
    severity: Severity
    message: str
    next_command: str


def check_srm(
    connection: sa.Connection, spec: ExperimentSpec, records: Records, policy: LifecyclePolicy, *, actor: str
) -> dict[str, Any] | None:
    """Test the ratios of the arms, go on with the sequential test, and record both; None before any unit.

    Nothing is recorded when the counts are those of the check before.
    """
    if records.assignments.empty:
        return None
    counts = arm_counts(records.assignments, spec)
    watch = policy.monitor.srm
    newest = newest_srm(connection, spec.name)
    if newest is not None and newest["actual_counts"] == counts:
        return newest
    shares = spec.ratios
    before = None
    if newest is not None and newest["expected_ratio"] == shares:
        before = SequentialSrm(
            counts=newest["actual_counts"],
            expected_ratio=shares,
            log_e_value=newest["log_e_maximum"],
            log_e_maximum=newest["log_e_maximum"],
            p_value=newest["sequential_p_value"],
            severity=newest["severity"],
        )
    fixed = srm_test(counts, shares, warning=watch.warning, critical=watch.critical)
    always = sequential_srm_test(
        counts, shares, before=before, warning=watch.warning, critical=watch.critical
    )
    enough = sum(counts.values()) >= watch.minimum_units
    connection.execute(
        tables.ab_srm_checks.insert().values(
            experiment=spec.name,
            expected_ratio=shares,
            actual_counts=counts,
            chi_squared_statistic=fixed.statistic,
            p_value=fixed.p_value,
            log_e_maximum=always.log_e_maximum,
            sequential_p_value=always.p_value,
            is_srm_detected=enough and always.detected,
            severity=always.severity if enough else "none",
            deviation_percent=fixed.deviation_percent,
            recorded_by=actor,
        )
    )
    return newest_srm(connection, spec.name)


def newest_srm(connection: sa.Connection, name: str) -> dict[str, Any] | None:
    """The newest check of the ratios."""
    table = tables.ab_srm_checks
    row = (
        connection.execute(
            sa.select(table).where(table.c.experiment == name).order_by(table.c.id.desc()).limit(1)
        )
        .mappings()
        .one_or_none()
    )
    return None if row is None else dict(row)


def watch(
    spec: ExperimentSpec,
    records: Records,
    policy: LifecyclePolicy,
    srm: dict[str, Any] | None,
    *,
    now: dt.datetime,
    simulated: bool,
) -> list[Finding]:
    """Findings of a running experiment.

    Enrolment is judged by the days of the data, because deliveries come late: slow is below half of the rate
    planned (at most the policy's units a day) over the policy's days. Data are stale when nothing was
    recorded for so many hours; a simulated stream is never stale.
    """
    found = []
    slow = _slow(spec, records, policy)
    if slow is not None:
        found.append(slow)
    if srm is not None and srm["severity"] != "none":
        critical = srm["severity"] == "critical"
        found.append(
            Finding(
                "srm",
                "critical" if critical else "high",
                f"arms have {srm['actual_counts']}, the design wants {srm['expected_ratio']} "
                f"(p {srm['sequential_p_value']:.2g}, valid at every look). Results are not to be read",
                f"e2i experiment audit {spec.name}",
            )
        )
    stamps = [records.screened["recorded_at"], records.events["recorded_at"], records.outcomes["recorded_at"]]
    newest = [part.max() for part in stamps if len(part)]
    if newest and not simulated:
        hours = (pd.Timestamp(now) - max(newest)).total_seconds() / 3_600
        limits = policy.monitor.stale_hours
        levels: tuple[tuple[float, Severity], ...] = (
            (limits.critical, "critical"), (limits.high, "high"), (limits.low, "low"),
        )  # fmt: skip
        severity: Severity | None = next((level for limit, level in levels if hours >= limit), None)
        if severity is not None:
            found.append(
                Finding(
                    "stale",
                    severity,
                    f"nothing was recorded for {hours:,.0f} hours",
                    f"e2i experiment record {spec.name} FILE",
                )
            )
    return found


def _slow(spec: ExperimentSpec, records: Records, policy: LifecyclePolicy) -> Finding | None:
    rule = policy.monitor.enrolment
    assigned = records.assignments["assigned_at"]
    if records.screened.empty or len(assigned) >= spec.sample_size.total:
        return None
    first, last = records.screened["screened_at"].min(), records.screened["screened_at"].max()
    wanted = min(rule.units_per_day, spec.sample_size.per_day)
    slow: Finding | None = None
    levels: tuple[tuple[int, Severity], ...] = (
        (rule.warning_after_days, "medium"), (rule.critical_after_days, "high"),
    )  # fmt: skip
    for days, severity in levels:
        if last - first < pd.Timedelta(days=days):
            continue
        rate = float((assigned > last - pd.Timedelta(days=days)).sum()) / days
        if rate < wanted:
            slow = Finding(
                "enrolment",
                severity,
                f"{rate:.1f} units a day over the last {days} days, wanted are {wanted:g}",
                f"e2i experiment show {spec.name}",
            )
    return slow
