"""Performance of a model of an event by subgroups: levels of columns, each against all patients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from e2i_dagster.cohorts.disclosure import HIDDEN, shown_partition
from e2i_dagster.config.optuna_config import EvaluationPolicy
from e2i_dagster.config.subgroups import SubgroupColumn
from e2i_dagster.display import Table
from e2i_dagster.training.estimates import Estimate
from e2i_dagster.training.metrics import binary_metrics, calibration_line, interval, resamples

#: The level of patients without a value.
MISSING = "missing"
#: A column of numbers with more values than this has no levels without edges.
_MOST_VALUES = 10
_NONE = Estimate(value=None, low=None, high=None)


class Subgroup(BaseModel):
    """One level of a column, or a column that has no levels.

    Attributes:
        level: empty where the column has none.
        n, events: patients and those with the event; None where a cell of 1 to 10 patients would be shown, also by
            subtraction, and events of what is not estimable.
        roc_auc: with the percentile interval of the bootstrap over patients.
        calibration_intercept: calibration in the large, 0 is perfect; interval by normal approximation.
        difference: ``roc_auc`` minus that of all patients, in the same resamples.
        reason: why it is not estimable.
    """

    model_config = ConfigDict(frozen=True)

    column: str
    level: str
    n: int | None
    events: int | None
    roc_auc: Estimate = _NONE
    calibration_intercept: Estimate = _NONE
    difference: Estimate = _NONE
    status: Literal["estimated", "not_estimable"]
    reason: str = ""

    @property
    def name(self) -> str:
        """Column and level as people read them."""
        return f"{self.column} {self.level}".strip()


def subgroup_performance(
    target: np.ndarray,
    scores: np.ndarray,
    groups: pd.DataFrame,
    columns: Sequence[SubgroupColumn],
    rules: EvaluationPolicy,
) -> tuple[Subgroup, ...]:
    """Performance in each level of ``columns``.

    Args:
        target: 0/1, shape (n,).
        scores: probability of 1, shape (n,).
        groups: columns that levels are made of, shape (n, columns), in the order of ``target``.
        columns: which of them, in the order of the result.

    Returns:
        The levels by column; bands in their order, values sorted, ``missing`` last. A level with too few patients,
        or too few of one outcome, is listed as not estimable, and so is a column that has no levels.
    """
    found: list[Subgroup] = []
    pending: list[tuple[int, np.ndarray]] = []
    for column in columns:
        levels = _levels(groups, column)
        if isinstance(levels, str):
            found.append(_not_estimable(column.column, "", None, levels))
            continue
        members = {str(level): (levels == level).to_numpy() for level in levels.cat.categories}
        shown = _shown({level: int(inside.sum()) for level, inside in members.items()})
        events = _shown({level: int(target[inside].sum()) for level, inside in members.items()})
        for level, inside in members.items():
            reason = _too_few(target[inside], rules)
            if reason:
                found.append(_not_estimable(column.column, level, shown[level], reason))
                continue
            pending.append((len(found), inside))
            found.append(
                Subgroup(
                    column=column.column,
                    level=level,
                    n=shown[level],
                    events=events[level],
                    status="estimated",
                )
            )
    for (place, _), estimates in zip(
        pending, _estimates(target, scores, [inside for _, inside in pending], rules), strict=True
    ):
        found[place] = found[place].model_copy(update=estimates)
    return tuple(found)


def subgroup_table(subgroups: Sequence[Subgroup]) -> Table:
    """A row for each subgroup."""
    return Table(
        (
            *("subgroup", "level", "patients", "events", "ROC-AUC"),
            *("minus that of all patients", "calibration in the large", "state"),
        ),
        [
            (
                *(group.column, group.level, group.n, group.events, group.roc_auc.with_interval),
                *(group.difference.with_interval, group.calibration_intercept.with_interval),
                group.status if not group.reason else f"{group.status}: {group.reason}",
            )
            for group in subgroups
        ],
        note="Test rows. Counts that would show a cell of 1 to 10 patients, and events of what is not estimable, are "
        "left out.",
    )


def _not_estimable(column: str, level: str, n: int | None, reason: str) -> Subgroup:
    return Subgroup(column=column, level=level, n=n, events=None, status="not_estimable", reason=reason)


def _shown(counts: dict[str, int]) -> dict[str, int | None]:
    written = shown_partition(counts)
    return {level: None if written[level] == HIDDEN else count for level, count in counts.items()}


def _too_few(target: np.ndarray, rules: EvaluationPolicy) -> str:
    """Why patients with these outcomes are too few, or nothing."""
    events = int(target.sum())
    if len(target) < rules.subgroups.minimum_patients:
        return f"fewer than {rules.subgroups.minimum_patients} patients"
    if events in (0, len(target)):
        return "one outcome only"
    if min(events, len(target) - events) < rules.minimum_per_class:
        return f"fewer than {rules.minimum_per_class} patients of one outcome"
    return ""


def _estimates(
    target: np.ndarray, scores: np.ndarray, members: Sequence[np.ndarray], rules: EvaluationPolicy
) -> Iterator[dict[str, Estimate]]:
    """Estimates of each group of ``members`` (masks of shape (n,)), all in the same resamples."""
    whole = _auc(target, scores)[0]
    blocks = resamples(len(target), rules.bootstrap, rules.seed)
    whole_drawn = np.concatenate([_auc(target, scores, block) for block in blocks])
    width = NormalDist().inv_cdf((1 + rules.level) / 2)
    for inside in members:
        mine, chance = target[inside], scores[inside]
        auc = _auc(mine, chance)[0]
        drawn = np.concatenate([_auc(mine, chance, block[:, inside]) for block in blocks])
        intercept, error = calibration_line(mine, chance)["calibration_intercept"]
        yield {
            "roc_auc": Estimate.of(auc, *interval(drawn, rules.level)),
            "difference": Estimate.of(auc - whole, *interval(drawn - whole_drawn, rules.level)),
            "calibration_intercept": Estimate.of(
                intercept, intercept - width * error, intercept + width * error
            ),
        }


def _auc(target: np.ndarray, scores: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    return binary_metrics(target, scores, 0.5, weights)["roc_auc"]


def _levels(groups: pd.DataFrame, column: SubgroupColumn) -> pd.Series | str:
    """The level of each patient as a categorical of text, or why the column has none."""
    if column.column not in groups:
        return "the training frame has no such column"
    values = groups[column.column].reset_index(drop=True)
    truth = pd.api.types.is_bool_dtype(values.dtype)
    numeric = pd.api.types.is_numeric_dtype(values.dtype) and not truth
    if column.edges and not numeric:
        return "edges are given, and the column is no number"
    if column.edges:
        numbers = pd.Series(values.to_numpy(dtype="float64", na_value=np.nan))
        levels = pd.cut(
            numbers, [-np.inf, *column.edges, np.inf], right=False, labels=list(column.band_names)
        )
    else:
        if numeric and values.nunique() > _MOST_VALUES:
            return f"a number with more than {_MOST_VALUES} values needs edges"
        known = sorted(values.dropna().unique())
        words = {value: f"{value:g}" if numeric else str(value) for value in known}
        if truth:
            words = {value: "yes" if value else "no" for value in known}
        names = list(dict.fromkeys(words.values()))
        levels = pd.Series(pd.Categorical([words.get(value) for value in values.astype(object)], names))
    if values.isna().any():
        levels = levels.cat.add_categories([MISSING] if MISSING not in levels.cat.categories else [])
        levels = levels.fillna(MISSING)
    return levels
