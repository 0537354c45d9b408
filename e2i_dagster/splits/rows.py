"""Rows handed whole to selection, training, explanation and monitoring.

Whoever hands them on does not choose among them: which part is for fitting, which for thresholds and
which stays sealed is decided by the function that works with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.modelling.model_input import LabelledRows, feature_columns, label_classes, labelled_rows
from e2i_dagster.splits import Seal, visible_frames


@dataclass(frozen=True)
class VisibleRows:
    """Train and validation rows; test and holdout rows have no way in.

    Attributes:
        train: for the benchmark of algorithms, preprocessing, estimators, and as reference of drift.
        validation: for the choice of parameters, calibration and thresholds; explained, too.
    """

    train: LabelledRows
    validation: LabelledRows


@dataclass(frozen=True)
class SealedRows:
    """Test rows behind their seal.

    Attributes:
        open_for: opens the seal for the candidate that it is given (the digest of a model) and returns the
            rows; the opening is on record.
    """

    open_for: Callable[[str], LabelledRows]


def visible_rows(
    frame: pd.DataFrame, splits: pd.DataFrame, features: Sequence[str], *, problem_type: str
) -> VisibleRows:
    """Train and validation rows of ``frame`` with ``features``, in its order.

    Args:
        frame: training frame: patient_id, label and features.
        splits: patient_id, split.

    Raises:
        InputError: a patient has no split, a feature is missing, or a row has no label.
    """
    seen = visible_frames(frame, splits)
    classes = label_classes(frame, problem_type)
    train, validation = (
        labelled_rows(seen[name], list(features), problem_type=problem_type, classes=classes)
        for name in ("train", "validation")
    )
    return VisibleRows(train, validation)


def sealed_test_rows(
    scope: ScopeSpec,
    frame: pd.DataFrame,
    splits: pd.DataFrame,
    features: Sequence[str],
    *,
    engine: sa.Engine,
    opened_by: str,
) -> SealedRows:
    """The test rows of ``frame``; each opening is recorded in the warehouse of ``engine``.

    Their ``groups`` are all features of ``frame``, also those that the model does not use.
    """

    def open_for(candidate: str) -> LabelledRows:
        with engine.begin() as connection:
            rows, _ = Seal(scope.key, scope.split.salt, splits).open_test(
                connection,
                frame,
                candidate=candidate,
                reason="evaluation of the chosen candidate",
                opened_by=opened_by,
            )
        kind = scope.problem_type
        opened = labelled_rows(rows, list(features), problem_type=kind, classes=label_classes(frame, kind))
        return replace(opened, groups=rows[list(feature_columns(rows))])

    return SealedRows(open_for)
