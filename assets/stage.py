"""The decorator of every asset of the pipeline: gate, reuse, data versions, states, errors.

An asset body loads nothing and stores nothing. It gets its inputs, calls one core function and returns
:class:`~assets.execution.Produced`; :class:`~assets.execution.Stage` does the rest, so that no stage can forget it.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from assets.execution import QUALITY, SOME_PARTITIONS, Produced, Stage
from e2i_dagster.pipeline.code import source_code
from resources.lake import DOCUMENT, Outcome

OWNERS = ["team:mlops"]
#: What each asset hands to the lake; the metadata ``document`` says what of it is read.
HANDED_OVER = dg.PythonObjectDagsterType(Outcome)


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
    of_table: str | None = None,
    ins: Mapping[str, dg.AssetIn] | None = None,
    deps: Sequence[Any] = (),
    owners: Sequence[str] = OWNERS,
    **asset_arguments: Any,
) -> Callable[[Callable[..., Produced]], dg.AssetsDefinition]:
    """Turn a body that returns :class:`Produced` into an asset of the pipeline.

    A body is a function of its context, configuration, inputs and resources, as Dagster knows them by their
    annotations; types of inputs come from :mod:`assets.values`.

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
        of_table: raw table without which there is nothing to make: while it is absent, the asset is not materialized.
            With ``output_required=False`` what depends on the asset is skipped then.
        ins, deps, owners, asset_arguments: arguments of :func:`dagster.asset`.
    """
    metadata: dict[str, Any] = {SOME_PARTITIONS: list(also_reads.tables)} if also_reads.tables else {}
    if produces is not None:
        metadata[DOCUMENT] = dg.PythonArtifactMetadataValue(*produces.split(":"))

    def decorate(body: Callable[..., Produced]) -> dg.AssetsDefinition:
        reached = source_code().digest_of(body, [*code, *([produces] if produces else [])])
        gates = _gates(inspect.signature(body).parameters, ins or {}) if gated else ()

        @functools.wraps(body)
        def run(*given: Any, **inputs: Any) -> Iterator[dg.MaterializeResult[Outcome]]:
            stage = Stage(dg.AssetExecutionContext.get(), gated, reads or {}, reached)
            absent = "" if of_table is None else stage.why_absent(of_table)
            if not absent:
                yield made(stage, given, inputs)
            elif asset_arguments.get("output_required", True):
                yield stage.nothing(absent)
            else:
                stage.context.log.info(f"{of_table} is absent: {absent}")

        def made(
            stage: Stage, given: Sequence[Any], inputs: Mapping[str, Any]
        ) -> dg.MaterializeResult[Outcome]:
            with stage.recorded():
                stage.look_at_inputs(also_reads.of, outside=outside, where=where)
                reused = None if always else stage.reusable(fault, any_version=pure)
                if reused is not None:
                    return reused
                return stage.store(body(*given, **inputs), always=always)

        return dg.asset(
            ins=ins,
            deps=[*deps, *also_reads.edges(), *gates],
            metadata=metadata,
            io_manager_key="lake",
            code_version=reached,
            dagster_type=HANDED_OVER,
            owners=owners,
            **asset_arguments,
        )(run)

    return decorate


def _gates(inputs: Iterable[str], ins: Mapping[str, dg.AssetIn]) -> Iterator[dg.AssetDep]:
    """The quality reports of the raw tables that a body reads: a run that makes both goes through the gate."""
    from e2i_dagster.tables import RAW_TABLES

    for name in inputs:
        if name in RAW_TABLES:
            mapping = ins[name].partition_mapping if name in ins else None
            yield dg.AssetDep(dg.AssetKey([QUALITY, name]), partition_mapping=mapping)
