"""Experiments: design, assignments, enrolment, interim looks, results; each page is blinded as the design says."""

import dagster as dg

from assets.execution import Produced
from assets.partitions import EXPERIMENT_OF_SCOPE, EXPERIMENTS
from assets.stage import stage_asset
from assets.values import DataFrame
from e2i_dagster.config.experiment import ExperimentSpec, LifecyclePolicy
from e2i_dagster.config.policy import current_policy
from e2i_dagster.policy_files.environment import actor, config_folder
from resources.warehouse import Warehouse

GROUP = "experiments"


@stage_asset(
    produces="e2i_dagster.config.experiment:ExperimentSpec",
    always=True,
    gated=False,
    group_name=GROUP,
    kinds={"yaml"},
    partitions_def=EXPERIMENTS,
    description="The design in force: registered as a draft, locked by the first assignment, amended on record.",
)
def experiment_design(context: dg.AssetExecutionContext, warehouse: Warehouse) -> Produced:
    from e2i_dagster.experiments.conduct.run import register_design

    with warehouse.engine().begin() as connection:
        spec, metadata = register_design(
            connection, current_policy().experiment(context.partition_key), actor=actor()[0]
        )
    return Produced(spec, spec, metadata)


@stage_asset(
    produces="e2i_dagster.experiments.designs.randomization:BalanceReport",
    always=True,
    gated=False,
    group_name=GROUP,
    kinds={"postgres"},
    partitions_def=EXPERIMENTS,
    description="Assigns eligible units that consented (running experiments), and says how the arms balance.",
)
def assignments(experiment_design: ExperimentSpec, warehouse: Warehouse) -> Produced:
    from e2i_dagster.experiments.conduct.run import assign_waiting

    with warehouse.engine().begin() as connection:
        report = assign_waiting(connection, experiment_design.name, actor=actor()[0])
    return Produced(report, report)


@stage_asset(
    produces="e2i_dagster.experiments.conduct.enrolment:EnrolmentReport",
    always=True,
    gated=False,
    group_name=GROUP,
    kinds={"postgres"},
    partitions_def=EXPERIMENTS,
    deps=["assignments"],
    description="From screening to completion, and enrolment against the plan.",
)
def enrolment(experiment_design: ExperimentSpec, warehouse: Warehouse) -> Produced:
    from e2i_dagster.experiments.conduct.run import enrolment_page

    with warehouse.engine().begin() as connection:
        report = enrolment_page(connection, experiment_design.name, LifecyclePolicy.load(config_folder()))
    return Produced(report, report)


@stage_asset(
    produces="e2i_dagster.experiments.conduct.interim_looks:InterimPage",
    always=True,
    gated=False,
    group_name=GROUP,
    kinds={"scipy"},
    partitions_def=EXPERIMENTS,
    deps=["enrolment"],
    description="Makes the look that is due, once, on frozen rows; shows continue or stop for review while blinded.",
)
def interim(experiment_design: ExperimentSpec, warehouse: Warehouse) -> Produced:
    from e2i_dagster.experiments.conduct.run import look_page

    with warehouse.engine().begin() as connection:
        page = look_page(
            connection, experiment_design.name, LifecyclePolicy.load(config_folder()), actor=actor()[0]
        )
    return Produced(page, page)


@stage_asset(
    produces="e2i_dagster.experiments.conduct.final_analysis:ResultsPage",
    always=True,
    gated=False,
    group_name=GROUP,
    kinds={"scipy"},
    partitions_def=EXPERIMENTS,
    deps=["interim"],
    description="Every metric over every analysed set, once data collection is over; before that, that it is not.",
)
def results(experiment_design: ExperimentSpec, warehouse: Warehouse) -> Produced:
    from e2i_dagster.experiments.conduct.run import results_page

    with warehouse.engine().begin() as connection:
        page = results_page(
            connection, experiment_design.name, LifecyclePolicy.load(config_folder()), actor=actor()[0]
        )
    return Produced(page, page)


@dg.asset_check(
    asset=assignments,
    description="Counts per arm against the ratios of the design, by a test that holds at every look at once.",
)
def sample_ratio(context: dg.AssetCheckExecutionContext, warehouse: Warehouse) -> dg.AssetCheckResult:
    from e2i_dagster.experiments.conduct.run import check_sample_ratio

    name = context.op_execution_context.partition_key
    with warehouse.engine().begin() as connection:
        passed, said = check_sample_ratio(
            connection, name, LifecyclePolicy.load(config_folder()), actor=actor()[0]
        )
    return dg.AssetCheckResult(passed=passed, description=said)


@stage_asset(
    produces="e2i_dagster.experiments.conduct.digital_twin:TwinSimulation",
    gated=False,
    group_name="digital_twin",
    kinds={"econml"},
    partitions_def=EXPERIMENTS,
    ins={
        "training_frame": dg.AssetIn("training_frame", partition_mapping=EXPERIMENT_OF_SCOPE),
        "splits": dg.AssetIn("splits", partition_mapping=EXPERIMENT_OF_SCOPE),
    },
    description="The experiment predicted on twins of the cohort by a fitted model of effects.",
)
def twin_simulation(
    context: dg.AssetExecutionContext,
    training_frame: DataFrame,
    splits: DataFrame,
    warehouse: Warehouse,
) -> Produced:
    from e2i_dagster.experiments.conduct.run import simulate_and_record

    configured = current_policy()
    with warehouse.engine().begin() as connection:
        simulation = simulate_and_record(
            connection,
            configured.experiment(context.partition_key),
            training_frame,
            splits,
            LifecyclePolicy.load(config_folder()),
            scopes=configured.scopes,
            actor=actor()[0],
        )
    return Produced(simulation, simulation)


@stage_asset(
    produces="e2i_dagster.experiments.conduct.digital_twin:FidelityPage",
    always=True,
    gated=False,
    group_name=GROUP,
    kinds={"postgres"},
    partitions_def=EXPERIMENTS,
    deps=["interim"],
    description="The twin's prediction against the effect that each look observed, graded; blinded as the looks are.",
)
def twin_fidelity(experiment_design: ExperimentSpec, warehouse: Warehouse) -> Produced:
    from e2i_dagster.experiments.conduct.run import fidelity_page

    with warehouse.engine().begin() as connection:
        page = fidelity_page(
            connection, experiment_design.name, LifecyclePolicy.load(config_folder()), actor=actor()[0]
        )
    return Produced(page, page)
