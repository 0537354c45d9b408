"""The raw tables: what is delivered, column by column.

Text is text without a length (users bring their own identifiers); scores and measurements are double
precision; amounts, metric values and rates are NUMERIC(18, 6), so that nothing is rounded away;
timestamps are timestamptz in UTC. Every table has ``created_at`` and ``updated_at``, which the database
fills and which are in no frame. Which split a patient is in is no column here: the split registry knows.

What a row tells about later days than its own date (an acceptance, an observed outcome, the next
treatment) is ``extract``, never ``row``.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from e2i_dagster.tables.description.base import KnownAt, column, metadata

HCP_KEY = r"^HCP\d{8}$"
PATIENT_KEY = r"^PAT\d{8}$"
JOURNEY_KEY = r"^PJ\d{16}$"
TREATMENT_KEY = r"^TE\d{25}$"
TRIGGER_KEY = r"^TRG\d{25}$"
NPI = r"^\d{10}$"
ICD = ("icd10cm", "icd9cm")

Timestamp = sa.DateTime(timezone=True)
Amount = sa.Numeric(18, 6)
Score = sa.Double
TextList = ARRAY(sa.Text)

#: Columns that the database fills; no frame and no input file has them.
MAINTAINED_COLUMNS = ("created_at", "updated_at")

CSU, PNH, C3G, BREAST = "remibrutinib_csu", "fabhalta_pnh", "fabhalta_c3g", "kisqali_hr_her2_bc"


def _maintained() -> tuple[sa.Column[Any], sa.Column[Any]]:
    now = sa.text("now()")
    return (
        column(
            "created_at",
            Timestamp,
            "When the row was first loaded.",
            nullable=False,
            server_default=now,
            known_at="extract",
        ),
        column(
            "updated_at",
            Timestamp,
            "When the row was last changed by a load.",
            nullable=False,
            server_default=now,
            known_at="extract",
        ),
    )


def _hcp(known_at: KnownAt = "static") -> sa.Column[Any]:
    return column(
        "hcp_id",
        sa.Text,
        "Healthcare professional of the row.",
        sa.ForeignKey("hcp_profiles.hcp_id"),
        index=True,
        pattern=HCP_KEY,
        privacy="pseudonym",
        known_at=known_at,
    )


def _journey(*, nullable: bool = False) -> sa.Column[Any]:
    return column(
        "patient_journey_id",
        sa.Text,
        "Journey that the row belongs to.",
        sa.ForeignKey("patient_journeys.patient_journey_id", ondelete="CASCADE"),
        nullable=nullable,
        index=True,
        pattern=JOURNEY_KEY,
        privacy="pseudonym",
        known_at="row",
    )


def _patient(*, nullable: bool = False, known_at: KnownAt = "row") -> sa.Column[Any]:
    return column(
        "patient_id",
        sa.Text,
        "Patient; one patient may have several journeys, so there is no parent table.",
        nullable=nullable,
        index=True,
        pattern=PATIENT_KEY,
        privacy="pseudonym",
        known_at=known_at,
    )


def _brand(meaning: str, known_at: KnownAt = "row") -> sa.Column[Any]:
    return column("brand", sa.Text, meaning, vocabulary="brand", privacy="public", known_at=known_at)


def _source(known_at: KnownAt = "row") -> sa.Column[Any]:
    return column("data_source", sa.Text, "Vendor or system that delivered the row.", known_at=known_at)


def _json(name: str, meaning: str, *, empty: str = "{}", **facts: Any) -> sa.Column[Any]:
    return column(name, JSONB, meaning, server_default=sa.text(f"'{empty}'::jsonb"), **facts)


def _flag(name: str, meaning: str, *, default: bool, **facts: Any) -> sa.Column[Any]:
    return column(name, sa.Boolean, meaning, server_default=sa.true() if default else sa.false(), **facts)


hcp_profiles = sa.Table(
    "hcp_profiles",
    metadata,
    column(
        "hcp_id",
        sa.Text,
        "Key of the healthcare professional.",
        primary_key=True,
        pattern=HCP_KEY,
        privacy="pseudonym",
    ),
    column(
        "npi",
        sa.Text,
        "National Provider Identifier; its last digit is the Luhn digit over prefix 80840.",
        unique=True,
        pattern=NPI,
        check_digit="npi",
        privacy="direct",
    ),
    column("first_name", sa.Text, "First name.", privacy="direct"),
    column("last_name", sa.Text, "Last name.", privacy="direct"),
    column("specialty", sa.Text, "Medical specialty.", privacy="quasi"),
    column("sub_specialty", sa.Text, "Sub-specialty, such as medical_oncology.", privacy="quasi"),
    column("practice_type", sa.Text, "Kind of practice.", vocabulary="practice_type"),
    column("practice_size", sa.Text, "Size of the practice.", vocabulary="practice_size"),
    column("geographic_region", sa.Text, "Region of the practice.", vocabulary="region"),
    column("state", sa.Text, "State of the practice.", vocabulary="state", privacy="quasi"),
    column("city", sa.Text, "City of the practice.", privacy="quasi"),
    column("zip_code", sa.Text, "ZIP code of the practice, with leading zeros.", privacy="quasi"),
    column(
        "priority_tier",
        sa.Integer,
        "Targeting tier, 1 is highest.",
        minimum=1,
        maximum=5,
        known_at="extract",
    ),
    column(
        "decile",
        sa.Integer,
        "Prescribing decile, 10 is the highest volume.",
        minimum=1,
        maximum=10,
        known_at="extract",
    ),
    column(
        "total_patient_volume",
        sa.Integer,
        "Patients seen, as of the extract.",
        unit="patients",
        minimum=0,
        known_at="extract",
    ),
    column(
        "target_patient_volume",
        sa.Integer,
        "Patients with a target indication, as of the extract.",
        unit="patients",
        minimum=0,
        known_at="extract",
    ),
    column(
        "prescribing_volume",
        sa.Integer,
        "Prescriptions written, as of the extract.",
        unit="prescriptions",
        minimum=0,
        known_at="extract",
    ),
    column(
        "years_experience",
        sa.Integer,
        "Years in practice, as of the extract.",
        unit="years",
        minimum=0,
        maximum=80,
        privacy="quasi",
        known_at="extract",
    ),
    column("affiliation_primary", sa.Text, "Primary affiliation.", privacy="quasi"),
    column("affiliation_secondary", TextList, "Further affiliations.", privacy="quasi"),
    column(
        "digital_engagement_score",
        Score,
        "Share of contacts that are digital, as of the extract.",
        minimum=0,
        maximum=1,
        known_at="extract",
    ),
    column(
        "preferred_channel",
        sa.Text,
        "Channel that the professional prefers, as of the extract.",
        vocabulary="delivery_channel",
        known_at="extract",
    ),
    column(
        "interaction_frequency",
        Score,
        "Contacts per month, as of the extract.",
        unit="1/month",
        minimum=0,
        known_at="extract",
    ),
    column(
        "last_interaction_date",
        sa.Date,
        "Day of the last contact, as of the extract.",
        known_at="extract",
    ),
    column(
        "influence_network_size",
        sa.Integer,
        "Professionals in the influence network, as of the extract.",
        unit="professionals",
        minimum=0,
        known_at="extract",
    ),
    column(
        "peer_influence_score",
        Score,
        "Influence on peers, as of the extract.",
        minimum=0,
        maximum=1,
        known_at="extract",
    ),
    column(
        "adoption_category",
        sa.Text,
        "Adoption of new treatments by share of prescribers.",
        vocabulary="adoption_category",
        known_at="extract",
    ),
    _flag(
        "coverage_status", "Covered by the sales force, as of the extract.", default=True, known_at="extract"
    ),
    column("territory_id", sa.Text, "Sales territory, as of the extract.", known_at="extract"),
    column("sales_rep_id", sa.Text, "Sales representative, as of the extract.", known_at="extract"),
    *_maintained(),
    sa.CheckConstraint("priority_tier BETWEEN 1 AND 5", name="priority_tier_range"),
    sa.CheckConstraint("decile BETWEEN 1 AND 10", name="decile_range"),
    comment="One row per healthcare professional.",
)

patient_journeys = sa.Table(
    "patient_journeys",
    metadata,
    column(
        "patient_journey_id",
        sa.Text,
        "Key of the journey.",
        primary_key=True,
        pattern=JOURNEY_KEY,
        privacy="pseudonym",
    ),
    _patient(known_at="static"),
    column("patient_hash", sa.Text, "Keyed hash of the patient at the vendor.", privacy="pseudonym"),
    column("journey_start_date", sa.Date, "First day of the journey.", nullable=False, privacy="quasi"),
    column(
        "journey_end_date",
        sa.Date,
        "Last day of the journey; null while it goes on.",
        not_before="journey_start_date",
        privacy="quasi",
        known_at="extract",
    ),
    column(
        "journey_duration_days",
        sa.Integer,
        "Days from start to end, or to the extract while the journey goes on.",
        unit="days",
        minimum=0,
        known_at="extract",
    ),
    column(
        "journey_stage",
        sa.Text,
        "Stage at the time of the extract.",
        vocabulary="journey_stage",
        known_at="extract",
    ),
    column(
        "journey_status",
        sa.Text,
        "Status at the time of the extract.",
        vocabulary="journey_status",
        known_at="extract",
    ),
    column("primary_diagnosis_code", sa.Text, "Primary diagnosis, ICD-10-CM.", codes=ICD, privacy="quasi"),
    column("primary_diagnosis_desc", sa.Text, "Primary diagnosis in words.", privacy="quasi"),
    column(
        "secondary_diagnosis_codes",
        TextList,
        "Further diagnoses, ICD-10-CM, as of the extract.",
        codes=ICD,
        privacy="quasi",
        known_at="extract",
    ),
    _brand("Brand that the journey is about.", "static"),
    column("age_group", sa.Text, "Age band at diagnosis.", vocabulary="age_group", privacy="quasi"),
    column(
        "age_at_diagnosis",
        sa.Integer,
        "Age at diagnosis.",
        unit="years",
        minimum=0,
        maximum=120,
        privacy="quasi",
    ),
    column("gender", sa.Text, "Gender: F, M or U (unknown).", vocabulary="gender", privacy="quasi"),
    column("geographic_region", sa.Text, "Region of residence.", vocabulary="region", privacy="quasi"),
    column("state", sa.Text, "State of residence.", vocabulary="state", privacy="quasi"),
    column("zip_code", sa.Text, "ZIP code of residence, with leading zeros.", privacy="quasi"),
    column("insurance_type", sa.Text, "Payer.", vocabulary="insurance_type", privacy="quasi"),
    column(
        "data_quality_score",
        Score,
        "Quality of the row by the vendor, as of the extract.",
        minimum=0,
        maximum=1,
        known_at="extract",
    ),
    column(
        "comorbidities",
        TextList,
        "Comorbidities known at the time of the extract.",
        privacy="quasi",
        known_at="extract",
    ),
    column(
        "risk_score",
        Score,
        "Risk by the vendor, as of the extract.",
        minimum=0,
        maximum=1,
        known_at="extract",
    ),
    _source("static"),
    column(
        "data_sources_matched", TextList, "Sources that were matched for the patient.", known_at="extract"
    ),
    column(
        "source_match_confidence",
        Score,
        "Confidence of the match of sources.",
        minimum=0,
        maximum=1,
        known_at="extract",
    ),
    _flag(
        "source_stacking_flag", "True if several sources were combined.", default=False, known_at="extract"
    ),
    column(
        "source_combination_method",
        sa.Text,
        "How sources were combined.",
        vocabulary="source_combination_method",
        known_at="extract",
    ),
    column("source_timestamp", Timestamp, "When the source made the row.", known_at="extract"),
    column("ingestion_timestamp", Timestamp, "When the row was taken in.", known_at="extract"),
    column(
        "data_lag_hours",
        sa.Integer,
        "Ingestion minus source.",
        unit="hours",
        minimum=0,
        known_at="extract",
    ),
    _hcp(),
    column(
        "disease_severity",
        Score,
        "Severity of the disease at diagnosis (confounder).",
        unit="points",
        minimum=0,
        maximum=10,
    ),
    column(
        "academic_hcp",
        sa.Integer,
        "1 if the treating professional's primary affiliation is academic (confounder).",
        minimum=0,
        maximum=1,
    ),
    column(
        "engagement_score",
        Score,
        "Engagement of the treating professional at the index date; its dated form is engagement_events.",
        unit="points",
        minimum=0,
        maximum=10,
        known_at="extract",
    ),
    column(
        "treatment_initiated",
        sa.Integer,
        "1 if the brand was prescribed within 90 days after the index date.",
        minimum=0,
        maximum=1,
        known_at="extract",
    ),
    column(
        "days_to_treatment",
        sa.Integer,
        "Days from the index date to the first prescription; null if there was none.",
        unit="days",
        minimum=0,
        known_at="extract",
    ),
    *_maintained(),
    sa.CheckConstraint("disease_severity BETWEEN 0 AND 10", name="disease_severity_range"),
    sa.CheckConstraint("engagement_score BETWEEN 0 AND 10", name="engagement_score_range"),
    sa.CheckConstraint("academic_hcp IN (0, 1)", name="academic_hcp_range"),
    sa.CheckConstraint("treatment_initiated IN (0, 1)", name="treatment_initiated_range"),
    sa.CheckConstraint("age_at_diagnosis BETWEEN 0 AND 120", name="age_at_diagnosis_range"),
    comment="One row per patient journey; a patient may have several.",
)


def _clinical(name: str, type_: Any, meaning: str, *cohorts: str, **facts: Any) -> sa.Column[Any]:
    return column(
        name,
        type_,
        meaning,
        applies_to=cohorts,
        known_at=facts.pop("known_at", "row"),
        privacy="quasi",
        **facts,
    )


patient_clinical = sa.Table(
    "patient_clinical",
    metadata,
    column(
        "patient_journey_id",
        sa.Text,
        "Journey that the clinical facts belong to.",
        sa.ForeignKey("patient_journeys.patient_journey_id", ondelete="CASCADE"),
        primary_key=True,
        pattern=JOURNEY_KEY,
        privacy="pseudonym",
    ),
    _clinical(
        "diagnosis_code", sa.Text, "Diagnosis that opens the journey, ICD-10-CM by default.", codes=ICD
    ),
    _clinical("diagnosis_date", sa.Date, "Day of the diagnosis; every clinical fact is as of it."),
    _clinical(
        "first_observation_date", sa.Date, "First day on which the patient is observed.", known_at="static"
    ),
    _clinical(
        "last_observation_date",
        sa.Date,
        "Last day on which the patient is observed.",
        known_at="extract",
        not_before="first_observation_date",
    ),
    _clinical(
        "urticaria_severity_uas7",
        Score,
        "Weekly urticaria activity score; 16 to 27 is moderate, 28 and above severe.",
        CSU,
        unit="points",
        minimum=0,
        maximum=42,
    ),
    _clinical("prior_antihistamine_therapy", sa.Boolean, "Antihistamines were tried before.", CSU),
    _clinical("active_autoimmune_condition", sa.Boolean, "An autoimmune condition is active.", CSU),
    _clinical("concurrent_immunosuppressive", sa.Boolean, "Immunosuppressive therapy goes on.", CSU),
    _clinical("pregnancy_status", sa.Boolean, "The patient is pregnant.", CSU),
    _clinical("severe_hepatic_impairment", sa.Boolean, "Severe hepatic impairment.", CSU, BREAST),
    _clinical(
        "ldh_ratio",
        Score,
        "Lactate dehydrogenase.",
        PNH,
        unit="multiples of the upper limit of normal",
        minimum=0,
        maximum=50,
    ),
    _clinical(
        "complement_inhibitor_status",
        sa.Text,
        "Use of a complement inhibitor.",
        PNH,
        vocabulary="complement_inhibitor_status",
    ),
    _clinical("active_serious_infection", sa.Boolean, "A serious infection is active.", PNH, C3G),
    _clinical(
        "meningococcal_vaccination_current",
        sa.Boolean,
        "Meningococcal vaccination is current (safety programme).",
        PNH,
        C3G,
    ),
    _clinical("bone_marrow_transplant_recent", sa.Boolean, "Recent bone marrow transplant.", PNH),
    _clinical("severe_renal_impairment", sa.Boolean, "Severe renal impairment.", PNH),
    _clinical("proteinuria_g_day", Score, "Protein in the urine.", C3G, unit="g/day", minimum=0, maximum=50),
    _clinical(
        "egfr",
        Score,
        "Estimated glomerular filtration rate.",
        C3G,
        unit="mL/min/1.73 m2",
        minimum=0,
        maximum=250,
    ),
    _clinical("dialysis_dependent", sa.Boolean, "The patient depends on dialysis.", C3G),
    _clinical("hr_status", sa.Text, "Hormone receptor status.", BREAST, vocabulary="receptor_status"),
    _clinical("her2_status", sa.Text, "HER2 status.", BREAST, vocabulary="receptor_status"),
    _clinical("disease_stage", sa.Text, "Stage of the tumour.", BREAST, vocabulary="disease_stage"),
    _clinical(
        "ecog_performance_status",
        sa.Integer,
        "ECOG performance status, 0 is fully active.",
        BREAST,
        minimum=0,
        maximum=5,
    ),
    _clinical("prior_cdk46_inhibitor", sa.Boolean, "A CDK4/6 inhibitor was used before.", BREAST),
    _clinical("qtc_prolongation", sa.Boolean, "QTc interval is prolonged.", BREAST),
    _clinical("active_cns_metastases", sa.Boolean, "Metastases of the nervous system are active.", BREAST),
    _clinical(
        "concurrent_strong_cyp3a_inhibitor", sa.Boolean, "A strong CYP3A inhibitor is being taken.", BREAST
    ),
    _json(
        "extra",
        "Clinical columns of the user's own: one object per row, column name to value.",
        privacy="quasi",
        known_at="row",
    ),
    *_maintained(),
    comment="One row per journey: the clinical facts at diagnosis that cohort definitions use.",
)

treatment_events = sa.Table(
    "treatment_events",
    metadata,
    column(
        "treatment_event_id",
        sa.Text,
        "Key of the event.",
        primary_key=True,
        pattern=TREATMENT_KEY,
        privacy="pseudonym",
        known_at="row",
    ),
    _journey(),
    _patient(),
    _hcp("row"),
    column(
        "event_date",
        sa.Date,
        "Day of the event.",
        nullable=False,
        index=True,
        privacy="quasi",
        known_at="row",
    ),
    column("event_type", sa.Text, "Kind of event.", vocabulary="event_type", known_at="row"),
    column("event_subtype", sa.Text, "Finer kind, such as new_rx, refill or biopsy.", known_at="row"),
    _brand("Brand of the drug."),
    column(
        "drug_ndc",
        sa.Text,
        "National Drug Code, with leading zeros.",
        codes=("ndc",),
        known_at="row",
    ),
    column("drug_name", sa.Text, "Name of the drug.", known_at="row"),
    column("drug_class", sa.Text, "Class of the drug, such as BTK_inhibitor.", known_at="row"),
    column("dosage", sa.Text, "Dose and frequency, such as 25mg_BID.", known_at="row"),
    column("duration_days", sa.Integer, "Days supplied.", unit="days", minimum=0, known_at="row"),
    column(
        "icd_codes", TextList, "Diagnosis codes of the event.", codes=ICD, privacy="quasi", known_at="row"
    ),
    column(
        "cpt_codes",
        TextList,
        "Procedure codes of the event.",
        codes=("hcpcs",),
        privacy="quasi",
        known_at="row",
    ),
    column(
        "loinc_codes",
        TextList,
        "Laboratory codes of the event.",
        codes=("loinc",),
        privacy="quasi",
        known_at="row",
    ),
    _json("lab_values", "Laboratory values, test name to value.", privacy="quasi", known_at="row"),
    column("location_type", sa.Text, "Kind of place, such as office.", known_at="row"),
    column("facility_id", sa.Text, "Facility.", privacy="quasi", known_at="row"),
    column("cost", Amount, "Cost of the event.", unit="USD", minimum=0, known_at="row"),
    column(
        "outcome_indicator",
        sa.Text,
        "How the patient did after the event.",
        vocabulary="outcome_indicator",
        known_at="extract",
    ),
    _flag("adverse_event_flag", "An adverse event was reported for it.", default=False, known_at="extract"),
    _flag("discontinuation_flag", "The treatment was stopped later.", default=False, known_at="extract"),
    column("discontinuation_reason", sa.Text, "Why the treatment was stopped.", known_at="extract"),
    column(
        "sequence_number",
        sa.Integer,
        "Place of the event in the journey, from 1.",
        minimum=1,
        known_at="row",
    ),
    column(
        "days_from_diagnosis",
        sa.Integer,
        "Days from the diagnosis; negative before it.",
        unit="days",
        known_at="row",
    ),
    column("previous_treatment", sa.Text, "Treatment before this one.", known_at="row"),
    column("next_treatment", sa.Text, "Treatment after this one.", known_at="extract"),
    _source(),
    column("source_timestamp", Timestamp, "When the source made the row.", known_at="row"),
    *_maintained(),
    comment="One row per clinical event.",
)

engagement_events = sa.Table(
    "engagement_events",
    metadata,
    column(
        "engagement_event_id",
        sa.Text,
        "Key of the contact.",
        primary_key=True,
        privacy="pseudonym",
        known_at="row",
    ),
    column(
        "hcp_id",
        sa.Text,
        "Professional who was contacted.",
        sa.ForeignKey("hcp_profiles.hcp_id"),
        nullable=False,
        index=True,
        pattern=HCP_KEY,
        privacy="pseudonym",
        known_at="row",
    ),
    _journey(nullable=True),
    _brand("Brand that the contact was about."),
    column("engagement_date", sa.Date, "Day of the contact.", nullable=False, index=True, known_at="row"),
    column("engagement_type", sa.Text, "Kind of contact.", vocabulary="engagement_type", known_at="row"),
    column("channel", sa.Text, "Channel of the contact.", vocabulary="delivery_channel", known_at="row"),
    column(
        "quality_score",
        Score,
        "Quality of the contact.",
        unit="points",
        minimum=0,
        maximum=10,
        known_at="row",
    ),
    column("duration_minutes", Score, "Length of the contact.", unit="minutes", minimum=0, known_at="row"),
    column("sales_rep_id", sa.Text, "Sales representative of the contact.", known_at="row"),
    _source(),
    *_maintained(),
    comment="One row per contact with a professional.",
)

outcome_events = sa.Table(
    "outcome_events",
    metadata,
    column(
        "outcome_event_id",
        sa.Text,
        "Key of the outcome.",
        primary_key=True,
        privacy="pseudonym",
        known_at="row",
    ),
    _journey(),
    _patient(),
    _hcp("row"),
    _brand("Brand that the outcome is about."),
    column(
        "outcome_date",
        sa.Date,
        "Day on which the outcome was observed.",
        nullable=False,
        index=True,
        privacy="quasi",
        known_at="row",
    ),
    column("outcome_type", sa.Text, "Kind of outcome.", vocabulary="outcome_type", known_at="row"),
    column("value", Amount, "Value of the outcome, in the unit of its type.", known_at="row"),
    _source(),
    *_maintained(),
    comment="One row per observed outcome.",
)

ml_predictions = sa.Table(
    "ml_predictions",
    metadata,
    column(
        "prediction_id", sa.Text, "Key of the score.", primary_key=True, privacy="pseudonym", known_at="row"
    ),
    column(
        "origin",
        sa.Text,
        "import: delivered with the raw data; live: answered by a service of this product.",
        vocabulary="prediction_origin",
        nullable=False,
        server_default="import",
        known_at="row",
    ),
    column("request_id", sa.Text, "Request that a live score answered.", index=True, known_at="row"),
    column("model_id", sa.Text, "Registered model, name/version.", index=True, known_at="row"),
    column("model_version", sa.Text, "Version of the model.", known_at="row"),
    column("model_type", sa.Text, "Kind of model, such as xgboost.", known_at="row"),
    column(
        "prediction_timestamp",
        Timestamp,
        "When the score was made.",
        nullable=False,
        index=True,
        privacy="quasi",
        known_at="row",
    ),
    _patient(nullable=True),
    _hcp("row"),
    column("prediction_type", sa.Text, "What is predicted.", vocabulary="prediction_type", known_at="row"),
    column("prediction_value", Score, "The score; a probability for classifiers.", known_at="row"),
    column("prediction_class", sa.Text, "Class that the score stands for.", known_at="row"),
    column("confidence_score", Score, "Confidence of the model.", minimum=0, maximum=1, known_at="row"),
    _json("probability_scores", "Class to probability.", known_at="row"),
    _json("feature_importance", "Feature to importance.", known_at="row"),
    _json("shap_values", "Feature to SHAP value.", privacy="quasi", known_at="row"),
    _json("top_features", "Most important features, in order.", empty="[]", known_at="row"),
    column("model_auc", Score, "ROC-AUC of the model as declared.", minimum=0, maximum=1, known_at="row"),
    column("model_precision", Score, "Precision as declared.", minimum=0, maximum=1, known_at="row"),
    column("model_recall", Score, "Recall as declared.", minimum=0, maximum=1, known_at="row"),
    column("model_pr_auc", Score, "PR-AUC as declared.", minimum=0, maximum=1, known_at="row"),
    column("calibration_score", Score, "Calibration error, lower is better.", minimum=0, known_at="row"),
    column("brier_score", Score, "Brier score as declared.", minimum=0, maximum=1, known_at="row"),
    _json("rank_metrics", "Ranking metrics, such as recall_at_5.", known_at="row"),
    _json("fairness_metrics", "Fairness metrics, such as demographic_parity.", known_at="row"),
    column("explanation_text", sa.Text, "Explanation in words.", privacy="quasi", known_at="row"),
    column("treatment_effect_estimate", Score, "Estimated effect of treatment.", known_at="row"),
    column("heterogeneous_effect", Score, "Estimated effect for the segment.", known_at="row"),
    column("segment_assignment", sa.Text, "Segment of the patient or professional.", known_at="row"),
    column("causal_confidence", Score, "Confidence of the effect.", minimum=0, maximum=1, known_at="row"),
    column("counterfactual_outcome", Score, "Predicted outcome under the other arm.", known_at="row"),
    column(
        "actual_outcome",
        Score,
        "Outcome when it became known; null until then.",
        privacy="quasi",
        known_at="extract",
    ),
    column("outcome_source", sa.Text, "Where the outcome came from.", known_at="extract"),
    column("outcome_recorded_at", Timestamp, "When the outcome was recorded.", known_at="extract"),
    column(
        "outcome_observation_window_days",
        sa.Integer,
        "Length of the outcome window.",
        unit="days",
        minimum=0,
        known_at="row",
    ),
    _json(
        "features_available_at_prediction",
        "Features as the model saw them.",
        privacy="quasi",
        known_at="row",
    ),
    *_maintained(),
    comment="One row per score: delivered (origin import) or answered by our services (origin live).",
)

triggers = sa.Table(
    "triggers",
    metadata,
    column(
        "trigger_id",
        sa.Text,
        "Key of the trigger.",
        primary_key=True,
        pattern=TRIGGER_KEY,
        privacy="pseudonym",
        known_at="row",
    ),
    _patient(),
    _hcp("row"),
    column(
        "trigger_timestamp",
        Timestamp,
        "When the trigger fired.",
        nullable=False,
        index=True,
        privacy="quasi",
        known_at="row",
    ),
    column("trigger_type", sa.Text, "Kind of trigger, such as treatment_switch.", known_at="row"),
    column("priority", sa.Text, "Priority.", vocabulary="priority", known_at="row"),
    column("confidence_score", Score, "Confidence of the trigger.", minimum=0, maximum=1, known_at="row"),
    column(
        "lead_time_days",
        sa.Integer,
        "Days between the trigger and what it announces.",
        unit="days",
        known_at="row",
    ),
    column("expiration_date", sa.Date, "Last day on which the trigger is of use.", known_at="row"),
    column(
        "delivery_channel",
        sa.Text,
        "Channel of delivery.",
        vocabulary="delivery_channel",
        known_at="row",
    ),
    column(
        "delivery_status",
        sa.Text,
        "What became of the delivery.",
        vocabulary="delivery_status",
        known_at="extract",
    ),
    column("delivery_timestamp", Timestamp, "When it was delivered.", known_at="extract"),
    column("view_timestamp", Timestamp, "When it was looked at.", known_at="extract"),
    column(
        "acceptance_status",
        sa.Text,
        "What the professional made of it.",
        vocabulary="acceptance_status",
        known_at="extract",
    ),
    column("acceptance_timestamp", Timestamp, "When it was accepted.", known_at="extract"),
    column("action_taken", sa.Text, "Action that followed.", known_at="extract"),
    column("action_timestamp", Timestamp, "When the action was taken.", known_at="extract"),
    _flag("false_positive_flag", "It turned out to be wrong.", default=False, known_at="extract"),
    column("trigger_reason", sa.Text, "Why the trigger fired.", privacy="quasi", known_at="row"),
    _json("causal_chain", "Chain of causes behind the trigger.", known_at="row"),
    _json("supporting_evidence", "Evidence behind the trigger.", privacy="quasi", known_at="row"),
    column("recommended_action", sa.Text, "Action that is recommended.", known_at="row"),
    _flag("outcome_tracked", "Its outcome is being tracked.", default=False, known_at="extract"),
    column("outcome_value", Score, "Tracked outcome.", minimum=0, maximum=1, known_at="extract"),
    column(
        "previous_trigger_id",
        sa.Text,
        "Trigger that this one changes.",
        pattern=TRIGGER_KEY,
        privacy="pseudonym",
        known_at="row",
    ),
    column("change_type", sa.Text, "Kind of change.", vocabulary="trigger_change_type", known_at="row"),
    column("change_reason", sa.Text, "Why the trigger was changed.", known_at="row"),
    column("change_timestamp", Timestamp, "When the trigger was changed.", known_at="extract"),
    _flag("change_failed", "The change did not help.", default=False, known_at="extract"),
    column("change_outcome_delta", Score, "Outcome after minus before the change.", known_at="extract"),
    *_maintained(),
    comment="One row per next-best-action alert.",
)


def _metric(name: str, meaning: str, **facts: Any) -> sa.Column[Any]:
    return column(name, Amount, meaning, known_at="row", **facts)


business_metrics = sa.Table(
    "business_metrics",
    metadata,
    column("metric_id", sa.Text, "Key of the figure, free form.", primary_key=True, known_at="row"),
    column("metric_date", sa.Date, "Day that the figure is for.", nullable=False, index=True, known_at="row"),
    column("metric_type", sa.Text, "Kind of figure, such as trx or market_share.", known_at="row"),
    column("metric_name", sa.Text, "Name of the figure.", known_at="row"),
    _brand("Brand of the figure; null over all brands."),
    column(
        "region", sa.Text, "Region of the figure; null over all regions.", vocabulary="region", known_at="row"
    ),
    _metric("value", "The figure."),
    _metric("target", "Target for the figure."),
    _metric("achievement_rate", "Value divided by target."),
    _metric("year_over_year_change", "Relative change against the year before."),
    _metric("month_over_month_change", "Relative change against the month before."),
    _metric("roi", "Return on investment."),
    _metric("statistical_significance", "Confidence or p-value, as delivered.", minimum=0, maximum=1),
    _metric("confidence_interval_lower", "Lower bound of the figure."),
    _metric(
        "confidence_interval_upper", "Upper bound of the figure.", not_before="confidence_interval_lower"
    ),
    column("sample_size", sa.Integer, "Observations behind the figure.", minimum=0, known_at="row"),
    *_maintained(),
    comment="One row per snapshot of a business figure.",
)

causal_paths = sa.Table(
    "causal_paths",
    metadata,
    column("path_id", sa.Text, "Key of the path.", primary_key=True, known_at="row"),
    column(
        "discovery_date",
        sa.Date,
        "Day on which the path was found.",
        nullable=False,
        index=True,
        known_at="row",
    ),
    column("causal_chain", JSONB, "Nodes, edges and weights.", nullable=False, known_at="row"),
    column("start_node", sa.Text, "First node.", known_at="row"),
    column("end_node", sa.Text, "Last node.", known_at="row"),
    column("intermediate_nodes", TextList, "Nodes between.", known_at="row"),
    column("path_length", sa.Integer, "Number of edges.", minimum=1, known_at="row"),
    column("causal_effect_size", Amount, "Effect along the path.", minimum=-1, maximum=1, known_at="row"),
    column("confidence_level", Score, "Confidence of the path.", minimum=0, maximum=1, known_at="row"),
    column("method_used", sa.Text, "Method of discovery, such as pc_algorithm.", known_at="row"),
    column("confounders_controlled", TextList, "Confounders that were adjusted for.", known_at="row"),
    column("mediators_identified", TextList, "Mediators that were found.", known_at="row"),
    _json("interaction_effects", "Interactions that were found.", known_at="row"),
    column("time_lag_days", sa.Integer, "Lag of the effect.", unit="days", minimum=0, known_at="row"),
    column(
        "validation_status",
        sa.Text,
        "Outcome of validation.",
        vocabulary="validation_status",
        known_at="extract",
    ),
    column("business_impact_estimate", Amount, "Estimated impact.", unit="USD", known_at="row"),
    *_maintained(),
    comment="One row per discovered causal path.",
)

agent_activities = sa.Table(
    "agent_activities",
    metadata,
    column("activity_id", sa.Text, "Key of the activity.", primary_key=True, known_at="row"),
    column("agent_name", sa.Text, "Agent.", known_at="row"),
    column("agent_tier", sa.Text, "Tier of the agent.", vocabulary="agent_tier", known_at="row"),
    column(
        "activity_timestamp", Timestamp, "When the agent ran.", nullable=False, index=True, known_at="row"
    ),
    column("activity_type", sa.Text, "Kind of activity, such as analysis.", known_at="row"),
    column("workstream", sa.Text, "Workstream.", vocabulary="workstream", known_at="row"),
    column(
        "processing_duration_ms",
        sa.Integer,
        "Duration.",
        unit="milliseconds",
        minimum=0,
        known_at="row",
    ),
    _json("input_data", "Input of the agent.", known_at="row"),
    column("records_processed", sa.Integer, "Records that were processed.", minimum=0, known_at="row"),
    column("time_window", sa.Text, "Window that was looked at, such as 30d.", known_at="row"),
    _json("analysis_results", "Results.", known_at="row"),
    column("causal_paths_analyzed", sa.Integer, "Paths that were analysed.", minimum=0, known_at="row"),
    column("confidence_level", Score, "Confidence of the results.", minimum=0, maximum=1, known_at="row"),
    _json("recommendations", "Recommendations.", empty="[]", known_at="row"),
    _json("actions_initiated", "Actions that were started.", empty="[]", known_at="row"),
    column("impact_estimate", Amount, "Estimated impact.", unit="USD", known_at="row"),
    column("roi_estimate", Amount, "Estimated return on investment.", known_at="row"),
    column("status", sa.Text, "How the activity ended.", vocabulary="activity_status", known_at="row"),
    column("error_message", sa.Text, "Error, if it failed.", known_at="row"),
    _json("resource_usage", "Resources that were used.", known_at="row"),
    *_maintained(),
    comment="One row per run of an agent.",
)

observation_periods = sa.Table(
    "observation_periods",
    metadata,
    column(
        "observation_period_id",
        sa.Text,
        "Key of the period.",
        primary_key=True,
        privacy="pseudonym",
    ),
    _patient(known_at="static"),
    column(
        "start_date", sa.Date, "First day of observation.", nullable=False, privacy="quasi", known_at="row"
    ),
    column(
        "end_date",
        sa.Date,
        "Last day of observation; null while it goes on.",
        not_before="start_date",
        privacy="quasi",
        known_at="extract",
    ),
    column(
        "coverage",
        sa.Text,
        "What is observed: medical claims, pharmacy claims or both.",
        vocabulary="observation_coverage",
        known_at="row",
    ),
    *_maintained(),
    sa.CheckConstraint("end_date IS NULL OR end_date >= start_date", name="end_after_start"),
    comment="Optional: one row per span in which a patient is observed.",
)
