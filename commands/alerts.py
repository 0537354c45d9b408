"""``e2i alerts``: what was raised, who looks after it, and what is silent."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import click

from commands.console import as_json, command_errors, print_table
from commands.launch import launch, refuse_failed

_DAYS = 7
_SHOWN = (
    "id",
    "severity",
    "status",
    "title",
    "partition",
    "occurrences",
    "updated_at",
    "owner",
    "next_command",
    "link",
)


@click.group()
def alerts() -> None:
    """Alerts: list, acknowledge one, silence a kind of them."""


@alerts.command("list")
@click.option("--days", type=click.FloatRange(min=0, min_open=True), default=_DAYS, show_default=True)
@click.option("--all", "everything", is_flag=True, help="Also what is acknowledged.")
@as_json
@command_errors
def list_(days: float, everything: bool, json_output: bool) -> None:
    """Alerts of the last days, the newest first, and the silences that hold."""
    from e2i_dagster.database.connection import engine
    from e2i_dagster.monitoring.alert_actions import list_alerts, list_silences

    now = dt.datetime.now(dt.UTC)
    with engine(role="app").connect() as connection:
        found = list_alerts(connection, since=now - dt.timedelta(days=days), everything=everything)
        silent = list_silences(connection, now=now)
    if json_output:
        click.echo(json.dumps({"alerts": found, "silences": silent}, default=_plain))
        return
    if found:
        print_table("Alerts", [_short(row) for row in found])
        for row in found:
            click.echo(f"{row['id']}: {row['message']}")
    else:
        click.echo(f"No alerts in the last {days:g} days{'' if everything else ' that nobody acknowledged'}.")
    for row in silent:
        about = row["subject"] or "everything"
        click.echo(
            f"Silent until {row['ends_at']:%Y-%m-%d %H:%M}: {row['alert_type']} about {about}, by "
            f"{row['silenced_by']}: {row['reason']}"
        )


@alerts.command("acknowledge")
@click.argument("alert")
@click.option("--reason", required=True, help="What is done about it; recorded.")
@click.option(
    "--days", type=float, default=1, show_default=True, help="Until then repetitions are only counted."
)
@as_json
@command_errors
def acknowledge(alert: str, reason: str, days: float, json_output: bool) -> None:
    """Look after ALERT, the beginning of a key of `e2i alerts list` (job `acknowledge_alert`; person: E2I_ACTOR)."""
    config = {"alert": alert, "reason": reason, "days": days}
    result = launch("acknowledge_alert", {"acknowledge_one_alert": config}, show=False)
    if not result.success:
        refuse_failed(result, json_output=json_output)
    from e2i_dagster.database.connection import engine
    from e2i_dagster.monitoring.alert_actions import list_alerts

    with engine(role="app").connect() as connection:
        ever = dt.datetime.fromtimestamp(0, dt.UTC)
        rows = list_alerts(connection, since=ever, everything=True)
    (row,) = [row for row in rows if str(row["id"]).startswith(alert.lower()[:8])]
    if json_output:
        click.echo(json.dumps(row, default=_plain))
    else:
        until = f"{row['acknowledged_until']:%Y-%m-%d %H:%M} UTC"
        click.echo(f"{row['title']}: acknowledged by {row['acknowledged_by']} until {until}.")


@alerts.command("silence")
@click.argument("alert_type")
@click.option("--subject", default="", help="What they are about (job, table, scope); all when left out.")
@click.option("--reason", required=True, help="Why; recorded.")
@click.option("--days", type=float, default=1, show_default=True, help="How long.")
@as_json
@command_errors
def silence(alert_type: str, subject: str, reason: str, days: float, json_output: bool) -> None:
    """Send alerts of ALERT_TYPE to nobody for a while (job `silence_alerts`; person: E2I_ACTOR)."""
    config = {"alert_type": alert_type, "subject": subject, "reason": reason, "days": days}
    result = launch("silence_alerts", {"silence_kind_of_alerts": config}, show=False)
    if not result.success:
        refuse_failed(result, json_output=json_output)
    from e2i_dagster.database.connection import engine
    from e2i_dagster.monitoring.alert_actions import list_silences

    with engine(role="app").connect() as connection:
        rows = list_silences(connection, now=dt.datetime.now(dt.UTC))
    (row,) = [row for row in rows if row["run_id"] == result.run_id]
    if json_output:
        click.echo(json.dumps(row, default=_plain))
    else:
        about = row["subject"] or "everything"
        click.echo(f"{alert_type} about {about}: silent until {row['ends_at']:%Y-%m-%d %H:%M} UTC.")


def _short(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _plain(row[name]) if name == "updated_at" else row[name] for name in _SHOWN}


def _plain(value: Any) -> str:
    return value.isoformat(timespec="minutes") if isinstance(value, dt.datetime) else str(value)
