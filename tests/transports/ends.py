"""The two ends for any scheme, with TLS where the URL needs it."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import pytest

import sp
from tests.tls.authority import Authority

if TYPE_CHECKING:
    from sp.sockets.base import Socket

network_only = pytest.mark.parametrize("url", ["tcp://127.0.0.1:0", "tls+tcp://127.0.0.1:0"], ids=["tcp", "tls+tcp"])
"""For tests whose peer speaks the format of tcp by hand, or looks at the network."""


@cache
def authority() -> Authority:
    """Return one authority for the whole run, since making keys takes time."""
    return Authority()


@cache
def _server() -> sp.TLSServerConfig:
    return authority().server()


@cache
def _client() -> sp.TLSClientConfig:
    return authority().client()


def server_tls(url: str) -> sp.TLSServerConfig | None:
    """Return the configuration to listen on *url*.  None: it needs none."""
    return _server() if url.startswith(("tls", "wss")) else None


def client_tls(url: str) -> sp.TLSClientConfig | None:
    """Return the configuration to dial *url*.  None: it needs none."""
    return _client() if url.startswith(("tls", "wss")) else None


async def listen(sock: Socket, url: str) -> sp.Listener:
    """Let *sock* listen on *url*."""
    return await sock.listen(url, tls=server_tls(url))


async def dial(sock: Socket, url: str, *, wait: bool = True) -> sp.Dialer:
    """Let *sock* dial *url*."""
    return await sock.dial(url, wait=wait, tls=client_tls(url))
