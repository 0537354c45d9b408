"""Commands of the model registry: promote, approve, reject, rollback, history, compare, dossier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from commands.console import as_json, command_errors, print_table
from commands.launch import launch, refuse_failed

_reason = click.option("--reason", required=True, help="Why; recorded.")
_dry_run = click.option("--dry-run", is_flag=True, help="Judge and show; change nothing.")


@click.command()
@click.argument("model")
@click.option(
    "--to",
    "to_stage",
    required=True,
    type=click.Choice(["staging", "shadow", "production"]),
    help="Next stage; none is skipped.",
)
@click.option("--version", help="By default the version that has the stage below.")
@_reason
@click.option(
    "--simulated-days",
    type=click.FloatRange(min=0),
    default=0.0,
    help="Days in the stage below that did not pass; in development only, recorded as simulated.",
)
@_dry_run
@as_json
@command_errors
def promote(
    model: str,
    to_stage: Any,
    version: str | None,
    reason: str,
    simulated_days: float,
    dry_run: bool,
    json_output: bool,
) -> None:
    """Move a version of MODEL (or of a scope's model) one stage up and deploy it there (job `promote_model`)."""
    if dry_run:
        outcome = _registrar().promote(
            model, to_stage, version=version, reason=reason, simulated_days=simulated_days, dry_run=True
        )
        _show(outcome.model_dump(mode="json"), json_output)
        return
    config = {"model": model, "to_stage": to_stage, "version": version or "", "reason": reason}
    _act("promote_model", "promote", {**config, "simulated_days": simulated_days}, json_output)


@click.command()
@click.argument("model")
@click.option("--version", help="By default the version that is proposed.")
@click.option("--evidence", help="Digest of the evidence that you have seen; refused when it is another one.")
@_reason
@_dry_run
@as_json
@command_errors
def approve(
    model: str, version: str | None, evidence: str | None, reason: str, dry_run: bool, json_output: bool
) -> None:
    """Consent, as a second person, to the proposed promotion of MODEL; it is then promoted (job `approve_model`)."""
    if dry_run:
        outcome = _registrar().approve(model, version=version, evidence=evidence, reason=reason, dry_run=True)
        _show(outcome.model_dump(mode="json"), json_output)
        return
    config = {"model": model, "version": version or "", "evidence": evidence or "", "reason": reason}
    _act("approve_model", "approve", config, json_output)


@click.command()
@click.argument("model")
@click.option("--version", help="By default the version that is proposed.")
@_reason
@as_json
@command_errors
def reject(model: str, version: str | None, reason: str, json_output: bool) -> None:
    """Decide against the proposed promotion of MODEL (job `reject_model`)."""
    _act("reject_model", "reject", {"model": model, "version": version or "", "reason": reason}, json_output)


@click.command()
@click.argument("model")
@click.option("--to", "to_version", help="Version; by default the one that had production before.")
@_reason
@_dry_run
@as_json
@command_errors
def rollback(model: str, to_version: str | None, reason: str, dry_run: bool, json_output: bool) -> None:
    """Give slot production of MODEL back to an earlier version (job `rollback_model`)."""
    if dry_run:
        outcome = _registrar().rollback(model, to_version=to_version, reason=reason, dry_run=True)
        _show(outcome.model_dump(mode="json"), json_output)
        return
    config = {"model": model, "to_version": to_version or "", "reason": reason}
    _act("rollback_model", "rollback", config, json_output)


@click.command()
@click.argument("model")
@click.option("--version", help="One version; by default all.")
@as_json
@command_errors
def history(model: str, version: str | None, json_output: bool) -> None:
    """What happened to the versions of MODEL: who, when, why, on which evidence."""
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.database.connection import engine
    from e2i_dagster.registry.evidence import find_model, find_version
    from e2i_dagster.registry.history import history_table, open_proposals, stage_history
    from e2i_dagster.registry.mlflow_runs import default_tracking_uri

    uri = default_tracking_uri()
    name = find_model(model, current_policy(), tracking_uri=uri)
    if version is not None:
        find_version(name, version, tracking_uri=uri)
    events = stage_history(engine(role="app"), name, version)
    waiting = open_proposals(events)
    if json_output:
        click.echo(
            json.dumps(
                {
                    "model": name,
                    "history": [event.model_dump(mode="json") for event in events],
                    "open_proposals": [event.model_version for event in waiting],
                }
            )
        )
        return
    print_table(name, history_table(events))
    for event in waiting:
        click.echo(
            f"Version {event.model_version} waits for a second person: "
            f"e2i approve {name} --version {event.model_version} --evidence {event.evidence_digest} --reason ..."
        )


@click.command()
@click.argument("first")
@click.argument("second")
@as_json
@command_errors
def compare(first: str, second: str, json_output: bool) -> None:
    """Two versions beside each other; each is MODEL/VERSION or MODEL@STAGE."""
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.display import to_plain
    from e2i_dagster.registry.evidence import compare_versions, read_reference
    from e2i_dagster.registry.mlflow_runs import default_tracking_uri

    uri = default_tracking_uri()
    policy = current_policy()
    versions = [read_reference(reference, policy, tracking_uri=uri) for reference in (first, second)]
    found = compare_versions(*versions, tracking_uri=uri)
    if json_output:
        metrics = found["metrics"]
        rows = [dict(zip(metrics.columns, row, strict=True)) for row in metrics.rows]
        click.echo(json.dumps({**found, "metrics": rows}, default=to_plain))
        return
    print_table("Versions", found["versions"])
    print_table("Metrics (value and interval)", found["metrics"])
    if not found["same_patients"]:
        click.echo("They were not judged on the same split of patients: the figures do not compare directly.")


@click.command()
@click.argument("model")
@click.option("--version", help="Version or stage; by default the highest stage that has one.")
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False), help="Folder; in the state folder by default."
)
@as_json
@command_errors
def dossier(model: str, version: str | None, out: Path | None, json_output: bool) -> None:
    """Write what was made, measured and decided about a version of MODEL as one HTML page and one JSON."""
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.database.connection import engine
    from e2i_dagster.registry.dossier import write_dossier
    from e2i_dagster.registry.evidence import find_model, find_version, highest_version
    from e2i_dagster.registry.mlflow_runs import default_tracking_uri

    uri, policy = default_tracking_uri(), current_policy()
    name = find_model(model, policy, tracking_uri=uri)
    found = (
        highest_version(name, tracking_uri=uri)
        if version is None
        else find_version(name, version, tracking_uri=uri)
    )
    written = write_dossier(engine(role="app"), found, policy, tracking_uri=uri, folder=out)
    missing = [section.title for section in written.dossier.sections if section.state == "missing"]
    items = written.dossier.tripod_ai
    answered = sum(item.state == "answered" for item in items)
    if json_output:
        report = {
            "model": name,
            "version": found.version,
            "html": str(written.html),
            "json": str(written.json_file),
            "missing": missing,
            "tripod_ai": {"answered": answered, "items": len(items)},
        }
        click.echo(json.dumps(report))
        return
    click.echo(f"{name} version {found.version}: {written.html}")
    click.echo(f"and {written.json_file}; both are attached to MLflow run {found.run_id}.")
    click.echo(
        f"Missing: {', '.join(missing) or 'nothing'}. TRIPOD+AI: {answered} of {len(items)} items answered."
    )


def _registrar() -> Any:
    """For a dry run, which changes nothing and runs no job."""
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.config.registry import RegistryPolicy
    from e2i_dagster.config.serving import ServingPolicy
    from e2i_dagster.database.connection import engine
    from e2i_dagster.policy_files.actors import Actor
    from e2i_dagster.policy_files.environment import actor, config_folder
    from e2i_dagster.registry.mlflow_runs import default_tracking_uri
    from e2i_dagster.serving.promotion import Registrar

    def no_frame(scope: str) -> Any:
        raise AssertionError(f"a dry run deploys nothing of {scope}")

    return Registrar(
        engine=engine(role="app"),
        tracking_uri=default_tracking_uri(),
        actor=Actor(*actor()),
        policy=current_policy(),
        frames=no_frame,
        registry=RegistryPolicy.load(config_folder()),
        serving=ServingPolicy.load(config_folder()),
    )


def _act(job: str, op: str, config: dict[str, Any], json_output: bool) -> None:
    result = launch(job, {op: config}, show=not json_output)
    if not result.success:
        refuse_failed(result, json_output=json_output)
    (output,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    shown: Any = output.step_output_data.metadata["outcome"].value
    _show(shown, json_output)


def _show(outcome: dict[str, Any], json_output: bool) -> None:
    if json_output:
        click.echo(json.dumps(outcome))
        return
    said = f"{outcome['model']} version {outcome['version']}: {outcome['state'].replace('_', ' ')}"
    click.echo(
        f"{said}, {outcome['from_stage']} -> {outcome['to_stage']}, by {outcome['by']} ({outcome['authentication']})"
    )
    rules = [
        {"rule": rule["rule"], "met": "yes" if rule["passed"] else "no", "found": rule["reason"]}
        for rule in outcome["rules"]
    ]
    print_table("Rules", rules)
    if outcome["evidence_digest"]:
        click.echo(f"\nEvidence {outcome['evidence_digest']}")
    if outcome["simulated_days"]:
        click.echo(f"{outcome['simulated_days']:g} of the days are simulated.")
    if outcome["replaced"]:
        click.echo(f"In place of version {outcome['replaced']}.")
    if outcome["url"]:
        how = "" if outcome["warm"] is None else ", was warm" if outcome["warm"] else ", was started"
        click.echo(f"{outcome['bento']} answers at {outcome['url']} ({outcome['seconds']:.2f} s{how})")
    if outcome["archived"]:
        click.echo(f"Archived: {', '.join(outcome['archived'])}")
    if outcome["next"]:
        click.echo(outcome["next"])
