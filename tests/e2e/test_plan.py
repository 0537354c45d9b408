"""What one run of the plan leaves behind: states, model, endpoint, predictions, drift report."""

import json
import shlex
import subprocess
import urllib.error
import urllib.request

import pytest

from e2i_dagster.config.cohort import read_cohorts

SCOPE = "remibrutinib_csu_initiation"
MODEL = "e2i-remibrutinib-csu-initiation"

#: The assets of the plan, by the stage that design and documentation name them.
EXPECTED = {
    "policy", "source_files", "hcp_profiles", "patient_journeys", "treatment_events", "ml_predictions",
    "quality/patient_journeys", "quality/treatment_events", "cohort_definition", "cohort", "scope_spec",
    "outcome_labels", "feature_values", "feature_views", "online_features", "training_frame",
    "scoring_frame", "splits", "feature_selection", "algorithm", "hyperparameters", "trained_model",
    "evaluation", "tracked_run", "explanations", "registered_model", "bento", "deployment", "live_scores",
    "prediction_log", "drift_report", "reference_profile", "performance_report",
}  # fmt: skip


@pytest.fixture(scope="session")
def tracked(deployed):
    """What MLflow holds, read through its own client in a process of the deployment."""
    program = """
import json
from resources.mlflow import MlflowResource
import mlflow, warnings
warnings.simplefilter("ignore")
mlflow.set_tracking_uri(MlflowResource().uri())
mlflow.set_registry_uri(MlflowResource().uri())
client = mlflow.MlflowClient()
experiments = [one for one in client.search_experiments() if one.name != "Default"]
found = client.search_runs([one.experiment_id for one in experiments])
runs = [run for run in found if "mlflow.parentRunId" not in run.data.tags]
trials = [run for run in found if "mlflow.parentRunId" in run.data.tags]
versions = client.search_model_versions("name='MODEL'")
staged = client.get_model_version_by_alias("MODEL", "staging")
info = mlflow.models.get_model_info(f"models:/{staged.name}@staging")
example = mlflow.models.Model.load(mlflow.artifacts.download_artifacts(info.model_uri)).load_input_example()
print(json.dumps({
    "experiments": [one.name for one in experiments],
    "runs": [{"id": run.info.run_id, "status": run.info.status, "end": run.info.end_time, "params": run.data.params,
              "metrics": run.data.metrics, "tags": run.data.tags} for run in runs],
    "trials": [{"parent": run.data.tags["mlflow.parentRunId"], "status": run.info.status} for run in trials],
    "artifacts": [one.path for one in client.list_artifacts(runs[0].info.run_id)],
    "versions": [{"version": one.version, "run": one.run_id, "tags": dict(one.tags)} for one in versions],
    "staged": staged.version,
    "inputs": [column.name for column in info.signature.inputs.inputs],
    "outputs": info.signature.outputs is not None,
    "example": example.to_dict("list"),
}))
"""
    return deployed.python(program.replace("MODEL", MODEL))


def test_every_stage_was_executed(deployed):
    stages = deployed.report["stages"]
    assert {stage["state"] for stage in stages} == {"executed"}, [
        stage for stage in stages if stage["state"] != "executed"
    ]
    assert {stage["name"] for stage in stages} >= EXPECTED
    cohorts = {stage["partition"] for stage in stages if stage["name"] == "cohort"}
    assert cohorts == set(read_cohorts()[0])


def test_status_has_the_documented_keys(deployed):
    status = json.loads(deployed.e2i("status", "--json").stdout)
    assert set(status) == {
        *("stages", "tables", "endpoints", "warehouse", "configuration", "not_kept", "never_loaded")
    }
    assert status["configuration"] == []
    assert status["not_kept"] == {} and status["never_loaded"] == {}
    documented = {"name", "partition", "state", "reason", "note", "rows", "seconds", "data_version", "at"}
    assert all(set(stage) == documented for stage in status["stages"])
    assert all(stage["seconds"] >= 0 and stage["data_version"] for stage in status["stages"])
    assert len(status["tables"]) == 12
    assert [name for name, rows in status["tables"].items() if not rows] == ["observation_periods"]
    assert status["tables"]["patient_journeys"] == 7_500
    (endpoint,) = status["endpoints"]
    assert endpoint.keys() >= {"service", "url", "model_id", "slot", "health", "example"}
    assert endpoint["service"] == "classification" and endpoint["slot"] == "staging"
    assert endpoint["model_id"] == f"{MODEL}/1" and endpoint["health"] == "healthy"
    assert "embedded" in status["warehouse"]["server"]
    assert "password" not in json.dumps(status).lower()


def test_second_run_reuses_every_stage(deployed, again):
    stages = {(stage["name"], stage["partition"]): stage for stage in again["stages"]}
    first = {(stage["name"], stage["partition"]): stage for stage in deployed.report["stages"]}
    assert {key: stage["state"] for key, stage in stages.items()} == dict.fromkeys(first, "reused")
    assert {key: stage["data_version"] for key, stage in stages.items()} == {
        key: stage["data_version"] for key, stage in first.items()
    }
    assert all("run " in stage["reason"] for stage in stages.values()), "reused names the run that made it"
    assert again["endpoints"][0]["bento_tag"] == deployed.report["endpoints"][0]["bento_tag"]


def test_printed_curl_line_is_answered(deployed):
    line = deployed.report["endpoints"][0]["example"]
    assert line.startswith("curl -s http://127.0.0.1:")
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True, timeout=30)
    answer = json.loads(done.stdout)
    assert answer["model_id"] == f"{MODEL}/1"
    assert answer["predictions"] in ([0], [1]) and answer["_metadata"]["slot"] == "staging"
    assert sum(answer["probabilities"][0].values()) == pytest.approx(1)


def asked(line: str, change) -> tuple[int, str]:
    """Status and text of the answer to the printed request after ``change`` to its body."""
    words = shlex.split(line)
    url, body = words[2], json.loads(words[words.index("-d") + 1])
    changed = change(body)
    data = changed if isinstance(changed, bytes) else json.dumps(changed).encode()
    request = urllib.request.Request(url, data=data, headers={"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def with_features(**features):
    return lambda body: {**body, "features": {**body["features"], **features}}


def without(name):
    return lambda body: {
        **body,
        "features": {key: value for key, value in body["features"].items() if key != name},
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (with_features(disease_severity="severe"), "disease_severity"),
        (with_features(disease_severity=[1.0]), "disease_severity"),
        (without("disease_severity"), "disease_severity"),
        (with_features(shoe_size=43), "shoe_size"),
        (lambda body: {}, "features"),
        (lambda body: b"{not json", ""),
    ],
    ids=["text for a number", "list for a number", "missing", "unknown", "empty", "no json"],
)
def test_wrong_request_is_refused_with_the_field_named(deployed, change, named):
    status, text = asked(deployed.report["endpoints"][0]["example"], change)
    assert 400 <= status < 500, text
    assert named in text
    assert "Traceback" not in text


def test_unknown_model_is_refused(deployed):
    line = deployed.report["endpoints"][0]["example"].replace(f"/{MODEL}/", "/e2i-nothing/")
    status, text = asked(line, lambda body: body)
    assert status == 404 and "model_name" in text and MODEL in text, "the known ones are named"


def test_scored_patients_are_in_the_prediction_log_and_not_in_the_raw_asset(deployed):
    rows = deployed.rows(
        "SELECT origin, model_id, count(*) AS n, bool_and(prediction_value BETWEEN 0 AND 1) AS good "
        "FROM ml_predictions GROUP BY 1, 2"
    )
    (live,) = [row for row in rows if row["origin"] == "live"]
    scored = next(stage for stage in deployed.report["stages"] if stage["name"] == "scoring_frame")
    assert live["model_id"] == f"{MODEL}/1" and live["good"]
    assert live["n"] >= scored["rows"] > 0
    imported = sum(row["n"] for row in rows if row["origin"] == "import")
    raw = next(stage for stage in deployed.report["stages"] if stage["name"] == "ml_predictions")
    assert raw["rows"] == imported


def first_of_each_version(deployed, table, stage):
    """The first row of ``table``; each version of ``stage`` entered one, and nothing else did."""
    rows = deployed.rows(f"SELECT * FROM {table} ORDER BY created_at")
    versions = deployed.rows(
        f"SELECT run_id FROM ml_data_versions WHERE asset = '{stage}' ORDER BY version_id"
    )
    assert [row["run_id"] for row in rows] == [version["run_id"] for version in versions]
    return rows[0]


def test_drift_report_is_recorded(deployed):
    run = first_of_each_version(deployed, "ml_monitoring_runs", "drift_report")
    assert run["scope"] == SCOPE and run["model_id"] == f"{MODEL}/1"
    features = deployed.rows("SELECT * FROM ml_drift_history")
    assert {row["feature_name"] for row in features} >= {"disease_severity", "prediction"}
    assert all(row["state"] == "executed" or row["reason"] for row in features)


def test_the_first_run_ends_without_a_drift_alert(deployed):
    """Features that do not grow with the calendar: later patients of the same process look the same."""
    found = deployed.rows("SELECT feature_name, severity FROM ml_drift_history")
    assert not [row for row in found if row["severity"] in ("high", "critical")]
    runs = deployed.rows("SELECT worst_severity, concept_drift FROM ml_monitoring_runs")
    assert runs and not [
        run for run in runs if run["worst_severity"] in ("high", "critical") or run["concept_drift"]
    ]


def test_performance_is_estimated_before_the_labels_are_there(deployed, again):
    """Every live answer is in the label ledger with the end of its window; a second run enters no second row."""
    window = first_of_each_version(deployed, "ml_performance_history", "performance_report")
    assert (window["metric"], window["realised"], window["concept"]) == ("roc_auc", None, "not_estimable")
    answers = deployed.rows(
        "SELECT prediction_id FROM ml_predictions WHERE origin = 'live' "
        "AND prediction_timestamp < (SELECT max(created_at) FROM ml_performance_history)"
    )
    entered = deployed.rows("SELECT prediction_id, closes_on, window_end FROM ml_prediction_windows")
    assert answers
    assert {row["prediction_id"] for row in entered} == {row["prediction_id"] for row in answers}
    assert all(row["closes_on"] > row["window_end"] for row in entered)
    assert window["estimated"] is None or 0.5 < window["estimated"] < 1
    assert window["estimated"] is not None or "an estimate needs" in window["reason"]


def test_features_are_previewed_and_suggested_from_the_loaded_data(deployed):
    told = json.loads(deployed.e2i("features", "preview", "treatment_count", "--json").stdout)
    (count,) = told["features"]
    assert (count["feature"], count["missing"]) == ("treatment_count", 0) and count["rows"] > 100
    told = json.loads(deployed.e2i("features", "suggest", "remibrutinib_csu", "--json").stdout)
    assert ("event_type", "consultation") in {(one["column"], one["code"]) for one in told["suggestions"]}
    done = deployed.e2i("features", "suggest", "nope", "--json", check=False)
    assert done.returncode == 2 and "no cohort 'nope'" in json.loads(done.stdout)["error"]["message"]


def test_one_mlflow_run_ended_and_whole(deployed, again, tracked):
    """Also after the second Dagster run, which reused the attempt."""
    (run,) = tracked["runs"]
    assert run["status"] == "FINISHED" and run["end"]
    assert {trial["parent"] for trial in tracked["trials"]} == {run["id"]}
    assert {trial["status"] for trial in tracked["trials"]} <= {"FINISHED", "KILLED"}, (
        "KILLED is a pruned one"
    )
    assert tracked["experiments"] == [f"e2i/{SCOPE}"] or tracked["experiments"][0].endswith(SCOPE)
    assert run["params"]["algorithm"] and int(run["params"]["training_rows"]) > 300
    for split in ("train", "validation", "test"):
        assert 0.5 < run["metrics"][f"{split}_roc_auc"] <= 1
    assert run["metrics"]["test_roc_auc"] >= 0.7, "staging rests on measured evidence"
    tags = run["tags"]
    assert tags["e2i.scope"] == SCOPE and tags["e2i.brand"] == "Remibrutinib"
    assert tags["e2i.problem_type"] == "binary_classification" and tags["e2i.accepted"] == "true"
    (made_by,) = deployed.rows(
        "SELECT run_id FROM ml_data_versions WHERE asset = 'tracked_run'",
    )
    assert tags["dagster_run_id"] == made_by["run_id"]
    assert tags["e2i.digest.training_frame"] and tags["e2i.digest.splits"]
    assert {"evaluation.json", "explanation.json", "figures"} <= set(tracked["artifacts"])


def test_registered_version_is_staged_with_signature_and_example(tracked):
    (version,) = tracked["versions"]
    assert str(version["version"]) == str(tracked["staged"]) == "1"
    assert version["run"] == tracked["runs"][0]["id"] and version["tags"]["e2i.stage"] == "staging"
    assert tracked["outputs"] and "disease_severity" in tracked["inputs"]
    assert set(tracked["example"]) == set(tracked["inputs"])


def test_no_training_or_scoring_row_equals_the_input_example(deployed, tracked):
    compared = deployed.python(
        f"""
import json
import pandas as pd
from e2i_dagster.definitions import build_resources
lake = build_resources()["lake"]
example = {tracked["example"]!r}
equal = {{}}
for asset in ("training_frame", "scoring_frame"):
    frame = lake.load(asset, ["{SCOPE}"])
    same = pd.Series(True, index=frame.index)
    for name, (value,) in example.items():
        same &= (frame[name] == value).fillna(False).astype(bool)
    equal[asset] = [len(frame), int(same.sum())]
print(json.dumps(equal))
"""
    )
    for asset, (rows, same) in compared.items():
        assert rows > 0 and same == 0, asset


def test_key_of_a_patient_is_in_no_event_log_artifact_or_document(deployed):
    """Events, logs, MLflow artifacts, bento and documents of the lake name no patient."""
    (patient,) = deployed.rows(
        "SELECT patient_id FROM patient_journeys JOIN ml_patient_split_assignments USING (patient_id) LIMIT 1"
    )
    needles = [patient["patient_id"].encode()]
    found = []
    for path in sorted(deployed.home.rglob("*")):
        inside = path.relative_to(deployed.home)
        # The database, its deliveries and the frames are where rows of patients belong.
        frames = path.suffix == ".parquet" or inside.parts[0] in (
            "postgres",
            "feast",
            "deliveries",
            "secrets",
        )
        if path.is_file() and not frames and any(needle in path.read_bytes() for needle in needles):
            found.append(str(inside))
    assert not found
