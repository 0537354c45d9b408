"""The gate: verdicts on exact data versions, kept across runs, and the refusal to read what is not judged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from e2i_dagster.config.quality import QualityPolicy, current_quality_policy
from e2i_dagster.database.upsert import upsert
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.quality.dimensions import WHOLE
from e2i_dagster.quality.report import QualityReport, Verdict, rule_page
from e2i_dagster.quality.rules import ruleset_hash
from e2i_dagster.quality.waivers import Waiver, find_waivers, may_be_waived
from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES
from e2i_dagster.tables.description.quality import (
    data_quality_results,
    ml_data_quality_reports,
    ml_gate_verdicts,
    ml_leakage_audit,
)
from e2i_dagster.versions import ledger

if TYPE_CHECKING:
    from e2i_dagster.quality.leakage import LeakageReport

_LISTED = 20
#: Frames that are audited for leakage before anything is trained on them.
FRAME, SPLITS = "training_frame", "splits"
#: Schema rules about the values of one column: they stop those who read the column, and warn the others.
_ONE_COLUMN = frozenset(
    {
        "schema_type", "schema_not_null", "schema_finite", "schema_range", "schema_vocabulary",
        "schema_key_format", "schema_required_column", "schema_expected_column",
    }
)  # fmt: skip
#: Columns that a consumer reads of each table; a table that is not named is read whole.
Reads = Mapping[str, Sequence[str]]


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
    """The newest verdict on one data version under one set of rules.

    Attributes:
        rules: what blocks the version.
        waivers: waivers that let it pass all the same, for the consumer that asked.
        elsewhere: rules on columns that the consumer does not read: a warning for it.
    """

    table: str
    partition: str
    digest: str
    ruleset_hash: str
    verdict: Verdict
    blocking: bool
    rules: tuple[BlockedRule, ...]
    run_id: str | None = None
    judged_at: datetime | None = None
    waivers: tuple[Waiver, ...] = ()
    elsewhere: tuple[BlockedRule, ...] = ()


class QCGateBlockedError(VerdictError):
    """Data that is about to be read has no passing verdict.

    Attributes:
        blocked: each refused version and the rules that refuse it (``not_checked`` if none was run).
    """

    def __init__(self, blocked: Sequence[tuple[DataRef, tuple[BlockedRule, ...]]]) -> None:
        self.blocked = tuple(blocked)
        parts = [_one_refusal(ref, rules) for ref, rules in self.blocked]
        super().__init__(
            _refusal(self.blocked),
            **parts[0].known | {"remedy": _next_command(self.blocked)},
            parts=parts if len(parts) > 1 else (),
        )


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
            f"{report.table}: digests for {', '.join(unknown)}, which the report does not have.",
            field="digests",
            value=unknown[0],
            remedy=f"It has {', '.join(part.partition for part in report.partitions)}.",
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
                    BlockedRule(rule.rule, rule.column, rule.count, rule.detail) for rule in part.blocking
                ),
                run_id=run_id,
                judged_at=report.checked_at,
            )
        )
    _store(connection, [_row(verdict) | {"report_id": identity[verdict.partition]} for verdict in verdicts])
    return tuple(verdicts)


def _store(connection: sa.Connection, rows: Sequence[Mapping[str, Any]]) -> None:
    if not rows:
        return
    connection.execute(upsert(ml_gate_verdicts, rows[0]), list(rows))


def record_audit(
    connection: sa.Connection,
    report: LeakageReport,
    ref: DataRef,
    *,
    rules: str,
    needed: Sequence[str],
    run_id: str | None = None,
) -> GateVerdict:
    """Store a leakage audit and its verdict on ``ref`` (the caller commits).

    Args:
        report: what was audited.
        ref: ``training_frame`` or ``splits`` of a scope, and the version that was audited.
        rules: :func:`~e2i_dagster.quality.leakage.audit_rules` of the audit.
        needed: checks that must have run; one that did not blocks, as ``not_checked``.
    """
    blocking = [
        BlockedRule(
            finding.rule,
            ", ".join(finding.columns) or None,
            finding.affected,
            f"{finding.evidence}; {finding.remedy}",
        )
        for finding in report.findings
        if finding.severity == "fatal"
    ]
    for check in report.checks:
        failed = any(
            finding.rule == "check_error" and finding.kind == check.kind for finding in report.findings
        )
        if check.kind in needed and not check.ran and not failed:
            detail = f"the leakage check {check.kind} did not run: {check.reason}"
            blocking.append(BlockedRule("not_checked", None, None, detail))
    warned = any(finding.severity == "convention" for finding in report.findings)
    verdict = GateVerdict(
        table=ref.table,
        partition=ref.partition or WHOLE,
        digest=ref.digest,
        ruleset_hash=rules,
        verdict="failed" if blocking else "warning" if warned else "passed",
        blocking=bool(blocking),
        rules=tuple(blocking),
        run_id=run_id,
        judged_at=datetime.now(UTC),
    )
    _store(connection, [_row(verdict)])
    record_leakage(
        connection, report, subject=f"{ref.table}/{ref.partition}", digest=ref.digest, audited_by=run_id
    )
    return verdict


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


def leakage_findings(connection: sa.Connection, *, audited_by: str) -> list[dict[str, Any]]:
    """What the audits of one run found: asset, rule, severity, columns, evidence and remedy, the worst first."""
    table = ml_leakage_audit
    severities = {"critical": "fatal", "warning": "convention", "info": "characterization"}
    query = sa.select(table).where(table.c.audited_by == audited_by, table.c.remediation_action.is_not(None))
    found = []
    for row in connection.execute(query.order_by(table.c.audit_id)):
        columns, _, evidence = row.details.partition(": ")
        found.append(
            {
                "asset": row.subject.partition("/")[0],
                "rule": f"leakage_{row.check_type}",
                "severity": severities[row.severity],
                "columns": columns,
                "evidence": evidence,
                "remedy": row.remediation_action,
            }
        )
    return sorted(found, key=lambda row: list(severities.values()).index(row["severity"]))


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
    connection: sa.Connection,
    inputs: Iterable[DataRef],
    ruleset_hash: str | Mapping[str, str],
    *,
    reads: Reads | None = None,
    waivers: bool = True,
    now: datetime | None = None,
) -> tuple[GateVerdict, ...]:
    """Refuse to go on unless EVERY input has a verdict that does not block, under the current rules.

    Args:
        connection: to the warehouse.
        inputs: every part of the snapshot that is about to be read.
        ruleset_hash: current rules of each table (``{table: ruleset_hash(policy, table)}``), or one
            hash when all inputs are of one table.
        reads: columns that the consumer reads of each table (default: all). A fault in the values of
            another column is in ``elsewhere`` of the verdict and does not stop the consumer.
        waivers: whether waivers that hold let a version pass; they are in ``waivers`` of its verdict.
        now: time at which waivers must hold. Default: now.

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
    failing = sorted({verdict.digest for verdict in stored.values() if verdict.blocking})
    given = find_waivers(connection, digests=failing) if failing else ()
    found: list[GateVerdict] = []
    blocked: list[tuple[DataRef, tuple[BlockedRule, ...]]] = []
    for ref in wanted:
        verdict = stored.get((ref.table, ref.partition or WHOLE, ref.digest))
        if verdict is None:
            detail = "this data version was never checked under the current rules"
            blocked.append((ref, (BlockedRule("not_checked", None, None, detail),)))
            continue
        verdict, left = _apply_waivers(verdict, given, reads or {}, now or datetime.now(UTC), waivers)
        # An interrupted check can leave a blocking verdict without a rule: it blocks all the same.
        if left or (verdict.blocking and not verdict.rules):
            blocked.append((ref, left))
        else:
            found.append(verdict)
    if blocked:
        raise QCGateBlockedError(blocked)
    return tuple(found)


def _apply_waivers(
    verdict: GateVerdict, given: Sequence[Waiver], reads: Reads, now: datetime, use_waivers: bool
) -> tuple[GateVerdict, tuple[BlockedRule, ...]]:
    """``verdict`` with the waivers that hold and what concerns others, and the rules that still block."""
    if not verdict.blocking:
        return verdict, ()
    mine = {
        waiver.rule: waiver
        for waiver in sorted(given, key=lambda waiver: waiver.expires_at)
        if (waiver.table, waiver.partition, waiver.digest)
        == (verdict.table, verdict.partition, verdict.digest)
        and may_be_waived(waiver.rule)
    }
    read = reads.get(verdict.table)
    used: dict[str, Waiver] = {}
    left: list[BlockedRule] = []
    elsewhere: list[BlockedRule] = []
    for rule in verdict.rules:
        waiver = mine.get(rule.rule)
        if (
            read is not None
            and rule.rule in _ONE_COLUMN
            and rule.column is not None
            and rule.column not in read
        ):
            elsewhere.append(rule)
        elif waiver is None:
            left.append(rule)
        elif use_waivers and waiver.holds(now):
            used[waiver.rule] = waiver
        else:
            state = "holds" if waiver.holds(now) else "expired"
            detail = f"{rule.detail} (waiver of {waiver.waived_by} {state}: {waiver.expires_at:%Y-%m-%d})"
            left.append(replace(rule, detail=detail))
    return replace(verdict, waivers=tuple(used.values()), elsewhere=tuple(elsewhere)), tuple(left)


def require_raw_gate(
    connection: sa.Connection,
    inputs: Iterable[tuple[str, str | None, str]],
    policy: QualityPolicy | None = None,
    *,
    reads: Reads | None = None,
    waivers: bool = True,
) -> tuple[GateVerdict, ...]:
    """:func:`require_gate` for the raw tables among ``inputs`` under the current policy.

    Args:
        connection: to the warehouse.
        inputs: (asset, partition, digest) of everything that is about to be read; assets that are no
            raw tables have no quality verdict and are left out.
        policy: default: the policy of the configuration folder.
        reads, waivers: as in :func:`require_gate`.

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
    hashes = {table: ruleset_hash(rules, table) for table in {ref.table for ref in raw}}
    return require_gate(connection, raw, hashes, reads=reads, waivers=waivers)


def waivers_of(
    connection: sa.Connection,
    inputs: Sequence[tuple[str, str | None, str]],
    verdicts: Iterable[GateVerdict],
) -> list[str]:
    """Waivers under which ``verdicts`` pass, and those that the makers of ``inputs`` stood under; sorted lines."""
    texts = {waiver.text for verdict in verdicts for waiver in verdict.waivers}
    versions = {(asset, partition, digest) for asset, partition, digest in inputs}
    for asset in {asset for asset, _, _ in inputs} - {*RAW_TABLES, *OPTIONAL_RAW_TABLES}:
        for partition, version in ledger.current(connection, asset).items():
            if (asset, partition, version.digest) in versions:
                texts.update(version.metadata.get("waived", ()))
    return sorted(texts)


def audited_refs(inputs: Iterable[tuple[str, str | None, str]]) -> tuple[DataRef, ...]:
    """What must have passed the leakage audit before ``inputs`` are read.

    A training frame for itself; splits together with the frame that they split, as one version.
    """
    given = {(asset, partition): digest for asset, partition, digest in inputs}
    refs = []
    for (asset, scope), digest in given.items():
        if asset == FRAME:
            refs.append(DataRef(FRAME, scope, digest))
            if (SPLITS, scope) in given:
                refs.append(splits_ref(scope, frame=digest, splits=given[(SPLITS, scope)]))
    return tuple(refs)


def splits_ref(scope: str | None, *, frame: str, splits: str) -> DataRef:
    """The version of splits applied to a frame: both decide whether a patient is on two sides."""
    return DataRef(SPLITS, scope, ledger.combined_digest({FRAME: frame, SPLITS: splits}))


def require_audit(
    connection: sa.Connection,
    inputs: Iterable[tuple[str, str | None, str]],
    policy: QualityPolicy | None = None,
) -> tuple[GateVerdict, ...]:
    """Refuse training data among ``inputs`` that has no passed leakage audit under the current rules.

    Raises:
        QCGateBlockedError: a training frame or its splits were never audited in this version, or leak.
    """
    from e2i_dagster.quality.leakage import audit_rules

    refs = audited_refs(inputs)
    return require_gate(connection, refs, audit_rules(policy)) if refs else ()


def _row(verdict: GateVerdict) -> dict[str, Any]:
    return {
        "table_name": verdict.table,
        "partition": verdict.partition,
        "digest": verdict.digest,
        "ruleset_hash": verdict.ruleset_hash,
        "verdict": verdict.verdict,
        "blocking": verdict.blocking,
        "rules": [
            {
                "rule": rule.rule,
                "column": rule.column,
                "rows": rule.rows,
                "detail": rule.detail,
                "page": rule.page,
            }
            for rule in verdict.rules
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
            BlockedRule(rule["rule"], rule["column"], rule["rows"], rule["detail"]) for rule in row["rules"]
        ),
        run_id=row["run_id"],
        judged_at=row["judged_at"],
    )


#: What stands for the rules of a version whose check ended without saying any.
_UNFINISHED = (BlockedRule("check_error", None, None, "the check did not finish"),)


def _one_refusal(ref: DataRef, rules: tuple[BlockedRule, ...]) -> VerdictError:
    """Why one data version may not be read: its table, its partition, the rules, and how it may."""
    remedy = _next_command([(ref, rules)])
    named = ", ".join(dict.fromkeys(rule.rule for rule in rules or _UNFINISHED))
    partition = ref.partition or WHOLE
    return VerdictError(
        f"{ref.table} {partition}: {named}. Next: {remedy}",
        file=ref.table, field=partition, value=named, remedy=remedy,
    )  # fmt: skip


def _refusal(blocked: Sequence[tuple[DataRef, tuple[BlockedRule, ...]]]) -> str:
    lines = [f"The quality gate blocks {len(blocked)} of the data versions that were about to be read:"]
    for ref, rules in blocked[:_LISTED]:
        for rule in rules or _UNFINISHED:
            where = f" on {rule.column}" if rule.column else ""
            rows = f", {rule.rows:,} rows" if rule.rows is not None else ""
            lines.append(
                f"- table {ref.table}, partition {ref.partition or WHOLE}: {rule.rule}{where}{rows}: "
                f"{rule.detail} (see {rule.page})"
            )
    if len(blocked) > _LISTED:
        lines.append(f"- and {len(blocked) - _LISTED} more")
    lines.append(f"Next: {_next_command(blocked)}")
    return "\n".join(lines)


def _next_command(blocked: Sequence[tuple[DataRef, tuple[BlockedRule, ...]]]) -> str:
    ref, rules = blocked[0]
    unchecked = all(rule.rule == "not_checked" for _, found in blocked for rule in found)
    if all(part.table in (FRAME, SPLITS) for part, _ in blocked):
        audit = f"e2i leakage-audit --scope {ref.partition}"
        if unchecked:
            return f"run `{audit}`, which audits this version; then repeat this command."
        return f"mend what the findings name (`{audit}` shows them) and make the frame again; leakage is never waived."
    if unchecked:
        return "run `e2i load`, which checks what it loads."
    text = "correct the delivery and run `e2i load`, which checks the new version; then repeat this command."
    if all(may_be_waived(rule.rule) for _, found in blocked for rule in found) and rules:
        text += (
            f" Or answer for it: `e2i gate waive {ref.table} --partition {ref.partition or WHOLE} "
            f"--rule {rules[0].rule} --reason ...`."
        )
    return text
