"""WebSocket without a network: frames in pieces of any size, and the two sides of a handshake."""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import struct
import sys
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import pytest
import websockets.protocol
import websockets.utils
from hypothesis import example, given, settings
from hypothesis import strategies as st
from websockets.client import ClientProtocol
from websockets.datastructures import Headers
from websockets.server import ServerProtocol
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

from sp.errors import GreetingError, MalformedMessage, MessageTooLarge, PeerClosed, PeerError, UpgradeRefused, WrongProtocol
from sp.http.message import HTTPHeaders
from sp.message import FindBody, Message
from sp.protocol_numbers import BUS, PAIR1, PUB, REP, REQ, SUB
from sp.protocols.backtrace import backtrace_end, request_id_end
from sp.transports.ws.answer import KEPT_BODY, MAX_HEAD, MAX_INTERIM
from sp.transports.ws.frames import WebSocket
from sp.transports.ws.handshake import (
    SUBPROTOCOLS,
    ClientHandshake,
    Pings,
    ServerHandshake,
    client_protocol,
    pings_for_client,
    pings_for_server,
)

KIB = 1 << 10
MIB = 1 << 20
ID = b"\x80\0\0\1"
CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # the one of RFC 6455, 1.3, and what belongs to it
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
MASK = b"\x1f\xe2\x03\xc4"

Said = tuple[int, bool, bytes]
"""A frame: opcode, whether it is the last of its message, payload."""


def masked(data: bytes, key: bytes = MASK) -> bytes:
    pad = (key * (len(data) // 4 + 1))[: len(data)]
    return (int.from_bytes(data, "big") ^ int.from_bytes(pad, "big")).to_bytes(len(data), "big")


def frame(data: bytes = b"", opcode: int = BINARY, *, fin: bool = True, mask: bool = True, rsv: int = 0, size: int | None = None) -> bytes:
    """Return a frame, made by hand; *size* is a false length that it announces."""
    size = len(data) if size is None else size
    head = bytes([fin << 7 | rsv << 4 | opcode])
    bit = mask << 7
    if size < 126:
        head += bytes([bit | size])
    elif size < 1 << 16:
        head += struct.pack(">BH", bit | 126, size)
    else:
        head += struct.pack(">BQ", bit | 127, size)
    return head + MASK + masked(data) if mask else head + data


def frames_in(data: bytes, *, mask: bool) -> list[Said]:
    """Decode frames by hand, and check that each head is as short as possible and masked as it
    should be.
    """
    found: list[Said] = []
    while data:
        first, second = data[:2]
        assert not first & 0x70
        assert bool(second & 0x80) == mask
        size, start = second & 0x7F, 2
        if size == 126:
            size, start = int.from_bytes(data[2:4], "big"), 4
            assert size > 125
        elif size == 127:
            size, start = int.from_bytes(data[2:10], "big"), 10
            assert size > 0xFFFF
        key, start = (data[start : start + 4], start + 4) if mask else (b"", start)
        payload = data[start : start + size]
        assert len(payload) == size
        found.append((first & 15, bool(first & 0x80), masked(payload, key) if mask else payload))
        data = data[start + size :]
    return found


def request(*headers: tuple[str, str], line: str = "GET / HTTP/1.1", without: Sequence[str] = (), number: int = REP) -> bytes:
    """Return a good request, with some headers replaced, added, or left out."""
    items = [
        ("Host", "localhost"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", KEY),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Protocol", SUBPROTOCOLS[number]),
    ]
    gone = {name.lower() for name in without} | {name.lower() for name, _ in headers}
    items = [item for item in items if item[0].lower() not in gone]
    return "\r\n".join([line, *(f"{name}: {value}" for name, value in [*items, *headers]), "", ""]).encode("latin-1")


def accept_for(key: str) -> str:
    return base64.b64encode(hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()


def key_of(handshake: ClientHandshake) -> str:
    return handshake.request_headers["Sec-WebSocket-Key"]


def agreement(handshake: ClientHandshake, *headers: tuple[str, str], without: Sequence[str] = (), number: int = REP) -> bytes:
    """Return a good answer to *handshake*, with some headers replaced, added, or left out."""
    items = [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", accept_for(key_of(handshake))),
        ("Sec-WebSocket-Protocol", SUBPROTOCOLS[number]),
    ]
    gone = {name.lower() for name in without} | {name.lower() for name, _ in headers}
    items = [item for item in items if item[0].lower() not in gone]
    lines = ["HTTP/1.1 101 Switching Protocols", *(f"{name}: {value}" for name, value in [*items, *headers]), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def dialing(number: int = REP, target: str = "/", host: str = "localhost", headers: Sequence[tuple[str, str]] = ()) -> ClientHandshake:
    return ClientHandshake(client_protocol(number), number, target, host, headers)


def asked() -> ServerHandshake:
    return ServerHandshake(over_tls=False)


def opened(handshake: ServerHandshake | ClientHandshake, find_body: FindBody | None, limit: int | None) -> WebSocket:
    """Return the WebSocket after a handshake, with the bytes that came after that."""
    websocket = WebSocket(handshake.protocol.side, find_body, limit)
    websocket.add(handshake.rest)
    return websocket


def server(find_body: FindBody | None = None, limit: int | None = MIB) -> WebSocket:
    handshake = asked()
    assert handshake.receive_data(request())
    assert handshake.check(REP) == (None, None)
    handshake.accept([])
    return opened(handshake, find_body, limit)


def client(find_body: FindBody | None = None, limit: int | None = MIB) -> WebSocket:
    handshake = dialing()
    assert handshake.receive_data(agreement(handshake))
    return opened(handshake, find_body, limit)


class Side:
    """One end, and how its peer makes frames."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.make: Callable[..., WebSocket] = server if name == "server" else client
        self.mask = name == "server"

    def frame(self, data: bytes = b"", opcode: int = BINARY, **options: object) -> bytes:
        return frame(data, opcode, **{"mask": self.mask, **options})  # type: ignore[arg-type]

    def said(self, data: bytes) -> list[Said]:
        return frames_in(data, mask=not self.mask)


@pytest.fixture(params=["server", "client"])
def side(request: pytest.FixtureRequest) -> Side:
    return Side(request.param)


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


class Decoded:
    """The result of a stream: messages, the error's class, the words for the peer's Close, and our
    frames.
    """

    def __init__(self, side: Side, chunks: Sequence[bytes], find_body: FindBody | None, limit: int | None) -> None:
        websocket = side.make(find_body, limit)
        said = b""
        self.messages: list[tuple[bytes, bytes]] = []
        for chunk in chunks:
            self.messages += [(m.header, m.body) for m in websocket.receive_data(chunk)]
            said += websocket.data_to_send()
            while websocket.error is None and websocket.has_more:
                self.messages += [(m.header, m.body) for m in websocket.receive_data(b"")]
                said += websocket.data_to_send()
        self.error = websocket.error
        self.kind = None if websocket.error is None else type(websocket.error)
        self.ended = websocket.ended
        self.said = side.said(said)
        self.in_message = websocket.in_message

    @property
    def bodies(self) -> list[bytes]:
        return [body for _, body in self.messages]

    @property
    def code(self) -> int | None:
        """The code of our last Close."""
        closes = [data for opcode, _, data in self.said if opcode == CLOSE]
        assert len(closes) <= 1
        assert not closes or self.said[-1][0] == CLOSE
        return int.from_bytes(closes[0][:2], "big") if closes and closes[0] else None

    @property
    def outcome(self) -> object:
        return self.messages, self.kind, self.ended, [said for said in self.said if said[0] != CLOSE], self.code


def decode(side: Side, data: bytes, *, find_body: FindBody | None = None, limit: int | None = MIB) -> Decoded:
    """Return the result of *data*.

    It must be the same for the whole, byte by byte, in pieces, and with the start of another frame.
    """
    whole = Decoded(side, [data], find_body, limit)
    byte_by_byte = [data[i : i + 1] for i in range(len(data))] if len(data) < 6_000 else [data]
    pieces = [data[i : i + 5000] for i in range(0, len(data), 5000)]
    for chunks in (byte_by_byte, pieces, [data + b"\x82"], [data, b"\x82"]):
        assert Decoded(side, chunks, find_body, limit).outcome == whole.outcome
    return whole


def encoded(websocket: WebSocket, body: bytes, header: bytes = b"") -> bytes:
    return b"".join(websocket.encode(Message(body, header)))


# Writing.

SIZES = [0, 1, 125, 126, 127, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 128 * KIB, 192 * KIB + 1]


@pytest.mark.parametrize("size", SIZES)
def test_a_message_leaves_in_frames_of_at_most_64_kib(side: Side, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    frames = side.said(encoded(side.make(), body))
    assert b"".join(data for _, _, data in frames) == body
    assert [opcode for opcode, _, _ in frames] == [BINARY] + [CONT] * (len(frames) - 1)
    assert [fin for _, fin, _ in frames] == [False] * (len(frames) - 1) + [True]
    assert len(frames) == max(1, -(-size // (64 * KIB)))
    assert max(len(data) for _, _, data in frames) <= 64 * KIB


def test_header_and_body_leave_as_one_message(side: Side) -> None:
    websocket = side.make()
    assert side.said(encoded(websocket, b"body", ID)) == [(BINARY, True, ID + b"body")]
    first, last = side.said(encoded(websocket, bytes(64 * KIB), ID))
    assert (len(first[2]), len(last[2])) == (64 * KIB, 4)


@pytest.mark.parametrize("size", SIZES)
def test_what_one_side_writes_the_other_reads(side: Side, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    other = Side("client" if side.name == "server" else "server")
    data = encoded(other.make(), body, ID) + encoded(other.make(), b"next")
    assert decode(side, data).bodies == [ID + body, b"next"]


def test_a_client_masks_each_frame_in_another_way() -> None:
    websocket = client()
    assert len({encoded(websocket, b"the same") for _ in range(20)}) == 20


def test_after_a_close_nothing_can_be_written(side: Side) -> None:
    websocket = side.make()
    assert side.said(websocket.close(1001, "going")) == [(CLOSE, True, b"\x03\xe9going")]
    with pytest.raises(BrokenPipeError):
        websocket.encode(Message(b"late"))
    assert websocket.ping() == b""
    assert websocket.close(1000) == b""


def test_a_ping_is_empty_and_a_long_reason_is_cut_off_between_characters(side: Side) -> None:
    websocket = side.make()
    assert side.said(websocket.ping()) == [(PING, True, b"")]
    ((_, _, data),) = side.said(websocket.close(1002, "x" + "ü" * 100))
    assert 120 <= len(data) <= 125
    assert ("x" + "ü" * 100).startswith(data[2:].decode())


# Reading messages.


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65_535, 65_536, 100_000])
def test_a_message_of_any_size_comes_out_as_it_went_in(side: Side, size: int) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(range(size % 256))
    found = decode(side, side.frame(body))
    assert (found.messages, found.kind, found.said) == ([(b"", body)], None, [])
    assert type(found.messages[0][1]) is bytes


def test_a_length_may_be_longer_than_it_has_to(side: Side) -> None:
    # RFC 6455 forbids to write it, but libraries read it, and nothing is ambiguous.
    rest = MASK + masked(b"abc") if side.mask else b"abc"
    for length in (struct.pack(">BH", side.mask << 7 | 126, 3), struct.pack(">BQ", side.mask << 7 | 127, 3)):
        found = decode(side, b"\x82" + length + rest)
        assert found.bodies == [b"abc"] or found.kind is MalformedMessage


def test_a_length_of_more_than_63_bits_is_none(side: Side) -> None:
    # RFC 6455, 5.2: its first bit is 0.
    found = decode(side, b"\x82" + struct.pack(">BQ", side.mask << 7 | 127, 1 << 63) + MASK, limit=None)
    assert (found.bodies, found.kind, found.code) == ([], MalformedMessage, 1002)


def test_masks_are_applied_where_the_c_extension_of_websockets_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    found = importlib.util.find_spec("sp.transports.ws.frames")
    assert found is not None
    assert found.loader is not None
    without = importlib.util.module_from_spec(found)
    found.loader.exec_module(without)
    assert without.apply_mask is websockets.utils.apply_mask
    websocket = without.WebSocket(websockets.protocol.SERVER, None, MIB)
    assert [message.body for message in websocket.receive_data(frame(b"abc"))] == [b"abc"]


@pytest.mark.parametrize("sizes", [(0, 0), (1, 1), (0, 5, 0), (3, 0, 0, 4), (5000, 3, 5000, 3, 0, 5000), (1,) * 300, (4095, 4096, 4097)])
def test_fragments_are_put_together(side: Side, sizes: tuple[int, ...]) -> None:
    bodies = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    data = b"".join(side.frame(body, BINARY if number == 0 else CONT, fin=number == len(sizes) - 1) for number, body in enumerate(bodies))
    found = decode(side, data + side.frame(b"next"))
    assert found.bodies == [b"".join(bodies), b"next"]
    assert {type(body) for body in found.bodies} == {bytes}


def test_messages_come_out_in_order(side: Side) -> None:
    bodies = [b"", b"first", b"", b"second" * 100, b"\0"]
    assert decode(side, b"".join(map(side.frame, bodies))).bodies == bodies


def test_a_header_is_split_off_wherever_fragments_end(side: Side) -> None:
    data = b"\0\0\0\7" + ID + b"body"
    for cut in range(len(data) + 1):
        stream = side.frame(data[:cut], fin=False) + side.frame(data[cut:], CONT)
        assert decode(side, stream, find_body=backtrace_end).messages == [(data[:8], b"body")]


@pytest.mark.parametrize("data", [b"", b"\x80", b"\0\0\0\7", b"secret"])
def test_a_message_without_its_header_is_malformed_and_not_shown(side: Side, data: bytes) -> None:
    found = decode(side, side.frame(ID + b"before") + side.frame(data) + side.frame(ID + b"behind"), find_body=backtrace_end)
    assert (found.messages, found.kind, found.code) == ([(ID, b"before")], MalformedMessage, 1002)
    assert f"{len(data)} bytes" in str(found.error)
    assert "secret" not in str(found.error)
    assert all(b"secret" not in said[2] for said in found.said)


def test_a_flood_of_tiny_messages_comes_in_batches(side: Side) -> None:
    websocket = side.make()
    sizes = [len(websocket.receive_data(side.frame() * 20_000))]
    while websocket.has_more:
        sizes.append(len(websocket.receive_data(b"")))
    assert sum(sizes) == 20_000
    assert max(sizes) <= 16 * KIB // 2


def test_it_knows_whether_a_message_would_be_cut_off(side: Side) -> None:
    websocket = side.make()
    for data, cut in (
        (side.frame(b"abc"), False),
        (side.frame(b"abc")[:1], True),
        (side.frame(b"abc")[1:], False),
        (side.frame(b"", fin=False), True),
        (side.frame(b"x", PING), True),
        (side.frame(b"", CONT), False),
    ):
        websocket.receive_data(data)
        assert websocket.in_message == cut


# Text.


@pytest.mark.parametrize("text", ["", "plain", "Grüße", "\N{SNOWMAN}\N{GRINNING FACE}\0"])
def test_text_is_a_message_of_its_bytes(side: Side, text: str) -> None:
    data = text.encode()
    assert decode(side, side.frame(data, TEXT)).bodies == [data]
    for cut in range(len(data) + 1):  # also within a character
        assert decode(side, side.frame(data[:cut], TEXT, fin=False) + side.frame(data[cut:], CONT)).bodies == [data]


@pytest.mark.parametrize("data", [b"\xff", b"ok\xc3", b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\x80b"])
def test_text_that_is_not_utf_8_is_refused_with_1007(side: Side, data: bytes) -> None:
    for stream in (
        side.frame(data, TEXT),
        *(side.frame(data[:cut], TEXT, fin=False) + side.frame(data[cut:], CONT) for cut in range(len(data) + 1)),
    ):
        found = decode(side, side.frame(b"before") + stream + side.frame(b"behind"))
        assert (found.bodies, found.kind, found.code) == ([b"before"], MalformedMessage, 1007)
        assert "UTF-8" in str(found.error)


def test_a_binary_message_need_not_be_utf_8_even_after_a_text(side: Side) -> None:
    assert decode(side, side.frame(b"a", TEXT) + side.frame(b"\xff")).bodies == [b"a", b"\xff"]
    data = side.frame(b"a", TEXT) + side.frame(b"\xff", fin=False) + side.frame(b"\xfe", CONT)
    assert decode(side, data).bodies == [b"a", b"\xff\xfe"]


# Control frames.


@pytest.mark.parametrize("data", [b"", b"x", b"\xff" * 125])
def test_a_ping_is_answered_with_its_own_bytes(side: Side, data: bytes) -> None:
    found = decode(side, side.frame(data, PING) + side.frame(b"message"))
    assert (found.bodies, found.said) == ([b"message"], [(PONG, True, data)])


def test_a_pong_changes_nothing(side: Side) -> None:
    found = decode(side, side.frame(b"unasked", PONG) + side.frame(b"message") + side.frame(b"", PONG))
    assert (found.bodies, found.said, found.kind) == ([b"message"], [], None)


def test_control_frames_may_stand_between_fragments(side: Side) -> None:
    data = (
        side.frame(b"one ", fin=False)
        + side.frame(b"a", PING)
        + side.frame(b"two ", CONT, fin=False)
        + side.frame(b"b", PONG)
        + side.frame(b"", PING)
        + side.frame(b"three", CONT)
    )
    found = decode(side, data)
    assert (found.bodies, found.said) == ([b"one two three"], [(PONG, True, b"a"), (PONG, True, b"")])


def test_pings_are_answered_up_to_the_mistake_behind_them(side: Side) -> None:
    found = decode(side, side.frame(b"1", PING) + side.frame(b"", 3))
    assert found.said[0] == (PONG, True, b"1")
    assert found.code == 1002


# Close.


@pytest.mark.parametrize("code", [1000, 1001, 1002, 1003, 1007, 1011, 1014, 3000, 3999, 4000, 4999])
@pytest.mark.parametrize("reason", ["", "because", "ü" * 61])
def test_a_close_is_answered_with_the_same_and_ends_the_stream(side: Side, code: int, reason: str) -> None:
    payload = struct.pack(">H", code) + reason.encode()
    found = decode(side, side.frame(b"before") + side.frame(payload, CLOSE) + side.frame(b"behind") + b"\xff" * 50)
    assert (found.bodies, found.kind, found.said) == ([b"before"], None, [(CLOSE, True, payload)])
    assert found.ended.startswith("the peer closed the connection")
    if code == 1000 and not reason:
        assert found.ended == "the peer closed the connection"
    else:
        assert str(code) in found.ended
        assert reason in found.ended
    assert not found.in_message


@pytest.mark.parametrize("payload", [b"", b"\x03\xe8", b"\x03\xe9going", b"\x03\xf3out of memory", b"\x0f\xa0ours"])
@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("size", [0, 5, 5000])
def test_a_close_between_fragments_is_answered_with_the_same(side: Side, payload: bytes, fragments: int, size: int) -> None:
    begun = side.frame(bytes(size), fin=False) + side.frame(bytes(size), CONT, fin=False) * (fragments - 1)
    found = decode(side, side.frame(b"before") + begun + side.frame(payload, CLOSE) + side.frame(b"behind", CONT))
    assert (found.bodies, found.kind, found.said) == ([b"before"], None, [(CLOSE, True, payload)])
    assert found.ended.startswith("the peer closed the connection in the middle of a message")
    assert payload[2:].decode() in found.ended
    assert not found.in_message


def test_a_close_between_fragments_may_be_the_answer_to_ours(side: Side) -> None:
    websocket = side.make()
    websocket.close(1000)
    assert websocket.receive_data(side.frame(b"crossed", fin=False) + side.frame(b"\x03\xe8", CLOSE)) == []
    assert websocket.data_to_send() == b""
    assert websocket.error is None
    assert "in the middle of a message" in websocket.ended


def test_a_malformed_close_between_fragments_is_a_mistake(side: Side) -> None:
    found = decode(side, side.frame(b"x", fin=False) + side.frame(b"\x03", CLOSE))
    assert (found.kind, found.code, found.ended) == (MalformedMessage, 1002, "")


def test_a_close_may_say_nothing(side: Side) -> None:
    found = decode(side, side.frame(b"", CLOSE))
    assert (found.ended, found.kind, found.said) == ("the peer closed the connection", None, [(CLOSE, True, b"")])


def test_a_close_that_answers_ours_is_not_answered(side: Side) -> None:
    websocket = side.make()
    websocket.close(1000)
    assert websocket.receive_data(side.frame(b"crossed ours") + side.frame(b"\x03\xe8", CLOSE))[0].body == b"crossed ours"
    assert websocket.data_to_send() == b""
    assert websocket.ended
    assert websocket.error is None


@pytest.mark.parametrize("code", [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535])
def test_a_close_with_a_forbidden_code_is_a_mistake(side: Side, code: int) -> None:
    found = decode(side, side.frame(struct.pack(">H", code), CLOSE))
    assert (found.kind, found.code, found.ended) == (MalformedMessage, 1002, "")


# Mistakes.


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        *(pytest.param({"rsv": rsv}, 1002, id=f"reserved bits {rsv:03b}") for rsv in range(1, 8)),
        *(pytest.param({"opcode": opcode}, 1002, id=f"opcode {opcode}") for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)),
        pytest.param({"opcode": CONT}, 1002, id="a continuation of nothing"),
        pytest.param({"opcode": CONT, "fin": False}, 1002, id="a fragment of nothing"),
        pytest.param({"opcode": PING, "fin": False}, 1002, id="a fragmented ping"),
        pytest.param({"opcode": PONG, "fin": False}, 1002, id="a fragmented pong"),
        pytest.param({"opcode": CLOSE, "fin": False}, 1002, id="a fragmented close"),
        pytest.param({"opcode": PING, "data": bytes(126)}, 1002, id="a long ping"),
        pytest.param({"opcode": PONG, "data": bytes(126)}, 1002, id="a long pong"),
        pytest.param({"opcode": CLOSE, "data": b"\x03\xe8" + b"x" * 124}, 1002, id="a long close"),
        pytest.param({"opcode": PING, "data": bytes(65536)}, 1002, id="a very long ping"),
        pytest.param({"opcode": CLOSE, "data": b"\x03"}, 1002, id="a close of one byte"),
        pytest.param({"opcode": CLOSE, "data": b"\x03\xe8\xff"}, 1007, id="a close that is no text"),
        pytest.param({"opcode": PING, "rsv": 4}, 1002, id="a ping with a reserved bit"),
    ],
)
def test_a_frame_that_is_wrong_ends_it_and_what_came_before_is_kept(side: Side, wrong: dict[str, object], code: int) -> None:
    options = {"data": b"", **wrong}
    data = side.frame(b"before") + side.frame(**options) + side.frame(b"behind")  # type: ignore[arg-type]
    found = decode(side, data)
    assert (found.bodies, found.kind, found.code) == ([b"before"], MalformedMessage, code)
    assert str(found.error).startswith("WebSocket: ")


def test_a_client_must_mask_its_frames_and_a_server_must_not(side: Side) -> None:
    found = decode(side, side.frame(b"before") + side.frame(b"message", mask=not side.mask))
    assert (found.bodies, found.kind, found.code) == ([b"before"], MalformedMessage, 1002)
    assert "mask" in str(found.error)


@pytest.mark.parametrize("opcode", [BINARY, TEXT])
def test_a_message_cannot_begin_within_another(side: Side, opcode: int) -> None:
    found = decode(side, side.frame(b"one", fin=False) + side.frame(b"two", opcode))
    assert (found.bodies, found.kind, found.code) == ([], MalformedMessage, 1002)


@pytest.mark.parametrize("start", [b"GET / HTTP/1.1\r\n\r\n", b"\x83", b"\xc2", b"\x09", b"\x00"], ids=repr)
def test_what_cannot_be_a_frame_is_not_waited_for(start: bytes) -> None:
    # Otherwise a client that has pipelined another request waits for its answer for ever.
    websocket = server()
    websocket.receive_data(start + b"\x45")
    assert isinstance(websocket.error, MalformedMessage)


def test_nothing_is_decoded_after_a_mistake(side: Side) -> None:
    websocket = side.make()
    websocket.receive_data(side.frame(b"", 3))
    error = websocket.error
    assert error is not None
    websocket.data_to_send()
    for data in (side.frame(b"late"), side.frame(b"", PING), side.frame(b"", CLOSE), b"\xff" * 1000):
        assert websocket.receive_data(data) == []
        assert websocket.data_to_send() == b""
    assert websocket.error is error
    assert not websocket.ended


# Limits.


@pytest.mark.parametrize("limit", [0, 1, 125, 126, 70_000])
@pytest.mark.parametrize("opcode", [BINARY, TEXT])
def test_a_message_of_exactly_the_limit_is_accepted_and_one_byte_more_is_not(side: Side, limit: int, opcode: int) -> None:
    assert decode(side, side.frame(b"x" * limit, opcode), limit=limit).bodies == [b"x" * limit]
    found = decode(side, side.frame(b"", opcode) + side.frame(b"x" * (limit + 1), opcode) + side.frame(b""), limit=limit)
    assert (found.bodies, found.kind, found.code) == ([b""], MessageTooLarge, 1009)
    assert f"{limit + 1} bytes, but max_message_size is {limit}" in str(found.error)


@pytest.mark.parametrize("sizes", [(100, 0), (0, 100), (50, 50), (1, 98, 1), (99, 0, 0, 1), (1,) * 100])
def test_the_limit_is_that_of_all_fragments_together(side: Side, sizes: tuple[int, ...]) -> None:
    def stream(sizes: tuple[int, ...]) -> bytes:
        last = len(sizes) - 1
        return b"".join(side.frame(b"x" * size, CONT if number else BINARY, fin=number == last) for number, size in enumerate(sizes))

    assert decode(side, stream(sizes) * 2, limit=100).bodies == [b"x" * 100] * 2
    for place in range(0, len(sizes), max(1, len(sizes) // 4)):
        more = (*sizes[:place], sizes[place] + 1, *sizes[place + 1 :])
        found = decode(side, stream(sizes) + stream(more), limit=100)
        assert (found.bodies, found.kind, found.code) == ([b"x" * 100], MessageTooLarge, 1009)
        assert "101 bytes, but max_message_size is 100" in str(found.error)


def test_the_limit_counts_header_and_body(side: Side) -> None:
    assert decode(side, side.frame(ID + bytes(96)), find_body=request_id_end, limit=100).messages == [(ID, bytes(96))]
    assert decode(side, side.frame(ID + bytes(97)), find_body=request_id_end, limit=100).kind is MessageTooLarge


def test_without_a_limit_any_size_is_accepted(side: Side) -> None:
    assert len(decode(side, side.frame(bytes(3 * MIB)), limit=None).bodies[0]) == 3 * MIB


@pytest.mark.parametrize("limit", [0, 1, 10, 100])
@pytest.mark.parametrize("opcode", [PING, PONG])
def test_a_control_frame_is_no_message_and_has_no_part_in_its_limit(side: Side, limit: int, opcode: int) -> None:
    control = side.frame(b"c" * 125, opcode)
    found = decode(side, control + side.frame(b"x" * limit, fin=False) + control + side.frame(b"", CONT) + control, limit=limit)
    assert (found.bodies, found.kind) == ([b"x" * limit], None)


@pytest.mark.parametrize("limit", [0, 1, 10])
def test_a_close_may_say_more_than_a_message_may(side: Side, limit: int) -> None:
    found = decode(side, side.frame(b"\x03\xe9restarting, come again", CLOSE), limit=limit)
    assert (found.kind, found.ended) == (None, "the peer closed the connection: 1001 (going away) restarting, come again")


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("size", [1 << 63, (1 << 64) - 1, 1 << 40, (1 << 63) - 1])
@pytest.mark.parametrize("opcode", [BINARY, TEXT])
def test_an_absurd_length_allocates_nothing_and_what_came_before_is_kept(side: Side, size: int, opcode: int) -> None:
    found = decode(side, side.frame(b"before") + side.frame(b"and a little", opcode, size=size))
    assert (found.bodies, found.kind, found.code) == ([b"before"], MessageTooLarge, 1009)
    assert f"{size} bytes" in str(found.error)
    assert tracemalloc.get_traced_memory()[1] < 128 * KIB


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("size", [1 << 62, (1 << 63) - 1])
def test_an_absurd_length_allocates_nothing_even_without_a_limit(side: Side, size: int) -> None:
    found = decode(side, side.frame(b"and a little", size=size), limit=None)
    assert (found.bodies, found.kind, found.in_message) == ([], None, True)
    assert tracemalloc.get_traced_memory()[1] < 128 * KIB


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_an_absurdly_long_control_frame_is_not_waited_for(side: Side, opcode: int) -> None:
    found = decode(side, side.frame(b"", opcode, size=1 << 60))
    assert found.kind in (MalformedMessage, MessageTooLarge)
    assert found.code in (1002, 1009)


# Memory.


@pytest.mark.slow
def test_a_million_tiny_fragments_cost_little_more_than_their_bytes() -> None:
    side = Side("client")
    websocket = side.make(limit=2 * MIB)
    fragments = (side.frame(b"", CONT, fin=False) + side.frame(b"x", CONT, fin=False)) * 2500
    websocket.receive_data(side.frame(b"", fin=False))
    for number in range(200):
        if number == 195:  # the last messages are enough, and tracing is slow
            tracemalloc.start()
        assert websocket.receive_data(fragments) == []
        while websocket.has_more:
            assert websocket.receive_data(b"") == []
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 800_000  # the half million bytes may have moved
    assert peak < 4 * MIB
    assert sum(map(len, websocket._parts)) == 500_000
    assert len(websocket._parts) < 10
    (message,) = websocket.receive_data(side.frame(b"", CONT))
    assert message.body == b"x" * 500_000


@pytest.mark.slow
@pytest.mark.usefixtures("traced")
def test_tiny_fragments_between_large_ones_are_gathered_too() -> None:
    websocket = server(limit=None)
    websocket.receive_data(frame(b"", fin=False))
    part = frame(bytes(4096), CONT, fin=False) + frame(b"x", CONT, fin=False) * 50
    for _ in range(200):
        websocket.receive_data(part)
        while websocket.has_more:
            websocket.receive_data(b"")
    assert tracemalloc.get_traced_memory()[0] < 200 * 4146 * 1.3 + 128 * KIB


@pytest.mark.usefixtures("traced")
def test_a_message_under_way_holds_on_to_no_more_than_what_has_arrived(side: Side) -> None:
    websocket = side.make(limit=None)
    websocket.receive_data(side.frame(b"", size=8 * MIB))
    for received in range(0, 4 * MIB, 64 * KIB):
        websocket.receive_data(bytes(64 * KIB))
        while websocket.has_more:
            websocket.receive_data(b"")
        assert tracemalloc.get_traced_memory()[0] < received * 1.2 + 512 * KIB


@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("how", ["forget", "close", "mistake", "too large"])
def test_at_the_end_nothing_incomplete_is_held(side: Side, how: str) -> None:
    websocket = side.make(limit=4 * MIB)
    websocket.receive_data(side.frame(bytes(MIB), fin=False))
    while websocket.has_more:
        websocket.receive_data(b"")
    assert tracemalloc.get_traced_memory()[0] > MIB
    if how == "forget":
        websocket.forget()
    else:
        end = {"close": side.frame(b"", CLOSE), "mistake": side.frame(b"", 3), "too large": side.frame(b"", CONT, size=4 * MIB)}[how]
        websocket.receive_data(end)
    assert tracemalloc.get_traced_memory()[0] < 256 * KIB


# Any bytes.

LIMIT = 20_000
opcodes = st.one_of(st.sampled_from([CONT, BINARY, BINARY, TEXT, PING, PONG, CLOSE]), st.integers(0, 15))
payloads = st.one_of(st.binary(max_size=20), st.sampled_from([125, 126, 4095, 4096, LIMIT - 1, LIMIT, LIMIT + 1]).map(bytes))
sizes = st.one_of(st.none(), st.none(), st.none(), st.integers(0, 30), st.integers(0, (1 << 64) - 1))
sides = st.sampled_from([Side("server"), Side("client")])
splits = st.sampled_from([None, backtrace_end])


@st.composite
def streams(draw: st.DrawFn, side: Side) -> bytes:
    """A series of frames, most of them good, with other bytes in between now and then."""
    parts: list[bytes] = []
    for _ in range(draw(st.integers(0, 8))):
        if draw(st.integers(0, 9)) == 0:
            parts.append(draw(st.binary(max_size=20)))
            continue
        parts.append(
            side.frame(
                draw(payloads),
                draw(opcodes),
                fin=draw(st.booleans()),
                rsv=draw(st.sampled_from([0] * 9 + [4])),
                mask=side.mask != draw(st.sampled_from([False] * 9 + [True])),
                size=draw(sizes),
            )
        )
    return b"".join(parts)


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[start:stop] for start, stop in pairwise(edges) if stop > start]


@pytest.mark.slow
@settings(deadline=None)
@given(st.data(), sides, splits, st.lists(st.integers(0), max_size=20))
def test_any_frames_in_any_chunks_are_messages_or_a_peer_error_and_never_an_exception(
    data: st.DataObject, side: Side, find_body: FindBody | None, places: list[int]
) -> None:
    stream = data.draw(streams(side))
    whole = Decoded(side, [stream], find_body, LIMIT)
    assert whole.error is None or isinstance(whole.error, PeerError)
    assert not (whole.error is not None and whole.ended)
    assert all(len(header) + len(body) <= LIMIT for header, body in whole.messages)
    assert (whole.code is not None) == (whole.error is not None) or whole.ended
    assert Decoded(side, cut(stream, places), find_body, LIMIT).outcome == whole.outcome


@settings(deadline=None)
@given(st.lists(st.binary(min_size=1, max_size=60), max_size=10), sides)
@example([b"\x82\xff" + b"\xff" * 30], Side("server"))
@example([b"\x88\x01\x03"], Side("client"))
def test_any_bytes_are_never_an_exception(chunks: list[bytes], side: Side) -> None:
    found = Decoded(side, chunks, None, LIMIT)
    assert found.error is None or isinstance(found.error, PeerError)


# A request.


def begun(data: bytes, number: int = REP) -> tuple[int, str, HTTPHeaders, str]:
    """Return status, error text, headers and body of the answer to *data*.

    It must be the same for the whole and byte by byte.
    """
    found = []
    for chunks in ([data], [data[i : i + 1] for i in range(len(data))], [data[i : i + 1000] for i in range(0, len(data), 1000)]):
        handshake = asked()
        for chunk in chunks:
            if handshake.receive_data(chunk):
                break
        else:
            raise AssertionError("there is no end of the request")
        if handshake.problem is not None:
            response, words = handshake.problem
            assert handshake.request is None
            found.append((response.status, words, response.headers, response.body.decode()))
            continue
        refused, error = handshake.check(number)
        assert (refused is None) == (error is None)
        if refused is None:
            found.append((101, "", handshake.accept([])[1], ""))
        else:
            assert isinstance(error, PeerError)
            found.append((refused.status, str(error), refused.headers, refused.body.decode()))
    assert len({status for status, _, _, _ in found}) == 1, found
    return found[0]


def headers_in(data: bytes) -> HTTPHeaders:
    handshake = asked()
    assert handshake.receive_data(data)
    assert handshake.request is not None
    return HTTPHeaders(handshake.request.headers.raw_items())


def test_a_good_request_is_answered_as_the_standard_has_it() -> None:
    handshake = asked()
    assert not handshake.has_begun
    assert handshake.receive_data(request())
    assert handshake.check(REP) == (None, None)
    answer, headers = handshake.accept([("X-One", "1"), ("X-One", "2")])
    lines = answer.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 101 Switching Protocols"
    assert lines[-2:] == ["", ""]
    assert [tuple(line.split(": ", 1)) for line in lines[1:-2]] == list(headers.raw)
    assert headers["Upgrade"] == "websocket"
    assert headers["Connection"] == "Upgrade"
    assert headers["Sec-WebSocket-Accept"] == ACCEPT
    assert headers["Sec-WebSocket-Protocol"] == "rep.sp.nanomsg.org"
    assert "Sec-WebSocket-Extensions" not in headers
    assert headers["X-One"] == "1, 2"


@pytest.mark.parametrize("tail", [b"", b"\x82", frame(b"message"), request(), b"\r\n\r\n", b"\xff" * 1000])
def test_what_comes_behind_a_request_is_kept_and_not_looked_at(tail: bytes) -> None:
    data = request()
    for at in range(0, len(data) + 1, 7):
        handshake = asked()
        if at:
            assert handshake.receive_data(data[:at]) == (at == len(data))
            assert handshake.has_begun
        if at < len(data):
            assert handshake.receive_data(data[at:] + tail)
            assert handshake.rest == tail
        assert handshake.request is not None
        assert handshake.check(REP) == (None, None)
        answer, _ = handshake.accept([])
        assert answer.count(b"\r\n\r\n") == 1
        assert answer.endswith(b"\r\n\r\n")


LIBNNG_REQUEST = LIBNANOMSG_REQUEST = (
    b"GET /x HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: " + KEY.encode() + b"\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: rep.sp.nanomsg.org\r\n\r\n"
)
BROWSER_REQUEST = (
    b"GET /x?y HTTP/1.1\r\nHost: h:81\r\nConnection: keep-alive, Upgrade\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36\r\nUpgrade: websocket\r\nOrigin: https://app.example\r\n"
    b"Sec-WebSocket-Version: 13\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: de\r\nSec-WebSocket-Key: "
    + KEY.encode()
    + b"\r\nSec-WebSocket-Extensions: permessage-deflate; client_max_window_bits\r\nSec-WebSocket-Protocol: rep.sp.nanomsg.org\r\n\r\n"
)


def websockets_request() -> bytes:
    """Return the request that ``connect`` of the websockets package sends."""
    protocol = ClientProtocol(parse_uri("ws://h/x"), subprotocols=[Subprotocol("rep.sp.nanomsg.org")])
    made = protocol.connect()
    made.headers["User-Agent"] = "Python/3.11 websockets/17"
    return made.serialize()


@pytest.mark.parametrize(
    ("data", "pings"),
    [
        pytest.param(LIBNANOMSG_REQUEST, Pings.NONE, id="libnanomsg and libnng"),
        pytest.param(BROWSER_REQUEST, Pings.ANSWERED, id="a browser"),
        pytest.param(dialing(target="/x").request, Pings.ANSWERED, id="ours"),
        pytest.param(websockets_request(), Pings.ANSWERED, id="websockets"),
        pytest.param(request(("Origin", "null")), Pings.ANSWERED, id="a page without an origin"),
        pytest.param(request(("user-AGENT", "")), Pings.ANSWERED, id="an agent without a name"),
        pytest.param(request(("Sec-WebSocket-Extensions", "permessage-deflate")), Pings.ANSWERED, id="one with extensions"),
        pytest.param(request(("X-Forwarded-For", "203.0.113.7"), ("Via", "1.1 proxy")), Pings.NONE, id="somebody behind a proxy"),
        pytest.param(request(("User-Agent", "Go-http-client/1.1")), Pings.SENT, id="mangos"),
        pytest.param(request(("Authorization", "Bearer x")), Pings.NONE, id="somebody with credentials"),
    ],
)
def test_a_client_that_may_be_libnanomsg_is_served_and_not_pinged(data: bytes, pings: Pings) -> None:
    assert begun(data)[0] == 101
    assert pings_for_client(headers_in(data)) is pings


def test_a_browser_gets_no_extension() -> None:
    assert "Sec-WebSocket-Extensions" not in begun(BROWSER_REQUEST)[2]


@pytest.mark.parametrize("target", ["/", "/a?b", "", "*", "http://h/a", "//", "/%zz", "x"])
def test_the_handshake_takes_any_target_since_the_listener_decides(target: str) -> None:
    assert begun(request(line=f"GET {target} HTTP/1.1"))[0] == 101


@pytest.mark.parametrize(
    "headers",
    [
        [("upgrade", "WebSocket")],
        [("UPGRADE", "websocket")],
        [("Connection", "keep-alive, upgrade")],
        [("Connection", "keep-alive"), ("Connection", "UPGRADE")],
        [("Sec-WebSocket-Protocol", "REP.SP.NANOMSG.ORG")],
        [("Sec-WebSocket-Protocol", "chat, rep.sp.nanomsg.org")],
        [("Sec-WebSocket-Protocol", "chat"), ("Sec-WebSocket-Protocol", "rep.sp.nanomsg.org")],
        [("Content-Length", "0")],
        [("Sec-WebSocket-Extensions", "permessage-deflate; client_max_window_bits, x")],
        [("X-Latin", "ü\xff")],
        [("Cookie", "x" * 8000)],
    ],
)
def test_what_the_standard_leaves_open_is_taken(headers: list[tuple[str, str]]) -> None:
    assert begun(request(*headers))[0] == 101


def test_a_sub_protocol_is_agreed_on_as_the_client_has_spelled_it() -> None:
    # RFC 6455, 4.1: a client compares the answer with its request.
    assert begun(request(("Sec-WebSocket-Protocol", "chat, REP.sp.nanomsg.org")))[2]["Sec-WebSocket-Protocol"] == "REP.sp.nanomsg.org"


@pytest.mark.parametrize("number", [PUB, SUB, REQ, REP, BUS, PAIR1])
def test_the_sub_protocol_is_that_of_the_listener(number: int) -> None:
    assert begun(request(number=number), number)[0] == 101


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ([("Sec-WebSocket-Protocol", "pub.sp.nanomsg.org")], "the peer is SUB, expected REQ"),
        ([("Sec-WebSocket-Protocol", "req.sp.nanomsg.org")], "the peer is REP, expected REQ"),
        ([("Sec-WebSocket-Protocol", "chat")], "asks for 'chat', expected REQ"),
        ([("Sec-WebSocket-Protocol", "chat, pub.sp.nanomsg.org")], "asks for 'chat', expected REQ"),
        ([("Sec-WebSocket-Protocol", "x" * 1000)], "asks for 'xxx"),
        ([], "asks for 'nothing', expected REQ"),
    ],
)
def test_another_sub_protocol_is_refused_with_the_right_one(headers: list[tuple[str, str]], words: str) -> None:
    status, reason, answered, text = begun(request(*headers, without=["Sec-WebSocket-Protocol"]))
    assert status == 400
    assert words in reason
    assert len(reason) < 300
    assert answered["SP-Expected-Protocol"] == "rep.sp.nanomsg.org"
    assert "rep.sp.nanomsg.org" in text


@pytest.mark.parametrize(
    "headers",
    [
        [("Upgrade", "h2c, websocket")],
        [("Upgrade", "WebSocket , h2c")],
        [("Upgrade", "h2c"), ("Upgrade", "websocket")],
        [("Upgrade", ",websocket,")],
        [("Upgrade", "h2c, websocket"), ("Connection", "keep-alive, Upgrade, HTTP2-Settings")],
        [("Connection", "keep-alive"), ("Connection", "upgrade")],
    ],
)
def test_a_client_may_offer_other_upgrades_beside_ours(headers: list[tuple[str, str]]) -> None:
    handshake = asked()
    assert handshake.receive_data(request(*headers))
    assert handshake.check(REP) == (None, None)
    answer, said = handshake.accept([])
    assert answer.startswith(b"HTTP/1.1 101 ")
    assert (said["Upgrade"], said["Connection"]) == ("websocket", "Upgrade")
    assert handshake.request is not None
    assert [item for item in handshake.request.headers.raw_items() if item[0] in ("Upgrade", "Connection")][-len(headers) :] == headers


@pytest.mark.parametrize(
    ("data", "status", "words"),
    [
        pytest.param(request(without=["Upgrade"]), 426, "Upgrade", id="no upgrade"),
        pytest.param(request(without=["Connection"]), 426, "Connection", id="no connection"),
        pytest.param(request(("Upgrade", "h2c")), 426, "h2c", id="another upgrade"),
        pytest.param(request(("Upgrade", "h2c, websocket/13")), 426, "websocket/13", id="two other upgrades"),
        pytest.param(request(("Connection", "close")), 426, "Connection", id="another connection"),
        pytest.param(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", 426, "Connection", id="a browser's address line"),
        pytest.param(request(without=["Sec-WebSocket-Key"]), 400, "Sec-WebSocket-Key", id="no key"),
        pytest.param(request(("Sec-WebSocket-Key", KEY), ("Sec-WebSocket-Key", KEY)), 400, "Sec-WebSocket-Key", id="two keys"),
        pytest.param(request(("Sec-WebSocket-Key", "AAAA")), 400, "Sec-WebSocket-Key", id="a short key"),
        pytest.param(request(("Sec-WebSocket-Key", "ü" * 24)), 400, "Sec-WebSocket-Key", id="a key that is no base64"),
        pytest.param(request(("Sec-WebSocket-Key", KEY[:-1])), 400, "Sec-WebSocket-Key", id="a key without its padding"),
        pytest.param(request(without=["Sec-WebSocket-Version"]), 400, "Sec-WebSocket-Version", id="no version"),
        pytest.param(request(("Sec-WebSocket-Protocol", "a b;c")), 400, "Sec-WebSocket-Protocol", id="no list of sub-protocols"),
        pytest.param(request(("Connection", "Upgrade;")), 400, "Connection", id="no list of options"),
        pytest.param(request(("Origin", "a"), ("Origin", "b")), 400, "Origin", id="two origins"),
        pytest.param(request(without=["Host"]), 400, "Host", id="no host"),
        pytest.param(request(("Host", "a"), ("Host", "b")), 400, "Host", id="two hosts"),
        pytest.param(request(line="POST / HTTP/1.1"), 405, "POST", id="post"),
        pytest.param(request(line="HEAD / HTTP/1.1"), 405, "HEAD", id="head"),
        pytest.param(request(line="get / HTTP/1.1"), 405, "get", id="get"),
        pytest.param(request(("Content-Length", "5"), line="POST / HTTP/1.1") + b"hello", 405, "POST", id="a form"),
        pytest.param(request(line="GET / HTTP/1.0"), 505, "HTTP/1.0", id="http/1.0"),
        pytest.param(request(line="GET /" + "a" * 9000 + " HTTP/1.1"), 414, "request line is too long", id="a long line"),
        pytest.param(request(("X-One", "a" * 9000)), 431, "too long", id="a long header"),
        pytest.param(request(*(("X-One", "1"),) * 200), 431, "too many", id="many headers"),
        pytest.param(request(*(("X-One", "a" * 8000),) * 9), 431, str(MAX_HEAD), id="much in few headers"),
    ],
)
def test_a_request_that_is_no_websockets_is_refused_with_the_right_status(data: bytes, status: int, words: str) -> None:
    answered, reason, headers, text = begun(data)
    assert answered == status
    assert words in reason
    assert text.endswith("\n")
    assert len(text) < 1000
    if status == 405:
        assert "GET" in headers["Allow"]
    if status == 426:
        assert headers["Upgrade"] == "websocket"


@pytest.mark.parametrize("version", ["8", "7", "0", "14", "13, 8", "x", ""])
def test_another_version_is_refused_with_ours(version: str) -> None:
    # RFC 6455, 4.2.2 (4): the answer has a Sec-WebSocket-Version, so that the client can try again.
    status, reason, headers, _ = begun(request(("Sec-WebSocket-Version", version)))
    assert status in (400, 426)
    assert "Sec-WebSocket-Version" in reason
    assert headers.get("Sec-WebSocket-Version") == "13"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(request(("Content-Length", "5")) + b"hello", id="a body"),
        pytest.param(request(("Content-Length", "0"), ("Content-Length", "5")) + b"hello", id="two lengths"),
        pytest.param(request(("Content-Length", "5"), ("Content-Length", "0")) + b"hello", id="two lengths the other way round"),
        pytest.param(request(("Content-Length", "0, 5")) + b"hello", id="a list of lengths"),
        pytest.param(request(("Content-Length", "+0")), id="a signed length"),
        pytest.param(request(("Content-Length", "-0")), id="a negative length"),
        pytest.param(request(("Content-Length", "0x0")), id="a hexadecimal length"),
        pytest.param(request(("Content-Length", "")), id="an empty length"),
        pytest.param(request(("Transfer-Encoding", "chunked")) + b"0\r\n\r\n", id="chunked"),
        pytest.param(request(("Transfer-Encoding", "identity")), id="identity"),
        pytest.param(request(("transfer-encoding", "\tchunked")) + b"0\r\n\r\n", id="chunked behind a blank"),
        pytest.param(request(("Content-Length", "0"), ("Transfer-Encoding", "chunked")) + b"0\r\n\r\n", id="length and chunked"),
        pytest.param(request(("Content-Length ", "0")), id="a blank before the colon"),
        pytest.param(request(("Content-Length\t", "0")), id="a tab before the colon"),
        pytest.param(request(("X-One", "a\r\n folded")), id="a folded header"),
        pytest.param(request(("X-One", "a\rContent-Length: 5")), id="a return alone"),
        pytest.param(request(("X-One", "a\nContent-Length: 5")), id="a line feed alone"),
        pytest.param(request(("X-One", "a\0b")), id="a zero"),
        pytest.param(request(("X-One", "a\x7fb")), id="a control character"),
        pytest.param(request(("", "x")), id="a header without a name"),
        pytest.param(request().replace(b"Host:", b"Host"), id="a header without a colon"),
        pytest.param(request(("X One", "x")), id="a name of two words"),
        pytest.param(b" " + request(), id="a blank in front"),
        pytest.param(b"\r\n" + request(), id="an empty line in front"),
        pytest.param(request().replace(b"\r\n", b"\n") + b"\r\n\r\n", id="line feeds alone"),
        pytest.param(request(line="GET  / HTTP/1.1"), id="two blanks"),
        pytest.param(request(line="GET / HTTP/1.1 "), id="a blank at the end"),
        pytest.param(request(line="GET / x HTTP/1.1"), id="a target with a blank"),
        pytest.param(request(line="GET\t/\tHTTP/1.1"), id="tabs"),
        pytest.param(request(line="GET /\xff HTTP/1.1"), id="a target that is no ASCII"),
        pytest.param(request(line="GET / HTTP/1.1\r"), id="two returns"),
        pytest.param(request(line="GET /"), id="http/0.9"),
        pytest.param(request(line="GET / http/1.1"), id="http in small letters"),
        pytest.param(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", id="http/2"),
        pytest.param(b"\0SP\0\0\x30\0\0\r\n\r\n", id="sp"),
        pytest.param(b"\x16\x03\x01\x02\0\r\n\r\n", id="tls"),
        pytest.param(b"\xff" * 100 + b"\r\n\r\n", id="noise"),
    ],
)
def test_what_two_parties_could_read_in_two_ways_is_refused(data: bytes) -> None:
    status, reason, headers, text = begun(data)
    assert status in (400, 505)
    assert text
    assert reason
    assert "Upgrade" not in headers


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x16\x03\x01\x02\0\r\n", "that is TLS: one side says ws://, the other wss://"),
        (b"\0SP\0\0\x30\0\0\n", "that is SP without HTTP: one side says ws://, the other tcp://"),
        (b"PROXY TCP4 203.0.113.7 192.0.2.1 4711 443\r\n", "proxy_protocol=True"),
        (b"PROXY UNKNOWN\r\n", "proxy_protocol=True"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + bytes(12), "proxy_protocol=True"),
    ],
)
def test_an_error_guesses_what_else_the_peer_speaks(data: bytes, words: str) -> None:
    handshake = asked()
    assert handshake.receive_data(data)
    assert handshake.problem is not None
    response, reason = handshake.problem
    assert response.status == 400
    assert words in reason


def test_an_error_shows_no_message_of_a_peer_that_speaks_sp_without_http() -> None:
    handshake = asked()
    assert handshake.receive_data(b"\0SP\0\0\x30\0\0" + bytes(7) + b"\6secret\n")
    assert handshake.problem is not None
    _, reason = handshake.problem
    assert r"it began with b'\x00SP\x00\x000\x00\x00' (" in reason
    assert "secret" not in reason


def test_the_beginning_of_a_request_is_waited_for() -> None:
    data = request()
    for end in range(1, len(data)):
        handshake = asked()
        assert not handshake.receive_data(data[:end])
        assert handshake.problem is None


def test_as_many_headers_as_usual_are_taken() -> None:
    assert begun(request(*((f"X-{number}", "a" * 400) for number in range(100))))[0] == 101


@pytest.mark.parametrize(
    "data",
    [
        request(("Upgrade", "x" * 8000)),
        request(("Connection", "x" * 8000)),
        request(("Sec-WebSocket-Key", "x" * 8000)),
        request(("Sec-WebSocket-Version", "x" * 8000)),
        request(("Sec-WebSocket-Protocol", "x" * 8000)),
        request(("Upgrade", "\x9b31m")),
        request(("Connection", "\x9b31m")),
        request(("Sec-WebSocket-Version", "\x9b31m")),
        request(("Sec-WebSocket-Protocol", "\x9b31m")),
        request(("X\x1b[31m", "x")),
        request(("X-One", "\x1b[31m" + "x" * 8000)),
        request(("X" * 8000 + " ", "x")),
        request(line="G" * 8000 + " / HTTP/1.1"),
        request(line="G\x1b[31m / HTTP/1.1"),
        request(line="GET / HTTP/1.1" + "x" * 8000),
        request(line="GET / HTTP/1.1\x1b[31m"),
        request(("Content-Length", "5"), line="\x1b[31m / HTTP/1.1"),
        b"\0SP\0\0\x30\0\0\r\n\r\n",
        b"\x16\x03\x01\x02\0\r\n\r\n",
    ],
    ids=lambda data: f"{len(data)} bytes",
)
def test_what_a_log_gets_to_see_of_a_request_is_short_and_harmless(data: bytes) -> None:
    _, reason, _, _ = begun(data)
    assert len(reason) < 1000
    assert reason.isprintable()


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(request(line="GET /?token=secret HTTP/2.0"), id="another version"),
        pytest.param(request(line="GET /?token=secret"), id="no version"),
        pytest.param(request(line="GET /?token=secret and more HTTP/1.1"), id="a blank in the target"),
        pytest.param(request(line="POST /?token=secret HTTP/1.1"), id="another method"),
        pytest.param(request(("Content-Length", "5"), line="GET /?token=secret HTTP/1.1"), id="a body"),
        pytest.param(request(("Authorization ", "secret"), line="GET /?token=secret HTTP/1.1"), id="a blank before the colon"),
        pytest.param(request(("Authorization", "secret\0"), line="GET /?token=secret HTTP/1.1"), id="a zero"),
        pytest.param(request(("Cookie", "a=1\r\n secret"), line="GET /?token=secret HTTP/1.1"), id="a folded header"),
    ],
)
def test_no_error_shows_a_possible_credential_of_a_request(data: bytes) -> None:
    _, reason, _, text = begun(data)
    assert "secret" not in reason + text


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 1000, 60_000, 64 * KIB, 1 << 20])
def test_headers_without_an_end_are_refused_at_64_kib_however_they_come(size: int) -> None:
    data = b"GET / HTTP/1.1\r\n" + (b"X-One: " + b"a" * 1000 + b"\r\n") * 1000
    handshake = asked()
    taken = 0
    while not handshake.receive_data(data[taken : taken + size]):
        taken += size
        assert taken <= MAX_HEAD + size
    assert handshake.problem is not None
    assert handshake.problem[0].status == 431


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from(
                [b"GET / HTTP/1.1\r\n", b"\r\n", b"\r\n\r\n", b"Host: h\r\n", b"Upgrade: websocket\r\n", b"Connection: Upgrade\r\n"]
            ),
            st.sampled_from(
                [b"Sec-WebSocket-Key: ", KEY.encode(), b"Sec-WebSocket-Version: 13\r\n", b"Sec-WebSocket-Protocol: ", b": ", b","]
            ),
            st.sampled_from([request(), request()[:-2], request()[16:], request(("Origin", "\xff")), b'"', b"Connection: ,"]),
        ),
        max_size=10,
    )
)
@example([request(("Sec-WebSocket-Protocol", '"'))])
@example([request(("Connection", '"'))])
@example([request(("Upgrade", "/"))])
def test_any_bytes_are_a_request_or_a_refusal_and_never_an_exception(chunks: list[bytes]) -> None:
    handshake = asked()
    for chunk in chunks:
        if chunk and handshake.receive_data(chunk):
            break
    if handshake.problem is not None:
        response, words = handshake.problem
        assert 400 <= response.status <= 505
        assert words
        response.encode()
    elif handshake.request is not None:
        refused, error = handshake.check(REP)
        assert (refused is None) == (error is None)
        if refused is not None:
            assert isinstance(error, PeerError)
            assert 400 <= refused.status <= 505
            assert refused.status != 500
            refused.encode()


# An answer.


def test_a_request_has_the_given_target_and_our_name() -> None:
    handshake = dialing(target="/a?b=c", host="sp.example:81")
    lines = handshake.request.decode().split("\r\n")
    assert lines[:2] == ["GET /a?b=c HTTP/1.1", "Host: sp.example:81"]
    assert lines[-2:] == ["", ""]
    assert [tuple(line.split(": ", 1)) for line in lines[1:-2]] == list(handshake.request_headers.raw)
    headers = handshake.request_headers
    assert len(headers) == len(headers.raw)
    assert len(base64.b64decode(key_of(handshake))) == 16
    assert headers["Sec-WebSocket-Protocol"] == "rep.sp.nanomsg.org"
    assert headers["User-Agent"] == "trio-sp"
    assert "Origin" not in headers
    assert "Sec-WebSocket-Extensions" not in headers
    assert begun(handshake.request)[0] == 101


def test_each_request_has_a_key_of_its_own() -> None:
    assert len({key_of(dialing()) for _ in range(20)}) == 20


def test_headers_of_the_application_are_added_or_take_the_place_of_ours() -> None:
    own = [("Cookie", "a=1"), ("host", "virtual.example"), ("USER-AGENT", "mine"), ("Origin", "https://app.example"), ("Cookie", "b=2")]
    headers = dialing(headers=own).request_headers
    assert (headers["Host"], headers["User-Agent"], headers["Origin"]) == ("virtual.example", "mine", "https://app.example")
    assert [value for name, value in headers.raw if name == "Cookie"] == ["a=1", "b=2"]
    assert headers.raw[0] == ("host", "virtual.example")


LIBNNG_ANSWER = ["Connection", "Upgrade", "Sec-WebSocket-Accept", "Sec-WebSocket-Protocol"]
LIBNANOMSG_ANSWER = ["Upgrade", "Connection", "Sec-WebSocket-Accept", "Sec-WebSocket-Protocol"]


def answer_of(handshake: ClientHandshake, names: Sequence[str], more: Sequence[tuple[str, str]] = ()) -> bytes:
    """Return a good answer with its headers in the order and spelling of *names*."""
    values = {
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-accept": accept_for(key_of(handshake)),
        "sec-websocket-protocol": "rep.sp.nanomsg.org",
    }
    items = [*((name, values[name.lower()]) for name in names), *more]
    return "\r\n".join(["HTTP/1.1 101 Switching Protocols", *(f"{name}: {value}" for name, value in items), "", ""]).encode()


def ours(handshake: ClientHandshake) -> bytes:
    peer = asked()
    assert peer.receive_data(handshake.request)
    assert peer.check(REP) == (None, None)
    return peer.accept([("X-One", "1")])[0]


def websockets_answer(handshake: ClientHandshake) -> bytes:
    peer = ServerProtocol(subprotocols=[Subprotocol("rep.sp.nanomsg.org")])
    peer.receive_data(handshake.request)
    (asked,) = peer.events_received()
    response = peer.accept(asked)  # type: ignore[arg-type]
    response.headers["Server"] = "Python/3.11 websockets/17"
    return response.serialize()


@pytest.mark.parametrize(
    ("answer", "pings"),
    [
        pytest.param(lambda handshake: answer_of(handshake, LIBNNG_ANSWER), Pings.SENT, id="libnng"),
        pytest.param(lambda handshake: answer_of(handshake, LIBNANOMSG_ANSWER), Pings.NONE, id="libnanomsg"),
        pytest.param(ours, Pings.ANSWERED, id="ours"),
        pytest.param(websockets_answer, Pings.NONE, id="websockets"),
        pytest.param(lambda handshake: answer_of(handshake, LIBNNG_ANSWER, [("Server", "nginx")]), Pings.NONE, id="libnng behind a proxy"),
        pytest.param(lambda handshake: answer_of(handshake, list(map(str.lower, LIBNNG_ANSWER))), Pings.NONE, id="a proxy's spelling"),
        pytest.param(
            lambda handshake: answer_of(handshake, LIBNANOMSG_ANSWER, [("Via", "1.1 x")]), Pings.NONE, id="libnanomsg behind a proxy"
        ),
        pytest.param(
            lambda handshake: answer_of(handshake, LIBNANOMSG_ANSWER, [("SP-Implementation", "trio-sp")]),
            Pings.ANSWERED,
            id="ours behind a proxy",
        ),
        pytest.param(lambda handshake: answer_of(handshake, LIBNNG_ANSWER[1:] + LIBNNG_ANSWER[:1]), Pings.NONE, id="another order"),
    ],
)
def test_a_server_that_may_be_libnanomsg_is_taken_and_not_pinged(answer: Callable[[ClientHandshake], bytes], pings: Pings) -> None:
    handshake = dialing()
    assert handshake.receive_data(answer(handshake))
    assert handshake.response is not None
    assert pings_for_server(handshake.response) is pings


def test_an_answer_may_come_byte_by_byte_and_with_messages_behind_it() -> None:
    messages = frame(b"first", mask=False) + frame(b"second", mask=False)
    for step in (1, 7, 10_000):
        handshake = dialing()
        data = agreement(handshake) + messages
        agreed_at = None
        websocket = None
        bodies: list[bytes] = []
        for start in range(0, len(data), step):
            chunk = data[start : start + step]
            if websocket is not None:
                bodies += [message.body for message in websocket.receive_data(chunk)]
            elif handshake.receive_data(chunk):
                agreed_at = start + len(chunk)
                websocket = opened(handshake, None, MIB)
            while websocket is not None and websocket.has_more:
                bodies += [message.body for message in websocket.receive_data(b"")]
        assert bodies == [b"first", b"second"]
        assert agreed_at is not None
        assert agreed_at - (len(data) - len(messages)) < step


@pytest.mark.parametrize("limit", [0, 100, 2 * MIB, None])
def test_the_limit_holds_for_messages_that_come_with_the_answer(limit: int | None) -> None:
    size = 3 * MIB // 2 if limit is None else limit
    for more, kind in ((0, None), (1, None if limit is None else MessageTooLarge)):
        data = frame(b"x" * (size + more), mask=False)
        for early in (0, 2, 10, min(len(data), 64 * KIB)):
            handshake = dialing()
            assert handshake.receive_data(agreement(handshake) + data[:early])
            websocket = opened(handshake, None, limit)
            bodies = []
            for chunk in (b"", data[early:]):
                bodies += [message.body for message in websocket.receive_data(chunk)]
                while websocket.error is None and websocket.has_more:
                    bodies += [message.body for message in websocket.receive_data(b"")]
            if kind is None:
                assert (websocket.error, list(map(len, bodies))) == (None, [size + more])
            else:
                assert isinstance(websocket.error, kind)
                assert bodies == []


def test_a_mistake_that_comes_with_the_answer_is_found() -> None:
    handshake = dialing()
    assert handshake.receive_data(agreement(handshake) + frame(b"good", mask=False) + frame(b"", 3, mask=False))
    websocket = opened(handshake, None, MIB)
    assert websocket.has_more
    assert [message.body for message in websocket.receive_data(b"")] == [b"good"]
    assert isinstance(websocket.error, MalformedMessage)
    assert [opcode for opcode, _, _ in frames_in(websocket.data_to_send(), mask=True)] == [CLOSE]


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        pytest.param({"without": ["Sec-WebSocket-Protocol"]}, WrongProtocol, "it named no sub-protocol", id="no sub-protocol"),
        pytest.param({"number": PUB}, WrongProtocol, "pub.sp.nanomsg.org", id="another sub-protocol"),
        pytest.param({"headers": [("Sec-WebSocket-Accept", ACCEPT)]}, GreetingError, "Sec-WebSocket-Accept", id="another key"),
        pytest.param({"without": ["Sec-WebSocket-Accept"]}, GreetingError, "Sec-WebSocket-Accept", id="no key"),
        pytest.param({"without": ["Upgrade"]}, GreetingError, "Upgrade", id="no upgrade"),
        pytest.param({"without": ["Connection"]}, GreetingError, "Connection", id="no connection"),
        pytest.param({"headers": [("Upgrade", "h2c")]}, GreetingError, "h2c", id="another upgrade"),
        pytest.param(
            {"headers": [("Sec-WebSocket-Extensions", "permessage-deflate")]},
            PeerError,
            "extension",
            id="an extension that nobody asked for",
        ),
        pytest.param(
            {"headers": [("Sec-WebSocket-Protocol", "rep.sp.nanomsg.org"), ("Sec-WebSocket-Protocol", "chat")]},
            PeerError,
            "Sec-WebSocket-Protocol",
            id="two sub-protocols",
        ),
        pytest.param({"headers": [("X-One", "a" * 9000)]}, GreetingError, "8192", id="a long header"),
        pytest.param({"headers": [("X-One", "1")] * 200}, GreetingError, "128", id="many headers"),
        pytest.param({"headers": [("X One", "1")]}, GreetingError, "invalid HTTP header name", id="a broken header"),
    ],
)
def test_an_answer_that_does_not_agree_is_refused(change: dict[str, object], kind: type[PeerError], words: str) -> None:
    headers = change.pop("headers", [])
    for step in (1, 10_000):
        handshake = dialing()
        data = agreement(handshake, *headers, **change)  # type: ignore[misc, arg-type]
        with pytest.raises(kind) as caught:
            for start in range(0, len(data), step):
                assert not handshake.receive_data(data[start : start + step])
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("data", "kind", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nwhat?", UpgradeRefused, "the server answered 404 Not Found: 'what?'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", UpgradeRefused, "the server answered 200 OK"),
        (b"HTTP/1.1 503 \r\nContent-Length: 0\r\n\r\n", UpgradeRefused, "the server answered 503"),
        (
            b"HTTP/1.1 302 Found\r\nLocation: https://else.example/\r\nContent-Length: 0\r\n\r\n",
            UpgradeRefused,
            "302 Found: it redirects to 'https://else.example/', which is not followed",
        ),
        (
            b"HTTP/1.1 502 Bad Gateway\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
            UpgradeRefused,
            "the server answered 502 Bad Gateway",
        ),
        (b"HTTP/1.1 400 Bad Request\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nno!\r\n0\r\n\r\n", UpgradeRefused, "400 Bad Request: 'no!'"),
        (
            b"HTTP/1.1 400 Bad Request\r\nSP-Expected-Protocol: pub.sp.nanomsg.org\r\nContent-Length: 0\r\n\r\n",
            WrongProtocol,
            "the peer is PUB, expected REP",
        ),
        (b"HTTP/1.1 400 Bad Request\r\nSP-Expected-Protocol: x\r\nContent-Length: 0\r\n\r\n", UpgradeRefused, "400 Bad Request"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 1\r\n\r\n\x1c", UpgradeRefused, "404 Not Found"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n\xc2\xa0", UpgradeRefused, "404 Not Found"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n\n\x85", UpgradeRefused, "404 Not Found"),
        (b"HTTP/1.0 101 Switching Protocols\r\n\r\n", GreetingError, "HTTP/1.0"),
        (b"HTTP/1.1 99 x\r\n\r\n", GreetingError, "99"),
        (b"HTTP/1.1 abc x\r\n\r\n", GreetingError, "abc"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", GreetingError, "SSH-2.0-OpenSSH_9.2"),
        (b"\0SP\0\0\x31\0\0\n", GreetingError, "SP"),
        (b"x" * 10_000, GreetingError, "xxx"),
    ],
)
def test_another_answer_is_refused_with_what_it_says(data: bytes, kind: type[PeerError], words: str) -> None:
    for step in (1, 100_000):
        handshake = dialing()
        with pytest.raises(kind) as caught:
            for start in range(0, len(data), step):
                assert not handshake.receive_data(data[start : start + step])
        assert type(caught.value) is kind
        assert words in str(caught.value)
        assert str(caught.value).isprintable()
        if isinstance(caught.value, UpgradeRefused):
            assert f"HTTP/1.1 {caught.value.response.status} ".encode() == data[:13]


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"HTTP/1.1 101 x\r\nSet-Cookie: a=secret\0\r\n\r\n", id="a zero"),
        pytest.param(b"HTTP/1.1 101 x\r\nSet-Cookie: a=1;\r\n b=secret\r\n\r\n", id="a folded header"),
        pytest.param(b"HTTP/1.1 401 x\r\nSet-Cookie: a=1\r\nsecret\r\n\r\n", id="a header without a colon"),
        pytest.param(b"HTTP/1.1 401 x\r\nsecret : 1\r\n\r\n", id="a blank before the colon"),
        pytest.param(b"HTTP/1.1 302 x\r\nLocation: https://h/login?state=secret\r\nContent-Length: 0\r\n\r\n", id="a redirect"),
    ],
)
def test_what_may_be_a_credential_in_an_answer_is_in_no_error(data: bytes) -> None:
    with pytest.raises(GreetingError) as caught:
        dialing().receive_data(data)
    error: BaseException | None = caught.value
    while error is not None:  # a traceback shows them all
        assert "secret" not in repr(error)
        error = error.__cause__ or error.__context__


def test_an_answer_without_a_length_ends_with_the_stream() -> None:
    handshake = dialing()
    assert not handshake.receive_data(b"HTTP/1.1 500 Oops\r\n\r\nsorry")
    assert not handshake.receive_data(b", really")
    with pytest.raises(UpgradeRefused, match="500 Oops: 'sorry, really'"):
        handshake.receive_data(b"")


@pytest.mark.parametrize(
    "said",
    [b"", b"H", b"HTTP/1.1 101 Switching Protocols\r\n", b"HTTP/1.1 503 Busy\r\nX: y\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"],
)
def test_a_server_that_closes_before_its_answer_is_complete_has_closed(said: bytes) -> None:
    handshake = dialing()
    assert not said or not handshake.receive_data(said)
    with pytest.raises(PeerClosed):
        handshake.receive_data(b"")


BODIES = [
    pytest.param(b"Content-Length: 3\r\n\r\nno!", b"no!", True, id="as long as it says"),
    pytest.param(b"Content-Length: 3\r\n\r\nno! and more", b"no!", True, id="longer than it says"),
    pytest.param(b"Content-Length: 5\r\n\r\nno!", b"no!", False, id="shorter than it says"),
    pytest.param(b"Content-Length: 0\r\n\r\n", b"", True, id="none"),
    pytest.param(b"\r\nno!", b"no!", False, id="until the stream ends"),
    pytest.param(b"Connection: close\r\n\r\n", b"", False, id="nothing until the stream ends"),
    pytest.param(b"Content-Length: 1000000000000\r\n\r\nno!", b"no!", False, id="absurdly long"),
    pytest.param(b"Content-Length: 2000000\r\n\r\n" + b"x" * 5000, b"x" * 4096, True, id="over a megabyte"),
    pytest.param(b"Content-Length: 9999999999999999999999\r\n\r\nno!", b"no!", False, id="longer than a number"),
    pytest.param(b"Content-Length: x\r\n\r\nno!", b"no!", False, id="a length that is none"),
    pytest.param(b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nno!", b"no!", False, id="two lengths"),
    pytest.param(b"Content-Length: 3\r\nContent-Length: 3\r\n\r\nno!", b"no!", True, id="one length twice"),
    pytest.param(b"Transfer-Encoding: gzip\r\n\r\nno!", b"no!", False, id="compressed"),
    pytest.param(b"Transfer-Encoding: chunked\r\n\r\n1\r\nn\r\n02;x=y\r\no!\r\n0\r\n\r\n", b"no!", True, id="chunks"),
    pytest.param(b"Transfer-Encoding: gzip, Chunked\r\n\r\n3\r\nno!\r\n0\r\n\r\n", b"no!", True, id="compressed chunks"),
    pytest.param(b"Transfer-Encoding: chunked\r\n\r\n3\r\nno!\r\n", b"no!", False, id="chunks without a last one"),
    pytest.param(b"Transfer-Encoding: chunked\r\n\r\n5\r\nno!", b"no!", False, id="half a chunk"),
    pytest.param(b"Transfer-Encoding: chunked\r\n\r\n3\r\nno!no!\r\n", b"no!", True, id="a chunk that is too long"),
    pytest.param(b"Transfer-Encoding: chunked\r\n\r\nno!\r\n", b"", True, id="a chunk without a size"),
    pytest.param(b"Transfer-Encoding: chunked\r\n\r\n-3\r\nno!\r\n", b"", True, id="a chunk of a negative size"),
    pytest.param(b"Transfer-Encoding: chunked\r\n\r\n" + b"3;" * 5000, b"", True, id="a line of a chunk without an end"),
    pytest.param(b"Transfer-Encoding: chunked\r\n\r\nfffffff\r\n" + b"x" * 5000, b"x" * 4096, True, id="an absurd chunk"),
    pytest.param(b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 4097, b"x" * 4096, True, id="many chunks"),
]


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
@pytest.mark.parametrize(("rest", "body", "ends"), BODIES)
def test_a_refusal_is_one_whatever_its_body_does(version: str, rest: bytes, body: bytes, ends: bool) -> None:
    """*ends*: without the end of the stream."""
    data = f"{version} 401 Unauthorized\r\n".encode() + rest
    for step in (1, 10_000):
        handshake = dialing()
        with pytest.raises(UpgradeRefused) as caught:
            for start in range(0, len(data), step):
                assert not handshake.receive_data(data[start : start + step])
            assert not ends
            assert handshake.is_refusal
            handshake.receive_data(b"")
        assert (caught.value.response.status, caught.value.response.body) == (401, body)
        assert caught.value.permanent


@pytest.mark.parametrize("status", [204, 304])
def test_a_refusal_without_content_ends_with_its_head(status: int) -> None:
    with pytest.raises(UpgradeRefused) as caught:
        dialing().receive_data(f"HTTP/1.1 {status} x\r\nContent-Length: 7\r\n\r\n".encode())
    assert (caught.value.response.status, caught.value.response.body) == (status, b"")


@pytest.mark.parametrize("head", [b"HTTP/1.0 503\r\n\r\n", b"HTTP/1.1 503\r\nX: y\r\n\r\n", b"HTTP/1.0 503 Busy\nX: y\n\n"])
def test_the_head_of_a_refusal_may_be_written_carelessly(head: bytes) -> None:
    for step in (1, 1000):
        handshake = dialing()
        for start in range(0, len(head), step):
            assert not handshake.receive_data(head[start : start + step])
        with pytest.raises(UpgradeRefused, match="the server answered 503") as caught:
            handshake.receive_data(b"")
        assert caught.value.response.status == 503


def test_no_server_can_agree_in_http_1_0() -> None:
    handshake = dialing()
    with pytest.raises(GreetingError, match=r"an upgrade needs HTTP/1\.1"):
        handshake.receive_data(agreement(handshake).replace(b"HTTP/1.1", b"HTTP/1.0", 1))


INTERIM = [
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 102 Processing\r\n\r\n",
    b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n",
    b"HTTP/1.1 199 \r\nContent-Length: 5\r\n\r\n",
]


@pytest.mark.parametrize("interim", [*INTERIM, b"".join(INTERIM), INTERIM[0] * MAX_INTERIM])
def test_interim_answers_are_passed_over(interim: bytes) -> None:
    message = frame(b"first", mask=False)
    for step in (1, 7, 10_000):
        handshake = dialing()
        data = interim + agreement(handshake)
        agreed = [handshake.receive_data(data[start : start + step]) for start in range(0, len(data), step)]
        assert agreed == [False] * (len(agreed) - 1) + [True]
        assert handshake.response is not None
        assert "Link" not in handshake.response
        handshake = dialing()
        assert handshake.receive_data(interim + agreement(handshake) + message)
        assert handshake.rest == message
        handshake = dialing()
        with pytest.raises(UpgradeRefused, match="answered 503 Busy: 'later'"):
            handshake.receive_data(interim + b"HTTP/1.0 503 Busy\r\nContent-Length: 5\r\n\r\nlater")


def test_interim_answers_are_bounded_in_number_and_size() -> None:
    for interim, words in (
        (INTERIM[0] * (MAX_INTERIM + 1), f"more than {MAX_INTERIM} interim answers .*100 Continue"),
        ((b"HTTP/1.1 103 Early Hints\r\n" + b"X: %s\r\n" % (b"x" * 8000) * 2 + b"\r\n") * 5, f"more than {MAX_HEAD} bytes"),
    ):
        handshake = dialing()
        with pytest.raises(GreetingError, match=words):
            handshake.receive_data(interim)


@pytest.mark.parametrize("more", [0, 1])
def test_the_head_of_an_answer_has_a_limit(more: int) -> None:
    start, line, end = b"HTTP/1.1 503 Busy\r\n", b"X: " + b"x" * 8000 + b"\r\n", b"Content-Length: 0\r\n\r\n"
    lines = line * ((MAX_HEAD - len(start + end)) // len(line))
    last = b"Y: " + b"y" * (MAX_HEAD + more - len(start + lines + end) - 5) + b"\r\n"
    with pytest.raises(GreetingError if more else UpgradeRefused):
        dialing().receive_data(start + lines + last + end)


@pytest.mark.usefixtures("traced")
def test_a_body_without_an_end_is_not_collected_for_ever() -> None:
    for head in (b"\r\n", b"Content-Length: 1000000000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n40000000\r\n"):
        handshake = dialing()
        handshake.receive_data(b"HTTP/1.1 200 OK\r\n" + head)
        with pytest.raises(UpgradeRefused) as caught:
            handshake.receive_data(bytes(64 * KIB))
        assert len(caught.value.response.body) == KEPT_BODY
    assert tracemalloc.get_traced_memory()[1] < MIB


def test_of_a_refusal_only_the_beginning_is_kept_and_shown() -> None:
    handshake = dialing()
    with pytest.raises(UpgradeRefused) as caught:
        handshake.receive_data(b"HTTP/1.1 403 %s\r\nContent-Length: 100000\r\n\r\n" % (b"F" * 1000) + b"x" * 100_000)
    assert len(str(caught.value)) < 500
    assert len(caught.value.response.body) == KEPT_BODY
    assert caught.value.permanent


@pytest.mark.slow
@settings(deadline=None)
@given(
    st.lists(
        st.one_of(
            st.binary(max_size=30),
            st.sampled_from(
                [b"HTTP/1.1 101 x\r\n", b"HTTP/1.1 200 x\r\n", b"\r\n", b"\r\n\r\n", b"Upgrade: websocket\r\n", b": ", b"accept"]
            ),
            st.sampled_from([b"HTTP/1.1 103 x\r\n\r\n", b"HTTP/1.0 503\n", b"HTTP/1.0 401 x\r\n\r\n", b"f;x\r\n", b"fff\r\n"]),
            st.sampled_from(
                [b"Connection: Upgrade\r\n", b"Sec-WebSocket-Protocol: rep.sp.nanomsg.org\r\n", b"Content-Length: 3\r\n", b'"', b","]
            ),
            st.sampled_from(
                [b"Sec-WebSocket-Extensions: ", b"Sec-WebSocket-Protocol: ", b"Sec-WebSocket-Accept: accept\r\n", b"Connection: "]
            ),
            st.sampled_from(
                [b"Transfer-Encoding: chunked\r\n", b"3\r\nabc\r\n", b"0\r\n\r\n", b"Location: x\r\n", b"SP-Expected-Protocol: x\r\n"]
            ),
        ),
        max_size=12,
    )
)
def test_any_answer_is_an_agreement_or_a_peer_error(chunks: list[bytes]) -> None:
    handshake = dialing()
    accept = accept_for(key_of(handshake)).encode()
    try:
        for chunk in chunks:
            if chunk and handshake.receive_data(chunk.replace(b"accept", accept)):
                return
        assert not handshake.receive_data(b"")
    except PeerError as error:
        assert str(error)
    else:
        raise AssertionError("the stream has ended, and nothing was said")


def test_the_header_class_of_the_package_keeps_order_and_spelling() -> None:
    # ``pings_for_server`` relies on this.
    headers = Headers()
    for name in LIBNNG_ANSWER:
        headers[name] = "x"
    assert [name for name, _ in headers.raw_items()] == LIBNNG_ANSWER
