"""One rule of the split report, for a check of its own; training frame and splits before the leakage gate."""

from __future__ import annotations

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.modelling.problem import outcome_groups
from e2i_dagster.quality.table_check import GateResult, record_frame_audit, record_splits_audit
from e2i_dagster.splits.registry import read_assignments, split_config_id
from e2i_dagster.splits.report import SplitCheck, validate_splits
from e2i_dagster.splits.scope import first_index_dates


def check_rule(rule: str, scope: ScopeSpec, splits: pd.DataFrame, frame: pd.DataFrame) -> SplitCheck:
    """The result of ``rule`` for the patients of ``frame`` (patient_id, label, index_date) and their ``splits``.

    Raises:
        KeyError: the report has no such rule.
    """
    rows = first_index_dates(frame).merge(splits, on="patient_id", how="left")
    report = validate_splits(
        rows[["patient_id", "split"]],
        ratios=scope.split.ratios,
        strata=outcome_groups(rows["label"], scope.problem_type),
        index_dates=rows["index_date"] if scope.split.mode == "temporal" else None,
        gap_days=scope.split.gap_days,
    )
    return {check.name: check for check in report.checks}[rule]


def audit_frame(engine: sa.Engine, scope: ScopeSpec, frame: pd.DataFrame, *, run_id: str) -> GateResult:
    """The leakage gate on the training frame of ``scope``; the verdict is stored.

    Outcomes of patients whom the split registry has in the holdout are not looked at.
    """
    with engine.connect() as connection:
        assigned = read_assignments(connection, split_config_id(scope.cohort, scope.split))
    sealed = frame["patient_id"].isin(assigned.loc[assigned["split"] == "holdout", "patient_id"])
    return record_frame_audit(
        engine,
        scope.key,
        _audited(frame, scope).assign(label=lambda rows: rows["label"].mask(sealed)),
        horizon_days=scope.horizon_days,
        run_id=run_id,
    )


def audit_splits(
    engine: sa.Engine, scope: ScopeSpec, frame: pd.DataFrame, splits: pd.DataFrame, *, run_id: str
) -> GateResult:
    """The leakage gate on the ``splits`` of ``scope``; the verdict is stored."""
    rows = _audited(frame, scope).merge(splits[["patient_id", "split"]], on="patient_id", how="left")
    return record_splits_audit(engine, scope.key, rows, horizon_days=scope.horizon_days, run_id=run_id)


def _audited(frame: pd.DataFrame, scope: ScopeSpec) -> pd.DataFrame:
    """``frame`` with the label that features are compared with: of a time whether it ended with the event."""
    if scope.problem_type != "survival":
        return frame
    return frame.assign(label=outcome_groups(frame["label"], scope.problem_type))
