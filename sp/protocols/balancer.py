"""Picks a pipe for each message: the next one in turn that has room.

Pipes of the best priority share the messages.  Those of the next priority get some only while none
of the best has room, as in nanomsg; nng and mangos have no priorities.  A pipe without room leaves
the round.  When it has room again, it joins the end of the round, as in nng.
"""

from __future__ import annotations

from collections import deque

from sp.message import Message
from sp.protocols.engine import EnginePipe


class Balancer:
    """The pipes among which a protocol picks one for each message."""

    __slots__ = ("_best", "_full", "_rounds")

    def __init__(self) -> None:
        # The pipes with room by priority, the best first; in each, the pipe whose turn is next
        # comes first.
        self._rounds: dict[int, deque[EnginePipe]] = {}
        self._best: deque[EnginePipe] = deque()  # the first round that has a pipe
        self._full: set[EnginePipe] = set()

    def add(self, pipe: EnginePipe) -> None:
        """Add *pipe* after all others of its priority."""
        priority = pipe.priority
        if priority not in self._rounds:
            self._rounds[priority] = deque()
            self._rounds = dict(sorted(self._rounds.items()))
        self._rounds[priority].append(pipe)
        self._best = self._find_best()

    def remove(self, pipe: EnginePipe) -> None:
        """Remove *pipe*."""
        self._full.discard(pipe)
        ready = self._rounds.get(pipe.priority)
        if ready is not None and pipe in ready:
            ready.remove(pipe)
            self._best = self._find_best()

    def has_room(self, pipe: EnginePipe) -> None:
        """*pipe*, which was full, has room again."""
        if pipe in self._full:
            self._full.remove(pipe)
            self._rounds[pipe.priority].append(pipe)
            self._best = self._find_best()

    def offer(self, message: Message) -> EnginePipe | None:
        """Offer *message* to the pipes in turn; return the pipe that took it.

        None: no pipe has room.
        """
        ready = self._best
        while ready:
            pipe = ready[0]
            if pipe.offer(message):
                ready.rotate(-1)
                return pipe
            self._full.add(ready.popleft())
            if not ready:
                ready = self._best = self._find_best()
        return None

    def offer_many(self, messages: list[Message]) -> int:
        """Offer *messages* in order until one is refused; return how many were taken."""
        taken = 0
        while taken < len(messages):
            if len(self._best) == 1:  # no other pipe has a turn in between
                taken += self._best[0].offer_many(messages[taken:])
            if taken == len(messages) or self.offer(messages[taken]) is None:
                break
            taken += 1
        return taken

    def _find_best(self) -> deque[EnginePipe]:
        """Return the round of the best priority that has room; an empty one if no pipe has."""
        none: deque[EnginePipe] = deque()
        return next(filter(None, self._rounds.values()), none)
