"""The feature store of one scope: Feast's registry, its join as a proof, and online values.

One Feast project per scope. Each applied view is pinned to the path of one immutable file. The
registry is a database of its own on the warehouse's server, or a file when no server is given. The
online store is a SQLite file per version of the feature files, filled beside the one in use and
switched to by renaming a small state file: a reader sees the old version or the new one, whole.
With a Redis address the values are there instead, for services on other machines.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import io
import json
import os
import sqlite3
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict, Field

from e2i_dagster.config.feast_materialization import FeastMaterializationPolicy
from e2i_dagster.config.feature_views import (
    ENTITIES,
    TIMESTAMP,
    FeatureView,
    feature_names,
)
from e2i_dagster.database.locks import acquire_lock
from e2i_dagster.display import Table
from e2i_dagster.errors import ConfigError, InputError, UnavailableError, VerdictError
from e2i_dagster.features.compute import conform_features
from e2i_dagster.features.frame import index_stamps
from e2i_dagster.features.snapshots import PATIENT_KEYS, FeatureFiles
from e2i_dagster.local_files import file_lock, write_text
from e2i_dagster.policy_files.environment import config_folder, state_folder

if TYPE_CHECKING:
    import feast

#: Database of Feast's own tables on the warehouse's server.
REGISTRY_DATABASE = "e2i_feast"

_LOOKUP_ROWS = 5_000  # SQLite accepts 32,766 variables in a statement
_KEPT_ONLINE_VERSIONS = 2  # the one in use and the one before, which a reader may just be opening
_import_lock = threading.Lock()


class StoreSettings(BaseModel):
    """Where the feature store of one scope keeps its state.

    Attributes:
        project: name of the Feast project: the scope.
        folder: folder of the project below the state folder.
        registry_url: SQLAlchemy address of the database for the registry, or None for a file in ``folder``.
        redis: Redis address in Feast's form (``host:port,password=...``), or None for SQLite.
        write_batch_size: rows written to the online store at a time.
        lock_timeout_seconds: how long to wait for another process that applies or materializes.
    """

    model_config = ConfigDict(frozen=True)

    project: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_]*$")
    folder: Path
    registry_url: str | None = Field(default=None, repr=False)
    redis: str | None = Field(default=None, repr=False)
    write_batch_size: int = Field(default=10_000, gt=0)
    lock_timeout_seconds: float = Field(default=300, gt=0)


class ViewMaterialization(BaseModel):
    """One view written to the online store.

    ``start`` and ``end`` bound the event timestamps that were read; ``rows`` is the number of
    entities with a row between them; ``online_entities`` is the number of entities that the online
    store then had (None: the store cannot be counted).
    """

    model_config = ConfigDict(frozen=True)

    view: str
    start: dt.datetime
    end: dt.datetime
    started_at: dt.datetime
    completed_at: dt.datetime
    rows: int
    online_entities: int | None

    @property
    def seconds(self) -> float:
        """Duration of the write."""
        return (self.completed_at - self.started_at).total_seconds()


class MaterializationReport(BaseModel):
    """What is online: the version of the files and when each view was written."""

    model_config = ConfigDict(frozen=True)

    project: str
    files: FeatureFiles
    online: str
    views: tuple[ViewMaterialization, ...]

    @property
    def end(self) -> dt.datetime:
        """Event time up to which rows are online."""
        return max(view.end for view in self.views)

    @property
    def completed(self) -> dict[str, dt.datetime]:
        """When each view was last written."""
        return {view.view: view.completed_at for view in self.views}

    def to_metadata(self) -> dict[str, Any]:
        """Entities and seconds for each view."""
        return {
            "project": self.project,
            "digest": self.files.digest,
            "entities_written": sum(view.rows for view in self.views),
            "seconds": sum(view.seconds for view in self.views),
            "online_up_to": self.end.isoformat(),
            "views": Table(
                ("view", "entities written", "entities online", "seconds"),
                [(view.view, view.rows, view.online_entities, view.seconds) for view in self.views],
            ),
        }


class ParityReport(BaseModel):
    """Values of the same entities made in two ways, compared cell by cell; ``at``: their time, where it is one."""

    model_config = ConfigDict(frozen=True)

    at: dt.datetime | None
    entities: int
    cells: int
    mismatches: dict[str, int]

    @property
    def passed(self) -> bool:
        """True if cells were compared and all were equal."""
        return self.cells > 0 and not self.mismatches

    def to_metadata(self) -> dict[str, Any]:
        """Counts, and the features that differ."""
        return {
            "at": None if self.at is None else self.at.isoformat(),
            "entities": self.entities,
            "cells": self.cells,
            "mismatches": sum(self.mismatches.values()),
            "features_that_differ": ", ".join(f"{name} ({n})" for name, n in sorted(self.mismatches.items())),
        }


class ScopeStore:
    """Applies, joins, materializes and looks up the features of one scope."""

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = settings
        self._stores: dict[str, feast.FeatureStore] = {}

    def close(self) -> None:
        """Let go of the registry's connections."""
        for digest in list(self._stores):
            _let_go(self._stores.pop(digest))

    def __enter__(self) -> ScopeStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def apply(self, files: FeatureFiles) -> FeatureFiles:
        """Register the views on ``files``; later joins read these files and no other.

        Raises:
            UnavailableError: another process holds the store, or the registry cannot be reached.
        """
        with self._exclusive():
            self._apply(files)
        return files

    def materialize(self, files: FeatureFiles, *, end: dt.datetime | None = None) -> MaterializationReport:
        """Write each entity's newest values up to ``end`` to the online store and switch to them.

        A version of the files is written whole, because any of its rows may differ from the version before.
        Values that were online stay so until the switch.

        Args:
            files: an applied version.
            end: event time up to which rows are read; the newest stamp of the files by default.

        Raises:
            UnavailableError: ``files`` are not what is applied, or another process holds the store.
            InputError: the files have no rows, or none up to ``end``.
        """
        stamps = [(file.oldest, file.newest) for file in files.files if file.oldest and file.newest]
        if not stamps:
            raise InputError(
                "The feature files have no rows, so there is nothing to put online.",
                field="files",
                remedy="Make the features of a cohort that has patients.",
            )
        oldest = min(oldest for oldest, _ in stamps)
        until = end or max(newest for _, newest in stamps)
        if until < oldest:
            raise InputError(
                f"end: found {until.isoformat()}; the oldest feature row is of {oldest.isoformat()}.",
                field="end",
            )
        with self._exclusive():
            store = self._store(files)
            self._require_applied(store, files)
            if self.settings.redis is None and not self._online_file(files).exists():
                self._apply(files)  # the registry outlives a state folder that was removed
            report = MaterializationReport(
                project=self.settings.project,
                files=files,
                online="redis" if self.settings.redis else str(self._online_file(files)),
                views=tuple(self._materialize_view(view, files, (oldest, until)) for view in files.views),
            )
            if files.patient_keys is not None:
                self._materialize_view(PATIENT_KEYS, files, (oldest, until))
            self._switch(report)
        return report

    def current(self) -> MaterializationReport | None:
        """What is online, or None before the first materialization."""
        try:
            text = (self.settings.folder / "online.json").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return MaterializationReport.model_validate_json(text)

    def online(self, entities: pd.DataFrame, views: Sequence[FeatureView] | None = None) -> pd.DataFrame:
        """Online values for each row of ``entities``.

        Args:
            entities: keys as columns, such as ``patient_id`` alone. A key that is null or unknown
                gives nulls.
            views: views to read; by default all whose keys ``entities`` has.

        Returns:
            The keys and the features of those views, in the order of ``entities``.

        Raises:
            InputError: the keys of no view, or of an asked view, are there.
            UnavailableError: nothing was materialized yet.
        """
        state = self._materialized()
        asked = tuple(views) if views is not None else _views_with_keys(entities, state.files)
        keys = list(dict.fromkeys(key for view in asked for key in view.keys))
        absent = [key for key in keys if key not in entities.columns]
        if absent or not asked:
            raise InputError(
                f"Online values: found the keys {', '.join(entities.columns) or 'none'}; expected "
                f"{', '.join(absent) or 'at least one of ' + ', '.join(ENTITIES)}.",
                field="entities",
            )
        store = self._store(state.files)
        references = [f"{view.name}:{name}" for view in asked for name in view.feature_names]
        # Feast accepts no null key; no entity has the empty text as its key.
        text = entities[keys].astype("string[pyarrow]").fillna("").reset_index(drop=True)
        found = [text.iloc[:0].reindex(columns=feature_names(asked))]
        for first in range(0, len(text), _LOOKUP_ROWS):
            part = text.iloc[first : first + _LOOKUP_ROWS]
            answer = store.get_online_features(
                features=references, entity_rows={key: part[key].tolist() for key in keys}
            )
            found.append(pd.DataFrame(answer.to_dict())[list(feature_names(asked))].astype(object))
        values = pd.concat(found[1:] or found, ignore_index=True)
        values = conform_features(values.where(values.notna(), None), asked)
        return pd.concat([entities[keys].reset_index(drop=True), values], axis=1)

    def equals_store_join(self, frame: pd.DataFrame, rows: pd.DataFrame, files: FeatureFiles) -> ParityReport:
        """Compare a point-in-time frame with Feast's own join, cell by cell.

        Args:
            frame: some rows of :func:`~e2i_dagster.features.frame.training_frame`.
            rows: the same rows of :func:`~e2i_dagster.features.snapshots.spine`, in the same order.
            files: the version that both were made of, which must be applied.

        Raises:
            InputError: a key column is missing.
            UnavailableError: another version is applied.
            VerdictError: Feast's join lost or repeated rows.
        """
        stamps, views = index_stamps(rows["index_date"]), files.views
        joined = self._offline(rows, stamps, files, views)
        return _compared(None, frame.reset_index(drop=True), joined, views)

    def online_equals_offline(self, entities: pd.DataFrame) -> ParityReport:
        """Compare online values with a point-in-time join at the time up to which rows are online.

        Args:
            entities: keys as columns; the views whose keys are there are compared. Rows that repeat
                a key are compared once.

        Raises:
            UnavailableError: nothing was materialized yet, or another version was applied since.
        """
        state = self._materialized()
        asked = _views_with_keys(entities, state.files)
        keys = list(dict.fromkeys(key for view in asked for key in view.keys))
        rows = entities[keys].drop_duplicates().reset_index(drop=True)
        online = self.online(rows, asked)
        stamp = pd.Series(pd.Timestamp(state.end), index=rows.index).astype("datetime64[us, UTC]")
        offline = self._offline(rows, stamp, state.files, asked)
        return _compared(state.end, online, offline, asked)

    # Below: how it is done.

    def _materialized(self) -> MaterializationReport:
        state = self.current()
        if state is None:
            raise UnavailableError(
                f"No features of {self.settings.project} are online.",
                remedy="Materialize online_features first.",
            )
        return state

    def _offline(
        self,
        rows: pd.DataFrame,
        stamps: pd.Series,
        files: FeatureFiles,
        views: Sequence[FeatureView],
    ) -> pd.DataFrame:
        keys = list(dict.fromkeys(key for view in views for key in view.keys))
        absent = [key for key in keys if key not in rows.columns]
        if absent:
            raise InputError(
                f"The rows to join lack the keys {', '.join(absent)}.",
                field=absent[0],
                remedy="Make them with spine().",
            )
        names = list(feature_names(views))
        store = self._store(files)
        self._require_applied(store, files)
        if rows.empty:
            return conform_features(pd.DataFrame(columns=names, dtype=object), tuple(views))
        entity_rows = rows[keys].astype("string[pyarrow]").reset_index(drop=True)
        entity_rows["row"] = range(len(rows))
        entity_rows[TIMESTAMP] = stamps.reset_index(drop=True)
        with _quiet():
            joined = store.get_historical_features(
                entity_df=entity_rows,
                features=[f"{view.name}:{name}" for view in views for name in view.feature_names],
            ).to_arrow()
        frame = joined.select(["row", *names]).to_pandas(integer_object_nulls=True).sort_values("row")
        if frame["row"].tolist() != list(range(len(rows))):
            raise VerdictError(
                f"The point-in-time join returned {len(frame)} rows for {len(rows)} entities; expected "
                f"each entity once.",
                remedy="Do not train on this; report the versions of feast and duckdb.",
            )
        return conform_features(frame[names].reset_index(drop=True), tuple(views))

    def _apply(self, files: FeatureFiles) -> None:
        self.settings.folder.mkdir(parents=True, exist_ok=True)
        self._forget(files)
        with _quiet():
            self._store(files).apply(feast_objects(self.settings.project, files))
        write_text(self.settings.folder / "files.json", files.model_dump_json())

    def _materialize_view(
        self, view: FeatureView, files: FeatureFiles, between: tuple[dt.datetime, dt.datetime]
    ) -> ViewMaterialization:
        start, end = between
        started = dt.datetime.now(dt.UTC)
        stamped = pd.read_parquet(files.of(view.name).path, columns=[*view.keys, TIMESTAMP])
        rows = len(stamped[stamped[TIMESTAMP].between(start, end)].drop_duplicates(list(view.keys)))
        if rows:
            with _quiet():
                self._store(files).materialize(start_date=start, end_date=end, feature_views=[view.name])
        return ViewMaterialization(
            view=view.name,
            start=start,
            end=end,
            started_at=started,
            completed_at=dt.datetime.now(dt.UTC),
            rows=rows,
            online_entities=self._count_online(files, view),
        )

    def _count_online(self, files: FeatureFiles, view: FeatureView) -> int | None:
        if self.settings.redis:
            return None
        table = f"{self.settings.project}_{view.name}".replace('"', '""')
        with contextlib.closing(sqlite3.connect(self._online_file(files))) as connection:
            return int(connection.execute(f'SELECT count(DISTINCT entity_key) FROM "{table}"').fetchone()[0])

    def _switch(self, report: MaterializationReport) -> None:
        write_text(self.settings.folder / "online.json", report.model_dump_json())
        versions = sorted(
            self.settings.folder.glob("online-*.db"), key=lambda path: path.stat().st_mtime, reverse=True
        )
        current = Path(report.online)
        others = [path for path in versions if path != current]
        for path in others[_KEPT_ONLINE_VERSIONS - 1 :]:
            path.unlink(missing_ok=True)

    def _online_file(self, files: FeatureFiles) -> Path:
        return self.settings.folder / f"online-{files.digest}.db"

    def _store(self, files: FeatureFiles) -> feast.FeatureStore:
        if files.digest not in self._stores:
            load_feast()
            from feast import FeatureStore

            self._stores[files.digest] = FeatureStore(config=repo_config(self.settings, files))
        return self._stores[files.digest]

    def _forget(self, files: FeatureFiles) -> None:
        """Drop cached stores of other versions: their cached registries are out of date."""
        for digest in [digest for digest in self._stores if digest != files.digest]:
            _let_go(self._stores.pop(digest))

    def _require_applied(self, store: feast.FeatureStore, files: FeatureFiles) -> None:
        files.require_whole()
        from feast.errors import FeastObjectNotFoundException

        store.refresh_registry()
        try:
            applied = {view.name: _path_of(view) for view in store.list_feature_views()}
        except FeastObjectNotFoundException:
            applied = {}
        differing = [file.view for file in files.stored if applied.get(file.view) != file.path]
        if differing:
            raise UnavailableError(
                f"{self.settings.project}: the applied version of {', '.join(differing)} is not the asked one "
                f"({files.digest}).",
                field=self.settings.project,
                remedy="Apply it first (materialize feature_views).",
            )

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """One process at a time per project: on this machine by a file lock, on all by the server."""
        settings = self.settings
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(file_lock(settings.folder / ".lock", settings.lock_timeout_seconds))
                if _is_postgresql(settings.registry_url):
                    name = f"e2i feature store {settings.project}"
                    stack.enter_context(
                        acquire_lock(str(settings.registry_url), name, seconds=settings.lock_timeout_seconds)
                    )
            except TimeoutError:
                raise UnavailableError(
                    f"Another process has been applying or materializing {settings.project} for more than "
                    f"{settings.lock_timeout_seconds:g} s.",
                    field=settings.project,
                    remedy="Wait for it to end, then run again.",
                ) from None
            yield


def settings_for(
    scope: str, *, registry_url: str | None = None, redis: str | None = None, state: Path | None = None
) -> StoreSettings:
    """Settings of ``scope`` from state folder, environment and ``feast_materialization.yaml``.

    Args:
        scope: name of the scope.
        registry_url: address of the database for the registry, or None for a registry file.
        redis: Redis address; ``E2I_FEAST_REDIS`` if None.
        state: state folder; the one of the environment if None.
    """
    policy = FeastMaterializationPolicy.load(config_folder())
    return StoreSettings(
        project=scope,
        folder=(state or state_folder()) / "feast" / scope,
        registry_url=registry_url,
        redis=redis or os.environ.get("E2I_FEAST_REDIS") or None,
        write_batch_size=policy.online_write_batch_size,
    )


def load_feast() -> None:
    """Import Feast without the run-time type checks that it compiles at import (6 s become 1 s).

    Feast decorates its classes with ``typeguard.typechecked``, which rewrites each of them. The
    decorator does nothing while this import runs and is itself again afterwards.
    """
    with _import_lock:
        if "feast" in sys.modules:
            return
        import typeguard

        checked = typeguard.typechecked

        def unchecked(target: Any = None, **_: Any) -> Any:
            return target if target is not None else (lambda decorated: decorated)

        with warnings.catch_warnings():  # Feast adds a filter for all deprecation warnings
            typeguard.typechecked = unchecked
            try:
                import feast  # noqa: F401
            finally:
                typeguard.typechecked = checked


def repo_config(settings: StoreSettings, files: FeatureFiles) -> Any:
    """Feast's configuration (``feast.RepoConfig``) of the project with ``files`` online.

    Raises:
        ConfigError: the Redis client is not installed.
    """
    load_feast()
    from feast import RepoConfig

    return RepoConfig(
        project=settings.project,
        provider="local",
        registry=_registry(settings),
        offline_store={"type": "duckdb"},
        online_store=_online_store(settings, files),
        entity_key_serialization_version=3,
        materialization={"online_write_batch_size": settings.write_batch_size},
    )


def repo_environment(settings: StoreSettings, files: FeatureFiles) -> dict[str, str]:
    """Environment variables with which ``feast -c feature_repo ...`` sees this project.

    The values may hold a password; hand them to a process, never to a log.
    """
    return {
        "E2I_FEAST_PROJECT": settings.project,
        "E2I_FEAST_REGISTRY": json.dumps(_registry(settings)),
        "E2I_FEAST_ONLINE": json.dumps(_online_store(settings, files)),
        "E2I_FEAST_FILES": str(settings.folder / "files.json"),
    }


def feast_objects(project: str, files: FeatureFiles) -> list[Any]:
    """Entities, sources, views and the scope's feature service, from the views of the files.

    Feature views have no time to live: Feast would turn old values into nulls without a word. How
    old values are is the freshness check's question.
    """
    load_feast()
    from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
    from feast.data_format import ParquetFormat
    from feast.types import Float64, Int64, String

    types = {"int": Int64, "float": Float64, "string": String}
    entities = {
        name: Entity(name=name, join_keys=[name], value_type=ValueType.STRING, description=meaning)
        for name, meaning in ENTITIES.items()
    }
    sources, views = [], []
    keys = () if files.patient_keys is None else (PATIENT_KEYS,)
    for view in (*files.views, *keys):
        file = files.of(view.name)
        source = FileSource(
            name=f"{view.name}_source",
            path=file.path,
            file_format=ParquetFormat(),
            timestamp_field=TIMESTAMP,
            description=view.description,
        )
        sources.append(source)
        views.append(
            FeatureView(
                name=view.name,
                entities=[entities[key] for key in view.keys],
                ttl=dt.timedelta(0),
                schema=[Field(name=key, dtype=String) for key in view.keys]
                + [
                    Field(name=feature.name, dtype=types[feature.dtype], description=feature.description)
                    for feature in view.features
                ],
                source=source,
                online=True,
                description=view.description,
                tags={"digest": file.digest},
            )
        )
    service = FeatureService(name=project, features=views[: len(files.views)], tags={"digest": files.digest})
    return [*entities.values(), *sources, *views, service]


def _compared(
    at: dt.datetime | None, left: pd.DataFrame, right: pd.DataFrame, views: Sequence[FeatureView]
) -> ParityReport:
    mismatches = {}
    for name in feature_names(views):
        equal = (left[name] == right[name]).fillna(False).astype(bool) | (
            left[name].isna() & right[name].isna()
        )
        if not equal.all():
            mismatches[name] = int((~equal).sum())
    cells = len(left) * len(feature_names(views))
    return ParityReport(at=at, entities=len(left), cells=cells, mismatches=mismatches)


def _views_with_keys(entities: pd.DataFrame, files: FeatureFiles) -> tuple[FeatureView, ...]:
    return tuple(view for view in files.views if set(view.keys) <= set(entities.columns))


def _let_go(store: feast.FeatureStore) -> None:
    for name in ("write_engine", "read_engine"):
        engine = getattr(store.registry, name, None)
        if isinstance(engine, sa.Engine):
            engine.dispose()


def _path_of(view: Any) -> str | None:
    return getattr(view.batch_source, "path", None)


def _registry(settings: StoreSettings) -> dict[str, Any]:
    # A lifetime of 0 means that the cache is loaded once and again on refresh_registry().
    if settings.registry_url is None:
        return {
            "registry_type": "file",
            "path": str(settings.folder / "registry.db"),
            "cache_ttl_seconds": 0,
        }
    return {
        "registry_type": "sql",
        "path": settings.registry_url,
        "cache_ttl_seconds": 0,
        "serve_features_while_materializing": True,
    }


def _online_store(settings: StoreSettings, files: FeatureFiles) -> dict[str, Any]:
    if settings.redis is None:
        return {"type": "sqlite", "path": str(settings.folder / f"online-{files.digest}.db")}
    import importlib.util

    if importlib.util.find_spec("redis") is None:
        raise ConfigError(
            "Online features in Redis need the Python package redis, which is not installed.",
            remedy="Install feast[redis], or unset the Redis address to keep them in a local file.",
        )
    return {"type": "redis", "connection_string": settings.redis}


def _is_postgresql(url: str | None) -> bool:
    return url is not None and sa.make_url(url).get_backend_name() == "postgresql"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Feast prints progress to the terminal; our reports say what was done."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", DeprecationWarning)  # of ibis about duckdb
        yield


__all__ = [
    "REGISTRY_DATABASE",
    "MaterializationReport",
    "ParityReport",
    "ScopeStore",
    "StoreSettings",
    "ViewMaterialization",
    "feast_objects",
    "load_feast",
    "repo_config",
    "repo_environment",
    "settings_for",
]
