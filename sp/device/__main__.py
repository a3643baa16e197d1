"""A device from the shell: ``python -m sp.device rep --front wss://*:443/ask --back ipc:///run/service``."""

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
    parser = argparse.ArgumentParser(prog="python -m sp.device", description="Passes on messages between two sides.")
    add = parser.add_argument
    add("protocol", nargs="?", default="rep", choices=_KINDS, help="what the front speaks; the back speaks its counterpart (default: rep)")
    add("--front", metavar="URL", action="append", default=[], help="where the front listens; may be repeated, as those that follow")
    add("--front-dial", metavar="URL", action="append", default=[], help="whom the front dials")
    add("--back", metavar="URL", action="append", default=[], help="whom the back dials")
    add("--back-listen", metavar="URL", action="append", default=[], help="where the back listens; no back: the front reflects (bus, pair)")
    add("--certificate", metavar="PEM", help="our certificate and its intermediates, wherever there is TLS")
    add("--private-key", metavar="PEM", help="its key, if it is in a file of its own")
    add("--client-ca", metavar="PEM", help="who signs the certificates of clients; given, they have to have one")
    add("--ca", metavar="PEM", help="who signs the certificates of those that are dialed (default: whom the system trusts)")
    add("--origin", metavar="ORIGIN", action="append", default=[], help="pages that may connect by ws and wss")
    add("--ttl", metavar="HOPS", type=int, help="drop what comes through as many devices or more, 1 to 255 (default: 8)")
    add("--max-message-size", metavar="BYTES", type=int, default=1 << 20, help="largest message that is passed on (default: 1 MiB)")
    add("--verbose", action="store_true", help="log what happens to connections")
    options = parser.parse_args(arguments)
    if not options.front and not options.front_dial:
        parser.error("the front needs a URL: --front or --front-dial")
    if not options.back and not options.back_listen and options.protocol not in _REFLECTORS:
        parser.error(f"the back needs a URL: --back or --back-listen; only {', '.join(_REFLECTORS)} can do without")
    try:
        _check_use(options)
    except Error as error:
        parser.error(str(error))
    return options


def _check_use(options: argparse.Namespace) -> None:
    """Raise for an option that would go unused: who gives a certificate means to be encrypted."""
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
            raise AddressError(f"--{name} is given, and nothing uses it: expected a URL, protocol or option that does")


def _socket(protocol: str, options: argparse.Namespace) -> RawSocket:
    ttl = {"ttl": options.ttl} if options.ttl is not None and protocol in ("rep", "respondent", "pair1") else {}
    socket: RawSocket = _KINDS[protocol](max_message_size=options.max_message_size, **ttl)
    return socket


async def _open(side: str, socket: Socket, listened: list[str], dialed: list[str], options: argparse.Namespace) -> None:
    """Listen and dial, and print where we listen: ports may have been 0."""
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
    """Run a device until SIGINT or SIGTERM; say what is wrong, and end with a status that is not 0, when it cannot run."""
    options = _parse(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(asctime)s %(name)s %(message)s")
    try:
        trio.run(_run, options)
    except (Error, ValueError, OSError) as error:
        sys.exit(f"python -m sp.device: {error}")


if __name__ == "__main__":
    main()
