"""Layer 3: Great Expectations suites of the raw tables, from ``config/expectations/<table>.yaml``.

Great Expectations runs on the frame in memory, in an ephemeral context, with analytics off; a result
holds the positions of the rows that do not meet an expectation, never a value of a row.

A verdict must not depend on which months came in one call, and one call should not cost a run of the
suite for each month. The suite is therefore run once, over all rows, with every ``mostly`` at 1. The
positions of the failing rows are then counted by partition, and each partition is compared with the
``mostly`` of its expectation as Great Expectations does it: 1 - failing / looked at, where the rows looked
at are all rows for ``not_null``, those with a value (both values of a pair) for the others, and a
partition without any such row meets it. Only what is not a property of single rows is run for parts:
``unique`` (two rows of one value may be in different months) where a partition holds two or more of the
repeated rows, and ``row_count`` once for each size, from the smallest partition up to the first that meets it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from e2i_dagster.config.quality import ExpectationSpec, QualityPolicy
from e2i_dagster.policy_files.base import PolicyModel
from e2i_dagster.quality.private_great_expectations import validated, without_progress_bars
from e2i_dagster.quality.typed import TypedFrame, typed
from e2i_dagster.tables.moments import earlier

if TYPE_CHECKING:
    from great_expectations.core.batch_definition import BatchDefinition

#: Positions of failing rows without their values.
_POSITIONS_ONLY = {
    "result_format": "COMPLETE",
    "exclude_unexpected_values": True,
    "partial_unexpected_count": 0,
    "return_unexpected_index_query": False,
}


class ExpectationFailure(PolicyModel):
    """An expectation that a part does not meet, or (``error``) that could not be evaluated."""

    position: int
    title: str
    column: str | None
    critical: bool
    because: str
    error: str | None = None


class PartExpectations(PolicyModel):
    """The suite's outcome for one part. Nothing counts as passed that did not run."""

    evaluated: int
    failures: tuple[ExpectationFailure, ...] = ()

    @property
    def passed(self) -> int:
        """Expectations that ran and hold."""
        return self.evaluated - len(self.failures)

    @property
    def pass_rate(self) -> float | None:
        """Share of expectations that hold; None without expectations."""
        return self.passed / self.evaluated if self.evaluated else None


def validate(
    frame: pd.DataFrame | TypedFrame,
    table: str,
    *,
    policy: QualityPolicy,
    codes: np.ndarray | None = None,
    labels: Sequence[str] = ("all",),
) -> dict[str, PartExpectations]:
    """Run the suite of ``table`` and attribute every failure to the parts that fail.

    Args:
        frame: rows of all parts.
        table: raw table; one without a suite has nothing evaluated.
        policy: suites and vocabularies.
        codes: for each row the position of its label in ``labels``; None: all rows are ``labels[0]``.
        labels: names of the parts; one without rows is evaluated on the empty frame.

    Returns:
        Label to outcome, for every label.

    Raises:
        Whatever keeps Great Expectations from running; the caller turns it into the verdict ``error``.
    """
    suite = policy.suite(table)
    if suite is None:
        return {label: PartExpectations(evaluated=0) for label in labels}
    data = (frame if isinstance(frame, TypedFrame) else typed(frame, table)).frame
    codes = np.zeros(len(data), dtype=int) if codes is None else codes
    sizes = np.bincount(codes, minlength=len(labels))
    specs = dict(enumerate(suite.expectations))
    of_rows = {position: spec for position, spec in specs.items() if spec.expect != "row_count"}
    run = _Runner(policy)
    strict = {position: spec.model_copy(update={"mostly": 1.0}) for position, spec in of_rows.items()}
    failed: dict[str, dict[int, str | None]] = {label: {} for label in labels}
    for position, failure in run(data, strict).items():
        spec = specs[position]
        if failure.rows is None:
            for label in labels:
                failed[label][position] = failure.error
            continue
        hits = np.bincount(codes[failure.rows], minlength=len(labels))
        if spec.expect == "unique":
            for code in np.flatnonzero(hits >= 2).tolist():
                failed[labels[code]] |= _errors(run(data[codes == code], {position: spec}))
            continue
        looked_at = np.bincount(codes[_looked_at(data, spec)], minlength=len(labels))
        share = (looked_at - hits) / np.maximum(looked_at, 1)
        for code in np.flatnonzero((hits > 0) & (share < spec.mostly)).tolist():
            failed[labels[code]][position] = None
    for position, spec in specs.items():
        if spec.expect == "row_count":
            for size in np.unique(sizes):
                alike = np.flatnonzero(sizes == size).tolist()
                short = run(data[codes == alike[0]], {position: spec})
                if not short:  # a row count that this part meets is met by every larger one
                    break
                for code in alike:
                    failed[labels[code]] |= _errors(short)
    return {label: _outcome(specs, failed[label]) for label in labels}


def _errors(failures: Mapping[int, _Failure]) -> dict[int, str | None]:
    return {position: failure.error for position, failure in failures.items()}


def _looked_at(data: pd.DataFrame, spec: ExpectationSpec) -> np.ndarray:
    """Mask of the rows that the share ``mostly`` is taken of."""
    if spec.expect == "not_null":
        return np.ones(len(data), dtype=bool)
    return data[list(spec.columns.values())].notna().all(axis=1).to_numpy(dtype=bool)


def _outcome(specs: Mapping[int, ExpectationSpec], failed: Mapping[int, str | None]) -> PartExpectations:
    return PartExpectations(
        evaluated=len(specs),
        failures=tuple(
            ExpectationFailure(
                position=position,
                title=specs[position].title,
                column=specs[position].column,
                critical=specs[position].critical,
                because=specs[position].because,
                error=failed[position],
            )
            for position in sorted(failed)
        ),
    )


@dataclass(frozen=True)
class _Failure:
    """What kept an expectation from holding: rows by position, or the kind of an error (``rows`` is None).

    A table expectation that is not met has neither.
    """

    rows: np.ndarray | None
    error: str | None


@lru_cache(maxsize=1)
def batches() -> BatchDefinition:
    """The door for frames in one ephemeral context, made once per process."""
    # Read when the library is imported: without it an event would leave the machine.
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx

    context = gx.get_context(mode="ephemeral")
    context.variables.analytics_enabled = False
    without_progress_bars(context)
    asset = context.data_sources.add_pandas("memory").add_dataframe_asset("table")
    return asset.add_batch_definition_whole_dataframe("rows")


class _Runner:
    """Called with a frame and expectations, it returns the failures."""

    def __init__(self, policy: QualityPolicy) -> None:
        self.policy = policy

    def __call__(self, data: pd.DataFrame, specs: Mapping[int, ExpectationSpec]) -> dict[int, _Failure]:
        """Position of each failed expectation, with the positions of its rows or the kind of its error."""
        door = batches()
        import great_expectations as gx

        if not specs:
            return {}
        suite = gx.ExpectationSuite(
            name="suite",
            expectations=[expectation(self.policy, position, spec) for position, spec in specs.items()],
        )
        # Great Expectations hashes every value of a batch.
        named = {column for spec in specs.values() for column in spec.columns.values()}
        needed = data[[column for column in data.columns if column in named]].reset_index(drop=True)
        needed = with_compared(needed, specs.values())
        result = validated(door, needed, suite, _POSITIONS_ONLY)
        failed: dict[int, _Failure] = {}
        seen: set[int] = set()
        for outcome in result.results:
            config = outcome.expectation_config
            position = int((config.meta or {})["position"]) if config is not None else -1
            seen.add(position)
            error = _error(outcome.exception_info)
            if error is not None:
                failed[position] = _Failure(None, error)
            elif outcome.success is not True:
                listed = outcome.result.get("unexpected_index_list")
                rows = None if listed is None else np.asarray(listed, dtype=int)
                known = rows is not None or specs[position].expect == "row_count"
                failed[position] = _Failure(rows, None if known else "no rows were named")
        missing = set(specs) - seen
        return failed | {position: _Failure(None, "no result was returned") for position in missing}


def with_compared(data: pd.DataFrame, specs: Iterable[ExpectationSpec]) -> pd.DataFrame:
    """``data`` with the second column of every ``not_before`` as it is compared with the first.

    Two moments are compared at the coarser precision of the two (:func:`.moments.earlier`): a moment becomes the day
    that stands beside it where it lies on that day.
    """
    compared = {}
    for spec in specs:
        if spec.expect == "not_before" and spec.column and spec.other:
            later, first = data[spec.column], data[spec.other]
            if pd.api.types.is_datetime64_any_dtype(later) and pd.api.types.is_datetime64_any_dtype(first):
                first = first.mask((later < first) & ~earlier(later, first), later)
            compared[_as_compared(spec)] = first
    return data.assign(**compared)


def _as_compared(spec: ExpectationSpec) -> str:
    return f"{spec.other} at the precision of {spec.column}"


def expectation(policy: QualityPolicy, position: int, spec: ExpectationSpec) -> Any:  # noqa: PLR0911 - one for each kind
    """The expectation of Great Expectations for ``spec``, marked with its ``position`` in the suite.

    It is asked of a frame with the columns of :func:`with_compared`.
    """
    import great_expectations.expectations as gxe

    common: dict[str, Any] = {"meta": {"position": position}}
    column: dict[str, Any] = {"column": spec.column, "mostly": spec.mostly, **common}
    match spec.expect:
        case "row_count":
            return gxe.ExpectTableRowCountToBeBetween(min_value=int(spec.min or 0), **common)
        case "not_null":
            return gxe.ExpectColumnValuesToNotBeNull(**column)
        case "in_set":
            named = policy.vocabulary(spec.vocabulary) if spec.vocabulary else spec.values
            return gxe.ExpectColumnValuesToBeInSet(value_set=list(named), **column)
        case "between":
            return gxe.ExpectColumnValuesToBeBetween(min_value=spec.min, max_value=spec.max, **column)
        case "unique":
            return gxe.ExpectColumnValuesToBeUnique(**column)
        case "matches":
            return gxe.ExpectColumnValuesToMatchRegex(regex=spec.pattern or "", **column)
        case "not_before":
            return gxe.ExpectColumnPairValuesAToBeGreaterThanB(
                column_A=spec.column or "",
                column_B=_as_compared(spec),
                or_equal=True,
                ignore_row_if="either_value_is_missing",
                mostly=spec.mostly,
                **common,
            )


def _error(info: Any) -> str | None:
    """Kind of the exception in a result, without its text (which may hold values of rows)."""
    if not info or info.get("raised_exception") is False:
        return None
    inner = info if "exception_message" in info else next(iter(info.values()), {})
    trace = str(inner.get("exception_traceback", "")).strip().splitlines()
    kind = trace[-1].split(":")[0].strip() if trace else ""
    return kind.rsplit(".", 1)[-1] or "unknown error"
