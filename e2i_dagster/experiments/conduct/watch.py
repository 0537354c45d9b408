"""What the monitor of experiments looks at: enrolment rate, ratios and balance of the arms, stale data, approvals."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.experiment import ExperimentSpec, LifecyclePolicy
from e2i_dagster.experiments.conduct.enrolment import attribute_frame
from e2i_dagster.experiments.conduct.intake import of_one_kind
from e2i_dagster.experiments.conduct.interim_looks import arm_counts
from e2i_dagster.experiments.conduct.lifecycle import Review
from e2i_dagster.experiments.conduct.records import SampleRatioCheck
from e2i_dagster.experiments.conduct.store import Records
from e2i_dagster.experiments.designs.randomization import balance
from e2i_dagster.experiments.statistics.multiplicity import adjusted
from e2i_dagster.experiments.statistics.sample_ratio import SequentialSrm, sequential_srm_test, srm_test
from e2i_dagster.tables.description import experiments as tables

Severity = Literal["low", "medium", "high", "critical"]


@dataclass(frozen=True)
class Finding:
    """Something a person should look at: what, how bad, why, and the next command."""

    kind: Literal["enrolment", "srm", "balance", "stale", "fidelity", "look", "approval", "pause"]
    severity: Severity
    message: str
    next_command: str
    #: Names what is reported once; empty for what is reported as long as it holds.
    once: str = ""


def check_srm(
    connection: sa.Connection, spec: ExperimentSpec, records: Records, policy: LifecyclePolicy, *, actor: str
) -> SampleRatioCheck | None:
    """Test the ratios of the arms, go on with the sequential test, and record both; None before any unit.

    Nothing is recorded when the counts are those of the check before.
    """
    if records.assignments.empty:
        return None
    counts = arm_counts(records.assignments, spec)
    watch = policy.monitor.srm
    newest = SampleRatioCheck.read_newest(connection, spec.name)
    if newest is not None and newest.actual_counts == counts:
        return newest
    shares = spec.ratios
    before = None
    if newest is not None and newest.expected_ratio == shares:
        before = SequentialSrm(
            counts=newest.actual_counts,
            expected_ratio=shares,
            log_e_value=newest.log_e_maximum,
            log_e_maximum=newest.log_e_maximum,
            p_value=newest.sequential_p_value,
            severity=newest.severity,
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
    return SampleRatioCheck.read_newest(connection, spec.name)


def balance_attributes(spec: ExperimentSpec, records: Records) -> pd.DataFrame | None:
    """Strata, factors, subgroups and the covariate of each assigned unit; None before any."""
    if records.assignments.empty:
        return None
    covariate = spec.metrics.primary.covariate
    names = [
        *spec.randomization.strata,
        *spec.randomization.factors,
        *spec.subgroups,
        *([covariate] if covariate else ()),
    ]
    attributes = of_one_kind(attribute_frame(records.screened, names))
    return records.assignments[["unit_id"]].merge(attributes, on="unit_id", how="left")[
        list(dict.fromkeys(names))
    ]


def weekly_balance(spec: ExperimentSpec, records: Records, policy: LifecyclePolicy) -> Finding | None:
    """Balance of the units assigned up to the last whole week (of the policy's days), reported once per week.

    Reported is an attribute whose arms differ by more than the policy's standardized difference and by more than
    chance: one-way analysis of variance for numbers, chi-squared for categories, p by Holm over the attributes.
    Clusters count once, with the values of their first unit.
    """
    rule = policy.monitor.balance
    assigned = records.assignments
    attributes = balance_attributes(spec, records)
    if attributes is None or not len(attributes.columns):
        return None
    first = assigned["assigned_at"].min()
    weeks = (assigned["assigned_at"].max() - first) // pd.Timedelta(days=rule.every_days)
    until = (assigned["assigned_at"] < first + weeks * pd.Timedelta(days=rule.every_days)).to_numpy()
    if spec.randomization.method == "cluster":
        until &= ~assigned["cluster"].duplicated().to_numpy()
    if until.sum() < rule.minimum_units:
        return None
    rows, values = assigned[until], attributes[until]
    report = balance(rows, spec.ratios, values)
    names = list(report.standardized_difference)
    chance = adjusted([_chance(values[name], rows["variant"]) for name in names])
    wrong = [
        f"{name} {report.standardized_difference[name]:.2f} (p {p:.2g})"
        for name, p in zip(names, chance, strict=True)
        if p is not None and p < rule.p and report.standardized_difference[name] > rule.largest_difference
    ]
    if not wrong:
        return None
    return Finding(
        "balance",
        "medium",
        f"after {weeks * rule.every_days} days the arms differ more than chance explains (standardized): "
        f"{', '.join(wrong)}",
        f"e2i experiment audit {spec.name}",
        once=f"{spec.name}:balance:{weeks}",
    )


def _chance(values: pd.Series, variant: pd.Series) -> float | None:
    """p of the same distribution in all arms; None where it does not vary or an arm has fewer than two."""
    from scipy import stats

    arms = variant.astype(str).to_numpy()
    if values.dtype.kind in "iuf" and values.nunique() > 2:
        groups = [part.dropna().to_numpy(dtype=float) for _, part in values.groupby(arms)]
        if len(groups) < 2 or min(map(len, groups)) < 2 or values.std() == 0:
            return None
        return float(stats.f_oneway(*groups).pvalue)
    table = pd.crosstab(values.astype(str).to_numpy(), arms).to_numpy()
    if min(table.shape) < 2:
        return None
    tested: Any = stats.chi2_contingency(table, correction=False)
    return float(tested.pvalue)


def overdue_review(name: str, review: Review, now: dt.datetime) -> Finding | None:
    """That approvals are missing although their time is over."""
    if not review.overdue(now):
        return None
    assert review.due is not None
    return Finding(
        "approval",
        "medium",
        f"approval of {', '.join(review.missing)} was due {review.due:%Y-%m-%d %H:%M} UTC and is missing",
        f"e2i experiment approve {name} --role {review.missing[0]} --reason TEXT",
        once=f"{name}:approval:{review.due.isoformat()}",
    )


def long_pause(
    name: str, paused_at: dt.datetime | None, policy: LifecyclePolicy, now: dt.datetime
) -> Finding | None:
    """That a pause lasts longer than it may: the experiment can only be stopped then."""
    if paused_at is None or now - paused_at <= dt.timedelta(days=policy.longest_pause_days):
        return None
    return Finding(
        "pause",
        "high",
        f"paused since {paused_at:%Y-%m-%d}, longer than {policy.longest_pause_days} days: it cannot go on",
        f"e2i experiment transition {name} stopped_other --reason TEXT",
        once=f"{name}:pause:{paused_at.isoformat()}",
    )


def watch(
    spec: ExperimentSpec,
    records: Records,
    policy: LifecyclePolicy,
    srm: SampleRatioCheck | None,
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
    if srm is not None and srm.severity != "none":
        critical = srm.severity == "critical"
        found.append(
            Finding(
                "srm",
                "critical" if critical else "high",
                f"arms have {srm.actual_counts}, the design wants {srm.expected_ratio} "
                f"(p {srm.sequential_p_value:.2g}, valid at every look). Results are not to be read",
                f"e2i experiment audit {spec.name}",
            )
        )
    uneven = weekly_balance(spec, records, policy)
    if uneven is not None:
        found.append(uneven)
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
