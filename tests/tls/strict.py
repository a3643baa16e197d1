"""Verifies certificates as strictly as Python 3.13 does by default."""

from __future__ import annotations

import ssl
from pathlib import Path


def strict_handshake(ca: Path, server: Path, client: Path, *, name: str) -> None:
    """Let two strict ends of the standard library verify each other.

    *server* must have the name *name*.

    *server* and *client* have key and certificate in them.  Raises ssl.SSLError.
    """
    contexts = (
        ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca),
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca),
    )
    for context, own in zip(contexts, (client, server), strict=True):
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        context.load_cert_chain(own)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        contexts[0].wrap_bio(to_client, to_server, server_hostname=name),
        contexts[1].wrap_bio(to_server, to_client, server_side=True),
    )
    for _ in range(3):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    assert all(end.getpeercert() for end in ends)
