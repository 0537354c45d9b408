"""Data docs of Great Expectations: one self-contained page of a suite and of its outcome for some partitions.

Great Expectations runs and words the expectations; its own pages load style sheets, scripts and pictures from
public addresses, so its sections are put into a page that needs nothing from elsewhere. Results hold counts and
shares; no value of a row is asked for, so none can be on a page.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.errors import InputError
from e2i_dagster.quality.expectations import batches, expectation, with_compared
from e2i_dagster.quality.private_great_expectations import page_of
from e2i_dagster.quality.typed import TypedFrame, typed

_COUNTS_ONLY = {
    "result_format": "BASIC",
    "exclude_unexpected_values": True,
    "partial_unexpected_count": 0,
    "return_unexpected_index_query": False,
}

# What the sections of Great Expectations mean by their classes; parts that need a script are left out.
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; color: #1b1f24; }
h1 { font-size: 1.6rem; } h5, h6 { font-size: 1rem; margin: 0; } .note { color: #57606a; }
details { border: 1px solid #d0d7de; border-radius: 6px; margin: .7rem 0; padding: .5rem 1rem; }
summary { cursor: pointer; font-weight: 600; font-size: 1.1rem; }
table { border-collapse: collapse; margin: .5rem 0; width: 100%; }
th, td { border-bottom: 1px solid #d0d7de; padding: .3rem .6rem; text-align: left; vertical-align: top; }
.alert { background: #f6f8fa; border-radius: 6px; padding: .4rem .8rem; margin-top: 1rem; }
.badge { background: #eaeef2; border-radius: 4px; padding: 0 .4rem; }
.fa-check-circle::before { content: "\\2713"; color: #1a7f37; font-weight: bold; }
.fa-times::before { content: "\\2717"; color: #cf222e; font-weight: bold; }
.fa-exclamation-triangle::before { content: "!"; color: #9a6700; font-weight: bold; }
.collapse, [data-toggle="collapse"], [hidden] { display: none; }
"""


@dataclass(frozen=True)
class PartDocs:
    """One partition on the page: how many expectations there are, and the titles of those that do not hold."""

    label: str
    rows: int
    evaluated: int
    failing: tuple[str, ...]

    @property
    def text(self) -> str:
        """The outcome in a line."""
        passed = self.evaluated - len(self.failing)
        failing = f"; not: {', '.join(self.failing)}" if self.failing else ""
        return f"{self.label}: {passed} of {self.evaluated} expectations hold, {self.rows:,} rows{failing}"


@dataclass(frozen=True)
class DataDocs:
    """The written page and what is on it."""

    page: Path
    parts: tuple[PartDocs, ...]

    def to_metadata(self) -> dict[str, Any]:
        """For the UI: where the page is, and the outcome of each part."""
        return {"data_docs": str(self.page), "expectations": "\n".join(part.text for part in self.parts)}


def build_data_docs(
    parts: Mapping[str, pd.DataFrame | TypedFrame], table: str, *, policy: QualityPolicy, page: Path
) -> DataDocs:
    """Run the suite of ``table`` on each part and write the page; an older one is replaced.

    Args:
        parts: label of a partition to its rows.
        table: raw table with a suite.
        policy: suites and vocabularies.
        page: file that is written; folders on the way are made.

    Raises:
        InputError: the table has no suite.
    """
    suite = policy.suite(table)
    if suite is None:
        raise InputError(
            f"Table {table} has no suite, so there are no data docs of it.",
            file="config/expectations",
            field="table",
            value=table,
            remedy=f"Suites: {', '.join(policy.suites)}.",
        )
    specs = suite.expectations
    door = batches()
    import great_expectations as gx

    suite = gx.ExpectationSuite(
        name=table, expectations=[expectation(policy, position, spec) for position, spec in enumerate(specs)]
    )
    documented: list[PartDocs] = []
    sections: list[str] = []
    for label, rows in parts.items():
        data = (rows if isinstance(rows, TypedFrame) else typed(rows, table)).frame.reset_index(drop=True)
        data = with_compared(data, specs)
        result = door.get_batch(batch_parameters={"dataframe": data}).validate(
            suite, result_format=_COUNTS_ONLY
        )
        stored = {
            outcome.expectation_config.meta["position"]
            for outcome in result.results
            if outcome.success is True
            and outcome.expectation_config is not None
            and outcome.expectation_config.meta
        }
        failing = tuple(spec.title for position, spec in enumerate(specs) if position not in stored)
        documented.append(PartDocs(label, len(data), len(specs), failing))
        sections.append(_sections(page_of(result), f"part-{len(documented)}"))
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(_page(table, documented, sections), encoding="utf-8")
    return DataDocs(page, tuple(documented))


def _sections(page: str, name: str) -> str:
    """The sections of a page of Great Expectations, with what would be loaded or run taken out."""
    first = page.index('<div id="section-1"')
    body = page[first : page.index("<footer", first)]
    body = re.sub(r"<(script|style)\b.*?</\1>|<(?:link|img)\b[^>]*>", "", body, flags=re.DOTALL)
    body = re.sub(r'<a\b[^>]*href="(?!#)[^>]*>(.*?)</a>', r"\1", body, flags=re.DOTALL)
    closed = body.rstrip()
    while closed.count("</div>") > closed.count("<div"):  # of what was around the sections
        closed = closed[: closed.rindex("</div>")]
    return closed.replace("section-", f"{name}-section-")


def _page(table: str, parts: list[PartDocs], sections: list[str]) -> str:
    body = "\n".join(
        f"<details{' open' if part.failing or len(parts) == 1 else ''}>"
        f"<summary>{html.escape(part.text)}</summary>\n{section}\n</details>"
        for part, section in zip(parts, sections, strict=True)
    )
    title = html.escape(f"Expectations of {table}")
    note = f"Suite config/expectations/{html.escape(table)}.yaml, run by Great Expectations; counts and shares only."
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f'<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n<p class="note">{note}</p>\n{body}\n'
        "</body>\n</html>\n"
    )
