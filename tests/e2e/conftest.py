"""One run of the whole plan through the real command, shared by every test of this folder.

It has a configuration, a state folder and a database server of its own, told to its processes by
their environment: nothing of it is in the environment of the other tests.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]

#: Enough for the default scope's minimum sample, and no more.
SCALE = 0.3
NOT_INHERITED = (
    "E2I_LAKE",
    "E2I_DATABASE_URL",
    "E2I_ALLOW_PATIENT_LEVEL",
    "E2I_ALERT_WEBHOOK_URL",
    "E2I_ALERT_SLACK_URL",
    "E2I_ALERT_SMTP_URL",
    "MLFLOW_TRACKING_URI",
    "DAGSTER_HOME",
    "OPIK_URL",
)


@dataclass(frozen=True)
class Deployment:
    """A finished run: where it is, how to ask it, and what it reported."""

    home: Path
    config: Path
    environment: Mapping[str, str]
    report: Mapping[str, Any]
    progress: str

    def e2i(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run the ``e2i`` command in this deployment."""
        return e2i(self.environment, *arguments, check=check)

    def python(self, program: str) -> Any:
        """What ``program`` prints last, as JSON, run in a process of this deployment."""
        done = subprocess.run(
            [sys.executable, "-c", program],
            env=dict(self.environment),
            cwd=self.home,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def rows(self, statement: str) -> list[dict[str, Any]]:
        """The rows that ``statement`` selects in the warehouse of this deployment."""
        import psycopg
        from psycopg.rows import dict_row

        with psycopg.connect(self.database, row_factory=dict_row) as connection:
            return connection.execute(statement.encode()).fetchall()

    @property
    def database(self) -> str:
        """Address of the warehouse for psycopg."""
        from e2i_dagster.database.server import DATABASE, ensure_server, server_address

        return server_address(ensure_server(self.home), DATABASE)


def e2i(
    environment: Mapping[str, str], *arguments: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Run the ``e2i`` command as a user does."""
    done = subprocess.run(
        [sys.executable, "-m", "commands.cli", *arguments],
        env=dict(environment),
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=800,
    )
    assert not check or done.returncode == 0, f"e2i {' '.join(arguments)}: {done.stdout}\n{done.stderr}"
    return done


@pytest.fixture(scope="session")
def deployed(state: Path) -> Iterator[Deployment]:
    """The plan run once for the default scope, with its endpoint alive; everything is taken away at the end."""
    from e2i_dagster.database.server import remove_server

    home = Path(tempfile.mkdtemp(prefix="e2i-run-"))
    config = home / "config"
    shutil.copytree(CHECKOUT / "config", config)
    sources = config / "sources.yaml"
    text = sources.read_text(encoding="utf-8")
    assert "scale: 1.0" in text
    sources.write_text(text.replace("scale: 1.0", f"scale: {SCALE}"), encoding="utf-8")
    environment = {name: value for name, value in os.environ.items() if name not in NOT_INHERITED} | {
        "E2I_HOME": str(home / "s"),
        "E2I_CONFIG": str(config),
        "E2I_PORT_BASE": "0",
        "E2I_ACTOR": "test",
        "PYTHONPATH": str(CHECKOUT),
    }
    (home / "s").mkdir()
    try:
        done = e2i(environment, "run", "--scope", "default", "--json")
        report = json.loads(done.stdout.splitlines()[-1])
        yield Deployment(home / "s", config, environment, report, done.stderr)
    finally:
        e2i(environment, "down", check=False)
        remove_server(home / "s")
        shutil.rmtree(home)


@pytest.fixture(scope="session")
def again(deployed: Deployment) -> Mapping[str, Any]:
    """The report of a second run, and the progress of the first is not touched."""
    return json.loads(deployed.e2i("run", "--scope", "default", "--json").stdout.splitlines()[-1])


@pytest.fixture(scope="session")
def backup(
    deployed: Deployment, again: Mapping[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Mapping[str, Any]]:
    """A backup of the deployment after its second run, and what the command reported."""
    folder = tmp_path_factory.mktemp("backup") / "b"
    return folder, json.loads(deployed.e2i("backup", str(folder), "--json").stdout)


@pytest.fixture(scope="session")
def restored_at(
    deployed: Deployment, backup: tuple[Path, Mapping[str, Any]]
) -> Iterator[Callable[[str], Deployment]]:
    """Restores the backup into a new state folder beside the deployment; each is taken away at the end."""
    from e2i_dagster.database.server import remove_server

    made: list[Deployment] = []

    def restore(name: str) -> Deployment:
        home = deployed.home.with_name(name)
        copy = replace(deployed, home=home, environment={**deployed.environment, "E2I_HOME": str(home)})
        made.append(copy)
        copy.e2i("restore", str(backup[0]))
        return copy

    yield restore
    for copy in made:
        copy.e2i("down", check=False)
        remove_server(copy.home)
        shutil.rmtree(copy.home, ignore_errors=True)
