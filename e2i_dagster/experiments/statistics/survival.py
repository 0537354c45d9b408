"""Time to event from life tables: log-rank test, hazard ratio, restricted mean survival time.

A life table has, per arm, stratum and time, the number of events and of censorings; units censored at a
time are at risk for the events of that time. Sources: docs/experiments_statistics.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

#: Newton steps of the hazard ratio; it is one-dimensional and concave, a handful suffice.
MOST_STEPS = 50


@dataclass(frozen=True)
class RiskTable:
    """Event times of one stratum: events and numbers at risk in control (0) and treated (1) arm."""

    time: np.ndarray
    events_0: np.ndarray
    events_1: np.ndarray
    risk_0: np.ndarray
    risk_1: np.ndarray


@dataclass(frozen=True)
class LogRank:
    """``statistic`` is ``(O - E) / sqrt(V)`` of the treated arm: positive where it has more events."""

    observed: float
    expected: float
    variance: float

    @property
    def statistic(self) -> float:
        return (self.observed - self.expected) / math.sqrt(self.variance)


@dataclass(frozen=True)
class HazardRatio:
    """Log hazard ratio of treated to control by partial likelihood, and its standard error."""

    log_ratio: float
    standard_error: float


@dataclass(frozen=True)
class RestrictedMean:
    """Area under the Kaplan-Meier curve up to ``horizon``, and its variance."""

    mean: float
    variance: float
    horizon: float


def risk_tables(life: pd.DataFrame, arm: str, control: str) -> list[RiskTable]:
    """One table per stratum of ``life`` (arm, stratum, time, events, censored)."""
    result = []
    for _, part in life[life["arm"].isin([arm, control])].groupby("stratum", sort=True):
        wide = (
            part.assign(treated=(part["arm"] == arm).astype(int))
            .pivot_table(
                index="time", columns="treated", values=["events", "censored"], aggfunc="sum", fill_value=0
            )
            .sort_index()
        )
        zeros = np.zeros(len(wide))
        counts = {
            (name, side): wide[(name, side)].to_numpy(dtype=float) if (name, side) in wide.columns else zeros
            for name in ("events", "censored")
            for side in (0, 1)
        }
        risk = {
            side: np.cumsum((counts["events", side] + counts["censored", side])[::-1])[::-1]
            for side in (0, 1)
        }
        event = (counts["events", 0] + counts["events", 1]) > 0
        result.append(
            RiskTable(
                wide.index.to_numpy(dtype=float)[event],
                counts["events", 0][event],
                counts["events", 1][event],
                risk[0][event],
                risk[1][event],
            )
        )
    return result


def log_rank(tables: list[RiskTable]) -> LogRank:
    """Stratified log-rank test (Mantel, 1966; Peto and Peto, 1972), with the hypergeometric variance."""
    observed = expected = variance = 0.0
    for table in tables:
        events, risk = table.events_0 + table.events_1, table.risk_0 + table.risk_1
        share = table.risk_1 / risk
        observed += float(table.events_1.sum())
        expected += float((events * share).sum())
        with np.errstate(divide="ignore", invalid="ignore"):
            spread = events * share * (1.0 - share) * (risk - events) / (risk - 1.0)
        variance += float(spread[risk > 1].sum())
    return LogRank(observed, expected, variance)


def hazard_ratio(tables: list[RiskTable]) -> HazardRatio | None:
    """Cox's partial likelihood with Efron's handling of ties (JASA 72, 1977), stratified.

    None when the likelihood has no maximum: one arm has no event while the other was at risk.
    """
    at_risk = [
        RiskTable(t.time[both], t.events_0[both], t.events_1[both], t.risk_0[both], t.risk_1[both])
        for t in tables
        for both in [(t.risk_0 > 0) & (t.risk_1 > 0)]
    ]
    ties = [_tied(table) for table in at_risk]
    observed = sum(float(table.events_1.sum()) for table in at_risk)
    beta = 0.0
    for _ in range(MOST_STEPS):
        ratio = math.exp(beta)
        score, information = observed, 0.0
        for risk_0, risk_1 in ties:
            share = risk_1 * ratio / (risk_0 + risk_1 * ratio)
            score -= float(share.sum())
            information += float((share * (1.0 - share)).sum())
        if information <= 1e-10:
            return None
        step = max(-2.0, min(2.0, score / information))
        beta += step
        if abs(beta) > 20.0:
            return None
        if abs(step) < 1e-10:
            return HazardRatio(beta, information**-0.5)
    return None


def _tied(table: RiskTable) -> tuple[np.ndarray, np.ndarray]:
    """Numbers at risk for each single event: of d tied events the l-th finds l/d of the tied units gone."""
    events = (table.events_0 + table.events_1).astype(np.int64)
    first = np.repeat(np.cumsum(events) - events, events)
    gone = (np.arange(events.sum()) - first) / np.repeat(events, events)
    return (
        np.repeat(table.risk_0, events) - gone * np.repeat(table.events_0, events),
        np.repeat(table.risk_1, events) - gone * np.repeat(table.events_1, events),
    )


def restricted_mean(life: pd.DataFrame, arm: str, horizon: float) -> RestrictedMean:
    """Restricted mean survival time of one arm over all strata (Royston and Parmar, BMC MRM 13, 2013).

    Variance: sum over event times of the squared area still to come times ``d / (n (n - d))`` (Greenwood).
    """
    part = life[life["arm"] == arm].groupby("time", sort=True)[["events", "censored"]].sum()
    time = part.index.to_numpy(dtype=float)
    events = part["events"].to_numpy(dtype=float)
    leaving = events + part["censored"].to_numpy(dtype=float)
    risk = np.cumsum(leaving[::-1])[::-1]
    curve = np.cumprod(1.0 - events / risk)
    inside = time <= horizon
    edges = np.concatenate([[0.0], time[inside], [horizon]])
    height = np.concatenate([[1.0], curve[inside]])
    area = height * np.diff(edges)
    to_come = area[::-1].cumsum()[::-1][1:]
    d, n = events[inside], risk[inside]
    with np.errstate(divide="ignore", invalid="ignore"):
        greenwood = np.where(n > d, d / (n * (n - d)), 0.0)
    return RestrictedMean(float(area.sum()), float((to_come**2 * greenwood).sum()), horizon)


def last_time(life: pd.DataFrame, arm: str) -> float:
    """Largest time observed in ``arm``."""
    return float(life.loc[life["arm"] == arm, "time"].max())
