"""The journal: nothing is lost, nothing is doubled, a bad row does not stop the good ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import pandas as pd
import sqlalchemy as sa
from pydantic_core import to_json

from e2i_dagster.config.serving import AuditPolicy
from e2i_dagster.serving.audit import Journal, WarehouseStore, log_row, now
from e2i_dagster.tables import raw_table

POLICY = AuditPolicy(batch_rows=7, flush_seconds=0.02, max_journal_bytes=100_000, close_seconds=3)


def a_row(number: int, **changes: Any) -> dict[str, Any]:
    row = log_row(
        prediction_id=f"live-{uuid.uuid4().hex}",
        request_id=f"request-{number}",
        model_id="e2i-tiny/1",
        model_version="1",
        features={"severity": number, "region": None},
        value=0.25,
        prediction=0,
        probabilities={"0": 0.75, "1": 0.25},
        patient_id=None,
        at=now(),
    )
    return row | changes


def in_warehouse(engine: sa.Engine) -> list[str]:
    with engine.connect() as connection:
        table = raw_table("ml_predictions")
        return sorted(connection.scalars(sa.select(table.c.request_id)))


def nowhere() -> sa.Engine:
    return sa.create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")


def test_rows_arrive_in_batches_and_the_journal_goes(database: sa.Engine, tmp_path: Path) -> None:
    journal = Journal(tmp_path, WarehouseStore(), POLICY)
    for start in range(0, 100, 10):
        assert journal.append([a_row(number) for number in range(start, start + 10)])
    assert journal.close()
    assert in_warehouse(database) == sorted(f"request-{number}" for number in range(100))
    assert journal.state().stored == 100
    assert not list(tmp_path.iterdir())


def test_rows_wait_for_the_warehouse_and_are_replayed_once(database: sa.Engine, tmp_path: Path) -> None:
    quick = POLICY.model_copy(update={"close_seconds": 0.3})
    journal = Journal(tmp_path, WarehouseStore(nowhere), quick)
    rows = [a_row(number) for number in range(20)]
    began = time.monotonic()
    assert journal.append(rows)
    assert time.monotonic() - began < 0.1
    assert not journal.close()
    assert "OperationalError" in (journal.state().problem or "")
    # Half of them were stored already before the process ended: they are not doubled.
    WarehouseStore()([to_json(row) for row in rows[:10]])
    other = Journal(tmp_path, WarehouseStore(), POLICY)
    deadline = time.monotonic() + 10
    while len(list(tmp_path.iterdir())) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert other.close()
    assert in_warehouse(database) == sorted(f"request-{number}" for number in range(20))
    assert not list(tmp_path.iterdir())


def test_a_killed_process_loses_nothing(database: sa.Engine, tmp_path: Path) -> None:
    script = f"""
import sys, time
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_prediction_log import *
journal = Journal(Path({str(tmp_path)!r}), WarehouseStore(nowhere), POLICY)
for number in range(30):
    journal.append([a_row(number)])
print("ready", flush=True)
time.sleep(60)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    # As long as the process lives, its journal is its own.
    journal = Journal(tmp_path, WarehouseStore(), POLICY)
    time.sleep(0.3)
    assert journal.close()
    assert in_warehouse(database) == []
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    journal = Journal(tmp_path, WarehouseStore(), POLICY)
    deadline = time.monotonic() + 10
    while len(in_warehouse(database)) < 30 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert journal.close()
    assert len(in_warehouse(database)) == 30


def test_a_row_the_warehouse_refuses_is_kept_apart(database: sa.Engine, tmp_path: Path) -> None:
    journal = Journal(tmp_path, WarehouseStore(), POLICY)
    rows = [a_row(number) for number in range(15)]
    rows[4]["origin"] = None
    journal.append(rows)
    assert journal.close()
    assert journal.state().refused == 1
    assert len(in_warehouse(database)) == 14
    kept = pd.read_json(tmp_path / "refused.jsonl", lines=True)
    assert kept["request_id"].tolist() == ["request-4"]
    assert (tmp_path / "refused.jsonl").stat().st_mode & 0o077 == 0


def test_a_full_journal_drops_and_counts(tmp_path: Path) -> None:
    tight = POLICY.model_copy(update={"max_journal_bytes": 2_000, "close_seconds": 0.2})
    journal = Journal(tmp_path, WarehouseStore(nowhere), tight)
    kept = [journal.append([a_row(number)]) for number in range(20)]
    assert 0 < sum(kept) < 20
    assert journal.state().dropped == 20 - sum(kept)
    journal.close()
