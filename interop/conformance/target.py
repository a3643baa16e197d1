"""A running subject: how to reach it, how to talk to it, and how to see that it still works."""

from __future__ import annotations

import math
import signal
import socket
import zlib
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Final

import trio

from interop.conformance.subjects import ANSWERING, ASKING, SENDING, Subject
from interop.conformance.wire import (
    ROLES,
    TIMEOUT,
    Head,
    Pipe,
    PipeEnded,
    Role,
    StreamPipe,
    WebSocketPipe,
    Wire,
    accept_of,
    greeting,
    head_of,
    new_key,
    receive_answer,
    receive_request,
    word,
)

START: Final = 15.0
"""Seconds that a program has to come up."""


def reserve() -> socket.socket:
    """Return a socket that reserves a port for a program that will be told it.

    The program can still listen there, if it uses SO_REUSEADDR as all do.
    """
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    held.bind(("127.0.0.1", 0))
    return held


def _place(url: str) -> tuple[str, str, int, str]:
    """Return scheme, host or path, port, and the target of a WebSocket request."""
    scheme, _, rest = url.partition("://")
    if scheme == "ipc":
        return scheme, rest, 0, ""
    authority, slash, path = rest.partition("/")
    host, _, port = authority.rpartition(":")
    return scheme, host.strip("[]"), int(port), slash + path or "/"


async def _connect(url: str) -> trio.SocketStream:
    scheme, host, port, _ = _place(url)
    if scheme != "ipc":
        return await trio.open_tcp_stream(host, port)
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    try:
        await sock.connect(host)
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


async def _listen(transport: str, directory: Path) -> tuple[trio.SocketListener, str]:
    """Listen for a subject that dials, and return the URL."""
    if transport != "ipc":
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        return listener, f"{transport}://127.0.0.1:{listener.socket.getsockname()[1]}"
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    await sock.bind(str(directory / "s"))
    sock.listen()
    return trio.SocketListener(sock), f"ipc://{directory / 's'}"


class Target:
    """A subject running in one role at one address."""

    def __init__(self, subject: Subject, role: Role, url: str, listener: trio.SocketListener | None, process: trio.Process | None) -> None:
        self.subject = subject
        self.role = role
        self.url = url
        self.transport = url.partition("://")[0]
        self.listens = listener is None
        self._listener = listener
        self._process = process
        self._wires: list[Wire] = []
        self._lines, self._printed = trio.open_memory_channel[bytes](math.inf)
        self._asked = 0
        self.seen = process is None
        """Whether there was a connection."""

    @property
    def host(self) -> str:
        """The value of ``Host`` in a request to the subject."""
        return self.url.partition("://")[2].partition("/")[0]

    # Connections.

    async def connect(self) -> Wire:
        """Return a new connection on which nothing was sent yet."""
        refused: OSError | None = None
        with trio.move_on_after(START if not self.seen else TIMEOUT):
            while True:
                try:
                    stream = await (_connect(self.url) if self._listener is None else self._listener.accept())
                except OSError as error:
                    refused = error  # it will listen soon, or it has ended
                else:
                    self.seen = True
                    self._wires.append(Wire(stream))
                    return self._wires[-1]
                self.check_running()
                await trio.sleep(0.01)
        raise AssertionError(
            f"the subject does not accept a connection: {refused}" if self.listens else "the subject does not dial (again)"
        )

    async def pipe(self) -> Pipe:
        """Return a new connection after a correct greeting."""
        if self.transport == "ws":
            return await self.websocket()
        wire = await self.connect()
        await wire.send(greeting(self.role.peer))
        got = await wire.receive_exactly(8, "a greeting")
        assert got == greeting(self.role.number), f"the subject has greeted with {got.hex(' ')}"
        return self.stream_pipe(wire)

    def stream_pipe(self, wire: Wire) -> StreamPipe:
        return StreamPipe(wire, 1 if self.transport == "ipc" else None)

    async def websocket(self) -> WebSocketPipe:
        """Return a new WebSocket."""
        if not self.listens:
            wire = await self.connect()
            request = await receive_request(wire)
            await self.accept(wire, request)
            return WebSocketPipe(wire, masked=False)
        wire, head = await self.handshake()
        if head.status != 101:
            raise PipeEnded(f"the subject has refused a right handshake: {head.first}")
        return WebSocketPipe(wire, masked=True)

    async def handshake(
        self, *, method: str = "GET", version: str = "HTTP/1.1", path: str = "", **changed: str | None
    ) -> tuple[Wire, Head]:
        """Ask for a WebSocket, with *changed* headers (None: left out); return the answer."""
        wire = await self.connect()
        await wire.send(self.request(method=method, version=version, path=path, **changed))
        return wire, await receive_answer(wire)

    def request(self, *, method: str = "GET", version: str = "HTTP/1.1", path: str = "", **changed: str | None) -> bytes:
        headers: dict[str, str | None] = {
            "Host": self.host,
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": new_key(),
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Protocol": self.role.subprotocol,
        }
        headers |= {name.replace("_", "-"): value for name, value in changed.items()}
        return head_of(f"{method} {path or _place(self.url)[3]} {version}", list(headers.items()))

    async def accept(self, wire: Wire, request: Head, *, status: str = "101 Switching Protocols", **changed: str | None) -> None:
        """Answer the *request* of a subject that dials, with *changed* headers (None: left out)."""
        headers: dict[str, str | None] = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Accept": accept_of(request.headers.get("sec-websocket-key", "")),
            "Sec-WebSocket-Protocol": request.headers.get("sec-websocket-protocol"),
            "Content-Length": None if status.startswith("101") else "0",
        }
        headers |= {name.replace("_", "-"): value for name, value in changed.items()}
        await wire.send(head_of(f"HTTP/1.1 {status}", list(headers.items())))

    # Messages.

    def body(self, text: str) -> bytes:
        """Return *text* as a body that the subject does not filter out."""
        return (self.subject.topic if self.role.name == "sub" else b"") + text.encode()

    def message(self, text: str) -> bytes:
        """Return *text* as a well-formed message for the subject."""
        if self.role.name in (*ANSWERING, *ASKING):
            return _identity(text) + self.body(text)
        return (word(1) if self.role.name == "pair1" else b"") + self.body(text)

    async def printed(self, *, within: float = TIMEOUT) -> bytes:
        """Return what the subject prints next, without its quotes."""
        with trio.move_on_after(within):
            try:
                return await self._printed.receive()
            except trio.EndOfChannel:
                self.check_running()
                raise AssertionError("the subject has closed its output") from None
        raise NotPrinted(f"the subject has not printed a message within {within:g} seconds")

    async def expect_printed(self, *bodies: bytes) -> None:
        """Check that the subject prints *bodies* next, each on a line."""
        for body in bodies:
            line = await self.printed()
            assert line == body, f"the subject has received {_short(line)}: expected {_short(body)}"

    async def delivered(self, pipe: Pipe, *texts: str) -> None:
        """Check that the messages with *texts*, and no others, are the next that the subject
        receives or answers.

        Raises PipeEnded if it ends *pipe* instead.
        """
        if self.role.name in ANSWERING:
            for text in texts:
                answer = await pipe.receive(f"an answer to {text!r}")
                assert answer[:4] == _identity(text), f"expected an answer to {text!r}: the subject has sent {_short(answer)}"
            return
        failure: AssertionError | None = None
        async with trio.open_nursery() as nursery:

            async def see_end() -> None:
                nonlocal failure
                try:
                    while True:
                        await pipe.receive()
                except PipeEnded as error:
                    failure = error
                    nursery.cancel_scope.cancel()
                except AssertionError:
                    pass  # it is silent

            nursery.start_soon(see_end)
            try:
                await self.expect_printed(*map(self.body, texts))
            except AssertionError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def dropped_or_closed(self, pipe: Pipe, *hostile: bytes) -> str:
        """Send *hostile* messages, none of which may be delivered or answered; return which of the
        two happens."""
        await pipe.send(*hostile, self.message("good"))
        try:
            await self.delivered(pipe, "good")
        except PipeEnded:
            return "closed"
        return "dropped"

    async def fate(self, *hostile: bytes) -> str:
        """Send each of *hostile* on a pipe of its own; return what happens.

        None may be delivered or answered.
        """
        fates = set()
        for message in hostile:
            fates.add(await self.dropped_or_closed(await self.pipe(), message))
            await self.leave()
        return " or ".join(sorted(fates))

    async def serve(self, pipe: Pipe) -> None:
        """Check that the subject does its work on *pipe*."""
        self._asked += 1
        text = f"work {self._asked}"
        if self.role.name in ASKING:
            asked = await pipe.receive(f"what a {self.role.name.upper()} asks")
            assert len(asked) >= 4, f"the subject has asked with {len(asked)} bytes only"
            await pipe.send(asked[:4] + b"answer")
        elif self.role.name in SENDING:
            await pipe.receive(f"what a {self.role.name.upper()} sends")
        elif self.subject.prints or self.role.name in ANSWERING:
            await pipe.send(self.message(text))
            await self.delivered(pipe, text)

    async def lives(self) -> None:
        """End all connections, and check that the subject does its work on a new one."""
        await self.leave()
        self.check_running()
        deadline = trio.current_time() + TIMEOUT
        while True:
            try:
                await self.serve(await self.pipe())
                break
            except PipeEnded:
                # A subject with room for one peer may not have noticed yet that the last one is
                # gone.
                if not self.role.name.startswith("pair") or trio.current_time() > deadline:
                    raise
            await trio.sleep(0.05)
        self.check_running()

    async def leave(self) -> None:
        """End all connections."""
        async with trio.open_nursery() as nursery:
            for wire in self._wires:
                nursery.start_soon(wire.leave)
        self._wires.clear()

    async def drop(self) -> None:
        """End all connections at once."""
        for wire in self._wires:
            await trio.aclose_forcefully(wire.stream)
        if self._process is not None and self._process.stdout is not None:
            await trio.aclose_forcefully(self._process.stdout)

    def check_running(self) -> None:
        if self._process is not None and self._process.poll() is not None:
            raise AssertionError("the subject has ended")

    async def read_output(self) -> None:
        """Read what the program prints, until it ends."""
        assert self._process is not None
        assert self._process.stdout is not None
        rest = b""
        with suppress(trio.ClosedResourceError):
            async for data in self._process.stdout:
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    self._lines.send_nowait(line.strip().removeprefix(b'"').removesuffix(b'"'))
        self._lines.close()


def _identity(text: str) -> bytes:
    return word(0x80000000 | zlib.crc32(text.encode()))


def _short(data: bytes) -> str:
    return repr(data) if len(data) <= 40 else f"{data[:32]!r}... ({len(data)} bytes)"


class NotPrinted(AssertionError):
    """The subject did not print anything in time."""


class Crashed(AssertionError):
    """The subject's process has ended by itself."""


class NotStarted(Crashed):
    """It ended before any peer could connect; another program may have taken its port."""


async def _end(process: trio.Process, seconds: float) -> int | None:
    """Give *process* some *seconds* to end, then kill it.

    Returns its status; None: it was still running.
    """
    with trio.move_on_after(seconds):
        await process.wait()
    status = process.poll()
    if status is None:
        process.kill()
        await process.wait()
    return status


@asynccontextmanager
async def running(
    subject: Subject, role: str, transport: str, directory: Path, *, listens: bool, once: bool = False, held: bool = True
) -> AsyncIterator[Target]:
    """Run *subject* while the block lasts, in an empty *directory*. Raises Crashed if the subject
    ends by itself.

    With *held*, the port that it will listen on is reserved for it until then. Some programs cannot
    listen then.
    """
    if subject.command is None:
        target = Target(subject, ROLES[role], subject.url, None, None)
        try:
            yield target
        finally:
            with trio.CancelScope(shield=True):
                await target.leave()
        return
    failure: AssertionError | None = None
    async with AsyncExitStack() as stack:
        listener = None
        if not listens:
            listener, url = await _listen(transport, directory)
            stack.push_async_callback(trio.aclose_forcefully, listener)
        elif transport == "ipc":
            url = f"ipc://{directory / 's'}"
        else:
            port = stack.enter_context(reserve())
            url = f"{transport}://127.0.0.1:{port.getsockname()[1]}"
            if not held:
                port.close()
        with (directory / "stderr").open("wb") as errors:
            command = subject.command(role, url, listens, once)
            process = await trio.lowlevel.open_process(command, stdin=DEVNULL, stdout=PIPE, stderr=errors)
        target = Target(subject, ROLES[role], url, listener, process)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(target.read_output)
            try:
                yield target
            except AssertionError as error:
                failure = error
            finally:
                with trio.CancelScope(shield=True):
                    status = await _end(process, 0.5 if failure else 0)  # it may be about to end
                    await target.drop()
                nursery.cancel_scope.cancel()
    if status:
        last = (directory / "stderr").read_text("utf-8", "replace").strip().rpartition("\n")[2]
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        raise (Crashed if target.seen else NotStarted)(f"the program has ended with {how}{last and f': {last[:120]}'}")
    if failure is not None:
        raise failure
