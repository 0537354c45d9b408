"""The embedded server: shared by processes, private to its user, usable after anything was killed."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa

from e2i_dagster.database import connection, server
from e2i_dagster.database.server import ensure_server, remove_server, running_server, stop_server
from e2i_dagster.errors import UnavailableError

START = "from e2i_dagster.database.server import ensure_server; ensure_server()"
ASK = (
    "import sqlalchemy as sa\n"
    "from e2i_dagster.database.connection import engine\n"
    "with engine('app').begin() as c:\n"
    "    print(c.scalar(sa.text('SELECT count(*) FROM vocabulary')))\n"
)


def spawn(code: str, state: Path, **more: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "E2I_HOME": str(state), **more}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def log_in(state: Path, login: str = "e2i_owner", database: str = "e2i") -> psycopg.Connection:
    found = running_server(state)
    assert found is not None
    return psycopg.connect(server.server_address(found, database, login), connect_timeout=5)


def postmaster(state: Path) -> int:
    found = running_server(state)
    assert found is not None
    pid = server._pid(found.data)
    assert pid is not None
    return pid


def mode(path: Path | str) -> int:
    return stat.S_IMODE(Path(path).stat().st_mode)


def test_several_processes_start_it_at_once(new_state):
    state = new_state()
    processes = [spawn(ASK, state) for _ in range(4)]
    said = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, said
    assert len({out for out, _ in said}) == 1
    with log_in(state) as held:
        assert held.execute("SHOW fsync").fetchone() == ("on",)
        assert held.execute("SHOW synchronous_commit").fetchone() == ("on",)


def test_life_and_death(new_state):
    """One server through stop, start, and every kind of kill; what was committed stays."""
    state = new_state(reachable=True)
    starter = spawn(START + "; import os; os.kill(os.getpid(), 9)", state)
    starter.communicate(timeout=60)
    assert starter.returncode == -signal.SIGKILL
    with log_in(state) as held:
        held.execute("CREATE TABLE kept (n int)")
        held.execute("INSERT INTO kept VALUES (1)")

    # A client killed in the middle of a transaction that holds a lock.
    code = (
        "import os, psycopg, sys\n"
        "c = psycopg.connect(sys.stdin.readline().strip())\n"
        "c.execute('LOCK TABLE kept'); c.execute('INSERT INTO kept VALUES (2)')\n"
        "print('locked', flush=True); sys.stdin.readline()\n"
    )
    client = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    found = running_server(state)
    assert found is not None and client.stdin is not None and client.stdout is not None
    client.stdin.write(server.server_address(found, "e2i", "e2i_owner") + "\n")
    client.stdin.flush()
    assert client.stdout.readline() == "locked\n"
    client.kill()
    client.wait()
    with log_in(state) as held:
        held.execute("SET lock_timeout = '20s'")
        assert held.execute("SELECT array_agg(n) FROM kept").fetchone() == ([1],)

    # Stop and start again.
    assert stop_server(state) is True
    assert stop_server(state) is False
    assert running_server(state) is None
    again = ensure_server(state)
    with log_in(state) as held:
        assert held.execute("SELECT n FROM kept").fetchall() == [(1,)]

    # The server itself killed: its pid file stays and is stale.
    os.kill(postmaster(state), signal.SIGKILL)
    time.sleep(0.2)
    assert (again.data / "postmaster.pid").exists()
    ensure_server(state)
    with log_in(state) as held:
        assert held.execute("SELECT n FROM kept").fetchall() == [(1,)]

    # A stale pid file whose number now belongs to another process.
    stop_server(state)
    (again.data / "postmaster.pid").write_text(f"{os.getpid()}\n{again.data}\n1\n5432\n\n\n  1 1\nready\n")
    ensure_server(state)
    with log_in(state) as held:
        assert held.execute("SELECT n FROM kept").fetchall() == [(1,)]

    assert remove_server(state) is True
    assert not Path(again.home).exists()
    assert not Path(again.passfile).exists()


def test_a_second_call_is_cheap(state):
    ensure_server()
    begin = time.perf_counter()
    for _ in range(20):
        ensure_server()
    assert (time.perf_counter() - begin) / 20 < 0.02


def test_nobody_else_gets_in(state):
    found = ensure_server()
    assert mode(found.home) == 0o700
    assert mode(found.socket_folder) == 0o700
    assert mode(found.data) == 0o700
    assert mode(Path(found.passfile).parent) == 0o700
    assert mode(found.passfile) == 0o600
    rules = [
        line.split()[-1]
        for line in (found.data / "pg_hba.conf").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert set(rules) == {"scram-sha-256"}
    for login in server.LOGINS:
        with pytest.raises(psycopg.OperationalError, match="password"):
            psycopg.connect(
                host=found.socket_folder,
                user=login,
                dbname="e2i",
                passfile="/no/such/file",
                connect_timeout=5,
            )
    with connection.engine("owner").connect() as held:
        assert held.scalar(sa.text("SHOW listen_addresses")) == ""
        assert held.scalar(sa.text("SHOW TimeZone")) == "UTC"


def test_permissions_of_folders_on_the_way_stay_as_they_are(new_state):
    state = new_state("inside")
    ways = [state, *state.parents]
    before = [mode(way) for way in ways]
    ensure_server(state)
    assert [mode(way) for way in ways] == before


def test_a_path_too_long_for_a_socket(new_state):
    state = new_state("a" * 60, "b" * 60, reachable=True)
    found = ensure_server(state)
    assert len(found.socket_folder) < 100
    assert mode(found.socket_folder) == 0o700
    with log_in(state) as held:
        assert held.execute("SELECT 1").fetchone() == (1,)
    # The short folder is lost (a reboot clears it): a new one is made and recorded.
    stop_server(state)
    Path(found.socket_folder).rmdir()
    ensure_server(state)
    with log_in(state) as held:
        assert held.execute("SELECT 1").fetchone() == (1,)
    last = running_server(state)
    remove_server(state)
    assert last is not None and not Path(last.socket_folder).exists()


def test_a_start_that_was_killed_leaves_nothing_in_the_way(new_state):
    state = new_state(reachable=True)
    (state / "postgres" / "data.half").mkdir(parents=True)
    ensure_server(state)
    with log_in(state) as held:
        assert held.execute("SELECT 1").fetchone() == (1,)


def test_a_failed_start_says_why_and_leaves_nothing_half_made(new_state, monkeypatch):
    state = new_state(reachable=True)
    settings = server._settings

    monkeypatch.setattr(server, "_settings", lambda given: {**settings(given), "shared_buffers": "lots"})
    with pytest.raises(UnavailableError, match=r"did not start.*shared_buffers"):
        ensure_server(state)
    assert {path.name for path in state.iterdir()} <= {"postgres.lock", "secrets"}
    assert list((state / "secrets").iterdir()) == []
    monkeypatch.undo()
    monkeypatch.setenv("E2I_HOME", str(state))
    ensure_server(state)


def test_a_full_disk_is_said_before_anything_is_made(new_state, monkeypatch):
    state = new_state(reachable=True)
    monkeypatch.setattr(server, "_SPACE_NEEDED", 2**60)
    with pytest.raises(UnavailableError, match=r"MB free.*E2I_HOME"):
        ensure_server(state)
    assert {path.name for path in state.iterdir()} <= {"postgres.lock", "secrets"}


def test_a_state_folder_that_cannot_be_written(new_state):
    """As an unprivileged user, because root may write everywhere."""
    state = new_state(reachable=True)
    state.chmod(0o555)
    code = (
        "import os, sys\n"
        "from e2i_dagster.errors import UnavailableError\n"
        "from e2i_dagster.database.server import ensure_server\n"
        "if os.geteuid() == 0:\n"
        "    import pwd; u = pwd.getpwnam('nobody'); os.setgroups([]); os.setgid(u.pw_gid); os.setuid(u.pw_uid)\n"
        "try: ensure_server()\n"
        "except UnavailableError as error: print(error); sys.exit(7)\n"
    )
    process = spawn(code, state)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 7, err
    assert "no permission" in out and str(state) in out and "E2I_HOME" in out
    assert list(state.iterdir()) == []
    state.chmod(0o755)


def test_a_lost_data_folder_is_not_silently_replaced(new_state):
    state = new_state(reachable=True)
    found = ensure_server(state)
    stop_server(state)
    found.data.rename(found.data.with_name("elsewhere"))
    with pytest.raises(UnavailableError, match="is gone"):
        ensure_server(state)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
def test_root_uses_another_user_and_a_place_that_it_reaches(new_state):
    private, reachable = new_state(), new_state(reachable=True)
    elsewhere, inside = ensure_server(private), ensure_server(reachable)
    assert elsewhere.user == inside.user and inside.user is not None
    assert not Path(elsewhere.home).is_relative_to(private)
    assert Path(inside.home) == reachable / "postgres"
    status = Path(f"/proc/{postmaster(private)}/status").read_text()
    uid = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1]
    assert int(uid) == Path(elsewhere.home).stat().st_uid != 0
