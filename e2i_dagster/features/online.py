"""The online values of one patient, for a service that is asked with the patient's key alone.

Values are read through Feast's online store by the views of the version that is online. Feast's registry is not
asked, so a service needs no database for it.
"""

from __future__ import annotations

import datetime as dt
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from e2i_dagster.config.feast_materialization import FreshnessLimits
from e2i_dagster.config.feature_views import FeatureView, feature_names
from e2i_dagster.errors import UnavailableError
from e2i_dagster.features.ages import ViewAge
from e2i_dagster.features.compute import conform_features
from e2i_dagster.features.freshness import view_freshness
from e2i_dagster.features.snapshots import PATIENT_KEYS
from e2i_dagster.features.store import (
    MaterializationReport,
    ScopeStore,
    StoreSettings,
    feast_objects,
    load_feast,
    repo_config,
)

_REMEDY = "Run feature_values, feature_views and online_features of the scope, or send the features."


@dataclass(frozen=True)
class OnlinePatient:
    """One patient's values.

    Attributes:
        values: one row, a column for each feature, with the dtypes of the views.
        version: digest of the feature files that are online.
        views: the age of each view's values.
    """

    values: pd.DataFrame
    version: str
    views: list[ViewAge]


class OnlinePatients:
    """Looks up patients of one scope; may be asked from several threads.

    Args:
        settings: of the scope's store; where its registry is does not matter.
        limits: from when on values are stale.
    """

    def __init__(self, settings: StoreSettings, limits: FreshnessLimits) -> None:
        self._settings = settings.model_copy(update={"registry_url": None})
        self._limits = limits
        self._lock = threading.Lock()
        self._opened: _Version | None = None

    def find(self, patient_id: str) -> OnlinePatient | None:
        """The newest values of ``patient_id``; None for a patient of whom nothing is online.

        Raises:
            UnavailableError: nothing is online, or the store cannot be read.
        """
        with self._lock:
            version = self._current()
            try:
                return version.find(patient_id, self._limits, dt.datetime.now(dt.UTC))
            # SQLite, Redis and Feast have errors of their own; their messages may quote the key that was asked.
            except Exception as error:  # noqa: BLE001
                self._opened = None
                raise UnavailableError(
                    f"The online store of {self._settings.project} cannot be read ({type(error).__name__}).",
                    remedy="See that it is reachable; run online_features of the scope, or send the features.",
                ) from None

    def _current(self) -> _Version:
        state = ScopeStore(self._settings).current()
        if state is None:
            raise UnavailableError(f"No features of {self._settings.project} are online.", remedy=_REMEDY)
        if self._opened is None or self._opened.state != state:
            self._opened = _Version(self._settings, state)
        if self._settings.redis is None and not Path(state.online).is_file():
            self._opened = None
            raise UnavailableError(
                f"The online features of {self._settings.project} are not in {state.online}.", remedy=_REMEDY
            )
        return self._opened


class _Version:
    """One version of the online values, opened."""

    def __init__(self, settings: StoreSettings, state: MaterializationReport) -> None:
        if state.files.patient_keys is None:
            raise UnavailableError(
                f"The online features of {settings.project} were made before the keys of patients were kept.",
                remedy=_REMEDY,
            )
        load_feast()
        from feast import FeatureView as FeastView
        from feast.infra.online_stores.helpers import get_online_store_from_config

        self.state = state
        self._config = repo_config(settings, state.files)
        self._store = get_online_store_from_config(self._config.online_store)
        self._tables = {
            found.name: found
            for found in feast_objects(settings.project, state.files)
            if isinstance(found, FeastView)
        }

    def find(self, patient_id: str, limits: FreshnessLimits, now: dt.datetime) -> OnlinePatient | None:
        known_at, keys = self._read(PATIENT_KEYS, [patient_id])
        if known_at is None:
            return None
        entity = {"patient_id": patient_id, **keys}
        values: dict[str, Any] = {}
        ages = []
        views = self.state.files.views
        for view in views:
            asked = [entity[key] for key in view.keys]
            # A patient may have no professional or region; nothing is found by half a key.
            stamp, found = self._read(view, asked) if all(asked) else (None, {})
            values |= found
            ages.append(_age(view.name, stamp, self.state.completed[view.name], limits, now))
        frame = pd.DataFrame([[values.get(name) for name in feature_names(views)]], dtype=object)
        frame.columns = list(feature_names(views))
        return OnlinePatient(conform_features(frame, views), self.state.files.digest, ages)

    def _read(self, view: FeatureView, key: Sequence[str]) -> tuple[dt.datetime | None, dict[str, Any]]:
        """Event time and values of one entity; no time if there is nothing of it."""
        from feast.protos.feast.types.EntityKey_pb2 import EntityKey
        from feast.protos.feast.types.Value_pb2 import Value
        from feast.type_map import feast_value_type_to_python_type

        entity = EntityKey(
            join_keys=list(view.keys), entity_values=[Value(string_val=value) for value in key]
        )
        [(stamp, found)] = self._store.online_read(
            self._config, self._tables[view.name], [entity], list(view.feature_names)
        )
        if stamp is None or found is None:
            return None, {}
        if stamp.tzinfo is None:
            stamp = stamp.replace(tzinfo=dt.UTC)
        values = {
            name: feast_value_type_to_python_type(found[name]) for name in view.feature_names if name in found
        }
        return stamp, values


def _age(
    view: str,
    stamp: dt.datetime | None,
    arrived: dt.datetime,
    limits: FreshnessLimits,
    now: dt.datetime,
) -> ViewAge:
    return ViewAge(
        view=view,
        event_time=stamp,
        age_hours=None if stamp is None else round((now - stamp).total_seconds() / 3600, 3),
        arrived_at=arrived,
        hours_online=round((now - arrived).total_seconds() / 3600, 3),
        status=view_freshness(view, arrived, limits, now).status,
    )
