"""Tables of monitoring: drift results, alerts, proposals to retrain."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from e2i_dagster.tables.description.base import column, metadata

Timestamp = sa.DateTime(timezone=True)

ml_drift_history = sa.Table(
    "ml_drift_history",
    metadata,
    column("id", sa.Uuid, "Key.", primary_key=True, server_default=sa.text("gen_random_uuid()")),
    column("scope", sa.Text, "Scope whose model is watched.", nullable=False, index=True),
    column("day", sa.Date, "Day whose predictions were compared.", nullable=False),
    column("model_id", sa.Text, "Model version that predicted.", nullable=False),
    column("drift_type", sa.Text, "data (a feature) or prediction (the score).", nullable=False),
    column("feature_name", sa.Text, "Feature, or `prediction`.", nullable=False),
    column("state", sa.Text, "executed, or skipped with its reason.", nullable=False),
    column("reason", sa.Text, "Why a test was skipped.", nullable=False, server_default=""),
    column("psi", sa.Double, "Population stability index.", unit="nats"),
    column("test_type", sa.Text, "ks or chi_square."),
    column("test_statistic", sa.Double, "Statistic of the test."),
    column("p_value", sa.Double, "p of the test before false-discovery control.", minimum=0, maximum=1),
    column("adjusted_p_value", sa.Double, "p after false-discovery control.", minimum=0, maximum=1),
    column("severity", sa.Text, "none, low, medium, high, critical.", nullable=False),
    column("baseline_count", sa.Integer, "Reference values.", nullable=False),
    column("current_count", sa.Integer, "Live values.", nullable=False),
    column("run_id", sa.Text, "Dagster run.", nullable=False),
    column("created_at", Timestamp, "When it was measured.", nullable=False, server_default=sa.func.now()),
    sa.UniqueConstraint("scope", "day", "model_id", "feature_name", "run_id"),
)

ml_monitoring_alerts = sa.Table(
    "ml_monitoring_alerts",
    metadata,
    column("id", sa.Uuid, "Key.", primary_key=True, server_default=sa.text("gen_random_uuid()")),
    column("alert_type", sa.Text, "run_failure, drift, data_quality ...", nullable=False),
    column("title", sa.Text, "One line.", nullable=False),
    column("severity", sa.Text, "low, medium, high, critical.", nullable=False),
    column(
        "level",
        sa.Text,
        "critical: sent at once; warning: part of the daily digest.",
        nullable=False,
        server_default="critical",
    ),
    column("status", sa.Text, "active or resolved.", nullable=False, server_default="active"),
    column("subject", sa.Text, "What the alert is about (job, asset, scope).", nullable=False),
    column("partition", sa.Text, "Partition concerned.", nullable=False, server_default=""),
    column("message", sa.Text, "What happened.", nullable=False),
    column("owner", sa.Text, "Who looks after it.", nullable=False),
    column("next_command", sa.Text, "What to do next.", nullable=False, server_default=""),
    column("link", sa.Text, "Page of the run.", nullable=False, server_default=""),
    column(
        "occurrences",
        sa.Integer,
        "How often it was raised within the deduplication time.",
        nullable=False,
        server_default="1",
    ),
    column(
        "notification",
        sa.Text,
        "sent, not_configured, waits_for_digest, or failed: reason.",
        nullable=False,
    ),
    column("digested_at", Timestamp, "When the warning was part of a digest."),
    column("created_at", Timestamp, "Since when.", nullable=False, server_default=sa.func.now()),
    column("updated_at", Timestamp, "Raised last.", nullable=False, server_default=sa.func.now()),
)

ml_retraining_history = sa.Table(
    "ml_retraining_history",
    metadata,
    column("id", sa.Uuid, "Key.", primary_key=True, server_default=sa.text("gen_random_uuid()")),
    column("scope", sa.Text, "Scope to train again.", nullable=False, index=True),
    column("model_id", sa.Text, "Model version that drifted.", nullable=False),
    column("trigger_type", sa.Text, "data_drift or manual.", nullable=False),
    column("trigger_reason", sa.Text, "Why.", nullable=False),
    column("composite_score", sa.Double, "Composite drift score.", minimum=0, maximum=1),
    column("status", sa.Text, "proposed or requested.", nullable=False),
    column("run_id", sa.Text, "Run that measured the drift.", nullable=False),
    column("details", JSONB, "Scores by feature.", nullable=False, server_default=sa.text("'{}'::jsonb")),
    column("triggered_at", Timestamp, "When.", nullable=False, server_default=sa.func.now()),
)

ml_monitoring_runs = sa.Table(
    "ml_monitoring_runs",
    metadata,
    column("id", sa.Uuid, "Key.", primary_key=True, server_default=sa.text("gen_random_uuid()")),
    column("scope", sa.Text, "Scope whose model is watched.", nullable=False, index=True),
    column("day", sa.Date, "Day whose predictions were compared.", nullable=False),
    column("model_id", sa.Text, "Model version that predicted.", nullable=False),
    column("features_tested", sa.Integer, "Features with enough values.", nullable=False),
    column("features_skipped", sa.Integer, "Features without.", nullable=False),
    column("worst_severity", sa.Text, "Highest severity.", nullable=False),
    column("worst_features", JSONB, "Names of the most changed features.", nullable=False),
    column("composite_score", sa.Double, "Weighted mean of severities.", minimum=0, maximum=1),
    column("run_id", sa.Text, "Dagster run.", nullable=False),
    column("created_at", Timestamp, "When it was measured.", nullable=False, server_default=sa.func.now()),
)
