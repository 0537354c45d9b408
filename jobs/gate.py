"""Jobs about the gate: waive a rule, audit a scope for leakage, build data docs, tell the day's warnings."""

from collections.abc import Iterator
from typing import Any

import dagster as dg
from pydantic import Field

from assets.execution import shown
from assets.quality import quality_key
from e2i_dagster.config.alerts import AlertsPolicy
from e2i_dagster.config.policy import current_policy
from e2i_dagster.errors import E2IError, VerdictError
from e2i_dagster.policy_files.environment import actor, config_folder
from jobs.sequence import scopes_named
from resources.alerts import Alerts
from resources.lake import LakeIOManager
from resources.stages import refusal
from resources.warehouse import Warehouse


class WaiverConfig(dg.Config):
    """What is waived, and why. `e2i gate show` lists what blocks."""

    table: str = Field(description="Raw table, such as treatment_events.")
    partition: str = Field(default="all", description="Month YYYY-MM; all for a table without partitions.")
    rule: str = Field(
        description="Blocking rule, such as dimension_completeness. Not schema_*, not leakage_*."
    )
    reason: str = Field(description="Why the data may be used all the same; read by the next person.")
    days: int = Field(default=7, description="How long it holds; at most waivers.max_days of quality.yaml.")
    person: str = Field(default="", description="Who answers for it. Empty: E2I_ACTOR, or the login.")


@dg.op(
    name="waive_gate_rule",
    description="Records a waiver on the current version of the partition; refuses schema faults and leakage.",
)
def waive_gate_rule(context: dg.OpExecutionContext, config: WaiverConfig, warehouse: Warehouse) -> None:
    from e2i_dagster.quality.table_check import waive

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
        raise refusal(error) from error
    context.add_output_metadata({"waiver": waiver.text})
    context.log.info(waiver.text)


#: What the launch form shows: every field, in the order in which it is filled in.
_WAIVER_FORM = {
    "table": "", "partition": "all", "rule": "", "reason": "", "days": 7, "person": ""
}  # fmt: skip


@dg.job(
    name="waive_gate",
    config={"ops": {"waive_gate_rule": {"config": _WAIVER_FORM}}},
    description=(
        "A person answers for one blocking rule on one data version, until a date. Launched with an empty form it "
        "waives nothing and says what is blocked. Afterwards: Re-execute from failure on the run that the gate "
        "stopped (one launched here; what a command started goes on by the same command)."
    ),
)
def waive_gate() -> None:
    waive_gate_rule()


class AuditConfig(dg.Config):
    """Which scope is audited."""

    scope: str = Field(description="A scope of config/scopes.")


@dg.op(
    name="audit_scope",
    description="The leakage gate on the current training frame and splits of a scope; fails when they leak.",
)
def audit_scope(
    context: dg.OpExecutionContext,
    config: AuditConfig,
    warehouse: Warehouse,
    lake: dg.ResourceParam[LakeIOManager],
) -> Iterator[Any]:
    from e2i_dagster.splits.leakage_check import audit_frame, audit_splits
    from e2i_dagster.versions import ledger

    engine, run_id = warehouse.engine(), context.run.run_id
    try:
        (name,) = scopes_named(config.scope)
        frame = lake.load("training_frame", [name])
    except E2IError as error:
        raise refusal(error) from error
    scope = current_policy().scope(name)
    results = {"training_frame": audit_frame(engine, scope, frame, run_id=run_id)}
    if ledger.latest(engine, "splits", name) is not None:
        splits = lake.load("splits", [name])
        results["splits"] = audit_splits(engine, scope, frame, splits, run_id=run_id)
    for asset, result in results.items():
        yield dg.AssetCheckEvaluation(
            asset_key=dg.AssetKey(asset),
            check_name="leakage_gate",
            passed=result.passed,
            description=result.text,
            metadata=shown(result.to_metadata()),
            partition=name,
        )
    failed = [result.error for result in results.values() if result.error is not None]
    if failed:
        error = VerdictError.joined(failed)
        raise refusal(error) from error
    yield dg.Output(None)


@dg.job(
    name="leakage_audit",
    description="The leakage gate on the current training frame and splits of one scope, without making them again.",
)
def leakage_audit() -> None:
    audit_scope()


class DataDocsConfig(dg.Config):
    """Whose data docs are built."""

    table: str = Field(description="Raw table with a suite in config/expectations, such as treatment_events.")
    partition: str = Field(default="all", description="Month YYYY-MM; all: every row as one part.")


@dg.op(
    name="build_data_docs",
    description="Runs the suite of a table on its current rows; the page is in the metadata of quality/TABLE.",
)
def build_data_docs(
    context: dg.OpExecutionContext,
    config: DataDocsConfig,
    warehouse: Warehouse,
    lake: dg.ResourceParam[LakeIOManager],
) -> None:
    from e2i_dagster.quality.table_check import document_table

    try:
        docs = document_table(
            warehouse.engine(),
            config.table,
            config.partition,
            lambda partitions: lake.load(config.table, partitions),
        )
    except E2IError as error:
        raise refusal(error) from error
    metadata = {**shown(docs.to_metadata()), "data_docs": dg.MetadataValue.path(docs.page)}
    context.add_output_metadata(metadata)
    context.log_event(dg.AssetObservation(asset_key=quality_key(config.table), metadata=metadata))


@dg.job(
    name="data_docs",
    config={"ops": {"build_data_docs": {"config": {"table": "", "partition": "all"}}}},
    description="Data docs of Great Expectations for a table as it is now: one page without values of rows.",
)
def data_docs() -> None:
    build_data_docs()


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

GATE_JOBS = [waive_gate, leakage_audit, data_docs, alert_digest]
