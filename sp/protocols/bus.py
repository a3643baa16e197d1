"""BUS: a message goes to every directly connected peer, best effort, and is not forwarded.

On the wire a BUS message is its body alone.  Both directions drop: a peer that does not read misses messages (the newest, as in
nanomsg, nng and mangos), and so does an application that does not receive, so that neither can stall the mesh (nng; mangos and
nanomsg push back instead).

A raw BUS puts the id of the pipe into the header of what it receives, 4 bytes as in nng and mangos (nanomsg: 8), and sends to everybody but
the pipe in the header; without a header, to everybody.  The header is never on the wire, so that nothing ends a message that devices
pass around in a ring.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from sp.message import Message
from sp.protocol_numbers import BUS
from sp.protocols.backtrace import WORD, word_of
from sp.protocols.engine import HOLD_TIME, EnginePipe, send_each
from sp.protocols.inbox import InboxEngine

if TYPE_CHECKING:
    from sp.options import DropPolicy, SocketOptions


class BusEngine(InboxEngine):
    """The state behind a BUS socket."""

    number = BUS
    peer_number = BUS
    fans_out = True
    hold_time = HOLD_TIME

    def __init__(self, options: SocketOptions, inbox_drops: DropPolicy) -> None:
        super().__init__(options, inbox_drops)
        self._pipes: dict[EnginePipe, None] = {}

    def pipe_attached(self, pipe: EnginePipe) -> None:
        self._pipes[pipe] = None

    def pipe_detached(self, pipe: EnginePipe) -> None:
        self._pipes.pop(pipe, None)
        super().pipe_detached(pipe)

    def send(self, message: Message) -> bool:
        """Offer *message* to every peer.  Always taken: a peer that is full misses it."""
        self.offer_to_all(self._pipes, message)
        return True

    def send_batch(self, messages: list[Message]) -> int:
        return send_each(self.send, messages)


class RawBusEngine(BusEngine):
    """The state behind a raw BUS socket."""

    takes_headers = True

    def __init__(self, options: SocketOptions, inbox_drops: DropPolicy) -> None:
        super().__init__(options, inbox_drops)
        self._words: dict[EnginePipe, bytes] = {}

    def pipe_attached(self, pipe: EnginePipe) -> None:
        super().pipe_attached(pipe)
        self._words[pipe] = word_of(pipe)

    def pipe_detached(self, pipe: EnginePipe) -> None:
        super().pipe_detached(pipe)
        self._words.pop(pipe, None)

    def message_received(self, pipe: EnginePipe, message: Message) -> bool:
        return super().message_received(pipe, Message(message.body, word_of(pipe), message.pipe))

    def check_message(self, message: Message) -> None:
        if len(message.header) not in (0, WORD):
            raise ValueError(f"the header must be empty or the id of a pipe in 4 bytes, not {message.header[:64].hex()}")

    def send(self, message: Message) -> bool:
        """Offer *message* to every peer but the one that its header names."""
        self.check_message(message)
        header = message.header
        self.offer_to_all([pipe for pipe, word in self._words.items() if word != header], Message(message.body))
        return True
