"""The trials of one study as rows that several processes share and that outlive each of them.

A trial costs two or three statements: it is claimed with its parameters, and written once when it ends. The claim
is unique by point, so that no two processes try the same one; a claim whose process is lost is begun anew.
"""

from __future__ import annotations

import datetime as dt
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from e2i_dagster.errors import UnavailableError
from e2i_dagster.policy_files.base import digest_of
from e2i_dagster.tables.description.models import ml_hpo_trials as TRIALS

FINISHED = ("complete", "pruned")


@dataclass(frozen=True)
class TrialRow:
    """One trial as stored.

    Attributes:
        steps: trees and metric, as reported.
        sampler_state: what Optuna's sampler and pruner keep of the trial.
        rounds: trees kept when boosting ended early.
    """

    number: int
    parameters: Mapping[str, Any]
    origin: str
    state: str
    value: float | None = None
    steps: Sequence[tuple[int, float]] = ()
    sampler_state: Mapping[str, Any] = field(default_factory=dict)
    rounds: int | None = None
    worker: str | None = None
    restarts: int = 0
    seconds: float | None = None
    started_at: dt.datetime | None = None


class StudyTrials:
    """The trials of the study ``name`` in ``ml_hpo_trials``.

    Args:
        lost_after: seconds after which a claim of another machine counts as lost; whether a process of this
            machine lives is asked of it.
    """

    def __init__(self, connection: sa.Connection, name: str, *, lost_after: float) -> None:
        self._connection = connection
        self.name = name
        self._lost_after = lost_after

    def rows(self, *, without: Sequence[int] = ()) -> list[TrialRow]:
        """Trials by number, except those whose numbers are known already."""
        query = sa.select(TRIALS).where(TRIALS.c.study_name == self.name).order_by(TRIALS.c.number)
        if without:
            query = query.where(TRIALS.c.number.not_in(list(without)))
        return [_row(found) for found in self._connection.execute(query)]

    def add(self, row: TrialRow) -> bool:
        """Enter ``row``; False when its number or its point is taken."""
        running = row.state == "running"
        try:
            self._connection.execute(
                sa.insert(TRIALS),
                {
                    "study_name": self.name,
                    "number": row.number,
                    "point": digest_of(dict(row.parameters)),
                    "state": row.state,
                    "origin": row.origin,
                    "parameters": dict(row.parameters),
                    "steps": [],
                    "sampler_state": {},
                    "restarts": 0,
                    "worker": this_worker() if running else None,
                    "started_at": dt.datetime.now(dt.UTC) if running else None,
                },
            )
        except IntegrityError:
            return False
        return True

    def claim_waiting(self, number: int) -> bool:
        """Take over a waiting trial; False when another process was first."""
        claimed = self._connection.execute(
            sa.update(TRIALS)
            .where(TRIALS.c.study_name == self.name, TRIALS.c.number == number, TRIALS.c.state == "waiting")
            .values(state="running", worker=this_worker(), started_at=dt.datetime.now(dt.UTC))
        )
        return claimed.rowcount == 1

    def finish(self, row: TrialRow) -> None:
        """Write how a claimed trial ended."""
        self._update(
            row.number,
            state=row.state,
            value=row.value,
            steps=[list(step) for step in row.steps],
            sampler_state=dict(row.sampler_state),
            rounds=row.rounds,
            seconds=row.seconds,
            worker=None,
        )

    def give_back(self, number: int) -> None:
        """Let a claimed trial wait again."""
        self._update(number, state="waiting", worker=None)

    def recover(self, rows: Sequence[TrialRow], *, own: bool = False) -> int:
        """Let the trials among ``rows`` wait again whose process is lost; their number.

        Args:
            own: this process has just begun, so that claims in its name are left from an earlier search.
        """
        mine = this_worker() if own else None
        lost = [row for row in rows if row.state == "running" and (row.worker == mine or self._is_lost(row))]
        for row in lost:
            self._connection.execute(
                sa.update(TRIALS)
                .where(
                    TRIALS.c.study_name == self.name,
                    TRIALS.c.number == row.number,
                    TRIALS.c.state == "running",
                    TRIALS.c.worker == row.worker,
                )
                .values(state="waiting", worker=None, restarts=TRIALS.c.restarts + 1)
            )
        return len(lost)

    def _is_lost(self, row: TrialRow) -> bool:
        host, process, created = str(row.worker).rsplit("/", 2)
        if host == socket.gethostname():
            return _created(int(process)) != created
        age = dt.datetime.now(dt.UTC) - row.started_at.replace(tzinfo=dt.UTC) if row.started_at else None
        return age is None or age.total_seconds() > self._lost_after

    def _update(self, number: int, **values: Any) -> None:
        self._connection.execute(
            sa.update(TRIALS)
            .where(TRIALS.c.study_name == self.name, TRIALS.c.number == number)
            .values(values)
        )


@contextmanager
def opened_study(engine: sa.Engine | None, name: str, *, lost_after: float) -> Iterator[StudyTrials]:
    """The trials of the study ``name``; in memory when ``engine`` is None.

    Raises:
        UnavailableError: the database cannot be used, at the beginning or on the way.
    """
    used = engine or sa.create_engine("sqlite://")
    if engine is None:
        TRIALS.create(used)
    try:
        # Every statement stands for itself: one way to the server instead of three.
        with used.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            yield StudyTrials(connection, name, lost_after=lost_after)
    except SQLAlchemyError as error:
        # The URL may hold a password, so the message names only what happened.
        raise UnavailableError(
            f"the trials of the study {name} cannot be stored ({type(error).__name__}).",
            remedy="Start the database and run again; finished trials are kept.",
        ) from None
    finally:
        if engine is None:
            used.dispose()


def this_worker() -> str:
    """Host, process and its start: another process with the same number is another worker."""
    return f"{socket.gethostname()}/{os.getpid()}/{_created(os.getpid())}"


def _created(process: int) -> str:
    import psutil

    try:
        return f"{psutil.Process(process).create_time():.2f}"
    except psutil.NoSuchProcess:
        return "none"


def _row(found: sa.Row[Any]) -> TrialRow:
    values = dict(found._mapping)
    for name in ("study_name", "point"):
        del values[name]
    values["steps"] = tuple((int(step), float(value)) for step, value in values["steps"])
    return TrialRow(**values)
