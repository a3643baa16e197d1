"""A device from the shell: ``python -m sp.device rep --front URL --back URL``."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Sequence
from typing import Any, Final

import trio

from sp.address import Address
from sp.device import device
from sp.errors import AddressError, Error
from sp.http.config import WSServerConfig
from sp.raw import Bus0, Pair0, Pair1, Pub0, Pull0, Push0, RawSocket, Rep0, Req0, Respondent0, Sub0, Surveyor0
from sp.sockets.base import Socket
from sp.tls.config import TLSClientConfig, TLSServerConfig

_KINDS: Final[dict[str, Any]] = {
    "rep": Rep0,
    "req": Req0,
    "pub": Pub0,
    "sub": Sub0,
    "push": Push0,
    "pull": Pull0,
    "respondent": Respondent0,
    "surveyor": Surveyor0,
    "bus": Bus0,
    "pair0": Pair0,
    "pair1": Pair1,
}
_BACKS: Final[dict[str, str]] = {
    "rep": "req",
    "req": "rep",
    "pub": "sub",
    "sub": "pub",
    "push": "pull",
    "pull": "push",
    "respondent": "surveyor",
    "surveyor": "respondent",
}
_WITH_TTL: Final = ("rep", "req", "respondent", "surveyor", "pair1")
_REFLECTORS: Final = ("bus", "pair0", "pair1")
_log: Final = logging.getLogger("sp.device")


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m sp.device", description="Pass messages on between two raw sockets, the front and the back."
    )
    add = parser.add_argument
    add("protocol", nargs="?", default="rep", choices=_KINDS, help="protocol of the front; the back speaks its counterpart (default: rep)")
    add("--front", metavar="URL", action="append", default=[], help="URL where the front listens; this and the next three may be repeated")
    add("--front-dial", metavar="URL", action="append", default=[], help="URL that the front dials")
    add("--back", metavar="URL", action="append", default=[], help="URL that the back dials")
    add(
        "--back-listen",
        metavar="URL",
        action="append",
        default=[],
        help="URL where the back listens; without a back, the front passes messages on to itself (bus, pair)",
    )
    add("--certificate", metavar="PEM", help="file with our certificate and its intermediates, for all TLS URLs")
    add("--private-key", metavar="PEM", help="file with its key, if that is a separate file")
    add("--client-ca", metavar="PEM", help="CA of the clients' certificates; clients then need one")
    add("--ca", metavar="PEM", help="CA of the servers that are dialed (default: the system's CAs)")
    add(
        "--origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="origin of web pages that may connect by ws and wss; may be repeated",
    )
    add("--ttl", metavar="HOPS", type=int, help="drop messages that came through this many devices or more, 1 to 255 (default: 8)")
    add("--max-message-size", metavar="BYTES", type=int, default=1 << 20, help="largest message to pass on (default: 1 MiB)")
    add("--verbose", action="store_true", help="log what happens to connections")
    options = parser.parse_args(arguments)
    if not options.front and not options.front_dial:
        parser.error("the front needs a URL: give --front or --front-dial")
    if not options.back and not options.back_listen and options.protocol not in _REFLECTORS:
        parser.error(f"the back needs a URL: give --back or --back-listen; only {', '.join(_REFLECTORS)} can do without a back")
    try:
        _check_use(options)
    except Error as error:
        parser.error(str(error))
    return options


def _check_use(options: argparse.Namespace) -> None:
    """Raise for an option that would go unused.

    A user who gives a certificate expects encryption.
    """
    listened = [Address.parse(url) for url in (*options.front, *options.back_listen)]
    dialed = [Address.parse(url) for url in (*options.front_dial, *options.back)]
    for name, given, used in (
        ("certificate", options.certificate, any(address.is_encrypted for address in (*listened, *dialed))),
        ("private-key", options.private_key, options.certificate),
        ("client-ca", options.client_ca, any(address.is_encrypted for address in listened)),
        ("ca", options.ca, any(address.is_encrypted for address in dialed)),
        ("origin", options.origin, any(address.is_http for address in listened)),
        ("ttl", options.ttl is not None, options.protocol in _WITH_TTL),
    ):
        if given and not used:
            raise AddressError(f"--{name} was given, but nothing uses it: expected a URL, protocol or option that does")


def _socket(protocol: str, options: argparse.Namespace) -> RawSocket:
    ttl = {"ttl": options.ttl} if options.ttl is not None and protocol in ("rep", "respondent", "pair1") else {}
    socket: RawSocket = _KINDS[protocol](max_message_size=options.max_message_size, **ttl)
    return socket


async def _open(side: str, socket: Socket, listened: list[str], dialed: list[str], options: argparse.Namespace) -> None:
    """Listen and dial.  Print the URLs of the listeners, since a port may have been 0."""
    for url in listened:
        address = Address.parse(url)
        tls = None
        if address.is_encrypted:
            tls = TLSServerConfig(certificate=options.certificate, private_key=options.private_key, client_ca=options.client_ca)
        ws = WSServerConfig(origins=options.origin) if address.is_http else None
        print(side, (await socket.listen(url, tls=tls, ws=ws)).url, flush=True)
    for url in dialed:
        client_tls = None
        if Address.parse(url).is_encrypted:
            client_tls = TLSClientConfig(ca=options.ca, certificate=options.certificate, private_key=options.private_key)
        await socket.dial(url, wait=False, tls=client_tls)


async def _run(options: argparse.Namespace) -> None:
    protocol: str = options.protocol
    front, back = _socket(protocol, options), _socket(_BACKS.get(protocol, protocol), options)
    token = trio.lowlevel.current_trio_token()
    scope = trio.CancelScope()

    def stop(*_: object) -> None:
        token.run_sync_soon(scope.cancel)

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        async with front, back:
            with scope:
                await _open("front", front, options.front, options.front_dial, options)
                await _open("back", back, options.back_listen, options.back, options)
                is_reflector = not options.back and not options.back_listen
                await device(front, None if is_reflector else back)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for side, socket in (("front", front), ("back", back)):
            counts = socket.statistics()
            if counts.inbox:
                _log.warning("%s: %d messages were received and not passed on", side, counts.inbox)
            dropped = counts.as_dict()["dropped"]
            _log.info("%s: %d received, %d sent, dropped %s", side, counts.messages_received, counts.messages_sent, dropped)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a device until SIGINT or SIGTERM.

    If the device cannot run, exit with an error text and status 1.
    """
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    try:
        trio.run(_run, options)
    except (Error, ValueError, OSError) as error:
        sys.exit(f"python -m sp.device: {error}")


if __name__ == "__main__":
    main()
