"""A broken definition file drops out, is shown, and takes nothing else down."""

import datetime as dt
import json
import os
import re
import runpy
import shutil
import subprocess
import sys

import dagster as dg
import pytest
from dagster._core.definitions.partitions.context import partition_loading_context

from e2i_dagster.config.sources import SourcesPolicy
from e2i_dagster.errors import ConfigError
from e2i_dagster.policy_files.environment import CHECKOUT
from jobs.sequence import plan

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
    # Both scopes of the broken cohort drop out, of the other one the broken file alone.
    shipped = {path.stem for path in (CHECKOUT / "config" / "scopes").glob("*.yaml")}
    dropped = {"fabhalta_pnh_initiation", "fabhalta_c3g_initiation", "fabhalta_c3g_first_fill"}
    assert set(shown["scopes"]) == shipped - dropped
    # A cohort stays when its scope is broken.
    assert shown["cohorts"] == [
        "fabhalta_on_therapy",
        "fabhalta_pnh",
        "kisqali_hr_her2_bc",
        "remibrutinib_csu",
    ]
    assert not shown["passed"] and shown["success"]
    assert "fabhalta_pnh_initiation.yaml" in shown["description"] and "chort" in shown["description"]
    assert "not_yaml.yaml" in shown["description"] and "fabhalta_c3g.yaml" in shown["description"]
    # The files without a fault are not named.
    assert "kisqali_hr_her2_bc.yaml" not in shown["description"]
    assert "kisqali_hr_her2_bc_initiation" not in shown["description"]
    assert shown["problems"] == 5, shown["description"]
    assert shown["heavy"] == []


@pytest.mark.parametrize(
    ("today", "first", "end", "number"),
    [
        ("2026-11-01", "2026-01", "2026-11-30", 11),
        ("2026-11-28", "2026-01", "2026-11-30", 11),
        ("2027-01-31", "2026-01", "2027-01-31", 13),
        ("2028-02-29", "2027-03", "2028-02-29", 12),
        ("2026-11-28", "2026-01", "2030-12-31", 60),
        ("2030-01-01", "2026-01", "2026-12-31", 12),
    ],
)
def test_months_are_those_of_the_configured_range_on_any_day(
    tmp_path, monkeypatch, today, first, end, number
):
    config = shutil.copytree(CHECKOUT / "config", tmp_path / "config")
    sources = config / "sources.yaml"
    text = sources.read_text(encoding="utf-8").replace('"2022-01"', f'"{first}"').replace("2024-12-31", end)
    sources.write_text(text, encoding="utf-8")
    monkeypatch.setenv("E2I_CONFIG", str(config))
    now = dt.datetime.fromisoformat(f"{today}T12:00:00+00:00")
    # Dagster asks its context for the time. Partitions are made when their module is run, as by a new process.
    with partition_loading_context(effective_dt=now):
        made = runpy.run_path(str(CHECKOUT / "assets" / "partitions.py"))
        load = next(plan(["remibrutinib_csu_initiation"], now.date()))
        assert load.first is not None and load.last is not None
        months = list(made["MONTHS"].get_partition_keys())
        planned = list(
            made["MONTHS"].get_partition_keys_in_range(dg.PartitionKeyRange(load.first, load.last))
        )
        days = made["DAYS"].get_partition_keys()
    assert len(months) == number
    assert (months[0], months[-1]) == (first, end[:7])
    # The run of the plan reaches every one of them, and its last job finds the day of today.
    assert planned == months and now.date().isoformat() in days


def test_an_end_within_a_month_says_which_ends_there_are(tmp_path):
    text = (CHECKOUT / "config" / "sources.yaml").read_text(encoding="utf-8")
    (tmp_path / "sources.yaml").write_text(
        re.sub("data_end: .*", "data_end: 2026-11-20", text), encoding="utf-8"
    )
    with pytest.raises(ConfigError) as refused:
        SourcesPolicy.load(tmp_path)
    assert "(found 2026-11-20)" in str(refused.value) and "Value error" not in str(refused.value)
    assert refused.value.remedy == "Write 2026-10-31 or 2026-11-30."


def test_a_range_without_months_is_refused():
    with pytest.raises(ValueError, match="first_month 2025-01 lies after data_end 2024-12-31"):
        SourcesPolicy.model_validate(
            {
                "first_month": "2025-01",
                "data_end": "2024-12-31",
                "source": {"kind": "synthetic", "dgp": "confounded"},
            }
        )
