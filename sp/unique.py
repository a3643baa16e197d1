"""Unique: the base of objects that cannot be copied."""

from __future__ import annotations

from typing import NoReturn


class Unique:
    """The base of objects that cannot be copied: pipes, sockets and so on."""

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        """Raise TypeError: a copy would be another object for the same connection."""
        raise TypeError(f"{type(self).__name__} cannot be pickled or copied: it belongs to one socket of this process")
