"""From the arguments of ``dial`` and ``listen`` to the EndpointConfig of their URL.

An argument of the call overrides the option of the socket, which overrides the default.  Arguments
that do not fit the URL are refused.
"""

from __future__ import annotations

from typing import Final, TypeVar

from sp.address import Address
from sp.checks import check_flag
from sp.errors import AddressError, TLSConfigError
from sp.http.config import WSClientConfig, WSServerConfig
from sp.options import SocketOptions
from sp.tls.config import TLSClientConfig, TLSServerConfig, default_client_config
from sp.transports.contract import DialerConfig, EndpointConfig, ListenerConfig

_TLS = TypeVar("_TLS", TLSServerConfig, TLSClientConfig)
_WS = TypeVar("_WS", WSServerConfig, WSClientConfig)

_DIAL: Final = "dial"
_LISTEN: Final = "listen on"


def config_to_dial(base: EndpointConfig, address: Address, tls: object, ws: object) -> DialerConfig:
    """Return *base* with what a dialer to *address* needs.

    *tls* and *ws* are the arguments of the call, or None.
    """
    return DialerConfig(
        number=base.number,
        peer_number=base.peer_number,
        find_body=base.find_body,
        options=base.options,
        tls=_tls(base.options, address, _DIAL, tls, TLSClientConfig),
        ws=_ws(base.options, address, _DIAL, ws, WSClientConfig),
    )


def config_to_listen(base: EndpointConfig, address: Address, tls: object, ws: object, proxy_protocol: object) -> ListenerConfig:
    """Return *base* with what a listener at *address* needs.

    The other parameters are the arguments of the call, or None.
    """
    return ListenerConfig(
        number=base.number,
        peer_number=base.peer_number,
        find_body=base.find_body,
        options=base.options,
        tls=_tls(base.options, address, _LISTEN, tls, TLSServerConfig),
        ws=_ws(base.options, address, _LISTEN, ws, WSServerConfig),
        proxy_protocol=_proxy_protocol(base.options, address, proxy_protocol),
    )


def _tls(options: SocketOptions, address: Address, verb: str, given: object, kind: type[_TLS]) -> _TLS | None:
    """Return the TLS configuration for *address*.

    A configuration that would go unused is refused: a caller who gives one expects encryption.
    """
    if not address.is_encrypted:
        expected = "expected wss://" if address.is_http else "expected tls+tcp://"
        if given is not None:
            raise TLSConfigError(f"tls= was given to {verb} {address.url!r}, which is not encrypted: {expected}")
        if options.tls is not None and address.is_network:
            raise TLSConfigError(f"cannot {verb} {address.url!r}: the socket has tls=, and this URL is not encrypted: {expected}")
        return None
    config = options.tls if given is None else given
    if config is None:
        if kind is TLSServerConfig:
            raise TLSConfigError(f"cannot listen on {address.url!r} without a certificate: give tls=sp.TLSServerConfig(...)")
        config = default_client_config()
    if not isinstance(config, kind):
        error = TLSConfigError if isinstance(config, TLSServerConfig | TLSClientConfig) else TypeError
        raise error(f"to {verb} {address.url!r}, expected tls=sp.{kind.__name__}(...), not {type(config).__name__}")
    return config


def _ws(options: SocketOptions, address: Address, verb: str, given: object, kind: type[_WS]) -> _WS:
    """Return the WebSocket configuration for *address*: the defaults, if its scheme has no HTTP."""
    if given is not None and not isinstance(given, kind):
        raise TypeError(f"to {verb} {address.url!r}, expected ws=sp.{kind.__name__}(...), not {type(given).__name__}")
    if not address.is_http:
        if given is not None:
            raise AddressError(f"ws= was given to {verb} {address.url!r}, which has no HTTP: expected ws:// or wss://")
        return kind()
    config = options.ws if given is None else given
    if config is None:
        return kind()
    if not isinstance(config, kind):
        raise TypeError(f"to {verb} {address.url!r}, expected ws=sp.{kind.__name__}(...), and the socket has {type(config).__name__}")
    return config


def _proxy_protocol(options: SocketOptions, address: Address, given: object) -> bool:
    """Return whether connections to *address* begin with a PROXY protocol header.

    No proxy forwards to ipc, abstract or inproc.
    """
    wanted = options.proxy_protocol if given is None else check_flag("proxy_protocol", given)
    possible = address.is_network or address.is_http
    if given and not possible:
        raise AddressError(f"proxy_protocol was given to listen on {address.url!r}, but no proxy can forward to that")
    return wanted and possible
