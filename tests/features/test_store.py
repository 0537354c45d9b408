"""The feature store on a real Feast project in a temporary folder."""

import datetime as dt
import shutil
import sys
import threading

import pandas as pd
import pytest
import typeguard
from click.testing import CliRunner

from e2i_dagster.config.current_features import feature_views
from e2i_dagster.config.feast_materialization import FeastMaterializationPolicy
from e2i_dagster.config.feature_views import feature_names
from e2i_dagster.database.connection import drop_database
from e2i_dagster.errors import ConfigError, InputError, UnavailableError
from e2i_dagster.features.compute import compute_views
from e2i_dagster.features.frame import training_frame
from e2i_dagster.features.snapshots import snapshot_entities, spine, write_views
from e2i_dagster.features.store import REGISTRY_DATABASE, ScopeStore, StoreSettings, repo_environment
from e2i_dagster.policy_files.environment import CHECKOUT
from resources.feature_store import FeatureStore

DATA_END = dt.date(2024, 12, 31)
POLICY = FeastMaterializationPolicy.load(CHECKOUT / "config").snapshots
KEYS = ["patient_id", "hcp_id", "brand", "region"]


def made(tables, cohort, folder):
    """Spine, frames and files of the features of ``cohort``."""
    rows = spine(cohort, tables, brand="Remibrutinib")
    entities = snapshot_entities(rows, tables, data_end=DATA_END, policy=POLICY)
    frames = compute_views(entities, tables)
    return rows, frames, write_views(frames, folder)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return StoreSettings(project="csu", folder=tmp_path_factory.mktemp("feast") / "csu")


@pytest.fixture(scope="module")
def lake(tmp_path_factory):
    return tmp_path_factory.mktemp("lake")


@pytest.fixture(scope="module")
def version(drawn_tables, cohort, lake):
    return made(drawn_tables, cohort, lake)


@pytest.fixture(scope="module")
def store(settings, version):
    """The store with ``version`` applied and online, for tests that only read."""
    with ScopeStore(settings) as opened:
        opened.apply(version[2])
        opened.materialize(version[2])
        yield opened


@pytest.fixture
def own_store(settings, version, tmp_path):
    """Such a store for a test that changes it."""
    with ScopeStore(settings.model_copy(update={"folder": tmp_path / "csu"})) as opened:
        opened.apply(version[2])
        opened.materialize(version[2])
        yield opened


def test_every_patient_comes_back_in_order_with_the_values_of_the_day_before(store, version):
    rows, frames, files = version
    shuffled = rows.sample(frac=1, random_state=5)
    frame = training_frame(shuffled, files)
    assert frame["patient_id"].tolist() == shuffled["patient_id"].tolist()
    assert list(frame.columns) == [
        "patient_id",
        "patient_journey_id",
        "index_date",
        "label",
        *feature_names(feature_views()),
    ]
    for name in ("patient_features", "engagement_features", "trigger_features"):
        expected = frames[name].set_index("patient_id").loc[shuffled["patient_id"]].reset_index()
        names = [column for column in expected.columns if column not in ("patient_id", "event_timestamp")]
        pd.testing.assert_frame_equal(frame[names], expected[names])
    without_events = frame["patient_id"] >= "PAT00000180"
    assert frame.loc[without_events, "days_since_last_event"].isna().all()
    assert (frame.loc[without_events, "treatment_count"] == 0).all()
    without_hcp = frame["patient_id"] == "PAT00000005"
    assert frame.loc[without_hcp, ["specialty", "patient_volume"]].isna().all(axis=None)
    assert frame["specialty"].notna().sum() == len(frame) - 1


def test_a_patient_that_no_file_knows_comes_back_with_nulls(store, version):
    rows, _, files = version
    stranger = rows.head(2).copy()
    stranger.loc[0, ["patient_id", "hcp_id", "region"]] = ["PAT99999999", "HCP99999999", None]
    frame = training_frame(stranger, files)
    assert frame["patient_id"].tolist() == ["PAT99999999", "PAT00000001"]
    assert frame.loc[0, list(feature_names(feature_views()))].isna().all()
    assert frame.loc[1, list(feature_names(feature_views()))].notna().any()


def test_no_patients_give_an_empty_frame_with_the_declared_columns(store, version):
    rows, _, files = version
    frame = training_frame(rows.iloc[:0], files)
    assert frame.empty
    assert list(frame.columns)[-len(feature_names(feature_views())) :] == list(feature_names(feature_views()))


def test_the_engines_frame_is_compared_with_feasts_own_join_cell_by_cell(store, version):
    rows, _, files = version
    frame = training_frame(rows, files)
    report = store.equals_store_join(frame, rows, files)
    assert report.passed and report.cells == 200 * len(feature_names(feature_views()))
    frame.loc[7, "treatment_count"] += 1
    frame.loc[9, "specialty"] = None
    wrong = store.equals_store_join(frame, rows, files)
    assert wrong.mismatches == {"treatment_count": 1, "specialty": 1} and not wrong.passed


def test_rows_stamped_on_the_index_day_are_not_joined(own_store, version, lake):
    rows, frames, files = version
    planted = {}
    for name, frame in frames.items():
        later = frame.copy()
        later["event_timestamp"] += pd.Timedelta(microseconds=1)  # the first instant of the index day
        for column in later.columns.difference([*KEYS, "event_timestamp"]):
            later[column] = "leak" if later[column].dtype == "string[pyarrow]" else 9_999
        planted[name] = pd.concat([frame, later.astype(frame.dtypes)], ignore_index=True)
    only_patients = {
        name: planted[name] if "patient_id" in frame.columns else frame for name, frame in frames.items()
    }
    expected = training_frame(rows, files)
    with_planted = own_store.apply(write_views(only_patients, lake))
    pd.testing.assert_frame_equal(training_frame(rows, with_planted), expected)


def test_a_new_version_replaces_the_old_one_offline_and_online(
    own_store, version, drawn_tables, cohort, lake
):
    rows, _, files = version
    sicker = drawn_tables["patient_journeys"].copy()
    sicker["disease_severity"] = 10.0
    fewer = cohort.iloc[10:]
    new_rows, _, new_files = made(drawn_tables | {"patient_journeys": sicker}, fewer, lake)
    assert new_files.digest != files.digest
    new_frame = training_frame(new_rows, new_files)
    assert (new_frame["disease_severity"] == 10.0).all()
    with pytest.raises(UnavailableError, match="Apply it first"):
        own_store.equals_store_join(new_frame, new_rows, new_files)
    own_store.apply(new_files)
    assert own_store.equals_store_join(new_frame, new_rows, new_files).passed
    with pytest.raises(UnavailableError, match="is not the asked one"):
        own_store.equals_store_join(training_frame(rows, files), rows, files)
    # Until the switch the old values are served, whole.
    kept = own_store.online(rows[["patient_id"]])
    assert (kept["disease_severity"] != 10.0).any()
    assert kept["age_at_diagnosis"].notna().all()
    own_store.materialize(new_files)
    now = own_store.online(rows[["patient_id"]])
    assert now.loc[10:, "disease_severity"].eq(10.0).all()
    assert now.loc[:9].drop(columns="patient_id").isna().all(axis=None)  # left the cohort, left the store


def test_online_equals_offline_cell_by_cell(store, version):
    report = store.online_equals_offline(version[0])
    assert report.passed
    assert report.entities == 200
    assert report.cells == 200 * len(feature_names(feature_views()))
    assert report.at == pd.Timestamp("2024-12-31 23:59:59.999999", tz="UTC")


def test_a_value_changed_online_is_found(own_store, version):
    _, frames, _ = version
    feast_store = own_store._store(own_store.current().files)
    tampered = frames["patient_features"].head(3).copy()
    tampered["treatment_count"] += 1
    feast_store.write_to_online_store("patient_features", tampered)
    report = own_store.online_equals_offline(version[0])
    assert not report.passed
    assert report.mismatches == {"treatment_count": 3}
    assert "treatment_count (3)" in report.to_metadata()["features_that_differ"]


def test_online_lookup_by_patient_keeps_order_and_gives_nulls_for_unknown_keys(store, version):
    _, frames, _ = version
    asked = pd.DataFrame({"patient_id": ["PAT00000007", "nobody", None, "PAT00000003"]})
    found = store.online(asked)
    assert found["patient_id"].tolist()[:2] == ["PAT00000007", "nobody"]
    ages = frames["patient_features"].set_index("patient_id")["age_at_diagnosis"]
    assert found["age_at_diagnosis"].tolist()[::3] == [ages["PAT00000007"], ages["PAT00000003"]]
    assert found.loc[1:2].drop(columns="patient_id").isna().all(axis=None)
    assert "specialty" not in found.columns
    with pytest.raises(InputError, match="expected at least one of patient_id"):
        store.online(pd.DataFrame({"shoe": [1]}))


def test_materialization_counts_what_is_online_and_a_repeated_one_changes_nothing(own_store, version):
    rows, _, files = version
    first = own_store.materialize(files)
    counted = {view.view: (view.rows, view.online_entities) for view in first.views}
    assert counted["patient_features"] == (200, 200)
    assert counted["hcp_features"] == (40, 40)
    assert counted["market_features"] == (2, 2)
    assert first.to_metadata()["entities_written"] == 642
    before = own_store.online(rows[["patient_id"]])
    again = own_store.materialize(files)
    assert {view.view: (view.rows, view.online_entities) for view in again.views} == counted
    assert again.views[0].completed_at > first.views[0].completed_at
    assert own_store.current() == again
    pd.testing.assert_frame_equal(own_store.online(rows[["patient_id"]]), before)


def test_a_later_end_puts_the_rows_between_online(settings, version, tmp_path):
    rows, frames, files = version
    own = settings.model_copy(update={"folder": tmp_path / "csu"})
    with ScopeStore(own) as store:
        store.apply(files)
        middle = dt.datetime(2024, 6, 30, 23, 59, 59, 999999, tzinfo=dt.UTC)
        store.materialize(files, end=middle)
        early = frames["patient_features"]["event_timestamp"] <= middle
        assert store.online(rows[["patient_id"]])["treatment_count"].notna().tolist() == early.tolist()
        store.materialize(files)
        assert store.online_equals_offline(rows).passed


def test_nothing_online_and_nothing_applied_say_so(settings, version, tmp_path):
    with ScopeStore(settings.model_copy(update={"folder": tmp_path / "new"})) as store:
        with pytest.raises(UnavailableError, match="Materialize online_features first"):
            store.online(pd.DataFrame({"patient_id": ["PAT00000001"]}))
        with pytest.raises(UnavailableError, match="Apply it first"):
            store.materialize(version[2])


def test_rows_before_the_oldest_cannot_be_materialized(store, version):
    with pytest.raises(InputError, match="oldest feature row"):
        store.materialize(version[2], end=dt.datetime(2020, 1, 1, tzinfo=dt.UTC))


def test_a_second_materializer_waits_and_then_gives_up_with_a_message(store, settings, version):
    inside, leave = threading.Event(), threading.Event()

    def hold():
        with store._exclusive():
            inside.set()
            leave.wait(20)

    holder = threading.Thread(target=hold)
    holder.start()
    try:
        assert inside.wait(10)
        impatient = ScopeStore(settings.model_copy(update={"lock_timeout_seconds": 0.2}))
        with pytest.raises(UnavailableError, match="Another process has been applying"):
            impatient.apply(version[2])
    finally:
        leave.set()
        holder.join()


def test_two_scopes_do_not_see_each_other(store, version, tmp_path):
    with ScopeStore(StoreSettings(project="pnh", folder=tmp_path / "pnh")) as other:
        other.apply(version[2])
        assert other.current() is None
        assert store.current() is not None


def test_redis_without_its_client_is_refused_with_the_remedy(settings, version):
    with pytest.raises(ConfigError, match=r"Install feast\[redis\]"):
        ScopeStore(settings.model_copy(update={"redis": "localhost:6379"})).apply(version[2])


def test_importing_feast_leaves_the_type_checking_decorator_as_it_was(store):
    assert "feast" in sys.modules

    @typeguard.typechecked
    def double(number: int) -> int:
        return 2 * number

    with pytest.raises(typeguard.TypeCheckError):
        double("two")  # pyright: ignore[reportArgumentType]


def test_feasts_own_command_line_applies_the_same_views(settings, version, tmp_path, monkeypatch):
    from feast.cli.cli import cli

    own = settings.model_copy(update={"folder": tmp_path / "csu"})
    for name, value in repo_environment(own, version[2]).items():
        monkeypatch.setenv(name, value)
    # The command goes into the folder and imports what lies there.
    monkeypatch.chdir(CHECKOUT)
    monkeypatch.syspath_prepend(CHECKOUT / "feature_repo")
    with ScopeStore(own) as store:
        store.apply(version[2])
        done = CliRunner().invoke(cli, ["-c", str(CHECKOUT / "feature_repo"), "apply"])
        monkeypatch.delitem(sys.modules, "definitions")
        assert done.exit_code == 0, done.output
        frame = training_frame(version[0], version[2])
    assert frame["age_at_diagnosis"].notna().all()
    assert (own.folder / f"online-{version[2].digest}.db").exists()


def test_the_resource_keeps_the_registry_on_the_warehouse_server(database, state, version):
    rows, _, files = version
    resource = FeatureStore()
    with resource.open("csu_initiation") as store:
        assert store.settings.folder == state / "feast" / "csu_initiation"
        store.apply(files)
        store.materialize(files)
        assert store.online_equals_offline(rows).passed
    # The state folder was removed, the registry still knows: the values are written anew.
    shutil.rmtree(store.settings.folder)
    with resource.open("csu_initiation") as store:
        store.materialize(files)
        assert store.online_equals_offline(rows).passed
        assert not list(store.settings.folder.glob("registry*"))
    drop_database(REGISTRY_DATABASE)
