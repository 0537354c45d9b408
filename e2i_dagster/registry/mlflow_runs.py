"""What is written to MLflow about one training run, and how a stored model is read back.

Nothing here knows Dagster: an MLflow run must be active (``resources/mlflow.py`` opens it).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import sqlalchemy as sa

from e2i_dagster.config.names import TRUSTED_TYPES
from e2i_dagster.config.registry import RegistryPolicy
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.display import Table
from e2i_dagster.errors import InputError, UnavailableError
from e2i_dagster.explain import Explanation
from e2i_dagster.modelling.problem import CLASSIFICATION
from e2i_dagster.policy_files.environment import lake_url
from e2i_dagster.registry.mlflow_search import log_trials, search_figure_files, search_metrics
from e2i_dagster.registry.model_files import ModelFiles
from e2i_dagster.selection import AlgorithmChoice
from e2i_dagster.training import Evaluation, SearchResult, TrainedModel

_FIGURES = {
    "binary_classification": "roc_calibration",
    "multiclass_classification": "roc_calibration",
    "regression": "means_errors",
    "survival": "incidence_calibration",
    "causal": "uplift",
}
#: Longest digest of a dataset that MLflow takes.
_DIGEST_LENGTH = 36
_FRAMEWORKS = {"XGBoost": ("xgboost",), "CoxPH": ("xgboost",), "LightGBM": ("lightgbm",)}


@dataclass(frozen=True)
class LoggedModel:
    """Where a trained model is stored, and its files. ``uri`` is what MLflow and BentoML load it by."""

    run_id: str
    experiment_id: str
    model_id: str
    uri: str
    files: ModelFiles
    seconds: float


def silence_telemetry() -> None:
    """No call of MLflow leaves the machine, and no progress bar the process. Before the first import of mlflow."""
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["DO_NOT_TRACK"] = "true"


def default_tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, or the database ``mlflow`` in the warehouse's server (started if needed)."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    from e2i_dagster.database.connection import ensure_database

    return ensure_database("mlflow")


def default_artifact_root() -> str:
    """The folder ``mlflow`` in the lake."""
    return lake_url().rstrip("/") + "/mlflow"


def tracking_environment() -> dict[str, str]:
    """Variables for an MLflow server on the default store; in the environment no process list shows them."""
    return {
        "MLFLOW_BACKEND_STORE_URI": default_tracking_uri(),
        "MLFLOW_DEFAULT_ARTIFACT_ROOT": default_artifact_root(),
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # Nothing here uses MLflow's job queue, which would start seven more processes.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }


def experiment_name(scope: ScopeSpec, policy: RegistryPolicy | None = None) -> str:
    """``<prefix>/<scope>``: one MLflow experiment for each scope."""
    return f"{(policy or RegistryPolicy.load()).prefix}/{scope.key}"


def ensure_experiment(name: str, *, tracking_uri: str, artifact_root: str | None) -> str:
    """Key of the MLflow experiment ``name``, created when it is not there.

    Args:
        artifact_root: folder or address for its files; None leaves that to the tracking server.

    Raises:
        UnavailableError: the tracking store does not answer.
    """
    silence_telemetry()
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    server = tracking_uri.startswith(("http://", "https://"))
    location = None
    if artifact_root is not None and not server:
        folder = f"{artifact_root.rstrip('/')}/{name.replace('/', '-')}"
        location = folder if "://" in folder else Path(folder).absolute().as_uri()
    try:
        if "://" in tracking_uri and not server and not tracking_uri.startswith("file:"):
            # MLflow itself tries a database that does not answer for more than a minute.
            sa.create_engine(tracking_uri).connect().close()
        client = mlflow.MlflowClient(tracking_uri=tracking_uri)
        found = client.get_experiment_by_name(name)
        if found is not None:
            return found.experiment_id
        return client.create_experiment(name, artifact_location=location)
    except (MlflowException, SQLAlchemyError, OSError) as error:
        # The address may hold a password, so the message does not repeat it.
        raise UnavailableError(
            f"the MLflow tracking store cannot be used ({type(error).__name__}).",
            remedy="Check MLFLOW_TRACKING_URI, or that the database server runs (`e2i status`).",
        ) from None


def end_abandoned_runs(experiment_id: str, keep: str, *, tracking_uri: str) -> list[str]:
    """End as KILLED the runs of an experiment that a process left RUNNING, with the reason as a tag; their keys.

    A process that is killed cannot end its run. One Dagster run at a time works at a scope, so what runs in its
    experiment for another Dagster run than ``keep``, or as a trial, was left. Runs that the product did not start are
    not touched.
    """
    import mlflow
    from mlflow.entities import ViewType

    client = mlflow.MlflowClient(tracking_uri=tracking_uri)
    running = client.search_runs([experiment_id], "attributes.status = 'RUNNING'", ViewType.ACTIVE_ONLY)
    left = []
    for run in running:
        started_by = run.data.tags.get("dagster_run_id")
        if started_by == keep or (started_by is None and "e2i.trial" not in run.data.tags):
            continue
        whose = f"the Dagster run {started_by}" if started_by else "its process"
        client.set_tag(run.info.run_id, "e2i.killed", f"{whose} ended without ending this run")
        client.set_terminated(run.info.run_id, "KILLED")
        left.append(run.info.run_id)
    return left


@contextmanager
def tracking_store_answers() -> Iterator[None]:
    """Turn what MLflow raises when its store does not answer into the error that says so.

    Raises:
        UnavailableError: the tracking store does not answer.
    """
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, ConnectionError) as error:
        if not _is_unreachable(error):
            raise
        # The address may hold a password, so the message does not repeat it.
        raise UnavailableError(
            f"the MLflow tracking store stopped answering ({type(error).__name__}).",
            remedy="Check MLFLOW_TRACKING_URI, or that the database server runs (`e2i status`), and run again: "
            "what was made before is reused.",
        ) from None


def _is_unreachable(error: BaseException) -> bool:
    """Whether a database or a server that does not answer is behind ``error``; MLflow wraps both."""
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    if getattr(error, "error_code", "") == "TEMPORARILY_UNAVAILABLE":
        return True
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (SQLAlchemyError, RequestException, ConnectionError)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def run_tags(scope: ScopeSpec) -> dict[str, str]:
    """Tags of a run: scope, brand, indication, problem type, kind of experiment."""
    return {
        "e2i.scope": scope.key,
        "e2i.brand": scope.brand,
        "e2i.indication": scope.indication,
        "e2i.cohort": scope.cohort,
        "e2i.problem_type": scope.problem_type,
        "e2i.experiment_type": "model_training",
    }


def log_training(
    model: TrainedModel,
    evaluation: Evaluation,
    *,
    scope: ScopeSpec,
    search: SearchResult | None = None,
    choice: AlgorithmChoice | None = None,
    digests: Mapping[str, str] | None = None,
    more: Mapping[str, Any] | None = None,
) -> LoggedModel:
    """Write parameters, metrics of every split, model, figures, digests and tags to the active MLflow run.

    What it was trained on is logged as dataset inputs with their digests, the evaluation as tables below ``tables/``,
    and each trial of the search as a nested run.

    Args:
        digests: what the model was made from, for example ``training_frame``, ``splits``, ``cohort``.
        more: replaces or adds fields of the stored model's metadata (:func:`model_metadata`).

    Raises:
        UnavailableError: no MLflow run is active.
    """
    silence_telemetry()
    import mlflow
    from mlflow.entities import Metric, Param, RunTag

    started = time.perf_counter()
    run = mlflow.active_run()
    if run is None:
        raise UnavailableError(
            "no MLflow run is active.", remedy="Open one with the mlflow resource before logging."
        )
    now = int(time.time() * 1000)
    parameters: dict[str, Any] = {
        "algorithm": model.algorithm,
        **{f"model.{name}": value for name, value in model.parameters.items()},
        "calibration": model.calibration,
        "threshold": model.threshold,
        "features": len(model.features),
        "training_rows": model.training_rows,
        "validation_rows": model.validation_rows,
    }
    if search is not None:
        parameters |= {
            "study": search.study_name,
            "best_trial": search.best_trial,
            "trials": len(search.trials),
        }
    metrics = evaluation.flat()
    if search is not None:
        metrics[f"search_best_validation_{search.metric}"] = search.best_value
    tags = {
        **run_tags(scope),
        "e2i.accepted": str(evaluation.accepted).lower(),
        "e2i.model_digest": model.digest,
        "e2i.scope_digest": scope.digest(),
        **{f"e2i.digest.{name}": value for name, value in {**model.data_digests, **(digests or {})}.items()},
    }
    metadata = {**model_metadata(model, scope, digests or {}), **(more or {})}
    # Before the metrics: MLflow repeats a run's metrics for each model that is logged after them.
    logged = _log_model(model, metadata)
    client = mlflow.MlflowClient()
    client.log_batch(
        run.info.run_id,
        metrics=[
            Metric(name, value, now, 0, model_id=logged.model_id, run_id=run.info.run_id)
            for name, value in metrics.items()
        ]
        + [
            Metric(name, value, now, step, run_id=run.info.run_id)
            for name, value, step in (search_metrics(search) if search is not None else ())
        ],
        params=[Param(name, str(value)) for name, value in parameters.items()],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )
    datasets, contexts = _dataset_inputs(model, digests or {})
    no_tags: list[dict[str, str] | None] = [None] * len(datasets)
    mlflow.log_inputs(datasets, contexts, no_tags)
    _log_tables(client, run.info.run_id, evaluation, search)
    if search is not None:
        log_trials(client, run, search)
    documents: dict[str, Any] = {
        "evaluation.json": evaluation.to_record(),
        "features.json": {"kinds": model.kinds, "nullable": list(model.nullable)},
    }
    if choice is not None:
        documents["algorithm_choice.json"] = choice.to_record()
    if search is not None:
        documents["search.json"] = search.model_dump(mode="json", exclude={"seconds"})
    figures = {f"figures/{_FIGURES[evaluation.problem_type]}.png": evaluation.figure}
    if evaluation.decision_figure:
        figures["figures/decision_curve.png"] = evaluation.decision_figure
    if evaluation.learning_figure:
        figures["figures/learning_curve.png"] = evaluation.learning_figure
    _log_files(documents, figures | (search_figure_files(search) if search is not None else {}))
    return LoggedModel(
        run_id=run.info.run_id,
        experiment_id=run.info.experiment_id,
        model_id=logged.model_id,
        uri=logged.model_uri,
        files=ModelFiles.note(client, logged.model_id, metadata["model_name"]),
        seconds=time.perf_counter() - started,
    )


def log_explanation(explanation: Explanation) -> None:
    """Write importance, narrative and figure to the active MLflow run."""
    import mlflow

    if mlflow.active_run() is None:
        raise UnavailableError(
            "no MLflow run is active.", remedy="Open one with the mlflow resource before logging."
        )
    _log_files(
        {"explanation.json": explanation.to_record()}, {"figures/shap_summary.png": explanation.figure}
    )


def signature_of(model: TrainedModel) -> Any:
    """MLflow signature: every feature required, numbers as double and text as string; output a double."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    inputs = Schema(
        [ColSpec("double" if kind == "number" else "string", name) for name, kind in model.kinds.items()]
    )
    width = (-1, len(model.classes) or 2) if model.problem_type in CLASSIFICATION else (-1,)
    return ModelSignature(inputs=inputs, outputs=Schema([TensorSpec(np.dtype("float64"), width)]))


def model_metadata(model: TrainedModel, scope: ScopeSpec, digests: Mapping[str, str]) -> dict[str, Any]:
    """What a service must know beside the signature, kept in the stored model's metadata."""
    return {
        "scope": scope.key,
        "brand": scope.brand,
        "problem_type": model.problem_type,
        "algorithm": model.algorithm,
        "threshold": model.threshold,
        "classes": list(model.classes) or ([0, 1] if model.threshold is not None else None),
        "risk_at_horizon": None if model.risk is None else asdict(model.risk),
        "kinds": dict(model.kinds),
        "nullable": list(model.nullable),
        "seen_ranges": {name: list(ends) for name, ends in model.seen_ranges.items()},
        "training_means": list(model.training_means),
        "model_digest": model.digest,
        "model_name": scope.model_name,
        "digests": {**model.data_digests, **digests},
    }


def load_pipeline(model_uri: str) -> Any:
    """The stored scikit-learn pipeline, read by skops with :data:`TRUSTED_TYPES`; never by pickle.

    Raises:
        DamagedError: a file is missing or not what was logged.
        InputError: the model is stored in another format, or contains a type that is not trusted.
    """
    silence_telemetry()
    import mlflow
    import skops.io
    from mlflow.models import Model

    folder = ModelFiles.noted(mlflow.MlflowClient(), model_uri).folder()
    flavour = Model.load(str(folder)).flavors.get("sklearn", {})
    if flavour.get("serialization_format") != "skops":
        raise InputError(
            f"the model {model_uri} is not stored by skops; only models of this registry are loaded.",
            field="model_uri",
            value=model_uri,
            remedy="Register the model by a run of this product (`e2i run`).",
        )
    path = folder / flavour["pickled_model"]
    unknown = sorted(set(skops.io.get_untrusted_types(file=path)) - set(TRUSTED_TYPES))
    if unknown:
        raise InputError(
            f"the model {model_uri} contains types that are not trusted: {', '.join(unknown)}.",
            field="model_uri",
            value=model_uri,
            remedy="Register the model by a run of this product (`e2i run`).",
        )
    return skops.io.load(path, trusted=list(TRUSTED_TYPES))


def requirements_of(model: TrainedModel) -> list[str]:
    """Exact versions of what the stored pipeline needs."""
    from importlib.metadata import version

    names: Sequence[str] = (
        "mlflow",
        "scikit-learn",
        "skops",
        "numpy",
        "pandas",
        *_FRAMEWORKS.get(model.algorithm, ()),
    )
    return [f"{name}=={version(name)}" for name in names]


def _log_model(model: TrainedModel, metadata: Mapping[str, Any]) -> Any:
    import mlflow.sklearn

    with _quiet_mlflow():
        return mlflow.sklearn.log_model(
            model.pipeline,
            name="model",
            serialization_format="skops",
            skops_trusted_types=list(TRUSTED_TYPES),
            signature=signature_of(model),
            input_example=_example(model),
            pip_requirements=requirements_of(model),
            pyfunc_predict_fn="predict_proba" if model.problem_type in CLASSIFICATION else "predict",
            metadata=dict(metadata),
        )


def _example(model: TrainedModel) -> pd.DataFrame:
    return model.input_example.copy()


@contextmanager
def _quiet_mlflow() -> Any:
    """MLflow's notices about storing a model are for people who choose a format; ours is fixed."""
    import logging
    import warnings

    logger = logging.getLogger("mlflow")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


def _dataset_inputs(model: TrainedModel, digests: Mapping[str, str]) -> tuple[list[Any], list[str | None]]:
    """Datasets by name and digest, and the context of each: rows of the splits, and what they were made from.

    Only digests are logged: no schema, no profile, no row.
    """
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    contexts = {"train": "training", "validation": "validation"}
    named = {f"{name}_rows": (digest, contexts.get(name)) for name, digest in model.data_digests.items()}
    named |= {name: (digests[name], "source") for name in ("training_frame", "splits") if name in digests}
    datasets: list[Any] = [
        MetaDataset(CodeDatasetSource({"e2i.data": name}), name=name, digest=digest[:_DIGEST_LENGTH])
        for name, (digest, _) in named.items()
    ]
    return datasets, [context for _, context in named.values()]


def _log_tables(client: Any, run_id: str, evaluation: Evaluation, search: SearchResult | None) -> None:
    """The tables of the asset pages below ``tables/``; one that is there stays: MLflow would add rows."""
    import mlflow

    shown = {name: table for name, table in evaluation.to_metadata().items() if isinstance(table, Table)}
    if search is not None:
        shown["trials"] = search.trials_table()
    there = {item.path for item in client.list_artifacts(run_id, "tables")}
    for name, table in shown.items():
        path = f"tables/{name}.json"
        if path not in there and table.rows:
            columns = zip(table.columns, zip(*table.texts, strict=True), strict=True)
            mlflow.log_table({column: list(cells) for column, cells in columns}, path)


def _log_files(documents: Mapping[str, Any], images: Mapping[str, bytes]) -> None:
    """Store JSON documents and images as artifacts of the active run in one upload."""
    import json

    import mlflow

    with tempfile.TemporaryDirectory() as folder:
        for name, document in documents.items():
            (Path(folder) / name).write_text(
                json.dumps(document, indent=1, sort_keys=True, default=str), "utf-8"
            )
        for name, image in images.items():
            path = Path(folder) / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
        mlflow.log_artifacts(folder)
