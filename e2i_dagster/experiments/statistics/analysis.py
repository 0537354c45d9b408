"""Results of an experiment: the effect of each arm against the control, or the reason why there is none.

All figures follow from ``SufficientStatistics``, so an analysis of merged partitions equals that of the
whole. Formulas and sources: docs/experiments_statistics.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from e2i_dagster.cohorts.disclosure import shown_count
from e2i_dagster.errors import InputError
from e2i_dagster.experiments.statistics.comparison_results import Analysis, ArmSummary
from e2i_dagster.experiments.statistics.comparisons import compare, point_of_arm
from e2i_dagster.experiments.statistics.multiplicity import adjusted
from e2i_dagster.experiments.statistics.stopping import checked_number, checked_probability
from e2i_dagster.experiments.statistics.sufficient_statistics import (
    AnalysisSet,
    Kind,
    Missing,
    SufficientStatistics,
    summarize,
)

#: Fewer observed units in an arm are not analysed: intervals rest on the sampling distribution of means.
SMALLEST_ARM = 20


def analyze(
    frame: Any,
    *,
    arm: str,
    outcome: str,
    kind: Kind | str = "mean",
    control: str,
    arms: Sequence[str] | None = None,
    covariate: str | None = None,
    cluster: str | None = None,
    strata: str | None = None,
    denominator: str | None = None,
    event: str | None = None,
    analysis_set: AnalysisSet | str = "itt",
    received: str | None = None,
    adherent: str | None = None,
    missing: Missing | str = "complete_cases",
    outcome_range: tuple[float, float] | None = None,
    unit: str | None = None,
    assigned_at: str | None = None,
    outcome_at: str | None = None,
    covariate_at: str | None = None,
    horizon: float | None = None,
    confidence: float = 0.95,
    multiplicity: str = "holm",
    min_per_arm: int = SMALLEST_ARM,
    missing_p: float = 0.01,
    covariate_p: float = 0.001,
) -> Analysis:
    """Effect of every arm against ``control``.

    Args:
        frame: one row per unit; pandas frame, DuckDB relation, Narwhals frame, or path of a Parquet file or
            pattern. It is never changed; large frames stay on their engine.
        arm, outcome: columns; ``outcome`` is the number of units' value, 0/1, the numerator, or the time.
        kind: ``mean`` (Welch), ``proportion`` (score or exact test, score interval), ``ratio`` (ratio of sums of
            ``outcome`` and ``denominator``, delta method), ``survival`` (log-rank test, Cox hazard ratio,
            restricted mean up to ``horizon``; ``event`` is 1 for an event and 0 for censoring).
        control: value of ``arm`` to compare with; arms: all arms of the design, to notice an empty one.
        covariate: number from before the assignment that explains the outcome (CUPED).
        cluster: column of the clusters: randomized ones, or those within which units are alike.
        strata: column; effects are weighted by the size of the strata, tests are stratified.
        analysis_set: ``itt`` as assigned; ``per_protocol`` units that received what they were assigned
            (``received``) and were ``adherent`` (boolean); ``as_treated`` by what they ``received``.
        missing: ``complete_cases`` leaves units without outcome out and reports them, ``refuse`` refuses them,
            ``non_responder`` counts them as 0 (proportion), ``bounds`` adds the effects between which the truth
            lies when a missing outcome is anything in ``outcome_range`` (0 and 1 for proportions).
        unit: column of the unit's identifier, to refuse units with two rows or two arms.
        assigned_at, outcome_at, covariate_at: columns of times, to refuse outcomes before the assignment and
            covariates after it.
        confidence: of the intervals; multiplicity: adjustment over several arms.
        min_per_arm: fewer observed units in an arm are not estimable.
        missing_p, covariate_p: a note is added when missing outcomes, or the covariate, differ so clearly.

    Raises:
        InputError: columns, values or options are wrong. What cannot be estimated is no error: its
            comparison says ``not_estimable`` and why, or ``tested`` where there is a test alone.
    """
    statistics = summarize(
        frame, arm=arm, outcome=outcome, kind=kind, denominator=denominator, event=event, covariate=covariate,
        cluster=cluster, strata=strata, analysis_set=analysis_set, received=received, adherent=adherent,
        missing=missing, unit=unit, assigned_at=assigned_at, outcome_at=outcome_at, covariate_at=covariate_at,
    )  # fmt: skip
    return analyze_statistics(
        statistics, control=control, arms=arms, outcome_range=outcome_range, horizon=horizon,
        confidence=confidence, multiplicity=multiplicity, min_per_arm=min_per_arm, missing_p=missing_p,
        covariate_p=covariate_p,
    )  # fmt: skip


def analyze_statistics(
    statistics: SufficientStatistics,
    *,
    control: str,
    arms: Sequence[str] | None = None,
    outcome_range: tuple[float, float] | None = None,
    horizon: float | None = None,
    confidence: float = 0.95,
    multiplicity: str = "holm",
    min_per_arm: int = SMALLEST_ARM,
    missing_p: float = 0.01,
    covariate_p: float = 0.001,
) -> Analysis:
    """``analyze`` from sufficient statistics, for example of merged partitions."""
    confidence = checked_probability(confidence, "confidence")
    control = str(control)
    if min_per_arm < 2:
        raise InputError(
            f"min_per_arm: {min_per_arm} leaves no variance to estimate; at least 2.", field="min_per_arm"
        )
    given = list(map(str, arms)) if arms is not None else list(statistics.arms)
    unknown = sorted(set(statistics.arms) - set(given))
    if unknown:
        raise InputError(
            f"arm: {unknown} are not among the arms of the design ({', '.join(given)}).", field="arm"
        )
    if control not in given:
        raise InputError(f"control: {control!r} is no arm; the arms are {', '.join(given)}.", field="control")
    treated = [name for name in given if name != control]
    if not treated:
        raise InputError(
            f"arm: every unit is in {control!r}; one arm alone has no effect to estimate.", field="arm"
        )
    limits = _outcome_range(statistics, outcome_range)
    absent = {name: statistics.cell(name).missing for name in given if statistics.cell(name).missing}
    if statistics.missing == "refuse" and absent:
        raise InputError(
            f"outcome: {sum(absent.values())} units have none (arms {', '.join(sorted(absent))}), and "
            f"missing='refuse'.",
            field="outcome",
            remedy="Deliver the outcomes or choose another policy for missing ones.",
        )
    comparisons = [
        compare(statistics, name, control, confidence, limits, horizon, min_per_arm) for name in treated
    ]
    final = adjusted([item.p_value for item in comparisons], multiplicity)
    comparisons = [
        item.model_copy(update={"adjusted_p_value": p}) for item, p in zip(comparisons, final, strict=True)
    ]
    return Analysis(
        kind=statistics.kind,
        analysis_set=statistics.analysis_set,
        missing_policy=statistics.missing,
        control=control,
        confidence=confidence,
        multiplicity=multiplicity,
        arms=tuple(_arm_summary(statistics, name) for name in given),
        comparisons=tuple(comparisons),
        not_analysed=statistics.not_analysed,
        notes=(
            *(f"{item.arm}: {item.note}" for item in comparisons if item.note),
            *_notes(statistics, control, treated, missing_p, covariate_p),
        ),
    )


def _outcome_range(
    statistics: SufficientStatistics, outcome_range: tuple[float, float] | None
) -> tuple[float, float] | None:
    if statistics.missing != "bounds":
        return None
    if outcome_range is None:
        if statistics.kind == "proportion":
            return 0.0, 1.0
        raise InputError(
            "outcome_range: missing='bounds' of means needs the least and largest possible outcome.",
            field="outcome_range",
        )
    low, high = (checked_number(value, "outcome_range") for value in outcome_range)
    if low >= high:
        raise InputError(f"outcome_range: {low:g} is not below {high:g}.", field="outcome_range")
    return low, high


def _arm_summary(statistics: SufficientStatistics, arm: str) -> ArmSummary:
    cell = statistics.cell(arm)
    moments = cell.moments(statistics.covariate_fill([arm]))
    kept = cell.units if statistics.missing == "non_responder" else cell.units - cell.missing
    shared: dict[str, Any] = {
        "arm": arm, "units": cell.units, "observed": kept, "missing": cell.missing,
        "missing_rate": cell.missing / cell.units if cell.units else 0.0,
    }  # fmt: skip
    if statistics.life is not None:
        part = statistics.life[statistics.life["arm"] == arm]
        return ArmSummary(**shared, events=int(part["events"].sum()))
    clusters = None
    if statistics.clusters is not None:
        clusters = int(statistics.clusters.loc[statistics.clusters["arm"] == arm, "cluster"].nunique())
    if moments.count < 2:
        return ArmSummary(**shared, clusters=clusters)
    point = point_of_arm(statistics.kind, moments)
    if point is None:
        return ArmSummary(**shared, clusters=clusters)
    value, weights = point
    outcome = moments.covariance()[: len(weights), : len(weights)]
    return ArmSummary(
        **shared, mean=value, sd=math.sqrt(max(float(weights @ outcome @ weights), 0.0)), clusters=clusters
    )


def _notes(
    statistics: SufficientStatistics,
    control: str,
    treated: Sequence[str],
    missing_p: float,
    covariate_p: float,
) -> list[str]:
    """What a reader must know beside the figures."""
    from scipy.special import chdtrc, ndtr

    notes = []
    cells = {name: statistics.cell(name) for name in (control, *treated)}
    units = np.array([cell.units for cell in cells.values() if cell.units], dtype=float)
    missing = np.array([cell.missing for cell in cells.values() if cell.units], dtype=float)
    if 0 < missing.sum() < units.sum() and len(units) > 1:
        expected = units * missing.sum() / units.sum()
        statistic = (
            (missing - expected) ** 2 / expected + (missing - expected) ** 2 / (units - expected)
        ).sum()
        p = float(chdtrc(len(units) - 1, statistic))
        if p < missing_p:
            rates = ", ".join(f"{name} {c.missing / c.units:.1%}" for name, c in cells.items() if c.units)
            notes.append(
                f"missing outcomes differ between the arms ({rates}; p {p:.2g}): the effect may be biased"
            )
    if statistics.covariate:
        base = cells[control].complete
        for name in treated:
            other = cells[name].complete
            if min(base.count, other.count) < 2:
                continue
            spread = base.covariance()[-1, -1] / base.count + other.covariance()[-1, -1] / other.count
            if (
                spread > 0
                and 2 * ndtr(-abs(other.mean[-1] - base.mean[-1]) / math.sqrt(spread)) < covariate_p
            ):
                notes.append(
                    f"the covariate differs between {name} and {control} by more than chance: was it measured "
                    "before the assignment?"
                )
        bare = sum(cell.bare.count for cell in cells.values())
        if bare:
            notes.append(f"{shown_count(bare)} units without covariate count with its mean")
    if statistics.analysis_set != "itt":
        notes.append(
            f"{statistics.analysis_set} sets are not protected by randomization; read beside the itt analysis"
        )
    return notes
