"""Alerts reach the table always and the webhook when configured; drift leads to a reasoned decision."""

import datetime as dt
import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import sqlalchemy as sa

from e2i_dagster.config.alerts import AlertsPolicy
from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.monitoring.alerts import Alert, send, send_digest
from e2i_dagster.monitoring.retraining import (
    DriftSummary,
    decide_retraining,
    last_decision_at,
    record_decision,
)
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.tables.description.monitoring import ml_monitoring_alerts

ALERTS = AlertsPolicy.load(CHECKOUT / "config")
DRIFT = DriftPolicy.load(CHECKOUT / "config")
NOW = dt.datetime(2025, 1, 10, 12, tzinfo=dt.UTC)
ALERT = Alert(
    alert_type="run_failure",
    title="scope_pipeline failed",
    severity="high",
    subject="scope_pipeline",
    partition="kisqali_hr_her2_bc_initiation",
    message="quality gate blocked",
    next_command="e2i status",
)


@pytest.fixture
def webhook():
    received: list[dict] = []

    class Receiver(BaseHTTPRequestHandler):
        status = 200

        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(type(self).status)
            self.end_headers()

        def log_message(self, *args):
            return

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", received, Receiver
    server.shutdown()
    thread.join()
    server.server_close()


def rows(connection):
    return connection.execute(sa.select(ml_monitoring_alerts)).mappings().all()


def test_without_a_webhook_the_table_has_it(database):
    with database.begin() as connection:
        assert send(connection, ALERT, ALERTS, None, NOW) == "not_configured"
        (row,) = rows(connection)
    assert (row["owner"], row["partition"]) == ("ml-ops", "kisqali_hr_her2_bc_initiation")


def test_the_webhook_gets_what_a_person_needs(database, webhook):
    url, received, _ = webhook
    with database.begin() as connection:
        assert send(connection, ALERT, ALERTS, url, NOW) == "sent"
    assert received[0]["partition"] == "kisqali_hr_her2_bc_initiation"
    assert received[0]["next_command"] == "e2i status"
    assert received[0]["since"] == NOW.isoformat()


def test_the_same_alert_is_not_sent_twice_within_the_time(database, webhook):
    url, received, _ = webhook
    later = NOW + dt.timedelta(seconds=ALERTS.deduplicate_seconds + 1)
    with database.begin() as connection:
        send(connection, ALERT, ALERTS, url, NOW)
        assert send(connection, ALERT, ALERTS, url, NOW + dt.timedelta(seconds=10)) == "deduplicated"
        assert rows(connection)[0]["occurrences"] == 2
        assert send(connection, ALERT, ALERTS, url, later + dt.timedelta(seconds=10)) == "sent"
    assert len(received) == 2


WARNING = ALERT.model_copy(update={"severity": "medium", "title": "triggers has warnings"})


def test_warnings_wait_and_are_told_once_in_one_message(database, webhook):
    url, received, _ = webhook
    other = WARNING.model_copy(update={"subject": "business_metrics"})
    day = dt.timedelta(days=1)
    with database.begin() as connection:
        assert send(connection, WARNING, ALERTS, url, NOW) == "waits_for_digest"
        # Hours later and not yet told: still the same warning.
        assert send(connection, WARNING, ALERTS, url, NOW + dt.timedelta(hours=5)) == "deduplicated"
        send(connection, other, ALERTS, url, NOW)
        assert received == []
        digest = send_digest(connection, ALERTS, url, NOW + day)
        assert (digest.warnings, digest.notification) == (2, "sent")
        assert len(received) == 1 and received[0]["warnings"] == 2
        assert "x2" in received[0]["text"] and "quality gate blocked" in received[0]["text"]
        assert {row["notification"] for row in rows(connection)} == {"sent"}
        assert send_digest(connection, ALERTS, url, NOW + 2 * day).notification == "nothing_to_tell"
        # What comes up again after it was told is told again.
        assert send(connection, WARNING, ALERTS, url, NOW + 2 * day) == "waits_for_digest"
        assert send_digest(connection, ALERTS, url, NOW + 3 * day).warnings == 1
    assert len(received) == 2


def test_a_digest_that_nobody_received_is_told_the_next_day(database, webhook):
    url, received, receiver = webhook
    receiver.status = 500
    with database.begin() as connection:
        send(connection, WARNING, ALERTS, url, NOW)
        assert send_digest(connection, ALERTS, url, NOW).notification == "failed: HTTPStatusError"
        receiver.status = 200
        assert send_digest(connection, ALERTS, url, NOW).notification == "sent"
    assert len(received) == 2


def test_a_digest_lists_so_many_and_counts_the_rest(database, webhook):
    url, received, _ = webhook
    policy = ALERTS.model_copy(update={"digest_lists": 2})
    with database.begin() as connection:
        for number in range(5):
            send(connection, WARNING.model_copy(update={"subject": f"table_{number}"}), policy, url, NOW)
        assert send_digest(connection, policy, url, NOW).warnings == 5
    assert received[0]["text"].endswith("- and 3 more in ml_monitoring_alerts")


def test_a_webhook_that_refuses_is_recorded(database, webhook):
    url, _, receiver = webhook
    receiver.status = 500
    with database.begin() as connection:
        assert send(connection, ALERT, ALERTS, url, NOW) == "failed: HTTPStatusError"
        assert rows(connection)[0]["notification"] == "failed: HTTPStatusError"
    with database.begin() as connection:
        other = ALERT.model_copy(update={"subject": "monitor"})
        assert send(connection, other, ALERTS, "http://127.0.0.1:9/", NOW) == "failed: ConnectError"


def drifted(score: float | None) -> DriftSummary:
    return DriftSummary(
        scope="s", day=NOW.date(), model_id="m:1", run_id="r", composite_score=score, worst_features=("age",)
    )


@pytest.mark.parametrize(
    ("score", "mode", "days_ago", "labels", "action", "reason"),
    [
        (None, "propose", None, 0, "none", "enough live values"),
        (0.1, "propose", None, 0, "none", "is below"),
        (0.6, "propose", None, 0, "propose", "reaches 0.5; most changed: age"),
        (0.6, "propose", 3, 0, "none", "cool-down until 2025-01-14"),
        (0.6, "propose", 8, 0, "propose", "reaches"),
        (0.6, "request", None, 99, "propose", "99 matured labels newer than the training data, 100 needed"),
        (0.6, "request", None, 100, "request", "reaches"),
    ],
)
def test_decision(score, mode, days_ago, labels, action, reason):
    policy = DRIFT.model_copy(update={"retraining": DRIFT.retraining.model_copy(update={"mode": mode})})
    last = None if days_ago is None else NOW - dt.timedelta(days=days_ago)
    decision = decide_retraining(
        drifted(score), policy, last_decision=last, new_labels=labels, labels_enough_from=None, now=NOW
    )
    assert decision.action == action
    assert reason in decision.reason


def test_a_recorded_proposal_starts_the_cool_down(database):
    decision = decide_retraining(
        drifted(0.9), DRIFT, last_decision=None, new_labels=0, labels_enough_from=None, now=NOW
    )
    with database.begin() as connection:
        assert last_decision_at(connection, "s") is None
        record_decision(connection, drifted(0.9), decision)
        assert last_decision_at(connection, "s") is not None
        assert last_decision_at(connection, "other") is None
