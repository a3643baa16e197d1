"""Dials ws, wss and ws+unix, directly or through a proxy."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from typing import Final

import trio
from websockets.protocol import Side

from sp.address import Address, bracketed, plain_zone, without_zone
from sp.errors import GreetingError, PeerError, PipeRefused, UpgradeRefused, WrongProtocol
from sp.http.connect_proxy import ConnectProxy, proxy_for
from sp.http.message import HTTPHeaders, HTTPInfo, retry_after
from sp.transports import ipc, tcp
from sp.transports.contract import Connection, DialerConfig, Greeted, Newcomer
from sp.transports.link import READ_SIZE, Link, SocketLink
from sp.transports.stream import OverLink
from sp.transports.tls import TLSLink
from sp.transports.ws.answer import Answer
from sp.transports.ws.connection import WSConnection, send_all
from sp.transports.ws.frames import WebSocket
from sp.transports.ws.handshake import ClientHandshake, client_protocol, pings_for_server

_BODY_TIME: Final = 1.0
"""How many seconds to wait for the body of a refusal after its head: it may never end."""


async def connect(address: Address, endpoint: DialerConfig) -> Newcomer:
    """Connect to *address*, through a proxy if there is one.

    All handshakes are part of ``greet``.
    """
    if address.scheme == "ws+unix":
        return ClientNewcomer(await ipc.connect_link(address), endpoint, address)
    proxy = proxy_for(address, endpoint.ws.proxy)
    inner = await tcp.connect_link(address, endpoint) if proxy is None else await _connect_through(proxy, address, endpoint)
    link: Link = inner
    if endpoint.tls is not None:
        link = TLSLink(inner, endpoint.tls, host=address.host, port=address.port, http=True)
    return ClientNewcomer(link, endpoint, address)


class ClientNewcomer(OverLink):
    """A server that is connected and has not answered our request."""

    defers_greeting = False

    __slots__ = ("_address", "_connection", "_endpoint", "_handshake", "closed")

    def __init__(self, link: Link, endpoint: DialerConfig, address: Address) -> None:
        super().__init__(link)
        self.closed = False
        self._address = address
        self._endpoint = endpoint
        number, host, headers = endpoint.peer_number, address.host_header, endpoint.ws.headers
        over_tls = endpoint.tls is not None
        self._handshake = ClientHandshake(client_protocol(number), number, address.target, host, headers, over_tls=over_tls)
        self._connection: ClientConnection | None = None  # exists once the server has agreed

    @property
    def stage(self) -> str:
        if self._endpoint.tls is not None and self._link.tls is None:
            return self._link.stage
        begun = self._handshake.first_line
        return f"WebSocket handshake (the server began with {begun!r})" if begun else "WebSocket handshake"

    def defer_greeting(self) -> None:
        pass  # it cannot be deferred: our greeting is the request

    async def greet(self) -> Greeted:
        endpoint, link, handshake = self._endpoint, self._link, self._handshake
        if endpoint.tls is None:
            await link.open(b"")
            # If the server hangs up, it may have said why: read on.
            with suppress(BrokenPipeError, ConnectionResetError):
                await send_all(link, handshake.request)
        else:
            # It is sent together with the end of the TLS handshake.
            await link.open(handshake.request)
        await _read_answer(link, handshake)
        self._connection = connection = self._agreed(handshake.response)
        return connection

    def _agreed(self, response: HTTPHeaders) -> ClientConnection:
        """Return the WebSocket that the server agreed to with *response*."""
        endpoint, handshake = self._endpoint, self._handshake
        path, _, query = self._address.target.partition("?")
        http = HTTPInfo(
            path=path,
            query=query,
            headers=handshake.request_headers,
            response_headers=response,
            scheme="http" if endpoint.tls is None else "https",
        )
        websocket = WebSocket(Side.CLIENT, endpoint.find_body, endpoint.options.max_message_size)
        websocket.add(handshake.rest)
        return ClientConnection(self._link, endpoint, websocket, http, pings_for_server(response))

    async def linger_close(self, error: Exception | None = None) -> None:
        if self._connection is not None:
            await self._connection.linger_close(error)

    def close(self, error: Exception | None = None) -> None:
        self.closed = True
        if self._connection is not None:
            self._connection.close(error)
        else:
            self._link.close()


class ClientConnection(WSConnection):
    """A WebSocket that we asked for.  It exists on both sides as soon as the server has agreed."""

    __slots__ = ()

    @property
    def peer_number(self) -> int:
        return self._endpoint.peer_number

    def accept(self) -> Connection:
        return self

    async def reject(self, error: PipeRefused | WrongProtocol) -> None:
        pass  # ``close`` tells the server why


async def _read_answer(link: Link, answer: ClientHandshake | Answer) -> None:
    """Read until *answer* is an agreement.

    Raises PeerError or OSError; UpgradeRefused once the head of a refusal has come.
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
        answer.receive_data(b"")  # take what has come: no more of the body will be read


async def _connect_through(proxy: ConnectProxy, address: Address, endpoint: DialerConfig) -> SocketLink:
    """Connect to *proxy*, and have it connect to *address* (RFC 9110, 9.3.6)."""
    authority = f"{bracketed(without_zone(address.host))}:{address.port}"
    try:
        link = await tcp.connect_link(Address(f"http://{proxy.address}", "tcp", host=plain_zone(proxy.host), port=proxy.port), endpoint)
    except OSError as error:
        raise OSError(error.errno, f"the proxy {proxy.address} cannot be reached: {error.strerror or error}") from error
    try:
        await link.open(proxy.request(authority))
        answer = Answer(f"the proxy {proxy.address}", range(200, 300))
        await _read_answer(link, answer)
        if answer.rest:  # nothing may follow, because the client speaks first
            raise GreetingError(f"the proxy {proxy.address} sent more than its answer")
    except BaseException:
        link.close()
        raise
    link.set_peer_address(authority)
    return link
