"""Rows that take earlier rows back: which original each reversal of a delivery finds.

Fills and reversals that agree in the columns of the rule, and in their amounts but for the sign, are one
group; codes agree when they are one code, however each is spelled. Of ``n`` fills and ``m`` reversals of a group
the ``min(n, m)`` most recent fills are reversed: later ``source_timestamp`` first, then greater key. Fills that
were reversed before belong to their group like those in the table, so that the outcome does not depend on the
order in which fills and reversals arrive.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.mapping import ReversalRule
from e2i_dagster.loading import staging
from e2i_dagster.tables import date_column, facts, primary_key, raw_table, rules
from e2i_dagster.tables.cells import NUMBER, as_text, kind_of, numbers_of
from e2i_dagster.tables.codes import BLANKS, DASHES, NDC_FORMS, NDC_SEPARATOR, SYSTEMS, normal_code

if TYPE_CHECKING:
    import psycopg
    import pyarrow as pa

#: Amounts are NUMERIC(18, 6) in the warehouse.
_DECIMALS = 6
_NEVER = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Reversals:
    """A rule and the rows of a frame that are reversals by it.

    Attributes:
        rows: True for rows that take another row back.
        unreadable: True where the column that tells reversals apart should be a number and is none.
    """

    rule: ReversalRule
    rows: np.ndarray
    unreadable: np.ndarray

    @classmethod
    def of(cls, rule: ReversalRule, frame: pd.DataFrame, among: np.ndarray | None = None) -> Reversals:
        """The reversals of ``frame`` (delivered columns under our names), or only those ``among`` its rows."""
        rows, unreadable = np.zeros(len(frame), bool), np.zeros(len(frame), bool)
        if rule.where.column in frame.columns:
            given = frame[rule.where.column]
            if rule.where.values:
                rows = given.astype("string").str.strip().isin(rule.where.values).to_numpy(dtype=bool)
            else:
                numbers = numbers_of(given)
                rows = numbers.to_numpy() < 0
                unreadable = (numbers.isna() & given.notna()).to_numpy(dtype=bool)
        if among is not None:
            rows, unreadable = rows & among, unreadable & among
        return cls(rule, rows, unreadable)


@dataclass
class TakenBack:
    """What reversals do to a table.

    Attributes:
        counted: True for delivered reversals that take a row back, now or since an earlier load.
        known: True for delivered rows that are reversed already; they do not come back.
        withdrawn: (key of the original, key of the reversal, the reversal as JSON).
        restored: keys of reversed rows that come back, because a more recent row of their group is reversed
            in their place.
    """

    counted: np.ndarray
    known: np.ndarray
    withdrawn: list[tuple[str, str, str]] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)

    @classmethod
    def nothing(cls, rows: int) -> TakenBack:
        """No row of ``rows`` is a reversal or was reversed."""
        return cls(np.zeros(rows, bool), np.zeros(rows, bool))


def find(
    engine: sa.Engine,
    checked: rules.Checked,
    accepted: np.ndarray,
    declared: Reversals | None,
    documents: Callable[[np.ndarray], list[str]],
    own: Mapping[str, str] | None = None,
) -> TakenBack:
    """Find the original of each accepted reversal, and delivered rows that were reversed before.

    Reversals without an original, and rows that contradict what was taken back, become faults of ``checked``.

    Args:
        accepted: rows that will be written, reversals among them.
        documents: rows as JSON, as delivered, for positions.
        own: declared types of own columns, code systems among them.
    """
    found = TakenBack.nothing(len(accepted))
    table = checked.table
    history = _reversed_keys(engine, table)
    if not history and declared is None:
        return found
    keys = checked.rows.column(primary_key(table)).to_pandas().to_numpy(dtype=object)
    fills = accepted & ~checked.reversal
    if history:
        found.known = fills & np.isin(keys, list(history))
        _refuse_changed(engine, checked, found, keys)
        fills = fills & ~checked.bad
    if declared is None or not (history or (accepted & checked.reversal).any()):
        return found
    with staging.connected(engine) as connection:
        _Matching(connection, checked, declared.rule, keys, bool(history), own or {}).run(
            found, fills, np.flatnonzero(accepted & checked.reversal), documents
        )
    return found


def rules_of(engine: sa.Engine, table: str, load_ids: Sequence[str]) -> dict[str, ReversalRule]:
    """Load -> the rule under which it read ``table``, oldest first; loads without a rule are left out."""
    from e2i_dagster.tables.description.control import ml_table_loads as loads

    statement = (
        sa.select(loads.c.load_id, loads.c.reversal_rule)
        .where(loads.c.table_name == table, loads.c.load_id == sa.func.any(staging.text_list(load_ids)))
        .where(loads.c.reversal_rule.is_not(None))
        .order_by(loads.c.loaded_at)
    )
    with engine.connect() as connection:
        return {row[0]: ReversalRule.model_validate(row[1]) for row in connection.execute(statement)}


_REVERSED = "h.table_name = %s AND h.reason = 'reversed' AND h.restored_load_id IS NULL"


def _reversed_keys(engine: sa.Engine, table: str) -> set[str]:
    with staging.connected(engine) as connection:
        statement = staging.literal(f"SELECT h.row_key FROM load_withdrawals h WHERE {_REVERSED}")
        return {row[0] for row in connection.execute(statement, (table,))}


def _refuse_changed(engine: sa.Engine, checked: rules.Checked, found: TakenBack, keys: np.ndarray) -> None:
    """Rows that were reversed and come again with other content become faults."""
    import pyarrow as pa

    if not found.known.any():
        return
    again = checked.rows.filter(pa.array(found.known))
    changed = staging.changed_since_withdrawal(engine, checked.table, again)
    mask = found.known & np.isin(keys, changed)
    checked.add(mask, "changed_after_reversal", primary_key(checked.table))
    found.known &= ~mask


class _Matching:
    """The groups of one table, from the delivery, the table and the history of reversed rows."""

    def __init__(
        self,
        connection: psycopg.Connection[Any],
        checked: rules.Checked,
        rule: ReversalRule,
        keys: np.ndarray,
        history: bool,
        own: Mapping[str, str],
    ) -> None:
        self.connection = connection
        self.checked = checked
        self.rule = rule
        self.keys = keys
        self.history = history
        self.matched = ([primary_key(checked.table)] if rule.refers_to else []) + list(rule.matches_on)
        columns = raw_table(checked.table).columns
        systems = {name: facts(columns[name]).codes for name in self.matched if name in columns}
        systems |= {name: (kind,) for name, kind in own.items() if kind in SYSTEMS}
        #: Column -> system of its codes.
        self.systems = {name: codes[0] for name, codes in systems.items() if codes and name in self.matched}
        self.same = [f"same{i}" for i in range(len(self.matched))]
        self.amounts = [f"amount{i}" for i in range(len(rule.amounts))]
        self.group = self.same + self.amounts

    def run(
        self,
        found: TakenBack,
        fills: np.ndarray,
        reversals: np.ndarray,
        documents: Callable[[np.ndarray], list[str]],
    ) -> None:
        given = self._delivered(reversals, reversal=True)
        known = self._known(given)
        self._refuse(given[known.eq("other")], "changed_reversal")
        found.counted[given.loc[known.eq("same"), "position"].to_numpy(dtype=np.int64)] = True
        new = given[known.eq("new")]
        usable = new[self.group].notna().all(axis=1)
        unusable, new = new[~usable], new[usable]
        delivered = self._delivered(np.flatnonzero(fills & ~found.known)).dropna(subset=self.group)
        before = self._reversed()
        touched = delivered[self.same].merge(before[self.same].drop_duplicates(), on=self.same)
        needed = pd.concat([new[self.same], touched], ignore_index=True).drop_duplicates(ignore_index=True)
        active = self._active(needed)
        active = active[~active["key"].isin(self.keys[fills])]
        together = pd.concat(
            [
                active.assign(was="active"),
                delivered.merge(needed, on=self.same).assign(was="delivered"),
                before.merge(needed, on=self.same).assign(was="reversed"),
            ],
            ignore_index=True,
        ).dropna(subset=self.group)
        taken = self._assign(found, together, new, documents)
        found.counted[new.loc[taken, "position"].to_numpy(dtype=np.int64)] = True
        left = new[~taken]
        standing = together[~together["reversed"]]
        partial = self._partial(left, standing)
        self._refuse(left[partial], "partial_reversal")
        self._refuse(pd.concat([left[~partial], unusable]), "unmatched_reversal")

    def _refuse(self, given: pd.DataFrame, reason: str) -> None:
        mask = np.zeros(len(self.keys), bool)
        mask[given["position"].to_numpy(dtype=np.int64)] = True
        self.checked.add(mask, reason, self.rule.refers_to or self.rule.where.column)

    def _assign(
        self,
        found: TakenBack,
        together: pd.DataFrame,
        new: pd.DataFrame,
        documents: Callable[[np.ndarray], list[str]],
    ) -> np.ndarray:
        """Decide which fills are reversed (column ``reversed`` of ``together``) and which of ``new`` take one."""
        together.sort_values(["made", "key"], ascending=False, inplace=True, ignore_index=True)
        both = pd.concat([together[self.group], new[self.group]], ignore_index=True)
        codes = both.groupby(self.group, sort=False).ngroup().to_numpy(dtype=np.int64)
        of_fill, of_new = codes[: len(together)], codes[len(together) :]
        size = int(codes.max()) + 1 if len(codes) else 0
        was = (together["was"] == "reversed").to_numpy(dtype=bool)
        earlier = np.bincount(of_fill[was], minlength=size)
        many = np.minimum(np.bincount(of_fill, minlength=size), earlier + np.bincount(of_new, minlength=size))
        rank = together.groupby(of_fill).cumcount().to_numpy()
        together["reversed"] = rank < many[of_fill]
        order = np.argsort(new["key"].to_numpy(dtype=object), kind="stable")
        place = np.empty(len(new), np.int64)
        place[order] = pd.Series(of_new[order]).groupby(of_new[order]).cumcount().to_numpy()
        taken: np.ndarray = place < (many - earlier)[of_new]

        now = together["reversed"].to_numpy(dtype=bool)
        gone, back = now & ~was, was & ~now
        found.restored = together.loc[back, "key"].tolist()
        freed = self._pairs_of(together.loc[back, "key"].tolist())
        positions = new.loc[taken, "position"].to_numpy(dtype=np.int64)
        by = pd.DataFrame(
            {
                "group": [*of_fill[back], *of_new[taken]],
                "by": [*(freed[key][0] for key in found.restored), *new.loc[taken, "key"]],
                "row": [
                    *(freed[key][1] for key in found.restored),
                    *(documents(positions) if len(positions) else []),
                ],
            }
        )
        originals = pd.DataFrame(
            {"group": of_fill[gone], "key": together.loc[gone, "key"].to_numpy(dtype=object)}
        )
        pairs = originals.assign(place=originals.groupby("group").cumcount()).merge(
            by.assign(place=by.groupby("group").cumcount()), on=["group", "place"]
        )
        found.withdrawn = list(pairs[["key", "by", "row"]].itertuples(index=False, name=None))
        return taken

    def _partial(self, left: pd.DataFrame, standing: pd.DataFrame) -> np.ndarray:
        """True for reversals of less than a fill that agrees in everything but the amounts."""
        if not self.amounts or left.empty:
            return np.zeros(len(left), bool)
        met = left[["position", *self.group]].merge(
            standing[self.group], on=self.same, suffixes=("", "_whole")
        )
        part = met[self.amounts].to_numpy()
        whole = met[[f"{name}_whole" for name in self.amounts]].to_numpy()
        less = np.flatnonzero((part <= whole).all(axis=1) & (part < whole).any(axis=1))
        return left["position"].isin(met["position"].to_numpy()[less]).to_numpy(dtype=bool)

    def _known(self, given: pd.DataFrame) -> pd.Series:
        """Per reversal: ``new``; ``same`` as one that took a row back before; ``other`` under the key of one."""
        known = pd.Series("new", index=given.index, dtype=object)
        if not self.history or given.empty:
            return known
        pairs = self._from_history("h.reversal_key = ANY(%s)", (given["key"].tolist(),), "h.reversal_key")
        if pairs.empty:
            return known
        here = given["key"].isin(pairs["key"]).to_numpy(dtype=bool)
        same = given[["key", *self.group]].merge(
            pairs[["key", *self.group]].drop_duplicates(), how="left", indicator=True
        )
        agrees = (same["_merge"] == "both").to_numpy(dtype=bool)
        known[here] = np.where(agrees[here], "same", "other")
        return known

    # --- rows

    def _delivered(self, positions: np.ndarray, *, reversal: bool = False) -> pd.DataFrame:
        """``position``, ``key``, ``made`` and the columns of the group, of delivered rows."""
        rows = self.checked.rows.take(positions)
        texts: dict[str, Any] = {}
        for name, column in zip(self.same, self.matched, strict=True):
            texts[name] = self._texts(rows, column)
        if reversal and self.rule.refers_to is not None:
            texts[self.same[0]] = _given_texts(self.checked.given, self.rule.refers_to, positions)
        numbers = {
            name: self._numbers(rows, column)
            for name, column in zip(self.amounts, self.rule.amounts, strict=True)
        }
        made = np.full(len(positions), _NEVER)
        if "source_timestamp" in rows.column_names:
            made = _micros(rows.column("source_timestamp"))
        return pd.DataFrame(
            {"position": positions, "key": self.keys[positions], "made": made, **texts, **numbers}
        )

    def _texts(self, rows: pa.Table, name: str) -> np.ndarray:
        import pyarrow as pa

        if name not in rows.column_names:
            texts = _own(rows, name)
        else:
            column = rows.column(name)
            if pa.types.is_timestamp(column.type):
                column = column.cast(pa.timestamp("us", "UTC")).cast(pa.int64())
            texts = column.cast(pa.large_string()).to_pylist()
        if name in self.systems:
            system = self.systems[name]
            compared = {text: normal_code(text, system) for text in set(texts) if text}
            texts = [compared.get(text) for text in texts]
        return np.array([text or None for text in texts], dtype=object)

    def _numbers(self, rows: pa.Table, name: str) -> np.ndarray:
        if name not in rows.column_names:
            return (
                numbers_of(pd.Series(_own(rows, name), dtype="string[pyarrow]"))
                .abs()
                .round(_DECIMALS)
                .to_numpy()
            )
        return rows.column(name).to_pandas().astype("float64").abs().round(_DECIMALS).to_numpy()

    # --- the warehouse

    def _active(self, needed: pd.DataFrame) -> pd.DataFrame:
        """Rows of the table in the groups ``needed``."""
        from psycopg import sql

        names = ["key", *self.group, "made"]
        if needed.empty:
            return _rows([], names)
        table = raw_table(self.checked.table)

        def cell(name: str) -> Any:
            return sql.SQL("t.{}").format(sql.Identifier(name))

        def own(name: str) -> Any:
            return sql.SQL("t.extra ->> {}").format(sql.Literal(name))

        cells = self._cells(cell, own)
        places = sql.SQL(", ").join(map(sql.Identifier, self.same))
        arrays = sql.SQL(", ").join([sql.SQL("%s::text[]")] * len(self.same))
        equal = sql.SQL(" AND ").join(
            sql.SQL("{} = u.{}").format(cells[name], sql.Identifier(name)) for name in self.same
        )
        # Live answers are nobody's delivery.
        imported = sql.SQL(" AND t.origin = 'import'" if table.name == "ml_predictions" else "")
        statement = sql.SQL("SELECT {} FROM {} t JOIN unnest({}) AS u({}) ON {}{}").format(
            sql.SQL(", ").join(cells[name] for name in names),
            sql.Identifier(table.name),
            arrays,
            places,
            equal,
            imported,
        )
        found = self.connection.execute(statement, [needed[name].tolist() for name in self.same])
        return _rows(found.fetchall(), names)

    def _reversed(self) -> pd.DataFrame:
        """Rows of the table that are reversed; where days must agree, of the delivered months only."""
        dated = date_column(self.checked.table)
        if not self.history:
            return _rows([], ["key", *self.group, "made"])
        if dated is None or dated not in self.rule.matches_on:
            return self._from_history("true", (), "h.row_key")
        months = np.unique(staging.months_of(self.checked.rows.column(dated)).astype(str)).tolist()
        return self._from_history("h.month = ANY(%s)", (months,), "h.row_key")

    def _from_history(self, condition: str, values: Sequence[Any], key: str) -> pd.DataFrame:
        from psycopg import sql

        names = ["key", *self.group, "made"]

        def cell(name: str) -> Any:
            kind = raw_table(self.checked.table).columns[name].type
            content = sql.SQL("h.content ->> {}").format(sql.Literal(name))
            return sql.SQL("({})::timestamptz").format(content) if isinstance(kind, sa.DateTime) else content

        def own(name: str) -> Any:
            return sql.SQL("h.content -> 'extra' ->> {}").format(sql.Literal(name))

        cells = self._cells(cell, own) | {"key": staging.literal(key)}
        statement = sql.SQL("SELECT {} FROM load_withdrawals h WHERE {} AND {}").format(
            sql.SQL(", ").join(cells[name] for name in names),
            staging.literal(_REVERSED),
            staging.literal(condition),
        )
        return _rows(self.connection.execute(statement, (self.checked.table, *values)).fetchall(), names)

    def _cells(self, cell: Callable[[str], Any], own: Callable[[str], Any]) -> dict[str, Any]:
        """SQL of the key, of the columns of the group as :meth:`_delivered` has them, and of ``made``."""
        from psycopg import sql

        columns = raw_table(self.checked.table).columns
        epoch = sql.SQL("(extract(epoch FROM {}) * 1000000)::bigint")
        found: dict[str, Any] = {"key": cell(primary_key(self.checked.table))}
        for name, column in zip(self.same, self.matched, strict=True):
            kind = "text" if column not in columns else kind_of(columns[column])
            value = cell(column) if column in columns else sql.SQL("({})").format(own(column))
            if kind == "timestamp":
                value = epoch.format(value)
            found[name] = value if kind == "text" else sql.SQL("({})::text").format(value)
            if column in self.systems:
                found[name] = _compared(found[name], self.systems[column])
        for name, column in zip(self.amounts, self.rule.amounts, strict=True):
            if column in columns:
                found[name] = sql.SQL("({})::float8").format(cell(column))
            else:
                found[name] = sql.SQL("CASE WHEN {own} ~ {number} THEN ({own})::float8 END").format(
                    own=own(column), number=sql.Literal(NUMBER)
                )
        made = epoch.format(cell("source_timestamp")) if "source_timestamp" in columns else sql.SQL("NULL")
        return found | {"made": made}

    def _pairs_of(self, originals: Sequence[str]) -> dict[str, tuple[str, str]]:
        """Original -> key and JSON of the reversal that took it back."""
        if not originals:
            return {}
        statement = staging.literal(
            "SELECT h.row_key, h.reversal_key, h.reversal::text FROM load_withdrawals h "
            f"WHERE {_REVERSED} AND h.row_key = ANY(%s)"
        )
        found = self.connection.execute(statement, (self.checked.table, list(originals)))
        return {row[0]: (row[1], row[2]) for row in found}


def _compared(value: Any, system: str) -> Any:
    """SQL of a code as it is compared: as :func:`.codes.normal_code`."""
    from psycopg import sql

    text = sql.SQL("regexp_replace(upper(btrim({}, {})), {}, '-', 'g')").format(
        value, sql.Literal(BLANKS), sql.Literal(DASHES)
    )
    if system != "ndc":
        return sql.SQL("nullif(replace({}, '.', ''), '')").format(text)
    digits = sql.SQL("regexp_replace({}, {}, '', 'g')").format(text, sql.Literal(NDC_SEPARATOR))
    forms = [
        sql.SQL("WHEN {} ~ {} THEN {}").format(
            text,
            sql.Literal(form),
            digits
            if place is None
            else sql.SQL("left({digits}, {place}) || '0' || substr({digits}, {place} + 1)").format(
                digits=digits, place=sql.Literal(place)
            ),
        )
        for form, place in NDC_FORMS
    ]
    return sql.SQL("CASE {} ELSE nullif({}, '') END").format(sql.SQL(" ").join(forms), text)


def _rows(found: Sequence[Any], names: Sequence[str]) -> pd.DataFrame:
    frame = pd.DataFrame(found, columns=list(names), dtype=object)
    for name in names:
        if name.startswith("amount"):
            frame[name] = frame[name].astype("float64").abs().round(_DECIMALS)
    frame["made"] = np.array([_NEVER if made is None else made for made in frame["made"]], dtype=np.int64)
    return frame


def _given_texts(frame: pd.DataFrame, name: str, positions: np.ndarray) -> np.ndarray:
    if name not in frame.columns:
        return np.full(len(positions), None, dtype=object)
    texts = as_text(frame[name].iloc[positions])
    return np.array([None if text is None else text.strip() or None for text in texts], dtype=object)


def _own(rows: pa.Table, name: str) -> list[str | None]:
    """An own column as PostgreSQL writes it with ``extra ->> name``; None where a row has none."""
    if "extra" not in rows.column_names:
        return [None] * rows.num_rows
    values = [json.loads(text).get(name) if text else None for text in rows.column("extra").to_pylist()]
    return [
        None if value is None or value == "" else value if isinstance(value, str) else json.dumps(value)
        for value in values
    ]


def _micros(column: pa.ChunkedArray) -> np.ndarray:
    import pyarrow as pa

    return column.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).fill_null(_NEVER).to_numpy()
