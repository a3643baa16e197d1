"""Listens on ws, wss and ws+unix.

Several sockets of a trio run may listen at the same host and port, with different paths.  The
oldest listener on a shared port accepts for all of them: each client goes to the socket whose path
it asks for.
"""

from __future__ import annotations

import errno
import os

import trio

from sp.address import Address, normal_path
from sp.errors import TLSConfigError
from sp.transports import ipc, tcp
from sp.transports.contract import Acceptor, ListenerConfig, Newcomer
from sp.transports.link import SocketLink
from sp.transports.tls import TLSLink
from sp.transports.ws.newcomer import ServerNewcomer
from sp.transports.ws.routes import Route, Routes

_Key = tuple[str, str, int]


async def listen(address: Address, endpoint: ListenerConfig) -> list[Acceptor]:
    """Bind *address*, or share a port that is bound.

    Raises OSError "address in use" if the listeners cannot share it, and AddressError or
    TLSConfigError for a configuration that contradicts theirs.
    """
    await trio.lowlevel.checkpoint()
    ports = _the_ports()
    key = _key(address, address.port)
    port = ports.get(key)
    if port is None:
        port = SharedPort(endpoint, address, key)
        port.routes.check_paths(address, endpoint.ws)
        try:
            await port.bind(address, endpoint)
        except OSError:
            port = ports.get(key)
            if port is None:
                raise  # else another task bound it meanwhile
        else:
            ports[port.key] = port
    if port.routes.oldest is not None:
        port.check(address, endpoint)
    return port.join(address, endpoint)


def _key(address: Address, port: int) -> _Key:
    if address.scheme == "ws+unix":
        return "unix", os.path.abspath(str(address.path)), 0
    family = address.scheme[-1] if address.scheme[-1] in "46" else ""
    return family, address.host.lower(), port


_ports: trio.lowlevel.RunVar[dict[_Key, SharedPort]] = trio.lowlevel.RunVar("sp.ws")


def _the_ports() -> dict[_Key, SharedPort]:
    try:
        return _ports.get()
    except LookupError:
        ports: dict[_Key, SharedPort] = {}
        _ports.set(ports)
        return ports


class SharedPort:
    """A bound address, and the listeners that share it."""

    def __init__(self, endpoint: ListenerConfig, address: Address, key: _Key) -> None:
        self.key = key
        self.routes = Routes(is_unix=address.scheme == "ws+unix")
        self._bases: list[Acceptor] = []
        self._endpoint = endpoint  # of the listener that bound the port

    def _newcomer(self, inner: SocketLink) -> Newcomer:
        config = self._endpoint.tls
        link = TLSLink(inner, config, http=True) if config is not None else inner
        return ServerNewcomer(link, self._endpoint, self.routes)

    async def bind(self, address: Address, endpoint: ListenerConfig) -> None:
        """Bind *address*, and learn its port if the system has chosen one."""
        if self.routes.is_unix:
            self._bases = await ipc.listen_link(address, endpoint, self._newcomer)
        else:
            self._bases = await tcp.listen_link(address, endpoint, self._newcomer)
            self.key = _key(address, Address.parse(self._bases[0].url).port)

    def check(self, address: Address, endpoint: ListenerConfig) -> None:
        """Raise unless a listener at *address*, with this configuration, can share the port."""
        if endpoint.tls is not self._endpoint.tls:
            if endpoint.tls is None or self._endpoint.tls is None:
                raise OSError(errno.EADDRINUSE, f"{address.url!r}: address in use, and ws:// and wss:// cannot share a port")
            raise TLSConfigError(f"{address.url!r} shares its port with other sockets: pass the TLSServerConfig object that they use")
        if endpoint.proxy_protocol != self._endpoint.proxy_protocol:
            raise OSError(errno.EADDRINUSE, f"{address.url!r}: address in use, with another proxy_protocol= than this one")
        if any(route.path == normal_path(address.target) for route in self.routes.listeners):
            raise OSError(errno.EADDRINUSE, f"{address.url!r}: address in use")
        self.routes.check_paths(address, endpoint.ws)

    def join(self, address: Address, endpoint: ListenerConfig) -> list[Acceptor]:
        """Add a listener at *address*."""
        route = Route(self.routes, address.target, endpoint)
        self.routes.listeners.append(route)
        url = address.url if self.routes.is_unix else address.with_port(self.key[2]).url
        return [WSAcceptor(self, route, base, url) for base in self._bases]

    def leave(self, route: Route) -> None:
        """Remove a listener.  The last one to leave closes the port."""
        if route.closed:
            return
        route.closed = True
        for newcomer in route.handed:
            newcomer.close()
        self.routes.listeners.remove(route)
        oldest = self.routes.oldest
        if oldest is not None:
            oldest.wake()
        else:
            for base in self._bases:
                base.close()
            if _the_ports().get(self.key) is self:
                del _the_ports()[self.key]
        route.wake()

    def pass_on(self, newcomer: Newcomer) -> None:
        """Let the listener that is now the oldest serve *newcomer*."""
        oldest = self.routes.oldest
        if oldest is not None:
            oldest.add(newcomer)
        else:
            newcomer.close()


class WSAcceptor:
    """One bound socket of a port, as one of its listeners sees it."""

    def __init__(self, port: SharedPort, route: Route, base: Acceptor, url: str) -> None:
        self.url = url
        self._port = port
        self._route = route
        self._base = base
        self._scope = trio.CancelScope()
        route.wakers.append(self.wake)

    async def accept(self) -> list[Newcomer]:
        route = self._route
        while True:
            if route.closed:
                raise trio.ClosedResourceError
            if route.handed:
                await trio.lowlevel.checkpoint()
                handed, route.handed = route.handed, []
                if handed:
                    return handed
            with trio.CancelScope() as self._scope:
                if not route.accepts_for_all:
                    await trio.sleep_forever()
                newcomers = await self._base.accept()
                if route.accepts_for_all:
                    return newcomers
                for newcomer in newcomers:  # they came while this listener was leaving
                    self._port.pass_on(newcomer)

    def wake(self) -> None:
        """Let ``accept`` look at the routes again."""
        self._scope.cancel()

    def drain(self) -> None:
        self._route.draining = True

    def close(self) -> None:
        self._port.leave(self._route)
