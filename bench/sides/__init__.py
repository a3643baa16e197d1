"""The same jobs, done by trio-sp and by each of its peers, one module each.

A server tells its URL first; the client gets that URL.
"""

from __future__ import annotations

from dataclasses import dataclass

HOST = "127.0.0.1"
ANY_PORT = f"tcp://{HOST}:0"
SERVER_NAME = "localhost"
"""The name in the certificates: pynng does not check IP addresses."""
END = b""
"""The last message of a one-way run.

It is sent until the receiver is gone, since it may get lost as well.
"""
END_EVERY = 0.02
BATCH = 100


def any_port(scheme: str) -> str:
    """Return a URL that takes any port."""
    return f"{scheme}://{HOST}:0"


@dataclass(frozen=True)
class Papers:
    """What both ends need for TLS, as PEM."""

    ca: bytes
    server: bytes
    """The server's key and certificate."""
    client: bytes
    """The client's."""
    client_certificates: bool = False
    """Whether the server asks for client certificates."""
    session_reuse: bool = True
    """Whether the client resumes sessions."""
