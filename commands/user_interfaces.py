"""``make ui``: Dagster UI and MLflow UI in the foreground, beside the services that are deployed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from e2i_dagster.errors import UnavailableError
from e2i_dagster.policy_files.environment import CHECKOUT, port, state_folder


def run_user_interfaces(say: Callable[[str], None]) -> None:
    """Start both UIs, restart recorded services, and wait until Ctrl-C or until one of them ends.

    Raises:
        UnavailableError: a port is taken, or a UI ended by itself (with the end of its log).
    """
    from e2i_dagster.registry.mlflow_runs import tracking_environment
    from e2i_dagster.serving.deployment import endpoints, restart_recorded
    from resources.local_instance import dagster_home
    from resources.private_dagster import TOGETHER

    home = dagster_home()
    dagster_port, mlflow_port = _free(port(0), "Dagster UI"), _free(port(4), "MLflow UI")
    restart_recorded(state_folder())
    services = endpoints(state_folder())
    logs = state_folder() / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    bin_folder = Path(sys.executable).parent
    commands = {
        "Dagster UI": (
            [
                str(bin_folder / "dagster"), "dev", "--workspace", str(CHECKOUT / "workspace.yaml"),
                "--host", "127.0.0.1", "--port", str(dagster_port),
            ],
            {**TOGETHER, "DAGSTER_HOME": str(home)},
        ),
        "MLflow UI": (
            [
                str(bin_folder / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(mlflow_port),
                "--workers", "1",
            ],
            tracking_environment(),
        ),
    }  # fmt: skip
    processes: dict[str, subprocess.Popen[bytes]] = {}
    # A stop by a process manager ends what was started, too; a script's background jobs begin deaf to Ctrl-C.
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, signal.default_int_handler)
    try:
        for name, (command, environment) in commands.items():
            log = (logs / f"{name.lower().replace(' ', '-')}.log").open("ab")
            processes[name] = subprocess.Popen(
                command,
                env={**os.environ, **environment},
                cwd=CHECKOUT,
                stdout=log,
                stderr=log,
                # Ctrl-C of the terminal reaches this process alone, which ends them one signal each: the
                # second of two would keep `dagster dev` from ending its own processes.
                start_new_session=True,
            )
        _wait_until_open({"Dagster UI": dagster_port, "MLflow UI": mlflow_port}, processes, logs)
        say(f"Dagster UI  http://127.0.0.1:{dagster_port}")
        say(f"MLflow UI   http://127.0.0.1:{mlflow_port}")
        for endpoint in services:
            say(f"{endpoint.service:<25} {endpoint.url}  {endpoint.health}")
        if not services:
            say("No service is deployed; `make run` deploys one.")
        say("Ctrl-C stops the UIs; services and database go on until `e2i down`.")
        while all(process.poll() is None for process in processes.values()):
            time.sleep(0.5)
        _fail_with_log(processes, logs)
    except KeyboardInterrupt:
        say("Stopping the UIs ...")
    finally:
        for process in processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in processes.values():
            try:
                process.wait(timeout=8)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)


def _free(wanted: int, what: str) -> int:
    """``wanted`` if nobody listens there, or a free port when ``wanted`` is 0."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", wanted))
        except OSError:
            raise UnavailableError(
                f"Port {wanted} for the {what} is taken.",
                remedy="Stop what listens there, or set E2I_PORT_BASE to another first port (0 picks free ones).",
            ) from None
        return int(probe.getsockname()[1])


def _wait_until_open(
    ports: dict[str, int], processes: dict[str, subprocess.Popen[bytes]], logs: Path, seconds: float = 90
) -> None:
    until = time.monotonic() + seconds
    for name, number in ports.items():
        while time.monotonic() < until:
            _fail_with_log(processes, logs)
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", number)) == 0:
                    break
            time.sleep(0.25)
        else:
            raise UnavailableError(
                f"{name} did not open port {number} within {seconds:.0f} s.",
                file=logs,
                field=name,
                remedy=f"See {logs}.",
            )


def _fail_with_log(processes: dict[str, subprocess.Popen[bytes]], logs: Path) -> None:
    for name, process in processes.items():
        if process.poll() is not None:
            log = logs / f"{name.lower().replace(' ', '-')}.log"
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
            raise UnavailableError(
                f"{name} ended with code {process.returncode}. Its log {log} ends:\n{tail}",
                file=log,
                field=name,
                remedy="Correct what its last lines say, then start it again.",
            )
