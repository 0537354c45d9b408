"""The supervisor as seen by those who deploy, start and stop: its lock, its process, its control port."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from e2i_dagster.config.serving import ServingPolicy
from e2i_dagster.errors import E2IError, UnavailableError
from e2i_dagster.serving.state import (
    ServiceRecord,
    family,
    kill,
    library_environment,
    log_path,
    make_private,
    python_module,
    read_record,
    services_folder,
    wait_ended,
    write_record,
)
from e2i_dagster.serving.supervisor import listen

Progress = Callable[[str], None]


class DeploymentError(E2IError):
    """A release did not go live; what served before still does. Says at which step and why."""

    exit_code = 6


@contextlib.contextmanager
def exclusive(state: Path, service: str, seconds: float, say: Progress) -> Iterator[None]:
    """One deployment, start or stop of a service at a time."""
    path = services_folder(state) / f"{service}.lock"
    make_private(path.parent)
    deadline = time.monotonic() + seconds
    with path.open("a") as lock:
        waiting = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"Another deployment of {service} has not ended within {seconds:g} s (lock_seconds "
                        f"in config/serving.yaml).",
                        remedy="Try again later.",
                    ) from None
                if not waiting:
                    waiting = True
                    say(f"waiting for another deployment of {service}")
                time.sleep(0.1)
        yield


class Control:
    """Connection to the control port of a supervisor."""

    def __init__(self, record: ServiceRecord) -> None:
        self._record = record

    def __enter__(self) -> Control:
        try:
            self._socket = socket.create_connection(("127.0.0.1", self._record.control_port), timeout=30)
        except OSError:
            raise UnavailableError(
                f"The supervisor of {self._record.service} does not answer.",
                remedy="Stop it with `e2i down` and try again.",
            ) from None
        self._file = self._socket.makefile("rwb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, command: str, *, check: bool = True, **arguments: Any) -> dict[str, Any]:
        """Send one command and return the answer."""
        line = json.dumps({"token": self._record.token, "command": command, **arguments})
        try:
            self._file.write(line.encode() + b"\n")
            self._file.flush()
            answer = self._file.readline()
        except OSError:
            answer = b""
        if not answer:
            raise DeploymentError(
                f"The supervisor of {self._record.service} ended during the command {command!r}."
            )
        found: dict[str, Any] = json.loads(answer)
        if check and not found["ok"]:
            raise DeploymentError(
                f"The supervisor of {self._record.service} could not {command}: {found.get('problem', 'no reason')}."
            )
        return found


def start_supervisor(
    state: Path,
    service: str,
    *,
    host: str,
    port: int,
    earlier: ServiceRecord | None,
    policy: ServingPolicy,
    resume: bool,
) -> ServiceRecord:
    """Start the detached supervisor of ``service`` and wait until it listens.

    Raises:
        UnavailableError: the port is taken, or the process does not start; its last line is given.
    """
    if not port and earlier is not None and port_is_free(host, earlier.port):
        port = earlier.port
    require_free(host, port, service)
    log = log_path(state, service)
    make_private(log.parent)
    start_of_log = log.stat().st_size if log.exists() else 0
    arguments = [service, "--state", str(state), "--host", host, "--port", str(port)]
    with log.open("ab") as output:
        process = subprocess.Popen(
            python_module("e2i_dagster.serving.supervisor", *arguments, *([] if resume else ["--empty"])),
            cwd=services_folder(state),
            env={**os.environ, **library_environment(state, state / "bentoml")},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + policy.deployment.start_timeout_seconds
    while time.monotonic() < deadline:
        record = read_record(state, service)
        if record is not None and record.supervisor is not None and record.supervisor.pid == process.pid:
            return record
        if process.poll() is not None:
            with log.open("rb") as written:
                written.seek(start_of_log)
                said = written.read().decode(errors="replace").strip().splitlines()
            require_free(host, port, service)
            raise UnavailableError(
                f"The supervisor of {service} could not start: {said[-1] if said else 'no message'}.",
                file=log,
                remedy=f"See its log {log}.",
            )
        time.sleep(0.05)
    process.kill()
    process.wait()
    raise UnavailableError(
        f"The supervisor of {service} did not start in time.", file=log, remedy=f"See its log {log}."
    )


def port_is_free(host: str, port: int) -> bool:
    try:
        listen(host, port).close()
    except OSError:
        return False
    return True


def require_free(host: str, port: int, service: str) -> None:
    """Raises UnavailableError when the public port cannot be had; names who has it when it can be known."""
    try:
        listen(host, port).close()
    except PermissionError:
        raise UnavailableError(
            f"Port {port} for the service {service} needs rights that this user has not.",
            remedy="Choose other ports with E2I_PORT_BASE (services listen on base + 1, 2, 3; 0 picks free ones).",
        ) from None
    except OSError as error:
        raise UnavailableError(
            f"Port {port} on {host} for the service {service} is not available ({error.strerror}); "
            f"{_who_listens(port)}.",
            file="E2I_PORT_BASE",
            field="port",
            value=port,
            remedy="End that process or choose other ports with E2I_PORT_BASE (services listen on base + 1, 2, 3; 0 "
            "picks free ones).",
        ) from None


def _who_listens(port: int) -> str:
    import psutil

    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections(kind="tcp"):
            if (
                connection.status == psutil.CONN_LISTEN
                and connection.laddr
                and connection.laddr.port == port
                and connection.pid
            ):
                return f"process {connection.pid} ({psutil.Process(connection.pid).name()}) listens there"
    return "which process has it cannot be seen by this user"


def stop_supervisor(state: Path, record: ServiceRecord, policy: ServingPolicy) -> None:
    """End the supervisor of ``record`` and everything it started."""
    if record.supervisor is None:
        return
    members = family(record.supervisor)
    if record.active is not None and record.active.process is not None:
        members += family(record.active.process)
    if record.supervised():
        with contextlib.suppress(ProcessLookupError):
            os.kill(record.supervisor.pid, signal.SIGTERM)
    # The supervisor itself kills a colour that does not end in time.
    if not wait_ended(members, policy.deployment.stop_seconds + 5):
        kill(members)
        wait_ended(members, 5)
    with contextlib.suppress(ChildProcessError):
        os.waitpid(record.supervisor.pid, os.WNOHANG)
    # One that was killed could not write that it was stopped, and would be started again.
    left = read_record(state, record.service)
    if left is not None and left.supervisor is not None:
        write_record(state, left.model_copy(update={"supervisor": None}))
