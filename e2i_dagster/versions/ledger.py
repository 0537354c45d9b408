"""The ledger of data versions: which values each asset and partition has, and what was read.

All functions take an engine (each call is its own transaction) or a connection (the caller commits).
A partition of None is an asset without partitions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from types import MappingProxyType
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert

from e2i_dagster.database.upsert import upsert
from e2i_dagster.errors import InputError
from e2i_dagster.tables.description.control import (
    ml_data_versions,
    ml_lake_files,
    ml_snapshots,
    ml_stage_states,
)
from e2i_dagster.versions.files import StoredFile

#: Key of a version's metadata: the values of policy files that it was made from.
READ = "read"
#: Likewise: the versions that it was made from, asset -> partition (empty without) -> digest.
MADE_FROM = "made_from"
#: Likewise: the version (``version_id``) with which that is stored.
_READ_WITH = "read_with"

Bind = sa.Engine | sa.Connection
State = Literal["executed", "reused", "blocked", "skipped", "absent", "failed", "unavailable", "running"]


@dataclass(frozen=True)
class DataVersion:
    """One write of an asset's partition. ``partition`` is None for assets without partitions.

    ``size`` (bytes) and ``checksum`` are those of the file at ``path``, which versions of equal values share.
    """

    asset: str
    partition: str | None
    digest: str
    rows: int
    schema_hash: str = ""
    code_version: str = ""
    fingerprint: str | None = None
    run_id: str | None = None
    at: datetime | None = None
    path: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    size: int | None = None
    checksum: str | None = None

    @property
    def file(self) -> StoredFile | None:
        """The file in the lake; None for a version that has none."""
        return None if self.path is None else StoredFile(self.path, self.size, self.checksum)


@dataclass(frozen=True)
class SnapshotMember:
    """One table and partition that was read, with the digest of its values."""

    table: str
    partition: str | None
    digest: str
    rows: int


@dataclass(frozen=True)
class Snapshot:
    """The named set of what an asset reads. ``digest`` covers table, partition and digest of each member."""

    digest: str
    members: tuple[SnapshotMember, ...]


@dataclass(frozen=True)
class StageState:
    """The last state of a stage and partition."""

    stage: str
    partition: str | None
    state: State
    reason: str | None = None
    rows: int | None = None
    seconds: float | None = None
    data_version: str | None = None
    run_id: str | None = None
    at: datetime | None = None


@contextmanager
def _connection(bind: Bind) -> Iterator[sa.Connection]:
    if isinstance(bind, sa.Engine):
        with bind.begin() as connection:
            yield connection
    else:
        yield bind


def record(bind: Bind, version: DataVersion) -> DataVersion:
    """Add ``version`` to the ledger as the current one of its asset and partition, and note its file.

    Until the transaction ends, nobody else notes the same file: who gives the file its name in between agrees with
    what is noted of it.

    Returns:
        The version as recorded, with its time.
    """
    with _connection(bind) as connection:
        _note_files(connection, [version])
        row = connection.execute(
            insert(ml_data_versions).values(_values(version)).returning(ml_data_versions)
        ).one()
    return replace(_version(row), size=version.size, checksum=version.checksum)


def record_all(connection: sa.Connection, versions: Sequence[DataVersion]) -> None:
    """:func:`record` each of ``versions``, those of one asset, in few statements.

    What several of them were made from (``metadata["read"]``, which each has) is stored with the first of them.
    """
    _note_files(connection, versions)
    first: dict[str, int] = {}
    together: list[dict[str, Any]] = []
    for version in versions:
        values = _values(version)
        read = json.dumps(values["metadata"][READ], sort_keys=True)
        if read in first and version.at is None:
            del values["metadata"][READ]
            values["metadata"][_READ_WITH] = first[read]
            together.append(values)
            continue
        key = ml_data_versions.c.version_id
        first[read] = connection.execute(insert(ml_data_versions).values(values).returning(key)).scalar_one()
    if together:
        connection.execute(insert(ml_data_versions), together)


def _values(version: DataVersion) -> dict[str, Any]:
    values = {
        "asset": version.asset,
        "partition": version.partition or "",
        "digest": version.digest,
        "schema_hash": version.schema_hash,
        "code_version": version.code_version,
        "fingerprint": version.fingerprint,
        "rows": version.rows,
        "run_id": version.run_id,
        "path": version.path,
        "metadata": dict(version.metadata),
    }
    return values if version.at is None else {**values, "at": version.at}


def _note_files(connection: sa.Connection, versions: Iterable[DataVersion]) -> None:
    # One order for everybody, so that two transactions that note the same files do not wait for each other.
    noted = {
        version.path: {name: getattr(version, name) for name in ("path", "size", "checksum", "run_id")}
        for version in sorted(versions, key=lambda version: version.path or "")
        if version.path is not None and version.checksum is not None
    }
    if not noted:
        return
    rows = list(noted.values())
    connection.execute(upsert(ml_lake_files, rows[0], change={"at": sa.func.clock_timestamp()}), rows)


def files(bind: Bind, paths: Iterable[str]) -> dict[str, StoredFile]:
    """What is noted of the files at ``paths`` of the lake, by path."""
    table = ml_lake_files
    query = sa.select(table.c.path, table.c.size, table.c.checksum).where(table.c.path.in_(list(paths)))
    with _connection(bind) as connection:
        return {row.path: StoredFile(row.path, row.size, row.checksum) for row in connection.execute(query)}


def _versions() -> sa.Select[Any]:
    """Versions with what is noted of their files."""
    of_file = ml_lake_files.c.path == ml_data_versions.c.path
    return sa.select(ml_data_versions, ml_lake_files.c.size, ml_lake_files.c.checksum).select_from(
        ml_data_versions.outerjoin(ml_lake_files, of_file)
    )


def latest(bind: Bind, asset: str, partition: str | None = None) -> DataVersion | None:
    """The current version of ``asset`` and ``partition``, or None if there is none."""
    table = ml_data_versions
    query = (
        _versions()
        .where(table.c.asset == asset, table.c.partition == (partition or ""))
        .order_by(table.c.version_id.desc())
        .limit(1)
    )
    with _connection(bind) as connection:
        found = _found(connection, query)
    return found[0] if found else None


def current(bind: Bind, asset: str, *, months: Sequence[str] | None = None) -> dict[str | None, DataVersion]:
    """The current version of each partition of ``asset``, sorted by partition.

    Args:
        months: of an asset kept by month only these (``YYYY-MM``): the range may have been wider once. An asset
            without partitions is none of them less.
    """
    table = ml_data_versions
    query = _versions().where(table.c.version_id.in_(_newest([asset]))).order_by(table.c.partition)
    with _connection(bind) as connection:
        found = _found(connection, query)
    kept = None if months is None else {None, *months}
    return {version.partition: version for version in found if kept is None or version.partition in kept}


def versions(
    bind: Bind, asset: str, partition: str | None = None, *, limit: int | None = None
) -> list[DataVersion]:
    """Recorded versions of ``asset``, newest first; of all partitions when ``partition`` is None."""
    table = ml_data_versions
    query = _versions().where(table.c.asset == asset).order_by(table.c.version_id.desc()).limit(limit)
    if partition is not None:
        query = query.where(table.c.partition == partition)
    with _connection(bind) as connection:
        return _found(connection, query)


def with_fingerprint(bind: Bind, asset: str, fingerprint: str) -> list[DataVersion]:
    """Versions of ``asset`` that were made from the same inputs by the same code, newest first."""
    table = ml_data_versions
    query = (
        _versions()
        .where(table.c.fingerprint == fingerprint, table.c.asset == asset)
        .order_by(table.c.version_id.desc())
    )
    with _connection(bind) as connection:
        return _found(connection, query)


def _found(connection: sa.Connection, query: sa.Select[Any]) -> list[DataVersion]:
    """The versions that ``query`` selects, each with what it was made from."""
    rows = connection.execute(query).all()
    table = ml_data_versions
    wanted = {first for row in rows if (first := row.metadata.get(_READ_WITH)) is not None}
    read = sa.select(table.c.version_id, table.c.metadata[READ]).where(table.c.version_id.in_(wanted))
    known = {first: made_from for first, made_from in connection.execute(read)} if wanted else {}
    return [_version(row, known) for row in rows]


def _newest(assets: Sequence[str]) -> sa.Select[tuple[int]]:
    """Keys of the current version of each partition of ``assets``."""
    table = ml_data_versions
    return (
        sa.select(sa.func.max(table.c.version_id))
        .where(table.c.asset.in_(list(assets)))
        .group_by(table.c.asset, table.c.partition)
    )


def _version(row: sa.Row[Any], read: Mapping[int, Any] = MappingProxyType({})) -> DataVersion:
    given = dict(row._mapping)
    given.pop("version_id")
    given["partition"] = given["partition"] or None
    metadata = dict(given["metadata"])
    if (first := metadata.pop(_READ_WITH, None)) is not None:
        metadata[READ] = read[first]
    given["metadata"] = MappingProxyType(metadata)
    return DataVersion(**given)


def combined_digest(digests: Mapping[str, str]) -> str:
    """One digest for several partitions: SHA-256 (32 hex digits) of the sorted (partition, digest) pairs."""
    return _digest_of_lines((partition, digest) for partition, digest in digests.items())


def snapshot_of(members: Iterable[SnapshotMember]) -> Snapshot:
    """The snapshot with ``members``; its digest does not depend on their order.

    Raises:
        InputError: a table and partition is given twice.
    """
    ordered = tuple(sorted(members, key=lambda member: (member.table, member.partition or "")))
    keys = [(member.table, member.partition or "") for member in ordered]
    if len(set(keys)) != len(keys):
        raise InputError("A snapshot has a table and partition twice.", remedy="Give each of them once.")
    digest = _digest_of_lines((member.table, member.partition or "", member.digest) for member in ordered)
    return Snapshot(digest, ordered)


def _digest_of_lines(parts: Iterable[tuple[str, ...]]) -> str:
    lines = sorted("\x1f".join(part) for part in parts)
    return hashlib.sha256("\x1e".join(lines).encode()).hexdigest()[:32]


def current_snapshot(bind: Bind, assets: Sequence[str]) -> Snapshot:
    """The snapshot of the current versions of ``assets``, every partition of each.

    Raises:
        InputError: an asset has no version yet.
    """
    table = ml_data_versions
    query = (
        sa.select(table.c.asset, table.c.partition, table.c.digest, table.c.rows)
        .where(table.c.version_id.in_(_newest(assets)))
        .order_by(table.c.asset, table.c.partition)
    )
    with _connection(bind) as connection:
        rows = connection.execute(query).all()
    missing = sorted(set(assets) - {row.asset for row in rows})
    if missing:
        raise InputError(
            f"No version was recorded of: {', '.join(missing)}.", remedy="Materialize them first."
        )
    return snapshot_of(SnapshotMember(row.asset, row.partition or None, row.digest, row.rows) for row in rows)


def record_snapshot(bind: Bind, snapshot: Snapshot) -> Snapshot:
    """Store ``snapshot``; one that is stored already stays as it is."""
    values = [
        {
            "digest": snapshot.digest,
            "table_name": member.table,
            "partition": member.partition or "",
            "member_digest": member.digest,
            "rows": member.rows,
        }
        for member in snapshot.members
    ]
    if values:
        with _connection(bind) as connection:
            connection.execute(insert(ml_snapshots).on_conflict_do_nothing(), values)
    return snapshot


def read_snapshot(bind: Bind, digest: str) -> Snapshot | None:
    """The stored snapshot with ``digest``, or None."""
    table = ml_snapshots
    query = sa.select(table).where(table.c.digest == digest).order_by(table.c.table_name, table.c.partition)
    with _connection(bind) as connection:
        rows = connection.execute(query).all()
    if not rows:
        return None
    members = tuple(
        SnapshotMember(row.table_name, row.partition or None, row.member_digest, row.rows) for row in rows
    )
    return Snapshot(digest, members)


def record_state(bind: Bind, state: StageState) -> None:
    """Make ``state`` the last state of its stage and partition."""
    values = {
        "stage": state.stage,
        "partition": state.partition or "",
        "state": state.state,
        "reason": state.reason,
        "rows": state.rows,
        "seconds": state.seconds,
        "data_version": state.data_version,
        "run_id": state.run_id,
        "at": state.at if state.at is not None else sa.func.clock_timestamp(),
    }
    with _connection(bind) as connection:
        connection.execute(upsert(ml_stage_states, values).values(values))


def record_absent(bind: Bind, reasons: Mapping[str, str]) -> None:
    """Make the stages of ``reasons`` those that are absent, each with why; no other one is any more."""
    table = ml_stage_states
    with _connection(bind) as connection:
        connection.execute(sa.delete(table).where(table.c.state == "absent", table.c.stage.not_in(reasons)))
        for stage, reason in reasons.items():
            record_state(connection, StageState(stage=stage, partition=None, state="absent", reason=reason))


def why_absent(bind: Bind, stage: str) -> str:
    """Why ``stage`` is a raw table that no delivery holds; empty when it is none."""
    return next((state.reason or "absent" for state in states(bind, stage) if state.state == "absent"), "")


def notes(bind: Bind) -> dict[tuple[str, str | None], str]:
    """What of the current values waits for somebody, by asset and partition; nothing where nothing does."""
    table = ml_data_versions
    newest = sa.select(sa.func.max(table.c.version_id)).group_by(table.c.asset, table.c.partition)
    query = sa.select(table.c.asset, table.c.partition, table.c.metadata).where(
        table.c.version_id.in_(newest), table.c.metadata.contains({"told": [["note"]]})
    )
    with _connection(bind) as connection:
        rows = connection.execute(query).all()
    return {(asset, partition or None): dict(metadata["told"])["note"] for asset, partition, metadata in rows}


def states(bind: Bind, stage: str | None = None) -> list[StageState]:
    """The last states of ``stage``, or of every stage, sorted by stage and partition."""
    table = ml_stage_states
    query = sa.select(table).order_by(table.c.stage, table.c.partition)
    if stage is not None:
        query = query.where(table.c.stage == stage)
    with _connection(bind) as connection:
        rows = connection.execute(query).all()
    return [StageState(**{**row._mapping, "partition": row.partition or None}) for row in rows]


__all__ = [
    "DataVersion",
    "Snapshot",
    "SnapshotMember",
    "StageState",
    "combined_digest",
    "current",
    "current_snapshot",
    "files",
    "latest",
    "notes",
    "read_snapshot",
    "record",
    "record_all",
    "record_snapshot",
    "record_state",
    "snapshot_of",
    "states",
    "versions",
    "with_fingerprint",
]
