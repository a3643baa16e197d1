"""Every socket there is, cooked and raw, and how two of them exchange bodies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

import sp
from tests.transports.ends import dial, listen

ID = b"\x80\0\0\7"
"""The end of a backtrace: a request or survey id."""

_COUNTERPARTS: dict[type, type] = {
    one: other
    for pair in ((sp.Req0, sp.Rep0), (sp.Surveyor0, sp.Respondent0), (sp.Push0, sp.Pull0), (sp.Pub0, sp.Sub0))
    for one, other in (pair, pair[::-1])
}


@attrs.frozen(eq=False)
class Kind:
    """A class of sockets, and the arguments to make one."""

    socket: Any
    """The class of ``sp``, even if the raw class of ``sp.raw`` is tested."""
    options: Mapping[str, object] = {}
    peer_options: Mapping[str, object] = {}
    raw: bool = False

    def __call__(self, **options: Any) -> Any:
        """Make one."""
        return self.made(**self.options, **options)

    @property
    def made(self) -> Any:
        """The class that is made."""
        return raw_of(self.socket) if self.raw else self.socket

    def peer(self, **options: Any) -> Any:
        """Make a socket that it can talk to."""
        return _COUNTERPARTS.get(self.socket, self.socket)(**self.peer_options, **options)

    @property
    def name(self) -> str:
        name: str = self.socket.__name__
        return name

    @property
    def protocol(self) -> str:
        return self.name[:-1].upper() if self.name[-1] == "0" and "Pair" not in self.name else self.name.upper()

    @property
    def peer_protocol(self) -> str:
        counterpart = _COUNTERPARTS.get(self.socket, self.socket)
        return Kind(counterpart).protocol

    @property
    def poly(self) -> bool:
        return bool(self.options.get("poly"))

    @property
    def talkative_peer(self) -> Kind:
        """The kind of peer that can send and read at any time: a raw one, except for poly."""
        return Kind(_COUNTERPARTS.get(self.socket, self.socket), {"poly": True} if self.poly else {}, raw=not self.poly)

    @property
    def waits_for_peers(self) -> bool:
        """Whether ``send`` waits for a peer to be there."""
        return self.socket in (sp.Req0, sp.Push0, sp.Pair0, sp.Pair1)

    @property
    def waits_for_room(self) -> bool:
        """Whether ``send`` waits for a peer that is full."""
        return self.waits_for_peers or (self.socket in (sp.Rep0, sp.Respondent0) and not self.raw)

    @property
    def sends(self) -> bool:
        return hasattr(self.made, "send_message")

    @property
    def sends_bodies(self) -> bool:
        """Whether it has ``send``: a raw socket whose messages need a header does not."""
        return hasattr(self.made, "send")

    @property
    def receives(self) -> bool:
        return hasattr(self.socket, "receive")

    @property
    def header(self) -> bytes:
        """The header that an application must give with a body of at most 100 bytes, on a new
        socket.
        """
        if not self.raw:
            return b""
        return {sp.Req0: ID, sp.Surveyor0: ID, sp.Pair1: bytes(4), sp.Rep0: bytes(4) + ID, sp.Respondent0: bytes(4) + ID}.get(
            self.socket, b""
        )

    def __str__(self) -> str:
        return " ".join([self.name, *(name for name, value in self.options.items() if value is True), *(["raw"] if self.raw else [])])


_CLASSES = (
    sp.Req0,
    sp.Rep0,
    sp.Pub0,
    sp.Sub0,
    sp.Push0,
    sp.Pull0,
    sp.Surveyor0,
    sp.Respondent0,
    sp.Bus0,
    sp.Pair0,
    sp.Pair1,
)
COOKED = [*(Kind(socket) for socket in _CLASSES), Kind(sp.Pair1, {"poly": True}, {"poly": True})]
RAW = [Kind(socket, raw=True) for socket in _CLASSES]
ALL = [*COOKED, *RAW]


def raw_of(socket: Any) -> Any:
    """Return the raw class for the same protocol as *socket*, a class of ``sp``."""
    return getattr(sp.raw, socket.__name__)


def is_raw(socket: Any) -> bool:
    return isinstance(socket, sp.raw.RawSocket)


def kind_of(socket: Any) -> Kind:
    """Return the kind of *socket*, as far as its class tells."""
    return Kind(getattr(sp, type(socket).__name__), raw=is_raw(socket))


def each(kinds: list[Kind]) -> pytest.MarkDecorator:
    """Run a test once for each of *kinds*."""
    return pytest.mark.parametrize("kind", kinds, ids=str)


class Talk:
    """Two sockets of counterpart protocols that are connected; the *front* asks, where that makes a
    difference.

    ``ask`` carries a body from the front to the back and returns what has arrived, ``answer`` does
    so the other way, for the last that was asked.
    """

    def __init__(self, front: Any, back: Any) -> None:
        self.front, self.back = front, back
        self.ours = front
        self._asked: Any = None

    @property
    def theirs(self) -> Any:
        return self.back if self.ours is self.front else self.front

    async def begin(self) -> None:
        """Ask something, if ours could not be sent anything otherwise, or could not send."""
        if kind_of(self.front).socket in (sp.Req0, sp.Surveyor0):
            await self.ask(b"a question")

    async def send_from_ours(self, body: bytes) -> None:
        await (self.send if self.ours is self.front else self.send_answer)(body)

    async def send_to_ours(self, body: bytes) -> None:
        await (self.send if self.ours is self.back else self.send_answer)(body)

    @property
    def both_ways(self) -> bool:
        return hasattr(self.back, "send")

    async def send(self, body: bytes) -> None:
        """Send *body* from the front."""
        if not is_raw(self.front):
            await self.front.send(body)
            return
        await self.front.send_message(sp.Message(body, kind_of(self.front).header))

    async def ask(self, body: bytes) -> bytes:
        await self.send(body)
        return await self.asked()

    async def asked(self) -> bytes:
        """Return what arrives at the back."""
        self._asked = await self.back.receive_message()
        body: bytes = self._asked.body
        return body

    async def send_answer(self, body: bytes) -> None:
        """Send *body* from the back."""
        back = self.back
        if is_raw(back):
            kind = kind_of(back)
            header = self._asked.header if kind.socket in (sp.Rep0, sp.Respondent0) else kind.header
            await back.send_message(sp.Message(body, header))
        else:
            await back.send(body)

    async def answer(self, body: bytes) -> bytes:
        await self.send_answer(body)
        answer: bytes = await self.front.receive()
        return answer


async def gone(*sockets: Any) -> None:
    """Wait until none of *sockets* has a pipe."""
    while any(socket.pipes for socket in sockets):
        await trio.lowlevel.checkpoint()


BACKS = (sp.Rep0, sp.Respondent0, sp.Pull0, sp.Sub0)


def everything(kind: Kind) -> dict[str, object]:
    """Return the option with which a socket of *kind* receives all that comes."""
    return {"topics": b""} if kind.socket is sp.Sub0 and not kind.raw else {}


@asynccontextmanager
async def talking(
    kind: Kind, url: str, *, peer_kind: Kind | None = None, peer: Mapping[str, Any] | None = None, **options: Any
) -> AsyncIterator[Talk]:
    """Connect a socket of *kind*, which listens, with one that it can talk to, which dials; *peer*
    are options of that one.
    """
    peer_kind = peer_kind or Kind(_COUNTERPARTS.get(kind.socket, kind.socket), kind.peer_options)
    async with kind(**everything(kind), **options) as ours, peer_kind(**everything(peer_kind), **(peer or {})) as theirs:
        listener = await listen(ours, url)
        await dial(theirs, listener.url)
        await ours.wait_for_peers()
        talk = Talk(theirs, ours) if kind.socket in BACKS else Talk(ours, theirs)
        talk.ours = ours
        yield talk
