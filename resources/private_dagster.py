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

    def __init__(self, base_dir: str) -> None:
        self._engines: OrderedDict[str, sa.Engine] = OrderedDict()
        # As in Dagster's own storage: threads of one process take turns.
        self._turns = RLock()
        super().__init__(base_dir)

    def run_connection(self, run_id: str | None = None) -> Any:
        """A transaction on the database of one run."""
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
    """Dagster's SQLite storage with :class:`LocalEventLog`, in the same folder."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(base_dir, inst_data=inst_data)
        self._event_log_storage = LocalEventLog(str(Path(base_dir) / "history" / "runs"))

    @property
    def event_log_storage(self) -> EventLogStorage:
        """The event log."""
        return self._event_log_storage

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData, config_value: Any) -> "LocalHistory":
        """The storage that ``dagster.yaml`` describes: ``base_dir``."""
        return cls.from_local(inst_data=inst_data, **config_value)


def run_of(context: dg.InputContext) -> str:
    """The run that loads an input."""
    return context.step_context.run_id


def partitions_to_read(context: dg.InputContext) -> Sequence[str]:
    """The partitions of an input; a check reads the partition of its run, which Dagster does not map for it."""
    step = context.step_context
    if step.is_asset_check_step and step.has_partition_key:
        return [step.partition_key]
    return context.asset_partition_keys
