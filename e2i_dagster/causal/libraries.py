"""One estimator per library, all on the same rows, folds and families of nuisance models.

Each gives its own point and interval, and scores of one row each whose mean is the point. The scores let the
consensus be resampled jointly: the estimates of different libraries on the same rows are correlated.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from e2i_dagster.causal.effects import LibraryEstimate
from e2i_dagster.causal.nuisances import (
    ConditionalMean,
    Estimand,
    Nuisances,
    classifier,
    outcome_model,
    quiet_libraries,
)
from e2i_dagster.causal.rows import CausalRows
from e2i_dagster.config.causal import CausalPolicy


@dataclass(frozen=True)
class Fit:
    """Point, its interval, and scores (n,) whose mean is the point."""

    point: float
    lower: float
    upper: float
    scores: np.ndarray


FitFunction = Callable[[CausalRows, Nuisances, CausalPolicy, int], Fit]


@dataclass(frozen=True)
class Estimator:
    """An estimator of a library.

    Attributes:
        name: class or method in the library. library: package that is imported.
        estimand: ``ate``, ``att``, or ``overlap_weighted`` where rows of good overlap count more.
        fit: called with rows, nuisances, policy and seed.
        repeats: name of the estimator whose mean this one gives again; beside it, it does not count.
    """

    name: str
    library: str
    estimand: str
    fit: FitFunction
    repeats: str = ""

    @property
    def in_consensus(self) -> bool:
        """Only estimates of what was asked for are comparable with one another."""
        return self.estimand != "overlap_weighted"


def _interval(point: float, scores: np.ndarray, level: float) -> tuple[float, float]:
    """Normal interval from the deviation of the scores (their influence on the point)."""
    from scipy.stats import norm

    half = float(norm.ppf(0.5 + level / 2) * scores.std(ddof=1) / np.sqrt(len(scores)))
    return point - half, point + half


def _outcome(rows: CausalRows) -> np.ndarray:
    return rows.y.astype(int) if rows.binary else rows.y


def linear_dr_learner(rows: CausalRows, nuisances: Nuisances, policy: CausalPolicy, seed: int) -> Fit:
    """EconML LinearDRLearner without effect modifiers: the mean of its doubly robust outcomes."""
    from econml.dr import LinearDRLearner

    folds: Any = nuisances.splits()
    learner: Any = LinearDRLearner(
        model_propensity=classifier(nuisances.treatment_family, seed),
        model_regression=outcome_model(nuisances.outcome_family, rows.binary, seed),
        discrete_outcome=rows.binary,
        min_propensity=policy.propensity_floor,
        cv=folds,
        random_state=seed,
    )
    learner.fit(_outcome(rows), rows.t.astype(int), X=None, W=rows.x)
    alpha = 1 - policy.level
    lower, upper = learner.effect_interval(alpha=alpha)
    point = float(np.ravel(learner.effect())[0])
    return Fit(
        point,
        float(np.ravel(lower)[0]),
        float(np.ravel(upper)[0]),
        _dr_scores(learner, rows, nuisances, policy),
    )


def dr_learner(rows: CausalRows, nuisances: Nuisances, policy: CausalPolicy, seed: int) -> Fit:
    """EconML DRLearner with all confounders as effect modifiers; its ATE is the mean of the fitted effects.

    The final stage is a linear regression with intercept, so that the mean is that of the doubly robust
    outcomes, to the last digits the point of LinearDRLearner without modifiers.
    """
    from econml.dr import DRLearner
    from sklearn.linear_model import LinearRegression

    folds: Any = nuisances.splits()
    final_stage: Any = LinearRegression()
    learner: Any = DRLearner(
        model_propensity=classifier(nuisances.treatment_family, seed),
        model_regression=outcome_model(nuisances.outcome_family, rows.binary, seed),
        model_final=final_stage,
        discrete_outcome=rows.binary,
        min_propensity=policy.propensity_floor,
        cv=folds,
        random_state=seed,
    )
    learner.fit(_outcome(rows), rows.t.astype(int), X=rows.x)
    point = float(np.mean(learner.effect(rows.x)))
    scores = _dr_scores(learner, rows, nuisances, policy)
    return Fit(point, *_interval(point, scores, policy.level), scores)


def _dr_scores(learner: Any, rows: CausalRows, nuisances: Nuisances, policy: CausalPolicy) -> np.ndarray:
    """The doubly robust outcomes behind a fitted DRLearner of EconML, (n,)."""
    scores = np.empty(rows.size)
    for k, held_out in enumerate(nuisances.folds):
        x, t, y = rows.x[held_out], rows.t[held_out], rows.y[held_out]
        regression = ConditionalMean(learner.models_regression[0][k])
        e = learner.models_propensity[0][k].predict_proba(x)
        e = np.clip(e, policy.propensity_floor, None)
        control = regression.predict(np.column_stack([x, np.zeros(len(x))]))
        treated = regression.predict(np.column_stack([x, np.ones(len(x))]))
        residual = t * (y - treated) / e[:, 1] - (1 - t) * (y - control) / e[:, 0]
        scores[held_out] = treated - control + residual
    return scores


def causal_forest(rows: CausalRows, nuisances: Nuisances, policy: CausalPolicy, seed: int) -> Fit:
    """EconML CausalForestDML; its ATE by doubly robust scores around the out-of-bag effects.

    Athey, Tibshirani and Wager (2019), section 4; EconML's ``drate``.
    """
    from scipy.stats import norm

    forest = forest_of(rows, nuisances, policy, seed)
    point = float(np.ravel(forest.ate_)[0])
    half = float(norm.ppf(0.5 + policy.level / 2) * np.ravel(forest.ate_stderr_)[0])
    return Fit(point, point - half, point + half, forest_scores(forest, rows))


def forest_of(rows: CausalRows, nuisances: Nuisances, policy: CausalPolicy, seed: int) -> Any:
    """The fitted CausalForestDML with all confounders as effect modifiers."""
    from econml.dml import CausalForestDML

    folds: Any = nuisances.splits()  # typed as int in EconML, which takes any splitter
    forest = CausalForestDML(
        model_y=outcome_model(nuisances.outcome_family, rows.binary, seed),
        model_t=classifier(nuisances.treatment_family, seed),
        discrete_treatment=True,
        discrete_outcome=rows.binary,
        cv=folds,
        n_estimators=policy.forest_trees,
        min_samples_leaf=10,
        drate=True,
        n_jobs=1,
        random_state=seed,
    )
    return forest.fit(_outcome(rows), rows.t.astype(int), X=rows.x, cache_values=True)


def forest_scores(forest: Any, rows: CausalRows) -> np.ndarray:
    """The doubly robust scores behind ``ate_`` of a fitted CausalForestDML, (n,)."""
    y_residual, t_residual, x, _ = forest.residuals_
    y_residual, t_residual = np.ravel(y_residual), np.ravel(t_residual)
    effect = forest.model_cate.oob_predict(x).reshape(-1)
    propensity = rows.t - t_residual
    variance = np.clip(propensity * (1 - propensity), 1e-2, None)  # EconML's bound
    return effect + (y_residual - effect * t_residual) * t_residual / variance


def linear_dml(rows: CausalRows, nuisances: Nuisances, policy: CausalPolicy, seed: int) -> Fit:
    """EconML LinearDML with a constant effect.

    Where effects vary it estimates their mean weighted by the variance of the treatment given the
    confounders: an overlap-weighted effect, not the ATE.
    """
    from econml.dml import LinearDML

    folds: Any = nuisances.splits()
    learner: Any = LinearDML(
        model_y=outcome_model(nuisances.outcome_family, rows.binary, seed),
        model_t=classifier(nuisances.treatment_family, seed),
        discrete_treatment=True,
        discrete_outcome=rows.binary,
        cv=folds,
        random_state=seed,
    )
    learner.fit(_outcome(rows), rows.t.astype(int), X=None, W=rows.x, cache_values=True)
    lower, upper = learner.effect_interval(alpha=1 - policy.level)
    point = float(np.ravel(learner.effect())[0])
    y_residual, t_residual = (np.ravel(value) for value in learner.residuals_[:2])
    weights = np.square(t_residual)
    scores = point + t_residual * (y_residual - point * t_residual) / weights.mean()
    return Fit(point, float(np.ravel(lower)[0]), float(np.ravel(upper)[0]), scores - scores.mean() + point)


def dowhy_weighting(rows: CausalRows, nuisances: Nuisances, policy: CausalPolicy, seed: int) -> Fit:
    """DoWhy backdoor propensity score weighting, normalized (Hajek), on the common propensities."""
    return _dowhy_weighting(rows, nuisances, policy, "ate")


def dowhy_weighting_treated(rows: CausalRows, nuisances: Nuisances, policy: CausalPolicy, seed: int) -> Fit:
    """As :func:`dowhy_weighting`, of the treated: controls are weighted to be like them."""
    return _dowhy_weighting(rows, nuisances, policy, "att")


def _dowhy_weighting(rows: CausalRows, nuisances: Nuisances, policy: CausalPolicy, estimand: Estimand) -> Fit:
    import pandas as pd
    from dowhy import CausalModel

    common = [f"x{k}" for k in range(rows.x.shape[1])]
    frame = pd.DataFrame(rows.x, columns=pd.Index(common))
    frame["treatment"], frame["outcome"] = rows.t.astype(bool), rows.y
    frame["propensity_score"] = nuisances.propensity
    model = CausalModel(
        data=frame,
        treatment="treatment",
        outcome="outcome",
        common_causes=common,
        proceed_when_unidentifiable=True,
    )
    identified = model.identify_effect(proceed_when_unidentifiable=True)
    estimate = model.estimate_effect(
        identified,
        method_name="backdoor.propensity_score_weighting",
        target_units=estimand,
        method_params={
            "weighting_scheme": "ips_normalized_weight",
            "min_ps_score": policy.propensity_floor,
            "max_ps_score": 1 - policy.propensity_floor,
            "init_params": {"propensity_score_column": "propensity_score"},
        },
    )
    point = float(estimate.value)
    scores = weighting_scores(rows, nuisances.propensity, point, estimand)
    return Fit(point, *_interval(point, scores, policy.level), scores)


def weighting_scores(
    rows: CausalRows, propensity: np.ndarray, point: float, estimand: Estimand = "ate"
) -> np.ndarray:
    """Linearised scores of the normalized weighting estimate, (n,)."""
    treated, control = rows.t / propensity, (1 - rows.t) / (1 - propensity)
    if estimand == "att":
        treated, control = treated * propensity, control * propensity
    mean_treated = float(np.average(rows.y, weights=treated))
    mean_control = float(np.average(rows.y, weights=control))
    return (
        point
        + treated * (rows.y - mean_treated) / treated.mean()
        - control * (rows.y - mean_control) / control.mean()
    )


def causalml_dr(rows: CausalRows, nuisances: Nuisances, policy: CausalPolicy, seed: int) -> Fit:
    """CausalML BaseDRLearner on the common propensities, final stage linear.

    Its point is the mean of the predicted effects; the scores are its doubly robust outcomes, moved to
    have that mean.
    """
    from causalml.inference.meta import BaseDRLearner
    from sklearn.linear_model import LinearRegression

    learner: Any = BaseDRLearner(
        control_outcome_learner=ConditionalMean(outcome_model(nuisances.outcome_family, rows.binary, seed)),
        treatment_outcome_learner=ConditionalMean(outcome_model(nuisances.outcome_family, rows.binary, seed)),
        treatment_effect_learner=LinearRegression(),
    )
    t = rows.t.astype(int)
    learner.fit(rows.x, t, _outcome(rows), p=nuisances.propensity, seed=seed)
    point = float(np.mean(learner.predict(rows.x)))
    scores = np.empty(rows.size)
    # The learner rotates the parts: outcome models of fold k were fitted on part k + 1, effects on part k + 2.
    for k in range(len(nuisances.folds)):
        part = nuisances.folds[(k + 2) % len(nuisances.folds)]
        x, y, e = rows.x[part], rows.y[part], nuisances.propensity[part]
        control, treated = learner.models_mu_c[k].predict(x), learner.models_mu_t[1][k].predict(x)
        residual = t[part] * (y - treated) / e - (1 - t[part]) * (y - control) / (1 - e)
        scores[part] = treated - control + residual
    scores += point - scores.mean()
    return Fit(point, *_interval(point, scores, policy.level), scores)


def doubly_robust_treated(rows: CausalRows, nuisances: Nuisances, policy: CausalPolicy, seed: int) -> Fit:
    """The doubly robust effect on the treated (Hahn 1998) on the common nuisances.

    EconML's learners divide by the propensity of treatment also where only the treated are asked for.
    """
    scores = nuisances.scores(rows, "att")
    point = float(scores.mean())
    return Fit(point, *_interval(point, scores, policy.level), scores)


#: Those of the effect on everyone, in the order in which results are shown.
ESTIMATORS: tuple[Estimator, ...] = (
    Estimator("LinearDRLearner", "econml", "ate", linear_dr_learner),
    Estimator("DRLearner", "econml", "ate", dr_learner, repeats="LinearDRLearner"),
    Estimator("CausalForestDML", "econml", "ate", causal_forest),
    Estimator("propensity_score_weighting", "dowhy", "ate", dowhy_weighting),
    Estimator("BaseDRLearner", "causalml", "ate", causalml_dr),
    Estimator("LinearDML", "econml", "overlap_weighted", linear_dml),
)
#: Those of the effect on the treated.
TREATED_ESTIMATORS: tuple[Estimator, ...] = (
    Estimator("doubly_robust", "e2i_dagster", "att", doubly_robust_treated),
    Estimator("propensity_score_weighting", "dowhy", "att", dowhy_weighting_treated),
)


def run_estimator(
    estimator: Estimator, rows: CausalRows, nuisances: Nuisances, policy: CausalPolicy, seed: int
) -> tuple[LibraryEstimate, np.ndarray | None]:
    """The library's result and its scores; a library that is absent or fails is named and gives neither."""
    begun = time.perf_counter()

    def without(state: str, reason: str) -> tuple[LibraryEstimate, None]:
        estimate = LibraryEstimate(
            name=estimator.name,
            library=estimator.library,
            estimand=estimator.estimand,
            state=state,
            reason=reason,
            seconds=time.perf_counter() - begun,
            in_consensus=False,
        )
        return estimate, None

    with quiet_libraries():
        try:
            importlib.import_module(estimator.library)
        except ImportError as error:
            return without(
                "unavailable", f"{estimator.library} cannot be imported: {error}. {_remedy(estimator)}"
            )
        try:
            fit = estimator.fit(rows, nuisances, policy, seed)
        except ImportError as error:
            return without("unavailable", f"{estimator.library} is incomplete: {error}. {_remedy(estimator)}")
        except (ValueError, ArithmeticError, AttributeError, np.linalg.LinAlgError) as error:
            return without("failed", f"{estimator.library} ended with {type(error).__name__}: {error}"[:300])
    if not np.isfinite([fit.point, fit.lower, fit.upper]).all() or not np.isfinite(fit.scores).all():
        return without("failed", f"{estimator.library} gave a value that is not finite")
    estimate = LibraryEstimate(
        name=estimator.name,
        library=estimator.library,
        version=importlib.metadata.version(estimator.library),
        estimand=estimator.estimand,
        state="estimated",
        point=fit.point,
        lower=fit.lower,
        upper=fit.upper,
        seconds=time.perf_counter() - begun,
        in_consensus=estimator.in_consensus,
    )
    return estimate, fit.scores


def _remedy(estimator: Estimator) -> str:
    return "Install the extra: pip install 'e2i-dagster[causal]'." if estimator.library != "econml" else ""
