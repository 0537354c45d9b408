"""What the next person on duty has to know, on one page, from stored state alone.

Each part is read on its own: what cannot be read is *unknown* with the reason, which is neither "nothing" nor a reason
to withhold the rest.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict
from sqlalchemy.dialects.postgresql import distinct_on
from sqlalchemy.exc import DBAPIError

from e2i_dagster.display import Table
from e2i_dagster.errors import E2IError
from e2i_dagster.reports import Section, html_page

#: Alerts older than this are no news to anybody.
ALERT_DAYS = 30
_IN_ORDER = ("executed", "reused", "absent", "skipped")

Rows = list[dict[str, Any]]


class Part(BaseModel):
    """One part of the page.

    Attributes:
        rows: what was found; each row has the same keys.
        nothing: what is said when there are no rows.
        waits: whether each row waits for somebody to act.
        unknown: why the part could not be read; None when it was.
    """

    model_config = ConfigDict(frozen=True)

    title: str
    rows: Rows = []
    nothing: str
    waits: bool = False
    unknown: str | None = None


class Handover(BaseModel):
    """The page: when it was read, and its parts by key."""

    model_config = ConfigDict(frozen=True)

    at: dt.datetime
    parts: dict[str, Part]

    @property
    def waiting(self) -> dict[str, int | None]:
        """How much waits for somebody, by part; None where that is unknown."""
        return {
            key: None if part.unknown is not None else len(part.rows)
            for key, part in self.parts.items()
            if part.waits
        }

    def to_record(self) -> dict[str, Any]:
        """The page as JSON-compatible values."""
        return {**self.model_dump(mode="json"), "waiting": self.waiting}

    def summary(self) -> Table:
        """What waits for somebody, a row for each part that has something or cannot be read."""
        rows = [
            (self.parts[key].title, "unknown" if count is None else count, self.parts[key].unknown or "")
            for key, count in self.waiting.items()
            if count != 0
        ]
        return Table(("what waits", "how many", "why unknown"), rows, empty="Nothing waits for anybody.")

    def html(self) -> str:
        """One self-contained page."""
        sections = [Section("What waits for somebody", [self.summary()])]
        for part in self.parts.values():
            said = (
                f"Unknown: {part.unknown}" if part.unknown is not None else table_of(part.rows, part.nothing)
            )
            sections.append(Section(part.title, [said]))
        return html_page("Handover", sections, subtitle=f"State of {self.at:%Y-%m-%d %H:%M} UTC")


def table_of(rows: Rows, nothing: str) -> Table:
    """``rows`` as a table."""
    columns = tuple(rows[0]) if rows else ()
    return Table(columns, [tuple(row[name] for name in columns) for row in rows], empty=nothing)


def read_handover(
    engine: Callable[[], sa.Engine], automations: Callable[[], Rows], *, now: dt.datetime
) -> Handover:
    """Read every part.

    Args:
        engine: gives the warehouse; what it raises makes the parts of the warehouse unknown.
        automations: schedules and sensors (``name``, ``kind``, ``state``, ``set by``).
    """

    def of_warehouse(read: Callable[[sa.Connection], Rows]) -> Callable[[], Rows]:
        def rows() -> Rows:
            with engine().connect() as connection:
                return read(connection)

        return rows

    def gate() -> Rows:
        return _gate(engine())

    return Handover(
        at=now,
        parts={
            "blocked": _part("Data versions that may not be used", gate, "Nothing is blocked.", waits=True),
            "stages": _part(
                "Stages that did not end well", of_warehouse(_stages), "Every stage ended well.", waits=True
            ),
            "loads": _part(
                "Deliveries that failed or were withheld",
                of_warehouse(_loads),
                "The newest load of each table took everything.",
                waits=True,
            ),
            "rejects": _part("Open rejects", lambda: _rejects(engine()), "No open rejects.", waits=True),
            "notes": _part(
                "Good results that wait for somebody", of_warehouse(_notes), "No notes.", waits=True
            ),
            "proposals": _part(
                "Open proposals of promotion", of_warehouse(_proposals), "Nothing is proposed.", waits=True
            ),
            "retraining": _part(
                "Proposed retraining since the scope was last trained",
                of_warehouse(_retraining),
                "No retraining is proposed.",
                waits=True,
            ),
            "alerts": _part(
                f"Alerts of the last {ALERT_DAYS} days that nobody acknowledged",
                of_warehouse(lambda connection: _alerts(connection, now)),
                "No alerts.",
                waits=True,
            ),
            "experiments": _part(
                "Experiments that are not decided", of_warehouse(_experiments), "No experiments.", waits=True
            ),
            "policy_files": _part(
                "Policy files that take no part because they are wrong",
                _wrong_files,
                "All are right.",
                waits=True,
            ),
            "drafts": _part("Drafts of cohorts and their scopes", _drafts, "No drafts."),
            "waivers": _part(
                "Waivers that hold",
                of_warehouse(lambda connection: _waivers(connection, now)),
                "No waivers.",
            ),
            "silences": _part(
                "Silenced alerts",
                of_warehouse(lambda connection: _silences(connection, now)),
                "Nothing is silenced.",
            ),
            "slots": _part("Model versions by slot", of_warehouse(_slots), "Nothing is deployed."),
            "automations": _part("Schedules and sensors", automations, "There are none."),
        },
    )


def _part(title: str, read: Callable[[], Rows], nothing: str, *, waits: bool = False) -> Part:
    try:
        return Part(title=title, rows=read(), nothing=nothing, waits=waits)
    except E2IError as error:
        unknown = str(error)
    except DBAPIError as error:
        unknown = f"the warehouse said: {str(error.orig).strip().splitlines()[0]}"
    except OSError as error:
        unknown = f"{error.filename or 'the state folder'} cannot be read ({error.strerror or error})"
    return Part(title=title, nothing=nothing, waits=waits, unknown=unknown)


def _gate(engine: sa.Engine) -> Rows:
    from e2i_dagster.quality.table_check import gate_state

    return [row for row in gate_state(engine) if row["state"] in ("blocked", "not_checked")]


def _stages(connection: sa.Connection) -> Rows:
    from e2i_dagster.versions.ledger import states

    return [
        {
            "stage": state.stage,
            "partition": state.partition or "",
            "state": state.state,
            "since": state.at,
            "reason": state.reason or "",
        }
        for state in states(connection)
        if state.state not in _IN_ORDER
    ]


def _loads(connection: sa.Connection) -> Rows:
    from e2i_dagster.tables.description.control import ml_table_loads as loads

    query = (
        sa.select(loads.c.table_name, loads.c.status, loads.c.loaded_at, loads.c.message)
        .ext(distinct_on(loads.c.table_name))
        .where(loads.c.status != "dry_run")
        .order_by(loads.c.table_name, loads.c.loaded_at.desc())
    )
    return [
        {"table": row.table_name, "status": row.status, "at": row.loaded_at, "message": row.message or ""}
        for row in connection.execute(query)
        if row.status in ("partial", "failed", "skipped")
    ]


def _rejects(engine: sa.Engine) -> Rows:
    from e2i_dagster.loading.rejects import summary

    return [{str(name): value for name, value in row.items()} for row in summary(engine).to_dict("records")]


def _notes(connection: sa.Connection) -> Rows:
    from e2i_dagster.versions.ledger import notes

    return [
        {"stage": stage, "partition": partition or "", "note": note}
        for (stage, partition), note in sorted(
            notes(connection).items(), key=lambda item: (item[0][0], item[0][1] or "")
        )
    ]


def _proposals(connection: sa.Connection) -> Rows:
    from e2i_dagster.registry.history import open_proposals, stage_history
    from e2i_dagster.tables.description.models import ml_model_stage_history as history

    names = connection.scalars(sa.select(history.c.model_name).distinct().order_by(history.c.model_name))
    return [
        {
            "model": event.model_name,
            "version": event.model_version,
            "to": event.to_stage,
            "proposed by": event.actor,
            "at": event.recorded_at,
            "reason": event.reason,
        }
        for name in names.all()
        for event in open_proposals(stage_history(connection, name))
    ]


def _retraining(connection: sa.Connection) -> Rows:
    from e2i_dagster.tables.description.control import ml_data_versions as versions
    from e2i_dagster.tables.description.monitoring import ml_retraining_history as proposed

    trained = (
        sa.select(sa.func.max(versions.c.at))
        .where(versions.c.asset == "trained_model", versions.c.partition == proposed.c.scope)
        .scalar_subquery()
    )
    query = (
        sa.select(proposed.c.scope, proposed.c.model_id, proposed.c.trigger_reason, proposed.c.triggered_at)
        .where(proposed.c.status == "proposed", sa.or_(trained.is_(None), trained < proposed.c.triggered_at))
        .order_by(proposed.c.scope, proposed.c.triggered_at.desc())
        .ext(distinct_on(proposed.c.scope))
    )
    return [
        {"scope": row.scope, "model": row.model_id, "at": row.triggered_at, "reason": row.trigger_reason}
        for row in connection.execute(query)
    ]


def _alerts(connection: sa.Connection, now: dt.datetime) -> Rows:
    from e2i_dagster.monitoring.alert_actions import list_alerts

    columns = ("id", "severity", "title", "partition", "occurrences", "updated_at", "owner", "next_command")
    found = list_alerts(connection, since=now - dt.timedelta(days=ALERT_DAYS))
    return [{name: alert[name] for name in columns} for alert in found]


def _silences(connection: sa.Connection, now: dt.datetime) -> Rows:
    from e2i_dagster.monitoring.alert_actions import list_silences

    columns = ("alert_type", "subject", "silenced_by", "ends_at", "reason")
    return [{name: silence[name] for name in columns} for silence in list_silences(connection, now=now)]


def _waivers(connection: sa.Connection, now: dt.datetime) -> Rows:
    from e2i_dagster.quality.waivers import find_waivers

    return [
        {
            "table": waiver.table,
            "partition": waiver.partition,
            "rule": waiver.rule,
            "by": waiver.waived_by,
            "until": waiver.expires_at,
            "reason": waiver.reason,
        }
        for waiver in find_waivers(connection, holding_at=now)
    ]


def _experiments(connection: sa.Connection) -> Rows:
    from e2i_dagster.config.experiment import LifecyclePolicy
    from e2i_dagster.experiments.conduct import store
    from e2i_dagster.policy_files.environment import config_folder

    policy = LifecyclePolicy.load(config_folder())
    rows: Rows = []
    for name, experiment in store.read_all(connection).items():
        following = policy.transitions[experiment.state]
        if following:
            missing = store.review(connection, experiment, policy).missing
            rows.append(
                {
                    "experiment": name,
                    "state": experiment.state,
                    "next states": ", ".join(following),
                    "approvals missing": ", ".join(missing),
                }
            )
    return rows


def _wrong_files() -> Rows:
    from e2i_dagster.config.validate import folder_errors
    from e2i_dagster.policy_files.environment import config_folder

    return [
        {"file": error.file or "", "field": error.field or "", "message": str(error)}
        for error in folder_errors(config_folder())
    ]


def _drafts() -> Rows:
    from e2i_dagster.config.policy import current_policy

    policy = current_policy()
    drafts = {name for name, cohort in policy.cohorts.items() if cohort.approval is None}
    return [
        {
            "cohort": name,
            "scopes that stay in development": ", ".join(
                sorted(scope for scope, spec in policy.scopes.items() if spec.cohort == name)
            ),
        }
        for name in sorted(drafts)
    ]


def _slots(connection: sa.Connection) -> Rows:
    from e2i_dagster.tables.description.serving import ml_deployments as deployments

    query = (
        sa.select(deployments)
        .where(deployments.c.status == "active")
        .order_by(deployments.c.model_name, deployments.c.environment)
    )
    return [
        {
            "model": row.model_name,
            "slot": row.environment,
            "version": row.model_version,
            "service": row.endpoint_name or "",
            "since": row.deployed_at,
            "deployed by": row.deployed_by or "",
        }
        for row in connection.execute(query)
    ]


def automation_rows(declared: Sequence[tuple[str, str, bool]], stored: Mapping[str, bool]) -> Rows:
    """Schedules and sensors as rows.

    Args:
        declared: name, kind and whether it is on at the start, as the code says.
        stored: name to whether somebody switched it on, as the instance says.
    """
    return [
        {
            "name": name,
            "kind": kind,
            "state": "on" if stored.get(name, on) else "off",
            "set by": "switched by somebody" if name in stored else "as delivered",
        }
        for name, kind, on in declared
    ]


__all__ = ["Handover", "Part", "automation_rows", "read_handover", "table_of"]
