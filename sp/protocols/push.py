"""PUSH: each message goes to one peer, the next in turn that has room.

While no peer has room, the message waits.

A PUSH message on the wire is just its body, and nothing comes back.  A message from a peer is
dropped and counted. nanomsg, nng and mangos drop it too.  Messages that a pipe has not written when
it ends are lost and counted.  They are not sent again, because the peer may have got them.
"""

from __future__ import annotations

from sp.message import Message
from sp.protocol_numbers import PULL, PUSH
from sp.protocols.balancer import Balancer
from sp.protocols.engine import Engine, EnginePipe
from sp.statistics import DropReason


class PushEngine(Engine):
    """The state behind a PUSH socket, raw or not."""

    number = PUSH
    peer_number = PULL
    balances = True

    def __init__(self) -> None:
        super().__init__()
        self._balancer = Balancer()

    def pipe_attached(self, pipe: EnginePipe) -> None:
        self._balancer.add(pipe)

    def pipe_detached(self, pipe: EnginePipe) -> None:
        self._balancer.remove(pipe)

    def pipe_has_room(self, pipe: EnginePipe) -> None:
        self._balancer.has_room(pipe)

    def message_received(self, pipe: EnginePipe, message: Message) -> bool:
        self.dropped[DropReason.UNEXPECTED] += 1
        return True

    def send(self, message: Message) -> bool:
        """Offer *message* to the peers in turn.  False: none has room."""
        return self._balancer.offer(message) is not None

    def send_batch(self, messages: list[Message]) -> int:
        """Send *messages* in order until one is refused; return how many were taken."""
        return self._balancer.offer_many(messages)
