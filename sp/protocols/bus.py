"""BUS: each message goes to all directly connected peers, best effort, and is not forwarded.

A BUS message on the wire is just its body.  Both directions drop messages, so that no peer can
stall the others.  A peer that does not read misses the newest messages, as in nanomsg, nng and
mangos.  An application that does not receive misses messages as in nng; mangos and nanomsg hold the
peers back instead.

A raw BUS puts the id of the pipe into the header of each message that it receives: 4 bytes as in
nng and mangos (nanomsg: 8).  It sends a message to all pipes but the one in its header; without a
header, to all.  The header is never on the wire, so a message goes round for ever in a ring of
devices.
"""

from __future__ import annotations

from sp.message import Message
from sp.options import DropPolicy, SocketOptions
from sp.protocol_numbers import BUS
from sp.protocols.backtrace import WORD, word_of
from sp.protocols.engine import HOLD_TIME, EnginePipe, send_each
from sp.protocols.inbox import InboxEngine


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
        """Offer *message* to all peers.  Always True: a peer without room misses it."""
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
        """Offer *message* to all peers but the one that its header names.  Always True."""
        self.check_message(message)
        header = message.header
        self.offer_to_all([pipe for pipe, word in self._words.items() if word != header], Message(message.body))
        return True
