"""Past days of a scope are watched in one run: as day by day, and a bad day does not stop the others."""

import datetime as dt

import dagster as dg
import pandas as pd
import pytest
from model_rows import rows, visible
from pipeline_runs import Pipeline, said

from e2i_dagster.config.drift_monitoring import DriftPolicy
from e2i_dagster.config.policy import current_policy
from e2i_dagster.config.scope import SuccessCriteria
from e2i_dagster.errors import InputError
from e2i_dagster.monitoring.compare import profile_model
from e2i_dagster.pipeline.states import Execution
from e2i_dagster.policy_files.environment import config_folder
from e2i_dagster.registry.storage import StoredModel
from e2i_dagster.registry.versions import RegisteredVersion
from e2i_dagster.tables import raw_table
from e2i_dagster.training import evaluate, train
from e2i_dagster.versions.lake import value_digests
from jobs.sequence import execute, monitored_days
from resources.lake import Outcome, Pieces

SCOPE = "remibrutinib_csu_initiation"
FIRST = dt.date(2026, 9, 1)
DAYS = 3
ASKED = 120


@pytest.fixture(scope="module")
def trained():
    seen = visible(rows(600), rows(400, 1))
    model = train(seen, algorithm="LogisticRegression", parameters={"C": 1.0})
    judged = evaluate(model, seen, criteria=SuccessCriteria())
    return model, profile_model(model, seen, policy=DriftPolicy.load(config_folder()), evaluation=judged)


@pytest.fixture
def watched(pipeline: Pipeline, trained):
    """A scope with a registered model, its profile, labels, and three days of answers of 120 patients each."""
    model, profile = trained
    name = current_policy().scope(SCOPE).model_name
    at = dt.datetime(2026, 8, 1, tzinfo=dt.UTC)
    version = RegisteredVersion(
        name=name, version="1", stage="production", since=at, superseded_since=None, run_id="r", uri="u",
        model_digest=model.digest, scope=SCOPE,
    )  # fmt: skip
    answers, labels = [], []
    for number in range(DAYS):
        asked = rows(ASKED, 10 + number)
        scores = model.scores(asked.features)
        day = dt.datetime.combine(FIRST + dt.timedelta(days=number), dt.time(9), dt.UTC)
        features = asked.features.astype(object).where(asked.features.notna(), None)
        for row, (score, record) in enumerate(zip(scores, features.to_dict("records"), strict=True)):
            key = f"{number}-{row}"
            answers.append(
                {
                    "prediction_id": key, "request_id": key, "model_id": f"{name}/1", "patient_id": f"PAT{key}",
                    "prediction_timestamp": day, "prediction_value": float(score), "origin": "live",
                    "prediction_type": "risk", "features_available_at_prediction": record,
                }
            )  # fmt: skip
            labels.append((f"PAT{key}", pd.Timestamp("2026-01-01"), int(asked.target[row])))
    with pipeline.warehouse.begin() as connection:
        connection.execute(raw_table("ml_predictions").insert(), answers)
    outcome = pd.DataFrame(labels, columns=["patient_id", "index_date", "label"])
    store(pipeline, "trained_model", StoredModel.of(model))
    store(pipeline, "reference_profile", profile)
    store(pipeline, "registered_model", version)
    store(pipeline, "outcome_labels", outcome.astype({"label": "Int64"}))
    return pipeline


def store(pipeline, asset, value):
    pieces = {SCOPE: value}
    pipeline.defs.resources["lake"].store(
        Outcome(Execution(asset, [SCOPE], "earlier"), Pieces(pieces, value_digests(pieces), "f", "c"))
    )


def watch(pipeline, first, last):
    return execute(pipeline.defs, monitored_days(SCOPE, first, last), pipeline.instance)


def day(number):
    return FIRST + dt.timedelta(days=number)


def key_of(day, scope=SCOPE):
    return str(dg.MultiPartitionKey({"day": day.isoformat(), "scope": scope}))


def digests(pipeline):
    """Digest of each partition of the three assets."""
    return {
        (asset, str(key)): version.digest
        for asset in ("prediction_log", "performance_report", "drift_report")
        for key, version in pipeline.versions(asset).items()
    }


MEASURED = (
    "SELECT day, drift_type, feature_name, psi, adjusted_p_value, severity, reason FROM ml_drift_history "
    "ORDER BY day, drift_type, feature_name"
)
PERFORMANCE = (
    "SELECT day, first_day, predictions, closed_labels, estimated, realised FROM ml_performance_history "
    "ORDER BY day, first_day"
)


def test_a_range_of_days_in_one_run_is_what_the_runs_of_the_days_give(watched):
    result = watch(watched, day(0), day(DAYS - 1))
    assert result.success, said(result)
    together = digests(watched), watched.rows(MEASURED), watched.rows(PERFORMANCE)
    assert len(together[0]) == 3 * DAYS and len({row["day"] for row in together[1]}) == DAYS
    assert {row["drift_type"] for row in together[1]} >= {"data", "prediction", "label"}
    with watched.warehouse.begin() as connection:
        for table in ("ml_drift_history", "ml_performance_history", "ml_monitoring_runs"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
        for table in ("ml_prediction_windows", "ml_prediction_labels"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
        connection.exec_driver_sql(
            "DELETE FROM ml_data_versions WHERE asset IN ('drift_report', 'performance_report')"
        )
    for number in range(DAYS):
        assert watch(watched, day(number), day(number)).success
    assert (digests(watched), watched.rows(MEASURED), watched.rows(PERFORMANCE)) == together


def test_a_bad_day_is_withheld_with_its_reason_and_the_others_are_stored(watched):
    assert watch(watched, day(0), day(DAYS - 1)).success
    with watched.warehouse.begin() as connection:
        connection.exec_driver_sql("DELETE FROM ml_drift_history")
        connection.exec_driver_sql("DELETE FROM ml_data_versions WHERE asset = 'drift_report'")
    bad = key_of(day(1))
    log = watched.versions("prediction_log")[bad]
    (watched.lake / log.path).write_bytes(b"damaged")
    ends = (key_of(day(0)), key_of(day(DAYS - 1)))
    result = watched.run("monitor", months=ends, assets=["drift_report"])
    assert not result.success
    assert "1 of 3 partitions withheld" in said(result) and bad in said(result)
    assert {row["day"] for row in watched.rows(MEASURED)} == {day(number) for number in (0, 2)}


def test_days_of_several_scopes_or_none_of_the_past_are_refused(watched):
    with pytest.raises(InputError, match="one scope is watched in a run, these are 2"):
        monitored_days("remibrutinib_csu_initiation,fabhalta_pnh_initiation", FIRST, FIRST)
    for first, last in ((day(1), day(0)), (dt.date(2000, 1, 1), day(0)), (day(0), dt.date(2999, 1, 1))):
        with pytest.raises(InputError, match="expected a range within"):
            monitored_days(SCOPE, first, last)
    result = watched.run(
        "monitor",
        months=(key_of(FIRST, "fabhalta_pnh_initiation"), key_of(FIRST)),
        assets=["performance_report"],
    )
    assert not result.success and not watched.versions("performance_report")
