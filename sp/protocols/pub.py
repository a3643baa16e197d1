"""PUB: each message goes to all subscribers; a subscriber that does not keep up misses some.

Subscribers filter for themselves, so only bodies are on the wire and nothing comes back.  A peer
that sends something loses its pipe, as in nng; mangos ignores the message, and nanomsg aborts its
process.
"""

from __future__ import annotations

from sp.errors import MalformedMessage
from sp.message import Message
from sp.options import DropPolicy
from sp.protocol_numbers import PUB, SUB
from sp.protocols.engine import Engine, EnginePipe, send_each
from sp.statistics import DropReason


class PubEngine(Engine):
    """The state behind a PUB socket.

    Full outboxes drop their oldest message (as in nng) or the new one (as in nanomsg and mangos).
    """

    number = PUB
    peer_number = SUB
    fans_out = True

    def __init__(self, outbox_drops: DropPolicy) -> None:
        super().__init__()
        self._drops_oldest = outbox_drops == "oldest"
        self._pipes: dict[EnginePipe, None] = {}

    def pipe_attached(self, pipe: EnginePipe) -> None:
        self._pipes[pipe] = None

    def pipe_detached(self, pipe: EnginePipe) -> None:
        self._pipes.pop(pipe, None)

    def message_received(self, pipe: EnginePipe, message: Message) -> bool:
        pipe.hang_up(MalformedMessage("a SUB sent a message to a PUB"))
        return True

    def send(self, message: Message) -> bool:
        """Offer *message* to all subscribers.  Always True."""
        if not self._pipes:
            self.dropped[DropReason.NO_PEER] += 1
        for pipe in self._pipes:
            if not pipe.offer(message):
                self._drop(pipe, message)
        return True

    def send_batch(self, messages: list[Message]) -> int:
        return send_each(self.send, messages)

    def _drop(self, pipe: EnginePipe, message: Message) -> None:
        """Drop the oldest messages of *pipe* to make room for *message*, or drop *message*."""
        self.dropped[DropReason.PEER_FULL] += 1
        if not self._drops_oldest:
            return
        while pipe.discard_oldest():
            if pipe.offer(message):
                return
            self.dropped[DropReason.PEER_FULL] += 1
