"""The supervisor of one service: owns its public port and the life of its colours.

``python -m e2i_dagster.serving.supervisor classification`` starts the recorded release in the
foreground (so does ``e2i serve classification``); a deployment starts it detached, so that it survives the run that
deployed. A colour is one BentoML process (with its workers) on a private port of the loopback
interface; requests to the public port are forwarded to the active one (:mod:`~.forwarding`). Its workers are
started again by BentoML; while one starts, the others answer. When BentoML's own process dies, its workers answer
on until the colour that the supervisor starts in its place is healthy. A supervisor that was killed is started
again by the workers (:mod:`~.watch`), and takes over the colour that it finds running.

Control is a line of JSON over a loopback port, with the token of the service's record (readable by
the owner only): ``start`` a candidate, ask whether it is ``alive``, ``switch`` to it, ``switch_back`` to the colour
that was left ``warm`` by the last switch. A candidate
belongs to the connection that started it: if that ends before the switch, whatever the reason, the
candidate ends too.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import fcntl
import hmac
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import uvloop

from e2i_dagster.config.serving import DeploymentPolicy, ServingPolicy
from e2i_dagster.errors import E2IError, InputError, UnavailableError
from e2i_dagster.policy_files.environment import state_folder
from e2i_dagster.serving.forwarding import Client, Forwarder
from e2i_dagster.serving.state import (
    ActiveColour,
    ColourSettings,
    ProcessIdentity,
    ServiceRecord,
    deployed_name,
    family,
    kill,
    library_environment,
    log_path,
    make_private,
    python_module,
    read_record,
    service_of,
    services_folder,
    wait_ended,
    write_private,
    write_record,
)

logger = logging.getLogger("e2i.supervisor")

#: How often the processes of the active colour are listed; they must be known when its first one has died.
_FAMILY_SECONDS = 2.0


def _time() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@dataclass
class Colour:
    """One running colour."""

    described: ActiveColour
    policy: DeploymentPolicy
    settings: ColourSettings
    process: asyncio.subprocess.Process | None
    identity: ProcessIdentity
    port: int
    home: Path
    members: list[ProcessIdentity] = field(default_factory=list)
    stopping: bool = False
    connections: int = 0

    def ended(self) -> bool:
        """Whether BentoML's own process has ended; ``process`` is None when another supervisor started it."""
        if self.process is not None:
            return self.process.returncode is not None
        return not self.identity.running()

    def terminate(self) -> None:
        """Ask it to end."""
        with contextlib.suppress(ProcessLookupError):
            if not self.ended():
                os.kill(self.identity.pid, signal.SIGTERM)


class Supervisor:
    """See the module.

    Args:
        state: state folder.
        service: name of the service.
        public: the bound and listening public socket.
        policy: times and threads; those of the deployment that was switched to last take their place.
    """

    def __init__(self, state: Path, service: str, public: socket.socket, policy: ServingPolicy) -> None:
        self._state = state
        self._service = service
        self._public = public
        self._deployment: DeploymentPolicy = policy.deployment
        self._token = secrets.token_hex(16)
        self._active: Colour | None = None
        self._warm: Colour | None = None
        self._mirroring: asyncio.subprocess.Process | None = None
        self._recorded: ActiveColour | None = None
        self._control_port = 0
        self._started = _time()
        self._ending = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._colours: list[Colour] = []
        self._forwarder = Forwarder(lambda: self._active)

    # -- life --------------------------------------------------------------------------------------

    async def run(self, *, resume: bool) -> None:
        """Serve until SIGTERM, SIGINT or the command ``stop``.

        Raises:
            InputError: ``resume`` was asked for and nothing was ever deployed.
        """
        earlier = read_record(self._state, self._service)
        self._recorded = earlier.active if earlier else None
        if resume and self._recorded is None:
            raise InputError(
                f"No release of the service {self._service} is recorded in {self._state}.",
                file=self._state,
                field="service",
                value=self._service,
                remedy="Deploy one: `make run`.",
            )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ending.set)
        if earlier is not None and self._recorded is not None:
            self._active = self._adopted(earlier, self._recorded)
        control = await asyncio.start_server(self._control, "127.0.0.1", 0)
        self._control_port = control.sockets[0].getsockname()[1]
        self._write()
        public = await loop.create_server(lambda: Client(self._forwarder), sock=self._public)
        self._spawn(self._forwarder.look_after())
        logger.info("Service %s listens on %s:%s", self._service, *self._public.getsockname()[:2])
        try:
            if resume and self._recorded is not None and self._active is None:
                await self._resume(self._recorded)
            self._spawn(self._look_after())
            if self._service == deployed_name(service_of(self._service), "shadow"):
                self._spawn(self._mirror())
            await self._ending.wait()
        finally:
            public.close()
            control.close()
            if self._mirroring is not None and self._mirroring.returncode is None:
                self._mirroring.terminate()
                await self._mirroring.wait()
            await asyncio.gather(*(self._stop(colour) for colour in list(self._colours)))
            self._write(ended=True)
            logger.info("Service %s stopped", self._service)

    def _adopted(self, earlier: ServiceRecord, recorded: ActiveColour) -> Colour | None:
        """The colour of a supervisor that was killed, when it still runs; its workers know the token."""
        home = services_folder(self._state) / "colours" / recorded.colour
        if recorded.process is None or recorded.port is None or not recorded.process.running():
            return None
        try:
            settings = ColourSettings.model_validate_json((home / "settings.json").read_bytes())
        except (OSError, ValueError):
            return None
        self._token = earlier.token
        logger.info("Colour %s runs and is taken over", recorded.colour)
        colour = Colour(
            described=recorded,
            policy=self._deployment,
            settings=settings,
            process=None,
            identity=recorded.process,
            port=recorded.port,
            home=home,
            members=family(recorded.process),
        )
        self._colours.append(colour)
        return colour

    async def _resume(self, recorded: ActiveColour) -> None:
        while not self._ending.is_set():
            try:
                self._active = await self._start(recorded, self._deployment)
            except OSError as error:
                logger.error("The colour could not be started: %s", error)
                await asyncio.sleep(self._deployment.restart_first_seconds)
                continue
            self._recorded = self._active.described
            self._write()
            return

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("A task of the supervisor failed; the service ends.", exc_info=task.exception())
            self._ending.set()

    def _write(self, *, ended: bool = False) -> None:
        host, port = self._public.getsockname()[:2] if self._public.fileno() >= 0 else (None, None)
        before = read_record(self._state, self._service)
        active = self._active.described if self._active else self._recorded
        if ended and active is not None:
            active = active.model_copy(update={"process": None, "port": None})
        write_record(
            self._state,
            ServiceRecord(
                service=self._service,
                host=host or (before.host if before else "127.0.0.1"),
                port=port or (before.port if before else 0),
                supervisor=None if ended else ProcessIdentity.of(os.getpid()),
                control_port=self._control_port,
                token=self._token,
                started_at=self._started,
                stopped_at=_time() if ended else None,
                active=active,
            ),
        )

    # -- colours -----------------------------------------------------------------------------------

    async def _start(self, described: ActiveColour, policy: DeploymentPolicy) -> Colour:
        """Start the BentoML process of a colour on a free private port."""
        folder = make_private(services_folder(self._state) / "colours")
        home = make_private(folder / described.colour)
        port = _free_port()
        settings = ColourSettings(
            colour=described.colour,
            slot=described.slot,
            stages=described.stages,
            audit=described.audit,
            probe_token=self._token,
            state=self._state,
            failure=home / "failure.txt",
            service=self._service,
            workers=workers_that_fit(policy),
        )
        settings.failure.unlink(missing_ok=True)
        write_private(home / "settings.json", settings.model_dump_json(indent=1))
        threads = str(policy.threads)
        environment = {
            **os.environ,
            **library_environment(self._state, home),
            "E2I_COLOUR_SETTINGS": str(home / "settings.json"),
            # A span for each request that nobody exports takes as long as reading and checking it.
            "BENTOML_CONFIG_OPTIONS": os.environ.get("BENTOML_CONFIG_OPTIONS", "tracing.excluded_urls=.*"),
            "OMP_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
        }
        log = log_path(self._state, self._service)
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *python_module(
                    "bentoml", "serve", str(described.bento), "--host", "127.0.0.1", "--port", str(port)
                ),
                cwd=home,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        identity = ProcessIdentity.of(process.pid)
        colour = Colour(
            described=described.model_copy(
                update={"process": identity, "port": port, "since": _time(), "workers": settings.workers}
            ),
            policy=policy,
            settings=settings,
            process=process,
            identity=identity,
            port=port,
            home=home,
            members=[identity],
        )
        self._colours.append(colour)
        logger.info("Colour %s (%s) starts on port %s", described.colour, described.tag, port)
        return colour

    async def _stop(self, colour: Colour) -> None:
        """End a colour: ask, wait for its prediction log, then make sure of every process of it."""
        colour.stopping = True
        members = {process.pid: process for process in [*colour.members, *family(colour.identity)]}
        colour.terminate()
        ended = await asyncio.to_thread(wait_ended, list(members.values()), self._deployment.stop_seconds)
        if not ended:
            logger.warning("Colour %s did not end in time and is killed", colour.described.colour)
            kill(list(members.values()))
        if colour.process is not None:
            await colour.process.wait()
        if colour in self._colours:
            self._colours.remove(colour)
        if not any(other.home == colour.home for other in self._colours):
            shutil.rmtree(colour.home, ignore_errors=True)
        logger.info("Colour %s ended", colour.described.colour)

    async def _drain(self, colour: Colour) -> None:
        """Give open connections to a colour some time, then end it."""
        colour.stopping = True
        deadline = asyncio.get_running_loop().time() + self._deployment.drain_seconds
        while colour.connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        await self._stop(colour)

    async def _look_after(self) -> None:
        """Start the active colour again when it has died."""
        pause = self._deployment.restart_first_seconds
        alive_since = looked = asyncio.get_running_loop().time()
        while not self._ending.is_set():
            await asyncio.sleep(0.2)
            now = asyncio.get_running_loop().time()
            colour = self._active
            if colour is None:
                continue
            if not colour.ended():
                # Every process of the machine is looked at for it.
                if now - looked > _FAMILY_SECONDS:
                    colour.members, looked = family(colour.identity), now
                if now - alive_since > self._deployment.restart_most_seconds:
                    pause = self._deployment.restart_first_seconds
                continue
            if colour.stopping:
                continue
            logger.error(
                "Colour %s died (exit code %s); it is started again in %.1f s",
                colour.described.colour,
                colour.process.returncode if colour.process is not None else "not known",
                pause,
            )
            await asyncio.sleep(pause)
            pause = min(pause * 2, self._deployment.restart_most_seconds)
            await self._replace(colour)
            alive_since = asyncio.get_running_loop().time()

    async def _mirror(self) -> None:
        """Keep the process that asks slot shadow what another slot has answered."""
        pause = self._deployment.restart_first_seconds
        while not self._ending.is_set():
            with log_path(self._state, self._service).open("ab") as output:
                self._mirroring = await asyncio.create_subprocess_exec(
                    *python_module("e2i_dagster.serving.mirror", self._service, "--state", str(self._state)),
                    env={**os.environ, "E2I_HOME": str(self._state)},
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                )
            await self._mirroring.wait()
            await asyncio.sleep(pause)
            pause = min(pause * 2, self._deployment.restart_most_seconds)

    async def _replace(self, dead: Colour) -> None:
        """Start a colour like ``dead``, whose workers may still answer, and switch when it is healthy."""
        described = dead.described.model_copy(update={"restarts": dead.described.restarts + 1})
        replacement = await self._start(described, dead.policy)
        replacement.stopping = True  # nobody else looks after it yet
        deadline = asyncio.get_running_loop().time() + self._deployment.start_timeout_seconds
        while not await _answers(replacement.port):
            late = asyncio.get_running_loop().time() > deadline
            # A deployment may have put another colour in its place meanwhile.
            if replacement.ended() or late or self._active is not dead or self._ending.is_set():
                await self._stop(replacement)
                return
            await asyncio.sleep(0.1)
        replacement.stopping = False
        if self._active is not dead or self._ending.is_set():
            await self._stop(replacement)
            return
        self._active, self._recorded = replacement, replacement.described
        self._write()
        logger.info("Colour %s answers again", described.colour)
        self._spawn(self._drain(dead))

    # -- control -----------------------------------------------------------------------------------

    async def _control(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        candidate: Colour | None = None
        try:
            while line := await reader.readline():
                command = json.loads(line)
                if not hmac.compare_digest(str(command.pop("token", "")), self._token):
                    return
                answer, candidate = await self._command(command, candidate)
                writer.write(json.dumps(answer).encode() + b"\n")
                await writer.drain()
        except (ConnectionError, ValueError) as error:
            logger.warning("A control connection ended: %s", type(error).__name__)
        finally:
            if candidate is not None:
                logger.warning("Candidate %s was not switched to and ends", candidate.described.colour)
                await self._stop(candidate)
            writer.close()

    async def _command(
        self, command: dict[str, Any], candidate: Colour | None
    ) -> tuple[dict[str, Any], Colour | None]:
        kind = command.get("command")
        if kind == "start" and candidate is None:
            return await self._start_candidate(
                ActiveColour.model_validate(command["colour"]),
                DeploymentPolicy.model_validate(command["deployment"]),
            )
        if kind == "alive" and candidate is not None:
            candidate.members = family(candidate.identity) or candidate.members
            code = candidate.process.returncode if candidate.process is not None else None
            return {"ok": not candidate.ended(), "code": code}, candidate
        if kind == "switch" and candidate is not None:
            if candidate.ended():
                return {"ok": False, "problem": "the candidate has ended"}, candidate
            before, self._active = self._active, candidate
            self._recorded, self._deployment = candidate.described, candidate.policy
            self._write()
            logger.info("Traffic goes to colour %s (%s)", candidate.described.colour, candidate.described.tag)
            self._leave(before, float(command.get("warm", 0)))
            return {"ok": True}, None
        if kind == "switch_back":
            return self._switch_back(str(command["version"]), float(command["warm"])), candidate
        return {"ok": False, "problem": f"unknown or untimely command {kind!r}"}, candidate

    def _switch_back(self, version: str, warm: float) -> dict[str, Any]:
        colour = self._warm
        if colour is None or colour.ended() or colour.described.version != version:
            return {"ok": False, "problem": "no warm colour serves that release"}
        before, self._active, self._warm = self._active, colour, None
        self._recorded, self._deployment = colour.described, colour.policy
        self._write()
        logger.info("Traffic goes back to colour %s (%s)", colour.described.colour, colour.described.tag)
        self._leave(before, warm)
        return {"ok": True, "colour": colour.described.model_dump(mode="json")}

    def _leave(self, colour: Colour | None, warm: float) -> None:
        """End a colour that the traffic has left: at once, or after it was kept warm for so many seconds."""
        if self._warm is not None:
            self._spawn(self._drain(self._warm))
            self._warm = None
        if colour is None:
            return
        if warm <= 0 or colour.ended():
            self._spawn(self._drain(colour))
            return
        self._warm = colour
        self._spawn(self._end_warm(colour, warm))

    async def _end_warm(self, colour: Colour, seconds: float) -> None:
        """End a colour that was left after ``seconds``, unless the traffic has gone back to it."""
        deadline = asyncio.get_running_loop().time() + seconds
        while self._warm is colour and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(min(seconds, 1.0))
        if self._warm is colour:
            self._warm = None
            await self._drain(colour)

    async def _start_candidate(
        self, described: ActiveColour, policy: DeploymentPolicy
    ) -> tuple[dict[str, Any], Colour | None]:
        try:
            candidate = await self._start(described, policy)
        except OSError as error:
            return {"ok": False, "problem": str(error)}, None
        failure = str(candidate.settings.failure)
        return {"ok": True, "port": candidate.port, "failure": failure}, candidate


async def _answers(port: int) -> bool:
    """Whether a worker on ``port`` says that it is healthy."""
    try:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
                return (await reader.readline()).split()[1:2] == [b"200"]
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def workers_that_fit(policy: DeploymentPolicy) -> int:
    """``workers`` of the policy, or as many as the memory that is available now has room for; at least one."""
    import psutil

    room = psutil.virtual_memory().available // (policy.worker_memory_mb * 2**20)
    workers = max(1, min(policy.workers, int(room)))
    if workers < policy.workers:
        logger.warning("Memory has room for %s of %s workers", workers, policy.workers)
    return workers


def listen(host: str, port: int) -> socket.socket:
    """The public socket, bound and listening.

    Raises:
        OSError: the port is taken or not allowed.
    """
    family_ = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio turns off the delay of small packets (40 ms an answer otherwise).
    bound = socket.socket(family_, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(1024)
        bound.setblocking(False)
    except OSError:
        bound.close()
        raise
    return bound


def new_colour_name(version: str) -> str:
    """Name of a colour of the release ``version``; no two are the same."""
    return f"{version}-{uuid.uuid4().hex[:8]}"


def main(arguments: list[str] | None = None) -> int:
    """Run a supervisor; returns the exit code."""
    parser = argparse.ArgumentParser(prog="e2i serve", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("service", nargs="?", default="classification")
    parser.add_argument("--state", type=Path, default=None)
    parser.add_argument("--host", default=None)
    parser.add_argument("--port", type=int, default=None, help="by default the one it had before")
    parser.add_argument("--empty", action="store_true", help="wait for a deployment, start nothing")
    chosen = parser.parse_args(arguments)
    state: Path = (chosen.state or state_folder()).absolute()
    make_private(log_path(state, chosen.service).parent)
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(name)s: %(message)s", level=logging.INFO, stream=sys.stderr
    )
    try:
        record = read_record(state, chosen.service)
        host = chosen.host or (record.host if record else "127.0.0.1")
        port = chosen.port if chosen.port is not None else (record.port if record else 0)
        alone = _only_one(state, chosen.service)
        supervisor = Supervisor(state, chosen.service, listen(host, port), ServingPolicy.load())
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(supervisor.run(resume=not chosen.empty))
    except (E2IError, OSError) as error:
        logger.error("%s", error)
        return error.exit_code if isinstance(error, E2IError) else UnavailableError.exit_code
    alone.close()
    return 0


def _only_one(state: Path, service: str) -> IO[str]:
    """A lock that says that this process supervises ``service``; it ends with the process."""
    path = services_folder(state) / f"{service}.supervisor"
    lock = path.open("a")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise UnavailableError(
            f"The service {service} of {state} is supervised already (`e2i status` shows it).",
            remedy="Stop it with `e2i down` first.",
        ) from None
    return lock


if __name__ == "__main__":
    sys.exit(main())
