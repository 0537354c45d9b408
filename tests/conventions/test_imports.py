"""Imports point one way, the core is free of Dagster, and loading the definitions costs little."""

import ast
import json
import os
import subprocess
import sys
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from e2i_dagster.policy_files.environment import CHECKOUT

CORE = CHECKOUT / "e2i_dagster"
#: All code from the ground up: a room imports those before it, never one after it, so that there is no circle.
ROOMS = (
    "e2i_dagster.errors",
    "e2i_dagster.local_files",
    "e2i_dagster.binning",
    "e2i_dagster.display",
    "e2i_dagster.policy_files",
    "e2i_dagster.modelling",
    "e2i_dagster.tables",
    "e2i_dagster.database",
    "e2i_dagster.versions",
    "e2i_dagster.pipeline",
    "e2i_dagster.config",
    "e2i_dagster.reports",
    "e2i_dagster.sources",
    "e2i_dagster.synthetic",
    "e2i_dagster.loading",
    "e2i_dagster.quality",
    "e2i_dagster.cohorts",
    "e2i_dagster.features",
    "e2i_dagster.splits",
    "e2i_dagster.selection",
    "e2i_dagster.training",
    "e2i_dagster.explain",
    "e2i_dagster.registry",
    "e2i_dagster.validation",
    "e2i_dagster.serving",
    "e2i_dagster.monitoring",
    "e2i_dagster.causal",
    "e2i_dagster.experiments.statistics",
    "e2i_dagster.experiments.designs",
    "e2i_dagster.experiments.conduct",
    "e2i_dagster.experiments",
    "e2i_dagster.operations",
    "resources",
    "assets",
    "jobs",
    "sensors",
    "e2i_dagster.definitions",
    "commands",
)
#: What surrounds the functional core: it alone knows Dagster.
SHELL = {"resources", "assets", "jobs", "sensors", "e2i_dagster.definitions", "commands"}
#: Modules that only a service's own process imports, whose purpose is that library.
SERVICE_PROCESS = {"e2i_dagster/serving/service.py": {"fastapi"}}
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
            found.update((f"{node.module}.{alias.name}", node in top) for alias in node.names)
        elif isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        elif isinstance(node, (ast.stmt, ast.excepthandler, ast.match_case)):
            # An expression holds no import.
            left.extend(ast.iter_child_nodes(node))
    return frozenset(found)


def room_of(name: str) -> str | None:
    """The room that the dotted ``name`` lies in; None outside our code."""
    found = [room for room in ROOMS if name == room or name.startswith(f"{room}.")]
    return max(found, key=len, default=None)


def modules_of_room(room: str) -> list[Path]:
    folder = CHECKOUT / room.replace(".", "/")
    found = modules(folder) if folder.is_dir() else [folder.with_suffix(".py")]
    return [path for path in found if room_of(dotted(path)) == room]


def dotted(path: Path) -> str:
    return path.relative_to(CHECKOUT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


def test_every_module_is_in_a_room():
    here = {path for room in ROOMS for path in modules_of_room(room)}
    packages = {room.split(".")[0] for room in ROOMS}
    there = {path for package in packages for path in modules(CHECKOUT / package)}
    assert there - here == {CORE / "__init__.py"}


@pytest.mark.parametrize("room", [room for room in ROOMS if room not in SHELL])
def test_the_core_does_not_know_dagster(room):
    wrong = {
        (dotted(path), name)
        for path in modules_of_room(room)
        for name in imports_of(path)
        if name.split(".")[0] in {"dagster", "dagster_mlflow"}
    }
    assert not wrong, (
        f"{sorted(wrong)} belongs into assets/, resources/, jobs/ or sensors/, not into the core"
    )


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_no_later_room(room):
    later = set(ROOMS[ROOMS.index(room) + 1 :])
    wrong = {
        (dotted(path), name)
        for path in modules_of_room(room)
        for name in imports_of(path)
        if room_of(name) in later
    }
    assert not wrong, (
        f"{sorted(wrong)}: comes later; pass the value in, or move what both need to where it is first needed"
    )


@pytest.mark.parametrize(
    "path",
    [path for room in ROOMS if room != "commands" for path in modules_of_room(room)],
    ids=lambda path: str(path.relative_to(CHECKOUT)),
)  # fmt: skip
def test_heavy_libraries_are_imported_inside_functions(path):
    allowed = SERVICE_PROCESS.get(path.relative_to(CHECKOUT).as_posix(), set())
    wrong = {name.split(".")[0] for name in imports_of(path, top_level_only=True)} & (HEAVY - allowed)
    assert not wrong, (
        f"{path}: import {sorted(wrong)} inside the function that needs it; start-up pays for it"
    )


def test_no_module_imports_itself_by_way_of_others():
    """Also not inside functions; what only the type checker sees counts nowhere."""
    known = {dotted(path): path for room in ROOMS for path in modules_of_room(room)}

    def target(name: str) -> str | None:
        while name and name not in known:
            name = name.rpartition(".")[0]
        return name or None

    graph = {name: {target(one) for one in imports_of(path)} - {None, name} for name, path in known.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"a circle: {' -> '.join(error.args[1])}")


def test_no_room_of_experiments_hides_a_public_name():
    """The names of the package are loaded when they are used; a subpackage of the same name would be found instead."""
    from e2i_dagster import experiments

    rooms = {path.name for path in (CORE / "experiments").iterdir()}
    assert not rooms & set(experiments.__all__)


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
