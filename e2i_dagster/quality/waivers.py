"""Waivers: a person answers for one blocking rule on one exact data version, until a date.

Here belongs what may be waived, by whom and for how long. How a waiver lets a version pass is in ``gate``.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sa

from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.tables.description.quality import ml_gate_waivers

Authentication = Literal["authenticated", "self-declared"]
#: Rules of these families are faults of structure, of time or of the check itself: nobody can answer for them.
_NEVER = ("schema_", "leakage_", "not_checked", "check_error")


@dataclass(frozen=True)
class Waiver:
    """One waiver; ``partition`` is ``all`` for tables without partitions."""

    table: str
    partition: str
    digest: str
    rule: str
    reason: str
    waived_by: str
    authentication: Authentication
    created_at: dt.datetime
    expires_at: dt.datetime
    run_id: str | None = None

    def holds(self, now: dt.datetime) -> bool:
        """True until it expires."""
        return now < self.expires_at

    @property
    def text(self) -> str:
        """The waiver in one line, for checks, metadata and the dossier."""
        return (
            f"{self.table} [{self.partition}]: {self.rule} waived by {self.waived_by} ({self.authentication}) "
            f"until {self.expires_at:%Y-%m-%d %H:%M} UTC: {self.reason}"
        )


def may_be_waived(rule: str) -> bool:
    """True for rules that a person may answer for; never for schema faults, leakage, or what did not run."""
    return not rule.startswith(_NEVER)


def new_waiver(
    *,
    table: str,
    partition: str,
    digest: str,
    rule: str,
    blocking_rules: tuple[str, ...],
    reason: str,
    waived_by: str,
    authentication: Authentication,
    days: int,
    most_days: int,
    now: dt.datetime,
    run_id: str | None = None,
) -> Waiver:
    """A waiver, checked.

    Args:
        blocking_rules: rules that block this version now.
        days: how long it holds; at most ``most_days``.

    Raises:
        VerdictError: the rule is of a family that cannot be waived.
        InputError: the rule does not block this version, there is no reason or person, or the time is
            out of bounds.
    """
    if not may_be_waived(rule):
        remedy = f"Correct the delivery and run `e2i load` (see docs/rules/{rule}.md)."
        raise VerdictError(
            f"Rule {rule} cannot be waived: schema faults, leakage and checks that did not run are mended in the "
            f"data. {remedy}",
            file=table, field="rule", value=rule, remedy=remedy,
        )  # fmt: skip
    if rule not in blocking_rules:
        blocked = ", ".join(sorted(set(blocking_rules))) or "nothing"
        remedy = "`e2i gate show` lists every version that is blocked."
        raise InputError(
            f"Rule {rule} does not block table {table}, partition {partition}: what blocks it is {blocked}. "
            f"{remedy}",
            file=table, field="rule", value=rule, remedy=remedy,
        )  # fmt: skip
    if len(reason.strip()) < 10:
        remedy = "at least 10 characters are expected."
        raise InputError(
            f"The reason of a waiver is read by the next person: found {reason.strip()!r}, {remedy}",
            file=table, field="reason", value=reason.strip(), remedy=remedy,
        )  # fmt: skip
    if not waived_by.strip():
        remedy = "set E2I_ACTOR."
        raise InputError(f"A waiver names a person: {remedy}", field="E2I_ACTOR", remedy=remedy)
    if not 1 <= days <= most_days:
        remedy = f"A waiver holds for 1 to {most_days} days (config/quality.yaml: waivers.max_days)"
        raise InputError(f"{remedy}; found {days}.", file=table, field="days", value=days, remedy=remedy)
    return Waiver(
        table=table,
        partition=partition,
        digest=digest,
        rule=rule,
        reason=reason.strip(),
        waived_by=waived_by.strip(),
        authentication=authentication,
        created_at=now,
        expires_at=now + dt.timedelta(days=days),
        run_id=run_id,
    )


def record_waiver(connection: sa.Connection, waiver: Waiver) -> Waiver:
    """Store ``waiver`` (the caller commits)."""
    connection.execute(sa.insert(ml_gate_waivers).values(_row(waiver)))
    return waiver


def find_waivers(
    connection: sa.Connection, *, holding_at: dt.datetime | None = None, digests: list[str] | None = None
) -> tuple[Waiver, ...]:
    """Stored waivers, newest first; those that hold at ``holding_at``, of the versions ``digests``."""
    table = ml_gate_waivers
    query = sa.select(table).order_by(table.c.created_at.desc(), table.c.table_name, table.c.partition)
    if holding_at is not None:
        query = query.where(table.c.expires_at > holding_at)
    if digests is not None:
        query = query.where(table.c.digest.in_(digests))
    return tuple(
        Waiver(
            table=row.table_name,
            partition=row.partition,
            digest=row.digest,
            rule=row.rule_id,
            reason=row.reason,
            waived_by=row.waived_by,
            authentication=row.authentication,
            created_at=row.created_at,
            expires_at=row.expires_at,
            run_id=row.run_id,
        )
        for row in connection.execute(query)
    )


def _row(waiver: Waiver) -> dict[str, Any]:
    return {
        "table_name": waiver.table,
        "partition": waiver.partition,
        "digest": waiver.digest,
        "rule_id": waiver.rule,
        "reason": waiver.reason,
        "waived_by": waiver.waived_by,
        "authentication": waiver.authentication,
        "run_id": waiver.run_id,
        "created_at": waiver.created_at,
        "expires_at": waiver.expires_at,
    }
