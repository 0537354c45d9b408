"""Promotion on a real registry, warehouse and services: what is refused, and the whole way to production and back."""

from __future__ import annotations

import datetime as dt
import logging
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import mlflow
import pytest
import sqlalchemy as sa
from clones import clone
from model_rows import patients, rows, visible
from services import one_worker

from e2i_dagster.config.algorithms import AlgorithmsPolicy
from e2i_dagster.config.policy import current_policy
from e2i_dagster.config.registry import RegistryPolicy
from e2i_dagster.config.scope import SuccessCriteria, default_scope
from e2i_dagster.config.serving import MirrorPolicy
from e2i_dagster.display import Table, to_plain
from e2i_dagster.errors import ConfigError, DamagedError, InputError, UnavailableError, VerdictError
from e2i_dagster.policy_files.actors import Actor
from e2i_dagster.registry.dossier import Dossier, dossier_schema, write_dossier
from e2i_dagster.registry.evidence import compare_versions, find_version, read_reference
from e2i_dagster.registry.history import StageEvent, open_proposals, stage_history
from e2i_dagster.registry.stages import Evidence
from e2i_dagster.registry.training_runs import register_and_stage, track_training
from e2i_dagster.registry.versions import set_stage, version_at
from e2i_dagster.serving.client import score_answerable
from e2i_dagster.serving.endpoints import endpoints, stop_all
from e2i_dagster.serving.logged import wait_until_logged
from e2i_dagster.serving.mirror import mirror
from e2i_dagster.serving.promotion import Registrar, archive_superseded
from e2i_dagster.splits.rows import SealedRows
from e2i_dagster.tables.description.control import ml_data_versions
from e2i_dagster.tables.description.models import ml_model_stage_history
from e2i_dagster.tables.description.serving import ml_shadow_comparisons
from e2i_dagster.training import evaluate, train
from resources.mlflow import MlflowResource

SCOPE = default_scope()
NAME = SCOPE.model_name
WHY = "as the test asks"
DEFAULTS = dict(AlgorithmsPolicy.load().algorithm("LogisticRegression").defaults)


@dataclass(frozen=True)
class Office:
    """A registry with two staged versions, and who acts on it."""

    engine: sa.Engine
    uri: str
    state: Path

    def __call__(self, name: str = "ann", how: Any = "self-declared", **changes: Any) -> Registrar:
        asked = Registrar(
            engine=self.engine,
            tracking_uri=self.uri,
            actor=Actor(name, how),
            policy=current_policy(),
            frames=lambda scope: patients(80, 5),
            registry=RegistryPolicy.load(),
            serving=one_worker(),
            state=self.state,
        )
        return replace(asked, **changes)

    def put(self, version: str, stage: Any) -> None:
        """Give a version a stage without asking the rules: what came before is not what is tested."""
        found = find_version(NAME, version, tracking_uri=self.uri)
        evidence = Evidence(
            model_digest=found.model_digest, problem_type="", auc={}, criteria_met=True, proposed_by="test"
        )
        set_stage(found, stage, evidence, tracking_uri=self.uri)


def add_version(engine: sa.Engine, store: MlflowResource, seed: int) -> None:
    seen = visible(rows(500, seed), rows(200, seed + 1))
    model = train(seen, algorithm="LogisticRegression", parameters=DEFAULTS)
    criteria = SuccessCriteria.model_validate({"min_auc": 0.6})
    sealed = SealedRows(lambda candidate: rows(300, 90))
    evaluation = evaluate(model, seen, sealed, criteria=criteria)
    context = SimpleNamespace(
        log=logging.getLogger("test"), run=SimpleNamespace(run_id=f"run {seed}", job_name="scope_pipeline")
    )
    with store.run(context, SCOPE):
        tracked = track_training(
            engine, model, evaluation, scope=SCOPE, digests={"splits": "same"}, created_by="test"
        )
    register_and_stage(
        engine,
        model,
        evaluation,
        scope=SCOPE,
        cohort_approved=True,
        tracked=tracked,
        proposed_by="test",
        tracking_uri=store.uri(),
    )


@pytest.fixture(scope="module")
def registry_files(tmp_path_factory: pytest.TempPathFactory, template: str) -> Iterator[tuple[Path, str]]:
    """An MLflow store and a warehouse with two versions in stage staging; each test gets copies."""
    from e2i_dagster.database import connection

    folder = tmp_path_factory.mktemp("registry")
    name, url = clone(template)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E2I_DATABASE_URL", url)
        store = MlflowResource(
            tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_root=str(folder / "artifacts")
        )
        for seed in (0, 20):
            add_version(connection.engine("owner"), store, seed)
        connection.dispose()
    yield folder, name
    connection.drop_database(name)


@pytest.fixture
def office(
    registry_files: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Office]:
    from e2i_dagster.database import connection

    folder, template = registry_files
    shutil.copy(folder / "mlflow.db", tmp_path / "mlflow.db")
    name, url = clone(template)
    monkeypatch.setenv("E2I_DATABASE_URL", url)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    before = mlflow.get_tracking_uri()
    yield Office(connection.engine("owner"), uri, tmp_path / "state")
    mlflow.set_tracking_uri(before)
    stop_all(tmp_path / "state")
    connection.dispose()
    for variable in ("E2I_DATABASE_URL", "E2I_ENVIRONMENT"):
        monkeypatch.delenv(variable, raising=False)
    connection.drop_database(name)


def events(office: Office, version: str | None = None) -> tuple[StageEvent, ...]:
    return stage_history(office.engine, NAME, version)


def test_the_pipeline_records_how_a_version_came_to_staging(office):
    (registered, promoted) = events(office, "2")
    assert (registered.action, promoted.action, promoted.to_stage) == ("registered", "promoted", "staging")
    assert promoted.evidence is not None and promoted.evidence.auc["test"] > 0.7


@pytest.mark.parametrize(
    ("asked", "error", "said"),
    [
        ({"model": "e2i-none"}, InputError, r"No model 'e2i-none' is registered\. Use one of: e2i-"),
        ({"version": "9"}, InputError, r"has no version 9\. It has: 1 \(staging\), 2 \(staging\)"),
        (
            {"to_stage": "production", "version": "2"},
            VerdictError,
            "the next stage is shadow, not production",
        ),
        ({"to_stage": "archived"}, InputError, "No version is promoted to stage 'archived'"),
        ({"simulated_days": -1}, InputError, "-1 simulated days"),
    ],
)
def test_a_wrong_request_is_refused_and_changes_nothing(office, asked, error, said):
    before = events(office)
    with pytest.raises(error, match=said):
        office().promote(**{"model": NAME, "to_stage": "shadow", "reason": WHY} | asked)
    assert events(office) == before
    assert version_at(NAME, "shadow", tracking_uri=office.uri) is None


def test_missing_evidence_and_that_of_another_version_are_refused(office):
    client = mlflow.MlflowClient(tracking_uri=office.uri, registry_uri=office.uri)
    runs = {str(one.version): one.run_id for one in client.search_model_versions(f"name='{NAME}'")}
    files = {
        version: Path(client.get_run(run).info.artifact_uri.removeprefix("file://")) / "evaluation.json"
        for version, run in runs.items()
    }
    kept = files["2"].read_bytes()
    try:
        files["2"].unlink()
        with pytest.raises(VerdictError, match="version 2 has no measured evidence") as missing:
            office().promote(NAME, "shadow", version="2", reason=WHY)
        assert missing.value.field == "evidence"
        shutil.copy(files["1"], files["2"])
        with pytest.raises(VerdictError, match=r"is about the model .*; .* version 2 is "):
            office().promote(NAME, "shadow", version="2", reason=WHY)
    finally:
        files["2"].write_bytes(kept)


def test_evidence_under_another_definition_of_the_scope_is_stale(office):
    changed = SCOPE.model_copy(update={"source_lag_days": SCOPE.source_lag_days + 1})
    policy = replace(current_policy(), scopes={**current_policy().scopes, SCOPE.key: changed})
    with pytest.raises(VerdictError, match=r"definition of scope .* has changed since it was judged"):
        office(policy=policy).promote(NAME, "shadow", reason=WHY)
    gone = replace(policy, scopes={})
    with pytest.raises(VerdictError, match="is not in the configuration any more"):
        office(policy=gone).promote(NAME, "shadow", reason=WHY)


def propose(office: Office, version: str = "2") -> Any:
    office.put(version, "shadow")
    return office("ann").promote(NAME, "production", version=version, reason=WHY, simulated_days=7)


def test_a_proposal_waits_for_a_second_person_and_exactly_its_evidence(office):
    outcome = propose(office)
    assert (outcome.state, outcome.simulated_days) == ("proposed", 7)
    assert version_at(NAME, "production", tracking_uri=office.uri) is None
    with pytest.raises(VerdictError, match="second person must approve it"):
        office(" ANN").approve(NAME, reason=WHY)
    with pytest.raises(VerdictError, match="you name 0123"):
        office("bob").approve(NAME, reason=WHY, evidence="0123")
    changed = SCOPE.model_copy(update={"source_lag_days": SCOPE.source_lag_days + 1})
    policy = replace(current_policy(), scopes={**current_policy().scopes, SCOPE.key: changed})
    with pytest.raises(VerdictError, match="has changed since it was judged"):
        office("bob", policy=policy).approve(NAME, reason=WHY)
    rejected = office("bob").reject(NAME, reason="not convincing")
    assert rejected.state == "rejected"
    with pytest.raises(InputError, match=r"No promotion of .* is proposed"):
        office("bob").approve(NAME, reason=WHY)
    assert [one.action for one in events(office, "2")][-2:] == ["proposed", "rejected"]
    assert events(office, "2")[-1].evidence_digest == outcome.evidence_digest


def test_an_approval_of_evidence_that_changed_since_the_proposal_is_refused(office):
    propose(office)
    assert [one.model_version for one in open_proposals(events(office))] == ["2"]
    draft = replace(
        current_policy(),
        cohorts={
            **current_policy().cohorts,
            SCOPE.cohort: current_policy().cohorts[SCOPE.cohort].model_copy(update={"status": "draft"}),
        },
    )
    with pytest.raises(VerdictError, match="the proposal was made on"):
        office("bob", policy=draft).approve(NAME, reason=WHY)


def test_two_at_once_are_one_and_a_refusal(office):
    registrar = office()
    with registrar._alone(NAME), pytest.raises(UnavailableError, match="is under way"):
        office("bob").promote(NAME, "shadow", reason=WHY, dry_run=True)
    assert office("bob").promote(NAME, "shadow", reason=WHY, dry_run=True).state == "planned"


def test_production_takes_no_simulated_days_and_nobody_unknown(office, monkeypatch):
    propose(office)
    monkeypatch.setenv("E2I_ENVIRONMENT", "production")
    with pytest.raises(ConfigError, match="7 simulated days: in production"):
        office("ann").promote(NAME, "production", reason=WHY, simulated_days=7)
    with pytest.raises(VerdictError, match="needs an authenticated person"):
        office("bob").approve(NAME, reason=WHY)
    with pytest.raises(ConfigError, match="7 simulated days"):
        office("bob", "authenticated").approve(NAME, reason=WHY)


def test_a_superseded_version_is_archived_by_the_rule_and_one_in_use_is_not(office):
    month_ago = dt.datetime.now(dt.UTC) - dt.timedelta(days=31)
    client = mlflow.MlflowClient(tracking_uri=office.uri, registry_uri=office.uri)
    for version in ("1", "2"):
        client.set_model_version_tag(NAME, version, "e2i.superseded_since", month_ago.isoformat())
    done = archive_superseded(NAME, office.engine, registry=RegistryPolicy.load(), tracking_uri=office.uri)
    assert done == ("1",), "version 2 has the alias staging"
    last = events(office, "1")[-1]
    assert (last.action, last.authentication) == ("archived", "automatic")
    with pytest.raises(VerdictError, match="An archived version does not come back"):
        office().promote(NAME, "shadow", version="1", reason=WHY)


def test_the_history_cannot_be_changed(office):
    statement = sa.update(ml_model_stage_history).values(actor="somebody else")
    with pytest.raises(sa.exc.DBAPIError, match="append-only"), office.engine.begin() as connection:
        connection.execute(statement)


def test_two_versions_beside_each_other(office):
    versions = [
        read_reference(one, current_policy(), tracking_uri=office.uri)
        for one in (f"{NAME}/1", f"{NAME}@staging")
    ]
    found = compare_versions(*versions, tracking_uri=office.uri)
    assert [one["version"] for one in found["versions"]] == [f"{NAME}/1", f"{NAME}/2"]
    assert found["same_patients"]
    row = next(one for one in found["metrics"].rows if one[:2] == ("test", "roc_auc"))
    assert row[4] == pytest.approx(row[3][0] - row[2][0])
    with pytest.raises(InputError, match="names no version"):
        read_reference(NAME, current_policy(), tracking_uri=office.uri)


def answered_by(url: str) -> str:
    """The version that answers; ``/health`` names the models."""
    return httpx.get(f"{url}/health", timeout=10).json()["models"][0]["model_id"]


def _scalar(engine: sa.Engine, query: sa.Select[Any]) -> Any:
    with engine.connect() as connection:
        return connection.scalar(query)


def test_the_whole_way_to_production_and_back(office: Office, monkeypatch: pytest.MonkeyPatch):
    first = propose(office, "1")
    live = office("bob").approve(NAME, reason="convincing", evidence=first.evidence_digest)
    assert (live.state, live.replaced, live.by) == ("promoted", None, "bob")
    assert answered_by(live.url) == f"{NAME}/1"
    propose(office, "2")
    second = office("bob").approve(NAME, reason="better")
    assert (second.replaced, second.url) == ("1", live.url)
    assert answered_by(live.url) == f"{NAME}/2"
    assert [one.slot for one in endpoints(office.state)] == ["production"]

    again = office("ann").promote(NAME, "production", version="2", reason=WHY)
    assert again.state == "unchanged"
    with pytest.raises(InputError, match="is in production now"):
        office("ann").rollback(NAME, to_version="2", reason=WHY)
    monkeypatch.setenv("E2I_ENVIRONMENT", "production")
    with pytest.raises(VerdictError, match="needs an authenticated person"):
        office("ann").rollback(NAME, reason=WHY)
    monkeypatch.delenv("E2I_ENVIRONMENT")

    planned = office("ann").rollback(NAME, reason=WHY, dry_run=True)
    assert (planned.state, planned.version) == ("planned", "1")
    back = office("ann").rollback(NAME, reason="answers are wrong")
    assert (back.state, back.version, back.replaced, back.warm) == ("rolled_back", "1", "2", True)
    assert back.seconds is not None and back.seconds < 1
    assert answered_by(live.url) == f"{NAME}/1"
    assert version_at(NAME, "production", tracking_uri=office.uri).version == "1"
    assert version_at(NAME, "1", tracking_uri=office.uri).superseded_since is None
    assert version_at(NAME, "2", tracking_uri=office.uri).superseded_since is not None
    assert [one.action for one in events(office)][-1] == "rolled_back"

    gone = find_version(NAME, "2", tracking_uri=office.uri)
    folder = Path(gone.files.location.removeprefix("file://"))
    aside = folder.with_name("aside")
    folder.rename(aside)
    try:
        with pytest.raises(DamagedError, match=f"model of {NAME} version 2 cannot be served"):
            office("ann").rollback(NAME, to_version="2", reason=WHY)
    finally:
        aside.rename(folder)
    assert answered_by(live.url) == f"{NAME}/1"

    office.put("2", "staging")
    moved = office("ann").promote(NAME, "shadow", version="2", reason=WHY)
    asked = patients(40, 7)
    since = dt.datetime.now(dt.UTC)
    answers, _ = score_answerable(live.url, asked, model_name=NAME)
    wait_until_logged(office.engine, answers)
    (row,) = mirror(
        office.engine,
        office.state,
        "classification-shadow",
        MirrorPolicy(every_seconds=1, most_rows=30),
        since,
        dt.datetime.now(dt.UTC),
    )
    assert (row["source_version"], row["shadow_version"]) == ("1", "2")
    assert (row["requests"], row["left_out"], row["compared"] + row["failed"]) == (
        len(answers),
        len(answers) - 30,
        30,
    )
    with office.engine.connect() as connection:
        logged = connection.scalar(sa.text("SELECT count(*) FROM ml_predictions WHERE model_version = '2'"))
    assert logged == 0, "answers to mirrored requests are not logged"
    # The process of the slot's supervisor looks at the same requests, all of them.
    table = ml_shadow_comparisons.c
    own = sa.select(table.compared).where(table.left_out == 0, table.requests >= len(answers))
    deadline = time.monotonic() + 60
    while (compared := _scalar(office.engine, own)) is None and time.monotonic() < deadline:
        time.sleep(0.5)
    assert compared == len(answers)
    beside, _ = score_answerable(moved.url, asked, model_name=NAME)
    joined = answers.set_index("patient_id").join(beside.set_index("patient_id"), rsuffix="_shadow")
    difference = (joined["prediction_value"] - joined["prediction_value_shadow"]).abs()
    assert 0 < row["largest_difference"] <= difference.max() + 1e-9


def test_a_dossier_is_one_page_and_one_json_that_say_what_is_missing(office: Office, tmp_path: Path):
    propose(office)
    found = find_version(NAME, "2", tracking_uri=office.uri)
    written = write_dossier(
        office.engine, found, current_policy(), tracking_uri=office.uri, folder=tmp_path / "out"
    )
    page = written.html.read_text("utf-8")
    assert len(page) < 2_000_000
    assert 'src="http' not in page and "<script" not in page and "<link" not in page
    dossier = Dossier.model_validate_json(written.json_file.read_bytes())
    assert (dossier.version, dossier.stage, dossier.simulated) == ("2", "shadow", True)
    states = {one.key: one for one in dossier.sections}
    assert states["approvals"].state == states["protocol"].state == states["data"].state == "answered"
    assert "no performance by groups" in states["subgroups"].reason
    assert states["participants"].reason.startswith("Missing: nothing is recorded of cohort")
    assert len({one.number for one in dossier.tripod_ai}) == len(dossier.tripod_ai) == 52
    assert all(bool(one.sections) != bool(one.reason) for one in (*dossier.tripod_ai, *dossier.model_card))
    client = mlflow.MlflowClient(tracking_uri=office.uri)
    assert len(client.list_artifacts(found.run_id, "dossier")) == 2


def test_the_dossier_has_the_subgroups_that_the_evaluation_recorded(office: Office, tmp_path: Path):
    table = Table(("subgroup", "level", "ROC-AUC"), [("gender", "F", (0.8, 0.7, 0.9))])
    recorded = [["accepted", True], ["subgroups", to_plain(table)]]
    row = {"asset": "evaluation", "partition": SCOPE.key, "digest": "e", "rows": 1}
    row |= {"at": dt.datetime(2020, 1, 1, tzinfo=dt.UTC), "metadata": {"told": recorded}}
    with office.engine.begin() as connection:
        connection.execute(ml_data_versions.insert().values(row))
    found = find_version(NAME, "2", tracking_uri=office.uri)
    written = write_dossier(
        office.engine, found, current_policy(), tracking_uri=office.uri, folder=tmp_path / "out"
    )
    sections = {section.key: section for section in written.dossier.sections}
    (item,) = sections["subgroups"].items
    assert (sections["subgroups"].state, item.rows) == ("answered", (("gender", "F", (0.8, 0.7, 0.9)),))
    assert [item.name for item in sections["performance"].items] == ["accepted"]
    fairness = next(item for item in written.dossier.tripod_ai if item.topic == "Fairness")
    assert fairness.state == "answered"


def test_the_published_schema_of_the_dossier_is_current():
    published = Path(__file__).resolve().parents[2] / "docs" / "dossier.schema.json"
    assert published.read_text("utf-8") == dossier_schema()
