"""Dagster runs in this process: a small delivery of files, the test's own warehouse, lake and instance."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import dagster as dg
import pandas as pd
import pytest
import sqlalchemy as sa
from pipeline_runs import Pipeline


@pytest.fixture(scope="session")
def drawn() -> Mapping[str, pd.DataFrame]:
    """Three hundred synthetic patients and their events; not to be changed."""
    from e2i_dagster.sources.synthetic import generate

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
        folder = tmp_path / "delivery"
        folder.mkdir(exist_ok=True)
        for name in (*tables, *changed):
            changed.get(name, drawn[name]).to_csv(folder / f"{name}.csv", index=False)
        return folder

    return write


@pytest.fixture
def pipeline(database: sa.Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    """The code location on an empty warehouse, with a lake and an instance of the test's own."""
    monkeypatch.setenv("E2I_LAKE", str(tmp_path / "lake"))
    with dg.DagsterInstance.ephemeral() as instance:
        yield Pipeline(instance, database, tmp_path / "lake")
