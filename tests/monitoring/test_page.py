"""The page of a day: what it shows, and that it needs nothing from elsewhere."""

import datetime as dt
import re

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.monitoring.drift import detect_drift
from e2i_dagster.monitoring.history import evidence_after, record_drift, record_performance
from e2i_dagster.monitoring.page import report_page, severities_by_day, what_to_do, write_page
from e2i_dagster.monitoring.performance import PerformanceReport, WindowPerformance
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.tables.description.monitoring import ml_monitoring_alerts, ml_performance_history
from e2i_dagster.training.evaluate import Estimate

POLICY = DriftPolicy.load(CHECKOUT / "config")
DAY = dt.date(2025, 1, 8)


def frame(rng, n=600, shift=0.0):
    return pd.DataFrame(
        {
            "age": rng.normal(60 + shift, 10, n),
            "region": rng.choice(["north", "south"] if not shift else ["north", "islands"], n),
        }
    )


@pytest.fixture(scope="module")
def reports():
    """Two days: as before, and shifted."""
    rng = np.random.default_rng(0)
    reference = frame(rng)
    return [
        detect_drift(reference, frame(rng, shift=shift), policy=POLICY, scope="s", day=day, model_id="m/1")
        for day, shift in ((DAY - dt.timedelta(days=1), 0.0), (DAY, 8.0))
    ]


def performance(severity="none", *, concept=False):
    reached = Estimate(value=0.7, low=0.66, high=0.74)
    window = WindowPerformance(
        first_day=DAY, last_day=DAY, predictions=600, closed=600, estimated=reached, expected=reached,
        realised=reached, concept="outside" if concept else "within",
    )  # fmt: skip
    return PerformanceReport(
        scope="s", day=DAY, model_id="m/1", metric="roc_auc", reference=Estimate(value=0.8, low=0.78, high=0.82),
        reference_split="test", windows=(window,), labels={"closed": 600}, basis="realised", loss=0.1,
        severity=severity, concept_drift=concept,
    )  # fmt: skip


def test_the_page_of_two_days(reports, database, monkeypatch, tmp_path):
    monkeypatch.setenv("E2I_HOME", str(tmp_path))
    with database.begin() as connection:
        for report in reports:
            record_drift(connection, report, performance("high"), "run")
        record_performance(connection, performance("high"), "run")
        history = severities_by_day(connection, "s", until=DAY)
        measured = [one for _, one in evidence_after(connection, None)]
    assert set(history["day"]) == {DAY, DAY - dt.timedelta(days=1)} and len(history) == 4
    assert (measured[-1].loss, measured[-1].severity) == (0.1, "critical")
    assert any("new values 'islands'" in found for found in measured[-1].findings)
    shown = write_page(reports[1], performance("high"), history)
    text = (tmp_path / "reports/monitoring/s/2025-01-08.html").read_text(encoding="utf-8")
    assert shown["report_page"].endswith("s/2025-01-08.html") and shown["alarm"] == "critical"
    for part in (
        "What to do",
        "Performance",
        "Features by day",
        "The population that changed",
        "= south",
        "new values",
    ):
        assert part in text
    # Chart, heat map, two distributions; nothing is loaded from elsewhere.
    assert text.count("<img") == 4
    assert not re.search(r"(src|href)=\"(?!data:)", text) and "<script" not in text


def test_a_window_is_entered_again_only_when_it_says_something_else(database):
    counted = sa.select(
        ml_performance_history.c.run_id, ml_performance_history.c.concept, ml_performance_history.c.realised
    ).order_by(ml_performance_history.c.run_id)
    for run, report in (
        ("1", performance()),
        ("2", performance()),
        ("3", performance(concept=True)),
        ("4", performance()),
        ("5", performance()),
    ):
        with database.begin() as connection:
            record_performance(connection, report, run)
    with database.connect() as connection:
        rows = connection.execute(counted).all()
    assert [tuple(row) for row in rows] == [("1", "within", 0.7), ("3", "outside", 0.7), ("4", "within", 0.7)]


def test_a_day_without_predictions_has_a_page():
    empty = detect_drift(
        frame(np.random.default_rng(1)), frame(np.random.default_rng(2), 0),
        policy=POLICY, scope="s", day=DAY, model_id="m/1",
    )  # fmt: skip
    nothing = performance().model_copy(update={"windows": (), "basis": None, "loss": None})
    text = report_page(empty, nothing, pd.DataFrame(columns=["feature_name", "day", "state", "severity"]))
    assert "No day was measured yet" in text and "No distribution has changed" in text


def test_what_to_do_depends_on_what_was_found(reports):
    quiet, shifted = reports
    assert what_to_do(quiet, performance()) == [
        "Nothing: what drifted, if anything, does not cost the model its performance."
    ]
    steps = " ".join(what_to_do(shifted, performance("high")))
    assert "e2i gate show" in steps and "config/vocabulary.yaml" in steps and "e2i run --scope s" in steps
    assert "in another way" in " ".join(what_to_do(quiet, performance(concept=True)))


def test_an_alert_about_data_comes_before_drift_as_the_cause(reports, database):
    at = dt.datetime.combine(DAY, dt.time(3), dt.UTC)
    row = {
        "alert_type": "data_quality", "severity": "medium", "subject": "patient_journeys", "message": "late",
        "owner": "o", "notification": "n", "level": "warning", "created_at": at, "partition": "2025-01",
    }  # fmt: skip
    with database.begin() as connection:
        for title, updated in (("claims has warnings", at), ("long ago", at - dt.timedelta(days=20))):
            connection.execute(ml_monitoring_alerts.insert().values(**row, title=title, updated_at=updated))
        record_drift(connection, reports[1], performance(), "run")
        ((_, measured),) = evidence_after(connection, None)
    assert measured.findings[0] == "claims has warnings [2025-01]"
    assert not any("long ago" in found for found in measured.findings)
