"""Unique: an object that stands for something in this process, so it has no copies."""

from __future__ import annotations

from typing import NoReturn


class Unique:
    """The base of objects that cannot be copied: pipes, sockets and so on."""

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        """Raise TypeError: a copy would stand for the same connection and not be equal to it."""
        raise TypeError(f"{type(self).__name__} cannot be pickled or copied: it belongs to one socket of this process")
