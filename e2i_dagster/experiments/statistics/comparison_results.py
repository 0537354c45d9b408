"""What an analysis reports: arms, comparisons with the control, and why a figure is absent."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from e2i_dagster.cohorts.disclosure import is_small, shown_count
from e2i_dagster.display import Table
from e2i_dagster.errors import InputError
from e2i_dagster.experiments.statistics.sufficient_statistics import AnalysisSet, Kind, Missing

Status = Literal["estimated", "tested", "not_estimable"]


class ArmSummary(BaseModel):
    """What was observed in one arm.

    ``units`` in the analysis set, of them ``missing`` without outcome. ``mean`` is the mean, rate or ratio;
    ``sd`` the standard deviation of one unit (of a ratio: of its linearized value). Both None where there
    are too few units, and for survival, which has ``events``.
    """

    model_config = ConfigDict(frozen=True)

    arm: str
    units: int
    observed: int
    missing: int
    missing_rate: float
    mean: float | None = None
    sd: float | None = None
    events: int | None = None
    clusters: int | None = None


class Comparison(BaseModel):
    """One arm against the control.

    ``status`` not_estimable carries ``reason`` and no figure; ``tested`` has a test (``z``, ``p_value``) and in
    ``reason`` why its effect has no finite estimate. ``note``: a covariate or strata that could not serve were
    left out, and why. ``effect`` is the difference of means, rates
    or ratios, or the hazard ratio (``effect_type``); ``standard_error`` is that of the difference or of the
    log hazard ratio. ``statistic`` belongs to ``method``; ``z`` is the same evidence as a standard normal
    value, positive where the treated arm has the larger mean or the larger hazard.
    ``relative_effect``: share of the control's mean. ``unadjusted_effect`` and ``variance_reduction``: what
    the covariate changed. ``bounds``: of the interval when missing outcomes are anything they can be.
    ``counts``: of rates whose interval is the score interval, events and units of the treated arm, then of the control.
    ``attainable``: where the test counts events, the smallest and the largest ``z`` that as many events could have
    given, whichever arm they fell to.
    ``restricted_mean_*``: difference of restricted mean survival times up to ``horizon``.
    """

    model_config = ConfigDict(frozen=True)

    arm: str
    control: str
    status: Status
    reason: str | None = None
    note: str | None = None
    effect_type: Literal["difference", "hazard_ratio"] = "difference"
    method: str | None = None
    effect: float | None = None
    standard_error: float | None = None
    lower: float | None = None
    upper: float | None = None
    statistic: float | None = None
    degrees_of_freedom: float | None = None
    z: float | None = None
    p_value: float | None = None
    adjusted_p_value: float | None = None
    relative_effect: float | None = None
    relative_lower: float | None = None
    relative_upper: float | None = None
    unadjusted_effect: float | None = None
    variance_reduction: float | None = None
    bounds: tuple[float, float] | None = None
    counts: tuple[int, int, int, int] | None = None
    attainable: tuple[float, float] | None = None
    restricted_mean_difference: float | None = None
    restricted_mean_lower: float | None = None
    restricted_mean_upper: float | None = None
    restricted_mean_p_value: float | None = None
    horizon: float | None = None

    @property
    def interval(self) -> tuple[float, float] | None:
        """Confidence interval of ``effect``, None where it is not estimable."""
        return None if self.lower is None or self.upper is None else (self.lower, self.upper)

    def least_p(self, sign: float | None = None) -> float:
        """Smallest one-sided p-value that the observed events could have given: 0 where it has no bound.

        Args:
            sign: of the z asked for; None for that of either side.
        """
        from scipy.special import ndtr

        if self.attainable is None:
            return 0.0
        low, high = (float(ndtr(-abs(z))) for z in self.attainable)
        return min(low, high) if sign is None else (high if sign > 0 else low)

    @property
    def estimate(self) -> tuple[float | str, tuple[float | None, float | None]]:
        """Effect and interval as they are shown; in words when there is no estimate."""
        return "not estimable" if self.effect is None else self.effect, (self.lower, self.upper)


class Analysis(BaseModel):
    """Arms, comparisons with the control, and how they came about.

    With two arms ``effect``, ``interval``, ``p_value``, ``status`` and ``reason`` are those of the single
    comparison.
    """

    model_config = ConfigDict(frozen=True)

    kind: Kind
    analysis_set: AnalysisSet
    missing_policy: Missing
    control: str
    confidence: float
    multiplicity: str
    arms: tuple[ArmSummary, ...]
    comparisons: tuple[Comparison, ...]
    not_analysed: int
    notes: tuple[str, ...] = ()

    def comparison(self, arm: str | None = None) -> Comparison:
        """The comparison of ``arm``, or the only one.

        Raises:
            InputError: there is no such comparison, or several and none was named.
        """
        found = [item for item in self.comparisons if arm is None or item.arm == arm]
        if len(found) != 1:
            raise InputError(
                f"comparison: name one of the arms {', '.join(c.arm for c in self.comparisons)}.",
                field="comparison",
            )
        return found[0]

    @property
    def effect(self) -> float | None:
        return self.comparison().effect

    @property
    def interval(self) -> tuple[float, float] | None:
        return self.comparison().interval

    @property
    def p_value(self) -> float | None:
        return self.comparison().p_value

    @property
    def status(self) -> Status:
        return self.comparison().status

    @property
    def reason(self) -> str | None:
        return self.comparison().reason

    def to_metadata(self) -> dict[str, Any]:
        # A mean of fewer than 11 units says something about persons.
        arms = [
            (
                *(arm.arm, shown_count(arm.units), shown_count(arm.observed), shown_count(arm.missing)),
                None if is_small(arm.observed) else arm.mean,
            )
            for arm in self.arms
        ]
        compared = [
            (
                *(comparison.arm, *comparison.estimate, comparison.p_value, comparison.adjusted_p_value),
                "; ".join(filter(None, (comparison.method, comparison.reason))),
            )
            for comparison in self.comparisons
        ]
        return {
            "kind": self.kind,
            "analysis_set": self.analysis_set,
            "missing_policy": self.missing_policy,
            "control": self.control,
            "confidence": self.confidence,
            "not_analysed": shown_count(self.not_analysed),
            "arms": Table(("arm", "units", "observed", "missing", "mean"), arms),
            "comparisons": Table(("arm", "effect", "interval", "p", "adjusted p", "method"), compared),
        } | ({"notes": "; ".join(self.notes)} if self.notes else {})

    def to_record(self) -> dict[str, Any]:
        return self.model_dump(mode="json")
