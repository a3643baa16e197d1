"""How ws, wss and ws+unix are dialed, directly or through a proxy."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from typing import Final, cast

import trio
from websockets.protocol import Side

from sp.address import Address, bracketed, plain_zone, without_zone
from sp.errors import GreetingError, PeerError, PipeRefused, UpgradeRefused
from sp.http.config import WSClientConfig
from sp.http.connect_proxy import ConnectProxy, proxy_for
from sp.http.message import HTTPInfo, retry_after
from sp.tls.config import TLSClientConfig
from sp.transports import ipc, tcp
from sp.transports.contract import Connection, EndpointConfig
from sp.transports.link import READ_SIZE, Link, SocketLink
from sp.transports.tls import TLSLink
from sp.transports.ws.answer import Answer
from sp.transports.ws.connection import WSConnection
from sp.transports.ws.frames import WebSocket
from sp.transports.ws.handshake import ClientHandshake, client_protocol, pings_for_server

_BODY_TIME: Final = 1.0
"""Seconds that the body of a refusal may take after its head; it may never end."""


async def connect(address: Address, terms: EndpointConfig) -> Connection:
    """Connect to *address*, through a proxy if there is one; all handshakes are part of the greeting."""
    config = cast("WSClientConfig", terms.ws)
    link: Link
    if address.scheme == "ws+unix":
        return ClientConnection(await ipc.connect_link(address), terms, address)
    proxy = proxy_for(address, config.proxy)
    inner = await tcp.connect_link(address, terms) if proxy is None else await _connect_through(proxy, address, terms)
    link = inner
    if isinstance(terms.tls, TLSClientConfig):
        link = TLSLink(inner, terms.tls, host=address.host, port=address.port, http=True)
    return ClientConnection(link, terms, address)


class ClientConnection(WSConnection):
    """A dialer's."""

    asks = False

    __slots__ = ("_address", "_handshake")

    def __init__(self, link: Link, terms: EndpointConfig, address: Address) -> None:
        super().__init__(link, terms)
        self._address = address
        self._handshake: ClientHandshake | None = None

    @property
    def stage(self) -> str:
        handshake = self._handshake
        if self._terms.tls is not None and self._link.tls is None:
            return self._link.stage
        said = f" (the server has begun with {handshake.first_line!r})" if handshake is not None and handshake.first_line else ""
        return f"WebSocket handshake{said}"

    async def greet(self) -> int:
        terms, link, address = self._terms, self._link, self._address
        config = cast("WSClientConfig", self._config)
        protocol = client_protocol(terms.peer_number)
        number, host = terms.peer_number, address.host_header
        handshake = ClientHandshake(protocol, number, address.target, host, config.headers, over_tls=terms.tls is not None)
        self._handshake = handshake
        if terms.tls is None:
            await link.open(b"")
            # The server may have said why it hangs up: reading finds out.
            with suppress(BrokenPipeError, ConnectionResetError):
                await self._send_all(handshake.request)
        else:
            await link.open(handshake.request)  # it leaves with the end of the TLS handshake
        await _read_answer(link, handshake)
        assert handshake.response is not None
        path, _, query = address.target.partition("?")
        self.http = HTTPInfo(
            path=path,
            query=query,
            headers=handshake.request_headers,
            response_headers=handshake.response,
            scheme="http" if terms.tls is None else "https",
        )
        self._pings = pings_for_server(handshake.response)
        self._websocket = WebSocket(Side.CLIENT, terms.find_body, terms.options.max_message_size)
        self._websocket.add(handshake.rest)
        self._handshake = None
        return terms.peer_number

    def admit(self) -> None:
        pass  # it was the server that was asked

    async def refuse(self, refusal: PipeRefused) -> None:
        pass  # it was the server that was asked


async def _read_answer(link: Link, answer: ClientHandshake | Answer) -> None:
    """Read until *answer* is an agreement.

    Raises PeerError or OSError, but UpgradeRefused once the head of a refusal is there.
    """
    try:
        await _read_until_agreed(link, answer)
    except UpgradeRefused as refused:
        refused.retry_after = retry_after(refused.response, time.time())
        raise


async def _read_until_agreed(link: Link, answer: ClientHandshake | Answer) -> None:
    agreed = False
    with trio.CancelScope() as scope:
        while not agreed:
            try:
                await link.wait_readable()
                data = link.recv(READ_SIZE)
            except BlockingIOError:
                continue
            except (OSError, PeerError):
                if not answer.is_refusal:
                    raise
                break
            agreed = answer.receive_data(data)
            if answer.is_refusal and scope.deadline == math.inf:
                now = trio.current_time()
                scope.deadline = now + min(_BODY_TIME, (trio.current_effective_deadline() - now) / 2)
    if not agreed:
        answer.receive_data(b"")  # that is all that is known of the body


# Dialing through a proxy.


async def _connect_through(proxy: ConnectProxy, address: Address, terms: EndpointConfig) -> SocketLink:
    """Connect to *proxy*, and have it connect to *address* (RFC 9110, 9.3.6)."""
    authority = f"{bracketed(without_zone(address.host))}:{address.port}"
    try:
        link = await tcp.connect_link(Address(f"http://{proxy.address}", "tcp", host=plain_zone(proxy.host), port=proxy.port), terms)
    except OSError as error:
        raise OSError(error.errno, f"the proxy {proxy.address} cannot be reached: {error.strerror or error}") from error
    try:
        await link.open(proxy.request(authority))
        answer = Answer(f"the proxy {proxy.address}", range(200, 300))
        await _read_answer(link, answer)
        if answer.rest:  # nothing may follow, since it is we who speak first
            raise GreetingError(f"the proxy {proxy.address} has sent more than its answer")
    except BaseException:
        link.close()
        raise
    link.proxy_address, link.remote_address = link.remote_address, authority
    return link
