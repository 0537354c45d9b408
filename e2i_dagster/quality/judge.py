"""A raw table checked and its verdicts kept; and what the gate says of the versions in the ledger."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.quality import current_quality_policy
from e2i_dagster.quality.dimensions import WHOLE
from e2i_dagster.quality.gate import QCGateBlockedError, record_verdicts, require_raw_gate
from e2i_dagster.quality.history import find_previous, read_references
from e2i_dagster.quality.pseudonyms import pseudonym_key
from e2i_dagster.quality.report import PartitionQuality, QualityReport, check_table
from e2i_dagster.warehouse import ledger
from e2i_dagster.warehouse.tables import date_column


@dataclass(frozen=True)
class Judged:
    """The report over all partitions of a run, and each partition's part of it (None: unpartitioned)."""

    report: QualityReport
    parts: Mapping[str | None, PartitionQuality]


@dataclass(frozen=True)
class GateResult:
    """What the gate says, in words, and over how many data versions."""

    passed: bool
    text: str
    versions: int


def judge_table(
    table: str,
    rows: pd.DataFrame,
    *,
    months: Sequence[str] | None,
    versions: Iterable[tuple[str, str | None, str]],
    as_of: dt.date,
    engine: sa.Engine,
    run_id: str,
) -> Judged:
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
    report = check_table(
        table,
        rows,
        policy=current_quality_policy(),
        partitions=rows[dated_by].dt.strftime("%Y-%m") if months is not None and dated_by else None,
        expected_partitions=months,
        as_of=as_of,
        references=references,
        previous=previous,
        key=pseudonym_key(),
    )
    with engine.begin() as connection:
        record_verdicts(connection, report, digests, run_id=run_id)
    parts = {None if part.partition == WHOLE else part.partition: part for part in report.partitions}
    return Judged(report, parts)


def gate_result(engine: sa.Engine, table: str, months: Sequence[str] | None) -> GateResult:
    """The gate over the current versions of ``table``: of ``months``, or of all that the ledger has."""
    current = ledger.current(engine, table)
    wanted = [
        (table, partition, version.digest)
        for partition, version in current.items()
        if months is None or partition in months
    ]
    if not wanted:
        return GateResult(False, f"No version of {table} is in the ledger. Next: run `e2i load`.", 0)
    with engine.connect() as connection:
        try:
            require_raw_gate(connection, wanted)
        except QCGateBlockedError as error:
            return GateResult(False, str(error), len(wanted))
    return GateResult(True, f"all {len(wanted)} checked versions passed", len(wanted))
