"""Interim looks: when one is due, what is frozen for it, and what the stopping rules of the design say.

A look is made once. It freezes the rows it has seen (ids of the append-only tables and a digest), so reading it
again analyses nothing and spends no alpha. The rules advise; people decide (the life cycle records who).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.experiment import (
    AnalysisPolicy,
    ExperimentSpec,
    HarmRule,
    LifecyclePolicy,
    Metric,
    Minimum,
)
from e2i_dagster.display import Figure, Table
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.experiments.conduct import store
from e2i_dagster.experiments.conduct.lifecycle import bound_to_stop
from e2i_dagster.experiments.conduct.records import Advice, ArmLook, HarmCheck, InterimAnalysis, LookReport
from e2i_dagster.experiments.designs.reestimation import propose_size
from e2i_dagster.experiments.statistics.comparison_results import Analysis, Comparison
from e2i_dagster.experiments.statistics.comparisons import limits_at
from e2i_dagster.experiments.statistics.estimation import AlwaysValid, always_valid, mixture_variance
from e2i_dagster.experiments.statistics.stopping import (
    SPENDING_RULES,
    Boundaries,
    boundaries,
    evaluate_look,
    z_of_conditional_power,
)
from e2i_dagster.tables.description import experiments as tables

#: What is reported of a look besides effects.
LOOK_FACTS = ("look", "information", "units", "data as of", "alpha spent", "frozen rows")


class InterimPage(BaseModel):
    """What everyone may see of the looks of an experiment.

    ``looks`` has number, information, data as of, digest of the frozen rows, alpha spent and ``advice``
    (``continue`` or ``stop for review`` while blinded). ``figure`` shows the path of z only when open.
    """

    model_config = ConfigDict(frozen=True)

    experiment: str
    state: str
    blinded: bool
    simulated: bool
    information: float
    next_fraction: float | None
    looks: tuple[dict[str, Any], ...]
    size_proposal: str = ""
    figure: Figure | None = None

    def to_metadata(self) -> dict[str, Any]:
        """Looks made, and when the next is due."""
        # In the UI a wide table is cut off: what is open of the effects has a table of its own.
        columns = list(self.looks[0]) if self.looks else []
        facts = [name for name in columns if name in LOOK_FACTS or (self.blinded and name == "says")]
        effects = ["look", *(name for name in columns if name not in LOOK_FACTS)]
        return {
            "experiment_state": self.state,
            "stream": "simulated" if self.simulated else "observed",
            "blinding": "dmc: effects and statistics are left out" if self.blinded else "open",
            "information_fraction": self.information,
            "next_look_at": self.next_fraction,
            "looks_made": len(self.looks),
            "looks": looks_table(self.looks, facts) if self.looks else None,
            "effects": looks_table(self.looks, effects) if self.looks and not self.blinded else None,
            "sample_size_review": self.size_proposal or None,
            "boundaries": self.figure,
        }

    def to_record(self) -> dict[str, Any]:
        """Everything as plain values but the figure."""
        return self.model_dump(mode="json", exclude={"figure"})


def looks_table(looks: Sequence[Mapping[str, Any]], columns: Sequence[str] = ()) -> Table:
    """``looks`` of an :class:`InterimPage`; without ``columns`` all that they have."""
    columns = columns or list(looks[0] if looks else ())
    return Table(columns, [[look[name] for name in columns] for look in looks])


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


def answered(spec: ExperimentSpec, made: Sequence[InterimAnalysis]) -> list[InterimAnalysis]:
    """The looks that spent alpha: a look that gave no answer is as if it had not been made.

    The classical rules hold for the whole plan, in which every look keeps its place.
    """
    if spec.looks.rule not in SPENDING_RULES:
        return list(made)
    return [look for look in made if look.metrics_snapshot.answered]


def progress(spec: ExperimentSpec, made: Sequence[InterimAnalysis]) -> tuple[list[float], list[float]]:
    """Information fractions of the looks ``made``, of the size now planned, and where each of them spent alpha.

    The two differ when an amendment changed the size after a look.
    """
    target = spec.information_target
    reached = [look.information_fraction * look.target_sample_size / target for look in made]
    return reached, [look.metrics_snapshot.spending_time for look in made]


def look_boundaries(
    spec: ExperimentSpec, reached: Sequence[float], *, final: bool, times: Sequence[float] | None = None
) -> Boundaries:
    """Boundaries for the looks so far, made at the information fractions ``reached`` (of that planned).

    Spending rules take any fractions; when more information came than was planned, information is counted in
    what there is and alpha is spent by the plan. The classical rules hold for the planned fractions, at which
    their looks are frozen. With several arms each is compared at alpha divided by their number (Bonferroni).
    ``times``: where alpha is spent, when that is not at the fractions (:func:`progress`).
    """
    alpha = spec.looks.alpha / len(spec.treatments)
    shared: dict[str, Any] = {"alpha": alpha, "sides": spec.looks.sides, "gamma": spec.looks.gamma}
    if spec.looks.rule not in SPENDING_RULES:
        return boundaries(spec.looks.rule, spec.looks.information_fractions, **shared)
    largest = max(1.0, *reached)
    spent = [min(fraction, 1.0) for fraction in reached] if times is None else list(times)
    return boundaries(
        spec.looks.rule,
        [fraction / largest for fraction in reached],
        spending_time=None if spent == list(reached) else spent,
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
    experiment = store.read_locked(connection, name)
    made = InterimAnalysis.read_all(connection, name)
    records = store.read_records(connection, name)
    ended = experiment.state in ("completed", "stopped_other")
    spec = experiment.spec
    if experiment.state not in ("running", "completed", "stopped_other") or (
        made and (made[-1].analysis_type == "final" or bound_to_stop(made))
    ):
        return None
    newest = progress(spec, made)[0]
    used = answered(spec, made)
    before, times = progress(spec, used)
    reached = store.information(spec, records.outcomes)
    number = due_look(spec, reached, len(used), ended=ended)
    if number is None or reached <= (newest[-1] if made else 0.0):
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
        reached=[*before, reached],
        times=[*times, min(reached, 1.0)],
        earlier=[look.metrics_snapshot for look in used],
        final=final,
        policy=policy,
        look=len(made) + 1,
    )
    _record(
        connection, report, place=len(used), last_event=last_event, last_outcome=last_outcome, actor=actor
    )
    return report


def evaluate(
    spec: ExperimentSpec,
    records: store.Records,
    *,
    reached: Sequence[float],
    earlier: Sequence[LookReport],
    final: bool,
    policy: LifecyclePolicy,
    times: Sequence[float] | None = None,
    look: int | None = None,
) -> LookReport:
    """Analyse ``records`` by intention to treat and hold each arm's z against the boundaries.

    Args:
        reached: information fractions of all looks up to this one that spend alpha (:func:`answered`).
        earlier: those before. times: where they spend alpha, when not at the fractions.
        look: number of this one, when looks before it gave no answer.
    """
    frame = records.analysis_frame(spec, policy)
    bounds = look_boundaries(spec, reached, final=final, times=times)
    number = len(reached)
    primary = analysis_of(frame, spec, spec.metrics.primary, policy=policy.analysis)
    observed = {arm.arm: arm.observed for arm in primary.arms}
    days = _days_running(records)
    arms = tuple(
        _arm_look(spec, primary, arm, bounds, number, earlier, observed, days) for arm in spec.treatments
    )
    harm = tuple(
        _harm(frame, spec, rule, arm, policy.analysis)
        for rule in spec.stopping.harm
        for arm in spec.treatments
    )
    missing = _not_evaluable(arms, harm)
    advice, why = _advice(arms, harm, missing)
    tested = any(arm.z is not None for arm in arms)
    # A look without an answer spends nothing, and another one may be the last.
    spent = (bounds.alpha_spent[number - 1] if tested else (0.0, *bounds.alpha_spent)[number - 1]) * len(arms)
    futility = spec.stopping.futility
    if advice != "stop_futility" and earlier and earlier[-1].advice == "stop_futility":
        why += f". It went on after look {number - 1} had said futility (non-binding)"
    return LookReport(
        experiment=spec.name,
        look=number if look is None else look,
        of=len(spec.looks.information_fractions),
        final=final and tested,
        design_digest=spec.design_digest,
        information_fraction=reached[-1],
        planned_fraction=spec.looks.information_fractions[
            min(number, len(spec.looks.information_fractions)) - 1
        ],
        information_target=spec.information_target,
        spending_time=min(reached[-1], 1.0) if times is None else times[-1],
        units=sum(observed.values()),
        units_by_arm=observed,
        data_as_of=records.outcomes["observed_at"].max().isoformat(),
        snapshot_digest=records.digest,
        rule=spec.looks.rule,
        alpha=spec.looks.alpha,
        alpha_spent=spent,
        fractions=bounds.information_fractions,
        boundary_z=bounds.z,
        arms=arms,
        harm=harm,
        advice=advice,
        rationale=why,
        binding_stop=advice == "stop_futility" and futility is not None and futility.binding,
        size_proposal=propose_size(spec, frame, reached, arms[0].z),
        not_evaluable=missing,
    )


def analysis_of(
    frame: pd.DataFrame,
    spec: ExperimentSpec,
    metric: Metric,
    analysis_set: str = "itt",
    *,
    policy: AnalysisPolicy,
    **options: Any,
) -> Analysis:
    """The analysis of one metric of the design over one analysed set of ``frame``."""
    from e2i_dagster.experiments.statistics.analysis import analyze

    frame, covariate, left_out = _with_covariate(frame, metric)
    found = analyze(
        frame,
        arm="variant",
        outcome=metric.name,
        kind=metric.kind,
        control=spec.control,
        arms=tuple(spec.ratios),
        **columns_of(spec, metric),
        covariate=covariate,
        analysis_set=analysis_set,
        received="received" if analysis_set != "itt" else None,
        adherent="adherent" if analysis_set == "per_protocol" else None,
        missing=missing_policy(spec, metric),
        min_per_arm=policy.minimum_per_arm,
        missing_p=policy.missing_difference_p,
        covariate_p=policy.covariate_difference_p,
        **options,
    )
    if not left_out:
        return found
    comparisons = tuple(comparison.model_copy(update={"note": left_out}) for comparison in found.comparisons)
    return found.model_copy(update={"comparisons": comparisons, "notes": (left_out, *found.notes)})


def _with_covariate(frame: pd.DataFrame, metric: Metric) -> tuple[pd.DataFrame, str | None, str]:
    """``frame`` with the covariate of ``metric`` as numbers, its name, and why it is left out where it cannot serve."""
    name = metric.covariate
    if name is None or metric.kind == "survival":
        return frame, None, ""
    if name not in frame.columns:
        return frame, None, f"without the covariate {name}: no unit has it"
    numbers = pd.to_numeric(frame[name], errors="coerce").astype("float64")
    wrong = int((frame[name].notna() & ~np.isfinite(numbers)).sum())
    if wrong:
        return frame, None, f"without the covariate {name}: {wrong:,} of its values are no finite numbers"
    return frame.assign(**{name: numbers}), name, ""


def columns_of(spec: ExperimentSpec, metric: Metric) -> dict[str, Any]:
    """Columns of an analysis frame that belong to the kind of ``metric`` and to the units."""
    return {
        "event": f"{metric.name}_event" if metric.kind == "survival" else None,
        "denominator": f"{metric.name}_denominator" if metric.kind == "ratio" else None,
        "cluster": "cluster" if spec.randomization.method == "cluster" else None,
        "unit": "unit_id",
    }


def missing_policy(spec: ExperimentSpec, metric: Metric) -> str:
    """The design's policy for missing outcomes, where it is one for the kind of ``metric``."""
    given = spec.missing_outcomes
    return given if given == "refuse" or metric.kind == "proportion" else "complete_cases"


def interim_page(
    experiment: store.Experiment,
    made: Sequence[InterimAnalysis],
    information: float,
    *,
    blinded: bool,
    figure: Figure | None = None,
) -> InterimPage:
    """What of the looks may be shown."""
    shown = []
    for look in made:
        row: dict[str, Any] = {
            "look": look.analysis_number,
            "information": look.information_fraction,
            "units": look.sample_size_at_analysis,
            "data as of": f"{look.data_as_of:%Y-%m-%d}",
            "alpha spent": look.cumulative_alpha_spent,
            "frozen rows": look.snapshot_digest,
        }
        if blinded:
            row["says"] = blinded_advice(look)
        else:
            z, effect = look.test_statistic, look.effect_estimate
            row["z"] = "not estimable" if z is None else z
            row["boundary"] = look.boundary_z
            row["effect"] = "not estimable" if effect is None else effect
            for arm in look.metrics_snapshot.arms:
                if arm.always_valid is not None:
                    row[f"always valid, {arm.arm}"] = _effect_limits(
                        arm.always_valid, hazard=experiment.spec.metrics.primary.kind == "survival"
                    )
            row["says"] = look.decision
        shown.append(row)
    planned, used = experiment.spec.looks.information_fractions, len(answered(experiment.spec, made))
    return InterimPage(
        experiment=experiment.name,
        state=experiment.state,
        blinded=blinded,
        simulated=experiment.simulated,
        information=information,
        next_fraction=planned[used] if used < len(planned) and experiment.state == "running" else None,
        looks=tuple(shown),
        size_proposal=size_review_text(experiment.spec, made, blinded=blinded),
        figure=figure,
    )


def _effect_limits(sequence: AlwaysValid, *, hazard: bool) -> tuple[float, float]:
    """Limits of a confidence sequence as effects: that of a hazard ratio runs on the log."""
    limits = (sequence.lower, sequence.upper)
    return (math.exp(limits[0]), math.exp(limits[1])) if hazard else limits


def blinded_advice(look: InterimAnalysis) -> str:
    """What everyone may know of the advice of a look: every stop looks alike."""
    if look.decision in ("continue", "not_evaluable"):
        return look.decision.replace("_", " ")
    return "stop for review"


def size_review_text(spec: ExperimentSpec, made: Sequence[InterimAnalysis], *, blinded: bool) -> str:
    """What the review of the sample size proposed, and whether the design in force has taken it up.

    A proposal by conditional power would tell the effect: while blinded only the committee's report has it.
    """
    for look in made:
        found, number = look.metrics_snapshot.size_proposal, look.analysis_number
        if found is None:
            continue
        if blinded and found.rule != "blinded_variance":
            return f"made at look {number}; its proposal is in the committee's report"
        if found.size is None:
            return f"look {number}: not estimable, {found.rationale}"
        proposal = f"look {number}: {found.planned:,} planned, {found.size:,} proposed. {found.rationale}"
        if found.size == found.planned:
            return proposal
        if spec.information_target == found.size:
            return f"{proposal} The design in force has taken it up."
        field = "events" if spec.sample_size.events is not None else "total"
        return (
            f"{proposal} To take it up, set sample_size.{field} to {found.size} in config/experiments/{spec.name}.yaml "
            f"and record it: e2i experiment amend {spec.name} --reason TEXT."
        )
    return ""


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
    from e2i_dagster.experiments.statistics.sample_ratio import srm_test

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
    earlier: Sequence[LookReport],
    observed: dict[str, int],
    days: float,
) -> ArmLook:
    found = primary.comparison(arm)
    level = spec.looks.alpha / len(spec.treatments) / spec.looks.sides
    reason = (found.reason or "no statistic") if found.z is None else _too_few_events(found, level)
    if found.z is None or reason:
        return ArmLook(
            arm=arm,
            estimable=False,
            reason=reason,
            advice="not_evaluable",
            rationale=f"{arm}: not evaluable, {reason}",
        )
    sign = spec.metrics.primary.sign
    before = [
        reading.z for look in earlier for reading in look.arms if reading.arm == arm and reading.z is not None
    ]
    # The trial went on after each of them, whatever the rule had said.
    before = [min(z, bound - 1e-9) for z, bound in zip(before, bounds.z, strict=False)]
    before = [0.0] * (number - 1 - len(before)) + before
    look = evaluate_look(bounds, number, sign * found.z, earlier_z=before)
    futility = spec.stopping.futility
    sequence, sequence_reason = _confidence_sequence(spec, found, earlier)
    lower, upper = (None, None) if found.effect is None else limits_at(found, bounds.z[number - 1])
    pair = min(observed[arm], observed[spec.control])
    advice, why = _rule(spec, look, pair, days)
    return ArmLook(
        arm=arm,
        estimable=found.effect is not None,
        reason=found.reason or "",
        effect=found.effect,
        lower=lower,
        upper=upper,
        z=look.z,
        p_value=found.p_value,
        conditional_power=look.conditional_power_trend,
        predictive_power=look.predictive_power,
        futility_z=None
        if futility is None or look.information_fraction >= 1 or not _enough(futility, pair, days)
        else z_of_conditional_power(
            futility.conditional_power_below, look.information_fraction, final_z=bounds.final_z
        ),
        always_valid=sequence,
        always_valid_reason=sequence_reason,
        advice=advice,
        rationale=f"{arm}: {why}"
        + (f" No estimate of the effect: {found.reason}" if found.reason else "")
        + (f" ({found.note})" if found.note else ""),
    )


def _too_few_events(found: Comparison, level: float, sign: float | None = None) -> str:
    """Why the events say nothing at ``level``: whichever arm they fell to, no p-value could lie below; else empty.

    Args:
        sign: of the z that counts; None where either side does.
    """
    if found.least_p(sign) < level:
        return ""
    return f"the events are too few: whichever arm they had fallen to, p could not be below {level:.3g}"


def _rule(spec: ExperimentSpec, look: Any, pair: int, days: float) -> tuple[Advice, str]:
    """Efficacy for benefit only; futility when the trend would hardly reach the boundary any more."""
    stopping = spec.stopping
    if look.decision == "stop_efficacy":
        least = stopping.efficacy
        if _enough(least, pair, days):
            return "stop_efficacy", look.rationale
        return "continue", (
            f"{look.rationale} The design asks for {least.minimum_per_arm:,} units per arm and "
            f"{least.minimum_days} days before it stops for benefit"
        )
    rule = stopping.futility
    if rule is not None and look.information_fraction < 1:
        low = look.conditional_power_trend < rule.conditional_power_below
        if low and _enough(rule, pair, days):
            return "stop_futility", (
                f"conditional power {look.conditional_power_trend:.3f} is below {rule.conditional_power_below:g}"
                + (" (binding)" if rule.binding else "")
            )
    return "continue", look.rationale


def _enough(least: Minimum, pair: int, days: float) -> bool:
    """Whether the smaller of two arms and the days reach what a rule asks for."""
    return pair >= least.minimum_per_arm and days >= least.minimum_days


def planned_standard_error(spec: ExperimentSpec, arm: str) -> float:
    """Standard error that the plan expects of the effect of ``arm`` at full information (log hazard ratio)."""
    primary, shares = spec.metrics.primary, spec.ratios
    if primary.kind == "survival":
        pair = shares[arm] + shares[spec.control]
        treated = shares[arm] / pair
        return 1.0 / math.sqrt(spec.information_target * pair * treated * (1.0 - treated))
    if primary.kind == "proportion":
        variance = (primary.baseline or 0.0) * (1.0 - (primary.baseline or 0.0))
    else:
        variance = (primary.sd or 0.0) ** 2
    total = spec.sample_size.total
    return math.sqrt(variance * (1.0 / (total * shares[arm]) + 1.0 / (total * shares[spec.control])))


def _confidence_sequence(
    spec: ExperimentSpec, found: Comparison, earlier: Sequence[LookReport]
) -> tuple[AlwaysValid | None, str]:
    """The confidence sequence of one arm, going on where the look before left it, or why there is none."""
    if not spec.looks.always_valid or found.effect is None or not found.standard_error:
        return None, ""
    before = next(
        (
            arm.always_valid
            for look in reversed(earlier)
            for arm in look.arms
            if arm.arm == found.arm and arm.always_valid is not None
        ),
        None,
    )
    alpha = spec.looks.alpha / len(spec.treatments) * (2 / spec.looks.sides)
    hazard = found.effect_type == "hazard_ratio"
    tuning = (
        mixture_variance(planned_standard_error(spec, found.arm), alpha=alpha)
        if before is None
        else before.tuning_variance
    )
    estimate = math.log(found.effect) if hazard else found.effect
    try:
        return always_valid(
            estimate, found.standard_error, tuning_variance=tuning, confidence=1.0 - alpha, before=before
        ), ""
    except InputError as error:
        # The sequence contradicts itself: that is a finding of the look, not a failure of it.
        return None, str(error)


class PresentInterval(BaseModel):
    """The confidence sequence of one arm on all rows so far, or why there is none. Unblinded."""

    model_config = ConfigDict(frozen=True)

    arm: str
    units: int
    effect: float | None = None
    lower: float | None = None
    upper: float | None = None
    p_value: float | None = None
    reason: str = ""


def present_intervals(
    spec: ExperimentSpec, records: store.Records, made: Sequence[InterimAnalysis], policy: LifecyclePolicy
) -> tuple[PresentInterval, ...]:
    """Confidence sequences of the rows recorded so far, going on from the newest look; empty without the option."""
    if not spec.looks.always_valid or records.outcomes.empty:
        return ()
    frame = records.analysis_frame(spec, policy)
    primary = analysis_of(frame, spec, spec.metrics.primary, policy=policy.analysis)
    units = {arm.arm: arm.observed for arm in primary.arms}
    earlier = [look.metrics_snapshot for look in made]
    shown = []
    for found in primary.comparisons:
        sequence, why = _confidence_sequence(spec, found, earlier)
        pair = {"arm": found.arm, "units": units[found.arm] + units[spec.control]}
        if sequence is None:
            shown.append(PresentInterval(**pair, reason=why or found.reason or "no statistic"))
            continue
        lower, upper = _effect_limits(sequence, hazard=found.effect_type == "hazard_ratio")
        shown.append(
            PresentInterval(**pair, effect=found.effect, lower=lower, upper=upper, p_value=sequence.p_value)
        )
    return tuple(shown)


def _harm(
    frame: pd.DataFrame, spec: ExperimentSpec, rule: HarmRule, arm: str, policy: AnalysisPolicy
) -> HarmCheck:
    metric = next(candidate for candidate in spec.metrics.all if candidate.name == rule.metric)
    found = analysis_of(frame, spec, metric, policy=policy)
    comparison = found.comparison(arm)
    counts = {item.arm: item.observed for item in found.arms}
    shared: dict[str, Any] = {"metric": metric.name, "arm": arm}
    if min(counts[arm], counts[spec.control]) < rule.minimum_per_arm:
        why = f"fewer than {rule.minimum_per_arm} units per arm"
        return HarmCheck(**shared, reason=why, status="too_early")
    reason = (
        (comparison.reason or "no statistic")
        if comparison.z is None
        else _too_few_events(comparison, rule.alpha, -float(metric.sign))
    )
    if comparison.z is None or reason:
        return HarmCheck(**shared, reason=reason, status="not_evaluable")
    from scipy.special import ndtr

    p = float(ndtr(metric.sign * comparison.z))
    relative = comparison.relative_effect
    if comparison.effect_type == "hazard_ratio":
        relative = None if comparison.effect is None else comparison.effect - 1.0
    worse = None if relative is None else -metric.sign * relative
    # Without a finite ratio (a control of 0, an arm without events) any worsening counts as more than every share.
    large = metric.sign * comparison.z < 0 if worse is None else worse >= rule.relative_worsening
    harmful = large and p < rule.alpha
    found_share = (
        (comparison.reason or "the control's mean is 0")
        if worse is None
        else f"{'worse' if worse > 0 else 'better'} by {abs(worse):.1%}"
    )
    reason = f"{found_share}, p {p:.3g}" + (f" ({comparison.note})" if comparison.note else "")
    return HarmCheck(**shared, relative_worsening=worse, p_value=p, harmful=harmful, reason=reason)


def _not_evaluable(arms: Sequence[ArmLook], harm: Sequence[HarmCheck]) -> tuple[str, ...]:
    """Arms and rules of harm about which the data say nothing."""
    return (
        *(arm.rationale for arm in arms if arm.z is None),
        *(
            f"{verdict.arm}: harm by {verdict.metric} is not evaluable, {verdict.reason}"
            for verdict in harm
            if verdict.status == "not_evaluable"
        ),
    )


def _advice(arms: Sequence[ArmLook], harm: Sequence[HarmCheck], missing: Sequence[str]) -> tuple[Advice, str]:
    """Harm first, then benefit of any arm, then futility of every arm; to go on only where everything was judged."""
    harmful = [check for check in harm if check.harmful]
    unjudged = "".join(f"; {text}" for text in missing)
    if harmful:
        return "stop_safety", "; ".join(
            f"{verdict.arm} {verdict.metric}: {verdict.reason}" for verdict in harmful
        ) + unjudged
    rationale = "; ".join([*(arm.rationale for arm in arms if arm.z is not None), *missing])
    if any(arm.advice == "stop_efficacy" for arm in arms):
        return "stop_efficacy", rationale
    if all(arm.advice == "stop_futility" for arm in arms):
        return "stop_futility", rationale
    return ("not_evaluable" if missing else "continue"), rationale


def _record(
    connection: sa.Connection,
    report: LookReport,
    *,
    place: int,
    last_event: int,
    last_outcome: int,
    actor: str,
) -> None:
    """Enter ``report``, which was compared with the boundary at ``place``."""
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
            target_sample_size=report.information_target,
            spending_function=report.rule,
            cumulative_alpha_spent=report.alpha_spent,
            boundary_z=report.boundary_z[place],
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
    made = {analysis.analysis_number: analysis for analysis in InterimAnalysis.read_all(connection, name)}
    if look not in made:
        raise InputError(
            f"Experiment {name} has no look {look}.",
            field="look",
            value=look,
            remedy=f"Looks made: {', '.join(map(str, made)) or 'none'}.",
        )
    frozen = made[look]
    records = store.read_records(
        connection, name, last_event=frozen.last_event_id, last_outcome=frozen.last_outcome_id
    )
    last = pd.Timestamp(frozen.recorded_at)
    assigned = records.assignments[records.assignments["recorded_at"] <= last]
    seen = store.Records(records.screened, assigned, records.events, records.outcomes)
    return seen.digest == frozen.snapshot_digest
