import datetime as dt
import json
import logging
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import sqlalchemy as sa
from model_rows import patients, rows, visible

from e2i_dagster import registry
from e2i_dagster.config.algorithms import AlgorithmsPolicy
from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.config.scope import SuccessCriteria, default_scope
from e2i_dagster.errors import DamagedError, InputError, UnavailableError, VerdictError
from e2i_dagster.explain import explain
from e2i_dagster.modelling.model_input import model_input
from e2i_dagster.serving.active import models_at_stage
from e2i_dagster.splits.rows import SealedRows
from e2i_dagster.tables.description.models import (
    ml_experiments,
    ml_hpo_studies,
    ml_model_registry,
    ml_shap_analyses,
    ml_training_runs,
)
from e2i_dagster.training import evaluate, search_hyperparameters, train
from resources.mlflow import MlflowResource

SCOPE = default_scope()
BINARY = ["XGBoost", "LightGBM", "HistGradientBoosting", "RandomForest", "ExtraTrees", "LogisticRegression"]


def made(algorithm="LogisticRegression", seed=0, **criteria):
    parameters = dict(AlgorithmsPolicy.load().algorithm(algorithm).defaults)
    parameters |= {name: 20 for name in ("n_estimators", "max_iter") if name in parameters}
    seen = visible(rows(400, seed), rows(200, seed + 1))
    model = train(seen, algorithm=algorithm, parameters=parameters)
    asked = SuccessCriteria.model_validate(criteria or {"min_auc": 0.6})
    sealed = SealedRows(lambda candidate: rows(200, seed + 2))
    return model, evaluate(model, seen, sealed, criteria=asked)


def dagster_run(run_id):
    return SimpleNamespace(
        log=logging.getLogger("test"), run=SimpleNamespace(run_id=run_id, job_name="scope_pipeline")
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    return MlflowResource(
        tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_root=str(folder / "artifacts")
    )


@pytest.fixture(scope="module")
def logged(store):
    model, evaluation = made()
    with store.run(dagster_run("first"), SCOPE):
        where = registry.log_training(model, evaluation, scope=SCOPE, digests={"training_frame": "abc"})
    return model, evaluation, where


def test_a_run_has_parameters_metrics_tags_and_files(store, logged):
    model, evaluation, where = logged
    client = mlflow.MlflowClient(tracking_uri=store.uri())
    run = client.get_run(where.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["algorithm"] == "LogisticRegression"
    for split in ("train", "validation", "test"):
        assert run.data.metrics[f"{split}_roc_auc"] == evaluation.metric(split, "roc_auc")
    tags = run.data.tags
    assert (tags["e2i.scope"], tags["e2i.brand"]) == (SCOPE.key, SCOPE.brand)
    assert tags["e2i.problem_type"] == "binary_classification"
    assert tags["e2i.digest.training_frame"] == "abc"
    assert tags["e2i.model_digest"] == model.digest
    names = {item.path for item in client.list_artifacts(where.run_id)}
    assert {"evaluation.json", "features.json", "figures"} <= names
    assert client.get_experiment(run.info.experiment_id).name == f"e2i/{SCOPE.key}"


def test_the_stored_model_has_a_signature_and_an_invented_example(store, logged):
    model, _, where = logged
    mlflow.set_tracking_uri(store.uri())
    folder = Path(mlflow.artifacts.download_artifacts(where.uri))
    stored = mlflow.models.Model.load(str(folder))
    assert [item.name for item in stored.signature.inputs] == list(model.features)
    assert {item.type.name for item in stored.signature.inputs} == {"double", "string"}
    assert stored.flavors["sklearn"]["serialization_format"] == "skops"
    assert not list(folder.rglob("*.pkl"))
    example = json.loads((folder / "input_example.json").read_text())["data"][0]
    known = rows(400).features.astype(object).to_numpy().tolist()
    assert example not in known
    assert stored.metadata["threshold"] == model.threshold
    assert stored.metadata["nullable"] == ["engagement"]
    matrix = model.pipeline.named_steps["preprocess"].transform(rows(400).features)
    assert stored.metadata["training_means"] == pytest.approx(matrix.mean(axis=0))


@pytest.mark.parametrize("algorithm", BINARY)
def test_a_reloaded_model_predicts_the_same(store, algorithm):
    model, evaluation = made(algorithm)
    with store.run(dagster_run(algorithm), SCOPE):
        where = registry.log_training(model, evaluation, scope=SCOPE)
    pipeline = registry.load_pipeline(where.uri)
    frame = model_input(patients(50, 9), model.kinds)
    assert np.array_equal(pipeline.predict_proba(frame)[:, 1], model.scores(patients(50, 9)))


def test_a_model_that_brings_other_types_is_not_loaded(store, tmp_path):
    from sklearn.naive_bayes import GaussianNB
    from sklearn.preprocessing import FunctionTransformer

    mlflow.set_tracking_uri(store.uri())
    mlflow.create_experiment("elsewhere", artifact_location=tmp_path.as_uri())
    mlflow.set_experiment("elsewhere")
    with mlflow.start_run():
        pickled = mlflow.sklearn.log_model(
            GaussianNB().fit(np.eye(2), [0, 1]),
            name="pickled",
            serialization_format="cloudpickle",
            pip_requirements=["mlflow"],
        )
        foreign = mlflow.sklearn.log_model(
            FunctionTransformer(json.dumps),
            name="foreign",
            serialization_format="skops",
            skops_trusted_types=["json.dumps"],
            pyfunc_predict_fn="transform",
            pip_requirements=["mlflow"],
        )
    with pytest.raises(InputError, match="not stored by skops"):
        registry.load_pipeline(pickled.model_uri)
    with pytest.raises(InputError, match=r"not trusted: json\.dumps"):
        registry.load_pipeline(foreign.model_uri)


def test_steps_of_one_dagster_run_share_a_run_and_scopes_do_not(store):
    other = SCOPE.model_copy(update={"key": "another_scope"})
    seen = []
    for scope in (SCOPE, other, SCOPE):
        with store.run(dagster_run("shared"), scope) as client:
            seen.append(client.active_run().info.run_id)
        assert mlflow.active_run() is None
    assert seen[0] == seen[2] != seen[1]


def test_runs_that_were_left_are_ended_by_the_next_and_those_of_others_are_not(store, logged):
    client = mlflow.MlflowClient(tracking_uri=store.uri())
    experiment = client.get_experiment_by_name(registry.experiment_name(SCOPE)).experiment_id
    tags = {"left": {"dagster_run_id": "gone"}, "trial": {"e2i.trial": "3"}, "notebook": {}}
    runs = {name: client.create_run(experiment, tags=given).info.run_id for name, given in tags.items()}
    with store.run(dagster_run("next"), SCOPE):
        pass
    found = {name: client.get_run(run_id) for name, run_id in runs.items()}
    assert {name: run.info.status for name, run in found.items()} == {
        "left": "KILLED",
        "trial": "KILLED",
        "notebook": "RUNNING",
    }
    assert "Dagster run gone" in found["left"].data.tags["e2i.killed"]
    client.set_terminated(runs["notebook"])


def test_a_failed_block_ends_its_run_as_failed(store):
    with pytest.raises(ZeroDivisionError), store.run(dagster_run("broken"), SCOPE) as client:
        run_id = client.active_run().info.run_id
        raise ZeroDivisionError
    assert mlflow.active_run() is None
    assert mlflow.MlflowClient(tracking_uri=store.uri()).get_run(run_id).info.status == "FAILED"


def test_logging_without_a_run_is_refused():
    model, evaluation = made()
    with pytest.raises(UnavailableError, match="no MLflow run is active"):
        registry.log_training(model, evaluation, scope=SCOPE)


def test_a_version_stored_without_training_averages_is_not_the_one_with_them(store, logged):
    """What `not_explained` advises for such a version: register it again."""
    model, evaluation, where = logged
    told = {
        "model_uri": where.uri,
        "run_id": where.run_id,
        "tracking_uri": store.uri(),
        "name": "e2i-averages",
    }
    old = registry.register(replace(model, training_means=()), evaluation, **told)
    new = registry.register(model, evaluation, **told)
    assert model.training_means and (old.version, new.version, new.new) == ("1", "2", True)
    assert registry.register(model, evaluation, **told).version == "2"


def test_from_registration_to_production(store, logged):
    model, evaluation, where = logged
    uri, name = store.uri(), "e2i-test-promotion"
    told = {"name": name, "model_uri": where.uri, "run_id": where.run_id, "tracking_uri": uri}
    first = registry.register(model, evaluation, **told)
    assert (first.version, first.stage, first.new) == ("1", "development", True)
    again = registry.register(model, evaluation, **told)
    assert (again.version, again.new) == ("1", False)

    evidence = registry.Evidence.from_evaluation(evaluation, proposed_by="ann", cohort_approved=True)
    with pytest.raises(VerdictError, match="the next stage is staging"):
        registry.promote(first, "production", evidence, tracking_uri=uri)
    staged, verdict = registry.promote(first, "staging", evidence, tracking_uri=uri)
    assert (staged.stage, verdict.allowed) == ("staging", True)
    assert registry.version_at(name, "staging", tracking_uri=uri).version == "1"
    same, _ = registry.promote(first, "staging", evidence, tracking_uri=uri)
    assert same.since == staged.since

    shadow, _ = registry.promote(staged, "shadow", evidence, tracking_uri=uri)
    approval = registry.Approval(
        by="bob", at=dt.datetime.now(dt.UTC), evidence_digest=evidence.measured_digest()
    )
    consented = evidence.model_copy(update={"approvals": (approval,), "days_in_stage": 99})
    with pytest.raises(VerdictError, match=r"0.0 days in shadow, production needs 7"):
        registry.promote(shadow, "production", consented, tracking_uri=uri)
    later = shadow.since + dt.timedelta(days=7)
    live, _ = registry.promote(shadow, "production", consented, tracking_uri=uri, now=later)
    assert registry.version_at(name, "production", tracking_uri=uri).version == live.version == "1"

    second_model, second_evaluation = made(seed=20)
    second = registry.register(second_model, second_evaluation, **told)
    newer = registry.Evidence.from_evaluation(second_evaluation, proposed_by="ann", cohort_approved=True)
    with pytest.raises(VerdictError, match="the evidence is about the model"):
        registry.promote(second, "staging", evidence, tracking_uri=uri)
    registry.promote(second, "staging", newer, tracking_uri=uri)
    assert registry.version_at(name, "staging", tracking_uri=uri).version == "2"
    assert registry.version_at(name, "1", tracking_uri=uri).superseded_since is None, "it is in production"
    assert registry.version_at(name, "archived", tracking_uri=uri) is None


def test_a_model_that_misses_a_criterion_is_not_registered(store, logged):
    _, _, where = logged
    model, evaluation = made(min_auc=0.999)
    with pytest.raises(VerdictError, match=r"not registered: roc_auc on test at least 0\.999"):
        registry.register(
            model,
            evaluation,
            name="e2i-test",
            model_uri=where.uri,
            run_id=where.run_id,
            tracking_uri=store.uri(),
        )


def test_the_embedded_server_holds_runs_versions_studies_and_tables(database: sa.Engine, tmp_path):
    """The whole way on PostgreSQL: MLflow in a database of its own, rows in the warehouse."""
    short = OptunaPolicy.load()
    short = short.model_copy(update={"optimization": short.optimization.model_copy(update={"n_trials": 3})})
    for table in (ml_experiments, ml_hpo_studies, ml_model_registry, ml_training_runs, ml_shap_analyses):
        table.create(database, checkfirst=True)
    store = MlflowResource(artifact_root=str(tmp_path))
    search = search_hyperparameters(
        "LogisticRegression",
        visible(rows(300), rows(150, 1)),
        scope=SCOPE.key,
        policy=short,
        engine=database,
    )
    model, evaluation = made()
    explanation = explain(model, rows(150, 1), background=rows(400))
    with store.run(dagster_run("postgres"), SCOPE):
        where = registry.log_training(model, evaluation, scope=SCOPE, search=search)
        registry.log_explanation(explanation)
    version = registry.register(
        model,
        evaluation,
        name=SCOPE.model_name,
        model_uri=where.uri,
        run_id=where.run_id,
        tracking_uri=store.uri(),
    )
    name = registry.experiment_name(SCOPE)
    for _ in range(2):
        experiment = registry.write_experiment(
            database, SCOPE, experiment_name=name, mlflow_experiment_id=where.experiment_id, created_by="ann"
        )
        registry.write_study(database, search, experiment_id=experiment)
        registry.write_training_run(
            database,
            model,
            evaluation,
            run_name="scope_pipeline",
            mlflow_run_id=where.run_id,
            experiment_id=experiment,
            search=search,
        )
        model_id = registry.write_model(
            database,
            model,
            evaluation,
            model_name=version.name,
            version=version.version,
            mlflow_run_id=where.run_id,
            model_uri=where.uri,
            stage=version.stage,
            experiment_id=experiment,
        )
        registry.write_explanation(database, explanation, model_registry_id=model_id)
    registry.write_stage(database, version.name, version.version, "staging")
    with database.connect() as connection:
        counts = [
            connection.scalar(sa.select(sa.func.count()).select_from(table))
            for table in (
                ml_experiments,
                ml_hpo_studies,
                ml_training_runs,
                ml_model_registry,
                ml_shap_analyses,
            )
        ]
        stored = connection.execute(sa.select(ml_model_registry)).one()
        run = connection.execute(sa.select(ml_training_runs)).one()
    assert counts == [1, 1, 1, 1, 1]
    assert (stored.stage, stored.auc) == ("staging", evaluation.metric("test", "roc_auc"))
    assert (run.model_registry_id, run.status, run.optuna_trial_number) == (
        model_id,
        "accepted",
        search.best_trial,
    )
    history = registry.performance_history(database, name)
    assert history == {"LogisticRegression": [pytest.approx(evaluation.metric("validation", "roc_auc"))]}


def test_a_damaged_model_is_named_and_logged_again_as_a_new_version(store, logged):
    model, evaluation, where = logged
    uri, name = store.uri(), "e2i-test-damage"
    told = {"name": name, "tracking_uri": uri}
    first = registry.register(model, evaluation, model_uri=where.uri, run_id=where.run_id, **told)
    assert (first.files, first.damage()) == (where.files, "")
    stored = Path(mlflow.artifacts.download_artifacts(where.uri)) / "model.skops"
    content = stored.read_bytes()
    for found, damaged in (
        ("other content", content[:-9] + bytes(9)),
        ("bytes long", content[:-9]),
        ("missing", None),
    ):
        stored.unlink() if damaged is None else stored.write_bytes(damaged)
        assert found in first.damage() and str(stored) in first.damage()
        for read in (
            lambda: registry.load_pipeline(f"models:/{name}/1"),
            lambda: models_at_stage([name], "development", tracking_uri=uri),
        ):
            with pytest.raises(DamagedError, match=found) as refused:
                read()
            assert (refused.value.file, refused.value.field) == (str(stored), SCOPE.model_name)

    with store.run(dagster_run("again"), SCOPE):
        again = registry.log_training(model, evaluation, scope=SCOPE)
    for _ in range(2):
        second = registry.register(model, evaluation, model_uri=again.uri, run_id=again.run_id, **told)
        assert (second.version, second.damage()) == ("2", "")
    assert registry.load_pipeline(f"models:/{name}@development").classes_.tolist() == [0, 1]
    stored.write_bytes(content)
