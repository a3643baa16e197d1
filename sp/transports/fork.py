"""Forks: a child inherits a descriptor of each of our sockets."""

from __future__ import annotations

import os
import socket
import weakref
from typing import Final

import trio

_inheritable: Final[weakref.WeakSet[socket.socket]] = weakref.WeakSet()


def close_in_children(sock: socket.socket) -> socket.socket:
    """Return *sock*, and close it in every child that is forked.

    With a copy in a child, the address would stay taken, and the peer would not see that we closed.
    """
    _inheritable.add(sock)
    return sock


def _close_inherited() -> None:
    # Only close: a shutdown would end the parent's connection too, and the event loop is the
    # parent's.
    for sock in list(_inheritable):
        sock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)


def close_all_copies(sock: socket.socket) -> None:
    """Close *sock*, which is open, and wake the tasks that wait for it.

    The shutdown comes first because another process may hold a copy of the descriptor, which would
    keep the connection or the address open.
    """
    trio.lowlevel.notify_closing(sock)
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # the peer closed first, or this system cannot shut down a listening socket
    sock.close()
