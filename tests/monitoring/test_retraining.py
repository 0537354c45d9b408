"""Performance first, drift second; cool-down, one in flight, and labels that must be there."""

import datetime as dt

import pytest

from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.monitoring.alerts import model_alert
from e2i_dagster.monitoring.drift_report import DriftReport, FeatureDrift
from e2i_dagster.monitoring.performance import PerformanceReport
from e2i_dagster.monitoring.retraining import (
    Evidence,
    alarm_level,
    alarm_score,
    decide_retraining,
    last_decision_at,
    record_decision,
)
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.training.evaluate import Estimate

POLICY = DriftPolicy.load(CHECKOUT / "config")
NOW = dt.datetime(2025, 1, 10, 12, tzinfo=dt.UTC)


def evidence(score=None, **more):
    given = {
        "scope": "s", "day": NOW.date(), "model_id": "m/1", "run_id": "r", "composite_score": score,
        "worst_features": ("age",), "metric": "roc_auc", **more,
    }  # fmt: skip
    return Evidence(**given)


def decide(measured, *, mode="propose", days_ago=None, labels=100, enough_from=None, in_flight=None):
    policy = POLICY.model_copy(update={"retraining": POLICY.retraining.model_copy(update={"mode": mode})})
    return decide_retraining(
        measured,
        policy,
        last_decision=None if days_ago is None else NOW - dt.timedelta(days=days_ago),
        in_flight=in_flight,
        new_labels=labels,
        labels_enough_from=enough_from,
        now=NOW,
    )


LOSS = {"basis": "realised", "loss": 0.12, "loss_severity": "high"}
NO_LOSS = {"basis": "estimated", "loss": 0.01, "loss_severity": "none"}


@pytest.mark.parametrize(
    ("measured", "action", "trigger", "reason"),
    [
        (evidence(), "none", None, "performance is not known yet; no test had enough live values"),
        (evidence(0.1), "none", None, "composite score 0.10 is below 0.5"),
        (
            evidence(0.6),
            "propose",
            "data_drift",
            "reaches 0.5; most changed: age; performance is not known yet",
        ),
        (
            evidence(0.0, **LOSS),
            "propose",
            "performance_degradation",
            "realised loss of roc_auc 0.120 reaches 0.05",
        ),
        (
            evidence(0.0, **LOSS, concept_drift=True),
            "propose",
            "concept_drift",
            "the estimate did not foresee",
        ),
        (
            evidence(0.0, **{**LOSS, "basis": "estimated"}),
            "propose",
            "performance_degradation",
            "estimated loss",
        ),
        (evidence(0.1, **NO_LOSS), "none", None, "estimated loss of roc_auc 0.010 is no reason"),
        (evidence(0.6, **NO_LOSS), "propose", "data_drift", "0.010 is no reason"),
        # A loss that chance explains has no severity.
        (evidence(0.1, **{**LOSS, "loss_severity": "none"}), "none", None, "is no reason"),
    ],
)
def test_performance_decides_first_and_drift_where_it_does_not(measured, action, trigger, reason):
    decision = decide(measured)
    assert (decision.action, decision.trigger) == (action, trigger)
    assert reason in decision.reason


@pytest.mark.parametrize(
    ("given", "action", "reason"),
    [
        ({"days_ago": 3}, "none", "cool-down until 2025-01-14"),
        ({"days_ago": 7}, "propose", "reaches"),
        ({"in_flight": "run-7"}, "none", "run run-7 is training the scope already"),
        (
            {"labels": 99, "enough_from": dt.date(2025, 2, 1)},
            "wait",
            "99 closed labels .* 100 needed, .*2025-02-01",
        ),
        ({"labels": 0}, "wait", "not expected from open windows"),
        ({"mode": "request"}, "request", "reaches"),
        ({"mode": "request", "labels": 99}, "wait", "99 closed labels"),
    ],
)
def test_what_holds_a_retraining_back(given, action, reason):
    decision = decide(evidence(0.9, **LOSS), **given)
    assert decision.action == action
    import re

    assert re.search(reason, decision.reason)


def test_the_reason_names_the_likely_cause_first():
    found = evidence(0.9, **LOSS, findings=("claims has warnings [2025-01]", "region: new values 'islands'"))
    assert "likely cause: claims has warnings [2025-01]; region: new values 'islands'" in decide(found).reason


def test_a_recorded_proposal_starts_the_cool_down_and_waiting_does_not(database):
    with database.begin() as connection:
        for labels, recorded in ((0, False), (100, True)):
            record_decision(connection, evidence(0.9), decide(evidence(0.9), labels=labels))
            assert (last_decision_at(connection, "s") is not None) == recorded
        assert last_decision_at(connection, "other") is None


def drift(*severities, kind="data"):
    features = tuple(
        FeatureDrift(
            name=f"f{number}", kind=kind, state="executed", effect_severity=severity, severity=severity,
            reference_count=1_000, current_count=1_000,
        )
        for number, severity in enumerate(severities)
    )  # fmt: skip
    return DriftReport(scope="s", day=NOW.date(), model_id="m/1", features=features, composite_score=0.4)


def performance(severity="none", *, loss=None, concept=False):
    return PerformanceReport(
        scope="s", day=NOW.date(), model_id="m/1", metric="roc_auc", reference=Estimate(value=0.8, low=0.78, high=0.82),
        reference_split="test", windows=(), labels={}, basis=None if loss is None else "estimated", loss=loss,
        severity=severity, concept_drift=concept,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "reached", "level"),
    [
        (drift("none"), performance(), "none"),
        (drift("low"), performance("high", loss=0.12), "high"),
        (drift("high"), performance(loss=0.0), "high"),
        (drift("critical", kind="prediction"), performance(), "critical"),
        (drift("critical", kind="prediction"), performance(loss=0.0), "low"),
        (drift("critical", kind="multivariate"), performance(loss=0.0), "low"),
        (drift("none"), performance(loss=0.0, concept=True), "medium"),
    ],
)
def test_the_level_of_the_alarm(found, reached, level):
    assert alarm_level(found, reached) == level


def test_the_score_of_the_alarm_is_the_loss_where_it_is_known():
    assert alarm_score(drift("high"), performance(), POLICY) == 0.4
    assert alarm_score(drift("high"), performance("high", loss=0.1), POLICY) == pytest.approx(0.5)
    assert alarm_score(drift("high"), performance(loss=-0.1), POLICY) == 0


def test_the_alert_says_performance_first_then_the_cause_and_what_follows():
    measured = evidence(
        0.9, **LOSS, severity="high", concept_drift=True, findings=("region: new values 'islands'",)
    )
    alert = model_alert(measured, decide(measured))
    assert alert.title == "Loss of performance in s" and alert.severity == "high"
    parts = (
        "realised loss of roc_auc 0.120",
        "left the estimate",
        "likely cause: region",
        "retraining: propose",
    )
    places = [alert.message.index(part) for part in parts]
    assert places == sorted(places)
    assert alert.link == "/runs/r" and alert.next_command == "e2i run --scope s"
