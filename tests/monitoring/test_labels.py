"""Labels that come late, twice, corrected, too early or for nobody; windows that are over and those that are not."""

import datetime as dt

import pandas as pd
import pytest

from e2i_dagster.config.policy import current_policy
from e2i_dagster.monitoring.labels import (
    enter_labels,
    enter_predictions,
    labels_enough_from,
    outcome_windows,
    read_ledger,
    settle_labels,
    update_ledger,
)
from e2i_dagster.tables import raw_table
from e2i_dagster.versions.ledger import DataVersion, record

SCOPE = current_policy().scope("remibrutinib_csu_initiation")
AT = dt.datetime(2025, 1, 10, 9, tzinfo=dt.UTC)
AS_OF = dt.date(2025, 6, 1)
CLOSED, OPEN = dt.date(2025, 5, 1), dt.date(2025, 7, 1)


def predictions(*rows):
    """(prediction_id, patient_id, predicted_at, closes_on)"""
    return pd.DataFrame(
        [(key, "m/1", patient, at, 0.5, closes) for key, patient, at, closes in rows],
        columns=["prediction_id", "model_id", "patient_id", "predicted_at", "score", "closes_on"],
    )


def arrivals(*rows):
    return pd.DataFrame(rows, columns=["prediction_id", "label", "arrived_at"])


def days(number):
    return AT + dt.timedelta(days=number)


def settled(labels, made=None):
    made = predictions(("a", "p", AT, CLOSED)) if made is None else made
    found = settle_labels(made, arrivals(*labels), as_of=AS_OF)
    return list(found.arrivals["result"]), list(found.predictions["label"]), list(found.predictions["state"])


@pytest.mark.parametrize(
    ("labels", "results", "label"),
    [
        ([("a", 1.0, days(120))], ["accepted"], 1.0),
        ([("a", 1.0, days(120)), ("a", 1.0, days(130))], ["accepted", "repeated"], 1.0),
        ([("a", 0.0, days(130)), ("a", 1.0, days(120))], ["accepted", "corrected"], 0.0),
        ([("a", 1.0, days(120)), ("a", None, days(130))], ["accepted", "taken_back"], None),
        ([("a", 1.0, days(-1))], ["before_prediction"], None),
        ([("a", 1.0, days(120)), ("a", 0.0, days(120))], ["accepted", "conflicting"], None),
        ([("nobody", 1.0, days(120))], ["unknown_prediction"], None),
        ([], [], None),
    ],
    ids=["late", "twice", "corrected", "taken back", "before", "conflicting", "unknown", "none"],
)
def test_what_becomes_of_a_label(labels, results, label):
    found, held, state = settled(labels)
    assert found == results
    assert held == [label] if label is not None else pd.isna(held[0])
    assert state == ["closed" if label is not None else "awaited"]


def test_an_outcome_seen_before_its_window_is_over_does_not_count_yet():
    """Otherwise only patients with the outcome would count at first."""
    _, (label,), state = settled([("a", 1.0, days(30))], predictions(("a", "p", AT, OPEN)))
    assert pd.isna(label) and state == ["open"]


def test_a_window_is_over_on_the_day_it_closes():
    _, _, state = settled([("a", 1.0, days(30))], predictions(("a", "p", AT, AS_OF)))
    assert state == ["closed"]


def test_a_patient_asked_about_twice_a_day_counts_once_and_the_same_row_is_one():
    made = predictions(
        ("b", "p", days(0.1), CLOSED),
        ("a", "p", AT, CLOSED),
        ("a", "p", AT, CLOSED),
        ("c", "p", days(1), CLOSED),
        ("d", None, AT, CLOSED),
        ("e", None, AT, CLOSED),
    )
    found = settle_labels(
        made, arrivals(("a", 1.0, days(120)), ("b", 1.0, days(120))), as_of=AS_OF
    ).predictions
    assert dict(zip(found["prediction_id"], found["state"], strict=True)) == {
        "a": "closed", "b": "repeated", "c": "awaited", "d": "awaited", "e": "awaited",
    }  # fmt: skip


def test_a_window_runs_from_the_index_date_or_from_the_day_of_the_prediction():
    answers = pd.DataFrame({"patient_id": ["known", "unknown", None], "predicted_at": [AT, AT, AT]})
    outcomes = pd.DataFrame({"patient_id": ["known"], "index_date": [pd.Timestamp("2024-12-01")]})
    found = outcome_windows(answers, outcomes, SCOPE)
    horizon = dt.timedelta(days=SCOPE.horizon_days)
    assert (
        list(found["window_end"]) == [dt.date(2024, 12, 1) + horizon] + [dt.date(2025, 1, 10) + horizon] * 2
    )
    lag = dt.timedelta(days=SCOPE.source_lag_days + 1)
    assert list(found["closes_on"] - found["window_end"]) == [lag] * 3


def test_a_window_runs_from_the_last_index_date_before_the_prediction():
    dates = pd.to_datetime(["2025-01-05", "2024-12-01", "2025-02-01"])
    outcomes = pd.DataFrame({"patient_id": ["p", "p", "p"], "index_date": dates})
    outcomes = outcomes.astype({"patient_id": "string[pyarrow]"})
    asked = [AT, dt.datetime(2024, 11, 1, tzinfo=dt.UTC), dt.datetime(2025, 3, 1, tzinfo=dt.UTC)]
    found = outcome_windows(pd.DataFrame({"patient_id": "p", "predicted_at": asked}), outcomes, SCOPE)
    horizon = dt.timedelta(days=SCOPE.horizon_days)
    starts = [dt.date(2025, 1, 5), dt.date(2024, 12, 1), dt.date(2025, 2, 1)]
    assert [end - horizon for end in found["window_end"]] == starts


def answer(connection, key, patient, at=AT, origin="live", model=f"{SCOPE.model_name}/1"):
    connection.execute(
        raw_table("ml_predictions")
        .insert()
        .values(
            prediction_id=key, origin=origin, model_id=model, patient_id=patient,
            prediction_timestamp=at, prediction_value=0.4,
        )
    )  # fmt: skip


def outcomes(**labels):
    return pd.DataFrame(
        {
            "patient_id": pd.array(list(labels), dtype="string[pyarrow]"),
            "index_date": pd.Timestamp("2024-12-01"),
            "label": pd.array(list(labels.values()), dtype="Int64"),
        }
    )


def test_the_ledger_of_a_scope(database):
    until = AT + dt.timedelta(days=1)
    waiting = outcomes(p1=None, p2=None, p3=1)
    with database.begin() as connection:
        for key in ("p1", "p2", "p3"):
            answer(connection, f"of-{key}", key)
        answer(connection, "imported", "p1", origin="import")
        answer(connection, "of-another", "p1", model="another/1")
        answer(connection, "tomorrow", "p1", at=until)
        assert enter_predictions(connection, SCOPE, waiting, until=until) == 3
        assert enter_predictions(connection, SCOPE, waiting, until=until) == 0
        # The label of p3 was known before it was asked about; p4 was never asked about.
        about = {"run_id": "r"}
        early = enter_labels(connection, SCOPE, waiting, arrived_at=AT - dt.timedelta(hours=1), **about)
        assert early == 1
        first = enter_labels(connection, SCOPE, outcomes(p1=1, p2=0, p4=1), arrived_at=days(150), **about)
        again = enter_labels(connection, SCOPE, outcomes(p1=1, p2=0, p4=1), arrived_at=days(151), **about)
        # p3, absent from the newer outcomes, is taken back.
        assert (first, again) == (3, 0)
        assert enter_labels(connection, SCOPE, outcomes(p1=0, p2=0), arrived_at=days(160), **about) == 1
        ledger = read_ledger(connection, SCOPE.key, as_of=AS_OF)
    assert list(ledger.predictions.sort_values("prediction_id")["label"].fillna(-1)) == [0.0, 0.0, -1.0]
    assert ledger.counts["before_prediction"] >= 1 and ledger.counts["corrected"] == 1


def test_a_prediction_gets_the_label_of_the_index_date_that_its_window_runs_from(database):
    dates = pd.to_datetime(["2024-12-01", "2025-01-05"])
    of_p = pd.DataFrame({"patient_id": "p", "index_date": dates, "label": pd.array([1, 0], dtype="Int64")})
    with database.begin() as connection:
        answer(connection, "early", "p", at=AT - dt.timedelta(days=20))
        answer(connection, "late", "p", at=AT)
        assert enter_predictions(connection, SCOPE, of_p, until=AT + dt.timedelta(days=1)) == 2
        assert enter_labels(connection, SCOPE, of_p, arrived_at=days(150), run_id="r") == 2
        found = read_ledger(connection, SCOPE.key, as_of=AS_OF).predictions.set_index("prediction_id")
    assert found["label"].to_dict() == {"early": 1.0, "late": 0.0}


def test_labels_that_were_known_before_the_prediction_do_not_count(database):
    """What the outcome labels say since before the endpoint was asked is no forecast."""
    now = days(150)
    with database.begin() as connection:
        answer(connection, "a", "p1")
        answer(connection, "b", "p2")
        record(
            connection,
            DataVersion(asset="outcome_labels", partition=SCOPE.key, digest="0" * 32, rows=1),
        )
        about = {"day": AT.date(), "run_id": "r", "now": now}
        # The version is of today: after the predictions.
        ledger = update_ledger(connection, SCOPE, outcomes(p1=1, p2=None), **about)
        assert ledger.counts["accepted"] == 1
        answer(connection, "c", "p1", at=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1))
        tomorrow = (dt.datetime.now(dt.UTC) + dt.timedelta(days=1)).date()
        ledger = update_ledger(connection, SCOPE, outcomes(p1=1, p2=None), **{**about, "day": tomorrow})
    assert ledger.counts["before_prediction"] == 1 and ledger.counts["accepted"] == 1


def test_from_which_day_on_labels_are_enough(database):
    with database.begin() as connection:
        for number in range(4):
            answer(connection, f"a{number}", f"p{number}", at=days(number))
        nobody = outcomes(x=None)
        enter_predictions(connection, SCOPE, nobody, until=days(9))
        lag = dt.timedelta(days=SCOPE.horizon_days + SCOPE.source_lag_days + 1)
        enough = [labels_enough_from(connection, SCOPE.key, missing=n, after=AT.date()) for n in (1, 3, 5)]
    assert enough == [AT.date() + lag, AT.date() + dt.timedelta(days=2) + lag, None]
