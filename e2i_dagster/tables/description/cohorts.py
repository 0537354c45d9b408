"""Tables of the cohort stage: definitions, executions, attrition, and each journey's verdict."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from e2i_dagster.tables.description.base import column, metadata

ml_cohort_definitions = sa.Table(
    "ml_cohort_definitions",
    metadata,
    column("cohort_id", sa.Text, "Cohort and version", primary_key=True),
    column("cohort_key", sa.Text, "Cohort: the name of its file", nullable=False),
    column("brand", sa.Text, "Brand", nullable=False),
    column("indication", sa.Text, "Indication", nullable=False),
    column("cohort_name", sa.Text, "Title for people", nullable=False),
    column("version", sa.Text, "Version given by the author", nullable=False),
    column("created_date", sa.DateTime(timezone=True), "First recorded", nullable=False),
    column("updated_date", sa.DateTime(timezone=True), "Last execution recorded", nullable=False),
    column("created_by", sa.Text, "Who recorded it first"),
    column("inclusion_criteria", JSONB, "Rules that must hold", nullable=False),
    column("exclusion_criteria", JSONB, "Rules that remove", nullable=False),
    column("lookback_days", sa.Integer, "Observed days needed before the index date", unit="days"),
    column("followup_days", sa.Integer, "Observed days needed after the index date", unit="days"),
    column("index_date_field", sa.Text, "Column of the index date"),
    column("required_fields", JSONB, "Columns that the patient frame must have"),
    column("initial_population", sa.Integer, "Patients of the last execution", unit="patients"),
    column("eligible_population", sa.Integer, "Eligible patients of the last execution", unit="patients"),
    column("excluded_population", sa.Integer, "Patients not eligible in the last execution", unit="patients"),
    column("exclusion_rate", sa.Numeric(18, 6), "Share of patients not eligible", minimum=0, maximum=1),
    column("clinical_rationale", sa.Text, "Why these patients"),
    column("config_json", JSONB, "The whole definition", nullable=False),
    column("config_hash", sa.Text, "Content digest of the rules", nullable=False),
    column("status", sa.Text, "draft or approved", nullable=False, server_default="draft"),
    column("approved_by", sa.Text, "Who approved it"),
    column("approved_on", sa.Date, "When it was approved"),
    sa.CheckConstraint("status IN ('draft', 'approved')", name="status"),
)

ml_cohort_executions = sa.Table(
    "ml_cohort_executions",
    metadata,
    column("execution_id", sa.Text, "Execution, given by the caller", primary_key=True),
    column(
        "cohort_id",
        sa.Text,
        "Cohort and version",
        sa.ForeignKey("ml_cohort_definitions.cohort_id", ondelete="CASCADE"),
        nullable=False,
        index=True,
    ),
    column("execution_timestamp", sa.DateTime(timezone=True), "When it was recorded", nullable=False),
    column("executed_by", sa.Text, "Who or which run"),
    column("environment", sa.Text, "development, staging or production", nullable=False),
    column("input_dataset", sa.Text, "Digest of the snapshot that was read"),
    column("output_dataset", sa.Text, "Digest of the eligible patients"),
    column("code_version", sa.Text, "Version of the code"),
    column("config_hash", sa.Text, "Content digest of the rules", nullable=False),
    column("data_end", sa.Date, "Last day that the data cover"),
    column("input_row_count", sa.Integer, "Journeys that came in", unit="journeys", nullable=False),
    column("input_patient_count", sa.Integer, "Patients that came in", unit="patients", nullable=False),
    column("eligible_row_count", sa.Integer, "Eligible patients", unit="patients", nullable=False),
    column("pending_row_count", sa.Integer, "Patients whose follow-up is not over", unit="patients"),
    column("excluded_row_count", sa.Integer, "Patients not eligible", unit="patients", nullable=False),
    column("execution_time_ms", sa.Integer, "Time of the whole", unit="ms"),
    column("validate_config_ms", sa.Integer, "Time to check definition and columns", unit="ms"),
    column("apply_criteria_ms", sa.Integer, "Time of the criteria", unit="ms"),
    column("validate_temporal_ms", sa.Integer, "Time of the rules on time", unit="ms"),
    column("generate_metadata_ms", sa.Integer, "Time of attrition and reasons", unit="ms"),
    column("status", sa.Text, "success, or failed for an empty cohort", nullable=False),
    column("error_code", sa.Text, "Code of the failure (CC_...)"),
    column("error_message", sa.Text, "What failed"),
    sa.CheckConstraint("environment IN ('development', 'staging', 'production')", name="environment"),
    sa.CheckConstraint("status IN ('success', 'failed')", name="status"),
)

ml_cohort_eligibility_log = sa.Table(
    "ml_cohort_eligibility_log",
    metadata,
    column("log_id", sa.BigInteger, "Row", sa.Identity(), primary_key=True),
    column(
        "cohort_id",
        sa.Text,
        "Cohort and version",
        sa.ForeignKey("ml_cohort_definitions.cohort_id", ondelete="CASCADE"),
        nullable=False,
    ),
    column(
        "execution_id",
        sa.Text,
        "Execution",
        sa.ForeignKey("ml_cohort_executions.execution_id", ondelete="CASCADE"),
        nullable=False,
    ),
    column("criterion_order", sa.Integer, "Place of the rule; its bit in a mask is one less", nullable=False),
    column("criterion_name", sa.Text, "Name of the rule", nullable=False),
    column("criterion_type", sa.Text, "inclusion, exclusion or temporal", nullable=False),
    column("operator", sa.Text, "Operator", nullable=False),
    column("criterion_value", JSONB, "Value as written"),
    column("removed_count", sa.Integer, "Persons removed by the rule", unit="patients", nullable=False),
    column("remaining_count", sa.Integer, "Persons left after it", unit="patients", nullable=False),
    column("unknown_count", sa.Integer, "Persons whose value was null", unit="patients", nullable=False),
    column(
        "marginal_gain", sa.Integer, "Persons that dropping it brings in", unit="patients", nullable=False
    ),
    column("description", sa.Text, "The rule in words"),
    column("clinical_rationale", sa.Text, "Why"),
    column("applied_at", sa.DateTime(timezone=True), "When it was recorded", nullable=False),
    sa.UniqueConstraint("execution_id", "criterion_order"),
    sa.CheckConstraint("criterion_type IN ('inclusion', 'exclusion', 'temporal')", name="criterion_type"),
)

ml_patient_cohort_assignments = sa.Table(
    "ml_patient_cohort_assignments",
    metadata,
    column("patient_journey_id", sa.Text, "Journey", primary_key=True, privacy="pseudonym"),
    column(
        "cohort_id",
        sa.Text,
        "Cohort and version",
        sa.ForeignKey("ml_cohort_definitions.cohort_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    column(
        "execution_id",
        sa.Text,
        "Execution",
        sa.ForeignKey("ml_cohort_executions.execution_id", ondelete="CASCADE"),
        primary_key=True,
    ),
    column(
        "index_number",
        sa.Integer,
        "Which of the journey's index dates, by date; 1 unless the index is every event of a kind",
        primary_key=True,
        autoincrement=False,
        server_default="1",
    ),
    column("patient_id", sa.Text, "Patient", nullable=False, privacy="pseudonym"),
    column("assigned_at", sa.DateTime(timezone=True), "When it was recorded", nullable=False),
    column("is_eligible", sa.Boolean, "In the cohort", nullable=False),
    column("is_pending", sa.Boolean, "Meets every rule; follow-up is not over", nullable=False),
    column("failed_criteria", JSONB, "Names of all rules that failed", nullable=False),
    column("failed_mask", sa.BigInteger, "The same as bits", nullable=False),
    column("unknown_mask", sa.BigInteger, "Rules whose value was null, as bits"),
    column("lookback_complete", sa.Boolean, "Observed long enough before", nullable=False),
    column("followup_complete", sa.Boolean, "Observed long enough after", nullable=False),
    column("index_date", sa.Date, "Index date", privacy="quasi"),
)

ml_patient_level_access = sa.Table(
    "ml_patient_level_access",
    metadata,
    column("access_id", sa.BigInteger, "Opening", sa.Identity(always=True), primary_key=True),
    column(
        "at",
        sa.DateTime(timezone=True),
        "When it was opened",
        nullable=False,
        server_default=sa.text("clock_timestamp()"),
    ),
    column("actor", sa.Text, "Who opened it", nullable=False),
    column("actor_source", sa.Text, "How the name is known: authenticated or self-declared", nullable=False),
    column(
        "purpose", sa.Text, "What was opened: explain, trace, or exact figures of a command", nullable=False
    ),
    column("cohort_key", sa.Text, "Cohort: the name of its file; null when none was asked for"),
    column("execution_id", sa.Text, "Execution that was read, if one was"),
    column("patient_id", sa.Text, "Patient or journey that was asked for", privacy="pseudonym"),
    column("outcome", sa.Text, "opened, or refused", nullable=False, server_default="opened"),
    sa.CheckConstraint("outcome IN ('opened', 'refused')", name="outcome"),
    comment="Every opening of patient-level answers and exact small counts, and refused ones. Rows are only added.",
)
