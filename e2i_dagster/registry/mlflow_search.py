"""A hyperparameter search in MLflow: a nested run for each trial, its figures and its table under the parent."""

from __future__ import annotations

import base64
import time
from typing import Any

from e2i_dagster.training import SearchResult
from e2i_dagster.training.search_figures import search_figures

#: Tag of the parent: nested runs were begun; those of an attempt that broke off are deleted first.
_TRIALS_TAG = "e2i.trials"


def search_figure_files(search: SearchResult) -> dict[str, bytes]:
    """PNG files below ``figures/``."""
    return {
        f"figures/{name}.png": base64.b64decode(figure.data)
        for name, figure in search_figures(search).items()
    }


def search_metrics(search: SearchResult) -> list[tuple[str, float, int]]:
    """Name, value and step (trial) of the best score so far, for the parent run."""
    name, best, found = f"search_best_so_far_{search.metric}", float("-inf"), []
    for trial in search.trials:
        if trial.value is not None:
            best = max(best, trial.value)
            found.append((name, best, trial.number))
    return found


def log_trials(client: Any, parent: Any, search: SearchResult) -> None:
    """A nested run for each trial below the run ``parent``: parameters, score, and reports by number of trees.

    Each is written by three calls. A pruned trial ends as KILLED, one that ran to its end as FINISHED.

    Args:
        client: ``MlflowClient``. parent: the active run.
    """
    from mlflow.entities import Metric, Param
    from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID, MLFLOW_RUN_NAME, MLFLOW_USER

    run_id, experiment = parent.info.run_id, parent.info.experiment_id
    if _TRIALS_TAG in client.get_run(run_id).data.tags:
        of_parent = f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{run_id}'"
        for left in client.search_runs([experiment], of_parent, max_results=1_000):
            client.delete_run(left.info.run_id)
    client.set_tag(run_id, _TRIALS_TAG, str(len(search.trials)))
    user = parent.data.tags.get(MLFLOW_USER, parent.info.user_id or "")
    for trial in search.trials:
        now = int(time.time() * 1000)
        nested = client.create_run(
            experiment,
            start_time=now - int(trial.seconds * 1000),
            run_name=f"trial {trial.number}",
            tags={
                MLFLOW_PARENT_RUN_ID: run_id,
                MLFLOW_RUN_NAME: f"trial {trial.number}",
                MLFLOW_USER: user,
                "e2i.trial": str(trial.number),
                "e2i.origin": trial.origin,
                "e2i.study": search.study_name,
            },
        ).info.run_id
        status = "FAILED"
        try:
            reports = [Metric(f"trial_{search.metric}", value, now, trees) for trees, value in trial.steps]
            last = [] if trial.value is None else [Metric(f"validation_{search.metric}", trial.value, now, 0)]
            kept = [] if trial.rounds is None else [Metric("trees_kept", trial.rounds, now, 0)]
            client.log_batch(
                nested,
                metrics=[*reports, *last, *kept],
                params=[Param(name, str(value)) for name, value in trial.parameters.items()],
            )
            status = "FINISHED" if trial.value is not None else "KILLED"
        finally:
            client.set_terminated(nested, status, end_time=now)
