"""The model of individual effects: fitted, judged, registered in a real MLflow store, answered by a real service."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa
from services import one_worker

from e2i_dagster.causal.model import fit_effect_model, why_not_fitted
from e2i_dagster.causal.registration import EffectModel, make_effect_model
from e2i_dagster.causal.study import CausalEstimates, study_effect
from e2i_dagster.config.scope import default_scope
from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.modelling.model_input import model_input
from e2i_dagster.registry import load_pipeline, version_at
from e2i_dagster.serving.active import health_of, models_at_stage, parity_samples
from e2i_dagster.serving.client import authorities, score
from e2i_dagster.serving.deployment import Deployment, deploy
from e2i_dagster.serving.endpoints import endpoints, stop_all
from e2i_dagster.serving.release import build_release
from e2i_dagster.tables.description.models import ml_model_registry, ml_training_runs
from e2i_dagster.versions.lake import value_digest
from resources.mlflow import MlflowResource

SCOPE = default_scope()
CONFOUNDERS = ["severity", "academic", "region"]


def patients(difference: float, rows: int = 1_600, seed: int = 5) -> pd.DataFrame:
    """Patients whose treatment adds ``difference`` to the probability in the south and nothing elsewhere."""
    draw = np.random.default_rng(seed)
    severity = draw.normal(size=rows)
    region = draw.choice(np.array(["south", "west"], dtype=object), rows)
    treated = draw.random(rows) < 1 / (1 + np.exp(-0.7 * severity))
    cate = np.where(region == "south", difference, 0.0)
    chance = np.clip(0.3 + 0.08 * severity, 0.05, 0.5) + cate * treated
    frame = pd.DataFrame(
        {
            "split": np.where(np.arange(rows) % 4 == 0, "validation", "train"),
            "severity": np.where(draw.random(rows) < 0.05, np.nan, severity),
            "academic": draw.random(rows) < 0.4,
            "region": region,
            "treated": treated,
            "label": (draw.random(rows) < chance).astype(int),
        }
    )
    frame.attrs["cate"] = cate
    return frame


@pytest.fixture(scope="module")
def policy(causal_policy):
    return causal_policy.model_copy(
        update={"refutation": causal_policy.refutation.model_copy(update={"repetitions": 3})}
    )


def studied(frame: pd.DataFrame, policy: Any) -> CausalEstimates:
    return study_effect(
        frame,
        question="What does it do?",
        treatment="treated",
        outcome="label",
        confounders=CONFOUNDERS,
        policy=policy,
    )


@pytest.fixture(scope="module")
def varied():
    return patients(0.4)


@pytest.fixture(scope="module")
def study(varied, policy):
    return studied(varied, policy)


@pytest.fixture(scope="module")
def fitted(varied, study, policy):
    return fit_effect_model(varied, study, policy=policy)


def test_effects_that_differ_are_found_and_every_criterion_is_met(fitted, varied):
    predicted = fitted.model.scores(varied)
    assert np.corrcoef(predicted, varied.attrs["cate"])[0, 1] > 0.8
    evaluation = fitted.evaluation
    assert evaluation.accepted, evaluation.reasons()
    assert {one.name for one in evaluation.criteria} == {"overlap", "refuters", "heterogeneity"}
    slope = evaluation.splits["validation"].metrics["calibration_slope"]
    assert 0 < slope.low < 1 < slope.high
    losses = evaluation.splits["train"].metrics
    assert losses["cross_fitted_loss_boosting"].value < losses["cross_fitted_loss_constant"].value
    assert evaluation.splits["validation"].metrics["qini"].low > 0
    assert 0 < evaluation.metric("validation", "policy_value") < 0.4
    assert "calibration_slope" in [row[0] for row in evaluation.to_metadata()["metrics"].rows]


def test_an_answer_carries_what_was_measured_among_patients_predicted_alike(fitted, varied):
    groups = fitted.served["effect_groups"]
    assert groups[0]["above"] is None
    assert groups[1]["above"] < groups[2]["above"]
    assert groups[-1]["lower"] < 0.4 < groups[-1]["upper"]
    assert groups[0]["lower"] < 0.0 < groups[0]["upper"]


def test_the_same_patients_give_the_same_model_and_stay_as_they_are(fitted, varied, study, policy):
    before = varied.copy(deep=True)
    assert fit_effect_model(varied, study, policy=policy).model.digest == fitted.model.digest
    pd.testing.assert_frame_equal(before, varied)


def test_validation_patients_have_no_part_in_the_model(fitted, varied, study, policy):
    """Their outcomes turned round change the judgement and not a digit of the predictions."""
    changed = varied.assign(
        label=np.where(varied["split"] == "validation", 1 - varied["label"], varied["label"])
    )
    other = fit_effect_model(changed, study, policy=policy)
    assert np.array_equal(other.model.scores(varied), fitted.model.scores(varied))
    assert not other.evaluation.accepted


def test_what_cannot_be_fitted_says_why(varied, study, policy):
    few = varied[(varied["split"] == "train") | (varied.index < 90)]
    assert "validation patients, of whom the smaller arm has" in why_not_fitted(few, study, policy)
    separated = studied(varied.assign(treated=varied["severity"].fillna(0) > 0), policy)
    assert "not estimable" in why_not_fitted(varied, separated, policy)
    assert "almost perfectly" in why_not_fitted(varied, separated, policy)
    with pytest.raises(InputError, match="no column 'split'"):
        why_not_fitted(varied.drop(columns="split"), study, policy)


def test_a_refuted_effect_is_not_accepted(varied, study, policy):
    broken = study.model_copy(
        update={
            "refutations": tuple(
                one.model_copy(update={"passed": one.passed and one.name != "placebo_treatment"})
                for one in study.refutations
            )
        }
    )
    judged = fit_effect_model(varied, broken, policy=policy).evaluation
    assert judged.reasons() == ("the average effect is refuted by placebo_treatment.",)


# On record and in service


@pytest.fixture(scope="module")
def warehouse(template: str) -> Iterator[sa.Engine]:
    from e2i_dagster.database import connection
    from e2i_dagster.database.server import DATABASE

    with connection._admin(connection._url("owner", DATABASE)) as admin:
        admin.exec_driver_sql(f"CREATE DATABASE e2i_effects TEMPLATE {template}")
    url = connection._text(connection._url("owner", "e2i_effects"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E2I_DATABASE_URL", url)
        yield connection.engine("owner")
        connection.dispose()
    connection.drop_database("e2i_effects")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mlflow")
    return MlflowResource(
        tracking_uri=f"sqlite:///{folder}/mlflow.db", artifact_root=str(folder / "artifacts")
    )


def made(frame, study, store, warehouse, policy, run_id, *, approved=True) -> EffectModel:
    run = SimpleNamespace(run_id=run_id, job_name="estimate_effects")
    with store.run(SimpleNamespace(log=logging.getLogger("test"), run=run), SCOPE):
        return make_effect_model(
            frame,
            study,
            engine=warehouse,
            scope=SCOPE,
            cohort_approved=approved,
            digests={"treated_patients": "abc"},
            actor="test",
            tracking_uri=store.uri(),
            policy=policy,
        )


@pytest.fixture(scope="module")
def null(store, warehouse, policy):
    frame = patients(0.0, rows=1_200, seed=8)
    return made(frame, studied(frame, policy), store, warehouse, policy, "null")


@pytest.fixture(scope="module")
def promoted(varied, study, store, warehouse, policy, null):
    # A draft cohort holds it back; the same model is promoted when the cohort is approved.
    draft = made(varied, study, store, warehouse, policy, "draft", approved=False)
    assert (draft.state, draft.version) == ("not_promoted", None)
    assert "cohort's definition is a draft" in draft.sentence()
    return made(varied, study, store, warehouse, policy, "promoted")


def test_a_null_is_on_record_and_not_in_the_registry(null, promoted, store, warehouse):
    import mlflow

    assert null.state == "not_promoted"
    assert null.version is None
    assert "effects are not shown to differ" in null.to_metadata()["reason"]
    with pytest.raises(VerdictError, match="not promoted: effects are not shown to differ"):
        null.require_promoted()
    run = mlflow.MlflowClient(tracking_uri=store.uri()).get_run(null.tracked.run_id)
    assert run.data.tags["e2i.accepted"] == "false"
    assert run.data.metrics["validation_calibration_slope"] == null.evaluation.metric(
        "validation", "calibration_slope"
    )
    with warehouse.connect() as connection:
        status = connection.execute(
            sa.select(ml_training_runs.c.status, ml_training_runs.c.error_message).where(
                ml_training_runs.c.mlflow_run_id == null.tracked.run_id
            )
        ).one()
    assert status.status == "rejected"
    assert "average effect" in status.error_message
    # The only version is that of the patients whose effects differ.
    assert version_at(SCOPE.effect_model_name, "2", tracking_uri=store.uri()) is None


def test_a_promoted_model_is_in_staging_under_its_own_name(promoted, fitted, varied, store, warehouse):
    assert promoted.state == "promoted"
    promoted.require_promoted()
    version = version_at(SCOPE.effect_model_name, "staging", tracking_uri=store.uri())
    assert version is not None
    assert version.model_digest == fitted.model.digest
    assert version_at(SCOPE.model_name, "staging", tracking_uri=store.uri()) is None
    pipeline = load_pipeline(version.uri)
    assert np.array_equal(
        pipeline.predict(model_input(varied, fitted.model.kinds)), fitted.model.scores(varied)
    )
    with warehouse.connect() as connection:
        row = connection.execute(sa.select(ml_model_registry)).mappings().one()
    assert (row["model_name"], row["algorithm"], row["stage"]) == (
        SCOPE.effect_model_name, "DRLearner", "staging",
    )  # fmt: skip
    again = EffectModel.model_validate_json(promoted.model_dump_json())
    assert value_digest(again) == value_digest(promoted)
    assert "e2i causal deploy" in promoted.sentence()


def test_the_check_tells_promoted_from_not(promoted, null):
    from assets.causal import effect_promoted

    assert effect_promoted(promoted).passed
    told = effect_promoted(null)
    assert not told.passed
    assert "effects are not shown to differ" in told.description


@pytest.fixture(scope="module")
def live(promoted, varied, store, warehouse, tmp_path_factory) -> Iterator[tuple[Deployment, Any]]:
    state = tmp_path_factory.mktemp("services")
    models = models_at_stage([SCOPE.model_name, SCOPE.effect_model_name], "staging", tracking_uri=store.uri())
    assert [one.problem_type for one in models] == ["causal"]
    release = build_release(models, service="causal", state=state, policy=one_worker())
    try:
        yield (
            deploy(
                release,
                stages={SCOPE.effect_model_name: "staging"},
                parity=parity_samples(models, lambda scope: varied, one_worker()),
                state=state,
                policy=one_worker(),
            ),
            state,
        )
    finally:
        stop_all(state)


def test_the_causal_service_answers_with_effects(live, fitted, varied, warehouse):
    deployment, state = live
    assert deployment.service == "causal"
    rows = varied.tail(300)
    answers = score(deployment.url, rows, id_column=None)
    assert np.allclose(answers["prediction"], fitted.model.scores(rows), atol=1e-9)
    assert np.corrcoef(answers["prediction"], varied.attrs["cate"][-300:])[0, 1] > 0.8
    south = answers[(rows["region"] == "south").to_numpy()]
    assert (south["measured_lower"] < south["measured_effect"]).all()
    assert south["measured_effect"].mean() > answers.drop(south.index)["measured_effect"].mean() + 0.15
    (endpoint,) = endpoints(state)
    assert (endpoint.service, endpoint.slot) == ("causal", "staging")
    assert SCOPE.effect_model_name in endpoint.example


def test_its_checks_pass_while_it_lives_and_fail_for_what_does_not_agree(live):
    from assets.causal import effect_parity
    from assets.serving import health_result

    deployment, state = live
    assert effect_parity(deployment).passed
    unproven = deployment.model_copy(update={"parity": ()})
    assert not effect_parity(unproven).passed
    assert health_of(deployment, endpoints(state)) == "healthy"
    serving: Any = SimpleNamespace(endpoints=lambda: endpoints(state))
    assert health_result(deployment, serving).passed
    replaced = deployment.model_copy(update={"bento_tag": "causal:other"})
    assert "replaced" in (health_result(replaced, serving).description or "")


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"features": {"severity": 1.0, "academic": 1.0}}, 422, "features.region"),
        ({"features": {"severity": "high", "academic": 1.0, "region": "west"}}, 422, "features.severity"),
        ({"features": {"severity": 1.0, "academic": None, "region": "west"}}, 422, "features.academic"),
        (
            {"features": {"severity": 1.0, "academic": 1.0, "region": "west", "treated": 1.0}},
            422,
            "features.treated",
        ),
        ({"features": {}, "model_name": "e2i-other"}, 404, "model_name"),
        ("no json", 400, None),
    ],
)
def test_wrong_requests_are_refused_by_field(live, body, status, field):
    deployment, _ = live
    given: dict[str, Any] = {"content": body} if isinstance(body, str) else {"json": body}
    answer = httpx.post(f"{deployment.url}/predict", **given, timeout=10, verify=authorities())
    assert answer.status_code == status
    if field is not None:
        assert field in {one["field"] for one in answer.json()["error"]["problems"]}


def test_one_patient_gets_effect_and_measured_interval(live):
    deployment, _ = live
    body = {"features": {"severity": None, "academic": 1.0, "region": "south"}}
    url = f"{deployment.url}/{SCOPE.effect_model_name}/predict"
    answer = httpx.post(url, json=body, timeout=10, verify=authorities()).json()
    assert len(answer["predictions"]) == 1
    (measured,) = answer["measured_effects"]
    assert set(measured) == {"effect", "lower", "upper"}
    assert answer["probabilities"] is None
    assert answer["_metadata"]["service"] == "causal"
