"""Jobs of the people who run the product: erase a patient."""

import dagster as dg
from pydantic import Field

from e2i_dagster.errors import E2IError
from e2i_dagster.policy_files.environment import lake_url, state_folder
from resources.stages import refusal
from resources.warehouse import Warehouse


class ForgetConfig(dg.Config):
    """Which patient is erased. `e2i forget PATIENT --dry-run` shows the pseudonym."""

    pseudonym: str = Field(
        description="Pseudonym of the patient; never the key, which the history would keep."
    )
    reason: str = Field(description="Who asked for it and when; recorded, without the patient's key.")


@dg.op(
    name="forget_one_patient",
    description="Erases a patient's rows from warehouse, lake, rejects, features, splits, logs and online values.",
)
def forget_one_patient(context: dg.OpExecutionContext, config: ForgetConfig, warehouse: Warehouse) -> None:
    from e2i_dagster.operations.forget import forget
    from e2i_dagster.policy_files.actors import actor_of_run, require_authenticated
    from e2i_dagster.versions.lake import Lake

    warehouse.engine()
    try:
        who = actor_of_run(context.run.run_id, context.run.tags)
        require_authenticated(who, "Erasing a patient")
        done = forget(
            config.pseudonym,
            reason=config.reason,
            by=who,
            run_id=context.run.run_id,
            lake=Lake(lake_url()),
            state=state_folder(),
        )
    except E2IError as error:
        raise refusal(error) from error
    context.add_output_metadata({"erasure": dg.MetadataValue.json(done.to_record())})


@dg.job(
    name="forget_patient",
    config={"ops": {"forget_one_patient": {"config": {"pseudonym": "", "reason": ""}}}},
    description=(
        "Erases one patient, who is named by the pseudonym that `e2i forget PATIENT --dry-run` shows. It cannot be "
        "undone."
    ),
)
def forget_patient() -> None:
    forget_one_patient()


OPERATIONS_JOBS = [forget_patient]
