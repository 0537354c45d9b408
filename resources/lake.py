"""The lake as Dagster's IO manager: partitioned, immutable, entered in the ledger of versions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

import dagster as dg

from e2i_dagster.errors import InputError
from e2i_dagster.pipeline.states import Execution, announce
from e2i_dagster.policy_files.environment import lake_url
from resources.private_dagster import partitions_to_read, run_of
from resources.stages import failures_recorded, refusal
from resources.warehouse import Warehouse

if TYPE_CHECKING:
    import pandas as pd
    from pydantic import BaseModel

    from e2i_dagster.versions.lake import Lake, StoredVersion, Value
    from e2i_dagster.versions.ledger import DataVersion, State

#: Metadata of an asset that is no frame: the type of its value.
DOCUMENT = "document"


@dataclass(frozen=True)
class Pieces:
    """A value and its digest for each partition (None: unpartitioned).

    ``values`` lacks what the lake has already. ``fingerprint`` covers the inputs' digests and the code version; an
    asset whose fingerprint is that of a stored version need not be computed again when the policy values that this
    was made from (``read``) still stand. ``metadata`` is what the UI shows (``told``: pairs, because JSONB forgets
    their order), kept with the first partition so that a reused version shows it again. ``inputs`` are the versions
    that were read: asset, partition, digest.
    """

    values: Mapping[str | None, "Value"]
    digests: Mapping[str | None, str]
    fingerprint: str
    code_version: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    read: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[tuple[str, str | None, str]] = ()

    @property
    def data_version(self) -> str:
        """The digest of the only piece, or the hash of the sorted (partition, digest) pairs."""
        from e2i_dagster.policy_files.base import digest_of

        if len(self.digests) == 1:
            return next(iter(self.digests.values()))
        return digest_of(sorted((str(partition), digest) for partition, digest in self.digests.items()))


@dataclass(frozen=True)
class Outcome:
    """What a stage hands to the lake: what is to be stored, and the state that it is in once that is stored.

    Attributes:
        again: versions that the lake has, to be entered as the newest of their partitions.
        rows: rows of frames; None for documents.
        withheld: what the run ends with although its good partitions are stored; empty when none is withheld.
        metadata: what the UI shows of the partitions of a run that ends so.
    """

    execution: Execution
    pieces: Pieces
    again: "Sequence[DataVersion]" = ()
    state: "State" = "executed"
    reason: str = ""
    rows: int | None = None
    withheld: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


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
        from e2i_dagster.versions.lake import Lake

        return Lake(self.url or lake_url())

    def store(self, outcome: Outcome) -> None:
        """Store every piece, and enter versions and state in one transaction: all of it holds, or nothing.

        Files get their names last, while the transaction keeps others from noting the same ones. When it fails
        then, a file without an entry is left, which nobody reads and the next run writes again.

        Raises:
            UnavailableError: the lake cannot be written to.
        """
        from e2i_dagster.versions import ledger

        lake, pieces, execution = self.lake(), outcome.pieces, outcome.execution
        engine = self.warehouse.engine()
        placed = {
            partition: lake.place(execution.stage, partition, value, pieces.digests[partition])
            for partition, value in pieces.values.items()
        }
        values = {path: (pieces.values[name], pieces.digests[name]) for name, path in placed.items()}
        pending = lake.set_aside(values, ledger.files(engine, values))
        stored = {version.version.path: version.version for version in pending}
        reached = execution.state(
            outcome.state, outcome.reason, rows=outcome.rows, data_version=pieces.data_version
        )
        try:
            with engine.begin() as connection:
                made = [
                    _entry(outcome, partition, stored[path], first=position == 0)
                    for position, (partition, path) in enumerate(placed.items())
                ]
                again = [replace(version, at=None, size=None, checksum=None) for version in outcome.again]
                ledger.record_all(connection, [*made, *again])
                ledger.record_state(connection, reached)
                lake.put(pending)
        except BaseException:
            lake.discard(pending)
            raise
        announce(reached)

    def load(
        self, asset: str, partitions: Sequence[str | None], document: "type[BaseModel] | None" = None
    ) -> Any:
        """The current versions of ``partitions``: the rows of all as one frame, or the first one's ``document``.

        A raw table that is absent has no rows.

        Raises:
            InputError: a partition was never stored; it is named.
            DamagedError: its file is missing or damaged.
        """
        from e2i_dagster.versions import ledger

        versions = ledger.current(self.warehouse.engine(), asset)
        missing = [str(partition) for partition in partitions if partition not in versions]
        if not versions and ledger.why_absent(self.warehouse.engine(), asset):
            import pandas as pd

            from e2i_dagster.tables.frames import conform

            return conform(asset, pd.DataFrame())
        if missing:
            shown = ", ".join(missing[:6]) + (" ..." if len(missing) > 6 else "")
            of = f" partitions {shown}" if missing != ["None"] else ""
            raise InputError(
                f"{asset}:{of} never materialized.",
                field=asset,
                remedy="Materialize them first (`e2i plan` shows the order).",
            )
        return self.read([versions[partition] for partition in partitions], document)

    def read(self, versions: "Iterable[DataVersion]", document: "type[BaseModel] | None" = None) -> Any:
        """The rows of all ``versions`` as one frame, or the first one's ``document``.

        Raises:
            DamagedError: a file is missing or damaged.
        """
        stored = [file for version in versions if (file := version.file)]
        if document is not None:
            return self.lake().read_document(stored[0], document)
        return self.lake().read_frame(stored)

    def handle_output(self, context: dg.OutputContext, obj: Outcome) -> Iterator[dict[str, Any]]:
        """Store ``obj``; of one with withheld partitions tell of the good ones, then fail.

        Raises:
            Failure: partitions are withheld, or nothing could be stored.
        """
        with failures_recorded(partial(obj.execution.record, self.warehouse.engine())):
            self.store(obj)
        if obj.withheld:
            newest = max(map(str, obj.pieces.digests), default=None)
            for partition, digest in obj.pieces.digests.items():
                context.log_event(
                    dg.AssetMaterialization(
                        context.asset_key,
                        partition=partition,
                        metadata={**(obj.metadata if partition == newest else {}), "digest": digest},
                        tags={"dagster/data_version": digest},
                    )
                )
            # Dagster takes what was logged when something is yielded, also of an output that then fails.
            yield {}
            raise dg.Failure(obj.withheld, metadata=obj.metadata, allow_retries=False)

    def load_input(self, context: dg.InputContext) -> Any:
        partitions = partitions_to_read(context) if context.has_asset_partitions else [None]
        if context.has_asset_partitions:
            # What is read must not be replaced before the stage that reads it has ended.
            self.warehouse.hold_scopes(
                context.asset_partitions_def, partitions, run_of(context), context.log.info
            )
        declared = context.upstream_output.definition_metadata if context.upstream_output else {}
        try:
            return self.load(asset_name(context.asset_key), partitions, document_type(declared))
        except InputError as error:
            raise refusal(error) from error


def _entry(outcome: Outcome, partition: str | None, stored: "StoredVersion", *, first: bool) -> "DataVersion":
    """The row of the ledger for a piece of ``outcome``; what the UI shows is kept with the first."""
    from e2i_dagster.versions.ledger import MADE_FROM, READ, DataVersion

    pieces = outcome.pieces
    made_from: dict[str, dict[str, str]] = {}
    for asset, of_asset, digest in pieces.inputs:
        made_from.setdefault(asset, {})[of_asset or ""] = digest
    return DataVersion(
        asset=outcome.execution.stage,
        partition=partition,
        digest=stored.digest,
        schema_hash=stored.schema_hash,
        code_version=pieces.code_version,
        fingerprint=pieces.fingerprint,
        rows=stored.rows,
        path=stored.path,
        run_id=outcome.execution.run_id,
        metadata={**(pieces.metadata if first else {}), READ: dict(pieces.read), MADE_FROM: made_from},
        size=stored.file.size,
        checksum=stored.file.checksum,
    )


def document_type(metadata: Mapping[str, Any]) -> "type[BaseModel] | None":
    """The type of the value of an asset with this ``metadata``, imported now; None for a frame."""
    declared = metadata.get(DOCUMENT)
    return resolve_name(f"{declared.module}:{declared.name}") if declared is not None else None


def split_by_month(
    frame: "pd.DataFrame", column: str, months: Sequence[str]
) -> dict[str | None, "pd.DataFrame"]:
    """``frame`` cut into ``months`` (``YYYY-MM``) of its date ``column``; other months are left out."""
    from e2i_dagster.tables.frames import months_of

    groups = dict(iter(frame.groupby(months_of(frame[column]), sort=False)))
    return {month: groups.get(month, frame.iloc[:0]) for month in months}
