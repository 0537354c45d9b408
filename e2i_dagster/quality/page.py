"""The report of a table as one self-contained page, and the pages that a check leaves in the state folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.display import Table
from e2i_dagster.policy_files.environment import state_folder
from e2i_dagster.quality.data_docs import build_data_docs
from e2i_dagster.quality.dimensions import WHOLE
from e2i_dagster.quality.report import SCORES, QualityReport, findings_table
from e2i_dagster.reports import Link, Section, html_page

#: Failing partitions that data docs are built of, the newest.
_DOCUMENTED = 3
#: Findings on the page.
_MOST = 200


def reports_folder(table: str) -> Path:
    """Where the pages about ``table`` are."""
    return state_folder() / "reports" / "quality" / table


def report_page(report: QualityReport, *, data_docs: str | None = None) -> str:
    """``report`` as an HTML page: what blocks, all findings, columns by dimensions, scores by partition.

    ``data_docs``: address of the data docs beside the page, if they were built.
    """
    blocked = ", ".join(report.failing_partitions) or "none"
    resolved = findings_table(report.resolved, _MOST)
    said = f"{report.verdict}: {report.rows:,} rows, {report.rules_checked} schema rules. Blocked: {blocked}."
    sections = [
        Section("Verdict", [said, Table(SCORES, [[*report.scores.values()]], dict.fromkeys(SCORES, ".3f"))]),
        Section("What blocks", [replace(findings_table(report.blocking, _MOST), empty="Nothing blocks.")]),
        Section("All findings", [findings_table(report.findings, _MOST)]),
        Section(
            "Resolved since the previous data version", [replace(resolved, empty="Nothing was resolved.")]
        ),
        Section("Columns by dimensions", [report.heat_map()]),
        Section("Overall score by partition", [report.trend()]),
    ]
    if data_docs is not None:
        link = Link(data_docs, "Failing expectations, as Great Expectations words them")
        sections.insert(2, Section("Data docs", [link]))
    checked = f"checked {report.checked_at:%Y-%m-%d %H:%M} UTC, rules {report.ruleset_hash[:12]}"
    return html_page(f"Quality of {report.table}", sections, subtitle=checked)


def write_pages(
    report: QualityReport,
    rows: pd.DataFrame,
    labels: pd.Series | None,
    *,
    policy: QualityPolicy,
    folder: Path,
) -> dict[str, str]:
    """Write the report's page, and data docs of the newest partitions whose expectations fail.

    Args:
        report: of ``rows``.
        rows: of all parts. labels: the part of each row; None: all are one part.
        policy: suites.
        folder: of the table; its older pages are replaced.

    Returns:
        What was written: kind of page to its path.
    """
    folder.mkdir(parents=True, exist_ok=True)
    failing = sorted(
        {
            finding.partition
            for finding in report.findings
            if finding.layer == "expectations" and finding.severity != "characterization"
        }
    )[-_DOCUMENTED:]
    docs = None
    if failing and report.table in policy.suites:
        parts = {
            label: rows if labels is None or label == WHOLE else rows[np.asarray(labels == label, dtype=bool)]
            for label in failing
        }
        docs = build_data_docs(parts, report.table, policy=policy, page=folder / "data_docs.html").page
    page = folder / "report.html"
    page.write_text(report_page(report, data_docs=docs.name if docs else None), encoding="utf-8")
    return {"report_page": str(page), **({"data_docs": str(docs)} if docs else {})}
