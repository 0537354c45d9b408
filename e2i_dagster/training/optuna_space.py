"""The search spaces of ``config/algorithms.yaml`` in Optuna's words."""

from __future__ import annotations

from typing import Any

from e2i_dagster.config.algorithms import Choice, Dimension, FloatRange, IntRange


def distribution(dimension: Dimension) -> Any:
    """The distribution that a trial of Optuna draws ``dimension`` from."""
    from optuna import distributions

    match dimension:
        case IntRange():
            # The highest value that steps reach, as a trial corrects it when it draws.
            high = dimension.low + (dimension.high - dimension.low) // dimension.step * dimension.step
            return distributions.IntDistribution(dimension.low, high, step=dimension.step)
        case FloatRange():
            return distributions.FloatDistribution(
                dimension.low, dimension.high, log=dimension.log, step=dimension.step
            )
        case Choice():
            return distributions.CategoricalDistribution(dimension.choices)


def suggest(trial: Any, space: dict[str, Dimension]) -> dict[str, Any]:
    """One point of ``space`` drawn by an Optuna trial."""
    drawn: dict[str, Any] = {}
    for name, dimension in space.items():
        match dimension:
            case IntRange():
                drawn[name] = trial.suggest_int(name, dimension.low, dimension.high, step=dimension.step)
            case FloatRange():
                drawn[name] = trial.suggest_float(
                    name, dimension.low, dimension.high, step=dimension.step, log=dimension.log
                )
            case Choice():
                drawn[name] = trial.suggest_categorical(name, list(dimension.choices))
    return drawn
