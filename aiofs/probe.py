"""`aiofs probe`: what `--aio auto` would decide for an image, and why, without mounting it."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from . import directio
from .config import CacheMode
from .directio import DirectRefused
from .errors import AiofsError, BadInput, reason
from .evidence import ImageEvidence, Machine, Surroundings
from .select import Decision, Direct, decide
from .source import Kind, Source
from .trial import Queues


@dataclass(frozen=True)
class Probed:
    """The decision for one path."""

    path: Path
    kind: Kind
    cache: CacheMode
    """How the image would be opened."""
    decision: Decision

    def as_json(self) -> dict[str, object]:
        """For programs: path, kind, cache, driver, reason, tests."""
        told = {"path": str(self.path), "kind": self.kind.value, "cache": str(self.cache)}
        return {**told, **asdict(self.decision)}


def probe(path: Path, cache: CacheMode | None = None, machine: Machine | None = None) -> Probed:
    """Decide for the image, block device or directory at `path`; a directory is tried with one image of it.

    Changes nothing; a temporary file beside the image may live for some milliseconds. BadInput: not an
    image, not permitted.
    """
    try:
        source = Source.open(path, read_only=False)
        try:
            return _probe(source, cache, machine or Machine.look())
        finally:
            source.close()
    except OSError as error:
        raise BadInput(f"cannot probe {path}: {reason(error)}") from error


def _probe(source: Source, cache: CacheMode | None, machine: Machine) -> Probed:
    wanted = cache or CacheMode.NONE
    fd, direct = _open(source, wanted)
    if not direct.works and cache is None:
        wanted = CacheMode.WRITEBACK
    try:
        st = os.fstat(fd)
        with Queues() as queues:
            evidence = ImageEvidence(
                surroundings=Surroundings.of(source, machine),
                queues=queues,
                fd=fd,
                direct=direct,
                size=st.st_size,
                allocated=st.st_blocks * 512,
                read_only=False,
            )
            return Probed(source.path, source.kind, wanted, decide(evidence))
    finally:
        os.close(fd)


def _open(source: Source, cache: CacheMode) -> tuple[int, Direct]:
    """An image of the source, opened with O_DIRECT if that is wanted and works, and what was found of it."""
    why = f"buffered, as --cache {cache} asks"
    if cache.direct:
        try:
            directio.refuse_by_name(source.filesystem())
            fd = _sample(source, os.O_DIRECT)
            try:
                found = directio.alignment(fd, source.filesystem())
                return fd, Direct(True, found.looked_at, f"in blocks of {found.size} bytes")
            except BaseException:
                os.close(fd)
                raise
        except DirectRefused as refused:
            why = str(refused)
        except OSError as error:
            if error.errno != directio.REFUSED_ERRNO:
                raise
            why = f"{source.filesystem()} does not support it"
    return _sample(source, 0), Direct(False, "opened without it", why)


def _sample(source: Source, flags: int) -> int:
    fd = directio.sample(source, flags)
    if fd is None:
        raise BadInput(
            f"{source.path} holds no image that can be read, and takes no temporary file; name an image"
        )
    return fd


def run(paths: Sequence[Path], cache: CacheMode | None, as_json: bool) -> int:
    """Print the decision for each path; 2 when one of them could not be probed."""
    machine = Machine.look()
    found: list[Probed] = []
    wrong: list[AiofsError] = []
    for path in paths:
        try:
            found.append(probe(path, cache, machine))
        except BadInput as error:
            wrong.append(error)
    if as_json:
        print(json.dumps([one.as_json() for one in found], indent=2))
    else:
        from . import explain

        explain.show(
            (f"{one.path} ({one.kind.value}, --cache {one.cache})", asdict(one.decision)) for one in found
        )
    if wrong:
        raise BadInput("; ".join(map(str, wrong)))
    return 0
