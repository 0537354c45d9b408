"""For whom features are computed, and the immutable files."""

import datetime as dt
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from e2i_dagster.config.feast_materialization import FeastMaterializationPolicy
from e2i_dagster.errors import ConfigError, DamagedError, InputError, UnavailableError
from e2i_dagster.features.compute import compute_views, end_of_day
from e2i_dagster.features.snapshots import (
    labelled_spine,
    scoring_spine,
    snapshot_entities,
    spine,
    write_views,
)
from e2i_dagster.policy_files.environment import CHECKOUT

POLICY = FeastMaterializationPolicy.load(CHECKOUT / "config").snapshots
DATA_END = dt.date(2024, 12, 31)


@pytest.fixture(scope="module")
def rows(drawn_tables, cohort):
    return spine(cohort, drawn_tables, brand="Remibrutinib")


@pytest.fixture(scope="module")
def frames(drawn_tables, rows):
    return compute_views(
        snapshot_entities(rows, drawn_tables, data_end=DATA_END, policy=POLICY), drawn_tables
    )


def test_spine_adds_brand_and_region_and_keeps_order_and_columns(rows, cohort, drawn_tables):
    assert rows["patient_id"].tolist() == cohort["patient_id"].tolist()
    assert rows["region"].tolist() == drawn_tables["patient_journeys"]["geographic_region"].tolist()
    assert set(rows["brand"]) == {"Remibrutinib"}
    assert {"label", "set"} <= set(rows.columns)


def test_labelled_patients_are_learned_from_and_the_others_scored(rows, cohort, drawn_tables):
    journeys = drawn_tables["patient_journeys"]
    labelled = labelled_spine(cohort, journeys, brand="Remibrutinib")
    scoring = scoring_spine(cohort, journeys, brand="Remibrutinib")
    expected = {name: rows[rows["set"] == name].reset_index(drop=True) for name in ("labelled", "scoring")}
    assert len(expected["labelled"]) and len(expected["scoring"])
    pd.testing.assert_frame_equal(labelled, expected["labelled"])
    pd.testing.assert_frame_equal(scoring, expected["scoring"].drop(columns="label"))


def test_spine_refuses_repeated_and_missing_index_dates(cohort, drawn_tables):
    with pytest.raises(InputError, match="2 rows of the cohort repeat an index date of a patient"):
        spine(pd.concat([cohort, cohort.head(2)]), drawn_tables, brand="Remibrutinib")
    undated = cohort.copy()
    undated.loc[[1, 2, 3], "index_date"] = pd.NaT
    with pytest.raises(InputError, match="3 patients of the cohort have no index date"):
        spine(undated, drawn_tables, brand="Remibrutinib")
    with pytest.raises(InputError, match="lacks hcp_id"):
        spine(cohort.drop(columns="hcp_id"), drawn_tables, brand="Remibrutinib")


def test_region_and_professional_are_known_from_arrival(cohort, drawn_tables):
    """On the index date they are; a day later the patient's row was not there yet."""
    journeys = drawn_tables["patient_journeys"]
    index = cohort.set_index("patient_journey_id")["index_date"]
    for days, known in ((0, True), (1, False)):
        arrived = journeys["patient_journey_id"].map(index) + pd.Timedelta(days=days)
        late = journeys.assign(source_timestamp=arrived.dt.tz_localize("UTC"))
        rows = spine(cohort, {"patient_journeys": late}, brand="Remibrutinib")
        assert rows["region"].notna().any() is np.bool_(known)
        assert rows["hcp_id"].notna().any() is np.bool_(known)


def test_snapshots_are_the_day_before_the_index_and_month_ends(rows, drawn_tables):
    entities = snapshot_entities(rows, drawn_tables, data_end=dt.date(2024, 12, 30), policy=POLICY)
    patients = entities["patient_features"]
    assert (patients["as_of"] == rows["index_date"] - pd.Timedelta(days=1)).all()
    ends = pd.to_datetime(["2024-09-30", "2024-10-31", "2024-11-30"])
    hcps = entities["hcp_features"]
    assert all((hcps["as_of"] == day).sum() >= 40 for day in ends)
    assert hcps["as_of"].max() <= pd.Timestamp("2024-12-30")
    assert not hcps.duplicated().any()
    assert hcps["hcp_id"].notna().all()


def test_scoring_patients_also_get_the_last_day_when_asked(rows, drawn_tables):
    policy = POLICY.model_copy(update={"scoring_patients_at": "data_end"})
    entities = snapshot_entities(rows, drawn_tables, data_end=DATA_END, policy=policy)["patient_features"]
    extra = entities[entities["as_of"] == pd.Timestamp(DATA_END)]
    assert set(extra["patient_id"]) == set(rows.loc[rows["set"] == "scoring", "patient_id"])


def test_the_same_values_are_the_same_files_and_others_are_new_ones(frames, tmp_path):
    first = write_views(frames, tmp_path)
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    shuffled = {name: frame.sample(frac=1, random_state=1) for name, frame in frames.items()}
    again = write_views(shuffled, tmp_path)
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")} == written
    assert not list(tmp_path.rglob("*.part"))
    changed = frames["patient_features"].copy()
    changed.loc[0, "treatment_count"] += 1
    other = write_views(frames | {"patient_features": changed}, tmp_path)
    assert other.digest != first.digest
    assert other.of("patient_features").path != first.of("patient_features").path
    assert other.of("hcp_features") == first.of("hcp_features")
    assert first.to_metadata()["rows"] == sum(map(len, frames.values()))


@pytest.mark.parametrize("harm", ["truncate", "flip", "delete", "empty"])
def test_a_damaged_feature_file_is_named_and_writing_the_views_again_replaces_it(frames, tmp_path, harm):
    files = write_views(frames, tmp_path)
    assert files.damage() == ""
    path = Path(files.of("hcp_features").path)
    whole = path.read_bytes()
    flipped = bytes([*whole[:100], whole[100] ^ 1, *whole[101:]])
    path.write_bytes({"truncate": whole[:-7], "flip": flipped, "delete": b"", "empty": b""}[harm])
    if harm == "delete":
        path.unlink()
    assert str(path) in files.damage()
    with pytest.raises(DamagedError, match="Run again what makes feature_values") as caught:
        files.require_whole()
    assert caught.value.file == str(path)
    assert write_views(frames, tmp_path) == files
    assert files.damage() == "" and path.read_bytes() == whole


def test_files_hold_microsecond_utc_and_nulls(frames, tmp_path):
    files = write_views(frames, tmp_path)
    back = pd.read_parquet(files.of("patient_features").path)
    assert str(back["event_timestamp"].dtype) == "datetime64[us, UTC]"
    assert (
        back["disease_severity"].isna().sum()
        == frames["patient_features"]["disease_severity"].isna().sum()
        > 0
    )


def test_wrong_frames_are_refused(frames, tmp_path):
    def broken(change):
        return frames | {"patient_features": change(frames["patient_features"])}

    with pytest.raises(InputError, match="no frame of hcp_features"):
        write_views({name: frame for name, frame in frames.items() if name != "hcp_features"}, tmp_path)
    with pytest.raises(InputError, match="found the columns"):
        write_views(broken(lambda frame: frame.drop(columns="gender")), tmp_path)
    with pytest.raises(InputError, match="1 rows repeat"):
        write_views(broken(lambda frame: pd.concat([frame, frame.head(1)])), tmp_path)
    with pytest.raises(InputError, match="expected datetime64"):
        nanoseconds = {"event_timestamp": "datetime64[ns, UTC]"}
        write_views(broken(lambda frame: frame.astype(nanoseconds)), tmp_path)
    assert not list(tmp_path.rglob("patient_features/*"))


def test_a_folder_that_cannot_be_written_to_is_named(frames, tmp_path):
    blocked = tmp_path / "lake"
    blocked.write_text("a file where a folder should be")
    with pytest.raises(UnavailableError, match="cannot be written to"):
        write_views(frames, blocked)


def test_end_of_day_is_one_microsecond_before_the_next_day():
    stamps = end_of_day(pd.Series([dt.date(2023, 12, 31)]))
    assert stamps.tolist() == [pd.Timestamp("2024-01-01", tz="UTC") - pd.Timedelta(microseconds=1)]


def test_a_wrong_policy_names_line_and_field(tmp_path):
    text = (CHECKOUT / "config" / "feast_materialization.yaml").read_text(encoding="utf-8")
    broken = text.replace("stale_after_seconds: 7200", "stale_after_seconds: 60")
    (tmp_path / "feast_materialization.yaml").write_text(broken, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"feast_materialization\.yaml:\d+: freshness.*must be greater"):
        FeastMaterializationPolicy.load(tmp_path)
