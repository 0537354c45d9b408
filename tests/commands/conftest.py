"""The ``e2i`` command as a user types it, on a warehouse and a configuration of the tests' own."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from unittest.mock import patch

import pytest
from click.testing import CliRunner

CHECKOUT = Path(__file__).resolve().parents[2]

Command = Callable[..., subprocess.CompletedProcess[str]]


def e2i(environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "commands.cli", *arguments],
        env=dict(environment),
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


@pytest.fixture(scope="module")
def environment(state: Path, template: str) -> Iterator[dict[str, str]]:
    """Variables of a deployment with two months, a state folder and a warehouse of its own."""
    from e2i_dagster.database import connection

    home = Path(tempfile.mkdtemp(prefix="e2i-"))
    config = home / "config"
    shutil.copytree(CHECKOUT / "config", config)
    sources = config / "sources.yaml"
    text = sources.read_text(encoding="utf-8")
    assert 'first_month: "2022-01"' in text
    sources.write_text(text.replace('first_month: "2022-01"', 'first_month: "2024-11"'), encoding="utf-8")
    name = f"e2i_{home.name.removeprefix('e2i-')}"
    with connection._admin(connection._url("owner", "e2i")) as admin:
        admin.exec_driver_sql(f'CREATE DATABASE "{name}" TEMPLATE {template} STRATEGY FILE_COPY')
    (home / "s").mkdir()
    yield {
        **os.environ,
        "E2I_HOME": str(home / "s"),
        "E2I_CONFIG": str(config),
        "E2I_DATABASE_URL": connection._text(connection._url("owner", name)),
        "PYTHONPATH": str(CHECKOUT),
    }
    connection.dispose()
    connection.drop_database(name)
    shutil.rmtree(home)


@pytest.fixture(scope="module")
def process(environment: dict[str, str]) -> Command:
    """Runs ``e2i`` in a process of its own: what starts from nothing, and what only its end can show."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        done = e2i(environment, *arguments)
        assert "Traceback" not in done.stderr + done.stdout, done.stderr
        return done

    return run


@pytest.fixture(scope="module")
def command(environment: dict[str, str]) -> Command:
    """Runs ``e2i`` in the tests' process, which has its imports; keywords are variables that differ."""
    from commands.cli import main

    def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        # A command sets variables for the rest of its process; here they go when it ends.
        with patch.dict(os.environ, {**environment, **variables}, clear=True):
            done = CliRunner().invoke(main, arguments, catch_exceptions=False, prog_name="e2i")
        assert "Traceback" not in done.output, done.output
        return subprocess.CompletedProcess(arguments, done.exit_code, done.stdout, done.stderr)

    return run
