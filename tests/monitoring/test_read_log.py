"""The prediction log of a day: live answers of the model, from midnight to before midnight (UTC)."""

import datetime as dt

import pyarrow as pa
import sqlalchemy as sa

from e2i_dagster.monitoring.prediction_log import read_prediction_log
from e2i_dagster.tables import raw_table

DAY = dt.date(2025, 1, 2)
MIDNIGHT = dt.datetime(2025, 1, 2, tzinfo=dt.UTC)
NEXT = MIDNIGHT + dt.timedelta(days=1)


def test_the_log_holds_live_answers_of_the_model_on_that_day(database: sa.Engine):
    usual = {"origin": "live", "model_id": "e2i-csu/1", "prediction_timestamp": MIDNIGHT}
    given = {
        "at midnight": {},
        "at the last moment": {"prediction_timestamp": NEXT - dt.timedelta(microseconds=1)},
        "of another version": {"model_id": "e2i-csu/2"},
        "the day before": {"prediction_timestamp": MIDNIGHT - dt.timedelta(microseconds=1)},
        "at the next midnight": {"prediction_timestamp": NEXT},
        "imported": {"origin": "import"},
        "of a longer name": {"model_id": "e2i-csu-responder/1"},
    }
    rows = [
        {
            "prediction_id": name,
            "prediction_value": 0.25,
            "features_available_at_prediction": {"severity": 3, "unasked": 1},
            **usual,
            **changed,
        }
        for name, changed in given.items()
    ]
    with database.begin() as connection:
        connection.execute(raw_table("ml_predictions").insert(), rows)
        log = read_prediction_log(connection, day=DAY, model_name="e2i-csu", features=["severity", "region"])
    assert set(log["prediction_id"]) == {"at midnight", "at the last moment", "of another version"}
    assert log["severity"].tolist() == [3, 3, 3]
    assert log["region"].isna().all()
    assert "unasked" not in log


def test_no_value_of_one_row_stops_the_others(database: sa.Engine):
    """The database writes 1e30 as a whole number of 31 digits; rows of other versions may hold other kinds."""
    severity = [1e30, 1.5, None, 7, "text", 2**63]
    region = ["west", 3, "west", None, True, "south"]
    with database.begin() as connection:
        connection.execute(
            raw_table("ml_predictions").insert(),
            [
                {
                    "prediction_id": f"row {number}",
                    "origin": "live",
                    "model_id": "e2i-csu/1",
                    "prediction_timestamp": MIDNIGHT,
                    "prediction_value": 0.25,
                    "features_available_at_prediction": {
                        "severity": severity[number],
                        "region": region[number],
                    },
                }
                for number in range(6)
            ],
        )
        log = read_prediction_log(connection, day=DAY, model_name="e2i-csu", features=["severity", "region"])
    table = pa.Table.from_pandas(log)
    assert table["severity"].to_pylist() == [1e30, 1.5, None, 7.0, None, 2.0**63]
    assert table["region"].to_pylist() == ["west", None, "west", None, None, "south"]
