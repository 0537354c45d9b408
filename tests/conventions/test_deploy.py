"""The files of deploy/ say what they mean: the instance opens on PostgreSQL, the compose file holds together."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
import yaml

from e2i_dagster.database import connection, server
from e2i_dagster.policy_files.environment import CHECKOUT

DEPLOY = CHECKOUT / "deploy"


@pytest.fixture
def history(database: sa.Engine) -> Iterator[sa.Engine]:
    """An empty database for Dagster: beside the warehouse, because both keep their migrations under one name."""
    name = f"e2i_{secrets.token_hex(6)}"
    engine = sa.create_engine(connection.scratch_database(name), poolclass=sa.NullPool)
    yield engine
    connection.drop_database(name)


@pytest.fixture
def instance_folder(tmp_path: Path, history: sa.Engine, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A DAGSTER_HOME with the production file and the environment that it reads."""
    (tmp_path / "dagster.yaml").write_bytes((DEPLOY / "dagster.yaml").read_bytes())
    monkeypatch.setenv("DAGSTER_HOME", str(tmp_path))
    monkeypatch.setenv("DAGSTER_LOGS", str(tmp_path / "logs"))
    monkeypatch.setenv("DAGSTER_POSTGRES_USER", str(history.url.username))
    monkeypatch.setenv("DAGSTER_POSTGRES_DATABASE", str(history.url.database))
    # The embedded server has a socket and a password file instead of a host and a password.
    monkeypatch.setenv("DAGSTER_POSTGRES_HOST", "")
    monkeypatch.setenv("DAGSTER_POSTGRES_PASSWORD", "")
    monkeypatch.setenv("PGHOST", str(history.url.query["host"]))
    monkeypatch.setenv("PGPASSFILE", str(history.url.query["passfile"]))
    return tmp_path


def test_the_production_instance_opens_on_postgresql(instance_folder, history):
    import dagster as dg
    from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
    from dagster._core.run_coordinator import QueuedRunCoordinator
    from dagster_postgres import PostgresEventLogStorage, PostgresRunStorage

    with dg.DagsterInstance.get() as instance:
        assert isinstance(instance.run_storage, PostgresRunStorage)
        assert isinstance(instance.event_log_storage, PostgresEventLogStorage)
        assert isinstance(instance.run_coordinator, QueuedRunCoordinator)
        assert isinstance(instance.run_launcher, DefaultRunLauncher)
        assert not instance.telemetry_enabled
        limits = instance.get_concurrency_config().run_queue_config
        assert limits is not None
        assert {limit["key"] for limit in limits.tag_concurrency_limits} == {
            "dagster/partition",
            "dagster/asset_partition_range_start",
        }

        @dg.op
        def answer() -> int:
            return 42

        @dg.job
        def one_run() -> None:
            answer()

        result = one_run.execute_in_process(instance=instance)
        assert instance.get_run_by_id(result.run_id).status == dg.DagsterRunStatus.SUCCESS
    assert {"runs", "event_logs", "job_ticks"} <= set(sa.inspect(history).get_table_names())
    assert not list(instance_folder.rglob("*.db")), "nothing of the history may be in local files"


def test_the_production_instance_names_the_variable_that_is_missing(instance_folder, monkeypatch):
    import dagster as dg

    monkeypatch.delenv("DAGSTER_POSTGRES_HOST")
    with pytest.raises(Exception, match="DAGSTER_POSTGRES_HOST"), dg.DagsterInstance.get() as instance:
        instance.get_runs_count()


@pytest.fixture(scope="module")
def compose() -> dict:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8"))


def test_only_the_proxy_publishes_ports(compose):
    published = {name for name, service in compose["services"].items() if "ports" in service}
    assert published == {"proxy"}
    for name, service in compose["services"].items():
        if name not in ("proxy", "postgres"):
            assert service["network_mode"] == "service:proxy"
            assert "127.0.0.1" in str(service["command"]) or name == "daemon", (
                f"{name} must not listen elsewhere"
            )


def test_names_in_the_compose_file_exist(compose):
    for name, service in compose["services"].items():
        assert set(service.get("depends_on", {})) <= set(compose["services"]), name
        assert set(service.get("secrets", [])) <= set(compose["secrets"]), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("./"):
                assert (DEPLOY / source).exists(), f"{name}: {source} is not there"
            else:
                assert source in compose["volumes"], f"{name}: {source}"
    for service in compose["services"].values():
        if "build" in service:
            assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).exists()


def test_compose_sets_what_the_instance_file_reads(compose):
    """Every variable of deploy/dagster.yaml is set by the image or by each Dagster process."""
    wanted = set(re.findall(r"env: (\w+)", (DEPLOY / "dagster.yaml").read_text(encoding="utf-8")))
    by_image = set(re.findall(r"(\w+)=/", (DEPLOY / "Dockerfile").read_text(encoding="utf-8")))
    for name in ("code", "webserver", "daemon", "classification"):
        assert wanted <= by_image | set(compose["services"][name]["environment"]), name


def test_no_secret_is_written_down(compose):
    for name, service in compose["services"].items():
        for variable, value in service.get("environment", {}).items():
            if "PASSWORD" in variable:
                assert value.startswith(("/run/secrets/", "${")), f"{name}: {variable}"
            assert not re.search(r"://\w+:(?!\$\{)", str(value)), f"{name}: {variable} holds a password"


def test_every_page_of_the_proxy_asks_for_a_password():
    text = (DEPLOY / "nginx.conf").read_text(encoding="utf-8")
    assert text.count("auth_basic_user_file /run/secrets/proxy_users;") == 1
    assert "auth_basic off" not in text
    assert set(re.findall(r"listen (\d+)( ssl)?;", text)) == {
        ("8443", " ssl"),
        ("8444", " ssl"),
        ("8445", " ssl"),
    }
    assert set(re.findall(r"proxy_pass \w+://([\d.]+):", text)) == {"127.0.0.1"}


def test_the_image_copies_what_is_there():
    dockerfile = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (.+)$", dockerfile, flags=re.MULTILINE):
        for source in line.split()[:-1]:
            assert (CHECKOUT / source).exists(), f"COPY {source}"
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8")
    for line in re.findall(r"^COPY (.+)$", dockerfile, flags=re.MULTILINE):
        for source in line.split()[:-1]:
            assert f"!{source}" in ignore, f"{source} is copied but not sent to the build"


def test_the_user_of_databases_sh_takes_on_the_roles(new_state: Callable[..., Path], monkeypatch):
    """The role that deploy/databases.sh makes is no superuser; it migrates a warehouse and works as e2i_app."""
    import psycopg

    monkeypatch.setenv("E2I_HOME", str(new_state()))
    started = server.ensure_server()
    statements = re.findall(
        r"^CREATE .*;$", (DEPLOY / "databases.sh").read_text(encoding="utf-8"), re.MULTILINE
    )
    assert len(statements) == 4
    with psycopg.connect(server.server_address(started, "postgres"), autocommit=True) as admin:
        # A server of the user's knows nothing of ours.
        for name in ("owner", "app", "read"):
            admin.execute(f"ALTER ROLE e2i_{name} RENAME TO before_{name}")
        admin.execute("ALTER DATABASE e2i RENAME TO before")
        for statement in statements:
            admin.execute(statement.replace(":'password'", "'invented'"))
    place = psycopg.conninfo.conninfo_to_dict(server.server_address(started, "e2i"))["host"]
    monkeypatch.setenv("E2I_DATABASE_URL", f"postgresql://e2i:invented@/e2i?host={place}")
    try:
        for role in ("app", "read"):
            with connection.engine(role).connect() as opened:
                assert opened.exec_driver_sql("SELECT current_user").scalar_one() == f"e2i_{role}"
        assert connection.ensure_database("optuna")
    finally:
        connection.dispose()
