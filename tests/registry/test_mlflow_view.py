"""What somebody who opens MLflow finds: nested trials, datasets, tables, figures, and no run that never ends."""

import logging
from types import SimpleNamespace

import dagster as dg
import mlflow
import pandas as pd
import pytest
import sqlalchemy as sa
from model_rows import rows, visible

from e2i_dagster import registry
from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.config.scope import SuccessCriteria, default_scope
from e2i_dagster.config.subgroups import SubgroupColumn
from e2i_dagster.errors import UnavailableError
from e2i_dagster.splits.rows import SealedRows
from e2i_dagster.training import evaluate, search_hyperparameters, train
from resources.mlflow import MlflowResource

SCOPE = default_scope()
TRIALS = 6


def dagster_run(run_id):
    run = SimpleNamespace(run_id=run_id, job_name="scope_pipeline")
    return SimpleNamespace(log=logging.getLogger("test"), run=run)


def log(**more):
    """A searched, trained and judged model, logged to the active run."""
    seen = visible(rows(300), rows(150, 1))
    shipped = OptunaPolicy.load()
    policy = shipped.model_copy(
        update={
            "optimization": shipped.optimization.model_copy(update={"n_trials": TRIALS}),
            "pruner": shipped.pruner.model_copy(update={"n_startup_trials": 3, "n_warmup_steps": 0}),
        }
    )
    search = search_hyperparameters("LightGBM", seen, scope=SCOPE.key, policy=policy)
    model = train(seen, algorithm="LightGBM", parameters=search.parameters)
    evaluation = evaluate(
        model, seen, SealedRows(lambda candidate: rows(200, 2)),
        criteria=SuccessCriteria.model_validate({"min_auc": 0.6}), subgroups=[SubgroupColumn(column="region")],
    )  # fmt: skip
    where = registry.log_training(
        model,
        evaluation,
        scope=SCOPE,
        search=search,
        digests={"training_frame": "abc", "splits": "def"},
        **more,
    )
    return search, model, evaluation, where


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    return MlflowResource(
        tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_root=str(folder / "artifacts")
    )


@pytest.fixture(scope="module")
def logged(store):
    with store.run(dagster_run("view"), SCOPE):
        found = log()
    return found


def nested(client, run):
    of_parent = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    return client.search_runs([run.info.experiment_id], of_parent, order_by=["attributes.start_time"])


def test_each_trial_is_a_nested_run_with_its_reports_by_round(store, logged):
    search, _, _, where = logged
    client = mlflow.MlflowClient(tracking_uri=store.uri())
    run = client.get_run(where.run_id)
    found = {int(trial.data.tags["e2i.trial"]): trial for trial in nested(client, run)}
    assert set(found) == set(range(TRIALS))
    for trial in search.trials:
        told = found[trial.number]
        assert told.data.params == {name: str(value) for name, value in trial.parameters.items()}
        assert told.data.metrics.get("validation_roc_auc") == trial.value
        assert told.info.status == ("FINISHED" if trial.value is not None else "KILLED")
        history = client.get_metric_history(told.info.run_id, "trial_roc_auc")
        assert [(point.step, point.value) for point in history] == list(trial.steps)
    best = client.get_metric_history(where.run_id, "search_best_so_far_roc_auc")
    assert max(point.value for point in best) == search.best_value
    assert not [name for name in run.data.metrics if name.startswith("system/")]


def test_datasets_tables_and_figures_are_logged(store, logged):
    _, model, evaluation, where = logged
    client = mlflow.MlflowClient(tracking_uri=store.uri())
    inputs = client.get_run(where.run_id).inputs.dataset_inputs
    digests = {one.dataset.name: one.dataset.digest for one in inputs}
    assert digests == {
        "train_rows": model.data_digests["train"], "validation_rows": model.data_digests["validation"],
        "training_frame": "abc", "splits": "def",
    }  # fmt: skip
    figures = {item.path for item in client.list_artifacts(where.run_id, "figures")}
    assert {"figures/search_history.png", "figures/search_parallel_coordinates.png"} <= figures
    assert "figures/decision_curve.png" in figures
    mlflow.set_tracking_uri(store.uri())
    table = mlflow.load_table("tables/criteria.json", run_ids=[where.run_id])
    assert isinstance(table, pd.DataFrame)
    assert list(table["criterion"]) == [one.rule for one in evaluation.criteria]
    assert len(mlflow.load_table("tables/trials.json", run_ids=[where.run_id])) == TRIALS
    groups = mlflow.load_table("tables/subgroups.json", run_ids=[where.run_id])
    regions = groups["level"][groups["subgroup"] == "region"]
    assert list(regions) == ["northeast", "south", "west"]
    assert len(mlflow.load_table("tables/net_benefit.json", run_ids=[where.run_id])) > 10


def test_a_step_that_is_tried_again_leaves_each_trial_and_row_once(store, logged):
    client = mlflow.MlflowClient(tracking_uri=store.uri())
    with store.run(dagster_run("view"), SCOPE):
        *_, where = log()
    assert where.run_id == logged[3].run_id
    assert len(nested(client, client.get_run(where.run_id))) == TRIALS
    mlflow.set_tracking_uri(store.uri())
    assert len(mlflow.load_table("tables/trials.json", run_ids=[where.run_id])) == TRIALS


def test_a_version_says_what_it_is(store, logged):
    _, model, evaluation, where = logged
    version = registry.register(
        model,
        evaluation,
        name="e2i-test-words",
        model_uri=where.uri,
        run_id=where.run_id,
        tracking_uri=store.uri(),
    )
    found = mlflow.MlflowClient(tracking_uri=store.uri()).get_model_version("e2i-test-words", version.version)
    assert found.description.startswith(
        "LightGBM for binary classification, 7 features, 300 training patients."
    )
    assert "roc_auc on test" in found.description


def test_an_interrupted_run_is_killed_and_one_whose_process_is_gone_by_the_next(store):
    client = mlflow.MlflowClient(tracking_uri=store.uri())
    for interrupt in (KeyboardInterrupt, dg.DagsterExecutionInterruptedError):
        with (
            pytest.raises(interrupt),
            store.run(dagster_run(f"stopped {interrupt.__name__}"), SCOPE) as inside,
        ):
            run_id = inside.active_run().info.run_id
            raise interrupt
        assert client.get_run(run_id).info.status == "KILLED"
    with store.run(dagster_run("gone"), SCOPE) as inside:
        gone = inside.active_run().info
    client.update_run(gone.run_id, "RUNNING")
    with store.run(dagster_run("next"), SCOPE) as inside:
        own = inside.active_run().info.run_id
        assert client.get_run(gone.run_id).info.status == "KILLED"
        assert client.get_run(own).info.status == "RUNNING"


def test_a_store_that_dies_on_the_way_is_named_and_the_next_run_is_whole(tmp_path):
    file = tmp_path / "mlflow.db"
    dying = MlflowResource(tracking_uri=f"sqlite:///{file}", artifact_root=str(tmp_path / "artifacts"))
    with (
        pytest.raises(UnavailableError, match="stopped answering") as refused,
        dying.run(dagster_run("half"), SCOPE) as inside,
    ):
        half = inside.active_run().info.run_id
        engine = sa.create_engine(f"sqlite:///{file}")
        with engine.begin() as connection:
            connection.execute(sa.text("ALTER TABLE params RENAME TO params_away"))
        log()
    assert str(file) not in str(refused.value)
    assert mlflow.active_run() is None
    with engine.begin() as connection:
        connection.execute(sa.text("ALTER TABLE params_away RENAME TO params"))
    client = mlflow.MlflowClient(tracking_uri=dying.uri())
    assert client.search_registered_models() == []
    with dying.run(dagster_run("whole"), SCOPE):
        *_, where = log()
    assert client.get_run(where.run_id).data.params["algorithm"] == "LightGBM"
    assert client.get_run(half).info.status == "KILLED"


def test_a_store_that_is_not_there_is_refused_before_anything_runs(tmp_path):
    absent = MlflowResource(tracking_uri="postgresql://nobody:secret@127.0.0.1:9/mlflow")
    with (
        pytest.raises(UnavailableError, match="tracking store cannot be used") as refused,
        absent.run(dagster_run("absent"), SCOPE),
    ):
        pytest.fail("a run was opened")
    assert "secret" not in str(refused.value)
