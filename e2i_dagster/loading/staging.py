"""Rows on their way into a raw table: COPY into a staging table, then one merge.

Here belongs the SQL of loading. The staging table is unlogged: it costs no write-ahead log, and a
crash of the server empties it, which the merge notices. One load of a table at a time: an advisory
lock says which staging tables are left over from a process that died.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import numpy as np
import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql

from e2i_dagster.database.locks import acquire_lock
from e2i_dagster.database.roles import STAGING_SCHEMA
from e2i_dagster.errors import UnavailableError
from e2i_dagster.tables import date_column, primary_key, raw_table

if TYPE_CHECKING:
    import psycopg
    import pyarrow as pa

    from e2i_dagster.loading.reversals import TakenBack

Result = TypeVar("Result")

#: Key of ``load_rejects.raw_row`` that marks a reversal.
REVERSAL_MARK = "_reversal"
#: SQLSTATE classes and codes after which the same statement can succeed.
_TRANSIENT_CLASSES = ("08", "40", "57")
_TRANSIENT_CODES = ("53300", "55P03")
#: The document that holds the columns of the user's own.
OWN_CELLS = "extra"


class StagingLostError(Exception):
    """The staging table has not all rows that were copied: the server was restarted."""


@dataclass
class Retries:
    """How often a unit of work was tried again (over one table)."""

    attempts: int
    used: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def run(self, work: Callable[[bool], Result]) -> Result:
        """``work(again)`` until it succeeds: waits 1, 2, 4 ... s plus jitter after transient errors.

        ``again`` is True from the second attempt on. Other errors, and the last transient one, are
        raised as they are.
        """
        import tenacity

        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.attempts + 1),
            wait=tenacity.wait_exponential(multiplier=1, min=1) + tenacity.wait_random(0, 0.25),
            retry=tenacity.retry_if_exception(is_transient),
            reraise=True,
        )
        for attempt in retrying:
            with attempt:
                again = attempt.retry_state.attempt_number > 1
                with self._lock:
                    self.used += again
                return work(again)
        raise AssertionError("tenacity always returns or raises")


def is_transient(error: BaseException) -> bool:
    """True for errors after which trying again can help: lost connection, deadlock, restart."""
    import psycopg

    cause = getattr(error, "orig", None) or error
    if not isinstance(cause, psycopg.Error):
        return False
    code = cause.sqlstate
    if code is None:
        return isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError)
    return (code.startswith(_TRANSIENT_CLASSES) and code != "57014") or code in _TRANSIENT_CODES


@contextlib.contextmanager
def speaking_errors(engine: sa.Engine) -> Iterator[None]:
    """Turn errors of the connection and of a full disk into ones that say what to do."""
    import psycopg

    where = describe(engine)
    try:
        yield
    except (psycopg.errors.DiskFull, psycopg.errors.OutOfMemory) as error:
        raise UnavailableError(
            f"The database {where} has no space left ({type(error).__name__}).",
            remedy="Free space, then load again; the table was left as it was.",
        ) from None
    except psycopg.errors.InsufficientPrivilege as error:
        raise UnavailableError(
            f"The database {where} refused: {error.diag.message_primary}.",
            file="E2I_DATABASE_URL",
            remedy="Connect as a role that may load.",
        ) from None
    except (psycopg.OperationalError, psycopg.InterfaceError, exc.OperationalError) as error:
        cause = getattr(error, "orig", None) or error
        reason = str(cause).strip().split("\n", 1)[0]
        if engine.url.password:
            reason = reason.replace(str(engine.url.password), "***")
        raise UnavailableError(
            f"The database {where} cannot be reached or gave up ({reason}).",
            remedy="Check E2I_DATABASE_URL and that the server runs, then load again: what was loaded "
            "stays, nothing is half-made.",
        ) from None


def describe(engine: sa.Engine) -> str:
    """Where the database is, without user and password."""
    url = engine.url
    host = url.host or cast("str", url.query.get("host", "the local socket"))
    return f"{host}:{url.port}/{url.database}" if url.port else f"{host}/{url.database}"


@contextlib.contextmanager
def connected(engine: sa.Engine) -> Iterator[psycopg.Connection[Any]]:
    """A psycopg connection of ``engine``; what was not committed is rolled back."""
    with engine.connect() as connection:
        driver = cast("psycopg.Connection[Any]", connection.connection.driver_connection)
        try:
            yield driver
        finally:
            # A connection that broke must not go back to the pool.
            if driver.closed or driver.broken:
                connection.invalidate()


@contextlib.contextmanager
def only_load_of(engine: sa.Engine, table: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of ``table``; another load of the same table waits. A dead process holds none."""
    reported = False

    def report(_: sa.Connection) -> None:
        nonlocal reported
        if not reported:
            waiting(f"{table}: waiting for another load of this table to end")
            reported = True

    with acquire_lock(engine.url, f"e2i load of {table}", seconds=math.inf, waiting=report):
        with connected(engine) as connection:
            _drop_left_over(connection, table)
        yield


def _drop_left_over(connection: psycopg.Connection[Any], table: str) -> None:
    """Drop staging tables of ``table``: who holds the lock knows that their process is dead."""
    from psycopg import sql

    found = connection.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = %s AND starts_with(tablename, %s)",
        (STAGING_SCHEMA, _staging_prefix(table)),
    ).fetchall()
    for (name,) in found:
        connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(sql.Identifier(STAGING_SCHEMA, name)))
    connection.commit()


def _staging_prefix(table: str) -> str:
    return f"{table}__"


def _one(connection: psycopg.Connection[Any], statement: Any, values: Sequence[Any] = ()) -> Any:
    row = connection.execute(statement, values).fetchone()
    return None if row is None else row[0]


def encode(rows: pa.Table) -> pa.Buffer:
    """``rows`` as text for ``COPY ... (FORMAT csv)``: every text quoted, null is nothing at all."""
    import pyarrow as pa
    from pyarrow import csv

    sink = pa.BufferOutputStream()
    csv.write_csv(rows, sink, csv.WriteOptions(include_header=False, quoting_style="needed"))
    return sink.getvalue()


@dataclass(frozen=True)
class Going:
    """A row that leaves the table: its key, its month, why, and the key of the row that takes it back."""

    row: str
    month: str | None
    reason: Literal["not_delivered", "reversed"]
    reversal: str | None = None


@dataclass(frozen=True)
class Merged:
    """What a merge did; ``months`` gives the rows written (inserted, updated, withdrawn or restored) of each month.

    ``going`` names the withdrawn rows, by key; only :meth:`Staging.compare` does.
    """

    inserted: int
    updated: int
    unchanged: int
    months: dict[str, int]
    withdrawn: int = 0
    restored: int = 0
    going: tuple[Going, ...] = ()


class Staging:
    """The accepted rows of one table of one load.

    Args:
        rows: parsed rows in the column order of the table (``rules.Checked.rows``).
        batch_size: rows of one COPY, the unit that is tried again.
        restated: the rows are all of their months (of the table, where it has no months): what the table has of
            these months beside them is withdrawn, but for the keys ``restated``, which were delivered too and
            not taken. None: nothing is withdrawn for that reason.
        taken: rows that reversals take back and give back.
        completed: dates of these rows that were delivered without their day: (row key, column, delivered text,
            precision, rule).
    """

    def __init__(
        self,
        engine: sa.Engine,
        table: str,
        rows: pa.Table,
        *,
        load_id: str,
        batch_size: int,
        retries: Retries,
        restated: Sequence[str] | None = None,
        taken: TakenBack | None = None,
        completed: Sequence[tuple[str, str, str, str, str]] = (),
    ) -> None:
        self.engine = engine
        self.table = table
        self.rows = rows
        self.batch_size = batch_size
        self.retries = retries
        self.restated = restated
        self.reversed = [] if taken is None else taken.withdrawn
        self.restored = [] if taken is None else taken.restored
        self.settled: Sequence[str] = ()
        self.settled_reversals: Sequence[str] = ()
        self.completed = completed
        self.name = (_staging_prefix(table) + load_id.replace("-", ""))[:63]
        self._schema = STAGING_SCHEMA
        self.batches = 0

    def merge(self, load_id: str, tick: Callable[[int], None]) -> Merged:
        """Copy, then merge in one transaction. Either all rows are in the table afterwards, or none."""
        try:
            for last in (False, True):
                self._copy(tick)
                try:
                    return self.retries.run(lambda again: self._merge(load_id))
                except StagingLostError:
                    if last:
                        raise UnavailableError(
                            f"{self.table}: the database restarted twice while rows were copied.",
                            remedy="Load again when it is stable; the table was left as it was.",
                        ) from None
        finally:
            self._drop()
        raise AssertionError("the loop returns or raises")

    def compare(self) -> Merged:
        """What :meth:`merge` would do, without writing: a temporary table in a transaction rolled back."""
        with connected(self.engine) as connection:
            self._copy_temporary(connection)
            changed = connection.execute(self._changed_query(count=True)).fetchall()
            new = connection.execute(self._new_query()).fetchall()
            going = [*self._missing(connection), *self._going_reversed(connection)]
            back = self._coming_back(connection)
            connection.rollback()
        gone = [(row.month, 1) for row in going]
        merged = self._counted(new, changed, gone, back)
        return replace(merged, going=tuple(sorted(going, key=lambda row: row.row)))

    def _copy_temporary(self, connection: psycopg.Connection[Any]) -> None:
        """Copy into a temporary table, which the transaction's end drops."""
        from psycopg import sql

        self._schema = "pg_temp"
        connection.execute(
            sql.SQL("CREATE TEMPORARY TABLE {} ({}) ON COMMIT DROP").format(
                sql.Identifier(self.name), self._column_definitions()
            )
        )
        for first, batch in self._batches(50_000):
            self._copy_batch(connection, first, batch)

    def changed_since_withdrawal(self) -> list[str]:
        """Keys of the rows whose delivered columns are not as they were when the row was reversed."""
        from psycopg import sql

        statement = sql.SQL(
            "SELECT s.{key} FROM {staging} s JOIN load_withdrawals h ON h.row_key = s.{key} CROSS JOIN LATERAL "
            "jsonb_populate_record(NULL::{target}, h.content) t WHERE h.table_name = %s AND h.reason = 'reversed' "
            "AND h.restored_load_id IS NULL AND ROW({here}) IS DISTINCT FROM ROW({there})"
        )
        with connected(self.engine) as connection:
            self._copy_temporary(connection)
            parts = self._parts()
            query = statement.format(**{k: parts[k] for k in ("staging", "target", "key", "here", "there")})
            found = connection.execute(query, (self.table,)).fetchall()
            connection.rollback()
        return [row[0] for row in found]

    @property
    def _where(self) -> Any:
        from psycopg import sql

        return sql.Identifier(self._schema, self.name)

    # --- copy

    def _copy(self, tick: Callable[[int], None]) -> None:
        from psycopg import sql

        def create(_: bool) -> None:
            with connected(self.engine) as connection:
                connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self._where))
                connection.execute(
                    sql.SQL("CREATE UNLOGGED TABLE {} ({}) WITH (autovacuum_enabled = false)").format(
                        self._where, self._column_definitions()
                    )
                )
                connection.commit()

        self.retries.run(create)
        with contextlib.ExitStack() as stack:
            open_connection: list[psycopg.Connection[Any]] = []

            def copy(first: int, batch: pa.Table, again: bool) -> None:
                if again:
                    # A commit may have gone through although its answer was lost.
                    stack.close()
                    open_connection.clear()
                if not open_connection:
                    open_connection.append(stack.enter_context(connected(self.engine)))
                connection = open_connection[0]
                if again:
                    connection.execute(
                        sql.SQL("DELETE FROM {} WHERE _row >= %s AND _row < %s").format(self._where),
                        (first, first + batch.num_rows),
                    )
                self._copy_batch(connection, first, batch)
                connection.commit()

            for first, batch in self._batches(self.batch_size):
                self.retries.run(lambda again, first=first, batch=batch: copy(first, batch, again))
                self.batches += 1
                tick(batch.num_rows)

    def _batches(self, size: int) -> Iterator[tuple[int, pa.Table]]:
        for first in range(0, self.rows.num_rows, size):
            yield first, self.rows.slice(first, size)

    def _copy_batch(self, connection: psycopg.Connection[Any], first: int, batch: pa.Table) -> None:
        import pyarrow as pa
        from psycopg import sql

        numbers = pa.array(np.arange(first, first + batch.num_rows, dtype=np.int64))
        text = encode(batch.add_column(0, "_row", numbers))
        statement = sql.SQL("COPY {} FROM STDIN (FORMAT csv)").format(self._where)
        with connection.cursor().copy(statement) as copy:
            copy.write(memoryview(text))

    def _column_definitions(self) -> Any:
        from psycopg import sql

        dialect = postgresql.dialect()
        columns = raw_table(self.table).columns
        definitions = [sql.SQL("_row bigint")]
        definitions += [
            sql.SQL("{} {}").format(sql.Identifier(name), literal(columns[name].type.compile(dialect)))
            for name in self.rows.column_names
        ]
        return sql.SQL(", ").join(definitions)

    def _drop(self) -> None:
        from psycopg import sql

        # A table that cannot be dropped now is dropped by the next load of this table.
        with contextlib.suppress(exc.DBAPIError), connected(self.engine) as connection:
            connection.execute(sql.SQL("DROP TABLE IF EXISTS {}").format(self._where))
            connection.commit()

    # --- merge

    def _merge(self, load_id: str) -> Merged:
        from psycopg import sql

        with connected(self.engine) as connection:
            connection.execute("SET LOCAL work_mem = '128MB'")
            staged = _one(connection, sql.SQL("SELECT count(*) FROM {}").format(self._where))
            if staged != self.rows.num_rows:
                raise StagingLostError
            target = sql.Identifier(self.table)
            empty = not _one(connection, sql.SQL("SELECT EXISTS (SELECT 1 FROM {})").format(target))
            if empty:
                names = sql.SQL(", ").join(map(sql.Identifier, self.rows.column_names))
                connection.execute(
                    sql.SQL("INSERT INTO {} ({}) SELECT {} FROM {}").format(target, names, names, self._where)
                )
                changed, new = [], list(self._months_of_rows().items()) or [(None, staged)]
                gone = []
            else:
                changed = connection.execute(self._changed_query(count=False)).fetchall()
                new = connection.execute(self._insert_query()).fetchall()
                gone = self._withdraw_missing(connection, load_id)
            gone = [*gone, *self._withdraw_reversed(connection, load_id)]
            merged = self._counted(new, changed, gone, self._restore(connection, load_id))
            self._settle_rejects(connection, load_id)
            self._keep_precision(connection, load_id)
            connection.commit()
            return merged

    def _parts(self) -> dict[str, Any]:
        from psycopg import sql

        key = primary_key(self.table)
        content = [name for name in self.rows.column_names if name != key]
        dated = date_column(self.table)

        def listing(template: str, names: Sequence[str], own: str = "") -> Any:
            return sql.SQL(", ").join(
                literal(own if own and name == OWN_CELLS else template).format(c=sql.Identifier(name))
                for name in names
            )

        def both(staged: str) -> str:
            """Own columns that a delivery does not have keep their cells, like other columns."""
            nothing = "jsonb_build_object()"
            return f"coalesce(t.{OWN_CELLS}, {nothing}) || coalesce({staged}.{OWN_CELLS}, {nothing})"

        def month(of: str) -> Any:
            if dated is None or dated not in self.rows.column_names:
                return sql.SQL("NULL::text")
            return (
                sql.SQL("to_char({} AT TIME ZONE 'UTC', 'YYYY-MM')").format(
                    literal(of + ".{}").format(sql.Identifier(dated))
                )
                if isinstance(raw_table(self.table).columns[dated].type, sa.DateTime)
                else sql.SQL("to_char({}, 'YYYY-MM')").format(
                    literal(of + ".{}").format(sql.Identifier(dated))
                )
            )

        return {
            "target": sql.Identifier(self.table),
            "staging": self._where,
            "key": sql.Identifier(key),
            "names": listing("{c}", self.rows.column_names),
            "staged": listing("s.{c}", self.rows.column_names),
            "here": listing("t.{c}", content),
            "there": listing("s.{c}", content, both("s")),
            "assigned": listing("{c} = c.{c}", content, f"{{c}} = {both('c')}"),
            "content": content,
            "month": month,
        }

    def _changed_query(self, *, count: bool) -> Any:
        """Rows whose content differs, by month before and after; with ``count`` only counted."""
        from psycopg import sql

        parts = self._parts()
        if not parts["content"]:
            return sql.SQL("SELECT NULL::text, NULL::text, 0 WHERE false")
        changed = sql.SQL(
            "WITH changed AS MATERIALIZED (SELECT s.*, {before} AS _before FROM {staging} s JOIN {target} t "
            "USING ({key}) WHERE ROW({here}) IS DISTINCT FROM ROW({there}))"
        ).format(
            before=parts["month"]("t"), **{k: parts[k] for k in ("staging", "target", "key", "here", "there")}
        )
        if count:
            return sql.SQL("{} SELECT _before, {}, count(*) FROM changed c GROUP BY 1, 2").format(
                changed, parts["month"]("c")
            )
        return sql.SQL(
            "{changed}, written AS (UPDATE {target} t SET {assigned}, updated_at = now() FROM changed c "
            "WHERE t.{key} = c.{key} RETURNING c._before AS before, {after} AS after) "
            "SELECT before, after, count(*) FROM written GROUP BY 1, 2"
        ).format(
            changed=changed,
            after=parts["month"]("c"),
            **{k: parts[k] for k in ("target", "assigned", "key")},
        )

    def _new_query(self) -> Any:
        from psycopg import sql

        parts = self._parts()
        return sql.SQL(
            "SELECT {month}, count(*) FROM {staging} s WHERE NOT EXISTS "
            "(SELECT FROM {target} t WHERE t.{key} = s.{key}) GROUP BY 1"
        ).format(month=parts["month"]("s"), **{k: parts[k] for k in ("staging", "target", "key")})

    def _insert_query(self) -> Any:
        from psycopg import sql

        parts = self._parts()
        return sql.SQL(
            "WITH written AS (INSERT INTO {target} AS t ({names}) SELECT {staged} FROM {staging} s WHERE NOT "
            "EXISTS (SELECT FROM {target} o WHERE o.{key} = s.{key}) RETURNING {month} AS month) "
            "SELECT month, count(*) FROM written GROUP BY 1"
        ).format(
            month=parts["month"]("t"),
            **{k: parts[k] for k in ("target", "names", "staged", "staging", "key")},
        )

    def _missing_condition(self) -> Any:
        """True for rows ``t`` that a restated month or table did not deliver again; takes the spared keys."""
        from psycopg import sql

        parts = self._parts()
        condition = sql.SQL(
            "NOT t.{key} = ANY(%s) AND NOT EXISTS (SELECT FROM {staging} s WHERE s.{key} = t.{key})"
        ).format(**{k: parts[k] for k in ("staging", "key")})
        if date_column(self.table) is not None:
            condition += sql.SQL(" AND {} IN (SELECT {} FROM {} s)").format(
                parts["month"]("t"), parts["month"]("s"), parts["staging"]
            )
        if self.table == "ml_predictions":
            # Live answers are nobody's delivery.
            condition += sql.SQL(" AND t.origin = 'import'")
        return condition

    def _spared(self) -> list[str]:
        return [*(self.restated or ()), *(row for row, _, _ in self.reversed)]

    def _missing(self, connection: psycopg.Connection[Any]) -> list[Going]:
        """Rows that :meth:`_withdraw_missing` would withdraw."""
        from psycopg import sql

        if self.restated is None:
            return []
        parts = self._parts()
        statement = sql.SQL("SELECT t.{key}, {month} FROM {target} t WHERE {condition}").format(
            month=parts["month"]("t"),
            condition=self._missing_condition(),
            **{k: parts[k] for k in ("target", "key")},
        )
        found = connection.execute(statement, (self._spared(),))
        return [Going(row, month, "not_delivered") for row, month in found]

    def _withdraw_missing(self, connection: psycopg.Connection[Any], load_id: str) -> Sequence[Any]:
        """Move what a restated month did not deliver again to ``load_withdrawals``; rows by month."""
        from psycopg import sql

        if self.restated is None:
            return []
        parts = self._parts()
        moved = sql.SQL(
            "WITH gone AS (DELETE FROM {target} t WHERE {condition} RETURNING t.*), kept AS (INSERT INTO "
            "load_withdrawals (load_id, table_name, row_key, month, content) SELECT %s, %s, g.{key}, {month}, "
            "to_jsonb(g) FROM gone g RETURNING month) SELECT month, count(*) FROM kept GROUP BY 1"
        ).format(
            month=parts["month"]("g"),
            condition=self._missing_condition(),
            **{k: parts[k] for k in ("target", "key")},
        )
        return connection.execute(moved, (self._spared(), load_id, self.table)).fetchall()

    def _going_reversed(self, connection: psycopg.Connection[Any]) -> list[Going]:
        """Rows that :meth:`_withdraw_reversed` would withdraw; some of them are only delivered now."""
        from psycopg import sql

        if not self.reversed:
            return []
        parts = self._parts()
        keys = [row for row, _, _ in self.reversed]
        statement = sql.SQL(
            "SELECT s.{key}, {staged} FROM {staging} s WHERE s.{key} = ANY(%s) UNION ALL SELECT t.{key}, {month} FROM "
            "{target} t WHERE t.{key} = ANY(%s) AND NOT EXISTS (SELECT FROM {staging} s WHERE s.{key} = t.{key})"
        ).format(
            staged=parts["month"]("s"),
            month=parts["month"]("t"),
            **{k: parts[k] for k in ("staging", "target", "key")},
        )
        months = dict(connection.execute(statement, (keys, keys)).fetchall())
        return [Going(row, months.get(row), "reversed", by) for row, by, _ in self.reversed]

    def _withdraw_reversed(self, connection: psycopg.Connection[Any], load_id: str) -> Sequence[Any]:
        """Move the originals of reversals to ``load_withdrawals``, each with its reversal; rows by month."""
        from psycopg import sql

        if not self.reversed:
            return []
        parts = self._parts()
        moved = sql.SQL(
            "WITH named AS (SELECT * FROM unnest(%s::text[], %s::text[], %s::text[]) AS n(original, by, reversal)), "
            "gone AS (DELETE FROM {target} t USING named n WHERE t.{key} = n.original RETURNING t.*), kept AS ("
            "INSERT INTO load_withdrawals (load_id, table_name, row_key, month, reason, reversal_key, reversal, "
            "content) SELECT %s, %s, g.{key}, {month}, 'reversed', n.by, n.reversal::jsonb, to_jsonb(g) FROM gone g "
            "JOIN named n ON n.original = g.{key} RETURNING month) SELECT month, count(*) FROM kept GROUP BY 1"
        ).format(month=parts["month"]("g"), **{k: parts[k] for k in ("target", "key")})
        columns = [list(column) for column in zip(*self.reversed, strict=True)]
        return connection.execute(moved, (*columns, load_id, self.table)).fetchall()

    def _coming_back(self, connection: psycopg.Connection[Any]) -> Sequence[Any]:
        """Rows that :meth:`_restore` would give back, by month."""
        return connection.execute(
            "SELECT month, count(*) FROM load_withdrawals WHERE table_name = %s AND reason = 'reversed' AND "
            "restored_load_id IS NULL AND row_key = ANY(%s) GROUP BY 1",
            (self.table, self.restored),
        ).fetchall()

    def _restore(self, connection: psycopg.Connection[Any], load_id: str) -> Sequence[Any]:
        """Give reversed rows back to the table as they were; rows by month."""
        from psycopg import sql

        if not self.restored:
            return []
        statement = sql.SQL(
            "WITH back AS (UPDATE load_withdrawals SET restored_load_id = %s WHERE table_name = %s AND "
            "reason = 'reversed' AND restored_load_id IS NULL AND row_key = ANY(%s) RETURNING month, content), "
            "written AS (INSERT INTO {target} SELECT (jsonb_populate_record(NULL::{target}, content)).* FROM back) "
            "SELECT month, count(*) FROM back GROUP BY 1"
        ).format(target=sql.Identifier(self.table))
        return connection.execute(statement, (load_id, self.table, self.restored)).fetchall()

    def _counted(
        self, new: Sequence[Any], changed: Sequence[Any], gone: Sequence[Any], back: Sequence[Any]
    ) -> Merged:
        months: dict[str, int] = {}
        for month, rows in (*new, *gone, *back):
            months[month] = months.get(month, 0) + rows
        for before, after, rows in changed:
            # A row that moves to another month touches both.
            for month in {before, after}:
                months[month] = months.get(month, 0) + rows
        inserted, updated = sum(row[-1] for row in new), sum(row[-1] for row in changed)
        known = {month: rows for month, rows in sorted(months.items(), key=str) if month is not None}
        withdrawn, restored = (sum(row[-1] for row in rows) for rows in (gone, back))
        return Merged(inserted, updated, self.rows.num_rows - inserted - updated, known, withdrawn, restored)

    def _months_of_rows(self) -> dict[str, int]:
        dated = date_column(self.table)
        if dated is None or dated not in self.rows.column_names:
            return {}
        months, counts = np.unique(months_of(self.rows.column(dated)), return_counts=True)
        return {str(month): int(rows) for month, rows in zip(months, counts, strict=True)}

    def _settle_rejects(self, connection: psycopg.Connection[Any], load_id: str) -> None:
        """Earlier rejects of keys that are now loaded are settled."""
        from psycopg import sql

        open_rejects = _one(
            connection,
            "SELECT EXISTS (SELECT 1 FROM load_rejects WHERE table_name = %s AND state = 'open')",
            (self.table,),
        )
        if not open_rejects:
            return
        # A reversal may have the key of its original: each settles only rejects of its kind.
        settled = sql.SQL(
            "UPDATE load_rejects r SET state = 'resubmitted', resubmitted_load_id = %s FROM {keys} "
            "WHERE r.table_name = %s AND r.state = 'open' AND r.load_id <> %s AND r.row_key = s.{key} AND "
            "jsonb_exists(r.raw_row, {mark}) = {reversal}"
        )
        key = sql.Identifier(primary_key(self.table))
        given = sql.SQL("unnest(%s::text[]) AS s({})").format(key)
        staged = sql.SQL("{} s").format(self._where)
        for keys, named, reversal in (
            (staged, (), False),
            (given, (list(self.settled),), False),
            (given, (list(self.settled_reversals),), True),
        ):
            statement = settled.format(
                keys=keys, key=key, mark=sql.Literal(REVERSAL_MARK), reversal=sql.Literal(reversal)
            )
            connection.execute(statement, (load_id, *named, self.table, load_id))

    def _keep_precision(self, connection: psycopg.Connection[Any], load_id: str) -> None:
        """What was delivered of dates without a day, in place of what earlier loads said of these cells."""
        from psycopg import sql

        connection.execute(
            sql.SQL(
                "DELETE FROM load_completed_dates d USING {staging} s WHERE d.table_name = %s "
                "AND d.row_key = s.{key} AND d.column_name = ANY(%s)"
            ).format(staging=self._where, key=sql.Identifier(primary_key(self.table))),
            (self.table, list(self.rows.column_names)),
        )
        if not self.completed:
            return
        columns = "table_name, row_key, column_name, delivered, precision, rule, load_id"
        statement = sql.SQL("COPY load_completed_dates ({}) FROM STDIN").format(literal(columns))
        with connection.cursor().copy(statement) as copy:
            for cell in self.completed:
                copy.write_row((self.table, *cell, load_id))


def changed_since_withdrawal(engine: sa.Engine, table: str, rows: pa.Table) -> list[str]:
    """Keys of ``rows`` (parsed, of reversed rows of ``table``) whose content is not that of the reversed row."""
    staged = Staging(engine, table, rows, load_id="again", batch_size=50_000, retries=Retries(0))
    return staged.changed_since_withdrawal()


def literal(text: str) -> Any:
    """SQL from our own table description."""
    from psycopg import sql

    return sql.SQL(cast("Any", text))


def months_of(dates: Any) -> np.ndarray:
    """Month (``datetime64[M]``, UTC) of each value of an Arrow date or timestamp column; null is NaT."""
    import pyarrow as pa

    array = dates.combine_chunks() if isinstance(dates, pa.ChunkedArray) else dates
    if pa.types.is_timestamp(array.type):
        array = array.cast(pa.timestamp("us"))
    values = array.to_numpy(zero_copy_only=False)
    return values.astype("datetime64[D]").astype("datetime64[M]")


def existing(engine: sa.Engine, column: sa.Column[Any], keys: pa.Array) -> pa.Array:
    """Those of ``keys`` (distinct) that ``column`` has in the warehouse."""
    import pyarrow as pa

    wanted = text_list(keys.to_pylist())
    statement = sa.select(column).distinct().where(column == sa.func.any(wanted))
    with engine.connect() as connection:
        return pa.array(connection.execute(statement).scalars().all(), pa.large_string())


def text_list(values: Sequence[str]) -> Any:
    """A bound array of texts, for ``= ANY (...)``."""
    return sa.bindparam(None, list(values), type_=postgresql.ARRAY(sa.Text))


def utc_now() -> dt.datetime:
    """The time now, in UTC."""
    return dt.datetime.now(dt.UTC)
