"""Starting a supervisor again that was killed.

Each worker of a service looks whether its supervisor runs; when it was killed, the first worker that sees it starts
another, which takes over the colour that still runs. ``python -m e2i_dagster.serving.watch`` does the same for every
service of a state folder: for an init system, and the sensor ``service_watch`` of the Dagster daemon.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from e2i_dagster.config.serving import ServingPolicy
from e2i_dagster.errors import E2IError, InputError
from e2i_dagster.policy_files.environment import state_folder
from e2i_dagster.serving.state import (
    ColourSettings,
    ServiceRecord,
    python_module,
    read_record,
    read_records,
    services_folder,
    write_private,
)

logger = logging.getLogger(__name__)

#: How often a worker looks, seconds.
_LOOK_SECONDS = 0.5
#: A worker whose supervisor could not be started again this often gives up.
_ATTEMPTS = 3
#: How long a worker may take to store its prediction log when it ends, seconds.
_END_SECONDS = 20.0
#: The sensor is said to watch for this long after it last looked, seconds.
_SENSOR_SECONDS = 30.0


def was_killed(record: ServiceRecord | None) -> bool:
    """Whether the supervisor of ``record`` ended without having been stopped."""
    return (
        record is not None
        and record.active is not None
        and record.supervisor is not None
        and not record.supervised()
    )


def restart_killed(state: Path | None = None, *, policy: ServingPolicy | None = None) -> list[str]:
    """Start every supervisor again that was killed; returns the names of the services.

    Raises:
        UnavailableError: the public port is taken meanwhile, or the supervisor does not start.
    """
    from e2i_dagster.serving.control import exclusive, start_supervisor

    state = (state or state_folder()).absolute()
    policy = policy or ServingPolicy.load()
    started: list[str] = []
    for seen in read_records(state):
        if not was_killed(seen):
            continue
        with exclusive(state, seen.service, policy.deployment.lock_seconds, logger.info):
            record = read_record(state, seen.service)
            # Another watcher may have been first, or somebody has stopped it.
            if record is None or not was_killed(record):
                continue
            start_supervisor(
                state,
                record.service,
                host=record.host,
                port=record.port,
                earlier=record,
                policy=policy,
                resume=True,
            )
            started.append(record.service)
    return started


def note_sensor(state: Path) -> None:
    """Note that the daemon's sensor has looked."""
    if services_folder(state).is_dir():
        write_private(_sensor_file(state), "")


def watchers(state: Path, record: ServiceRecord) -> str:
    """Who starts the supervisor of ``record`` again if it is killed, in words."""
    found: list[str] = []
    if record.supervised() and record.active is not None and record.active.process is not None:
        found.append(f"its {record.active.workers} worker{'s' if record.active.workers > 1 else ''}")
    with contextlib.suppress(OSError):
        if time.time() - _sensor_file(state).stat().st_mtime < _SENSOR_SECONDS:
            found.append("the sensor service_watch")
    return " and ".join(found) or "nobody"


def _sensor_file(state: Path) -> Path:
    return services_folder(state) / "service_watch"


def watch_supervisor(settings: ColourSettings, parent: int) -> None:
    """Run for ever in a worker: start the supervisor again when it was killed, and end when nobody needs the worker.

    Args:
        parent: number of BentoML's own process, which started this one.
    """
    failures = 0
    while failures < _ATTEMPTS:
        time.sleep(_LOOK_SECONDS)
        try:
            record = read_record(settings.state, settings.service)
        except InputError:
            record = None
        if record is None or record.supervisor is None:
            break
        mine = record.active is not None and record.active.colour == settings.colour
        if record.supervised():
            failures = 0
            # Without BentoML's process the worker answers on until another colour is in its place.
            process = record.active.process if mine and record.active is not None else None
            if os.getppid() != parent and (process is None or process.pid != parent):
                break
            continue
        if not mine:
            break
        # A process of its own, so that the supervisor is no descendant of the worker and does not end with it.
        command = python_module("e2i_dagster.serving.watch", "--state", str(settings.state))
        done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL)
        failures += done.returncode != 0
    if os.getppid() == parent:
        os.kill(parent, signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGTERM)
    # The usual end stores the prediction log; what is left after this is in the journal.
    time.sleep(_END_SECONDS)
    os._exit(1)


def main(arguments: list[str] | None = None) -> int:
    """Start killed supervisors again; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--state", type=Path, default=None)
    chosen = parser.parse_args(arguments)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO, stream=sys.stderr)
    try:
        for service in restart_killed(chosen.state):
            logger.info("The supervisor of %s was killed and is started again", service)
    except E2IError as error:
        logger.error("%s", error)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
