"""Facts about the machine that a number needs beside it."""

from __future__ import annotations

import os
import platform
import re
from datetime import datetime
from pathlib import Path


def facts() -> dict[str, str]:
    """Kernel, CPU, cores, memory, the versions of Python and aiofs, and the date."""
    from .. import __version__

    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "kernel": platform.release(),
        "cpu": cpu_model(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory / 2**30:.0f} GiB",
        "python": platform.python_version(),
        "aiofs": __version__,
        "date": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
    }


def cpu_model() -> str:
    """As /proc/cpuinfo names it; the architecture where it does not."""
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()
