"""``e2i cohort``: why a patient is in or out, faults of definitions, differences, previews. They only read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from commands.console import as_json, command_errors, print_table, stop
from commands.omop import omop_command
from commands.status import never_loaded_words

if TYPE_CHECKING:
    import pandas as pd

    from e2i_dagster.cohorts import Cohort, CohortConfigError, CohortDefinition, LintReport
    from e2i_dagster.cohorts.executions import RecordedCohort
    from e2i_dagster.cohorts.lint import Finding
    from e2i_dagster.errors import VerdictError

exact_option = click.option(
    "--exact", is_flag=True, help="Without suppression; needs E2I_ALLOW_PATIENT_LEVEL=1, recorded."
)


@click.group()
def cohort() -> None:
    """Who is in a cohort and why: explain, lint, diff, preview; cohorts of OHDSI's tools: omop."""


cohort.add_command(omop_command)


@cohort.command("explain")
@click.argument("name", metavar="COHORT")
@click.argument("patient")
@click.option(
    "--as-of",
    metavar="RUN|MODEL",
    help="A run, a definition version, or a registered model (NAME/VERSION: the build that it learned from); the "
    "newest build by default.",
)
@as_json
@command_errors
def explain_command(name: str, patient: str, as_of: str | None, json_output: bool) -> None:
    """Every rule of COHORT for one PATIENT (or journey), with the values that it saw.

    Needs E2I_ALLOW_PATIENT_LEVEL=1; each opening is recorded in ml_patient_level_access.
    """
    from e2i_dagster.cohorts.access import record_opening, require_patient_level
    from e2i_dagster.cohorts.explain import explain
    from e2i_dagster.database.connection import engine
    from e2i_dagster.policy_files.environment import lake_url
    from e2i_dagster.versions.lake import Lake

    require_patient_level("e2i cohort explain")
    warehouse = engine(role="app")
    with warehouse.connect() as connection:
        _known(connection, name)
        answer = explain(connection, name, patient, as_of=as_of, lake=Lake(lake_url()))
    record_opening(warehouse, "explain", name, patient=patient, execution_id=answer.execution_id)
    if json_output:
        click.echo(json.dumps(answer.to_record()))
        return
    click.echo(
        f"{answer.cohort} version {answer.version}, execution {answer.execution_id} of {answer.executed_at}"
    )
    for journey in answer.journeys:
        click.echo(f"\nJourney {journey.patient_journey_id}, index date {journey.index_date or 'unknown'}:")
        click.echo(f"{journey.words()}.")
        rows = [
            {
                "#": rule.order,
                "rule": rule.rule,
                "verdict": rule.verdict,
                "found": rule.found or "",
                "demands": rule.demands,
            }
            for rule in journey.rules
        ]
        print_table("Rules", rows)


@cohort.command("lint")
@click.argument("names", metavar="[COHORT|FILE]...", nargs=-1)
@click.option("--data", is_flag=True, help="Look at the loaded data, too.")
@as_json
@command_errors
def lint_command(names: tuple[str, ...], data: bool, json_output: bool) -> None:
    """Faults of definitions: examples, contradictions; with --data also what the data make of them.

    Without a name all definitions are looked at. Exit code 4 when one has an error.
    """
    from e2i_dagster.cohorts import lint, patient_frame
    from e2i_dagster.cohorts.inputs import EVENT_TABLES, event_frame
    from e2i_dagster.config.cohort import CohortConfigError, read_cohorts
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.database.connection import engine
    from e2i_dagster.errors import VerdictError
    from e2i_dagster.versions.coverage import never_loaded

    broken: dict[str, CohortConfigError] = {}
    if names:
        definitions = [_definition(name) for name in names]
    else:
        found, unread = read_cohorts()
        definitions, broken = list(found.values()), unread
    patients = events = None
    missing: dict[str, list[str]] = {}
    if data:
        reads_events = any(definition.reads_events for definition in definitions)
        tables = _current_tables(
            "patient_journeys", "patient_clinical", *(EVENT_TABLES if reads_events else ())
        )
        patients = patient_frame(tables["patient_journeys"], tables["patient_clinical"])
        events = event_frame(tables, tables["patient_journeys"]) if reads_events else None
        lacking = never_loaded(engine(role="app"), current_policy().sources.months)
        missing = {table: lacking[table] for table in tables if table in lacking}
    reports = [
        lint(definition, patients, events if definition.reads_events else None) for definition in definitions
    ]
    unreadable = [{"cohort": key, "error": error.to_record()} for key, error in broken.items()]
    record: dict[str, Any] = {
        "cohorts": [*(report.model_dump(mode="json") for report in reports), *unreadable]
    }
    if data:
        record["never_loaded"] = missing
    if not json_output:
        for report in reports:
            _print_lint(report)
        for said in never_loaded_words(missing):
            click.echo(said)
    if broken:
        stop(CohortConfigError.joined(list(broken.values())), json_output=json_output, report=record)
    if not all(report.passed for report in reports):
        faults = [_fault(report.cohort, finding) for report in reports for finding in report.findings]
        stop(
            VerdictError.joined([fault for fault in faults if fault is not None]),
            json_output=json_output,
            report=record,
        )
    if json_output:
        click.echo(json.dumps(record))


def _fault(cohort: str, finding: Finding) -> VerdictError | None:
    """A finding that is an error; None for a warning."""
    from e2i_dagster.errors import VerdictError

    if finding.severity != "error":
        return None
    remedy = "Correct the rule in the definition, then lint again."
    said = f"{cohort}: {finding.rule}: {finding.kind}: {finding.message} {remedy}"
    return VerdictError(said, file=cohort, field=finding.rule, value=finding.kind, remedy=remedy)


@cohort.command("diff")
@click.argument("name", metavar="COHORT")
@click.option(
    "--from", "old", metavar="VERSION|RUN|FILE", help="The older side; the build before by default."
)
@click.option("--to", "new", metavar="VERSION|RUN|FILE", help="The newer side; the newest build by default.")
@exact_option
@as_json
@command_errors
def diff_command(name: str, old: str | None, new: str | None, exact: bool, json_output: bool) -> None:
    """What changed between two builds of COHORT: rules in words, patients gained and lost by rule.

    Both sides are recorded builds, so the difference may come from the definition, the data, or both. A FILE
    is compared by its rules only (its effect on patients: `e2i cohort preview`).
    """
    from e2i_dagster.cohorts.access import record_opening, require_patient_level
    from e2i_dagster.cohorts.compare import compare
    from e2i_dagster.database.connection import engine

    if exact:
        require_patient_level("e2i cohort diff --exact")
    warehouse = engine(role="app")
    with warehouse.connect() as connection:
        _known(connection, name)
        newer = _side(connection, name, new)
        older = _side(connection, name, old, before=newer)
    comparison = compare(older, newer)
    if exact:
        record_opening(warehouse, "diff --exact", name)
    record = comparison.to_metadata(exact=exact) | {"from": _side_words(older), "to": _side_words(newer)}
    if json_output:
        click.echo(json.dumps(record))
        return
    click.echo(f"from {record['from']}\nto   {record['to']}")
    _print_difference(record)


@cohort.command("preview")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@exact_option
@as_json
@command_errors
def preview_command(file: Path, exact: bool, json_output: bool) -> None:
    """What the definition in FILE would do with the loaded data. Writes nothing.

    Attrition, difference to the definition in force, labelled patients and prevalence of each scope on it.
    """
    from e2i_dagster.cohorts import lint, patient_frame
    from e2i_dagster.cohorts.access import record_opening, require_patient_level
    from e2i_dagster.cohorts.inputs import EVENT_TABLES, event_frame
    from e2i_dagster.cohorts.preview import preview
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.database.connection import engine
    from e2i_dagster.versions.coverage import coverage

    if exact:
        require_patient_level("e2i cohort preview --exact")
    definition = _in_file(file)
    policy = current_policy()
    scopes = [scope for scope in policy.scopes.values() if scope.cohort == definition.key]
    outcomes = {table for scope in scopes for table in scope.outcome.tables}
    live = policy.cohorts.get(definition.key)
    reads_events = definition.reads_events or (live is not None and live.reads_events)
    wanted = outcomes | set(EVENT_TABLES if reads_events else ())
    tables = _current_tables(
        "patient_journeys", "patient_clinical", *sorted(wanted), needs_events=definition.reads_events
    )
    covered = coverage(engine(role="app"), sorted(wanted), policy.sources.months)
    seen = preview(
        definition,
        patient_frame(tables["patient_journeys"], tables["patient_clinical"]),
        event_frame(tables, tables["patient_journeys"]) if reads_events else None,
        live=live,
        scopes=scopes,
        tables=tables,
        data_start=covered.start,
        data_end=covered.end,
        unobserved=covered.unobserved,
    )
    if exact:
        record_opening(engine(role="app"), "preview --exact", definition.key)
    report = lint(definition)
    record = seen.to_metadata(exact=exact) | {
        "lint": report.model_dump(mode="json"),
        "version_problem": _version_problem(definition),
    }
    if json_output:
        click.echo(json.dumps(record))
        return
    click.echo(f"{record['cohort']} version {record['version']} (not live: nothing was written)\n")
    for sentence in definition.sentences():
        click.echo(f"- {sentence}")
    click.echo(f"\n{record['input_patients']} patients came in.")
    print_table("Attrition", record["attrition"])
    for note in record["own_fields_not_converted"]:
        click.echo(f"Own field {note}.")
    if record["empty"]:
        click.echo(f"Nobody is left after the rule {record['empty']!r}.")
    if record["difference"] is None:
        click.echo(f"There is no definition {definition.key!r} in force to compare with.")
    else:
        _print_difference(record["difference"])
    print_table("Scopes", record["scopes"])
    click.echo()
    _print_lint(report)
    if record["version_problem"]:
        click.echo(f"It cannot go live like this. {record['version_problem']}")


def _print_difference(difference: dict[str, Any]) -> None:
    if difference["rules_changed"]:
        click.echo("\nRules that changed")
        for words in difference["rules_changed"]:
            click.echo(f"  - {words}")
    else:
        click.echo("\nNo rule changed.")
    if "lost" not in difference:
        click.echo("Only the rules were compared.")
        return
    click.echo(
        f"\nEligible patients: {difference['eligible_before']} before, {difference['eligible_after']} after; "
        f"{difference['lost']} lost, {difference['gained']} gained."
    )
    print_table("Lost, by the first rule that they fail now", difference["lost_by_rule"])
    print_table("Gained, by the first rule that they failed before", difference["gained_by_rule"])


def _print_lint(report: LintReport) -> None:
    state = "passed" if report.passed else "FAILED"
    click.echo(f"{report.cohort}: {state}, {report.examples} examples run")
    for finding in report.findings:
        rule = f" [{finding.rule}]" if finding.rule else ""
        click.echo(f"  {finding.severity} {finding.kind}{rule}: {finding.message}")


def _definition(name: str) -> CohortDefinition:
    """The definition in a file, or of a cohort's name."""
    from e2i_dagster.config.cohort import read_cohort

    return _in_file(Path(name)) if _is_file(name) else read_cohort(name)


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _in_file(path: Path) -> CohortDefinition:
    """The definition in a file of any name: a copy that is being worked on is called differently."""
    from e2i_dagster.config.cohort import CohortDefinition
    from e2i_dagster.config.cohort_fields import table_fields

    return CohortDefinition.from_file(path, table_fields())


def _version_problem(definition: CohortDefinition) -> str | None:
    """Why the warehouse would refuse the definition: other rules are recorded under its version."""
    from e2i_dagster.cohorts import CohortConfigError, require_new_version
    from e2i_dagster.database.connection import engine

    try:
        with engine(role="app").connect() as connection:
            require_new_version(connection, definition)
    except CohortConfigError as error:
        return str(error)
    return None


def _known(connection: Any, name: str) -> None:
    """Refuse what is not recorded by what is wrong with its file, and an unknown name with the names that are."""
    from e2i_dagster.cohorts.executions import executions
    from e2i_dagster.config.cohort import read_cohort

    if not executions(connection, name):
        read_cohort(name)


def _side(
    connection: Any,
    name: str,
    wanted: str | None,
    before: Cohort | RecordedCohort | CohortDefinition | None = None,
) -> RecordedCohort | CohortDefinition:
    """One side of a comparison; without a name the newest build, or the one before ``before``."""
    from e2i_dagster.cohorts.executions import RecordedCohort, executions, find_execution, read_execution
    from e2i_dagster.errors import InputError

    if wanted is not None and _is_file(wanted):
        return _in_file(Path(wanted))
    if wanted is None and isinstance(before, RecordedCohort):
        found = executions(connection, name)
        place = [execution.execution_id for execution in found].index(before.execution.execution_id)
        if place + 1 == len(found):
            remedy = "Compare with a file: `--from FILE`, or preview one: `e2i cohort preview FILE`."
            raise InputError(
                f"Cohort {name} was built once only ({before.execution.words()}); there is nothing older to "
                f"compare with. {remedy}",
                file=name, field="--from", remedy=remedy,
            )  # fmt: skip
        return read_execution(connection, found[place + 1])
    return read_execution(connection, find_execution(connection, name, wanted))


def _side_words(side: RecordedCohort | CohortDefinition) -> str:
    from e2i_dagster.config.cohort import CohortDefinition

    if isinstance(side, CohortDefinition):
        return f"the file's version {side.version}"
    return side.execution.words()


def _current_tables(*names: str, needs_events: bool = False) -> dict[str, pd.DataFrame]:
    from e2i_dagster.cohorts.inputs import read_current
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.database.connection import engine
    from e2i_dagster.policy_files.environment import lake_url
    from e2i_dagster.versions.lake import Lake

    months = current_policy().sources.months
    return read_current(engine(role="app"), Lake(lake_url()), names, months=months, needs_events=needs_events)
