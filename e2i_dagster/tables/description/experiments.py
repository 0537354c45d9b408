"""Tables of experiments. What happened to units, designs and looks is only ever added (triggers refuse the rest)."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from e2i_dagster.tables.description.base import column, metadata

Timestamp = sa.DateTime(timezone=True)

#: Tables whose rows are never changed or deleted, by whatever role: triggers refuse it.
APPEND_ONLY: tuple[str, ...] = (
    "ab_experiment_transitions",
    "ab_experiment_approvals",
    "ab_experiment_designs",
    "ab_experiment_units",
    "ab_randomization_batches",
    "ab_experiment_assignments",
    "ab_experiment_enrollments",
    "ab_experiment_outcomes",
    "ab_interim_analyses",
    "ab_experiment_results",
    "ab_srm_checks",
    "ab_unblinding_log",
    "twin_simulations",
    "ab_fidelity_comparisons",
)


def _key() -> sa.Column[Any]:
    return column("id", sa.BigInteger, "Key, rising with time.", sa.Identity(always=True), primary_key=True)


def _experiment() -> sa.Column[Any]:
    return column(
        "experiment",
        sa.Text,
        "Name of the experiment.",
        sa.ForeignKey("ab_experiments.name"),
        nullable=False,
        index=True,
    )


def _recorded() -> tuple[sa.Column[Any], sa.Column[Any]]:
    return (
        column("recorded_by", sa.Text, "Who recorded it.", nullable=False),
        column(
            "recorded_at",
            Timestamp,
            "When it was recorded.",
            nullable=False,
            server_default=sa.func.clock_timestamp(),
        ),
    )


ab_experiments = sa.Table(
    "ab_experiments",
    metadata,
    column("name", sa.Text, "Name of the experiment, its file and its partition.", primary_key=True),
    column("state", sa.Text, "State of the life cycle.", nullable=False),
    column("design_version", sa.Integer, "Number of the design in force.", nullable=False),
    column("design_digest", sa.Text, "Digest of the design in force.", nullable=False),
    column("locked_at", Timestamp, "When the first unit was assigned: the design is locked since then."),
    column("source", sa.Text, "observed or simulated; None before the first unit."),
    column("decision", sa.Text, "What was decided in the end."),
    column("created_by", sa.Text, "Who registered it.", nullable=False),
    column("created_at", Timestamp, "When.", nullable=False, server_default=sa.func.now()),
    column("updated_at", Timestamp, "Last transition.", nullable=False, server_default=sa.func.now()),
    sa.CheckConstraint("source IN ('observed', 'simulated')", name="source"),
)

ab_experiment_transitions = sa.Table(
    "ab_experiment_transitions",
    metadata,
    _key(),
    _experiment(),
    column("from_state", sa.Text, "State before; None for the registration."),
    column("to_state", sa.Text, "State after.", nullable=False),
    column("reason", sa.Text, "Why.", nullable=False),
    column("evidence", JSONB, "What was checked, and found.", nullable=False),
    *_recorded(),
)

ab_experiment_approvals = sa.Table(
    "ab_experiment_approvals",
    metadata,
    _key(),
    _experiment(),
    column("role", sa.Text, "Role that approves.", nullable=False),
    column("design_digest", sa.Text, "Exactly the design that is approved.", nullable=False),
    column("reason", sa.Text, "Why.", nullable=False),
    *_recorded(),
    sa.UniqueConstraint("experiment", "role", "design_digest"),
)

ab_experiment_designs = sa.Table(
    "ab_experiment_designs",
    metadata,
    _key(),
    _experiment(),
    column("version", sa.Integer, "1 for the first; one more for each change.", nullable=False),
    column("design_digest", sa.Text, "Digest of the design.", nullable=False),
    column("design", JSONB, "The design as data.", nullable=False),
    column("amendment", sa.Boolean, "True when units had been assigned before the change.", nullable=False),
    column("reason", sa.Text, "Why it was changed.", nullable=False),
    *_recorded(),
    sa.UniqueConstraint("experiment", "version"),
)

ab_experiment_units = sa.Table(
    "ab_experiment_units",
    metadata,
    _key(),
    _experiment(),
    column(
        "unit_id",
        sa.Text,
        "Unit that was screened.",
        nullable=False,
        privacy="pseudonym",
    ),
    column("unit_type", sa.Text, "hcp, patient, territory or account.", nullable=False),
    column("screened_at", Timestamp, "When it was screened.", nullable=False),
    column("attributes", JSONB, "Values at screening: criteria, strata, covariates.", nullable=False),
    column("eligible", sa.Boolean, "True if every criterion holds.", nullable=False),
    column("failed_criteria", JSONB, "Names of the criteria that fail.", nullable=False),
    *_recorded(),
)

ab_randomization_batches = sa.Table(
    "ab_randomization_batches",
    metadata,
    _key(),
    _experiment(),
    column("batch", sa.Integer, "1, 2, ... within the experiment.", nullable=False),
    column("first_sequence", sa.BigInteger, "Sequence number of its first assignment.", nullable=False),
    column("units", sa.Integer, "Assignments in it.", nullable=False),
    column("design_digest", sa.Text, "Design by which it was drawn.", nullable=False),
    column("plan", JSONB, "Method, arms, ratios, blocks and strata by which it was drawn.", nullable=False),
    column("key_fingerprint", sa.Text, "Tells which secret key was used, not the key.", nullable=False),
    column("seal", sa.Text, "Keyed digest of the batch and of the seal before it.", nullable=False),
    *_recorded(),
    sa.UniqueConstraint("experiment", "batch"),
)

ab_experiment_assignments = sa.Table(
    "ab_experiment_assignments",
    metadata,
    _key(),
    _experiment(),
    column("unit_id", sa.Text, "Unit assigned.", nullable=False, privacy="pseudonym"),
    column("unit_type", sa.Text, "hcp, patient, territory or account.", nullable=False),
    column("variant", sa.Text, "Arm.", nullable=False),
    column("sequence", sa.BigInteger, "Order of assignment within the experiment, from 1.", nullable=False),
    column("batch", sa.Integer, "Batch that it was drawn in.", nullable=False),
    column(
        "randomization_method", sa.Text, "simple, block, stratified, minimization, cluster.", nullable=False
    ),
    column("stratum", sa.Text, "Stratum, canonical JSON of its values.", nullable=False, server_default=""),
    column("cluster", sa.Text, "Cluster that was assigned as a whole.", privacy="pseudonym"),
    column("assigned_at", Timestamp, "When it holds from.", nullable=False),
    *_recorded(),
    sa.UniqueConstraint("experiment", "unit_id"),
    sa.UniqueConstraint("experiment", "sequence", name="uq_ab_experiment_assignments_sequence"),
    sa.CheckConstraint("variant ~ '^[a-z][a-z0-9_]*$'", name="variant"),
)

ab_experiment_enrollments = sa.Table(
    "ab_experiment_enrollments",
    metadata,
    _key(),
    _experiment(),
    column("unit_id", sa.Text, "Unit it happened to.", nullable=False, privacy="pseudonym"),
    column(
        "event_type",
        sa.Text,
        "consented, enrolled, treatment_received, deviation, consent_withdrawn, withdrawn, "
        "lost_to_followup or completed.",
        nullable=False,
    ),
    column("occurred_at", Timestamp, "When it happened.", nullable=False),
    column("consent_method", sa.Text, "email, phone, in_person or digital."),
    column("consent_version", sa.Text, "Version of the consent form."),
    column("initiated_by", sa.Text, "subject, investigator, sponsor or system, for a withdrawal."),
    column("severity", sa.Text, "minor, major or critical, for a deviation."),
    column("variant_received", sa.Text, "Arm whose treatment the unit received."),
    column("reason", sa.Text, "Code of the reason; no free text about a person."),
    *_recorded(),
    sa.UniqueConstraint("experiment", "unit_id", "event_type", "occurred_at"),
)

ab_experiment_outcomes = sa.Table(
    "ab_experiment_outcomes",
    metadata,
    _key(),
    _experiment(),
    column("unit_id", sa.Text, "Unit observed.", nullable=False, privacy="pseudonym"),
    column("metric", sa.Text, "Metric of the design.", nullable=False),
    column(
        "value", sa.Double, "Value; days for a survival metric, the numerator of a ratio.", nullable=False
    ),
    column("event", sa.Boolean, "For a survival metric: True for the event, False for censoring."),
    column(
        "denominator",
        sa.Double,
        "For a ratio metric: what the value is divided by, summed over units.",
        minimum=0,
    ),
    column("observed_at", Timestamp, "When it was observed.", nullable=False),
    *_recorded(),
    sa.UniqueConstraint("experiment", "unit_id", "metric"),
)

ab_interim_analyses = sa.Table(
    "ab_interim_analyses",
    metadata,
    _key(),
    _experiment(),
    column("analysis_number", sa.Integer, "1, 2, ...: the look.", nullable=False),
    column("analysis_type", sa.Text, "scheduled or final.", nullable=False),
    column("design_digest", sa.Text, "Design by which it was made.", nullable=False),
    column(
        "last_outcome_id", sa.BigInteger, "Newest row of outcomes that the look has seen.", nullable=False
    ),
    column(
        "last_event_id", sa.BigInteger, "Newest row of enrolment events that it has seen.", nullable=False
    ),
    column("snapshot_digest", sa.Text, "Digest of the rows that were analysed.", nullable=False),
    column("data_as_of", Timestamp, "Newest observation that it has seen.", nullable=False),
    column("information_fraction", sa.Double, "Information seen of that planned.", nullable=False),
    column("sample_size_at_analysis", sa.Integer, "Units with a primary outcome.", nullable=False),
    column("target_sample_size", sa.Integer, "Units or events planned.", nullable=False),
    column("spending_function", sa.Text, "Rule of the boundaries.", nullable=False),
    column("cumulative_alpha_spent", sa.Double, "Type-I error spent up to this look.", nullable=False),
    column("boundary_z", sa.Double, "Boundary of efficacy.", nullable=False),
    column("test_statistic", sa.Double, "z, positive for benefit; None when it cannot be estimated."),
    column("p_value", sa.Double, "Nominal two-sided p-value.", minimum=0, maximum=1),
    column("effect_estimate", sa.Double, "Effect on the primary metric."),
    column("effect_ci_lower", sa.Double, "Repeated confidence interval, lower end."),
    column("effect_ci_upper", sa.Double, "Repeated confidence interval, upper end."),
    column("conditional_power", sa.Double, "Under the current trend.", minimum=0, maximum=1),
    column("predictive_probability", sa.Double, "Predictive power.", minimum=0, maximum=1),
    column(
        "decision",
        sa.Text,
        "continue, stop_efficacy, stop_futility, stop_safety or not_evaluable (the rules' advice; people decide).",
        nullable=False,
    ),
    column("decision_rationale", sa.Text, "Why.", nullable=False),
    column("metrics_snapshot", JSONB, "Every comparison with what it rests on.", nullable=False),
    *_recorded(),
    sa.UniqueConstraint("experiment", "analysis_number"),
    sa.CheckConstraint("information_fraction > 0", name="information_fraction"),
)

ab_experiment_results = sa.Table(
    "ab_experiment_results",
    metadata,
    _key(),
    _experiment(),
    column("analysis_type", sa.Text, "final, or heterogeneity (causal forest).", nullable=False),
    column("analysis_method", sa.Text, "itt, per_protocol, as_treated, or causal_forest.", nullable=False),
    column("metric", sa.Text, "Metric.", nullable=False),
    column("arm", sa.Text, "Arm compared with control.", nullable=False),
    column("snapshot_digest", sa.Text, "Digest of the rows that were analysed.", nullable=False),
    column("control_n", sa.Integer, "Units of the control with an outcome.", nullable=False),
    column("treatment_n", sa.Integer, "Units of the arm with an outcome.", nullable=False),
    column("effect_estimate", sa.Double, "Difference; None when it cannot be estimated."),
    column("effect_ci_lower", sa.Double, "Interval, lower end."),
    column("effect_ci_upper", sa.Double, "Interval, upper end."),
    column("p_value", sa.Double, "p-value.", minimum=0, maximum=1),
    column("reason", sa.Text, "Why it cannot be estimated.", nullable=False, server_default=""),
    column("details", JSONB, "The whole result.", nullable=False),
    *_recorded(),
    sa.UniqueConstraint("experiment", "analysis_type", "analysis_method", "metric", "arm", "snapshot_digest"),
)

ab_srm_checks = sa.Table(
    "ab_srm_checks",
    metadata,
    _key(),
    _experiment(),
    column("expected_ratio", JSONB, "Share of each arm in the design.", nullable=False),
    column("actual_counts", JSONB, "Units of each arm.", nullable=False),
    column("chi_squared_statistic", sa.Double, "Statistic of the fixed test."),
    column("p_value", sa.Double, "p of the fixed test.", minimum=0, maximum=1),
    column("log_e_maximum", sa.Double, "Evidence of the sequential test so far."),
    column("sequential_p_value", sa.Double, "Valid at every look at once.", minimum=0, maximum=1),
    column("is_srm_detected", sa.Boolean, "By the sequential test.", nullable=False),
    column("severity", sa.Text, "none, warning or critical.", nullable=False),
    column("deviation_percent", sa.Double, "Largest relative deviation of an arm.", minimum=0),
    *_recorded(),
)

ab_unblinding_log = sa.Table(
    "ab_unblinding_log",
    metadata,
    _key(),
    _experiment(),
    column("what", sa.Text, "What was opened: look and report.", nullable=False),
    column("reason", sa.Text, "Why.", nullable=False),
    *_recorded(),
)

twin_simulations = sa.Table(
    "twin_simulations",
    metadata,
    column("simulation_id", sa.Uuid, "Key.", primary_key=True, server_default=sa.text("gen_random_uuid()")),
    _experiment(),
    column("model", JSONB, "Estimator, its settings, training rows and features.", nullable=False),
    column("training_digest", sa.Text, "Digest of the rows that the model was fitted on.", nullable=False),
    column("twin_count", sa.Integer, "Twins.", nullable=False),
    column("simulated_ate", sa.Double, "Mean simulated effect.", nullable=False),
    column("simulated_ci_lower", sa.Double, "Interval with the model's uncertainty.", nullable=False),
    column("simulated_ci_upper", sa.Double, "Interval with the model's uncertainty.", nullable=False),
    column("simulated_std_error", sa.Double, "Standard error.", nullable=False),
    column("effect_heterogeneity", JSONB, "Effect by decile of the predicted effect.", nullable=False),
    column("recommendation", sa.Text, "deploy, refine or skip.", nullable=False),
    column("recommendation_rationale", sa.Text, "Why.", nullable=False),
    *_recorded(),
)

ab_fidelity_comparisons = sa.Table(
    "ab_fidelity_comparisons",
    metadata,
    _key(),
    _experiment(),
    column(
        "simulation_id",
        sa.Uuid,
        "Simulation compared.",
        sa.ForeignKey("twin_simulations.simulation_id"),
        nullable=False,
    ),
    column("analysis_number", sa.Integer, "Look whose effect was observed.", nullable=False),
    column("predicted_effect", sa.Double, "Simulated effect.", nullable=False),
    column("predicted_ci_lower", sa.Double, "Its interval.", nullable=False),
    column("predicted_ci_upper", sa.Double, "Its interval.", nullable=False),
    column("actual_effect", sa.Double, "Observed effect.", nullable=False),
    column("actual_ci_lower", sa.Double, "Its interval.", nullable=False),
    column("actual_ci_upper", sa.Double, "Its interval.", nullable=False),
    column("relative_prediction_error", sa.Double, "Relative to the observed effect; None if undefined."),
    column("confidence_interval_coverage", sa.Boolean, "The two intervals overlap.", nullable=False),
    column("direction_match", sa.Boolean, "Both effects have the same sign.", nullable=False),
    column("fidelity_grade", sa.Text, "excellent, good, fair, poor or unvalidated.", nullable=False),
    column("reason", sa.Text, "Why it is undefined.", nullable=False, server_default=""),
    *_recorded(),
    sa.UniqueConstraint("experiment", "simulation_id", "analysis_number"),
)
