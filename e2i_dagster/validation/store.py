"""External validations as evidence: a run in MLflow with the figures as JSON and as a page, found again by its key."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.errors import UnavailableError
from e2i_dagster.policy_files.environment import state_folder
from e2i_dagster.registry.mlflow_runs import (
    default_artifact_root,
    ensure_experiment,
    experiment_name,
    run_tags,
    silence_telemetry,
    tracking_store_answers,
)
from e2i_dagster.reports import Section, html_page
from e2i_dagster.validation.records import ExternalValidation

_KEY_TAG = "e2i.validation_key"
_DOCUMENT, _PAGE = "external_validation.json", "external_validation.html"


class StoredValidation(BaseModel):
    """A validation and where it is kept.

    Attributes:
        new: False when the same request was answered before.
    """

    model_config = ConfigDict(frozen=True)

    validation: ExternalValidation
    run_id: str
    page: Path
    new: bool


def find_validation(key: str, scope: ScopeSpec, *, tracking_uri: str) -> StoredValidation | None:
    """The stored validation with ``key``; None when there is none, or its document cannot be read.

    Its page is written again where it is gone.

    Raises:
        UnavailableError: the tracking store does not answer, or the page cannot be written.
    """
    silence_telemetry()
    import mlflow
    from mlflow.exceptions import MlflowException

    client = mlflow.MlflowClient(tracking_uri=tracking_uri)
    with tracking_store_answers():
        runs = client.search_runs(
            [_experiment(scope, tracking_uri)],
            f"tags.`{_KEY_TAG}` = '{key}' and attributes.status = 'FINISHED'",
        )
    for run in runs:
        with tempfile.TemporaryDirectory() as folder:
            try:
                content = Path(client.download_artifacts(run.info.run_id, _DOCUMENT, folder)).read_bytes()
                found = ExternalValidation.model_validate_json(content)
            except (MlflowException, OSError, ValidationError):
                continue
        return StoredValidation(validation=found, run_id=run.info.run_id, page=_write_page(found), new=False)
    return None


def store_validation(
    validation: ExternalValidation, scope: ScopeSpec, *, by: str, tracking_uri: str
) -> StoredValidation:
    """Log ``validation`` as a run of its own and write its page to ``reports/validations`` of the state folder.

    Raises:
        UnavailableError: the tracking store does not answer, or the page cannot be written.
    """
    silence_telemetry()
    import mlflow

    page = _write_page(validation)
    client = mlflow.MlflowClient(tracking_uri=tracking_uri)
    with tracking_store_answers():
        run_id = client.create_run(
            _experiment(scope, tracking_uri),
            run_name=f"{validation.model}/{validation.version} on {validation.cohort}",
            tags={
                **run_tags(scope),
                "e2i.experiment_type": "external_validation",
                "e2i.model": validation.model,
                "e2i.version": validation.version,
                "e2i.model_digest": validation.model_digest,
                "e2i.validation_cohort": validation.cohort,
                "e2i.validated_by": by,
                _KEY_TAG: validation.key,
            },
        ).info.run_id
        status = "FAILED"
        try:
            for name, found in validation.findings.performance.metrics.items():
                for suffix, value in zip(("", "_low", "_high"), found.with_interval, strict=True):
                    if value is not None:
                        client.log_metric(run_id, f"external_{name}{suffix}", value)
            for name, digest in validation.data.items():
                client.set_tag(run_id, f"e2i.digest.{name}", digest)
            client.log_text(run_id, json.dumps(validation.to_record(), indent=1), _DOCUMENT)
            client.log_text(run_id, _page(validation), _PAGE)
            status = "FINISHED"
        finally:
            client.set_terminated(run_id, status)
    return StoredValidation(validation=validation, run_id=run_id, page=page, new=True)


def _experiment(scope: ScopeSpec, tracking_uri: str) -> str:
    """Runs of training are told apart from those of validation by their experiment."""
    return ensure_experiment(
        f"{experiment_name(scope)}/external_validation",
        tracking_uri=tracking_uri,
        artifact_root=default_artifact_root(),
    )


def _page(validation: ExternalValidation) -> str:
    sections = [Section(title, [table]) for title, table in validation.tables().items()]
    return html_page(
        f"External validation of {validation.model} version {validation.version} on {validation.cohort}",
        [Section("What was validated", [validation.headline()]), *sections],
        subtitle=f"Model {validation.model_digest}; cohort version {validation.cohort_version} "
        f"({validation.definition_hash}); intervals at {validation.level:.0%}.",
    )


def _write_page(validation: ExternalValidation) -> Path:
    name = f"{validation.model}-{validation.version}-{validation.cohort}.html"
    page = state_folder() / "reports" / "validations" / name
    try:
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(_page(validation), "utf-8")
    except OSError as error:
        raise UnavailableError(
            f"{page} cannot be written ({error.strerror}).",
            file=page,
            remedy="Free space or correct the permissions of the folder, then run again.",
        ) from None
    return page


__all__ = ["StoredValidation", "find_validation", "store_validation"]
