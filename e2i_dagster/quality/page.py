"""The report of a table as one self-contained page, and the pages that a check leaves in the state folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from e2i_dagster.config.quality import DIMENSIONS, QualityPolicy
from e2i_dagster.policy_files.environment import state_folder
from e2i_dagster.quality.data_docs import build_data_docs
from e2i_dagster.quality.dimensions import WHOLE
from e2i_dagster.quality.drawings import heat_map
from e2i_dagster.quality.report import Finding, QualityReport
from e2i_dagster.reports import Image, Link, Section, Table, html_page

#: Failing partitions that data docs are built of, the newest.
_DOCUMENTED = 3
_FINDINGS = ("severity", "trend", "rule", "partition", "column", "rows", "share", "what", "pseudonyms")


def reports_folder(table: str) -> Path:
    """Where the pages about ``table`` are."""
    return state_folder() / "reports" / "quality" / table


def report_page(report: QualityReport, *, data_docs: str | None = None) -> str:
    """``report`` as an HTML page: what blocks, all findings, columns by dimensions, scores by partition.

    ``data_docs``: address of the data docs beside the page, if they were built.
    """
    whole = report.whole
    scores = [
        (name, "–" if value is None else f"{value:.3f}")
        for name in (*DIMENSIONS, "overall")
        for value in [None if whole is None else getattr(whole, name)]
    ]
    blocked = ", ".join(report.failing_partitions) or "none"
    sections = [
        Section(
            "Verdict",
            [
                f"{report.verdict}: {report.rows:,} rows, {report.rules_checked} schema rules. Blocked: {blocked}."
            ],
            [Table([name for name, _ in scores], [[value for _, value in scores]])],
        ),
        _findings("What blocks", report.blocking, "Nothing blocks."),
        _findings("All findings", report.findings, "No findings."),
        _findings("Resolved since the previous data version", report.resolved, "Nothing was resolved."),
        Section(
            "Columns by dimensions",
            images=[Image(heat_map(report.columns).encode(), "heat map", "image/svg+xml")],
        ),
        Section(
            "Overall score by partition",
            images=[Image(report.trend_drawing().encode(), "overall score by partition", "image/svg+xml")],
        ),
    ]
    if data_docs is not None:
        link = Link(data_docs, "Failing expectations, as Great Expectations words them")
        sections.insert(2, Section("Data docs", links=[link]))
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
            one.partition
            for one in report.findings
            if one.layer == "expectations" and one.severity != "characterization"
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


def _findings(title: str, findings: tuple[Finding, ...], none: str) -> Section:
    if not findings:
        return Section(title, [none])
    rows = [
        (
            one.severity,
            one.trend,
            one.rule,
            one.partition,
            one.column or "–",
            "–" if one.count is None else f"{one.count:,}",
            "–" if one.share is None else f"{one.share:.2%}",
            one.detail,
            ", ".join(one.sample_keys) or "–",
        )
        for one in findings[:200]
    ]
    left = [f"{len(findings) - 200} more in data_quality_results."] if len(findings) > 200 else []
    return Section(title, left, [Table(_FINDINGS, rows)])
