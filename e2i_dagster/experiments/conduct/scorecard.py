"""The score of a result for the decision: what was shown, how large it is, what it returns, whether it fits.

A part that nothing is known of stays open: the score is then an interval, and a recommendation is given only where
both of its ends say the same. The score advises; who decides, and why, is recorded with the decision.
"""

from __future__ import annotations

import math
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.experiment import ExperimentSpec
from e2i_dagster.config.experiment import Scorecard as ScorecardPolicy
from e2i_dagster.display import Table
from e2i_dagster.errors import InputError
from e2i_dagster.experiments.statistics.comparison_results import Analysis, Comparison
from e2i_dagster.experiments.statistics.estimation import FinalEstimate

Recommendation = Literal["strong_go", "go", "consider", "no_go"]


class ScorePart(BaseModel):
    """One part: its weight, its score from 0 to 1 (None: open), and what was found."""

    model_config = ConfigDict(frozen=True)

    name: str
    weight: float
    score: float | None
    found: str


class ScoredResult(BaseModel):
    """Score of one arm. ``low`` counts open parts as 0, ``high`` as 1; ``recommendation`` None while it is open."""

    model_config = ConfigDict(frozen=True)

    arm: str
    parts: tuple[ScorePart, ...]
    low: float
    high: float
    recommendation: Recommendation | None

    @property
    def sentence(self) -> str:
        """The score in one line."""
        score = f"{self.low:.2f}" if self.high - self.low < 1e-9 else f"{self.low:.2f} to {self.high:.2f}"
        open_parts = [part.name for part in self.parts if part.score is None]
        recommendation = (self.recommendation or "open").replace("_", " ")
        return f"{self.arm}: {recommendation}, score {score}" + (
            f" (open: {', '.join(open_parts)})" if open_parts else ""
        )

    @property
    def table(self) -> Table:
        """Part, weight, score and what was found."""
        rows = [
            (part.name, part.weight, "open" if part.score is None else part.score, part.found)
            for part in self.parts
        ]
        return Table(("part", "weight", "score", "found"), rows, dict.fromkeys(("weight", "score"), ".2f"))

    def to_metadata(self) -> dict[str, Any]:
        """Score and its parts for the UI."""
        return {"score": self.sentence, "scorecard": self.table}

    def to_record(self) -> dict[str, Any]:
        """Everything as plain values."""
        return self.model_dump(mode="json")


def score_result(
    spec: ExperimentSpec,
    analysis: Analysis,
    policy: ScorecardPolicy,
    *,
    adjusted: FinalEstimate | None = None,
    alignment: float | None = None,
) -> ScoredResult | None:
    """Score the arm with the largest benefit on the primary metric; None when no arm can be estimated.

    Args:
        analysis: of the primary metric by intention to treat.
        adjusted: estimate that allows for the looks, where there is one.
        alignment: how well the treatment fits the strategy, from 0 to 1, as judged by who decides.

    Raises:
        InputError: ``alignment`` lies outside 0 to 1.
    """
    if alignment is not None and not 0 <= alignment <= 1:
        raise InputError(
            f"alignment: {alignment:g} lies outside 0 (against the strategy) to 1 (fits it).",
            field="alignment",
        )
    known = [
        comparison
        for comparison in analysis.comparisons
        if comparison.effect is not None and comparison.standard_error and comparison.z is not None
    ]
    if not known:
        return None
    sign = spec.metrics.primary.sign
    best = max(known, key=lambda comparison: sign * (comparison.z or 0.0))
    weights = policy.weights
    parts = (
        ScorePart(name="significance", weight=weights.significance, **_significance(best, sign, policy, adjusted)),
        ScorePart(name="practical", weight=weights.practical, **_practical(best, sign, policy)),
        ScorePart(name="confidence", weight=weights.confidence, **_confidence(spec, best, sign, policy)),
        ScorePart(name="roi", weight=weights.roi, **_return(spec, best, sign, policy)),
        ScorePart(
            name="alignment",
            weight=weights.alignment,
            score=alignment,
            found="not judged" if alignment is None else "judged by who decided",
        ),
    )  # fmt: skip
    low = sum(part.weight * (part.score or 0.0) for part in parts)
    high = low + sum(part.weight for part in parts if part.score is None)
    grade, best_case = _grade(low, policy), _grade(high, policy)
    return ScoredResult(
        arm=best.arm,
        parts=parts,
        low=low,
        high=high,
        recommendation=grade if grade == best_case else None,
    )


def _grade(score: float, policy: ScorecardPolicy) -> Recommendation:
    grades = policy.grades
    if score >= grades.strong_go - 1e-12:
        return "strong_go"
    if score >= grades.go - 1e-12:
        return "go"
    return "consider" if score >= grades.consider - 1e-12 else "no_go"


def _capped(value: float) -> float:
    return min(1.0, max(0.0, value))


def _benefit(comparison: Comparison, sign: int) -> float:
    """Effect on the scale of its standard error, positive for benefit."""
    assert comparison.effect is not None
    return sign * (
        math.log(comparison.effect) if comparison.effect_type == "hazard_ratio" else comparison.effect
    )


def _significance(
    comparison: Comparison, sign: int, policy: ScorecardPolicy, adjusted: FinalEstimate | None
) -> dict[str, Any]:
    p = comparison.adjusted_p_value if adjusted is None else adjusted.p_value
    source = "" if adjusted is None else ", adjusted for the looks"
    if p is None:
        return {"score": None, "found": "no p-value"}
    benefit = _benefit(comparison, sign) > 0
    return {
        "score": float(benefit and p <= policy.significance_p),
        "found": f"{'benefit' if benefit else 'no benefit'}, p {p:.3g}{source}; wanted {policy.significance_p:g}",
    }


def _practical(comparison: Comparison, sign: int, policy: ScorecardPolicy) -> dict[str, Any]:
    lift = (
        (comparison.effect or 1.0) - 1.0
        if comparison.effect_type == "hazard_ratio"
        else comparison.relative_effect
    )
    if lift is None:
        return {"score": None, "found": "relative to a control of 0 there is no lift"}
    return {
        "score": _capped(sign * lift / policy.practical_lift),
        "found": f"{sign * lift:+.1%} relative to the control; wanted {policy.practical_lift:.0%}",
    }


def _confidence(
    spec: ExperimentSpec, comparison: Comparison, sign: int, policy: ScorecardPolicy
) -> dict[str, Any]:
    """Probability, by the normal likelihood and a flat prior, of at least the minimum effect of the design."""
    from scipy.special import ndtr

    least = spec.metrics.primary.minimum_effect
    hazard = comparison.effect_type == "hazard_ratio"
    wanted = 0.0 if not least else abs(math.log(least) if hazard else least)
    assert comparison.standard_error is not None
    probability = float(ndtr((_benefit(comparison, sign) - wanted) / comparison.standard_error))
    what = "any benefit" if not least else f"at least the minimum effect ({least:g})"
    return {
        "score": _capped(probability / policy.confidence),
        "found": f"probability {probability:.2f} of {what}; wanted {policy.confidence:g}",
    }


def _return(
    spec: ExperimentSpec, comparison: Comparison, sign: int, policy: ScorecardPolicy
) -> dict[str, Any]:
    money = spec.economics
    if money is None:
        return {"score": None, "found": "the design has no economics"}
    if comparison.effect_type == "hazard_ratio":
        return {"score": None, "found": "a hazard ratio has no value per unit"}
    ratio = _benefit(comparison, sign) * money.value_of_effect / money.cost_per_unit
    return {
        "score": _capped(ratio / policy.roi),
        "found": f"value {ratio:.2f} times the cost; wanted {policy.roi:g}",
    }
