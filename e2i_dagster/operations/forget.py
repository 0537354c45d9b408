"""Erasing one patient: rows go, a tombstone stays, and what can no longer be replayed is marked.

The patient is named by the pseudonym under the installation's key, so that neither the history of runs nor the record
of the erasure holds the key of the patient. The order is such that an erasure which was cut off can be repeated:
first the tombstone, by which loads leave the patient out; then files of the lake and online values; last, in one
transaction, the rows of the warehouse, by which the patient is found.

A file of the lake keeps its name and with it the digest of the values that it had. The ledger gets its new length and
checksum, and ``ml_erased_files`` says that it is another one: nothing is made again because of an erasure, and a replay
(``e2i verify``) says that and why it cannot be made.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import sqlite3
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from e2i_dagster.database.connection import engine as connect
from e2i_dagster.errors import InputError
from e2i_dagster.loading.erased import required_key
from e2i_dagster.local_files import write_text
from e2i_dagster.policy_files.actors import Actor
from e2i_dagster.policy_files.pseudonyms import pseudonym
from e2i_dagster.splits.seal import Seal
from e2i_dagster.tables import (
    OPTIONAL_RAW_TABLES,
    PATIENT_COLUMNS,
    RAW_TABLES,
    all_metadata,
    primary_key,
    raw_table,
)
from e2i_dagster.tables.arrow import compute
from e2i_dagster.tables.description.cohorts import ml_patient_level_access
from e2i_dagster.tables.description.control import (
    load_completed_dates,
    load_rejects,
    load_withdrawals,
    ml_data_versions,
    ml_erased_files,
    ml_erased_keys,
    ml_erasures,
    ml_lake_files,
)
from e2i_dagster.tables.description.models import ml_model_registry, ml_training_runs
from e2i_dagster.tables.description.monitoring import ml_prediction_labels
from e2i_dagster.tables.description.splits import ml_seal_openings
from e2i_dagster.versions import files
from e2i_dagster.versions.lake import Lake

_RAW = (*RAW_TABLES, *OPTIONAL_RAW_TABLES)
#: What is kept, and why.
_REMAINS = {
    "models, evaluations, explanations and drift reports": (
        "they hold figures over many patients and no row of one; train again to have a model without the patient"
    ),
    "aggregates (counts of cohorts, quality figures, business metrics)": "they hold no row of one patient",
    "delivered files": "they are the supplier's; loads leave the patient's rows out (reason erased_patient)",
    "backups that were taken before": "they are copies outside of the installation; take a new one, delete the old",
}


@dataclass(frozen=True)
class _Patient:
    """Who is erased: pseudonym, key, keys of the journeys."""

    pseudonym: str
    patient: str
    journeys: frozenset[str]

    @property
    def values(self) -> Mapping[str, frozenset[str]]:
        """Column -> keys that name the patient there."""
        return dict(zip(PATIENT_COLUMNS, (frozenset({self.patient}), self.journeys), strict=True))

    @property
    def keys(self) -> frozenset[str]:
        """Keys of patient and journeys."""
        return self.journeys | {self.patient}


@dataclass
class Erasure:
    """What was, or would be, erased where.

    Attributes:
        state: ``erased``; ``already_erased``; ``would_be_erased`` of a dry run.
        warehouse: table -> rows. lake: asset -> rows of all versions. online: scope -> values.
        pseudonymised: table of the audits -> rows that keep the pseudonym instead of the key.
        runs, models, dossiers: what can no longer be replayed.
        seals: what became of the openings of sealed sets.
        remains: what stays, and why.
    """

    pseudonym: str
    state: str
    warehouse: dict[str, int] = field(default_factory=dict)
    pseudonymised: dict[str, int] = field(default_factory=dict)
    lake: dict[str, int] = field(default_factory=dict)
    online: dict[str, int] = field(default_factory=dict)
    runs: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    dossiers: list[str] = field(default_factory=list)
    seals: list[str] = field(default_factory=list)
    remains: dict[str, str] = field(default_factory=dict)

    def to_record(self) -> dict[str, Any]:
        """JSON-compatible values; no key of the patient."""
        return dict(vars(self))


def pseudonym_of(patient: str) -> str:
    """The pseudonym of the key ``patient`` under the installation's key."""
    return pseudonym(required_key(), patient)


def erased_before(alias: str) -> dict[str, Any] | None:
    """The finished erasure of the patient or journey with the pseudonym ``alias``; None when there is none."""
    query = (
        sa.select(ml_erasures)
        .join(ml_erased_keys, ml_erased_keys.c.pseudonym == ml_erasures.c.pseudonym)
        .where(ml_erased_keys.c.key_pseudonym == alias, ml_erasures.c.ended_at.is_not(None))
    )
    with connect("owner").connect() as connection:
        row = connection.execute(query).mappings().first()
    return None if row is None else {str(name): value for name, value in row.items()}


def forget(
    alias: str, *, reason: str, by: Actor, run_id: str, lake: Lake, state: Path, dry_run: bool = False
) -> Erasure:
    """Erase the patient whose key, or the key of a journey of whom, has the pseudonym ``alias``.

    Erasing again changes nothing and returns the report of the first time.

    Args:
        state: the state folder, with the online features.
        dry_run: count only.

    Raises:
        InputError: no patient has this pseudonym, or the reason is too short.
    """
    if not dry_run and len(reason.strip()) < 10:
        raise InputError(
            f"The reason is read by the next person: found {reason.strip()!r}, at least 10 characters are expected.",
            field="reason",
            value=reason.strip(),
            remedy="Say who asked for it and when.",
        )
    owner = connect("owner")
    before = erased_before(alias)
    who = _find(owner, alias)
    if who is None:
        if before is not None:
            return Erasure(**{**before["report"], "state": "already_erased"})
        raise InputError(
            "No patient and no journey of the warehouse or of its rejects has this key.",
            field="patient",
            remedy="Name the key as it is in patient_journeys (patient_id or patient_journey_id).",
        )
    found = Erasure(who.pseudonym, "would_be_erased" if dry_run else "erased", remains=dict(_REMAINS))
    if not dry_run:
        _set_tombstone(owner, who, reason.strip(), by, run_id)
    seals = _seals(owner, lake, who)
    digests = _erase_in_lake(owner, lake, state, who, found, dry_run)
    _erase_online(state, who, found, dry_run)
    with owner.begin() as connection:
        _not_replayable(connection, digests, state, found)
        _move_seals(connection, seals, found)
        _erase_rows(connection, who, found)
        if dry_run:
            connection.rollback()
        else:
            connection.execute(
                sa.update(ml_erasures)
                .where(ml_erasures.c.pseudonym == who.pseudonym)
                .values(ended_at=dt.datetime.now(dt.UTC), report=found.to_record())
            )
    return found


def _find(engine: sa.Engine, alias: str) -> _Patient | None:
    """The patient with the pseudonym, in the raw tables or in rejects."""
    key = required_key()
    journeys = raw_table("patient_journeys").c
    with engine.connect() as connection:
        pairs = connection.execute(sa.select(journeys.patient_id, journeys.patient_journey_id)).all()
        patient = next((p for p, j in pairs if alias in (pseudonym(key, p), pseudonym(key, j))), None)
        if patient is None:
            elsewhere: set[str] = set()
            for name in _RAW:
                if "patient_id" in raw_table(name).c and name != "patient_journeys":
                    elsewhere |= set(connection.scalars(sa.select(raw_table(name).c.patient_id).distinct()))
            for column in PATIENT_COLUMNS:
                elsewhere |= set(
                    connection.scalars(sa.select(load_rejects.c.raw_row[column].astext).distinct())
                )
            patient = next((value for value in elsewhere if value and pseudonym(key, value) == alias), None)
    if patient is None:
        return None
    return _Patient(pseudonym(key, patient), patient, frozenset(j for p, j in pairs if p == patient))


def _set_tombstone(engine: sa.Engine, who: _Patient, reason: str, by: Actor, run_id: str) -> None:
    key = required_key()
    row = {
        "pseudonym": who.pseudonym, "reason": reason, "erased_by": by.name,
        "authentication": by.authentication, "run_id": run_id,
    }  # fmt: skip
    with engine.begin() as connection:
        connection.execute(insert(ml_erasures).values(row).on_conflict_do_nothing())
        connection.execute(
            insert(ml_erased_keys).on_conflict_do_nothing(),
            [
                {"key_pseudonym": pseudonym(key, value), "pseudonym": who.pseudonym}
                for value in sorted(who.keys)
            ],
        )


# --- the lake


def _erase_in_lake(
    engine: sa.Engine, lake: Lake, state: Path, who: _Patient, found: Erasure, dry_run: bool
) -> set[str]:
    """Take the patient out of every frame of the lake; returns the digests of versions that are no longer whole."""
    versions: dict[str, set[tuple[str, str]]] = {}
    with engine.connect() as connection:
        for row in connection.execute(
            sa.select(ml_data_versions.c.path, ml_data_versions.c.asset, ml_data_versions.c.digest)
            .where(ml_data_versions.c.path.is_not(None))
            .distinct()
        ):
            versions.setdefault(row.path, set()).add((row.asset, row.digest))
    paths = {path for path in versions if path.endswith(".parquet")}
    paths |= {str(path.relative_to(lake.root)) for path in lake.root.glob("features/**/*.parquet")}
    rows: Counter[str] = Counter()
    digests: set[str] = set()
    renewed: dict[str, dict[str, Any]] = {}
    for path in sorted(paths):
        place = lake.root / path
        if not place.exists():
            continue
        content, taken = _without(place.read_bytes(), who)
        if not taken:
            continue
        named = versions.get(path, set())
        rows[min((asset for asset, _ in named), default="features")] += taken
        digests |= {digest for _, digest in named}
        if dry_run:
            continue
        checksum = files.checksum_of(content)
        files.put(files.write_aside(place, content), place)
        renewed[str(place)] = {"size": len(content), "checksum": checksum, "taken": taken}
        with engine.begin() as connection:
            connection.execute(
                sa.update(ml_lake_files)
                .where(ml_lake_files.c.path == path)
                .values(size=len(content), checksum=checksum)
            )
            connection.execute(
                insert(ml_erased_files)
                .values(path=path, pseudonym=who.pseudonym, rows=taken)
                .on_conflict_do_nothing()
            )
    found.lake = dict(sorted(rows.items()))
    features = {path: change for path, change in renewed.items() if "/features/" in path}
    if features:
        _rename_feature_files(
            engine, lake, state, features, [path for path in versions if path.endswith(".json")]
        )
    return digests


def _without(content: bytes, who: _Patient) -> tuple[bytes, int]:
    """A Parquet file without the patient's rows, and how many those were; the metadata of the file stay."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = pq.read_schema(io.BytesIO(content)).names
    columns = [name for name in PATIENT_COLUMNS if name in names and who.values[name]]
    if not columns:
        return content, 0
    file = pq.ParquetFile(io.BytesIO(content))
    keys = file.read(columns=columns)
    gone = None
    for name in columns:
        mask = compute().is_in(
            keys.column(name).cast(pa.string()), value_set=pa.array(sorted(who.values[name]))
        )
        gone = mask if gone is None else compute().or_(gone, mask)
    taken = int(compute().sum(gone).as_py() or 0)
    if not taken:
        return content, 0
    stream = io.BytesIO()
    table = file.read().filter(compute().invert(gone))
    with pq.ParquetWriter(
        stream, table.schema, coerce_timestamps="us", allow_truncated_timestamps=True
    ) as writer:
        writer.write_table(table)
        known = file.metadata.metadata or {}
        writer.add_key_value_metadata({k: v for k, v in known.items() if k != b"ARROW:schema"})
    return stream.getvalue(), taken


def _rename_feature_files(
    engine: sa.Engine, lake: Lake, state: Path, changes: Mapping[str, Mapping[str, Any]], documents: list[str]
) -> None:
    """Documents name feature files with length and checksum: they get the new ones."""
    for path in documents:
        place = lake.root / path
        if not place.exists():
            continue
        document = json.loads(place.read_bytes())
        if not _renew(document, changes):
            continue
        content = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
        files.put(files.write_aside(place, content), place)
        with engine.begin() as connection:
            connection.execute(
                sa.update(ml_lake_files)
                .where(ml_lake_files.c.path == path)
                .values(size=len(content), checksum=files.checksum_of(content))
            )
    for path in (state / "feast").glob("*/*.json"):
        document = json.loads(path.read_text(encoding="utf-8"))
        if _renew(document, changes):
            write_text(path, json.dumps(document))


def _renew(value: Any, changes: Mapping[str, Mapping[str, Any]]) -> bool:
    """Enter new lengths, checksums and rows in ``value``; whether there were any."""
    if isinstance(value, list):
        return any([_renew(part, changes) for part in value])
    if not isinstance(value, dict):
        return False
    change = changes.get(value.get("path", "")) if isinstance(value.get("path"), str) else None
    if change is not None and "checksum" in value:
        value |= {"size": change["size"], "checksum": change["checksum"]}
        if "rows" in value:
            value["rows"] -= change["taken"]
        return True
    return any([_renew(part, changes) for part in value.values()])


# --- online values


def _erase_online(state: Path, who: _Patient, found: Erasure, dry_run: bool) -> None:
    """Take the patient's entities out of the online files of every scope."""
    # Feast writes the length of a key's value before it.
    patterns = [struct.pack("<I", len(key.encode())) + key.encode() for key in sorted(who.keys)]
    for path in sorted((state / "feast").glob("*/online-*.db")):
        taken = 0
        with contextlib.closing(sqlite3.connect(path)) as online:
            online.execute("PRAGMA secure_delete = ON")
            for table in _tables(online):
                quoted = table.replace('"', '""')
                for pattern in patterns:
                    query = f'FROM "{quoted}" WHERE instr(entity_key, ?) > 0'
                    taken += online.execute(f"SELECT count(*) {query}", (pattern,)).fetchone()[0]
                    if not dry_run:
                        online.execute(f"DELETE {query}", (pattern,))
            online.commit()
        if taken:
            scope = path.parent.name
            found.online[scope] = found.online.get(scope, 0) + taken


def _tables(online: sqlite3.Connection) -> Iterator[str]:
    for (name,) in online.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
        columns = [row[1] for row in online.execute(f'PRAGMA table_info("{name}")')]
        if "entity_key" in columns:
            yield name


# --- the warehouse


def _erase_rows(connection: sa.Connection, who: _Patient, found: Erasure) -> None:
    """Delete the rows of the patient, children before parents; audits keep the pseudonym."""
    deleted: dict[str, int] = {}
    keys: dict[str, list[str]] = {}
    ordered = [table for table in reversed(all_metadata().sorted_tables) if table.name in _RAW]
    for table in ordered:
        if (ours := _of_patient(table, who)) is not None:
            key = table.c[primary_key(table.name)]
            keys[table.name] = [str(value) for value in connection.scalars(sa.select(key).where(ours))]
    predictions = keys.get("ml_predictions", [])
    labels = sa.delete(ml_prediction_labels).where(ml_prediction_labels.c.prediction_id.in_(predictions))
    deleted[ml_prediction_labels.name] = connection.execute(labels).rowcount
    named = sorted(who.keys)
    for table, documents in (
        (load_rejects, ("raw_row",)),
        (load_withdrawals, ("content", "reversal")),
        (load_completed_dates, ()),
    ):
        conditions = [
            sa.and_(table.c.table_name == name, table.c.row_key.in_(values)) for name, values in keys.items()
        ]
        for column in documents:
            values = sa.func.jsonb_each_text(table.c[column]).table_valued(
                "key", "value", name=f"of_{column}"
            )
            conditions.append(sa.exists(sa.select(1).select_from(values).where(values.c.value.in_(named))))
        deleted[table.name] = connection.execute(sa.delete(table).where(sa.or_(*conditions))).rowcount
    for table in reversed(all_metadata().sorted_tables):
        if table.name in _RAW or not table.name.startswith("ml_") or table is ml_patient_level_access:
            continue
        if (ours := _of_patient(table, who)) is not None:
            deleted[table.name] = connection.execute(sa.delete(table).where(ours)).rowcount
    for table in ordered:
        if (ours := _of_patient(table, who)) is not None:
            deleted[table.name] = connection.execute(sa.delete(table).where(ours)).rowcount
    opened = ml_patient_level_access
    key = required_key()
    audits = 0
    for value in named:
        audits += connection.execute(
            sa.update(opened).where(opened.c.patient_id == value).values(patient_id=pseudonym(key, value))
        ).rowcount
    found.warehouse = {name: count for name, count in sorted(deleted.items()) if count}
    found.pseudonymised = {opened.name: audits} if audits else {}
    _note_experiments(connection, who, found)


def _of_patient(table: sa.Table, who: _Patient) -> Any:
    """Condition that a row is the patient's; None for a table that names no patient."""
    conditions = [
        table.c[name].in_(sorted(values)) for name, values in who.values.items() if name in table.c and values
    ]
    return sa.or_(*conditions) if conditions else None


def _note_experiments(connection: sa.Connection, who: _Patient, found: Erasure) -> None:
    """Records of experiments are sealed and only added to: they stay, and it is said."""
    for table in all_metadata().sorted_tables:
        if table.name.startswith("ab_") and "unit_id" in table.c:
            query = sa.select(sa.func.count()).select_from(table).where(table.c.unit_id.in_(sorted(who.keys)))
            if count := connection.execute(query).scalar_one():
                found.remains[table.name] = (
                    f"{count} rows: the records of an experiment are sealed, its audit draws every assignment again; "
                    "who is in an experiment is kept as its protocol says"
                )


# --- what is no longer what it was


def _seals(engine: sa.Engine, lake: Lake, who: _Patient) -> list[tuple[str, str, str, str]]:
    """Scope, split, digest before and after of each sealed set that was opened and loses the patient."""
    changed: list[tuple[str, str, str, str]] = []
    openings = ml_seal_openings.c
    with engine.connect() as connection:
        salts = connection.execute(
            sa.select(openings.scope, openings.salt, openings.split, openings.sealed_set).distinct()
        ).all()
        known = {
            (scope, version.path): version for scope, *_ in salts for version in _splits(connection, scope)
        }
    for (scope, _), version in known.items():
        assert version.file is not None
        if lake.damage(version.file):
            continue
        frame = lake.read_frame([version.file])
        left = frame[~frame["patient_id"].isin(who.keys)]
        if len(left) == len(frame):
            continue
        for of_scope, salt, split, sealed_set in salts:
            before, after = (Seal(scope, salt, rows).sealed_set(split) for rows in (frame, left))
            if of_scope == scope and before == sealed_set and before != after:
                changed.append((scope, split, before, after))
    return changed


def _splits(connection: sa.Connection, scope: str) -> list[Any]:
    from e2i_dagster.versions import ledger

    return [
        version
        for version in ledger.versions(connection, "splits")
        if version.partition == scope and version.file is not None
    ]


def _move_seals(connection: sa.Connection, changed: list[tuple[str, str, str, str]], found: Erasure) -> None:
    """Openings of a sealed set are those of the set without the patient: it counts as opened as often as before."""
    for scope, split, before, after in dict.fromkeys(changed):
        connection.execute(
            sa.update(ml_seal_openings)
            .where(ml_seal_openings.c.sealed_set == before)
            .values(sealed_set=after)
        )
        found.seals.append(
            f"{scope}: the {split} set lost the patient; its recorded openings hold for the set that is left"
        )


def _not_replayable(connection: sa.Connection, digests: set[str], state: Path, found: Erasure) -> None:
    """Training runs that read a version which is no longer whole, their models and dossiers."""
    runs, models = ml_training_runs.c, ml_model_registry.c
    for run, read in connection.execute(sa.select(runs.mlflow_run_id, runs.data_digests)):
        if digests & set((read or {}).values()):
            found.runs.append(run)
    found.runs.sort()
    found.models = [
        f"{row.model_name}/{row.model_version}"
        for row in connection.execute(
            sa.select(models.model_name, models.model_version)
            .where(models.mlflow_run_id.in_(found.runs))
            .order_by(models.model_name, models.model_version)
        )
    ]
    names = {model.replace("/", "-") for model in found.models} | {m.partition("/")[0] for m in found.models}
    found.dossiers = sorted(
        path.name
        for path in (state / "reports" / "dossiers").glob("*.json")
        if any(path.stem.startswith(name) for name in names)
    )
