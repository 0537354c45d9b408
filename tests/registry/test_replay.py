"""A training run is made again from its stored versions, and what moved is named."""

import numpy as np
import pytest
from model_rows import patients, rows

from e2i_dagster import registry
from e2i_dagster.config.scope import SuccessCriteria, default_scope
from e2i_dagster.errors import InputError
from e2i_dagster.registry.replay import verify_run
from e2i_dagster.registry.storage import StoredModel
from e2i_dagster.splits.rows import SealedRows, visible_rows
from e2i_dagster.training import evaluate, search_hyperparameters, train
from e2i_dagster.versions import ledger
from e2i_dagster.versions.lake import Lake

SCOPE = default_scope()
FEATURES = ["severity", "engagement", "visits", "academic", "noise", "region", "insurance"]


KINDS = {
    "binary_classification": ("LogisticRegression", {"min_auc": 0.6}),
    "survival": ("CoxPH", {"min_c_index": 0.5}),
}


@pytest.fixture
def recorded(database, tmp_path, request):
    """A run whose stages are in lake and ledger as the pipeline leaves them; its search is short."""
    kind = getattr(request, "param", "binary_classification")
    algorithm, criteria = KINDS[kind]
    lake = Lake(str(tmp_path))
    frame = patients(300)
    if kind == "survival":
        days = 1.0 + frame.index.to_numpy() % 90
        frame["label"] = np.where(frame["label"] == 1, days, -days)
    splits = frame[["patient_id"]].assign(split=["train", "train", "validation"] * 100)
    splits["split"] = splits["split"].astype("string[pyarrow]")
    seen = visible_rows(frame, splits, FEATURES, problem_type=kind)
    search = search_hyperparameters(algorithm, seen, scope=SCOPE.key, problem_type=kind)
    horizon = {"horizon_days": 90} if kind == "survival" else {}
    model = train(seen, algorithm=algorithm, parameters=search.parameters, problem_type=kind, **horizon)
    sealed = None if horizon else SealedRows(lambda candidate: rows(200, 2))
    evaluation = evaluate(model, seen, sealed, criteria=SuccessCriteria.model_validate(criteria))
    values = {
        "training_frame": frame, "splits": splits, "algorithm": search, "hyperparameters": search,
        "trained_model": StoredModel.of(model), "evaluation": evaluation,
    }  # fmt: skip
    digests = {}
    for stage, value in values.items():
        stored = lake.write(stage, SCOPE.key, value)
        digests[stage] = stored.digest
        ledger.record(
            database,
            ledger.DataVersion(
                asset=stage, partition=SCOPE.key, digest=stored.digest, rows=stored.rows, path=stored.path,
                size=stored.file.size, checksum=stored.file.checksum, run_id="run 1", code_version="old",
            ),
        )  # fmt: skip
    scope = SCOPE.model_copy(update={"problem_type": kind})
    key = registry.write_experiment(
        database, scope, experiment_name="e2i/x", mlflow_experiment_id="1", created_by="ann"
    )
    registry.write_training_run(
        database, model, evaluation, run_name="x", mlflow_run_id="abc", experiment_id=key, search=search,
        digests=digests,
    )  # fmt: skip
    return database, lake, model


def states(found):
    return {check.stage: check.state for check in found.checks}


@pytest.mark.parametrize("recorded", KINDS, indirect=True)
def test_a_run_is_made_again_to_the_last_bit(recorded):
    database, lake, model = recorded
    found = verify_run(database, lake, "abc", code={"hyperparameters": "old", "trained_model": "old"})
    assert found.verified
    assert (states(found)["hyperparameters"], states(found)["trained_model"]) == ("same", "same")
    assert found.model_digest == model.digest
    assert not [check for check in found.checks if check.moved]


def test_code_that_moved_and_other_rows_are_named(recorded, monkeypatch, tmp_path):
    database, lake, _ = recorded
    other = patients(300, 5)
    stored = lake.write("training_frame", "changed", other)
    with database.begin() as connection:
        from e2i_dagster.tables.description.control import ml_data_versions

        connection.execute(
            ml_data_versions.update()
            .where(ml_data_versions.c.asset == "training_frame")
            .values(path=stored.path)
        )
    ledger.record(
        database,
        ledger.DataVersion(
            asset="elsewhere", partition=None, digest=stored.digest, rows=300, path=stored.path,
            size=stored.file.size, checksum=stored.file.checksum,
        ),
    )  # fmt: skip
    found = verify_run(database, lake, "abc", code={"trained_model": "new"})
    assert not found.verified
    check = next(one for one in found.checks if one.stage == "trained_model")
    assert (check.state, check.moved) == ("differs", ("its code",))


def test_a_version_that_is_gone_is_named_with_its_time(recorded):
    database, lake, _ = recorded
    version = ledger.latest(database, "training_frame", SCOPE.key)
    lake.folder(version.path).unlink()
    found = verify_run(database, lake, "abc")
    assert not found.verified
    assert states(found)["training_frame"] == "missing"
    assert states(found)["trained_model"] == "skipped"
    check = found.checks[0]
    assert f"{version.at:%Y-%m-%d}" in check.moved[0]
    assert "missing" in check.moved[0]


def test_an_unknown_run_is_refused(recorded):
    database, lake, _ = recorded
    with pytest.raises(InputError, match="There is no training run 'zzz'") as refused:
        verify_run(database, lake, "zzz")
    assert refused.value.field == "target"
