"""PAIR0: one peer, and messages both ways.

A PAIR0 message on the wire is just its body.  The first peer stays.  A listener does not greet a
second peer, which therefore never has a pipe.  (nanomsg, nng and mangos let it in, drop what it
sends, and hang up.)  Both directions wait for room; nothing is dropped.
"""

from __future__ import annotations

from sp.errors import PipeRefused
from sp.message import Message
from sp.options import SocketOptions
from sp.protocol_numbers import PAIR0
from sp.protocols.engine import EnginePipe
from sp.protocols.inbox import InboxEngine
from sp.refusal import RefusalKind


class Pair0Engine(InboxEngine):
    """The state behind a PAIR0 socket, raw or not."""

    number = PAIR0
    peer_number = PAIR0
    takes_batches = True
    single_peer = True

    def __init__(self, options: SocketOptions) -> None:
        super().__init__(options)
        self._pipe: EnginePipe | None = None

    def check_can_attach(self) -> None:
        if self._pipe is not None:
            raise PipeRefused("refused: this PAIR already has a peer", kind=RefusalKind.NO_ROOM)

    def pipe_attached(self, pipe: EnginePipe) -> None:
        self.check_can_attach()
        self._pipe = pipe

    def pipe_detached(self, pipe: EnginePipe) -> None:
        if pipe is self._pipe:
            self._pipe = None
        super().pipe_detached(pipe)

    def send(self, message: Message) -> bool:
        """Offer *message* to the peer.  False: the peer has no room, or there is no peer."""
        return self._pipe is not None and self._pipe.offer(message)

    def send_batch(self, messages: list[Message]) -> int:
        """Send *messages* in order until one is refused; return how many were taken."""
        return 0 if self._pipe is None else self._pipe.offer_many(messages)
