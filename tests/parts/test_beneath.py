"""openat2 beneath a directory: what leads out of it is refused by the kernel, not by looking at the name."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from aiofs.dataplane.system import open_beneath


@pytest.fixture
def root(images: Path) -> Iterator[int]:
    """A descriptor of the image directory; secret.img lies beside it."""
    (images.parent / "secret.img").write_bytes(b"secret")
    fd = os.open(images, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def refusal(root: int, path: bytes) -> int:
    """The errno with which opening `path` fails."""
    with pytest.raises(OSError) as caught:
        os.close(open_beneath(root, path, os.O_RDONLY))
    assert caught.value.errno is not None
    return caught.value.errno


def test_a_name_in_the_directory_is_opened(root: int, images: Path) -> None:
    """A file, also below a directory in it."""
    (images / "sub").mkdir()
    (images / "sub/b.img").write_bytes(b"b")
    for path in (b"a.img", b"sub/b.img"):
        os.close(open_beneath(root, path, os.O_RDONLY))


def test_no_symbolic_link_is_followed(root: int, images: Path) -> None:
    """Neither at the end of a path nor on its way, wherever it leads: within the tree as well."""
    (images / "out.img").symlink_to(images.parent / "secret.img")
    (images / "in.img").symlink_to("a.img")
    (images / "here").symlink_to(".")
    for path in (b"out.img", b"in.img", b"here/a.img"):
        assert refusal(root, path) == errno.ELOOP


def test_no_path_leads_out(root: int, images: Path) -> None:
    """Neither upwards nor from the root of the file system."""
    for path in (b"../secret.img", os.fsencode(images.parent / "secret.img")):
        assert refusal(root, path) == errno.EXDEV


def test_another_file_system_is_not_entered() -> None:
    """What is mounted within the tree is not part of it."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    try:
        assert refusal(root, b"proc/version") == errno.EXDEV
    finally:
        os.close(root)
