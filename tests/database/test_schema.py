"""Migrations, roles, vocabulary checks and addresses, on the real server."""

import os
import re
import subprocess
import sys

import pytest
import sqlalchemy as sa
from sqlalchemy import exc

from e2i_dagster.database import connection, schema
from e2i_dagster.database import vocabulary_checks as vocabularies
from e2i_dagster.errors import ConfigError, InputError, UnavailableError
from e2i_dagster.tables import (
    OPTIONAL_RAW_TABLES,
    RAW_TABLES,
    all_metadata,
    date_column,
    facts,
    parents,
    primary_key,
    raw_table,
    row_date_column,
)
from e2i_dagster.tables.vocabulary import VocabularyPolicy, load_vocabulary


def test_migrating_from_empty_gives_exactly_what_is_described(database):
    assert schema.differences(connection.connect_url("owner")) == []


def test_migrating_again_changes_nothing(database):
    url = connection.connect_url("owner")
    assert schema.migrate(url) == schema.head() == schema.current(url)


def test_downgrade_takes_everything_away_and_upgrade_brings_it_back(database):
    from alembic import command

    url = connection.connect_url("owner")
    with schema._connected(url) as held:
        command.downgrade(schema._configuration(held), "base")
    with schema._connected(url) as held:
        assert set(sa.inspect(held).get_table_names()) <= {"alembic_version"}
    connection.dispose()
    with connection.engine("read").connect() as held:
        assert held.scalar(sa.text("SELECT count(*) FROM hcp_profiles")) == 0


def test_recorded_cohorts_get_the_identifier_of_their_version(database):
    """What was recorded under ``..._v1100`` is found as version 11.0.0, and its executions with it."""
    from alembic import command

    url = connection.connect_url("owner")
    with schema._connected(url) as held:
        command.downgrade(schema._configuration(held), "b2d94c07e1f5")
        held.execute(
            sa.text(
                "INSERT INTO ml_cohort_definitions (cohort_id, cohort_key, brand, indication, cohort_name, version, "
                "created_date, updated_date, inclusion_criteria, exclusion_criteria, config_json, config_hash) "
                "VALUES ('cohort_a_v1100', 'a', 'b', 'i', 'A', '11.0.0', now(), now(), '[]', '[]', '{}', 'h')"
            )
        )
        held.execute(
            sa.text(
                "INSERT INTO ml_cohort_executions (execution_id, cohort_id, execution_timestamp, environment, "
                "config_hash, input_row_count, input_patient_count, eligible_row_count, excluded_row_count, status) "
                "VALUES ('e', 'cohort_a_v1100', now(), 'development', 'h', 1, 1, 1, 0, 'success')"
            )
        )
        held.commit()
    schema.migrate(url)
    connection.dispose()
    with connection.engine("read").connect() as held:
        asked = sa.text(
            "SELECT cohort_id FROM ml_cohort_executions JOIN ml_cohort_definitions USING (cohort_id)"
        )
        assert held.scalar(asked) == "cohort_a_v11.0.0"


def test_several_processes_migrate_at_once(state):
    name = "e2i_race"
    url = connection.scratch_database(name)
    try:
        code = "from e2i_dagster.database.connection import engine; engine('app').connect().close()"
        environment = {**os.environ, "E2I_DATABASE_URL": url}
        running = [
            subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        said = [process.communicate(timeout=120)[1] for process in running]
        assert [process.returncode for process in running] == [0, 0, 0], said
        assert schema.current(url) == schema.head()
    finally:
        connection.drop_database(name)


def test_a_database_of_another_version_is_refused(database):
    with database.begin() as held:
        held.execute(sa.text("UPDATE alembic_version SET version_num = 'unknown'"))
    connection.dispose()
    with pytest.raises(InputError, match="another version"):
        connection.engine("app")


@pytest.mark.parametrize(
    ("role", "statement", "allowed"),
    [
        ("read", "SELECT count(*) FROM patient_journeys", True),
        ("read", "SELECT count(*) FROM load_rejects", False),
        ("read", "INSERT INTO hcp_profiles (hcp_id) VALUES ('H')", False),
        ("read", "DELETE FROM hcp_profiles", False),
        ("read", "CREATE TABLE anything (n int)", False),
        ("read", "CREATE TABLE e2i_staging.anything (n int)", False),
        ("app", "INSERT INTO hcp_profiles (hcp_id) VALUES ('H')", True),
        ("app", "DELETE FROM hcp_profiles", True),
        ("app", "SELECT count(*) FROM load_rejects", True),
        ("app", "CREATE UNLOGGED TABLE e2i_staging.anything (n int)", True),
        ("app", "CREATE TABLE anything (n int)", False),
        ("app", "DROP TABLE hcp_profiles", False),
        ("app", "ALTER TABLE hcp_profiles ADD COLUMN n int", False),
        ("app", "INSERT INTO vocabulary VALUES ('brand', 'X')", False),
        ("app", "UPDATE alembic_version SET version_num = ''", False),
        ("app", "CREATE ROLE other", False),
        ("owner", "ALTER TABLE hcp_profiles ADD COLUMN n int", True),
        ("owner", "CREATE ROLE other", False),
    ],
)
def test_each_role_may_do_its_own_and_no_more(database, role, statement, allowed):
    with connection.engine(role).connect() as held:
        if allowed:
            held.execute(sa.text(statement))
        else:
            with pytest.raises(exc.ProgrammingError, match=r"permission denied|must be owner"):
                held.execute(sa.text(statement))


def test_the_embedded_roles_log_in_by_themselves(state):
    for role in ("owner", "app", "read"):
        with connection.engine(role).connect() as held:
            assert held.scalar(sa.text("SELECT session_user")) == f"e2i_{role}"


@pytest.mark.parametrize("statement", ["INSERT", "UPDATE", "COPY"])
def test_a_value_outside_the_vocabulary_is_refused(database, statement):
    with database.connect() as held:
        held.execute(sa.text("INSERT INTO hcp_profiles (hcp_id, geographic_region) VALUES ('A', 'west')"))
        with pytest.raises(
            Exception, match="geographic_region: a value is not in the vocabulary region"
        ) as caught:
            if statement == "INSERT":
                held.execute(
                    sa.text("INSERT INTO hcp_profiles (hcp_id, geographic_region) VALUES (:k, :r)"),
                    [{"k": "B", "r": "south"}, {"k": "C", "r": "West"}],
                )
            elif statement == "UPDATE":
                held.execute(sa.text("UPDATE hcp_profiles SET geographic_region = 'West'"))
            else:
                raw = held.connection.driver_connection
                assert raw is not None
                with raw.cursor().copy("COPY hcp_profiles (hcp_id, geographic_region) FROM STDIN") as copy:
                    copy.write_row(("B", None))
                    copy.write_row(("C", "West"))
        cause = getattr(caught.value, "orig", caught.value)
        assert cause.sqlstate == "23503"


def test_every_vocabulary_column_is_checked(database):
    """Each of them is refused one by one, so that no branch of a trigger is wrong."""
    with database.connect() as held:
        held.execute(sa.text("INSERT INTO hcp_profiles (hcp_id) VALUES ('H')"))
        held.execute(
            sa.text(
                "INSERT INTO patient_journeys (patient_journey_id, patient_id, journey_start_date) "
                "VALUES ('J', 'P', '2024-01-01')"
            )
        )
        filled = {"hcp_id": "H", "patient_journey_id": "J", "patient_id": "P"}
        checked = 0
        for name in RAW_TABLES + OPTIONAL_RAW_TABLES:
            table = raw_table(name)
            for column, listed in vocabularies.vocabulary_columns(name).items():
                row = {
                    col.name: filled.get(col.name, {} if "json" in str(col.type).lower() else "2024-01-01")
                    for col in table.columns
                    if not col.nullable and col.server_default is None
                }
                row |= {primary_key(name): "new", column: "unheard of"}
                if name == "patient_clinical":
                    row["patient_journey_id"] = "J"
                with (
                    pytest.raises(exc.IntegrityError, match=f"{name}.{column}: .* vocabulary {listed}\\n"),
                    held.begin_nested(),
                ):
                    held.execute(sa.insert(table).values(_dated(row)))
                checked += 1
        assert checked > 35


def _dated(row):
    import datetime as dt

    return {name: dt.date(2024, 1, 1) if value == "2024-01-01" else value for name, value in row.items()}


def with_brands(*brands: str) -> VocabularyPolicy:
    given = load_vocabulary().model_dump()
    given["vocabularies"]["brand"] = {"values": list(brands)}
    return VocabularyPolicy.model_validate(given)


def test_own_values_join_and_used_values_stay(database):
    own = [*load_vocabulary().values("brand"), "Ownbrand"]
    with database.begin() as held:
        assert vocabularies.synchronize(held, with_brands(*own)) == (1, 0)
        held.execute(
            sa.text(
                "INSERT INTO business_metrics (metric_id, metric_date, brand) "
                "VALUES ('M', '2024-01-01', 'Ownbrand')"
            )
        )
    with database.begin() as held:
        assert vocabularies.synchronize(held, with_brands(*own)) == (0, 0)
    with (
        database.connect() as held,
        pytest.raises(ConfigError, match=r"brand .*'Ownbrand'.* business_metrics.brand"),
    ):
        vocabularies.synchronize(held, load_vocabulary())
    with database.begin() as held:
        held.execute(sa.text("DELETE FROM business_metrics"))
        assert vocabularies.synchronize(held, load_vocabulary()) == (0, 1)


def test_the_configured_vocabulary_reaches_the_database_on_the_next_load(database, tmp_path, monkeypatch):
    from e2i_dagster.policy_files.environment import config_folder

    text = (config_folder() / "vocabulary.yaml").read_text()
    connection.engine("app")
    (tmp_path / "vocabulary.yaml").write_text(text.replace("competitor, other]", "competitor, other, Mine]"))
    monkeypatch.setenv("E2I_CONFIG", str(tmp_path))
    connection.refresh_vocabulary()
    with connection.engine("read").connect() as held:
        assert held.scalar(sa.text("SELECT count(*) FROM vocabulary WHERE value = 'Mine'")) == 1


def test_an_unreachable_server_is_said_with_its_address_and_without_password(monkeypatch, state):
    monkeypatch.setenv("E2I_DATABASE_URL", "postgresql://someone:S3CRET@127.0.0.1:1/warehouse")
    with pytest.raises(
        UnavailableError, match=r"someone@127\.0\.0\.1:1/warehouse.*E2I_DATABASE_URL"
    ) as caught:
        connection.engine("app")
    assert "S3CRET" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("given", ["mysql://u:S3CRET@h/d", "not an address S3CRET"])
def test_a_wrong_address_is_said(monkeypatch, given):
    monkeypatch.setenv("E2I_DATABASE_URL", given)
    with pytest.raises(ConfigError, match="postgresql://USER:PASSWORD@HOST:PORT/DATABASE") as caught:
        connection.connect_url()
    assert "S3CRET" not in str(caught.value)


def test_addresses_of_the_embedded_server_hold_no_password(state):
    words = [
        line.rsplit(":", 1)[1] for line in (state / "secrets" / "postgres.pgpass").read_text().splitlines()
    ]
    for url in (connection.connect_url("app"), connection.ensure_database("tools")):
        assert not any(word in url for word in words)


def test_a_database_for_a_tool_belongs_to_the_application(state):
    url = connection.ensure_database("tools")
    assert connection.ensure_database("tools") == url
    held = sa.create_engine(url)
    with held.begin() as there:
        there.execute(sa.text("CREATE TABLE IF NOT EXISTS made (n int)"))
    held.dispose()
    with pytest.raises(exc.OperationalError, match="permission denied"):
        connection.engine("read", "tools").connect()


def test_a_plain_user_without_roles_works_with_its_own_privileges(state):
    """A server of the user's where it may not create roles, and ours are not there for it."""
    from e2i_dagster.database import server

    found = server.ensure_server()
    import psycopg

    with psycopg.connect(server.server_address(found, "postgres"), autocommit=True) as admin:
        admin.execute("CREATE ROLE plain LOGIN PASSWORD 'word'")
        admin.execute("CREATE DATABASE plain OWNER plain")
    url = f"postgresql://plain:word@/plain?host={found.socket_folder}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("E2I_DATABASE_URL", url)
        with connection.engine("read").connect() as held:
            assert held.scalar(sa.text("SELECT current_user")) == "plain"
            assert held.scalar(sa.text("SELECT count(*) FROM hcp_profiles")) == 0
        with pytest.raises(UnavailableError, match=r"CREATE DATABASE another") as caught:
            connection.ensure_database("another")
        assert "word" not in str(caught.value)
        connection.dispose()


def test_values_of_rows_stay_out_of_errors_and_of_the_log(database, state):
    from e2i_dagster.database import server

    with connection.engine("app").connect() as held, pytest.raises(exc.IntegrityError) as caught:
        held.execute(
            sa.text(
                "INSERT INTO treatment_events (treatment_event_id, patient_journey_id, patient_id, event_date) "
                "VALUES (:k, 'CANARYJ', :p, '2024-01-01')"
            ),
            {"k": "T", "p": "CANARYP"},
        )
    assert "CANARYP" not in str(caught.value)
    found = server.running_server()
    assert found is not None
    assert "CANARY" not in found.log.read_text()


def test_every_raw_column_is_described():
    policy = load_vocabulary()
    for name in RAW_TABLES + OPTIONAL_RAW_TABLES:
        for col in raw_table(name).columns:
            told = facts(col)
            assert told.meaning.endswith("."), f"{name}.{col.name}"
            assert told.vocabulary is None or told.vocabulary in policy.vocabularies, f"{name}.{col.name}"
            assert told.pattern is None or re.compile(told.pattern)
            if told.known_at == "row":
                assert row_date_column(name) in raw_table(name).columns, f"{name}.{col.name}"


def test_keys_parents_and_load_order():
    assert [len(parents(name)) for name in RAW_TABLES] == [0, 1, 1, 2, 2, 2, 1, 1, 0, 0, 0]
    for position, name in enumerate(RAW_TABLES):
        assert all(RAW_TABLES.index(parent) < position for parent in parents(name).values())
        assert primary_key(name) in raw_table(name).columns
        assert "data_split" not in raw_table(name).columns
    assert raw_table("patient_journeys").c.hcp_id.nullable
    assert date_column("patient_clinical") is None
    assert row_date_column("patient_clinical") == "diagnosis_date"
    with pytest.raises(InputError, match="hcp_profiles"):
        raw_table("hcps")


def test_figures_that_know_the_future_are_extract():
    later = {
        "patient_journeys": (
            "journey_stage",
            "journey_status",
            "journey_end_date",
            "treatment_initiated",
            "days_to_treatment",
            "risk_score",
            "data_quality_score",
        ),
        "hcp_profiles": ("decile", "priority_tier", "prescribing_volume", "last_interaction_date"),
        "treatment_events": ("next_treatment", "discontinuation_flag"),
        "triggers": ("acceptance_status", "outcome_value", "delivery_status"),
        "ml_predictions": ("actual_outcome",),
    }
    for name, columns in later.items():
        for column in columns:
            assert facts(raw_table(name).c[column]).known_at == "extract", f"{name}.{column}"


def test_all_tables_share_one_metadata():
    assert {"load_rejects", "ml_data_versions", "vocabulary", *RAW_TABLES} <= set(all_metadata().tables)
