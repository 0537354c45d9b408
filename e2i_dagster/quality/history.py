"""What a check reads from the warehouse: the tables it refers to, and the previous report."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import distinct_on

from e2i_dagster.loading.read import read_columns
from e2i_dagster.quality.plausibility import REFERENCE_COLUMNS
from e2i_dagster.quality.report import Finding, Previous
from e2i_dagster.quality.shift import ColumnProfile
from e2i_dagster.tables import related_tables
from e2i_dagster.tables.description.quality import data_quality_results, ml_data_quality_reports


def read_references(connection: sa.Connection, table: str) -> dict[str, pd.DataFrame]:
    """Rows of the tables that the plausibility of ``table`` is judged against; one without rows is left out."""
    found = {}
    for name in related_tables(table):
        rows = read_columns(connection, name, REFERENCE_COLUMNS[name])
        if len(rows):
            found[name] = rows
    return found


def find_previous(connection: sa.Connection, table: str, digests: Mapping[str, str]) -> dict[str, Previous]:
    """The newest report on another data version of each partition of ``digests``, and on months before.

    Args:
        connection: to the warehouse.
        table: raw table.
        digests: partition to the digest that is about to be checked. Partitions of the table that are not
            in it are there for comparison with their profile.
    """
    reports = ml_data_quality_reports
    other = [
        sa.and_(reports.c.partition == partition, reports.c.digest != digest)
        for partition, digest in digests.items()
    ]
    query = (
        sa.select(reports.c.id, reports.c.partition, reports.c.overall_score, reports.c.profile)
        .ext(distinct_on(reports.c.partition))
        .where(
            reports.c.table_name == table,
            reports.c.digest.is_not(None),
            sa.or_(reports.c.partition.not_in(list(digests)), *other),
        )
        .order_by(reports.c.partition, reports.c.run_at.desc())
    )
    rows = connection.execute(query).all()
    results = data_quality_results
    kept = sa.select(results).where(
        results.c.report_id.in_([row.id for row in rows]), results.c.trend != "resolved"
    )
    findings: dict[str, list[Finding]] = {}
    for row in connection.execute(kept.order_by(results.c.result_id)):
        findings.setdefault(row.partition, []).append(
            Finding(
                rule=row.rule_id,
                layer=row.layer,
                severity=row.severity,
                partition=row.partition,
                column=row.column_name,
                count=row.rows_failed,
                checked=row.rows_checked,
                detail=row.detail,
            )
        )
    return {
        row.partition: Previous(
            findings=tuple(findings.get(row.partition, ())),
            profile={name: ColumnProfile(**values) for name, values in row.profile.items()},
            overall=row.overall_score,
        )
        for row in rows
    }
