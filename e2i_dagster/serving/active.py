"""What a release holds: every model version in a stage, with its files and the rows that prove parity."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pandas as pd

from e2i_dagster.config.serving import ServingPolicy
from e2i_dagster.errors import InputError
from e2i_dagster.registry import version_at
from e2i_dagster.registry.model_files import ModelFiles
from e2i_dagster.registry.versions import RegisteredVersion
from e2i_dagster.serving.deployment import Deployment, ParitySample
from e2i_dagster.serving.endpoints import Endpoint
from e2i_dagster.serving.models import file_digests, load_model
from e2i_dagster.serving.release import ModelToServe, Release
from e2i_dagster.serving.request_schema import Signature, to_frame, to_records

#: Rows sent through HTTP for each model to prove that the endpoint answers as the offline model.
PARITY_ROWS = 50


def models_at_stage(names: Iterable[str], stage: str, *, tracking_uri: str) -> list[ModelToServe]:
    """The version of each registered model that has the alias ``stage``, with a local copy of its files."""
    found = []
    for name in names:
        version = version_at(name, stage, tracking_uri=tracking_uri)
        if version is not None:
            found.append(_to_serve(version, tracking_uri))
    return found


def parity_samples(
    models: Iterable[ModelToServe],
    frames: Callable[[str], pd.DataFrame],
    policy: ServingPolicy,
    rows: int = PARITY_ROWS,
) -> dict[str, ParitySample]:
    """For each of ``models``, rows of its training frame with the offline model's answers, by model name.

    Args:
        frames: scope -> training frame; only the model's features are taken from it.
    """
    samples = {}
    for model in models:
        signature = Signature.of_model(model.folder)
        features = frames(model.scope or "")[signature.names].head(rows)
        offline = load_model(model.folder, file_digests(model.folder), policy, model.threshold)
        records = to_records(signature, features)
        asked = to_frame(signature, [[record[name] for record in records] for name in signature.names])
        samples[model.model_name] = ParitySample(features, offline.predict(asked).values)
    return samples


def _to_serve(version: RegisteredVersion, tracking_uri: str) -> ModelToServe:
    import mlflow

    # MLflow resolves the address of a stored model by the process's own store, whatever is passed; a step that
    # runs alone has opened no run that would have set it.
    mlflow.set_tracking_uri(tracking_uri)
    folder = ModelFiles.noted(mlflow.MlflowClient(), version.uri).folder()
    return ModelToServe.of_model(folder, model_name=version.name, version=version.version)


def models_of_release(release: Release, *, tracking_uri: str) -> list[ModelToServe]:
    """The registered versions that ``release`` holds, with local copies of their files."""
    found = []
    for model in release.models:
        version = version_at(model.model_name, model.version, tracking_uri=tracking_uri)
        if version is None:
            raise InputError(
                f"The release {release.tag} holds {model.model_id}, which the registry does not have.",
                remedy="Materialize bento again.",
            )
        found.append(_to_serve(version, tracking_uri))
    return found


def health_of(deployment: Deployment, endpoints: Iterable[Endpoint]) -> str:
    """What the endpoint of ``deployment`` says now; ``replaced`` when another release is live."""
    live = [endpoint for endpoint in endpoints if endpoint.service == deployment.deployed_name]
    if not live:
        return "stopped"
    if all(endpoint.bento_tag != deployment.bento_tag for endpoint in live):
        return "replaced"
    return live[0].health
