"""Commands that change state: the Dagster job of the same name, run in this process."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

import click

from commands.console import refuse

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import dagster as dg

    from e2i_dagster.pipeline.states import StageEvent

SYMBOLS = {
    "executed": "+", "reused": "=", "failed": "x", "blocked": "!", "unavailable": "?", "skipped": "-", "absent": "0",
}  # fmt: skip


def launch(
    job: str,
    config: dict[str, Any] | None = None,
    *,
    planned: Any = None,
    show: bool = True,
    collect: list[StageEvent] | None = None,
    instance: dg.DagsterInstance | None = None,
) -> dg.ExecuteInProcessResult:
    """Run ``job`` in this process in the instance of the UI, printing each stage as it ends.

    ``instance``: that instance, where several jobs follow each other: opening it reads Dagster's migrations.
    """
    from e2i_dagster.database import locks
    from e2i_dagster.definitions import defs
    from e2i_dagster.pipeline.states import observers
    from jobs.sequence import LOADS, PlannedRun, execute, months_of
    from resources.local_instance import local_instance

    def observe(event: StageEvent) -> None:
        if collect is not None and event.state != "running":
            collect.append(event)
        if show and event.state != "running":
            rows = "" if event.rows is None else f"{event.rows:,} rows"
            line = f"  {SYMBOLS[event.state]} {event.stage:<28} {event.state:<9} {rows:>14} {event.seconds:7.1f} s"
            click.echo(f"{line}  {event.reason}" if event.state not in ("executed", "reused") else line)

    def wait(reason: str) -> None:
        click.echo(f"  {reason}", err=True)

    observers.append(observe)
    locks.observers.append(wait)
    try:
        with nullcontext(instance) if instance else local_instance() as opened:
            run = planned or PlannedRun(job, *months_of(job))
            ops = {name: {"config": values} for name, values in (config or {}).items()}
            without = _absent((config or {}).get("source_files", {})) if run.job in LOADS else ()
            return execute(defs, run, opened, {"ops": ops} if ops else None, without=without)
    finally:
        observers.remove(observe)
        locks.observers.remove(wait)


def _absent(asked: Mapping[str, Any]) -> Sequence[str]:
    """The tables that neither the delivery nor the warehouse has, which is recorded of them."""
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.database.connection import engine
    from e2i_dagster.loading.delivery import DeliveryRequest, absent_tables
    from e2i_dagster.versions import ledger

    warehouse = engine(role="app")
    absent = absent_tables(DeliveryRequest.model_validate(asked), current_policy().sources, warehouse)
    ledger.record_absent(warehouse, absent)
    return list(absent)


def refuse_failed(
    result: dg.ExecuteInProcessResult, *, json_output: bool, report: dict[str, Any] | None = None
) -> NoReturn:
    """End the command because its run failed: what each failed step said, and the first one's particulars."""
    refuse(failure_record(result), exit_code(result), json_output=json_output, report=report)


def failure_record(result: dg.ExecuteInProcessResult) -> dict[str, Any]:
    """The error of a failed run, as :meth:`E2IError.to_record` makes it; its message is :func:`failure_text`."""
    from e2i_dagster.errors import E2IError

    record: dict[str, Any] = {**E2IError("").to_record(), "code": "failed"}
    events = list(result.get_step_failure_events())
    said_no = [
        evaluation
        for evaluation in result.get_asset_check_evaluations()
        if not evaluation.passed and evaluation.blocking
    ]
    if said_no and all(map(_of_a_check, events)):
        record = _refusals([_of_evaluation(evaluation) for evaluation in said_no])
    for event in events:
        failure = event.step_failure_data.user_failure_data
        if failure is not None and "error" in failure.metadata:
            known: Any = failure.metadata["error"].value
            record = known
            break
    return {**record, "message": failure_text(result)}


def _of_evaluation(said_no: dg.AssetCheckEvaluation) -> dict[str, Any]:
    """What a blocking check knows of why it said no; without it, which check of which asset it was."""
    from e2i_dagster.errors import VerdictError

    error: Any = said_no.metadata["error"].value if "error" in said_no.metadata else None
    if error is not None:
        return error
    asset = said_no.asset_key.to_user_string()
    return VerdictError(str(said_no.description), file=asset, field=said_no.check_name).to_record()


def _refusals(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Several errors as one, which knows what the first one knows; each is among its ``problems``."""
    problems = [problem for record in records for problem in record.get("problems", [record])]
    return {**records[0], **({"problems": problems} if len(problems) > 1 else {})}


def failure_text(result: dg.ExecuteInProcessResult) -> str:
    """What each failed step said: its own description, or the innermost cause."""
    ours, texts = _exit_codes(), []
    for event in result.get_step_failure_events():
        if _of_a_check(event):
            continue  # the check itself is reported below
        failure, error = event.step_failure_data.user_failure_data, event.step_failure_data.error
        while error is not None and error.cause is not None:
            error = error.cause
        message = error.message if error else event.message or ""
        if error is not None and error.cls_name in ours:
            # Our messages are for people; Dagster puts the name of the class before them.
            message = message.partition(": ")[2]
        said = (failure.description if failure else None) or message
        texts.append(f"{event.step_key}: {said.strip()}")
    texts += [
        f"{check.asset_key.to_user_string()} {check.check_name}: {check.description}"
        for check in result.get_asset_check_evaluations()
        if not check.passed and check.blocking
    ]
    return "\n".join(texts) or "the run failed; see its page in the UI (make ui)"


def _of_a_check(event: dg.DagsterEvent) -> bool:
    """The step failed because a blocking check said no, which Dagster words for developers."""
    error = event.step_failure_data.error
    return error is not None and error.cls_name == "DagsterAssetCheckFailedError"


def exit_code(result: dg.ExecuteInProcessResult) -> int:
    """The exit code of the first failed step's error; 4 for a failed blocking check, else 1."""
    codes = _exit_codes()
    for event in result.get_step_failure_events():
        error = event.step_failure_data.error
        while error is not None:
            if error.cls_name in codes:
                return codes[error.cls_name]
            error = error.cause
    blocking = any(not check.passed and check.blocking for check in result.get_asset_check_evaluations())
    return 4 if blocking else 1


def _exit_codes() -> dict[str | None, int]:
    """The exit code of each of our errors, by the name of its class."""
    from e2i_dagster.errors import E2IError

    codes: dict[str | None, int] = {}
    kinds: list[type[E2IError]] = [E2IError]
    while kinds:
        kind = kinds.pop()
        codes[kind.__name__] = kind.exit_code
        kinds += kind.__subclasses__()
    return codes
