"""Requests of the public port on their way to the workers of the active colour.

A request is read whole before it is forwarded (up to :data:`_BUFFERED` bytes; larger ones are passed on as they
come), and its answer is read whole before it goes back. So a slow client costs a worker nothing, and a request whose
worker died is asked again of another one: every route gives the same answer when it is asked twice, and the rows of
the prediction log have the same keys, since both attempts carry the same :data:`~.state.FORWARD_HEADER`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

import httptools

from e2i_dagster.serving.state import FORWARD_HEADER

#: A request and an answer up to this size, bytes, are kept until they are whole.
_BUFFERED = 2 * 1024 * 1024
#: Largest head of a request, bytes.
_LARGEST_HEAD = 65_536
#: A request waits this long for a worker when the colour is just being started again, seconds.
WAIT_SECONDS = 10.0
#: A request on which this many workers died is not asked again.
_ATTEMPTS = 3
#: A client that sends nothing for this long amid a request is given up, seconds; and one without a request.
_STALLED_SECONDS, _IDLE_SECONDS = 20.0, 75.0
#: A client that was refused before it had sent all may read the answer for this long, seconds.
_LINGER_SECONDS = 2.0

_REASONS = {400: "Bad Request", 408: "Request Timeout", 431: "Request Header Fields Too Large"}
#: Of the connection, not of the request; or replaced by ours.
_NOT_FORWARDED = frozenset(
    (b"connection", b"keep-alive", b"content-length", b"transfer-encoding", FORWARD_HEADER)
)


class Backend(Protocol):
    """Where requests go: a private port of the loopback interface, and how many are on their way."""

    port: int
    connections: int


class WorkerLostError(Exception):
    """The connection to a worker ended before the whole answer had come."""


class Request:
    """One request of a client."""

    def __init__(self) -> None:
        self.url = b""
        self.method = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.length: int | None = None
        self.expects = False
        self.keep_alive = True
        self.body = bytearray()
        self.complete = False
        #: Whether it is passed on as it comes, so that it cannot be asked again.
        self.streamed = False
        self.upstream: Upstream | None = None
        self.key = b""

    def head(self) -> bytes:
        """The head for the worker."""
        lines = [self.method + b" " + self.url + b" HTTP/1.1"]
        lines += [name + b": " + value for name, value in self.headers]
        lines.append(FORWARD_HEADER + b": " + self.key)
        if self.method == b"HEAD":
            lines.append(b"connection: close")
        if not self.streamed:
            lines.append(b"content-length: %d" % len(self.body))
        elif self.length is not None:
            lines.append(b"content-length: %d" % self.length)
        else:
            lines.append(b"transfer-encoding: chunked")
        return b"\r\n".join(lines) + b"\r\n\r\n"

    def framed(self, data: bytes) -> bytes:
        """A part of a streamed body as it is sent; empty data ends it."""
        if self.length is not None:
            return data
        return b"%x\r\n%b\r\n" % (len(data), data)


class Upstream(asyncio.Protocol):
    """One connection to a worker: one request at a time."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.used = False
        self.closed = False
        self._client: Client | None = None
        self._done: asyncio.Future[bool] | None = None
        self._parser: Any = None
        self._answer = bytearray()
        self.started = False
        self._until_closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    async def exchange(self, request: Request, client: Client) -> bool:
        """Send ``request`` and pass the answer to ``client``; whether the connection can be used again.

        Raises:
            WorkerLostError: the connection ended first.
        """
        if self.closed:
            raise WorkerLostError
        self._client, self.started = client, False
        self._answer.clear()
        self._parser = httptools.HttpResponseParser(self)
        self._until_closed = request.method == b"HEAD"
        self._done = asyncio.get_running_loop().create_future()
        request.upstream = self
        if request.streamed:
            client.resume()
            self.transport.write(request.head())
            if request.body:
                self.transport.write(request.framed(bytes(request.body)))
                request.body.clear()
            if request.complete and request.length is None:
                self.transport.write(request.framed(b""))
        else:
            self.transport.write(request.head() + request.body)
        try:
            return await self._done
        finally:
            request.upstream = self._client = None
            self.used = True

    def data_received(self, data: bytes) -> None:
        if self._done is None or self._done.done():
            self.transport.close()
            return
        self._answer += data
        if not self._until_closed:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserError:
                self.transport.abort()
                return
        if len(self._answer) > _BUFFERED:
            self._flush()

    def on_message_complete(self) -> None:
        """The whole answer has come, or an interim one."""
        interim = self._parser.get_status_code() < 200
        self._flush()
        if not interim and self._done is not None and not self._done.done():
            self.started = True
            self._done.set_result(self._parser.should_keep_alive())

    def _flush(self) -> None:
        self.started = True
        if self._client is not None:
            self._client.write(bytes(self._answer))
        self._answer.clear()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        if self._done is None or self._done.done():
            return
        if self._until_closed and self._answer:
            self._flush()
            self._done.set_result(False)
        else:
            self._done.set_exception(WorkerLostError())

    def pause_writing(self) -> None:
        if self._client is not None:
            self._client.pause()

    def resume_writing(self) -> None:
        if self._client is not None:
            self._client.resume()


class Client(asyncio.Protocol):
    """One connection to the public port."""

    def __init__(self, forwarder: Forwarder) -> None:
        self._forwarder = forwarder
        self._loop = asyncio.get_running_loop()
        self.transport: Any = None
        self._parser: Any = httptools.HttpRequestParser(self)
        self._reading: Request | None = None
        self._waiting: deque[Request] = deque()
        self._current: Request | None = None
        self._head_bytes = 0
        self._discarding = self._paused = False
        self.last_data = self._loop.time()
        self.gone = False

    # -- reading ---------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self._forwarder.clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self._forwarder.clients.discard(self)
        request = self._current
        # A request that is passed on as it comes cannot be completed any more.
        if request is not None and not request.complete and request.upstream is not None:
            request.upstream.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._discarding:
            return
        self.last_data = self._loop.time()
        if self._reading is None or not self._reading.method:
            self._head_bytes += len(data)
            if self._head_bytes > _LARGEST_HEAD + _BUFFERED:
                self.refuse(431, "head_too_large", "The head of the request is too large.")
                return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.refuse(400, "not_http", "The request is not HTTP/1.1.")

    def on_message_begin(self) -> None:
        """A request begins."""
        self._reading = Request()

    def on_url(self, url: bytes) -> None:
        """A part of the path."""
        cast("Request", self._reading).url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        request, name = cast("Request", self._reading), name.lower()
        if name == b"content-length":
            request.length = int(value)
        elif name == b"expect":
            request.expects = True
        if name not in _NOT_FORWARDED:
            request.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """The head has come."""
        request = cast("Request", self._reading)
        request.method = self._parser.get_method()
        request.keep_alive = self._parser.should_keep_alive()
        request.key = self._forwarder.next_key()
        self._head_bytes = 0
        # Whoever asks first whether the body is wanted, or announces a large one, is answered by the worker.
        if request.expects or (request.length or 0) > _BUFFERED:
            self._stream(request)

    def on_body(self, data: bytes) -> None:
        """A part of the body."""
        request = cast("Request", self._reading)
        if request.upstream is not None and request.streamed:
            request.upstream.transport.write(request.framed(data))
            return
        request.body += data
        if len(request.body) > _BUFFERED:
            if request.streamed:
                self.pause()
            else:
                self._stream(request)

    def on_message_complete(self) -> None:
        """A request is whole."""
        request, self._reading = cast("Request", self._reading), None
        request.complete = True
        if not request.streamed:
            self._waiting.append(request)
            self._next()
        elif request.upstream is not None and request.length is None:
            request.upstream.transport.write(request.framed(b""))

    def _stream(self, request: Request) -> None:
        request.streamed = True
        self._waiting.append(request)
        self._next()

    def pause(self) -> None:
        """Read no more for now."""
        self._paused = True
        with contextlib.suppress(RuntimeError):
            self.transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        self._paused, self.last_data = False, self._loop.time()
        with contextlib.suppress(RuntimeError):
            self.transport.resume_reading()

    # -- answering -------------------------------------------------------------------------------------

    def _next(self) -> None:
        if self._current is not None or not self._waiting or self.gone:
            if len(self._waiting) > 8:
                self.pause()
            return
        self._current = self._waiting.popleft()
        self._forwarder.spawn(self._serve(self._current))

    async def _serve(self, request: Request) -> None:
        answered = await self._forwarder.forward(request, self)
        self._current = None
        if not answered:
            return
        if not request.complete:
            self._linger()
        elif not request.keep_alive or request.method == b"HEAD":
            self.transport.close()
        else:
            self.resume()
            self._next()

    def _linger(self) -> None:
        """Let the client read an answer that came before it had sent all: closing at once would take it away."""
        self._discarding = True
        self.resume()
        with contextlib.suppress(OSError, RuntimeError):
            self.transport.write_eof()
        self._loop.call_later(_LINGER_SECONDS, self.transport.close)

    def write(self, data: bytes) -> None:
        """Send a part of the answer."""
        if not self.gone:
            self.transport.write(data)

    def pause_writing(self) -> None:
        if self._current is not None and self._current.upstream is not None:
            self._current.upstream.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._current is not None and self._current.upstream is not None:
            self._current.upstream.transport.resume_reading()

    def refuse(self, status: int, code: str, message: str, *, reason: str = "") -> None:
        """Answer without a worker, and end the connection."""
        body = json.dumps({"error": {"code": code, "message": message, "problems": []}}).encode()
        head = (
            f"HTTP/1.1 {status} {reason or _REASONS[status]}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n"
            + ("retry-after: 5\r\n" if status == 503 else "")
            + "\r\n"
        )
        self.write(head.encode() + body)
        self._linger()

    def look(self, now: float) -> None:
        """Give up a client that sends nothing."""
        silent = now - self.last_data
        if self._paused or (self._current is not None and self._current.complete):
            return
        if self._reading is not None and silent > _STALLED_SECONDS:
            if self._current is None:
                self.refuse(408, "too_slow", f"Nothing of the request came for {_STALLED_SECONDS:.0f} s.")
            else:
                self.transport.abort()
        elif self._reading is None and silent > _IDLE_SECONDS:
            self.transport.close()


class Forwarder:
    """All connections of a public port.

    Args:
        target: the colour that gets the traffic now; None while there is none.
    """

    def __init__(self, target: Callable[[], Backend | None]) -> None:
        self._target = target
        self._idle: dict[int, list[Upstream]] = {}
        self._prefix = uuid.uuid4().hex
        self._count = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self.clients: set[Client] = set()

    def next_key(self) -> bytes:
        """A name of a request that no other has."""
        self._count += 1
        return f"{self._prefix}{self._count:x}".encode()

    def spawn(self, work: Any) -> None:
        """Run ``work`` and keep it until it ends."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def forward(self, request: Request, client: Client) -> bool:
        """Have ``request`` answered; False when the client was refused or is gone."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + WAIT_SECONDS
        attempts = 0
        while True:
            found = await self._connection(deadline)
            if found is None:
                break
            backend, upstream = found
            kept, fresh = not request.streamed, not upstream.used
            backend.connections += 1
            try:
                reusable = await upstream.exchange(request, client)
            except WorkerLostError:
                attempts += fresh
                if upstream.started or not kept:
                    client.transport.abort()
                    return False
                # A connection that nobody used for a while may just have been closed.
                if attempts >= _ATTEMPTS:
                    break
                continue
            finally:
                backend.connections -= 1
            if reusable and request.complete and not upstream.closed:
                self._idle.setdefault(backend.port, []).append(upstream)
            else:
                upstream.transport.close()
            return not client.gone
        client.refuse(
            503,
            "service_starting",
            "The service is being started. Try again in some seconds.",
            reason="Service Unavailable",
        )
        return False

    async def _connection(self, deadline: float) -> tuple[Backend, Upstream] | None:
        loop = asyncio.get_running_loop()
        while True:
            backend = self._target()
            if backend is not None:
                idle = self._idle.get(backend.port, [])
                while idle:
                    upstream = idle.pop()
                    if not upstream.closed:
                        return backend, upstream
                with contextlib.suppress(OSError):
                    _, upstream = await loop.create_connection(Upstream, "127.0.0.1", backend.port)
                    return backend, upstream
            if loop.time() > deadline:
                return None
            await asyncio.sleep(0.05)

    async def look_after(self) -> None:
        """Give up silent clients, and connections to colours that are gone; for ever."""
        while True:
            await asyncio.sleep(1)
            now = asyncio.get_running_loop().time()
            for client in list(self.clients):
                client.look(now)
            backend = self._target()
            for port in list(self._idle):
                if backend is not None and port != backend.port:
                    for upstream in self._idle.pop(port):
                        upstream.transport.close()
