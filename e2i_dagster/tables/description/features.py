"""Feature store: applied views, materializations, freshness, statistics of every feature."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from e2i_dagster.tables.description.base import column, metadata

Timestamp = sa.DateTime(timezone=True)
_NOW = sa.text("now()")

ml_feast_feature_views = sa.Table(
    "ml_feast_feature_views",
    metadata,
    column("id", sa.Text, "Key: project and view.", primary_key=True),
    column("name", sa.Text, "Feature view.", nullable=False),
    column("project", sa.Text, "Feast project: the scope.", nullable=False),
    column("description", sa.Text, "What the view holds.", nullable=False),
    column("entity_join_keys", JSONB, "Keys by which the view is joined.", nullable=False),
    column("features", JSONB, "Name, type and meaning of each feature.", nullable=False),
    column("feature_count", sa.Integer, "Number of features.", nullable=False, minimum=1),
    column("source_type", sa.Text, "Kind of source.", nullable=False),
    column("source_path", sa.Text, "File that the view is pinned to.", nullable=False),
    column("source_digest", sa.Text, "Digest of the values of that file.", nullable=False),
    column("source_rows", sa.BigInteger, "Rows of that file.", nullable=False, minimum=0),
    column("applied_at", Timestamp, "When this version was applied.", nullable=False, server_default=_NOW),
    sa.UniqueConstraint("project", "name"),
    comment="One row per applied feature view.",
)

ml_feast_materialization_jobs = sa.Table(
    "ml_feast_materialization_jobs",
    metadata,
    column("id", sa.BigInteger, "Key of the job.", sa.Identity(always=True), primary_key=True),
    column(
        "feature_view_id",
        sa.Text,
        "View that was materialized.",
        sa.ForeignKey("ml_feast_feature_views.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    column("feature_view_name", sa.Text, "Its name.", nullable=False),
    column("source_digest", sa.Text, "Digest of the file that was read.", nullable=False),
    column("start_time", Timestamp, "Oldest event timestamp that was read.", nullable=False),
    column("end_time", Timestamp, "Newest event timestamp that was read.", nullable=False),
    column("rows_materialized", sa.BigInteger, "Entities that were written.", nullable=False, minimum=0),
    column("online_entities", sa.BigInteger, "Entities online afterwards; null if not countable.", minimum=0),
    column("duration_seconds", sa.Double, "Duration.", nullable=False, unit="seconds", minimum=0),
    column("started_at", Timestamp, "When it began.", nullable=False),
    column("completed_at", Timestamp, "When it ended.", nullable=False),
    column("run_id", sa.Text, "Run that did it."),
    comment="One row per materialization of a feature view that was completed.",
)

ml_feast_feature_freshness = sa.Table(
    "ml_feast_feature_freshness",
    metadata,
    column("id", sa.BigInteger, "Key of the record.", sa.Identity(always=True), primary_key=True),
    column(
        "feature_view_id",
        sa.Text,
        "View that was looked at.",
        sa.ForeignKey("ml_feast_feature_views.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    column("feature_view_name", sa.Text, "Its name.", nullable=False),
    column("recorded_at", Timestamp, "When freshness was judged.", nullable=False),
    column("last_materialization_time", Timestamp, "When the last materialization ended; null if never."),
    column("staleness_seconds", sa.Double, "Age at that time; null if never.", unit="seconds"),
    column("freshness_status", sa.Text, "fresh, warning, stale or never.", nullable=False),
    column("staleness_threshold_seconds", sa.Integer, "Age from which it warns.", nullable=False),
    column("critical_threshold_seconds", sa.Integer, "Age from which it is stale.", nullable=False),
    sa.CheckConstraint("freshness_status IN ('fresh', 'warning', 'stale', 'never')", name="status_known"),
    comment="One row per view and freshness check.",
)

ml_feature_store = sa.Table(
    "ml_feature_store",
    metadata,
    column("scope", sa.Text, "Scope.", primary_key=True),
    column("feature_name", sa.Text, "Feature.", primary_key=True),
    column("feature_group", sa.Text, "Feature view.", nullable=False),
    column("feature_type", sa.Text, "int, float or string.", nullable=False),
    column("description", sa.Text, "Meaning.", nullable=False),
    column("unit", sa.Text, "Unit of measurement."),
    column("source_columns", JSONB, "Raw columns that it is made of.", nullable=False),
    column("training_statistics", JSONB, "Statistics over the training rows.", nullable=False),
    column("data_digest", sa.Text, "Digest of the feature files of those rows.", nullable=False),
    column("selected", sa.Boolean, "The model is given the feature.", nullable=False),
    column("selection_reason", sa.Text, "Why it was dropped; null if it is selected."),
    column(
        "computed_at", Timestamp, "When the statistics were computed.", nullable=False, server_default=_NOW
    ),
    comment="One row per scope and feature: the statistics that models were trained on.",
)
