"""``e2i alerts``: what a person sees, acknowledges and silences, as text and for programs."""

import json

import pytest
import sqlalchemy as sa

from e2i_dagster.config.alerts import AlertsPolicy
from e2i_dagster.monitoring.alerts import Alert, send
from e2i_dagster.monitoring.channels import Channels
from e2i_dagster.policy_files.environment import CHECKOUT


@pytest.fixture(scope="module")
def raised(environment):
    """Sends an alert into the warehouse of the command; about what it is told."""
    engine = sa.create_engine(
        environment["E2I_DATABASE_URL"].replace("postgresql://", "postgresql+psycopg://")
    )
    policy = AlertsPolicy.load(CHECKOUT / "config")

    def send_about(subject):
        alert = Alert(
            alert_type="drift", title=f"Drift in {subject}", severity="high", subject=subject,
            message="high: region", next_command="e2i run", link="/runs/abc",
        )  # fmt: skip
        with engine.begin() as connection:
            return send(connection, alert, policy, Channels())

    yield send_about
    engine.dispose()


def test_an_alert_is_listed_acknowledged_and_gone(command, raised):
    raised("s1")
    shown = command("alerts", "list")
    assert shown.returncode == 0 and "Drift in s1" in shown.stdout and "high: region" in shown.stdout
    (alert,) = json.loads(command("alerts", "list", "--json").stdout)["alerts"]
    assert (alert["link"], alert["next_command"], alert["occurrences"]) == ("/runs/abc", "e2i run", 1)
    done = command(
        "alerts", "acknowledge", alert["id"], "--reason", "being repaired", "--json", E2I_ACTOR="Ann"
    )
    row = json.loads(done.stdout)
    assert (row["acknowledged_by"], row["acknowledgement"]) == ("Ann", "being repaired")
    assert json.loads(command("alerts", "list", "--json").stdout)["alerts"] == []
    assert "acknowledged" in command("alerts", "list", "--all").stdout
    assert raised("s1") == "deduplicated"


def test_a_kind_is_silenced_and_said(command, raised):
    done = command("alerts", "silence", "drift", "--subject", "s2", "--reason", "moving", "--days", "2")
    assert done.returncode == 0 and "drift about s2: silent until" in done.stdout
    assert raised("s2").startswith("silenced until")
    assert "drift about s2, by" in command("alerts", "list").stdout


@pytest.mark.parametrize(
    ("arguments", "field", "said"),
    [
        (("silence", "drfit", "--reason", "why"), "alert_type", "Did you mean 'drift'?"),
        (("silence", "drift", "--reason", "why", "--days", "99"), "days", "at most 30"),
        (("acknowledge", "ffffffff", "--reason", "why"), "alert", "`e2i alerts list` shows the keys"),
    ],
)
def test_what_cannot_be_is_refused_alike_as_text_and_json(command, arguments, field, said):
    text = command("alerts", *arguments)
    error = json.loads(command("alerts", *arguments, "--json").stdout)["error"]
    assert text.returncode == 3 and said in text.stderr and said in error["message"]
    assert error["field"] == field and error["remedy"]
