"""The dossier of a version: what was made, measured and decided, as one page for people and one JSON for programs.

It is composed of what the stages have recorded about exactly the values that the version was made from; nothing is
computed anew. What was not recorded is said to be missing, with the reason.
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict

from e2i_dagster.config.policy import Policy
from e2i_dagster.config.scope import ScopeSpec
from e2i_dagster.display import Figure, Table, Words, from_plain
from e2i_dagster.errors import UnavailableError
from e2i_dagster.policy_files.environment import state_folder
from e2i_dagster.registry.evidence import logged_file
from e2i_dagster.registry.history import history_table, stage_history
from e2i_dagster.registry.mlflow_runs import silence_telemetry
from e2i_dagster.registry.tripod import ITEMS, MODEL_CARD, ReportingItem
from e2i_dagster.registry.versions import RegisteredVersion
from e2i_dagster.reports import Section, html_page
from e2i_dagster.splits.seal import seal_openings
from e2i_dagster.tables.description.control import ml_data_versions
from e2i_dagster.tables.description.models import ml_shap_analyses, ml_training_runs
from e2i_dagster.tables.description.monitoring import ml_drift_history
from e2i_dagster.tables.description.quality import ml_gate_verdicts, ml_gate_waivers
from e2i_dagster.tables.description.serving import ml_deployments, ml_shadow_comparisons

#: Version of the JSON's schema (docs/dossier.schema.json).
SCHEMA_VERSION = "1.0"
#: Recorded values that are about one execution or lie on one machine.
_NOT_SHOWN = {"seconds", "report_page", "dossier", "trend", "heat_map", "columns"}


class DossierItem(BaseModel):
    """One value, text, table or figure of a section; a figure is in the page, here are its words.

    Attributes:
        rows: of a table, one list for each row; an interval is a list of two numbers, a value with its interval one of
            three.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    kind: Literal["value", "text", "table", "figure"]
    value: str | float | int | bool | None = None
    text: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[Any, ...], ...] = ()


class DossierSection(BaseModel):
    """One section; ``missing`` with the reason when nothing was recorded.

    Attributes:
        source: the recorded values it is taken from: asset, partition and digest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    title: str
    state: Literal["answered", "missing"]
    reason: str = ""
    source: str = ""
    items: tuple[DossierItem, ...] = ()


class ChecklistItem(BaseModel):
    """One reporting item: answered by sections of the dossier, or missing with the reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: str
    topic: str
    asks: str
    state: Literal["answered", "missing"]
    sections: tuple[str, ...] = ()
    reason: str = ""


class Dossier(BaseModel):
    """Everything about one version. The JSON schema is published as docs/dossier.schema.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal["1.0"] = SCHEMA_VERSION
    model: str
    version: str
    stage: str
    model_digest: str
    written_at: dt.datetime
    simulated: bool
    sections: tuple[DossierSection, ...]
    tripod_ai: tuple[ChecklistItem, ...]
    model_card: tuple[ChecklistItem, ...]


class WrittenDossier(BaseModel):
    """A dossier and where it was written."""

    model_config = ConfigDict(frozen=True)

    dossier: Dossier
    html: Path
    json_file: Path


_Content = dict[str, Any]


class _Recorded:
    """What stages have recorded about the values a version was made from."""

    def __init__(
        self, connection: sa.Connection, digests: Mapping[str, str], until: dt.datetime | None
    ) -> None:
        self._connection = connection
        self._digests = digests
        self._until = until

    def of(self, asset: str, partition: str | None) -> tuple[_Content, str] | None:
        """What was recorded of the version with the known digest, else of the newest before the model was made."""
        table = ml_data_versions
        query = (
            sa.select(table.c.digest, table.c.metadata)
            .where(table.c.asset == asset, table.c.partition.is_not_distinct_from(partition))
            .order_by(table.c.version_id.desc())
            .limit(1)
        )
        if asset in self._digests:
            query = query.where(table.c.digest == self._digests[asset])
        elif self._until is not None:
            query = query.where(table.c.at <= self._until)
        row = self._connection.execute(query).one_or_none()
        if row is None:
            return None
        recorded = {
            name: from_plain(value)
            for name, value in row.metadata.get("told", [])
            if name not in _NOT_SHOWN and value is not None
        }
        return recorded, f"{asset}{f' [{partition}]' if partition else ''}, digest {row.digest}"


def compose_dossier(
    engine: sa.Engine, version: RegisteredVersion, policy: Policy, *, explained: bytes | None = None
) -> tuple[Dossier, list[Section]]:
    """The dossier of ``version``, and the same as the sections of a page, with their figures.

    Args:
        explained: PNG of the explanation, as it was logged.
    """
    scope = policy.scopes.get(version.scope or "")
    with engine.connect() as connection:
        of_version = ml_training_runs.c.mlflow_run_id == version.run_id
        row = connection.execute(sa.select(ml_training_runs).where(of_version)).mappings().one_or_none()
        run: Mapping[str, Any] | None = None if row is None else {str(name): row[name] for name in row}
        digests = {} if run is None else dict(run["data_digests"])
        recorded = _Recorded(connection, digests, None if run is None else run["completed_at"])
        parts = list(_parts(connection, recorded, version, scope, run, explained))
    sections = tuple(_section(*part) for part in parts)
    answered = {section.key for section in sections if section.state == "answered"}
    titles = {section.key: section.title for section in sections}
    dossier = Dossier(
        model=version.name,
        version=version.version,
        stage=version.stage,
        model_digest=version.model_digest,
        written_at=dt.datetime.now(dt.UTC),
        simulated=any(event.simulated_days for event in stage_history(engine, version.name, version.version)),
        sections=sections,
        tripod_ai=tuple(_checked(item, answered) for item in ITEMS),
        model_card=tuple(_checked(item, answered) for item in MODEL_CARD),
    )
    page = [
        Section(
            title,
            [*([reason] if reason else []), *_drawn(content), *([f"Source: {source}"] if source else [])],
        )
        for _, title, content, reason, source in parts
    ]
    page += [
        Section("Model card", [_checklist(dossier.model_card, titles)]),
        Section(
            "TRIPOD+AI", ["Collins et al., BMJ 2024;385:e078378.", _checklist(dossier.tripod_ai, titles)]
        ),
    ]
    return dossier, page


def write_dossier(
    engine: sa.Engine,
    version: RegisteredVersion,
    policy: Policy,
    *,
    tracking_uri: str,
    folder: Path | None = None,
) -> WrittenDossier:
    """Write the page and the JSON, and attach both to the version's MLflow run (folder ``dossier``).

    Args:
        folder: by default ``reports/dossiers`` in the state folder.

    Raises:
        UnavailableError: the folder cannot be written to, or the tracking store does not answer.
    """
    silence_telemetry()
    import mlflow
    from mlflow.exceptions import MlflowException

    explained = logged_file(version, "figures/shap_summary.png", tracking_uri=tracking_uri)
    dossier, sections = compose_dossier(engine, version, policy, explained=explained)
    folder = folder or state_folder() / "reports" / "dossiers"
    note = " Days in a stage were simulated: this is no evidence for use." if dossier.simulated else ""
    page = html_page(
        f"Dossier of {version.name} version {version.version}",
        sections,
        subtitle=f"Stage {version.stage}; written {dossier.written_at:%Y-%m-%d %H:%M} UTC.{note}",
    )
    stem = f"{version.name}-{version.version}"
    html, document = folder / f"{stem}.html", folder / f"{stem}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        html.write_text(page, "utf-8")
        document.write_text(dossier.model_dump_json(indent=1), "utf-8")
    except OSError as error:
        raise UnavailableError(
            f"{folder} cannot be written to ({error.strerror}).",
            file=folder,
            remedy="Name another folder with --out.",
        ) from None
    client = mlflow.MlflowClient(tracking_uri=tracking_uri)
    try:
        for path in (html, document):
            client.log_artifact(version.run_id, str(path), "dossier")
    except (MlflowException, OSError) as error:
        raise UnavailableError(
            f"The dossier is written to {html}, but not attached to MLflow run {version.run_id} "
            f"({type(error).__name__}).",
            file=html,
            field="run_id",
            value=version.run_id,
            remedy="Check that the tracking store runs (`e2i status`) and has the run, then write it again.",
        ) from None
    return WrittenDossier(dossier=dossier, html=html, json_file=document)


def dossier_schema() -> str:
    """The JSON schema of the dossier, as it is published."""
    return json.dumps(Dossier.model_json_schema(), indent=1, sort_keys=True) + "\n"


_Part = tuple[str, str, _Content, str, str]


def _parts(
    connection: sa.Connection,
    recorded: _Recorded,
    version: RegisteredVersion,
    scope: ScopeSpec | None,
    run: Mapping[str, Any] | None,
    explained: bytes | None,
) -> Iterable[_Part]:
    """Key, title, content, reason (when there is none) and source of each section, in order."""
    key = version.scope or ""
    yield (
        "identity",
        "Identity",
        {
            "model": version.name,
            "version": version.version,
            "stage": version.stage,
            "since": version.since.isoformat(timespec="seconds"),
            "model digest": version.model_digest,
            "MLflow run": version.run_id,
            **(
                {}
                if run is None
                else {"algorithm": run["algorithm"], "trained": run["completed_at"].isoformat()}
            ),
        },
        "",
        "MLflow Model Registry",
    )
    if scope is None:
        yield _absent("protocol", "Protocol", f"the scope {key!r} is not in the configuration any more")
    else:
        changed = version.scope_digest != scope.digest()
        yield (
            "protocol",
            "Protocol",
            {
                "title": scope.title,
                "objective": scope.business_objective,
                "question": Words(scope.sentences(), "list"),
                "smallest sample": f"{scope.minimum_labelled:,} labelled patients",
                "definition": scope.digest()
                + (f" now, {version.scope_digest} when the version was judged" if changed else ""),
            },
            "",
            f"config/scopes/{key}.yaml",
        )
    cohort = None if scope is None else scope.cohort
    yield _of_stage(recorded, "participants", "Participants (CONSORT)", "cohort", cohort)
    yield _data(connection, run)
    yield _quality(connection, run)
    yield _of_stage(recorded, "features", "Predictors", "feature_selection", key)
    yield _splits(connection, recorded, key)
    yield _of_stage(recorded, "tuning", "Tuning", "hyperparameters", key)
    yield _of_stage(recorded, "training", "Model and calibration", "trained_model", key)
    yield from _performance(recorded, key)
    yield _explanation(connection, version, explained)
    yield _absent(
        "external_validation",
        "External validation",
        "it is no part of the dossier; `e2i validate` measures and keeps it",
    )
    yield _drift(connection, run, version)
    yield _deployments(connection, version)
    yield _decisions(connection, version)


def _absent(key: str, title: str, reason: str) -> _Part:
    return key, title, {}, f"Missing: {reason}.", ""


def _of_stage(recorded: _Recorded, key: str, title: str, asset: str, partition: str | None) -> _Part:
    found = recorded.of(asset, partition)
    if found is None:
        return _absent(
            key, title, f"nothing is recorded of {asset} for the values this version was made from"
        )
    content, source = found
    return key, title, content, "", source


def _performance(recorded: _Recorded, scope: str) -> Iterable[_Part]:
    """Performance of all patients, and apart from it that of subgroups."""
    key, title, content, reason, source = _of_stage(
        recorded, "performance", "Performance, with intervals and calibration", "evaluation", scope
    )
    yield key, title, {name: value for name, value in content.items() if name != "subgroups"}, reason, source
    if "subgroups" in content:
        yield "subgroups", "Subgroups", {"subgroups": content["subgroups"]}, "", source
    else:
        yield _absent("subgroups", "Subgroups", "no performance by groups was measured for this version")


def _data(connection: sa.Connection, run: Mapping[str, Any] | None) -> _Part:
    if run is None or not run["data_digests"]:
        return _absent("data", "Data versions", "the training run has no digests of its data")
    digests = Table(("value", "digest"), sorted(run["data_digests"].items()))
    features = Words(run["feature_names"], "list")
    return "data", "Data versions", {"digests": digests, "features": features}, "", "ml_training_runs"


def _quality(connection: sa.Connection, run: Mapping[str, Any] | None) -> _Part:
    table = ml_gate_verdicts
    query = sa.select(
        table.c.table_name, table.c.verdict, sa.func.count(), sa.func.max(table.c.judged_at)
    ).group_by(table.c.table_name, table.c.verdict)
    if run is not None:
        query = query.where(table.c.judged_at <= run["completed_at"])
    rows = [
        (name, verdict, count, at)
        for name, verdict, count, at in connection.execute(query.order_by(table.c.table_name))
    ]
    if not rows:
        return _absent(
            "quality", "Quality of the data", "no verdict of the quality gate is recorded before training"
        )
    names = ("table_name", "partition", "rule_id", "reason", "waived_by", "expires_at")
    waivers = connection.execute(sa.select(*(ml_gate_waivers.c[name] for name in names))).all()
    content = {
        "verdicts of the gate before training": Table(("table", "verdict", "parts", "last judged"), rows),
        "waivers": Table(
            ("table", "part", "rule", "reason", "by", "until"), [tuple(waiver) for waiver in waivers]
        ),
    }
    return "quality", "Quality of the data", content, "", "ml_gate_verdicts, ml_gate_waivers"


def _splits(connection: sa.Connection, recorded: _Recorded, scope: str) -> _Part:
    _, title, content, reason, source = _of_stage(recorded, "splits", "Splits and seals", "splits", scope)
    openings = seal_openings(connection, scope)
    if openings:
        seals = Words([f"{opening.opened_at:%Y-%m-%d}: {opening.words()}" for opening in openings], "list")
        content = {**content, "seals opened": seals}
        reason, source = "", ", ".join(filter(None, (source, "ml_seal_openings")))
    return "splits", title, content, reason, source


def _explanation(connection: sa.Connection, version: RegisteredVersion, picture: bytes | None) -> _Part:
    table = ml_shap_analyses
    row = (
        connection.execute(
            sa.select(table)
            .where(table.c.model_digest == version.model_digest, table.c.analysis_type == "global")
            .order_by(table.c.computed_at.desc())
            .limit(1)
        )
        .mappings()
        .one_or_none()
    )
    if row is None:
        return _absent("explanation", "Explanation", "no explanation of this model is recorded")
    importance = sorted(row["global_importance"].items(), key=lambda item: -abs(item[1]))
    content: _Content = {
        "method": row["computation_method"],
        "patients": row["sample_size"],
        "split": row["data_split"],
        "in words": Words([row["natural_language_explanation"] or ""]),
        "importance": Table(("feature", "mean absolute SHAP value"), importance),
    }
    if picture is not None:
        content["summary"] = Figure.png(picture, "SHAP values by feature")
    return "explanation", "Explanation", content, "", "ml_shap_analyses"


def _drift(connection: sa.Connection, run: Mapping[str, Any] | None, version: RegisteredVersion) -> _Part:
    table = ml_drift_history
    rows = connection.execute(
        sa.select(table.c.day, table.c.severity, sa.func.count())
        .where(table.c.model_id == f"{version.name}/{version.version}")
        .group_by(table.c.day, table.c.severity)
        .order_by(table.c.day.desc())
        .limit(60)
    ).all()
    content: _Content = {}
    if run is not None and "training_frame" in run["data_digests"]:
        content["reference"] = f"training frame, digest {run['data_digests']['training_frame']}"
    if rows:
        content["tests by day"] = Table(("day", "severity", "tests"), [tuple(row) for row in rows])
    if not content:
        return _absent("drift", "Drift reference", "neither a training frame nor a drift test is recorded")
    return "drift", "Drift reference", content, "", "ml_training_runs, ml_drift_history"


def _deployments(connection: sa.Connection, version: RegisteredVersion) -> _Part:
    of_version = (
        ml_deployments.c.model_name == version.name,
        ml_deployments.c.model_version == version.version,
    )
    names = ("environment", "endpoint_name", "status", "deployed_at", "deactivated_at", "deployed_by")
    rows = connection.execute(
        sa.select(*(ml_deployments.c[name] for name in names))
        .where(*of_version)
        .order_by(ml_deployments.c.deployed_at)
    ).all()
    if not rows:
        return _absent("deployments", "Deployments", "this version was never deployed")
    table = ml_shadow_comparisons
    sums = ("requests", "left_out", "failed", "compared", "same_class")
    mirrored = connection.execute(
        sa.select(
            table.c.source_version,
            *(sa.func.sum(table.c[name]) for name in sums),
            sa.func.max(table.c.largest_difference),
        )
        .where(table.c.model_name == version.name, table.c.shadow_version == version.version)
        .group_by(table.c.source_version)
    ).all()
    content: _Content = {
        "deployments": Table(
            ("slot", "service", "status", "from", "until", "by"), [tuple(row) for row in rows]
        ),
        "mirrored requests in slot shadow": Table(
            (
                "beside version",
                "requests",
                "left out",
                "failed",
                "compared",
                "same class",
                "largest difference",
            ),
            [tuple(row) for row in mirrored],
            empty="No request was mirrored to it.",
        ),
    }
    return "deployments", "Deployments", content, "", "ml_deployments, ml_shadow_comparisons"


def _decisions(connection: sa.Connection, version: RegisteredVersion) -> _Part:
    events = stage_history(connection, version.name, version.version)
    if not events:
        return _absent("approvals", "Promotions and approvals", "the history has nothing about this version")
    return (
        "approvals",
        "Promotions and approvals",
        {"history": history_table(events)},
        "",
        "ml_model_stage_history",
    )


def _section(key: str, title: str, content: _Content, reason: str, source: str) -> DossierSection:
    return DossierSection(
        key=key,
        title=title,
        state="answered" if content else "missing",
        reason=reason,
        source=source,
        items=tuple(_item(name, value) for name, value in content.items()),
    )


def _item(name: str, value: Any) -> DossierItem:
    match value:
        case Table():
            rows = tuple(tuple(row) for row in value.rows)
            return DossierItem(name=name, kind="table", columns=tuple(value.columns), rows=rows)
        case Figure():
            return DossierItem(name=name, kind="figure", text=(value.alt,))
        case Words():
            return DossierItem(name=name, kind="text", text=tuple(value.parts))
        case str() | bool() | int() | float() | None:
            return DossierItem(name=name, kind="value", value=value)
        case _:
            return DossierItem(name=name, kind="value", value=str(value))


def _drawn(content: _Content) -> list[Any]:
    """The content for the page: single values in one table, the rest below, each under its name."""
    large = {name: value for name, value in content.items() if isinstance(value, Table | Figure | Words)}
    single = [(name.replace("_", " "), value) for name, value in content.items() if name not in large]
    drawn: list[Any] = [Table(("what", "value"), single)] if single else []
    for name, value in large.items():
        drawn += [f"{name.replace('_', ' ').capitalize()}:", value]
    return drawn


def _checked(item: ReportingItem, answered: set[str]) -> ChecklistItem:
    there = tuple(key for key in item.sections if key in answered)
    reason = item.missing
    if item.sections and not there:
        reason = f"The section {', '.join(item.sections)} is missing."
    return ChecklistItem(
        number=item.number,
        topic=item.topic,
        asks=item.asks,
        state="answered" if there else "missing",
        sections=there,
        reason="" if there else reason,
    )


def _checklist(items: Sequence[ChecklistItem], titles: Mapping[str, str]) -> Table:
    return Table(
        ("item", "topic", "asks for", "answer"),
        [
            (
                item.number,
                item.topic,
                item.asks,
                "; ".join(titles[key] for key in item.sections)
                if item.sections
                else f"Missing. {item.reason}",
            )
            for item in items
        ],
    )
