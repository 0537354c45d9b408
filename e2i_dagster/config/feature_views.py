"""The feature views, declared once: keys, features, meaning, and the columns each feature reads.

The Feast objects, the computation's access to the raw tables and the reference page are derived
from this module. How a feature is computed is in :mod:`e2i_dagster.features.compute`; it can read
nothing but the columns declared here.

Only columns that are static or dated by their own row can be declared. A column that is known at
the time of the extract (a current status, a later acceptance) is refused by name: its value on the
day of the prediction cannot be reconstructed.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from e2i_dagster.errors import ConfigError

Dtype = Literal["int", "float", "string"]

#: Column of a feature frame that says when a row's values were known.
TIMESTAMP = "event_timestamp"
#: Column of a raw table that says when a row arrived.
ARRIVAL = "source_timestamp"

#: Entity keys, all real columns with text values: what each identifies.
ENTITIES: dict[str, str] = {
    "patient_id": "Patient.",
    "hcp_id": "Healthcare professional.",
    "brand": "Brand.",
    "region": "Region of residence of the patients.",
}


@dataclass(frozen=True)
class Feature:
    """One feature.

    ``sources`` are the raw columns (``table.column``) that its value is made of. ``window_days``: how many
    days of monthly tables, up to and including the day of the value, it describes; None: what is on record.
    """

    name: str
    dtype: Dtype
    meaning: str
    sources: tuple[str, ...]
    unit: str | None = None
    window_days: int | None = None


@dataclass(frozen=True)
class FeatureViewDefinition:
    """One view: its entity keys, its features, and the columns that join and date its rows."""

    name: str
    keys: tuple[str, ...]
    meaning: str
    features: tuple[Feature, ...]
    links: tuple[str, ...]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features in declared order."""
        return tuple(feature.name for feature in self.features)


_EVENT = ("treatment_events.event_type",)
_QUALITY = ("engagement_events.quality_score",)

PATIENT_FEATURES = FeatureViewDefinition(
    name="patient_features",
    keys=("patient_id",),
    meaning="Who the patient is and what care is on record.",
    features=(
        Feature(
            "age_at_diagnosis", "int", "Age at diagnosis.", ("patient_journeys.age_at_diagnosis",), "years"
        ),
        Feature("gender", "string", "Gender: F, M or U (unknown).", ("patient_journeys.gender",)),
        Feature("insurance_type", "string", "Payer.", ("patient_journeys.insurance_type",)),
        Feature(
            "geographic_region", "string", "Region of residence.", ("patient_journeys.geographic_region",)
        ),
        Feature(
            "disease_severity",
            "float",
            "Severity of the disease at diagnosis.",
            ("patient_journeys.disease_severity",),
            "points",
        ),
        Feature(
            "academic_hcp",
            "int",
            "1 if the treating professional's primary affiliation is academic.",
            ("patient_journeys.academic_hcp",),
        ),
        Feature(
            "days_since_diagnosis",
            "int",
            "Days since the first diagnosis event on record; null while there is none.",
            _EVENT,
            "days",
        ),
        Feature("treatment_count", "int", "Clinical events of any kind on record.", _EVENT, "events"),
        Feature("prior_prescriptions", "int", "Prescriptions of any brand on record.", _EVENT, "events"),
        Feature("prior_consultations", "int", "Consultations on record.", _EVENT, "events"),
        Feature("prior_lab_tests", "int", "Laboratory tests on record.", _EVENT, "events"),
        Feature(
            "days_since_last_event",
            "int",
            "Days since the last clinical event; null while there is none.",
            _EVENT,
            "days",
        ),
        Feature(
            "risk_factors",
            "int",
            "How many of these four are on record in the last 365 days: a hospitalization, a procedure, "
            "a switch of therapy, three or more laboratory tests.",
            (*_EVENT, "treatment_events.event_subtype"),
            "factors",
            window_days=365,
        ),
    ),
    links=(
        "patient_journeys.patient_id",
        "patient_journeys.patient_journey_id",
        "patient_journeys.journey_start_date",
        "patient_journeys.source_timestamp",
        "treatment_events.patient_id",
        "treatment_events.event_date",
        "treatment_events.source_timestamp",
    ),
)

ENGAGEMENT_FEATURES = FeatureViewDefinition(
    name="engagement_features",
    keys=("patient_id",),
    meaning="Contacts with the professional about the patient's journeys.",
    features=(
        Feature(
            "recent_touches",
            "int",
            "Contacts in the last 90 days.",
            ("engagement_events.engagement_date",),
            "contacts",
            window_days=90,
        ),
        Feature(
            "best_contact_quality",
            "float",
            "Best quality score of a contact in the last 180 days; null without a scored contact.",
            _QUALITY,
            "points",
            window_days=180,
        ),
        Feature(
            "mean_contact_quality",
            "float",
            "Mean quality score of the contacts in the last 180 days; null without a scored contact.",
            _QUALITY,
            "points",
            window_days=180,
        ),
        Feature(
            "contact_minutes",
            "float",
            "Minutes of contact in the last 180 days; 0 without a contact, null if no contact has a duration.",
            ("engagement_events.duration_minutes",),
            "minutes",
            window_days=180,
        ),
        Feature(
            "days_since_last_contact",
            "int",
            "Days since the last contact; null while there is none.",
            ("engagement_events.engagement_date",),
            "days",
        ),
        Feature(
            "channel_preferences",
            "string",
            "Most used channel in the last 365 days (equal counts: the one used last, then by name); "
            "null without a contact.",
            ("engagement_events.channel",),
            window_days=365,
        ),
    ),
    links=(
        "patient_journeys.patient_id",
        "patient_journeys.patient_journey_id",
        "patient_journeys.source_timestamp",
        "engagement_events.patient_journey_id",
        "engagement_events.engagement_date",
    ),
)

TRIGGER_FEATURES = FeatureViewDefinition(
    name="trigger_features",
    keys=("patient_id",),
    meaning="Next-best-action alerts raised for the patient.",
    features=(
        Feature(
            "triggers_180d",
            "int",
            "Alerts in the last 180 days.",
            ("triggers.trigger_timestamp",),
            "alerts",
            window_days=180,
        ),
        Feature(
            "urgent_triggers_180d",
            "int",
            "Alerts of priority critical or high in the last 180 days.",
            ("triggers.priority",),
            "alerts",
            window_days=180,
        ),
        Feature(
            "trigger_confidence",
            "float",
            "Mean confidence of the alerts of the last 180 days; null without one.",
            ("triggers.confidence_score",),
            window_days=180,
        ),
        Feature(
            "days_since_last_trigger",
            "int",
            "Days since the last alert; null while there is none.",
            ("triggers.trigger_timestamp",),
            "days",
        ),
    ),
    links=(
        "patient_journeys.patient_id",
        "patient_journeys.source_timestamp",
        "triggers.patient_id",
        "triggers.trigger_timestamp",
    ),
)

HCP_FEATURES = FeatureViewDefinition(
    name="hcp_features",
    keys=("hcp_id",),
    meaning="The professional's profile, patients and contacts.",
    features=(
        Feature("specialty", "string", "Medical specialty.", ("hcp_profiles.specialty",)),
        Feature("practice_type", "string", "Kind of practice.", ("hcp_profiles.practice_type",)),
        Feature(
            "patient_volume",
            "int",
            "Journeys begun with the professional in the last 365 days.",
            ("patient_journeys.journey_start_date",),
            "journeys",
        ),
        Feature(
            "total_patients",
            "int",
            "Patients with a journey begun with the professional.",
            ("patient_journeys.patient_id",),
            "patients",
        ),
        Feature(
            "engagement_rate",
            "float",
            "Share of the professional's begun journeys with a contact in the last 180 days; "
            "null while no journey has begun.",
            ("engagement_events.engagement_date", "engagement_events.patient_journey_id"),
            window_days=180,
        ),
        Feature(
            "hcp_contacts_90d",
            "int",
            "Contacts with the professional in the last 90 days.",
            ("engagement_events.engagement_date",),
            "contacts",
            window_days=90,
        ),
        Feature(
            "hcp_prescriptions_180d",
            "int",
            "Prescriptions of any brand by the professional in the last 180 days.",
            _EVENT,
            "events",
            window_days=180,
        ),
    ),
    links=(
        "hcp_profiles.hcp_id",
        "patient_journeys.hcp_id",
        "patient_journeys.patient_journey_id",
        "patient_journeys.journey_start_date",
        "patient_journeys.source_timestamp",
        "engagement_events.hcp_id",
        "engagement_events.engagement_date",
        "treatment_events.hcp_id",
        "treatment_events.event_date",
        "treatment_events.source_timestamp",
    ),
)

_PRESCRIPTION = (*_EVENT, "treatment_events.brand", "patient_journeys.geographic_region")

MARKET_FEATURES = FeatureViewDefinition(
    name="market_features",
    keys=("brand", "region"),
    meaning="The brand in the region.",
    features=(
        Feature(
            "brand_prescriptions_90d",
            "int",
            "Prescriptions of the brand in the region in the last 90 days.",
            _PRESCRIPTION,
            "events",
            window_days=90,
        ),
        Feature(
            "brand_patients_90d",
            "int",
            "Patients of the region with a prescription of the brand in the last 90 days.",
            (*_PRESCRIPTION, "treatment_events.patient_id"),
            "patients",
            window_days=90,
        ),
        Feature(
            "brand_share_90d",
            "float",
            "Share of the brand in the region's prescriptions of the last 90 days; null if there are none.",
            _PRESCRIPTION,
            window_days=90,
        ),
        Feature(
            "brand_contacts_90d",
            "int",
            "Contacts about the brand in the region's journeys in the last 90 days.",
            (
                "engagement_events.brand",
                "engagement_events.engagement_date",
                "patient_journeys.geographic_region",
            ),
            "contacts",
            window_days=90,
        ),
        Feature(
            "reported_market_share",
            "float",
            "Last reported figure market_share of the brand in the region; null before the first.",
            ("business_metrics.value", "business_metrics.metric_type"),
        ),
    ),
    links=(
        "patient_journeys.patient_journey_id",
        "patient_journeys.source_timestamp",
        "treatment_events.patient_journey_id",
        "treatment_events.event_date",
        "treatment_events.source_timestamp",
        "engagement_events.patient_journey_id",
        "business_metrics.metric_id",
        "business_metrics.brand",
        "business_metrics.region",
        "business_metrics.metric_date",
    ),
)

VIEWS: tuple[FeatureViewDefinition, ...] = (
    PATIENT_FEATURES,
    ENGAGEMENT_FEATURES,
    TRIGGER_FEATURES,
    HCP_FEATURES,
    MARKET_FEATURES,
)


def view_named(name: str) -> FeatureViewDefinition:
    """The view called ``name``.

    Raises:
        ConfigError: there is no such view; the message lists those there are.
    """
    for view in VIEWS:
        if view.name == name:
            return view
    raise ConfigError(
        f"feature view: found {name!r}.",
        field="feature view",
        value=name,
        remedy=f"Use one of: {', '.join(view.name for view in VIEWS)}.",
    )


def feature_names(views: Iterable[FeatureViewDefinition] = VIEWS) -> tuple[str, ...]:
    """Names of all features in the order of the views: the columns that a model may take."""
    return tuple(name for view in views for name in view.feature_names)


def dtypes(views: Iterable[FeatureViewDefinition] = VIEWS) -> dict[str, str]:
    """pandas dtype of every feature: ``Int64``, ``float64`` or ``string[pyarrow]``."""
    names = {"int": "Int64", "float": "float64", "string": "string[pyarrow]"}
    return {feature.name: names[feature.dtype] for view in views for feature in view.features}


def refuse_extract_columns(columns: Iterable[str], user: str) -> None:
    """Accept raw columns whose value on a past day is known, refuse all others by name.

    Args:
        columns: raw columns as ``table.column``.
        user: what reads them, for the message.

    Raises:
        ConfigError: a column does not exist or is known only at the time of the extract.
    """
    from e2i_dagster.tables import facts, raw_table

    refused: list[str] = []
    for name in dict.fromkeys(columns):
        table_name, _, column_name = name.partition(".")
        table = raw_table(table_name)
        if column_name not in table.columns:
            raise ConfigError(
                f"{user}: {name} is no raw column.",
                field=user,
                value=name,
                remedy=f"{table_name} has {', '.join(table.columns.keys())}.",
            )
        if facts(table.columns[column_name]).known_at == "extract":
            refused.append(name)
    if refused:
        raise ConfigError(
            f"{user}: {', '.join(refused)} is known only at the time of the extract, so its value on the "
            f"day of a prediction cannot be reconstructed and it can be no feature.",
            remedy="Use the dated events that it is derived from, or a static column.",
        )


def source_columns(view: FeatureViewDefinition) -> dict[str, tuple[str, ...]]:
    """Raw tables and their columns that ``view`` may read, checked by :func:`refuse_extract_columns`."""
    declared: dict[str, dict[str, None]] = {}
    for feature in view.features:
        refuse_extract_columns(feature.sources, f"feature {view.name}.{feature.name}")
    # The arrival of a row tells nothing of the patient: it only says from when on the row may be read.
    links = [name for name in view.links if not name.endswith(f".{ARRIVAL}")]
    refuse_extract_columns(links, f"feature view {view.name}")
    for name in (*view.links, *(source for feature in view.features for source in feature.sources)):
        table, _, column = name.partition(".")
        declared.setdefault(table, {})[column] = None
    return {table: tuple(columns) for table, columns in declared.items()}


def columns_read() -> dict[str, tuple[str, ...]]:
    """Columns of each raw table that features are computed from; a fault in another one does not concern them."""
    # What rows are joined and placed by, beside what the views declare.
    read = {"patient_journeys": {"patient_journey_id", "geographic_region"}, "hcp_profiles": {"hcp_id"}}
    for view in VIEWS:
        for table, columns in source_columns(view).items():
            read.setdefault(table, set()).update(columns)
    return {table: tuple(sorted(columns)) for table, columns in read.items()}
