"""A patient is erased: no key is left where rows were, nothing is made again, no load brings the patient back."""

import json
import sqlite3

import pyarrow.parquet as pq
import pytest

SCOPE = "remibrutinib_csu_initiation"
MODEL = "e2i-remibrutinib-csu-initiation/1"
REASON = "asked for by letter of 2026-11-01"

TEXTS = """
SELECT table_schema, table_name, column_name FROM information_schema.columns
WHERE table_schema NOT IN ('pg_catalog', 'information_schema')
AND data_type IN ('text', 'character varying', 'json', 'jsonb', 'ARRAY')
"""
SEALS = """
import json
from e2i_dagster.database.connection import engine
from e2i_dagster.policy_files.environment import lake_url
from e2i_dagster.splits.seal import Seal, seal_openings
from e2i_dagster.versions import ledger
from e2i_dagster.versions.lake import Lake
with engine().connect() as connection:
    version = ledger.latest(connection, "splits", "SCOPE")
    rows = Lake(lake_url()).read_frame([version.file])
    openings = seal_openings(connection, "SCOPE")
    print(json.dumps([one.sealed_set == Seal("SCOPE", one.salt, rows).sealed_set(one.split) for one in openings]))
""".replace("SCOPE", SCOPE)


def places(copy, key: str) -> set[str]:
    """Where the exact key stands: columns of the warehouse, Parquet files, online files."""
    found = set()
    for column in copy.rows(TEXTS):
        schema, table, name = column.values()
        condition = f'strpos(to_jsonb(t."{name}")::text, \'"{key}"\') > 0'
        if copy.rows(f'SELECT 1 AS x FROM "{schema}"."{table}" t WHERE {condition} LIMIT 1'):
            found.add(f"{table}.{name}")
    for path in (copy.home / "lake").rglob("*.parquet"):
        rows = pq.read_table(path)
        texts = [name for name in rows.column_names if "string" in str(rows.schema.field(name).type)]
        if any(key in rows.column(name).to_pylist() for name in texts):
            found.add(path.relative_to(copy.home / "lake").parts[0])
    for path in (copy.home / "lake").rglob("*.json"):
        if f'"{key}"' in path.read_text(encoding="utf-8"):
            found.add(path.name)
    for path in (copy.home / "feast").glob("*/online-*.db"):
        if key.encode() in path.read_bytes():
            found.add("online")
    return found


@pytest.fixture(scope="module")
def copy(restored_at):
    return restored_at("forgetting")


@pytest.fixture(scope="module")
def patient(copy):
    """A patient of the test set, with a prediction, a line in the record of openings, a reject and a journey."""
    (row,) = copy.rows(
        """
        SELECT patient_id, patient_journey_id FROM patient_journeys JOIN ml_patient_split_assignments
        USING (patient_id) JOIN ml_predictions USING (patient_id) WHERE assigned_split = 'test'
        AND patient_id IN (SELECT patient_id FROM treatment_events) ORDER BY patient_id LIMIT 1
        """
    )
    import psycopg

    with psycopg.connect(copy.database) as connection:
        connection.execute(
            "INSERT INTO ml_patient_level_access (actor, actor_source, purpose, cohort_key, patient_id) "
            "VALUES ('a', 'self-declared', 'explain', 'c', %s)",
            (row["patient_id"],),
        )
        connection.execute(
            "INSERT INTO load_rejects (load_id, table_name, row_number, reason, raw_row) "
            "VALUES ('l', 'treatment_events', 1, 'date', %s)",
            (json.dumps({"Patient": row["patient_id"], "when": "soon"}),),
        )
    return row


@pytest.fixture(scope="module")
def erased(copy, patient):
    """Places before, the report of a dry run, places after it, the report of the erasure."""
    key = patient["patient_id"]
    before = places(copy, key)
    trial = json.loads(copy.e2i("forget", key, "--dry-run", "--json").stdout)
    untouched = places(copy, key)
    report = json.loads(copy.e2i("forget", key, "--reason", REASON, "--json").stdout)
    return before, trial, untouched, report


def test_no_key_is_left(copy, patient, erased):
    before, _, _, _ = erased
    assert before >= {
        *("patient_journeys.patient_id", "ml_predictions.patient_id", "load_rejects.raw_row", "features"),
        *("ml_patient_level_access.patient_id", "splits", "training_frame", "outcome_labels", "online"),
    }
    assert places(copy, patient["patient_id"]) == set()
    assert places(copy, patient["patient_journey_id"]) == set()
    with sqlite3.connect(copy.home / "dagster/history/runs.db") as history:
        assert patient["patient_id"] not in "".join(history.iterdump())


def test_a_dry_run_says_the_same_and_changes_nothing(erased):
    before, trial, untouched, report = erased
    assert untouched == before
    assert {**trial, "state": "erased"} == report
    assert report["warehouse"]["load_rejects"] == 1 and report["online"][SCOPE] > 0


def test_the_tombstone_and_the_audit_keep_the_pseudonym(copy, erased):
    report = erased[3]
    (stone,) = copy.rows("SELECT * FROM ml_erasures")
    assert (stone["pseudonym"], stone["erased_by"], stone["reason"]) == (report["pseudonym"], "test", REASON)
    assert stone["ended_at"] is not None and stone["report"] == report
    (audit,) = copy.rows("SELECT patient_id FROM ml_patient_level_access")
    assert audit["patient_id"] == report["pseudonym"]


def test_what_cannot_be_replayed_says_so(copy, erased):
    assert erased[3]["models"] == [MODEL]
    done = copy.e2i("verify", MODEL, "--json", check=False)
    assert done.returncode == 4
    checks = {check["stage"]: check for check in json.loads(done.stdout)["checks"]}
    assert checks["training_frame"]["state"] == "erased"
    assert REASON in checks["training_frame"]["moved"][0]


def test_a_sealed_set_counts_as_opened_as_before(copy, erased):
    assert "the test set lost the patient" in erased[3]["seals"][0]
    openings = copy.python(SEALS)
    assert openings and all(openings)


def test_nothing_is_made_again_because_of_it(copy, erased):
    run = json.loads(copy.e2i("run", "--scope", "default", "--json").stdout.splitlines()[-1])
    executed = {stage["name"] for stage in run["stages"] if stage["state"] != "reused"}
    assert executed <= {"prediction_log", "drift_report", "performance_report"}


def test_again_changes_nothing_and_nobody_is_refused(copy, patient, erased):
    for key in patient.values():
        second = json.loads(copy.e2i("forget", key, "--reason", REASON, "--json").stdout)
        assert second == {**erased[3], "state": "already_erased"}
    done = copy.e2i("forget", "NOBODY", "--reason", REASON, "--json", check=False)
    assert done.returncode == 3
    assert json.loads(done.stdout)["error"]["field"] == "patient"
    assert copy.e2i("forget", "NOBODY", check=False).returncode == 2
    named = copy.e2i("forget", "NOBODY", "--reason", "because NOBODY asked for it", check=False)
    assert named.returncode == 2, "the reason stays, so it may not name the patient"


def test_production_asks_for_an_authenticated_person(copy, erased):
    from dataclasses import replace

    from e2i_dagster.database.server import ensure_server

    server = ensure_server(copy.home)
    address = f"postgresql://e2i_owner@/e2i?host={server.socket_folder}&passfile={server.passfile}"
    key = (copy.home / "secrets/pseudonym.key").read_text().strip()
    more = {
        "E2I_ENVIRONMENT": "production", "E2I_DATABASE_URL": address, "E2I_PSEUDONYM_KEY": key,
    }  # fmt: skip
    there = replace(copy, environment={**copy.environment, **more})
    (other,) = copy.rows("SELECT patient_id FROM patient_journeys LIMIT 1")
    done = there.e2i("forget", other["patient_id"], "--reason", REASON, "--json", check=False)
    assert done.returncode == 4, done.stdout + done.stderr
    assert json.loads(done.stdout)["error"]["field"] == "actor"
    assert copy.rows(f"SELECT 1 FROM patient_journeys WHERE patient_id = '{other['patient_id']}'")


def test_no_load_brings_the_patient_back(copy, patient, erased):
    (folder,) = (copy.home / "deliveries").iterdir()
    report = json.loads(copy.e2i("load", "--from", str(folder), "--json").stdout.splitlines()[-1])
    assert report["tables"]["patient_journeys"]["reasons"] == {"erased_patient": 1}
    assert report["tables"]["treatment_events"]["reasons"]["erased_patient"] >= 1
    assert places(copy, patient["patient_id"]) == set()
