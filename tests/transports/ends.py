"""The two ends of any scheme: what TLS needs goes along where the URL asks for it, so that a test is the same for all schemes."""

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
    """One for the whole session, as keys take time; so are the configurations."""
    return Authority()


@cache
def _server() -> sp.TLSServerConfig:
    return authority().server()


@cache
def _client() -> sp.TLSClientConfig:
    return authority().client()


def server_tls(url: str) -> sp.TLSServerConfig | None:
    """Return what is needed to listen on *url*; None: nothing."""
    return _server() if url.startswith(("tls", "wss")) else None


def client_tls(url: str) -> sp.TLSClientConfig | None:
    """Return what is needed to dial *url*; None: nothing."""
    return _client() if url.startswith(("tls", "wss")) else None


async def listen(sock: Socket, url: str) -> sp.Listener:
    """Let *sock* listen on *url*."""
    return await sock.listen(url, tls=server_tls(url))


async def dial(sock: Socket, url: str, *, wait: bool = True) -> sp.Dialer:
    """Let *sock* dial *url*."""
    return await sock.dial(url, wait=wait, tls=client_tls(url))
