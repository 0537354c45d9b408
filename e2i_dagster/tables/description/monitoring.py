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
    column(
        "drift_type",
        sa.Text,
        "data (a feature), prediction (the score), label, or multivariate.",
        nullable=False,
    ),
    column(
        "feature_name", sa.Text, "Feature, `prediction`, `label`, or a test of all together.", nullable=False
    ),
    column("state", sa.Text, "executed, or skipped with its reason.", nullable=False),
    column(
        "reason",
        sa.Text,
        "Why a test was skipped, or the finding in words.",
        nullable=False,
        server_default="",
    ),
    column("psi", sa.Double, "Population stability index.", unit="nats"),
    column("jensen_shannon", sa.Double, "Jensen-Shannon distance.", minimum=0, maximum=1),
    column("wasserstein", sa.Double, "Wasserstein distance in standard deviations of the reference."),
    column("missing_before", sa.Double, "Share of missing values in the reference.", minimum=0, maximum=1),
    column("missing_now", sa.Double, "Share of missing live values.", minimum=0, maximum=1),
    column("importance", sa.Double, "Share of the model's importance.", minimum=0, maximum=1),
    column("expected_loss", sa.Double, "Loss of performance that this drift is expected to cost."),
    column("test_type", sa.Text, "ks, chi_square, domain_classifier or pca_reconstruction."),
    column("test_statistic", sa.Double, "Statistic of the test."),
    column("p_value", sa.Double, "p of the test before false-discovery control.", minimum=0, maximum=1),
    column("adjusted_p_value", sa.Double, "p after false-discovery control.", minimum=0, maximum=1),
    column(
        "effect_severity",
        sa.Text,
        "Severity by the size of the drift alone.",
        server_default="none",
        nullable=False,
    ),
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
    column("status", sa.Text, "active, acknowledged or resolved.", nullable=False, server_default="active"),
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
        "Channels with what became of each; not_configured, waits_for_digest, or silenced.",
        nullable=False,
    ),
    column("escalated_at", Timestamp, "When it was sent again because it went on."),
    column("acknowledged_by", sa.Text, "Person who looks after it."),
    column("acknowledged_at", Timestamp, "When the person took it."),
    column("acknowledged_until", Timestamp, "Until then repetitions are only counted."),
    column("acknowledgement", sa.Text, "What the person said."),
    column("digested_at", Timestamp, "When the warning was part of a digest."),
    column("created_at", Timestamp, "Since when.", nullable=False, server_default=sa.func.now()),
    column("updated_at", Timestamp, "Raised last.", nullable=False, server_default=sa.func.now()),
)

ml_alert_silences = sa.Table(
    "ml_alert_silences",
    metadata,
    column("id", sa.Uuid, "Key.", primary_key=True, server_default=sa.text("gen_random_uuid()")),
    column("alert_type", sa.Text, "Kind of alerts that are silent.", nullable=False),
    column("subject", sa.Text, "What they are about; empty: everything.", nullable=False, server_default=""),
    column("reason", sa.Text, "Why.", nullable=False),
    column("silenced_by", sa.Text, "Person.", nullable=False),
    column("authentication", sa.Text, "How the person is known.", nullable=False),
    column("run_id", sa.Text, "Dagster run that recorded it."),
    column("created_at", Timestamp, "Since when.", nullable=False, server_default=sa.func.now()),
    column("ends_at", Timestamp, "It holds until then.", nullable=False),
)

ml_prediction_windows = sa.Table(
    "ml_prediction_windows",
    metadata,
    column("prediction_id", sa.Text, "Key of the score.", primary_key=True, privacy="pseudonym"),
    column("scope", sa.Text, "Scope whose model answered.", nullable=False, index=True),
    column("model_id", sa.Text, "Model version that answered.", nullable=False),
    column("patient_id", sa.Text, "Patient; null when the caller named none.", privacy="pseudonym"),
    column("predicted_at", Timestamp, "When it answered.", nullable=False, privacy="quasi"),
    column("score", sa.Double, "The score; a probability for classifiers.", nullable=False),
    column("window_end", sa.Date, "Last day of the outcome window.", nullable=False, privacy="quasi"),
    column("closes_on", sa.Date, "From this day on a label counts: window and source lag.", nullable=False),
    column("entered_at", Timestamp, "When it was entered.", nullable=False, server_default=sa.func.now()),
)

ml_prediction_labels = sa.Table(
    "ml_prediction_labels",
    metadata,
    column("id", sa.BigInteger, "Order of arrival.", sa.Identity(always=True), primary_key=True),
    column(
        "prediction_id", sa.Text, "Score that it belongs to.", nullable=False, index=True, privacy="pseudonym"
    ),
    column("scope", sa.Text, "Scope whose outcome it is.", nullable=False, index=True),
    column("label", sa.Double, "The outcome; null takes an earlier one back."),
    column("arrived_at", Timestamp, "When the outcome became known.", nullable=False),
    column("run_id", sa.Text, "Dagster run that entered it.", nullable=False),
)

ml_performance_history = sa.Table(
    "ml_performance_history",
    metadata,
    column("id", sa.Uuid, "Key.", primary_key=True, server_default=sa.text("gen_random_uuid()")),
    column("scope", sa.Text, "Scope whose model is watched.", nullable=False, index=True),
    column("day", sa.Date, "Day of the report.", nullable=False),
    column("model_id", sa.Text, "Model version.", nullable=False),
    column("metric", sa.Text, "roc_auc, or the error of a regression.", nullable=False),
    column("first_day", sa.Date, "First day of the window.", nullable=False),
    column("last_day", sa.Date, "Last day of the window.", nullable=False),
    column("predictions", sa.Integer, "Predictions of the window.", nullable=False),
    column("closed_labels", sa.Integer, "Of them with a label that counts.", nullable=False),
    column("estimated", sa.Double, "Estimate without labels."),
    column("estimated_low", sa.Double, "Lower end of its interval."),
    column("estimated_high", sa.Double, "Upper end of its interval."),
    column("realised", sa.Double, "Measured with closed labels."),
    column("realised_low", sa.Double, "Lower end of its interval."),
    column("realised_high", sa.Double, "Upper end of its interval."),
    column("concept", sa.Text, "within, outside or not_estimable.", nullable=False),
    column("reason", sa.Text, "Why something is not estimable.", nullable=False, server_default=""),
    column("run_id", sa.Text, "Dagster run.", nullable=False),
    column("created_at", Timestamp, "When it was measured.", nullable=False, server_default=sa.func.now()),
)

ml_retraining_history = sa.Table(
    "ml_retraining_history",
    metadata,
    column("id", sa.Uuid, "Key.", primary_key=True, server_default=sa.text("gen_random_uuid()")),
    column("scope", sa.Text, "Scope to train again.", nullable=False, index=True),
    column("model_id", sa.Text, "Model version that drifted.", nullable=False),
    column(
        "trigger_type",
        sa.Text,
        "performance_degradation, concept_drift, data_drift or manual.",
        nullable=False,
    ),
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
    column(
        "findings", JSONB, "What changed, in words.", nullable=False, server_default=sa.text("'[]'::jsonb")
    ),
    column(
        "basis",
        sa.Text,
        "realised, estimated, or empty: what the loss rests on.",
        nullable=False,
        server_default="",
    ),
    column("metric", sa.Text, "Metric of the loss.", nullable=False, server_default=""),
    column("loss", sa.Double, "Loss of performance against the reference; null: not known."),
    column("loss_severity", sa.Text, "Severity of the loss.", nullable=False, server_default="none"),
    column(
        "concept_drift",
        sa.Boolean,
        "Measured performance has left the estimate.",
        nullable=False,
        server_default=sa.false(),
    ),
    column("run_id", sa.Text, "Dagster run.", nullable=False),
    column("created_at", Timestamp, "When it was measured.", nullable=False, server_default=sa.func.now()),
)
