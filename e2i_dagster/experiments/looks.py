"""Interim looks: when one is due, what is frozen for it, and what the stopping rules of the design say.

A look is made once. It freezes the rows it has seen (ids of the append-only tables and a digest), so reading it
again analyses nothing and spends no alpha. The rules advise; people decide (the life cycle records who).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import pandas as pd
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.experiment import ExperimentSpec, HarmRule, LifecyclePolicy, Metric
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.experiments import store
from e2i_dagster.experiments.enrolment import analysis_frame, attribute_frame, unit_states
from e2i_dagster.experiments.interim import SPENDING_RULES, Boundaries, boundaries, evaluate_look
from e2i_dagster.experiments.results import Analysis
from e2i_dagster.warehouse.tables import experiments as tables

Advice = Literal["continue", "stop_efficacy", "stop_futility", "stop_safety"]


class ArmLook(BaseModel):
    """One arm against the control at one look; ``z`` is positive for benefit.

    ``lower`` and ``upper`` are the repeated confidence interval (Jennison and Turnbull 1989): the estimate plus
    and minus the boundary times its standard error, valid at all looks together.
    """

    model_config = ConfigDict(frozen=True)

    arm: str
    estimable: bool
    reason: str = ""
    effect: float | None = None
    lower: float | None = None
    upper: float | None = None
    z: float | None = None
    p_value: float | None = None
    conditional_power: float | None = None
    predictive_power: float | None = None
    advice: Advice = "continue"
    rationale: str = ""


class HarmCheck(BaseModel):
    """One rule of harm for one arm."""

    model_config = ConfigDict(frozen=True)

    metric: str
    arm: str
    relative_worsening: float | None
    p_value: float | None
    harmful: bool
    reason: str


class LookReport(BaseModel):
    """Everything one look found. For the data monitoring committee; pages show :meth:`blinded`."""

    model_config = ConfigDict(frozen=True)

    experiment: str
    look: int
    of: int
    final: bool
    design_digest: str
    information_fraction: float
    planned_fraction: float
    units: int
    units_by_arm: dict[str, int]
    data_as_of: str
    snapshot_digest: str
    rule: str
    alpha: float
    alpha_spent: float
    fractions: tuple[float, ...]
    boundary_z: tuple[float, ...]
    arms: tuple[ArmLook, ...]
    harm: tuple[HarmCheck, ...]
    advice: Advice
    rationale: str

    def to_record(self) -> dict[str, Any]:
        """Everything as plain values."""
        return self.model_dump(mode="json")


class InterimPage(BaseModel):
    """What everyone may see of the looks of an experiment.

    ``looks`` has number, information, data as of, digest of the frozen rows, alpha spent and ``advice``
    (``continue`` or ``stop for review`` while blinded). ``boundary_md`` shows the path of z only when open.
    """

    model_config = ConfigDict(frozen=True)

    experiment: str
    state: str
    blinded: bool
    simulated: bool
    information: float
    next_fraction: float | None
    looks: tuple[dict[str, Any], ...]
    boundary_md: str = ""

    def to_metadata(self) -> dict[str, Any]:
        """Looks made, and when the next is due."""
        head = list(self.looks[0]) if self.looks else []
        rows = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)] if head else []
        rows += [f"| {' | '.join(str(value) for value in look.values())} |" for look in self.looks]
        return {
            "stream": "simulated" if self.simulated else "observed",
            "blinding": "dmc: effects and statistics are left out" if self.blinded else "open",
            "information_fraction": round(self.information, 4),
            "next_look_at": self.next_fraction,
            "looks_made": len(self.looks),
            "looks_md": "\n".join(rows) or None,
            "boundaries_md": self.boundary_md or None,
        }

    def to_record(self) -> dict[str, Any]:
        """Everything as plain values but the figure."""
        return self.model_dump(mode="json", exclude={"boundary_md"})


def due_look(spec: ExperimentSpec, information: float, made: int, *, ended: bool) -> int | None:
    """Number of the look that is due, or None.

    A look is due when its information fraction is reached; after the end of data collection the final one is,
    with whatever information there is.
    """
    planned = spec.looks.information_fractions
    if made >= len(planned):
        return None
    if ended:
        return made + 1
    return made + 1 if information >= planned[made] - 1e-9 else None


def look_boundaries(spec: ExperimentSpec, reached: Sequence[float], *, final: bool) -> Boundaries:
    """Boundaries for the looks so far, made at the information fractions ``reached`` (of that planned).

    Spending rules take any fractions; when more information came than was planned, information is counted in
    what there is and alpha is spent by the plan. The classical rules hold for the planned fractions, at which
    their looks are frozen. With several arms each is compared at alpha divided by their number (Bonferroni).
    """
    alpha = spec.looks.alpha / len(spec.treatments)
    shared: dict[str, Any] = {"alpha": alpha, "sides": spec.looks.sides, "gamma": spec.looks.gamma}
    if spec.looks.rule not in SPENDING_RULES:
        return boundaries(spec.looks.rule, spec.looks.information_fractions, **shared)
    largest = max(1.0, *reached)
    return boundaries(
        spec.looks.rule,
        [fraction / largest for fraction in reached],
        spending_time=[min(fraction, 1.0) for fraction in reached] if largest > 1 else None,
        final=final,
        **shared,
    )


def make_look(
    connection: sa.Connection, name: str, *, policy: LifecyclePolicy, actor: str
) -> LookReport | None:
    """Make the look that is due, record it, and return it; None when none is due.

    Raises:
        VerdictError: the ratios of the arms are not those of the design (a critical mismatch): no effect is
            to be read before that is explained.
    """
    held = store._held(connection, name)
    made = store.looks(connection, name)
    records = store.read_records(connection, name)
    ended = held.state in ("completed", "stopped_other")
    spec = held.spec
    if held.state not in ("running", "completed", "stopped_other") or (
        made and made[-1]["analysis_type"] == "final"
    ):
        return None
    reached = store.information(spec, records.outcomes)
    number = due_look(spec, reached, len(made), ended=ended)
    if number is None or reached <= (made[-1]["information_fraction"] if made else 0.0):
        return None
    final = ended or number == len(spec.looks.information_fractions)
    if spec.looks.rule not in SPENDING_RULES and not ended:
        records = _at_planned(records, spec, spec.looks.information_fractions[number - 1])
        reached = spec.looks.information_fractions[number - 1]
    last_outcome = int(records.outcomes["id"].max())
    last_event = int(records.events["id"].max()) if len(records.events) else 0
    _refuse_mismatch(spec, records, policy)
    report = evaluate(
        spec,
        records,
        reached=[*(look["information_fraction"] for look in made), reached],
        earlier=[look["metrics_snapshot"] for look in made],
        final=final,
        minor_deviations_that_exclude=policy.minor_deviations_that_exclude,
    )
    _record(connection, report, last_event=last_event, last_outcome=last_outcome, actor=actor)
    return report


def evaluate(
    spec: ExperimentSpec,
    records: store.Records,
    *,
    reached: Sequence[float],
    earlier: Sequence[dict[str, Any]],
    final: bool,
    minor_deviations_that_exclude: int,
) -> LookReport:
    """Analyse ``records`` by intention to treat and hold each arm's z against the boundaries.

    Args:
        reached: information fractions of all looks up to this one. earlier: records of the looks before.
    """
    states = unit_states(
        records.assignments, records.events, minor_deviations_that_exclude=minor_deviations_that_exclude
    )
    frame = analysis_frame(states, records.outcomes, attribute_frame(records.screened), spec)
    bounds = look_boundaries(spec, reached, final=final)
    number = len(reached)
    primary = analysis_of(frame, spec, spec.metrics.primary)
    observed = {arm.arm: arm.observed for arm in primary.arms}
    days = _days_running(records)
    arms = tuple(
        _arm_look(spec, primary, arm, bounds, number, earlier, observed, days) for arm in spec.treatments
    )
    harm = tuple(_harm(frame, spec, rule, arm) for rule in spec.stopping.harm for arm in spec.treatments)
    advice, why = _advice(arms, harm)
    return LookReport(
        experiment=spec.name,
        look=number,
        of=len(spec.looks.information_fractions),
        final=final,
        design_digest=spec.design_digest,
        information_fraction=reached[-1],
        planned_fraction=spec.looks.information_fractions[
            min(number, len(spec.looks.information_fractions)) - 1
        ],
        units=sum(observed.values()),
        units_by_arm=observed,
        data_as_of=records.outcomes["observed_at"].max().isoformat(),
        snapshot_digest=records.digest,
        rule=spec.looks.rule,
        alpha=spec.looks.alpha,
        alpha_spent=bounds.alpha_spent[number - 1] * len(spec.treatments),
        fractions=bounds.information_fractions,
        boundary_z=bounds.z,
        arms=arms,
        harm=harm,
        advice=advice,
        rationale=why,
    )


def analysis_of(
    frame: pd.DataFrame, spec: ExperimentSpec, metric: Metric, analysis_set: str = "itt", **options: Any
) -> Analysis:
    """The analysis of one metric of the design over one analysed set of ``frame``."""
    from e2i_dagster.experiments.analysis import analyze

    return analyze(
        frame,
        arm="variant",
        outcome=metric.name,
        kind=metric.kind,
        control=spec.control,
        arms=tuple(spec.ratios),
        event=f"{metric.name}_event" if metric.kind == "survival" else None,
        covariate=metric.covariate if metric.kind != "survival" else None,
        cluster="cluster" if spec.randomization.method == "cluster" else None,
        analysis_set=analysis_set,
        received="received" if analysis_set != "itt" else None,
        adherent="adherent" if analysis_set == "per_protocol" else None,
        missing=spec.missing_outcomes if metric.kind == "proportion" else "complete_cases",
        unit="unit_id",
        **options,
    )


def interim_page(
    held: store.Experiment,
    made: Sequence[dict[str, Any]],
    information: float,
    *,
    blinded: bool,
    figure: str = "",
) -> InterimPage:
    """What of the looks may be shown."""
    shown = []
    for look in made:
        row: dict[str, Any] = {
            "look": look["analysis_number"],
            "information": f"{look['information_fraction']:.3f}",
            "units": f"{look['sample_size_at_analysis']:,}",
            "data as of": f"{look['data_as_of']:%Y-%m-%d}",
            "alpha spent": f"{look['cumulative_alpha_spent']:.5f}",
            "frozen rows": look["snapshot_digest"],
        }
        if blinded:
            row["says"] = "continue" if look["decision"] == "continue" else "stop for review"
        else:
            z, effect = look["test_statistic"], look["effect_estimate"]
            row["z"] = "not estimable" if z is None else f"{z:.3f}"
            row["boundary"] = f"{look['boundary_z']:.3f}"
            row["effect"] = "not estimable" if effect is None else f"{effect:.4f}"
            row["says"] = look["decision"]
        shown.append(row)
    planned = held.spec.looks.information_fractions
    return InterimPage(
        experiment=held.name,
        state=held.state,
        blinded=blinded,
        simulated=held.simulated,
        information=information,
        next_fraction=planned[len(made)] if len(made) < len(planned) and held.state == "running" else None,
        looks=tuple(shown),
        boundary_md=figure,
    )


def _at_planned(records: store.Records, spec: ExperimentSpec, fraction: float) -> store.Records:
    """The rows up to the outcome with which the planned information was reached exactly."""
    outcomes = records.outcomes
    counted = outcomes["metric"] == spec.metrics.primary.name
    if spec.metrics.primary.kind == "survival":
        counted &= outcomes["event"].fillna(False).astype(bool)
    enough = math.ceil(fraction * spec.information_target)
    last = int(outcomes.loc[counted.cumsum() >= enough, "id"].iloc[0])
    return store.Records(
        records.screened, records.assignments, records.events, outcomes[outcomes["id"] <= last]
    )


def _refuse_mismatch(spec: ExperimentSpec, records: store.Records, policy: LifecyclePolicy) -> None:
    from e2i_dagster.experiments.srm import srm_test

    watch = policy.monitor.srm
    if len(records.assignments) < watch.minimum_units:
        return
    found = srm_test(
        arm_counts(records.assignments, spec), spec.ratios, warning=watch.warning, critical=watch.critical
    )
    if found.severity == "critical":
        raise VerdictError(
            f"Experiment {spec.name}: the arms have {found.counts}, the design wants {found.expected_ratio} "
            f"(p {found.p_value:.2g}). No look is made before this mismatch is explained: e2i experiment audit "
            f"{spec.name}."
        )


def arm_counts(assignments: pd.DataFrame, spec: ExperimentSpec) -> dict[str, int]:
    """Assigned units (clusters, where those are randomized) per arm."""
    counted = (
        assignments.drop_duplicates("cluster") if spec.randomization.method == "cluster" else assignments
    )
    counts = counted["variant"].value_counts()
    return {arm: int(counts.get(arm, 0)) for arm in spec.ratios}


def _days_running(records: store.Records) -> float:
    first, last = records.assignments["assigned_at"].min(), records.outcomes["observed_at"].max()
    return (last - first).total_seconds() / 86_400


def _arm_look(
    spec: ExperimentSpec,
    primary: Analysis,
    arm: str,
    bounds: Boundaries,
    number: int,
    earlier: Sequence[dict[str, Any]],
    observed: dict[str, int],
    days: float,
) -> ArmLook:
    found = primary.comparison(arm)
    if found.status == "not_estimable" or found.z is None or found.effect is None:
        return ArmLook(
            arm=arm,
            estimable=False,
            reason=found.reason or "no statistic",
            rationale=f"{arm}: {found.reason}",
        )
    sign = spec.metrics.primary.sign
    before = [
        one["z"] for look in earlier for one in look["arms"] if one["arm"] == arm and one["z"] is not None
    ]
    # The trial went on after each of them, whatever the rule had said.
    before = [min(z, bound - 1e-9) for z, bound in zip(before, bounds.z, strict=False)]
    before = [0.0] * (number - 1 - len(before)) + before
    look = evaluate_look(bounds, number, sign * found.z, earlier_z=before)
    half = bounds.z[number - 1] * (found.standard_error or math.nan)
    middle = math.log(found.effect) if found.effect_type == "hazard_ratio" else found.effect
    lower, upper = middle - half, middle + half
    if found.effect_type == "hazard_ratio":
        lower, upper = math.exp(lower), math.exp(upper)
    pair = min(observed[arm], observed[spec.control])
    advice, why = _rule(spec, look, pair, days)
    return ArmLook(
        arm=arm,
        estimable=True,
        effect=found.effect,
        lower=lower,
        upper=upper,
        z=look.z,
        p_value=found.p_value,
        conditional_power=look.conditional_power_trend,
        predictive_power=look.predictive_power,
        advice=advice,
        rationale=f"{arm}: {why}",
    )


def _rule(spec: ExperimentSpec, look: Any, pair: int, days: float) -> tuple[Advice, str]:
    """Efficacy for benefit only; futility when the trend would hardly reach the boundary any more."""
    stopping = spec.stopping
    if look.decision == "stop_efficacy":
        least = stopping.efficacy
        if pair >= least.minimum_per_arm and days >= least.minimum_days:
            return "stop_efficacy", look.rationale
        return "continue", (
            f"{look.rationale} The design asks for {least.minimum_per_arm:,} units per arm and "
            f"{least.minimum_days} days before it stops for benefit"
        )
    rule = stopping.futility
    if rule is not None and look.information_fraction < 1:
        low = look.conditional_power_trend < rule.conditional_power_below
        if low and pair >= rule.minimum_per_arm and days >= rule.minimum_days:
            return "stop_futility", (
                f"conditional power {look.conditional_power_trend:.3f} is below {rule.conditional_power_below:g}"
            )
    return "continue", look.rationale


def _harm(frame: pd.DataFrame, spec: ExperimentSpec, rule: HarmRule, arm: str) -> HarmCheck:
    metric = next(one for one in spec.metrics.all if one.name == rule.metric)
    found = analysis_of(frame, spec, metric)
    one = found.comparison(arm)
    counts = {item.arm: item.observed for item in found.arms}
    shared = {"metric": metric.name, "arm": arm}
    if min(counts[arm], counts[spec.control]) < rule.minimum_per_arm:
        why = f"fewer than {rule.minimum_per_arm} units per arm"
        return HarmCheck(**shared, relative_worsening=None, p_value=None, harmful=False, reason=why)
    if one.status == "not_estimable" or one.z is None:
        return HarmCheck(
            **shared,
            relative_worsening=None,
            p_value=None,
            harmful=False,
            reason=one.reason or "not estimable",
        )
    from scipy.special import ndtr

    p = float(ndtr(metric.sign * one.z))
    relative = one.relative_effect if one.effect_type == "difference" else (one.effect or 1.0) - 1.0
    worse = None if relative is None else -metric.sign * relative
    harmful = worse is not None and worse >= rule.relative_worsening and p < rule.alpha
    reason = (
        "relative change unknown: the control's mean is 0"
        if worse is None
        else f"worse by {worse:.1%}, p {p:.3g}"
    )
    return HarmCheck(**shared, relative_worsening=worse, p_value=p, harmful=harmful, reason=reason)


def _advice(arms: Sequence[ArmLook], harm: Sequence[HarmCheck]) -> tuple[Advice, str]:
    """Harm first, then benefit of any arm, then futility of every arm."""
    harmful = [check for check in harm if check.harmful]
    if harmful:
        return "stop_safety", "; ".join(f"{one.arm} {one.metric}: {one.reason}" for one in harmful)
    said = "; ".join(arm.rationale for arm in arms)
    if any(arm.advice == "stop_efficacy" for arm in arms):
        return "stop_efficacy", said
    if all(arm.advice == "stop_futility" for arm in arms):
        return "stop_futility", said
    return "continue", said


def _record(
    connection: sa.Connection, report: LookReport, *, last_event: int, last_outcome: int, actor: str
) -> None:
    best = max(report.arms, key=lambda arm: -math.inf if arm.z is None else arm.z)
    connection.execute(
        tables.ab_interim_analyses.insert().values(
            experiment=report.experiment,
            analysis_number=report.look,
            analysis_type="final" if report.final else "scheduled",
            design_digest=report.design_digest,
            last_outcome_id=last_outcome,
            last_event_id=last_event,
            snapshot_digest=report.snapshot_digest,
            data_as_of=pd.Timestamp(report.data_as_of).to_pydatetime(),
            information_fraction=report.information_fraction,
            sample_size_at_analysis=report.units,
            target_sample_size=round(report.units / report.information_fraction),
            spending_function=report.rule,
            cumulative_alpha_spent=report.alpha_spent,
            boundary_z=report.boundary_z[report.look - 1],
            test_statistic=best.z,
            p_value=best.p_value,
            effect_estimate=best.effect,
            effect_ci_lower=best.lower,
            effect_ci_upper=best.upper,
            conditional_power=best.conditional_power,
            predictive_probability=best.predictive_power,
            decision=report.advice,
            decision_rationale=report.rationale,
            metrics_snapshot=report.to_record(),
            recorded_by=actor,
        )
    )


def replay(connection: sa.Connection, name: str, look: int) -> bool:
    """True if the rows that look number ``look`` froze are still exactly those it analysed.

    Raises:
        InputError: there was no such look.
    """
    made = {one["analysis_number"]: one for one in store.looks(connection, name)}
    if look not in made:
        raise InputError(f"Experiment {name} has no look {look}; there were {len(made)}.")
    frozen = made[look]
    records = store.read_records(
        connection, name, last_event=frozen["last_event_id"], last_outcome=frozen["last_outcome_id"]
    )
    last = pd.Timestamp(frozen["recorded_at"])
    assigned = records.assignments[records.assignments["recorded_at"] <= last]
    seen = store.Records(records.screened, assigned, records.events, records.outcomes)
    return seen.digest == frozen["snapshot_digest"]
