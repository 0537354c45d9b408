"""Digital twin: what an experiment will show, predicted from the cohort by a fitted model of effects.

A causal forest (Athey, Tibshirani and Wager 2019; EconML's CausalForestDML) is fitted on the cohort's train
and validation patients. Twins are those patients drawn again; each twin's effect is the forest's at its
covariates. The interval of the mean carries both the forest's standard errors and the draw of the twins.
Fidelity holds the prediction against the effect that each look of the experiment observed.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.experiment import ExperimentSpec, FidelityGrades, LifecyclePolicy, Twin
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.display import Figure, Table, text
from e2i_dagster.errors import ConfigError, InputError
from e2i_dagster.experiments.conduct.records import (
    FidelityComparison,
    FidelityRecord,
    Grade,
    InterimAnalysis,
    SimulationRecord,
)
from e2i_dagster.splits.seal import Seal
from e2i_dagster.tables.description import experiments as tables
from e2i_dagster.versions.digest import frame_digest

_LEVEL_Z = 1.959963984540054


class TwinSimulation(BaseModel):
    """Predicted effect of an experiment.

    ``deciles`` is the mean predicted effect within deciles of the twins' predicted effect: how much effects
    differ, not a validation of it.
    """

    model_config = ConfigDict(frozen=True)

    experiment: str
    estimator: str
    trees: int
    seed: int
    training_rows: int
    training_digest: str
    treated_share: float
    confounders: tuple[str, ...]
    twins: int
    ate: float
    lower: float
    upper: float
    standard_error: float
    standard_error_of_model: float
    deciles: tuple[float, ...]
    recommendation: Literal["deploy", "refine", "skip"]
    rationale: str

    def to_metadata(self) -> dict[str, Any]:
        """Prediction and heterogeneity for the UI."""
        return {
            "predicted_effect": self.ate,
            "interval": text((self.lower, self.upper)),
            "twins": self.twins,
            "training_rows": self.training_rows,
            "model": f"{self.estimator}, {self.trees} trees, {', '.join(self.confounders)}",
            "recommendation": f"{self.recommendation}: {self.rationale}",
            "heterogeneity": Table(
                ("decile of the predicted effect", "mean effect"), enumerate(self.deciles, start=1)
            ),
        }

    def to_record(self) -> dict[str, Any]:
        """Everything as plain values."""
        return self.model_dump(mode="json")


class FidelityPage(BaseModel):
    """Prediction against observation, look by look; only that there are comparisons while blinded."""

    model_config = ConfigDict(frozen=True)

    experiment: str
    blinded: bool
    simulations: int
    comparisons: tuple[FidelityComparison, ...]
    reason: str = ""
    figure: Figure | None = None

    def to_metadata(self) -> dict[str, Any]:
        """Grade by look."""
        return {
            "simulations": self.simulations,
            "reason": self.reason or None,
            "fidelity": fidelity_table(self.comparisons) if self.comparisons else None,
            "prediction_against_observation": self.figure,
        }

    def to_record(self) -> dict[str, Any]:
        """Everything as plain values but the figure."""
        return self.model_dump(mode="json", exclude={"figure"})


def fidelity_table(comparisons: Sequence[FidelityComparison]) -> Table:
    """Prediction and observation by look, graded."""
    return Table(
        ("look", "predicted", "observed", "error", "grade"),
        [
            (
                *(comparison.analysis_number, comparison.predicted_effect, comparison.actual_effect),
                comparison.reason
                if comparison.relative_prediction_error is None
                else comparison.relative_prediction_error,
                comparison.fidelity_grade,
            )
            for comparison in comparisons
        ],
        {"error": ".1%"},
    )


def twin_rows(
    spec: ExperimentSpec,
    training_frame: pd.DataFrame,
    splits: pd.DataFrame,
    scopes: Mapping[str, ScopeSpec],
) -> pd.DataFrame:
    """The train and validation patients of the twin's scope: test and holdout rows stay sealed.

    Args:
        training_frame: one row per patient of the twin's scope. splits: patient_id, split.

    Raises:
        ConfigError: the design has no ``twin`` block. InputError: a patient has no split.
    """
    scope = scopes[_question(spec).scope]
    seen = Seal(scope.key, scope.split.salt, splits).visible(training_frame)
    return pd.concat([seen["train"], seen["validation"]], ignore_index=True)


def simulate_twin(
    spec: ExperimentSpec, frame: pd.DataFrame, *, least_per_arm: int, trees: int, outcome: str = "label"
) -> TwinSimulation:
    """Fit the forest on ``frame`` and simulate the experiment of ``spec`` on twins drawn from it.

    Args:
        frame: one row per patient (:func:`twin_rows`): ``outcome`` (0 or 1), the twin's feature and confounders.
        least_per_arm: patients with and without the treatment, below which nothing is predicted.
        trees: of the forest, a multiple of four.

    Raises:
        ConfigError: the design has no ``twin`` block.
        InputError: a column is missing, or an arm has too few patients.
    """
    from econml.dml import CausalForestDML
    from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

    rule = _question(spec)
    empty = [name for name in rule.confounders if name in frame.columns and frame[name].isna().all()]
    used = tuple(name for name in rule.confounders if name not in empty)
    if not used:
        raise InputError(
            f"The twin cannot be simulated: no patient has a value of {', '.join(empty)}.",
            field="twin.confounders",
            value=", ".join(empty),
            remedy="Name a confounder in the twin block that has values.",
        )
    rule = rule.model_copy(update={"confounders": used})
    covariates, treated, observed = _training_rows(frame, rule, outcome, least_per_arm)
    outcome_model: Any = RandomForestRegressor(min_samples_leaf=20, random_state=rule.seed)
    treatment_model: Any = RandomForestClassifier(min_samples_leaf=20, random_state=rule.seed)
    forest = CausalForestDML(
        model_y=outcome_model,
        model_t=treatment_model,
        discrete_treatment=True,
        n_estimators=trees,
        min_samples_leaf=10,
        cv=3,
        random_state=rule.seed,
    )
    forest.fit(observed, treated, X=covariates)
    rng = np.random.default_rng(rule.seed)
    twins = covariates[rng.integers(0, len(covariates), rule.size)]
    inference = forest.effect_inference(twins)
    effect = np.ravel(inference.point_estimate)
    summary = inference.population_summary()
    # EconML's standard error of the mean takes the twins' errors as fully correlated: never too small.
    of_model = float(np.ravel(summary.stderr_mean)[0])
    of_draw = float(effect.std(ddof=1) / math.sqrt(len(effect)))
    error = math.hypot(of_model, of_draw)
    ate = float(effect.mean())
    lower, upper = ate - _LEVEL_Z * error, ate + _LEVEL_Z * error
    recommendation, rationale = _recommend(spec, ate, lower, upper)
    if empty:
        rationale += f"; without the confounder(s) {', '.join(empty)}, of which no patient has a value"
    return TwinSimulation(
        experiment=spec.name,
        estimator="CausalForestDML",
        trees=trees,
        seed=rule.seed,
        training_rows=len(covariates),
        training_digest=frame_digest(frame[[*rule.confounders, rule.feature, outcome]]),
        treated_share=float(treated.mean()),
        confounders=rule.confounders,
        twins=len(effect),
        ate=ate,
        lower=lower,
        upper=upper,
        standard_error=error,
        standard_error_of_model=of_model,
        deciles=tuple(float(part.mean()) for part in np.array_split(np.sort(effect), 10)),
        recommendation=recommendation,
        rationale=rationale,
    )


def _question(spec: ExperimentSpec) -> Twin:
    if spec.twin is None:
        raise ConfigError(
            f"config/experiments/{spec.name}.yaml: there is no twin block; it says from which question the "
            "experiment is predicted.",
            file=f"config/experiments/{spec.name}.yaml",
            field="twin",
            remedy="Add the block; docs/experiments.md has one.",
        )
    return spec.twin


def grade_fidelity(
    predicted: tuple[float, float, float], actual: tuple[float, float, float], grades: FidelityGrades
) -> tuple[float | None, Grade, str]:
    """Error relative to the observed effect, its grade, and why it is undefined.

    Args:
        predicted, actual: effect and its interval (effect, lower, upper).

    Undefined (``unvalidated``) when either interval holds 0: relative to nothing there is no error.
    """
    for name, (_, lower, upper) in (("predicted", predicted), ("observed", actual)):
        if lower <= 0 <= upper:
            return None, "unvalidated", f"the interval of the {name} effect holds 0"
    error = abs(predicted[0] - actual[0]) / abs(actual[0])
    if error < grades.excellent:
        return error, "excellent", ""
    if error < grades.good:
        return error, "good", ""
    return error, "fair" if error < grades.fair else "poor", ""


def record_simulation(connection: sa.Connection, simulation: TwinSimulation, *, actor: str) -> uuid.UUID:
    """Enter ``simulation``; returns its key."""
    identifier = uuid.uuid4()
    connection.execute(
        tables.twin_simulations.insert().values(
            simulation_id=identifier,
            experiment=simulation.experiment,
            model={
                "estimator": simulation.estimator,
                "trees": simulation.trees,
                "seed": simulation.seed,
                "training_rows": simulation.training_rows,
                "confounders": list(simulation.confounders),
                "standard_error_of_model": simulation.standard_error_of_model,
            },
            training_digest=simulation.training_digest,
            twin_count=simulation.twins,
            simulated_ate=simulation.ate,
            simulated_ci_lower=simulation.lower,
            simulated_ci_upper=simulation.upper,
            simulated_std_error=simulation.standard_error,
            effect_heterogeneity={"deciles": list(simulation.deciles)},
            recommendation=simulation.recommendation,
            recommendation_rationale=simulation.rationale,
            recorded_by=actor,
        )
    )
    return identifier


def compare_looks(
    connection: sa.Connection,
    name: str,
    looks: Sequence[InterimAnalysis],
    policy: LifecyclePolicy,
    *,
    actor: str,
) -> str:
    """Hold the newest simulation against every look that it was not compared with yet.

    Returns:
        Why there is nothing to compare; empty otherwise.
    """
    newest = SimulationRecord.read_newest(connection, name)
    if newest is None:
        return "no twin was simulated"
    done = {
        record.analysis_number
        for record in FidelityRecord.read_all(connection, name)
        if record.simulation_id == newest.simulation_id
    }
    predicted = (newest.simulated_ate, newest.simulated_ci_lower, newest.simulated_ci_upper)
    observed = [(look.analysis_number, look.effect) for look in looks if look.effect is not None]
    for number, actual in observed:
        if number in done:
            continue
        error, grade, reason = grade_fidelity(predicted, actual, policy.monitor.fidelity)
        connection.execute(
            tables.ab_fidelity_comparisons.insert().values(
                experiment=name,
                simulation_id=newest.simulation_id,
                analysis_number=number,
                predicted_effect=predicted[0],
                predicted_ci_lower=predicted[1],
                predicted_ci_upper=predicted[2],
                actual_effect=actual[0],
                actual_ci_lower=actual[1],
                actual_ci_upper=actual[2],
                relative_prediction_error=error,
                confidence_interval_coverage=predicted[1] <= actual[2] and actual[1] <= predicted[2],
                direction_match=predicted[0] * actual[0] > 0,
                fidelity_grade=grade,
                reason=reason,
                recorded_by=actor,
            )
        )
    return "" if observed else "no look with an effect was made yet"


def simulations(connection: sa.Connection, name: str) -> int:
    """How many simulations there are."""
    table = tables.twin_simulations
    query = sa.select(sa.func.count()).select_from(table).where(table.c.experiment == name)
    return connection.execute(query).scalar_one()


def _training_rows(
    frame: pd.DataFrame, rule: Twin, outcome: str, least_per_arm: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encoded confounders (n, p), treatment (n,), outcome (n,): a missing number is the median beside a flag."""
    absent = [name for name in (*rule.confounders, rule.feature, outcome) if name not in frame.columns]
    if absent:
        raise InputError(
            f"The twin's training frame has no column {', '.join(absent)}.",
            field=absent[0],
            remedy="Name columns of the training frame in the twin block.",
        )
    columns = []
    for name in rule.confounders:
        values = frame[name]
        if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
            numbers = values.astype("float64")
            columns.append(numbers.fillna(numbers.median()))
            if numbers.isna().any():
                columns.append(numbers.isna().astype("float64"))
        else:
            levels = pd.get_dummies(
                values.astype("object").fillna("missing"), drop_first=True, dtype="float64"
            )
            columns.extend(levels[name_] for name_ in levels.columns)
    treated = (frame[rule.feature].astype("float64") >= rule.at_least).to_numpy(dtype=int)
    counts = np.bincount(treated, minlength=2)
    if counts.min() < least_per_arm:
        raise InputError(
            f"The twin cannot be simulated: of {len(frame):,} patients {counts[1]:,} are treated "
            f"({rule.feature} at least {rule.at_least:g}); it needs {least_per_arm} with and without.",
            field="twin.at_least",
            value=rule.at_least,
            remedy="Choose a limit that leaves as many on both sides, or load more patients.",
        )
    return np.column_stack(columns), treated, frame[outcome].to_numpy(dtype="float64")


def _recommend(
    spec: ExperimentSpec, ate: float, lower: float, upper: float
) -> tuple[Literal["deploy", "refine", "skip"], str]:
    """Deploy for a benefit that is certain and large enough; skip what is too small; refine what is unclear."""
    sign = spec.metrics.primary.sign
    least = abs(spec.metrics.primary.minimum_effect or 0.0)
    if lower <= 0 <= upper:
        return "refine", "the interval holds 0"
    if sign * ate < least:
        return (
            "skip",
            f"the predicted benefit {sign * ate:.4f} is below the smallest that matters ({least:g})",
        )
    return "deploy", f"a benefit of {sign * ate:.4f} is predicted; the interval holds no harm"
