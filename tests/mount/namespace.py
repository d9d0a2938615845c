"""A mount namespace for one test: what it mounts, links or hides is seen by nobody else, and goes with it.

Commands are run in it as root or as an ordinary user.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

from mounting import TIMEOUT_S

import aiofs

USER = "nobody"
FUSE_DEVICE_NUMBER = ("10", "229")
# A new namespace begins with copies of all mounts, which would keep those of others busy.
START = """
awk '$3 == "fuse.aiofs" || $1 ~ "^/dev/loop" { print $2 }' /proc/self/mounts | xargs -r umount --lazy
echo here
cat
"""
Done = subprocess.CompletedProcess[str]


class Namespace:
    """A process that waits in a mount namespace of its own."""

    def __init__(self, directory: Path) -> None:
        """`directory`: an empty one, for a tmpfs of this namespace."""
        self._directory = directory
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", START],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._holder.stdout is not None
        self.works = self._holder.stdout.readline() == "here\n"

    def run(self, *command: str | Path, user: str | None = None) -> Done:
        """Run a command to its end, as root or as `user`."""
        become = []
        if user is not None:
            uid, gid = str(pwd.getpwnam(user).pw_uid), str(pwd.getpwnam(user).pw_gid)
            become = ["setpriv", "--reuid", uid, "--regid", gid, "--clear-groups", "--"]
        return subprocess.run(
            ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", *become, *map(str, command)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            cwd="/",
        )

    def do(self, *command: str | Path) -> str:
        """What a command of root prints that must not fail."""
        done = self.run(*command)
        assert done.returncode == 0, done
        return done.stdout

    def install(self, program: Path, name: str) -> None:
        """Have /sbin hold a link, as an administrator makes it."""
        links = self._directory / "sbin"
        links.mkdir()
        (links / name).symlink_to(program)
        sbin = Path("/sbin").resolve()
        self.do("mount", "-t", "overlay", "-o", f"lowerdir={links}:{sbin}", "overlay", sbin)

    def admit(self) -> None:
        """Give ordinary users what a desktop gives them: /dev/fuse, and a Python that they can read."""
        stage = self._directory / "stage"
        stage.mkdir()
        self.do("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", stage)
        self.do("mknod", "--mode=666", stage / "fuse", "c", *FUSE_DEVICE_NUMBER)
        self.do("mount", "--bind", stage / "fuse", "/dev/fuse")
        paths = {Path(sys.prefix), Path(sys.base_prefix), Path(aiofs.__file__).parent}
        for shut in sorted({shut for path in paths if (shut := _shut(path))}):
            inside = sorted(path for path in paths if path.is_relative_to(shut))
            for number, path in enumerate(inside):
                self.do("mkdir", stage / str(number))
                self.do("mount", "--bind", path, stage / str(number))
            self.do("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", shut)
            for number, path in enumerate(inside):
                self.do("mkdir", "-p", path)
                self.do("mount", "--bind", stage / str(number), path)
                self.do("umount", stage / str(number))
                self.do("rmdir", stage / str(number))

    def close(self) -> None:
        """End it; whatever is still mounted in it is unmounted by the kernel."""
        self._holder.communicate()


def _shut(path: Path) -> Path | None:
    """The first directory on the way to `path` that others may not pass."""
    for directory in reversed(path.parents):
        if not directory.stat().st_mode & 0o001:
            return directory
    return None


def why_not() -> str:
    """Why this process can have no namespace; empty when it can."""
    return "" if os.geteuid() == 0 else "mount namespaces need root"
