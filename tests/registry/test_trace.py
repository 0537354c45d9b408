"""The lineage of a model, a prediction, a run and a patient, on a ledger whose chain is known."""

import datetime as dt
import json

import pandas as pd
import pytest
import sqlalchemy as sa
from model_rows import rows, visible

from e2i_dagster import registry
from e2i_dagster.cohorts.access import PatientLevelRefused
from e2i_dagster.config.scope import SuccessCriteria, default_scope
from e2i_dagster.display import Table, to_plain
from e2i_dagster.errors import InputError
from e2i_dagster.registry.trace import trace
from e2i_dagster.tables import raw_table
from e2i_dagster.tables.description.cohorts import ml_patient_level_access
from e2i_dagster.tables.description.monitoring import ml_monitoring_runs
from e2i_dagster.training import evaluate, train
from e2i_dagster.versions import ledger
from e2i_dagster.versions.lake import Lake

SCOPE = default_scope()
MODEL = "e2i-x"
LATER = dt.datetime(2031, 1, 2, tzinfo=dt.UTC)
FILES = Table(("file", "format", "bytes", "lines", "digest"), [("patients.csv", "CSV", 120, 9, "f11e")])


@pytest.fixture(scope="module")
def fitted():
    seen = visible(rows(200), rows(100, 1))
    model = train(seen, algorithm="LogisticRegression", parameters={"C": 1.0, "l1_ratio": 0.0})
    return model, evaluate(model, seen, criteria=SuccessCriteria())


@pytest.fixture
def chain(database, fitted, tmp_path):
    """Two deliveries; the model was made from the first one, whose journeys were later written again."""
    model, evaluation = fitted
    lake = Lake(str(tmp_path))

    def version(asset, digest, run, made_from=None, partition=None, **more):
        metadata = more.pop("metadata", {}) | ({} if made_from is None else {"made_from": made_from})
        ledger.record(
            database,
            ledger.DataVersion(
                asset=asset, partition=partition, digest=digest, rows=9, code_version="c", run_id=run,
                metadata=metadata, **more,
            ),
        )  # fmt: skip

    told = {"told": [["files", to_plain(FILES)]]}
    key = SCOPE.key
    version("source_files", "s1", "load-1", {}, metadata=told)
    version("patient_journeys", "j1", "load-1", {"source_files": {"": "s1"}})
    for month in ("2024-01", "2024-02"):
        version("treatment_events", f"e-{month}", "load-1", {"source_files": {"": "s1"}}, month)
    events = {"2024-01": "e-2024-01", "2024-02": "e-2024-02"}
    version(
        "training_frame", "t1", "fit-1", {"patient_journeys": {"": "j1"}, "treatment_events": events}, key
    )
    version("trained_model", "m1", "fit-1", {"training_frame": {key: "t1"}}, key)
    version("tracked_run", "r1", "fit-1", {"trained_model": {key: "m1"}}, key)
    # The next delivery, and equal journeys written again from it: neither has part in the model.
    version("source_files", "s2", "load-2", {})
    version("patient_journeys", "j1", "load-2", {"source_files": {"": "s2"}})
    version("scoring_frame", "f1", "score-1", {"patient_journeys": {"": "j1"}}, key)
    scores = pd.DataFrame({"patient_id": ["PAT1"], "request_id": ["q1"]}).astype("string[pyarrow]")
    stored = lake.write("live_scores", key, scores)
    version(
        "live_scores", stored.digest, "score-1", {"scoring_frame": {key: "f1"}}, key, path=stored.path,
        size=stored.file.size, checksum=stored.file.checksum, at=LATER + dt.timedelta(hours=1),
    )  # fmt: skip
    experiment = registry.write_experiment(
        database, SCOPE, experiment_name="e2i/x", mlflow_experiment_id="1", created_by="ann"
    )
    registry.write_training_run(
        database, model, evaluation, run_name="x", mlflow_run_id="abc", experiment_id=experiment,
        digests={"training_frame": "t1", "trained_model": "m1"},
    )  # fmt: skip
    registry.write_model(
        database, model, evaluation, model_name=MODEL, version="3", mlflow_run_id="abc", model_uri="models:/m",
        stage="staging", experiment_id=experiment,
    )  # fmt: skip
    predictions = raw_table("ml_predictions")
    with database.begin() as connection:
        connection.execute(
            raw_table("patient_journeys").insert(),
            [{"patient_journey_id": "PJ1", "patient_id": "PAT1", "journey_start_date": dt.date(2024, 1, 1)}],
        )
        connection.execute(
            predictions.insert(),
            [
                {
                    "prediction_id": f"live-{request}", "origin": "live", "request_id": request,
                    "model_id": f"{MODEL}/3", "model_version": "3", "patient_id": "PAT1",
                    "prediction_timestamp": LATER, "prediction_value": 0.25, "prediction_class": "0",
                    "probability_scores": {"0": 0.75, "1": 0.25},
                    "features_available_at_prediction": {"severity": 7.77},
                }
                for request in ("q1", "q2")
            ],
        )  # fmt: skip
        connection.execute(
            ml_monitoring_runs.insert().values(
                scope=key, day=LATER.date(), model_id=f"{MODEL}/3", features_tested=4, features_skipped=0,
                worst_severity="low", worst_features=[], run_id="watch-1", findings=[], basis="estimated",
                concept_drift=False,
            )
        )  # fmt: skip
    return database, lake, version


def named(versions):
    return {(each.asset, each.partition): (each.digest, each.run_id) for each in versions}


def openings(database):
    with database.connect() as connection:
        found = connection.execute(sa.select(ml_patient_level_access)).all()
    return [(row.purpose, row.patient_id, row.outcome, row.actor) for row in found]


@pytest.mark.parametrize("target", [f"{MODEL}/3", MODEL, f"{MODEL}@staging", SCOPE.key])
def test_a_model_is_traced_to_the_delivery_that_it_was_made_from(chain, target):
    database, lake, _ = chain
    found = trace(database, lake, target)
    assert (found.kind, found.facts["model"], found.facts["mlflow_run"]) == ("model", f"{MODEL}/3", "abc")
    sources = named(found.sources)
    # The journeys that it read were those of the first delivery, though equal ones were written again later.
    assert sources[("patient_journeys", "")] == ("j1", "load-1")
    assert sources[("source_files", "")] == ("s1", "load-1")
    assert sources[("treatment_events", "2024-02")] == ("e-2024-02", "load-1")
    assert {each.asset: each.steps for each in found.sources} == {
        "trained_model": 0, "training_frame": 1, "patient_journeys": 2, "treatment_events": 2, "source_files": 3,
    }  # fmt: skip
    assert named(found.uses) == {("tracked_run", SCOPE.key): ("r1", "fit-1")}
    told = {(record.what, record.name): record.detail for record in found.records}
    assert told[("file", "patients.csv")] == "CSV, 120 bytes, digest f11e"
    assert told[("drift report", "2031-01-02")] == "severity low, 4 features tested"
    # Two answers are a small cell.
    assert told[("predictions", "2031-01-02")] == "<11 answers in the log"
    made_from = found.tables()["Made from"]
    (events,) = [row for row in made_from.rows if row[1] == "treatment_events"]
    assert events[2] == "2 partitions"
    assert not found.notes
    assert openings(database) == []


def test_runs_of_mlflow_and_of_dagster_are_walked_both_ways(chain):
    database, lake, _ = chain
    tracked = trace(database, lake, "abc")
    assert tracked.facts["registered_as"] == f"{MODEL}/3"
    assert named(tracked.sources) == named(trace(database, lake, MODEL).sources)
    loaded = trace(database, lake, "load-1")
    assert loaded.facts["versions_made"] == 4
    assert {each.asset for each in loaded.uses} == {
        "training_frame", "trained_model", "tracked_run", "scoring_frame", "live_scores",
    }  # fmt: skip
    fitted = trace(database, lake, "fit-1")
    assert {each.asset for each in fitted.sources if each.steps} == {
        "training_frame", "trained_model", "patient_journeys", "treatment_events", "source_files",
    } - {"training_frame", "trained_model"}  # fmt: skip


def test_a_prediction_names_model_features_and_answer_and_shows_no_patient(chain):
    database, lake, _ = chain
    found = trace(database, lake, "live-q1")
    assert found.facts["model"] == f"{MODEL}/3"
    sources = named(found.sources)
    assert sources[("scoring_frame", SCOPE.key)] == ("f1", "score-1")
    # The patient was scored with the journeys of the second delivery.
    assert sources[("patient_journeys", "")] == ("j1", "load-2")
    assert sources[("trained_model", SCOPE.key)] == ("m1", "fit-1")
    text = json.dumps(found.model_dump(mode="json"))
    assert "PAT1" not in text
    assert "7.77" not in text
    alone = trace(database, lake, "live-q2")
    assert "its features came with it" in alone.notes[0]
    assert ("scoring_frame", SCOPE.key) not in named(alone.sources)
    # Equal answers and features have equal digests.
    assert alone.facts["answer_digest"] == found.facts["answer_digest"]
    with database.begin() as connection:
        connection.execute(
            sa.text("UPDATE ml_predictions SET prediction_value = 0.26 WHERE request_id = 'q2'")
        )
    assert trace(database, lake, "live-q2").facts["answer_digest"] != found.facts["answer_digest"]


def test_a_patient_is_refused_without_permission_and_the_attempt_is_on_record(chain, monkeypatch):
    database, lake, _ = chain
    monkeypatch.setenv("E2I_ACTOR", "eve")
    monkeypatch.delenv("E2I_ALLOW_PATIENT_LEVEL", raising=False)
    messages = {}
    for target in ("PAT1", "PAT2"):
        with pytest.raises(PatientLevelRefused, match="E2I_ALLOW_PATIENT_LEVEL=1") as refused:
            trace(database, lake, target)
        messages[target] = str(refused.value).replace(target, "X")
        assert f"{MODEL}/3" in str(refused.value.remedy)
    # Nobody learns from the answer whether there is such a patient.
    assert messages["PAT1"] == messages["PAT2"]
    assert openings(database) == [("trace", "PAT1", "refused", "eve"), ("trace", "PAT2", "refused", "eve")]


def test_a_patient_is_traced_with_permission_on_record(chain, monkeypatch):
    database, lake, _ = chain
    monkeypatch.setenv("E2I_ACTOR", "ann")
    monkeypatch.setenv("E2I_ALLOW_PATIENT_LEVEL", "1")
    found = trace(database, lake, "PAT1")
    assert openings(database) == [("trace", "PAT1", "opened", "ann")]
    told = {(record.what, record.name): record.detail for record in found.records}
    assert told[("row", "patient_journeys PJ1")] == "in patient_journeys, version j1"
    assert ("prediction", "live-q1") in told
    assert named(found.sources)[("source_files", "")] == ("s2", "load-2")
    assert "trained_model" in {each.asset for each in found.uses}
    with pytest.raises(InputError, match="no such patient"):
        trace(database, lake, "PAT2")


def test_what_a_version_did_not_record_is_said(chain):
    database, lake, version = chain
    version("trained_model", "m0", "fit-0", None, SCOPE.key)
    found = trace(database, lake, "fit-0")
    assert [each.made_from for each in found.sources] == [None]
    assert "did not record what it was made from" in found.notes[0]
    version("trained_model", "m9", "fit-9", {"training_frame": {SCOPE.key: "gone"}}, SCOPE.key)
    assert "the ledger has no version gone of training_frame" in trace(database, lake, "fit-9").notes[0]


def test_the_command_shows_the_chain_and_its_errors_are_for_programs_too(chain, monkeypatch, tmp_path):
    from click.testing import CliRunner

    from commands.cli import main

    monkeypatch.setenv("E2I_LAKE", str(tmp_path))

    def command(*arguments, allowed=""):
        monkeypatch.setenv("E2I_ALLOW_PATIENT_LEVEL", allowed)
        return CliRunner().invoke(main, ["trace", *arguments], catch_exceptions=False)

    shown = command(f"{MODEL}/3")
    assert shown.exit_code == 0, shown.output
    assert "mlflow run: abc" in shown.output
    assert "patients.csv" in shown.output
    assert json.loads(command(f"{MODEL}/3", "--json").output)["kind"] == "model"
    refused = command("PAT1", "--json")
    assert refused.exit_code == 4
    error = json.loads(refused.stdout)["error"]
    assert (error["field"], error["value"]) == ("target", None)
    unknown = command("nothing", "--json", allowed="1")
    assert unknown.exit_code == 3
    assert "Name a model, such as e2i-x/3" in json.loads(unknown.stdout)["error"]["remedy"]
