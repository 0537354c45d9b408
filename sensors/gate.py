"""Jobs about the gate: waive a rule, audit a scope for leakage, tell the day's warnings."""

import dagster as dg
from pydantic import Field

from assets.partitions import SCOPES
from e2i_dagster.config.alerts import AlertsPolicy
from e2i_dagster.config.environment import actor, config_folder
from e2i_dagster.errors import E2IError
from resources.alerts import Alerts
from resources.warehouse import Warehouse


class WaiverConfig(dg.Config):
    """What is waived, and why. `e2i gate show` lists what blocks."""

    table: str = Field(description="Raw table, such as treatment_events.")
    partition: str = Field(default="all", description="Month YYYY-MM; all for a table without partitions.")
    rule: str = Field(description="Blocking rule, such as dimension_completeness. Not schema_*, not leakage_*.")
    reason: str = Field(description="Why the data may be used all the same; read by the next person.")
    days: int = Field(default=7, description="How long it holds; at most waivers.max_days of quality.yaml.")
    person: str = Field(default="", description="Who answers for it. Empty: E2I_ACTOR, or the login.")


@dg.op(
    name="waive_gate_rule",
    description="Records a waiver on the current version of the partition; refuses schema faults and leakage.",
)
def waive_gate_rule(context: dg.OpExecutionContext, config: WaiverConfig, warehouse: Warehouse) -> None:
    from e2i_dagster.quality.judge import waive

    person, authentication = actor()
    try:
        waiver = waive(
            warehouse.engine(),
            table=config.table,
            partition=config.partition,
            rule=config.rule,
            reason=config.reason,
            days=config.days,
            waived_by=config.person or person,
            authentication="self-declared" if config.person else authentication,
            run_id=context.run.run_id,
        )
    except E2IError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    context.add_output_metadata({"waiver": waiver.text})
    context.log.info(waiver.text)


@dg.job(
    name="waive_gate",
    description=(
        "A person answers for one blocking rule on one data version, until a date. Afterwards: Re-execute from "
        "failure on the run that the gate stopped."
    ),
)
def waive_gate() -> None:
    waive_gate_rule()


leakage_audit = dg.define_asset_job(
    "leakage_audit",
    selection=dg.AssetSelection.checks(
        *(dg.AssetCheckKey(dg.AssetKey(asset), "leakage_gate") for asset in ("training_frame", "splits"))
    ),
    partitions_def=SCOPES,
    description="The leakage gate on the current training frame and splits of one scope, without making them again.",
)


@dg.op(name="tell_warnings", description="One message over all warnings that no digest has told yet.")
def tell_warnings(context: dg.OpExecutionContext, alerts: Alerts) -> None:
    digest = alerts.send_digest()
    context.add_output_metadata({"warnings": digest.warnings, "notification": digest.notification})
    context.log.info(digest.text)


@dg.job(name="alert_digest", description="The daily digest of warnings.")
def alert_digest() -> None:
    tell_warnings()


daily_digest = dg.ScheduleDefinition(
    name="daily_digest",
    job=alert_digest,
    cron_schedule=AlertsPolicy.load(config_folder()).digest_cron,
    execution_timezone="UTC",
    description="One message a day over all warnings (config/alerts.yaml: digest_cron).",
)

GATE_JOBS = [waive_gate, leakage_audit, alert_digest]
