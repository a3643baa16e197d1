"""Scalability Protocols (nanomsg, nng, mangos) for trio.

This module has the public names; docs/reference.md describes them.  ``sp.raw`` has the raw sockets,
``sp.device`` the devices.
"""

from sp import device, raw
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
    PeerStalled,
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
from sp.http.config import WSClientConfig, WSServerConfig
from sp.http.message import HTTPHeaders, HTTPInfo, HTTPResponse
from sp.listener import Listener
from sp.message import Message
from sp.pipe import Pipe
from sp.refusal import RefusalKind
from sp.sockets.base import Socket
from sp.sockets.bus import Bus0
from sp.sockets.pair import Pair0, Pair1
from sp.sockets.pipeline import Pull0, Push0
from sp.sockets.pubsub import Pub0, Sub0, Sub0Context
from sp.sockets.reqrep import Rep0, Rep0Context, Req0, Req0Context, Request, RequestStream
from sp.sockets.survey import Respondent0, Respondent0Context, Survey, Surveyor0, Surveyor0Context
from sp.statistics import DialerStatistics, DropReason, ListenerStatistics, PipeStatistics, SocketStatistics
from sp.tls.config import TLSClientConfig, TLSServerConfig
from sp.tls.info import TLSInfo
from sp.transports.proxy_protocol import ProxiedTLSInfo, ProxyInfo

__version__ = "0.1.0"

__all__ = [
    "AddressError",
    "AuthenticationError",
    "Bus0",
    "DialError",
    "Dialer",
    "DialerStatistics",
    "DropReason",
    "Error",
    "Event",
    "EventKind",
    "EventStream",
    "GreetingError",
    "HTTPHeaders",
    "HTTPInfo",
    "HTTPResponse",
    "Listener",
    "ListenerStatistics",
    "MalformedMessage",
    "Message",
    "MessageTooLarge",
    "Pair0",
    "Pair1",
    "PeerClosed",
    "PeerError",
    "PeerSilent",
    "PeerStalled",
    "Pipe",
    "PipeRefused",
    "PipeStatistics",
    "ProxiedTLSInfo",
    "ProxyInfo",
    "Pub0",
    "Pull0",
    "Push0",
    "RefusalKind",
    "Rep0",
    "Rep0Context",
    "Req0",
    "Req0Context",
    "Request",
    "RequestLost",
    "RequestReplaced",
    "RequestStream",
    "Respondent0",
    "Respondent0Context",
    "Socket",
    "SocketStatistics",
    "StateError",
    "Sub0",
    "Sub0Context",
    "Survey",
    "Surveyor0",
    "Surveyor0Context",
    "TLSClientConfig",
    "TLSConfigError",
    "TLSError",
    "TLSInfo",
    "TLSServerConfig",
    "UpgradeRefused",
    "WSClientConfig",
    "WSServerConfig",
    "WrongProtocol",
    "device",
    "raw",
]
