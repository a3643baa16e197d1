"""Checks of the values that an application gives.

Each raises TypeError for a value of the wrong type and ValueError for one out of range.  The text
names the parameter, what was expected and what was given.  ``flag``, ``count``, ``seconds`` and
``choice`` and so on are the same checks as validators of attrs fields.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import attrs

    Validator = Callable[[object, "attrs.Attribute[Any]", Any], object]

_Choice = TypeVar("_Choice")


def check_flag(name: str, value: object) -> bool:
    """Return *value*, which must be True or False.

    Nothing else is accepted: a None or a 0 that got here by mistake must not decide anything.
    """
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, not {value!r}")
    return value


def check_int(name: str, value: object, minimum: int, maximum: float = math.inf) -> int:
    """Return *value*, which must be an int from *minimum* to *maximum*."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, not {value!r}")
    if not minimum <= value <= maximum:
        bounds = f"at least {minimum}" if maximum == math.inf else f"from {minimum} to {maximum}"
        raise ValueError(f"{name} must be {bounds}, not {value}")
    return value


def check_ttl(value: object) -> int:
    """Return *value*, which must be a number of hops from 1 to 255."""
    return check_int("ttl", value, 1, 255)


def check_seconds(name: str, value: object, *, zero: bool = False, maximum: float = math.inf, alternative: str = "") -> float:
    """Return *value*, which must be a positive finite number; with *zero* it may also be 0.

    *alternative* is what the caller accepts instead, for the error: ``" or None"``.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds{alternative}, not {value!r}")
    if not (0 < value < math.inf or (zero and value == 0)) or value > maximum:
        most = "" if maximum == math.inf else f" of at most {maximum:g}"
        raise ValueError(f"{name} must be {'zero or ' if zero else ''}a positive number of seconds{most}{alternative}, not {value}")
    return float(value)


def check_seconds_or_none(name: str, value: object) -> float | None:
    """Return *value*, which must be None or a positive finite number."""
    return None if value is None else check_seconds(name, value, alternative=" or None")


def check_choice(name: str, value: object, known: Sequence[_Choice]) -> _Choice:
    """Return *value*, which must be one of the strings *known*."""
    for choice in known:
        if choice == value:
            return choice
    *others, last = (f'"{choice}"' for choice in known)
    raise ValueError(f"{name} must be {', '.join(others)} or {last}, not {value!r}")


def check_function(name: str, value: object) -> None:
    """Raise unless *value* can be called."""
    if not callable(value):
        raise TypeError(f"{name} must be a function or None, not {value!r}")


def check_plain_function(name: str, value: object) -> None:
    """Raise unless *value* can be called without ``await``."""
    check_function(name, value)
    if inspect.iscoroutinefunction(value):
        raise TypeError(f"{name} must be a plain function, not an async one: its answer is needed at once")


def flag(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_flag(attribute.name, value)


def count(minimum: int, maximum: float = math.inf) -> Validator:
    return lambda _, attribute, value: check_int(attribute.name, value, minimum, maximum)


def seconds(*, zero: bool = False, maximum: float = math.inf) -> Validator:
    return lambda _, attribute, value: check_seconds(attribute.name, value, zero=zero, maximum=maximum)


def seconds_or_none(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_seconds_or_none(attribute.name, value)


def choice(*known: str) -> Validator:
    return lambda _, attribute, value: check_choice(attribute.name, value, known)


def function(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_function(attribute.name, value)


def plain_function(_: object, attribute: attrs.Attribute[Any], value: object) -> None:
    check_plain_function(attribute.name, value)


def optional(check: Validator) -> Validator:
    """Return *check* for a field that may be None."""

    def check_unless_none(options: object, attribute: attrs.Attribute[Any], value: object) -> None:
        if value is not None:
            check(options, attribute, value)

    return check_unless_none
