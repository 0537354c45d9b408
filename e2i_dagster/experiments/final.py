"""Results at the end: every metric over every analysed set, pre-registered subgroups, the adjusted estimate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict
from sqlalchemy.dialects.postgresql import insert

from e2i_dagster.config.experiment import ExperimentSpec, LifecyclePolicy
from e2i_dagster.errors import InputError
from e2i_dagster.experiments import store
from e2i_dagster.experiments.enrolment import analysis_frame, attribute_frame, unit_states
from e2i_dagster.experiments.lifecycle import may_read_results
from e2i_dagster.experiments.looks import analysis_of
from e2i_dagster.experiments.results import Analysis
from e2i_dagster.warehouse.tables import experiments as tables

ANALYSED_SETS = ("itt", "per_protocol", "as_treated")


class SetResult(BaseModel):
    """One metric over one analysed set, or why it cannot be analysed."""

    model_config = ConfigDict(frozen=True)

    metric: str
    analysis_set: str
    analysis: Analysis | None
    reason: str = ""


class ResultsPage(BaseModel):
    """Results of an experiment; ``available`` is False, with the reason, until data collection is over."""

    model_config = ConfigDict(frozen=True)

    experiment: str
    state: str
    simulated: bool
    available: bool
    reason: str
    snapshot_digest: str | None = None
    results: tuple[SetResult, ...] = ()
    subgroups: dict[str, Any] | None = None
    subgroups_md: str = ""
    adjusted: dict[str, Any] | None = None
    forest_md: str = ""

    def to_metadata(self) -> dict[str, Any]:
        """Effects by metric and set."""
        found: dict[str, Any] = {
            "stream": "simulated" if self.simulated else "observed",
            "available": self.available,
            "reason": self.reason or None,
        }
        if not self.available:
            return found
        head = ["| metric | set | arm | effect | interval | p |", "|---|---|---|---:|---|---:|"]
        head += [f"| {' | '.join(row)} |" for row in effect_rows(self.results)]
        return {
            **found,
            "snapshot": self.snapshot_digest,
            "effects_md": "\n".join(head),
            "forest_md": self.forest_md or None,
            "subgroups_md": self.subgroups_md or None,
            "adjusted_for_looks": self.adjusted,
        }

    def to_record(self) -> dict[str, Any]:
        """Everything as plain values but the figure."""
        return self.model_dump(mode="json", exclude={"forest_md", "subgroups_md"})


def effect_rows(results: Sequence[SetResult]) -> list[tuple[str, ...]]:
    """Metric, set, arm, effect, interval and p as text, a row per comparison."""
    rows: list[tuple[str, ...]] = []
    for result in results:
        if result.analysis is None:
            rows.append((result.metric, result.analysis_set, "", "not estimable", result.reason, ""))
            continue
        for one in result.analysis.comparisons:
            shared = (result.metric, result.analysis_set, one.arm)
            if one.status == "not_estimable" or one.effect is None:
                rows.append((*shared, "not estimable", one.reason or "", ""))
            else:
                rows.append(
                    (
                        *shared,
                        f"{one.effect:.4f}",
                        f"{one.lower:.4f} to {one.upper:.4f}",
                        f"{one.p_value:.3g}",
                    )
                )
    return rows


def compute_results(
    connection: sa.Connection, name: str, *, policy: LifecyclePolicy, actor: str
) -> ResultsPage:
    """Analyse and record the results of an experiment whose data collection is over; say so when it is not."""
    held = store.read(connection, name)
    shared = {"experiment": name, "state": held.state, "simulated": held.simulated}
    if not may_read_results(held.state):
        return ResultsPage(
            **shared,
            available=False,
            reason=f"the experiment is {held.state}: results are read when data collection is over",
        )
    records = store.read_records(connection, name)
    if records.outcomes.empty:
        return ResultsPage(**shared, available=False, reason="no outcome was recorded")
    spec = held.spec
    states = unit_states(
        records.assignments,
        records.events,
        minor_deviations_that_exclude=policy.minor_deviations_that_exclude,
    )
    frame = analysis_frame(states, records.outcomes, attribute_frame(records.screened), spec)
    results = tuple(
        _set_result(frame, spec, metric.name, chosen)
        for metric in spec.metrics.all
        for chosen in ANALYSED_SETS
    )
    subgroups, subgroups_md = _subgroups(frame, spec)
    digest = records.digest
    _record(connection, name, results, digest, spec, actor)
    return ResultsPage(
        **shared,
        available=True,
        reason="",
        snapshot_digest=digest,
        results=results,
        subgroups=subgroups,
        subgroups_md=subgroups_md,
        adjusted=_adjusted(spec, store.looks(connection, name)),
    )


def _set_result(frame: pd.DataFrame, spec: ExperimentSpec, name: str, chosen: str) -> SetResult:
    metric = next(one for one in spec.metrics.all if one.name == name)
    if chosen != "itt" and frame["received"].isna().all():
        return SetResult(
            metric=name, analysis_set=chosen, analysis=None, reason="no treatment received was recorded"
        )
    try:
        found = analysis_of(frame, spec, metric, chosen)
    except InputError as error:
        return SetResult(metric=name, analysis_set=chosen, analysis=None, reason=str(error))
    return SetResult(metric=name, analysis_set=chosen, analysis=found)


def _subgroups(frame: pd.DataFrame, spec: ExperimentSpec) -> tuple[dict[str, Any] | None, str]:
    """Effects by pre-registered subgroup with the test of interaction, for the first treatment arm."""
    if not spec.subgroups:
        return None, ""
    from e2i_dagster.experiments.subgroups import analyze_subgroups

    metric = spec.metrics.primary
    found = analyze_subgroups(
        frame,
        arm="variant",
        outcome=metric.name,
        control=spec.control,
        subgroups=spec.subgroups,
        treated=spec.treatments[0],
        kind=metric.kind,
        event=f"{metric.name}_event" if metric.kind == "survival" else None,
        cluster="cluster" if spec.randomization.method == "cluster" else None,
        unit="unit_id",
    )
    shown = found.to_metadata()
    tables_md = [str(value) for key, value in shown.items() if key.endswith("_md")]
    return found.to_record(), "\n\n".join(tables_md)


def _adjusted(spec: ExperimentSpec, made: list[dict[str, Any]]) -> dict[str, Any] | None:
    """P-value, median-unbiased estimate and interval that allow for the looks, where the trial ended at one.

    Only for one treatment arm and an effect that is a difference; the last look's statistic is taken.
    """
    from e2i_dagster.experiments.estimation import final_estimate
    from e2i_dagster.experiments.looks import look_boundaries

    if len(spec.treatments) > 1 or not made or spec.metrics.primary.kind == "survival":
        return None
    last = made[-1]
    z, effect = last["test_statistic"], last["effect_estimate"]
    ended = last["decision"] == "stop_efficacy" or last["analysis_type"] == "final"
    if not ended or not z or effect is None:
        return None
    bounds = look_boundaries(
        spec, [look["information_fraction"] for look in made], final=last["analysis_type"] == "final"
    )
    found = final_estimate(bounds, len(made), z, standard_error=abs(effect / z))
    return {"look": len(made), "benefit_direction": spec.metrics.primary.direction, **found.to_record()}


def _record(
    connection: sa.Connection,
    name: str,
    results: Sequence[SetResult],
    digest: str,
    spec: ExperimentSpec,
    actor: str,
) -> None:
    """One row per metric, set and arm; the same rows of the same data are not entered twice."""
    rows = []
    for result in results:
        arms = {} if result.analysis is None else {arm.arm: arm.observed for arm in result.analysis.arms}
        for arm in spec.treatments:
            one = None if result.analysis is None else result.analysis.comparison(arm)
            rows.append(
                {
                    "experiment": name,
                    "analysis_type": "final",
                    "analysis_method": result.analysis_set,
                    "metric": result.metric,
                    "arm": arm,
                    "snapshot_digest": digest,
                    "control_n": arms.get(spec.control, 0),
                    "treatment_n": arms.get(arm, 0),
                    "effect_estimate": None if one is None else one.effect,
                    "effect_ci_lower": None if one is None else one.lower,
                    "effect_ci_upper": None if one is None else one.upper,
                    "p_value": None if one is None else one.p_value,
                    "reason": (result.reason if one is None else one.reason) or "",
                    "details": {} if one is None else one.model_dump(mode="json"),
                    "recorded_by": actor,
                }
            )
    connection.execute(insert(tables.ab_experiment_results).on_conflict_do_nothing(), rows)
