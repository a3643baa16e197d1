"""Writer: the one task of a socket that writes to its pipes.

A message to a hundred peers wakes this one task, not a hundred.
"""

from __future__ import annotations

from typing import Final

import trio

from sp.core.outbox import Outbox
from sp.interrupts import uninterrupted
from sp.transports.contract import SHORTEST_KEEPALIVE

_WRITES_A_TURN: Final = 64
"""After this many outboxes, other tasks get their turn."""
_CHECKS: Final = 8
"""How often a pipe with data in flight is checked within the keepalive time."""


@uninterrupted
class Writer:
    """Writes what outboxes have gathered, and watches whether the peers acknowledge it."""

    def __init__(self, tcp_keepalive: float | None) -> None:
        self._due: list[Outbox] = []
        self._task: trio.lowlevel.Task | None = None  # while it waits for something to write
        # Outboxes with data in flight, or written to since the last check.
        self._watched: dict[Outbox, None] = {}
        self._check_every = max(SHORTEST_KEEPALIVE, tcp_keepalive or 0) / _CHECKS
        self._until_check = trio.CancelScope()

    def write_soon(self, outbox: Outbox) -> None:
        """Write *outbox* at the next turn."""
        self._due.append(outbox)
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def watch(self, outbox: Outbox) -> None:
        """Check *outbox* from time to time, until ``outbox.check_silence`` returns False."""
        self._watched[outbox] = None
        if len(self._watched) == 1:
            self._plan_check()

    def forget(self, outbox: Outbox) -> None:
        """Stop watching *outbox*: its pipe has ended."""
        self._watched.pop(outbox, None)

    async def run(self) -> None:
        """Write until cancelled."""
        while True:
            with trio.CancelScope() as self._until_check:
                self._plan_check()
                await self._write_due()
            self._check()

    def _plan_check(self) -> None:
        if self._watched:
            self._until_check.deadline = trio.current_time() + self._check_every

    def _check(self) -> None:
        now = trio.current_time()
        self._watched = {outbox: None for outbox in list(self._watched) if outbox.check_silence(now)}

    async def _write_due(self) -> None:
        def abort(_: object) -> trio.lowlevel.Abort:
            self._task = None
            return trio.lowlevel.Abort.SUCCEEDED

        while True:
            if not self._due:
                self._task = trio.lowlevel.current_task()
                await trio.lowlevel.wait_task_rescheduled(abort)
            due, self._due = self._due, []
            for count, outbox in enumerate(due, 1):
                outbox.write_due()
                if count % _WRITES_A_TURN == 0:
                    # The deadline for the next check must not interrupt this: the rest would be
                    # forgotten.
                    with trio.CancelScope(shield=True):
                        await trio.lowlevel.checkpoint()
