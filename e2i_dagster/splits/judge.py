"""One rule of the split report, for a check of its own."""

from __future__ import annotations

import pandas as pd

from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.splits.report import SplitCheck, validate_splits


def judge_rule(rule: str, scope: ScopeSpec, splits: pd.DataFrame, frame: pd.DataFrame) -> SplitCheck:
    """The result of ``rule`` for the patients of ``frame`` (patient_id, label, index_date) and their ``splits``.

    Raises:
        KeyError: the report has no such rule.
    """
    rows = frame.merge(splits, on="patient_id", how="left")
    report = validate_splits(
        rows[["patient_id", "split"]],
        ratios=scope.split.ratios,
        strata=rows["label"],
        index_dates=rows["index_date"] if scope.split.mode == "temporal" else None,
        gap_days=scope.split.gap_days,
    )
    return {check.name: check for check in report.checks}[rule]
