"""Results at the end: every metric over every analysed set, pre-registered subgroups, the adjusted estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pandas as pd
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict
from sqlalchemy.dialects.postgresql import insert

from e2i_dagster.config.experiment import ExperimentSpec, HeterogeneityPlan, LifecyclePolicy
from e2i_dagster.display import Figure, Table, text
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.experiments.conduct import store
from e2i_dagster.experiments.conduct.interim_looks import (
    analysis_of,
    answered,
    columns_of,
    look_boundaries,
    missing_policy,
    progress,
)
from e2i_dagster.experiments.conduct.lifecycle import bound_to_stop, may_read_results
from e2i_dagster.experiments.conduct.records import InterimAnalysis, Transition
from e2i_dagster.experiments.conduct.scorecard import ScoredResult, score_result
from e2i_dagster.experiments.statistics.causal_forest import Heterogeneity, heterogeneity
from e2i_dagster.experiments.statistics.comparison_results import Analysis
from e2i_dagster.experiments.statistics.estimation import FinalEstimate, final_estimate
from e2i_dagster.experiments.statistics.multiplicity import adjusted
from e2i_dagster.experiments.statistics.subgroups import SubgroupAnalysis, analyze_subgroups
from e2i_dagster.tables.description import experiments as tables

#: Nearer to 0 a z has lost its digits to the discreteness of counts.
LEAST_Z = 0.5
ANALYSED_SETS = ("itt", "per_protocol", "as_treated")
#: What the effect of each kind of metric is.
EFFECTS = {
    "mean": "difference of means", "proportion": "difference of shares", "ratio": "difference of ratios",
    "survival": "hazard ratio",
}  # fmt: skip


class SetResult(BaseModel):
    """One metric over one analysed set, or why it cannot be analysed.

    ``adjusted_p_values`` by arm, of a secondary metric: over all secondary metrics of the set.
    """

    model_config = ConfigDict(frozen=True)

    metric: str
    analysis_set: str
    analysis: Analysis | None
    reason: str = ""
    adjusted_p_values: dict[str, float] = {}


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
    subgroups: tuple[SubgroupAnalysis, ...] = ()
    heterogeneity: tuple[Heterogeneity, ...] = ()
    scorecard: ScoredResult | None = None
    adjusted: FinalEstimate | None = None
    figure: Figure | None = None

    def to_metadata(self) -> dict[str, Any]:
        """Effects by metric and set."""
        found: dict[str, Any] = {
            "experiment_state": self.state,
            "stream": "simulated" if self.simulated else "observed",
            "available": self.available,
            "reason": self.reason or None,
        }
        if not self.available:
            return found
        parts = {
            **{f"subgroups_{subgroup.arm}": subgroup.to_metadata() for subgroup in self.subgroups},
            **{f"forest_of_effects_{forest.arm}": forest.to_metadata() for forest in self.heterogeneity},
        }
        return {
            **found,
            "snapshot": self.snapshot_digest,
            "effects": effects_table(self.results),
            "forest": self.figure,
            **{f"{of}_{name}": value for of, part in parts.items() for name, value in part.items()},
            "adjusted_for_looks": None if self.adjusted is None else adjusted_sentence(self.adjusted),
            **({} if self.scorecard is None else self.scorecard.to_metadata()),
        }

    def to_record(self) -> dict[str, Any]:
        """Everything as plain values but the figure."""
        return self.model_dump(mode="json", exclude={"figure"})


def effects_table(results: Sequence[SetResult]) -> Table:
    """A row for each comparison, or for a metric and set that cannot be analysed."""
    rows: list[tuple[Any, ...]] = []
    for result in results:
        if result.analysis is None:
            none = ("not estimable", result.reason, None, None, None)
            rows.append((result.metric, result.analysis_set, None, *none))
            continue
        named = f"{result.metric} ({EFFECTS[result.analysis.kind]})"
        for comparison in result.analysis.comparisons:
            effect, interval = comparison.estimate
            if comparison.effect is None:
                interval = "; ".join(filter(None, (comparison.reason, comparison.method)))
            final = result.adjusted_p_values.get(comparison.arm)
            rows.append(
                (
                    named,
                    result.analysis_set,
                    comparison.arm,
                    effect,
                    interval,
                    comparison.p_value,
                    final,
                    comparison.note,
                )
            )
    return Table(("metric", "set", "arm", "effect", "interval", "p", "adjusted p", "note"), rows)


def adjusted_sentence(adjusted: FinalEstimate) -> str:
    """The estimate that allows for the looks, in one line."""
    estimate = text((adjusted.median_unbiased, adjusted.lower, adjusted.upper))
    return f"{estimate}, p {text(adjusted.p_value)}, ended at look {adjusted.look}"


def compute_results(
    connection: sa.Connection,
    name: str,
    *,
    policy: LifecyclePolicy,
    actor: str,
    alignment: float | None = None,
) -> ResultsPage:
    """Analyse and record the results of an experiment whose data collection is over; say so when it is not.

    ``alignment``: how well the treatment fits the strategy (0 to 1), for the scorecard; once it is decided, what
    was judged then.
    """
    experiment = store.read(connection, name)
    if alignment is None:
        alignment = _recorded_alignment(Transition.read_all(connection, name))
    shared = {"experiment": name, "state": experiment.state, "simulated": experiment.simulated}
    if not may_read_results(experiment.state):
        return ResultsPage(
            **shared,
            available=False,
            reason=f"the experiment is {experiment.state}: results are read when data collection is over",
        )
    records = store.read_records(connection, name)
    if records.outcomes.empty:
        return ResultsPage(**shared, available=False, reason="no outcome was recorded")
    spec = experiment.spec
    frame = records.analysis_frame(spec, policy)
    results = _with_adjusted(
        spec,
        [
            _set_result(frame, spec, metric.name, chosen, policy)
            for metric in spec.metrics.all
            for chosen in ANALYSED_SETS
        ],
    )
    digest = records.digest
    _record(connection, name, results, digest, spec, actor)
    for_looks = adjusted_for_looks(spec, InterimAnalysis.read_all(connection, name))
    primary = results[0].analysis
    return ResultsPage(
        **shared,
        available=True,
        reason="",
        snapshot_digest=digest,
        results=results,
        subgroups=_subgroups(frame, spec, policy),
        heterogeneity=_heterogeneity(connection, frame, spec, policy, digest, actor),
        scorecard=None
        if primary is None
        else score_result(spec, primary, policy.scorecard, adjusted=for_looks, alignment=alignment),
        adjusted=for_looks,
    )


def _recorded_alignment(history: Sequence[Transition]) -> float | None:
    judged = [change.evidence.get("alignment") for change in history if change.to_state == "decided"]
    return None if not judged or judged[-1] is None else float(judged[-1])


def _with_adjusted(spec: ExperimentSpec, results: Sequence[SetResult]) -> tuple[SetResult, ...]:
    """``results`` with the p-values of the secondary metrics adjusted over metrics and arms of one analysed set."""
    primary = spec.metrics.primary.name
    found = []
    for result in results:
        family = [
            (other.metric, comparison.arm, comparison.p_value)
            for other in results
            if other.analysis_set == result.analysis_set and other.metric != primary and other.analysis
            for comparison in other.analysis.comparisons
        ]
        final = adjusted([p for _, _, p in family], spec.multiplicity)
        own = {
            arm: p
            for (metric, arm, _), p in zip(family, final, strict=True)
            if metric == result.metric and p is not None
        }
        found.append(result.model_copy(update={"adjusted_p_values": own}))
    return tuple(found)


def _set_result(
    frame: pd.DataFrame, spec: ExperimentSpec, name: str, chosen: str, policy: LifecyclePolicy
) -> SetResult:
    metric = next(metric for metric in spec.metrics.all if metric.name == name)
    if chosen != "itt" and frame["received"].isna().all():
        return SetResult(
            metric=name, analysis_set=chosen, analysis=None, reason="no treatment received was recorded"
        )
    try:
        found = analysis_of(frame, spec, metric, chosen, policy=policy.analysis)
    except InputError as error:
        return SetResult(metric=name, analysis_set=chosen, analysis=None, reason=str(error))
    return SetResult(metric=name, analysis_set=chosen, analysis=found)


def _subgroups(
    frame: pd.DataFrame, spec: ExperimentSpec, policy: LifecyclePolicy
) -> tuple[SubgroupAnalysis, ...]:
    """Effects of each arm by pre-registered subgroup, with the test of interaction."""
    if not spec.subgroups:
        return ()
    metric = spec.metrics.primary
    absent = [name for name in spec.subgroups if name not in frame.columns]
    # Nobody was screened for it: every unit is in the one level that says so, and the others stand.
    frame = frame.assign(**dict.fromkeys(absent, "missing"))
    return tuple(
        analyze_subgroups(
            frame,
            arm="variant",
            outcome=metric.name,
            control=spec.control,
            subgroups=spec.subgroups,
            treated=arm,
            kind=metric.kind,
            multiplicity=spec.multiplicity,
            min_per_arm=policy.analysis.minimum_per_arm,
            missing=missing_policy(spec, metric),
            **columns_of(spec, metric),
        )
        for arm in spec.treatments
    )


def _heterogeneity(
    connection: sa.Connection,
    frame: pd.DataFrame,
    spec: ExperimentSpec,
    policy: LifecyclePolicy,
    digest: str,
    actor: str,
) -> tuple[Heterogeneity, ...]:
    """The forest that the plan declares, for each arm: grown once for the same rows, then read again."""
    plan = spec.heterogeneity
    if plan is None:
        return ()
    table = tables.ab_experiment_results
    known = {
        row.arm: Heterogeneity.model_validate(row.details)
        for row in connection.execute(
            sa.select(table.c.arm, table.c.details).where(
                table.c.experiment == spec.name,
                table.c.analysis_type == "heterogeneity",
                table.c.snapshot_digest == digest,
            )
        )
    }
    found = []
    for arm in spec.treatments:
        if arm not in known:
            known[arm] = grow_forest(frame, spec, policy, arm, plan)
            row = _heterogeneity_row(spec, known[arm], digest, actor)
            connection.execute(insert(table).on_conflict_do_nothing(), [row])
        found.append(known[arm])
    return tuple(found)


def explore_heterogeneity(
    connection: sa.Connection, name: str, covariates: Sequence[str], *, policy: LifecyclePolicy
) -> tuple[Heterogeneity, ...]:
    """A forest over ``covariates`` that nobody declared before the start: exploration, recorded nowhere.

    Raises:
        VerdictError: data collection is not over. InputError: the primary metric is no mean and no proportion.
    """
    experiment = store.read(connection, name)
    if not may_read_results(experiment.state):
        raise VerdictError(
            f"Experiment {name} is {experiment.state}: effects are looked into when data collection is over."
        )
    if experiment.spec.metrics.primary.kind not in ("mean", "proportion"):
        raise InputError(
            f"The forest takes a mean or a proportion, not {experiment.spec.metrics.primary.kind}.",
            field="metrics.primary.kind",
            value=experiment.spec.metrics.primary.kind,
            remedy="Look into effects by subgroups instead.",
        )
    records = store.read_records(connection, name)
    frame = records.analysis_frame(experiment.spec, policy)
    plan = HeterogeneityPlan(covariates=tuple(covariates))
    return tuple(grow_forest(frame, experiment.spec, policy, arm, plan) for arm in experiment.spec.treatments)


def grow_forest(
    frame: pd.DataFrame, spec: ExperimentSpec, policy: LifecyclePolicy, arm: str, plan: HeterogeneityPlan
) -> Heterogeneity:
    """The forest of ``plan`` for one arm, ``not_estimable`` with the reason where it cannot be grown.

    A covariate that no unit has is left out, and ``reason`` says so.
    """
    known = [name for name in plan.covariates if name in frame.columns and frame[name].notna().any()]
    left_out = [name for name in plan.covariates if name not in known]
    try:
        found = heterogeneity(
            frame,
            arm="variant",
            outcome=spec.metrics.primary.name,
            control=spec.control,
            treated=arm,
            covariates=known,
            trees=plan.trees,
            seed=plan.seed,
            min_per_arm=policy.analysis.forest_minimum_per_arm,
        )
        if not left_out or found.status == "not_estimable":
            return found
        note = f"without {', '.join(left_out)}: no unit has a value"
        return found.model_copy(update={"reason": note})
    except InputError as error:
        return Heterogeneity(
            arm=arm,
            control=spec.control,
            status="not_estimable",
            reason=str(error),
            units=int(frame["variant"].isin([arm, spec.control]).sum()),
        )


def _heterogeneity_row(spec: ExperimentSpec, found: Heterogeneity, digest: str, actor: str) -> dict[str, Any]:
    return {
        "experiment": spec.name, "analysis_type": "heterogeneity", "analysis_method": "causal_forest",
        "metric": spec.metrics.primary.name, "arm": found.arm, "snapshot_digest": digest, "control_n": 0,
        "treatment_n": 0, "effect_estimate": found.average_effect, "p_value": found.p_value,
        "reason": found.reason or "", "details": found.to_record(), "recorded_by": actor,
    }  # fmt: skip


def adjusted_for_looks(spec: ExperimentSpec, made: Sequence[InterimAnalysis]) -> FinalEstimate | None:
    """P-value, median-unbiased estimate and interval that allow for the looks, where the trial ended at one.

    On the scale of the effect (a hazard ratio for survival). For one treatment arm only; a binding rule of
    futility, which was obeyed, enters. None where the trial ended by no rule.
    """
    made = answered(spec, made)
    if len(spec.treatments) > 1 or not made:
        return None
    last = made[-1]
    z, final = last.test_statistic, last.analysis_type == "final"
    ended = final or last.decision == "stop_efficacy" or bound_to_stop(made)
    if not ended or z is None or last.effect is None:
        return None
    reached, times = progress(spec, made)
    bounds = look_boundaries(spec, reached, final=final, times=times)
    futility = spec.stopping.futility
    floors = None
    if futility is not None and futility.binding:
        recorded = [look.metrics_snapshot.arms[0].futility_z for look in made]
        floors = [low if own is None else own for own, low in zip(recorded, bounds.lower, strict=False)]
    hazard, sign = spec.metrics.primary.kind == "survival", spec.metrics.primary.sign
    size, low, high = (math.log(value) if hazard else value for value in last.effect)
    # The error that belongs to z; near 0, where the quotient says nothing, that of the repeated interval.
    error = abs(size / z) if abs(z) > LEAST_Z else (high - low) / (2.0 * last.boundary_z)
    found = final_estimate(bounds, len(made), z, standard_error=error, lower=floors)
    # It runs in the direction of benefit.
    scale = math.exp if hazard else float
    benefits = (found.naive, found.median_unbiased, found.lower, found.upper)
    naive, median, *limits = (scale(sign * benefit) for benefit in benefits)
    lower, upper = sorted(limits)
    return found.model_copy(
        update={"naive": naive, "median_unbiased": median, "lower": lower, "upper": upper}
    )


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
            comparison = None if result.analysis is None else result.analysis.comparison(arm)
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
                    "effect_estimate": None if comparison is None else comparison.effect,
                    "effect_ci_lower": None if comparison is None else comparison.lower,
                    "effect_ci_upper": None if comparison is None else comparison.upper,
                    "p_value": None if comparison is None else comparison.p_value,
                    "reason": (result.reason if comparison is None else comparison.reason or comparison.note)
                    or "",
                    "details": {} if comparison is None else comparison.model_dump(mode="json"),
                    "recorded_by": actor,
                }
            )
    connection.execute(insert(tables.ab_experiment_results).on_conflict_do_nothing(), rows)
