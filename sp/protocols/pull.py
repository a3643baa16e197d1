"""PULL: receives fairly from all PUSH peers.

A full inbox holds the pipes back.  Each of them then delivers in turn, so no peer can shut out
another.  Nothing is dropped.
"""

from __future__ import annotations

from sp.protocol_numbers import PULL, PUSH
from sp.protocols.inbox import InboxEngine


class PullEngine(InboxEngine):
    """The state behind a PULL socket, raw or not."""

    number = PULL
    peer_number = PUSH
    takes_batches = True
