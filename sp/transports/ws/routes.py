"""Finds the listener on a shared port that a request is for, by its path."""

from __future__ import annotations

from collections.abc import Callable

from sp.address import Address, normal_path
from sp.errors import AddressError
from sp.http.config import WSServerConfig
from sp.transports.contract import ListenerConfig, Newcomer


class Route:
    """One listener on a shared port."""

    def __init__(self, routes: Routes, path: str, endpoint: ListenerConfig) -> None:
        self.path = normal_path(path)
        self.endpoint = endpoint
        self.config = endpoint.ws
        self.health_path = None if self.config.health_path is None else normal_path(self.config.health_path)
        self.draining = False
        self.closed = False
        self.handed: list[Newcomer] = []
        """Newcomers for this listener that another listener accepted."""
        self.wakers: list[Callable[[], None]] = []
        """Functions to call when something has changed for its acceptors."""
        self._routes = routes

    @property
    def accepts_for_all(self) -> bool:
        """Whether it is the oldest listener, which accepts for all of them."""
        return self._routes.oldest is self

    def add(self, newcomer: Newcomer) -> None:
        """Hand over *newcomer*."""
        self.handed.append(newcomer)
        self.wake()

    def wake(self) -> None:
        for wake in self.wakers:
            wake()


class Routes:
    """The listeners that share a port, the oldest first."""

    def __init__(self, *, is_unix: bool) -> None:
        self.is_unix = is_unix
        """Whether the port is a unix socket."""
        self.listeners: list[Route] = []

    @property
    def oldest(self) -> Route | None:
        return self.listeners[0] if self.listeners else None

    def find(self, path: str) -> Route | None:
        """Return the listener at *path*.  As in nng, a slash at the end makes no difference."""
        path = normal_path(path)
        for wanted in (path, path.removesuffix("/"), f"{path}/"):
            for route in self.listeners:
                if route.path == wanted:
                    return route
        return None

    def find_health(self, path: str) -> Route | None:
        """Return the listener that answers health checks at *path*."""
        return next((route for route in self.listeners if route.health_path == normal_path(path)), None)

    def check_paths(self, address: Address, config: WSServerConfig) -> None:
        """Raise AddressError if a listener at *address* needs a path that is already used."""
        listening = [(normal_path(address.target), config), *((route.path, route.config) for route in self.listeners)]
        answers: dict[str, object] = {}
        for _, one in listening:
            if one.health_path is None:
                continue
            path = normal_path(one.health_path)
            if any(path.rstrip("/") == other.rstrip("/") for other, _ in listening):
                raise AddressError(f"{address.url!r}: health_path {one.health_path!r} is the path of a socket at that port")
            if answers.setdefault(path, one.health) is not one.health:
                raise AddressError(f"{address.url!r}: health_path {one.health_path!r} has another health= at that port")
