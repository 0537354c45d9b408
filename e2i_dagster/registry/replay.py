"""Replay of a training run from its recorded data versions: search and fit again, digests compared stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.display import Table
from e2i_dagster.errors import InputError
from e2i_dagster.policy_files import changes
from e2i_dagster.registry.storage import StoredModel
from e2i_dagster.splits.rows import visible_rows
from e2i_dagster.tables.description.control import ml_erased_files, ml_erasures
from e2i_dagster.tables.description.models import ml_experiments, ml_model_registry, ml_training_runs
from e2i_dagster.training import SearchResult, search_hyperparameters, train
from e2i_dagster.training.pattern_memory import read_patterns
from e2i_dagster.versions import ledger
from e2i_dagster.versions.lake import Lake, value_digests
from e2i_dagster.versions.ledger import READ, DataVersion

State = Literal["same", "differs", "stored", "missing", "erased", "skipped"]
#: Stages that are made again, in order.
REPLAYED = ("hyperparameters", "trained_model")
#: Stages whose stored values the replay reads, or that are compared as they are stored.
STORED = ("training_frame", "splits", "algorithm", "evaluation")


class StageCheck(BaseModel):
    """What was found of one stage.

    Attributes:
        state: ``same`` or ``differs`` of a stage that was made again; ``stored`` when the recorded version is whole
            and was only read; ``missing`` when it is not there; ``erased`` when a patient was erased from it, so that
            it cannot be replayed; ``skipped`` when it was not made again.
        moved: what is not as it was: code, policy values, files.
    """

    model_config = ConfigDict(frozen=True)

    stage: str
    state: State
    recorded: str | None
    found: str | None = None
    moved: tuple[str, ...] = ()


class Verification(BaseModel):
    """A replay. ``verified`` when every stage that is made again was, with the recorded digest."""

    model_config = ConfigDict(frozen=True)

    run_id: str
    scope: str
    model_digest: str
    checks: tuple[StageCheck, ...]

    @property
    def verified(self) -> bool:
        """Whether the run was made again to the last bit."""
        states = {check.stage: check.state for check in self.checks}
        return all(states.get(stage) == "same" for stage in REPLAYED) and not {"missing", "erased"} & set(
            states.values()
        )

    def to_table(self) -> Table:
        """A row for each stage."""
        return Table(
            ("stage", "state", "recorded", "found", "what moved"),
            [
                (check.stage, check.state, check.recorded, check.found, "; ".join(check.moved))
                for check in self.checks
            ],
        )


def recorded_run(engine: sa.Engine, target: str) -> Mapping[str, Any]:
    """The row of ``ml_training_runs`` of an MLflow run, or of a registered model ``NAME/VERSION``, with its scope.

    Raises:
        InputError: there is none.
    """
    runs, models = ml_training_runs, ml_model_registry
    query = sa.select(runs, ml_experiments.c.scope, ml_experiments.c.problem_type).join(
        ml_experiments, runs.c.experiment_id == ml_experiments.c.id
    )
    name, _, version = target.rpartition("/")
    if name:
        query = query.join(models, models.c.mlflow_run_id == runs.c.mlflow_run_id).where(
            models.c.model_name == name, models.c.model_version == version
        )
    else:
        query = query.where(runs.c.mlflow_run_id == target)
    with engine.connect() as connection:
        found = connection.execute(query).mappings().first()
        known = connection.scalars(
            sa.select(models.c.model_name + "/" + models.c.model_version).order_by(
                models.c.registered_at.desc()
            )
        ).first()
    if found is None:
        remedy = (
            f"Name an MLflow run or a registered model as NAME/VERSION, such as {known}."
            if known
            else "No model is registered yet: run `e2i run` first."
        )
        raise InputError(f"There is no training run {target!r}.", field="target", value=target, remedy=remedy)
    return {str(name): value for name, value in found.items()}


def verify_run(
    engine: sa.Engine, lake: Lake, target: str, *, code: Mapping[str, str] | None = None
) -> Verification:
    """Make the search and the fit of a recorded run again and compare their digests.

    Reads the recorded versions of training frame and splits, with the configuration and code of now; where these are
    not those of the run, the check says so. The search is made again in memory, with the earlier studies that the
    recorded one began with. The test rows stay sealed: the digest of the model covers what was measured on them.

    Args:
        code: digest of the code of each stage as it is now.

    Raises:
        InputError: there is no such run.
    """
    run = recorded_run(engine, target)
    recorded: Mapping[str, str] = run["data_digests"]
    checks: dict[str, StageCheck] = {}
    versions: dict[str, DataVersion] = {}
    for stage in (*STORED, *REPLAYED):
        check, version = _stored(engine, lake, stage, recorded.get(stage), code or {})
        checks[stage] = check
        if version is not None:
            versions[stage] = version
    if {"training_frame", "splits", *REPLAYED} <= versions.keys():
        frame, splits = (lake.read_frame([_file(versions[name])]) for name in ("training_frame", "splits"))
        search = SearchResult.model_validate(
            lake.read_document(_file(versions["hyperparameters"]), SearchResult)
        )
        kind = run["problem_type"]
        rows = visible_rows(frame, splits, run["feature_names"], problem_type=kind)
        begun_with = {trial.study_name for trial in search.warm_start}
        patterns = read_patterns(engine, search.algorithm, search.problem_type)
        again = search_hyperparameters(
            search.algorithm,
            rows,
            scope=search.scope,
            problem_type=kind,
            memory=[pattern for pattern in patterns if pattern.study_name in begun_with],
        )
        checks["hyperparameters"] = _compared(checks["hyperparameters"], again)
        stored = lake.read_document(_file(versions["trained_model"]), StoredModel)
        risk = StoredModel.model_validate(stored).risk
        model = train(
            rows,
            algorithm=search.algorithm,
            parameters=again.parameters,
            problem_type=kind,
            horizon_days=None if risk is None else risk.horizon_days,
        )
        checks["trained_model"] = _compared(checks["trained_model"], StoredModel.of(model))
    else:
        for stage in REPLAYED:
            if checks[stage].state not in ("missing", "erased"):
                checks[stage] = checks[stage].model_copy(update={"state": "skipped"})
    return Verification(
        run_id=run["mlflow_run_id"],
        scope=run["scope"],
        model_digest=run["model_digest"],
        checks=tuple(checks.values()),
    )


def _stored(
    engine: sa.Engine, lake: Lake, stage: str, digest: str | None, code: Mapping[str, str]
) -> tuple[StageCheck, DataVersion | None]:
    if digest is None:
        return StageCheck(
            stage=stage, state="missing", recorded=None, moved=("the run names no version",)
        ), None
    version = next(
        (candidate for candidate in ledger.versions(engine, stage) if candidate.digest == digest), None
    )
    if version is None or version.file is None:
        moved = ("the ledger has no version with this digest",)
        return StageCheck(stage=stage, state="missing", recorded=digest, moved=moved), None
    if erased := _erased(engine, version.file.path):
        return StageCheck(stage=stage, state="erased", recorded=digest, moved=erased), None
    damage = lake.not_reusable(version.file)
    if damage:
        at = "" if version.at is None else f" of {version.at:%Y-%m-%d %H:%M}"
        moved = (f"the version{at}, made by run {version.run_id}: {version.path}: {damage}",)
        return StageCheck(stage=stage, state="missing", recorded=digest, moved=moved), None
    policy = changes.changed(version.metadata.get(READ, {}))
    moved = tuple(
        said
        for said in (
            f"policy: {policy}" if policy else "",
            "its code" if code.get(stage, version.code_version) != version.code_version else "",
        )
        if said
    )
    return StageCheck(stage=stage, state="stored", recorded=digest, moved=moved), version


def _erased(engine: sa.Engine, path: str) -> tuple[str, ...]:
    """Who erased a patient from the file, when and why; nothing where nobody was."""
    rows, erasures = ml_erased_files.c, ml_erasures.c
    query = (
        sa.select(erasures.pseudonym, erasures.erased_by, erasures.began_at, erasures.reason, rows.rows)
        .join_from(ml_erased_files, ml_erasures)
        .where(rows.path == path)
        .order_by(erasures.began_at)
    )
    with engine.connect() as connection:
        return tuple(
            f"patient {row.pseudonym} was erased from it ({row.rows} rows) on {row.began_at:%Y-%m-%d} by "
            f"{row.erased_by}: {row.reason}; it cannot be replayed"
            for row in connection.execute(query)
        )


def _compared(check: StageCheck, value: BaseModel) -> StageCheck:
    found = value_digests({None: value})[None]
    return check.model_copy(
        update={"state": "same" if found == check.recorded else "differs", "found": found}
    )


def _file(version: DataVersion) -> Any:
    return version.file


__all__ = ["StageCheck", "Verification", "recorded_run", "verify_run"]
