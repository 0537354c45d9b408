"""A raw table checked and its verdicts kept; and what the gate says of the versions in the ledger."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.policy import current_policy
from e2i_dagster.config.quality import QualityPolicy, current_quality_policy
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.policy_files.pseudonyms import pseudonym_key
from e2i_dagster.quality.data_docs import DataDocs, build_data_docs
from e2i_dagster.quality.dimensions import WHOLE
from e2i_dagster.quality.gate import (
    FRAME,
    SPLITS,
    DataRef,
    QCGateBlockedError,
    find_verdicts,
    record_audit,
    record_verdicts,
    require_audit,
    require_raw_gate,
    splits_ref,
)
from e2i_dagster.quality.history import find_previous, read_references
from e2i_dagster.quality.leakage import LeakageReport, audit, audit_rules
from e2i_dagster.quality.page import reports_folder, write_pages
from e2i_dagster.quality.report import PartitionQuality, QualityReport, check_table
from e2i_dagster.quality.rules import ruleset_hash
from e2i_dagster.quality.waivers import Authentication, Waiver, new_waiver, record_waiver
from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES, date_column
from e2i_dagster.tables.frames import months_of
from e2i_dagster.versions import ledger


@dataclass(frozen=True)
class TableResult:
    """The report over all partitions of a run, and each partition's part of it (None: unpartitioned).

    ``pages``: what was written for people, kind of page to its path.
    """

    report: QualityReport
    parts: Mapping[str | None, PartitionQuality]
    pages: Mapping[str, str]


@dataclass(frozen=True)
class GateResult:
    """What the gate says, in words.

    Attributes:
        versions: how many data versions it is about.
        waived: waivers under which it passes, each in a line.
        warned: partitions with a verdict ``warning``.
        error: what it refuses and how that may be mended; None if it passes.
    """

    passed: bool
    text: str
    versions: int
    waived: tuple[str, ...] = ()
    warned: tuple[str, ...] = ()
    report: LeakageReport | None = None
    error: VerdictError | None = None

    def to_metadata(self) -> dict[str, Any]:
        """For the UI, and ``error`` for the command that launched the run."""
        metadata: dict[str, Any] = {
            "versions": self.versions,
            "waived": list(self.waived) or None,
            "error": self.error.to_record() if self.error is not None else None,
        }
        return {**metadata, **(self.report.to_metadata() if self.report is not None else {})}


def check_raw_table(
    table: str,
    rows: pd.DataFrame,
    *,
    months: Sequence[str] | None,
    versions: Iterable[tuple[str, str | None, str]],
    as_of: dt.date,
    engine: sa.Engine,
    run_id: str,
) -> TableResult:
    """Check ``rows`` of ``table`` and store report and verdict of every partition.

    Args:
        months: partitions that get a verdict, also without rows; None for a table without partitions.
        versions: (asset, partition, digest) of what was read; those of ``table`` are judged.
        as_of: date that the data is as of.
    """
    dated_by = date_column(table)
    digests = {partition or WHOLE: digest for asset, partition, digest in versions if asset == table}
    with engine.connect() as connection:
        references = read_references(connection, table)
        previous = find_previous(connection, table, digests)
    policy = current_quality_policy()
    labels = months_of(rows[dated_by]) if months is not None and dated_by else None
    report = check_table(
        table,
        rows,
        policy=policy,
        partitions=labels,
        expected_partitions=months,
        as_of=as_of,
        references=references,
        previous=previous,
        key=pseudonym_key(),
    )
    with engine.begin() as connection:
        record_verdicts(connection, report, digests, run_id=run_id)
    parts = {None if part.partition == WHOLE else part.partition: part for part in report.partitions}
    pages = write_pages(report, rows, labels, policy=policy, folder=reports_folder(table))
    return TableResult(report, parts, pages)


def gate_result(
    engine: sa.Engine, table: str, months: Sequence[str] | None, *, waivers: bool = True
) -> GateResult:
    """The gate over the current versions of ``table``: of ``months``, or of all months that are kept.

    ``waivers=False`` tells what the data is like, whatever somebody answers for.
    """
    current = _kept(engine, table)
    wanted = [
        (table, partition, version.digest)
        for partition, version in current.items()
        if months is None or partition in months
    ]
    if not wanted:
        remedy = "run `e2i load`."
        absent = VerdictError(
            f"No version of {table} is in the ledger. Next: {remedy}", file=table, remedy=remedy
        )
        return GateResult(False, str(absent), 0, error=absent)
    with engine.connect() as connection:
        try:
            verdicts = require_raw_gate(connection, wanted, waivers=waivers)
        except QCGateBlockedError as error:
            return GateResult(False, f"{error}{_after_the_data(table, current)}", len(wanted), error=error)
    warned = tuple(verdict.partition for verdict in verdicts if verdict.verdict == "warning")
    waived = tuple(waiver.text for verdict in verdicts for waiver in verdict.waivers)
    if waived:
        text = f"WARN: {len(waived)} waived, passing until they expire: " + "; ".join(waived)
    else:
        text = f"all {len(wanted)} checked versions passed"
    return GateResult(True, text, len(wanted), waived, warned)


def _after_the_data(table: str, current: Mapping[str | None, ledger.DataVersion]) -> str:
    """What to do about months that were declared as covered and follow the last one with rows."""
    filled = [month for month, version in current.items() if month is not None and version.rows]
    last = max(filled, default=None)
    if last is None or last == max(month for month in current if month is not None):
        return ""
    return (
        f"\n{table} has no rows after {last}. If the data end there, set data_end in config/sources.yaml to the last "
        f"day of {last}; else load what is missing."
    )


def record_frame_audit(
    engine: sa.Engine, scope: str, frame: pd.DataFrame, *, horizon_days: int, run_id: str
) -> GateResult:
    """Audit the current training frame of ``scope`` for leakage and store the verdict on its version.

    Args:
        frame: its rows; outcomes that may not be looked at are null in ``label``.
    """
    report = audit(frame, target="label", index_date="index_date", horizon_days=horizon_days)
    ref = DataRef(FRAME, scope, _current(engine, FRAME, scope))
    return _audited(engine, report, ref, ("known_at", "temporal", "target", "window"), run_id)


def record_splits_audit(
    engine: sa.Engine, scope: str, frame: pd.DataFrame, *, horizon_days: int, run_id: str
) -> GateResult:
    """Audit the current splits of ``scope`` on its training frame and store the verdict.

    Args:
        frame: the training frame with the column ``split``.
    """
    report = audit(frame, target="label", index_date="index_date", splits="split", horizon_days=horizon_days)
    ref = splits_ref(scope, frame=_current(engine, FRAME, scope), splits=_current(engine, SPLITS, scope))
    return _audited(
        engine, report, ref, ("known_at", "temporal", "target", "window", "contamination"), run_id
    )


def _current(engine: sa.Engine, asset: str, scope: str) -> str:
    version = ledger.latest(engine, asset, scope)
    if version is None:
        remedy = f"Run `e2i run --scope {scope}`."
        raise InputError(
            f"{asset} of {scope} was never made. {remedy}", file=asset, field=scope, remedy=remedy
        )
    return version.digest


def _audited(
    engine: sa.Engine, report: LeakageReport, ref: DataRef, needed: Sequence[str], run_id: str
) -> GateResult:
    with engine.begin() as connection:
        verdict = record_audit(connection, report, ref, rules=audit_rules(), needed=needed, run_id=run_id)
    error = QCGateBlockedError([(ref, verdict.rules)]) if verdict.blocking else None
    if error is not None:
        text = str(error)
    else:
        warnings = [finding for finding in report.findings if finding.severity == "convention"]
        message = "; ".join(
            f"{warning.rule} on {', '.join(warning.columns)}: {warning.evidence}" for warning in warnings
        )
        text = f"no leak was found; to look at: {message}" if message else "no leak was found"
    return GateResult(error is None, text, 1, report=report, error=error)


def waive(
    engine: sa.Engine,
    *,
    table: str,
    partition: str,
    rule: str,
    reason: str,
    days: int,
    waived_by: str,
    authentication: Authentication,
    run_id: str | None = None,
) -> Waiver:
    """Record that a person answers for ``rule`` on the current version of a table's partition.

    Args:
        partition: ``YYYY-MM``, or ``all`` for a table without partitions.

    Raises:
        InputError: no such raw table or partition, the rule does not block it, or reason or time is wrong.
        VerdictError: the rule cannot be waived.
    """
    if table in (FRAME, SPLITS):
        remedy = "Make the frame again without it."
        raise VerdictError(
            f"{table} is judged for leakage, which cannot be waived. {remedy}",
            file=table,
            value=rule,
            remedy=remedy,
        )
    if not table:
        raise InputError(
            "A waiver names table, partition, rule and reason.", field="table", remedy=_blocked(engine)
        )
    policy = current_quality_policy()
    version = _version(_versions(engine, table), table, None if partition == WHOLE else partition)
    with engine.begin() as connection:
        verdicts = [
            verdict
            for verdict in find_verdicts(connection, table=table, partition=partition)
            if (verdict.digest, verdict.ruleset_hash) == (version.digest, ruleset_hash(policy, table))
        ]
        return record_waiver(
            connection,
            new_waiver(
                table=table,
                partition=partition,
                digest=version.digest,
                rule=rule,
                blocking_rules=tuple(rule.rule for verdict in verdicts for rule in verdict.rules),
                reason=reason,
                waived_by=waived_by,
                authentication=authentication,
                days=days,
                most_days=policy.settings.waivers.max_days,
                now=dt.datetime.now(dt.UTC),
                run_id=run_id,
            ),
        )


def gate_state(engine: sa.Engine, table: str | None = None) -> list[dict[str, Any]]:
    """What the gate says of the current version of every raw table, training frame and split, a row for each.

    ``state`` is passed, warning, waived, blocked, or not_checked.
    """
    policy = current_quality_policy()
    rows: list[dict[str, Any]] = []
    with engine.connect() as connection:
        for name in [table] if table else [*RAW_TABLES, *OPTIONAL_RAW_TABLES, FRAME]:
            for partition, version in _kept(connection, name).items():
                inputs = [(name, partition, version.digest)]
                if name == FRAME:
                    splits = ledger.latest(connection, SPLITS, partition)
                    inputs += [(SPLITS, partition, splits.digest)] if splits is not None else []
                rows.append(
                    {"table": name, "partition": partition or WHOLE, **_state(connection, inputs, policy)}
                )
    return rows


def _state(
    connection: sa.Connection, inputs: list[tuple[str, str | None, str]], policy: QualityPolicy
) -> dict[str, Any]:
    try:
        verdicts = (*require_raw_gate(connection, inputs, policy), *require_audit(connection, inputs, policy))
    except QCGateBlockedError as error:
        rules = [rule for _, found in error.blocked for rule in found]
        unchecked = bool(rules) and all(rule.rule == "not_checked" for rule in rules)
        return {
            "state": "not_checked" if unchecked else "blocked",
            "rules": ", ".join(sorted({rule.rule for rule in rules})) or "check_error",
            "detail": "; ".join(f"{rule.column or ''} {rule.detail}".strip() for rule in rules),
        }
    waivers = [waiver for verdict in verdicts for waiver in verdict.waivers]
    if waivers:
        rules_waived = ", ".join(waiver.rule for waiver in waivers)
        return {
            "state": "waived",
            "rules": rules_waived,
            "detail": "; ".join(waiver.text for waiver in waivers),
        }
    warned = any(verdict.verdict == "warning" for verdict in verdicts)
    return {"state": "warning" if warned else "passed", "rules": "", "detail": ""}


def document_table(
    engine: sa.Engine,
    table: str,
    partition: str,
    read: Callable[[Sequence[str | None]], pd.DataFrame],
) -> DataDocs:
    """Data docs of ``table`` as it is now, whether its expectations fail or not.

    Args:
        partition: ``YYYY-MM``; ``all``: every row as one part, whatever the partitions of the table.
        read: reads the current rows of the partitions that it is given (None: of a table without).

    Raises:
        InputError: no such raw table or partition, or the table has no suite.
    """
    current = _versions(engine, table)
    if partition != WHOLE or not current:
        _version(current, table, partition)
    rows = read(list(current) if partition == WHOLE else [partition])
    page = reports_folder(table) / f"data_docs_{partition}.html"
    return build_data_docs({partition: rows}, table, policy=current_quality_policy(), page=page)


def _blocked(engine: sa.Engine) -> str:
    """What is blocked now, for a person who fills in a waiver."""
    blocked = [row for row in gate_state(engine) if row["state"] == "blocked"]
    listed = "; ".join(
        f"table {row['table']}, partition {row['partition']}, rule {row['rules']}" for row in blocked[:10]
    )
    more = f"; {len(blocked) - 10} more in `e2i gate show`" if len(blocked) > 10 else ""
    return f"Blocked now: {listed}{more}." if blocked else "Nothing is blocked now."


def _versions(engine: sa.Engine, table: str) -> dict[str | None, ledger.DataVersion]:
    """The current version of each partition of a raw table."""
    known = (*RAW_TABLES, *OPTIONAL_RAW_TABLES)
    if table not in known:
        remedy = f"Known: {', '.join(known)}."
        raise InputError(
            f"No raw table is called {table!r}. {remedy}", field="table", value=table, remedy=remedy
        )
    return _kept(engine, table)


def _kept(bind: ledger.Bind, table: str) -> dict[str | None, ledger.DataVersion]:
    """The current versions of ``table``; of an event table in the months that are kept, whatever was kept before."""
    by_month = table != FRAME and date_column(table) is not None
    return ledger.current(bind, table, months=current_policy().sources.months if by_month else None)


def _version(
    current: Mapping[str | None, ledger.DataVersion], table: str, partition: str | None
) -> ledger.DataVersion:
    if partition not in current:
        there = ", ".join(str(partition or WHOLE) for partition in current) or "nothing: run `e2i load`"
        remedy = f"The ledger has {there}."
        raise InputError(
            f"Table {table} has no partition {partition or WHOLE!r}. {remedy}",
            file=table, field="partition", value=partition or WHOLE, remedy=remedy,
        )  # fmt: skip
    return current[partition]
