"""``e2i verify``: a training run made again from its recorded data versions."""

from __future__ import annotations

import json

import click

from commands.console import as_json, command_errors, print_table, say, stop
from e2i_dagster.errors import VerdictError


@click.command()
@click.argument("target", metavar="RUN|MODEL")
@as_json
@command_errors
def verify(target: str, json_output: bool) -> None:
    """Search and fit again what the MLflow RUN, or the registered MODEL (NAME/VERSION), was made from.

    Compares digests stage by stage and says what moved where they differ. Ends with 4 when they do.
    """
    from e2i_dagster.database.connection import engine
    from e2i_dagster.definitions import defs
    from e2i_dagster.policy_files.environment import lake_url
    from e2i_dagster.registry.replay import verify_run
    from e2i_dagster.versions.lake import Lake

    specs = {"/".join(spec.key.path): spec.code_version or "" for spec in defs.resolve_all_asset_specs()}
    found = verify_run(engine(role="app"), Lake(lake_url()), target, code=specs)
    report = {**found.model_dump(mode="json"), "verified": found.verified}
    rows = [check.model_dump() | {"moved": "; ".join(check.moved)} for check in found.checks]
    if not json_output:
        print_table(f"Run {found.run_id} of scope {found.scope}", rows)
    if not found.verified:
        unlike = [check.stage for check in found.checks if check.state not in ("same", "stored")]
        remedy = "The column `moved` says what is not as it was; `e2i run` makes the model of now."
        error = VerdictError(
            f"not verified: {', '.join(unlike)}.", field="target", value=target, remedy=remedy
        )
        stop(error, json_output=json_output, report=report)
    if json_output:
        click.echo(json.dumps(report))
    else:
        say(json_output, f"Verified: model {found.model_digest} is what its data and parameters make.")
