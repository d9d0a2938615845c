"""The guests' kernel: an unpacked Debian package, its image and its modules."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

KERNELS = Path(__file__).resolve().parents[2] / ".venv/guest"
"""Where scripts/test and scripts/bench put Debian's cloud kernel."""


class Missing(Exception):
    """Something that a guest needs is not here; the message says what."""


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package."""

    image: Path
    modules: Path
    """The directory with its modules."""

    @classmethod
    def find(cls) -> Kernel:
        """The newest in KERNELS. Missing."""
        images = sorted(KERNELS.glob("boot/vmlinuz-*"))
        if not images:
            raise Missing(f"no guest kernel in {KERNELS}: scripts/test fetches it, as root on Debian")
        release = images[-1].name.removeprefix("vmlinuz-")
        return cls(images[-1], KERNELS / "lib/modules" / release)

    def with_dependencies(self, names: Iterable[str]) -> list[Path]:
        """The files of these modules in the order of loading; those built into the kernel have none."""
        files = {path.stem.replace("-", "_"): path for path in self.modules.rglob("*.ko")}
        ordered: dict[Path, None] = {}

        def add(name: str) -> None:
            path = files.get(name.replace("-", "_"))
            if path is None or path in ordered:
                return
            # The module's own list of what it needs, in the section that modinfo(8) prints.
            needs = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
            for other in needs[1].decode().split(",") if needs else ():
                add(other)
            ordered[path] = None

        for name in names:
            add(name)
        return list(ordered)
