"""What is kept about services below the state folder, and which processes are theirs.

``services/<service>.json`` is written by the supervisor alone (readable by its owner only, since it
holds the token of the control port), and stays when the supervisor ends: it says what to start again.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from e2i_dagster.errors import InputError

#: Header of requests that are neither logged nor counted (with the token of the service's record).
PROBE_HEADER = "x-e2i-probe"

#: Header by which the supervisor names a request; the same when it is asked again after a worker died.
FORWARD_HEADER = b"x-e2i-forward"


def services_folder(state: Path) -> Path:
    """Records, locks, logs and journals of all services."""
    return state / "services"


def bentoml_folder(state: Path) -> Path:
    """BentoML's store of built bentos."""
    return state / "bentoml"


def journal_folder(state: Path) -> Path:
    """Answers that are not yet in the warehouse."""
    return services_folder(state) / "journal"


def log_path(state: Path, service: str) -> Path:
    """Log of the supervisor of ``service``."""
    return services_folder(state) / "logs" / f"{service}.log"


def make_private(folder: Path) -> Path:
    """Make ``folder`` (0700) if it is not there; permissions of an existing one stay as they are."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def write_private(path: Path, text: str) -> None:
    """Write ``path`` aside and rename it, readable by its owner only."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    aside.replace(path)


def library_environment(state: Path, bentoml_home: Path) -> dict[str, str]:
    """Variables for processes that run BentoML: its folder, no tracking, our package importable."""
    package_root = str(Path(__file__).resolve().parents[2])
    inherited = os.environ.get("PYTHONPATH", "")
    scratch = make_private(services_folder(state) / "scratch")
    return {
        "E2I_HOME": str(state),
        "BENTOML_HOME": str(bentoml_home),
        "BENTOML_DO_NOT_TRACK": "True",
        "DO_NOT_TRACK": "1",
        "TMPDIR": str(scratch),
        "PYTHONPATH": os.pathsep.join(part for part in (package_root, inherited) if part),
    }


class ProcessIdentity(BaseModel):
    """A process that cannot be confused with a later one of the same number."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """The identity of the running process ``pid``."""
        import psutil

        return cls(pid=pid, created=psutil.Process(pid).create_time())

    def running(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        import psutil

        try:
            found = psutil.Process(self.pid)
            # The system derives the time from its boot time, which moves a little when the clock is set.
            same = abs(found.create_time() - self.created) < 2
            return same and found.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False


def family(process: ProcessIdentity) -> list[ProcessIdentity]:
    """``process`` and all its descendants that run now."""
    import psutil

    if not process.running():
        return []
    found = [process]
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(ProcessIdentity(pid=child.pid, created=child.create_time()))
    return found


def kill(processes: list[ProcessIdentity]) -> None:
    """Kill those of ``processes`` that still run."""
    import signal

    for process in processes:
        if process.running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


def wait_ended(processes: list[ProcessIdentity], seconds: float) -> bool:
    """Wait until none of ``processes`` runs; False if some still do after ``seconds``."""
    deadline = time.monotonic() + seconds
    while any(process.running() for process in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


class ColourSettings(BaseModel):
    """What a colour needs beyond its release.

    Attributes:
        stages: model id to the registry stage it had when it was deployed.
        audit: write answers to the prediction log.
        probe_token: requests that carry it (health, parity) are neither logged nor counted.
        supervisor: the process without which the colour ends itself.
        failure: file into which the colour writes why it could not start.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    colour: str
    slot: str
    stages: dict[str, str]
    audit: bool
    probe_token: str
    state: Path
    failure: Path
    service: str = ""
    workers: int = 1


class ActiveColour(BaseModel):
    """The colour that gets the traffic (or will, when the service is started again)."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    colour: str
    bento: Path
    tag: str
    version: str
    slot: str
    stages: dict[str, str]
    audit: bool
    model_ids: tuple[str, ...]
    process: ProcessIdentity | None = None
    port: int | None = None
    since: str
    restarts: int = 0
    workers: int = 1


class ServiceRecord(BaseModel):
    """``services/<service>.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    service: str
    host: str
    port: int
    supervisor: ProcessIdentity | None
    control_port: int
    token: str
    started_at: str
    stopped_at: str | None = None
    active: ActiveColour | None = None

    @property
    def url(self) -> str:
        """Address of the public port."""
        return f"http://{self.host}:{self.port}"

    def supervised(self) -> bool:
        """Whether the supervisor of the record runs."""
        return self.supervisor is not None and self.supervisor.running()


def record_path(state: Path, service: str) -> Path:
    """Where the record of ``service`` is."""
    return services_folder(state) / f"{service}.json"


def read_record(state: Path, service: str) -> ServiceRecord | None:
    """The record of ``service``; None if it was never deployed.

    Raises:
        InputError: the file is damaged.
    """
    path = record_path(state, service)
    try:
        return ServiceRecord.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        raise InputError(
            f"{path} is damaged.",
            remedy="Remove it and deploy the service again; check with `ps` that none runs.",
        ) from None


def read_records(state: Path) -> list[ServiceRecord]:
    """The records of all services that were ever deployed, by name."""
    names = sorted(path.stem for path in services_folder(state).glob("*.json"))
    records = [read_record(state, name) for name in names]
    return [record for record in records if record is not None]


def write_record(state: Path, record: ServiceRecord) -> None:
    """Write the record of its service."""
    write_private(record_path(state, record.service), record.model_dump_json(indent=1))


def python_module(module: str, *arguments: str) -> list[str]:
    """Command that runs ``module`` with this interpreter."""
    return [sys.executable, "-m", module, *arguments]
