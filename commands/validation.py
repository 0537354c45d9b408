"""``e2i validate``: a registered model judged on another cohort."""

from __future__ import annotations

import json

import click

from commands.console import as_json, command_errors, print_table


@click.command()
@click.argument("model")
@click.option("--cohort", required=True, metavar="COHORT", help="Another cohort of config/cohorts.")
@as_json
@command_errors
def validate(model: str, cohort: str, json_output: bool) -> None:
    """Judge MODEL (or a scope's model; MODEL/VERSION, MODEL@STAGE) on the patients of another cohort.

    Discrimination, calibration, subgroups and case mix; patients of the model's own cohort are left out. Without a
    version the highest stage that has one. Writes a page and a run in MLflow; the model stays as it is. The same
    request on the same data answers from the store.
    """
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.database.connection import engine
    from e2i_dagster.policy_files.environment import actor, lake_url
    from e2i_dagster.registry.evidence import find_model, highest_version, read_reference
    from e2i_dagster.registry.mlflow_runs import default_tracking_uri
    from e2i_dagster.validation.external import validate_version
    from e2i_dagster.versions.lake import Lake

    uri, policy = default_tracking_uri(), current_policy()
    version = (
        read_reference(model, policy, tracking_uri=uri)
        if "@" in model or "/" in model
        else highest_version(find_model(model, policy, tracking_uri=uri), tracking_uri=uri)
    )
    stored = validate_version(
        engine(role="app"), Lake(lake_url()), version, cohort, policy, by=actor()[0], tracking_uri=uri
    )
    found = stored.validation
    if json_output:
        where = {"page": str(stored.page), "mlflow_run_id": stored.run_id, "new": stored.new}
        click.echo(json.dumps(found.to_record() | where))
        return
    click.echo(found.headline())
    for title, table in found.tables().items():
        print_table(title, table)
        if table.note:
            click.echo(table.note)
    answered = "" if stored.new else ", from an earlier request on the same data"
    click.echo(f"Page: {stored.page}; MLflow run {stored.run_id}{answered}.")
