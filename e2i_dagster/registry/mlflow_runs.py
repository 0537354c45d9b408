"""What is written to MLflow about one training run, and how a stored model is read back.

Nothing here knows Dagster: an MLflow run must be active (``resources/mlflow.py`` opens it).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from e2i_dagster.config.names import TRUSTED_TYPES
from e2i_dagster.config.registry import RegistryPolicy
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.errors import InputError, UnavailableError
from e2i_dagster.explain import Explanation
from e2i_dagster.policy_files.environment import lake_url
from e2i_dagster.registry.model_files import ModelFiles
from e2i_dagster.selection import AlgorithmChoice
from e2i_dagster.training import Evaluation, SearchResult, TrainedModel

_FRAMEWORKS = {"XGBoost": ("xgboost",), "LightGBM": ("lightgbm",)}


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
    """No call of MLflow leaves the machine. Before the first import of mlflow."""
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


#: Tag of a run: the process that writes it, as host, number and start time (seconds since 1970).
PROCESS_TAG = "e2i.process"


def this_process() -> str:
    """Value of :data:`PROCESS_TAG` for the process that asks."""
    import socket

    import psutil

    return f"{socket.gethostname()}:{os.getpid()}:{psutil.Process().create_time():.0f}"


def end_abandoned_runs(experiment_id: str, *, tracking_uri: str) -> list[str]:
    """End the runs of an experiment that are RUNNING though their process is gone, as KILLED with the reason.

    A process that is killed cannot end its run. A run of another machine, or of a process that is not noted, stays
    as it is: whether it is still written cannot be seen from here.

    Returns:
        Keys of the runs that were ended.
    """
    silence_telemetry()
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=tracking_uri)
    ended = []
    for run in client.search_runs([experiment_id], "attributes.status = 'RUNNING'"):
        process = run.data.tags.get(PROCESS_TAG)
        if process is not None and _process_gone(process):
            number = process.rsplit(":", 2)[1]
            client.set_tag(
                run.info.run_id, "e2i.killed", f"its process {number} ended without ending the run (killed)"
            )
            client.set_terminated(run.info.run_id, status="KILLED")
            ended.append(run.info.run_id)
    return ended


def _process_gone(process: str) -> bool:
    import socket

    import psutil

    host, number, created = process.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        found = psutil.Process(int(number))
        # The system derives the time from its boot time, which moves a little when the clock is set.
        return abs(found.create_time() - float(created)) > 2 or found.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


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
        ],
        params=[Param(name, str(value)) for name, value in parameters.items()],
        tags=[RunTag(name, value) for name, value in tags.items()],
    )
    documents: dict[str, Any] = {
        "evaluation.json": evaluation.to_record(),
        "features.json": {"kinds": model.kinds, "nullable": list(model.nullable)},
    }
    if choice is not None:
        documents["algorithm_choice.json"] = choice.to_record()
    if search is not None:
        documents["search.json"] = search.model_dump(mode="json", exclude={"seconds"})
    figure = "uplift" if evaluation.problem_type == "causal" else "roc_calibration"
    _log_files(documents, {f"figures/{figure}.png": evaluation.figure})
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
    width = (-1, 2) if model.problem_type == "binary_classification" else (-1,)
    return ModelSignature(inputs=inputs, outputs=Schema([TensorSpec(np.dtype("float64"), width)]))


def model_metadata(model: TrainedModel, scope: ScopeSpec, digests: Mapping[str, str]) -> dict[str, Any]:
    """What a service must know beside the signature, kept in the stored model's metadata."""
    return {
        "scope": scope.key,
        "brand": scope.brand,
        "problem_type": model.problem_type,
        "algorithm": model.algorithm,
        "threshold": model.threshold,
        "classes": [0, 1] if model.threshold is not None else None,
        "kinds": dict(model.kinds),
        "nullable": list(model.nullable),
        "seen_ranges": {name: list(ends) for name, ends in model.seen_ranges.items()},
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
            pyfunc_predict_fn="predict_proba" if model.problem_type == "binary_classification" else "predict",
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
