"""A trio stream over a link, so that trio's own checks of streams can test links."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import trio

from sp.errors import PeerError
from sp.transports.link import READ_SIZE, Link


class LinkStream(trio.abc.HalfCloseableStream):
    """A trio stream over a link."""

    def __init__(self, link: Link) -> None:
        """Take over *link*, which is open."""
        self._link = link
        self._sending = self._receiving = self._finished = self._torn = self._closed = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send all of *data*.

        If the call is cancelled, a part may have been sent, and nothing more can be sent.
        """
        with self._alone("_sending", "sending"):
            if self._finished:
                raise trio.ClosedResourceError("send_eof was called")
            if self._torn:
                raise trio.BrokenResourceError("an earlier send was cancelled, and nobody knows how far it came")
            await trio.lowlevel.checkpoint()
            rest = memoryview(data)
            while rest:
                self._check_open()
                try:
                    rest = rest[self._link.send(rest) :]
                except BlockingIOError:
                    self._torn = True
                    await self._link.wait_writable()
                    self._torn = False

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the link may take more data."""
        with self._alone("_sending", "sending"):
            await trio.lowlevel.checkpoint()
            await self._link.wait_writable()

    async def send_eof(self) -> None:
        """Tell the peer that nothing more will be sent."""
        with self._alone("_sending", "sending"):
            await trio.lowlevel.checkpoint()
            self._finished = True
            self._link.finish()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Return what has arrived, at least one byte.  Empty: the peer ended the stream.

        If the call is cancelled, nothing is lost.
        """
        if max_bytes is not None and not isinstance(max_bytes, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise TypeError(f"max_bytes must be an int or None, not {max_bytes!r}")
        if max_bytes is not None and max_bytes < 1:
            raise ValueError(f"max_bytes must be at least 1, not {max_bytes}")
        with self._alone("_receiving", "receiving"):
            await trio.lowlevel.checkpoint()
            while True:
                self._check_open()
                try:
                    return self._link.recv(max_bytes or READ_SIZE)
                except BlockingIOError:
                    await self._link.wait_readable()

    async def aclose(self) -> None:
        """Close the link."""
        self._closed = True
        self._link.close()
        await trio.lowlevel.checkpoint()

    @contextmanager
    def _alone(self, flag: str, doing: str) -> Generator[None]:
        """Refuse a second task, and turn the errors of the link into those of a stream."""
        if getattr(self, flag):
            raise trio.BusyResourceError(f"another task is {doing}")
        self._check_open()
        setattr(self, flag, True)
        try:
            yield
            self._check_open()
        except (PeerError, OSError) as error:
            self._check_open()
            raise trio.BrokenResourceError(str(error)) from error
        finally:
            setattr(self, flag, False)

    def _check_open(self) -> None:
        if self._closed:
            raise trio.ClosedResourceError("the stream is closed")
