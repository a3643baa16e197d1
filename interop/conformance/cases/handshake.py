"""The HTTP handshake of a WebSocket."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final

import trio

from interop.conformance.case import AGREED, ANY, CASES, DIALS, NNG_AND_MANGOS, RFC6455, WS, Case, case
from interop.conformance.subjects import ANSWERING, RECEIVING, TRANSPORTS
from interop.conformance.target import Target
from interop.conformance.wire import (
    CLOSE,
    ROLES,
    SILENCE,
    Head,
    PipeEnded,
    WebSocketPipe,
    Wire,
    accept_of,
    new_key,
    receive_answer,
    receive_request,
)


def _other_name(target: Target) -> str:
    """Return the name of a listener in another role."""
    return ROLES["push" if target.role.name != "push" else "rep"].subprotocol


def _check(head: Head, *headers: tuple[str, str]) -> None:
    for name, expected in headers:
        got = head.headers.get(name, "")
        seen = [each.strip().lower() for each in got.split(",")] if name in ("upgrade", "connection") else [got]
        assert expected in seen, f"the header {name} is {got!r}: expected {expected!r}"


async def refused(target: Target, *, method: str = "GET", version: str = "HTTP/1.1", path: str = "", **changed: str | None) -> str:
    """Check that a handshake is refused, and that a client that ignores the answer is not served either; return the status."""
    try:
        wire, head = await target.handshake(method=method, version=version, path=path, **changed)
    except PipeEnded:
        return "ended"
    what = f"a handshake with {', '.join(f'{name}={value!r}' for name, value in changed.items()) or f'{method} {path} {version}'}"
    pipe = WebSocketPipe(wire, masked=True)
    if head.status == 101:
        got = await pipe.receive_frame("a Close, after a handshake that is to be refused")
        assert got.opcode == CLOSE, f"{what} was accepted"
        return f"Close {got.code}"
    assert 400 <= head.status < 600, f"{what} was answered with {head.first!r}"
    if target.role.name in ANSWERING:
        question = target.message("of a refused client")
        await pipe.send(question)
        answer = b""
        with trio.move_on_after(SILENCE):
            while question[:4] not in answer and (more := await wire.receive_some()):
                answer += more
        assert question[:4] not in answer, f"answered {head.status}, but served all the same"
    return str(head.status)


@case(f"{RFC6455}, 4.2.2; {WS}, 2", roles=ANY, every=True, transports=("ws",))
async def handshake_is_answered(target: Target) -> None:
    """A correct handshake with the name of the listener's protocol is answered with 101, the same name and the right key."""
    key = new_key()
    wire, head = await target.handshake(Sec_WebSocket_Key=key)
    assert head.status == 101, f"the subject answered {head.first!r}"
    _check(
        head,
        ("upgrade", "websocket"),
        ("connection", "upgrade"),
        ("sec-websocket-accept", accept_of(key)),
        ("sec-websocket-protocol", target.role.subprotocol),
        ("sec-websocket-extensions", ""),
    )
    await target.serve(WebSocketPipe(wire, masked=True))


@case(RFC6455, roles=ANY, transports=("ws",))
async def slow_handshake(target: Target) -> None:
    """A handshake may come in small pieces."""
    wire = await target.connect()
    await wire.send_slowly(target.request(), step=7)
    assert (await receive_answer(wire)).status == 101
    await target.serve(WebSocketPipe(wire, masked=True))


@case(f"{RFC6455}, 4.2.2", roles=ANY, transports=("ws",))
async def several_names(target: Target) -> str:
    """Among several names the right one is chosen; or the handshake is refused, as nng does."""
    wire, head = await target.handshake(Sec_WebSocket_Protocol=f"chat.example.org, {target.role.subprotocol}")
    if head.status == 101:
        name = head.headers.get("sec-websocket-protocol")
        assert name == target.role.subprotocol, f"the name in the answer is {name!r}"
        await target.serve(WebSocketPipe(wire, masked=True))
        return "chosen"
    return await refused(target, Sec_WebSocket_Protocol=f"chat.example.org, {target.role.subprotocol}")


@case(f"{NNG_AND_MANGOS}; nanomsg ignores it", roles=ANY, transports=("ws",))
async def another_path(target: Target) -> str:
    """A handshake for another path is refused, or the path is ignored."""
    _, head = await target.handshake(path="/not/here")
    if head.status == 101:
        return "ignored"
    return await refused(target, path="/not/here")


REFUSED: Final[Sequence[tuple[str, str, str, Mapping[str, str | None]]]] = (
    (
        "name_of_no_protocol",
        f"{WS}, 2",
        "with a name that is not SP's",
        {"Sec_WebSocket_Protocol": "chat.protocol.of.others.example.org"},
    ),
    ("no_name", f"{WS}, 2", "without a name", {"Sec_WebSocket_Protocol": None}),
    ("post", f"{RFC6455}, 4.2.1", "by another method than GET", {"method": "POST"}),
    ("old_http", f"{RFC6455}, 4.2.1", "by HTTP/1.0", {"version": "HTTP/1.0"}),
    ("no_upgrade", f"{RFC6455}, 4.2.1", "that asks for no upgrade", {"Upgrade": None, "Connection": "close"}),
    ("no_key", f"{RFC6455}, 4.2.1", "without a key", {"Sec_WebSocket_Key": None}),
    ("old_websocket", f"{RFC6455}, 4.2.1", "for another version of WebSocket than 13", {"Sec_WebSocket_Version": "8"}),
)
CASES.extend(
    Case(
        name=name,
        sentence=f"A handshake {what} is refused, and no message is exchanged.",
        source=source,
        roles=ANY,
        transports=("ws",),
        function=partial(refused, **changed),  # type: ignore[arg-type]
    )
    for name, source, what, changed in REFUSED
)


@case(f"{WS}, 2", roles=ANY, transports=("ws",))
async def name_of_another_protocol(target: Target) -> str:
    """A handshake with the name of another protocol is refused, by a status or by Close 1002, and no message is exchanged."""
    return await refused(target, Sec_WebSocket_Protocol=_other_name(target))


@case(RFC6455, roles=ANY, transports=("ws",))
async def unfinished_handshakes(target: Target) -> None:
    """Peers that do not finish their handshake, or send nothing, do not keep others from being served."""
    for size in (0, 10, 60):
        wire = await target.connect()
        await wire.send(target.request()[:size])
    await target.serve(await target.pipe())


# The subject dials.


@case(AGREED, roles=RECEIVING, transports=TRANSPORTS, sides=DIALS, shown=True)
async def dials_again(target: Target) -> None:
    """A dialer dials again when its pipe has ended."""
    for _ in range(3):
        pipe = await target.pipe()
        await target.serve(pipe)
        await pipe.wire.leave()


@case(NNG_AND_MANGOS, roles=RECEIVING, transports=("ws",), sides=DIALS, shown=True)
async def dials_again_after_a_close(target: Target) -> None:
    """A dialer dials again when its WebSocket has ended with a Close."""
    pipe = await target.websocket()
    await pipe.wire.send(pipe.frame(CLOSE, b"\x03\xe8"))
    await pipe.receive_close("after ours")
    await pipe.wire.leave()
    await target.serve(await target.pipe())


@case(NNG_AND_MANGOS, roles=RECEIVING, transports=("ws",), sides=DIALS, shown=True)
async def dials_again_after_half_a_handshake(target: Target) -> None:
    """A dialer dials again when the connection has ended before its handshake was answered."""
    wire = await target.connect()
    await receive_request(wire)
    await wire.leave()
    await target.serve(await target.pipe())


@case(f"{RFC6455}, 4.1; {WS}, 2", roles=ANY, every=True, transports=("ws",), sides=DIALS)
async def handshake_is_asked_for(target: Target) -> None:
    """A dialer asks by GET for version 13, with 16 random bytes as its key and the name of its peer's protocol."""
    keys = set()
    for _ in range(2):
        wire, request = await _dialed(target)
        method, _, version = request.first.split(" ")
        assert (method, version) == ("GET", "HTTP/1.1"), f"the request begins with {request.first!r}"
        peer = next(role for role in ROLES.values() if role.number == target.role.peer)
        _check(
            request,
            ("upgrade", "websocket"),
            ("connection", "upgrade"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", peer.subprotocol),
            ("host", target.host),
        )
        key = request.headers.get("sec-websocket-key", "")
        assert len(base64.b64decode(key)) == 16, f"the key is {key!r}"
        keys.add(key)
        await target.accept(wire, request)
        await wire.leave()
    assert len(keys) == 2, "two handshakes have the same key"


@case(f"{RFC6455}, 4.1", roles=ANY, transports=("ws",), sides=DIALS)
async def target_of_the_request(target: Target) -> None:
    """When the URL has no path, it asks for /."""
    _, request = await _dialed(target)
    asked = request.first.split(" ")[1]
    assert asked == "/", f"it asks for {asked!r}"


async def _dialed(target: Target) -> tuple[Wire, Head]:
    wire = await target.connect()
    return wire, await receive_request(wire)


async def not_accepted(target: Target, *, status: str = "101 Switching Protocols", **changed: str | None) -> None:
    """Check that such an answer makes the subject end the connection, without delivering a message."""
    wire, request = await _dialed(target)
    await target.accept(wire, request, status=status, **changed)
    pipe = WebSocketPipe(wire, masked=False)
    await pipe.send(target.message("of a wrong server"))
    await pipe.receive_close(f"after {status}{''.join(f', {name}: {value}' for name, value in changed.items())}")


NOT_TAKEN: Final[Sequence[tuple[str, str, Mapping[str, str | None]]]] = (
    ("wrong_accept", "with a wrong Sec-WebSocket-Accept", {"Sec_WebSocket_Accept": accept_of("another key")}),
    ("no_accept", "without a Sec-WebSocket-Accept", {"Sec_WebSocket_Accept": None}),
    ("wrong_status", "with another status than 101, whatever else it says,", {"status": "200 OK"}),
)
CASES.extend(
    Case(
        name=name,
        sentence=f"An answer {what} is not accepted.",
        source=f"{RFC6455}, 4.1",
        roles=RECEIVING,
        transports=("ws",),
        sides=DIALS,
        function=partial(not_accepted, **changed),  # type: ignore[arg-type]
    )
    for name, what, changed in NOT_TAKEN
)


@case(f"{RFC6455}, 4.1", roles=RECEIVING, transports=("ws",), sides=DIALS)
async def wrong_name_in_the_answer(target: Target) -> None:
    """An answer with a name that was not asked for is not accepted."""
    await not_accepted(target, Sec_WebSocket_Protocol=_other_name(target))


@case(f"{RFC6455}, 4.1, allows both", roles=RECEIVING, transports=("ws",), sides=DIALS, shown=True)
async def no_name_in_the_answer(target: Target) -> str:
    """An answer without a name is refused, or accepted."""
    wire, request = await _dialed(target)
    await target.accept(wire, request, Sec_WebSocket_Protocol=None)
    pipe = WebSocketPipe(wire, masked=False)
    await pipe.send(target.message("of a server without a name"))
    try:
        await target.delivered(pipe, "of a server without a name")
    except PipeEnded:
        return "refused"
    return "accepted"
