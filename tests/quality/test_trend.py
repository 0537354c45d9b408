"""Against the previous data version: new, existing and resolved findings, shifts, pseudonyms, pages."""

from __future__ import annotations

import dataclasses
import datetime as dt
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from e2i_dagster.config.quality import QualityPolicy
from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.pseudonyms import VARIABLE, pseudonym, pseudonym_key
from e2i_dagster.quality import check_table, record_verdicts
from e2i_dagster.quality.history import find_previous
from e2i_dagster.quality.page import write_pages
from e2i_dagster.quality.report import QualityReport
from e2i_dagster.quality.shift import excess_index
from e2i_dagster.tables.description.quality import data_quality_results, ml_data_quality_reports

END = dt.date(2024, 12, 31)
KEY = b"k" * 32


@pytest.fixture
def quick(policy: QualityPolicy) -> QualityPolicy:
    """The policy without suites: these tests are about the other layers."""
    return dataclasses.replace(policy, suites={})


def _trends(report: QualityReport) -> set[tuple[str, str | None, str]]:
    return {(one.rule, one.column, one.trend) for one in (*report.findings, *report.resolved)}


def test_findings_are_new_then_existing_then_resolved(
    events: pd.DataFrame, months: pd.Series, quick: QualityPolicy, database: sa.Engine
) -> None:
    broken = events.copy()
    broken.loc[130, "cost"] = -1.0
    also = broken.copy()
    also.loc[131, "event_type"] = "unheard"
    labels = sorted(months.unique())
    seen: list[set[tuple[str, str | None, str]]] = []
    for version, frame in enumerate((broken, also, events)):
        digests = {label: f"{label} version {version}" for label in labels}
        with database.begin() as connection:
            previous = find_previous(connection, "treatment_events", digests)
            report = check_table(
                "treatment_events",
                frame,
                policy=quick,
                partitions=months,
                as_of=END,
                previous=previous,
                key=KEY,
            )
            record_verdicts(connection, report, digests)
            # Looking again at the same version compares with the version before, not with itself.
            again = find_previous(connection, "treatment_events", digests)
        assert again == previous
        seen.append(_trends(report))
    cost, kind = ("schema_range", "cost"), ("schema_vocabulary", "event_type")
    assert seen == [
        {(*cost, "new")},
        {(*cost, "existing"), (*kind, "new")},
        {(*cost, "resolved"), (*kind, "resolved")},
    ]
    with database.begin() as connection:
        rows = connection.execute(
            sa.select(data_quality_results).where(data_quality_results.c.rule_id == "schema_range")
        ).all()
        assert {(row.trend, row.partition) for row in rows} == {
            ("new", "2024-01"),
            ("existing", "2024-01"),
            ("resolved", "2024-01"),
        }
        assert rows[0].sample_keys == [pseudonym(KEY, f"TE{130:025d}")]
        connection.execute(sa.delete(ml_data_quality_reports))


def test_a_shift_between_loads_is_reported_and_decides_nothing(
    events: pd.DataFrame, months: pd.Series, quick: QualityPolicy
) -> None:
    draw = np.random.default_rng(1)
    frame = events.assign(cost=draw.gamma(2.0, 50.0, len(events)))
    assert check_table("treatment_events", frame, policy=quick, partitions=months, as_of=END).findings == ()
    frame.loc[months == "2024-02", "cost"] *= 100  # cents
    report = check_table("treatment_events", frame, policy=quick, partitions=months, as_of=END)
    assert [(one.rule, one.column, one.partition, one.severity) for one in report.findings] == [
        ("distribution_shift", "cost", "2024-02", "characterization")
    ]
    assert report.verdict == "passed"


@pytest.mark.parametrize("to", [0.0, 900.0], ids=["below", "above"])
def test_a_shift_away_from_the_most_frequent_number_is_reported(
    to: float, events: pd.DataFrame, months: pd.Series, quick: QualityPolicy
) -> None:
    """Nearly every cost is 120; in one month every second one is below it, or above all that was seen."""
    usual = np.where(np.arange(len(events)) % 25 == 0, 400.0, 120.0)
    frame = events.assign(cost=usual)
    assert check_table("treatment_events", frame, policy=quick, partitions=months, as_of=END).findings == ()
    moved = (months == "2024-02").to_numpy() & (np.arange(len(events)) % 2 == 0)
    frame["cost"] = np.where(moved, to, usual)
    report = check_table("treatment_events", frame, policy=quick, partitions=months, as_of=END)
    assert [(one.rule, one.column, one.partition) for one in report.findings] == [
        ("distribution_shift", "cost", "2024-02")
    ]


def test_the_excess_of_the_stability_index_by_hand() -> None:
    """With one more row a side, spread 11 to 9 as both together; less (2 - 1) (1 / 1000 + 1 / 1000)."""
    here, past = np.array([600, 400]), np.array([500, 500])
    q, p = np.array([600.55, 400.45]) / 1001, np.array([500.55, 500.45]) / 1001
    expected = float(np.sum((q - p) * np.log(q / p))) - 0.002
    assert expected == pytest.approx(0.1 * np.log(1.2) - 0.1 * np.log(0.8) - 0.002, abs=1e-4)
    assert excess_index(here, past) == pytest.approx(expected)
    assert excess_index(past, here) == pytest.approx(expected)
    assert excess_index(here, here) == 0


def test_a_new_category_counts_even_where_values_are_hidden(
    events: pd.DataFrame, months: pd.Series, quick: QualityPolicy
) -> None:
    frame = events.assign(data_source=np.where(months == "2024-02", "canary-31", "Komodo"))
    report = check_table("treatment_events", frame, policy=quick, partitions=months, as_of=END)
    assert ("distribution_shift", "data_source", "new") in _trends(report)
    assert "canary-31" not in report.model_dump_json()


def test_pseudonyms_need_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("E2I_HOME", str(tmp_path))
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.delenv("E2I_DATABASE_URL", raising=False)
    key = pseudonym_key()
    assert key is not None and key == pseudonym_key()
    assert (tmp_path / "secrets" / "pseudonym.key").stat().st_mode & 0o777 == 0o600
    assert pseudonym(key, "a") == pseudonym(key, "a") != pseudonym(KEY, "a")
    assert re.fullmatch("[0-9a-f]{12}", pseudonym(key, "PAT00000001"))
    monkeypatch.setenv("E2I_DATABASE_URL", "postgresql://a@test/b")
    assert pseudonym_key() is None
    monkeypatch.setenv(VARIABLE, "short")
    with pytest.raises(ConfigError, match="at least 32"):
        pseudonym_key()


def test_pages_show_the_findings_and_no_value_of_a_row(
    events: pd.DataFrame, months: pd.Series, policy: QualityPolicy, tmp_path: Path
) -> None:
    frame = events.copy()
    frame.loc[months == "2024-01", "event_type"] = None
    frame.loc[5, "data_source"] = 'canary-77 <script>"'
    report = check_table("treatment_events", frame, policy=policy, partitions=months, as_of=END, key=KEY)
    written = write_pages(report, frame, months, policy=policy, folder=tmp_path)
    assert set(written) == {"report_page", "data_docs"}
    page, docs = (Path(written[name]).read_text(encoding="utf-8") for name in ("report_page", "data_docs"))
    assert "expectation_critical" in page and "2024-01" in page and page.count("image/svg+xml") == 2
    assert f'href="{Path(written["data_docs"]).name}"' in page
    assert "2024-01" in docs and "values must never be null" in docs and "0% not null" in docs
    for text in (page, docs):
        assert "canary-77" not in text and "PAT0000" not in text
        assert not re.search(r"https?:|<script|<link|url\(", text)
        assert not [
            tag for tag in re.findall(r'(?:src|href)="([^"]*)"', text) if tag.startswith(("/", "..", "//"))
        ]
        assert text.count("<div") == text.count("</div>")
    assert {path.name for path in tmp_path.iterdir()} == {"report.html", "data_docs.html"}
    clean = check_table("treatment_events", events, policy=policy, partitions=months, as_of=END)
    assert set(write_pages(clean, events, months, policy=policy, folder=tmp_path / "clean")) == {
        "report_page"
    }


def test_bad_frames_go_through_all_layers_and_the_page(
    policy: QualityPolicy, events: pd.DataFrame, tmp_path: Path
) -> None:
    odd = {'x"; DROP TABLE y; --': 1, "a b": [[1]] * 360}
    for frame, verdict in (
        (pd.DataFrame(), "failed"),
        (events.iloc[:0], "failed"),
        (events.iloc[:1], "passed"),
        (events.assign(cost=None, event_type=None), "failed"),
        (events.assign(cost=["x", 1.0, None] * 120), "failed"),
        (events.assign(**odd), "passed"),
    ):
        report = check_table("treatment_events", frame, policy=policy, as_of=END, key=KEY)
        assert "check_error" not in {one.rule for one in report.findings}
        undated = [one for one in report.findings if one.rule != "dimension_timeliness"]
        assert ("failed" if any(one in report.blocking for one in undated) else "passed") == verdict
        assert report.to_metadata()["verdict"] == report.verdict
        if set(frame.columns) & set(events.columns):
            write_pages(report, frame, None, policy=policy, folder=tmp_path)
            assert report.verdict in (tmp_path / "report.html").read_text(encoding="utf-8")
