"""What every asset of the pipeline shares: gate, reuse, data versions, states, errors.

An asset body loads nothing and stores nothing. It gets its inputs, calls one core function and
returns :class:`Produced`; this module does the rest, so that no stage can forget it.
"""

import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import dagster as dg

from e2i_dagster.pipeline.code import source_code
from e2i_dagster.pipeline.states import Execution, joined
from e2i_dagster.policy_files import observed
from resources.lake import (
    DOCUMENT,
    LakeIOManager,
    Outcome,
    Pieces,
    asset_name,
    document_type,
    split_by_month,
)
from resources.stages import failures_recorded
from resources.warehouse import Warehouse

if TYPE_CHECKING:
    from pydantic import BaseModel

    from e2i_dagster.versions.ledger import DataVersion

OWNERS = ["team:mlops"]
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


@dataclass(frozen=True)
class AlsoReads:
    """Raw tables that a body reads by itself, because only some partitions need them.

    Attributes:
        tables: those that any partition may read, the whole of each; the asset graph shows that the asset depends
            on them.
        of: those that one partition does read; their current versions count as its inputs, for the gate too.
    """

    tables: Sequence[str] = ()
    of: Callable[[str | None], Sequence[str]] = lambda partition: ()

    def edges(self) -> Iterator[dg.AssetDep]:
        """Dependencies on the tables and on their quality reports."""
        from e2i_dagster.tables import date_column

        for table in self.tables:
            mapping = dg.AllPartitionMapping() if date_column(table) else None
            for key in (dg.AssetKey(table), dg.AssetKey([QUALITY, table])):
                yield dg.AssetDep(key, partition_mapping=mapping)


def stage_asset(
    *,
    produces: str | None = None,
    fault: Callable[[Any], str] | None = None,
    always: bool = False,
    pure: bool = False,
    outside: bool = False,
    where: Sequence[str] = (),
    code: Sequence[str] = (),
    gated: bool = True,
    reads: Mapping[str, Sequence[str]] | None = None,
    also_reads: AlsoReads = AlsoReads(),
    **asset_arguments: Any,
) -> Callable[[Callable[..., Produced]], dg.AssetsDefinition]:
    """Turn a body that returns :class:`Produced` into an asset of the pipeline.

    Context, configuration and resources of a body are annotated with their types. What it reads of the
    lake is annotated in quotes, for readers and the type checker: no such type is imported while the
    code location loads.

    Args:
        produces: type of the value, a pydantic model as ``module:name``; None for a frame.
        fault: says what is wrong with what a stored version stands for (the endpoint is no longer there); empty
            when it can be reused.
        always: never reuse, because the value depends on more than inputs, policy and code.
        pure: it makes nothing but its value, so that any stored version is as good as the newest.
        outside: its work is done outside (a live endpoint, a tracked run), so that a change of its code does not
            do it again; a change of inputs or of policy does.
        where: inputs that only say where its work is done (which endpoint answers), so that another one alone
            does not do it again.
        code: modules that the body reaches by other ways than imports.
        gated: raw tables among the inputs need a passed quality gate for exactly their versions, a training
            frame and its splits a passed leakage audit. In a run that checks them, too, the asset waits for
            their gate.
        reads: columns that are read of a raw table; a fault in the values of another column only warns.
            Tables and months are declared by the inputs and their partition mapping.
        also_reads: raw tables that the body reads by itself because only some partitions need them.
        asset_arguments: arguments of :func:`dagster.asset`.
    """

    asset_arguments.setdefault("owners", OWNERS)
    if also_reads.tables:
        asset_arguments["deps"] = [*asset_arguments.get("deps", ()), *also_reads.edges()]
        listed = {SOME_PARTITIONS: list(also_reads.tables)}
        asset_arguments["metadata"] = {**asset_arguments.get("metadata", {}), **listed}
    if produces is not None:
        module, name = produces.split(":")
        document = {DOCUMENT: dg.PythonArtifactMetadataValue(module, name)}
        asset_arguments["metadata"] = {**asset_arguments.get("metadata", {}), **document}

    def decorate(body: Callable[..., Produced]) -> dg.AssetsDefinition:
        wanted = inspect.signature(body).parameters

        reached = source_code().digest_of(body, [*code, *([produces] if produces else [])])

        @functools.wraps(body)
        def run(context: dg.AssetExecutionContext, **given: Any) -> Any:
            stage = Stage(context, given["lake"], given["warehouse"], gated, reads or {}, reached)
            inputs = {name: value for name, value in given.items() if name in wanted}
            with stage.recorded():
                stage.look_at_inputs(also_reads, outside=outside, where=where)
                reused = None if always else stage.reusable(fault, any_version=pure)
                if reused is not None:
                    return reused
                made = body(context, **inputs) if "context" in wanted else body(**inputs)
                return stage.hand_over(made, always=always)

        _tell_dagster(
            run,
            {
                "context": dg.AssetExecutionContext,
                **{name: parameter.annotation for name, parameter in wanted.items()},
                "lake": dg.ResourceParam[LakeIOManager],
                "warehouse": Warehouse,
            },
        )
        if gated:
            asset_arguments["deps"] = [*asset_arguments.get("deps", ()), *_gates(wanted, asset_arguments)]
        return dg.asset(io_manager_key="lake", code_version=reached, **asset_arguments)(run)

    return decorate


def stage_check(**check_arguments: Any) -> Callable[[Callable[..., Any]], dg.AssetChecksDefinition]:
    """:func:`dagster.asset_check` for a body that reads the lake, annotated as :func:`stage_asset` says."""

    def decorate(body: Callable[..., Any]) -> dg.AssetChecksDefinition:
        @functools.wraps(body)
        def run(*given: Any, **by_name: Any) -> Any:
            return body(*given, **by_name)

        wanted = inspect.signature(body).parameters
        _tell_dagster(run, {name: parameter.annotation for name, parameter in wanted.items()})
        return dg.asset_check(**check_arguments)(run)

    return decorate


def _tell_dagster(run: Callable[..., Any], annotations: Mapping[str, Any]) -> None:
    """Give ``run`` parameters whose types Dagster can resolve."""
    known = {name: _stand_in(one) if isinstance(one, str) else one for name, one in annotations.items()}
    run.__annotations__ = known
    run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=annotation)
            for name, annotation in known.items()
        ]
    )


@functools.cache
def _stand_in(annotation: str) -> type:
    """A class by which Dagster names a type that is not imported, and checks that a value is of that name."""
    name = annotation.rpartition(".")[2]
    stand_in = type(name, (), {})
    dg.make_python_type_usable_as_dagster_type(
        stand_in, dg.DagsterType(lambda _, value: type(value).__name__ == name, name)
    )
    return stand_in


class Stage:
    """One execution of one asset for its partitions.

    Attributes:
        inputs: exact version of each input, once :meth:`look_at_inputs` was called.
        marks: waivers under which the inputs passed the gate, and those that their makers stood under.
        code: digest of the code that the asset reaches.
        readings: values of policy files that were read since the execution began.
        changed: what is not as it was when the current version was made; empty when there is none.
        fingerprint: digest of inputs, marks and code.
    """

    def __init__(
        self,
        context: dg.AssetExecutionContext,
        lake: LakeIOManager,
        warehouse: Warehouse,
        gated: bool,
        reads: Mapping[str, Sequence[str]],
        code: str,
    ) -> None:
        self.context = context
        self.lake = lake
        self.warehouse = warehouse
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
        self.marks: Sequence[str] = ()
        self.elsewhere: Sequence[str] = ()
        self.absent: Sequence[str] = ()
        self.fingerprint = ""

    def look_at_inputs(self, also_reads: AlsoReads, *, outside: bool, where: Sequence[str]) -> None:
        """Exact versions of all inputs, what the gate says of them, and the fingerprint.

        Raises:
            QCGateBlockedError: an input has no passing verdict.
            ConfigError: the policy that the asset depends on cannot be read.
        """
        from e2i_dagster.pipeline.reuse import fingerprint_of

        # Which versions there are and whether the gate lets them pass is asked each time, reused or not.
        with observed.unobserved():
            tables = also_reads.of(_only(self.partitions))
            self.inputs = [
                *input_versions(self.context, self.warehouse),
                *current_versions(tables, self.warehouse),
            ]
            self._require_gate()
            self.absent = self._absent(tables)
        asked_for = [one for one in self.inputs if one[0] not in where]
        self.fingerprint = fingerprint_of(asked_for, self.marks, "" if outside else self.code)

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

    def _absent(self, tables: Sequence[str]) -> Sequence[str]:
        """The raw tables among what is read that nobody delivers; they are read as tables without rows."""
        from e2i_dagster.tables import OPTIONAL_RAW_TABLES, RAW_TABLES
        from e2i_dagster.versions import ledger

        read = {asset_name(key) for key in self.context.assets_def.keys_by_input_name.values()} | {*tables}
        there = {name for name, *_ in self.inputs}
        named = [
            name for name in RAW_TABLES + OPTIONAL_RAW_TABLES if name in read - there and name != self.name
        ]
        return (
            [name for name in named if ledger.is_absent(self.warehouse.engine(), name)] if self.gated else []
        )

    def _require_gate(self) -> None:
        """Refuse to go on unless raw inputs are judged, and training data audited, in exactly this version."""
        from e2i_dagster.quality.gate import marks_of, require_audit, require_raw_gate

        with self.warehouse.engine().connect() as connection:
            verdicts = require_raw_gate(connection, self.inputs, reads=self.reads) if self.gated else ()
            if self.gated:
                require_audit(connection, self.inputs)
            self.marks = marks_of(connection, self.inputs, verdicts)
        self.elsewhere = [
            f"{verdict.table} [{verdict.partition}]: {one.rule} on {one.column}: {one.detail}"
            for verdict in verdicts
            for one in verdict.elsewhere
        ]

    @property
    def document(self) -> "type[BaseModel] | None":
        """The declared type of the value; None for a frame."""
        return document_type(self.context.assets_def.metadata_by_key[self.context.asset_key])

    def reusable(self, fault: Callable[[Any], str] | None, *, any_version: bool) -> dg.Output[Outcome] | None:
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
        told = dict(next((kept for version in stored.values() if (kept := version.metadata.get("told"))), []))
        metadata = {**shown(told), "state": "reused", "made_by_run": ", ".join(made_by)}
        rows = None
        if self.document is None:
            rows = metadata["dagster/row_count"] = sum(version.rows for version in stored.values())
        outcome = Outcome(
            self.execution,
            pieces,
            again=list(stored.values()) if found.older else (),
            state="reused",
            reason=joined(
                told.get("note"), f"unchanged inputs, policy and code; made by run {', '.join(made_by)}"
            ),
            rows=rows,
        )
        return dg.Output(outcome, metadata=metadata, data_version=dg.DataVersion(pieces.data_version))

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

    def hand_over(self, produced: Produced, *, always: bool) -> dg.Output[Outcome]:
        """Cut the value into partitions, with what is to be said of them, for the lake to store the good ones."""
        from e2i_dagster.versions.lake import value_digests

        values = produced.pieces(self.partitions)
        self._require_declared(values)
        absent = f"read as without rows, because no delivery holds them: {', '.join(self.absent)}"
        note = joined(produced.note, absent if self.absent else "")
        told = {
            **_told(produced),
            **({"note": note} if note else {}),
            **({"waived": list(self.marks)} if self.marks else {}),
            **({"not_read_here": list(self.elsewhere)} if self.elsewhere else {}),
        }
        pieces = Pieces(
            values,
            value_digests(values),
            self.fingerprint,
            self.code,
            {"told": list(told.items()), **({"waived": list(self.marks)} if self.marks else {})},
            self.readings.to_record(),
        )
        metadata = {"state": "executed", **shown(told)}
        frames = self.document is None
        rows = sum(map(len, values.values())) if frames else None
        if rows is not None:
            metadata["dagster/row_count"] = rows
        if len(values) > 1:
            for key, value in values.items():
                own = {"dagster/row_count": len(value)} if frames else shown(value.to_metadata())
                self.context.add_asset_metadata({**own, "digest": pieces.digests[key]}, partition_key=key)
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
            waivers = f"made under waivers: {'; '.join(self.marks)}" if self.marks else ""
            reason = joined(note, self.changed, waivers)
            outcome = Outcome(self.execution, pieces, reason=reason, rows=rows)
        return dg.Output(outcome, metadata=metadata, data_version=dg.DataVersion(pieces.data_version))

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

    some = set(context.assets_def.metadata_by_key[context.asset_key].get(SOME_PARTITIONS, ()))
    with warehouse.engine().connect() as connection:
        for input_name, key in context.assets_def.keys_by_input_name.items():
            # A gate orders the steps of a run; its report is not read.
            if key.path[0] == QUALITY or key.path[0] in some:
                continue
            current = ledger.current(connection, asset_name(key))
            partitioned = context.get_step_execution_context().has_asset_partitions_for_input(input_name)
            wanted: list[str | None] = (
                list(context.asset_partition_keys_for_input(input_name)) if partitioned else [None]
            )
            for partition in wanted:
                if partition in current:
                    yield asset_name(key), partition, current[partition].digest


def current_versions(tables: Sequence[str], warehouse: Warehouse) -> Iterator[tuple[str, str | None, str]]:
    """(table, month, digest) of everything that the ledger has of ``tables`` in the months that are kept."""
    from e2i_dagster.config.policy import current_policy
    from e2i_dagster.versions import ledger

    months = current_policy().sources.months
    for table in tables:
        for partition, version in ledger.current(warehouse.engine(), table, months=months).items():
            yield table, partition, version.digest


def _gates(wanted: Mapping[str, Any], asset_arguments: Mapping[str, Any]) -> Iterator[dg.AssetDep]:
    """The quality reports of the raw tables that a body reads: a run that makes both goes through the gate."""
    from e2i_dagster.tables import RAW_TABLES

    ins = asset_arguments.get("ins", {})
    for name in wanted:
        if name in RAW_TABLES:
            mapping = ins[name].partition_mapping if name in ins else None
            yield dg.AssetDep(dg.AssetKey([QUALITY, name]), partition_mapping=mapping)


def _only(partitions: Sequence[str | None]) -> str | None:
    return partitions[0] if len(partitions) == 1 else None


def _some(withheld: Mapping[str, str], most: int = 5) -> str:
    """The first few withheld months with their reasons, and how many more there are."""
    shown = "; ".join(f"{month}: {withheld[month]}" for month in sorted(withheld)[:most])
    more = len(withheld) - most
    return shown if more <= 0 else f"{shown}; and {more} more: {', '.join(sorted(withheld)[most:])}"


def _told(produced: Produced) -> dict[str, Any]:
    """What the stage says of itself, as plain JSON values."""
    given = produced.report.to_metadata() if produced.report is not None else {}
    return json.loads(json.dumps({**given, **produced.metadata}, default=str))


def shown(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Metadata for the UI: keys that end in ``_md`` become Markdown, mappings and lists JSON; null is left out."""
    result: dict[str, Any] = {}
    for key, value in metadata.items():
        if value is None:
            continue
        if key.endswith("_md"):
            result[key.removesuffix("_md")] = dg.MetadataValue.md(value)
        elif isinstance(value, (dict, list, tuple)):
            result[key] = dg.MetadataValue.json(value if isinstance(value, dict) else list(value))
        else:
            result[key] = value
    return result
