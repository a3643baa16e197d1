"""When a call that did not block must give way to other tasks.

A trio schedule point costs ten times what queueing a message does, and one after each message would let the writer run
before a batch can form.  So every public call is a cancel point, but one that did not block is a schedule point only every 16th time:
one way over tcp that is 620,000 messages/s against 80,000.  No lone caller can hold the loop for longer than 16 calls.
"""

from __future__ import annotations

from typing import Final

EVERY: Final = 16


class CheckpointBudget:
    """Counts the calls of one socket that did not block."""

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = EVERY
        """Calls until the next schedule point."""

    def due(self) -> bool:
        """Count one call; True when this one must be a schedule point."""
        self.left -= 1
        if self.left:
            return False
        self.left = EVERY
        return True
