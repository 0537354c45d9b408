"""Layer 3: Great Expectations suites of the raw tables, from ``config/expectations/<table>.yaml``.

Great Expectations runs on the frame in memory, in an ephemeral context, with analytics off and
``BOOLEAN_ONLY`` results, so that no value of a row leaves the frame.

A verdict must not depend on which months came in one call. The suite is therefore first run over all
rows with every ``mostly`` at 1: an expectation on rows that holds for all of them holds for every part.
Only those that do not are run again, with their own ``mostly``, for each partition.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from e2i_dagster.config.base import PolicyModel
from e2i_dagster.config.quality import ExpectationSpec, QualityPolicy
from e2i_dagster.quality.schemas import TypedFrame, typed


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
    suite = policy.suites.get(table)
    if suite is None:
        return {label: PartExpectations(evaluated=0) for label in labels}
    data = (frame if isinstance(frame, TypedFrame) else typed(frame, table)).frame
    codes = np.zeros(len(data), dtype=int) if codes is None else codes
    specs = dict(enumerate(suite.expectations))
    rows = {position: spec for position, spec in specs.items() if spec.expect != "row_count"}
    counts = {position: spec for position, spec in specs.items() if spec.expect == "row_count"}
    run = _Runner(policy)
    strict = {position: spec.model_copy(update={"mostly": 1.0}) for position, spec in rows.items()}
    doubtful = set(run(data, strict))
    again = {position: spec for position, spec in rows.items() if position in doubtful}
    sizes = np.bincount(codes, minlength=len(labels))
    # A row count that the smallest part meets is met by all.
    if counts and len(labels) and run(data[codes == int(sizes.argmin())], counts):
        again |= counts
    outcome: dict[str, PartExpectations] = {}
    for code, label in enumerate(labels):
        failed = run(data[codes == code] if len(labels) > 1 else data, again) if again else {}
        outcome[label] = PartExpectations(
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
    return outcome


class _Runner:
    """One ephemeral context; called with a frame and expectations, it returns the failures."""

    def __init__(self, policy: QualityPolicy) -> None:
        # Read when the library is imported: without it an event would leave the machine.
        os.environ["GX_ANALYTICS_ENABLED"] = "false"
        import great_expectations as gx
        from great_expectations.data_context.types.base import ProgressBarsConfig

        self.policy = policy
        context = gx.get_context(mode="ephemeral")
        context.variables.analytics_enabled = False
        context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)
        asset = context.data_sources.add_pandas("memory").add_dataframe_asset("table")
        self.batches = asset.add_batch_definition_whole_dataframe("rows")

    def __call__(self, data: pd.DataFrame, specs: Mapping[int, ExpectationSpec]) -> dict[int, str | None]:
        """Position of each failed expectation to None, or to the kind of error that kept it from running."""
        import great_expectations as gx

        if not specs:
            return {}
        suite = gx.ExpectationSuite(
            name="suite", expectations=[self._expectation(position, spec) for position, spec in specs.items()]
        )
        batch = self.batches.get_batch(batch_parameters={"dataframe": data})
        result = batch.validate(suite, result_format="BOOLEAN_ONLY")
        failed: dict[int, str | None] = {}
        seen: set[int] = set()
        for one in result.results:
            config = one.expectation_config
            position = int((config.meta or {})["position"]) if config is not None else -1
            seen.add(position)
            error = _error(one.exception_info)
            if error is not None or one.success is not True:
                failed[position] = error
        failed |= {position: "no result was returned" for position in set(specs) - seen}
        return failed

    def _expectation(self, position: int, spec: ExpectationSpec) -> Any:  # noqa: PLR0911 - one for each kind
        import great_expectations.expectations as gxe

        common: dict[str, Any] = {"meta": {"position": position}}
        column: dict[str, Any] = {"column": spec.column, "mostly": spec.mostly, **common}
        match spec.expect:
            case "row_count":
                return gxe.ExpectTableRowCountToBeBetween(min_value=int(spec.min or 0), **common)
            case "not_null":
                return gxe.ExpectColumnValuesToNotBeNull(**column)
            case "in_set":
                named = self.policy.vocabulary(spec.vocabulary) if spec.vocabulary else spec.values
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
                    column_B=spec.other or "",
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
