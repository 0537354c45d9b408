"""The warehouse as a Dagster resource: PostgreSQL of ``E2I_DATABASE_URL``, or the embedded server."""

from typing import TYPE_CHECKING

import dagster as dg

if TYPE_CHECKING:
    import sqlalchemy as sa

    from e2i_dagster.warehouse.connection import Role


class Warehouse(dg.ConfigurableResource):
    """Engines for the warehouse, migrated when first used. Opens nothing until an asset asks."""

    def engine(self, role: "Role" = "app") -> "sa.Engine":
        """An engine with the privileges of ``role`` (``owner``, ``app`` or ``read``)."""
        from e2i_dagster.warehouse.connection import engine

        return engine(role=role)
