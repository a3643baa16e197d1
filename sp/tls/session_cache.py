"""The sessions that a client may resume."""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from OpenSSL import SSL

_SESSIONS_PER_SERVER: Final = 8
"""How many tickets are kept for one server, and so how many dialers can resume at once."""


class SessionCache:
    """Sessions by server, each for one use.  The least recently used server is forgotten first."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()  # several trio runs may share a configuration
        self._sessions: OrderedDict[str, deque[SSL.Session]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._sessions)

    def take(self, server: str) -> SSL.Session | None:
        """Remove and return the newest session with *server*.  None: there is none."""
        with self._lock:
            sessions = self._sessions.get(server)
            if sessions is None:
                return None
            self._sessions.move_to_end(server)
            session = sessions.pop()
            if not sessions:
                del self._sessions[server]
            return session

    def put(self, server: str, session: SSL.Session) -> None:
        """Remember *session* with *server*."""
        with self._lock:
            self._sessions.setdefault(server, deque(maxlen=_SESSIONS_PER_SERVER)).append(session)
            self._sessions.move_to_end(server)
            if len(self._sessions) > self._size:
                self._sessions.popitem(last=False)

    def forget(self, server: str) -> None:
        """Drop all sessions with *server*."""
        with self._lock:
            self._sessions.pop(server, None)
