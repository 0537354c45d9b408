"""What an external validation found."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from e2i_dagster.cohorts.disclosure import SMALL, shown_count
from e2i_dagster.display import Table
from e2i_dagster.training.estimates import Estimate
from e2i_dagster.training.evaluate import SplitMetrics
from e2i_dagster.training.subgroups import Subgroup, subgroup_table


class Distribution(BaseModel):
    """A column in one group of rows; what would show a cell of 1 to 10 patients is None.

    Attributes:
        mean, sd: of the rows that have a value; of a level its share, without ``sd``.
        missing: share of rows without a value.
    """

    model_config = ConfigDict(frozen=True)

    mean: float | None
    sd: float | None = None
    missing: float | None = None


class FeatureComparison(BaseModel):
    """A number, or one level of a text, in development and validation rows.

    Attributes:
        difference: standardized, validation minus development.
    """

    model_config = ConfigDict(frozen=True)

    feature: str
    level: str = ""
    development: Distribution
    validation: Distribution
    difference: Estimate


class LinearPredictor(BaseModel):
    """The linear predictor in development and validation rows.

    Attributes:
        name: the class that it is of; empty where the model has one.
        difference: standardized, validation minus development.
    """

    model_config = ConfigDict(frozen=True)

    name: str = ""
    scale: str
    development_mean: Estimate
    development_sd: Estimate
    validation_mean: Estimate
    validation_sd: Estimate
    difference: Estimate


class CaseMix(BaseModel):
    """How far the validation rows are from those that the model was fitted on.

    Attributes:
        membership: c statistic of a model that tells the two groups of rows apart: 0.5 when it cannot.
    """

    model_config = ConfigDict(frozen=True)

    features: tuple[FeatureComparison, ...]
    linear_predictor: tuple[LinearPredictor, ...]
    membership: Estimate


class Findings(BaseModel):
    """What was measured on the validation rows."""

    model_config = ConfigDict(frozen=True)

    performance: SplitMetrics
    subgroups: tuple[Subgroup, ...]
    case_mix: CaseMix
    notes: tuple[str, ...] = ()


class ExternalValidation(BaseModel):
    """One version judged on one cohort.

    Attributes:
        cohort: key of the validation cohort; ``definition_hash`` of its definition.
        overlap_fitted, overlap_held_out: its labelled patients in the training or validation split of the model, and
            in its test or holdout split, who are left out; None for 1 to 10.
        key: digest of all that the figures depend on: model, definitions, data, policy and code.
        development: what was measured on the test split when the version was registered; None when not.
        data: digest of each input by asset (and partition).
    """

    model_config = ConfigDict(frozen=True)

    key: str
    model: str
    version: str
    model_digest: str
    algorithm: str
    problem_type: str
    scope: str
    scope_digest: str
    cohort: str
    cohort_version: str
    definition_hash: str
    development_cohort: str
    overlap_fitted: int | None
    overlap_held_out: int | None
    level: float
    bootstrap: int
    findings: Findings
    development: SplitMetrics | None
    data: dict[str, str]

    def headline(self) -> str:
        """The validation in one sentence."""
        fitted, held_out = (
            SMALL if count is None else shown_count(count)
            for count in (self.overlap_fitted, self.overlap_held_out)
        )
        return (
            f"{self.model} version {self.version} on {self.cohort}: {self.findings.performance.size_words()}. Left out "
            f"are patients of {self.development_cohort} in the model's training or validation split ({fitted}) and in "
            f"its test or holdout split ({held_out})."
        )

    def tables(self) -> dict[str, Table]:
        """Title -> table, in the order in which people read them."""
        mix = self.findings.case_mix
        none = Estimate(value=None, low=None, high=None)
        before = {} if self.development is None else self.development.metrics
        return {
            "Performance": Table(
                ("metric", self.cohort, f"{self.development_cohort}, test"),
                [
                    (name, found.with_interval, before.get(name, none).with_interval)
                    for name, found in self.findings.performance.metrics.items()
                ],
                note=" ".join(self.findings.notes),
            ),
            **(
                {"Subgroups": _subgroups(self.findings.subgroups, self.problem_type)}
                if self.findings.subgroups
                else {}
            ),
            "Linear predictor": Table(
                (
                    *("class", "scale", "mean in development", "SD in development"),
                    *("mean in validation", "SD in validation", "standardized difference"),
                ),
                [
                    (
                        *(predictor.name, predictor.scale),
                        *(
                            getattr(predictor, name).with_interval
                            for name in (
                                *("development_mean", "development_sd"),
                                *("validation_mean", "validation_sd", "difference"),
                            )
                        ),
                    )
                    for predictor in mix.linear_predictor
                ],
            ),
            "Case mix": Table(
                (
                    *(
                        "feature",
                        "level",
                        "mean in development",
                        "SD in development",
                        "missing in development",
                    ),
                    *("mean in validation", "SD in validation", "missing in validation"),
                    "standardized difference",
                ),
                [
                    (
                        *(feature.feature, feature.level),
                        *(getattr(feature.development, name) for name in ("mean", "sd", "missing")),
                        *(getattr(feature.validation, name) for name in ("mean", "sd", "missing")),
                        feature.difference.with_interval,
                    )
                    for feature in mix.features
                ],
                note="Of a level the mean is its share. Figures that would show a cell of 1 to 10 patients are left "
                "out.",
            ),
            "Membership": Table(
                ("c statistic of development against validation",),
                [(mix.membership.with_interval,)],
                note="0.5: the two groups of patients cannot be told apart, and the validation is about "
                "reproducibility. The nearer to 1, the more it is about transportability.",
            ),
        }

    def to_record(self) -> dict[str, Any]:
        """JSON values."""
        return self.model_dump(mode="json")


def _subgroups(subgroups: tuple[Subgroup, ...], problem_type: str) -> Table:
    table = subgroup_table(subgroups, problem_type)
    note = str(table.note).replace("Test rows.", "Validation rows.")
    return Table(table.columns, table.rows, table.formats, note=note)
