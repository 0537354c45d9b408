"""The feature store as a Dagster resource: one Feast project per scope."""

from typing import TYPE_CHECKING, Literal

import dagster as dg

if TYPE_CHECKING:
    from e2i_dagster.features.store import ScopeStore


class FeatureStore(dg.ConfigurableResource):
    """Opens the store of a scope. Feast is imported when a store is used, not before.

    Attributes:
        redis: Redis address in Feast's form (``host:port,password=...``), or empty for
            ``E2I_FEAST_REDIS``; if that is not set either, online values are in a file of the state folder.
        registry: ``server`` keeps Feast's registry in a database of its own on the warehouse's server,
            ``file`` in the state folder.
    """

    redis: str = ""
    registry: Literal["server", "file"] = "server"

    def open(self, scope: str) -> "ScopeStore":
        """The store of ``scope``; close it, or use it in a ``with`` statement."""
        from e2i_dagster.database.connection import ensure_database
        from e2i_dagster.features.store import REGISTRY_DATABASE, ScopeStore, settings_for

        url = ensure_database(REGISTRY_DATABASE) if self.registry == "server" else None
        return ScopeStore(settings_for(scope, registry_url=url, redis=self.redis or None))
