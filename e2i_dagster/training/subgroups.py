"""Performance of a model by subgroups: levels of columns, each against all patients."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist
from typing import Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, ConfigDict

from e2i_dagster.cohorts.disclosure import HIDDEN, shown_partition
from e2i_dagster.config.optuna_config import EvaluationPolicy
from e2i_dagster.config.subgroups import SubgroupColumn
from e2i_dagster.display import Table
from e2i_dagster.modelling.problem import CLASSIFICATION
from e2i_dagster.training.estimates import Estimate
from e2i_dagster.training.influence import METRICS, half_width, normal_interval
from e2i_dagster.training.metrics import calibration_line, jackknife_errors, survival_calibration

#: The level of patients without a value.
MISSING = "missing"
#: A column of numbers with more values than this has no levels without edges.
_MOST_VALUES = 10
_NONE = Estimate(value=None, low=None, high=None)
_TITLES = {
    "roc_auc": "ROC-AUC",
    "brier": "Brier score",
    "r2": "R²",
    "mae": "MAE",
    "bias": "bias",
    "c_index": "C-index",
}


class Subgroup(BaseModel):
    """One level of a column, or a column that has no levels.

    Attributes:
        level: empty where the column has none.
        n, events: patients and those with the event; None where a cell of 1 to 10 patients would be shown, also by
            subtraction, and events of what is not estimable or has no event.
        metrics: name -> value; intervals by normal approximation.
        differences: name -> the metric minus that of all patients, who include those of the level.
        calibration_intercept: of a model of an event or of times the calibration in the large, 0 is perfect; interval
            by normal approximation.
        reason: why it is not estimable.
    """

    model_config = ConfigDict(frozen=True)

    column: str
    level: str
    n: int | None
    events: int | None
    metrics: dict[str, Estimate] = {}
    differences: dict[str, Estimate] = {}
    calibration_intercept: Estimate = _NONE
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
    *,
    problem_type: str = "binary_classification",
    horizon_days: int | None = None,
    patients: np.ndarray | None = None,
) -> tuple[Subgroup, ...]:
    """Performance in each level of ``columns``.

    Args:
        target: 0 and 1, class codes, numbers or signed times, shape (n,).
        scores: probability of 1, probabilities of the classes (shape (n, K)), predicted numbers or risks at the
            horizon, shape (n,).
        groups: columns that levels are made of, shape (n, columns), in the order of ``target``.
        columns: which of them, in the order of the result.
        horizon_days: of a model of times.
        patients: whose row each is, as a number from 0 on, shape (n,); None: every row is a patient of its own.

    Returns:
        The levels by column; bands in their order, values sorted, ``missing`` last. A level with too few patients,
        or too few of one outcome, is listed as not estimable, and so is a column that has no levels.
    """
    counted = problem_type in ("binary_classification", "survival")
    measures = METRICS[problem_type]
    whole = {name: measure(target, scores) for name, measure in measures.items()}
    found: list[Subgroup] = []
    for column in columns:
        levels = _levels(groups, column)
        if isinstance(levels, str):
            found.append(_not_estimable(column.column, "", None, levels))
            continue
        members = {str(level): (levels == level).to_numpy() for level in levels.cat.categories}
        shown = _shown({level: _people(inside, patients) for level, inside in members.items()})
        events = _shown(
            {level: _people(inside & (target > 0), patients) for level, inside in members.items()}
        )
        for level, inside in members.items():
            mine, chance = target[inside], scores[inside]
            whose = None if patients is None else patients[inside]
            reason = _too_few(mine, scores, rules, problem_type, whose)
            if reason:
                found.append(_not_estimable(column.column, level, shown[level], reason))
                continue
            metrics, differences = {}, {}
            for name, measure in measures.items():
                value, influence = measure(mine, chance)
                metrics[name] = normal_interval(name, (value, influence), rules.level, whose)
                all_value, apart = whole[name][0], -whole[name][1]
                apart[inside] += influence
                width, difference = half_width(apart, rules.level, patients), value - all_value
                differences[name] = Estimate.of(difference, difference - width, difference + width)
            found.append(
                Subgroup(
                    column=column.column,
                    level=level,
                    n=shown[level],
                    events=events[level] if counted else None,
                    metrics=metrics,
                    differences=differences,
                    calibration_intercept=_intercept(
                        mine, chance, problem_type, horizon_days, rules.level, whose
                    ),
                    status="estimated",
                )
            )
    return tuple(found)


def subgroup_table(subgroups: Sequence[Subgroup], problem_type: str = "binary_classification") -> Table:
    """A row for each subgroup."""
    names = list(METRICS[problem_type])
    counted = problem_type in ("binary_classification", "survival")
    return Table(
        (
            *("subgroup", "level", "patients", *(["events"] if counted else [])),
            *(
                title
                for name in names
                for title in (_TITLES[name], f"{_TITLES[name]} minus that of all patients")
            ),
            *(["calibration in the large"] if counted else []),
            "state",
        ),
        [
            (
                *(group.column, group.level, group.n, *([group.events] if counted else [])),
                *(
                    estimates.get(name, _NONE).with_interval
                    for name in names
                    for estimates in (group.metrics, group.differences)
                ),
                *([group.calibration_intercept.with_interval] if counted else []),
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


def _people(among: np.ndarray, patients: np.ndarray | None) -> int:
    """Patients with a row ``among`` all, a mask of shape (n,)."""
    return int(among.sum()) if patients is None else len(np.unique(patients[among]))


def _too_few(
    target: np.ndarray,
    scores: np.ndarray,
    rules: EvaluationPolicy,
    problem_type: str,
    patients: np.ndarray | None,
) -> str:
    """Why patients with these outcomes are too few, or nothing."""
    if _people(np.ones(len(target), dtype=bool), patients) < rules.subgroups.minimum_patients:
        return f"fewer than {rules.subgroups.minimum_patients} patients"
    if problem_type == "survival" and _people(target > 0, patients) < rules.minimum_per_class:
        return f"fewer than {rules.minimum_per_class} patients with the event"
    if problem_type in CLASSIFICATION:
        classes = range(scores.shape[1] if scores.ndim > 1 else 2)
        smallest = min(_people(target == code, patients) for code in classes)
        if not smallest and scores.ndim == 1:
            return "one outcome only"
        if smallest < rules.minimum_per_class:
            return f"fewer than {rules.minimum_per_class} patients of one outcome"
    return ""


def _intercept(
    target: np.ndarray,
    scores: np.ndarray,
    problem_type: str,
    horizon_days: int | None,
    level: float,
    patients: np.ndarray | None,
) -> Estimate:
    def line(kept: np.ndarray | slice = slice(None)) -> tuple[float, float]:
        if horizon_days is None:
            return calibration_line(target[kept], scores[kept])["calibration_intercept"]
        return survival_calibration(target[kept], scores[kept], horizon_days)["calibration_intercept"]

    if problem_type not in ("binary_classification", "survival"):
        return _NONE
    intercept, error = line()
    if patients is not None:
        whose = np.unique(patients, return_inverse=True)[1]
        (error,) = jackknife_errors(lambda kept: line(kept)[:1], whose)
    width = NormalDist().inv_cdf((1 + level) / 2) * error
    return Estimate.of(intercept, intercept - width, intercept + width)


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
