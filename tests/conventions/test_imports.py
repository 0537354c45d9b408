"""Imports point one way, the core is free of Dagster, and loading the definitions costs little."""

import ast
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from e2i_dagster.policy_files.environment import CHECKOUT

CORE = CHECKOUT / "e2i_dagster"
#: The one module of the core that joins the shell, and those that start it for people.
#: Parts of the core that start the shell; so do the groups of the command in ``commands/``.
ENTRANCES = {"definitions.py", "cli.py", "user_interfaces.py"}
#: Order of the stages: a stage may import the value types of an earlier one, never a later one.
STAGES = [
    "warehouse",
    "sources",
    "quality",
    "cohorts",
    "features",
    "splits",
    "selection",
    "training",
    "explain",
    "registry",
    "serving",
    "monitoring",
    "causal",
    "experiments",
]
#: Loading files needs the table rules and reading a delivery needs the loader: one unit in two packages.
ONE_UNIT = {"sources": "warehouse"}
#: Modules that only a service's own process imports, whose purpose is that library.
SERVICE_PROCESS = {"e2i_dagster/serving/service.py": {"fastapi"}}
SHELL_ORDER = ("sensors", "assets", "resources")
HEAVY = {
    "mlflow", "shap", "great_expectations", "pandera", "xgboost", "lightgbm", "econml", "feast", "bentoml",
    "sklearn", "optuna", "duckdb", "matplotlib", "scipy", "dowhy", "causalml", "pyspark", "fastapi",
}  # fmt: skip
#: What the core may import at the top, but nothing that the code location loads.
NOT_AT_LOAD = HEAVY | {"pandas", "numpy", "pyarrow", "narwhals", "psycopg", "upath"}


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py") if "migrations/versions" not in path.as_posix())


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    return {name for name, at_top in _imports(path) if at_top or not top_level_only}


@cache
def _imports(path: Path) -> frozenset[tuple[str, bool]]:
    """Names and whether they are imported at the top; what only the type checker sees counts nowhere."""
    tree = ast.parse(path.read_bytes())
    top = set(tree.body)
    found: set[tuple[str, bool]] = set()
    left: list[ast.AST] = list(tree.body)
    while left:
        node = left.pop()
        if isinstance(node, ast.Import):
            found.update((alias.name, node in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
            found.update((name, node in top) for name in names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif isinstance(node, (ast.stmt, ast.excepthandler, ast.match_case)):
            # An expression holds no import.
            left.extend(ast.iter_child_nodes(node))
    return frozenset(found)


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in modules(CORE)
        if path.relative_to(CORE).as_posix() not in ENTRANCES
        and path.relative_to(CORE).parts[0] != "commands"
    ],
    ids=lambda path: str(path.relative_to(CORE)),
)
def test_the_core_does_not_know_dagster_or_the_shell(path):
    wrong = {
        name for name in imports_of(path) if name.split(".")[0] in {"dagster", "dagster_mlflow", *SHELL_ORDER}
    }
    assert not wrong, (
        f"{path}: {sorted(wrong)} belongs into assets/, resources/ or sensors/, not into the core"
    )


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_no_later_stage(stage):
    later = set(STAGES[STAGES.index(stage) + 1 :])
    for path in modules(CORE / stage):
        wrong = {
            name
            for name in imports_of(path)
            if name.startswith("e2i_dagster.") and name.split(".")[1] in later
            and ONE_UNIT.get(name.split(".")[1]) != stage
        }  # fmt: skip
        assert not wrong, f"{path}: {sorted(wrong)} comes later in the DAG; pass the value in instead"


@pytest.mark.parametrize("package", ["assets", "resources", "sensors"])
def test_the_shell_points_one_way(package):
    before = set(SHELL_ORDER[: SHELL_ORDER.index(package)])
    for path in modules(CHECKOUT / package):
        wrong = {name for name in imports_of(path) if name.split(".")[0] in before}
        assert not wrong, f"{path}: {sorted(wrong)}; imports go sensors -> assets -> resources -> core"


@pytest.mark.parametrize(
    "path",
    [path for package in ("e2i_dagster", "assets", "resources", "sensors") for path in modules(CHECKOUT / package)],
    ids=lambda path: str(path.relative_to(CHECKOUT)),
)  # fmt: skip
def test_heavy_libraries_are_imported_inside_functions(path):
    allowed = SERVICE_PROCESS.get(path.relative_to(CHECKOUT).as_posix(), set())
    wrong = {name.split(".")[0] for name in imports_of(path, top_level_only=True)} & (HEAVY - allowed)
    assert not wrong, (
        f"{path}: import {sorted(wrong)} inside the function that needs it; start-up pays for it"
    )


def test_definitions_need_no_environment_and_write_nothing(tmp_path):
    """A bare interpreter without any E2I_ variable, in a folder of its own, loads the definitions."""
    script = (
        "import json, sys\n"
        "from e2i_dagster.definitions import defs\n"
        "defs.get_all_job_defs() if hasattr(defs, 'get_all_job_defs') else defs.resolve_all_job_defs()\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    environment = {
        key: value for key, value in os.environ.items() if not key.startswith(("E2I_", "DAGSTER_"))
    }
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path, env={**environment, "HOME": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(json.loads(result.stdout.splitlines()[-1]))
    assert not loaded & NOT_AT_LOAD, "a heavy library was imported while the definitions loaded"
    assert list(tmp_path.iterdir()) == []
