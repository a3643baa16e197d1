"""BUS: a mesh of peers that hear each other."""

from __future__ import annotations

from typing import Unpack

import trio

from sp.checks import check_choice
from sp.interrupts import uninterrupted
from sp.options import DROP_POLICIES, DropPolicy, SocketKeywords
from sp.protocols.bus import BusEngine
from sp.sockets.base import Socket, options_from
from sp.sockets.verbs import ReceiveManyVerbs, SendManyVerbs


@uninterrupted
class Bus0(Socket, SendManyVerbs, ReceiveManyVerbs, trio.abc.Channel[bytes]):
    """Sends each message to all directly connected peers, and receives theirs.  Forwards nothing.

    *inbox_drops* (``"oldest"`` or ``"newest"``, default ``"newest"``): which message to drop when
    the inbox stays full, the oldest in it or the new one.

    ``send`` never waits: a peer that does not keep up misses the newest messages.  When the
    application falls behind, peers are slowed down for 0.1 s; then messages are dropped.  All drops
    are counted.  If ``receive`` is cancelled, no message is lost.
    """

    def __init__(self, *, inbox_drops: DropPolicy = "newest", **options: Unpack[SocketKeywords]) -> None:
        keywords = options_from(options, "inbox_drops")
        engine = BusEngine(keywords, check_choice("inbox_drops", inbox_drops, DROP_POLICIES))
        super().__init__(engine, keywords)
        self._sender = self._batch_sender = engine
        self._receiver = self._batch_receiver = engine
        self._receivers = self._core.receivers(engine.mailbox)
