"""Signatures, requests, frames, examples, health levels, releases: without a process."""

from __future__ import annotations

import asyncio
import io
import json
import math
import os
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from mutated_requests import mutated
from prometheus_client import CollectorRegistry

from e2i_dagster.config.serving import HealthPolicy, ServingPolicy
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.serving import audit
from e2i_dagster.serving.audit import Journal
from e2i_dagster.serving.columnar import ARROW, PARQUET
from e2i_dagster.serving.examples import example_batch, example_row
from e2i_dagster.serving.health import assess
from e2i_dagster.serving.models import LoadedModel, require_trusted
from e2i_dagster.serving.release import Manifest, ModelToServe, ReleasedModel, build_release
from e2i_dagster.serving.request_schema import (
    Feature,
    RequestError,
    Signature,
    decode,
    request_schema,
    to_frame,
    to_records,
)
from e2i_dagster.serving.service import Runtime, application
from e2i_dagster.serving.state import ColourSettings

#: Requests near the valid ones; E2I_MUTATED_REQUESTS asks for more.
MUTATED = int(os.environ.get("E2I_MUTATED_REQUESTS", "1000"))

SIGNATURE = Signature(
    features=(
        Feature(name="severity", type="double"),
        Feature(name="_contacts", type="double", required=False),
        Feature(name="count", type="long"),
        Feature(name="age of onset", type="long", required=False),
        Feature(name="academic", type="boolean"),
        Feature(name="region", type="string", required=False),
    )
)

numbers = st.floats(-1e30, 1e30)
whole = st.integers(-(2**53), 2**53)
text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)
rows = st.fixed_dictionaries(
    {
        "severity": numbers,
        "_contacts": numbers | st.none(),
        "count": whole,
        "age of onset": whole | st.none(),
        "academic": st.booleans(),
        "region": text | st.none(),
    }
)


@given(st.lists(rows, min_size=1, max_size=5))
def test_a_row_survives_request_frame_and_back(made: list[dict[str, Any]]) -> None:
    schema = request_schema(SIGNATURE, "e2i-x", 100)
    sent = json.loads(json.dumps({"instances": [{"features": row} for row in made]}))
    received = [row.features for row in schema.rows(sent).usable]
    assert received == made
    frame = to_frame(SIGNATURE, [[row[name] for row in received] for name in SIGNATURE.names])
    assert list(frame.columns) == SIGNATURE.names
    assert to_records(SIGNATURE, frame) == made


@given(
    st.sampled_from(["severity", "count", "academic", "region"]),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers(), max_size=2),
)
def test_only_values_of_the_type_pass(name: str, value: Any) -> None:
    good = {"severity": 1.0, "count": 1, "academic": True, "region": "a"}
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = {
        "severity": number and abs(value) <= 1e30,
        "count": number and math.isfinite(value) and value == int(value) and -(2**63) <= value < 2**63,
        "academic": isinstance(value, bool),
        "region": value is None or (isinstance(value, str) and "\x00" not in value and _encodes(value)),
    }[name]
    schema = request_schema(SIGNATURE, "e2i-x", 100)
    try:
        schema.row({"features": good | {name: value}})
    except RequestError as error:
        assert not fits
        assert [one["field"] for one in error.problems] == [f"features.{name}"]
    else:
        assert fits


def _encodes(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def test_frames_of_the_warehouse_become_requests() -> None:
    frame = pd.DataFrame(
        {
            "severity": pd.array([1, 2], dtype="Int64"),
            "_contacts": pd.array([None, True], dtype="boolean"),
            "count": pd.array([3, 4], dtype="float64"),
            "age of onset": pd.array([None, 7], dtype="Int64"),
            "academic": pd.array([True, False], dtype="boolean"),
            "region": pd.array(["a", None], dtype="string[pyarrow]"),
        }
    )
    assert to_records(SIGNATURE, frame) == [
        {"severity": 1, "_contacts": None, "count": 3, "age of onset": None, "academic": True, "region": "a"},
        {"severity": 2, "_contacts": 1, "count": 4, "age of onset": 7, "academic": False, "region": None},
    ]
    for wrong in (
        {"count": [1.5, 2.0]},
        {"region": [1, 2]},
        {"academic": ["yes", "no"]},
        {"severity": ["a", "b"]},
    ):
        with pytest.raises(InputError, match=f"Column {next(iter(wrong))}"):
            to_records(SIGNATURE, frame.assign(**wrong))


def test_examples_fit_their_signature() -> None:
    schema = request_schema(SIGNATURE, "e2i-x", 100)
    assert schema.row(example_row(SIGNATURE)).features.keys() == set(SIGNATURE.names)
    assert len(schema.rows(example_batch(SIGNATURE, 3)).usable) == 3


def test_signatures_that_cannot_be_served_are_refused(stored: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no file MLmodel"):
        Signature.of_model(tmp_path)
    described = (stored.folder / "MLmodel").read_text()
    (tmp_path / "MLmodel").write_text(described.replace('"boolean"', '"datetime"'))
    with pytest.raises(InputError, match="Columns academic_hcp"):
        Signature.of_model(tmp_path)
    (tmp_path / "MLmodel").write_text(described.split("signature:")[0])
    with pytest.raises(InputError, match="no input signature"):
        Signature.of_model(tmp_path)
    assert Signature.of_model(stored.folder).features[1] == Feature(
        name="contacts", type="double", required=False, nullable=True
    )


@pytest.mark.parametrize(
    ("answers", "errors", "latency", "level"),
    [
        (0, 0, 0, "healthy"),
        (19, 19, 9000, "healthy"),
        (100, 4, 10, "healthy"),
        (100, 5, 10, "degraded"),
        (100, 10, 10, "degraded"),
        (100, 11, 10, "unhealthy"),
        (100, 0, 499, "healthy"),
        (100, 0, 500, "degraded"),
        (100, 0, 2000, "degraded"),
        (100, 0, 2001, "unhealthy"),
    ],
)
def test_health_levels(answers: int, errors: int, latency: float, level: str) -> None:
    policy = HealthPolicy(
        window=100,
        min_answers=20,
        degraded_error_rate=0.05,
        unhealthy_error_rate=0.10,
        degraded_latency_ms=500,
        unhealthy_latency_ms=2000,
    )
    assert assess([latency] * answers, errors, policy).level == level


def test_the_latency_of_health_is_the_95th_percentile() -> None:
    policy = ServingPolicy.load().health
    assert assess([10.0] * 95 + [9000.0] * 5, 0, policy).latency_ms == 10
    assert assess([10.0] * 94 + [9000.0] * 6, 0, policy).latency_ms == 9000


def test_a_feature_may_have_to_be_there_and_yet_be_null() -> None:
    signature = Signature(features=(Feature(name="severity", type="double", nullable=True),))
    schema = request_schema(signature, "e2i-x", 100)
    assert schema.row({"features": {"severity": None}}).features == {"severity": None}
    assert to_frame(signature, [[None]])["severity"].isna().all()
    with pytest.raises(RequestError, match=r"features\.severity: is missing"):
        schema.row({"features": {}})


def test_a_model_says_itself_how_it_is_served(stored: Any, tmp_path: Path) -> None:
    described = yaml.safe_load((stored.folder / "MLmodel").read_text())
    (tmp_path / "MLmodel").write_text(yaml.safe_dump(described | {"metadata": None}))
    with pytest.raises(InputError, match="no problem_type"):
        ModelToServe.of_model(tmp_path, model_name="e2i-tiny", version="1")
    metadata = {
        "problem_type": "binary_classification",
        "threshold": 0.4,
        "scope": "s",
        "nullable": ["academic_hcp"],
    }
    (tmp_path / "MLmodel").write_text(yaml.safe_dump(described | {"metadata": metadata}))
    found = ModelToServe.of_model(tmp_path, model_name="e2i-tiny", version="1")
    assert (found.problem_type, found.threshold, found.scope) == ("binary_classification", 0.4, "s")
    academic = Signature.of_model(tmp_path).features[3]
    assert (academic.required, academic.nullable) == (True, True)


def test_all_types_that_the_registry_stores_are_served() -> None:
    from e2i_dagster.registry import TRUSTED_TYPES

    policy = ServingPolicy.load()
    assert [name for name in TRUSTED_TYPES if not policy.trusts(name)] == []


def test_models_that_cannot_be_released(stored: Any, tmp_path: Path) -> None:
    good = ModelToServe(
        model_name="e2i-tiny", version="1", folder=stored.folder, problem_type="binary_classification"
    )
    with pytest.raises(InputError, match="at least one"):
        build_release([], state=tmp_path)
    with pytest.raises(InputError, match="several were given of e2i-tiny"):
        build_release([good, good.model_copy(update={"version": "2"})], state=tmp_path)
    with pytest.raises(InputError, match=r"takes binary.* found e2i-tiny \(regression\)"):
        build_release([good.model_copy(update={"problem_type": "regression"})], state=tmp_path)
    folder = tmp_path / "pickled"
    shutil.copytree(stored.folder, folder)
    described = (folder / "MLmodel").read_text()
    (folder / "MLmodel").write_text(
        described.replace("serialization_format: skops", "serialization_format: pickle")
    )
    with pytest.raises(InputError, match="stored as pickle"):
        build_release([good.model_copy(update={"folder": folder})], state=tmp_path)
    assert not (tmp_path / "bentoml").exists()


def test_a_type_that_is_not_on_the_list_is_refused(stored: Any) -> None:
    policy = ServingPolicy.load()
    require_trusted(stored.folder, policy)
    with pytest.raises(VerdictError, match=r"numpy\.dtype.*trusted_types"):
        require_trusted(stored.folder, policy.model_copy(update={"trusted_types": ()}))


class Failing:
    """A pipeline that fails as scikit-learn does: with a value in its message."""

    classes_ = np.array(["no", "yes"])

    def predict_proba(self, frame: pd.DataFrame) -> np.ndarray:
        raise ValueError(f"unknown category {frame['region'].iloc[0]!r}")


class Doubling:
    """A model of numbers."""

    def predict(self, frame: pd.DataFrame) -> np.ndarray:
        return frame["severity"].to_numpy() * 2


@pytest.fixture
def two_models(stored: Any, tmp_path: Path) -> Any:
    """A release of two models in this process, the second one failing when asked to."""
    from importlib.metadata import version

    from e2i_dagster.serving.models import file_digests
    from e2i_dagster.serving.release import LIBRARIES

    shutil.copytree(stored.folder, tmp_path / "models" / "0")
    signature = Signature.of_model(stored.folder)
    released = ReleasedModel(
        model_name="e2i-a",
        version="1",
        problem_type="binary_classification",
        scope=None,
        threshold=None,
        folder="models/0",
        files=file_digests(stored.folder),
        signature=signature,
    )
    other = released.model_copy(update={"model_name": "e2i-b", "version": "2"})
    manifest = Manifest(
        service="classification",
        models=(released, other),
        libraries={name: version(name) for name in LIBRARIES},
        policy=ServingPolicy.load(),
    )
    settings = ColourSettings(
        colour="c",
        slot="staging",
        stages={"e2i-a/1": "staging", "e2i-b/2": "development"},
        audit=False,
        probe_token="secret",
        state=tmp_path,
        failure=tmp_path / "failure",
    )
    app, holder = application(manifest, "r1")
    holder.runtime = Runtime(manifest, tmp_path, settings, registry=CollectorRegistry())

    def ask(method: str, path: str, body: Any = None, **more: Any) -> httpx.Response:
        async def send() -> httpx.Response:
            async with httpx.AsyncClient(
                transport=httpx.ASGITransport(app), base_url="http://test"
            ) as client:
                return await client.request(method, path, json=body, **more)

        return asyncio.run(send())

    ask.app = app  # type: ignore[attr-defined]
    return ask, holder, signature, manifest, settings, tmp_path


def test_with_several_models_one_must_be_named(two_models: Any) -> None:
    ask, _, signature, *_ = two_models
    body = example_row(signature)
    refused = ask("POST", "/predict", body)
    assert refused.status_code == 422
    assert "e2i-a, e2i-b" in refused.json()["error"]["message"]
    named = ask("POST", "/predict", body | {"model_name": "e2i-b"}).json()
    assert (named["model_id"], named["_metadata"]["stage"]) == ("e2i-b/2", "development")
    assert ask("POST", "/e2i-a/predict", body).json()["model_id"] == "e2i-a/1"
    assert ask("POST", "/e2i-a/predict", body | {"model_name": "e2i-b"}).status_code == 422


def test_a_failing_model_is_counted_and_shows_no_value(
    two_models: Any, caplog: pytest.LogCaptureFixture
) -> None:
    ask, holder, signature, *_ = two_models
    holder.runtime.models["e2i-b"].loaded = LoadedModel(Failing())
    body = example_row(signature)
    body["features"]["region"] = "CANARY"
    for _ in range(20):
        answer = ask("POST", "/e2i-b/predict", body)
        assert answer.status_code == 500
        assert "CANARY" not in answer.text
    assert "CANARY" not in caplog.text
    health = ask("GET", "/health")
    assert health.status_code == 503
    levels = {one["model_name"]: one["status"] for one in health.json()["models"]}
    assert levels == {"e2i-a": "healthy", "e2i-b": "unhealthy"}


def test_numbers_have_no_probabilities() -> None:
    found = LoadedModel(Doubling()).predict(pd.DataFrame({"severity": [1.0, 2.5]}))
    assert found.predictions == found.values == [2.0, 5.0]
    assert found.probabilities is None


def test_other_library_versions_are_refused(two_models: Any) -> None:
    *_, manifest, settings, folder = two_models
    other = manifest.model_copy(update={"libraries": {"scikit-learn": "0.1"}})
    with pytest.raises(VerdictError, match=r"scikit-learn .*release: 0\.1"):
        Runtime(other, folder, settings, registry=CollectorRegistry())


RANGED = Signature(
    features=(
        Feature(name="uas7", type="double", seen=(0.0, 42.0)),
        Feature(name="visits", type="long", seen=(0.0, 10.0)),
        Feature(name="weight", type="double"),
        Feature(name="region", type="string"),
    )
)
RANGED_ROW = {"uas7": 1.0, "visits": 1, "weight": 1.0, "region": "a"}


@pytest.mark.parametrize(
    ("name", "literal", "expected"),
    [
        ("uas7", "1e5", "must be between -42000 and 42042; training saw 0 to 42"),
        ("uas7", "1.7e308", "must be between -42000 and 42042; training saw 0 to 42"),
        ("visits", "9223372036854775808", "must be between -10000 and 10010; training saw 0 to 10"),
        ("weight", "3e38", "must be between -1e+30 and 1e+30"),
        ("weight", "1e400", "must be a finite number; use null for a missing value where that is allowed"),
        ("weight", "1" + "0" * 400, "Input should be a valid number"),
        (
            "weight",
            "1" + "0" * 5000,
            "must be a finite number; use null for a missing value where that is allowed",
        ),
    ],
)
def test_impossible_numbers_are_refused_with_what_is_expected(name: str, literal: str, expected: str) -> None:
    schema = request_schema(RANGED, "e2i-x", 100)
    body = json.dumps({"features": RANGED_ROW | {name: "@"}}).replace('"@"', literal)
    with pytest.raises(RequestError) as refused:
        schema.row(decode(body.encode()))
    assert refused.value.status == 422
    assert refused.value.problems == [{"field": f"features.{name}", "problem": expected}]


def test_a_number_outside_the_range_of_training_is_taken_with_a_warning() -> None:
    schema = request_schema(RANGED, "e2i-x", 100)
    assert schema.row({"features": RANGED_ROW}).warnings == []
    row = schema.row({"features": RANGED_ROW | {"uas7": 43.0, "weight": 1e20}})
    assert list(row.warnings) == [("uas7", "is outside 0 to 42, the range seen in training")]
    batch = schema.rows({"instances": [{"features": RANGED_ROW}, {"features": RANGED_ROW | {"visits": -1}}]})
    assert [one["field"] for one in batch.warnings()] == ["instances.1.features.visits"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ('{"features": {"a": 1, "b": 2, "a": 1}}', "features.a"),
        ('{"features": {}, "features": {}}', "features"),
        (
            '{"instances": [{"features": {}}, {"features": {"b": {"c": 1, "c": 2}}}]}',
            "instances.1.features.b.c",
        ),
    ],
)
def test_a_key_that_is_given_twice_is_refused(body: str, field: str) -> None:
    with pytest.raises(RequestError) as refused:
        decode(body.encode())
    assert refused.value.status == 422
    assert refused.value.problems == [{"field": field, "problem": "is given more than once"}]


@pytest.mark.parametrize("place", ["region", "patient_id", "key"])
def test_a_lone_surrogate_has_one_status_wherever_it_is(place: str) -> None:
    row = {"features": RANGED_ROW | ({"region": "\ud800"} if place == "region" else {})}
    row |= {"patient_id": "a\udfff"} if place == "patient_id" else {}
    row |= {"\ud800": 1} if place == "key" else {}
    with pytest.raises(RequestError) as refused:
        request_schema(RANGED, "e2i-x", 100).row(decode(json.dumps(row).encode()))
    assert refused.value.status == 422
    json.dumps(refused.value.problems).encode()


def test_the_range_of_training_comes_with_the_stored_model(stored: Any, tmp_path: Path) -> None:
    shutil.copytree(stored.folder, tmp_path / "model")
    described = (tmp_path / "model" / "MLmodel").read_text("utf-8")
    more = "metadata:\n  seen_ranges:\n    disease severity: [0.0, 10.0]\n"
    (tmp_path / "model" / "MLmodel").write_text(described + more, "utf-8")
    found = {one.name: one.possible for one in Signature.of_model(tmp_path / "model").features}
    assert found["disease severity"] == (-10_000.0, 10_010.0)
    assert found["contacts"] == (-1e30, 1e30)
    assert found["region"] is None


def as_stream(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def as_parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


@pytest.mark.parametrize(("kind", "written"), [(ARROW, as_stream), (PARQUET, as_parquet)])
def test_columns_are_answered_as_the_offline_model_does(
    two_models: Any, stored: Any, kind: str, written: Any
) -> None:
    ask, holder, *_, folder = two_models
    lines: list[bytes] = []

    def keep(rows: list[bytes]) -> int:
        lines.extend(rows)
        return len(rows)

    holder.runtime.journal = Journal(folder / "journal", keep, ServingPolicy.load().audit)
    rows = pd.concat([stored.rows] * 80, ignore_index=True)  # 20,000 rows: two parts
    table = pa.Table.from_pandas(rows.assign(patient_id=[f"P{i}" for i in range(len(rows))]))
    bad = table.column("disease severity").to_pylist()
    bad[7], bad[16_500] = None, 1e35
    table = table.set_column(0, "disease severity", pa.array(bad, pa.float64()))
    answer = ask("POST", "/e2i-a/predict_batch", content=written(table), headers={"content-type": kind})
    assert (answer.status_code, answer.headers["content-type"]) == (200, ARROW)
    found = pa.ipc.open_stream(answer.content).read_all()
    frame = found.to_pandas()
    answered = ~frame.index.isin([7, 16_500])
    expected = np.tile(stored.scores, 80)[answered]
    np.testing.assert_allclose(frame["prediction_value"][answered], expected, atol=1e-12)
    np.testing.assert_allclose(frame["probability_1"][answered], expected, atol=1e-12)
    assert frame["prediction"][answered].tolist() == (expected >= 0.5).astype(int).tolist()
    assert frame["problem"][~answered].tolist() == [
        "disease severity is missing",
        "disease severity must be between -1e+30 and 1e+30",
    ]
    assert frame["problem"][answered].isna().all() and frame["prediction_value"][~answered].isna().all()
    assert frame["patient_id"].tolist() == [f"P{i}" for i in range(len(rows))]
    assert found.schema.metadata[b"model_id"] == b"e2i-a/1"
    assert holder.runtime.journal.close()
    logged = [json.loads(line) for line in lines]
    assert len(logged) == 19_998 == len({one["prediction_id"] for one in logged})
    first = logged[0]
    (body,) = to_records(holder.schemas["e2i-a"].signature, stored.rows.head(1))
    assert first["features_available_at_prediction"] == body
    assert (first["patient_id"], first["model_version"], first["origin"]) == ("P0", "1", "live")
    assert first["probability_scores"] == {"0": frame["probability_0"][0], "1": frame["probability_1"][0]}
    assert set(first) == set(audit._COLUMNS)


@pytest.mark.parametrize(
    ("change", "status", "field"),
    [
        (lambda t: t.drop_columns("region").append_column("region", pa.array([1] * 250)), 422, "region"),
        (lambda t: t.drop_columns("treatment_count"), 422, "treatment_count"),
        (lambda t: t.append_column("other", pa.array([1] * 250)), 422, "other"),
    ],
)
def test_columns_that_do_not_fit_are_named(
    two_models: Any, stored: Any, change: Any, status: int, field: str
) -> None:
    ask, *_ = two_models
    content = as_stream(change(pa.Table.from_pandas(stored.rows, preserve_index=False)))
    answer = ask("POST", "/e2i-a/predict_batch", content=content, headers={"content-type": ARROW})
    assert answer.status_code == status
    assert field in {one["field"] for one in answer.json()["error"]["problems"]}


def test_what_is_no_arrow_and_who_takes_no_arrow(two_models: Any) -> None:
    ask, *_ = two_models
    for kind in (ARROW, PARQUET):
        answer = ask("POST", "/e2i-a/predict_batch", content=b"no", headers={"content-type": kind})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_arrow")
    headers = {"content-type": ARROW, "accept": "text/csv"}
    answer = ask("POST", "/e2i-a/predict_batch", content=b"no", headers=headers)
    assert answer.status_code == 406


def test_no_mutated_request_is_an_error_of_the_server(two_models: Any) -> None:
    ask, *_ = two_models
    document = ask("GET", "/openapi.json").json()
    statuses: Counter[int] = Counter()

    async def send_all() -> None:
        transport = httpx.ASGITransport(ask.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            for path, body in mutated(document, MUTATED, seed=20_260_101):
                answer = await client.post(path, content=body)
                statuses[answer.status_code] += 1
                assert answer.status_code < 500, (path, body)
                answer.json()

    asyncio.run(send_all())
    assert set(statuses) <= {200, 207, 400, 404, 413, 422}
    assert statuses[200] > MUTATED / 10 and statuses[422] > MUTATED / 10
