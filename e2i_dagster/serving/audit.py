"""The prediction log: every answer becomes a row of ``ml_predictions``.

The journal is the queue. An answer is appended to a local file before it is sent (some microseconds,
no wait for the disk), and a background thread copies the file's rows into the warehouse. So neither a
slow warehouse delays an answer, nor is a row lost when the warehouse is away, the service is stopped
or its process is killed: what a process leaves in its journal is replayed by the next one. Every row
has its key from the start, so that copying it twice leaves one.

The journal is bounded. When the warehouse is away so long that it is full, further rows are dropped,
counted in ``e2i_audit_dropped_total`` and reported by ``/health``, which is then ``degraded``.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_core import to_json

from e2i_dagster.config.serving import AuditPolicy
from e2i_dagster.serving.state import make_private

if TYPE_CHECKING:
    import sqlalchemy as sa

logger = logging.getLogger(__name__)

#: Longest pause between attempts to reach the warehouse, seconds.
_LONGEST_PAUSE = 15.0

#: Writes lines of the journal, each a row as JSON, and returns their number.
Store = Callable[[list[bytes]], int]


def log_row(
    *,
    prediction_id: str,
    request_id: str,
    model_id: str,
    model_version: str,
    features: Mapping[str, Any],
    value: float,
    prediction: Any,
    probabilities: Mapping[str, float] | None,
    patient_id: str | None,
    at: datetime,
) -> dict[str, Any]:
    """One answer as a row of ``ml_predictions`` with JSON values.

    Args:
        prediction_id: the row's key; the same when a request is asked again after its worker died, so that the
            log has one row for the one answer.
    """
    return {
        "prediction_id": prediction_id,
        "origin": "live",
        "request_id": request_id,
        "model_id": model_id,
        "model_version": model_version,
        "prediction_timestamp": at.isoformat(),
        "patient_id": patient_id,
        "prediction_value": value,
        "prediction_class": None if probabilities is None else str(prediction),
        "confidence_score": None if probabilities is None else max(probabilities.values()),
        "probability_scores": dict(probabilities or {}),
        "features_available_at_prediction": dict(features),
    }


@dataclass(frozen=True)
class AuditState:
    """How far the log is.

    Attributes:
        pending_bytes: journal of this process that is not yet in the warehouse.
        stored: rows this process has put there (its own and replayed ones).
        dropped: rows lost because the journal was full or could not be written.
        refused: rows that the warehouse refused; they are kept in ``refused.jsonl``.
        problem: why the last attempt failed; None when it did not.
    """

    pending_bytes: int
    stored: int
    dropped: int
    refused: int
    problem: str | None


class Journal:
    """Journal of one process, and the thread that empties it.

    Args:
        folder: where the journals of all services are.
        store: writes rows and returns how many it was given; raises what the database raises.
        policy: batch size, times and bound.
    """

    def __init__(self, folder: Path, store: Store, policy: AuditPolicy) -> None:
        self._folder = make_private(folder)
        self._store = store
        self._policy = policy
        self._path = folder / f"{uuid.uuid4().hex}.jsonl"
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        self._file = os.fdopen(descriptor, "r+b", buffering=0)
        # The lock says that a living process owns this journal; it ends with the process.
        fcntl.flock(self._file, fcntl.LOCK_EX)
        self._lock = threading.Lock()
        self._written = 0
        self._stored_to = 0
        self._stored = self._dropped = self._refused = 0
        self._problem: str | None = None
        self._wake = threading.Event()
        self._closing = False
        self._deadline = 0.0
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def append(self, rows: Sequence[Mapping[str, Any]]) -> bool:
        """Note rows; False if they had to be dropped (counted). Never waits for the warehouse."""
        return self.append_lines(b"".join(to_json(row) + b"\n" for row in rows), len(rows))

    def append_lines(self, text: bytes, rows: int) -> bool:
        """As :meth:`append`, of ``rows`` rows that are lines of JSON already."""
        with self._lock:
            if self._written - self._stored_to + len(text) > self._policy.max_journal_bytes:
                self._dropped += rows
                return False
            try:
                written = self._file.write(text)
            except OSError as error:
                return self._drop(rows, error.strerror or type(error).__name__)
            if written != len(text):
                # A full disk took a part: take it back, half a row helps nobody.
                os.ftruncate(self._file.fileno(), self._written)
                return self._drop(rows, "the disk is full")
            self._written += len(text)
        return True

    def _drop(self, rows: int, why: str) -> bool:
        self._dropped += rows
        self._problem = f"the journal cannot be written: {why}"
        return False

    def state(self) -> AuditState:
        """Where the log stands."""
        return AuditState(
            self._written - self._stored_to, self._stored, self._dropped, self._refused, self._problem
        )

    def close(self) -> bool:
        """Store what is left, for a bounded time; True if all of it is in the warehouse.

        Otherwise the journal stays and the next process of a service replays it.
        """
        self._deadline = time.monotonic() + self._policy.close_seconds
        self._closing = True
        self._wake.set()
        self._thread.join(self._policy.close_seconds + 1)
        complete = not self._thread.is_alive() and self._stored_to == self._written
        if complete:
            self._path.unlink(missing_ok=True)
        if not self._thread.is_alive():
            self._file.close()
        return complete

    def _run(self) -> None:
        pause = self._policy.flush_seconds
        replayed = False
        while True:
            self._wake.wait(pause)
            try:
                if not replayed and not self._closing:
                    self._replay()
                    replayed = True
                self._empty()
                self._problem = None
                pause = self._policy.flush_seconds
            # Whatever the database says, answers go on and the thread lives: the problem is kept in
            # `state`, shown by /health and tried again.
            except Exception as error:  # noqa: BLE001
                self._problem = f"the warehouse does not take rows: {_kind(error)}"
                logger.warning("Prediction log: %s. Rows stay in the journal.", self._problem)
                pause = min(pause * 2, _LONGEST_PAUSE)
            if self._closing and (self._stored_to == self._written or time.monotonic() > self._deadline):
                return
            if self._closing:
                pause = min(pause, 0.2)
                self._wake.clear()

    def _empty(self) -> None:
        while self._stored_to < self._written:
            with self._lock:
                size = min(self._written - self._stored_to, 4 * 1024 * 1024)
                chunk = os.pread(self._file.fileno(), size, self._stored_to)
            lines = chunk[: chunk.rfind(b"\n") + 1].splitlines(keepends=True)
            batch = lines[: self._policy.batch_rows] or [self._whole_line()]
            self._put(batch)
            self._stored_to += sum(len(line) for line in batch)
        with self._lock:
            if self._written and self._stored_to == self._written:
                os.ftruncate(self._file.fileno(), 0)
                self._written = self._stored_to = 0

    def _whole_line(self) -> bytes:
        with self._lock:
            rest = os.pread(self._file.fileno(), self._written - self._stored_to, self._stored_to)
        return rest[: rest.index(b"\n") + 1]

    def _put(self, rows: list[bytes]) -> None:
        from sqlalchemy.exc import DataError, IntegrityError

        try:
            self._stored += self._store(rows)
        # A row that no table takes, or a line that is no JSON: the others are stored.
        except (DataError, IntegrityError):
            if len(rows) > 1:
                middle = len(rows) // 2
                self._put(rows[:middle])
                self._put(rows[middle:])
                return
            self._refuse(rows[0])

    def _refuse(self, row: bytes) -> None:
        path = self._folder / "refused.jsonl"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(row.rstrip(b"\n") + b"\n")
        self._refused += 1
        logger.error("Prediction log: the warehouse refused a row; it is kept in %s.", path)

    def _replay(self) -> None:
        """Store journals whose process is gone."""
        for path in sorted(self._folder.glob("*.jsonl")):
            if path == self._path or path.name == "refused.jsonl":
                continue
            with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                for batch in _batches(file, self._policy.batch_rows):
                    self._put(batch)
                path.unlink(missing_ok=True)


def _batches(lines: Any, size: int) -> Any:
    batch: list[bytes] = []
    for line in lines:
        # The last line is cut when the process was killed while it wrote; its answer was never sent.
        if line.endswith(b"\n"):
            batch.append(line)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _kind(error: Exception) -> str:
    """Kind of a database error without its parameters, which hold values of patients."""
    inner = getattr(error, "orig", None)
    return type(error).__name__ if inner is None else f"{type(error).__name__} ({type(inner).__name__})"


#: Fields of :func:`log_row`, which are columns of ``ml_predictions``.
_COLUMNS = (
    "prediction_id",
    "origin",
    "request_id",
    "model_id",
    "model_version",
    "prediction_timestamp",
    "patient_id",
    "prediction_value",
    "prediction_class",
    "confidence_score",
    "probability_scores",
    "features_available_at_prediction",
)


class WarehouseStore:
    """Writes rows into ``ml_predictions``; connects when the first row comes.

    Args:
        connect: makes the engine; by default that of the warehouse as the application's role.
    """

    def __init__(self, connect: Callable[[], sa.Engine] | None = None) -> None:
        self._connect = connect or _warehouse_engine
        self._engine: sa.Engine | None = None

    def __call__(self, rows: list[bytes]) -> int:
        import sqlalchemy as sa

        if self._engine is None:
            self._engine = self._connect()
        # The database reads the JSON, so that this process, which answers, spends no time on it.
        names = ", ".join(_COLUMNS)
        statement = sa.text(
            f"INSERT INTO ml_predictions ({names}) SELECT {names} "
            "FROM jsonb_populate_recordset(NULL::ml_predictions, CAST(:rows AS jsonb)) "
            "ON CONFLICT (prediction_id) DO NOTHING"
        )
        with self._engine.begin() as connection:
            connection.execute(statement, {"rows": "[" + b",".join(rows).decode() + "]"})
        return len(rows)


def _warehouse_engine() -> sa.Engine:
    from e2i_dagster.database.connection import engine

    return engine(role="app")


def now() -> datetime:
    """The time of an answer, UTC."""
    return datetime.now(UTC)
