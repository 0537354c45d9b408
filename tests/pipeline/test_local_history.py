"""Dagster's local history: what is written through kept engines is what Dagster's own storage reads."""

import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from threading import Event
from typing import Any

import dagster as dg
import pytest
import yaml

from resources.private_dagster import TOGETHER, LocalEventLog, LocalHistory, forget_old_runs

#: More than engines are kept.
RUNS = 10


@dg.asset
def counted():
    for part in "abc":
        yield dg.AssetMaterialization("counted_parts", partition=part)
    yield dg.Output(1)


@dg.asset_check(asset=counted)
def not_negative():
    return dg.AssetCheckResult(passed=True)


def instance(home: Path, storage: dict) -> dg.DagsterInstance:
    home.mkdir(exist_ok=True)
    settings = {"storage": storage, "telemetry": {"enabled": False}}
    (home / "dagster.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return dg.DagsterInstance.from_config(str(home))


@pytest.fixture
def ours(tmp_path):
    place = {
        "module": LocalHistory.__module__,
        "class": "LocalHistory",
        "config": {"base_dir": str(tmp_path / "h")},
    }
    with instance(tmp_path / "ours", {"custom": place}) as made:
        yield made


def run_ids(where: dg.DagsterInstance, runs: int = RUNS) -> list[str]:
    job = dg.Definitions(
        assets=[counted], asset_checks=[not_negative]
    ).resolve_implicit_global_asset_job_def()
    return [job.execute_in_process(instance=where).run_id for _ in range(runs)]


def tables(where: dg.DagsterInstance, run: str) -> list[Any]:
    """What is in the database of a run beside its events: definitions, migration, mode of its journal."""
    with closing(sqlite3.connect(where.event_log_storage.path_for_shard(run))) as database:
        return [
            database.execute(statement).fetchall()
            for statement in (
                "SELECT type, name, sql FROM sqlite_master ORDER BY type, name",
                "SELECT version_num FROM alembic_version",
                "PRAGMA journal_mode",
            )
        ]


def test_dagsters_own_storage_reads_the_same_history(ours, tmp_path):
    assert isinstance(ours.event_log_storage, LocalEventLog)
    runs = run_ids(ours)
    with instance(tmp_path / "theirs", {"sqlite": {"base_dir": str(tmp_path / "h")}}) as theirs:
        for run in runs:
            found = theirs.get_run_by_id(run)
            assert found is not None and found.is_success
            assert [entry.message for entry in theirs.all_logs(run)] == [
                entry.message for entry in ours.all_logs(run)
            ]
        parts = theirs.fetch_materializations(dg.AssetKey("counted_parts"), limit=1_000).records
        assert len(parts) == 3 * RUNS
        checks = theirs.event_log_storage.get_latest_asset_check_execution_by_key([not_negative.check_key])
        assert checks[not_negative.check_key].run_id == runs[-1]
        # And the other way round: a history begun by Dagster's own storage goes on.
        (later,) = run_ids(theirs, 1)
        assert len(ours.all_logs(later)) == len(ours.all_logs(runs[0]))
        assert tables(theirs, later) == tables(theirs, runs[0]) == tables(theirs, runs[-1])


def test_who_watches_a_run_is_told_of_its_events(ours, tmp_path):
    (run,) = run_ids(ours, 1)
    told = Event()
    place = {
        "module": LocalHistory.__module__,
        "class": "LocalHistory",
        "config": {"base_dir": str(tmp_path / "h")},
    }
    with instance(tmp_path / "watching", {"custom": place}) as watching:
        last = watching.event_log_storage.get_records_for_run(run).cursor
        watching.watch_event_logs(run, last, lambda *_: told.set())
        for number in range(3):
            ours.report_engine_event(f"still here {number}", run_id=run, job_name="any")
        assert told.wait(20)


def test_threads_write_at_the_same_time_and_nothing_is_lost(ours):
    def report(number: int) -> None:
        ours.report_runless_asset_event(dg.AssetMaterialization("told", partition=str(number)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(report, range(60)))
    told = ours.fetch_materializations(dg.AssetKey("told"), limit=1_000).records
    assert {record.partition_key for record in told} == {str(number) for number in range(60)}


def test_a_deleted_run_and_a_wiped_history_are_gone(ours):
    first, last = run_ids(ours, 2)
    ours.delete_run(first)
    assert ours.get_run_by_id(first) is None and not ours.all_logs(first)
    assert ours.all_logs(last)
    ours.wipe()
    assert not ours.get_runs()
    assert run_ids(ours, 1)


@dg.asset(
    partitions_def=dg.StaticPartitionsDefinition(list("abcdef")),
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def in_parts(context):
    return dg.MaterializeResult(
        metadata={"parts": len(context.partition_keys)}, data_version=dg.DataVersion("1")
    )


def test_what_is_written_together_reads_as_what_dagster_writes_one_by_one(ours, tmp_path, monkeypatch):
    def made(where: dg.DagsterInstance) -> tuple[Any, ...]:
        tags = {"dagster/asset_partition_range_start": "b", "dagster/asset_partition_range_end": "f"}
        run = dg.materialize([in_parts], instance=where, tags=tags).run_id
        key = in_parts.key
        found = where.fetch_materializations(key, limit=100).records
        latest = where.get_latest_materialization_event(key)
        assert latest is not None and latest.run_id == run
        assert where.get_asset_records([key])[0].asset_entry.last_run_id == run
        by_version = where.event_log_storage.get_event_tags_for_asset(key)
        events = [entry.get_dagster_event() for entry in where.all_logs(run) if entry.is_dagster_event]
        return (
            sorted((one.event_type_value, str(one.partition)) for one in events if one.asset_key),
            sorted(
                (str(one.partition), one.metadata)
                for record in found
                if (one := record.asset_materialization)
            ),
            [latest.get_dagster_event().partition] if where is ours else ["f"],
            where.get_materialized_partitions(key),
            by_version,
        )

    batches = []
    whole = LocalEventLog.store_event_batch

    def counted_batch(self, events):
        batches.append(len(events))
        whole(self, events)

    monkeypatch.setattr(LocalEventLog, "store_event_batch", counted_batch)
    for name in TOGETHER:
        monkeypatch.delenv(name, raising=False)
    with instance(tmp_path / "theirs", {"sqlite": {"base_dir": str(tmp_path / "t")}}) as theirs:
        expected = made(theirs)
    for name, value in TOGETHER.items():
        monkeypatch.setenv(name, value)
    in_log, *read = made(ours)
    assert read == list(expected[1:])
    assert expected[3] == set("bcdef")
    assert batches == [5], "made; planned is one event for all"
    # The log of the run has one line for the asset, however many partitions it has.
    of_asset = [one for one in in_log if one[0].startswith("ASSET_")]
    assert of_asset == [("ASSET_MATERIALIZATION", "f"), ("ASSET_MATERIALIZATION_PLANNED", "None")]
    assert [one for one in expected[0] if one not in of_asset and one[0].startswith("ASSET_")] == [
        *(("ASSET_MATERIALIZATION", part) for part in "bcde"),
        *(("ASSET_MATERIALIZATION_PLANNED", part) for part in "bcdef"),
    ]


@pytest.mark.parametrize("kept", [{"keep_runs": 3}, {"keep_megabytes": 0}])
def test_old_runs_are_forgotten_and_what_is_known_of_assets_stays(tmp_path, kept):
    place = {
        "module": LocalHistory.__module__,
        "class": "LocalHistory",
        "config": {"base_dir": str(tmp_path / "h"), **kept},
    }
    with instance(tmp_path / "ours", {"custom": place}) as ours:
        once = dg.materialize([in_parts], instance=ours, partition_key="a")
        assert once.success
        runs = run_ids(ours, 8)
        left = kept.get("keep_runs", 1)
        assert forget_old_runs(ours) == 8 - left
        assert {run.run_id for run in ours.get_runs()} == {once.run_id, *runs[-left:]}
        folder = Path(ours.event_log_storage.path_for_shard(runs[0])).parent
        assert {file.stem for file in folder.glob("*.db")} == {"index", once.run_id, *runs[-left:]}
        assert not ours.all_logs(runs[0]) and ours.all_logs(runs[-1])
        # The newest word on each asset and check stays; older ones went with their runs.
        parts = ours.fetch_materializations(dg.AssetKey("counted_parts"), limit=1_000).records
        assert len(parts) == 3 * left and {one.partition_key for one in parts} == set("abc")
        checks = ours.event_log_storage.get_latest_asset_check_execution_by_key([not_negative.check_key])
        assert checks[not_negative.check_key].run_id == runs[-1]
        assert forget_old_runs(ours) == 0
        # Of a run that alone made a partition the log goes, and the partition is known all the same.
        again = dg.materialize([in_parts], instance=ours, partition_key="b")
        ours.delete_run(once.run_id)
        assert ours.get_run_by_id(once.run_id) is None
        assert ours.get_materialized_partitions(in_parts.key) == {"a", "b"}
        assert ours.get_latest_materialization_event(in_parts.key).run_id == again.run_id


def test_a_history_elsewhere_keeps_its_runs():
    with dg.DagsterInstance.ephemeral() as elsewhere:
        runs = run_ids(elsewhere, 3)
        assert forget_old_runs(elsewhere) == 0 and len(elsewhere.get_runs()) == len(runs)
