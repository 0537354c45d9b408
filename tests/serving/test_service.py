"""One real BentoML process behind a real supervisor: every kind of request, restarts, deployments."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import psutil
import pytest
import sqlalchemy as sa

from e2i_dagster.config.serving import ServingPolicy
from e2i_dagster.errors import ConfigError, InputError, UnavailableError
from e2i_dagster.serving.client import authorities, score, score_answerable, waiting_words, with_waiting
from e2i_dagster.serving.control import DeploymentError
from e2i_dagster.serving.deployment import Deployment, ParitySample, deploy
from e2i_dagster.serving.endpoints import endpoints, restart_recorded, stop_all
from e2i_dagster.serving.records import write_deployment, write_stopped
from e2i_dagster.serving.release import ModelToServe, Release, build_release
from e2i_dagster.serving.state import read_record
from e2i_dagster.serving.watch import restart_killed
from e2i_dagster.tables import metadata, raw_table
from e2i_dagster.tables.description.serving import ml_bentoml_services, ml_deployments

MODEL = "e2i-tiny"

#: A logged model: folder, pipeline, rows, scores (see conftest).
Stored = Any


@dataclass(frozen=True)
class Live:
    state: Path
    release: Release
    deployment: Deployment
    said: list[str]


def to_serve(stored: Stored, **changes: Any) -> ModelToServe:
    values: dict[str, Any] = {
        "model_name": MODEL,
        "version": "1",
        "folder": stored.folder,
        "problem_type": "binary_classification",
        "threshold": 0.3,
    }
    return ModelToServe(**(values | changes))


def command_of(process: psutil.Process) -> str:
    """The command line; empty for a process that ended in the meantime."""
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def processes_of(state: Path) -> list[psutil.Process]:
    """Every process whose command or working folder is of this state folder."""
    found = []
    for process in psutil.process_iter():
        try:
            words = " ".join(process.cmdline())
            if str(state) in words or process.environ().get("E2I_HOME") == str(state):
                found.append(process)
        except psutil.Error:
            continue
    return [one for one in found if one.pid != os.getpid()]


@pytest.fixture(scope="module")
def warehouse(state: Path) -> Iterator[sa.Engine]:
    """A migrated warehouse for all tests of this module, named by ``E2I_DATABASE_URL``."""
    from e2i_dagster.database import connection
    from e2i_dagster.database.schema import migrate

    url = connection.scratch_database("e2i_serving")
    migrate(url)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E2I_DATABASE_URL", url)
        engine = connection.engine("owner")
        metadata.create_all(engine, tables=[ml_bentoml_services, ml_deployments])
        yield engine
        connection.dispose()
    connection.drop_database("e2i_serving")


@pytest.fixture(scope="module")
def live(stored: Stored, warehouse: sa.Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    state = tmp_path_factory.mktemp("services")
    said: list[str] = []
    release = build_release([to_serve(stored)], state=state)
    try:
        deployment = deploy(
            release,
            stages={MODEL: "staging"},
            parity={MODEL: ParitySample(stored.rows, stored.scores)},
            state=state,
            progress=said.append,
        )
        yield Live(state, release, deployment, said)
    finally:
        stop_all(state)
        left = processes_of(state)
        for one in left:
            one.kill()
    assert not left, f"still running: {left}"


GOOD = {
    "disease severity": 6.5,
    "contacts": None,
    "treatment_count": 2,
    "academic_hcp": True,
    "region": "south",
}


#: One for all questions; it keeps no connection.
HTTP = httpx.Client(timeout=10, limits=httpx.Limits(max_keepalive_connections=0), verify=authorities())


def ask(live: Live, body: Any, path: str = "/predict", **headers: str) -> httpx.Response:
    content = body if isinstance(body, str | bytes) else json.dumps(body)
    return HTTP.post(live.deployment.url + path, content=content, headers=headers)


def problems(response: httpx.Response) -> dict[str, str]:
    return {one["field"]: one["problem"] for one in response.json()["error"]["problems"]}


def test_the_deployment_says_what_it_did(live: Live) -> None:
    deployed = live.deployment
    assert deployed.models[0].model_id == f"{MODEL}/1"
    assert deployed.previous_release is None
    assert deployed.parity_holds
    assert deployed.parity[0].rows == 250
    assert deployed.parity[0].max_difference <= 1e-6
    assert any("agree with the offline model" in sentence for sentence in live.said)
    shown = deployed.to_metadata()
    assert [row[0] for row in shown["models"].rows] == [f"{MODEL}/1"]
    assert "curl" in shown["examples"].parts[0]


def test_deployments_are_recorded_and_retired(live: Live, warehouse: sa.Engine) -> None:
    first = live.deployment
    second = first.model_copy(update={"deployment_id": "00000000-0000-4000-8000-000000000002"})
    write_deployment(warehouse, first)
    write_deployment(warehouse, first)
    write_deployment(warehouse, second)
    with warehouse.connect() as connection:
        services = pd.read_sql("SELECT * FROM ml_bentoml_services ORDER BY status", connection)
        models = pd.read_sql("SELECT * FROM ml_deployments ORDER BY status", connection)
    assert services["status"].tolist() == ["active", "retired"]
    assert models["status"].tolist() == ["active", "retired"]
    assert models["previous_deployment_id"].iloc[0] == models["id"].iloc[1]
    assert models["deployment_config"].iloc[0]["parity"]["rows"] == 250
    write_stopped(warehouse, "classification", "staging", first.deployed_at)
    with warehouse.connect() as connection:
        assert connection.scalar(sa.text("SELECT count(*) FROM ml_deployments WHERE status = 'active'")) == 0


def test_one_row(live: Live, stored: Stored) -> None:
    answer = ask(live, {"features": GOOD}, **{"x-request-id": "request-1"})
    assert answer.status_code == 200
    body = answer.json()
    expected = stored.pipeline.predict_proba(
        stored.rows.head(1).assign(**{k: v if v is not None else np.nan for k, v in GOOD.items()})
    )[0]
    assert body["probabilities"][0] == pytest.approx({"0": expected[0], "1": expected[1]}, abs=1e-12)
    assert body["predictions"] == [int(expected[1] >= 0.3)]
    assert body["model_id"] == f"{MODEL}/1"
    assert body["prediction_time_ms"] > 0
    assert set(body["_metadata"]) >= {"model_name", "latency_ms", "timestamp", "slot", "stage"}
    assert body["_metadata"]["slot"] == "staging"
    assert body["_metadata"]["stage"] == "staging"
    assert body["_metadata"]["request_id"] == answer.headers["x-request-id"] == "request-1"


def test_an_explanation_comes_through_the_supervisor(live: Live) -> None:
    plain = ask(live, {"features": GOOD}).json()
    answer = ask(live, {"features": GOOD}, "/predict?explain=true")
    assert answer.status_code == 200
    assert answer.json()["probabilities"] == plain["probabilities"]
    explanation = answer.json()["explanation"]
    assert (explanation["method"], explanation["calibration"]) == ("linear", None)
    [[row]] = explanation["rows"]
    # Not calibrated: the margin is the log-odds of the answer.
    odds = plain["probabilities"][0]["1"] / plain["probabilities"][0]["0"]
    assert row["expected_value"] + sum(row["contributions"].values()) == pytest.approx(np.log(odds), abs=1e-9)


def test_path_and_body_may_name_the_model(live: Live) -> None:
    first = ask(live, {"features": GOOD}).json()["probabilities"]
    assert ask(live, {"features": GOOD}, f"/{MODEL}/predict").json()["probabilities"] == first
    assert ask(live, {"features": GOOD, "model_name": MODEL}).json()["probabilities"] == first


def test_a_missing_value_may_be_left_out_where_the_signature_allows_it(live: Live) -> None:
    without = {name: value for name, value in GOOD.items() if name != "contacts"}
    assert (
        ask(live, {"features": without}).json()["probabilities"]
        == (ask(live, {"features": GOOD}).json()["probabilities"])
    )


def test_a_row_is_the_same_alone_in_a_batch_and_shuffled(live: Live, stored: Stored) -> None:
    rows = stored.rows.head(30)
    alone = np.concatenate(
        [score(live.deployment.url, rows.iloc[[i]], id_column=None)["prediction_value"] for i in range(30)]
    )
    batch = score(live.deployment.url, rows, id_column=None)["prediction_value"]
    shuffled = score(live.deployment.url, rows.sample(frac=1, random_state=3), id_column=None)
    # A matrix product rounds its last digit by the number of rows; nothing more may differ.
    np.testing.assert_allclose(alone, batch, rtol=1e-12)
    np.testing.assert_allclose(batch, shuffled["prediction_value"].sort_index(), rtol=1e-12)
    np.testing.assert_allclose(batch, stored.scores[:30], atol=1e-12)


def test_scoring_keeps_ids_and_index_over_several_requests(live: Live, stored: Stored) -> None:
    frame = stored.rows.convert_dtypes().assign(patient_id=[f"PAT{i:08d}" for i in range(250)], other=1)
    frame.index = frame.index + 1000
    before = frame.copy()
    scored = score(live.deployment.url, frame)
    assert scored.index.equals(frame.index)
    assert scored["patient_id"].tolist() == frame["patient_id"].tolist()
    assert scored["request_id"].nunique() == 3
    np.testing.assert_allclose(scored["prediction_value"], stored.scores, atol=1e-12)
    np.testing.assert_allclose(scored["probability_0"] + scored["probability_1"], 1)
    assert frame.equals(before)
    assert score(live.deployment.url, frame.head(0)).empty
    lacking = frame.copy()
    lacking.loc[1007, "treatment_count"] = None
    answers, waiting = score_answerable(live.deployment.url, lacking, model_name=MODEL)
    assert len(answers) == 249 and waiting.index.tolist() == [1007]
    assert waiting["patient_id"].tolist() == ["PAT00000007"]
    assert waiting["reason"].iloc[0].startswith("no value of treatment_count")
    listed = with_waiting(answers, waiting)
    assert len(listed) == 250 and listed["reason"].notna().sum() == 1
    assert listed["prediction"].isna().sum() == 1 and listed["patient_id"].is_unique
    assert listed["prediction_timestamp"].dtype == answers["prediction_timestamp"].dtype
    with pytest.raises(InputError, match="lacks treatment_count"):
        score(live.deployment.url, frame.drop(columns="treatment_count"))
    with pytest.raises(InputError, match="Column region"):
        score(live.deployment.url, frame.assign(region=1))


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("disease severity", "6.5", "features.disease severity"),
        ("disease severity", None, "features.disease severity"),
        ("disease severity", True, "features.disease severity"),
        ("disease severity", [1.0], "features.disease severity"),
        ("treatment_count", 2.5, "features.treatment_count"),
        ("treatment_count", "2", "features.treatment_count"),
        ("treatment_count", False, "features.treatment_count"),
        ("treatment_count", 2**63, "features.treatment_count"),
        ("academic_hcp", 1, "features.academic_hcp"),
        ("academic_hcp", "true", "features.academic_hcp"),
        ("region", 3, "features.region"),
        ("region", "a\x00b", "features.region"),
        ("unknown_feature", 1, "features.unknown_feature"),
    ],
)
def test_a_wrong_feature_is_named(live: Live, name: str, value: Any, field: str) -> None:
    answer = ask(live, {"features": GOOD | {name: value}})
    assert answer.status_code == 422
    assert list(problems(answer)) == [field]


@pytest.mark.parametrize("literal", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("name", ["disease severity", "contacts"])
def test_numbers_are_finite(live: Live, literal: str, name: str) -> None:
    answer = ask(live, json.dumps({"features": GOOD | {name: "@"}}).replace('"@"', literal))
    assert answer.status_code == 422
    assert "finite" in problems(answer)[f"features.{name}"]


def test_a_whole_number_may_be_written_with_a_point(live: Live) -> None:
    assert ask(live, {"features": GOOD | {"treatment_count": 2.0}}).status_code == 200


def test_a_missing_feature_is_named(live: Live) -> None:
    answer = ask(live, {"features": {k: v for k, v in GOOD.items() if k != "academic_hcp"}})
    assert answer.status_code == 422
    assert problems(answer) == {"features.academic_hcp": "is missing"}


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ("", 400, "body"),
        ("{", 400, "body"),
        (b"\xff\xfe", 400, "body"),
        ("[]", 422, "body"),
        ("null", 422, "body"),
        ({}, 422, "features"),
        ({"features": []}, 422, "features"),
        ({"features": GOOD, "threshold": 0.5}, 422, "threshold"),
        ({"features": GOOD, "patient_id": 7}, 422, "patient_id"),
        ({"features": GOOD, "model_name": 7}, 422, "model_name"),
        ({"features": GOOD, "model_name": "e2i-other"}, 404, "model_name"),
        ("[" * 5000, 400, "body"),
    ],
)
def test_a_wrong_body_is_refused(live: Live, body: Any, status: int, field: str) -> None:
    answer = ask(live, body)
    assert answer.status_code == status
    assert field in problems(answer)


def test_an_unknown_model_is_not_found(live: Live) -> None:
    for path in ("/e2i-other/predict", "/e2i-other/predict_batch"):
        answer = ask(live, {"features": GOOD}, path)
        assert answer.status_code == 404
        assert MODEL in problems(answer)["model_name"]


def test_a_body_too_large_is_refused(live: Live) -> None:
    answer = ask(live, {"features": GOOD, "patient_id": "x" * 1_100_000})
    assert answer.status_code == 413
    assert "1048576 bytes" in problems(answer)["body"]


def test_batches_have_a_limit_and_name_the_row(live: Live) -> None:
    rows = [{"features": GOOD}] * 101
    assert ask(live, {"instances": rows[:100]}, "/predict_batch").status_code == 200
    too_many = ask(live, {"instances": rows}, "/predict_batch")
    assert too_many.status_code == 413
    assert "at most 100" in problems(too_many)["instances"]
    assert ask(live, {"instances": []}, "/predict_batch").status_code == 422
    wrong = ask(
        live,
        {"instances": [{"features": GOOD | {"region": 1}}, {"features": GOOD | {"other": 1}}]},
        f"/{MODEL}/predict_batch",
    )
    assert wrong.status_code == 422
    assert list(problems(wrong)) == ["instances.0.features.region", "instances.1.features.other"]
    elsewhere = ask(live, {"instances": [rows[0], {}], "threshold": 1}, "/predict_batch")
    assert elsewhere.status_code == 422 and "threshold" in problems(elsewhere)


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        ({"features": GOOD | {"region": 1}}, "features.region"),
        ({"features": GOOD | {"treatment_count": None}}, "features.treatment_count"),
        ({"features": {k: v for k, v in GOOD.items() if k != "academic_hcp"}}, "features.academic_hcp"),
        ({"features": GOOD, "patient_id": ""}, "patient_id"),
        ({}, "features"),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_row_of_a_batch_does_not_stop_the_others(
    live: Live, warehouse: sa.Engine, bad: dict[str, Any], field: str, place: int
) -> None:
    rows = [{"features": GOOD}, {"features": GOOD | {"disease severity": 1.0}}]
    whole = ask(live, {"instances": rows}, "/predict_batch").json()
    rows.insert(place, bad)
    request_id = f"partial-{place}-{field}"
    answer = ask(live, {"instances": rows}, "/predict_batch", **{"x-request-id": request_id})
    assert answer.status_code == 207
    body = answer.json()
    assert [one["field"] for one in body["problems"]] == [f"instances.{place}.{field}"]
    assert body["predictions"].pop(place) is None and body["probabilities"].pop(place) is None
    assert body["predictions"] == whole["predictions"]
    assert body["probabilities"] == whole["probabilities"]
    _eventually(lambda: len(logged(warehouse, request_id=request_id)) == 2)


def test_a_row_the_service_refuses_waits_with_what_the_service_says(live: Live, stored: Stored) -> None:
    frame = stored.rows.head(102).astype({"treatment_count": "Int64"}).reset_index(drop=True)
    frame["patient_id"] = [f"PAT{i:08d}" for i in range(102)]
    frame.loc[3, "disease severity"] = np.inf
    frame.loc[5, "region"] = "a\x00b"
    # The last two rows are a batch of their own, of which none can be used.
    frame.loc[[100, 101], "patient_id"] = "x" * 101
    answers, waiting = score_answerable(live.deployment.url, frame, model_name=MODEL)
    assert waiting.index.tolist() == [3, 5, 100, 101] and len(answers) == 98
    assert waiting["reason"].loc[3] == "disease severity is not finite"
    assert waiting["reason"].loc[5].startswith("region ")
    assert waiting["reason"].loc[101].startswith("patient_id ")
    expected = np.delete(stored.scores[:102], [3, 5, 100, 101])
    np.testing.assert_allclose(answers["prediction_value"], expected, atol=1e-12)
    assert answers["patient_id"].tolist() == frame["patient_id"].drop([3, 5, 100, 101]).tolist()
    assert waiting_words(waiting).startswith("4 patients wait without an answer: ")
    none, all_wait = score_answerable(live.deployment.url, frame.loc[[3, 101]], model_name=MODEL)
    assert none.empty and len(with_waiting(none, all_wait)) == 2
    with pytest.raises(InputError, match="2 of 3 rows are refused, the first because patient_id"):
        score(live.deployment.url, frame.loc[[99, 100, 101]])
    with pytest.raises(InputError, match="disease severity has an infinite value"):
        score(live.deployment.url, frame)


def test_errors_do_not_repeat_values(live: Live) -> None:
    answer = ask(live, {"features": GOOD | {"treatment_count": "CANARY-17"}, "patient_id": "CANARY-18"})
    assert answer.status_code == 422
    assert "CANARY" not in answer.text


def logged(warehouse: sa.Engine, **where: Any) -> pd.DataFrame:
    """Rows of the prediction log."""
    table = raw_table("ml_predictions")
    found = sa.select(table).where(*(table.c[name] == value for name, value in where.items()))
    with warehouse.connect() as connection:
        return pd.read_sql(found, connection)


def test_answers_are_in_the_prediction_log(live: Live, warehouse: sa.Engine) -> None:
    body = {"features": GOOD, "patient_id": "PAT00000001"}
    answer = ask(live, body, **{"x-request-id": "audit-1"}).json()
    ask(live, {"features": {}}, **{"x-request-id": "audit-2"})
    batch = [body, {"features": GOOD}]
    ask(live, {"instances": batch}, "/predict_batch", **{"x-request-id": "audit-3"})
    _eventually(lambda: len(logged(warehouse, request_id="audit-3")) == 2)
    (row,) = logged(warehouse, request_id="audit-1").to_dict("records")
    assert row["origin"] == "live"
    assert row["model_id"] == f"{MODEL}/1"
    assert row["model_version"] == "1"
    assert row["patient_id"] == "PAT00000001"
    assert row["prediction_value"] == answer["probabilities"][0]["1"]
    assert row["prediction_class"] == str(answer["predictions"][0])
    assert row["probability_scores"] == answer["probabilities"][0]
    assert row["features_available_at_prediction"] == GOOD
    assert row["prediction_timestamp"] == pd.Timestamp(answer["_metadata"]["timestamp"])
    assert logged(warehouse, request_id="audit-2").empty
    assert logged(warehouse, request_id="audit-3")["patient_id"].isna().sum() == 1


def test_health_models_metrics_and_openapi(live: Live) -> None:
    for _ in range(3):
        ask(live, {"features": GOOD})
    ask(live, {"features": {}})
    url = live.deployment.url
    health = HTTP.get(f"{url}/health")
    assert health.status_code == 200
    assert health.json()["status"] == "healthy"
    assert health.json()["release"] == live.release.version
    assert health.json()["models"][0]["error_rate"] == 0
    assert HTTP.get(f"{url}/models").json()["models"][0]["classes"] == [0, 1]
    metrics = HTTP.get(f"{url}/metrics").text
    assert f'e2i_model_health_status{{model_name="{MODEL}"' in metrics
    for name in (
        "e2i_model_requests_total",
        "e2i_model_request_latency_seconds_bucket",
        "e2i_model_errors_total",
    ):
        assert f"{name}{{" in metrics
    assert 'code="unknown_model",model_name="none"' in metrics or "e2i-other" not in metrics
    document = HTTP.get(f"{url}/openapi.json").json()
    assert "207" in document["paths"]["/predict_batch"]["post"]["responses"]
    assert "207" not in document["paths"]["/predict"]["post"]["responses"]
    assert {"/predict", "/predict_batch", f"/{MODEL}/predict", "/health"} <= set(document["paths"])
    reference = document["paths"][f"/{MODEL}/predict"]["post"]["requestBody"]["content"]["application/json"]
    body = document["components"]["schemas"][reference["schema"]["anyOf"][0]["$ref"].rsplit("/", 1)[1]]
    features = document["components"]["schemas"][body["properties"]["features"]["$ref"].rsplit("/", 1)[1]]
    assert set(features["properties"]) == set(GOOD)
    assert set(features["required"]) == {"disease severity", "treatment_count", "academic_hcp"}
    text = json.dumps(document)
    for used in set(text.split('"#/components/schemas/')[1:]):
        assert used.split('"')[0] in document["components"]["schemas"]


def test_what_a_browser_is_shown_loads_from_the_service_alone(live: Live) -> None:
    """Every page, and what each of them loads, by address; no address is of another host."""
    url = live.deployment.url
    loaded: dict[str, httpx.Response] = {}
    waiting = [f"{url}/", f"{url}/docs"]
    while waiting:
        address = waiting.pop()
        if address in loaded:
            continue
        loaded[address] = answer = HTTP.get(address)
        assert answer.status_code == 200, address
        if answer.headers["content-type"].startswith("text/html"):
            # Links too: nothing on these pages leads elsewhere.
            named = re.findall(r"""(?:src|href|action)=["']([^"']*)""", answer.text)
            named += re.findall(r"""["'](https?:[^"']*)["']""", answer.text)
            waiting += [str(httpx.URL(address).join(one)) for one in named if not one.startswith("data:")]
            assert "googletagmanager" not in answer.text
        if answer.headers["content-type"].startswith("text/css"):
            named = re.findall(r"""url\(["']?([^"')]*)""", answer.text)
            assert all(one.startswith("data:") for one in named)
    assert {httpx.URL(address).host for address in loaded} == {httpx.URL(url).host}
    assert {"/", "/docs", "/models", "/health", "/openapi.json"} <= {httpx.URL(one).path for one in loaded}
    assert any(one.endswith(".js") for one in loaded)
    assert any(one.endswith(".css") for one in loaded)
    assert f"{MODEL}/1" in loaded[f"{url}/"].text
    assert '"validatorUrl": null' in loaded[f"{url}/docs"].text
    assert HTTP.get(f"{url}/redoc").status_code == 404


def test_no_route_names_another_host(live: Live) -> None:
    """Every route of our application, of BentoML's behind it, and what BentoML serves for its own pages."""
    import bentoml._internal.server
    from _bentoml_impl.server import app as bento_app

    from e2i_dagster.serving.release import Manifest
    from e2i_dagster.serving.service import application

    app, _ = application(Manifest.read(live.release.path / "src"), live.release.version)
    ours = {route.path for route in app.routes} - {"/{path:path}"}  # type: ignore[attr-defined]
    static = Path(bentoml._internal.server.__file__).parent / "static_content"
    theirs = {f"/static_content/{file.name}" for file in static.iterdir()}
    theirs |= {f"/assets/{file.name}" for file in (Path(bento_app.__file__).parent / "assets").glob("*")}
    theirs |= {
        "/docs.json",
        "/schema.json",
        "/livez",
        "/readyz",
        "/healthz",
        "/metrics",
        "/static_content/",
        "/assets/",
    }
    theirs |= {
        "/index.html",
        "/main-ui.html",
        "/main-openapi.html",
        "/redoc",
        "/favicon.ico",
        "/nothing",
        "//",
        "/docs/",
    }
    assert {"/", "/docs", "/openapi.json", "/predict", "/health"} <= ours
    host = httpx.URL(live.deployment.url).host
    shown = {}
    for path in sorted(ours | theirs):
        for place in (path, path.replace("{model_name}", MODEL)):
            for method in ("GET", "POST", "OPTIONS"):
                if method == "POST" and place.endswith(("predict", "predict_batch")):
                    continue
                answer = HTTP.request(method, live.deployment.url + place)
                shown[method, place] = answer.status_code
                if place.startswith("/swagger/"):
                    continue  # a library's program names hosts in its comments; what it loads is the test above
                named = re.findall(
                    r"""(?:https?:)?//([a-z0-9-]+(?:\.[a-z0-9-]+)+)""", answer.text + str(answer.headers)
                )
                assert set(named) <= {host}, (method, place, set(named))
    pages = [path for path in theirs if path.startswith(("/static_content/", "/assets/"))]
    assert len(pages) > 4
    for path in ("/docs.json", "/nothing", *pages):
        assert shown["GET", path] == 404, path
    assert shown["GET", "/predict"] == 405
    assert (shown["GET", "/livez"], shown["GET", "/metrics"]) == (200, 200)
    told = HTTP.get(f"{live.deployment.url}/docs.json").json()["error"]
    assert told["code"] == "not_found" and "/docs.json" in told["message"]


def test_the_way_through_the_supervisor_costs_little(live: Live) -> None:
    record = read_record(live.state, "classification")
    assert record is not None
    assert record.active is not None
    middle = []
    for url in (live.deployment.url, f"http://127.0.0.1:{record.active.port}"):
        with httpx.Client(base_url=url, verify=authorities()) as client:
            times = []
            for _ in range(40):
                began = time.perf_counter()
                assert client.post("/predict", json={"features": GOOD}).status_code == 200
                times.append(time.perf_counter() - began)
        middle.append(sorted(times)[20])
    # A delayed acknowledgement alone would be 0.04 s.
    assert middle[0] - middle[1] < 0.02


def test_the_example_is_answered(live: Live) -> None:
    (endpoint,) = endpoints(live.state)
    assert (endpoint.health, endpoint.model_id, endpoint.slot) == ("healthy", f"{MODEL}/1", "staging")
    assert endpoint.example == live.deployment.models[0].example
    answered = subprocess.run(shlex.split(endpoint.example), capture_output=True, text=True, check=True)
    assert json.loads(answered.stdout)["model_id"] == f"{MODEL}/1"


def test_only_loopback_and_only_the_owner(live: Live) -> None:
    (record_file,) = (live.state / "services").glob("*.json")
    assert record_file.stat().st_mode & 0o077 == 0
    mine = [one.pid for one in processes_of(live.state)]
    listening = [
        one.laddr.ip
        for one in psutil.net_connections("tcp")
        if one.pid in mine and one.status == psutil.CONN_LISTEN
    ]
    assert set(listening) == {"127.0.0.1"}


def test_a_release_that_does_not_agree_leaves_the_old_one(live: Live, stored: Stored) -> None:
    release = build_release([to_serve(stored, version="2", threshold=0.4)], state=live.state)
    before = read_record(live.state, "classification")
    with pytest.raises(DeploymentError, match="answers differently over HTTP"):
        deploy(
            release,
            stages={MODEL: "staging"},
            parity={MODEL: ParitySample(stored.rows.head(20), stored.scores[:20] + 1e-5)},
            state=live.state,
        )
    after = read_record(live.state, "classification")
    assert after == before
    assert ask(live, {"features": GOOD}).json()["model_id"] == f"{MODEL}/1"
    _eventually(lambda: not [one for one in processes_of(live.state) if release.version in command_of(one)])


def test_a_new_release_takes_over(live: Live, stored: Stored, warehouse: sa.Engine) -> None:
    model = to_serve(stored, version="2", threshold=0.4)
    release = build_release([model], state=live.state)
    assert build_release([model], state=live.state).reused
    deployed = deploy(
        release,
        stages={MODEL: "staging"},
        parity={MODEL: ParitySample(stored.rows.head(20), stored.scores[:20])},
        state=live.state,
    )
    assert deployed.previous_release == live.release.tag
    assert deployed.url == live.deployment.url
    assert ask(live, {"features": GOOD}).json()["model_id"] == f"{MODEL}/2"
    # The rows of the comparison are not in the prediction log, the one just asked is.
    _eventually(lambda: len(logged(warehouse, model_id=f"{MODEL}/2")) == 1)
    _eventually(
        lambda: not [one for one in processes_of(live.state) if live.release.version in command_of(one)]
    )


def test_rows_are_needed_for_a_model_that_is_not_served_yet(live: Live) -> None:
    other = live.release.models[0].model_copy(update={"version": "4", "threshold": 0.8})
    release = live.release.model_copy(update={"models": (other,)})
    with pytest.raises(InputError, match="No parity rows"):
        deploy(release, stages={MODEL: "staging"}, parity={}, state=live.state)
    with pytest.raises(InputError, match="No stage"):
        deploy(release, stages={}, parity={}, state=live.state)


def test_a_killed_colour_is_started_again(live: Live) -> None:
    record = read_record(live.state, "classification")
    assert record is not None
    assert record.active is not None
    assert record.active.process is not None
    os.kill(record.active.process.pid, signal.SIGKILL)
    _eventually(
        lambda: (endpoints(live.state)[0].restarts, endpoints(live.state)[0].health) == (1, "healthy"), 30
    )
    assert ask(live, {"features": GOOD}).status_code == 200


def under_load(live: Live, act: Any, name: str, *, seconds: float, clients: int = 16) -> list[int]:
    """Statuses of all requests of ``clients`` that ask all the time, before, during and after ``act``."""
    ends = time.monotonic() + seconds
    started = threading.Event()

    def asking(number: int) -> list[int]:
        found = []
        with httpx.Client(base_url=live.deployment.url, timeout=30, verify=authorities()) as client:
            while time.monotonic() < ends:
                headers = {"x-request-id": f"{name}-{number}-{len(found)}"}
                found.append(client.post("/predict", json={"features": GOOD}, headers=headers).status_code)
                started.set()
        return found

    with ThreadPoolExecutor(clients) as pool:
        asked = [pool.submit(asking, number) for number in range(clients)]
        assert started.wait(30)
        time.sleep(0.5)
        act()
        return [status for one in asked for status in one.result()]


def workers_of(live: Live) -> list[psutil.Process]:
    record = read_record(live.state, "classification")
    assert record is not None and record.active is not None and record.active.process is not None
    found = psutil.Process(record.active.process.pid).children(recursive=True)
    return [one for one in found if "_bentoml_impl.worker.service" in command_of(one)]


def all_answered(live: Live, warehouse: sa.Engine, name: str, statuses: list[int]) -> None:
    assert len(statuses) > 50
    assert set(statuses) == {200}
    found = sa.text(
        "SELECT count(*), count(DISTINCT request_id) FROM ml_predictions WHERE request_id LIKE :name"
    )

    def counted() -> tuple[int, int]:
        with warehouse.connect() as connection:
            return tuple(connection.execute(found, {"name": f"{name}-%"}).one())  # type: ignore[return-value]

    _eventually(lambda: counted()[0] >= len(statuses), 30)
    assert counted() == (len(statuses), len(statuses))


def test_a_killed_worker_costs_no_answer(live: Live, warehouse: sa.Engine) -> None:
    _eventually(lambda: len(workers_of(live)) == 2, 30)
    time.sleep(2)
    statuses = under_load(live, workers_of(live)[0].kill, "worker", seconds=4)
    all_answered(live, warehouse, "worker", statuses)


def test_a_killed_parent_of_the_workers_costs_no_answer(live: Live, warehouse: sa.Engine) -> None:
    record = read_record(live.state, "classification")
    assert record is not None and record.active is not None and record.active.process is not None
    restarts, parent = record.active.restarts, record.active.process.pid
    statuses = under_load(live, lambda: os.kill(parent, signal.SIGKILL), "parent", seconds=4)
    all_answered(live, warehouse, "parent", statuses)
    _eventually(lambda: endpoints(live.state)[0].restarts == restarts + 1, 60)
    _eventually(lambda: len(processes_of(live.state)) == 4, 30)  # supervisor, BentoML, two workers


def test_a_killed_supervisor_is_started_again_by_its_workers(live: Live) -> None:
    before = read_record(live.state, "classification")
    assert before is not None and before.supervisor is not None and before.active is not None
    assert endpoints(live.state)[0].watched_by == "its 2 workers"
    os.kill(before.supervisor.pid, signal.SIGKILL)

    def another() -> bool:
        record = read_record(live.state, "classification")
        return record is not None and record.supervisor != before.supervisor and record.supervised()

    _eventually(another, 30)
    after = read_record(live.state, "classification")
    assert after is not None and after.active is not None
    # The colour was never away: the new supervisor has taken it over.
    assert after.active.process == before.active.process
    assert ask(live, {"features": GOOD}).status_code == 200
    assert restart_killed(live.state) == []


def test_slow_and_odd_clients_block_nobody(live: Live) -> None:
    address = ("127.0.0.1", int(live.deployment.url.rpartition(":")[2]))
    slow = [socket.create_connection(address) for _ in range(200)]
    try:
        for one in slow:
            one.sendall(b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 900\r\n\r\n{")
        assert ask(live, {"features": GOOD}).status_code == 200
    finally:
        for one in slow:
            one.close()
    # Refused before it is sent: 200 MB are announced, and the answer comes at once.
    with socket.create_connection(address, timeout=10) as large:
        large.sendall(b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: 200000000\r\n\r\n{")
        assert large.recv(1000).startswith(b"HTTP/1.1 413 ")
    with socket.create_connection(address, timeout=10) as odd:
        odd.sendall(b"this is not http\r\n\r\n")
        assert odd.recv(1000).startswith(b"HTTP/1.1 400 ")
    body = json.dumps({"features": GOOD}).encode()
    with socket.create_connection(address, timeout=10) as several:
        one = b"POST /predict HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
        several.sendall(one * 3)
        received = b""
        while received.count(b'"release"') < 3:
            received += several.recv(65536)
        assert received.count(b"HTTP/1.1 200 ") == 3
    with socket.create_connection(address, timeout=10) as chunked:
        head = (
            b"POST /predict HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\nx-e2i-forward: mine\r\n\r\n"
        )
        chunked.sendall(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
        assert chunked.recv(1000).startswith(b"HTTP/1.1 200 ")


def test_stopped_services_are_reported_and_started_again(live: Live, warehouse: sa.Engine) -> None:
    last = [ask(live, {"features": GOOD}, **{"x-request-id": f"last-{i}"}).status_code for i in range(40)]
    assert stop_all(live.state) == ["classification"]
    assert stop_all(live.state) == []
    assert last == [200] * 40
    assert sum(not logged(warehouse, request_id=f"last-{i}").empty for i in range(40)) == 40
    assert not list((live.state / "services" / "journal").iterdir())
    assert not processes_of(live.state)
    (endpoint,) = endpoints(live.state)
    assert endpoint.health == "stopped"
    assert "make ui" in (endpoint.reason or "")
    with pytest.raises(UnavailableError, match="cannot be reached"):
        score(live.deployment.url, pd.DataFrame({"patient_id": ["a"]}))
    (again,) = restart_recorded(live.state)
    assert (again.health, again.url, again.model_id) == ("healthy", live.deployment.url, f"{MODEL}/2")


def test_a_changed_model_file_is_not_started(live: Live, stored: Stored) -> None:
    release = build_release([to_serve(stored, version="5", threshold=0.7)], state=live.state)
    (file,) = release.path.glob("src/models/0/model.skops")
    file.write_bytes(file.read_bytes() + b"x")
    with pytest.raises(DeploymentError, match=r"model files model\.skops .* are not those of the release"):
        deploy(
            release,
            stages={MODEL: "staging"},
            parity={MODEL: ParitySample(stored.rows, stored.scores)},
            state=live.state,
        )
    shutil.rmtree(release.path)
    assert ask(live, {"features": GOOD}).json()["model_id"] == f"{MODEL}/2"


@pytest.mark.parametrize("name", ["models/0/model.skops", "manifest.json", "service.py", "../bento.yaml"])
def test_a_damaged_bento_is_named_and_built_again(live: Live, stored: Stored, name: str) -> None:
    # One release for all: what was built again is whole, and the next damages it.
    model = to_serve(stored, version="5", threshold=0.7)
    release = build_release([model], state=live.state)
    assert release.damage() == ""
    damaged = (release.path / "src" / name).resolve()
    if name.endswith(".yaml"):
        damaged.unlink()
    else:
        damaged.write_bytes(damaged.read_bytes()[:-7])
    assert str(damaged if damaged.exists() else release.path) in release.damage()
    again = build_release([model], state=live.state)
    assert (again.tag, again.reused, again.damage()) == (release.tag, False, "")


def test_a_taken_port_is_named_and_nothing_is_left(live: Live, stored: Stored, tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        release = live.release.model_copy()
        with pytest.raises(UnavailableError, match=rf"Port {port} .*process {os.getpid()} .*E2I_PORT_BASE"):
            deploy(
                release,
                stages={MODEL: "staging"},
                parity={MODEL: ParitySample(stored.rows, stored.scores)},
                state=tmp_path,
                port=port,
            )
    assert not processes_of(tmp_path)
    assert endpoints(tmp_path) == []


def test_the_policy_file_is_complete() -> None:
    policy = ServingPolicy.load()
    assert policy.service_of("binary_classification") == "classification"
    assert policy.service_of("survival") == "regression"
    assert policy.service_of("forecast") is None
    with pytest.raises(ConfigError, match="no service takes models of forecast") as caught:
        policy.require_service("forecast")
    assert (caught.value.field, caught.value.value) == ("services", "forecast")
    below = policy.model_copy(update={"trusted_types": ("sklearn.*",)})
    assert below.trusts("sklearn.pipeline.Pipeline")
    assert not below.trusts("sklearnx.thing")
    assert not policy.trusts("builtins.eval")


def _eventually(holds: Any, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.25)
