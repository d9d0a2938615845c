"""Trees of files: real ones to copy, and what is in them, to compare."""

from __future__ import annotations

import filecmp
import hashlib
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def assert_same_tree(left: Path, right: Path) -> None:
    """Both hold the same files with the same bytes."""
    difference = filecmp.dircmp(left, right, ignore=["__pycache__"], hide=["lost+found"])
    assert not difference.left_only
    assert not difference.right_only
    _, mismatch, errors = filecmp.cmpfiles(left, right, difference.common_files, shallow=False)
    assert not mismatch
    assert not errors
    for name in difference.common_dirs:
        assert_same_tree(left / name, right / name)


def copy_python(target: Path, limit_bytes: int) -> None:
    """Copy Python's standard library, as far as the limit goes, and compare the copy with it."""
    source = Path(sysconfig.get_path("stdlib"))
    copied = []
    for file in _python_files(source):
        limit_bytes -= file.stat().st_size
        if limit_bytes < 0:
            break
        name = file.relative_to(source)
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, target / name)
        copied.append(name)
    assert len(copied) > 100
    files = {name for name, what in contents(target).items() if what != "dir"}
    assert files == {str(name) for name in copied}
    for name in copied:
        assert (source / name).read_bytes() == (target / name).read_bytes()


def _python_files(source: Path) -> Iterator[Path]:
    for path in sorted(source.rglob("*.py")):
        if "site-packages" not in path.parts and "dist-packages" not in path.parts and path.is_file():
            yield path


def contents(tree: Path) -> dict[str, str]:
    """What is in a tree, by name: mode and digest of each file, the target of each link, `dir`."""
    found = {}
    for path in tree.rglob("*"):
        name = str(path.relative_to(tree))
        if path.is_symlink():
            found[name] = f"link to {path.readlink()}"
        elif path.is_dir():
            found[name] = "dir"
        else:
            found[name] = f"{path.stat().st_mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    return found
