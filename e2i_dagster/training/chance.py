"""Whether a model knows anything at all: its predictions against permuted outcomes."""

from __future__ import annotations

import numpy as np
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.optuna_config import ChancePolicy
from e2i_dagster.modelling.survival import time_and_event

#: Cells of one block of permutations: bounds memory at about 100 MB.
_BLOCK_CELLS = 4_000_000
_STATISTICS = {
    "binary_classification": "rank sum of the patients with the event (ROC-AUC)",
    "multiclass_classification": "rank sums of each class against the rest (mean ROC-AUC)",
    "regression": "sum of products of prediction and outcome (mean squared error)",
    "survival": "sum of products of log-rank score and rank of the risk",
}


class ChanceTest(BaseModel):
    """A permutation test of the hypothesis that predictions and outcomes have nothing to do with each other.

    Attributes:
        split: whose patients.
        statistic: what is compared, in words.
        as_large: permutations in which the statistic is at least that of the outcomes as they are.
        p_value: (1 + as_large) / (1 + permutations), one-sided.
        maximum_p_value: limit of the policy.
    """

    model_config = ConfigDict(frozen=True)

    split: str
    n: int
    statistic: str
    permutations: int
    as_large: int
    p_value: float
    maximum_p_value: float

    @property
    def passed(self) -> bool:
        """Whether the p-value is at most that of the policy."""
        return self.p_value <= self.maximum_p_value

    @property
    def words(self) -> str:
        """The result in a sentence without its end."""
        return (
            f"p-value {self.p_value:.4f} on {self.split}, {self.as_large} of {self.permutations} permutations of the "
            "outcomes fit the predictions at least as well"
        )


def chance_test(
    target: np.ndarray, scores: np.ndarray, problem_type: str, *, split: str, policy: ChancePolicy, seed: int
) -> ChanceTest:
    """Permute the outcomes of the patients against their stored predictions; nothing is fitted again.

    The p-value counts the outcomes as they are among the permutations, so that it is never 0 and exact (Phipson and
    Smyth, Statistical Applications in Genetics and Molecular Biology 9, 2010). A time is permuted together with its
    censoring: its statistic is linear in the log-rank scores (Peto and Peto, JRSS A 135, 1972) instead of the C-index,
    which would compare all pairs in each permutation.

    Args:
        target: 0 and 1, class codes, numbers or signed times, shape (n,).
        scores: as ``TrainedModel.scores`` returns them for the same patients; of patients that the model was neither
            fitted nor chosen on, otherwise the p-value is too small.
    """
    worth, outcome = _statistic(target, scores, problem_type)
    rows = np.arange(len(target))
    observed = _sums(worth, outcome[None], rows)[0]
    # Sums of the same numbers in another order are equal up to rounding.
    limit = observed - 1e-9 * np.abs(worth).max() * np.abs(outcome).max() * len(target) ** 0.5
    generator = np.random.default_rng(seed)
    block, as_large = max(1, _BLOCK_CELLS // len(target)), 0
    for start in range(0, policy.permutations, block):
        size = min(block, policy.permutations - start)
        permuted = generator.permuted(np.broadcast_to(outcome, (size, len(outcome))), axis=1)
        as_large += int((_sums(worth, permuted, rows) >= limit).sum())
    return ChanceTest(
        split=split,
        n=len(target),
        statistic=_STATISTICS[problem_type],
        permutations=policy.permutations,
        as_large=as_large,
        p_value=(1 + as_large) / (1 + policy.permutations),
        maximum_p_value=policy.maximum_p_value,
    )


def _statistic(target: np.ndarray, scores: np.ndarray, problem_type: str) -> tuple[np.ndarray, np.ndarray]:
    """What a prediction is worth, shape (n,), or of several classes that of each class, shape (n, K), and the outcome
    that is permuted against it, shape (n,): a factor, or the code of the class."""
    from scipy.stats import rankdata

    if problem_type == "multiclass_classification":
        counts = np.bincount(target, minlength=scores.shape[1])
        ranks = rankdata(scores, axis=0)
        return (ranks - ranks.mean(axis=0)) / (counts * (len(target) - counts)), target
    worth = scores if problem_type == "regression" else rankdata(scores)
    if problem_type == "survival":
        return worth - worth.mean(), _log_rank_scores(target)
    return worth - worth.mean(), target.astype("float64")


def _sums(worth: np.ndarray, outcomes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    return outcomes @ worth if worth.ndim == 1 else worth[rows, outcomes].sum(axis=1)


def _log_rank_scores(target: np.ndarray) -> np.ndarray:
    """Event (0 or 1) minus the cumulative hazard of Nelson and Aalen until the patient's day, shape (n,)."""
    time, event = time_and_event(target)
    days, place = np.unique(time, return_inverse=True)
    leaving = np.bincount(place, minlength=len(days))
    at_risk = leaving[::-1].cumsum()[::-1]
    hazard = np.cumsum(np.bincount(place, weights=event, minlength=len(days)) / at_risk)
    return event - hazard[place]
