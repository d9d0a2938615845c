"""The tree of a real mount: names, attributes and their changes, from both sides."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from mounting import MountedFs
from waiting import wait_until

Mounting = Callable[..., MountedFs]
CONTENT = bytes(range(256)) * 64
MIB = 1 << 20


@pytest.fixture
def fs(mounted: Mounting, image_dir: Path) -> MountedFs:
    """A mount of a tree: a.img and sub/b.img."""
    (image_dir / "a.img").write_bytes(CONTENT)
    (image_dir / "sub").mkdir()
    (image_dir / "sub/b.img").write_bytes(CONTENT[::-1])
    return mounted(image_dir)


def attributes(path: Path) -> tuple[int, ...]:
    """What must be equal on both sides."""
    st = path.stat()
    times = (st.st_mtime_ns, st.st_ctime_ns)
    return (st.st_mode, st.st_nlink, st.st_uid, st.st_gid, st.st_size, st.st_blocks, *times)


def names_in(directory: Path) -> list[str]:
    """Its listing, sorted."""
    return sorted(entry.name for entry in directory.iterdir())


# -- looking --


def test_a_tree_is_served_as_it_is(fs: MountedFs) -> None:
    """Directories with their images, and the images' bytes."""
    assert names_in(fs.path) == ["a.img", "sub"]
    assert names_in(fs.path / "sub") == ["b.img"]
    assert (fs.path / "sub/b.img").read_bytes() == CONTENT[::-1]


@pytest.mark.parametrize("name", ["a.img", "sub", "sub/b.img"])
def test_attributes_equal_those_underneath(fs: MountedFs, name: str) -> None:
    """Mode, links, owner, size, blocks and times, to the nanosecond."""
    assert attributes(fs.path / name) == attributes(fs.source / name)


def test_a_sparse_image_keeps_its_holes(fs: MountedFs) -> None:
    """A GiB of nothing and one block: st_blocks counts the block, and reading makes no more."""
    with (fs.source / "sparse.img").open("wb") as image:
        image.truncate(1 << 30)
        image.seek(512 * MIB)
        image.write(b"x" * 4096)
        os.fsync(image.fileno())
    path = fs.path / "sparse.img"
    assert path.stat().st_size == 1 << 30
    assert path.stat().st_blocks == (fs.source / "sparse.img").stat().st_blocks < 100
    with path.open("rb") as image:
        assert image.read(MIB) == bytes(MIB)
        assert os.pread(image.fileno(), 4097, 512 * MIB - 1) == b"\0" + b"x" * 4096
    assert path.stat().st_blocks < 100


def test_statfs_tells_of_the_file_system_underneath(fs: MountedFs) -> None:
    """Sizes and limits are equal; what is free may change meanwhile by what others write."""
    here, there = os.statvfs(fs.path), os.statvfs(fs.source)
    assert (here.f_blocks, here.f_files, here.f_namemax) == (there.f_blocks, there.f_files, there.f_namemax)
    assert (here.f_bsize, here.f_frsize) == (there.f_bsize, there.f_frsize)
    assert abs(here.f_bfree - there.f_bfree) <= there.f_blocks // 10


def test_ten_thousand_images_are_listed(mounted: Mounting, image_dir: Path) -> None:
    """Each once, and each with its own size."""
    names = {f"{number:05}.img" for number in range(10_000)}
    for name in names:
        (image_dir / name).touch()
    os.truncate(image_dir / "07777.img", 7777)
    fs = mounted(image_dir)
    listed = names_in(fs.path)
    assert len(listed) == 10_000
    assert set(listed) == names
    with os.scandir(fs.path) as entries:
        sizes = {entry.name: entry.stat().st_size for entry in entries}
    assert {name for name, size in sizes.items() if size} == {"07777.img"}
    assert sizes["07777.img"] == 7777


def test_links_pipes_and_sockets_are_not_served(fs: MountedFs) -> None:
    """Neither listed nor found, nor can their names be taken."""
    (fs.source / "link").symlink_to("a.img")
    (fs.source / "out").symlink_to("/etc")
    os.mkfifo(fs.source / "pipe")
    os.mknod(fs.source / "zero", stat.S_IFREG)
    os.mknod(fs.source / "socket", stat.S_IFSOCK)
    assert names_in(fs.path) == ["a.img", "sub", "zero"]
    for name in ("link", "out", "out/hosts", "pipe", "socket"):
        assert not os.path.lexists(fs.path / name), name
        with pytest.raises(OSError):
            (fs.path / name).touch(exist_ok=False)
    with pytest.raises(PermissionError):
        (fs.path / "new-link").symlink_to("a.img")
    with pytest.raises(PermissionError):
        os.mkfifo(fs.path / "new-pipe")
    assert (fs.source / "link").is_symlink()


def test_the_info_file_is_hidden_but_there(fs: MountedFs) -> None:
    """Not listed, found by name, readable by chunks, and not to be changed or replaced."""
    info = fs.path / ".aiofs/info.json"
    assert ".aiofs" not in names_in(fs.path)
    assert names_in(fs.path / ".aiofs") == ["info.json", "metrics"]
    with info.open("rb", buffering=100) as file:
        assert json.load(file)["source"] == str(fs.source)
    for change in (info.unlink, (fs.path / ".aiofs").rmdir, lambda: info.write_bytes(b"x")):
        with pytest.raises(PermissionError):
            change()
    with pytest.raises(FileExistsError):
        (fs.path / ".aiofs").mkdir()
    with pytest.raises(OSError):
        (fs.path / "a.img").rename(fs.path / ".aiofs")


# -- changes underneath --


def test_an_image_that_appears_underneath_is_seen(fs: MountedFs) -> None:
    """Also when its name was asked for in vain before, and in a directory that is new."""
    assert not (fs.path / "later.img").exists()
    (fs.source / "later.img").write_bytes(b"later")
    (fs.source / "new").mkdir()
    (fs.source / "new/c.img").write_bytes(b"c")
    wait_until(lambda: (fs.path / "later.img").exists())
    assert "later.img" in names_in(fs.path)
    assert (fs.path / "later.img").read_bytes() == b"later"
    assert (fs.path / "new/c.img").read_bytes() == b"c"


def test_an_image_that_disappears_underneath_is_gone(fs: MountedFs) -> None:
    """From the listing at once, by its name within the kernel's attribute timeout."""
    assert (fs.path / "a.img").exists()
    (fs.source / "a.img").unlink()
    assert names_in(fs.path) == ["sub"]
    wait_until(lambda: not (fs.path / "a.img").exists())
    with pytest.raises(FileNotFoundError):
        (fs.path / "a.img").open("rb")


def test_an_image_that_grows_underneath_has_its_new_size(fs: MountedFs) -> None:
    """While nobody has it open, and while somebody has: stat, then the bytes."""
    path = fs.path / "a.img"
    with path.open("rb", buffering=0) as held:
        assert held.read() == CONTENT
        with (fs.source / "a.img").open("ab") as underneath:
            underneath.write(b"more")
        wait_until(lambda: os.fstat(held.fileno()).st_size == len(CONTENT) + 4)
        assert os.pread(held.fileno(), 100, len(CONTENT)) == b"more"
    with (fs.source / "sub/b.img").open("ab") as underneath:
        underneath.write(b"more")
    wait_until(lambda: (fs.path / "sub/b.img").stat().st_size == len(CONTENT) + 4)
    assert (fs.path / "sub/b.img").read_bytes() == CONTENT[::-1] + b"more"


def test_an_image_that_is_cut_underneath_gives_no_old_bytes(fs: MountedFs) -> None:
    """Rule 8: an open O_DIRECT descriptor reads up to the new end, and nothing behind it."""
    fd = os.open(fs.path / "a.img", os.O_RDONLY | os.O_DIRECT)
    try:
        assert os.pread(fd, 4096, 8192) == CONTENT[8192:12288]
        os.truncate(fs.source / "a.img", 8292)
        wait_until(lambda: os.fstat(fd).st_size == 8292)
        assert os.pread(fd, 4096, 8192) == CONTENT[8192:8292]
        assert os.pread(fd, 4096, 12288) == b""
    finally:
        os.close(fd)


def test_an_image_that_is_replaced_underneath_is_another(fs: MountedFs) -> None:
    """Rule 8: who has the old one open goes on reading it; a new open finds the new one."""
    with (fs.path / "a.img").open("rb", buffering=0) as old:
        (fs.source / "next").write_bytes(b"next")
        (fs.source / "next").rename(fs.source / "a.img")
        wait_until(lambda: (fs.path / "a.img").stat().st_size == 4)
        assert (fs.path / "a.img").read_bytes() == b"next"
        assert old.read() == CONTENT


# -- changes through the mount --


def test_an_image_is_created_written_and_removed(fs: MountedFs) -> None:
    """In the root and in a directory made through the mount; underneath it is the same."""
    (fs.path / "dir").mkdir(mode=0o750)
    assert stat.S_IMODE((fs.source / "dir").stat().st_mode) == 0o750
    for name in ("new.img", "dir/new.img"):
        (fs.path / name).write_bytes(CONTENT)
        assert (fs.source / name).read_bytes() == CONTENT
        assert attributes(fs.path / name) == attributes(fs.source / name)
        with pytest.raises(FileExistsError):
            (fs.path / name).open("xb")
    with pytest.raises(OSError, match="not empty"):
        (fs.path / "dir").rmdir()
    (fs.path / "dir/new.img").unlink()
    (fs.path / "dir").rmdir()
    (fs.path / "new.img").unlink()
    assert names_in(fs.source) == ["a.img", "sub"]


def test_the_mode_of_a_new_image_is_what_was_asked_for(fs: MountedFs) -> None:
    """Less the caller's umask, and also when the owner may not write."""
    for name, mode in (("r.img", 0o444), ("w.img", 0o666), ("x.img", 0o600)):
        before = os.umask(0o027)
        try:
            os.close(os.open(fs.path / name, os.O_CREAT | os.O_WRONLY | os.O_EXCL, mode))
        finally:
            os.umask(before)
        assert stat.S_IMODE((fs.source / name).stat().st_mode) == mode & ~0o027


def test_an_image_is_renamed(fs: MountedFs) -> None:
    """Into another directory, and over another image; open descriptors stay with their bytes."""
    with (fs.path / "a.img").open("r+b", buffering=0) as held:
        (fs.path / "a.img").rename(fs.path / "sub/moved.img")
        assert names_in(fs.source / "sub") == ["b.img", "moved.img"]
        held.write(b"still")
        (fs.path / "sub/moved.img").rename(fs.path / "sub/b.img")
        assert names_in(fs.source / "sub") == ["b.img"]
        assert os.pread(held.fileno(), 5, 0) == b"still"
    assert (fs.path / "sub/b.img").read_bytes() == b"still" + CONTENT[5:]
    (fs.path / "sub").rename(fs.path / "elsewhere")
    assert (fs.path / "elsewhere/b.img").read_bytes() == (fs.source / "elsewhere/b.img").read_bytes()


def test_a_removed_image_lives_while_it_is_open(fs: MountedFs) -> None:
    """As files do: it can be written, grown and read, and its room is free when it is closed."""
    with (fs.path / "a.img").open("r+b", buffering=0) as held:
        (fs.path / "a.img").unlink()
        assert not (fs.source / "a.img").exists()
        os.pwrite(held.fileno(), b"grown", len(CONTENT))
        os.fsync(held.fileno())
        assert os.fstat(held.fileno()).st_nlink == 0
        assert os.pread(held.fileno(), len(CONTENT) + 100, 0) == CONTENT + b"grown"


@pytest.mark.parametrize("size", [0, 1, 8192, 8193, len(CONTENT) + 1, MIB])
def test_an_image_is_truncated(fs: MountedFs, size: int) -> None:
    """By name, by descriptor, to any size; what is new reads as zeros, also after cutting first."""
    wanted = (CONTENT + bytes(MIB))[:size]
    os.truncate(fs.path / "a.img", size)
    assert (fs.path / "a.img").read_bytes() == wanted == (fs.source / "a.img").read_bytes()
    with (fs.path / "sub/b.img").open("r+b", buffering=0) as image:
        os.ftruncate(image.fileno(), 100)
        os.ftruncate(image.fileno(), size)
        content = CONTENT[::-1][: min(size, 100)]
        assert image.read() == content + bytes(size - len(content))
        assert os.fstat(image.fileno()).st_size == size
    assert (fs.source / "sub/b.img").stat().st_size == size


def test_a_write_past_the_end_grows_the_image(fs: MountedFs) -> None:
    """With zeros between, to the byte, buffered and O_DIRECT."""
    for flags in (0, os.O_DIRECT):
        fd = os.open(fs.path / "grow.img", os.O_RDWR | os.O_CREAT | os.O_TRUNC | flags, 0o600)
        try:
            assert os.pwrite(fd, b"far", 100_001) == 3
            assert os.fstat(fd).st_size == 100_004
            assert os.pread(fd, 200_000, 0) == bytes(100_001) + b"far"
        finally:
            os.close(fd)
        assert (fs.source / "grow.img").read_bytes() == bytes(100_001) + b"far"


def test_mode_and_times_are_changed(fs: MountedFs) -> None:
    """chmod and utime, on images and directories, seen underneath."""
    for name in ("a.img", "sub"):
        (fs.path / name).chmod(0o700)
        os.utime(fs.path / name, ns=(1_000_000_001, 2_000_000_002))
        st = (fs.source / name).stat()
        assert stat.S_IMODE(st.st_mode) == 0o700
        assert (st.st_atime_ns, st.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
        assert attributes(fs.path / name) == attributes(fs.source / name)


def test_two_names_are_one_image(fs: MountedFs) -> None:
    """Hard links: one inode, both count, what is written through one is read through the other."""
    os.link(fs.path / "a.img", fs.path / "sub/also.img")
    assert (fs.source / "a.img").samefile(fs.source / "sub/also.img")
    here, there = (fs.path / "a.img").stat(), (fs.path / "sub/also.img").stat()
    assert (here.st_ino, here.st_nlink) == (there.st_ino, 2)
    with (fs.path / "a.img").open("r+b", buffering=0) as one:
        one.write(b"shared")
        assert (fs.path / "sub/also.img").read_bytes()[:6] == b"shared"
    (fs.path / "a.img").unlink()
    assert (fs.path / "sub/also.img").stat().st_nlink == 1
    assert (fs.path / "sub/also.img").read_bytes() == b"shared" + CONTENT[6:]


def test_a_read_only_mount_refuses_every_change(mounted: Mounting, image_dir: Path) -> None:
    """EROFS for each, and nothing has changed underneath."""
    (image_dir / "a.img").write_bytes(CONTENT)
    before = attributes(image_dir / "a.img")
    fs = mounted(image_dir, "--read-only")
    path, other = fs.path / "a.img", fs.path / "b.img"
    changes: list[Callable[[], object]] = [
        lambda: path.open("r+b"),
        lambda: path.open("wb"),
        lambda: other.open("xb"),
        lambda: os.truncate(path, 0),
        lambda: path.unlink(),
        lambda: path.rename(other),
        lambda: path.chmod(0o600),
        lambda: os.utime(path, ns=(1, 1)),
        lambda: os.link(path, other),
        lambda: other.mkdir(),
    ]
    for number, change in enumerate(changes):
        with pytest.raises(OSError) as caught:
            change()
        assert caught.value.errno == errno.EROFS, f"change {number}"
    assert path.read_bytes() == CONTENT
    assert attributes(image_dir / "a.img") == before
    assert names_in(image_dir) == ["a.img"]
