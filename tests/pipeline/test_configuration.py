"""A broken definition file drops out, is shown, and takes nothing else down."""

import json
import os
import shutil
import subprocess
import sys

from e2i_dagster.config.environment import CHECKOUT

#: Nothing may be connected to while the definitions are imported, and no variable but that of the folder is set.
SHOW = """
import json, os, socket, sys
given = dict(os.environ)
for name in [name for name in os.environ if name.startswith(("E2I_", "MLFLOW", "DAGSTER"))]:
    if name != "E2I_CONFIG":
        del os.environ[name]
connect = socket.socket.connect
def refuse(*arguments, **named):
    raise AssertionError("a connection was opened")
socket.socket.connect = refuse
from e2i_dagster.definitions import build_resources, defs
heavy = ["mlflow", "shap", "great_expectations", "xgboost", "sklearn", "feast", "bentoml", "optuna", "duckdb"]
imported = [name for name in heavy if name in sys.modules]
socket.socket.connect = connect
os.environ.update(given)

import dagster as dg
from assets.configuration import config_valid, policy

graph = defs.resolve_asset_graph()
keys = lambda name: list(graph.get(dg.AssetKey(name)).partitions_def.get_partition_keys())
with dg.DagsterInstance.ephemeral() as instance:
    result = dg.materialize([policy, config_valid], instance=instance, resources=build_resources(),
        run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}})
(check,) = result.get_asset_check_evaluations()
told = result.asset_materializations_for_node("policy")[0].metadata
print(json.dumps({"scopes": keys("evaluation"), "cohorts": keys("cohort"), "passed": check.passed,
    "description": check.description, "problems": told["files_with_problems"].value, "success": result.success,
    "heavy": imported}))
"""


def shown_with(config):
    """What a process that imports the definitions says of them."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW],
        env={**os.environ, "E2I_CONFIG": str(config), "PYTHONPATH": str(CHECKOUT)},
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_broken_files_drop_out_and_are_named_by_the_check(database, tmp_path):
    """Two scopes that are broken themselves, and one whose cohort is; the code location loads without them."""
    config = shutil.copytree(CHECKOUT / "config", tmp_path / "config")
    broken = config / "scopes" / "fabhalta_pnh_initiation.yaml"
    text = broken.read_text(encoding="utf-8")
    broken.write_text(text.replace("cohort:", "chort:", 1), encoding="utf-8")
    (config / "scopes" / "not_yaml.yaml").write_text("brand: [unclosed\n", encoding="utf-8")
    (config / "cohorts" / "fabhalta_c3g.yaml").write_text("brand: Fabhalta\n", encoding="utf-8")
    shown = shown_with(config)
    assert shown["scopes"] == ["kisqali_hr_her2_bc_initiation", "remibrutinib_csu_initiation"]
    # A cohort stays when its scope is broken.
    assert shown["cohorts"] == ["fabhalta_pnh", "kisqali_hr_her2_bc", "remibrutinib_csu"]
    assert not shown["passed"] and shown["success"]
    assert "fabhalta_pnh_initiation.yaml" in shown["description"] and "chort" in shown["description"]
    assert "not_yaml.yaml" in shown["description"] and "fabhalta_c3g.yaml" in shown["description"]
    # The files without a fault are not named.
    assert "kisqali_hr_her2_bc.yaml" not in shown["description"]
    assert "kisqali_hr_her2_bc_initiation" not in shown["description"]
    assert shown["problems"] == 4, shown["description"]
    assert shown["heavy"] == []
