"""For tests of engines: a pipe without a network."""

from __future__ import annotations

import itertools

from sp.errors import PeerError
from sp.message import Message

_ids = itertools.count(1)


class FakePipe:
    """A pipe that keeps the messages that an engine offers, as long as it has *room*."""

    def __init__(self, room: int | None = None, priority: int = 8) -> None:
        self.id = next(_ids)
        self.priority = priority
        self.room = room
        """How many messages it still takes.  None: any number."""
        self.taken: list[Message] = []
        self.resumed = 0
        self.broken = False
        self.progress = 0
        self.error: PeerError | None = None
        """The error with which the engine ended the pipe."""

    @property
    def handle(self) -> object:
        """What ``message.pipe`` is for messages of this pipe: itself."""
        return self

    def offer(self, message: Message) -> bool:
        """Keep *message*.  False: no room."""
        if self.room == 0:
            return False
        if self.room is not None:
            self.room -= 1
        self.taken.append(message)
        return True

    def offer_many(self, messages: list[Message]) -> int:
        """Keep as many of *messages* as there is room for; return how many."""
        for taken, message in enumerate(messages):
            if not self.offer(message):
                return taken
        return len(messages)

    def discard_oldest(self) -> bool:
        """Drop the oldest message, which makes room for another.  False: there is none."""
        if not self.taken:
            return False
        del self.taken[0]
        if self.room is not None:
            self.room += 1
        return True

    def resume(self) -> None:
        """Count the calls: each one asks for more messages."""
        self.resumed += 1

    def hang_up(self, error: PeerError) -> None:
        """Keep *error*."""
        self.error = error

    @property
    def bodies(self) -> list[bytes]:
        """The bodies of the messages that the pipe took."""
        return [message.body for message in self.taken]

    def __repr__(self) -> str:
        return f"<FakePipe {self.id} taken={len(self.taken)}>"
