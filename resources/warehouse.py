"""The warehouse as a Dagster resource: PostgreSQL of ``E2I_DATABASE_URL``, or the embedded server."""

from typing import TYPE_CHECKING, Any

import dagster as dg

from e2i_dagster.config.policy import current_policy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import sqlalchemy as sa

    from e2i_dagster.database.connection import Role
    from e2i_dagster.versions.coverage import Coverage


class Warehouse(dg.ConfigurableResource):
    """Engines for the warehouse, migrated when first used. Opens nothing until an asset asks.

    When a run ends, it lets go of the scopes that the run holds.
    """

    def engine(self, role: "Role" = "app") -> "sa.Engine":
        """An engine with the privileges of ``role`` (``owner``, ``app`` or ``read``)."""
        from e2i_dagster.database.connection import engine

        return engine(role=role)

    def coverage(self, *tables: str) -> "Coverage":
        """The days of the configured range that every one of ``tables`` covers."""
        from e2i_dagster.versions.coverage import coverage

        return coverage(self.engine(), tables, current_policy().sources.months)

    def hold_scopes(
        self,
        partitions: dg.PartitionsDefinition[Any] | None,
        keys: "Sequence[str | None]",
        run_id: str,
        waiting: "Callable[[str], None]",
    ) -> None:
        """Keep other runs out of the scopes among the ``keys`` of an asset until this run ends.

        Raises:
            UnavailableError: another run of a scope did not end in time; names it.
        """
        from e2i_dagster.database.locks import hold

        for scope in _scopes_among(partitions, keys):
            hold(self.engine(), scope, run_id, waiting)

    def teardown_after_execution(self, context: dg.InitResourceContext) -> None:
        """Let go of the scopes of the run."""
        from e2i_dagster.database.locks import release

        if context.run is not None:
            release(context.run.run_id)


def _scopes_among(partitions: dg.PartitionsDefinition[Any] | None, keys: "Sequence[str | None]") -> list[str]:
    """The scopes that ``keys`` of an asset over scopes, or over days and scopes, stand for; else none."""
    if isinstance(partitions, dg.MultiPartitionsDefinition):
        found = [partitions.get_partition_key_from_str(str(key)).keys_by_dimension["scope"] for key in keys]
        return sorted(set(found))
    over_scopes = isinstance(partitions, dg.StaticPartitionsDefinition) and set(
        partitions.get_partition_keys()
    ) == set(current_policy().scopes)
    return sorted({str(key) for key in keys}) if over_scopes else []
