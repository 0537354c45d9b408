"""``e2i gate`` and ``e2i leakage-audit``: what the gate says and why, who answers for it, what leaks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from commands.console import as_json, command_errors, mapping_option, print_table, stop
from commands.launch import launch, refuse_failed
from e2i_dagster.errors import VerdictError


@click.group()
def gate() -> None:
    """The quality gate: what it says of the current data, data docs, and waivers."""


@gate.command("show")
@click.option("--table", help="One raw table, or training_frame.")
@click.option("--all", "everything", is_flag=True, help="Also what passed.")
@as_json
@command_errors
def show(table: str | None, everything: bool, json_output: bool) -> None:
    """Every current data version that is blocked, waived, warned of or not checked. Exit code 4 if any blocks."""
    from e2i_dagster.database.connection import engine
    from e2i_dagster.quality.table_check import gate_state

    states = gate_state(engine(role="app"), table)
    barred = [row for row in states if row["state"] in ("blocked", "not_checked")]
    found = {"data_versions": states}
    if not json_output:
        rows = [row for row in states if everything or row["state"] != "passed"]
        print_table("Gate", rows)
        passed = sum(row["state"] in ("passed", "warning") for row in states)
        click.echo(
            f"{passed} of {len(states)} data versions pass." if states else "Nothing is loaded: `e2i load`."
        )
    if barred:
        stop(VerdictError.joined([_barred(row) for row in barred]), json_output=json_output, report=found)
    if json_output:
        click.echo(json.dumps(found))


def _barred(row: dict[str, Any]) -> VerdictError:
    """Why one data version may not be used, and how it may."""
    remedy = f"Correct the data and load them again, or `e2i gate waive {row['table']} --help`."
    if row["state"] == "not_checked":
        remedy = "Check it: `e2i run` does what is missing."
    why = f" ({row['rules']})" if row["rules"] else ""
    said = f"{row['table']} {row['partition']}: {row['state'].replace('_', ' ')}{why}. {remedy}"
    return VerdictError(said, file=row["table"], field=row["partition"], value=row["rules"], remedy=remedy)


@gate.command("waive")
@click.argument("table")
@click.option("--rule", required=True, help="Blocking rule, as `e2i gate show` names it.")
@click.option("--partition", default="all", show_default=True, help="Month YYYY-MM.")
@click.option("--reason", required=True, help="Why the data may be used all the same; recorded.")
@click.option("--days", type=int, default=7, show_default=True, help="How long it holds.")
@as_json
@command_errors
def waive(table: str, rule: str, partition: str, reason: str, days: int, json_output: bool) -> None:
    """Answer for a blocking rule on the current version of TABLE (job `waive_gate`; person: E2I_ACTOR)."""
    from e2i_dagster.database.connection import engine
    from e2i_dagster.quality.waivers import find_waivers

    config = {"table": table, "rule": rule, "partition": partition, "reason": reason, "days": days}
    result = launch("waive_gate", {"waive_gate_rule": config}, show=False)
    if not result.success:
        refuse_failed(result, json_output=json_output)
    with engine(role="app").connect() as connection:
        (made,) = [waiver for waiver in find_waivers(connection) if waiver.run_id == result.run_id]
    if json_output:
        click.echo(json.dumps(_plain(made)))
    else:
        click.echo(made.text)
        click.echo(
            "Next: repeat the command that was blocked (what is made already is reused), or `Re-execute from "
            "failure` on a run that was launched in the UI."
        )


@gate.command("waivers")
@click.option("--all", "everything", is_flag=True, help="Also those that expired.")
@as_json
@command_errors
def waivers(everything: bool, json_output: bool) -> None:
    """Waivers that hold: who answers for what, why, until when."""
    import datetime as dt

    from e2i_dagster.database.connection import engine
    from e2i_dagster.quality.waivers import find_waivers

    with engine(role="app").connect() as connection:
        found = find_waivers(connection, holding_at=None if everything else dt.datetime.now(dt.UTC))
    rows = [_plain(verdict) for verdict in found]
    if json_output:
        click.echo(json.dumps(rows))
    elif rows:
        print_table("Waivers", rows, drop=("digest", "run_id"))
    else:
        click.echo("No waivers.")


@gate.command("docs")
@click.argument("table")
@click.option(
    "--partition", default="all", show_default=True, help="Month YYYY-MM; all: every row as one part."
)
@as_json
@command_errors
def docs(table: str, partition: str, json_output: bool) -> None:
    """Data docs of Great Expectations for TABLE as it is now (job `data_docs`): one page for a browser."""
    result = launch("data_docs", {"build_data_docs": {"table": table, "partition": partition}}, show=False)
    if not result.success:
        refuse_failed(result, json_output=json_output)
    (observation,) = result.get_asset_observation_events()
    metadata = observation.asset_observation_data.asset_observation.metadata
    shown = {"page": metadata["data_docs"].value, "expectations": metadata["expectations"].value}
    click.echo(json.dumps(shown) if json_output else f"{shown['expectations']}\nPage: {shown['page']}")


@click.command("leakage-audit")
@click.option(
    "--scope", help="Audit the current training frame and splits of a scope (`default`: the default one)."
)
@click.option("--file", "path", type=click.Path(path_type=Path, exists=True), help="Or a frame of your own.")
@click.option("--target", default="label", show_default=True, help="With --file: the label.")
@click.option("--id", "id_column", default="patient_id", show_default=True, help="With --file: the patient.")
@click.option("--index-date", help="With --file: column of the index date.")
@click.option("--splits", help="With --file: column of the split.")
@click.option("--outcome-window", help="With --file: columns that describe the outcome window, with commas.")
@mapping_option
@as_json
@command_errors
def leakage_audit(
    scope: str | None, path: Path | None, mapping: Path | None, json_output: bool, **columns: str | None
) -> None:
    """Audit for leakage (job `leakage_audit`); a file (CSV or Parquet) is only read. Exit code 4 if it leaks."""
    if path is not None and scope is not None:
        raise click.UsageError("--file and --scope exclude each other.")
    if path is None and mapping is not None:
        raise click.UsageError("--mapping says how a --file is written; name the file.")
    if path is not None:
        _audit_file(path, mapping, json_output, columns)
    else:
        _audit_scope(scope or "default", json_output)


def _audit_file(path: Path, mapping: Path | None, json_output: bool, columns: dict[str, str | None]) -> None:
    from e2i_dagster.config.mapping import HandedMapping
    from e2i_dagster.quality.leakage import audit
    from e2i_dagster.sources.handed import read_handed

    id_column, index_date = columns["id_column"] or "patient_id", columns["index_date"]
    frame = read_handed(
        path,
        text=(id_column,),
        times=(index_date,) if index_date else (),
        mapping=None if mapping is None else HandedMapping.load(mapping),
    )
    report = audit(
        frame,
        target=columns["target"] or "label",
        id_column=id_column,
        index_date=index_date,
        splits=columns["splits"],
        outcome_window=[
            window.strip() for window in (columns["outcome_window"] or "").split(",") if window.strip()
        ],
    )
    rows = [
        _finding(finding.rule, finding.severity, ", ".join(finding.columns), finding.evidence)
        | {"remedy": finding.remedy, "proposal": finding.proposal}
        for finding in report.findings
    ]
    skipped = [f"{check.kind}: {check.reason}" for check in report.checks if not check.ran]
    _print_audit(rows, skipped, report.blocking, json_output, file=str(path))


def _audit_scope(scope: str, json_output: bool) -> None:
    from e2i_dagster.database.connection import engine
    from e2i_dagster.quality.gate import find_verdicts, leakage_findings
    from jobs.sequence import scopes_named

    (name,) = scopes_named(scope)
    result = launch("leakage_audit", {"audit_scope": {"scope": name}}, show=False)
    with engine(role="app").connect() as connection:
        verdicts = [
            verdict
            for verdict in find_verdicts(connection, partition=name)
            if verdict.run_id == result.run_id
        ]
        rows = leakage_findings(connection, audited_by=result.run_id)
    if not verdicts:
        refuse_failed(result, json_output=json_output)
    _print_audit(rows, [], any(verdict.blocking for verdict in verdicts), json_output, file=name)


def _finding(rule: str, severity: str, columns: str, evidence: str) -> dict[str, Any]:
    return {"rule": rule, "severity": severity, "columns": columns, "evidence": evidence}


def _print_audit(
    rows: list[dict[str, Any]], skipped: list[str], blocking: bool, json_output: bool, *, file: str
) -> None:
    found = {"blocking": blocking, "findings": rows, "not_run": skipped}
    if not json_output:
        print_table("Leakage", rows, drop=("proposal",))
        for row in rows:
            if row.get("proposal"):
                click.echo(
                    f"{row['columns']}: {row['evidence']}. Rule for the cohort file:\n  {row['proposal']}"
                )
        for table in skipped:
            click.echo(f"not run: {table}")
        click.echo("It leaks: do not train on it." if blocking else "No leak that blocks was found.")
    if blocking:
        leaks = [_leak(file, row) for row in rows if row["severity"] == "fatal"]
        stop(VerdictError.joined(leaks), json_output=json_output, report=found)
    if json_output:
        click.echo(json.dumps(found))


def _leak(file: str, finding: dict[str, Any]) -> VerdictError:
    advice = finding.get("remedy") or "mend what the finding names, then audit again"
    remedy = f"{advice[0].upper()}{advice[1:]}."
    said = (
        f"{file}: {finding['columns'] or finding['rule']}: {finding['rule']}: {finding['evidence']}. {remedy}"
    )
    return VerdictError(
        said, file=file, field=finding["columns"] or None, value=finding["rule"], remedy=remedy
    )


def _plain(waiver: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {name: value if value is None else str(value) for name, value in asdict(waiver).items()}
