"""The scope's model finds the signal that is there: share of the Bayes AUC on fresh patients."""

import importlib.util
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from e2i_dagster.errors import VerdictError
from e2i_dagster.policy_files.environment import CHECKOUT


@pytest.fixture(scope="module")
def benchmark():
    path = CHECKOUT / "benchmarks" / "model_signal.py"
    spec = importlib.util.spec_from_file_location("model_signal", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["model_signal"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["model_signal"]


@pytest.fixture(scope="module")
def scope(benchmark):
    return benchmark.current_policy().scopes["remibrutinib_csu_initiation"]


@pytest.fixture(scope="module")
def training(benchmark, scope):
    return benchmark.training_frame(scope)


def test_the_model_reaches_95_percent_of_the_bayes_auc_on_fresh_patients(benchmark, scope, training):
    found = benchmark.measure(scope.key, 5_000, training)
    assert found.patients >= 5_000
    assert 0.86 <= found.bayes_auc <= 0.90
    assert found.share >= 0.95
    assert 0.8 <= found.calibration_slope <= 1.3


def test_without_signal_there_is_nothing_to_find(benchmark, scope, training):
    """The measure itself can fail: a model of shuffled labels is far below the Bayes AUC."""
    shuffled = training.assign(label=np.random.default_rng(0).permutation(training["label"]))
    try:
        model = benchmark.trained_on(scope, shuffled)
    except VerdictError:
        return  # feature selection finds nothing worth keeping, which is the right answer
    assert roc_auc_score(training["label"].to_numpy(dtype=int), model.scores(training)) < 0.7
