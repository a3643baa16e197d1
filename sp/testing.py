"""Helpers for tests, ours and yours: an engine's pipe without a network."""

from __future__ import annotations

import itertools

from sp.errors import PeerError
from sp.message import Message

_ids = itertools.count(1)


class FakePipe:
    """A pipe for an engine: it keeps what it is offered, as many messages as it has *room* for."""

    def __init__(self, room: int | None = None, priority: int = 8) -> None:
        self.id = next(_ids)
        self.priority = priority
        self.room = room
        """Messages that it still takes; None: any number."""
        self.taken: list[Message] = []
        self.resumed = 0
        self.broken = False
        self.progress = 0
        self.error: PeerError | None = None
        """Why the engine hung up."""

    @property
    def handle(self) -> object:
        """What ``message.pipe`` is for messages of this pipe: itself."""
        return self

    def offer(self, message: Message) -> bool:
        """Keep *message*; False: no room."""
        if self.room == 0:
            return False
        if self.room is not None:
            self.room -= 1
        self.taken.append(message)
        return True

    def offer_many(self, messages: list[Message]) -> int:
        """Keep the first of *messages*; return how many there was room for."""
        for taken, message in enumerate(messages):
            if not self.offer(message):
                return taken
        return len(messages)

    def discard_oldest(self) -> bool:
        """Forget the oldest message, which makes room for one; False: there is none."""
        if not self.taken:
            return False
        del self.taken[0]
        if self.room is not None:
            self.room += 1
        return True

    def resume(self) -> None:
        """Count that the engine asked for more."""
        self.resumed += 1

    def hang_up(self, error: PeerError) -> None:
        """Keep why."""
        self.error = error

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of what was taken."""
        return [message.body for message in self.taken]

    def __repr__(self) -> str:
        return f"<FakePipe {self.id} taken={len(self.taken)}>"
