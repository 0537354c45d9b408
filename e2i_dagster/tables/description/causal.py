"""Tables of causal effects: one row per library and the consensus, one per refuter."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from e2i_dagster.tables.description.base import column, metadata

Timestamp = sa.DateTime(timezone=True)

ml_causal_estimates = sa.Table(
    "ml_causal_estimates",
    metadata,
    column("id", sa.Uuid, "Key.", primary_key=True, server_default=sa.text("gen_random_uuid()")),
    column("scope", sa.Text, "Scope whose outcome it is.", nullable=False, index=True),
    column("treatment", sa.Text, "Name of the treatment.", nullable=False),
    column("outcome", sa.Text, "Name of the outcome.", nullable=False),
    column("library", sa.Text, "Library, or `consensus`.", nullable=False),
    column("estimator", sa.Text, "Estimator of the library, or `median`.", nullable=False),
    column("library_version", sa.Text, "Version of the library.", nullable=False, server_default=""),
    column("estimand", sa.Text, "ate, or overlap_weighted.", nullable=False),
    column("state", sa.Text, "estimated, unavailable, failed, or not_estimable.", nullable=False),
    column("reason", sa.Text, "Why there is no estimate.", nullable=False, server_default=""),
    column("in_consensus", sa.Boolean, "Whether it counts in the consensus.", nullable=False),
    column("effect", sa.Double, "Mean outcome, treated minus control."),
    column("ci_lower", sa.Double, "Lower end of the interval."),
    column("ci_upper", sa.Double, "Upper end of the interval."),
    column("confidence_level", sa.Double, "Level of the interval.", nullable=False, minimum=0, maximum=1),
    column("agreement_score", sa.Double, "Of the consensus: pairs that agree.", minimum=0, maximum=1),
    column("sample_size", sa.Integer, "Patients.", nullable=False, unit="patients"),
    column("confounders", JSONB, "What was adjusted for.", nullable=False),
    column("duration_seconds", sa.Double, "Time taken.", unit="s"),
    column("run_id", sa.Text, "Dagster run.", nullable=False),
    column("created_at", Timestamp, "When it was estimated.", nullable=False, server_default=sa.func.now()),
    sa.UniqueConstraint("scope", "run_id", "library", "estimator"),
)

ml_causal_refutations = sa.Table(
    "ml_causal_refutations",
    metadata,
    column("id", sa.Uuid, "Key.", primary_key=True, server_default=sa.text("gen_random_uuid()")),
    column("scope", sa.Text, "Scope whose outcome it is.", nullable=False, index=True),
    column("treatment", sa.Text, "Name of the treatment.", nullable=False),
    column("refuter", sa.Text, "placebo_treatment, dummy_outcome ...", nullable=False),
    column("expected_effect", sa.Double, "What a sound estimator finds.", nullable=False),
    column("found_effect", sa.Double, "What was found: mean of the repetitions."),
    column("found_lower", sa.Double, "Lower end of its range."),
    column("found_upper", sa.Double, "Upper end of its range."),
    column("passed", sa.Boolean, "Whether the estimate stands.", nullable=False),
    column("run_id", sa.Text, "Dagster run.", nullable=False),
    column("created_at", Timestamp, "When it was tried.", nullable=False, server_default=sa.func.now()),
    sa.UniqueConstraint("scope", "run_id", "refuter"),
)
