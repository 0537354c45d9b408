"""What an estimation gives: one result per library, their agreement and the consensus."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import numpy as np
from pydantic import ConfigDict, Field

from e2i_dagster.causal.nuisances import Estimand
from e2i_dagster.causal.overlap import Overlap
from e2i_dagster.display import Table
from e2i_dagster.policy_files.base import PolicyModel


class LibraryEstimate(PolicyModel):
    """The effect as one estimator of one library gives it.

    Attributes:
        estimand: ``ate``, ``att``, or ``overlap_weighted``: the mean effect weighted by the variance of treatment.
        state: ``estimated``, ``unavailable`` (not importable) or ``failed``; other than ``estimated``
            has no point, and ``reason`` says why; it also says why an estimate does not count.
        point, lower, upper: difference of mean outcomes, treated minus control, in units of the outcome.
        seconds: wall time with the library's import. in_consensus: it counts in the consensus.
    """

    name: str
    library: str
    version: str = ""
    estimand: str
    state: str
    reason: str = ""
    point: float | None = None
    lower: float | None = None
    upper: float | None = None
    seconds: float
    in_consensus: bool

    @property
    def label(self) -> str:
        """Library and name, for people."""
        return f"{self.library} {self.name}"


class Unadjusted(PolicyModel):
    """Difference of the arms' mean outcomes, treated minus control, with its interval. No effect: arms differ.

    lower, upper: Welch's interval; None where neither arm has variance.
    """

    difference: float
    lower: float | None
    upper: float | None

    @property
    def sentence(self) -> str:
        """The figure under its label, for people."""
        reach = "" if self.lower is None else f" ({self.lower:.3f} to {self.upper:.3f})"
        return (
            f"Unadjusted difference of the arms {self.difference:.3f}{reach}. This is not the effect: it holds "
            "whatever else differs between treated and control."
        )


class EffectEstimates(PolicyModel):
    """The effect of a treatment on an outcome by several libraries.

    Attributes:
        rows, treated: units used, and those of them treated. dropped: units without outcome, left out.
        level: of the intervals. outcome_is_binary: effects are then differences of probabilities.
        state: ``estimated`` or ``not_estimable``; then ``reason`` says why and there is no estimate.
        estimand: on everyone (ate) or on the treated (att). unadjusted: None where too few rows are there.
        trim: bounds of the propensity outside which rows were left out. trimmed: how many.
        estimates: one per estimator. overlap: None where too few rows prevented to judge it.
        constant_confounders: left out because they have one value.
        families: model families of the nuisances that had the lower cross-fitted loss.
        scores: by label, (n,) values whose mean is the point; in memory only, never stored.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    treatment: str
    outcome: str
    confounders: tuple[str, ...]
    rows: int
    treated: int
    dropped: int
    level: float
    seed: int
    outcome_is_binary: bool
    state: str
    reason: str = ""
    estimand: Estimand = "ate"
    unadjusted: Unadjusted | None = None
    trim: tuple[float, float] | None = None
    trimmed: int = 0
    estimates: tuple[LibraryEstimate, ...] = ()
    overlap: Overlap | None = None
    constant_confounders: tuple[str, ...] = ()
    families: Mapping[str, str] = Field(default_factory=dict)
    scores: Mapping[str, np.ndarray] = Field(default_factory=dict, exclude=True, repr=False)

    @property
    def population(self) -> str:
        """On whom the effect is, in words."""
        whom = "everyone" if self.estimand == "ate" else "the treated (ATT)"
        if self.trim is not None:
            whom += (
                f" with a propensity in [{self.trim[0]:g}, {self.trim[1]:g}]; {self.trimmed:,} rows outside are "
                "left out"
            )
        return whom if not self.dropped else f"{whom}; {self.dropped:,} rows without outcome are left out"

    def by_label(self, label: str) -> LibraryEstimate:
        """The estimate called ``<library> <name>``; KeyError without one."""
        found = {estimate.label: estimate for estimate in self.estimates}
        return found[label]

    def to_record(self) -> dict[str, Any]:
        """Everything but the scores, as plain values."""
        return self.model_dump(mode="json")


class CrossValidation(PolicyModel):
    """How far libraries agree, and what they say together.

    Attributes:
        agreement_score: share of pairs whose intervals overlap and whose signs agree; None with fewer
            than two estimates.
        consensus_effect: median of the points. consensus_interval: percentile bootstrap of the median over
            the common scores. None when nothing could be estimated.
        libraries: labels that count. left_out: label -> why not.
        bootstrap_draws: resamples behind the interval.
    """

    effects: EffectEstimates
    agreement_score: float | None
    consensus_effect: float | None
    consensus_interval: tuple[float, float] | None
    libraries: tuple[str, ...]
    left_out: dict[str, str]
    bootstrap_draws: int

    @property
    def state(self) -> str:
        """``estimated`` or ``not_estimable``."""
        return "estimated" if self.consensus_effect is not None else "not_estimable"

    @property
    def reason(self) -> str:
        """Why nothing could be estimated."""
        if self.consensus_effect is not None:
            return ""
        return self.effects.reason or "; ".join(f"{name}: {why}" for name, why in self.left_out.items())

    def to_record(self) -> dict[str, Any]:
        """Everything but the scores, as plain values."""
        return self.model_dump(mode="json")

    def to_metadata(self) -> dict[str, Any]:
        """Effect, interval, agreement and a table for the UI."""
        metadata: dict[str, Any] = {"effect_state": self.state}
        if self.reason:
            metadata["reason"] = self.reason
        if self.consensus_effect is not None and self.consensus_interval is not None:
            metadata["consensus_effect"] = self.consensus_effect
            metadata["consensus_lower"], metadata["consensus_upper"] = self.consensus_interval
        metadata["agreement_score"] = self.agreement_score
        metadata["estimates"] = estimates_table(self)
        return {name: value for name, value in metadata.items() if value is not None}


def estimates_table(found: CrossValidation) -> Table:
    """One line per library and one for the consensus."""
    rows: list[tuple[Any, ...]] = [
        (
            *(estimate.label, estimate.estimand, estimate.point, (estimate.lower, estimate.upper)),
            *(
                estimate.state if not estimate.reason else f"{estimate.state}: {estimate.reason}",
                estimate.seconds,
            ),
        )
        for estimate in found.effects.estimates
    ]
    if found.consensus_effect is not None and found.consensus_interval is not None:
        agreed = (found.consensus_effect, found.consensus_interval, f"median of {len(found.libraries)}", None)
        rows.append(("consensus", found.effects.estimand, *agreed))
    return Table(("library", "estimand", "effect", "interval", "state", "seconds"), rows)


def agreement_score(estimates: tuple[LibraryEstimate, ...]) -> float | None:
    """Share of pairs whose intervals overlap and whose signs agree; None with fewer than two estimates."""
    pairs = list(combinations(estimates, 2))
    if not pairs:
        return None
    return sum(_agree(left, other) for left, other in pairs) / len(pairs)


def _agree(left: LibraryEstimate, other: LibraryEstimate) -> bool:
    if None in (left.point, left.lower, left.upper, other.point, other.lower, other.upper):
        raise ValueError("only estimates with point and interval can agree")
    overlap = left.lower <= other.upper and other.lower <= left.upper  # type: ignore[operator]
    return bool(overlap and np.sign(left.point) == np.sign(other.point))  # type: ignore[arg-type]


def median_interval(scores: np.ndarray, *, level: float, draws: int, seed: int) -> tuple[float, float]:
    """Percentile bootstrap of the median of the columns' means, rows drawn together.

    Args:
        scores: (n, libraries). level: of the interval. draws: resamples.
    """
    generator = np.random.default_rng(seed)
    size = len(scores)
    medians = np.empty(draws)
    for k in range(draws):
        medians[k] = np.median(scores[generator.integers(0, size, size)].mean(axis=0))
    lower, upper = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    return float(lower), float(upper)
