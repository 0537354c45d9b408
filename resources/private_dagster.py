"""What is used of Dagster beyond its public API, and nowhere else.

* The history of the local instance, in SQLite, as Dagster keeps it, over engines that last. Dagster's own storage makes
  a new SQLAlchemy engine for every event: each compiles its statements again, and closing its connection, the last
  one to the database, waits for the disk. Events that Dagster hands over together it writes one by one. A run over
  three years of months writes thousands of events. For the database of each run it reads all its migrations again.
  Files and tables are Dagster's own: an instance with its own storage reads the same history. ``docs/pipeline.md``
  says what was measured.
* Of an input that is loaded, the run, and the partition of a run that only checks: the public context of an IO manager
  tells neither.

``tests/conventions/test_private.py`` says what an upgrade of Dagster broke of it.
"""

import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Any, ClassVar
from uuid import uuid4

import dagster as dg
import sqlalchemy as sa
from dagster._core.events import ASSET_EVENTS
from dagster._core.events.log import EventLogEntry
from dagster._core.storage.event_log import EventLogStorage, SqliteEventLogStorage
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.event_log.sqlite.sqlite_event_log import INDEX_SHARD_NAME
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData
from sqlalchemy.event import listen

#: Databases whose engines are kept: the index and the runs of late.
_KEPT = 8

#: Events of a run that no newer event of the same kind, asset and partition leaves behind, aside.
_SUPERSEDED = sa.text(
    "DELETE FROM event_logs WHERE run_id = :run AND (dagster_event_type NOT IN "
    "('ASSET_MATERIALIZATION', 'ASSET_OBSERVATION', 'ASSET_CHECK_EVALUATION') OR id NOT IN (SELECT max(id) "
    "FROM event_logs WHERE asset_key IN (SELECT asset_key FROM event_logs WHERE run_id = :run) "
    "GROUP BY dagster_event_type, asset_key, partition))"
)
_SUPERSEDED_CHECKS = sa.text(
    "DELETE FROM asset_check_executions WHERE run_id = :run AND id NOT IN "
    "(SELECT max(id) FROM asset_check_executions GROUP BY asset_key, check_name)"
)
_TAGS_WITHOUT_EVENT = sa.text(
    "DELETE FROM asset_event_tags WHERE event_id NOT IN (SELECT id FROM event_logs)"
)

#: What makes Dagster hand over the events of a step's months, and those planned for a run, together.
TOGETHER = {
    "DAGSTER_EVENT_BATCH_SIZE": "1000",
    # One event for all partitions that are planned of an asset, instead of one for each.
    "DAGSTER_EMIT_PARTITION_SUBSET_IN_PLANNED_EVENTS": "1",
}


class LocalEventLog(SqliteEventLogStorage):
    """Dagster's event log whose engines are kept, the latest used of them."""

    #: The file of a run without events; made once in a process.
    _empty: ClassVar[bytes] = b""

    def __init__(self, base_dir: str, keep_runs: int = 50, keep_megabytes: int = 100) -> None:
        self.keep_runs, self.keep_megabytes = keep_runs, keep_megabytes
        self._engines: OrderedDict[str, sa.Engine] = OrderedDict()
        # As in Dagster's own storage: threads of one process take turns.
        self._turns = RLock()
        super().__init__(base_dir)

    def run_connection(self, run_id: str | None = None) -> Any:
        """A transaction on the database of one run."""
        if not Path(self.path_for_shard(str(run_id))).exists():
            # The run was deleted, perhaps by another process.
            self._initdb(sa.create_engine(self.conn_string_for_shard(str(run_id)), poolclass=sa.NullPool))
        return self._connection(str(run_id), super().run_connection(run_id))

    def index_connection(self) -> AbstractContextManager[sa.Connection]:
        """A transaction on the database of all runs."""
        return self._connection(INDEX_SHARD_NAME, super().index_connection())

    def store_event(self, event: EventLogEntry) -> None:
        """Store ``event``, and tell who watches its run."""
        super().store_event(event)
        self._announce(event.run_id)

    def store_event_batch(self, events: Sequence[EventLogEntry]) -> None:
        """Store ``events`` of one run, those on assets in one transaction for each of the two databases.

        Of an asset the row that names its latest event is written once, for the last of them. The history of the
        run gets that one only: the partitions of an asset are read of the index, and the log of a run over many
        months stays as long as it has steps.
        """
        # Dagster hands over the partitions of a step in no order; the newest one is to be the latest.
        together = sorted(
            (event for event in events if event.dagster_event_type in ASSET_EVENTS), key=_partition_of
        )
        for event in events:
            if event.dagster_event_type not in ASSET_EVENTS:
                self.store_event(event)
        if not together:
            return
        insert = SqlEventLogStorageTable.insert()
        rows = [self._event_to_row(event) for event in together]
        last = {
            (event.dagster_event_type, row["asset_key"]): row
            for event, row in zip(together, rows, strict=True)
        }
        with self.run_connection(together[0].run_id) as connection:
            connection.execute(insert, list(last.values()))
        with self.index_transaction() as connection:
            ids = [connection.execute(insert.values(row)).lastrowid for row in rows]
            self._store_asset_event_tags(connection, together, ids)
            latest = {
                (event.dagster_event_type, row["asset_key"]): (event, number)
                for event, row, number in zip(together, rows, ids, strict=True)
            }
            for event, number in latest.values():
                self._store_asset_event(connection, event, number)
        self._announce(together[0].run_id)

    def delete_events(self, run_id: str) -> None:
        """Forget the events of a run, but for the newest one of each partition of an asset.

        What the UI shows of an asset (which partitions there are, their figures) outlives the run that made it.
        """
        with self.index_transaction() as connection:
            connection.execute(_SUPERSEDED, {"run": run_id})
            connection.execute(_SUPERSEDED_CHECKS, {"run": run_id})
            connection.execute(_TAGS_WITHOUT_EVENT)
        with self._turns:
            engine = self._engines.pop(run_id, None)
            if engine is not None:
                engine.dispose()
        for suffix in ("", "-wal", "-shm"):
            Path(f"{self.path_for_shard(run_id)}{suffix}").unlink(missing_ok=True)

    def bytes_of_run(self, run_id: str) -> int:
        """Length of the files that hold the events of one run."""
        files = (Path(f"{self.path_for_shard(run_id)}{suffix}") for suffix in ("", "-wal"))
        return sum(file.stat().st_size for file in files if file.exists())

    def give_back(self) -> None:
        """Give the space of forgotten events back to the disk, where it is most of the index."""
        with self.index_connection() as connection:
            unused, pages = (
                connection.exec_driver_sql(f"PRAGMA {name}").scalar_one()
                for name in ("freelist_count", "page_count")
            )
            engine = connection.engine
        if 2 * unused > pages:
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.exec_driver_sql("VACUUM")

    def wipe(self) -> None:
        """Forget every run and every event."""
        self._close()
        super().wipe()

    def dispose(self) -> None:
        """Close what is open."""
        self._close()
        super().dispose()

    def _initdb(self, engine: sa.Engine, for_index_shard: bool = False) -> None:
        shard = Path(str(engine.url.database))
        if for_index_shard or shard.exists():
            super()._initdb(engine, for_index_shard)
            return
        if not LocalEventLog._empty:
            with TemporaryDirectory() as folder:
                file = Path(folder) / "empty.db"
                super()._initdb(sa.create_engine(f"sqlite:///{file}", poolclass=sa.NullPool))
                LocalEventLog._empty = file.read_bytes()
        new = shard.with_suffix(f".{uuid4()}")
        new.write_bytes(LocalEventLog._empty)
        try:
            shard.hardlink_to(new)
        except OSError:
            # Another process was first, or the file system has no links.
            super()._initdb(engine)
        finally:
            new.unlink()

    def _announce(self, run_id: str) -> None:
        # Dagster watches the file of a run, which stays as it is while the write-ahead log takes the events.
        os.utime(self.path_for_shard(run_id))

    def _close(self) -> None:
        with self._turns:
            for engine in self._engines.values():
                engine.dispose()
            self._engines.clear()

    @contextmanager
    def _connection(
        self, shard: str, first: AbstractContextManager[sa.Connection]
    ) -> Iterator[sa.Connection]:
        """``first`` makes the tables of a new database, so it serves the first connection."""
        with self._turns:
            engine = self._engines.get(shard)
            if engine is None:
                with first as connection:
                    yield connection
                self._keep(shard)
            else:
                self._engines.move_to_end(shard)
                with engine.begin() as connection:
                    yield connection

    def _keep(self, shard: str) -> None:
        engine = self._engines[shard] = sa.create_engine(
            self.conn_string_for_shard(shard),
            connect_args={"timeout": SQLITE_BUSY_TIMEOUT_SECONDS},
        )
        listen(engine, "connect", _survives_what_a_process_survives)
        while len(self._engines) > _KEPT:
            _, engine = self._engines.popitem(last=False)
            engine.dispose()


def _partition_of(event: EventLogEntry) -> str:
    return str(event.dagster_event.partition or "") if event.dagster_event else ""


def _survives_what_a_process_survives(connection: Any, _: Any) -> None:
    # With Dagster's write-ahead log a cut of power may then lose the last events of a history, and spoils none;
    # waiting for the disk after every event is a tenth of the time of a run that reuses everything.
    connection.execute("PRAGMA synchronous = NORMAL")


class LocalHistory(DagsterSqliteStorage):
    """Dagster's SQLite storage with :class:`LocalEventLog`, in the same folder.

    Args:
        keep_runs: so many ended runs of each job are kept, the newest; see :func:`forget_old_runs`.
        keep_megabytes: the logs of ended runs take no more than this.
    """

    def __init__(
        self,
        base_dir: str,
        keep_runs: int = 50,
        keep_megabytes: int = 100,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        super().__init__(base_dir, inst_data=inst_data)
        self._event_log_storage = LocalEventLog(
            str(Path(base_dir) / "history" / "runs"), keep_runs, keep_megabytes
        )

    @property
    def event_log_storage(self) -> EventLogStorage:
        """The event log."""
        return self._event_log_storage

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Any) -> "LocalHistory":
        """The storage that ``dagster.yaml`` describes."""
        return cls(inst_data=inst_data, **config_value)

    @classmethod
    def config_type(cls) -> Any:
        """What ``dagster.yaml`` may say."""
        return {
            "base_dir": dg.StringSource,
            "keep_runs": dg.Field(dg.IntSource, is_required=False),
            "keep_megabytes": dg.Field(dg.IntSource, is_required=False),
        }


def forget_old_runs(instance: dg.DagsterInstance) -> int:
    """Delete ended runs that the local history no longer keeps, oldest first.

    Kept are the newest ``keep_runs`` of each job, as far as their logs fit into ``keep_megabytes``, and in any case
    the newest of each job. Which data there is and what a stage may use again is the ledger's, and stays; the newest
    event of each asset and partition stays in the UI, too. A history elsewhere is its owner's.

    Returns:
        How many runs were deleted.
    """
    log = instance.event_log_storage
    if not isinstance(log, LocalEventLog):
        return 0
    ended = dg.RunsFilter(
        statuses=[dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]
    )
    of_job: dict[str, int] = {}
    room, forgotten = log.keep_megabytes * 2**20, []
    for run in instance.get_runs(ended):
        place = of_job[run.job_name] = of_job.get(run.job_name, 0) + 1
        room -= log.bytes_of_run(run.run_id)
        if place > 1 and (place > log.keep_runs or room < 0):
            forgotten.append(run.run_id)
    for run_id in reversed(forgotten):
        instance.delete_run(run_id)
        instance.compute_log_manager.delete_logs(prefix=[run_id])
    if forgotten:
        log.give_back()
    return len(forgotten)


def run_of(context: dg.InputContext) -> str:
    """The run that loads an input."""
    return context.step_context.run_id


def partitions_to_read(context: dg.InputContext) -> Sequence[str]:
    """The partitions of an input; a check reads the partition of its run, which Dagster does not map for it."""
    step = context.step_context
    if step.is_asset_check_step and step.has_partition_key:
        return [step.partition_key]
    return context.asset_partition_keys
