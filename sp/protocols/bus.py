"""BUS: a message goes to every directly connected peer, best effort, and is not forwarded.

On the wire a BUS message is its body alone.  Both directions drop: a peer that does not read misses messages (the newest, as in
nanomsg, nng and mangos), and so does an application that does not receive, so that neither can stall the mesh (nng; mangos and
nanomsg push back instead).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sp.engine import PATIENCE, Engine, EnginePipe, Inbox, Mailbox
from sp.protocol_numbers import BUS

if TYPE_CHECKING:
    from sp.message import Message
    from sp.options import DropPolicy, SocketOptions


class BusEngine(Engine):
    """The state behind a BUS socket."""

    number = BUS
    peer_number = BUS
    patience = PATIENCE

    def __init__(self, options: SocketOptions, inbox_drops: DropPolicy) -> None:
        super().__init__()
        self._inbox = Inbox(options, inbox_drops)
        self._pipes: dict[EnginePipe, None] = {}

    @property
    def mailbox(self) -> Mailbox:
        return self._inbox

    def pipe_attached(self, pipe: EnginePipe) -> None:
        self._pipes[pipe] = None

    def pipe_detached(self, pipe: EnginePipe) -> None:
        self._pipes.pop(pipe, None)
        self._inbox.forget(pipe)

    def message_received(self, pipe: EnginePipe, message: Message) -> bool:
        return self._inbox.offer(pipe, message)

    def message_overdue(self, pipe: EnginePipe, message: Message) -> None:
        self._inbox.lose()
        self._inbox.offer(pipe, message)

    def send(self, message: Message) -> bool:
        """Offer *message* to every peer.  Always taken: a peer that is full misses it."""
        if not self._pipes:
            self.dropped["no peer"] += 1
        for pipe in self._pipes:
            if not pipe.offer(message):
                self.dropped["peer full"] += 1
        return True

    def receive(self) -> Message | None:
        return self._inbox.take()

    def receive_more(self, limit: int | None) -> list[bytes]:
        return self._inbox.take_bodies(limit)

    def queued(self) -> int:
        return len(self._inbox)

    def inbox_dropped(self) -> int:
        return self._inbox.dropped
