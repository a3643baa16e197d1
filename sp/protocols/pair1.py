"""PAIR1: one peer, or with *poly* several, and messages both ways, even through devices.

The header is a word of three zero bytes and the number of hops.  We send 1, as nng does; mangos
sends 0 and adds one when it receives, which gives the same result.  Up to ttl hops are accepted.  A
message with more is dropped and counted, as in nng and mangos.  A message without a correct header
ends the pipe, as in nng (mangos drops the message).  As in PAIR0, the first peer stays, and nothing
else is dropped.

*poly* is an invention of nng: a message goes to the pipe that it names, or else to the peer that
has been there longest.  A message for a full peer waits, without delaying messages for other peers.
(nng drops it.)  A message for a peer that has left is dropped and counted.
"""

from __future__ import annotations

from functools import partial
from typing import Final

from sp.message import Message
from sp.options import SocketOptions
from sp.protocol_numbers import PAIR1
from sp.protocols.engine import EnginePipe, Sender, send_each
from sp.protocols.pair0 import Pair0Engine
from sp.statistics import DropReason

_WORD: Final = 4
_HOPS: Final = [bytes([0, 0, 0, hops]) for hops in range(256)]


def hops_end(data: bytes, start: int, stop: int) -> int:
    """Return where the body begins: after the word with the hops.  -1: there is no such word."""
    return start + _WORD if stop - start >= _WORD and data.startswith(b"\0\0\0", start) else -1


class Pair1Engine(Pair0Engine):
    """The state behind a PAIR1 socket."""

    number = PAIR1
    peer_number = PAIR1
    find_body = staticmethod(hops_end)

    def __init__(self, options: SocketOptions, ttl: int) -> None:
        super().__init__(options)
        self._ttl = ttl

    def message_received(self, pipe: EnginePipe, message: Message) -> bool:
        if message.header[3] > self._ttl:
            self.dropped[DropReason.TTL] += 1
            return True
        return super().message_received(pipe, message)

    def messages_received(self, pipe: EnginePipe, messages: list[Message]) -> int:
        if max([message.header[3] for message in messages], default=0) <= self._ttl:
            return super().messages_received(pipe, messages)
        return send_each(partial(self.message_received, pipe), messages)

    def send(self, message: Message) -> bool:
        message.header = _HOPS[1]
        return self._pipe is not None and self._pipe.offer(message)

    def send_batch(self, messages: list[Message]) -> int:
        for message in messages:
            message.header = _HOPS[1]
        return super().send_batch(messages)


class RawPair1Engine(Pair1Engine):
    """The state behind a raw PAIR1 socket.

    Each message is sent with one hop more than its header says.
    """

    takes_headers = True

    def check_message(self, message: Message) -> None:
        header = message.header
        if hops_end(header, 0, len(header)) != len(header):
            raise ValueError(f"the header must be a word with the hops, from 0 to 255, not {header[:64].hex() or 'empty'}")

    def send(self, message: Message) -> bool:
        self.check_message(message)
        header = message.header
        if header[3] == 255:
            self.dropped[DropReason.TTL] += 1
            return True
        return self._pipe is not None and self._pipe.offer(Message(message.body, _HOPS[header[3] + 1]))

    def send_batch(self, messages: list[Message]) -> int:
        return send_each(self.send, messages)


class PolyPair1Engine(Pair1Engine):
    """The state behind a PAIR1 socket with several peers."""

    single_peer = False

    def __init__(self, options: SocketOptions, ttl: int) -> None:
        super().__init__(options, ttl)
        self._lanes: dict[EnginePipe, _Lane] = {}

    def check_can_attach(self) -> None:
        pass

    def pipe_attached(self, pipe: EnginePipe) -> None:
        self._lanes[pipe] = _Lane(self, pipe)
        if self._pipe is None:
            self._pipe = pipe

    def pipe_detached(self, pipe: EnginePipe) -> None:
        self._lanes.pop(pipe, None)
        super().pipe_detached(pipe)
        if self._pipe is None:
            self._pipe = next(iter(self._lanes.values())).pipe if self._lanes else None

    def lane_to(self, pipe: EnginePipe) -> Sender:
        """Return the sender for *pipe* alone."""
        return self._lanes.get(pipe) or _Lane(self, pipe, is_there=False)


class _Lane:
    """Sends to one of several peers.

    Messages that wait for one peer do not delay those for another.
    """

    __slots__ = ("_engine", "_is_there", "pipe")

    def __init__(self, engine: PolyPair1Engine, pipe: EnginePipe, *, is_there: bool = True) -> None:
        self._engine = engine
        self._is_there = is_there
        self.pipe = pipe

    def send(self, message: Message) -> bool:
        """Offer *message* to the peer.  False: it has no room."""
        if not self._is_there or self.pipe.broken:
            self._engine.dropped[DropReason.PEER_GONE] += 1
            return True
        message.header = _HOPS[1]
        return self.pipe.offer(message)

    def pipe_for(self, message: Message) -> EnginePipe:
        return self.pipe
