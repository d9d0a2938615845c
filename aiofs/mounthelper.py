"""`mount.aiofs`: what mount(8) runs for `mount -t aiofs` and for lines of /etc/fstab with that type.

It is called as `mount.aiofs SOURCE DIR [-sfnv] [-N namespace] [-o options] [-t type]`, is found as
/sbin/mount.aiofs only, and ends with the statuses of mount(8). What fstab says to mount(8), to systemd or of
any file system is dropped; the rest means what it means to `aiofs mount -o`.
"""

from __future__ import annotations

import getopt
import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .config import MountConfig, Settings, make_config, parse_options
from .errors import AiofsError, BadInput

USAGE = 1
SYSTEM_ERROR = 2
FAILED = 32

_GENERIC = re.compile(
    r"(no)?(auto|user|suid|dev|mand|iversion|((dir|rel|strict)?a|lazy)time)"
    r"|defaults|nofail|_netdev|users|owner|group|silent|loud|a?sync|dirsync"
    r"|(user|comment|u?helper)=.*|[xX]-.*",
    re.DOTALL,
)
"""Options of every file system (mount(8), systemd.mount(5)) that change nothing here: the mount is nosuid and
nodev always, and what is on disk when is said by cache=."""


@dataclass(frozen=True)
class _Asked:
    config: MountConfig
    fake: bool


def main(argv: Sequence[str] | None = None) -> int:
    """Mount as mount(8) asks; the exit status is one of its own."""
    try:
        asked = _parse(sys.argv[1:] if argv is None else argv)
    except BadInput as error:
        print(f"mount.aiofs: {error}", file=sys.stderr)
        return USAGE
    if asked.fake:
        return 0
    from . import mount

    try:
        status = mount.run(asked.config)
    except AiofsError as error:
        print(f"mount.aiofs: {error}", file=sys.stderr)
        return FAILED
    except OSError as error:
        print(f"mount.aiofs: {error}", file=sys.stderr)
        return SYSTEM_ERROR
    return FAILED if status else 0


def _parse(argv: Sequence[str]) -> _Asked:
    try:
        flags, places = getopt.gnu_getopt(list(argv), "sfnvo:N:t:")
    except getopt.GetoptError as error:
        raise BadInput(f"{error}; {_SYNOPSIS}") from None
    if len(places) != 2 or not all(places):
        raise BadInput(_SYNOPSIS)
    given = [flag for flag, _ in flags]
    for flag, namespace in flags:
        if flag == "-N":
            raise BadInput(f"-N is not for this type; use: nsenter --mount={namespace} mount -t aiofs ...")
    words = (word for flag, text in flags if flag == "-o" for word in text.split(","))
    source, mountpoint = (Path(os.path.abspath(place)) for place in places)  # noqa: PTH100 -- removes ".."
    settings = _settings(words, sloppy="-s" in given)
    return _Asked(make_config(source, mountpoint, settings), fake="-f" in given)


_SYNOPSIS = "usage: mount.aiofs SOURCE DIR [-sfnv] [-o OPTIONS] [-t TYPE] (mount(8) runs it: mount -t aiofs)"


def _settings(words: Iterable[str], *, sloppy: bool) -> list[Settings]:
    settings = []
    for word in words:
        if _GENERIC.fullmatch(word):
            continue
        if word == "remount":
            raise BadInput(
                "an aiofs mount cannot be remounted with other options; unmount it, and mount again"
            )
        try:
            settings.append(parse_options(word))
        except BadInput:
            if not sloppy:
                raise
    return settings
