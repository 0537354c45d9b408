"""A backup: one folder with everything that an installation with the embedded server keeps.

The folder holds a dump of each database (``pg_dump``, custom format), the files of the state folder and of a lake
outside of it, and ``manifest.json``, which is written last and names each file with length and SHA-256. A folder
without a whole manifest is no backup.

Files that may be taken into the warehouse meanwhile (answers that wait in a service's journal) are copied before the
databases, files that the databases name (the lake, bentos) after them, so that the copy is consistent although
services answer. Files of the lake are immutable.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from upath import UPath

from e2i_dagster import __version__
from e2i_dagster.errors import DamagedError, InputError, UnavailableError, VerdictError
from e2i_dagster.local_files import write_private
from e2i_dagster.policy_files.base import digest_of
from e2i_dagster.policy_files.environment import database_url, lake_url, state_folder

#: Version of the layout of a backup.
LAYOUT = 1
MANIFEST = "manifest.json"
DATABASES, STATE, LAKE = "databases", "state", "lake"

#: In the state folder: what belongs to processes of this machine, is made anew, or is a secret of this server.
_NOT_COPIED = ("postgres", "postgres.json", "secrets/postgres.pgpass", "logs", "dagster/dagster.yaml")
_NOT_OF_SERVICES = ("logs", "scratch", "colours")
#: Copied before the databases.
_FIRST = ("services",)
_REMEDY_DAMAGED = "Copy the backup again from where it was kept, or take another backup."


class BackupFile(BaseModel):
    """One file of a backup: place in its folder, length in bytes, SHA-256."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str
    size: int
    sha256: str


class Manifest(BaseModel):
    """What a backup holds and which product made it.

    Attributes:
        layout: version of the layout of backups.
        product: version of the product.
        schema_revision: newest migration of the warehouse.
        postgresql: major version of the server.
        at: when the backup was begun (UTC).
        state: the state folder; lake: the lake, as files and databases name them.
        not_included: what is kept elsewhere and is not in the backup, with the reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: int
    product: str
    schema_revision: str
    postgresql: int
    at: dt.datetime
    state: str
    lake: str
    databases: tuple[str, ...]
    not_included: dict[str, str] = Field(default_factory=dict)
    files: tuple[BackupFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    def summary(self) -> dict[str, Any]:
        """The manifest without the single files."""
        return {
            **self.model_dump(mode="json", exclude={"files"}),
            "files": len(self.files),
            "bytes": self.size,
        }


def back_up(folder: Path) -> Manifest:
    """Write a backup of the installation into ``folder``, which must be new or empty.

    Services may go on answering. No run may be at work: its stages are in the databases and the lake one after the
    other.

    Raises:
        InputError: the folder has files, or lies in what is backed up.
        VerdictError: a run is at work.
        UnavailableError: the warehouse is a server of your own, or the folder cannot be written to; nothing stays.
    """
    from e2i_dagster.database import schema
    from e2i_dagster.database.connection import connect_url
    from e2i_dagster.database.server import client_program, databases, ensure_server, server_version

    folder, state = folder.expanduser().absolute(), state_folder()
    require_embedded()
    _require_place(folder, state)
    at = dt.datetime.now(dt.UTC)
    server = ensure_server()
    revision = schema.current(connect_url("owner")) or ""
    _require_quiet()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)
        made = list(_copied(state, folder, only=_FIRST))
        names = databases(server)
        (folder / DATABASES).mkdir()
        for name in names:
            target = folder / DATABASES / f"{name}.dump"
            client_program(server, "pg_dump", name, "--format=custom", f"--file={target}")
            made.append(_entry(target, folder))
        made += _copied(state, folder, without=_FIRST)
        made += _copied_lake(state, folder)
        manifest = Manifest(
            layout=LAYOUT,
            product=__version__,
            schema_revision=revision,
            postgresql=server_version(server),
            at=at,
            state=str(state),
            lake=lake_url(),
            databases=tuple(names),
            not_included=_kept_elsewhere(),
            files=tuple(sorted(made, key=lambda file: file.path)),
        )
        _require_quiet(since=at)
        document = manifest.model_dump(mode="json")
        text = json.dumps({**document, "digest": digest_of(document)}, indent=1) + "\n"
        write_private(folder / MANIFEST, text)
    except BaseException as error:
        for part in (DATABASES, STATE, LAKE):
            shutil.rmtree(folder / part, ignore_errors=True)
        if isinstance(error, OSError):
            raise UnavailableError(
                f"The backup {folder} cannot be written ({error.strerror or error}). Nothing of it stays.",
                file=str(error.filename or folder),
                remedy="Free space or correct the permissions, or name another folder.",
            ) from error
        raise
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a backup that this product can restore.

    Raises:
        InputError: there is none, it is not whole, or a newer product wrote the backup; names the file.
    """
    path = folder / MANIFEST
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{path} is not there: {folder} is no backup, or one that was not finished.",
            file=path,
            remedy="Name the folder that `e2i backup` wrote.",
        ) from None
    except (ValueError, OSError) as error:
        raise _damaged(path, "no JSON" if isinstance(error, ValueError) else str(error.strerror)) from None
    layout = document.get("layout") if isinstance(document, dict) else None
    if isinstance(layout, int) and layout > LAYOUT:
        raise _newer(path, "layout", layout, LAYOUT)
    digest = document.pop("digest", None) if isinstance(document, dict) else None
    if digest is None or digest != digest_of(document):
        raise _damaged(path, "other content than was written")
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        field = ".".join(map(str, error.errors()[0]["loc"]))
        raise _damaged(path, f"field {field}: {error.errors()[0]['msg']}") from None


def verify(folder: Path, manifest: Manifest) -> None:
    """Compare each file of the backup with the manifest, and its versions with this installation.

    Raises:
        InputError: a file is missing or not what was written, or a newer product wrote the backup; each is named.
    """
    from e2i_dagster.database import schema
    from e2i_dagster.database.server import newest_version

    path = folder / MANIFEST
    if manifest.schema_revision not in schema.revisions():
        raise _newer(path, "schema_revision", manifest.schema_revision, schema.head())
    if manifest.postgresql > newest_version():
        raise _newer(path, "postgresql", manifest.postgresql, newest_version())
    wrong = [
        _damaged(folder / file.path, found) for file in manifest.files if (found := _damage(folder, file))
    ]
    if wrong:
        raise InputError.joined(wrong)


def _damage(folder: Path, file: BackupFile) -> str:
    """What is wrong with a file of the backup; empty when nothing is."""
    path = folder / file.path
    try:
        size = path.stat().st_size
        if size != file.size:
            return f"{size:,} bytes long where {file.size:,} were written"
        with path.open("rb") as stream:
            same = hashlib.file_digest(stream, "sha256").hexdigest() == file.sha256
    except (FileNotFoundError, NotADirectoryError):
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return "" if same else "other content than was written"


def _damaged(path: Path, found: str) -> DamagedError:
    return DamagedError(
        f"{path}: {found}. Nothing was restored.", file=path, value=found, remedy=_REMEDY_DAMAGED
    )


def _newer(path: Path, field: str, found: Any, known: Any) -> InputError:
    return InputError(
        f"{path}: {field} is {found}, which this version of the product ({__version__}, {field} {known}) does not "
        "know. Nothing was restored.",
        file=path,
        field=field,
        value=found,
        remedy="Restore it with the version of the product that wrote it, or a newer one.",
    )


def require_embedded() -> None:
    """Refuse where the warehouse is not on the embedded server.

    Raises:
        UnavailableError: ``E2I_DATABASE_URL`` names another one.
    """
    if database_url() is not None:
        raise UnavailableError(
            "E2I_DATABASE_URL names a server of your own, which `e2i backup` and `e2i restore` leave to its owner.",
            file="E2I_DATABASE_URL",
            remedy=(
                "Back up its databases with pg_dump, and E2I_HOME and the lake as files, while no run is at work "
                "(docs/backup.md)."
            ),
        )


def _require_place(folder: Path, state: Path) -> None:
    lake = UPath(lake_url())
    kept = [state, *([Path(str(lake)).absolute()] if not lake.protocol else [])]
    for place in kept:
        if folder.is_relative_to(place) or place.is_relative_to(folder):
            raise InputError(
                f"{folder} and {place}, which is backed up, lie in each other.",
                file=folder,
                remedy="Name a folder elsewhere, best on another disk.",
            )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(
            f"{folder} is not empty.",
            file=folder,
            remedy="Name a new folder: each backup has one of its own.",
        )


def _require_quiet(since: dt.datetime | None = None) -> None:
    """Refuse a backup while a run is at work, or when one began after ``since``."""
    import sqlalchemy as sa

    from e2i_dagster.database.connection import engine
    from e2i_dagster.tables.description.control import ml_stage_states

    states = ml_stage_states.c
    with engine("app").connect() as connection:
        at_work = connection.execute(
            sa.text(
                "SELECT session.application_name FROM pg_stat_activity session "
                "WHERE session.datname = current_database() AND session.application_name LIKE 'run %'"
            )
        ).scalar()
        if at_work is None and since is not None:
            begun = connection.execute(
                sa.select(states.stage, states.run_id).where(states.at > since).limit(1)
            ).first()
            at_work = None if begun is None else f"run {begun.run_id} (stage {begun.stage})"
    if at_work:
        raise VerdictError(
            f"A run is at work: {at_work}. A backup taken meanwhile would hold a part of what it makes.",
            field="run",
            value=at_work,
            remedy="Wait until it has ended, then back up again.",
        )


def _kept_elsewhere() -> dict[str, str]:
    """Variables by which something is kept outside of state folder and lake."""
    reasons = {
        "MLFLOW_TRACKING_URI": "the tracking server is your own",
        "DAGSTER_HOME": "the Dagster instance is your own",
        "E2I_FEAST_REDIS": "online features are on your Redis server; the next materialization fills it",
        "E2I_CONFIG": "the policy files are in a folder of your own, which belongs under version control",
    }
    return {name: reason for name, reason in reasons.items() if os.environ.get(name)}


def _copied(
    state: Path, folder: Path, *, only: Sequence[str] | None = None, without: Sequence[str] = ()
) -> Iterator[BackupFile]:
    """Copy the state folder's files; ``only`` and ``without`` name folders at its top."""
    for path in sorted(_files_of(state)):
        inside = path.relative_to(state)
        top = inside.parts[0]
        if (only is not None and top not in only) or top in without:
            continue
        yield _copy(path, folder / STATE / inside, folder)


def _files_of(state: Path) -> Iterator[Path]:
    skipped = {state / name for name in _NOT_COPIED} | {
        state / "services" / name for name in _NOT_OF_SERVICES
    }
    for place, folders, names in os.walk(state):
        here = Path(place)
        folders[:] = [name for name in folders if here / name not in skipped]
        for name in names:
            path = here / name
            if (
                path in skipped
                or name.endswith((".lock", ".part", ".supervisor", "-wal", "-shm"))
                or not path.is_file()
            ):
                continue
            yield path


def _copied_lake(state: Path, folder: Path) -> Iterator[BackupFile]:
    """Copy a lake that is not in the state folder."""
    lake = UPath(lake_url())
    if not lake.protocol and Path(str(lake)).absolute().is_relative_to(state):
        return
    for path in sorted(lake.rglob("*"), key=str):
        if path.is_file() and not path.name.endswith(".part"):
            with path.open("rb") as stream:
                yield _write(stream, folder / LAKE / str(path.relative_to(lake)), folder)


def _copy(path: Path, target: Path, folder: Path) -> BackupFile:
    """A copy of ``path``; of a SQLite database in use one as of this moment."""
    if path.suffix == ".db":
        with TemporaryDirectory(dir=folder) as aside:
            snapshot = Path(aside) / path.name
            with (
                contextlib.closing(sqlite3.connect(path)) as source,
                contextlib.closing(sqlite3.connect(snapshot)) as copy,
            ):
                source.backup(copy)
            with snapshot.open("rb") as stream:
                return _write(stream, target, folder)
    with path.open("rb") as stream:
        return _write(stream, target, folder)


def _write(stream: BinaryIO | Any, target: Path, folder: Path) -> BackupFile:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest, size = hashlib.sha256(), 0
    with target.open("xb") as output:
        while part := stream.read(1 << 20):
            output.write(part)
            digest.update(part)
            size += len(part)
    return BackupFile(path=target.relative_to(folder).as_posix(), size=size, sha256=digest.hexdigest())


def _entry(path: Path, folder: Path) -> BackupFile:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return BackupFile(path=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=digest)
