"""Performance without labels, estimated from the scores alone.

Of an outcome, each score counts as a probability, as far as the validation rows confirm that (confidence-based
estimation), and the labels that will come are drawn from it. Of a number, the size of the error is a function of the
prediction, fitted on the validation rows (direct loss estimation), and the errors that will come are drawn from it.

Both follow shifts of the patients that show in the scores, while the outcome depends on the features as before. They
fail under concept drift: when the same patients come to have another outcome, the estimate stays where it was.

Guo et al., On Calibration of Modern Neural Networks (2017), for what a calibrated score is; Garg et al., Leveraging
Unlabeled Data to Predict Out-of-Distribution Performance (2022), for the estimate and its limits. A function of the
squared error: Davidian and Carroll, Variance Function Estimation, JASA 82:1079 (1987); fitted by quasi-likelihood with
a robust covariance: Gourieroux, Monfort and Trognon, Econometrica 52:701 (1984).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from e2i_dagster.config.drift_monitoring import PerformanceRule
from e2i_dagster.monitoring.profile import ErrorSize, ModelReference, Recalibration
from e2i_dagster.training.evaluate import Estimate
from e2i_dagster.training.metrics import binary_metrics, interval

_SEED = 42
#: Cells of one block of draws: bounds memory at about 100 MB.
_BLOCK_CELLS = 4_000_000
#: Validation rows that a function of the error needs.
_ERROR_ROWS = 100
#: Share of the predictions beyond those of the validation rows, above which nothing is known of their errors.
_BEYOND = 0.05
#: What the estimate cannot see; said wherever it is shown.
FAILURE_MODE = (
    "An estimate without labels holds while patients with the same features have the same outcomes as before. "
    "Under concept drift it stays where it was; only closed labels show that."
)


def why_no_estimate(model: ModelReference, scores: np.ndarray) -> str:
    """Why the performance of ``scores`` cannot be estimated without labels; empty when it can."""
    if model.threshold is not None:
        calibrated = model.recalibration is not None
        return "" if calibrated else "no estimate without labels: the scores are no calibrated probabilities"
    if model.error_size is None:
        return (
            "no estimate without labels: the size of the error is not known as a function of the prediction, which "
            f"needs {_ERROR_ROWS} validation rows with different predictions and errors"
        )
    low, high = model.error_size.range
    beyond = float(((scores < low) | (scores > high)).mean())
    if beyond > _BEYOND:
        return (
            f"no estimate without labels: {beyond:.0%} of the predictions lie beyond those of the validation rows, "
            f"{low:.4g} to {high:.4g}"
        )
    return ""


def estimate_performance(
    model: ModelReference, scores: np.ndarray, rule: PerformanceRule, *, level: float, seed: int = _SEED
) -> Estimate | None:
    """Performance of ``scores`` without labels, with the interval in which the measured one will lie.

    The value is the metric that is expected. The interval is that of ``rule.resamples`` draws of what will come, each
    with another draw of the fitted function, so that it holds chance and how little the validation rows say.
    None where :func:`why_no_estimate` has a reason.
    """
    if not len(scores) or why_no_estimate(model, scores):
        return None
    if model.threshold is None:
        assert model.error_size is not None
        value = float(np.sqrt(expected_squares(scores, model.error_size).mean()))
        drawn = [np.sqrt(block.mean(axis=1)) for block in _drawn_squares(model, scores, rule.resamples, seed)]
    else:
        assert model.recalibration is not None
        twice, both = np.concatenate([scores, scores]), np.repeat([1, 0], len(scores))
        threshold = model.threshold

        def metric(positive: np.ndarray) -> np.ndarray:
            weights = np.concatenate([positive, 1 - positive], axis=1)
            return binary_metrics(both, twice, threshold, weights)[model.metric]

        value = float(metric(recalibrated(scores, model.recalibration)[None, :])[0])
        drawn = [metric(block) for block in _drawn_labels(model, scores, rule.resamples, seed)]
    return estimate_of(value, *interval(np.concatenate(drawn), level))


def recalibrated(
    scores: np.ndarray, line: Recalibration, coefficients: np.ndarray | None = None
) -> np.ndarray:
    """Probabilities of ``scores`` (n,) by the recalibration, or by each row of other coefficients (B, 2)."""
    clipped = np.clip(scores, 1e-12, 1 - 1e-12)
    logit = np.log(clipped) - np.log1p(-clipped)
    if coefficients is None:
        return 1 / (1 + np.exp(-(line.intercept + line.slope * logit)))
    return 1 / (1 + np.exp(-(coefficients[:, :1] + coefficients[:, 1:] * logit)))


def recalibrate(target: np.ndarray, scores: np.ndarray) -> Recalibration | None:
    """Logistic regression of ``target`` on logit(score); None where the likelihood has no finite maximum."""
    from scipy.special import logit
    from sklearn.linear_model import LogisticRegression

    if len(np.unique(target)) < 2 or len(np.unique(scores)) < 2:
        return None
    odds = logit(np.clip(scores, 1e-12, 1 - 1e-12))
    fitted = LogisticRegression(C=np.inf, max_iter=1_000).fit(odds[:, None], target)
    chance = fitted.predict_proba(odds[:, None])[:, 1]
    design = np.column_stack([np.ones_like(odds), odds])
    information = design.T @ (design * (chance * (1 - chance))[:, None])
    if not np.isfinite(information).all() or np.linalg.cond(information) > 1e12:
        return None
    (a, b), (c, d) = np.linalg.inv(information).tolist()
    return Recalibration(
        intercept=float(fitted.intercept_[0]), slope=float(fitted.coef_[0, 0]), covariance=((a, b), (c, d))
    )


def fit_error_size(target: np.ndarray, scores: np.ndarray) -> ErrorSize | None:
    """The squared error as a log-quadratic function of the prediction, by Poisson quasi-likelihood.

    Its mean over the rows that it was fitted on is their mean squared error.

    Args:
        target, scores: of the validation rows, shape (n,).

    Returns:
        None with too few rows, or without different predictions and errors.
    """
    import statsmodels.api as sm

    squares = (np.asarray(target, dtype="float64") - scores) ** 2
    spread = float(np.std(scores))
    if len(squares) < _ERROR_ROWS or len(np.unique(scores)) < 3 or spread == 0 or not squares.mean() > 0:
        return None
    found = ErrorSize(
        center=float(np.mean(scores)), spread=spread, range=(float(np.min(scores)), float(np.max(scores))),
        mean_square=float(squares.mean()), coefficients=(0, 0, 0), covariance=((0, 0, 0), (0, 0, 0), (0, 0, 0)),
    )  # fmt: skip
    design, ratio = _design(scores, found), squares / found.mean_square
    fitted = sm.GLM(ratio, design, family=sm.families.Poisson()).fit()
    if not fitted.converged:
        return None
    mean = np.asarray(fitted.mu)
    inverse = np.asarray(fitted.normalized_cov_params)
    # HC3 (MacKinnon and White 1985): with few rows and long tails the others are too sure.
    leverage = fitted.get_hat_matrix_diag()
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = design * ((ratio - mean) / (1 - leverage))[:, None]
    covariance = inverse @ scaled.T @ scaled @ inverse
    if not np.isfinite(covariance).all():
        return None
    return found.model_copy(
        update={
            "coefficients": tuple(np.asarray(fitted.params).tolist()),
            "covariance": tuple(tuple(row) for row in covariance.tolist()),
        }
    )


def expected_squares(
    scores: np.ndarray, size: ErrorSize, coefficients: np.ndarray | None = None
) -> np.ndarray:
    """Expected squared error of each of ``scores`` (n,), or of each row of other coefficients, shape (B, n)."""
    by = np.asarray(size.coefficients) if coefficients is None else coefficients
    return size.mean_square * np.exp(by @ _design(scores, size).T)


def estimate_of(value: float, low: float, high: float) -> Estimate | None:
    """The estimate, without an end that is not defined; None without a value."""
    if not np.isfinite(value):
        return None
    return Estimate(
        value=value, low=low if np.isfinite(low) else None, high=high if np.isfinite(high) else None
    )


def _design(scores: np.ndarray, size: ErrorSize) -> np.ndarray:
    """Constant, score and its square, shape (n, 3); beyond the validation rows as at their end."""
    z = (np.clip(scores, *size.range) - size.center) / size.spread
    return np.column_stack([np.ones_like(z), z, z**2])


def _blocks(rows: int, draws: int) -> Iterator[int]:
    block = max(1, min(draws, _BLOCK_CELLS // (2 * rows)))
    yield from (min(block, draws - start) for start in range(0, draws, block))


def _drawn_labels(model: ModelReference, scores: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of drawn labels, shape (b, n)."""
    assert model.recalibration is not None
    line, generator = model.recalibration, np.random.default_rng(seed)
    for size in _blocks(len(scores), draws):
        coefficients = generator.multivariate_normal([line.intercept, line.slope], line.covariance, size=size)
        chance = recalibrated(scores, line, coefficients)
        yield (generator.random(chance.shape) < chance).astype("float64")


def _drawn_squares(model: ModelReference, scores: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Blocks of drawn squared errors, shape (b, n): the expected one times the ratio of a validation row."""
    assert model.error_size is not None
    known, generator = np.asarray(model.scores), np.random.default_rng(seed)
    ratios = (np.asarray(model.target) - known) ** 2 / expected_squares(known, model.error_size)
    ratios /= ratios.mean()
    for size in _blocks(len(scores), draws):
        coefficients = generator.multivariate_normal(
            model.error_size.coefficients, model.error_size.covariance, size=size
        )
        expected = expected_squares(scores, model.error_size, coefficients)
        yield expected * generator.choice(ratios, size=expected.shape)
