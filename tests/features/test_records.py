"""What the feature stage enters in the warehouse."""

import datetime as dt

import numpy as np
import pandas as pd
import pytest
import sqlalchemy as sa

from e2i_dagster.config.current_features import feature_views
from e2i_dagster.config.feast_materialization import FreshnessLimits
from e2i_dagster.config.feature_selection import FeatureSelectionPolicy
from e2i_dagster.config.feature_views import feature_names
from e2i_dagster.features.freshness import freshness
from e2i_dagster.features.records import (
    last_materializations,
    record_features,
    record_freshness,
    record_materialization,
    record_views,
    watch_freshness,
)
from e2i_dagster.features.selection import select_features
from e2i_dagster.features.snapshots import FeatureFile, FeatureFiles
from e2i_dagster.features.statistics import feature_statistics
from e2i_dagster.features.store import MaterializationReport, ViewMaterialization
from e2i_dagster.policy_files.environment import CHECKOUT
from e2i_dagster.tables import metadata
from e2i_dagster.tables.description.features import (
    ml_feast_feature_freshness,
    ml_feast_feature_views,
    ml_feast_materialization_jobs,
    ml_feature_store,
)
from e2i_dagster.versions import ledger
from e2i_dagster.versions.ledger import StageState

DONE = dt.datetime(2025, 1, 1, 12, tzinfo=dt.UTC)


@pytest.fixture
def connection(database):
    tables = [
        ml_feast_feature_views,
        ml_feast_materialization_jobs,
        ml_feast_feature_freshness,
        ml_feature_store,
    ]
    metadata.create_all(database, tables=tables)
    with database.begin() as opened:
        yield opened


def files_of(digest):
    day = dt.datetime(2024, 12, 31, tzinfo=dt.UTC)
    return FeatureFiles(
        files=tuple(
            FeatureFile(
                view=view.name, path=f"{view.name}.parquet", digest=digest, rows=3, oldest=day, newest=day
            )
            for view in feature_views()
        )
    )


def materialized(project, completed):
    return MaterializationReport(
        project=project,
        files=files_of("a"),
        online="file",
        views=tuple(
            ViewMaterialization(
                view=view.name,
                start=DONE,
                end=DONE,
                started_at=completed - dt.timedelta(seconds=2),
                completed_at=completed,
                rows=3,
                online_entities=3,
            )
            for view in feature_views()
        ),
    )


def test_views_are_entered_once_and_dated_by_their_version(connection):
    table = ml_feast_feature_views
    record_views(connection, "csu", files_of("a"))
    connection.execute(sa.update(table).values(applied_at=DONE))
    record_views(connection, "csu", files_of("a"))
    assert set(connection.scalars(sa.select(table.c.applied_at))) == {DONE}
    record_views(connection, "csu", files_of("b"))
    found = connection.execute(sa.select(table)).mappings().all()
    assert [row["name"] for row in found] == [view.name for view in feature_views()]
    assert {row["source_digest"] for row in found} == {"b"}
    assert all(row["applied_at"] > DONE for row in found)
    assert found[4]["entity_join_keys"] == ["brand", "region"]
    assert [item["name"] for item in found[0]["features"]] == list(feature_views()[0].feature_names)


def test_freshness_comes_from_completed_materializations_of_the_same_project(connection):
    record_views(connection, "csu", files_of("a"))
    record_views(connection, "pnh", files_of("a"))
    assert last_materializations(connection, "csu") == {}
    record_materialization(connection, materialized("csu", DONE), run_id="r1")
    record_materialization(connection, materialized("csu", DONE - dt.timedelta(hours=5)), run_id="r0")
    record_materialization(connection, materialized("pnh", DONE + dt.timedelta(hours=5)))
    completed = last_materializations(connection, "csu")
    assert completed == dict.fromkeys([view.name for view in feature_views()], DONE)
    limits = FreshnessLimits(warn_after_seconds=3_600, stale_after_seconds=7_200)
    report = freshness(completed, limits, DONE + dt.timedelta(hours=1.5))
    record_freshness(connection, "csu", report)
    entered = connection.execute(sa.select(ml_feast_feature_freshness)).mappings().all()
    assert {row["freshness_status"] for row in entered} == {"warning"}
    assert {row["staleness_seconds"] for row in entered} == {5_400}
    jobs = connection.execute(sa.select(ml_feast_materialization_jobs)).mappings().first()
    assert (jobs["duration_seconds"], jobs["rows_materialized"], jobs["run_id"]) == (2, 3, "r1")


def test_a_change_of_freshness_is_entered_once_and_a_run_that_finds_nothing_newer_renews(connection):
    limits = FreshnessLimits(warn_after_seconds=3_600, stale_after_seconds=7_200)
    assert watch_freshness(connection, "csu", limits, DONE) is None
    record_views(connection, "csu", files_of("a"))
    record_views(connection, "pnh", files_of("a"))
    record_materialization(connection, materialized("csu", DONE))

    def look(hours, project="csu"):
        report, news = watch_freshness(connection, project, limits, DONE + dt.timedelta(hours=hours))
        return report.status, news

    assert look(0) == ("fresh", True) and look(0.9) == ("fresh", False)
    assert look(1.5) == ("warning", True) and look(1.9) == ("warning", False)
    assert look(2.5) == ("stale", True)
    assert look(2.5, "pnh") == ("never", True)
    ledger.record_state(
        connection,
        StageState("online_features", "csu", "reused", at=DONE + dt.timedelta(hours=2)),
    )
    assert look(2.5) == ("fresh", True)
    statuses = connection.scalars(
        sa.select(ml_feast_feature_freshness.c.freshness_status)
        .where(ml_feast_feature_freshness.c.feature_view_id.startswith("csu."))
        .order_by(ml_feast_feature_freshness.c.id)
    ).all()
    assert list(dict.fromkeys(statuses)) == ["fresh", "warning", "stale"] and len(statuses) == 4 * len(
        feature_views()
    )


def test_features_of_a_scope_replace_its_earlier_ones(connection):
    draw = np.random.default_rng(3)
    frame = pd.DataFrame({"disease_severity": draw.uniform(size=300), "academic_hcp": 1})
    frame["label"] = (frame["disease_severity"] > 0.5).astype(int)
    policy = FeatureSelectionPolicy.load(CHECKOUT / "config")
    selection = select_features(frame, train=np.full(300, True), policy=policy)
    for digest in ("a", "b"):
        record_features(connection, "csu", feature_statistics(frame), selection, data_digest=digest)
    found = connection.execute(sa.select(ml_feature_store)).mappings().all()
    assert {row["feature_name"]: row["selected"] for row in found} == {
        "disease_severity": True,
        "academic_hcp": False,
    }
    assert {row["data_digest"] for row in found} == {"b"}
    severity = next(row for row in found if row["feature_name"] == "disease_severity")
    assert severity["training_statistics"]["mean"] == pytest.approx(frame["disease_severity"].mean())
    assert severity["source_columns"] == ["patient_journeys.disease_severity"]
    assert severity["selection_reason"] is None
    assert set(feature_names(feature_views())) >= {row["feature_name"] for row in found}
