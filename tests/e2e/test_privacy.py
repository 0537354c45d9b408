"""No key of a patient, no NPI, no name and no free text is outside raw tables, frames of the lake and rejects.

First every key of a whole run is looked for, then those of a delivery with made-up marks, of which a part is faulty:
what is said of faulty rows is where values leak.
"""

import io
import json
import re
import zipfile
import zlib
from pathlib import Path

import pandas as pd
import pytest

#: What may hold rows of patients: frames and feature files of the lake, deliveries, online values, waiting answers.
ALLOWED = re.compile(
    r"^(postgres/|lake/.*\.parquet$|deliveries/|feast/[^/]+/online-[^/]+\.db$|services/journal/)"
)
#: Tables that hold them: columns that are described as pseudonyms or as identifying, and rejects.
ROWS = ("load_rejects", "load_withdrawals", "load_completed_dates")
TOKEN = re.compile(rb"[A-Za-z0-9][A-Za-z0-9_-]{5,}")


def contents(name: str, content: bytes):
    """A file and what it holds: members of an archive, what SQLite stores compressed."""
    yield name, content
    if zipfile.is_zipfile(io.BytesIO(content)):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            for member in archive.namelist():
                yield from contents(f"{name}!{member}", archive.read(member))
    if content.startswith(b"SQLite format 3"):
        for start in re.finditer(rb"\x78[\x01\x5e\x9c\xda]", content):
            try:
                yield f"{name}@{start.start()}", zlib.decompressobj().decompress(content[start.start() :])
            except zlib.error:
                continue


def files_with(home: Path, values: set[bytes]) -> dict[str, list[bytes]]:
    """Files of the state folder, but for those that may, with a few of the ``values`` that they hold."""
    found = {}
    for path in sorted(home.rglob("*")):
        name = path.relative_to(home).as_posix()
        if not path.is_file() or ALLOWED.match(name):
            continue
        for place, content in contents(name, path.read_bytes()):
            if hits := values.intersection(TOKEN.findall(content)):
                found[place] = sorted(hits)[:3]
    return found


def columns_with(deployment, values: set[bytes]) -> dict[str, list[bytes]]:
    """Columns of all databases that are not described as a patient's, with a few of the ``values``."""
    import psycopg

    from e2i_dagster.database.server import databases, ensure_server, server_address
    from e2i_dagster.tables import all_metadata

    described = {
        (table.name, column.name): column.info["facts"].privacy
        for table in all_metadata().sorted_tables
        for column in table.columns
        if "facts" in column.info
    }
    server = ensure_server(deployment.home)
    found = {}
    for database in databases(server):
        with psycopg.connect(server_address(server, database)) as connection:
            columns = connection.execute(
                "SELECT table_schema, table_name, column_name FROM information_schema.columns WHERE table_schema "
                "NOT IN ('pg_catalog', 'information_schema') AND data_type IN "
                "('text', 'character varying', 'json', 'jsonb', 'ARRAY', 'bytea')"
            ).fetchall()
            for schema, table, column in columns:
                if table in ROWS or described.get((table, column)) in ("pseudonym", "direct"):
                    continue
                query = (
                    f'SELECT DISTINCT "{column}"::text FROM "{schema}"."{table}" WHERE "{column}" IS NOT NULL'
                )
                for (text,) in connection.execute(query.encode()):
                    content = bytes.fromhex(text[2:]) if text.startswith("\\x") else text.encode()
                    if hits := values.intersection(TOKEN.findall(content)):
                        found[f"{database}.{table}.{column}"] = sorted(hits)[:3]
    return found


@pytest.fixture(scope="module")
def keys(deployed, again) -> set[bytes]:
    """Every key of a patient, of a journey and of an event, the hashes, NPIs and names of the run."""
    found: set[str] = set()
    for table, columns in {
        "patient_journeys": ("patient_id", "patient_journey_id", "patient_hash"),
        "treatment_events": ("treatment_event_id",),
        "hcp_profiles": ("npi",),
    }.items():
        for column in columns:
            found |= {row["x"] for row in deployed.rows(f"SELECT DISTINCT {column} AS x FROM {table}")}
    return {value.encode() for value in found if value}


def test_the_search_finds_what_is_there(deployed, keys, tmp_path):
    """The key of a patient in plain text, in an archive and in what Dagster compresses."""
    key = sorted(keys)[-1]
    (tmp_path / "plain.log").write_bytes(b"row of " + key + b" failed")
    with zipfile.ZipFile(tmp_path / "model.skops", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("schema.json", b'{"id": "' + key + b'"}')
    packed = b"SQLite format 3\0" + b"...." + zlib.compress(b'{"config": "' + key + b'"}' * 20)
    (tmp_path / "runs.db").write_bytes(packed)
    assert {name.partition("@")[0] for name in files_with(tmp_path, keys)} == {
        *("plain.log", "model.skops!schema.json", "runs.db")
    }
    assert deployed.rows("SELECT 1 FROM load_rejects LIMIT 1") == [] and len(keys) > 10_000


def test_a_whole_run_leaves_no_key_outside(deployed, keys):
    assert files_with(deployed.home, keys) == {}
    assert columns_with(deployed, keys) == {}
    report = json.dumps(deployed.report) + deployed.progress
    assert keys.intersection(TOKEN.findall(report.encode())) == set()


# --- a delivery with made-up marks

PATIENT, JOURNEY, EVENT, NPI = "CANARYPAT001", "CANARYJRN001", "CANARYEVT001", "CANARYNPI1"
FIRST, LAST, TEXT = "CANARYANNA", "CANARYSMITH", "CANARYTEXT"
MARKS = {value.encode() for value in (PATIENT, JOURNEY, EVENT, NPI, FIRST, LAST, TEXT)}


@pytest.fixture(scope="module")
def canary(restored_at, tmp_path_factory):
    """A load that is refused, the same accepted on record, and what looks at it; the words of all commands."""
    copy = restored_at("canary")
    (delivered,) = (copy.home / "deliveries").iterdir()
    folder = tmp_path_factory.mktemp("canary")
    frames = {
        name: pd.read_parquet(delivered / f"{name}.parquet").head(6)
        for name in ("hcp_profiles", "patient_journeys", "treatment_events")
    }
    hcps, journeys, events = frames.values()
    hcps = hcps.astype({"npi": "object"})
    hcps.loc[hcps.index[0], "npi"] = NPI
    hcps["first_name"], hcps["last_name"] = FIRST, LAST
    journeys = journeys.assign(
        patient_id=[f"{PATIENT}", *journeys["patient_id"][1:]],
        patient_journey_id=[JOURNEY, *journeys["patient_journey_id"][1:]],
    )
    events = events.assign(
        patient_id=PATIENT, patient_journey_id=JOURNEY,
        treatment_event_id=[EVENT, EVENT, *events["treatment_event_id"][2:]],
    ).astype({"event_type": "object", "event_date": "object"})  # fmt: skip
    events.loc[events.index[2], "event_type"] = f"told by {TEXT}"
    events.loc[events.index[3], "event_date"] = f"when {TEXT} came"
    for name, frame in (("hcp_profiles", hcps), ("patient_journeys", journeys), ("treatment_events", events)):
        frame.to_csv(folder / f"{name}.csv", index=False)
    said = []
    codes = []
    accepted = ("--threshold", "0", "--reason", "a test of what is said")
    for arguments in (
        ("load", "--from", str(folder), "--dry-run"),
        ("load", "--from", str(folder)),
        ("load", "--from", str(folder), *accepted, "--json"),
        ("rejects", "list"),
        ("gate", "show", "--all"),
        ("gate", "docs", "treatment_events"),
        ("import", "check", str(folder)),
        ("handover",),
        ("status",),
    ):
        done = copy.e2i(*arguments, check=False)
        codes.append(done.returncode)
        said.append(f"{' '.join(arguments[:2])}\n{done.stdout}\n{done.stderr}")
    return copy, codes, said


def test_the_marks_were_loaded_and_rejected(canary):
    copy, codes, _ = canary
    assert codes[1] != 0, "the load was refused at first"
    rejected = copy.rows("SELECT raw_row::text AS row FROM load_rejects")
    assert any(TEXT in row["row"] for row in rejected) and any(NPI in row["row"] for row in rejected)
    assert copy.rows(f"SELECT 1 FROM patient_journeys WHERE patient_id = '{PATIENT}'")


def test_no_mark_is_outside(canary):
    copy, _, _ = canary
    assert files_with(copy.home, MARKS) == {}
    assert columns_with(copy, MARKS) == {}


def test_no_command_says_a_mark(canary):
    for words in canary[2]:
        assert MARKS.intersection(TOKEN.findall(words.encode())) == set(), words.partition("\n")[0]
