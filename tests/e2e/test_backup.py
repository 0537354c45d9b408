"""A backup of a living installation, restored beside it: everything is reused, the endpoint answers."""

import json
import shutil
import subprocess
import urllib.request
from dataclasses import replace
from pathlib import Path

import pytest

MODEL = "e2i-remibrutinib-csu-initiation"


@pytest.fixture(scope="module")
def restored(restored_at):
    """The backup in another state folder, what is there, and a run there."""
    there = restored_at("restored")
    status = json.loads(there.e2i("status", "--json").stdout)
    run = json.loads(there.e2i("run", "--scope", "default", "--json").stdout.splitlines()[-1])
    return there, status, run


def refused(deployed, folder: Path, home: Path) -> tuple[int, dict]:
    environment = {**deployed.environment, "E2I_HOME": str(home)}
    done = replace(deployed, environment=environment).e2i("restore", str(folder), "--json", check=False)
    assert not home.exists() or not any(home.iterdir()), "nothing half-restored stays"
    return done.returncode, json.loads(done.stdout.splitlines()[-1])["error"]


def test_the_manifest_names_every_file_and_no_secret(deployed, backup):
    folder, report = backup
    text = (folder / "manifest.json").read_text(encoding="utf-8")
    manifest = json.loads(text)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {file["path"] for file in manifest["files"]} == there - {"manifest.json"}
    assert report["files"] == len(manifest["files"]) and report["databases"] == ["e2i", "e2i_feast", "mlflow"]
    secrets = [path.read_text().strip() for path in (deployed.home / "secrets").glob("*.key")]
    passwords = [
        line.rpartition(":")[2]
        for line in (deployed.home / "secrets/postgres.pgpass").read_text().splitlines()
    ]
    assert secrets and passwords
    assert not any(secret in text for secret in secrets + passwords)
    assert "state/secrets/postgres.pgpass" not in there
    assert folder.stat().st_mode & 0o077 == 0


def test_status_and_a_run_find_everything(deployed, restored):
    _, status, run = restored
    before = json.loads(deployed.e2i("status", "--json").stdout)
    assert status["tables"] == before["tables"]
    made = {(stage["name"], stage["partition"]): stage["data_version"] for stage in before["stages"]}
    assert {(stage["name"], stage["partition"]): stage["data_version"] for stage in status["stages"]} == made
    executed = {stage["name"] for stage in run["stages"] if stage["state"] != "reused"}
    # The log of the day has what was asked of the endpoint meanwhile.
    assert executed <= {"prediction_log", "drift_report", "performance_report"}


def test_the_endpoint_answers_in_both_places(deployed, restored):
    there, _, run = restored
    (endpoint,) = run["endpoints"]
    assert endpoint["health"] == "healthy"
    first, second = (
        json.loads((home / "services/classification.json").read_text(encoding="utf-8"))
        for home in (deployed.home, there.home)
    )
    assert second["supervisor"]["pid"] != first["supervisor"]["pid"]
    assert second["active"]["bento"].startswith(str(there.home))
    body = endpoint["example"].partition("-d '")[2].rstrip("'")
    answers = []
    for record in (first, second):
        request = urllib.request.Request(
            f"http://127.0.0.1:{record['port']}/{MODEL}/predict",
            data=body.encode(),
            headers={"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            answers.append(json.load(answer)["probabilities"])
    assert answers[0] == answers[1]


def test_models_and_features_are_read_at_the_new_place(restored):
    there, _, _ = restored
    found = there.python(
        f"""
import json, mlflow
from e2i_dagster.registry import default_tracking_uri
mlflow.set_tracking_uri(default_tracking_uri()); mlflow.set_registry_uri(default_tracking_uri())
client = mlflow.MlflowClient()
version = client.get_model_version("{MODEL}", "1")
place = mlflow.artifacts.download_artifacts(client.get_model_version_download_uri("{MODEL}", "1"))
from resources.feature_store import FeatureStore
with FeatureStore().open("remibrutinib_csu_initiation") as store:
    files = store.current().files
    store._require_applied(store._store(files), files)
    paths = [file.path for file in files.files]
print(json.dumps([place, *paths]))
"""
    )
    assert all(str(there.home) in path for path in found)
    verified = there.e2i("verify", f"{MODEL}/1", "--json")
    assert json.loads(verified.stdout)["verified"] is True


@pytest.mark.parametrize("damage", ["changed", "missing", "manifest", "newer", "unfinished"])
def test_what_is_not_whole_is_refused_and_named(deployed, backup, tmp_path, damage):
    folder = tmp_path / "copy"
    shutil.copytree(backup[0], folder)
    manifest = folder / "manifest.json"
    wrong = folder / "databases/mlflow.dump"
    if damage == "changed":
        content = bytearray(wrong.read_bytes())
        content[len(content) // 2] ^= 1
        wrong.write_bytes(content)
    elif damage == "missing":
        wrong.unlink()
    elif damage == "unfinished":
        manifest.unlink()
    elif damage == "manifest":
        manifest.write_text(manifest.read_text().replace('"postgresql": ', '"postgresql": 1'))
    else:
        manifest.write_text(manifest.read_text().replace('"layout": 1', '"layout": 2'))
    code, error = refused(deployed, folder, tmp_path / "home")
    assert code == 3
    assert error["file"] == str(wrong if damage in ("changed", "missing") else manifest)
    assert error["remedy"]
    assert ("layout" in error["message"]) == (damage == "newer")


def test_a_state_folder_with_anything_in_it_is_left_alone(deployed, backup, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    (home / "mine").write_text("x")
    environment = {**deployed.environment, "E2I_HOME": str(home)}
    done = replace(deployed, environment=environment).e2i("restore", str(backup[0]), check=False)
    assert done.returncode == 3 and "not empty" in done.stderr
    assert [path.name for path in home.iterdir()] == ["mine"]


def test_no_backup_while_a_run_is_at_work(deployed, tmp_path):
    import psycopg

    from e2i_dagster.database.server import DATABASE, ensure_server, server_address

    with psycopg.connect(server_address(ensure_server(deployed.home), DATABASE)) as connection:
        connection.execute("SELECT set_config('application_name', 'run 4711 2026-01-01T00:00:00', false)")
        done: subprocess.CompletedProcess = deployed.e2i("backup", str(tmp_path / "b"), check=False)
    assert done.returncode == 4 and "4711" in done.stderr
    assert not (tmp_path / "b").exists()


def test_a_backup_does_not_go_into_what_it_copies(deployed):
    done = deployed.e2i("backup", str(deployed.home / "b"), check=False)
    assert done.returncode == 3 and not (deployed.home / "b").exists()
