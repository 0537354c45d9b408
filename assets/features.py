"""Features: the scope's question and labels, dated feature values, the Feast store, point-in-time frames."""

from functools import partial

import dagster as dg

from assets.execution import Produced
from assets.metadata import dagster_metadata
from assets.partitions import ALL_MONTHS, COHORT_OF_SCOPE, SCOPES
from assets.stage import AlsoReads, stage_asset
from assets.values import DataFrame, FeatureFiles, MaterializationReport
from e2i_dagster.config.current_features import more_tables
from e2i_dagster.config.feast_materialization import FeastMaterializationPolicy
from e2i_dagster.config.feature_selection import FeatureSelectionPolicy
from e2i_dagster.config.feature_views import FEATURE_TABLES, columns_read
from e2i_dagster.config.policy import current_policy
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.display import Words
from e2i_dagster.policy_files.environment import config_folder
from e2i_dagster.tables.own_types import OWN_TABLE
from resources.feature_store import FeatureStore
from resources.lake import LakeIOManager
from resources.warehouse import Warehouse

GROUP = "features"
scope_asset = partial(stage_asset, group_name=GROUP, partitions_def=SCOPES)


def all_months(asset: str) -> dg.AssetIn:
    """All months of a monthly raw table as one frame."""
    return dg.AssetIn(asset, partition_mapping=ALL_MONTHS)


@scope_asset(
    pure=True,
    produces="e2i_dagster.config.scope:ScopeSpec",
    kinds={"yaml"},
    description="The question of a scope: outcome, criteria, constraints; its data version is its content.",
)
def scope_spec(context: dg.AssetExecutionContext) -> Produced:
    scope = current_policy().scope(context.partition_key)
    return Produced(scope, metadata={"question": Words(scope.sentences())})


@scope_asset(
    pure=True,
    kinds={"pandas"},
    ins={
        "cohort": dg.AssetIn("cohort", partition_mapping=COHORT_OF_SCOPE),
        "treatment_events": all_months("treatment_events"),
        "engagement_events": all_months("engagement_events"),
        "outcome_events": all_months("outcome_events"),
    },
    description="Labels from dated events after the index date; who is to be scored; refusal of too small samples.",
)
def outcome_labels(
    scope_spec: ScopeSpec,
    cohort: DataFrame,
    patient_journeys: DataFrame,
    treatment_events: DataFrame,
    engagement_events: DataFrame,
    outcome_events: DataFrame,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.cohorts import label_outcome

    tables = {
        "patient_journeys": patient_journeys,
        "treatment_events": treatment_events,
        "engagement_events": engagement_events,
        "outcome_events": outcome_events,
    }
    covered = warehouse.coverage(*scope_spec.outcome.tables)
    labels = label_outcome(
        scope_spec,
        cohort,
        tables,
        data_start=covered.start,
        data_end=covered.end or current_policy().sources.data_end,
        unobserved=covered.unobserved,
        lookback_days=current_policy().cohorts[scope_spec.cohort].temporal_requirements.lookback_days,
    )
    labels.check_sample(scope_spec)
    return Produced(labels.frame, labels, metadata={"outcome_covered": covered.words()})


@scope_asset(
    produces="e2i_dagster.features.snapshots:FeatureFiles",
    kinds={"duckdb", "parquet"},
    ins={
        "treatment_events": all_months("treatment_events"),
        "engagement_events": all_months("engagement_events"),
        "triggers": all_months("triggers"),
        "business_metrics": all_months("business_metrics"),
    },
    reads=columns_read(current_policy().features.values()),
    also_reads=AlsoReads((OWN_TABLE,), lambda scope: more_tables()),
    fault=lambda files: files.damage(),
    description="Feature rows stamped at the end of the day they describe, from rows dated before each index date.",
)
def feature_values(
    context: dg.AssetExecutionContext,
    scope_spec: ScopeSpec,
    outcome_labels: DataFrame,
    hcp_profiles: DataFrame,
    patient_journeys: DataFrame,
    treatment_events: DataFrame,
    engagement_events: DataFrame,
    triggers: DataFrame,
    business_metrics: DataFrame,
    lake: dg.ResourceParam[LakeIOManager],
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.cohorts.inputs import read_current
    from e2i_dagster.features.build import build_feature_files

    given, sources = locals(), current_policy().sources
    files = build_feature_files(
        outcome_labels,
        {table: given[table] for table in FEATURE_TABLES},
        more=read_current(warehouse.engine(), lake.lake(), more_tables(), months=sources.months),
        brand=scope_spec.brand,
        covered={table: warehouse.coverage(table) for table in (*FEATURE_TABLES, *more_tables())},
        data_end=sources.data_end,
        source_lag_days=scope_spec.source_lag_days,
        policy=_feast().snapshots,
        folder=lake.lake().folder("features", context.partition_key),
    )
    return Produced(files, files)


@scope_asset(
    produces="e2i_dagster.features.snapshots:FeatureFiles",
    kinds={"feast"},
    description="The Feast project of the scope, its views pinned to exactly these feature files.",
)
def feature_views(
    context: dg.AssetExecutionContext,
    feature_values: FeatureFiles,
    feature_store: FeatureStore,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.features.records import record_views

    with feature_store.open(context.partition_key) as store, warehouse.engine().begin() as connection:
        applied = store.apply(feature_values)
        record_views(connection, context.partition_key, applied)
    return Produced(applied, applied)


@scope_asset(
    produces="e2i_dagster.features.store:MaterializationReport",
    kinds={"feast", "sqlite"},
    description="The newest feature values of each entity in the online store.",
)
def online_features(
    context: dg.AssetExecutionContext,
    feature_views: FeatureFiles,
    feature_store: FeatureStore,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.features.records import record_materialization

    with feature_store.open(context.partition_key) as store, warehouse.engine().begin() as connection:
        report = store.materialize(feature_views)
        record_materialization(connection, report, run_id=context.run.run_id)
    return Produced(report, report)


@scope_asset(
    pure=True,
    kinds={"duckdb", "parquet"},
    description="Labelled patients with the features known before each index date; one row for each index date.",
)
def training_frame(
    scope_spec: ScopeSpec,
    outcome_labels: DataFrame,
    patient_journeys: DataFrame,
    feature_views: FeatureFiles,
) -> Produced:
    from e2i_dagster.features.frame import training_frame as engine_frame
    from e2i_dagster.features.snapshots import labelled_spine

    rows = labelled_spine(outcome_labels, patient_journeys, brand=scope_spec.brand)
    return Produced(engine_frame(rows, feature_views))


@scope_asset(
    pure=True,
    kinds={"duckdb", "parquet"},
    description="Patients whose outcome window is not closed: the same features, to be scored.",
)
def scoring_frame(
    scope_spec: ScopeSpec,
    outcome_labels: DataFrame,
    patient_journeys: DataFrame,
    feature_views: FeatureFiles,
) -> Produced:
    from e2i_dagster.features.frame import training_frame as engine_frame
    from e2i_dagster.features.snapshots import scoring_spine

    rows = scoring_spine(outcome_labels, patient_journeys, brand=scope_spec.brand)
    return Produced(engine_frame(rows, feature_views))


@scope_asset(
    produces="e2i_dagster.features.selection:FeatureSelection",
    kinds={"pandas"},
    description="Which features are kept, judged on training rows only; every drop has a reason.",
)
def feature_selection(
    context: dg.AssetExecutionContext,
    scope_spec: ScopeSpec,
    training_frame: DataFrame,
    splits: DataFrame,
    feature_views: FeatureFiles,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.features.records import record_features
    from e2i_dagster.features.scope_selection import select_for_scope

    chosen = select_for_scope(
        scope_spec, training_frame, splits, policy=FeatureSelectionPolicy.load(config_folder())
    )
    with warehouse.engine().begin() as connection:
        record_features(
            connection,
            context.partition_key,
            chosen.statistics,
            chosen.selection,
            data_digest=feature_views.digest,
        )
    return Produced(chosen.selection, chosen.selection)


@dg.asset_check(
    asset=online_features,
    description="Online values equal a point-in-time join at the same time, row by row.",
)
def online_equals_offline(
    context: dg.AssetCheckExecutionContext,
    online_features: MaterializationReport,
    feature_store: FeatureStore,
) -> dg.AssetCheckResult:
    from e2i_dagster.features.parity import sample_of

    with feature_store.open(context.op_execution_context.partition_key) as store:
        parity = store.online_equals_offline(sample_of(online_features.files))
    return dg.AssetCheckResult(passed=parity.passed, metadata=dagster_metadata(parity.to_metadata()))


@dg.asset_check(
    asset=training_frame,
    additional_ins={
        name: dg.AssetIn(name)
        for name in ("scope_spec", "outcome_labels", "patient_journeys", "feature_views")
    },
    description="A sample of the frame equals Feast's own point-in-time join, cell by cell.",
)
def point_in_time(
    context: dg.AssetCheckExecutionContext,
    training_frame: DataFrame,
    scope_spec: ScopeSpec,
    outcome_labels: DataFrame,
    patient_journeys: DataFrame,
    feature_views: FeatureFiles,
    feature_store: FeatureStore,
) -> dg.AssetCheckResult:
    from e2i_dagster.features.parity import sample_rows
    from e2i_dagster.features.snapshots import labelled_spine

    rows = sample_rows(labelled_spine(outcome_labels, patient_journeys, brand=scope_spec.brand))
    with feature_store.open(context.op_execution_context.partition_key) as store:
        parity = store.equals_store_join(sample_rows(training_frame), rows, feature_views)
    return dg.AssetCheckResult(passed=parity.passed, metadata=dagster_metadata(parity.to_metadata()))


def _feast() -> FeastMaterializationPolicy:
    return FeastMaterializationPolicy.load(config_folder())
