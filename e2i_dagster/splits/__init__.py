"""Splits: train, validation, test and holdout by patient; their registry, rules and seals."""

from e2i_dagster.splits.assign import RATIOS, SPLITS, UNASSIGNED, assign_splits, keyed_hash
from e2i_dagster.splits.registry import (
    read_assignments,
    register_split,
    split_cohort,
    split_config_id,
    store_assignments,
)
from e2i_dagster.splits.report import SplitCheck, SplitReport, validate_splits
from e2i_dagster.splits.scope import ScopeSplit, split_scope
from e2i_dagster.splits.seal import (
    Seal,
    SealedError,
    SealOpening,
    production_deployment,
    seal_openings,
    visible_frames,
)

__all__ = [
    "RATIOS",
    "SPLITS",
    "UNASSIGNED",
    "ScopeSplit",
    "Seal",
    "SealOpening",
    "SealedError",
    "SplitCheck",
    "SplitReport",
    "assign_splits",
    "keyed_hash",
    "production_deployment",
    "read_assignments",
    "register_split",
    "seal_openings",
    "split_cohort",
    "split_config_id",
    "split_scope",
    "store_assignments",
    "validate_splits",
    "visible_frames",
]
