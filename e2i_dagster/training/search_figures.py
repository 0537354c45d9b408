"""Figures of a search: how it went on, where its good points lie, and which parameters matter."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from e2i_dagster.display import Figure

if TYPE_CHECKING:
    from e2i_dagster.training.search import SearchResult, Trial

#: Importance needs a good and a bad part of the trials.
_LEAST_TRIALS = 8


def search_figures(result: SearchResult) -> dict[str, Figure]:
    """``search_history``, ``search_parallel_coordinates`` and ``search_importance``, where there is anything in them.

    Importance is that of PED-ANOVA (Watanabe, Bansal and Hutter 2023), over the complete trials; it needs eight of
    them and two parameters.
    """
    from e2i_dagster.reports.figures import drawn

    complete = [trial for trial in result.trials if trial.value is not None]
    figures = {
        "search_history": drawn(
            _history(result), f"{result.metric} on validation rows by trial; the line is the best so far."
        )
    }
    if len(complete) > 1:
        figures["search_parallel_coordinates"] = drawn(
            _parallel(result, complete),
            f"Each line is a trial across its parameters; the darker, the better its {result.metric}.",
        )
    importance = parameter_importance(result)
    if importance:
        words = ", ".join(f"{name} {share:.0%}" for name, share in importance.items())
        figures["search_importance"] = drawn(
            _importance(importance), f"Importance of the parameters: {words}."
        )
    return figures


def parameter_importance(result: SearchResult) -> dict[str, float]:
    """Share of each searched parameter in what separates good from other trials; empty for too few trials."""
    import optuna
    from pydantic import TypeAdapter

    from e2i_dagster.config.algorithms import Dimension
    from e2i_dagster.training.optuna_space import distribution

    complete = [trial for trial in result.trials if trial.value is not None]
    if (
        len(complete) < _LEAST_TRIALS
        or len(result.search_space) < 2
        or len({trial.value for trial in complete}) < 2
    ):
        return {}
    study = optuna.create_study(direction="maximize")
    distributions = {
        name: distribution(TypeAdapter(Dimension).validate_python(found))
        for name, found in result.search_space.items()
    }
    study.add_trials(
        [
            optuna.trial.create_trial(value=trial.value, params=trial.parameters, distributions=distributions)
            for trial in complete
        ]
    )
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    return optuna.importance.get_param_importances(study, evaluator=evaluator)


def _history(result: SearchResult) -> Any:
    from e2i_dagster.reports.figures import new_figure

    figure = new_figure(7, 3)
    axes = figure.add_subplot()
    complete = [trial for trial in result.trials if trial.value is not None]
    drawn_trials = [trial for trial in complete if trial.origin == "drawn"]
    first = [trial for trial in complete if trial.origin != "drawn"]
    for trials, colour, words in (
        (drawn_trials, "#4477aa", "drawn"),
        (first, "#ee8866", "defaults, taken over"),
    ):
        if trials:
            axes.scatter(
                [trial.number for trial in trials],
                [trial.value for trial in trials],
                s=14,
                c=colour,
                label=words,
            )
    pruned = [trial for trial in result.trials if trial.value is None and trial.steps]
    if pruned:
        axes.scatter(
            [trial.number for trial in pruned], [trial.steps[-1][1] for trial in pruned],
            s=14, marker="x", c="#bbbbbb", label="pruned, last report",
        )  # fmt: skip
    best, values = float("-inf"), []
    for trial in complete:
        best = max(best, trial.value if trial.value is not None else best)
        values.append(best)
    axes.plot([trial.number for trial in complete], values, c="#222222", lw=1, label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel(result.metric)
    axes.legend(fontsize=7, frameon=False)
    return figure


def _parallel(result: SearchResult, complete: list[Trial]) -> Any:
    import numpy as np
    from matplotlib import colormaps

    from e2i_dagster.reports.figures import new_figure

    names = [name for name in result.search_space if len({trial.parameters[name] for trial in complete}) > 1]
    figure = new_figure(7, 3)
    axes = figure.add_subplot()
    columns = [
        _positions(result.search_space[name], [trial.parameters[name] for trial in complete])
        for name in names
    ]
    values = np.array([trial.value for trial in complete], dtype=float)
    ranks = values.argsort().argsort() / max(1, len(values) - 1)
    columns.append((values - values.min()) / (float(np.ptp(values)) or 1.0))
    for line in values.argsort():
        axes.plot(
            range(len(columns)),
            [column[line] for column in columns],
            lw=1,
            c=colormaps["Blues"](0.2 + 0.8 * ranks[line]),
        )
    axes.set_xticks(range(len(columns)), [*names, result.metric], fontsize=7, rotation=15)
    axes.set_yticks([0, 1], ["low", "high"], fontsize=7)
    return figure


def _positions(dimension: dict[str, Any], values: list[Any]) -> Any:
    """Where ``values`` lie in their range, between 0 and 1; choices in their order."""
    import numpy as np

    if dimension["kind"] == "categorical":
        places = np.array([dimension["choices"].index(value) for value in values], dtype=float)
        return places / max(1, len(dimension["choices"]) - 1)
    low, high, given = float(dimension["low"]), float(dimension["high"]), np.array(values, dtype=float)
    if dimension.get("log"):
        low, high, given = np.log(low), np.log(high), np.log(given)
    return (given - low) / (high - low)


def _importance(importance: dict[str, float]) -> Any:
    from e2i_dagster.reports.figures import new_figure

    figure = new_figure(7, 0.8 + 0.3 * len(importance))
    axes = figure.add_subplot()
    names = list(importance)[::-1]
    axes.barh(names, [importance[name] for name in names], color="#4477aa")
    axes.set_xlabel("importance")
    axes.tick_params(labelsize=7)
    return figure
