"""Raw peers of WebSocket: streams on which a test writes HTTP and frames by hand."""

from __future__ import annotations

import os

from tests.transports.wire import Stream, connect, receive_exactly

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
BROWSER = ("User-Agent: Mozilla/5.0",)
"""Headers of a peer that surely answers pings."""


def request(target: str, protocol: str | None, *headers: str, host: str = "test") -> bytes:
    """The request of a WebSocket client as libnanomsg and libnng write it, with *headers* added."""
    own = [] if protocol is None else [f"Sec-WebSocket-Protocol: {protocol}"]
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *own,
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode()


async def connect_plainly(url: str) -> Stream:
    """Connect to *url*, ws or wss, and send nothing."""
    scheme, _, rest = url.partition("://")
    place = rest.partition("/")[0]
    return await connect(f"{'tls+tcp' if scheme == 'wss' else 'tcp'}://{place}")


async def upgrade(url: str, protocol: str, *headers: str) -> Stream:
    """Open a WebSocket to *url*."""
    stream = await connect_plainly(url)
    await stream.send_all(request("/" + url.partition("://")[2].partition("/")[2], protocol, *headers))
    head = await receive_head(stream)
    assert head.startswith("HTTP/1.1 101 "), head
    return stream


async def receive_head(stream: Stream) -> str:
    """Return status line and headers."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += await receive_exactly(stream, 1)
    return head.decode("latin-1")


async def receive_answer(stream: Stream) -> tuple[int, dict[str, str], bytes]:
    """Return status, headers by their lower-case names, and body of an answer that ends the
    connection.
    """
    head = await receive_head(stream)
    status, *lines = head.split("\r\n")[:-2]
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    body = await receive_exactly(stream, int(headers["content-length"]))
    assert await stream.receive_some() == b""
    return int(status.split(" ")[1]), headers, body


def ws_frame(opcode: int, payload: bytes = b"", *, fin: bool = True, masked: bool = True, reserved: int = 0) -> bytes:
    """A frame; a client's is masked."""
    size = len(payload)
    first = (0x80 if fin else 0) | reserved << 4 | opcode
    mask_bit = 0x80 if masked else 0
    if size < 126:
        head = bytes((first, mask_bit | size))
    elif size < 1 << 16:
        head = bytes((first, mask_bit | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, mask_bit | 127)) + size.to_bytes(8, "big")
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))


async def receive_ws_frame(stream: Stream) -> tuple[int, bytes]:
    """Return opcode and payload of the next frame of a server."""
    first, size = await receive_exactly(stream, 2)
    if size >= 126:
        size = int.from_bytes(await receive_exactly(stream, 2 if size == 126 else 8), "big")
    return first & 0x0F, await receive_exactly(stream, size)


async def receive_close(stream: Stream) -> tuple[int, str]:
    """Return code and reason of the next Close, and skip what comes before it."""
    while True:
        opcode, payload = await receive_ws_frame(stream)
        if opcode == CLOSE:
            return int.from_bytes(payload[:2], "big"), payload[2:].decode()
