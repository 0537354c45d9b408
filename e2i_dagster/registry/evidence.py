"""The measured evidence about a registered version, as it was logged when the version was judged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from e2i_dagster.config.policy import Policy
from e2i_dagster.config.registry import WAY_UP
from e2i_dagster.display import Table
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.registry.mlflow_runs import silence_telemetry
from e2i_dagster.registry.stages import Evidence
from e2i_dagster.registry.versions import RegisteredVersion, registered_models, version_at, versions_of
from e2i_dagster.training import Evaluation

_EVALUATION = "evaluation.json"


def find_model(name: str, policy: Policy, *, tracking_uri: str) -> str:
    """The registered model ``name``; the name of a scope stands for the scope's model.

    Raises:
        InputError: there is no such model; the known ones are listed.
    """
    known = registered_models(tracking_uri=tracking_uri)
    if name in known:
        return name
    scope = policy.scopes.get(name)
    if scope is not None and scope.model_name in known:
        return scope.model_name
    raise InputError(
        f"No model {name!r} is registered.",
        field="model",
        value=name,
        remedy=f"Use one of: {', '.join(known)}." if known else "Train and register one first: `e2i run`.",
    )


def find_version(name: str, wanted: str, *, tracking_uri: str) -> RegisteredVersion:
    """The version ``wanted`` of the model: a number, or the stage whose present version is meant.

    Raises:
        InputError: there is none; the versions that there are are listed with their stages.
    """
    found = version_at(name, wanted, tracking_uri=tracking_uri)
    if found is not None:
        return found
    there = ", ".join(
        f"{version.version} ({version.stage})" for version in versions_of(name, tracking_uri=tracking_uri)
    )
    what = f"version {wanted}" if wanted.isdigit() else f"version in stage {wanted}"
    raise InputError(
        f"{name} has no {what}.",
        field="version",
        value=wanted,
        remedy=f"It has: {there}." if there else "Train and register one first: `e2i run`.",
    )


def highest_version(name: str, *, tracking_uri: str) -> RegisteredVersion:
    """The version of the model with the highest stage that has one.

    Raises:
        InputError: no version has a stage.
    """
    for stage in reversed(WAY_UP):
        found = version_at(name, stage, tracking_uri=tracking_uri)
        if found is not None:
            return found
    return find_version(name, WAY_UP[0], tracking_uri=tracking_uri)


def read_reference(reference: str, policy: Policy, *, tracking_uri: str) -> RegisteredVersion:
    """The version that ``MODEL/VERSION`` or ``MODEL@STAGE`` names.

    Raises:
        InputError: it is written otherwise, or there is no such version.
    """
    for mark in ("@", "/"):
        name, found, wanted = reference.rpartition(mark)
        if found and name and wanted:
            return find_version(
                find_model(name, policy, tracking_uri=tracking_uri), wanted, tracking_uri=tracking_uri
            )
    raise InputError(
        f"{reference!r} names no version.",
        field="version",
        value=reference,
        remedy="Write MODEL/VERSION or MODEL@STAGE, for example e2i-remibrutinib-csu-initiation@staging.",
    )


def logged_document(version: RegisteredVersion, path: str, *, tracking_uri: str) -> dict[str, Any] | None:
    """A JSON document of the run that made ``version``; None when the run or the document is gone."""
    from mlflow.exceptions import MlflowException

    text = logged_file(version, path, tracking_uri=tracking_uri)
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError as error:
        raise MlflowException(f"{path} of run {version.run_id} is not JSON") from error


def logged_file(version: RegisteredVersion, path: str, *, tracking_uri: str) -> bytes | None:
    """The bytes of a file of the run that made ``version``; None when the run or the file is gone."""
    import tempfile

    silence_telemetry()
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient(tracking_uri=tracking_uri)
    with tempfile.TemporaryDirectory() as folder:
        try:
            return Path(client.download_artifacts(version.run_id, path, folder)).read_bytes()
        except (MlflowException, OSError):
            return None


def read_evaluation(version: RegisteredVersion, *, tracking_uri: str) -> Evaluation:
    """The evaluation that was logged with ``version``, without its figure.

    Raises:
        VerdictError: there is none, or it is of another model.
    """
    record = logged_document(version, _EVALUATION, tracking_uri=tracking_uri)
    remedy = "Train and register the model again with `e2i run`."
    which = f"{version.name} version {version.version}"
    if record is None:
        raise VerdictError(
            f"{which} has no measured evidence: {_EVALUATION} of its MLflow run {version.run_id} cannot be read.",
            field="evidence",
            value=version.run_id,
            remedy=remedy,
        )
    evaluation = Evaluation.model_validate({**record, "figure": b"", "seconds": 0.0})
    if evaluation.model_digest != version.model_digest:
        raise VerdictError(
            f"The evidence of run {version.run_id} is about the model {evaluation.model_digest}; {which} is "
            f"{version.model_digest}.",
            field="evidence",
            value=evaluation.model_digest,
            remedy=remedy,
        )
    return evaluation


def read_evidence(
    version: RegisteredVersion,
    policy: Policy,
    *,
    proposed_by: str,
    simulated_days: float = 0.0,
    tracking_uri: str,
) -> Evidence:
    """The evidence about ``version``: what was measured when it was judged, under the scope as it is defined now.

    Raises:
        VerdictError: nothing was measured, or it is about another model.
    """
    evaluation = read_evaluation(version, tracking_uri=tracking_uri)
    scope = policy.scopes.get(version.scope or "")
    stale, approved = "", False
    if scope is None:
        stale = (
            f"The scope {version.scope!r} that it was judged for is not in the configuration any more; a version is "
            "promoted for a scope that there is."
        )
    else:
        approved = policy.cohorts[scope.cohort].approval is not None
        if version.scope_digest != scope.digest():
            stale = (
                f"The definition of scope {scope.key} has changed since it was judged ({version.scope_digest} then, "
                f"{scope.digest()} now); run `e2i run --scope {scope.key}` to train and judge one under it."
            )
    return Evidence.from_evaluation(
        evaluation,
        proposed_by=proposed_by,
        cohort_approved=approved,
        scope_digest=version.scope_digest or "",
        stale=stale,
        simulated_days=simulated_days,
    )


def compare_versions(
    first: RegisteredVersion, second: RegisteredVersion, *, tracking_uri: str
) -> dict[str, Any]:
    """Two versions beside each other: origin, stages and every metric of every split with its interval.

    Returns:
        ``versions``, ``metrics`` (a table) and ``same_patients``: whether both were judged on the same splits, so that
        their figures may be compared.
    """
    evaluations = [read_evaluation(version, tracking_uri=tracking_uri) for version in (first, second)]
    runs = [_run_tags(version, tracking_uri) for version in (first, second)]
    splits = [tags.get("e2i.digest.splits") for tags in runs]
    names = [f"{version.name}/{version.version}" for version in (first, second)]
    if names[0] == names[1]:
        raise InputError(
            f"{names[0]} is given twice.", field="version", value=names[1], remedy="Name two versions."
        )
    rows = []
    keys = dict.fromkeys(
        (split, metric)
        for evaluation in evaluations
        for split, measured in evaluation.splits.items()
        for metric in measured.metrics
    )
    for split, metric in keys:
        cells = []
        for evaluation in evaluations:
            measured = evaluation.splits.get(split)
            estimate = None if measured is None else measured.metrics.get(metric)
            cells.append((None, None, None) if estimate is None else estimate.with_interval)
        before, after = cells[0][0], cells[1][0]
        change = None if before is None or after is None else after - before
        rows.append((split, metric, cells[0], cells[1], change))
    return {
        "versions": [
            {
                "version": name,
                "stage": version.stage,
                "since": version.since.isoformat(),
                "algorithm": evaluation.algorithm,
                "accepted": evaluation.accepted,
                "model_digest": version.model_digest,
                "scope": version.scope,
                "splits": split,
            }
            for name, version, evaluation, split in zip(
                names, (first, second), evaluations, splits, strict=True
            )
        ],
        "same_patients": splits[0] is not None and splits[0] == splits[1],
        "metrics": Table(("split", "metric", names[0], names[1], "second minus first"), rows),
    }


def _run_tags(version: RegisteredVersion, tracking_uri: str) -> Mapping[str, str]:
    silence_telemetry()
    import mlflow
    from mlflow.exceptions import MlflowException

    try:
        return mlflow.MlflowClient(tracking_uri=tracking_uri).get_run(version.run_id).data.tags
    except MlflowException:
        return {}
