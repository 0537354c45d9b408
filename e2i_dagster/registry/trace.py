"""Lineage of a model, a prediction, a run or a patient, walked both ways through what was recorded.

Each version in the ledger names the versions that it was made from, so that sources and uses are those of exactly
these values, not of the ones that are current. What an older version did not record is said, never guessed.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.cohorts.access import PatientLevelRefused, record_opening
from e2i_dagster.cohorts.disclosure import shown_count
from e2i_dagster.display import Table, from_plain
from e2i_dagster.errors import InputError
from e2i_dagster.policy_files.base import digest_of
from e2i_dagster.tables import OPTIONAL_RAW_TABLES, PATIENT_COLUMNS, RAW_TABLES, date_column, raw_table
from e2i_dagster.tables.description.cohorts import ml_patient_cohort_assignments
from e2i_dagster.tables.description.control import ml_data_versions, ml_table_loads
from e2i_dagster.tables.description.models import (
    ml_experiments,
    ml_model_registry,
    ml_model_stage_history,
    ml_training_runs,
)
from e2i_dagster.tables.description.monitoring import ml_monitoring_runs, ml_retraining_history
from e2i_dagster.tables.description.raw import ml_predictions, patient_journeys
from e2i_dagster.tables.description.serving import ml_bentoml_services, ml_deployments
from e2i_dagster.tables.description.splits import ml_patient_split_assignments, ml_split_registry
from e2i_dagster.versions import ledger
from e2i_dagster.versions.lake import Lake
from e2i_dagster.versions.ledger import MADE_FROM

Kind = Literal["model", "prediction", "run", "patient"]
#: A version of an asset's partition (empty without) by its digest.
Key = tuple[str, str, str]
#: The asset whose value is a delivery.
_DELIVERY = "source_files"


class TracedVersion(BaseModel):
    """One version of an asset's partition.

    Attributes:
        steps: how many steps it is away from what is traced; 0 is that itself.
        made_from: names of the assets that it was made from; None when the version did not record them.
        load: of a raw table what was loaded by its run: ``source (delivered rows, rejected rows)``.
    """

    model_config = ConfigDict(frozen=True)

    asset: str
    partition: str
    digest: str
    steps: int
    rows: int
    code_version: str
    run_id: str | None
    at: dt.datetime
    made_from: tuple[str, ...] | None
    load: str = ""


class TracedRecord(BaseModel):
    """One row of a table of records that belongs to what is traced.

    Attributes:
        what: kind of record, such as deployment.
        name: of what it is. detail: in words.
    """

    model_config = ConfigDict(frozen=True)

    what: str
    name: str
    detail: str
    at: dt.datetime | None = None
    run_id: str | None = None


class Trace(BaseModel):
    """The lineage of one thing.

    Attributes:
        facts: what is recorded of itself.
        sources: what it was made from, nearest first.
        uses: what was made from it, nearest first.
        records: what else is recorded of it, in the order of time.
        notes: what could not be followed, and why.
    """

    model_config = ConfigDict(frozen=True)

    target: str
    kind: Kind
    facts: dict[str, Any]
    sources: tuple[TracedVersion, ...] = ()
    uses: tuple[TracedVersion, ...] = ()
    records: tuple[TracedRecord, ...] = ()
    notes: tuple[str, ...] = ()

    def tables(self) -> dict[str, Table]:
        """Title -> table; the partitions of an asset that are equally far away share a row."""
        return {
            "Made from": _versions_table(self.sources),
            "Used by": _versions_table(self.uses),
            "Records": Table(
                ("what", "name", "detail", "at", "run"),
                [(each.what, each.name, each.detail, _minute(each.at), each.run_id) for each in self.records],
            ),
        }


def trace(engine: sa.Engine, lake: Lake, target: str) -> Trace:
    """The lineage of ``target``.

    Args:
        target: a registered model (NAME, NAME/VERSION, NAME@STAGE, or the key of its scope), an MLflow or Dagster
            run, a prediction, or a patient, looked for in this order.

    Raises:
        PatientLevelRefused: it is none of the others, and patients may not be traced here. The attempt is recorded;
            whether there is such a patient is not looked up.
        InputError: there is nothing of this name.
    """
    with engine.connect() as connection:
        for find in (_model, _tracked_run, _dagster_run):
            found = find(connection, target)
            if found is not None:
                return _with_files(connection, found)
        prediction = _prediction(connection, lake, target)
        if prediction is not None:
            return _with_files(connection, prediction)
        known = connection.scalar(
            sa.select(ml_model_registry.c.model_name + "/" + ml_model_registry.c.model_version)
            .order_by(ml_model_registry.c.registered_at.desc())
            .limit(1)
        )
    such_as = f", such as {known}" if known else "; no model is registered yet (`e2i run`)"
    remedy = f"Name a model{such_as}, a run of MLflow or Dagster, or the key of a prediction."
    missing = f"There is no model, run or prediction {target!r}."
    try:
        record_opening(engine, "trace", patient=target)
    except PatientLevelRefused as refused:
        raise PatientLevelRefused(
            f"{missing} If it is a patient: patients are traced only with E2I_ALLOW_PATIENT_LEVEL=1, set by someone "
            "who may see them. This attempt is recorded in ml_patient_level_access.",
            field="target",
            remedy=remedy,
        ) from refused
    with engine.connect() as connection:
        patient = _patient(connection, target)
        if patient is not None:
            return _with_files(connection, patient)
    raise InputError(
        f"{missing} There is no such patient either.", field="target", value=target, remedy=remedy
    )


def _model(connection: sa.Connection, target: str) -> Trace | None:
    models, runs, experiments = ml_model_registry, ml_training_runs, ml_experiments
    name, version, stage = target, "", ""
    for mark in ("/", "@"):
        before, found, wanted = target.rpartition(mark)
        if found and before and wanted:
            name = before
            version, stage = (wanted, "") if mark == "/" else ("", wanted)
            break
    query = (
        sa.select(models, experiments.c.scope)
        .outerjoin(experiments, models.c.experiment_id == experiments.c.id)
        .where(sa.or_(models.c.model_name == name, experiments.c.scope == name))
        .order_by(models.c.registered_at.desc())
        .limit(1)
    )
    if version:
        query = query.where(models.c.model_version == version)
    if stage:
        query = query.where(models.c.stage == stage)
    row = connection.execute(query).mappings().first()
    if row is None:
        return None
    run = (
        connection.execute(sa.select(runs).where(runs.c.mlflow_run_id == row["mlflow_run_id"]))
        .mappings()
        .first()
    )
    key = f"{row['model_name']}/{row['model_version']}"
    facts = {
        "model": key,
        "scope": row["scope"],
        "stage": row["stage"],
        "algorithm": row["algorithm"],
        "model_digest": row["model_digest"],
        "mlflow_run": row["mlflow_run_id"],
        "registered_at": row["registered_at"],
    }
    sources, uses, notes = _around_run(connection, run, row["scope"])
    return Trace(
        target=target,
        kind="model",
        facts=facts,
        sources=sources,
        uses=uses,
        records=_records_of_model(connection, row["model_name"], row["model_version"]),
        notes=notes,
    )


def _tracked_run(connection: sa.Connection, target: str) -> Trace | None:
    runs, models, experiments = ml_training_runs, ml_model_registry, ml_experiments
    row = (
        connection.execute(
            sa.select(runs, experiments.c.scope, models.c.model_name, models.c.model_version)
            .outerjoin(experiments, runs.c.experiment_id == experiments.c.id)
            .outerjoin(models, models.c.mlflow_run_id == runs.c.mlflow_run_id)
            .where(runs.c.mlflow_run_id == target)
        )
        .mappings()
        .first()
    )
    if row is None:
        return None
    registered = row["model_name"] is not None
    sources, uses, notes = _around_run(connection, row, row["scope"])
    return Trace(
        target=target,
        kind="run",
        facts={
            "mlflow_run": target,
            "scope": row["scope"],
            "algorithm": row["algorithm"],
            "status": row["status"],
            "model_digest": row["model_digest"],
            "registered_as": f"{row['model_name']}/{row['model_version']}" if registered else None,
            "completed_at": row["completed_at"],
        },
        sources=sources,
        uses=uses,
        records=_records_of_model(connection, row["model_name"], row["model_version"]) if registered else (),
        notes=notes,
    )


def _dagster_run(connection: sa.Connection, target: str) -> Trace | None:
    table = ml_data_versions
    made = [
        (row.asset, row.partition, row.digest)
        for row in connection.execute(
            sa.select(table.c.asset, table.c.partition, table.c.digest).where(table.c.run_id == target)
        )
    ]
    loads = _loads(connection, {target})
    if not made and not loads:
        return None
    sources, notes = _sources(connection, made)
    mine = set(made)
    records = [
        TracedRecord(what="load", name=name, detail=said, run_id=target) for (_, name), said in loads.items()
    ]
    return Trace(
        target=target,
        kind="run",
        facts={"dagster_run": target, "versions_made": len(made), "loads": len(loads)},
        sources=sources,
        uses=tuple(each for each in _uses(connection, made) if _key(each) not in mine),
        records=tuple(records),
        notes=notes,
    )


def _prediction(connection: sa.Connection, lake: Lake, target: str) -> Trace | None:
    row = (
        connection.execute(sa.select(ml_predictions).where(ml_predictions.c.prediction_id == target))
        .mappings()
        .first()
    )
    if row is None:
        return None
    answer = [row["prediction_value"], row["prediction_class"], row["probability_scores"]]
    facts: dict[str, Any] = {
        "prediction": target,
        "origin": row["origin"],
        "model": row["model_id"],
        "request": row["request_id"],
        "answered_at": row["prediction_timestamp"],
        "answer_digest": digest_of([None if value is None else str(value) for value in answer]),
        "features_digest": digest_of(row["features_available_at_prediction"]),
    }
    model = None if row["model_id"] is None else _model(connection, str(row["model_id"]))
    if model is None:
        note = (
            "it was delivered with the raw data and comes from no model of this product"
            if row["origin"] == "import"
            else f"the model {row['model_id']} is not in the registry any more"
        )
        return Trace(target=target, kind="prediction", facts=facts, notes=(note,))
    scored = _scored_in(connection, lake, model.facts["scope"], row)
    notes = list(model.notes)
    sources = model.sources
    if scored is None:
        notes.append("no stored scores have this request: its features came with it, see features_digest")
    else:
        own, more = _sources(connection, [scored])
        known = {_key(each) for each in own}
        sources = (*own, *(each for each in sources if _key(each) not in known))
        notes += [note for note in more if note not in notes]
    serving = [
        each
        for each in _deployments(connection, *_name_and_version(row["model_id"]))
        if each.at is not None and each.at <= row["prediction_timestamp"]
    ]
    return Trace(
        target=target,
        kind="prediction",
        facts={**facts, **{name: model.facts[name] for name in ("scope", "model_digest", "mlflow_run")}},
        sources=sources,
        records=(
            *serving[-1:],
            *_drift(connection, row["model_id"], since=row["prediction_timestamp"].date()),
        ),
        notes=tuple(notes),
    )


def _scored_in(connection: sa.Connection, lake: Lake, scope: str, row: sa.RowMapping) -> Key | None:
    """The stored scores that have the request of a prediction; None when no version has it."""
    if row["request_id"] is None:
        return None
    for version in ledger.versions(connection, "live_scores", scope):
        file = version.file
        # Scores are stored after they were answered.
        if (
            file is None
            or version.at is None
            or version.at < row["prediction_timestamp"]
            or lake.not_reusable(file)
        ):
            continue
        if row["request_id"] in set(lake.read_frame([file])["request_id"].dropna()):
            return "live_scores", scope, version.digest
    return None


def _patient(connection: sa.Connection, patient: str) -> Trace | None:
    records: list[TracedRecord] = []
    starts: list[Key] = []
    journeys = sa.select(patient_journeys.c.patient_journey_id).where(
        patient_journeys.c.patient_id == patient
    )
    rows: dict[str, int] = {}
    for name in RAW_TABLES + OPTIONAL_RAW_TABLES:
        table = raw_table(name)
        column = next((column for column in PATIENT_COLUMNS if column in table.columns), None)
        if column is None:
            continue
        (key,) = table.primary_key.columns
        mine = table.c[column] == patient if column == "patient_id" else table.c[column].in_(journeys)
        dated_by = date_column(name)
        month = sa.func.to_char(table.c[dated_by], "YYYY-MM") if dated_by else sa.literal("")
        found = connection.execute(
            sa.select(sa.cast(key, sa.Text).label("key"), month.label("month"))
            .where(mine, sa.true() if name != ml_predictions.name else table.c.origin == "import")
            .order_by(month, key)
        ).all()
        if not found:
            continue
        rows[name] = len(found)
        versions = ledger.current(connection, name)
        for row in found:
            version = versions.get(row.month or None)
            records.append(
                TracedRecord(
                    what="row",
                    name=f"{name} {row.key}",
                    detail=f"in {name}{f' [{row.month}]' if row.month else ''}, version "
                    f"{version.digest if version else 'not stored yet'}",
                    at=version.at if version else None,
                    run_id=version.run_id if version else None,
                )
            )
            if version is not None:
                starts.append((name, row.month, version.digest))
    if not rows:
        return None
    cohorts, splits, registry = ml_patient_cohort_assignments, ml_patient_split_assignments, ml_split_registry
    for row in connection.execute(
        sa.select(cohorts).where(cohorts.c.patient_id == patient).order_by(cohorts.c.assigned_at)
    ):
        state = "eligible" if row.is_eligible else "pending" if row.is_pending else "not eligible"
        records.append(
            TracedRecord(
                what="cohort",
                name=row.cohort_id,
                detail=f"{state}, execution {row.execution_id}",
                at=row.assigned_at,
            )
        )
    of_split = (
        sa.select(splits, registry.c.config_name)
        .join(registry, splits.c.split_config_id == registry.c.split_config_id)
        .where(splits.c.patient_id == patient)
        .order_by(splits.c.assigned_at)
    )
    records += [
        TracedRecord(what="split", name=row.config_name, detail=row.assigned_split, at=row.assigned_at)
        for row in connection.execute(of_split)
    ]
    predictions = (
        sa.select(ml_predictions)
        .where(ml_predictions.c.patient_id == patient, ml_predictions.c.origin == "live")
        .order_by(ml_predictions.c.prediction_timestamp)
    )
    records += [
        TracedRecord(
            what="prediction",
            name=row.prediction_id,
            detail=f"answered by {row.model_id}, request {row.request_id}",
            at=row.prediction_timestamp,
        )
        for row in connection.execute(predictions)
    ]
    starts = list(dict.fromkeys(starts))
    sources, notes = _sources(connection, starts)
    return Trace(
        target=patient,
        kind="patient",
        facts={"patient": patient, **{f"rows_{name}": count for name, count in rows.items()}},
        sources=sources,
        uses=_uses(connection, starts),
        records=tuple(records),
        notes=(
            *notes,
            "uses are of the tables that hold the patient's rows; the records say which are the patient's",
        ),
    )


def _around_run(
    connection: sa.Connection, run: sa.RowMapping | None, scope: str | None
) -> tuple[tuple[TracedVersion, ...], tuple[TracedVersion, ...], tuple[str, ...]]:
    """Sources and uses of the fitted model of a training run."""
    if run is None:
        return (), (), ("the registry names no training run of it",)
    digests: Mapping[str, str] = run["data_digests"]
    if "trained_model" not in digests:
        return (), (), ("its training run did not record the digests of its data",)
    start: Key = ("trained_model", scope or "", digests["trained_model"])
    sources, notes = _sources(connection, [start])
    return sources, _uses(connection, [start]), notes


def _records_of_model(connection: sa.Connection, name: str, version: str) -> tuple[TracedRecord, ...]:
    history, model = ml_model_stage_history, f"{name}/{version}"
    records = [
        TracedRecord(
            what="decision",
            name=row.action,
            detail=f"to {row.to_stage} by {row.actor} ({row.authentication}): {row.reason}",
            at=row.recorded_at,
            run_id=row.run_id,
        )
        for row in connection.execute(
            sa.select(history)
            .where(history.c.model_name == name, history.c.model_version == version)
            .order_by(history.c.id)
        )
    ]
    records += _deployments(connection, name, version)
    predictions = ml_predictions
    day = sa.func.date_trunc("day", predictions.c.prediction_timestamp)
    for row in connection.execute(
        sa.select(day.label("day"), sa.func.count().label("answers"))
        .where(predictions.c.model_id == model, predictions.c.origin == "live")
        .group_by(day)
        .order_by(day)
    ):
        records.append(
            TracedRecord(
                what="predictions",
                name=f"{row.day:%Y-%m-%d}",
                detail=f"{shown_count(row.answers)} answers in the log",
                at=row.day,
            )
        )
    records += _drift(connection, model)
    proposals = ml_retraining_history
    records += [
        TracedRecord(
            what="retraining", name=row.scope, detail=f"{row.status}: {row.trigger_reason}", at=row.triggered_at,
            run_id=row.run_id,
        )
        for row in connection.execute(sa.select(proposals).where(proposals.c.model_id == model))
    ]  # fmt: skip
    return tuple(sorted(records, key=lambda record: record.at or dt.datetime.max.replace(tzinfo=dt.UTC)))


def _deployments(connection: sa.Connection, name: str, version: str) -> list[TracedRecord]:
    deployments, services = ml_deployments, ml_bentoml_services
    return [
        TracedRecord(
            what="deployment",
            name=row.deployment_name,
            detail=f"bento {row.bento_tag}, {row.status}, by {row.deployed_by}",
            at=row.deployed_at or row.created_at,
        )
        for row in connection.execute(
            sa.select(deployments, services.c.bento_tag)
            .join(services, deployments.c.service_id == services.c.id)
            .where(deployments.c.model_name == name, deployments.c.model_version == version)
            .order_by(deployments.c.created_at)
        )
    ]


def _drift(connection: sa.Connection, model: str, since: dt.date | None = None) -> list[TracedRecord]:
    runs = ml_monitoring_runs
    query = sa.select(runs).where(runs.c.model_id == model).order_by(runs.c.day, runs.c.created_at)
    if since is not None:
        query = query.where(runs.c.day >= since)
    return [
        TracedRecord(
            what="drift report",
            name=f"{row.day}",
            detail=f"severity {row.worst_severity}, {row.features_tested} features tested",
            at=row.created_at,
            run_id=row.run_id,
        )
        for row in connection.execute(query)
    ]


def _name_and_version(model: str) -> tuple[str, str]:
    name, _, version = model.rpartition("/")
    return name, version


def _sources(
    connection: sa.Connection, starts: Sequence[Key]
) -> tuple[tuple[TracedVersion, ...], tuple[str, ...]]:
    """``starts`` and everything that they were made from, nearest first, and what was not recorded."""
    # Of equal values written several times a maker read the newest one before its own.
    wanted: dict[Key, int | None] = dict.fromkeys(starts)
    found: dict[Key, TracedVersion] = {}
    unknown: list[str] = []
    steps = 0
    while wanted:
        after: dict[Key, int | None] = {}
        newest: dict[Key, Any] = {}
        for row in _rows_of(connection, wanted):
            key = (row.asset, row.partition, row.digest)
            before = wanted[key]
            if before is None or row.version_id < before:
                newest[key] = row
        for key in wanted:
            row = newest.get(key)
            if row is None:
                unknown.append(f"the ledger has no version {key[2]} of {_named(key)}")
                continue
            made_from = row.made_from
            found[key] = _traced(row, steps)
            if made_from is None:
                unknown.append(
                    f"{_named(key)} of {row.at:%Y-%m-%d %H:%M} did not record what it was made from"
                )
            for source in _keys(made_from or {}):
                if source not in found and source not in wanted:
                    after[source] = max(after.get(source) or 0, row.version_id)
        wanted, steps = after, steps + 1
    loads = _loads(connection, {each.run_id for each in found.values() if each.run_id})
    return (
        tuple(
            each.model_copy(update={"load": loads.get((each.run_id or "", each.asset), "")})
            for each in found.values()
        ),
        tuple(unknown),
    )


def _uses(connection: sa.Connection, starts: Sequence[Key]) -> tuple[TracedVersion, ...]:
    """Everything that was made from ``starts``, nearest first."""
    wanted, found, steps = set(starts), dict[Key, TracedVersion](), 1
    seen = set(starts)
    while wanted:
        names, partitions, digests = zip(*sorted(wanted), strict=True)
        rows = connection.execute(
            sa.text(
                "SELECT v.version_id, v.asset, v.partition, v.digest, v.rows, v.code_version, v.run_id, v.at, "
                "v.metadata->'made_from' AS made_from FROM ml_data_versions v WHERE EXISTS (SELECT 1 "
                "FROM jsonb_each(v.metadata->'made_from') a, jsonb_each_text(a.value) p JOIN "
                "unnest(CAST(:assets AS text[]), CAST(:partitions AS text[]), CAST(:digests AS text[])) "
                "AS w(asset, partition, digest) ON w.digest = p.value AND w.partition = p.key "
                "WHERE w.asset = a.key) ORDER BY v.version_id"
            ),
            {"assets": list(names), "partitions": list(partitions), "digests": list(digests)},
        )
        wanted = set()
        for row in rows:
            key = (row.asset, row.partition, row.digest)
            if key not in seen:
                seen.add(key)
                wanted.add(key)
                found[key] = _traced(row, steps)
        steps += 1
    return tuple(found.values())


def _rows_of(connection: sa.Connection, keys: Iterable[Key]) -> Iterable[Any]:
    table = ml_data_versions
    return connection.execute(
        sa.select(
            *(table.c.version_id, table.c.asset, table.c.partition, table.c.digest, table.c.rows),
            *(
                table.c.code_version,
                table.c.run_id,
                table.c.at,
                table.c.metadata[MADE_FROM].label("made_from"),
            ),
        )
        .where(sa.tuple_(table.c.asset, table.c.partition, table.c.digest).in_(list(keys)))
        .order_by(table.c.version_id)
    )


def _traced(row: Any, steps: int) -> TracedVersion:
    return TracedVersion(
        asset=row.asset,
        partition=row.partition,
        digest=row.digest,
        steps=steps,
        rows=row.rows,
        code_version=row.code_version,
        run_id=row.run_id,
        at=row.at,
        made_from=None if row.made_from is None else tuple(sorted(row.made_from)),
    )


def _loads(connection: sa.Connection, runs: set[str]) -> dict[tuple[str, str], str]:
    """(run, raw table) -> what it loaded."""
    table = ml_table_loads
    return {
        (
            row.run_id,
            row.table_name,
        ): f"{row.source} ({row.delivered} rows delivered, {row.rejected} rejected)"
        for row in connection.execute(
            sa.select(table).where(table.c.run_id.in_(runs), table.c.status == "loaded")
        )
    }


def _with_files(connection: sa.Connection, found: Trace) -> Trace:
    """``found`` with the files of the deliveries among its sources, before its other records."""
    table = ml_data_versions
    files: list[TracedRecord] = []
    for each in found.sources:
        if each.asset != _DELIVERY:
            continue
        recorded = connection.scalar(
            sa.select(table.c.metadata["told"]).where(
                table.c.asset == each.asset, table.c.digest == each.digest, table.c.run_id == each.run_id
            )
        )
        listed = from_plain(dict(recorded or []).get("files"))
        if isinstance(listed, Table):
            files += [
                TracedRecord(
                    what="file",
                    name=str(name),
                    detail=f"{form}, {size} bytes, digest {digest}",
                    at=each.at,
                    run_id=each.run_id,
                )
                for name, form, size, _, digest in listed.rows
            ]
    return found.model_copy(update={"records": (*files, *found.records)})


def _keys(made_from: Mapping[str, Mapping[str, str]]) -> list[Key]:
    return [(asset, partition, digest) for asset, of in made_from.items() for partition, digest in of.items()]


def _key(version: TracedVersion) -> Key:
    return version.asset, version.partition, version.digest


def _named(key: Key) -> str:
    return f"{key[0]} [{key[1]}]" if key[1] else key[0]


def _versions_table(versions: Sequence[TracedVersion]) -> Table:
    together: dict[tuple[int, str], list[TracedVersion]] = {}
    for each in versions:
        together.setdefault((each.steps, each.asset), []).append(each)
    rows = []
    for (steps, asset), those in together.items():
        several = len(those) > 1
        digest = (
            ledger.combined_digest({each.partition: each.digest for each in those})
            if several
            else those[0].digest
        )
        inputs = sorted({name for each in those for name in each.made_from or ()})
        unrecorded = any(each.made_from is None for each in those)
        loads = list(dict.fromkeys(each.load for each in those if each.load))
        rows.append(
            (
                *(steps, asset, f"{len(those)} partitions" if several else those[0].partition, digest),
                *(
                    _minute(max(each.at for each in those)),
                    ", ".join(sorted({str(each.run_id) for each in those})),
                ),
                "; ".join(("not recorded" if unrecorded else ", ".join(inputs), *loads)),
            )
        )
    return Table(("steps", "asset", "partition", "digest", "made at", "run", "made from"), rows)


def _minute(at: dt.datetime | None) -> str | None:
    return None if at is None else f"{at:%Y-%m-%d %H:%M}"


__all__ = ["Trace", "TracedRecord", "TracedVersion", "trace"]
