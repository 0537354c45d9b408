"""``e2i backup`` and ``e2i restore``: what those do who run the product."""

from __future__ import annotations

import json
from pathlib import Path

import click

from commands.console import as_json, command_errors


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
