"""Sample ratio mismatch: do the counts per arm agree with the ratios of the design?

Fixed: Pearson's chi-squared test once, exact where counts are small. Sequential: a test that may be
looked at after every unit (Lindon and Malek, Anytime-Valid Inference for Multinomial Count Data, NeurIPS
2022). A mismatch means that assignment or its recording went wrong; results are not to be read until it is
explained (Fabijan et al., KDD 2019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.allocation import allocation_shares
from e2i_dagster.display import Table
from e2i_dagster.errors import InputError

Severity = Literal["none", "warning", "critical"]
#: Severities of the policy of the platform.
WARNING, CRITICAL = 0.01, 0.001
#: Below this expected count the chi-squared approximation is not relied on (Cochran's rule).
SMALLEST_EXPECTED = 5.0
#: Most outcomes that the exact multinomial test counts through.
MOST_OUTCOMES = 200_000


class SrmResult(BaseModel):
    """One look at the counts per arm.

    ``statistic`` is Pearson's chi-squared; ``p_value`` comes from ``method``; ``deviation_percent`` is the
    largest relative deviation of an arm from its expected count.
    """

    model_config = ConfigDict(frozen=True)

    counts: dict[str, int]
    expected_ratio: dict[str, float]
    expected: dict[str, float]
    statistic: float
    degrees_of_freedom: int
    p_value: float
    method: Literal["chi_squared", "exact_binomial", "exact_multinomial"]
    severity: Severity
    deviation_percent: float

    @property
    def detected(self) -> bool:
        """True from severity ``warning`` on."""
        return self.severity != "none"

    def to_metadata(self) -> dict[str, Any]:
        return {
            "severity": self.severity,
            "p_value": self.p_value,
            "statistic": self.statistic,
            "method": self.method,
            "deviation_percent": self.deviation_percent,
            "counts": Table(
                ("arm", "units", "expected"), [(arm, n, self.expected[arm]) for arm, n in self.counts.items()]
            ),
        }

    def to_record(self) -> dict[str, Any]:
        return self.model_dump(mode="json") | {"detected": self.detected}


class SequentialSrm(BaseModel):
    """State of the sequential test after the counts so far.

    ``log_e_value`` is the evidence now, ``log_e_maximum`` the largest so far, which the next look takes
    up; ``p_value = exp(-log_e_maximum)`` holds at every look at once.
    """

    model_config = ConfigDict(frozen=True)

    counts: dict[str, int]
    expected_ratio: dict[str, float]
    log_e_value: float
    log_e_maximum: float
    p_value: float
    severity: Severity

    @property
    def detected(self) -> bool:
        """True from severity ``warning`` on."""
        return self.severity != "none"

    def to_metadata(self) -> dict[str, Any]:
        return {
            "severity": self.severity,
            "always_valid_p_value": self.p_value,
            "log_e_value": self.log_e_value,
            "units": sum(self.counts.values()),
        }

    def to_record(self) -> dict[str, Any]:
        return self.model_dump(mode="json") | {"detected": self.detected}


def checked_ratio(ratio: Any, arms: Sequence[str] | None = None) -> dict[str, float]:
    """Shares by arm that sum to exactly 1 (:func:`.allocation_shares`); without names ``arm_1``, ``arm_2``, ...

    Raises:
        InputError: fewer than two arms, another number of arms than ``arms``, a part that is no number above 0, or
            parts that neither sum to 1 (+- 0.001) nor are whole numbers.
    """
    try:
        return allocation_shares(ratio, arms)
    except ValueError as error:
        raise InputError(
            str(error),
            field="ratio",
            value=ratio,
            remedy="Write parts as [1, 1], [2, 1] or '2:1', or shares that sum to 1.",
        ) from None


def _checked_counts(counts: Any, ratio: dict[str, float]) -> dict[str, int]:
    if isinstance(counts, Mapping):
        given = {str(arm): value for arm, value in counts.items()}
        unknown, absent = sorted(set(given) - set(ratio)), sorted(set(ratio) - set(given))
        if unknown or absent:
            raise InputError(
                f"counts: arms {unknown or 'none'} are not in the ratio and {absent or 'none'} have no count "
                "(give 0 for an arm without units). Counts and ratio name the same arms.",
                field="counts",
            )
        given = {arm: given[arm] for arm in ratio}
    else:
        values = list(counts)
        if len(values) != len(ratio):
            raise InputError(f"counts: {len(values)} values for {len(ratio)} arms.", field="counts")
        given = dict(zip(ratio, values, strict=True))
    result = {}
    for arm, value in given.items():
        number = float(value) if isinstance(value, (int, float, np.integer, np.floating)) else math.nan
        if not (math.isfinite(number) and number >= 0 and number == math.floor(number)):
            raise InputError(
                f"counts: arm {arm} has {value!r}; a count is a whole number of units, 0 or more.",
                field="counts",
            )
        result[arm] = int(number)
    if sum(result.values()) == 0:
        raise InputError(
            "counts: every arm has 0 units; a ratio cannot be judged before the first assignment.",
            field="counts",
        )
    return result


def _with_names(counts: Any, ratio: Any) -> tuple[dict[str, int], dict[str, float]]:
    """Counts and ratios under the same names, also when only one of the two names the arms."""
    # A pandas series names its arms as a mapping does.
    counts, ratio = (value.to_dict() if hasattr(value, "to_dict") else value for value in (counts, ratio))
    if isinstance(counts, Mapping) and not isinstance(ratio, Mapping):
        checked = checked_ratio(ratio, [str(arm) for arm in counts])
    else:
        checked = checked_ratio(ratio)
    return _checked_counts(counts, checked), checked


def severity_of(p_value: float, *, warning: float = WARNING, critical: float = CRITICAL) -> Severity:
    """Severity of a p-value under the thresholds of the policy."""
    if p_value < critical:
        return "critical"
    return "warning" if p_value < warning else "none"


def srm_test(
    counts: Mapping[str, int] | Sequence[int],
    ratio: Mapping[str, float] | Sequence[float] | str,
    *,
    warning: float = WARNING,
    critical: float = CRITICAL,
) -> SrmResult:
    """Test the counts per arm against the ratios of the design, for any number of arms.

    Args:
        counts: units per arm.
        ratio: expected shares (sum 1 +- 0.001) or whole parts per arm, or text as "2:1" in the order of the counts.
        warning, critical: p-values below which the severity is reached.

    Raises:
        InputError: arms or ratios do not fit, a count is no whole number, or there is no unit at all.
    """
    from scipy.special import chdtrc

    if not 0.0 < critical <= warning < 1.0:
        raise InputError(
            f"warning {warning:g} and critical {critical:g}: 0 < critical <= warning < 1.",
            field="warning, critical",
            value=(warning, critical),
        )
    units, shares = _with_names(counts, ratio)
    observed = np.array(list(units.values()), dtype=float)
    share = np.array(list(shares.values()))
    expected = observed.sum() * share
    statistic = float(((observed - expected) ** 2 / expected).sum())
    method: Literal["chi_squared", "exact_binomial", "exact_multinomial"] = "chi_squared"
    p_value = float(chdtrc(len(share) - 1, statistic))
    if expected.min() < SMALLEST_EXPECTED:
        total = int(observed.sum())
        if len(share) == 2:
            from scipy.stats import binomtest

            method, p_value = "exact_binomial", float(binomtest(int(observed[0]), total, share[0]).pvalue)
        elif math.comb(total + len(share) - 1, len(share) - 1) <= MOST_OUTCOMES:
            method, p_value = "exact_multinomial", _exact_multinomial(observed, share)
    return SrmResult(
        counts=units,
        expected_ratio=shares,
        expected=dict(zip(units, map(float, expected), strict=True)),
        statistic=statistic,
        degrees_of_freedom=len(share) - 1,
        p_value=p_value,
        method=method,
        severity=severity_of(p_value, warning=warning, critical=critical),
        deviation_percent=float(100.0 * np.abs(observed / expected - 1.0).max()),
    )


def _exact_multinomial(observed: np.ndarray, share: np.ndarray) -> float:
    """Probability of all counts that are no more probable than those observed."""
    from itertools import combinations

    from scipy.special import gammaln

    total, arms = int(observed.sum()), len(share)
    bars = np.array(list(combinations(range(total + arms - 1), arms - 1)))
    edges = np.column_stack([np.full(len(bars), -1), bars, np.full(len(bars), total + arms - 1)])
    outcomes = np.diff(edges, axis=1) - 1

    def log_probability(counts: np.ndarray) -> np.ndarray:
        return gammaln(total + 1) - gammaln(counts + 1).sum(axis=-1) + counts @ np.log(share)

    every = log_probability(outcomes)
    here = float(log_probability(observed))
    return min(1.0, float(np.exp(every[every <= here + 1e-9]).sum()))


def sequential_srm_test(
    counts: Mapping[str, int] | Sequence[int],
    ratio: Mapping[str, float] | Sequence[float] | str,
    *,
    before: SequentialSrm | None = None,
    concentration: float = 100.0,
    warning: float = WARNING,
    critical: float = CRITICAL,
) -> SequentialSrm:
    """Sequential test of the counts so far: valid however often and whenever it is looked at.

    The evidence is the Bayes factor of a Dirichlet(``concentration * ratio``) mixture against the ratios
    of the design. It is a nonnegative martingale with mean 1 when the design holds, so by Ville's inequality
    it ever exceeds ``1 / alpha`` with probability at most ``alpha``.

    Args:
        counts: cumulative units per arm.
        ratio: expected shares (sum 1 +- 0.001) or whole parts per arm, or text as "2:1" in the order of the counts.
        before: the result of the look before, whose evidence is not forgotten.
        concentration: weight of the mixture near the ratios; larger finds small deviations in large
            experiments sooner, smaller large deviations in small ones. Fixed before the first look.

    Raises:
        InputError: as ``srm_test``; or counts fell below those of the look before.
    """
    from scipy.special import gammaln

    if not (math.isfinite(concentration) and concentration > 0):
        raise InputError(f"concentration: {concentration!r} must be above 0.", field="concentration")
    units, shares = _with_names(counts, ratio)
    if before is not None:
        if before.expected_ratio.keys() != shares.keys():
            raise InputError(
                f"before: has arms {sorted(before.expected_ratio)}, now {sorted(shares)}.", field="before"
            )
        fewer = [arm for arm, count in before.counts.items() if units[arm] < count]
        if fewer:
            raise InputError(
                f"counts: arms {fewer} have fewer units than at the look before; give totals.", field="counts"
            )
    observed, share = np.array(list(units.values()), dtype=float), np.array(list(shares.values()))
    prior = concentration * share
    log_e = float(
        gammaln(concentration)
        - gammaln(concentration + observed.sum())
        + (gammaln(prior + observed) - gammaln(prior)).sum()
        - observed @ np.log(share)
    )
    largest = max(0.0, log_e, 0.0 if before is None else before.log_e_maximum)
    p_value = math.exp(-largest)
    return SequentialSrm(
        counts=units,
        expected_ratio=shares,
        log_e_value=log_e,
        log_e_maximum=largest,
        p_value=p_value,
        severity=severity_of(p_value, warning=warning, critical=critical),
    )
