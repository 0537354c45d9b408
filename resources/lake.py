"""The lake as Dagster's IO manager: partitioned, immutable, entered in the ledger of versions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import dagster as dg

from e2i_dagster.config.environment import lake_url
from e2i_dagster.errors import InputError
from resources.warehouse import Warehouse

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import BaseModel

    from e2i_dagster.warehouse.lake import Lake, Value
    from e2i_dagster.warehouse.ledger import DataVersion

#: Metadata of an asset that is no frame: the type of its value.
DOCUMENT = "document"


@dataclass(frozen=True)
class Pieces:
    """What a step hands to the lake: a value and its digest for each partition (None: unpartitioned).

    ``fingerprint`` covers the inputs' digests and the code version; an asset whose fingerprint is that of a
    stored version need not be computed again when the policy values that this was made from (``read``) still
    stand. ``metadata`` is what the UI
    shows (``told``: pairs, because JSONB forgets their order), kept with the first partition so that a
    reused version shows it again.
    """

    values: Mapping[str | None, "Value"]
    digests: Mapping[str | None, str]
    fingerprint: str
    code_version: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    read: Mapping[str, Any] = field(default_factory=dict)

    def stored(self) -> "Pieces":
        """The same digests without values: the stage has stored them before it said that it is done."""
        return replace(self, values={})

    @property
    def data_version(self) -> str:
        """The digest of the only piece, or the hash of the sorted (partition, digest) pairs."""
        from e2i_dagster.config.base import digest_of

        if len(self.digests) == 1:
            return next(iter(self.digests.values()))
        return digest_of(sorted((str(partition), digest) for partition, digest in self.digests.items()))


def asset_name(key: dg.AssetKey) -> str:
    """The name under which an asset stands in lake and ledger: its path joined by ``/``."""
    return "/".join(key.path)


class LakeIOManager(dg.ConfigurableIOManager):
    """Stores each partition of an output as a version of its own and pins versions when reading.

    A value is read as the type that its asset declares in the metadata ``document``, without one as
    a ``pandas.DataFrame``.
    """

    url: str = ""
    warehouse: dg.ResourceDependency[Warehouse]

    def lake(self) -> "Lake":
        """The lake at ``url`` (default: ``E2I_LAKE``, or the state folder)."""
        from e2i_dagster.warehouse.lake import Lake

        return Lake(self.url or lake_url())

    def store(self, asset: str, pieces: Pieces, run_id: str) -> None:
        """Write every piece, then enter all of them in the ledger in one transaction."""
        from e2i_dagster.warehouse import ledger

        lake = self.lake()
        stored = {
            partition: lake.write(asset, partition, value, pieces.digests[partition])
            for partition, value in pieces.values.items()
        }
        with self.warehouse.engine().begin() as connection:
            for position, (partition, version) in enumerate(stored.items()):
                ledger.record(
                    connection,
                    ledger.DataVersion(
                        asset=asset,
                        partition=partition,
                        digest=version.digest,
                        schema_hash=version.schema_hash,
                        code_version=pieces.code_version,
                        fingerprint=pieces.fingerprint,
                        rows=version.rows,
                        path=version.path,
                        run_id=run_id,
                        metadata={**(pieces.metadata if position == 0 else {}), "read": dict(pieces.read)},
                    ),
                )

    def make_current(self, versions: "Iterable[DataVersion]") -> None:
        """Enter ``versions``, which the lake has, as the newest of their partitions."""
        from e2i_dagster.warehouse import ledger

        with self.warehouse.engine().begin() as connection:
            for version in versions:
                ledger.record(connection, replace(version, at=None))

    def load(
        self, asset: str, partitions: Sequence[str | None], document: "type[BaseModel] | None" = None
    ) -> Any:
        """The current versions of ``partitions``: the rows of all as one frame, or the first one's ``document``.

        Raises:
            InputError: a partition was never stored; it is named.
        """
        from e2i_dagster.warehouse import ledger

        versions = ledger.current(self.warehouse.engine(), asset)
        missing = [str(partition) for partition in partitions if partition not in versions]
        if missing:
            shown = ", ".join(missing[:6]) + (" ..." if len(missing) > 6 else "")
            of = f" partitions {shown}" if missing != ["None"] else ""
            raise InputError(
                f"{asset}:{of} never materialized. Materialize them first (`e2i plan` shows the order)."
            )
        paths = [path for partition in partitions if (path := versions[partition].path)]
        if document is not None:
            return self.lake().read_document(paths[0], document)
        return self.lake().read_frame(paths)

    def handle_output(self, context: dg.OutputContext, obj: Pieces) -> None:
        self.store(asset_name(context.asset_key), obj, context.run_id)

    def load_input(self, context: dg.InputContext) -> Any:
        partitions = _partitions_to_read(context) if context.has_asset_partitions else [None]
        if context.has_asset_partitions:
            # What is read must not be replaced before the stage that reads it has ended.
            self.warehouse.hold_scopes(
                context.asset_partitions_def, partitions, context.step_context.run_id, context.log.info
            )
        declared = context.upstream_output.definition_metadata if context.upstream_output else {}
        return self.load(asset_name(context.asset_key), partitions, document_type(declared))


def document_type(metadata: Mapping[str, Any]) -> "type[BaseModel] | None":
    """The type of the value of an asset with this ``metadata``, imported now; None for a frame."""
    declared = metadata.get(DOCUMENT)
    return resolve_name(f"{declared.module}:{declared.name}") if declared is not None else None


def _partitions_to_read(context: dg.InputContext) -> Sequence[str]:
    """The mapped partitions; a check reads the partition of its run, which Dagster does not map for it."""
    step = context.step_context
    if step.is_asset_check_step and step.has_partition_key:
        return [step.partition_key]
    return context.asset_partition_keys


def split_by_month(
    frame: "pd.DataFrame", column: str, months: Sequence[str]
) -> dict[str | None, "pd.DataFrame"]:
    """``frame`` cut into ``months`` (``YYYY-MM``) of its date ``column``; other months are left out."""
    from e2i_dagster.warehouse.frames import months_of

    groups = dict(iter(frame.groupby(months_of(frame[column]), sort=False)))
    return {month: groups.get(month, frame.iloc[:0]) for month in months}
