"""Loading frames into the raw tables: validate, reject with reasons, merge, reconcile.

Here belongs the order of a load and what is reported of it. The rules of rows are in ``rules``, the
SQL in ``staging``, the reject table in ``rejects``.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field, model_validator

from e2i_dagster.database.upsert import upsert
from e2i_dagster.display import Table, Words
from e2i_dagster.errors import ConfigError, InputError
from e2i_dagster.loading import rejects, staging
from e2i_dagster.loading.erased import erased_rows
from e2i_dagster.loading.rejects import Rejected
from e2i_dagster.loading.reversals import Reversals, TakenBack
from e2i_dagster.loading.reversals import find as find_reversed
from e2i_dagster.tables import (
    OPTIONAL_RAW_TABLES,
    RAW_TABLES,
    date_column,
    loaded_after,
    primary_key,
    raw_table,
    references,
    rules,
)
from e2i_dagster.tables.arrow import compute
from e2i_dagster.tables.own_types import OWN_TABLE

if TYPE_CHECKING:
    import pyarrow as pa

    from e2i_dagster.tables.own_types import OwnType
    from e2i_dagster.tables.vocabulary import VocabularyPolicy

#: Share of rows of a table (or month) that must be accepted (prior platform's value).
SUCCESS_THRESHOLD = 0.95

Status = Literal["loaded", "empty", "partial", "failed", "not_tried"]
Progress = Callable[[str], None]


class TableLoad(BaseModel):
    """What became of one table.

    ``source = loaded + unchanged + rejected + duplicate + reversal + left out`` always.

    Attributes:
        source: delivered rows (inside the window of months, if one was given).
        left_out: rule of the mapping -> delivered rows that it left out.
        added: rows of ``source`` that the mapping made of numbered columns, beside the first of each line.
        loaded: rows written, ``inserted + updated``.
        rejected: rows not taken; those without a fault of their own count under the reasons
            ``below_threshold``, ``not_tried``, ``before_first_month`` and ``after_data_end``, and are in no reject.
        status: ``loaded``; ``empty`` (no rows delivered); ``partial`` (some months withheld);
            ``failed`` (below the threshold, the table is as it was); ``not_tried`` (a parent failed).
        reasons: reason code -> rows; each rejected row counts once, under its first reason.
        faults: reason, column and its limits in words -> rows; a row that breaks two rules is in both.
        reversal: rows that take another row back, now or since an earlier load; they are no rows of the table.
        withdrawn: rows that left the table, because a restated month did not deliver them again or a reversal took
            them back; no part of ``source``.
        restored: reversed rows that came back, because a more recent row is reversed in their place.
        going: the withdrawn rows by key; only of a dry run.
        completed: date column -> precision (``month``, ``year``) -> cells of accepted rows that were delivered so and
            completed by the mapping's ``partial_dates``.
        partitions: months ``YYYY-MM`` in which rows were written or withdrawn.
        withheld: month -> why nothing of it was written.
        lines: lines of the delivered text files below their headers, blank ones aside, counted apart from
            the parser: more than rows where cells hold line breaks; None where there are no lines.
        notes: what the files say of their rows besides the cells, such as special missing values by letter.
        outside: delivered rows of other months than the window's; not looked at.
        ignored_columns: delivered columns for which the table has no place.
    """

    model_config = ConfigDict(frozen=True)

    source: int = Field(ge=0)
    loaded: int = Field(default=0, ge=0)
    inserted: int = Field(default=0, ge=0)
    updated: int = Field(default=0, ge=0)
    unchanged: int = Field(default=0, ge=0)
    rejected: int = Field(default=0, ge=0)
    duplicate: int = Field(default=0, ge=0)
    reversal: int = Field(default=0, ge=0)
    left_out: dict[str, int] = Field(default_factory=dict)
    added: int = Field(default=0, ge=0)
    withdrawn: int = Field(default=0, ge=0)
    restored: int = Field(default=0, ge=0)
    going: tuple[staging.Going, ...] = ()
    completed: dict[str, dict[str, int]] = Field(default_factory=dict)
    seconds: float = Field(default=0.0, ge=0)
    status: Status
    reasons: dict[str, int] = Field(default_factory=dict)
    faults: dict[str, int] = Field(default_factory=dict)
    partitions: tuple[str, ...] = ()
    withheld: dict[str, str] = Field(default_factory=dict)
    lines: int | None = None
    notes: tuple[str, ...] = ()
    outside: int = Field(default=0, ge=0)
    ignored_columns: tuple[str, ...] = ()
    batches: int = 0
    retries: int = 0
    message: str | None = None

    @model_validator(mode="after")
    def _reconciles(self) -> TableLoad:
        if self.loaded != self.inserted + self.updated:
            raise ValueError("loaded is not inserted + updated")
        total = self.loaded + self.unchanged + self.rejected + self.duplicate + self.reversal
        if self.source != total + self.rows_left_out:
            raise ValueError("source is not loaded + unchanged + rejected + duplicate + reversal + left out")
        if self.rejected != sum(self.reasons.values()):
            raise ValueError("rejected is not the sum of its reasons")
        return self

    @property
    def rows_left_out(self) -> int:
        """Rows that the mapping left out."""
        return sum(self.left_out.values())

    @property
    def success(self) -> bool:
        """False if anything that was delivered was withheld as a whole."""
        return self.status in ("loaded", "empty")


class LoadReport(BaseModel):
    """What became of a load. ``model_dump(mode="json")`` is the form of ``e2i load --json``."""

    model_config = ConfigDict(frozen=True)

    success: bool
    load_id: str
    dry_run: bool = False
    threshold: float = Field(ge=0, le=1)
    threshold_reason: str | None = None
    actor: str | None = None
    seconds: float = Field(ge=0)
    tables: dict[str, TableLoad]

    @property
    def failures(self) -> dict[str, str]:
        """Table -> what went wrong, for tables that are not wholly loaded."""
        return {name: done.message or done.status for name, done in self.tables.items() if not done.success}

    def to_metadata(self) -> dict[str, Any]:
        """Totals and one table of counts for the UI."""
        total = {
            name: sum(getattr(done, name) for done in self.tables.values())
            for name in ("source", "loaded", "unchanged", "rejected", "duplicate", "reversal", "withdrawn")
        }
        total["left_out"] = sum(done.rows_left_out for done in self.tables.values())
        columns = (
            *("source", "lines", "inserted", "updated", "unchanged", "rejected", "duplicate", "reversal"),
            *("rows_left_out", "withdrawn", "restored"),
        )
        rows = [
            (
                *(name, done.status, *(getattr(done, column) for column in columns)),
                ", ".join(
                    f"{code} {rows:,}" for code, rows in (*done.reasons.items(), *done.left_out.items())
                ),
                done.seconds,
            )
            for name, done in self.tables.items()
        ]
        problems = [f"{name}: {text}" for name, text in self.failures.items()]
        return {
            "load_id": self.load_id,
            "success": self.success,
            "dry_run": self.dry_run,
            "threshold": self.threshold,
            **({"threshold_reason": self.threshold_reason} if self.threshold_reason else {}),
            **{f"rows_{name}": count for name, count in total.items()},
            "seconds": self.seconds,
            "tables": Table(("table", "status", *columns, "reasons", "seconds"), rows),
            "problems": Words(problems, "list") if problems else None,
        }

    def to_records(self) -> list[dict[str, Any]]:
        """One record per table, as in ``ml_table_loads`` (without source, run and month counts)."""
        return [_record(self, name, done) for name, done in self.tables.items()]


def new_load_id() -> str:
    """A new identifier of a load: time (UTC) and a random part, so that identifiers sort by time."""
    return f"{staging.utc_now():%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"


def load(
    tables: Mapping[str, pd.DataFrame],
    *,
    batch_size: int = 1_000,
    retries: int = 3,
    success_threshold: float = SUCCESS_THRESHOLD,
    dry_run: bool = False,
    threshold_reason: str | None = None,
    withhold_months: bool = False,
    months: Sequence[str] | None = None,
    kept: tuple[str, str] | None = None,
    own: Mapping[str, OwnType] | None = None,
    engine: sa.Engine | None = None,
    load_id: str | None = None,
    vocabulary: VocabularyPolicy | None = None,
    actor: str | None = None,
    run_id: str | None = None,
    progress: Progress | None = None,
) -> LoadReport:
    """Load ``tables`` in load order: parents before children, one transaction for each table.

    Args:
        tables: raw table name -> frame, for example a ``sources.files.Delivery``; frames are not changed.
        batch_size: rows of one COPY; the batch is the unit that is tried again.
        retries: further attempts after a transient error, after 1, 2, 4 ... s.
        success_threshold: share of rows that must be accepted. Below it nothing of the table is written,
            its status is ``failed`` and tables that refer to it are ``not_tried``.
        dry_run: validate and count everything, write nothing.
        threshold_reason: why a known-bad delivery is accepted at this threshold; recorded.
        withhold_months: judge event tables by month: a month below the threshold is not written (its
            old rows stay), the others are.
        months: look only at rows of these months (``YYYY-MM``) of event tables.
        kept: first and last month that event tables are kept for. Rows of other months are not written and count
            under ``before_first_month`` and ``after_data_end``, without effect on the threshold; not with
            ``months``.
        own: declared types of columns of one's own; by default those that the delivery's mapping declares.
        engine: the warehouse (default: that of ``connection.engine("app")``).
        load_id, actor, run_id: recorded with every table; by default a new one, the login, none.
        vocabulary: accepted values (default: ``config/vocabulary.yaml``).
        progress: called with one line of text now and then.

    Returns:
        Counts, reasons and months of every table. Bad rows and a missed threshold do not raise:
        look at ``success``.

    Raises:
        InputError: an unknown table or a missing required column; raised before any work.
        UnavailableError: no database, no space. Tables already done stay loaded, the one in work is as
            it was.
    """
    loader = _loader(
        engine=engine,
        load_id=load_id,
        vocabulary=vocabulary,
        actor=actor,
        run_id=run_id,
        progress=progress,
        batch_size=batch_size,
        retries=retries,
        threshold=success_threshold,
        threshold_reason=threshold_reason,
        dry_run=dry_run,
        withhold_months=withhold_months,
        months=months,
        kept=kept,
        own=own,
    )
    began = time.perf_counter()
    ordered = _in_load_order(tables)
    delivered, declared = getattr(tables, "delivered", {}), getattr(tables, "reversals", {})
    done: dict[str, TableLoad] = {}
    for name in ordered:
        done[name] = loader.run(name, tables[name], delivered.get(name), declared.get(name))
    return loader.report(done, time.perf_counter() - began)


def load_table(
    name: str,
    frame: pd.DataFrame,
    *,
    delivered: Any = None,
    reversals: Reversals | None = None,
    **settings: Any,
) -> LoadReport:
    """Load one table, for example in an asset of its own; its parents are in the warehouse by now.

    Args:
        name: raw table.
        frame: its rows.
        delivered: ``sources.files.DeliveredTable`` of the rows, for file names and untouched rows.
        reversals: rows that take others back (default: by the rule that was delivered with the rows).
        settings: those of :func:`load`.
    """
    return load(_OneTable(name, frame, delivered, reversals), **settings)


class _OneTable(Mapping[str, pd.DataFrame]):
    def __init__(self, name: str, frame: pd.DataFrame, delivered: Any, reversals: Reversals | None) -> None:
        self._frames = {name: frame}
        self.reversals = {name: reversals}
        self.delivered = {name: delivered} if delivered is not None else {}

    def __getitem__(self, name: str) -> pd.DataFrame:
        return self._frames[name]

    def __iter__(self) -> Any:
        return iter(self._frames)

    def __len__(self) -> int:
        return len(self._frames)


def _in_load_order(tables: Mapping[str, pd.DataFrame]) -> list[str]:
    """Names in load order; one error for everything that is wrong with names and headers."""
    known = RAW_TABLES + OPTIONAL_RAW_TABLES
    problems = [
        InputError(
            f"{name}: not a raw table.", field="tables", value=name, remedy=f"Known: {', '.join(known)}."
        )
        for name in tables
        if name not in known
    ]
    for name in tables:
        if name in known:
            try:
                rules.check_header(name, tables[name])
            except InputError as error:
                problems.append(error)
    if not tables:
        problems.append(
            InputError("There is no table to load.", field="tables", remedy="Deliver at least one.")
        )
    if problems:
        raise InputError.joined(problems)
    return [name for name in known if name in tables]


def _loader(
    *, engine: sa.Engine | None, load_id: str | None, vocabulary: VocabularyPolicy | None, **settings: Any
) -> _Loader:
    if not 0 <= settings["threshold"] <= 1:
        raise InputError(
            f"The threshold is {settings['threshold']}.",
            field="threshold",
            value=settings["threshold"],
            remedy="Give a share between 0 and 1.",
        )
    if settings["batch_size"] < 1 or settings["retries"] < 0:
        raise InputError(
            "batch_size must be at least 1 and retries at least 0.",
            field="batch_size, retries",
            value=(settings["batch_size"], settings["retries"]),
        )
    if vocabulary is None:
        from e2i_dagster.tables.vocabulary import load_vocabulary

        vocabulary = load_vocabulary()
    if engine is None:
        from e2i_dagster.database.connection import engine as connect

        engine = connect(role="app")
    if not settings["dry_run"]:
        _bring_vocabulary_in_step(engine, vocabulary)
    if settings["actor"] is None:
        from e2i_dagster.policy_files.environment import actor

        settings["actor"] = actor()[0]
    return _Loader(engine=engine, load_id=load_id or new_load_id(), vocabulary=vocabulary, **settings)


def _bring_vocabulary_in_step(engine: sa.Engine, policy: VocabularyPolicy) -> None:
    """The database checks values too: a value that was just configured must be known to it."""
    from e2i_dagster.database.connection import refresh_vocabulary
    from e2i_dagster.database.vocabulary_checks import in_step

    with staging.speaking_errors(engine):
        for last in (False, True):
            with engine.connect() as connection:
                if in_step(connection, policy):
                    return
            if last:
                raise ConfigError(
                    f"The warehouse {staging.describe(engine)} accepts other values than the vocabulary of this load.",
                    remedy="Put them into config/vocabulary.yaml and load again.",
                )
            refresh_vocabulary()


@dataclass
class _Counts:
    """Decisions about the rows of one table, as masks over its frame."""

    considered: np.ndarray
    withheld_rows: np.ndarray
    withheld: dict[str, str] = field(default_factory=dict)
    failure: str | None = None
    unkept: dict[str, int] = field(default_factory=dict)


@dataclass
class _Loader:
    engine: sa.Engine
    load_id: str
    vocabulary: VocabularyPolicy
    actor: str | None
    run_id: str | None
    progress: Progress | None
    batch_size: int
    retries: int
    threshold: float
    threshold_reason: str | None
    dry_run: bool
    withhold_months: bool
    months: Sequence[str] | None
    kept: tuple[str, str] | None
    own: Mapping[str, OwnType] | None
    #: Tables of this load that are not in the warehouse as delivered.
    missing: set[str] = field(default_factory=set)
    #: Keys of this load, by table (or ``patient``): a dry run writes none, so children look here.
    taken: dict[str, list[pa.Array]] = field(default_factory=dict)
    refused: dict[str, list[pa.Array]] = field(default_factory=dict)

    def say(self, text: str) -> None:
        if self.progress is not None:
            self.progress(text)

    def report(self, done: dict[str, TableLoad], seconds: float) -> LoadReport:
        return LoadReport(
            success=all(table.success for table in done.values()),
            load_id=self.load_id,
            dry_run=self.dry_run,
            threshold=self.threshold,
            threshold_reason=self.threshold_reason,
            actor=self.actor,
            seconds=seconds,
            tables=done,
        )

    def run(
        self, name: str, frame: pd.DataFrame, delivered: Any, reversals: Reversals | None = None
    ) -> TableLoad:
        began = time.perf_counter()
        rule = getattr(delivered, "reversals", None)
        if reversals is None and rule is not None:
            reversals = Reversals.of(rule, frame)
        lost = [parent for parent in loaded_after(name) if parent in self.missing]
        with staging.speaking_errors(self.engine):
            if lost:
                done = self._not_tried(frame, lost, _left_out(delivered), began)
                self._record(name, done, {}, delivered, reversals)
            elif self.dry_run:
                done = self._load(name, frame, delivered, reversals, began)
            else:
                with staging.only_load_of(self.engine, name, self.say):
                    done = self._load(name, frame, delivered, reversals, began)
        if done.status in ("failed", "not_tried"):
            self.missing.add(name)
        self.say(_line(name, done))
        return done

    def _not_tried(
        self, frame: pd.DataFrame, lost: Sequence[str], left_out: dict[str, int], began: float
    ) -> TableLoad:
        rows = len(frame)
        return TableLoad(
            source=rows + sum(left_out.values()),
            rejected=rows,
            left_out=left_out,
            reasons={"not_tried": rows} if rows else {},
            status="not_tried",
            seconds=time.perf_counter() - began,
            message=f"not tried: {', '.join(lost)} was not loaded. Correct it, then load both.",
        )

    def _load(
        self, name: str, frame: pd.DataFrame, delivered: Any, reversals: Reversals | None, began: float
    ) -> TableLoad:
        taking = None if reversals is None else reversals.rows
        checked = rules.check(name, frame, self.vocabulary, self._own(name, delivered), taking)
        if reversals is not None:
            checked.add(reversals.unreadable & ~checked.bad, "number_format", reversals.rule.where.column)
        months, unkept = self._unkept(checked)
        beyond = np.logical_or.reduce([*unkept.values(), np.zeros(len(checked.bad), bool)])
        rules.check_duplicates(checked, beyond)
        self._check_against_warehouse(checked)
        malformed = 0 if delivered is None else len(delivered.malformed)
        counts = self._decide(checked, months, beyond, malformed)
        counts.unkept = {reason: int(rows.sum()) for reason, rows in unkept.items() if rows.any()}
        accepted = checked.accepted & counts.considered & ~counts.withheld_rows
        taken = TakenBack.nothing(len(accepted))
        if counts.failure is None:
            documents = rejects.documents_of(checked)
            own = self._own(name, delivered)
            taken = find_reversed(self.engine, checked, accepted, reversals, documents, own)
        rejected = Rejected.of(checked, counts.considered, delivered)
        if not self.dry_run:
            rejects.store(self.engine, self.load_id, rejected)
        accepted &= checked.accepted & ~checked.reversal & ~taken.known
        merged = staging.Merged(0, 0, 0, {})
        completed = _completed(checked, accepted, delivered)
        attempts = staging.Retries(self.retries)
        staged = staging.Staging(
            self.engine,
            name,
            checked.rows if accepted.all() else checked.rows.filter(_arrow_mask(accepted)),
            load_id=self.load_id,
            batch_size=self.batch_size,
            retries=attempts,
            restated=_restated(checked, ~accepted & ~beyond, delivered) if accepted.any() else None,
            taken=taken,
            completed=list(completed[list(_CELL)].itertuples(index=False, name=None)),
        )
        keys = checked.rows.column(primary_key(name))
        staged.settled = keys.filter(_arrow_mask(taken.known)).to_pylist()
        staged.settled_reversals = keys.filter(_arrow_mask(taken.counted)).to_pylist()
        if counts.failure is None and (accepted.any() or taken.counted.any() or taken.known.any()):
            merged = (
                staged.compare() if self.dry_run else staged.merge(self.load_id, self._ticker(name, staged))
            )
        self._remember(checked, counts)
        reasons = _reasons(checked, counts, malformed)
        left_out = _left_out(delivered)
        source = int((counts.considered | beyond).sum()) + malformed + sum(left_out.values())
        done = TableLoad(
            source=source,
            left_out=left_out,
            added=getattr(delivered, "added", 0),
            loaded=merged.inserted + merged.updated,
            inserted=merged.inserted,
            updated=merged.updated,
            unchanged=merged.unchanged + int(taken.known.sum()),
            rejected=sum(reasons.values()),
            duplicate=int((checked.duplicate & ~checked.bad & counts.considered).sum()),
            reversal=int(taken.counted.sum()),
            withdrawn=merged.withdrawn,
            restored=merged.restored,
            going=merged.going,
            completed={} if counts.failure else _by_precision(completed),
            seconds=time.perf_counter() - began,
            status=_status(source, counts),
            reasons=reasons,
            faults=_faults(checked, counts),
            partitions=tuple(merged.months),
            withheld=counts.withheld,
            lines=None if delivered is None else delivered.lines,
            notes=() if delivered is None else delivered.notes,
            outside=int((~(counts.considered | beyond)).sum()),
            ignored_columns=checked.ignored,
            batches=staged.batches,
            retries=attempts.used,
            message=_message(name, counts, self.kept) or _not_withdrawn(name, delivered),
        )
        self._record(name, done, merged.months, delivered, reversals)
        return done

    # --- against the warehouse

    def _check_against_warehouse(self, checked: rules.Checked) -> None:
        pc = compute()

        for column, parent in references(checked.table):
            if column not in checked.rows.column_names:
                continue
            given = pc.unique(checked.rows.column(column)).drop_null()
            home, key = _home(parent)
            known = staging.existing(self.engine, raw_table(home).columns[key], given)
            known = _joined([known, *self.taken.get(parent, [])])
            lost = given.filter(pc.invert(pc.is_in(given, value_set=known)))
            waiting = None
            if len(lost):
                waiting = _joined(
                    [rejects.waiting_keys(self.engine, home, key, lost), *self.refused.get(parent, [])]
                )
            rules.check_reference(checked, column, parent, known, waiting)
        for column in rules.unique_columns(checked.table):
            if column in checked.rows.column_names:
                rules.check_unique(checked, column, self._holders(checked, column))

    def _holders(self, checked: rules.Checked, column: str) -> pd.Series:
        """Value -> key of the warehouse rows that have one of the delivered values of ``column``."""
        table = raw_table(checked.table)
        values = checked.rows.column(column).drop_null().to_pylist()
        key = table.columns[primary_key(checked.table)]
        wanted = table.columns[column]
        statement = sa.select(wanted, key).where(wanted == sa.func.any(staging.text_list(values)))
        with self.engine.connect() as connection:
            rows = connection.execute(statement).all()
        return pd.Series([row[1] for row in rows], index=[row[0] for row in rows], dtype=object)

    def _remember(self, checked: rules.Checked, counts: _Counts) -> None:
        """Keys that later tables of this load may refer to, and those that were refused."""
        if not any(checked.table in _home(parent) for _, parent in _all_references()):
            return
        taken = checked.accepted & counts.considered & (counts.failure is None)
        for parent in (checked.table, "patient"):
            home, key = _home(parent)
            if home != checked.table:
                continue
            keys = checked.rows.column(key).combine_chunks()
            if self.dry_run:
                self.taken.setdefault(parent, []).append(keys.filter(_arrow_mask(taken)))
            self.refused.setdefault(parent, []).append(keys.filter(_arrow_mask(checked.bad)))

    # --- threshold

    def _unkept(self, checked: rules.Checked) -> tuple[np.ndarray | None, dict[str, np.ndarray]]:
        """The month of each row (None: a table without months), and by reason the rows that are not kept."""
        erased = erased_rows(self.engine, checked.rows)
        unkept = {} if erased is None else {"erased_patient": erased}
        dated = date_column(checked.table)
        if dated is None or dated not in checked.rows.column_names:
            return None, unkept
        months = staging.months_of(checked.rows.column(dated))
        if self.kept is None or self.months is not None:
            return months, unkept
        first, last = (np.datetime64(month, "M") for month in self.kept)
        outside = {"before_first_month": months < first, "after_data_end": months > last}
        if erased is not None:
            outside = {reason: rows & ~erased for reason, rows in outside.items()}
        return months, {**outside, **unkept}

    def _decide(
        self, checked: rules.Checked, months: np.ndarray | None, beyond: np.ndarray, malformed: int
    ) -> _Counts:
        """Which rows are looked at, and which months or whole tables stay out."""
        rows = len(checked.bad)
        considered = ~beyond
        if self.months is not None and months is not None:
            window = np.array(list(self.months), dtype="datetime64[M]")
            considered &= np.isnat(months) | np.isin(months, window)
        counts = _Counts(considered, np.zeros(rows, bool))
        if self.withhold_months and months is not None:
            self._decide_months(checked, counts, months, malformed)
        else:
            source = int(considered.sum()) + malformed
            bad = int((checked.bad & considered).sum()) + malformed
            if source and (source - bad) / source < self.threshold:
                counts.failure = self._missed(bad, source, "nothing of the table was written")
        return counts

    def _decide_months(
        self, checked: rules.Checked, counts: _Counts, months: np.ndarray, malformed: int
    ) -> None:
        undated = np.isnat(months) & counts.considered
        source = int(counts.considered.sum()) + malformed
        lost = int(undated.sum()) + malformed
        if source and (source - lost) / source < self.threshold:
            counts.failure = self._missed(
                lost, source, "they belong to no month, so nothing of the table was written"
            )
            return
        dated = counts.considered & ~undated
        present, codes = np.unique(months[dated], return_inverse=True)
        total = np.bincount(codes, minlength=len(present))
        bad = np.bincount(codes, weights=checked.bad[dated], minlength=len(present)).astype(int)
        # One division of counts is rounded as the written threshold is: 93 of 100 are 0.93, 1 - 7/100 is less.
        for position in np.flatnonzero((total - bad) / total < self.threshold):
            month = present[position]
            counts.withheld[str(month)] = self._missed(
                int(bad[position]), int(total[position]), "nothing of the month was written"
            )
            counts.withheld_rows |= counts.considered & (months == month)

    def _missed(self, bad: int, source: int, consequence: str) -> str:
        return (
            f"{bad:,} of {source:,} rows were rejected: {1 - bad / source:.1%} accepted, expected at least "
            f"{self.threshold:.1%}; {consequence}"
        )

    # --- record

    def _own(self, name: str, delivered: Any) -> Mapping[str, OwnType]:
        """Declared types of the table's own columns."""
        if name != OWN_TABLE:
            return {}
        return getattr(delivered, "own", {}) if self.own is None else self.own

    def _record(
        self,
        name: str,
        done: TableLoad,
        months: Mapping[str, int],
        delivered: Any,
        reversals: Reversals | None,
    ) -> None:
        if self.dry_run:
            return
        from e2i_dagster.tables.description.control import ml_table_loads

        report = self.report({name: done}, done.seconds)
        files = None if delivered is None else ", ".join(file.name for file in delivered.files) or None
        record = {
            **_record(report, name, done),
            "source": files,
            "reversal_rule": sa.null()
            if reversals is None
            else reversals.rule.model_dump(mode="json", by_alias=True, exclude_defaults=True),
            "partitions": dict(months),
            "own_columns": dict(self._own(name, delivered)),
            "partial_dates": dict(getattr(delivered, "partial_dates", {})),
            "run_id": self.run_id,
            "loaded_at": staging.utc_now(),
        }
        with self.engine.begin() as connection:
            connection.execute(upsert(ml_table_loads, record).values(record))

    def _ticker(self, name: str, staged: staging.Staging) -> Callable[[int], None]:
        """Progress every few seconds: rows copied of rows to copy."""
        copied, total, said = 0, staged.rows.num_rows, time.monotonic()

        def tick(rows: int) -> None:
            nonlocal copied, said
            copied += rows
            if time.monotonic() - said > 2:
                said = time.monotonic()
                self.say(f"{name}: {copied:,} of {total:,} rows copied")

        return tick


def _record(report: LoadReport, name: str, done: TableLoad) -> dict[str, Any]:
    return {
        "load_id": report.load_id,
        "table_name": name,
        "status": done.status,
        "message": done.message,
        "delivered": done.source,
        "inserted": done.inserted,
        "updated": done.updated,
        "unchanged": done.unchanged,
        "duplicates": done.duplicate,
        "rejected": done.rejected,
        "reversals": done.reversal,
        "withdrawn": done.withdrawn,
        "restored": done.restored,
        "lines": done.lines,
        "reasons": done.reasons,
        "left_out": done.left_out,
        "added": done.added,
        "batches": done.batches,
        "retries": done.retries,
        "threshold": report.threshold,
        "threshold_reason": report.threshold_reason,
        "seconds": done.seconds,
        "actor": report.actor,
    }


def _all_references() -> list[tuple[str, str]]:
    return [found for name in RAW_TABLES + OPTIONAL_RAW_TABLES for found in references(name)]


def _home(parent: str) -> tuple[str, str]:
    """Table and column that hold the keys of ``parent``."""
    return ("patient_journeys", "patient_id") if parent == "patient" else (parent, primary_key(parent))


def _joined(parts: Sequence[pa.Array]) -> pa.Array:
    import pyarrow as pa

    return parts[0] if len(parts) == 1 else pa.concat_arrays(list(parts))


def _arrow_mask(mask: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return pa.array(mask)


def _reasons(checked: rules.Checked, counts: _Counts, malformed: int) -> dict[str, int]:
    """Rows per reason, most frequent first; each rejected row once."""
    positions, codes = checked.first_reasons()
    names, rows = np.unique(codes[counts.considered[positions]].astype(str), return_counts=True)
    reasons = {str(name): int(count) for name, count in zip(names, rows, strict=True)}
    if malformed:
        reasons["malformed_row"] = malformed
    withheld = checked.accepted & counts.considered
    withheld &= counts.withheld_rows if counts.failure is None else True
    if withheld.any():
        reasons["below_threshold"] = int(withheld.sum())
    reasons |= counts.unkept
    return dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0])))


def _faults(checked: rules.Checked, counts: _Counts) -> dict[str, int]:
    """Rows per reason and column, most frequent first; with the limits of a column whose values lie outside."""
    found: dict[str, np.ndarray] = {}
    for fault in checked.faults:
        words = rules.fault_words(checked.table, fault.reason, fault.column)
        # A value may be outside in two ways; its row is one.
        found[words] = np.union1d(found.get(words, fault.positions), fault.positions)
    rows = {words: int(counts.considered[positions].sum()) for words, positions in found.items()}
    return dict(sorted(((words, n) for words, n in rows.items() if n), key=lambda item: (-item[1], item[0])))


def _status(source: int, counts: _Counts) -> Status:
    if counts.failure is not None:
        return "failed"
    if counts.withheld:
        return "partial"
    return "loaded" if source else "empty"


def _message(name: str, counts: _Counts, kept: tuple[str, str] | None) -> str | None:
    remedy = "See `e2i rejects list`; correct the delivery, or accept it with --threshold and --reason."
    if counts.failure is not None:
        return f"{counts.failure}. {remedy}"
    if counts.withheld:
        months = "; ".join(f"{month}: {why}" for month, why in counts.withheld.items())
        return f"{months}. {remedy}"
    erased = counts.unkept.get("erased_patient", 0)
    if outside := sum(counts.unkept.values()) - erased:
        assert kept is not None
        return (
            f"{outside:,} rows lie outside {kept[0]}..{kept[1]} and are not kept. To keep them, "
            "widen first_month and data_end in config/sources.yaml, then load again."
        )
    return f"{erased:,} rows of erased patients were left out." if erased else None


def _left_out(delivered: Any) -> dict[str, int]:
    """Rule of the mapping -> rows that it left out, most first."""
    return dict(sorted(getattr(delivered, "left_out", {}).items(), key=lambda item: (-item[1], item[0])))


_CELL = ("row_key", "column", "delivered", "precision", "rule")


def _completed(checked: rules.Checked, accepted: np.ndarray, delivered: Any) -> pd.DataFrame:
    """Dates of accepted rows that were delivered without their day: ``_CELL`` as columns."""
    given = getattr(delivered, "completed", None)
    if given is None or given.empty:
        return pd.DataFrame(columns=list(_CELL))
    given = given[accepted[given["position"].to_numpy(dtype=np.int64)]]
    keys = checked.rows.column(primary_key(checked.table)).take(given["position"].to_numpy(dtype=np.int64))
    return given.assign(row_key=keys.to_pylist())


def _by_precision(completed: pd.DataFrame) -> dict[str, dict[str, int]]:
    counts: dict[str, dict[str, int]] = {}
    for (column, precision), cells in completed.groupby(["column", "precision"]).size().items():  # type: ignore[misc]
        counts.setdefault(str(column), {})[str(precision)] = int(cells)
    return counts


def _restated(checked: rules.Checked, left_out: np.ndarray, delivered: Any) -> list[str] | None:
    """Keys that were delivered and not taken, if the delivery restates its months; None if it does not."""
    if getattr(delivered, "restates", None) is None or len(delivered.malformed):
        return None
    keys = checked.rows.column(primary_key(checked.table))
    return keys.filter(_arrow_mask(left_out)).drop_null().to_pylist()


def _not_withdrawn(name: str, delivered: Any) -> str | None:
    """A line that cannot be read may be any row of its month."""
    if getattr(delivered, "restates", None) is None or not len(delivered.malformed):
        return None
    return (
        f"nothing of {name} was withdrawn: {len(delivered.malformed):,} malformed rows may be rows that seem to be "
        "missing. Correct them and load the whole delivery again."
    )


def _line(name: str, done: TableLoad) -> str:
    withdrawn = f", {done.withdrawn:,} withdrawn" if done.withdrawn else ""
    reversal = f" + {done.reversal:,} reversal" if done.reversal else ""
    left_out = f" + {done.rows_left_out:,} left out by the mapping" if done.left_out else ""
    text = (
        f"{name}: {done.status}, {done.source:,} rows = {done.inserted:,} inserted + {done.updated:,} updated "
        f"+ {done.unchanged:,} unchanged + {done.rejected:,} rejected + {done.duplicate:,} duplicate"
        f"{reversal}{left_out}{withdrawn} ({done.seconds:.1f} s)"
    )
    return f"{text}. {done.message}" if done.message else text
