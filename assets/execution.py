"""One execution of a stage: its inputs and what the gate says of them, reuse, and what it hands to the lake."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from assets.metadata import dagster_metadata
from e2i_dagster.display import to_plain
from e2i_dagster.pipeline.states import Execution, joined
from e2i_dagster.policy_files import observed
from resources.lake import LakeIOManager, Outcome, Pieces, asset_name, document_type, split_by_month
from resources.stages import failures_recorded
from resources.warehouse import Warehouse

if TYPE_CHECKING:
    from pydantic import BaseModel

    from e2i_dagster.versions.ledger import DataVersion

#: Metadata of an asset: raw tables that some of its partitions read.
SOME_PARTITIONS = "read_by_some_partitions"
#: First part of the key of each raw table's quality report.
QUALITY = "quality"


@dataclass(frozen=True)
class Produced:
    """What a stage made.

    Attributes:
        value: a frame or a pydantic document, stored in the lake.
        report: anything with ``to_metadata()``, shown in the UI.
        metadata: more for the UI.
        note: what of a good result waits for somebody; ``e2i status`` says it, too. Empty for nothing.
        withheld: month -> why it is not stored; its old version stays readable.
        partition_column: date column by which a frame of several months is cut.
        by_partition: values of several partitions, instead of ``value``.
    """

    value: Any = None
    report: Any = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    withheld: Mapping[str, str] = field(default_factory=dict)
    partition_column: str | None = None
    by_partition: Mapping[str | None, Any] | None = None

    def pieces(self, partitions: Sequence[str | None]) -> dict[str | None, Any]:
        """The values of those ``partitions`` that are not withheld."""
        good = [partition for partition in partitions if partition not in self.withheld]
        if self.by_partition is not None:
            return {partition: self.by_partition[partition] for partition in good}
        if self.partition_column is not None:
            return split_by_month(self.value, self.partition_column, [str(partition) for partition in good])
        return {partition: self.value for partition in good}


class Stage:
    """One execution of one asset for its partitions.

    Attributes:
        inputs: exact version of each input, once :meth:`look_at_inputs` was called.
        waivers: those under which the inputs passed the gate, and those that their makers stood under.
        code: digest of the code that the asset reaches.
        readings: values of policy files that were read since the execution began.
        changed: what is not as it was when the current version was made; empty when there is none.
        fingerprint: digest of inputs, waivers and code.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        gated: bool,
        reads: Mapping[str, Sequence[str]],
        code: str,
    ) -> None:
        self.context = context
        self.lake: LakeIOManager = context.resources.lake
        self.warehouse: Warehouse = self.lake.warehouse
        self.name = asset_name(context.asset_key)
        # In a run over partitions an asset without partitions sees the keys of the run, too.
        partitioned = context.assets_def.partitions_def is not None
        self.partitions: Sequence[str | None] = list(context.partition_keys) if partitioned else [None]
        self.execution = Execution(self.name, self.partitions, context.run.run_id)
        self.gated = gated
        self.reads = reads
        self.code = code
        self.readings = observed.Readings()
        self.changed = ""
        self.inputs: Sequence[tuple[str, str | None, str]] = ()
        self.waivers: Sequence[str] = ()
        self.elsewhere: Sequence[str] = ()
        self.absent: Sequence[str] = ()
        self.fingerprint = ""

    def look_at_inputs(
        self, also_reads: Callable[[str | None], Sequence[str]], *, outside: bool, where: Sequence[str]
    ) -> None:
        """Exact versions of all inputs, what the gate says of them, and the fingerprint.

        Raises:
            QCGateBlockedError: an input has no passing verdict.
            ConfigError: the policy that the asset depends on cannot be read.
        """
        from e2i_dagster.pipeline.reuse import fingerprint_of

        # Which versions there are and whether the gate lets them pass is asked each time, reused or not.
        with observed.unobserved():
            tables = also_reads(_only(self.partitions))
            self.inputs = [
                *input_versions(self.context, self.warehouse),
                *current_versions(tables, self.warehouse),
            ]
            self._require_gate()
            self.absent = self._absent(tables)
        asked_for = [version for version in self.inputs if version[0] not in where]
        self.fingerprint = fingerprint_of(asked_for, self.waivers, "" if outside else self.code)

    @contextmanager
    def recorded(self) -> Iterator[None]:
        """Record that the stage runs, and the state that an error leaves it in; another one :class:`LakeIOManager`."""
        record = functools.partial(self.execution.record, self.warehouse.engine())
        with failures_recorded(record):
            record("running")
            self.warehouse.hold_scopes(
                self.context.assets_def.partitions_def,
                self.partitions,
                self.context.run.run_id,
                self.context.log.info,
            )
            with observed.recording() as self.readings:
                yield

    def why_absent(self, table: str) -> str:
        """Why there is nothing of the raw ``table`` that nobody delivers; empty of one that is delivered."""
        from e2i_dagster.versions import ledger

        return ledger.why_absent(self.warehouse.engine(), table)

    def nothing(self, reason: str) -> dg.MaterializeResult[Outcome]:
        """What an absent table is for those that depend on it: no version, only its state."""
        outcome = Outcome(
            self.execution, Pieces({}, {}, self.fingerprint, self.code), state="absent", reason=reason
        )
        return _result(outcome, {"state": "absent", "reason": reason})

    def _absent(self, tables: Sequence[str]) -> Sequence[str]:
        """The raw tables among what is read that nobody delivers; they are read as tables without rows."""
        from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES
        from e2i_dagster.versions import ledger

        if not self.gated:
            return []
        read = {asset_name(key) for key in self.context.assets_def.keys_by_input_name.values()} | {*tables}
        read -= {self.name, *(name for name, *_ in self.inputs)}
        named = [name for name in RAW_TABLES + OPTIONAL_RAW_TABLES if name in read]
        return [name for name in named if ledger.why_absent(self.warehouse.engine(), name)]

    def _require_gate(self) -> None:
        """Refuse to go on unless raw inputs are judged, and training data audited, in exactly this version."""
        from e2i_dagster.quality.gate import require_audit, require_raw_gate, waivers_of

        with self.warehouse.engine().connect() as connection:
            verdicts = require_raw_gate(connection, self.inputs, reads=self.reads) if self.gated else ()
            if self.gated:
                require_audit(connection, self.inputs)
            self.waivers = waivers_of(connection, self.inputs, verdicts)
        self.elsewhere = [
            f"{verdict.table} [{verdict.partition}]: {finding.rule} on {finding.column}: {finding.detail}"
            for verdict in verdicts
            for finding in verdict.elsewhere
        ]

    @property
    def document(self) -> "type[BaseModel] | None":
        """The declared type of the value; None for a frame."""
        return document_type(self.context.assets_def.get_asset_spec().metadata)

    def reusable(
        self, fault: Callable[[Any], str] | None, *, any_version: bool
    ) -> dg.MaterializeResult[Outcome] | None:
        """The stored version, when inputs, policy and code are those that made it and its file is whole."""
        from e2i_dagster.pipeline.reuse import find_reusable

        found = find_reusable(
            self.warehouse.engine(),
            self.name,
            self.partitions,
            self.fingerprint,
            code=self.code,
            any_version=any_version,
            damage=self.lake.lake().not_reusable,
        )
        stored = found.versions
        self.changed = found.reason
        if not stored:
            return None
        with observed.unobserved():
            self.changed = fault(self.lake.read(stored.values(), self.document)) if fault else ""
        if self.changed:
            return None
        digests = {partition: stored[partition].digest for partition in self.partitions}
        pieces = Pieces({}, digests, self.fingerprint, self.code)
        made_by = sorted({str(version.run_id) for version in stored.values()})
        recorded = dict(
            next((kept for version in stored.values() if (kept := version.metadata.get("told"))), [])
        )
        metadata = {**dagster_metadata(recorded), "state": "reused", "made_by_run": ", ".join(made_by)}
        rows = None
        if self.document is None:
            rows = metadata["dagster/row_count"] = sum(version.rows for version in stored.values())
        metadata = self._by_partition(
            metadata,
            digests,
            {name: {"dagster/row_count": stored[name].rows} if rows is not None else {} for name in stored},
        )
        outcome = Outcome(
            self.execution,
            pieces,
            again=list(stored.values()) if found.older else (),
            state="reused",
            reason=joined(
                recorded.get("note"), f"unchanged inputs, policy and code; made by run {', '.join(made_by)}"
            ),
            rows=rows,
        )
        return _result(outcome, metadata)

    def _stored(self) -> "dict[str | None, DataVersion]":
        """The current versions whose files are whole."""
        from e2i_dagster.versions import ledger

        current = ledger.current(self.warehouse.engine(), self.name)
        damage = self.lake.lake().not_reusable
        return {
            partition: version
            for partition, version in current.items()
            if partition in self.partitions and version.file is not None and not damage(version.file)
        }

    def store(self, produced: Produced, *, always: bool) -> dg.MaterializeResult[Outcome]:
        """Cut the value into partitions, with what is to be said of them, for the lake to store the good ones."""
        from e2i_dagster.versions.lake import value_digests

        values = produced.pieces(self.partitions)
        self._require_declared(values)
        absent = f"read as without rows, because no delivery holds them: {', '.join(self.absent)}"
        note = joined(produced.note, absent if self.absent else "")
        recorded = {
            **_metadata_of(produced),
            **({"note": note} if note else {}),
            **({"waived": list(self.waivers)} if self.waivers else {}),
            **({"not_read_here": list(self.elsewhere)} if self.elsewhere else {}),
        }
        pieces = Pieces(
            values,
            value_digests(values),
            self.fingerprint,
            self.code,
            {"told": list(recorded.items()), **({"waived": list(self.waivers)} if self.waivers else {})},
            self.readings.to_record(),
            self.inputs,
        )
        metadata = {"state": "executed", **dagster_metadata(recorded)}
        frames = self.document is None
        rows = sum(map(len, values.values())) if frames else None
        if rows is not None:
            metadata["dagster/row_count"] = rows
        before = self._stored() if always else {}
        if produced.withheld:
            reasons = _some(produced.withheld)
            outcome = Outcome(
                self.execution,
                pieces,
                state="failed",
                reason=f"withheld {reasons}",
                rows=rows,
                withheld=f"{self.name}: {len(produced.withheld)} of {len(self.partitions)} partitions withheld, "
                f"their old versions stay readable: {reasons}",
                metadata=metadata,
            )
        elif always and {key: version.digest for key, version in before.items()} == pieces.digests:
            metadata["state"] = "reused"
            made_by = ", ".join(sorted({str(version.run_id) for version in before.values()}))
            outcome = Outcome(
                self.execution,
                dataclasses.replace(pieces, values={}),
                state="reused",
                reason=joined(note, f"looked again, the same values as of run {made_by}"),
                rows=rows,
            )
        else:
            waivers = f"made under waivers: {'; '.join(self.waivers)}" if self.waivers else ""
            reason = joined(note, self.changed, waivers)
            outcome = Outcome(self.execution, pieces, reason=reason, rows=rows)
        if not outcome.withheld and len(values) > 1:
            own = {
                key: {"dagster/row_count": len(value)} if frames else dagster_metadata(value.to_metadata())
                for key, value in values.items()
            }
            metadata = self._by_partition(metadata, pieces.digests, own)
        return _result(outcome, metadata)

    def _by_partition(
        self,
        metadata: Mapping[str, Any],
        digests: Mapping[str | None, str],
        own: Mapping[str | None, Mapping[str, Any]],
    ) -> Mapping[str, Any]:
        """Give each of several partitions what is its own, and what is said of all of them to the newest one.

        Dagster repeats the metadata of a result for every partition: of a table over many months the history would
        grow with the square of their number.

        Returns:
            What is left for the result: everything of a run of one partition, else nothing.
        """
        if len(digests) < 2:
            return metadata
        newest = max(map(str, digests))
        for key, digest in digests.items():
            whole = {"partition_count": len(digests), **metadata} if key == newest else {}
            whole["state"] = metadata["state"]
            self.context.add_asset_metadata({**whole, **own[key], "digest": digest}, partition_key=key)
        return {}

    def _require_declared(self, values: Mapping[str | None, Any]) -> None:
        import pandas as pd

        declared = self.document or pd.DataFrame
        for value in values.values():
            if type(value) is not declared:
                raise TypeError(
                    f"{self.name} made a {type(value).__qualname__}, but declares a "
                    f"{declared.__qualname__}: correct `produces`"
                )


def input_versions(
    context: dg.AssetExecutionContext, warehouse: Warehouse
) -> Iterator[tuple[str, str | None, str]]:
    """(asset, partition, digest) of everything in the ledger that ``context``'s step depends on.

    Tables that only some partitions read (:class:`AlsoReads`) are left to :func:`current_versions`.
    """
    from e2i_dagster.versions import ledger

    some = set(context.assets_def.get_asset_spec().metadata.get(SOME_PARTITIONS, ()))
    with warehouse.engine().connect() as connection:
        for input_name in context.assets_def.op.ins:
            key = context.asset_key_for_input(input_name)
            # A gate orders the steps of a run; its report is not read.
            if key.path[0] == QUALITY or key.path[0] in some:
                continue
            current = ledger.current(connection, asset_name(key))
            wanted = _partitions_of_input(context, input_name)
            for partition in wanted:
                if partition in current:
                    yield asset_name(key), partition, current[partition].digest


def _partitions_of_input(context: dg.AssetExecutionContext, name: str) -> Sequence[str | None]:
    try:
        context.asset_partitions_def_for_input(name)
    except dg.DagsterInvariantViolationError:
        return [None]
    return context.asset_partition_keys_for_input(name)


def current_versions(tables: Sequence[str], warehouse: Warehouse) -> Iterator[tuple[str, str | None, str]]:
    """(table, month, digest) of everything that the ledger has of ``tables`` in the months that are kept."""
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.versions import ledger

    months = current_policy().sources.months
    for table in tables:
        for partition, version in ledger.current(warehouse.engine(), table, months=months).items():
            yield table, partition, version.digest


def _result(outcome: Outcome, metadata: Mapping[str, Any]) -> dg.MaterializeResult[Outcome]:
    version = dg.DataVersion(outcome.pieces.data_version)
    return dg.MaterializeResult(value=outcome, metadata=metadata, data_version=version)


def _only(partitions: Sequence[str | None]) -> str | None:
    return partitions[0] if len(partitions) == 1 else None


def _some(withheld: Mapping[str, str], most: int = 5) -> str:
    """The first few withheld months with their reasons, and how many more there are."""
    shown = "; ".join(f"{month}: {withheld[month]}" for month in sorted(withheld)[:most])
    more = len(withheld) - most
    return shown if more <= 0 else f"{shown}; and {more} more: {', '.join(sorted(withheld)[most:])}"


def _metadata_of(produced: Produced) -> dict[str, Any]:
    """What the stage says of itself, as plain JSON values."""
    given = produced.report.to_metadata() if produced.report is not None else {}
    return json.loads(json.dumps({**given, **produced.metadata}, default=to_plain))
