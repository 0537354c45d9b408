"""Tables of the splits: which split a patient is in, and who opened a sealed one."""

from __future__ import annotations

import sqlalchemy as sa

from e2i_dagster.tables.description.base import column, metadata

ml_split_registry = sa.Table(
    "ml_split_registry",
    metadata,
    column("split_config_id", sa.Uuid, "Split of a cohort under one salt", primary_key=True),
    column("config_name", sa.Text, "Cohort and salt, for people", nullable=False, unique=True),
    column("cohort_key", sa.Text, "Cohort whose patients are split", nullable=False, index=True),
    column("salt", sa.Text, "Key of the hash; a new salt is a fresh test set", nullable=False),
    column("split_strategy", sa.Text, "patient_stratified (hash) or chronological", nullable=False),
    column("train_ratio", sa.Numeric(5, 4), "Share of train", nullable=False),
    column("validation_ratio", sa.Numeric(5, 4), "Share of validation", nullable=False),
    column("test_ratio", sa.Numeric(5, 4), "Share of test", nullable=False),
    column("holdout_ratio", sa.Numeric(5, 4), "Share of holdout", nullable=False),
    column("temporal_gap_days", sa.Integer, "Days between splits in time", unit="days", nullable=False),
    column("created_at", sa.DateTime(timezone=True), "First use", nullable=False),
    column("created_by", sa.Text, "Who or which run"),
    sa.CheckConstraint(
        "abs(train_ratio + validation_ratio + test_ratio + holdout_ratio - 1) < 0.001", name="ratios"
    ),
    sa.CheckConstraint("split_strategy IN ('patient_stratified', 'chronological')", name="split_strategy"),
)

ml_patient_split_assignments = sa.Table(
    "ml_patient_split_assignments",
    metadata,
    column(
        "split_config_id",
        sa.Uuid,
        "Split of a cohort",
        sa.ForeignKey("ml_split_registry.split_config_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    column("patient_id", sa.Text, "Patient", primary_key=True, privacy="pseudonym"),
    column("assigned_split", sa.Text, "train, validation, test, holdout or unassigned", nullable=False),
    column("assignment_reason", sa.Text, "Why the row was written"),
    column("assigned_at", sa.DateTime(timezone=True), "When", nullable=False),
    sa.CheckConstraint(
        "assigned_split IN ('train', 'validation', 'test', 'holdout', 'unassigned')", name="assigned_split"
    ),
)

ml_seal_openings = sa.Table(
    "ml_seal_openings",
    metadata,
    column("opening_id", sa.BigInteger, "Row", sa.Identity(), primary_key=True),
    column("scope", sa.Text, "Scope", nullable=False),
    column("split", sa.Text, "test or holdout", nullable=False),
    column("salt", sa.Text, "Salt of the split", nullable=False),
    column("sealed_set", sa.Text, "Digest of scope, salt and patients", nullable=False, index=True),
    column("patients", sa.Integer, "Patients in the sealed set", unit="patients", nullable=False),
    column("candidate", sa.Text, "The one candidate it was opened for", nullable=False),
    column("reason", sa.Text, "Why it was opened", nullable=False),
    column("opened_by", sa.Text, "Who or which run", nullable=False),
    column("opened_at", sa.DateTime(timezone=True), "When", nullable=False),
    column("ordinal", sa.Integer, "How many candidates these patients have judged", nullable=False),
    column(
        "ordinal_under_salt", sa.Integer, "The same, over all sets of this scope and salt", nullable=False
    ),
    column("deployment", sa.Text, "Production deployment that allowed a holdout to be opened"),
    sa.UniqueConstraint("sealed_set", "candidate"),
    sa.CheckConstraint("split IN ('test', 'holdout')", name="split"),
)
