"""What the quality stage writes: reports, findings, verdicts of the gate, audits for leakage."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from e2i_dagster.tables.description.base import column, metadata

Timestamp = sa.DateTime(timezone=True)
_NOW = sa.text("now()")
_EMPTY_LIST = sa.text("'[]'::jsonb")
_VERDICT = "IN ('passed', 'warning', 'failed', 'error')"

ml_data_quality_reports = sa.Table(
    "ml_data_quality_reports",
    metadata,
    column("id", sa.Uuid, "Key of the report of one partition.", primary_key=True),
    column("report_name", sa.Text, "Table and partition in one name.", nullable=False),
    column("expectation_suite_name", sa.Text, "Suite that was run."),
    column("table_name", sa.Text, "Raw table.", nullable=False, index=True),
    column("partition", sa.Text, "Month YYYY-MM; all for tables without partitions.", nullable=False),
    column("digest", sa.Text, "Data version that was checked (ledger)."),
    column("row_count", sa.BigInteger, "Rows that were checked.", nullable=False),
    column("overall_status", sa.Text, "passed, warning, failed or error.", nullable=False),
    column("expectations_evaluated", sa.Integer, "Expectations of the suite.", nullable=False),
    column("expectations_passed", sa.Integer, "Expectations that hold.", nullable=False),
    column(
        "expectations_failed", sa.Integer, "Expectations that do not hold or did not run.", nullable=False
    ),
    column("success_rate", sa.Double, "Passed divided by evaluated."),
    column(
        "failed_expectations",
        JSONB,
        "Failed expectations: title, column, critical, reason.",
        nullable=False,
        server_default=_EMPTY_LIST,
    ),
    column("completeness_score", sa.Double, "Share of applicable cells that are filled."),
    column("validity_score", sa.Double, "Share of filled cells that are valid."),
    column("consistency_score", sa.Double, "Mean of the consistency checks."),
    column("uniqueness_score", sa.Double, "Distinct keys divided by rows with a key."),
    column("timeliness_score", sa.Double, "Age of the newest row against its limit."),
    column("overall_score", sa.Double, "Weighted mean of the measured dimensions."),
    column("ruleset_hash", sa.Text, "Rules and thresholds of the report.", nullable=False),
    column(
        "profile",
        JSONB,
        "Counts by column that the next data version is compared with.",
        nullable=False,
        server_default=sa.text("'{}'::jsonb"),
    ),
    column("as_of", sa.Date, "Date that the data is as of."),
    column("run_id", sa.Text, "Dagster run that checked."),
    column("run_at", Timestamp, "When it was checked.", nullable=False, server_default=_NOW),
    column("duration_seconds", sa.Double, "Time of the whole table's check.", unit="s"),
    sa.CheckConstraint(f"overall_status {_VERDICT}", name="overall_status_known"),
    comment="One row per checked partition of a raw table.",
)

data_quality_results = sa.Table(
    "data_quality_results",
    metadata,
    column("result_id", sa.BigInteger, "Key of the finding.", sa.Identity(always=True), primary_key=True),
    column(
        "report_id",
        sa.Uuid,
        "Report that the finding belongs to.",
        sa.ForeignKey("ml_data_quality_reports.id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    column("table_name", sa.Text, "Raw table.", nullable=False),
    column("partition", sa.Text, "Month YYYY-MM; all for tables without partitions.", nullable=False),
    column("rule_id", sa.Text, "Violated rule.", nullable=False, index=True),
    column("layer", sa.Text, "schema, plausibility, dimensions, expectations or shift.", nullable=False),
    column("severity", sa.Text, "fatal, convention or characterization.", nullable=False),
    column("column_name", sa.Text, "Column that the finding is about."),
    column("rows_failed", sa.BigInteger, "Rows (expectations) that violate the rule."),
    column("rows_checked", sa.BigInteger, "Rows (expectations) that were looked at."),
    column("detail", sa.Text, "What was found and expected, without values of rows.", nullable=False),
    column(
        "sample_keys",
        JSONB,
        "Pseudonyms of the keys of a few of the rows.",
        nullable=False,
        server_default=_EMPTY_LIST,
    ),
    column(
        "trend",
        sa.Text,
        "new, existing or resolved against the previous data version of the partition.",
        nullable=False,
        server_default="new",
    ),
    column("page", sa.Text, "Page of the rule in the documentation.", nullable=False),
    column("checked_at", Timestamp, "When it was found.", nullable=False, server_default=_NOW),
    sa.CheckConstraint("severity IN ('fatal', 'convention', 'characterization')", name="severity_known"),
    sa.CheckConstraint("trend IN ('new', 'existing', 'resolved')", name="trend_known"),
    sa.Index("ix_data_quality_results_table_name_partition", "table_name", "partition"),
    comment="One row per finding of a report.",
)

ml_gate_verdicts = sa.Table(
    "ml_gate_verdicts",
    metadata,
    column("table_name", sa.Text, "Raw table, training_frame or splits.", primary_key=True),
    column("partition", sa.Text, "Month YYYY-MM, scope, or all without partitions.", primary_key=True),
    column("digest", sa.Text, "Data version that was judged (ledger).", primary_key=True),
    column("ruleset_hash", sa.Text, "Rules and thresholds of the verdict.", primary_key=True),
    column("verdict", sa.Text, "passed, warning, failed or error.", nullable=False),
    column("blocking", sa.Boolean, "True if the version may not be used.", nullable=False),
    column(
        "rules",
        JSONB,
        "Blocking findings: rule, column, rows, detail, page.",
        nullable=False,
        server_default=_EMPTY_LIST,
    ),
    column(
        "report_id",
        sa.Uuid,
        "Report that the verdict was made from.",
        sa.ForeignKey("ml_data_quality_reports.id", ondelete="SET NULL"),
    ),
    column("run_id", sa.Text, "Dagster run that judged."),
    column("judged_at", Timestamp, "When it was judged.", nullable=False, server_default=_NOW),
    sa.CheckConstraint(f"verdict {_VERDICT}", name="verdict_known"),
    comment="Newest verdict of the gate on each data version under each set of rules.",
)

ml_gate_waivers = sa.Table(
    "ml_gate_waivers",
    metadata,
    column("waiver_id", sa.Uuid, "Key.", primary_key=True, server_default=sa.text("gen_random_uuid()")),
    column("table_name", sa.Text, "Raw table.", nullable=False),
    column("partition", sa.Text, "Month YYYY-MM; all for tables without partitions.", nullable=False),
    column("digest", sa.Text, "Data version that it holds for (ledger).", nullable=False),
    column("rule_id", sa.Text, "Blocking rule that is waived.", nullable=False),
    column("reason", sa.Text, "Why the data may be used all the same.", nullable=False),
    column("waived_by", sa.Text, "Person.", nullable=False),
    column("authentication", sa.Text, "How the person is known.", nullable=False),
    column("run_id", sa.Text, "Dagster run that recorded it."),
    column("created_at", Timestamp, "Since when.", nullable=False, server_default=_NOW),
    column("expires_at", Timestamp, "It holds until then.", nullable=False),
    sa.CheckConstraint("authentication IN ('authenticated', 'self-declared')", name="authentication_known"),
    sa.CheckConstraint("expires_at > created_at", name="expires_after_creation"),
    sa.Index("ix_ml_gate_waivers_table_name_partition", "table_name", "partition"),
    comment="One row per waiver: a person answers for one rule on one data version, until a date.",
)

ml_leakage_audit = sa.Table(
    "ml_leakage_audit",
    metadata,
    column("audit_id", sa.BigInteger, "Key of the row.", sa.Identity(always=True), primary_key=True),
    column("subject", sa.Text, "Frame that was audited, such as training_frame/<scope>.", nullable=False),
    column("digest", sa.Text, "Data version that was audited (ledger)."),
    column("check_type", sa.Text, "known_at, temporal, target, window or contamination.", nullable=False),
    column("passed", sa.Boolean, "True if the check found nothing fatal.", nullable=False),
    column("severity", sa.Text, "critical, warning or info.", nullable=False),
    column("details", sa.Text, "What was found, without values of rows."),
    column("affected_records", sa.BigInteger, "Rows that are affected, where rows are."),
    column("remediation_action", sa.Text, "What to do."),
    column("audited_by", sa.Text, "Run or person."),
    column("audit_timestamp", Timestamp, "When it was audited.", nullable=False, server_default=_NOW),
    sa.CheckConstraint("severity IN ('critical', 'warning', 'info')", name="severity_known"),
    sa.Index("ix_ml_leakage_audit_subject_audit_timestamp", "subject", "audit_timestamp"),
    comment="One row per check without findings, or per finding, of a leakage audit.",
)
