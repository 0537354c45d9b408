"""A broken definition file drops out, is shown, and takes nothing else down."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from e2i_dagster.config.environment import CHECKOUT

SHOW = """
import json
import dagster as dg
from e2i_dagster.definitions import defs
from assets.configuration import config_valid, policy
from e2i_dagster.definitions import build_resources

graph = defs.resolve_asset_graph()
keys = lambda name: list(graph.get(dg.AssetKey(name)).partitions_def.get_partition_keys())
with dg.DagsterInstance.ephemeral() as instance:
    result = dg.materialize([policy, config_valid], instance=instance, resources=build_resources(),
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}})
(check,) = result.get_asset_check_evaluations()
told = result.asset_materializations_for_node("policy")[0].metadata
print(json.dumps({"scopes": keys("evaluation"), "cohorts": keys("cohort"), "passed": check.passed,
    "description": check.description, "problems": told["files_with_problems"].value, "success": result.success}))
"""


def shown_with(config, python=SHOW):
    done = subprocess.run(
        [sys.executable, "-c", python],
        env={**os.environ, "E2I_CONFIG": str(config), "PYTHONPATH": str(CHECKOUT)},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture
def config(tmp_path):
    return shutil.copytree(CHECKOUT / "config", tmp_path / "config")


def test_broken_scope_drops_out_and_is_named_by_the_check(database, config):
    broken = config / "scopes" / "fabhalta_pnh_initiation.yaml"
    text = broken.read_text(encoding="utf-8")
    broken.write_text(text.replace("cohort:", "chort:", 1), encoding="utf-8")
    (config / "scopes" / "not_yaml.yaml").write_text("brand: [unclosed\n", encoding="utf-8")
    shown = shown_with(config)
    assert shown["scopes"] == [
        "fabhalta_c3g_initiation",
        "kisqali_hr_her2_bc_initiation",
        "remibrutinib_csu_initiation",
    ]
    assert len(shown["cohorts"]) == 4
    assert not shown["passed"] and shown["problems"] == 2 and shown["success"]
    assert "fabhalta_pnh_initiation.yaml" in shown["description"] and "chort" in shown["description"]
    assert "not_yaml.yaml" in shown["description"]
    assert "kisqali" not in shown["description"]


def test_scope_of_a_broken_cohort_drops_out_with_it(database, config):
    cohort = config / "cohorts" / "fabhalta_c3g.yaml"
    cohort.write_text("brand: Fabhalta\n", encoding="utf-8")
    shown = shown_with(config)
    assert "fabhalta_c3g" not in shown["cohorts"] and "fabhalta_c3g_initiation" not in shown["scopes"]
    assert len(shown["cohorts"]) == len(shown["scopes"]) == 3
    assert "fabhalta_c3g.yaml" in shown["description"]


def test_importing_the_definitions_opens_no_connection_and_needs_no_variable(config):
    """No address is known, no folder is written to, and nothing listens where one could connect."""
    program = """
import json, os, socket, sys
for name in [name for name in os.environ if name.startswith(("E2I_", "MLFLOW", "DAGSTER"))]:
    if name != "E2I_CONFIG":
        del os.environ[name]
def refuse(*arguments, **named):
    raise AssertionError("a connection was opened")
socket.socket.connect = refuse
from e2i_dagster.definitions import defs
heavy = ["mlflow", "shap", "great_expectations", "xgboost", "sklearn", "feast", "bentoml", "optuna", "duckdb"]
print(json.dumps([name for name in heavy if name in sys.modules]))
"""
    assert shown_with(config, program) == []
