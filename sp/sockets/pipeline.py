"""PUSH and PULL: work handed out and collected."""

from __future__ import annotations

from typing import Unpack

from sp.interrupts import uninterrupted
from sp.options import SocketKeywords
from sp.protocols.pull import PullEngine
from sp.protocols.push import PushEngine
from sp.sockets.base import Socket, options_from
from sp.sockets.verbs import ReceiveManyVerbs, SendManyVerbs


@uninterrupted
class Push0(Socket, SendManyVerbs):
    """Hands each message to one of its PULL peers, in turn among those that have room.

    A slow worker delays the sender only when all workers are full: then ``send`` waits.  If it is
    cancelled, the message was not sent.  Messages that a pipe has accepted but not written when it
    ends are lost and counted.  ``dial`` and ``listen`` take a priority: peers with a better one get
    messages first.
    """

    def __init__(self, **options: Unpack[SocketKeywords]) -> None:
        engine = PushEngine()
        super().__init__(engine, options_from(options))
        self._sender = self._batch_sender = engine


@uninterrupted
class Pull0(Socket, ReceiveManyVerbs):
    """Receives fairly from all PUSH peers.

    When the application falls behind, peers are slowed down; nothing is dropped.  ``receive`` waits
    for a message.  If it is cancelled, no message is lost.
    """

    def __init__(self, **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options)
        engine = PullEngine(keywords)
        super().__init__(engine, keywords)
        self._receiver = self._batch_receiver = engine
        self._receivers = self._core.receivers(engine.mailbox)
