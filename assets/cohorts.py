"""Cohorts: each definition file is an asset of its own; each cohort says who is in and why not."""

import dagster as dg

from assets.execution import Produced, current_versions, input_versions
from assets.metadata import dagster_metadata
from assets.partitions import COHORTS
from assets.stage import AlsoReads, stage_asset
from assets.values import DataFrame
from e2i_dagster.config.cohort import CohortDefinition
from e2i_dagster.config.cohort_fields import EVENT_COLUMNS, OBSERVATION
from e2i_dagster.config.policy import current_policy
from e2i_dagster.policy_files.environment import actor
from resources.lake import LakeIOManager
from resources.warehouse import Warehouse

GROUP = "cohorts"


@stage_asset(
    produces="e2i_dagster.config.cohort:CohortDefinition",
    group_name=GROUP,
    kinds={"yaml"},
    partitions_def=COHORTS,
    description="The definition file of a cohort; its data version is the digest of its content.",
)
def cohort_definition(context: dg.AssetExecutionContext, warehouse: Warehouse) -> Produced:
    from e2i_dagster.cohorts import definition_page, require_new_version

    definition = current_policy().cohorts[context.partition_key]
    with warehouse.engine().connect() as connection:
        require_new_version(connection, definition)
    return Produced(definition, metadata=definition_page(definition))


@stage_asset(
    group_name=GROUP,
    kinds={"python"},
    partitions_def=COHORTS,
    also_reads=AlsoReads(
        (*EVENT_COLUMNS, OBSERVATION), lambda key: current_policy().cohorts[str(key)].tables_read
    ),
    description="Eligible patients with index date and follow-up, and those whose follow-up is not over yet.",
)
def cohort(
    context: dg.AssetExecutionContext,
    cohort_definition: CohortDefinition,
    patient_journeys: DataFrame,
    patient_clinical: DataFrame,
    lake: dg.ResourceParam[LakeIOManager],
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.cohorts import build_cohort, cohort_frame, patient_frame, record_cohort
    from e2i_dagster.cohorts.characteristics import characteristics, characteristics_table
    from e2i_dagster.cohorts.inputs import read_observed

    patients = patient_frame(patient_journeys, patient_clinical)
    tables = cohort_definition.tables_read
    months = current_policy().sources.months
    observed = read_observed(warehouse.engine(), lake.lake(), tables, patient_journeys, months=months)
    covered = warehouse.coverage(*tables)
    built = build_cohort(
        cohort_definition,
        patients,
        observed.events,
        observation_periods=observed.periods,
        data_start=covered.start,
        data_end=covered.end,
        unobserved=covered.unobserved,
    )
    with warehouse.engine().begin() as connection:
        record_cohort(
            connection,
            built,
            execution_id=_execution(context),
            executed_by=actor()[0],
            read=[
                *(
                    version
                    for version in input_versions(context, warehouse)
                    if version[0] != "cohort_definition"
                ),
                *current_versions(tables, warehouse),
            ],
            code_version=context.assets_def.get_asset_spec().code_version,
        )
    lost = characteristics_table(characteristics(built, patients))
    return Produced(cohort_frame(built), built, metadata={"covered": covered.words(), "lost_by_step": lost})


def _execution(context: dg.AssetExecutionContext) -> str:
    return f"{context.run.run_id}:{context.partition_key}"


@dg.asset_check(
    asset=cohort,
    blocking=True,
    description="A cohort without eligible patients cannot be used (CC_003).",
)
def cohort_not_empty(
    context: dg.AssetCheckExecutionContext, cohort: DataFrame, warehouse: Warehouse
) -> dg.AssetCheckResult:
    from e2i_dagster.cohorts import shown_count, why_empty

    eligible = int((~cohort["pending"]).sum())
    description = f"{shown_count(eligible)} eligible patients"
    if eligible == 0:
        with warehouse.engine().connect() as connection:
            why = why_empty(connection, context.op_execution_context.partition_key)
        description = f"CC_003: {why}. Look at the attrition, then `e2i cohort preview` a corrected file."
    return dg.AssetCheckResult(passed=eligible > 0, description=description)


@dg.asset_check(
    asset=cohort_definition,
    description="Runs the definition's own examples and looks for contradictory rules.",
)
def definition_lint(cohort_definition: CohortDefinition) -> dg.AssetCheckResult:
    from e2i_dagster.cohorts import lint

    report = lint(cohort_definition)
    return dg.AssetCheckResult(passed=report.passed, metadata=dagster_metadata(report.to_metadata()))
