"""Restoring a backup into an empty state folder, which may be another one than it was taken from.

Paths of the old place are written into databases, documents of the lake and records of services. When the place
changes, they are changed to the new one; the ledger gets the new lengths and checksums of the changed documents.
Their digests, which name versions, stay: a restored state reuses everything. What only tells of the past (events of
Dagster, files inside bentos and MLflow's artifacts) is left as it was written.
"""

from __future__ import annotations

import datetime as dt
import json
import os
import secrets
import shutil
from pathlib import Path

import psycopg
from psycopg import sql
from upath import UPath

from e2i_dagster.database.connection import warehouse_url
from e2i_dagster.database.schema import migrate
from e2i_dagster.database.server import (
    ADMIN,
    DATABASE,
    Server,
    client_program,
    databases,
    ensure_server,
    remove_server,
    server_address,
    stop_server,
)
from e2i_dagster.errors import InputError, UnavailableError
from e2i_dagster.local_files import write_text
from e2i_dagster.operations.backup import (
    DATABASES,
    LAKE,
    STATE,
    Manifest,
    read_manifest,
    require_embedded,
    verify,
)
from e2i_dagster.policy_files.environment import lake_url, state_folder
from e2i_dagster.serving.control import port_is_free
from e2i_dagster.versions.files import checksum_of


def restore(folder: Path) -> Manifest:
    """Restore the backup ``folder`` into the state folder, which must be empty or not there.

    Every file is compared with the manifest before anything is written. All is made beside the state folder and
    gets its name at the end: a restore that was cut off leaves the state folder empty.

    Raises:
        InputError: the backup is damaged, partial or of a newer product, or the state folder is not empty.
        UnavailableError: the warehouse is a server of your own, or the place cannot be written to.
    """
    folder, state = folder.expanduser().absolute(), state_folder()
    require_embedded()
    _require_empty(state)
    manifest = read_manifest(folder)
    verify(folder, manifest)
    aside = state.with_name(f".{state.name}.restoring-{secrets.token_hex(4)}")
    lake = _Lake(manifest)
    try:
        for file in manifest.files:
            part, _, inside = file.path.partition("/")
            if part == STATE:
                target = aside / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file.path, target)
        _make_private(aside)
        lake.copy(folder, manifest, aside)
        _restore_databases(folder, manifest, aside)
        if lake.moves:
            _relocate(aside, lake)
        _forget_processes(aside)
        stop_server(aside)
        state.parent.mkdir(parents=True, exist_ok=True)
        aside.rename(state)
    except BaseException as error:
        remove_server(aside)
        shutil.rmtree(aside, ignore_errors=True)
        lake.discard()
        if isinstance(error, OSError):
            raise UnavailableError(
                f"{state} cannot be restored ({error.strerror or error}). Nothing of it stays.",
                file=str(error.filename or state),
                remedy="Free space or correct the permissions, or set E2I_HOME to another folder.",
            ) from error
        raise
    if lake.moves:
        _apply_features(state)
    return manifest


class _Lake:
    """Where the lake was and where it will be."""

    def __init__(self, manifest: Manifest) -> None:
        self.inside = manifest.lake == str(Path(manifest.state) / "lake")
        self.target = lake_url()
        self.state = state_folder()
        self.made = False
        moves = [(manifest.lake, self.target), (manifest.state, str(self.state))]
        #: Old and new address, the longer (more special) first.
        self.moves = sorted(
            {(old, new) for old, new in moves if old != new}, key=lambda move: len(move[0]), reverse=True
        )
        inside_now = self.target == str(self.state / "lake")
        if not inside_now and any(True for _ in UPath(self.target).glob("*")):
            raise InputError(
                f"The lake {self.target} is not empty.",
                file="E2I_LAKE",
                value=self.target,
                remedy="Set E2I_LAKE to an empty place, or unset it: then the lake is in the state folder.",
            )
        self.inside_now = inside_now

    def copy(self, folder: Path, manifest: Manifest, aside: Path) -> None:
        """Put the files of the lake where they will be read."""
        source = f"{STATE}/lake/" if self.inside else f"{LAKE}/"
        if self.inside and self.inside_now:
            return
        target = self.place(aside)
        self.made = not self.inside_now
        for file in manifest.files:
            if file.path.startswith(source):
                place = target / file.path.removeprefix(source)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes((folder / file.path).read_bytes())
        if self.inside:
            shutil.rmtree(aside / "lake", ignore_errors=True)

    def place(self, aside: Path) -> UPath:
        """The lake while the state folder has not its name yet."""
        return UPath(aside / "lake") if self.inside_now else UPath(self.target)

    def discard(self) -> None:
        """Take away what was written to a lake outside of the state folder."""
        if self.made:
            for path in UPath(self.target).glob("*"):
                path.fs.rm(path.path, recursive=True)


def _require_empty(state: Path) -> None:
    if state.exists() and (not state.is_dir() or any(state.iterdir())):
        raise InputError(
            f"{state} is not empty; a backup is restored into an empty state folder only.",
            file="E2I_HOME",
            value=str(state),
            remedy="Set E2I_HOME to a new folder, or move this one away after `e2i down`.",
        )


def _make_private(aside: Path) -> None:
    """The modes that the product gives to secrets and to records of services."""
    for name in ("secrets", "services/journal"):
        for place, _, names in os.walk(aside / name):
            Path(place).chmod(0o700)
            for file in names:
                (Path(place) / file).chmod(0o600)
    for record in (aside / "services").glob("*.json"):
        record.chmod(0o600)


def _restore_databases(folder: Path, manifest: Manifest, aside: Path) -> None:
    """Make a server with passwords of its own and fill its databases."""
    aside.mkdir(parents=True, exist_ok=True)
    server = ensure_server(aside)
    for name in manifest.databases:
        if name != DATABASE:
            with psycopg.connect(server_address(server, "postgres", ADMIN), autocommit=True) as admin:
                admin.execute(sql.SQL("CREATE DATABASE {} OWNER e2i_app").format(sql.Identifier(name)))
                admin.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name)))
        dump = folder / DATABASES / f"{name}.dump"
        client_program(server, "pg_restore", name, "--exit-on-error", "--single-transaction", str(dump))
        with psycopg.connect(server_address(server, name, ADMIN), autocommit=True) as admin:
            admin.execute("ANALYZE")
    # Privileges on the database itself are in no dump; they come with the migration, which an older backup needs.
    migrate(warehouse_url(server))


def _relocate(aside: Path, lake: _Lake) -> None:
    """Change addresses of the old place to the new one, in databases and files."""
    server = ensure_server(aside)
    for name in databases(server):
        _relocate_database(server, name, lake)
    _relocate_documents(server, aside, lake)
    for pattern in ("feast/*/*.json", "services/*.json"):
        for path in aside.glob(pattern):
            text = path.read_text(encoding="utf-8")
            if (changed := _moved(text, lake)) != text:
                write_text(path, changed)
    _make_private(aside)


def _relocate_database(server: Server, name: str, lake: _Lake) -> None:
    """Change addresses in columns of texts and JSON; rows that nobody may change otherwise, too."""
    with psycopg.connect(server_address(server, name, ADMIN)) as connection:
        connection.execute("SET session_replication_role = replica")
        columns = connection.execute(
            "SELECT c.table_schema, c.table_name, c.column_name, c.data_type FROM information_schema.columns c "
            "JOIN information_schema.tables t USING (table_schema, table_name) WHERE t.table_type = 'BASE TABLE' "
            "AND c.table_schema NOT IN ('pg_catalog', 'information_schema') AND c.is_generated = 'NEVER' "
            "AND c.data_type IN ('text', 'character varying', 'json', 'jsonb')"
        ).fetchall()
        for schema, table, column, kind in columns:
            for old, new in lake.moves:
                connection.execute(
                    sql.SQL(
                        "UPDATE {table} SET {column} = replace({column}::text, %(old)s, %(new)s)::{kind} "
                        "WHERE strpos({column}::text, %(old)s) > 0"
                    ).format(
                        table=sql.Identifier(schema, table),
                        column=sql.Identifier(column),
                        kind=sql.SQL(kind),
                    ),
                    {"old": old + "/", "new": new + "/"},
                )


def _relocate_documents(server: Server, aside: Path, lake: _Lake) -> None:
    """Change addresses in documents of the lake, and note their new lengths and checksums."""
    root = lake.place(aside)
    with psycopg.connect(server_address(server, DATABASE, ADMIN)) as connection:
        connection.execute("SET session_replication_role = replica")
        for (path,) in connection.execute(
            "SELECT path FROM ml_lake_files WHERE path LIKE '%.json'"
        ).fetchall():
            document = root / path
            text = document.read_text(encoding="utf-8")
            changed = _moved(text, lake)
            if changed == text:
                continue
            content = changed.encode()
            document.write_bytes(content)
            connection.execute(
                "UPDATE ml_lake_files SET size = %s, checksum = %s WHERE path = %s",
                (len(content), checksum_of(content), path),
            )


def _moved(text: str, lake: _Lake) -> str:
    for old, new in lake.moves:
        text = text.replace(f"{old}/", f"{new}/")
    return text


def _forget_processes(aside: Path) -> None:
    """Records of services name processes and ports of the old place, which may be alive and not ours."""
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    for path in (aside / "services").glob("*.json"):
        record = json.loads(path.read_text(encoding="utf-8"))
        record |= {"supervisor": None, "control_port": 0, "token": secrets.token_hex(16), "stopped_at": now}
        if not port_is_free(record["host"], record["port"]):
            record["port"] = 0
        if record.get("active"):
            record["active"] |= {"process": None, "port": None}
        write_text(path, json.dumps(record, indent=1))
    _make_private(aside)


def _apply_features(state: Path) -> None:
    """Register the feature files under their new paths: Feast keeps its registry in a form of its own."""
    from e2i_dagster.database.connection import ensure_database
    from e2i_dagster.features.store import REGISTRY_DATABASE, ScopeStore, settings_for

    for path in sorted((state / "feast").glob("*/online.json")):
        settings = settings_for(path.parent.name, registry_url=ensure_database(REGISTRY_DATABASE))
        with ScopeStore(settings) as store:
            online = store.current()
            if online is not None:
                store.apply(online.files)


__all__ = ["restore"]
