"""How messages move: one module for each kind of address."""

from __future__ import annotations

from sp.address import Address
from sp.transports.contract import Transport


def transport_for(address: Address) -> Transport:
    """Return the transport for *address*.  Its module is imported on first use."""
    # These are plain statements, so that tools that pack an application into a file find the
    # modules.
    if address.is_http:
        from sp.transports import ws  # noqa: PLC0415

        return ws
    if address.is_encrypted:
        from sp.transports import tls  # noqa: PLC0415

        return tls
    if address.is_network:
        from sp.transports import tcp  # noqa: PLC0415

        return tcp
    if address.scheme == "inproc":
        from sp.transports import inproc  # noqa: PLC0415

        return inproc
    if address.scheme in ("ipc", "abstract"):
        from sp.transports import ipc  # noqa: PLC0415

        return ipc
    raise AssertionError(f"transport_for names no transport for {address.scheme}://")
