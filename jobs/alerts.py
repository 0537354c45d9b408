"""Jobs of people about alerts: acknowledge one, silence a kind of them."""

import datetime as dt

import dagster as dg
from pydantic import Field

from e2i_dagster.config.alerts import AlertsPolicy
from e2i_dagster.errors import E2IError
from e2i_dagster.policy_files.environment import actor, config_folder
from resources.stages import refusal
from resources.warehouse import Warehouse


class AcknowledgeConfig(dg.Config):
    """Which alert a person looks after. `e2i alerts list` shows the keys."""

    alert: str = Field(description="Beginning of the alert's key.")
    reason: str = Field(description="What is done about it; read by the next person.")
    days: float = Field(default=1, description="Until then repetitions are only counted.")


@dg.op(name="acknowledge_one_alert", description="Records who looks after an alert, why, and until when.")
def acknowledge_one_alert(
    context: dg.OpExecutionContext, config: AcknowledgeConfig, warehouse: Warehouse
) -> None:
    from e2i_dagster.monitoring.alert_actions import acknowledge

    try:
        with warehouse.engine().begin() as connection:
            row = acknowledge(
                connection,
                config.alert,
                person=actor()[0],
                reason=config.reason,
                days=config.days,
                policy=AlertsPolicy.load(config_folder()),
                now=dt.datetime.now(dt.UTC),
            )
    except E2IError as error:
        raise refusal(error) from error
    context.add_output_metadata({"alert": row["title"], "until": row["acknowledged_until"].isoformat()})


@dg.job(
    name="acknowledge_alert",
    config={"ops": {"acknowledge_one_alert": {"config": {"alert": "", "reason": "", "days": 1}}}},
    description="A person looks after one alert: its repetitions are counted and sent to nobody until the end.",
)
def acknowledge_alert() -> None:
    acknowledge_one_alert()


class SilenceConfig(dg.Config):
    """Which alerts are sent to nobody for a while."""

    alert_type: str = Field(description="Kind: run_failure, drift, data_quality, leakage or experiment.")
    subject: str = Field(default="", description="What they are about (job, table, scope). Empty: all.")
    reason: str = Field(description="Why; read by the next person.")
    days: float = Field(default=1, description="How long.")


@dg.op(name="silence_kind_of_alerts", description="Records a silence: who, why, until when.")
def silence_kind_of_alerts(
    context: dg.OpExecutionContext, config: SilenceConfig, warehouse: Warehouse
) -> None:
    from e2i_dagster.monitoring.alert_actions import silence

    person, authentication = actor()
    try:
        with warehouse.engine().begin() as connection:
            row = silence(
                connection,
                alert_type=config.alert_type,
                subject=config.subject,
                person=person,
                authentication=authentication,
                reason=config.reason,
                days=config.days,
                policy=AlertsPolicy.load(config_folder()),
                now=dt.datetime.now(dt.UTC),
                run_id=context.run.run_id,
            )
    except E2IError as error:
        raise refusal(error) from error
    context.add_output_metadata({"alert_type": row["alert_type"], "until": row["ends_at"].isoformat()})


@dg.job(
    name="silence_alerts",
    config={
        "ops": {
            "silence_kind_of_alerts": {"config": {"alert_type": "", "subject": "", "reason": "", "days": 1}}
        }
    },
    description="Alerts of one kind are recorded and sent to nobody until the end of the silence.",
)
def silence_alerts() -> None:
    silence_kind_of_alerts()


ALERT_JOBS = [acknowledge_alert, silence_alerts]
