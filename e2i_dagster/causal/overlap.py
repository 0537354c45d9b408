"""Overlap of the two arms and balance of the confounders before and after weighting."""

from __future__ import annotations

import numpy as np

from e2i_dagster.causal.nuisances import Estimand, Nuisances
from e2i_dagster.causal.rows import CausalRows
from e2i_dagster.config.causal import CausalPolicy
from e2i_dagster.policy_files.base import PolicyModel

#: Propensities of those who could have been in either arm (Crump, Hotz, Imbens and Mitnik 2009).
COMMON = (0.1, 0.9)


class Balance(PolicyModel):
    """One confounder: standardized mean differences (treated minus control) before and after weighting."""

    confounder: str
    before: float
    after: float


class Overlap(PolicyModel):
    """Whether the arms can be compared.

    Attributes:
        auc: cross-fitted ROC-AUC of the propensity. share_outside: rows outside [floor, 1 - floor].
        floor: clipping bound. lowest, highest: 1 % and 99 % quantile of the propensity.
        effective_treated, effective_control: Kish's effective sample sizes under the weights.
        treated_histogram, control_histogram: shares of each arm's rows in 20 equal bins of the propensity.
        balance: largest difference before weighting first.
        refusal: why no effect may be estimated; empty when it may.
        share_above: rows above 1 - floor, treated nearly always: what an effect on the treated cannot do without.
        common: treated and control rows with a propensity in ``COMMON``. Both None in older documents.
    """

    auc: float
    share_outside: float
    floor: float
    lowest: float
    highest: float
    effective_treated: float
    effective_control: float
    treated_histogram: tuple[float, ...]
    control_histogram: tuple[float, ...]
    balance: tuple[Balance, ...]
    refusal: str
    share_above: float | None = None
    common: tuple[int, int] | None = None

    @property
    def worst_after(self) -> float:
        """Largest absolute standardized mean difference after weighting."""
        return max(abs(row.after) for row in self.balance)


def assess_overlap(
    rows: CausalRows, nuisances: Nuisances, policy: CausalPolicy, estimand: Estimand = "ate"
) -> Overlap:
    """Overlap and balance under the weights of ``estimand``, with the reason when an effect is refused.

    An effect on the treated needs controls like the treated, so that a propensity near 0 is no obstacle to it.
    """
    from sklearn.metrics import roc_auc_score

    floor, raw = policy.propensity_floor, nuisances.raw_propensity
    above = float(np.mean(raw > 1 - floor))
    outside = float(np.mean((raw < floor) | (raw > 1 - floor)))
    auc = float(roc_auc_score(rows.t, raw))
    weights = np.where(rows.t == 1, 1 / nuisances.propensity, 1 / (1 - nuisances.propensity))
    if estimand == "att":
        weights *= nuisances.propensity
    common = (raw >= COMMON[0]) & (raw <= COMMON[1])
    treated, control = weights[rows.t == 1], weights[rows.t == 0]
    lowest, highest = np.quantile(raw, [0.01, 0.99])
    return Overlap(
        auc=auc,
        share_outside=outside,
        floor=floor,
        lowest=float(lowest),
        highest=float(highest),
        effective_treated=_effective(treated),
        effective_control=_effective(control),
        treated_histogram=_histogram(raw[rows.t == 1]),
        control_histogram=_histogram(raw[rows.t == 0]),
        balance=balance_of(rows, weights),
        refusal=_refusal(auc, outside if estimand == "ate" else above, policy, estimand),
        share_above=above,
        common=(int((common & (rows.t == 1)).sum()), int((common & (rows.t == 0)).sum())),
    )


def _refusal(auc: float, outside: float, policy: CausalPolicy, estimand: Estimand) -> str:
    if auc >= policy.overlap.maximum_auc:
        return (
            f"no overlap: the confounders tell treated from control almost perfectly (cross-fitted ROC-AUC "
            f"{auc:.3f}, at most {policy.overlap.maximum_auc:g}): a confounder may be part of the treatment"
        )
    if outside > policy.overlap.maximum_share_outside:
        floor = policy.propensity_floor
        where = f"outside [{floor:g}, {1 - floor:g}]" if estimand == "ate" else f"above {1 - floor:g}"
        return (
            f"no overlap: {outside:.0%} of the rows have a propensity {where}, at most "
            f"{policy.overlap.maximum_share_outside:.0%}. Restrict the population to those who could have been in "
            "either arm."
        )
    return ""


def balance_of(rows: CausalRows, weights: np.ndarray) -> tuple[Balance, ...]:
    """Standardized mean differences; the denominator is the unweighted pooled deviation (Austin 2009)."""
    arm = rows.t == 1
    pooled = np.sqrt((rows.x[arm].var(axis=0, ddof=1) + rows.x[~arm].var(axis=0, ddof=1)) / 2)
    pooled = np.where(pooled > 0, pooled, 1.0)
    before = (rows.x[arm].mean(axis=0) - rows.x[~arm].mean(axis=0)) / pooled
    after = (
        np.average(rows.x[arm], axis=0, weights=weights[arm])
        - np.average(rows.x[~arm], axis=0, weights=weights[~arm])
    ) / pooled
    order = np.argsort(-np.abs(before), kind="stable")
    return tuple(
        Balance(confounder=rows.names[k], before=float(before[k]), after=float(after[k])) for k in order
    )


def _effective(weights: np.ndarray) -> float:
    return float(weights.sum() ** 2 / np.square(weights).sum())


def _histogram(values: np.ndarray) -> tuple[float, ...]:
    counts, _ = np.histogram(values, bins=20, range=(0.0, 1.0))
    return tuple(float(share) for share in counts / len(values))
