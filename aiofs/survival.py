"""Whether this kernel lets a mount outlive its server.

What it takes is FUSE_NOTIFY_RESEND: Linux 6.9. Some kernels that have it use memory after freeing it there
(CVE-2026-64265); of those, mended versions of the stable series are known by their numbers only, so a
distribution that mended an older one is not recognised.
"""

from __future__ import annotations

from . import kernel

_FIRST = (6, 9, 0)
_MENDED = ((6, 12, 96), (6, 18, 39), (7, 1, 4))
"""The versions that the repair came with, each the end of a range of broken ones..."""
_BROKEN_FROM = ((6, 9, 0), (6, 13, 0), (6, 19, 0))
"""...that begins here."""


def why_not(release: str) -> str:
    """Why a mount on a kernel of this release (uname -r) ends with its server; empty when it need not."""
    version = kernel.version(release)
    if version < _FIRST:
        return f"kernel {release} cannot send requests to a second server; Linux 6.9 and later can"
    for start, mended in zip(_BROKEN_FROM, _MENDED, strict=True):
        if start <= version < mended:
            wanted = ".".join(map(str, mended))
            return (
                f"kernel {release} may crash when it sends requests to a second server "
                f"(CVE-2026-64265); {wanted} and later of its series do not"
            )
    return ""
