"""Generate, load, correct: by the command, with good files and with bad ones."""

import json
import shutil

import pandas as pd
import pytest

ROWS = ("loaded", "unchanged", "rejected", "duplicate", "reversal")


@pytest.fixture(scope="module")
def delivery(command, tmp_path_factory):
    """Files of 400 patients, as a supplier would deliver them."""
    folder = tmp_path_factory.mktemp("delivery") / "files"
    done = command("generate", str(folder), "--patients", "400", "--seed", "7")
    assert done.returncode == 0, done.stderr
    return folder


def rows_of(path):
    return pd.read_csv(path, dtype="string[pyarrow]", keep_default_na=False)


def test_a_delivery_with_a_bad_row_from_load_to_correction(command, process, delivery, tmp_path):
    files = tmp_path / "files"
    shutil.copytree(delivery, files)
    professionals = rows_of(files / "hcp_profiles.csv")
    right = professionals.loc[3, "npi"]
    professionals.loc[3, "npi"] = str(right)[:-1] + str((int(str(right)[-1]) + 1) % 10)
    professionals.to_csv(files / "hcp_profiles.csv", index=False)
    source = {path.stem: len(rows_of(path)) for path in files.glob("*.csv")}
    assert len(source) == 11

    planned = command("load", "--from", str(files), "--dry-run", "--json")
    assert planned.returncode == 0, planned.stderr
    assert json.loads(planned.stdout)["tables"]["hcp_profiles"]["reasons"] == {"npi_check_digit": 1}
    assert json.loads(command("rejects", "list", "--json").stdout) == []

    first = process("load", "--from", str(files), "--json")
    tables = json.loads(first.stdout)["tables"]
    assert {name: counts["source"] for name, counts in tables.items()} == source
    for name, counts in tables.items():
        assert counts["source"] == sum(counts[kind] for kind in ROWS) == counts["lines"], name
    assert tables["hcp_profiles"]["rejected"] == 1

    second = json.loads(command("load", "--from", str(files), "--json").stdout)["tables"]
    for name, counts in second.items():
        assert counts["loaded"] == 0, name
        assert counts["unchanged"] == tables[name]["loaded"], name

    events = rows_of(files / "treatment_events.csv")
    restated = tmp_path / "restated"
    restated.mkdir()
    written = events[events["event_date"].str[:7].isin(tables["treatment_events"]["partitions"])]
    left = written.drop_duplicates("event_date").iloc[:3]
    written = written[written["event_date"].str[:7].isin(left["event_date"].str[:7])]
    gone = sorted(set(written["treatment_event_id"]) - set(left["treatment_event_id"]))
    left.to_csv(restated / "treatment_events.csv", index=False)
    mapping = tmp_path / "mapping.yaml"
    mapping.write_text("tables: {treatment_events: {restates: month}}\n")
    planned = ("load", "--from", str(restated), "--mapping", str(mapping), "--dry-run")
    done = command(*planned)
    shown = done.stdout
    assert done.returncode == 0 and len(gone) > 10, done.stderr
    assert all(key in shown for key in gone[:10]) and not any(key in shown for key in gone[10:])
    assert f"... and {len(gone) - 10} more rows of treatment_events; --json names all of them." in shown
    going = json.loads(command(*planned, "--json").stdout)["tables"]["treatment_events"]["going"]
    assert [one["row"] for one in going] == gone
    assert {one["reason"] for one in going} == {"not_delivered"}

    listed = json.loads(command("rejects", "list", "--table", "hcp_profiles", "--json").stdout)
    assert [(row["reason"], row["rows"]) for row in listed] == [("npi_check_digit", 1)]
    corrections = tmp_path / "corrections"
    assert command("rejects", "export", str(corrections)).returncode == 0
    wrong = rows_of(corrections / "hcp_profiles.csv").assign(npi=right)
    wrong.to_csv(corrections / "hcp_profiles.csv", index=False)
    mended = command("rejects", "resubmit", str(corrections), "--json")
    assert json.loads(mended.stdout)["tables"]["hcp_profiles"]["inserted"] == 1
    assert "No open rejects" in command("rejects", "list").stdout

    status = json.loads(command("status", "--json").stdout)
    # The configuration keeps two months of the three years: the others are counted, and in no table.
    beyond = {name: one["reasons"].get("before_first_month", 0) for name, one in tables.items()}
    assert beyond["treatment_events"] > beyond["hcp_profiles"] == 0
    assert {name: status["tables"][name] + beyond[name] for name in source} == source
    assert {stage["state"] for stage in status["stages"] if stage["name"] == "raw/hcp_profiles"} <= {
        "executed"
    }


def test_a_wrong_folder_is_one_message_before_any_work(command, delivery, tmp_path):
    files = tmp_path / "files"
    shutil.copytree(delivery, files)
    journeys = rows_of(files / "patient_journeys.csv")
    journeys.drop(columns="patient_journey_id").to_csv(files / "patient_journeys.csv", index=False)
    (files / "hcp_profiles.csv").write_text("", encoding="utf-8")
    triggers = files / "triggers.csv"
    triggers.write_text(triggers.read_text(encoding="utf-8"), encoding="utf-16")
    rows_of(files / "causal_paths.csv").to_csv(files / "causal_paths.csv", index=False, sep=";")
    before = command("status", "--json").stdout
    done = command("load", "--from", str(files), "--dry-run")
    assert done.returncode == 3
    problems = {line.split(":")[0].strip(" -"): line for line in done.stderr.splitlines() if ".csv:" in line}
    assert set(problems) == {"patient_journeys.csv", "hcp_profiles.csv", "triggers.csv", "causal_paths.csv"}
    assert "patient_journey_id" in problems["patient_journeys.csv"]
    assert "UTF-16" in problems["triggers.csv"]
    assert 'separated by ";"' in problems["causal_paths.csv"]
    assert command("status", "--json").stdout == before


def test_a_wrong_folder_ends_the_job_with_the_same_code(command, delivery, tmp_path):
    files = tmp_path / "files"
    shutil.copytree(delivery, files)
    (files / "hcp_profiles.csv").write_text("", encoding="utf-8")
    done = command("load", "--from", str(files))
    assert done.returncode == 3, done.stdout
    assert "hcp_profiles.csv" in done.stdout + done.stderr


def test_a_folder_that_is_not_there_is_named(command, tmp_path):
    done = command("load", "--from", str(tmp_path / "deliveries"), "--dry-run")
    assert done.returncode == 3
    assert str(tmp_path / "deliveries") in done.stderr


def test_a_threshold_needs_its_reason(command, delivery):
    done = command("load", "--from", str(delivery), "--threshold", "0.5")
    assert done.returncode == 2
    assert "--reason" in done.stderr


def test_a_closed_port_is_said_without_the_password(command):
    done = command("status", E2I_DATABASE_URL="postgresql+psycopg://e2i:s3cret@127.0.0.1:9/e2i")
    assert done.returncode == 5
    assert "127.0.0.1" in done.stderr
    assert "s3cret" not in done.stdout + done.stderr


def test_an_unknown_scope_names_the_known_ones(command):
    done = command("plan", "--scope", "remibrutinib_csu_initation")
    assert done.returncode == 3
    assert "remibrutinib_csu_initiation" in done.stderr


def test_a_state_folder_below_a_file_is_said(command, tmp_path):
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    done = command("load", "--small", E2I_HOME=str(tmp_path / "file" / "state"), E2I_DATABASE_URL="")
    assert done.returncode == 5
    assert str(tmp_path / "file") in done.stderr
    assert (tmp_path / "file").read_text(encoding="utf-8") == "not a folder"
