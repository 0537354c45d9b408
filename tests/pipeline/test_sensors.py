"""Sensors and schedules: what they ask for, what they say when they ask for nothing, whom they wake."""

import datetime as dt

import dagster as dg
import pytest
import sqlalchemy as sa
import yaml
from pipeline_runs import EVENTS, FIRST, LAST

from e2i_dagster.config.current_features import feature_views
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.tables.description.monitoring import ml_monitoring_runs
from e2i_dagster.versions import ledger
from sensors.chain import cohorts_after_load, scopes_after_cohorts
from sensors.deliveries import missing_deliveries
from sensors.drift import drift_sensor
from sensors.failures import alert_on_run_failure
from sensors.freshness import feature_freshness
from sensors.schedules import monthly_load

SCOPE = "remibrutinib_csu_initiation"
COHORTS = ["fabhalta_c3g", "fabhalta_on_therapy", "fabhalta_pnh", "kisqali_hr_her2_bc", "remibrutinib_csu"]


@pytest.fixture
def resources(pipeline):
    """The resources of the code location by name."""
    return pipeline.defs.resources


def run_of(pipeline, job, tags=None, run_id=None):
    """A finished run of ``job`` in the instance, for a sensor to be told of."""
    from dagster._core.test_utils import create_run_for_test

    return create_run_for_test(
        pipeline.instance, job_name=job, run_id=run_id, status=dg.DagsterRunStatus.SUCCESS, tags=tags or {}
    )


def after(pipeline, sensor, job, resources, tags=None):
    """What ``sensor`` requests after a successful run of ``job``."""
    run = run_of(pipeline, job, tags)
    event = dg.DagsterEvent(event_type_value="PIPELINE_SUCCESS", job_name=job)
    with dg.build_run_status_sensor_context(
        sensor_name=sensor.name,
        dagster_event=event,
        dagster_instance=pipeline.instance,
        dagster_run=run,
        resources={"warehouse": resources["warehouse"]},
    ) as context:
        return run, list(sensor(context) or [])


def store(pipeline, asset, partition, number):
    ledger.record(
        pipeline.warehouse,
        ledger.DataVersion(asset=asset, partition=partition, digest=f"{number:032x}", rows=1),
    )


def test_failed_run_wakes_somebody_without_saying_anything_of_patients(pipeline, delivery, drawn, resources):
    events = drawn["treatment_events"].copy()
    of_month = events["event_date"].dt.strftime("%Y-%m") == "2024-01"
    events.loc[of_month, "event_type"] = "CANARY7Q"
    result = pipeline.load(delivery(*EVENTS, treatment_events=events), *EVENTS)
    assert not result.success
    (failure,) = [event for event in result.all_events if event.event_type_value == "PIPELINE_FAILURE"]

    def wake():
        with dg.build_run_status_sensor_context(
            sensor_name="alert_on_run_failure",
            dagster_event=failure,
            dagster_instance=pipeline.instance,
            dagster_run=pipeline.instance.get_run_by_id(result.run_id),
            resources={"alerts": resources["alerts"], "warehouse": resources["warehouse"]},
        ).for_run_failure() as context:
            alert_on_run_failure(context)

    wake()
    (alert,) = pipeline.rows("SELECT * FROM ml_monitoring_alerts")
    assert alert["alert_type"] == "run_failure" and alert["subject"] == "load_and_qc"
    assert alert["partition"] == f"{FIRST}..{LAST}"
    assert "treatment_events" in alert["message"] and "2024-01" in alert["message"]
    assert alert["owner"] and alert["next_command"] == "e2i status"
    assert alert["link"] == f"/runs/{result.run_id}"
    assert "CANARY7Q" not in str(dict(alert))
    # The same failure again is the same alert, counted.
    wake()
    (alert,) = pipeline.rows("SELECT * FROM ml_monitoring_alerts")
    assert alert["occurrences"] == 2


def new_labels(pipeline, labels):
    """A model of 500 labelled patients, and ``labels`` more since."""
    for rows, asset in ((500, "training_frame"), (1, "trained_model"), (500 + labels, "training_frame")):
        version = ledger.DataVersion(asset=asset, partition=SCOPE, digest=f"{rows:032x}", rows=rows)
        ledger.record(pipeline.warehouse, version)


def report_drift(pipeline, *, score=0.8, severity="critical", day=dt.date(2025, 1, 6), at=None, **measured):
    with pipeline.warehouse.begin() as connection:
        connection.execute(
            ml_monitoring_runs.insert().values(
                scope=SCOPE,
                day=day,
                model_id="e2i-test/1",
                features_tested=5,
                features_skipped=0,
                worst_severity=severity,
                worst_features=["disease_severity"],
                composite_score=score,
                run_id=f"run-{day}-{score}",
                **measured,
                **({} if at is None else {"created_at": at}),
            )
        )


def look(pipeline, resources, cursor=None):
    with dg.build_sensor_context(
        instance=pipeline.instance,
        cursor=cursor,
        resources={name: resources[name] for name in ("warehouse", "alerts")},
    ) as context:
        return drift_sensor(context)


def test_drift_is_proposed_once_and_then_the_sensor_says_why_it_does_nothing(pipeline, resources):
    nothing = look(pipeline, resources)
    assert "no report is newer" in nothing.skip_reason.skip_message
    new_labels(pipeline, 100)
    report_drift(pipeline)

    first = look(pipeline, resources)

    assert not first.run_requests and "propose" in first.skip_reason.skip_message
    (proposal,) = pipeline.rows("SELECT * FROM ml_retraining_history")
    assert proposal["status"] == "proposed" and proposal["scope"] == SCOPE
    (alert,) = pipeline.rows("SELECT * FROM ml_monitoring_alerts")
    assert alert["alert_type"] == "drift" and alert["severity"] == "critical"
    assert "disease_severity" in alert["message"] and alert["next_command"] == f"e2i run --scope {SCOPE}"

    second = look(pipeline, resources, first.cursor)
    assert "no report is newer" in second.skip_reason.skip_message and second.cursor == first.cursor
    # A newer report within the cool-down proposes nothing more.
    report_drift(pipeline, day=dt.date(2025, 1, 7), at=dt.datetime.now(dt.UTC))
    third = look(pipeline, resources, second.cursor)
    assert "cool-down until" in third.skip_reason.skip_message and third.cursor > first.cursor
    assert len(pipeline.rows("SELECT * FROM ml_retraining_history")) == 1


def test_small_drift_is_neither_alerted_nor_proposed(pipeline, resources):
    report_drift(pipeline, score=0.1, severity="low")
    seen = look(pipeline, resources)
    assert "is below" in seen.skip_reason.skip_message
    assert not pipeline.rows("SELECT * FROM ml_retraining_history")
    assert not pipeline.rows("SELECT * FROM ml_monitoring_alerts")


@pytest.mark.parametrize(("labels", "requested"), [(150, True), (40, False)])
def test_retraining_is_requested_only_when_configured_and_enough_labels_are_new(
    pipeline, resources, tmp_path, monkeypatch, labels, requested
):
    folder = tmp_path / "config"
    folder.mkdir()
    for name in ("drift_monitoring.yaml", "alerts.yaml"):
        policy = yaml.safe_load((CHECKOUT / "config" / name).read_text(encoding="utf-8"))
        if "retraining" in policy:
            policy["retraining"]["mode"] = "request"
        (folder / name).write_text(yaml.safe_dump(policy), encoding="utf-8")
    monkeypatch.setenv("E2I_CONFIG", str(folder))
    new_labels(pipeline, labels)
    report_drift(pipeline)
    asked = look(pipeline, resources)
    assert [request.partition_key for request in asked.run_requests or []] == ([SCOPE] if requested else [])
    rows = pipeline.rows("SELECT status, trigger_reason FROM ml_retraining_history")
    assert [row["status"] for row in rows] == (["requested"] if requested else [])
    if not requested:
        assert "wait: " in asked.skip_reason.skip_message
        (alert,) = pipeline.rows("SELECT message FROM ml_monitoring_alerts")
        assert "40 closed labels newer than the training data, 100 needed" in alert["message"]


def test_a_loss_of_performance_decides_before_drift_and_one_retraining_is_in_flight(pipeline, resources):
    new_labels(pipeline, 100)
    measured = {
        "basis": "realised",
        "metric": "roc_auc",
        "loss": 0.12,
        "loss_severity": "high",
        "concept_drift": True,
    }
    report_drift(pipeline, score=0.0, severity="high", findings=["region: new values 'islands'"], **measured)
    run = dg.DagsterRunStatus.STARTED
    from dagster._core.test_utils import create_run_for_test

    training = create_run_for_test(
        pipeline.instance, job_name="scope_pipeline", status=run, tags={"dagster/partition": SCOPE}
    )
    held = look(pipeline, resources)
    assert f"run {training.run_id} is training the scope already" in held.skip_reason.skip_message
    assert not pipeline.rows("SELECT * FROM ml_retraining_history")
    pipeline.instance.delete_run(training.run_id)
    look(pipeline, resources)
    (row,) = pipeline.rows("SELECT * FROM ml_retraining_history")
    assert (
        row["trigger_type"] == "concept_drift" and "realised loss of roc_auc 0.120" in row["trigger_reason"]
    )
    (alert,) = pipeline.rows("SELECT * FROM ml_monitoring_alerts")
    assert alert["title"] == f"Loss of performance in {SCOPE}"
    assert "likely cause: region: new values 'islands'" in alert["message"] and alert["link"].startswith(
        "/runs/run-"
    )


def test_a_fault_in_the_sensor_is_an_error_and_no_skip(pipeline, resources, tmp_path, monkeypatch):
    from e2i_dagster.errors import ConfigError

    (tmp_path / "drift_monitoring.yaml").write_text("retraining: {mode: sometimes}\n", encoding="utf-8")
    monkeypatch.setenv("E2I_CONFIG", str(tmp_path))
    with pytest.raises(ConfigError, match=r"drift_monitoring\.yaml"):
        look(pipeline, resources)


def test_cohorts_follow_a_load_only_where_they_are_older(pipeline, resources):
    _, nothing = after(pipeline, cohorts_after_load, "load_and_qc", resources)
    assert nothing == [], "nothing was loaded yet"
    store(pipeline, "patient_journeys", None, 1)
    run, asked = after(pipeline, cohorts_after_load, "load_and_qc", resources)
    assert [request.partition_key for request in asked] == COHORTS
    assert {request.job_name for request in asked} == {"build_cohorts"}
    assert asked[0].run_key == f"{run.run_id}:fabhalta_c3g"
    for number, cohort in enumerate(COHORTS[:2]):
        store(pipeline, "cohort", cohort, 10 + number)
    _, asked = after(pipeline, cohorts_after_load, "load_and_qc", resources)
    assert [request.partition_key for request in asked] == COHORTS[2:]
    store(pipeline, "treatment_events", "2024-01", 20)
    _, asked = after(pipeline, cohorts_after_load, "load_and_qc", resources)
    assert [request.partition_key for request in asked] == COHORTS


def test_scopes_follow_their_own_cohort(pipeline, resources):
    store(pipeline, "cohort", "remibrutinib_csu", 1)
    store(pipeline, "cohort", "fabhalta_pnh", 2)
    tags = {"dagster/partition": "remibrutinib_csu"}
    _, asked = after(pipeline, scopes_after_cohorts, "build_cohorts", resources, tags)
    of_cohort = ["remibrutinib_csu_cost", SCOPE, "remibrutinib_csu_time_to_fill"]
    assert sorted((request.job_name, request.partition_key) for request in asked) == [
        ("scope_pipeline", scope) for scope in of_cohort
    ]
    for scope in of_cohort:
        store(pipeline, "deployment", scope, 3)
    _, asked = after(pipeline, scopes_after_cohorts, "build_cohorts", resources, tags)
    assert asked == []
    # Another cohort's news are no reason; the scope's own are.
    store(pipeline, "cohort", "fabhalta_pnh", 4)
    assert after(pipeline, scopes_after_cohorts, "build_cohorts", resources, tags)[1] == []
    store(pipeline, "cohort", "remibrutinib_csu", 5)
    _, asked = after(pipeline, scopes_after_cohorts, "build_cohorts", resources, tags)
    assert sorted(request.partition_key for request in asked) == of_cohort


@pytest.mark.parametrize(
    ("moment", "month"),
    [
        ("2024-03-06", "2024-02"),
        ("2024-01-06", "2023-12"),
        ("2025-01-06", "2024-12"),
        ("2022-02-06", "2022-01"),
    ],
)
def test_monthly_load_asks_for_the_month_before(moment, month):
    context = dg.build_schedule_context(
        scheduled_execution_time=dt.datetime.fromisoformat(f"{moment}T05:00:00+00:00")
    )
    request = monthly_load(context)
    assert isinstance(request, dg.RunRequest)
    assert request.partition_key == month == request.run_key


@pytest.mark.parametrize("moment", ["2022-01-06", "2025-02-06"])
def test_monthly_load_says_why_it_asks_for_nothing(moment):
    context = dg.build_schedule_context(
        scheduled_execution_time=dt.datetime.fromisoformat(f"{moment}T05:00:00+00:00")
    )
    skipped = monthly_load(context)
    assert isinstance(skipped, dg.SkipReason)
    assert "2022-01..2024-12" in skipped.skip_message and "data_end" in skipped.skip_message


def test_deliveries_are_not_waited_for_when_none_are_expected(pipeline, resources):
    with dg.build_sensor_context(resources={"alerts": resources["alerts"]}) as context:
        seen = missing_deliveries(context)
    assert "expects no files" in seen.skip_reason.skip_message


def test_online_features_that_nobody_renews_are_told_once_per_limit(pipeline, resources):
    def look():
        with dg.build_sensor_context(
            resources={name: resources[name] for name in ("alerts", "warehouse")}
        ) as context:
            return feature_freshness(context).skip_reason.skip_message

    assert look() == "no scope has features online yet"
    engine = resources["warehouse"].engine()
    with engine.begin() as connection:
        for number, view in enumerate(feature_views()):
            connection.execute(
                sa.text(
                    "INSERT INTO ml_feast_feature_views (id, name, project, description, entity_join_keys, features, "
                    "feature_count, source_type, source_path, source_digest, source_rows) "
                    "VALUES (:id, :view, :scope, 'v', '[]', '[]', 1, 'parquet', 'p', 'd', 1)"
                ),
                {"id": f"{SCOPE}.{view.name}", "view": view.name, "scope": SCOPE},
            )
            connection.execute(
                sa.text(
                    "INSERT INTO ml_feast_materialization_jobs (feature_view_id, feature_view_name, source_digest, "
                    "start_time, end_time, rows_materialized, duration_seconds, started_at, completed_at) VALUES "
                    "(:id, :view, 'd', now(), now(), 1, 1, now(), now() - make_interval(hours => :hours))"
                ),
                {"id": f"{SCOPE}.{view.name}", "view": view.name, "hours": 3 if number == 0 else 0},
            )
    for _ in range(2):
        assert look() == f"{SCOPE}: stale"
    (alert,) = pipeline.rows("SELECT * FROM ml_monitoring_alerts WHERE subject = '" + SCOPE + "'")
    assert (alert["severity"], alert["occurrences"]) == ("medium", 1)
    assert f"{feature_views()[0].name} 3.0 h (1 h warns, 2 h is stale)" in alert["message"]
    ledger.record_state(engine, ledger.StageState("online_features", SCOPE, "reused"))
    assert look() == f"{SCOPE}: fresh"


def test_only_failures_and_retention_are_on_by_default(pipeline):
    on = {
        sensor.name
        for sensor in pipeline.defs.sensors
        if sensor.default_status == dg.DefaultSensorStatus.RUNNING
    }
    assert on == {"alert_on_run_failure", "run_history_retention"}
    assert all(
        schedule.default_status == dg.DefaultScheduleStatus.STOPPED for schedule in pipeline.defs.schedules
    )
