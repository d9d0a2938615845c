"""The boundary to the C extension: the only module that imports it.

Gives cffi's untyped objects types, and is the one place where `-errno` becomes an OSError.
"""

from __future__ import annotations

import os
from typing import Any

from aiofs.dataplane import _plane  # type: ignore[attr-defined]

ffi: Any = _plane.ffi
lib: Any = _plane.lib


def check(result: int, what: str, path: str | None = None) -> int:
    """Return `result` when it is >= 0; otherwise raise the OSError that `-errno` stands for.

    `what` says what was being done, for the message; `path` becomes the exception's filename.
    """
    if result >= 0:
        return result
    message = f"{what}: {os.strerror(-result)}"
    raise OSError(-result, message) if path is None else OSError(-result, message, path)
