"""Feature selection of a scope: candidates of its policy, judged on its training rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from e2i_dagster.config.feature_selection import FeatureSelectionPolicy
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.features.selection import FeatureSelection, select_features
from e2i_dagster.features.statistics import FeatureStatistics, feature_statistics
from e2i_dagster.modelling.problem import outcome_groups


@dataclass(frozen=True)
class ScopeSelection:
    """What is kept, and the statistics of every feature on the training rows."""

    selection: FeatureSelection
    statistics: Sequence[FeatureStatistics]


def select_for_scope(
    scope: ScopeSpec, frame: pd.DataFrame, splits: pd.DataFrame, *, policy: FeatureSelectionPolicy
) -> ScopeSelection:
    """Select among the scope's features (all, or those it names) by its training rows.

    Args:
        frame: training frame: patient_id, label and features.
        splits: patient_id, split.

    Raises:
        InputError: there are no labelled training rows, or a named feature does not exist.
        VerdictError: no feature is left.
    """
    split = frame["patient_id"].map(splits.set_index("patient_id")["split"])
    train = (split == "train").to_numpy()
    # A number is screened by the part of its distribution among the training rows.
    grouped = frame.assign(label=outcome_groups(frame["label"].where(train), scope.problem_type))
    named = None if scope.features == "all" else scope.features
    return ScopeSelection(
        select_features(grouped, train=train, policy=policy, features=named), feature_statistics(frame[train])
    )
