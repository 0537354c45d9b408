"""Explained answers: contributions are exact, add up to what is named, and leave the prediction log as it is."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
import time
from itertools import combinations
from types import SimpleNamespace
from typing import Any

import httpx
import mlflow.sklearn
import numpy as np
import pytest
from model_rows import patients, rows, target_of, visible
from prometheus_client import CollectorRegistry
from scipy.special import expit

from e2i_dagster.config.algorithms import AlgorithmsPolicy
from e2i_dagster.config.names import TRUSTED_TYPES
from e2i_dagster.config.scope import default_scope
from e2i_dagster.config.serving import ServingPolicy
from e2i_dagster.explain import explain
from e2i_dagster.modelling.model_input import LabelledRows, model_input
from e2i_dagster.modelling.preprocessing import column_origins
from e2i_dagster.registry.mlflow_runs import model_metadata, signature_of
from e2i_dagster.serving.explained import NotExplainedError, RowExplainer
from e2i_dagster.serving.models import file_digests
from e2i_dagster.serving.release import Manifest, ReleasedModel
from e2i_dagster.serving.request_schema import Feature, Signature, to_records
from e2i_dagster.serving.service import Runtime, application
from e2i_dagster.serving.state import ColourSettings
from e2i_dagster.training import train

TREES = ("XGBoost", "LightGBM", "HistGradientBoosting", "RandomForest", "ExtraTrees")
CASES = [
    *((name, "binary_classification") for name in (*TREES, "LogisticRegression")),
    *((name, "multiclass_classification") for name in (*TREES, "LogisticRegression")),
    *((name, "regression") for name in (*TREES, "Ridge", "Lasso")),
    *((name, "survival") for name in ("XGBoost", "CoxPH")),
]


def aimed(source: LabelledRows, kind: str, seed: int = 0) -> LabelledRows:
    if kind != "survival":
        return target_of(source, kind, seed)
    hazard = 0.01 * np.exp(source.features["severity"].to_numpy())
    day = np.ceil(np.random.default_rng(seed).exponential(1 / hazard))
    return LabelledRows(source.features, np.where(day <= 60, day, -60.0))


def fitted(algorithm: str, kind: str = "binary_classification", **parameters: Any) -> Any:
    values = dict(AlgorithmsPolicy.load().algorithm(algorithm).defaults)
    values |= {name: 30 for name in ("n_estimators", "max_iter") if name in values}
    return train(
        visible(aimed(rows(400), kind), aimed(rows(200, 1), kind, 1)),
        algorithm=algorithm,
        parameters=values | parameters,
        problem_type=kind,
        horizon_days=60 if kind == "survival" else None,
    )


def signature(model: Any) -> Signature:
    return Signature(
        features=tuple(
            Feature(
                name=name, type="double" if kind == "number" else "string", nullable=name in model.nullable
            )
            for name, kind in model.kinds.items()
        )
    )


def explainer(model: Any, **changes: Any) -> RowExplainer:
    metadata = model_metadata(model, default_scope(), {}) | changes
    names = [str(one) for one in metadata["classes"] or ()]
    return RowExplainer(model.pipeline, metadata, signature(model), names)


def columns_of(model: Any, number: int) -> list[list[Any]]:
    records = to_records(signature(model), model_input(patients(number, 9), model.kinds))
    return [[row[name] for row in records] for name in model.features]


def margins(model: Any, number: int) -> np.ndarray:
    """What the estimator itself answers before calibration, shape (rows, outputs)."""
    matrix = model.pipeline.named_steps["preprocess"].transform(model_input(patients(number, 9), model.kinds))
    estimator, kind = model.estimator, model.problem_type
    if kind == "survival":
        found = np.log(estimator.predict(matrix).astype("float64"))
    elif kind == "regression":
        found = estimator.predict(matrix)
    elif model.algorithm == "XGBoost":
        found = estimator.predict(matrix, output_margin=True)
    elif model.algorithm == "LightGBM":
        found = estimator.predict(matrix, raw_score=True)
    elif model.algorithm in ("RandomForest", "ExtraTrees"):
        found = estimator.predict_proba(matrix)
        found = found[:, 1:] if kind == "binary_classification" else found
    else:
        found = estimator.decision_function(matrix)
    return np.asarray(found, dtype="float64").reshape(number, -1)


@pytest.mark.parametrize(("algorithm", "kind"), CASES)
def test_contributions_add_up_to_the_margin(algorithm: str, kind: str) -> None:
    model = fitted(algorithm, kind)
    found = explainer(model).explain(columns_of(model, 40))
    expected = margins(model, 40)
    # XGBoost computes in 32 bits.
    close = 1e-5 if algorithm in ("XGBoost", "CoxPH") else 1e-9
    for row, outputs in zip(found["rows"], expected, strict=True):
        assert len(row) == len(outputs) == (3 if kind == "multiclass_classification" else 1)
        for one, output in zip(row, outputs, strict=True):
            assert tuple(one["contributions"]) == model.features
            total = one["expected_value"] + math.fsum(one["contributions"].values())
            assert total == pytest.approx(output, abs=close)
            assert one["margin"] == output
            assert abs(one["difference"]) <= close
    names = [one["class_name"] for one in found["rows"][0]]
    assert names == (list(model.classes) or ["1" if kind == "binary_classification" else None])
    averaged = algorithm in ("RandomForest", "ExtraTrees")
    scale = {"regression": "outcome", "survival": "log hazard ratio"}.get(
        kind, "probability" if averaged else "log-odds"
    )
    assert found["scale"] == scale
    assert found["adds_up_to"] == ("prediction" if kind == "regression" else "margin")
    calibration = {"regression": None, "survival": "risk_at_horizon"}.get(kind, model.calibration)
    assert found["calibration"] == calibration


@pytest.mark.parametrize("algorithm", ["LightGBM", "LogisticRegression"])
def test_they_are_those_of_the_explanation_of_the_model(algorithm: str) -> None:
    model = fitted(algorithm)
    found = explainer(model).explain(columns_of(model, 60))
    offline = explain(model, patients(60, 9), background=rows(400))
    for effect in offline.effects:
        mean = np.mean([abs(row[0]["contributions"][effect.feature]) for row in found["rows"]])
        assert mean == pytest.approx(effect.importance, abs=1e-12)
    assert found["rows"][0][0]["expected_value"] == pytest.approx(offline.base_value, abs=1e-12)


def test_a_linear_contribution_by_hand() -> None:
    model = fitted("LogisticRegression")
    row = explainer(model).explain(columns_of(model, 1))["rows"][0][0]
    frame = model_input(patients(1, 9), model.kinds)
    source = rows(400).features
    weights = dict(
        zip(
            model.pipeline.named_steps["preprocess"].get_feature_names_out(),
            model.estimator.coef_[0],
            strict=True,
        )
    )
    severity = (frame["severity"][0] - source["severity"].mean()) / source["severity"].std(ddof=0)
    assert row["contributions"]["severity"] == pytest.approx(weights["number__severity"] * severity)
    region = sum(
        weights[f"string__region_{level}"]
        * ((frame["region"][0] == level) - (source["region"] == level).mean())
        for level in ("northeast", "south", "west")
    )
    assert row["contributions"]["region"] == pytest.approx(region)


def conditional(tree: Any, values: np.ndarray, known: frozenset[int], node: int = 0) -> float:
    """Output of a tree of which only the columns ``known`` are given: others follow the training rows."""
    left, right = tree.children_left[node], tree.children_right[node]
    if left < 0:
        return float(tree.value[node, 0, 0])
    if tree.feature[node] in known:
        down = left if np.float32(values[tree.feature[node]]) <= tree.threshold[node] else right
        return conditional(tree, values, known, down)
    weight = tree.weighted_n_node_samples
    return sum(weight[one] / weight[node] * conditional(tree, values, known, one) for one in (left, right))


def test_tree_contributions_are_shapley_values() -> None:
    """Against the definition: the mean gain of each column over all orders (Shapley 1953)."""
    model = fitted("RandomForest", "regression", n_estimators=2, max_depth=3)
    row = explainer(model).explain(columns_of(model, 1))["rows"][0][0]
    preprocess = model.pipeline.named_steps["preprocess"]
    values = preprocess.transform(model_input(patients(1, 9), model.kinds))[0]
    trees = [one.tree_ for one in model.estimator.estimators_]
    used = sorted({int(one) for tree in trees for one in tree.feature if one >= 0})

    def worth(known: tuple[int, ...]) -> float:
        return float(np.mean([conditional(tree, values, frozenset(known)) for tree in trees]))

    expected = dict.fromkeys(model.features, 0.0)
    for column in used:
        others = [one for one in used if one != column]
        for size in range(len(others) + 1):
            share = 1 / (len(used) * math.comb(len(others), size))
            for known in combinations(others, size):
                expected[column_origins(preprocess)[column]] += share * (
                    worth((*known, column)) - worth(known)
                )
    assert row["contributions"] == pytest.approx(expected, abs=1e-12)
    assert row["expected_value"] == pytest.approx(worth(()), abs=1e-12)


def test_what_is_not_exact_is_not_explained() -> None:
    model = fitted("LogisticRegression")
    with pytest.raises(NotExplainedError, match="DRLearner can only be approximated"):
        explainer(model, algorithm="DRLearner")
    with pytest.raises(NotExplainedError, match="without the averages of its training rows"):
        explainer(model, training_means=[])
    with pytest.raises(NotExplainedError, match="without its algorithm"):
        explainer(model, algorithm=None)


def test_values_that_do_not_add_up_are_no_answer() -> None:
    model = fitted("LightGBM")
    broken = explainer(model)
    broken.explain(columns_of(model, 1))
    values = broken._values
    assert values is not None
    broken._values = lambda matrix: values(matrix)._replace(base=np.array([1.0]))
    with pytest.raises(ArithmeticError, match="do not add up"):
        broken.explain(columns_of(model, 1))


# -- over HTTP ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three models in one process, the requests it answers and what it wrote into its prediction log."""
    folder = tmp_path_factory.mktemp("explained")
    models = {
        "trees": fitted("LightGBM"),
        "classes": fitted("LogisticRegression", "multiclass_classification"),
        "effects": fitted("LogisticRegression"),
    }
    policy = ServingPolicy.load()
    released = []
    for name, model in models.items():
        metadata = model_metadata(model, default_scope(), {})
        if name == "effects":
            metadata["algorithm"] = "DRLearner"
        mlflow.sklearn.save_model(
            model.pipeline,
            str(folder / name),
            signature=signature_of(model),
            serialization_format="skops",
            skops_trusted_types=list(TRUSTED_TYPES),
            pip_requirements=["scikit-learn"],
            metadata=metadata,
        )
        released.append(
            ReleasedModel(
                model_name=name,
                version="1",
                problem_type=model.problem_type,
                scope=None,
                threshold=model.threshold,
                folder=name,
                files=file_digests(folder / name),
                signature=Signature.of_model(folder / name),
            )
        )
    manifest = Manifest(service="classification", models=tuple(released), libraries={}, policy=policy)
    settings = ColourSettings(
        colour="a", slot="staging", stages={f"{name}/1": "staging" for name in models}, audit=True,
        probe_token="probe", state=folder, failure=folder / "failure",
    )  # fmt: skip
    log: list[dict[str, Any]] = []

    def store(lines: list[bytes]) -> int:
        log.extend(json.loads(line) for line in lines)
        return len(lines)

    app, holder = application(manifest, "1")
    holder.runtime = Runtime(manifest, folder, settings, store=store, registry=CollectorRegistry())
    yield SimpleNamespace(app=app, holder=holder, models=models, log=log, limit=policy.request.max_explained)


def ask(served: Any, path: str, body: Any = None) -> httpx.Response:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=served.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await (client.get(path) if body is None else client.post(path, json=body))

    return asyncio.run(send())


def some(served: Any, name: str, number: int) -> list[dict[str, Any]]:
    model = served.models[name]
    found = to_records(signature(model), model_input(patients(number, 9), model.kinds))
    return [{"features": row} for row in found]


def test_a_row_is_explained_when_asked(served: Any) -> None:
    body = some(served, "trees", 1)[0]
    plain = ask(served, "/trees/predict", body).json()
    assert "explanation" not in plain
    assert "explanation" not in ask(served, "/trees/predict?explain=false", body).json()
    answer = ask(served, "/trees/predict?explain=true", body)
    assert answer.status_code == 200
    explained = answer.json()
    assert explained["probabilities"] == plain["probabilities"]
    explanation = explained["explanation"]
    assert explanation["method"] == "tree"
    assert (explanation["scale"], explanation["adds_up_to"]) == ("log-odds", "margin")
    [[one]] = explanation["rows"]
    total = one["expected_value"] + math.fsum(one["contributions"].values())
    assert total == pytest.approx(margins(served.models["trees"], 1)[0, 0], abs=1e-9)
    # The served probability is the calibrated margin: a temperature stretches it and its negative for the other class.
    calibrator = (
        served.models["trees"].pipeline.named_steps["model"].calibrated_classifiers_[0].calibrators[0]
    )
    assert explanation["calibration"] == "temperature"
    assert explained["probabilities"][0]["1"] == pytest.approx(expit(2 * calibrator.beta_ * total), abs=1e-6)


def test_a_batch_is_explained_up_to_the_limit(served: Any) -> None:
    instances = some(served, "classes", served.limit + 1)
    answer = ask(served, "/classes/predict_batch?explain=true", {"instances": instances})
    assert answer.status_code == 413
    assert answer.json()["error"]["problems"][0]["problem"] == "has 11 rows; at most 10 are explained at once"
    instances = instances[1:]
    del instances[1]["features"]["severity"]
    answer = ask(served, "/classes/predict_batch?explain=true", {"instances": instances})
    assert answer.status_code == 207
    found = answer.json()["explanation"]["rows"]
    assert [one is None for one in found] == [place == 1 for place in range(served.limit)]
    assert [one["class_name"] for one in found[0]] == ["adherent", "none", "switched"]
    expected = margins(served.models["classes"], served.limit + 1)[3]
    for one, margin in zip(found[2], expected, strict=True):
        total = one["expected_value"] + math.fsum(one["contributions"].values())
        assert total == pytest.approx(margin, abs=1e-9)


def test_a_model_without_exact_values_says_why(served: Any) -> None:
    body = some(served, "effects", 1)[0]
    answer = ask(served, "/effects/predict?explain=true", body)
    assert answer.status_code == 422
    assert answer.json()["error"]["code"] == "not_explained"
    assert "can only be approximated" in answer.json()["error"]["problems"][0]["problem"]
    assert ask(served, "/effects/predict", body).status_code == 200
    listed = {one["model_name"]: one["explains"] for one in ask(served, "/models").json()["models"]}
    assert listed == {"trees": "tree", "classes": "linear", "effects": None}


def test_a_release_from_before_explanations_answers_without_them(served: Any, monkeypatch: Any) -> None:
    """An update finds releases whose policy does not have the limit: they stay readable, and explain nothing."""
    written = served.holder.manifest.model_dump(mode="json")
    del written["policy"]["request"]["max_explained"]
    monkeypatch.setattr(served.holder, "manifest", Manifest.model_validate(written))
    body = some(served, "trees", 1)[0]
    assert ask(served, "/trees/predict", body).status_code == 200
    answer = ask(served, "/trees/predict?explain=true", body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "not_explained")
    assert "max_explained" in answer.json()["error"]["problems"][0]["problem"]


@pytest.mark.parametrize("query", ["explain=yes", "explain=", "explain", "explain=true&explain=true"])
def test_anything_but_true_and_false_is_refused(served: Any, query: str) -> None:
    answer = ask(served, f"/trees/predict?{query}", some(served, "trees", 1)[0])
    assert answer.status_code == 422
    assert answer.json()["error"]["problems"] == [
        {"field": "explain", "problem": "must be true or false, once"}
    ]


def test_columns_are_not_explained(served: Any) -> None:
    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=served.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            kind = {"content-type": "application/vnd.apache.arrow.stream"}
            return await client.post("/trees/predict_batch?explain=true", content=b"", headers=kind)

    answer = asyncio.run(send())
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "not_explained")


def test_the_prediction_log_has_no_contributions(served: Any) -> None:
    body = some(served, "trees", 1)[0]
    for query in ("", "?explain=true"):
        ask(served, f"/trees/predict{query}", body | {"patient_id": f"asked{query}"})
    deadline = time.monotonic() + 10
    while len(found := [one for one in served.log if str(one["patient_id"]).startswith("asked")]) < 2:
        assert time.monotonic() < deadline, "not logged in time"
        time.sleep(0.05)
    own = {"id", "prediction_id", "request_id", "patient_id", "prediction_timestamp"}
    plain, explained = ({name: value for name, value in one.items() if name not in own} for one in found)
    assert plain == explained
    assert plain["features_available_at_prediction"] == body["features"]


def test_the_document_describes_parameter_and_answer(served: Any) -> None:
    document = ask(served, "/openapi.json").json()
    for path in ("/predict", "/trees/predict", "/predict_batch", "/trees/predict_batch"):
        [parameter] = document["paths"][path]["post"]["parameters"]
        assert (parameter["name"], parameter["in"], parameter["required"]) == ("explain", "query", False)
    schemas = document["components"]["schemas"]
    assert "explanation" in schemas["PredictionResponse"]["properties"]
    assert set(schemas["ExplainedOutput"]["required"]) == {
        "class_name", "expected_value", "contributions", "margin", "difference",
    }  # fmt: skip


def test_a_service_loads_shap_only_to_explain() -> None:
    code = "import sys; import e2i_dagster.serving.service; print('shap' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
