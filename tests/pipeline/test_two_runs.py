"""Two runs of one scope: the second waits for the first, knows who it is, and goes on when it ends or dies."""

import subprocess
import sys
import threading

import pytest
import sqlalchemy as sa

from e2i_dagster.database import locks
from e2i_dagster.errors import UnavailableError
from e2i_dagster.policy_files.environment import CHECKOUT

SCOPE = "fabhalta_pnh_initiation"
#: A stage of the scope in a process of its own: it says when it is in the stage, and ends when it is told to.
RUN = """
import sys
import dagster as dg
from assets.partitions import SCOPES
from assets.execution import Produced
from assets.stage import stage_asset
from e2i_dagster.definitions import build_resources
from e2i_dagster.database import locks

locks.observers.append(lambda reason: print(reason, flush=True))

def summary():
    from e2i_dagster.config.policy import PolicySummary
    return PolicySummary(cohorts={"a": sys.argv[2]}, scopes={}, sources="2", problems={})

@stage_asset(name="first", group_name="test", gated=False, always=True, partitions_def=SCOPES,
             produces="e2i_dagster.config.policy:PolicySummary")
def first() -> Produced:
    print("in the stage", flush=True)
    sys.stdin.readline()
    return Produced(summary())

@stage_asset(name="second", group_name="test", gated=False, always=True, partitions_def=SCOPES,
             produces="e2i_dagster.config.policy:PolicySummary")
def second(first) -> Produced:
    assert first.cohorts == {"a": sys.argv[2]}, "a value of the other run"
    return Produced(first)

with dg.DagsterInstance.ephemeral() as instance:
    done = dg.materialize([first, second], instance=instance, resources=build_resources(), partition_key=sys.argv[1],
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}})
print("ended", flush=True)
"""


def line(process):
    """The next line that the process says."""
    assert process.stdout is not None
    return process.stdout.readline()


def started(name):
    return subprocess.Popen(
        [sys.executable, "-c", RUN, SCOPE, name],
        cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture
def lake(database, tmp_path, monkeypatch):
    monkeypatch.setenv("E2I_LAKE", str(tmp_path / "lake"))
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))


def test_the_second_run_waits_for_the_first_and_says_whom_it_waits_for(lake):
    with started("one") as one:
        assert line(one) == "in the stage\n"
        with started("two") as two:
            told = line(two)
            assert told.startswith(f"waiting for scope {SCOPE}, held by run ") and ", since 20" in told
            one.communicate("\n")
            assert line(two) == "in the stage\n"
            assert two.communicate("\n")[0] == "ended\n"
    assert (one.returncode, two.returncode) == (0, 0)


def test_a_run_that_is_killed_lets_go(lake):
    with started("one") as one:
        assert line(one) == "in the stage\n"
        with started("two") as two:
            assert line(two).startswith("waiting")
            one.kill()
            assert line(two) == "in the stage\n"
            assert two.communicate("\n")[0] == "ended\n"
    assert two.returncode == 0


def test_who_waits_too_long_is_told_the_run_and_since_when(database: sa.Engine):
    locks.hold(database, "mine", "run-1", print)
    try:
        locks.hold(database, "mine", "run-1", print)  # a run has what it has
        locks.hold(database, "other", "run-2", print)  # another scope is free
        with pytest.raises(UnavailableError, match=r"Scope mine is held by run run-1, since 20\d\d-") as said:
            locks.hold(database, "mine", "run-2", print, seconds=0)
        assert said.value.field == "scope" and said.value.value == "mine"
        releasing = threading.Timer(0.3, locks.release, ["run-1"])
        releasing.start()
        locks.hold(database, "mine", "run-2", print, seconds=20)
    finally:
        locks.release("run-1")
        locks.release("run-2")
