"""The gate: verdicts on exact data versions, kept across runs, and the refusal to read what is not judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from e2i_dagster.config.quality import QualityPolicy, current_quality_policy
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.quality.dimensions import WHOLE
from e2i_dagster.quality.report import QualityReport, Verdict, rule_page
from e2i_dagster.quality.rules import ruleset_hash
from e2i_dagster.warehouse.tables import OPTIONAL_RAW_TABLES, RAW_TABLES
from e2i_dagster.warehouse.tables.quality import (
    data_quality_results,
    ml_data_quality_reports,
    ml_gate_verdicts,
    ml_leakage_audit,
)

if TYPE_CHECKING:
    from e2i_dagster.quality.leakage import LeakageReport

_LISTED = 20


@dataclass(frozen=True)
class DataRef:
    """One exact data version: raw table, partition (None for tables without) and digest of the ledger."""

    table: str
    partition: str | None
    digest: str


@dataclass(frozen=True)
class BlockedRule:
    """A finding that keeps a data version from being used."""

    rule: str
    column: str | None
    rows: int | None
    detail: str

    @property
    def page(self) -> str:
        """Page of the rule in the documentation."""
        return rule_page(self.rule)


@dataclass(frozen=True)
class GateVerdict:
    """The newest verdict on one data version under one set of rules."""

    table: str
    partition: str
    digest: str
    ruleset_hash: str
    verdict: Verdict
    blocking: bool
    rules: tuple[BlockedRule, ...]
    run_id: str | None = None
    judged_at: datetime | None = None


class QCGateBlockedError(VerdictError):
    """Data that is about to be read has no passing verdict.

    Attributes:
        blocked: each refused version and the rules that refuse it (``not_checked`` if none was run).
    """

    def __init__(self, blocked: Sequence[tuple[DataRef, tuple[BlockedRule, ...]]]) -> None:
        self.blocked = tuple(blocked)
        super().__init__(_refusal(self.blocked))


def record_verdicts(
    connection: sa.Connection,
    report: QualityReport,
    digests: Mapping[str, str],
    *,
    run_id: str | None = None,
) -> tuple[GateVerdict, ...]:
    """Store report, findings and verdict of every partition of ``report`` (the caller commits).

    Args:
        connection: to the warehouse.
        report: what was checked.
        digests: partition label (``all`` for a table without partitions) to the digest of the checked
            rows; a label of the report that has no digest was not stored as data and gets no verdict.
        run_id: Dagster run.

    Returns:
        The verdicts that were stored.

    Raises:
        InputError: a digest is given for a partition that the report does not have.
    """
    unknown = sorted(set(digests) - {part.partition for part in report.partitions})
    if unknown:
        raise InputError(
            f"{report.table}: digests for {', '.join(unknown)}, which the report does not have. "
            f"It has {', '.join(part.partition for part in report.partitions)}."
        )
    records = report.to_record()
    reports = [
        {**row, "digest": digests.get(row["partition"]), "run_id": run_id}
        for row in records["ml_data_quality_reports"]
    ]
    if reports:
        connection.execute(sa.insert(ml_data_quality_reports), reports)
    if records["data_quality_results"]:
        connection.execute(sa.insert(data_quality_results), records["data_quality_results"])
    identity = {row["partition"]: row["id"] for row in reports}
    verdicts = []
    for part in report.partitions:
        if part.partition not in digests:
            continue
        verdicts.append(
            GateVerdict(
                table=report.table,
                partition=part.partition,
                digest=digests[part.partition],
                ruleset_hash=report.ruleset_hash,
                verdict=part.verdict,
                blocking=bool(part.blocking),
                rules=tuple(
                    BlockedRule(one.rule, one.column, one.count, one.detail) for one in part.blocking
                ),
                run_id=run_id,
                judged_at=report.checked_at,
            )
        )
    if verdicts:
        rows = [_row(verdict) | {"report_id": identity[verdict.partition]} for verdict in verdicts]
        statement = insert(ml_gate_verdicts)
        keys = [column.name for column in ml_gate_verdicts.primary_key.columns]
        changed = {name: statement.excluded[name] for name in rows[0] if name not in keys}
        connection.execute(statement.on_conflict_do_update(index_elements=keys, set_=changed), rows)
    return tuple(verdicts)


def record_leakage(
    connection: sa.Connection,
    report: LeakageReport,
    *,
    subject: str,
    digest: str | None = None,
    audited_by: str | None = None,
) -> None:
    """Store the checks and findings of a leakage audit in ``ml_leakage_audit`` (the caller commits)."""
    rows = [
        {**row, "subject": subject, "digest": digest, "audited_by": audited_by}
        for row in report.to_record()["rows"]
    ]
    if rows:
        connection.execute(sa.insert(ml_leakage_audit), rows)


def find_verdicts(
    connection: sa.Connection, *, table: str | None = None, partition: str | None = None
) -> tuple[GateVerdict, ...]:
    """Stored verdicts, newest first; of one table and partition if named."""
    query = sa.select(ml_gate_verdicts).order_by(
        ml_gate_verdicts.c.judged_at.desc(), ml_gate_verdicts.c.table_name, ml_gate_verdicts.c.partition
    )
    if table is not None:
        query = query.where(ml_gate_verdicts.c.table_name == table)
    if partition is not None:
        query = query.where(ml_gate_verdicts.c.partition == partition)
    return tuple(_verdict(row) for row in connection.execute(query).mappings())


def require_gate(
    connection: sa.Connection, inputs: Iterable[DataRef], ruleset_hash: str | Mapping[str, str]
) -> tuple[GateVerdict, ...]:
    """Refuse to go on unless EVERY input has a verdict that does not block, under the current rules.

    Args:
        connection: to the warehouse.
        inputs: every part of the snapshot that is about to be read.
        ruleset_hash: current rules of each table (``{table: ruleset_hash(policy, table)}``), or one
            hash when all inputs are of one table.

    Returns:
        The verdict of each input, in the order of ``inputs``.

    Raises:
        QCGateBlockedError: an input was never checked in this version under these rules, or its
            verdict blocks. Names every such input with rule, rows, page and the next command.
    """
    wanted = list(inputs)
    hashes = {
        ref.table: ruleset_hash if isinstance(ruleset_hash, str) else ruleset_hash.get(ref.table, "")
        for ref in wanted
    }
    stored: dict[tuple[str, str, str], GateVerdict] = {}
    for table, current in hashes.items():
        digests = sorted({ref.digest for ref in wanted if ref.table == table})
        query = sa.select(ml_gate_verdicts).where(
            ml_gate_verdicts.c.table_name == table,
            ml_gate_verdicts.c.ruleset_hash == current,
            ml_gate_verdicts.c.digest.in_(digests),
        )
        for row in connection.execute(query).mappings():
            verdict = _verdict(row)
            stored[(table, verdict.partition, verdict.digest)] = verdict
    found: list[GateVerdict] = []
    blocked: list[tuple[DataRef, tuple[BlockedRule, ...]]] = []
    for ref in wanted:
        verdict = stored.get((ref.table, ref.partition or WHOLE, ref.digest))
        if verdict is None:
            detail = "this data version was never checked under the current rules"
            blocked.append((ref, (BlockedRule("not_checked", None, None, detail),)))
        elif verdict.blocking:
            blocked.append((ref, verdict.rules))
        else:
            found.append(verdict)
    if blocked:
        raise QCGateBlockedError(blocked)
    return tuple(found)


def require_raw_gate(
    connection: sa.Connection,
    inputs: Iterable[tuple[str, str | None, str]],
    policy: QualityPolicy | None = None,
) -> tuple[GateVerdict, ...]:
    """:func:`require_gate` for the raw tables among ``inputs`` under the current policy.

    Args:
        connection: to the warehouse.
        inputs: (asset, partition, digest) of everything that is about to be read; assets that are no
            raw tables have no quality verdict and are left out.
        policy: default: the policy of the configuration folder.

    Raises:
        QCGateBlockedError: a raw input has no passing verdict.
    """
    rules = policy or current_quality_policy()
    known = (*RAW_TABLES, *OPTIONAL_RAW_TABLES)
    raw = [
        DataRef(asset.removeprefix("raw/"), partition, digest)
        for asset, partition, digest in inputs
        if asset.removeprefix("raw/") in known
    ]
    return require_gate(
        connection, raw, {table: ruleset_hash(rules, table) for table in {ref.table for ref in raw}}
    )


def _row(verdict: GateVerdict) -> dict[str, Any]:
    return {
        "table_name": verdict.table,
        "partition": verdict.partition,
        "digest": verdict.digest,
        "ruleset_hash": verdict.ruleset_hash,
        "verdict": verdict.verdict,
        "blocking": verdict.blocking,
        "rules": [
            {"rule": one.rule, "column": one.column, "rows": one.rows, "detail": one.detail, "page": one.page}
            for one in verdict.rules
        ],
        "run_id": verdict.run_id,
        "judged_at": verdict.judged_at,
    }


def _verdict(row: Mapping[Any, Any]) -> GateVerdict:
    return GateVerdict(
        table=row["table_name"],
        partition=row["partition"],
        digest=row["digest"],
        ruleset_hash=row["ruleset_hash"],
        verdict=row["verdict"],
        blocking=row["blocking"],
        rules=tuple(
            BlockedRule(one["rule"], one["column"], one["rows"], one["detail"]) for one in row["rules"]
        ),
        run_id=row["run_id"],
        judged_at=row["judged_at"],
    )


def _refusal(blocked: Sequence[tuple[DataRef, tuple[BlockedRule, ...]]]) -> str:
    lines = [f"The quality gate blocks {len(blocked)} of the data versions that were about to be read:"]
    for ref, rules in blocked[:_LISTED]:
        for one in rules or (BlockedRule("check_error", None, None, "the check did not finish"),):
            where = f" on {one.column}" if one.column else ""
            rows = f", {one.rows:,} rows" if one.rows is not None else ""
            lines.append(
                f"- table {ref.table}, partition {ref.partition or WHOLE}: {one.rule}{where}{rows}: "
                f"{one.detail} (see {one.page})"
            )
    if len(blocked) > _LISTED:
        lines.append(f"- and {len(blocked) - _LISTED} more")
    unchecked = all(one.rule == "not_checked" for _, rules in blocked for one in rules)
    lines.append(
        "Next: run `e2i load`, which checks what it loads."
        if unchecked
        else "Next: correct the delivery and run `e2i load`, which checks the new version; then repeat this command."
    )
    return "\n".join(lines)
