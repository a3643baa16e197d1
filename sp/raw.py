"""Raw sockets: the protocols without matching, timing and filtering.  Devices need them.

A raw socket receives messages with their header by ``receive_message``, and sends messages with
their header by ``send_message``.  What a protocol cannot do raw is absent from its class here: no
contexts, requests, surveys or topics, and no ``send`` where a message needs a header.

What the headers are:

============================  ==============================================================
``Req0``, ``Surveyor0``       The backtrace, as it is on the wire.
``Rep0``, ``Respondent0``     The id of the pipe (4 bytes), then the backtrace.  A message is
                              sent by the pipe whose id comes first, without that id.
``Bus0``                      The id of the pipe (4 bytes); never on the wire.
``Pair1``                     ``00 00 00`` and the number of hops.
the others                    Empty.
============================  ==============================================================
"""

from __future__ import annotations

from typing import NamedTuple, Unpack, cast

import trio

from sp.checks import check_choice, check_ttl
from sp.core.core import Core
from sp.core.receivers import Receivers
from sp.interrupts import uninterrupted
from sp.options import DROP_POLICIES, DropPolicy, SocketKeywords
from sp.protocols.bus import RawBusEngine
from sp.protocols.engine import RawReceiver, Sender
from sp.protocols.pair0 import Pair0Engine
from sp.protocols.pair1 import RawPair1Engine
from sp.protocols.pub import PubEngine
from sp.protocols.pull import PullEngine
from sp.protocols.push import PushEngine
from sp.protocols.rep import RawRepEngine
from sp.protocols.req import RawReqEngine
from sp.protocols.respondent import RawRespondentEngine
from sp.protocols.sub import SubEngine
from sp.protocols.surveyor import RawSurveyorEngine
from sp.sockets.base import Socket, options_from
from sp.sockets.verbs import ReceiveManyVerbs, ReceiveVerbs, SendManyVerbs, SendMessageVerbs

__all__ = [
    "Bus0",
    "Pair0",
    "Pair1",
    "Pub0",
    "Pull0",
    "Push0",
    "RawSocket",
    "Rep0",
    "Req0",
    "Respondent0",
    "Sub0",
    "Surveyor0",
]


class Wiring(NamedTuple):
    """What a device works with, below the verbs.

    If the protocol cannot send or cannot receive, that half is None.
    """

    core: Core
    receiver: RawReceiver | None
    receivers: Receivers | None
    sender: Sender | None


@uninterrupted
class RawSocket(Socket):
    """The base of all raw sockets; use ``sp.raw.Req0`` and so on."""

    _module = "sp.raw."

    def _wiring(self) -> Wiring:
        receiver = cast("RawReceiver | None", getattr(self, "_receiver", None))
        return Wiring(self._core, receiver, getattr(self, "_receivers", None), getattr(self, "_sender", None))


def wiring_of(socket: RawSocket) -> Wiring:
    """Return what a device works with.  For the library."""
    return socket._wiring()  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]


@uninterrupted
class Req0(RawSocket, SendMessageVerbs, ReceiveVerbs):
    """Sends each request, which has its backtrace, to one peer in turn; receives all replies.

    ``send_message`` waits while no peer has room.  Nothing is sent again.
    """

    def __init__(self, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options)
        engine = RawReqEngine(keywords)
        super().__init__(engine, keywords)
        self._sender = self._receiver = engine
        self._receivers = self._core.receivers(engine.mailbox)


@uninterrupted
class Rep0(RawSocket, SendMessageVerbs, ReceiveVerbs):
    """Receives requests, and sends replies by the pipe whose id is first in their header.

    ``send_message`` never waits: a reply to a pipe that has ended or has no room is dropped and
    counted.  *ttl* (1 to 255, default 8) as with ``sp.Rep0``.
    """

    def __init__(self, *, ttl: int = 8, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "ttl")
        engine = RawRepEngine(keywords, check_ttl(ttl))
        super().__init__(engine, keywords)
        self._sender = self._receiver = engine
        self._receivers = self._core.receivers(engine.mailbox)


@uninterrupted
class Surveyor0(RawSocket, SendMessageVerbs, ReceiveVerbs):
    """Sends surveys, which have their backtrace, to all peers; receives all answers.

    There is no deadline.  ``send_message`` never waits: a peer without room misses the survey,
    which is counted.
    """

    def __init__(self, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options)
        engine = RawSurveyorEngine(keywords)
        super().__init__(engine, keywords)
        self._sender = self._receiver = engine
        self._receivers = self._core.receivers(engine.mailbox)


@uninterrupted
class Respondent0(RawSocket, SendMessageVerbs, ReceiveVerbs):
    """Receives surveys, and sends answers by the pipe whose id is first in their header.

    ``send_message`` never waits: an answer to a pipe that has ended or has no room is dropped and
    counted.  *ttl* (1 to 255, default 8) as with ``sp.Respondent0``.
    """

    def __init__(self, *, ttl: int = 8, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "ttl")
        engine = RawRespondentEngine(keywords, check_ttl(ttl))
        super().__init__(engine, keywords)
        self._sender = self._receiver = engine
        self._receivers = self._core.receivers(engine.mailbox)


@uninterrupted
class Push0(RawSocket, SendManyVerbs):
    """Does what ``sp.Push0`` does, for a device."""

    def __init__(self, **options: Unpack[SocketKeywords]) -> None:
        engine = PushEngine()
        super().__init__(engine, options_from(options))
        self._sender = self._batch_sender = engine


@uninterrupted
class Pull0(RawSocket, ReceiveManyVerbs):
    """Does what ``sp.Pull0`` does, for a device."""

    def __init__(self, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options)
        engine = PullEngine(keywords)
        super().__init__(engine, keywords)
        self._receiver = self._batch_receiver = engine
        self._receivers = self._core.receivers(engine.mailbox)


@uninterrupted
class Pub0(RawSocket, SendManyVerbs):
    """Does what ``sp.Pub0`` does, *outbox_drops* included, for a device."""

    def __init__(self, *, outbox_drops: DropPolicy = "oldest", **options: Unpack[SocketKeywords]) -> None:
        engine = PubEngine(check_choice("outbox_drops", outbox_drops, DROP_POLICIES))
        super().__init__(engine, options_from(options, "outbox_drops"))
        self._sender = self._batch_sender = engine


@uninterrupted
class Sub0(RawSocket, ReceiveManyVerbs):
    """Receives all messages of its PUB peers: it has no topics.

    *inbox_drops* as with ``sp.Sub0``.
    """

    def __init__(self, *, inbox_drops: DropPolicy = "oldest", **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "inbox_drops")
        engine = SubEngine(keywords, check_choice("inbox_drops", inbox_drops, DROP_POLICIES))
        super().__init__(engine, keywords)
        self._receiver = self._batch_receiver = conversation = engine.open_context()
        self._receivers = self._core.receivers(conversation.mailbox)
        conversation.subscribe(b"")


@uninterrupted
class Bus0(RawSocket, SendManyVerbs, ReceiveManyVerbs, trio.abc.Channel[bytes]):
    """Receives from all peers, and sends to all pipes except the one that the header names.

    The header of a received message is the id of its pipe.  A message without a header goes to all
    pipes.  *inbox_drops* as with ``sp.Bus0``.
    """

    def __init__(self, *, inbox_drops: DropPolicy = "newest", **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "inbox_drops")
        engine = RawBusEngine(keywords, check_choice("inbox_drops", inbox_drops, DROP_POLICIES))
        super().__init__(engine, keywords)
        self._sender = self._batch_sender = engine
        self._receiver = self._batch_receiver = engine
        self._receivers = self._core.receivers(engine.mailbox)


@uninterrupted
class Pair0(RawSocket, SendManyVerbs, ReceiveManyVerbs, trio.abc.Channel[bytes]):
    """Does what ``sp.Pair0`` does, for a device."""

    def __init__(self, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options)
        engine = Pair0Engine(keywords)
        super().__init__(engine, keywords)
        self._sender = self._batch_sender = engine
        self._receiver = self._batch_receiver = engine
        self._receivers = self._core.receivers(engine.mailbox)


@uninterrupted
class Pair1(RawSocket, SendMessageVerbs, ReceiveManyVerbs):
    """Talks with one peer.  The header has the hops of a message; each one is sent with one more.

    A message with 255 hops is dropped and counted.  *ttl* (1 to 255, default 8) as with
    ``sp.Pair1``.
    """

    def __init__(self, *, ttl: int = 8, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "ttl")
        engine = RawPair1Engine(keywords, check_ttl(ttl))
        super().__init__(engine, keywords)
        self._sender = engine
        self._receiver = self._batch_receiver = engine
        self._receivers = self._core.receivers(engine.mailbox)
