"""``e2i backup``, ``restore``, ``handover`` and ``forget``: what those do who run the product."""

from __future__ import annotations

import datetime as dt
import json
from pathlib import Path
from typing import Any

import click
from sqlalchemy.exc import SQLAlchemyError

from commands.console import as_json, command_errors, print_table
from commands.launch import launch, refuse_failed
from e2i_dagster.errors import UnavailableError


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@as_json
@command_errors
def backup(folder: Path, json_output: bool) -> None:
    """Copy databases, lake, reports, models, bentos and history into the new FOLDER, with a manifest.

    Services go on answering; no run may be at work.
    """
    from e2i_dagster.operations.backup import back_up

    manifest = back_up(folder)
    if json_output:
        click.echo(json.dumps(manifest.summary()))
        return
    click.echo(f"{len(manifest.files):,} files, {manifest.size / 2**20:,.1f} MB in {folder}")
    for name, reason in manifest.not_included.items():
        click.echo(f"Not included: {name}: {reason}")
    click.echo("It holds patients' data and keys: keep it where only the right people read it.")


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@as_json
@command_errors
def restore(folder: Path, json_output: bool) -> None:
    """Restore the backup FOLDER into an empty E2I_HOME, after every file was compared with the manifest.

    Services that were deployed are started again.
    """
    from e2i_dagster.operations.restore import restore as restored
    from e2i_dagster.policy_files.environment import state_folder
    from e2i_dagster.serving.deployment import restart_recorded

    manifest = restored(folder)
    services = restart_recorded(state_folder())
    if json_output:
        started = [endpoint.model_dump() for endpoint in services]
        click.echo(
            json.dumps({**manifest.summary(), "restored_into": str(state_folder()), "endpoints": started})
        )
        return
    click.echo(f"{len(manifest.files):,} files of {manifest.at:%Y-%m-%d %H:%M} UTC are in {state_folder()}")
    for name, reason in manifest.not_included.items():
        click.echo(f"Not in the backup: {name}: {reason}")
    for endpoint in services:
        click.echo(
            f"{endpoint.model_id} answers again at {endpoint.url} ({endpoint.slot}, {endpoint.health})"
        )
    click.echo("`e2i run` goes on from there.")


@click.command()
@click.option(
    "--html", "page", type=click.Path(path_type=Path, dir_okay=False), help="Also write one HTML page."
)
@as_json
@command_errors
def handover(page: Path | None, json_output: bool) -> None:
    """What the next person on duty has to know: what waits, what is blocked, silenced, waived, deployed, on and off."""
    from e2i_dagster.database.connection import engine
    from e2i_dagster.local_files import write_text
    from e2i_dagster.operations.handover import read_handover, table_of

    found = read_handover(lambda: engine(role="app"), _automations, now=dt.datetime.now(dt.UTC))
    if page is not None:
        try:
            write_text(page, found.html())
        except OSError as error:
            raise UnavailableError(
                f"{page} cannot be written ({error.strerror}).", file=page, remedy="Name another file."
            ) from None
    if json_output:
        click.echo(json.dumps(found.to_record()))
        return
    print_table("What waits for somebody", found.summary())
    if not found.summary().rows:
        click.echo("Nothing waits for anybody.")
    for part in found.parts.values():
        if part.unknown is not None:
            click.echo(f"\n{part.title}: unknown: {part.unknown}")
        elif part.rows:
            print_table(part.title, table_of(part.rows, part.nothing))
        else:
            click.echo(f"\n{part.title}: {part.nothing}")


def _automations() -> list[dict[str, Any]]:
    """Schedules and sensors of the code, with what the instance has stored of each; the instance is only read."""
    import dagster as dg

    from e2i_dagster.definitions import defs
    from e2i_dagster.operations.handover import automation_rows
    from resources.local_instance import dagster_home

    repository = defs.get_repository_def()
    declared = [
        *(
            (schedule.name, "schedule", schedule.default_status == dg.DefaultScheduleStatus.RUNNING)
            for schedule in repository.schedule_defs
        ),
        *(
            (sensor.name, "sensor", sensor.default_status == dg.DefaultSensorStatus.RUNNING)
            for sensor in repository.sensor_defs
        ),
    ]
    try:
        with dg.DagsterInstance.from_config(str(dagster_home())) as instance:
            stored = {
                state.instigator_name: state.status.value == "RUNNING"
                for state in instance.all_instigator_state()
                if state.status.value in ("RUNNING", "STOPPED")
            }
    except (dg.DagsterError, SQLAlchemyError) as error:
        raise UnavailableError(
            f"the Dagster instance cannot be read ({type(error).__name__}).",
            file=dagster_home(),
            remedy="Check DAGSTER_HOME and that its database answers.",
        ) from None
    return automation_rows(declared, stored)


@click.command()
@click.argument("patient")
@click.option(
    "--reason", default="", help="Who asked for it and when; recorded. Not the patient's name or key."
)
@click.option("--dry-run", is_flag=True, help="Count and show the pseudonym; change nothing.")
@as_json
@command_errors
def forget(patient: str, reason: str, dry_run: bool, json_output: bool) -> None:
    """Erase PATIENT (patient_id or patient_journey_id) for good (job `forget_patient`; person: E2I_ACTOR).

    The history of runs names the pseudonym only. What trained on the patient can no longer be replayed, which
    `e2i verify` says.
    """
    from e2i_dagster.operations.forget import forget as counted
    from e2i_dagster.operations.forget import pseudonym_of
    from e2i_dagster.policy_files.actors import Actor
    from e2i_dagster.policy_files.environment import actor, lake_url, state_folder
    from e2i_dagster.versions.lake import Lake

    if not dry_run and not reason:
        raise click.UsageError("--reason is needed: an erasure is on record.")
    if patient in reason:
        raise click.UsageError("--reason is kept: leave the patient's key out of it.")
    alias = pseudonym_of(patient)
    if dry_run:
        erasure = counted(
            alias,
            reason=reason,
            by=Actor(*actor()),
            run_id="",
            lake=Lake(lake_url()),
            state=state_folder(),
            dry_run=True,
        ).to_record()
    else:
        result = launch(
            "forget_patient", {"forget_one_patient": {"pseudonym": alias, "reason": reason}}, show=False
        )
        if not result.success:
            refuse_failed(result, json_output=json_output)
        (output,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
        erasure: Any = output.step_output_data.metadata["erasure"].value
    if json_output:
        click.echo(json.dumps(erasure))
        return
    click.echo(f"Patient {erasure['pseudonym']}: {erasure['state'].replace('_', ' ')}")
    rows = [
        {"place": place, "of": name, "rows": count}
        for place in ("warehouse", "lake", "online", "pseudonymised")
        for name, count in erasure[place].items()
    ]
    print_table("Rows", rows)
    for kind in ("runs", "models", "dossiers"):
        if erasure[kind]:
            click.echo(f"Can no longer be replayed: {kind}: {', '.join(erasure[kind])}")
    for said in erasure["seals"]:
        click.echo(said)
    for what, why in erasure["remains"].items():
        click.echo(f"Remains: {what}: {why}")
