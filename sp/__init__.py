"""Scalability Protocols (nanomsg, nng, mangos) for trio.

What is here is the public interface; docs/reference.md lists it.  Values and errors come first, then what tasks use.
"""

from sp.context import Rep0Context, Req0Context, Request, Sub0Context
from sp.dialer import Dialer
from sp.errors import (
    AddressError,
    AuthenticationError,
    DialError,
    Error,
    GreetingError,
    MalformedMessage,
    MessageTooLarge,
    PeerClosed,
    PeerError,
    PeerSilent,
    PipeRefused,
    RequestLost,
    RequestReplaced,
    StateError,
    TLSConfigError,
    TLSError,
    UpgradeRefused,
    WrongProtocol,
)
from sp.events import Event, EventKind, EventStream
from sp.http import HTTPClientConfig, HTTPHeaders, HTTPInfo, HTTPResponse, HTTPServerConfig
from sp.listener import Listener
from sp.message import Message
from sp.pipe import Pipe
from sp.proxy_protocol import ProxyInfo, SSLInfo
from sp.sockets import Bus0, Pub0, Rep0, Req0, Sub0
from sp.statistics import DialerStatistics, ListenerStatistics, PipeStatistics, SocketStatistics
from sp.tls import TLSClientConfig, TLSInfo, TLSServerConfig

__version__ = "0.1.0"

__all__ = [
    "AddressError",
    "AuthenticationError",
    "Bus0",
    "DialError",
    "Dialer",
    "DialerStatistics",
    "Error",
    "Event",
    "EventKind",
    "EventStream",
    "GreetingError",
    "HTTPClientConfig",
    "HTTPHeaders",
    "HTTPInfo",
    "HTTPResponse",
    "HTTPServerConfig",
    "Listener",
    "ListenerStatistics",
    "MalformedMessage",
    "Message",
    "MessageTooLarge",
    "PeerClosed",
    "PeerError",
    "PeerSilent",
    "Pipe",
    "PipeRefused",
    "PipeStatistics",
    "ProxyInfo",
    "Pub0",
    "Rep0",
    "Rep0Context",
    "Req0",
    "Req0Context",
    "Request",
    "RequestLost",
    "RequestReplaced",
    "SSLInfo",
    "SocketStatistics",
    "StateError",
    "Sub0",
    "Sub0Context",
    "TLSClientConfig",
    "TLSConfigError",
    "TLSError",
    "TLSInfo",
    "TLSServerConfig",
    "UpgradeRefused",
    "WrongProtocol",
]
