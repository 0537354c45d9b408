"""Seals: train and validation are free, test is opened for a candidate and counted, holdout after production."""

import uuid
from datetime import UTC, datetime

import pandas as pd
import pytest

from e2i_dagster.errors import InputError, VerdictError
from e2i_dagster.splits import Seal, SealedError, assign_splits, seal_openings
from e2i_dagster.tables.description.serving import ml_bentoml_services, ml_deployments

IDS = [f"PAT{k:08}" for k in range(100)]
FRAME = pd.DataFrame({"patient_id": IDS, "x": range(100)})
WHY = {"reason": "evaluation of the chosen candidate", "opened_by": "test"}


@pytest.fixture
def seal():
    return Seal("demo", "demo-1", assign_splits(IDS, salt="demo-1"))


def test_only_train_and_validation_are_visible(seal):
    visible = seal.visible(FRAME)
    assert {name: len(rows) for name, rows in visible.items()} == {"train": 60, "validation": 20}
    with pytest.raises(InputError, match=r"1 row.* without a split"):
        seal.visible(pd.DataFrame({"patient_id": ["other"]}))


def test_the_test_set_is_opened_for_one_candidate_and_counted(connection, seal):
    rows, first = seal.open_test(connection, FRAME, candidate="model/1", **WHY)
    assert len(rows) == first.patients == 15
    assert not set(rows["patient_id"]) & set(seal.visible(FRAME)["train"]["patient_id"])
    _, again = seal.open_test(connection, FRAME, candidate="model/1", **WHY)
    assert (again.ordinal, again.opened_at) == (1, first.opened_at)
    _, second = seal.open_test(connection, FRAME, candidate="model/2", **WHY)
    assert second.ordinal == 2
    assert "Model no. 2" in second.words()
    assert [o.candidate for o in seal_openings(connection, "demo")] == ["model/1", "model/2"]

    grown = Seal("demo", "demo-1", assign_splits([*IDS, "new 1", "new 2", "new 3"], salt="demo-1"))
    if grown.sealed_set("test") != seal.sealed_set("test"):
        _, third = grown.open_test(connection, FRAME, candidate="model/3", **WHY)
        assert (third.ordinal, third.ordinal_under_salt) == (1, 3)
    fresh = Seal("demo", "demo-2", assign_splits(IDS, salt="demo-2"))
    _, other = fresh.open_test(connection, FRAME, candidate="model/4", **WHY)
    assert (other.ordinal, other.ordinal_under_salt) == (1, 1)


@pytest.mark.parametrize("missing", [{"candidate": " "}, {"reason": ""}])
def test_without_candidate_or_reason_it_stays_sealed(connection, seal, missing):
    with pytest.raises(SealedError, match="stays sealed"):
        seal.open_test(connection, FRAME, **{"candidate": "model/1", **WHY, **missing})
    assert seal_openings(connection, "demo") == ()


def deploy(connection, slot):
    service, now = str(uuid.uuid4()), datetime.now(UTC)
    connection.execute(
        ml_bentoml_services.insert(),
        {
            "id": service,
            "service_name": "classification",
            "bento_tag": "classification:1",
            "bento_version": "1",
            "replicas": 1,
            "environment": slot,
            "health_status": "healthy",
            "status": "active",
            "created_at": now,
            "labels": {},
        },
    )
    connection.execute(
        ml_deployments.insert(),
        {
            "id": str(uuid.uuid4()),
            "service_id": service,
            "deployment_name": f"classification/{slot}/model",
            "model_name": "model",
            "model_version": "7",
            "environment": slot,
            "status": "active",
            "deployment_config": {},
            "created_at": now,
            "deployed_at": now,
        },
    )


def test_the_holdout_opens_only_after_a_deployment_to_production(connection, seal):
    options = {"model_name": "model", "model_version": "7", **WHY}
    with pytest.raises(
        SealedError, match="no deployment of model version 7 to the production slot"
    ) as caught:
        seal.open_holdout(connection, FRAME, **options)
    assert isinstance(caught.value, VerdictError)
    deploy(connection, "staging")
    with pytest.raises(SealedError):
        seal.open_holdout(connection, FRAME, **options)
    deploy(connection, "production")
    rows, opening = seal.open_holdout(connection, FRAME, **options)
    assert len(rows) == 5
    assert opening.deployment
    with pytest.raises(SealedError):
        seal.open_holdout(connection, FRAME, **{**options, "model_version": "8"})


def test_a_deployment_that_took_no_traffic_opens_nothing(connection, seal):
    deploy(connection, "production")
    connection.execute(ml_deployments.update().values(deployed_at=None))
    with pytest.raises(SealedError, match="no deployment"):
        seal.open_holdout(connection, FRAME, model_name="model", model_version="7", **WHY)


def test_the_same_patients_under_another_salt_are_another_test_set(connection, seal):
    seal.open_test(connection, FRAME, candidate="model/1", **WHY)
    other = Seal("demo", "demo-2", seal.assignments)
    assert other.sealed_set("test") != seal.sealed_set("test")
    _, opening = other.open_test(connection, FRAME, candidate="model/2", **WHY)
    assert (opening.ordinal, opening.ordinal_under_salt) == (1, 1)
