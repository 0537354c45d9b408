"""Which rows a step of training may see: train and validation, and the test rows once, on record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.selection import LabelledRows, labelled_rows
from e2i_dagster.splits import Seal


@dataclass(frozen=True)
class VisibleRows:
    """Train and validation rows of a scope; nothing else is given out."""

    train: LabelledRows
    validation: LabelledRows


def visible_rows(
    scope: ScopeSpec, frame: pd.DataFrame, splits: pd.DataFrame, features: Sequence[str]
) -> VisibleRows:
    """Train and validation rows of ``frame`` with the selected ``features``.

    Args:
        frame: training frame: patient_id, label and features.
        splits: patient_id, split.

    Raises:
        InputError: a patient has no split, or a feature is missing.
    """
    seen = Seal(scope.key, scope.split.salt, splits).visible(frame)
    return VisibleRows(
        labelled_rows(seen["train"], list(features), problem_type=scope.problem_type),
        labelled_rows(seen["validation"], list(features), problem_type=scope.problem_type),
    )


def sealed_test_rows(
    scope: ScopeSpec,
    frame: pd.DataFrame,
    splits: pd.DataFrame,
    features: Sequence[str],
    *,
    engine: sa.Engine,
    candidate: str,
    opened_by: str,
) -> Callable[[], LabelledRows]:
    """A function that opens the seal of the test rows for ``candidate``, recorded in the warehouse."""

    def open_test() -> LabelledRows:
        with engine.begin() as connection:
            rows, _ = Seal(scope.key, scope.split.salt, splits).open_test(
                connection,
                frame,
                candidate=candidate,
                reason="evaluation of the chosen candidate",
                opened_by=opened_by,
            )
        return labelled_rows(rows, list(features), problem_type=scope.problem_type)

    return open_test
