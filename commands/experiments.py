"""``e2i experiment``: designs through their life cycle, units, looks, results, twins, reports."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands.console import as_json, command_errors, mapping_option, print_table, stop
from commands.launch import launch, refuse_failed
from e2i_dagster.display import text

if TYPE_CHECKING:
    from e2i_dagster.errors import VerdictError


@click.group()
def experiment() -> None:
    """Experiments: design, approval, enrolment, looks, results."""


@experiment.command("list")
@as_json
@command_errors
def list_command(json_output: bool) -> None:
    """Designs in config/experiments and where each of them stands."""
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.database.connection import engine
    from e2i_dagster.errors import ConfigError
    from e2i_dagster.experiments.conduct import store
    from e2i_dagster.experiments.conduct.records import InterimAnalysis

    policy = current_policy()
    broken = list(policy.broken("experiments").values())
    with engine(role="app").connect() as connection:
        registered = store.read_all(connection)
        if broken and not (policy.experiments or registered):
            raise ConfigError.joined(broken)
        rows = []
        for name in sorted({*policy.experiments, *registered}):
            found = registered.get(name)
            spec = found.spec if found else policy.experiments[name]
            rows.append(
                {
                    "experiment": name,
                    "state": found.state if found else "not registered",
                    "units": (found.source or "none yet") if found else "none yet",
                    "arms": ", ".join(spec.ratios),
                    "primary": spec.metrics.primary.name,
                    "looks": len(InterimAnalysis.read_all(connection, name)),
                    "decision": (found.decision or "") if found else "",
                }
            )
    for error in broken:
        click.echo(f"Left out: {error}", err=True)
    if json_output:
        click.echo(json.dumps({"experiments": rows, "left_out": [error.to_record() for error in broken]}))
    elif rows:
        print_table("Experiments", rows)
    else:
        click.echo("No experiment: put a design into config/experiments (docs/experiments.md).")


@experiment.command("show")
@click.argument("name")
@as_json
@command_errors
def show_command(name: str, json_output: bool) -> None:
    """State, enrolment, ratio of the arms, looks (blinded as the design says), history and what may follow."""
    from e2i_dagster.database.connection import engine
    from e2i_dagster.experiments.conduct.interim_looks import looks_table
    from e2i_dagster.experiments.conduct.summary import summary

    with engine(role="app").begin() as connection:
        _require_registered(connection, name)
        shown = summary(connection, name, _lifecycle())
    if json_output:
        click.echo(json.dumps(shown, default=str))
        return
    click.echo(f"{name}: {shown['state']} ({shown['units']} units), design version {shown['design_version']}")
    click.echo(f"may become: {', '.join(shown['next_states']) or 'nothing'}")
    print_table("Enrolment", [{"step": step, "number": n} for step, n in shown["enrolment"].items()])
    if shown["approvals"]:
        print_table("Approvals of the design in force", shown["approvals"])
    if shown["sample_ratio"]:
        click.echo(f"\nSample ratio: {shown['sample_ratio']}")
    print_table("Looks", looks_table(shown["looks"]))
    if shown["sample_size_review"]:
        click.echo(f"\nSample size looked at again: {shown['sample_size_review']}")
    print_table("History", shown["history"])
    print_table("Openings of the unblinded report", shown["openings"])


@experiment.command("run")
@click.argument("name")
@as_json
@command_errors
def run_command(name: str, json_output: bool) -> None:
    """Register the design, assign who waits, make the look that is due, fill the pages (job `run_experiment`)."""
    _require(name)
    _run(name, json_output=json_output)
    _show_after(name, json_output)


@experiment.command("transition")
@click.argument("name")
@click.argument("state")
@click.option("--reason", required=True, help="Why; recorded.")
@click.option("--decision", help="For decided: what was decided.")
@click.option(
    "--alignment",
    type=click.FloatRange(0, 1),
    help="For decided: how well the treatment fits the strategy, for the scorecard.",
)
@as_json
@command_errors
def transition_command(
    name: str, state: str, reason: str, decision: str | None, alignment: float | None, json_output: bool
) -> None:
    """Take the experiment to STATE; what the state needs is checked and recorded (job `change_experiment`)."""
    _change(
        json_output,
        experiment=name,
        action="transition",
        state=state,
        reason=reason,
        decision=decision,
        alignment=alignment,
    )


@experiment.command("approve")
@click.argument("name")
@click.option("--role", required=True, help="The role that approves (config/experiment_lifecycle.yaml).")
@click.option("--reason", required=True, help="Why; recorded.")
@as_json
@command_errors
def approve_command(name: str, role: str, reason: str, json_output: bool) -> None:
    """Approve exactly the design in force, as E2I_ACTOR (job `change_experiment`)."""
    _change(json_output, experiment=name, action="approve", role=role, reason=reason)


@experiment.command("amend")
@click.argument("name")
@click.option("--reason", required=True, help="Why; recorded.")
@as_json
@command_errors
def amend_command(name: str, reason: str, json_output: bool) -> None:
    """Take over the changed file of a locked design, on record (job `change_experiment`)."""
    _change(json_output, experiment=name, action="amend", reason=reason)


@experiment.command("record")
@click.argument("name")
@click.argument("kind", type=click.Choice(["units", "events", "outcomes"]))
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@mapping_option
@as_json
@command_errors
def record_command(name: str, kind: str, file: Path, mapping: Path | None, json_output: bool) -> None:
    """Record screened units, enrolment events or outcomes of a CSV or Parquet FILE (job `change_experiment`).

    A row that cannot be used is refused with its reason and stops no other; correct it and record again.
    """
    from e2i_dagster.experiments.conduct.actions import refused_values

    _require(name)
    outcome = _perform(
        json_output,
        experiment=name,
        action="record",
        kind=kind,
        file=str(file.absolute()),
        mapping=None if mapping is None else str(mapping.absolute()),
    )
    rows = refused_values(outcome, mapping)
    if json_output:
        click.echo(json.dumps(outcome | ({"refused_rows": rows} if rows else {})))
    elif rows:
        print_table("Refused", rows)
        left = outcome["refused"] - len(rows)
        click.echo(
            f"{f'and {left:,} more. ' if left else ''}To correct and record again: {outcome['refused_file']}"
        )


@experiment.command("simulate")
@click.argument("name")
@click.option("--days", type=click.IntRange(min=1), help="Until so many days after the start.")
@click.option(
    "--walk", is_flag=True, help="From draft to decision, with invented people who approve and decide."
)
@as_json
@command_errors
def simulate_command(name: str, days: int | None, walk: bool, json_output: bool) -> None:
    """Invented patients with known effects, until the next look (jobs `change_experiment`, `run_experiment`)."""
    _require(name)
    if walk and days is not None:
        raise click.UsageError("--walk goes to the end; leave --days out.")
    if walk:
        _walk(name, json_output=json_output)
    else:
        _perform(json_output, experiment=name, action="simulate", days=days)
        _run(name, json_output=json_output)
    _show_after(name, json_output)


@experiment.command("audit")
@click.argument("name")
@as_json
@command_errors
def audit_command(name: str, json_output: bool) -> None:
    """Draw every assignment again with the key, check the chain of seals and the rows that looks froze."""
    from e2i_dagster.database.connection import engine
    from e2i_dagster.experiments.conduct import store
    from e2i_dagster.experiments.conduct.interim_looks import replay
    from e2i_dagster.experiments.conduct.records import InterimAnalysis

    with engine(role="app").connect() as connection:
        _require_registered(connection, name)
        found = store.audit(connection, name)
        looks = InterimAnalysis.read_all(connection, name)
        unchanged = [replay(connection, name, look.analysis_number) for look in looks]
    passed = found.passed and all(unchanged)
    report = {
        "passed": passed, "units": found.units, "batches": found.batches,
        "broken_seals": list(found.broken_seals), "different_units": found.different,
        "looks_unchanged": sum(unchanged), "looks": len(unchanged),
    }  # fmt: skip
    if not json_output:
        print_table("Audit", [{"what": key, "found": str(value)} for key, value in report.items()])
    if not passed:
        stop(_not_as_sealed(name, report), json_output=json_output, report=report)
    if json_output:
        click.echo(json.dumps(report))


def _not_as_sealed(name: str, report: dict[str, Any]) -> VerdictError:
    """The first thing that is not as it was recorded; the counts of all are in the message."""
    from e2i_dagster.errors import VerdictError

    wrong = {
        "broken_seals": len(report["broken_seals"]),
        "different_units": report["different_units"],
        "changed_looks": report["looks"] - report["looks_unchanged"],
    }
    found = {key: count for key, count in wrong.items() if count}
    remedy = "Restore the experiment's rows from a backup of the warehouse: what was recorded was changed."
    counted = ", ".join(f"{count} {key.replace('_', ' ')}" for key, count in found.items())
    return VerdictError(
        f"Experiment {name} is not as it was recorded: {counted or 'the audit did not pass'}. {remedy}",
        file=name, field=next(iter(found), None), value=next(iter(found.values()), None), remedy=remedy,
    )  # fmt: skip


@experiment.command("twin")
@click.argument("name")
@as_json
@command_errors
def twin_command(name: str, json_output: bool) -> None:
    """Predict the experiment on twins of its cohort (job `simulate_twin`; needs `e2i run` of its scope)."""
    from e2i_dagster.database.connection import engine
    from e2i_dagster.experiments.conduct.records import SimulationRecord
    from jobs.sequence import PlannedRun

    _require(name)
    result = launch("simulate_twin", planned=PlannedRun("simulate_twin", name), show=not json_output)
    if not result.success:
        refuse_failed(result, json_output=json_output)
    with engine(role="app").connect() as connection:
        newest = SimulationRecord.read_newest(connection, name)
    assert newest is not None
    prediction = {
        "predicted_effect": newest.simulated_ate,
        "interval": [newest.simulated_ci_lower, newest.simulated_ci_upper],
        "twins": newest.twin_count,
        "recommendation": newest.recommendation,
        "rationale": newest.recommendation_rationale,
    }
    if json_output:
        click.echo(json.dumps(prediction))
    else:
        print_table("Digital twin", [{"what": key, "value": str(value)} for key, value in prediction.items()])


@experiment.command("heterogeneity")
@click.argument("name")
@click.option("--covariates", required=True, help="Attributes from before the assignment, with commas.")
@as_json
@command_errors
def heterogeneity_command(name: str, covariates: str, json_output: bool) -> None:
    """Does the effect differ along COVARIATES? A causal forest, as exploration (a declared one is in the results)."""
    from e2i_dagster.database.connection import engine
    from e2i_dagster.experiments.conduct.final_analysis import explore_heterogeneity

    asked = [name.strip() for name in covariates.split(",") if name.strip()]
    with engine(role="app").connect() as connection:
        _require_registered(connection, name)
        found = explore_heterogeneity(connection, name, asked, policy=_lifecycle())
    if json_output:
        click.echo(json.dumps([forest.to_record() for forest in found]))
        return
    click.echo("Exploration: nobody declared these covariates before the start.")
    for effects in found:
        if effects.status == "not_estimable":
            click.echo(f"{effects.arm}: not estimable, {effects.reason}")
            continue
        click.echo(
            f"{effects.arm}: calibration slope {text(effects.calibration_slope)}, p {text(effects.p_value)}"
        )
        print_table("Thirds by predicted effect", effects.groups_table)


@experiment.command("report")
@click.argument("name")
@click.option(
    "--output", type=click.Path(path_type=Path), help="File to write; in the state folder by default."
)
@click.option(
    "--unblinded", is_flag=True, help="With effects while data are collected; the opening is recorded."
)
@click.option("--reason", default="", help="Why the unblinded report is opened.")
@as_json
@command_errors
def report_command(name: str, output: Path | None, unblinded: bool, reason: str, json_output: bool) -> None:
    """Write the report as one HTML page and say where."""
    from e2i_dagster.database.connection import engine
    from e2i_dagster.experiments.conduct import run, store
    from e2i_dagster.policy_files.environment import actor, state_folder

    warehouse = engine(role="app")
    with warehouse.begin() as connection:
        _require_registered(connection, name)
        blinded = run.is_blinded(store.read(connection, name)) and not unblinded
        if unblinded:
            store.open_report(connection, name, what="report", reason=reason, actor=actor()[0])
        page = run.report_html(connection, name, _lifecycle(), blinded=blinded, actor=actor()[0])
    kind = "unblinded" if unblinded else "report"
    path = output or state_folder() / "reports" / "experiments" / f"{name}_{kind}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(page)
    click.echo(json.dumps({"page": str(path)}) if json_output else str(path))


def _lifecycle() -> Any:
    from e2i_dagster.config.experiment import LifecyclePolicy
    from e2i_dagster.policy_files.environment import config_folder

    return LifecyclePolicy.load(config_folder())


def _require(name: str) -> None:
    from e2i_dagster.config.policy import current_policy

    current_policy().experiment(name)


def _require_registered(connection: Any, name: str) -> None:
    """Refuse what is not in the warehouse: by what is wrong with its file, or as what has yet to be registered."""
    from e2i_dagster.errors import InputError
    from e2i_dagster.experiments.conduct import store

    try:
        store.read(connection, name)
    except InputError:
        _require(name)
        raise


def _perform(json_output: bool, **fields: Any) -> dict[str, Any]:
    """Run the job `change_experiment` and return what it says; end with its exit code when it fails."""
    given = {key: value for key, value in fields.items() if value is not None}
    result = launch("change_experiment", {"change": given}, show=not json_output)
    if not result.success:
        refuse_failed(result, json_output=json_output)
    (output,) = [event for event in result.all_events if event.event_type_value == "STEP_OUTPUT"]
    outcome = {key: value.value for key, value in output.step_output_data.metadata.items()}
    if not json_output:
        shown = {
            key: value
            for key, value in outcome.items()
            if key != "experiment" and not isinstance(value, list)
        }
        shown_apart = {"refused_because", "refused_file"}
        click.echo(
            "  + " + ", ".join(f"{key} {value}" for key, value in shown.items() if key not in shown_apart)
        )
    return outcome


def _change(json_output: bool, **fields: Any) -> None:
    _require(fields["experiment"])
    outcome = _perform(json_output, **fields)
    if json_output:
        click.echo(json.dumps(outcome))


def _run(name: str, *, json_output: bool) -> None:
    from jobs.sequence import PlannedRun

    result = launch("run_experiment", planned=PlannedRun("run_experiment", name), show=not json_output)
    if not result.success:
        refuse_failed(result, json_output=json_output)


def _show_after(name: str, json_output: bool) -> None:
    from e2i_dagster.database.connection import engine
    from e2i_dagster.experiments.conduct.interim_looks import looks_table
    from e2i_dagster.experiments.conduct.summary import summary

    with engine(role="app").begin() as connection:
        shown = summary(connection, name, _lifecycle())
    if json_output:
        click.echo(json.dumps(shown, default=str))
        return
    print_table("Looks", looks_table(shown["looks"]))
    click.echo(
        f"\n{name} is {shown['state']}. It may become: {', '.join(shown['next_states']) or 'nothing'}."
    )
    click.echo(
        f"Pages: make ui (group experiments), e2i experiment show {name}, e2i experiment report {name}"
    )


def _walk(name: str, *, json_output: bool) -> None:
    """Draft to decision: each step is the command that people would give, by invented people."""
    from e2i_dagster.database.connection import engine
    from e2i_dagster.experiments.conduct.records import InterimAnalysis

    def to(state: str, person: str, reason: str, **more: Any) -> None:
        _perform(
            json_output,
            experiment=name,
            action="transition",
            state=state,
            reason=reason,
            people=person,
            **more,
        )

    policy = _lifecycle()
    to("in_review", "analyst", "the design is complete")
    for role in policy.approvals.roles:
        _perform(json_output, experiment=name, action="approve", role=role, reason="agreed", people=role)
    to("approved", "analyst", "both approvals are there")
    to("scheduled", "analyst", "start is set")
    to("running", "analyst", "start")
    ends = {
        "stop_efficacy": "stopped_success", "stop_futility": "stopped_futility", "stop_safety": "stopped_harm",
    }  # fmt: skip
    seen = 0
    while True:
        _perform(json_output, experiment=name, action="simulate")
        _run(name, json_output=json_output)
        with engine(role="app").connect() as connection:
            newest = InterimAnalysis.read_newest(connection, name)
        if newest is not None and newest.decision in ends:
            to(ends[newest.decision], "committee", f"look {newest.analysis_number}")
            break
        # A last look that could not be evaluated is not final; without another look there is nothing to go on with.
        number = 0 if newest is None else newest.analysis_number
        if newest is None or number == seen or newest.analysis_type == "final":
            to("completed", "committee", "all planned information is there")
            break
        seen = number
    _run(name, json_output=json_output)
    to("analyzed", "analyst", "results are recorded")
    benefit = newest is not None and newest.decision == "stop_efficacy"
    decision = "implement_treatment" if benefit else "no_change"
    to("decided", "brand_lead", "by the results", decision=decision)
    _run(name, json_output=json_output)
