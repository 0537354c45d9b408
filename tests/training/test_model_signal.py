"""The scope's model finds the signal that is there: share of the Bayes AUC on fresh patients."""

import datetime as dt
import importlib.util
import sys

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from e2i_dagster.config.drift_monitoring import SEVERITIES, DriftPolicy
from e2i_dagster.config.feature_selection import FeatureSelectionPolicy
from e2i_dagster.errors import VerdictError
from e2i_dagster.features.selection import select_features
from e2i_dagster.monitoring.drift import detect_drift
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


def test_later_patients_raise_no_drift_alert_and_a_planted_shift_does(scope, training):
    """What the model is given does not move with the calendar: of the same process, later patients look the same."""
    later = (training["index_date"] > training["index_date"].quantile(0.8)).to_numpy()
    selection = select_features(
        training, train=~later, policy=FeatureSelectionPolicy.load(CHECKOUT / "config")
    )
    policy = DriftPolicy.load(CHECKOUT / "config")
    alerts = SEVERITIES[SEVERITIES.index(policy.alerts.from_severity) :]
    about = {"policy": policy, "scope": scope.key, "day": dt.date(2025, 1, 1), "model_id": "m"}
    learned, live = (training.loc[rows, list(selection.kept)] for rows in (~later, later))
    assert detect_drift(learned, live, **about).worst not in alerts
    shifted = live.assign(disease_severity=live["disease_severity"] + 2)
    found = {one.name: one.severity for one in detect_drift(learned, shifted, **about).features}
    assert found["disease_severity"] in alerts
    # The market moves with the calendar, and is told rather than learned.
    assert {one.feature for one in selection.dropped if one.rule == "time_shift"} >= {"brand_share_90d"}
