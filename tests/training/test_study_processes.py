"""Several processes at one study, one of them killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from model_rows import rows, visible

from e2i_dagster.config.optuna_config import OptunaPolicy
from e2i_dagster.errors import UnavailableError
from e2i_dagster.tables.description.models import ml_hpo_trials
from e2i_dagster.training import search_hyperparameters

WORKER = """
import sys
import sqlalchemy as sa
from test_study_processes import search
print(len(search(sa.create_engine(sys.argv[1])).trials))
"""
TRIALS = 16


def search(engine):
    shipped = OptunaPolicy.load()
    budget = shipped.optimization.model_copy(update={"n_trials": TRIALS})
    return search_hyperparameters(
        "XGBoost", visible(rows(400), rows(200, 1)), scope="shared",
        policy=shipped.model_copy(update={"optimization": budget}), engine=engine,
    )  # fmt: skip


def begin(database):
    """Another process that searches the study."""
    tests = Path(__file__).parent
    address = database.url.render_as_string(hide_password=False)
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tests), str(tests.parent), str(tests.parents[1])]),
    }
    return subprocess.Popen(
        [sys.executable, "-c", WORKER, address], env=environment, stdout=subprocess.PIPE, text=True
    )


def stored(database):
    with database.connect() as connection:
        return connection.execute(sa.select(ml_hpo_trials)).all()


def test_processes_share_a_study_and_the_trial_of_a_killed_one_is_made_again(database):
    killed, other = begin(database), begin(database)
    deadline = time.monotonic() + 60
    while not any(row.worker and f"/{killed.pid}/" in row.worker for row in stored(database)):
        assert time.monotonic() < deadline and killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    found = search(database)
    assert other.communicate(timeout=60)[0].strip() == str(TRIALS)
    states = [row.state for row in stored(database)]
    assert len(states) == TRIALS
    assert set(states) <= {"complete", "pruned"}
    points = {str(sorted(trial.parameters.items())) for trial in found.trials}
    assert len(points) == len(found.trials) == TRIALS


def test_a_database_that_dies_is_named_without_its_address(database):
    with database.begin() as connection:
        connection.execute(sa.text("ALTER TABLE ml_hpo_trials RENAME TO elsewhere"))
    with pytest.raises(UnavailableError, match="cannot be stored") as refused:
        search(database)
    assert "postgresql" not in str(refused.value)
