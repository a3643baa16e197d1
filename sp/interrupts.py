"""Interrupts: Ctrl-C does not break into the library's code.

Tasks wake each other here, and half a step could leave one asleep for ever.  So KeyboardInterrupt
waits for the main task's next cancel point.  Ctrl-C does interrupt the functions that an
application passes to us (``authorize``, ``should_redial``, ``health``): our functions that call
them are marked with trio's ``disable_ki_protection``.
"""

from __future__ import annotations

from types import FunctionType
from typing import TypeVar

from trio.lowlevel import enable_ki_protection

_Class = TypeVar("_Class", bound=type)


def uninterrupted(cls: _Class) -> _Class:
    """Make Ctrl-C wait while a method of *cls* runs, as a call or as a task.

    This costs nothing until Ctrl-C is pressed.
    """
    for function in vars(cls).values():
        if isinstance(function, FunctionType):
            enable_ki_protection(function)
    return cls
