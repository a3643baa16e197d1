"""ipc: SP over UNIX domain sockets.

They have a file path (``ipc://``) or, on Linux, an abstract name (``abstract://``).
"""

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
from sp.transports.contract import Acceptor, DialerConfig, ListenerConfig, Newcomer
from sp.transports.fork import close_all_copies, close_in_children
from sp.transports.link import BACKLOG, SocketLink, accept_pending
from sp.transports.stream import StreamConnection

log = logging.getLogger("sp")

_PAUSES: Final = (0.001, 0.1)
"""Seconds between attempts while a listener's backlog is full: the first pause, the longest."""


def _check_platform(address: Address) -> None:
    if not hasattr(socket, "AF_UNIX"):
        raise AddressError(f"{address.url!r}: Python has no UNIX domain sockets on this platform")
    if address.scheme == "abstract" and sys.platform != "linux":
        raise AddressError(f"{address.url!r}: abstract names exist on Linux only")


async def connect(address: Address, endpoint: DialerConfig) -> Newcomer:
    """Connect to the listener at *address*."""
    return StreamConnection(await connect_link(address), endpoint, typed=True)


async def connect_link(address: Address) -> SocketLink:
    """Connect to the listener at *address*, for ipc and ws+unix."""
    _check_platform(address)
    await trio.lowlevel.checkpoint()
    sock = close_in_children(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        sock.setblocking(False)
        pause, longest = _PAUSES
        while (code := sock.connect_ex(_short(address.path))) == errno.EAGAIN:
            # The backlog is full.  The kernel does not say when it has room again, so keep trying
            # until the caller's time limit.
            await trio.sleep(uniform(pause / 2, pause))
            pause = min(pause * 2, longest)
        if code:
            raise OSError(code, os.strerror(code))
    except BaseException:
        sock.close()
        raise
    return SocketLink(sock, address.url, address.url)


async def listen(address: Address, endpoint: ListenerConfig) -> list[Acceptor]:
    """Bind *address*.

    A socket file without a listener is replaced.  If there is a listener, OSError says that the
    address is in use.
    """
    return await listen_link(address, endpoint, lambda link: StreamConnection(link, endpoint, typed=True))


async def listen_link(address: Address, endpoint: ListenerConfig, make: Callable[[SocketLink], Newcomer]) -> list[Acceptor]:
    """Bind *address*, for ipc and ws+unix.  *make* turns each accepted link into a newcomer."""
    _check_platform(address)
    await trio.lowlevel.checkpoint()
    mode = endpoint.options.ipc_mode
    sock = _bound(address, mode)
    try:
        if mode is not None and isinstance(address.path, str):
            # Add the bits that the umask removed.  The file never has more bits than *mode*.
            os.chmod(address.path, mode)
        sock.listen(BACKLOG)
        sock.setblocking(False)
        if address.path == ANY_NAME:
            address = address.with_name(sock.getsockname())
        return [IPCAcceptor(sock, address, endpoint, make)]
    except BaseException:
        sock.close()
        raise


def _short(path: str | bytes) -> str | bytes:
    """Return *path*, relative to the working directory if it is too long for a socket address."""
    if isinstance(path, bytes) or len(os.fsencode(path)) <= MAX_SOCKET_PATH:
        return path
    relative = path.removeprefix(os.path.join(os.getcwd(), ""))
    if len(os.fsencode(relative)) > MAX_SOCKET_PATH:
        raise OSError(errno.ENAMETOOLONG, f"{path!r} is longer than {MAX_SOCKET_PATH} bytes, and not below the working directory")
    return relative


def _bound(address: Address, mode: int | None) -> socket.socket:
    # Empty: the system chooses a free name.
    path = address.path if address.path != ANY_NAME else b""
    for attempt in (1, 2):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if mode is not None:
                # Linux creates the file with this mode, so it never has another one.
                os.fchmod(sock.fileno(), mode)
            sock.bind(_short(path))
            return sock
        except OSError as error:
            sock.close()
            if error.errno != errno.EADDRINUSE:
                raise OSError(error.errno, f"cannot listen on {address.url!r}: {os.strerror(error.errno or 0)}") from error
            if isinstance(path, str) and os.path.lexists(path) and not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise OSError(errno.EADDRINUSE, f"{address.url!r}: address in use by a file that is not a socket") from error
            if attempt == 2 or not isinstance(path, str) or not _remove_stale(path):
                raise OSError(errno.EADDRINUSE, f"{address.url!r}: address in use") from error
    raise AssertionError("the second attempt returns or raises")


def _remove_stale(path: str) -> bool:
    """Remove the socket file at *path* if no process listens on it.

    False: one listens, or it is not a socket.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return False
    except FileNotFoundError:
        return True  # its owner has just removed it
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(_short(path))
        except ConnectionRefusedError:
            with suppress(FileNotFoundError):  # another process has just removed it
                os.unlink(path)
            return True
        except FileNotFoundError:
            return True  # its owner has just removed it
        except OSError:
            return False  # EAGAIN: a process listens, and its backlog is full
    return False


class IPCAcceptor:
    """A listening socket, and the file that it created."""

    def __init__(self, sock: socket.socket, address: Address, endpoint: ListenerConfig, make: Callable[[SocketLink], Newcomer]) -> None:
        self.url = address.url
        self._socket = close_in_children(sock)
        self._proxied = endpoint.proxy_protocol
        self._make = make
        self._file = address.path if isinstance(address.path, str) else None
        self._identity = _identity(self._file)  # when we close, there may be another file

    async def accept(self) -> list[Newcomer]:
        if self._socket.fileno() < 0:
            raise trio.ClosedResourceError
        await trio.lowlevel.wait_readable(self._socket)
        return [self._make(SocketLink(sock, self.url, self.url, proxied=self._proxied)) for sock in accept_pending(self._socket)]

    def drain(self) -> None:
        self.close()

    def close(self) -> None:
        if self._socket.fileno() < 0:
            return  # already closed, or closed by a fork: then the parent still needs the file
        if self._file is not None and self._identity is not None and _identity(self._file) == self._identity:
            try:
                os.unlink(self._file)
            except OSError as error:
                log.warning("%s: the socket file cannot be removed: %s", self.url, error)
        close_all_copies(self._socket)


def _identity(path: str | None) -> tuple[int, int] | None:
    if path is None:
        return None
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
