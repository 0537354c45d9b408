"""What is used of Great Expectations beyond its public API, and nowhere else.

``tests/conventions/test_private.py`` says what an upgrade of the library broke of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from great_expectations import ExpectationSuite
    from great_expectations.core.batch_definition import BatchDefinition
    from great_expectations.core.expectation_validation_result import ExpectationSuiteValidationResult
    from great_expectations.data_context import AbstractDataContext


def without_progress_bars(context: AbstractDataContext) -> None:
    """Keep the library from drawing in the terminal; the type of this setting has no public name."""
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context.variables.progress_bars = ProgressBarsConfig(globally=False, metric_calculations=False)


def validated(
    door: BatchDefinition, frame: pd.DataFrame, suite: ExpectationSuite, result_format: Mapping[str, Any]
) -> ExpectationSuiteValidationResult:
    """The result of ``suite`` on ``frame``.

    A public batch hashes every value of the frame once more when it is asked to validate itself.
    """
    from great_expectations.validator.v1_validator import Validator

    validator = Validator(door, dict(result_format), {"dataframe": frame})  # pyright: ignore[reportArgumentType]
    return validator.validate_expectation_suite(suite)


def page_of(result: ExpectationSuiteValidationResult) -> str:
    """The HTML page of ``result``, which public data docs write to files of a site only."""
    from great_expectations.render.renderer.page_renderer import ValidationResultsPageRenderer
    from great_expectations.render.view import DefaultJinjaPageView

    return DefaultJinjaPageView().render(ValidationResultsPageRenderer().render(result))
