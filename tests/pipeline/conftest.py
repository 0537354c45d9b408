"""Dagster runs in this process: a small delivery of files, the test's own warehouse, lake and instance."""

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
import sqlalchemy as sa
from clones import clone
from pipeline_runs import Pipeline, said


@pytest.fixture(scope="session")
def drawn() -> Mapping[str, pd.DataFrame]:
    """Three hundred synthetic patients and their events; not to be changed."""
    from e2i_dagster.synthetic.generate import generate

    return generate(
        "confounded",
        n_hcps=40,
        n_patients=300,
        n_treatments=1_500,
        n_metrics=50,
        n_causal_paths=6,
        n_activities=50,
        seed=7,
    )


@pytest.fixture
def delivery(tmp_path: Path, drawn: Mapping[str, pd.DataFrame]) -> Callable[..., Path]:
    """Writes a folder of CSV files; tables given by name replace the drawn ones."""

    def write(*tables: str, **changed: pd.DataFrame) -> Path:
        return _write(tmp_path / "delivery", drawn, *tables, **changed)

    return write


@pytest.fixture
def pipeline(database: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """The code location on an empty warehouse, with a lake and an instance of the test's own."""
    monkeypatch.setenv("E2I_LAKE", str(tmp_path / "lake"))
    with dg.DagsterInstance.ephemeral() as instance:
        yield Pipeline(instance, database, tmp_path / "lake")


@dataclass(frozen=True)
class Loaded:
    """What a load left behind: a database to be cloned, a lake to be copied, and how the run ended."""

    database: str
    lake: Path
    result: dg.ExecuteInProcessResult


@pytest.fixture(scope="module")
def load_once(
    template: str, drawn: Mapping[str, pd.DataFrame], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Loaded]]:
    """Loads a delivery for all tests of a module, which go on from copies of it."""
    from e2i_dagster.database import connection

    made: list[str] = []

    def load(*tables: str, **changed: pd.DataFrame) -> Loaded:
        folder = tmp_path_factory.mktemp("loaded")
        name, url = clone(template)
        made.append(name)
        with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral() as instance:
            patch.setenv("E2I_DATABASE_URL", url)
            patch.setenv("E2I_LAKE", str(folder / "lake"))
            source = _write(folder / "delivery", drawn, *tables, **changed)
            result = Pipeline(instance, connection.engine("owner"), folder / "lake").load(source, *tables)
            # A database that somebody is connected to cannot be cloned.
            connection.dispose()
        return Loaded(name, folder / "lake", result)

    yield load
    for name in made:
        connection.drop_database(name)


@pytest.fixture
def go_on(tmp_path: Path) -> Iterator[Callable[[Loaded], Pipeline]]:
    """The code location on the test's own copy of what a load left, with a new instance."""
    with ExitStack() as stack:
        yield lambda loaded: stack.enter_context(copy_of(loaded, tmp_path))


@pytest.fixture(scope="module")
def good_load(load_once: Callable[..., Loaded], request: pytest.FixtureRequest) -> Loaded:
    """A good delivery of the tables that the module calls ``LOADED`` was loaded and judged."""
    loaded = load_once(*request.module.LOADED)
    assert loaded.result.success, said(loaded.result)
    return loaded


@pytest.fixture
def after_load(go_on: Callable[[Loaded], Pipeline], good_load: Loaded) -> Pipeline:
    """The test's own pipeline after that."""
    return go_on(good_load)


@contextmanager
def copy_of(loaded: Loaded, folder: Path) -> Iterator[Pipeline]:
    """The code location on a copy of what a load left, whose lake is in ``folder``."""
    from e2i_dagster.database import connection

    name, url = clone(loaded.database)
    shutil.copytree(loaded.lake, folder / "lake")
    with pytest.MonkeyPatch.context() as patch, dg.DagsterInstance.ephemeral() as instance:
        patch.setenv("E2I_DATABASE_URL", url)
        patch.setenv("E2I_LAKE", str(folder / "lake"))
        yield Pipeline(instance, connection.engine("owner"), folder / "lake")
        connection.dispose()
    connection.drop_database(name)


@pytest.fixture(scope="module")
def go_on_together(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Loaded], Pipeline]]:
    """As :func:`go_on`, for tests of a module that change nothing."""
    with ExitStack() as stack:
        yield lambda loaded: stack.enter_context(copy_of(loaded, tmp_path_factory.mktemp("copy")))


def _write(folder: Path, drawn: Mapping[str, pd.DataFrame], *tables: str, **changed: pd.DataFrame) -> Path:
    folder.mkdir(exist_ok=True)
    for name in dict.fromkeys((*tables, *changed)):
        changed.get(name, drawn[name]).to_csv(folder / f"{name}.csv", index=False)
    return folder
