"""Cohorts: each definition file is an asset of its own; each cohort says who is in and why not."""

import dagster as dg
import pandas as pd

from assets.partitions import COHORTS
from assets.stage import Produced, stage_asset
from e2i_dagster.config.cohort import CohortDefinition
from e2i_dagster.config.environment import actor
from e2i_dagster.config.policy import current_policy
from resources.warehouse import Warehouse

GROUP = "cohorts"


@stage_asset(
    group_name=GROUP,
    kinds={"yaml"},
    partitions_def=COHORTS,
    definition=lambda key: current_policy().cohorts[str(key)].definition_hash,
    description="The definition file of a cohort; its data version is the digest of its content.",
)
def cohort_definition(context: dg.AssetExecutionContext) -> Produced:
    definition = current_policy().cohorts[context.partition_key]
    return Produced(definition, metadata={"definition_md": "\n\n".join(definition.sentences())})


@stage_asset(
    group_name=GROUP,
    kinds={"python"},
    partitions_def=COHORTS,
    definition=lambda key: current_policy().sources.data_end.isoformat(),
    description="Eligible patients with index date and follow-up, and those whose follow-up is not over yet.",
)
def cohort(
    context: dg.AssetExecutionContext,
    cohort_definition: CohortDefinition,
    patient_journeys: pd.DataFrame,
    patient_clinical: pd.DataFrame,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.cohorts import build_cohort, cohort_frame, patient_frame, record_cohort

    patients = patient_frame(patient_journeys, patient_clinical)
    built = build_cohort(cohort_definition, patients, data_end=current_policy().sources.data_end)
    with warehouse.engine().begin() as connection:
        record_cohort(connection, built, execution_id=_execution(context), executed_by=actor()[0])
    return Produced(cohort_frame(built), built)


def _execution(context: dg.AssetExecutionContext) -> str:
    return f"{context.run.run_id}:{context.partition_key}"


@dg.asset_check(
    asset=cohort,
    blocking=True,
    description="A cohort without eligible patients cannot be used (CC_003).",
)
def cohort_not_empty(cohort: pd.DataFrame) -> dg.AssetCheckResult:
    eligible = int((~cohort["pending"]).sum())
    found = f"{eligible:,}" if eligible >= 11 or eligible == 0 else "fewer than 11"
    return dg.AssetCheckResult(passed=eligible > 0, description=f"{found} eligible patients")


@dg.asset_check(
    asset=cohort_definition,
    description="Runs the definition's own examples and looks for contradictory rules.",
)
def definition_lint(cohort_definition: CohortDefinition) -> dg.AssetCheckResult:
    from assets.stage import shown
    from e2i_dagster.cohorts import lint

    report = lint(cohort_definition)
    return dg.AssetCheckResult(passed=report.passed, metadata=shown(report.to_metadata()))
