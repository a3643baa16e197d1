"""Interrupts: Ctrl-C breaks into no code of ours, since half a step would leave tasks that nobody wakes any more.

It waits for the main task's next cancel point instead.  What the application gives us to
call (``authorize``, ``should_redial``, ``health``) is interrupted as its other code is: the
functions that call it are marked with trio's ``disable_ki_protection``.
"""

from __future__ import annotations

from types import FunctionType
from typing import TypeVar

from trio.lowlevel import enable_ki_protection

_Class = TypeVar("_Class", bound=type)


def uninterrupted(cls: _Class) -> _Class:
    """Let Ctrl-C wait while a method of *cls* runs, as a call or as a task of its own.  It costs nothing before there is one."""
    for function in vars(cls).values():
        if isinstance(function, FunctionType):
            enable_ki_protection(function)
    return cls
