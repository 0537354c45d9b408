"""One isolated state folder per test session, one clone of the migrated warehouse per test."""

import gc
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from clones import clone

CHECKOUT = Path(__file__).resolve().parents[1]

#: No library calls home, and nothing of the developer's own settings reaches a test.
ENVIRONMENT = {
    "E2I_PORT_BASE": "0",
    "E2I_ACTOR": "test",
    "DAGSTER_DISABLE_TELEMETRY": "yes",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "1",
    "FEAST_USAGE": "False",
    "BENTOML_DO_NOT_TRACK": "True",
    "GX_ANALYTICS_ENABLED": "False",
    "MPLBACKEND": "agg",
}
NOT_INHERITED = (
    "E2I_LAKE",
    "E2I_CONFIG",
    "E2I_DATABASE_URL",
    "E2I_ALLOW_PATIENT_LEVEL",
    "MLFLOW_TRACKING_URI",
    "DAGSTER_HOME",
    "OPIK_URL",
)


def _git_status() -> str | None:
    git = shutil.which("git")
    if git is None:
        return None
    done = subprocess.run(
        [git, "status", "--porcelain"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    return done.stdout if done.returncode == 0 else None


#: The modules that take longest and would come late: begun first, no process waits for one of them at the end.
FIRST = (
    "tests/e2e",
    "tests/serving/test_service.py",
    "tests/sources/test_own_data.py",
    "tests/database/test_server.py",
    "tests/training/test_model_signal.py",
)


def _together(nodeid: str) -> str:
    """The tests that one process runs in one go: a module's, or those that share the deployed run."""
    module = nodeid.split("::", maxsplit=1)[0]
    folder = module.rpartition("/")[0]
    return folder if folder == "tests/e2e" else module


def pytest_configure() -> None:
    """Before any library is loaded: what makes several test processes on few cores get less into each other's way."""
    # A test process imports much that stays; see the command line of the product.
    gc.set_threshold(10_000)
    # Threads of the numerical libraries wait for each other by running.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # shap compiles its loops over masks anew in every process: ten seconds, for rows that take a fraction of one.
    os.environ.setdefault("NUMBA_DISABLE_JIT", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest begin first, and a busy machine may take its time for the run of the whole plan."""
    order = {name: number for number, name in enumerate(FIRST)}
    items.sort(key=lambda item: order.get(_together(item.nodeid), len(FIRST)))
    for item in items:
        if _together(item.nodeid) == "tests/e2e":
            item.add_marker(pytest.mark.timeout(900))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give a process whole modules, because their tests share what they set up."""
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _together(nodeid)

    return ByModule(config, log)


def _read_migrations_of_dagster_once(patch: pytest.MonkeyPatch) -> None:
    """Every instance looks three times whether its tables are those of Dagster's newest migration."""
    from alembic.script import ScriptDirectory

    read = ScriptDirectory.from_config
    known: dict[str, ScriptDirectory] = {}

    def from_config(config: Any) -> ScriptDirectory:
        location = str(config.get_main_option("script_location"))
        if not location.startswith("dagster:"):
            return read(config)
        if location not in known:
            known[location] = read(config)
        return known[location]

    patch.setattr(ScriptDirectory, "from_config", from_config)


@pytest.fixture(scope="session", autouse=True)
def state() -> Iterator[Path]:
    """The state folder of the session: a new one with a short path; taken away with its server at the end."""
    from e2i_dagster.database.connection import dispose
    from e2i_dagster.database.server import remove_server

    before = _git_status()
    folder = Path(tempfile.mkdtemp(prefix="e2i-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E2I_HOME", str(folder))
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        for name in NOT_INHERITED:
            patch.delenv(name, raising=False)
        _read_migrations_of_dagster_once(patch)
        # A session's data need not survive a power cut: pieces of the lake and records are many small files.
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield folder
        dispose()
        remove_server(folder)
    shutil.rmtree(folder)
    # Someone at work in the checkout changes it too: then there is nothing to compare.
    if before == "":
        assert _git_status() == "", "The tests changed the checkout."


@pytest.fixture(scope="session")
def template(state: Path) -> str:
    """Name of a migrated, empty warehouse on the session's server, to be cloned."""
    import psycopg

    from e2i_dagster.database.connection import scratch_database
    from e2i_dagster.database.schema import migrate
    from e2i_dagster.database.server import ensure_server, server_address

    # As little as its files need to survive a power cut.
    with psycopg.connect(server_address(ensure_server(), "postgres"), autocommit=True) as admin:
        admin.execute("ALTER SYSTEM SET fsync = off")
        admin.execute("SELECT pg_reload_conf()")
    name = "e2i_template"
    migrate(scratch_database(name))
    return name


@pytest.fixture
def database(template: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[sa.Engine]:
    """The owner's engine for a migrated, empty warehouse of the test's own.

    ``E2I_DATABASE_URL`` names it, so that all code under test uses it.
    """
    from e2i_dagster.database import connection

    name, url = clone(template)
    monkeypatch.setenv("E2I_DATABASE_URL", url)
    yield connection.engine("owner")
    connection.dispose()
    monkeypatch.delenv("E2I_DATABASE_URL")
    connection.drop_database(name)


@pytest.fixture
def new_state() -> Iterator[Callable[..., Path]]:
    """Makes further state folders, each with a server of its own if one is started there."""
    from e2i_dagster.database.server import remove_server

    made: list[tuple[Path, Path]] = []

    def make(*parts: str, reachable: bool = False) -> Path:
        root = Path(tempfile.mkdtemp(prefix="e2i-"))
        if reachable:
            root.chmod(0o755)
        folder = root.joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        made.append((root, folder))
        return folder

    yield make
    for root, folder in made:
        if os.access(folder, os.R_OK):
            remove_server(folder)
        shutil.rmtree(root, ignore_errors=True)
