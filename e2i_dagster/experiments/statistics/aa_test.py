"""A/A check: does the analysis find an effect where there is none?

Arms are drawn again and again by chance over units that all had the same treatment. P-values are then
uniform: as many below alpha as alpha says. Too many mean that units are not independent (clusters, repeated
rows) or that the analysis is wrong; the experiment would find effects that are not there (Kohavi, Tang and
Xu, Trustworthy Online Controlled Experiments, 2020, chapter 19).
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from e2i_dagster.errors import InputError
from e2i_dagster.experiments.statistics.analysis import analyze_statistics
from e2i_dagster.experiments.statistics.stopping import checked_probability
from e2i_dagster.experiments.statistics.sufficient_statistics import summarize

#: Fewer re-draws say little about a tail of five in a hundred.
FEWEST_DRAWS = 100
#: The share of false findings, or the shape of the p-values, is judged wrong below this p-value.
SUSPECT = 0.01
#: Rows of draws that are summarized at once.
MOST_ROWS = 5_000_000
#: Columns of the draws; no outcome has such a name.
_ARM, _DRAW = "drawn arm", "drawn assignment"
#: Options that belong to the analysis of statistics, not to their making.
_OF_STATISTICS = ("outcome_range", "horizon", "confidence", "min_per_arm")


class AACheck(BaseModel):
    """Share of re-drawn assignments with p below ``alpha``, and whether that is what chance gives.

    ``share_p_value``: exact binomial test of the share against alpha; ``uniformity_p_value``:
    Kolmogorov-Smirnov test of the p-values against the uniform distribution. For rates and times to event, whose tests
    are discrete, both ask one-sided for too many small p-values.
    """

    model_config = ConfigDict(frozen=True)

    status: Literal["passed", "failed", "not_estimable"]
    detail: str
    draws: int
    alpha: float
    found: int
    share: float | None
    share_p_value: float | None
    uniformity_p_value: float | None

    def to_metadata(self) -> dict[str, Any]:
        return {key: value for key, value in self.to_record().items() if value is not None}

    def to_record(self) -> dict[str, Any]:
        return self.model_dump(mode="json")


def aa_check(
    frame: pd.DataFrame,
    *,
    outcome: str,
    kind: str = "mean",
    cluster: str | None = None,
    randomized: str | None = None,
    draws: int = 400,
    alpha: float = 0.05,
    seed: int = 42,
    **options: Any,
) -> AACheck:
    """Analyse ``draws`` random assignments of units that were all treated alike.

    Args:
        frame: one row per unit, without arms (for example the time before the experiment).
        outcome, kind, cluster, options: as in ``analyze``, but strata; ``cluster`` is what the analysis accounts for.
        randomized: column of what is assigned as one (each of its values gets one arm); None assigns rows.
        draws: number of assignments, at least 100.

    Raises:
        InputError: an argument is out of its range, or as ``analyze``.
    """
    from scipy.stats import binomtest, kstest

    alpha = checked_probability(alpha, "alpha")
    if draws < FEWEST_DRAWS:
        raise InputError(
            f"draws: {draws}; at least {FEWEST_DRAWS} are needed to judge a share of {alpha:g}.",
            field="draws",
        )
    if randomized is not None and randomized not in frame.columns:
        raise InputError(f"randomized: the frame has no column {randomized!r}.", field="randomized")
    if "strata" in options:
        raise InputError("strata: the A/A check takes none.", field="strata")
    rng = np.random.default_rng(seed)
    codes = np.arange(len(frame)) if randomized is None else pd.factorize(frame[randomized])[0]
    groups = int(codes.max()) + 1 if len(frame) else 0
    values: list[float] = []
    reason = ""
    wanted = [outcome, cluster, *(options.get(name) for name in ("denominator", "event", "covariate"))]
    units = frame[[name for name in dict.fromkeys(wanted) if name is not None and name in frame.columns]]
    later = {name: options.pop(name) for name in _OF_STATISTICS if name in options}
    at_once = max(1, min(draws, MOST_ROWS // max(len(frame), 1)))
    for first in range(0, draws, at_once):
        count = min(at_once, draws - first)
        arms = np.concatenate([rng.permutation(np.arange(groups) % 2)[codes] for _ in range(count)])
        # The draws are strata of one long frame: one pass summarizes them all.
        stacked = pd.concat([units] * count, ignore_index=True)
        stacked[_ARM] = np.where(arms == 1, "b", "a")
        stacked[_DRAW] = np.repeat(np.arange(count), len(units))
        statistics = summarize(
            stacked, arm=_ARM, outcome=outcome, kind=kind, cluster=cluster, strata=_DRAW, **options
        )
        for draw in statistics.strata:
            result = analyze_statistics(statistics.of_stratum(draw), control="a", arms=["a", "b"], **later)
            found = result.comparison("b")
            if found.p_value is None:
                reason = found.reason or ""
                break
            values.append(found.p_value)
        if reason:
            break
    if reason:
        return AACheck(
            status="not_estimable", detail=reason, draws=len(values), alpha=alpha, found=0,
            share=None, share_p_value=None, uniformity_p_value=None,
        )  # fmt: skip
    below = int((np.array(values) < alpha).sum())
    # P-values of counts are discrete and exact ones err on the safe side: only too many small ones speak against them.
    side = "greater" if kind in ("proportion", "survival") else "two-sided"
    share_p = float(binomtest(below, draws, alpha, alternative=side).pvalue)
    uniform_p = float(kstest(values, "uniform", alternative=side).pvalue)
    failed = min(share_p, uniform_p) < SUSPECT
    return AACheck(
        status="failed" if failed else "passed",
        detail=(
            f"{below} of {draws} assignments by chance have p below {alpha:g}"
            + ("; the analysis is not to be trusted on these units" if failed else ", as chance gives")
        ),
        draws=draws, alpha=alpha, found=below, share=below / draws, share_p_value=share_p,
        uniformity_p_value=uniform_p,
    )  # fmt: skip
