"""``e2i trace``: lineage of a model, a prediction, a run or a patient."""

from __future__ import annotations

import json

import click

from commands.console import as_json, command_errors, print_table


@click.command()
@click.argument("target", metavar="MODEL|PREDICTION|RUN|PATIENT")
@as_json
@command_errors
def trace(target: str, json_output: bool) -> None:
    """What a MODEL, PREDICTION, RUN or PATIENT comes from and what was made of it, back to the delivered files.

    MODEL is NAME, NAME/VERSION, NAME@STAGE or a scope; RUN is one of MLflow or Dagster. A patient needs
    E2I_ALLOW_PATIENT_LEVEL=1; openings and refused attempts are recorded in ml_patient_level_access.
    """
    from e2i_dagster.database.connection import engine
    from e2i_dagster.display import text
    from e2i_dagster.policy_files.environment import lake_url
    from e2i_dagster.registry.trace import trace as trace_target
    from e2i_dagster.versions.lake import Lake

    found = trace_target(engine(role="app"), Lake(lake_url()), target)
    if json_output:
        click.echo(json.dumps(found.model_dump(mode="json")))
        return
    click.echo(f"{found.kind.capitalize()} {found.target}")
    for name, value in found.facts.items():
        if value is not None:
            click.echo(f"  {name.replace('_', ' ')}: {text(value)}")
    for title, table in found.tables().items():
        print_table(title, table)
    for note in found.notes:
        click.echo(f"Note: {note}.")
