"""PAIR: two sockets that talk with each other."""

from __future__ import annotations

from typing import Unpack

import trio

from sp.checks import check_flag, check_ttl
from sp.interrupts import uninterrupted
from sp.message import Message
from sp.options import SocketKeywords
from sp.protocols.engine import Sender
from sp.protocols.pair0 import Pair0Engine
from sp.protocols.pair1 import Pair1Engine, PolyPair1Engine
from sp.sockets.base import Socket, options_from
from sp.sockets.verbs import ReceiveManyVerbs, SendManyVerbs


@uninterrupted
class Pair0(Socket, SendManyVerbs, ReceiveManyVerbs, trio.abc.Channel[bytes]):
    """Talks with exactly one peer, both ways.

    The first peer stays until it leaves.  Another peer is refused, with a ``REFUSED`` event, and
    may dial again later.  ``send`` waits while the peer has no room, or while there is no peer.  If
    it is cancelled, the message was not sent.  When the application falls behind, the peer is
    slowed down; nothing is dropped.  If ``receive`` is cancelled, no message is lost.
    """

    def __init__(self, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options)
        engine = Pair0Engine(keywords)
        super().__init__(engine, keywords)
        self._sender = self._batch_sender = engine
        self._receiver = self._batch_receiver = engine
        self._receivers = self._core.receivers(engine.mailbox)


@uninterrupted
class Pair1(Socket, SendManyVerbs, ReceiveManyVerbs, trio.abc.Channel[bytes]):
    """Talks with one peer like :class:`Pair0` and through devices, or with several peers.

    *ttl* (1 to 255, default 8): a message that came through that many devices or more is dropped
    and counted.  *poly* (default False): True accepts any number of peers.

    With *poly*, ``receive_message`` tells which ``pipe`` a message came by, and
    ``send_message(sp.Message(body, pipe=pipe))`` sends to one peer.  It waits until that peer has
    room; a message for a peer that has left is dropped and counted.  ``send`` sends to the peer
    that has been there longest.
    """

    def __init__(self, *, ttl: int = 8, poly: bool = False, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "ttl", "poly")
        kind = PolyPair1Engine if check_flag("poly", poly) else Pair1Engine
        engine = kind(keywords, check_ttl(ttl))
        super().__init__(engine, keywords)
        self._sender = self._batch_sender = engine
        self._receiver = self._batch_receiver = engine
        self._receivers = self._core.receivers(engine.mailbox)
        self._poly = engine if isinstance(engine, PolyPair1Engine) else None

    def _sender_for(self, message: Message) -> Sender:
        if self._poly is None or message.pipe is None:
            return self._sender
        return self._poly.lane_to(self._core.task_of(message.pipe))
