"""The answer of an HTTP server or proxy, without I/O: its head, and the start of its body.

The parser of the ``websockets`` package reads the head.  The body of a refusal is read here,
because a broken body must not hide what the head says.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from typing import Final

from websockets.http11 import Response
from websockets.streams import StreamReader

from sp.errors import GreetingError, PeerClosed, PeerError, UpgradeRefused, printable
from sp.guess import guess_protocol
from sp.http.message import WITHOUT_CONTENT, HTTPResponse
from sp.transports.framing import GREETING_SIZE

SWITCHING: Final = 101
MAX_HEAD: Final = 64 * 1024
"""The most bytes of a first line and its headers.

For an answer, the bytes of the interim answers before it count as well.
"""
MAX_INTERIM: Final = 16
"""How many interim answers (1xx) are skipped."""
KEPT_BODY: Final = 4096
"""How many bytes of a refusal's body we wait for and keep."""
SHOWN: Final = 80
"""How many bytes of the peer's first line an error shows."""
TOLD: Final = 300
"""How many characters of the parser's error text, which quotes the peer, an error shows."""
_QUOTING: Final = ("invalid HTTP ", "unsupported protocol")
"""The error texts of the parser that quote a line begin like this."""
_MAX_LINE: Final = 8192
_CHUNK_SIZE: Final = re.compile(rb"[0-9A-Fa-f]{1,15}(?=[ \t;\r\n])")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")
_BARE_STATUS: Final = re.compile(rb"HTTP/1\.[01] [0-9]{3}")

_Reading = Generator[None, None, None]


class Answer:
    """Reads one answer."""

    def __init__(self, who: str, agreement: range, *, scheme: str = "http", over_tls: bool = False) -> None:
        """Read an answer; a status in *agreement* is not a refusal.

        The other parameters are for error texts: *who* answers, and at what kind of URL.
        """
        self.response: Response | None = None
        """The head, once it has come."""
        self._who = who
        self._agreement = agreement
        self._scheme = scheme
        self._over_tls = over_tls
        self._begun = b""  # the first bytes of the latest answer, for error texts
        self._reader = StreamReader()
        self._head_size = 0
        self._body = bytearray()
        self._reading = self._read()
        next(self._reading)

    @property
    def first_line(self) -> bytes:
        """The part of the first line that has come, at most as much as an error shows."""
        return shown(self._begun.partition(b"\n")[0].rstrip(b"\r"))

    @property
    def is_refusal(self) -> bool:
        """Whether the head is a refusal, so only its explanation is missing."""
        return self.response is not None and self.response.status_code not in self._agreement

    @property
    def rest(self) -> bytes:
        """The bytes after the head of an agreement."""
        return bytes(self._reader.buffer)

    def receive_data(self, data: bytes) -> bool:
        """Take *data* from the stream; empty: the stream has ended.

        Returns True once it is clear that the other side agrees.

        Raises UpgradeRefused, or another PeerError.  A refusal counts even if its body is not
        complete when the stream ends.
        """
        if data:
            self._begun += data[: SHOWN - len(self._begun)]
            self._reader.feed_data(data)
        else:
            self._reader.feed_eof()
        try:
            next(self._reading)
            return False
        except StopIteration:
            assert self.response is not None
            if not self.is_refusal:
                return True
            failure: PeerError = self._refusal(self.response)
        except Exception as error:
            failure = self._explain(error)
        # Raise this outside of ``except``: the parser's error may quote a credential, so it must
        # not become the context.
        raise failure

    def _read(self) -> _Reading:
        reader = self._reader
        for _ in range(MAX_INTERIM + 1):
            self._begun = bytes(reader.buffer[:SHOWN])
            response = yield from Response.parse(self._read_line, reader.read_exact, reader.read_to_eof, proxy=True)
            if response.status_code == SWITCHING or response.status_code >= 200:
                break
        else:
            raise ValueError(f"more than {MAX_INTERIM} interim answers")
        if response.status_code == SWITCHING and self._begun.startswith(b"HTTP/1.0 "):
            raise ValueError("an upgrade needs HTTP/1.1")
        self.response = response
        if self.is_refusal:
            try:
                yield from self._read_body(response)
            except (EOFError, ValueError, RuntimeError):
                pass  # broken or cut off: keep what came before

    def _read_line(self, limit: int, too_long: type[Exception]) -> Generator[None, None, bytes]:
        """Read a line of the head, and return it in the form that the parser expects.

        Some servers leave out the space before an empty reason, or the CR (RFC 9112, 2.2).
        """
        line = bytes((yield from self._reader.read_line(limit, too_long)))
        self._head_size += len(line)
        if self._head_size > MAX_HEAD:
            raise ValueError(f"more than {MAX_HEAD} bytes of headers")
        line = line[:-1].removesuffix(b"\r")
        return (line + b" " if _BARE_STATUS.fullmatch(line) else line) + b"\r\n"

    def _read_body(self, response: Response) -> _Reading:
        """Read the beginning of a refusal's body (RFC 9112, 6.3)."""
        codings = ", ".join(response.headers.get_all("Transfer-Encoding")).lower()
        lengths = set(response.headers.get_all("Content-Length"))
        if response.status_code in WITHOUT_CONTENT or response.status_code == SWITCHING:
            return
        if codings.endswith("chunked"):
            while size := _chunk_size((yield from self._reader.read_line(_MAX_LINE))):
                yield from self._keep(size)
                if len(self._body) == KEPT_BODY:
                    return
                yield from self._reader.read_line(2)
        elif not codings and len(lengths) == 1 and _LENGTH.fullmatch(length := lengths.pop()):
            yield from self._keep(int(length))
        else:
            yield from self._keep(KEPT_BODY)  # until the end of the stream

    def _keep(self, size: int) -> _Reading:
        buffer = self._reader.buffer
        size = min(size, KEPT_BODY - len(self._body))
        while size > 0:
            if not buffer:
                if self._reader.eof:
                    raise EOFError
                yield
            part = buffer[:size]
            del buffer[: len(part)]
            self._body += part
            size -= len(part)

    def _explain(self, error: Exception) -> PeerError:
        hint = "" if self._begun.startswith(b"HTTP") else guess_protocol(self._begun, self._scheme, over_tls=self._over_tls)
        if hint:
            return GreetingError(f"{self._who} does not speak HTTP: it began with {self.first_line!r}{hint}")
        if isinstance(error, EOFError):
            begun = "before its answer was complete" if self._begun else "without an answer"
            return PeerClosed(f"{self._who} closed the connection {begun}")
        return GreetingError(f"{self._who} did not answer in HTTP: {printable(without_quotation(error))} ({self.first_line!r})")

    def _refusal(self, response: Response) -> UpgradeRefused:
        body = bytes(self._body)
        answer = HTTPResponse.received(response.status_code, body, response.headers.raw_items())
        reason = f"{self._who} answered {response.status_code} {printable(response.reason_phrase[:SHOWN])}".rstrip()
        location = answer.headers.get("Location")
        if 300 <= answer.status < 400 and location is not None:
            reason += f": it redirects to {location.partition('?')[0][:200]!r}, which is not followed"
        elif answer.headers.get("Content-Type", "text/plain").startswith("text/plain"):
            text = body.decode(errors="replace").strip().partition("\n")[0]
            reason += f": {text[:200]!r}" if text else ""
        return UpgradeRefused(reason, answer)


def shown(line: bytes) -> bytes:
    """Return what an error shows of a first line: no query, which may hold a token.

    Of binary data it shows as much as a greeting has: what follows may be a message.
    """
    if not line[:1].isalnum():
        return line[:GREETING_SIZE]
    before, mark, _ = line.partition(b"?")
    return before + mark


def without_quotation(error: BaseException) -> str:
    """Return the parser's error text without the line that it quotes: it may hold a credential."""
    words = str(error)[:TOLD]
    return words.partition(":")[0] if words.startswith(_QUOTING) else words


def _chunk_size(line: bytes | bytearray) -> int:
    match = _CHUNK_SIZE.match(line)
    if match is None:
        raise ValueError("invalid size of a chunk")
    return int(match[0], 16)
