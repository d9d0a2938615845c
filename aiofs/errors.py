"""What aiofs tells a user instead of a traceback: one sentence, and the exit status that goes with it.

The sentence names the thing, the value and the way out. cli.py prints it after `aiofs: ` and exits.
"""

from __future__ import annotations

from typing import ClassVar


class AiofsError(Exception):
    """Something failed at run time."""

    exit_status: ClassVar[int] = 1


class BadInput(AiofsError):
    """What was asked for cannot be: a wrong word, path or option, or a machine that lacks what it needs."""

    exit_status: ClassVar[int] = 2


def reason(error: OSError) -> str:
    """The text of an errno, without Python's decoration."""
    return error.strerror or str(error)
