"""Jobs of experiments: one run, the digital twin, and what the commands change."""

import dagster as dg

from e2i_dagster.config.experiment import LifecyclePolicy
from e2i_dagster.config.policy import current_policy
from e2i_dagster.policy_files.environment import actor, config_folder
from resources.stages import refusal
from resources.warehouse import Warehouse


@dg.op(
    name="change",
    config_schema=dict,
    description="One change of an experiment, with who and why: transition, approval, amendment, rows, simulated days.",
)
def change_op(context: dg.OpExecutionContext, warehouse: Warehouse) -> None:
    from e2i_dagster.errors import E2IError
    from e2i_dagster.experiments.conduct.actions import Change, perform

    change = Change.model_validate(context.op_config)
    try:
        with warehouse.engine().begin() as connection:
            lifecycle = LifecyclePolicy.load(config_folder())
            done = perform(connection, change, current_policy(), lifecycle, actor=actor()[0])
    except E2IError as error:
        # What a person can mend is said in one sentence; trying again cannot help.
        raise refusal(error) from error
    context.add_output_metadata({"experiment": change.experiment, "action": change.action, **done})


@dg.job(
    name="change_experiment",
    description="The job of the commands that change an experiment. Launch it with the fields of a Change.",
)
def change_experiment() -> None:
    change_op()


EXPERIMENT_JOBS = [
    dg.define_asset_job(
        "run_experiment",
        selection=dg.AssetSelection.groups("experiments"),
        description="One experiment: assigns who waits, makes the look that is due, fills the pages.",
    ),
    dg.define_asset_job(
        "simulate_twin",
        selection=dg.AssetSelection.groups("digital_twin"),
        description="Predicts one experiment from its cohort.",
    ),
    change_experiment,
]
