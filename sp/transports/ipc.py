"""ipc: SP over UNIX domain sockets, by file path (``ipc://``) or, on Linux, by abstract name (``abstract://``)."""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import sys
from collections.abc import Callable
from contextlib import suppress
from random import uniform
from typing import Final

import trio

from sp.address import ANY_NAME, MAX_SOCKET_PATH, Address
from sp.errors import AddressError
from sp.transports.contract import Acceptor, Connection, EndpointConfig
from sp.transports.fork import close_all_copies, close_in_children
from sp.transports.link import SocketLink
from sp.transports.stream import StreamConnection
from sp.transports.tcp import BACKLOG, accept_pending

log = logging.getLogger("sp")

_PAUSES: Final = (0.001, 0.1)
"""Seconds between two tries while a listener's backlog is full: the first and longest pause."""


def _check_platform(address: Address) -> None:
    if not hasattr(socket, "AF_UNIX"):
        raise AddressError(f"{address.url!r}: this platform has no UNIX domain sockets in Python")
    if address.scheme == "abstract" and sys.platform != "linux":
        raise AddressError(f"{address.url!r}: abstract names exist on Linux only")


async def connect(address: Address, terms: EndpointConfig) -> Connection:
    """Connect to the listener at *address*."""
    return StreamConnection(await connect_link(address), terms, typed=True)


async def connect_link(address: Address) -> SocketLink:
    """Do so, for ws+unix as well."""
    _check_platform(address)
    await trio.lowlevel.checkpoint()
    sock = close_in_children(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        sock.setblocking(False)
        pause, longest = _PAUSES
        while (code := sock.connect_ex(_short(address.path))) == errno.EAGAIN:
            # The backlog is full.  The kernel does not tell when it has room again, so we ask; the
            # caller's time limit ends that.
            await trio.sleep(uniform(pause / 2, pause))
            pause = min(pause * 2, longest)
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return SocketLink(sock, address.url, address.url)


async def listen(address: Address, terms: EndpointConfig) -> list[Acceptor]:
    """Bind *address*.  A socket file that nobody listens at any more is replaced, a live one is refused: address in use."""
    return await listen_link(address, terms, lambda link: StreamConnection(link, terms, typed=True))


async def listen_link(address: Address, terms: EndpointConfig, make: Callable[[SocketLink], Connection]) -> list[Acceptor]:
    """Do so, for ws+unix as well: *make* makes a connection of each newcomer."""
    _check_platform(address)
    await trio.lowlevel.checkpoint()
    mode = terms.options.ipc_mode
    sock = _bound(address, mode)
    try:
        if mode is not None and isinstance(address.path, str):
            os.chmod(address.path, mode)  # adds what the umask took away; nothing was ever open wider than asked
        sock.listen(BACKLOG)
        sock.setblocking(False)
        if address.path == ANY_NAME:
            address = address.with_name(sock.getsockname())
        return [IPCAcceptor(sock, address, terms, make)]
    except BaseException:
        sock.close()
        raise


def _short(path: str | bytes) -> str | bytes:
    """Return *path* as the kernel takes it.

    Where the whole of it has more bytes than an address may have: from the working directory.
    """
    if isinstance(path, bytes) or len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    relative = path.removeprefix(os.path.join(os.getcwd(), ""))
    if len(os.fsencode(relative)) > MAX_SOCKET_PATH:
        raise OSError(errno.ENAMETOOLONG, f"{path!r} is longer than {MAX_SOCKET_PATH} bytes, and not below the working directory")
    return relative


def _bound(address: Address, mode: int | None) -> socket.socket:
    path = address.path if address.path != ANY_NAME else b""  # then the system finds a free one
    for attempt in (1, 2):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if mode is not None:
                os.fchmod(sock.fileno(), mode)  # Linux makes the file with this mode, so there is no moment with another
            sock.bind(_short(path))
            return sock
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRINUSE:
                raise OSError(error.errno, f"cannot listen on {address.url!r}: {os.strerror(error.errno or 0)}") from error
            if isinstance(path, str) and os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise OSError(errno.EADDRINUSE, f"{address.url!r}: address in use by a file that is no socket") from error
            if attempt == 2 or not isinstance(path, str) or not _remove_stale(path):
                raise OSError(errno.EADDRINUSE, f"{address.url!r}: address in use") from error
    raise AssertionError("the second attempt returns or raises")


def _remove_stale(path: str) -> bool:
    """Remove the socket file at *path* if nobody listens there.  False: it is alive, or no socket file."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except FileNotFoundError:
        return True  # its owner has just gone
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(_short(path))
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):  # another one that found it stale was quicker
                os.unlink(path)
            return True
        except FileNotFoundError:
            return True  # so was this one
        except OSError:
            return False  # EAGAIN: alive, with a full backlog
    return False


class IPCAcceptor:
    """One listening socket, and the file that it made."""

    def __init__(self, sock: socket.socket, address: Address, terms: EndpointConfig, make: Callable[[SocketLink], Connection]) -> None:
        self.url = address.url
        self._socket = close_in_children(sock)
        self._proxied = terms.proxy_protocol
        self._make = make
        self._file = address.path if isinstance(address.path, str) else None
        self._identity = _identity(self._file)  # another file may be there before we close

    async def accept(self) -> list[Connection]:
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_readable(self._socket)
        return [self._make(SocketLink(sock, self.url, self.url, proxied=self._proxied)) for sock in accept_pending(self._socket)]

    def drain(self) -> None:
        self.close()

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return  # closed, or inherited by a child, whose parent needs the file
        if self._file is not None and self._identity is not None and _identity(self._file) == self._identity:
            try:
                os.unlink(self._file)
            except OSError as error:
                log.warning("%s: the socket file stays behind: %s", self.url, error)
        close_all_copies(self._socket)


def _identity(path: str | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
