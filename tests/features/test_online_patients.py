"""A real service that is asked with the patient's key alone, over a real Feast online store."""

from __future__ import annotations

import datetime as dt
import json
import shutil
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import pytest

from e2i_dagster.config.feast_materialization import FeastMaterializationPolicy, FreshnessLimits
from e2i_dagster.features.compute import compute_views
from e2i_dagster.features.frame import point_in_time
from e2i_dagster.features.online import OnlinePatients
from e2i_dagster.features.snapshots import patient_keys, snapshot_entities, spine, write_views
from e2i_dagster.features.store import ScopeStore, StoreSettings
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.serving.deployment import ParitySample, deploy
from e2i_dagster.serving.endpoints import stop_all
from e2i_dagster.serving.release import ModelToServe, build_release

MODEL = "e2i-online"
NUMBERS = ["treatment_count", "days_since_last_event", "patient_volume"]
TEXTS = ["specialty"]
POLICY = FeastMaterializationPolicy.load(CHECKOUT / "config")


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    return tmp_path_factory.mktemp("state")


@pytest.fixture(scope="module")
def online(state, drawn_tables, cohort):
    """Files of the scope ``csu``, online below ``state``; and their patients' keys."""
    rows = spine(cohort, drawn_tables, brand="Remibrutinib")
    entities = snapshot_entities(rows, drawn_tables, data_end=dt.date(2024, 12, 31), policy=POLICY.snapshots)
    files = write_views(compute_views(entities, drawn_tables), state / "lake", keys=patient_keys(rows))
    settings = StoreSettings(project="csu", folder=state / "feast" / "csu")
    with ScopeStore(settings) as store:
        store.apply(files)
        report = store.materialize(files)
    return settings, report, rows


@pytest.fixture(scope="module")
def offline(online):
    """The offline features of every patient at the time up to which rows are online, as the model takes them."""
    _, report, rows = online
    stamps = pd.Series(pd.Timestamp(report.end), index=rows.index).astype("datetime64[us, UTC]")
    found = point_in_time(rows, stamps, report.files, report.files.views)[NUMBERS + TEXTS]
    frame = found[NUMBERS].astype("float64")
    texts = found[TEXTS].astype("object")
    frame[TEXTS] = texts.where(texts.notna(), np.nan)
    frame.index = rows["patient_id"]
    return frame


@pytest.fixture(scope="module")
def live(state, offline):
    import mlflow.sklearn
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    target = (np.arange(len(offline)) % 3 == 0).astype("int64")
    pipeline = make_pipeline(
        ColumnTransformer(
            [
                ("number", make_pipeline(SimpleImputer(), StandardScaler()), NUMBERS),
                ("text", OneHotEncoder(handle_unknown="ignore", sparse_output=False), TEXTS),
            ]
        ),
        LogisticRegression(),
    ).fit(offline, target)
    columns = [ColSpec(DataType.double, name, required=False) for name in NUMBERS]
    columns += [ColSpec(DataType.string, name, required=False) for name in TEXTS]
    mlflow.sklearn.save_model(
        pipeline,
        str(state / "model"),
        signature=ModelSignature(inputs=Schema([*columns])),
        serialization_format="skops",
        skops_trusted_types=["numpy.dtype"],
        pip_requirements=["scikit-learn", "skops"],
        metadata={"problem_type": "binary_classification", "scope": "csu"},
    )
    model = ModelToServe.of_model(state / "model", model_name=MODEL, version="1")
    scores = pipeline.predict_proba(offline)[:, 1]
    try:
        deployed = deploy(
            build_release([model], state=state),
            stages={MODEL: "staging"},
            parity={MODEL: ParitySample(offline.reset_index(drop=True), scores)},
            state=state,
        )
        yield deployed.url, pd.Series(scores, index=offline.index)
    finally:
        stop_all(state)


def ask(url, body):
    return httpx.post(f"{url}/predict", json=body, timeout=30)


def test_a_patient_alone_gets_the_answer_of_the_offline_model(live, online):
    url, scores = live
    _, report, _ = online
    # The first patients have events and professionals; 5 has no professional, 190 no event.
    for patient in [*scores.index[:10], "PAT00000190"]:
        answer = ask(url, {"patient_id": patient})
        assert answer.status_code == 200, answer.text
        body = answer.json()
        assert body["probabilities"][0]["1"] == pytest.approx(scores[patient], abs=1e-9)
        found = body["_metadata"]["online_features"]
        assert found["version"] == report.files.digest
        assert {view["view"] for view in found["views"]} == {view.name for view in report.files.views}
        ages = {view["view"]: view for view in found["views"]}
        assert ages["patient_features"]["age_hours"] > ages["patient_features"]["hours_online"]
        assert (ages["hcp_features"]["event_time"] is None) == (patient == "PAT00000005")


def test_an_unknown_patient_is_not_answered(live):
    answer = ask(live[0], {"patient_id": "PAT99999999"})
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_patient"
    assert "PAT99999999" not in answer.text


def test_what_is_neither_whole_nor_alone_is_refused(live):
    url, _ = live
    mixed = ask(url, {"patient_id": "PAT00000001", "features": {"unknown": 1.0}})
    assert mixed.status_code == 422
    for body in ({"patient_id": 7}, {"patient_id": ""}, {"patient_id": "PAT00000001", "threshold": 1}):
        assert ask(url, body).status_code == 422
    batch = httpx.post(f"{url}/predict_batch", json={"instances": [{"patient_id": "PAT00000001"}]})
    assert batch.status_code == 422


def test_values_that_are_sent_are_not_looked_up(live):
    sent = dict.fromkeys(NUMBERS, 1.0) | {"specialty": "allergist"}
    answer = ask(live[0], {"patient_id": "PAT00000001", "features": sent})
    assert answer.status_code == 200
    assert "online_features" not in answer.json()["_metadata"]


def test_the_openapi_document_has_both_bodies(live):
    document = httpx.get(f"{live[0]}/openapi.json").json()
    body = document["paths"]["/predict"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    names = [one["$ref"].rpartition("/")[2] for one in body["anyOf"]]
    assert [list(document["components"]["schemas"][name]["required"]) for name in names] == [
        ["features"],
        ["patient_id"],
    ]


def test_a_store_that_is_not_there_is_said_and_nobody_is_logged(live, online, state):
    url, _ = live
    _, report, _ = online
    file, aside = Path(report.online), state / "aside.db"
    shutil.move(file, aside)
    try:
        answer = ask(url, {"patient_id": "PAT00000001"})
        assert answer.status_code == 503
        error = answer.json()["error"]
        assert error["code"] == "features_unavailable" and "online_features" in error["message"]
        assert httpx.get(f"{url}/health").status_code == 200
    finally:
        shutil.move(aside, file)
    assert ask(url, {"patient_id": "PAT00000001"}).status_code == 200
    logs = "".join(path.read_text() for path in (state / "services" / "logs").rglob("*") if path.is_file())
    assert "PAT00000001" not in logs
    journal = [
        json.loads(line)
        for path in (state / "services" / "journal").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    ways = {row["prediction_id"].startswith("live-online-") for row in journal}
    assert ways == {True, False}


def test_files_without_keys_and_old_values_are_said(online, state):
    settings, report, _ = online
    strict = FreshnessLimits(warn_after_seconds=1, stale_after_seconds=2)
    own = settings.model_copy(update={"folder": state / "old"})
    own.folder.mkdir()
    hours = dt.timedelta(hours=3)
    views = tuple(
        view.model_copy(update={"completed_at": view.completed_at - hours}) for view in report.views
    )
    past = report.model_copy(update={"views": views})
    (own.folder / "online.json").write_text(past.model_dump_json())
    shutil.copy(report.online, own.folder)
    found = OnlinePatients(own, strict).find("PAT00000001")
    assert found is not None
    assert {view.status for view in found.views} == {"stale"}
    without = past.model_copy(update={"files": past.files.model_copy(update={"patient_keys": None})})
    (own.folder / "online.json").write_text(without.model_dump_json())
    with pytest.raises(Exception, match="before the keys of patients were kept"):
        OnlinePatients(own, strict).find("PAT00000001")
