"""The ``e2i`` command: the pipeline from a terminal.

Commands that change state launch the Dagster job of the same name in the instance that the UI
shows; the others read. Exit codes: 0 done, 1 a stage failed, 2 wrong configuration or usage,
3 wrong input, 4 a gate or criterion said no, 5 something outside is not available.
"""

from __future__ import annotations

import datetime as dt
import gc
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from commands.alerts import alerts
from commands.causal import causal
from commands.cohorts import cohort
from commands.console import Commands, as_json, command_errors, print_table, refuse, say
from commands.experiments import experiment
from commands.features import features
from commands.imports import import_group
from commands.launch import exit_code, failure_record, launch, refuse_failed
from commands.operations import backup, forget, handover, restore
from commands.quality import gate, leakage_audit
from commands.registry import approve, compare, dossier, history, promote, reject, rollback
from commands.trace import trace
from commands.validation import validate
from commands.verify import verify
from e2i_dagster.errors import ConfigError, E2IError, UnavailableError

if TYPE_CHECKING:
    import dagster as dg

    from e2i_dagster.pipeline.states import StageEvent


_DAY = click.DateTime(formats=["%Y-%m-%d"])

#: Rows of each table that a dry run shows of those that would leave it.
SHOWN_GOING = 10


def _known_process(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Refuse the name of a data-generating process that there is not."""
    from e2i_dagster.config.sources import SyntheticSource

    known = get_args(SyntheticSource.model_fields["dgp"].annotation)
    if value is not None and value not in known:
        raise click.BadParameter(f"{value!r} is not one of {', '.join(known)}.", context, parameter)
    return value


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
def main() -> None:
    """Pharma commercial analytics as one Dagster DAG."""
    # A command imports for most of its time, and what it imports stays: looking for garbage after every
    # 700 new objects, as Python does, takes a fifth of it.
    gc.set_threshold(10_000)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--format", "file_format", type=click.Choice(["csv", "parquet"]), default="csv")
@click.option(
    "--dgp", default="confounded", show_default=True, callback=_known_process, help="Process that draws them."
)
@click.option("--patients", type=click.IntRange(min=40), default=25_000, show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=42, show_default=True)
@click.option(
    "--shape",
    type=click.Choice(["claims", "omop", "trial"]),
    help="Patients with migraine in the layout of others (docs/tutorials), instead of our tables.",
)
@click.pass_context
@as_json
@command_errors
def generate(
    context: click.Context,
    folder: Path,
    file_format: Literal["csv", "parquet"],
    dgp: str,
    patients: int,
    seed: int,
    shape: str | None,
    json_output: bool,
) -> None:
    """Write the synthetic tables as files into FOLDER, as a data supplier would deliver them."""
    from e2i_dagster.config.sources import SyntheticSource
    from e2i_dagster.loading.delivery import write_synthetic
    from e2i_dagster.synthetic.foreign import write_shape

    given = {
        name
        for name in ("file_format", "dgp")
        if context.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
    }
    if shape is not None and given:
        raise click.UsageError("--shape decides the files and who is in them: leave out --format and --dgp.")
    source = SyntheticSource.model_validate(
        {"kind": "synthetic", "dgp": dgp, "scale": patients / 25_000, "seed": seed}
    )
    try:
        written = (
            write_synthetic(source, folder, file_format)
            if shape is None
            else write_shape(shape, folder, patients=patients, seed=seed)
        )
    except OSError as error:
        remedy = "Name another folder."
        said = f"{folder}: cannot be written ({error.strerror}). {remedy}"
        raise UnavailableError(said, file=folder, remedy=remedy) from None
    if json_output:
        click.echo(json.dumps({str(path): rows for path, rows in written.items()}))
        return
    for path, rows in written.items():
        click.echo(f"{rows:>10,}  {path}")


@main.command()
@click.option("--small", is_flag=True, help="A tenth of the full synthetic set.")
@click.option("--full", is_flag=True, help="The full synthetic set (25,000 patients).")
@click.option("--dirty", is_flag=True, help="With the documented defects planted.")
@click.option("--dgp", callback=_known_process, help="Data-generating process of the synthetic set.")
@click.option("--seed", type=click.IntRange(min=0), help="Seed of the synthetic set.")
@click.option("--from", "folder", type=click.Path(path_type=Path), help="Folder with your own files.")
@click.option("--mapping", type=click.Path(path_type=Path), help="How your columns and codes map to ours.")
@click.option("--threshold", type=click.FloatRange(0, 1), help="Accept a lower share of good rows.")
@click.option("--reason", help="Why the lower threshold is acceptable; recorded.")
@click.option("--dry-run", is_flag=True, help="Validate and count; change nothing.")
@as_json
@command_errors
def load(
    dry_run: bool, json_output: bool, threshold: float | None, reason: str | None, **options: Any
) -> None:
    """Load a delivery into the warehouse and the lake (job `load`)."""
    from e2i_dagster.loading.delivery import DeliveryRequest, dry_run_report, not_read_by

    if (threshold is None) != (not reason):
        raise click.UsageError(
            "--threshold and --reason go together: a known-bad delivery is accepted on record."
        )
    small, full = options.pop("small"), options.pop("full")
    scale = 0.1 if small else 1.0 if full else None
    paths = {
        key: str(options.pop(key).absolute()) if options[key] else options.pop(key)
        for key in ("folder", "mapping")
    }
    request = DeliveryRequest.model_validate(
        {**options, **paths, "scale": scale, "threshold": threshold, "reason": reason}
    )
    if dry_run:
        report = dry_run_report(request)
        if report["success"]:
            _print_load(report, json_output)
            return
        failed = [E2IError(said, field=table) for table, said in _unloaded(report)]
        _refuse_load(E2IError.joined(failed).to_record(), 1, report, json_output)
    result = launch("load", {"source_files": request.model_dump(exclude_none=True)}, show=not json_output)
    _end_load(result, json_output, not_read=not_read_by(request))


@main.group()
def rejects() -> None:
    """Rows that were not loaded: list, export, correct, resubmit."""


@rejects.command("list")
@click.option("--table")
@as_json
@command_errors
def rejects_list(table: str | None, json_output: bool) -> None:
    """Open rejects by table and reason."""
    from e2i_dagster.database.connection import engine
    from e2i_dagster.loading import rejects as core

    open_rejects = core.summary(engine(role="app"), table=table).to_dict("records")
    rows = [{str(name): value for name, value in row.items()} for row in open_rejects]
    if json_output:
        click.echo(json.dumps(rows, default=str))
    elif rows:
        print_table("Open rejects", rows)
    else:
        click.echo("No open rejects.")


@rejects.command("export")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--table")
@as_json
@command_errors
def rejects_export(folder: Path, table: str | None, json_output: bool) -> None:
    """Write open rejects as CSV files into FOLDER, ready to be corrected and resubmitted."""
    from e2i_dagster.database.connection import engine
    from e2i_dagster.loading import rejects as core

    written = [str(path) for path in core.export(engine(role="app"), folder, table=table)]
    click.echo(json.dumps(written) if json_output else "\n".join(written))


@rejects.command("resubmit")
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@as_json
@command_errors
def rejects_resubmit(folder: Path, json_output: bool) -> None:
    """Load the corrected rows of FOLDER and their waiting children (job `resubmit_rejects`)."""
    config = {"folder": str(folder.absolute()), "resubmit": True}
    result = launch("resubmit_rejects", {"source_files": config}, show=not json_output)
    _end_load(result, json_output)


@main.command()
@click.option("--scope", default="default", show_default=True, help="A scope, several with commas, or `all`.")
@as_json
@command_errors
def run(scope: str, json_output: bool) -> None:
    """Execute the plan: load and QC, cohorts, the scope's pipeline, monitoring."""
    from jobs.sequence import plan, scopes_named
    from resources.local_instance import local_instance

    scopes = scopes_named(scope)
    _require_shared()
    _left_out()
    began = time.monotonic()
    say(json_output, "Starting: warehouse, tracking store and services start when they are first needed.")
    events: list[StageEvent] = []
    failed = None
    with local_instance() as instance:
        for planned in plan(scopes):
            say(json_output, f"\n{planned.job} {planned.label}")
            result = launch(
                planned.job, planned=planned, show=not json_output, collect=events, instance=instance
            )
            if not result.success:
                failed = result
                break
    if not json_output:
        _print_run(events, time.monotonic() - began)
    if failed is not None:
        refuse_failed(failed, json_output=json_output, report=_status() if json_output else None)
    if json_output:
        click.echo(json.dumps(_status(), default=str))


@main.command()
@click.option("--scope", default="default", show_default=True, help="A scope.")
@click.option("--from", "first", type=_DAY, required=True, help="First day (UTC).")
@click.option("--to", "last", type=_DAY, help="Last day; by default the first.")
@as_json
@command_errors
def monitor(scope: str, first: dt.datetime, last: dt.datetime | None, json_output: bool) -> None:
    """Watch a scope on past days, all in one run (job `monitor`); a day that fails does not stop the others."""
    from jobs.sequence import monitored_days

    planned = monitored_days(scope, first.date(), (last or first).date())
    result = launch(planned.job, planned=planned, show=not json_output)
    if not result.success:
        refuse_failed(result, json_output=json_output)
    if json_output:
        click.echo(json.dumps({"job": planned.job, "partitions": planned.label}))


@main.command("plan")
@click.option("--scope", default="default", show_default=True)
@as_json
@command_errors
def show_plan(scope: str, json_output: bool) -> None:
    """The jobs and partitions of `e2i run`, in order."""
    from commands.status import months_never_loaded, never_loaded_words
    from jobs.sequence import plan, scopes_named

    rows = [{"job": planned.job, "partitions": planned.label} for planned in plan(scopes_named(scope))]
    left_out = _left_out()
    missing = months_never_loaded()
    if json_output:
        click.echo(json.dumps({"plan": rows, "left_out": left_out, "never_loaded": missing}))
        return
    print_table("Plan", rows)
    for said in never_loaded_words(missing or {}):
        click.echo(said)


@main.command()
@as_json
@command_errors
def status(json_output: bool) -> None:
    """What was made, when and how; tables, endpoints, warehouse."""
    from commands.status import never_loaded_words

    report = _status()
    if json_output:
        click.echo(json.dumps(report, default=str))
        return
    print_table("Stages", [_stage_row(stage) for stage in report["stages"]])
    print_table("Tables", [{"table": name, "rows": f"{rows:,}"} for name, rows in report["tables"].items()])
    for name, reasons in report["not_kept"].items():
        said = ", ".join(f"{reason} {rows:,}" for reason, rows in reasons.items())
        click.echo(f"Not kept, read by nothing: {name}: {said}")
    for said in never_loaded_words(report["never_loaded"] or {}):
        click.echo(said)
    if report["endpoints"]:
        print_table("Endpoints", report["endpoints"], drop=("example",))
        for endpoint in filter(_is_offered, report["endpoints"]):
            click.echo(endpoint["example"])
    else:
        click.echo("No service is deployed. `e2i run` deploys one.")
    for error in report["configuration"]:
        click.echo(f"Error: {error['message']}", err=True)
    click.echo(f"Warehouse: {report['warehouse']['server']} {report['warehouse']['address']}")


@main.command()
@as_json
@command_errors
def down(json_output: bool) -> None:
    """Stop the services and the embedded database. Data stays."""
    from e2i_dagster.database.server import stop_server
    from e2i_dagster.policy_files.environment import database_url, state_folder
    from e2i_dagster.serving.records import stop_services

    stopped: list[str] = []
    try:
        for service in stop_services(state_folder()):
            stopped.append(service)
            say(json_output, f"stopped {service}")
    finally:
        # Also when the stop could not be recorded, as in a warehouse of another version.
        if database_url() is None and stop_server(state_folder()):
            stopped.append("postgresql")
            say(json_output, "stopped the embedded PostgreSQL server")
    if json_output:
        click.echo(json.dumps({"stopped": stopped}))
    else:
        click.echo("Nothing is running. `make run` or `make ui` starts it again.")


@main.command()
@command_errors
def ui() -> None:
    """Dagster UI and MLflow UI in the foreground, recorded services running; Ctrl-C stops the UIs."""
    from commands.user_interfaces import run_user_interfaces

    run_user_interfaces(click.echo)


@main.command(hidden=True)
@click.argument("service")
@command_errors
def serve(service: str) -> None:
    """Supervise one service (started by deployments)."""
    from e2i_dagster.serving.supervisor import main as supervise

    sys.exit(supervise([service]))


@main.command(context_settings={"ignore_unknown_options": True})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
@click.option("--scope", default="default", show_default=True)
@command_errors
def feast(arguments: tuple[str, ...], scope: str) -> None:
    """Run the Feast command line on the feature store of a scope, e.g. `e2i feast feature-views list`."""
    from e2i_dagster.errors import InputError
    from e2i_dagster.features.store import repo_environment
    from e2i_dagster.policy_files.environment import CHECKOUT
    from jobs.sequence import scopes_named
    from resources.feature_store import FeatureStore

    (name,) = scopes_named(scope)
    with FeatureStore().open(name) as store:
        online = store.current()
        if online is None:
            raise InputError(
                f"Scope {name} has no features yet.", remedy=f"Run `e2i run --scope {name}` first."
            )
        environment = {**os.environ, **repo_environment(store.settings, online.files)}
    executable = str(Path(sys.executable).with_name("feast"))
    os.execve(executable, [executable, "-c", str(CHECKOUT / "feature_repo"), *arguments], environment)


def _stage_row(stage: dict[str, Any]) -> dict[str, Any]:
    """One stage for people: why it was not done, or what of a good result waits for somebody."""
    done = stage["state"] in ("executed", "reused")
    return {
        "stage": stage["name"],
        "partition": stage["partition"],
        "state": stage["state"],
        "rows": "" if stage["rows"] is None else f"{stage['rows']:,}",
        "seconds": "" if stage["seconds"] is None else f"{stage['seconds']:.1f}",
        "at": f"{stage['at']:%Y-%m-%d %H:%M}",
        "reason": stage["note"] if done else stage["reason"],
    }


def _load_report(load_id: str) -> dict[str, Any]:
    from e2i_dagster.database.connection import engine
    from e2i_dagster.loading.read import recorded_load

    return recorded_load(engine(role="app"), load_id)


def _end_load(
    result: dg.ExecuteInProcessResult, json_output: bool, *, not_read: Mapping[str, str] | None = None
) -> None:
    """Show what was loaded and which files were not read; when the run failed, also why."""
    report = _load_report(result.run_id) | ({} if not_read is None else {"not_read": dict(not_read)})
    if result.success:
        _print_load(report, json_output)
        return
    _refuse_load(failure_record(result), exit_code(result), report, json_output)


def _refuse_load(record: dict[str, Any], code: int, report: dict[str, Any], json_output: bool) -> None:
    if not json_output:
        _print_load(report, json_output)
    refuse(record, code, json_output=json_output, report={**report, "success": False})


def _unloaded(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Each table that would not be loaded, and why."""
    return [
        (name, f"{name}: {counts['message'] or counts['status']}")
        for name, counts in report["tables"].items()
        if counts["status"] not in ("loaded", "empty")
    ]


def _left_out() -> list[dict[str, Any]]:
    """Tell of every policy file that takes no part because it is wrong, and of those that no run can do without.

    Returns:
        Their errors as records; ``needed`` says that no run can do without the file.
    """
    from e2i_dagster.config.validate import OF_EVERY_RUN, folder_errors, shared_errors
    from e2i_dagster.policy_files.environment import config_folder

    folder = config_folder()
    needed = {str(error) for error in shared_errors(folder, OF_EVERY_RUN)}
    records = []
    for error in folder_errors(folder):
        is_needed = str(error) in needed
        click.echo(f"{'No run without it' if is_needed else 'Left out'}: {error}", err=True)
        records.append({**error.to_record(), "needed": is_needed})
    return records


def _require_shared() -> None:
    """Refuse to begin what would end at a policy file that is wrong."""
    from e2i_dagster.config.validate import OF_EVERY_RUN, shared_errors
    from e2i_dagster.policy_files.environment import config_folder

    if wrong := shared_errors(config_folder(), OF_EVERY_RUN):
        raise ConfigError.joined(wrong)


def _status() -> dict[str, Any]:
    from commands.status import status_report

    return status_report()


def _print_load(report: dict[str, Any], json_output: bool) -> None:
    if json_output:
        click.echo(json.dumps(report, default=str))
        return
    rows = []
    for table, counts in report["tables"].items():
        shown = {
            key: f"{counts[key]:,}"
            for key in (
                *("source", "inserted", "updated", "unchanged", "rejected", "duplicate", "reversal"),
                *("withdrawn", "restored"),
            )
        }
        reasons = ", ".join(f"{code} {rows:,}" for code, rows in counts["reasons"].items())
        rows.append(
            {
                "table": table,
                "lines": "" if counts.get("lines") is None else f"{counts['lines']:,}",
                **shown,
                "left out": f"{sum(counts.get('left_out', {}).values()):,}",
                "seconds": f"{counts['seconds']:.1f}",
                "status": counts["status"],
                "reasons": reasons,
            }
        )
    print_table("Load", rows)
    for table, counts in report["tables"].items():
        for words, count in counts.get("faults", {}).items():
            click.echo(f"{table}: {words}: {count:,} rows")
        for rule, count in counts.get("left_out", {}).items():
            click.echo(f"{table}: left out by the mapping: {rule}: {count:,} rows")
        if counts.get("added"):
            click.echo(
                f"{table}: {counts['added']:,} rows more than lines, made of numbered columns by `unpivot`"
            )
        for said in counts.get("notes", ()):
            click.echo(f"{table}: {said}")
        if going := counts.get("going"):
            _print_going(table, going)
        for column, cells in counts.get("completed", {}).items():
            found = " and ".join(f"{count:,} of a {precision}" for precision, count in cells.items())
            click.echo(f"Completed by `partial_dates`: {table}.{column}: {found} without a day")
    for name, reason in report.get("not_read", {}).items():
        click.echo(f"Not read: {name}: {reason}")


def _print_going(table: str, going: Sequence[Mapping[str, Any]]) -> None:
    """The first rows that a load would withdraw, and how many it leaves out."""
    rows = [
        {
            "row": row["row"],
            "month": row["month"] or "",
            "reason": row["reason"],
            "reversal": row["reversal"] or "",
        }
        for row in going[:SHOWN_GOING]
    ]
    print_table(f"Would leave {table}", rows)
    if left := len(going) - len(rows):
        click.echo(f"... and {left:,} more rows of {table}; --json names all of them.")


def _print_run(events: list[StageEvent], seconds: float) -> None:
    from e2i_dagster.policy_files.environment import port, state_folder

    rows = [
        {
            "stage": event.stage,
            "partition": event.partition,
            "state": event.state,
            "rows": "" if event.rows is None else f"{event.rows:,}",
            "seconds": f"{event.seconds:.1f}",
        }
        for event in events
    ]
    print_table(f"Made in {seconds:.0f} s", rows)
    report = _status()
    click.echo("Where to look")
    dagster_ui, mlflow_ui = (f"http://127.0.0.1:{port(offset) or '<free port>'}" for offset in (0, 4))
    click.echo(f"  make ui              Dagster UI {dagster_ui}, MLflow UI {mlflow_ui}")
    click.echo(f"  lake and reports     {state_folder()}")
    click.echo("  e2i status           stages, tables, endpoints; e2i down stops services and database")
    for endpoint in report["endpoints"]:
        click.echo(f"\n{endpoint_text(endpoint)}")


def _is_offered(endpoint: dict[str, Any]) -> bool:
    return endpoint["health"] in ("healthy", "degraded") and bool(endpoint["example"])


def endpoint_text(endpoint: dict[str, Any]) -> str:
    """How to ask a model of ``e2i status``; its health instead, when it is not to be asked now."""
    if not _is_offered(endpoint):
        why = f": {endpoint['reason']}" if endpoint["reason"] else ""
        return f"{endpoint['model_id']} is {endpoint['health']}{why}."
    way = (
        ""
        if endpoint["slot"] == "production"
        else " (not production: that needs\nshadow days and a second person's approval, `e2i promote`)"
    )
    return f"{endpoint['model_id']} answers in slot {endpoint['slot']}{way}. Ask it:\n{endpoint['example']}"


main.add_command(alerts)
main.add_command(causal)
main.add_command(cohort)
main.add_command(import_group)
main.add_command(gate)
main.add_command(leakage_audit)
main.add_command(experiment)
main.add_command(features)
for registry_command in (promote, approve, reject, rollback, history, compare, dossier):
    main.add_command(registry_command)
main.add_command(validate)
main.add_command(verify)
main.add_command(trace)
for operations_command in (backup, restore, handover, forget):
    main.add_command(operations_command)

if __name__ == "__main__":
    main()
