"""argv to config, and exceptions to an exit status: 0 done, 1 failed at run time, 2 bad input.

What a command needs is imported when it runs: `aiofs info` starts no event loop, and `aiofs mount` reports
a wrong word before it loads anything.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .background import INTERRUPTED
from .bench import arguments as bench_words
from .config import (
    AUTO,
    CHANGEABLE,
    DEFAULT_QUEUE_DEPTH,
    DRIVERS,
    MAX_QUEUE_DEPTH,
    CacheMode,
    Settings,
    check_setting,
    make_config,
    parse_cache,
    parse_options,
)
from .errors import AiofsError, BadInput

if TYPE_CHECKING:
    from .headstart import HeadStart
    from .mounttable import Mount

_EPILOG = """\
examples:
  aiofs drivers                         which AIO drivers work here, or why not
  aiofs mount images/ /mnt/vdisk        each image in images/ is a file there
  aiofs mount disk.img /mnt/vdisk       one image: /mnt/vdisk/disk.img
  aiofs mount images/ /mnt/vdisk --aio linux --cache none
  aiofs attach /mnt/vdisk/disk.img      a loop device on it: prints /dev/loopN
  aiofs detach /mnt/vdisk/disk.img      takes it away again
  aiofs info /mnt/vdisk                 drivers, cache modes and counters
  aiofs top /mnt/vdisk                  what each image does right now
  aiofs bench disk.img                  which driver is the fastest for it
  aiofs restart /mnt/vdisk              a new server; its users see no error
  aiofs umount /mnt/vdisk               returns when everything is on disk
"""

_MOUNT_EPILOG = f"""\
cache modes (QEMU's words):
  none          O_DIRECT: past the host page cache (default where it works)
  writeback     through the page cache; on disk after fsync (default elsewhere)
  writethrough  through the page cache; every write is on disk before its answer
  directsync    O_DIRECT, and every write is on disk before its answer
  unsafe        as writeback, and fsync is ignored: for what may be lost

-o takes the same words: -o aio=linux,cache=none,queue_depth=64,no_merge,ro,rw,
allow_other,foreground,no_survive,log_level=debug,log_file=FILE. A flag wins.

examples:
  aiofs mount images/ /mnt/vdisk
  aiofs mount images/ /mnt/vdisk --aio threads --cache writeback --read-only
  aiofs mount /dev/vg0/guest /mnt/vdisk --queue-depth {DEFAULT_QUEUE_DEPTH * 2}
  aiofs mount images/ /mnt/vdisk --foreground --log-level debug
  aiofs attach /mnt/vdisk/disk.img

exit status: 0 ready, or ended well; 1 it failed; 2 bad input.
"""

_TOP_EPILOG = """\
columns, for each image and the last interval:
  IOPS    requests of the kernel a second: reads, writes, fsyncs
  READ    reads, of the reads and writes
  MB/S    megabytes (10^6 bytes) read and written a second
  DEPTH   requests in work, on average
  BATCH   I/Os of this image in one submit, on average
  MERGED  reads and writes that joined the I/O of another one
  P50 P99 half, and all but one percent, of the reads and writes took no longer
An image whose requests fail, or whose fsync has failed, is marked with !.

keys: 1-9 sort by a column, < > the column beside, r reverse, q or Ctrl-C quit

examples:
  aiofs top /mnt/vdisk
  aiofs top /mnt/vdisk --batch --interval 5 --count 12 > minute.txt

exit status: 0 ended by q, Ctrl-C or --count; 1 the mount does not answer, or
has been unmounted; 2 bad input.
"""


class _Parser(argparse.ArgumentParser):
    """argparse whose errors are one line, like every other error of aiofs."""

    def error(self, message: str) -> NoReturn:
        raise BadInput(f"{message} (see {self.prog} --help)")


class _Version(argparse.Action):
    """--version; reads the package's metadata only when asked (it takes 30 ms)."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from . import __version__

        print(f"aiofs {__version__}")
        parser.exit()


def main(argv: Sequence[str] | None = None, begun: HeadStart | None = None) -> int:
    """Run one command; the exit status. `begun`: it is a mount, and this has been done for it."""
    try:
        arguments = _parser().parse_args(argv, argparse.Namespace(begun=begun))
        command: Callable[[argparse.Namespace], int] = arguments.command
        return command(arguments)
    except AiofsError as error:
        print(f"aiofs: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # the reader of a pipe has enough: `aiofs info | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


# -- the commands --


def _mount(arguments: argparse.Namespace) -> int:
    options = [parse_options(text) for text in arguments.options]
    flags: Settings = {
        name: value
        for name in ("aio", "cache", "queue_depth", "log_level", "log_file", "merge", "read_only", "survive")
        if (value := getattr(arguments, name)) is not None
    }
    flags |= {name: True for name in ("allow_other", "foreground") if getattr(arguments, name)}
    asked = [layer["aio"] for layer in (*options, flags) if "aio" in layer]
    if asked and asked[-1] in ("help", "?"):
        return _drivers(arguments)
    if arguments.source is None or arguments.mountpoint is None:
        missing = "SOURCE and MOUNTPOINT" if arguments.source is None else "MOUNTPOINT"
        raise BadInput(f"{missing} missing: aiofs mount SOURCE MOUNTPOINT (see aiofs mount --help)")
    config = make_config(
        _path("SOURCE", arguments.source), _path("MOUNTPOINT", arguments.mountpoint), [*options, flags]
    )
    from . import mount

    return mount.run(config, arguments.begun)


def _umount(arguments: argparse.Namespace) -> int:
    from .umount import umount

    path = _path("MOUNTPOINT", arguments.mountpoint)
    return umount(path, lazy=arguments.lazy, detach=arguments.detach)


def _restart(arguments: argparse.Namespace) -> int:
    from .restart import restart

    settings: Settings = {
        name: value for name in CHANGEABLE if (value := getattr(arguments, name)) is not None
    }
    if "log_file" in settings:
        settings["log_file"] = str(Path(str(settings["log_file"])).absolute())
    for name, value in settings.items():
        check_setting(name, value)
    return restart(_aiofs_mount(arguments.mountpoint), settings)


def _attach(arguments: argparse.Namespace) -> int:
    from .attach import attach

    path = _path("IMAGE", arguments.image)
    return attach(path, read_only=arguments.read_only, partitions=arguments.partitions)


def _detach(arguments: argparse.Namespace) -> int:
    from .detach import detach

    return detach(_path("IMAGE", arguments.image))


def _info(arguments: argparse.Namespace) -> int:
    from . import attachments, info, mounttable

    if arguments.mountpoint is not None:
        mount = _aiofs_mount(arguments.mountpoint)
        told = info.read(mount.mountpoint)
        attached = attachments.told(mount)
        if arguments.json:
            print(json.dumps({**told, "attached": attached}, indent=2))
            return 0
        from . import explain

        print(info.describe(told))
        if attached:
            print("\n".join(["", *attachments.table(attached)]))
        for decision in info.decisions(told):
            print()
            explain.show([decision])
        return 0
    found: list[tuple[mounttable.Mount, dict[str, Any] | info.Unreadable]] = []
    for mount in mounttable.aiofs_mounts():
        try:
            told = info.read(mount.mountpoint, timeout_s=2.0)
            found.append((mount, {**told, "attached": attachments.told(mount)}))
        except info.Unreadable as error:
            found.append((mount, error))
    if arguments.json:
        silent = (
            {"mountpoint": str(m.mountpoint), "error": str(e)} for m, e in found if isinstance(e, AiofsError)
        )
        print(json.dumps([*(told for _, told in found if isinstance(told, dict)), *silent], indent=2))
    elif found:
        print("\n".join(info.listing(found)))
    else:
        print("no aiofs mounts")
    return 0


def _top(arguments: argparse.Namespace) -> int:
    from . import top

    options = top.Options(
        interval_s=top.parse_interval(arguments.interval),
        batch=arguments.batch,
        count=None if arguments.count is None else top.parse_count(arguments.count),
    )
    return top.run(_aiofs_mount(arguments.mountpoint), options)


def _aiofs_mount(text: str) -> Mount:
    from . import mounttable

    path = _path("MOUNTPOINT", text)
    mount = mounttable.mount_at(path)
    if mount is None or not mount.is_aiofs:
        raise BadInput(f"{path} is not an aiofs mount; 'aiofs info' lists them")
    return mount


def _drivers(_: argparse.Namespace) -> int:
    from .dataplane import drivers

    statuses = drivers()
    print(f"{'driver':<10}{'works':<7}what it is, or why it does not work")
    for status in statuses:
        works, text = ("yes", status.description) if status.works else ("no", status.reason)
        print(f"{status.name:<10}{works:<7}{text}")
    print("\nfault:DRIVER,... puts errors, short results and delays before one: docs/testing-with-faults.md.")
    print("Without --aio, one is decided for each image: 'aiofs probe IMAGE' shows which, and why.")
    return 0


def _probe(arguments: argparse.Namespace) -> int:
    from . import probe

    paths = [_path("PATH", text) for text in arguments.paths]
    cache = parse_cache(arguments.cache) if arguments.cache is not None else None
    return probe.run(paths, cache, arguments.json)


def _bench(arguments: argparse.Namespace) -> int:
    request = bench_words.request(arguments, _path("IMAGE", arguments.image))
    from .bench.command import bench

    return bench(request)


def _path(name: str, text: str) -> Path:
    if not text:
        raise BadInput(f"{name} is empty")
    if "\0" in text:
        raise BadInput(f"{name} holds a NUL byte")
    return Path(os.path.abspath(text))  # noqa: PTH100 -- removes "..", which Path.absolute keeps


# -- the words of argv --


Commands = Any
"""What argparse's add_subparsers returns; its type has no public name."""

_RAW = argparse.RawDescriptionHelpFormatter


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="aiofs",
        description="Serve disk images as files, through batched and merged asynchronous I/O.",
        epilog=_EPILOG,
        formatter_class=_RAW,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, dest="name")
    for add in (
        _add_mount,
        _add_restart,
        _add_umount,
        _add_attach,
        _add_detach,
        _add_info,
        _add_top,
        _add_probe,
        _add_bench,
        _add_drivers,
    ):
        add(commands)
    return parser


def _add_mount(commands: Commands) -> None:
    mount = commands.add_parser(
        "mount",
        help="mount images; returns when the mount is ready",
        description="Mount a directory of images, one image, or one block device on a directory.",
        epilog=_MOUNT_EPILOG,
        formatter_class=_RAW,
    )
    _mount_arguments(mount)
    mount.set_defaults(command=_mount)


def _add_restart(commands: Commands) -> None:
    restart = commands.add_parser(
        "restart",
        help="a new server for a mount, of this version, without an error for its users",
        description="Replace the server of a mount, as after an upgrade of aiofs, or with other options. Who "
        "uses the mount waits a moment and sees no error; loop devices and guests stay attached.",
    )
    restart.add_argument("mountpoint", metavar="MOUNTPOINT")
    _serving_arguments(restart)
    restart.set_defaults(command=_restart)


def _add_umount(commands: Commands) -> None:
    umount = commands.add_parser(
        "umount",
        help="unmount; returns when everything is on disk",
        description="Unmount; returns when the server has synced everything and has gone.",
    )
    umount.add_argument("mountpoint", metavar="MOUNTPOINT")
    umount.add_argument(
        "--lazy", action="store_true", help="detach a busy mount now, do not wait for its end"
    )
    umount.add_argument(
        "--detach", action="store_true", help="first detach the loop devices on its images (needs root)"
    )
    umount.set_defaults(command=_umount)


def _add_attach(commands: Commands) -> None:
    attach = commands.add_parser(
        "attach",
        help="a loop device on an image; prints /dev/loopN (needs root)",
        description="Attach an image of a mount to a loop device: with direct I/O, sectors of the image's "
        "block size, and requests no larger than FUSE takes. Prints the device.",
    )
    attach.add_argument("image", metavar="IMAGE", help="a file on an aiofs mount")
    attach.add_argument("--read-only", action="store_true", help="the device cannot be written to")
    attach.add_argument(
        "--partitions", action="store_true", help="look for partitions, and print their devices too"
    )
    attach.set_defaults(command=_attach)


def _add_detach(commands: Commands) -> None:
    detach = commands.add_parser(
        "detach",
        help="take it away again; returns when it is gone (needs root)",
        description="Detach a loop device, or all of an image. One that is in use is refused.",
    )
    detach.add_argument("image", metavar="IMAGE|DEVICE", help="the image, or /dev/loopN")
    detach.set_defaults(command=_detach)


def _add_info(commands: Commands) -> None:
    info = commands.add_parser(
        "info",
        help="what a mount does; without MOUNTPOINT: all aiofs mounts",
        description="Driver, cache mode, counters of a mount and of its open images.",
    )
    info.add_argument("mountpoint", metavar="MOUNTPOINT", nargs="?")
    info.add_argument("--json", action="store_true", help="print JSON, for programs")
    info.set_defaults(command=_info)


def _add_probe(commands: Commands) -> None:
    probe = commands.add_parser(
        "probe",
        help="which driver --aio auto would take for an image, and why",
        description="Run the tests of --aio auto on images, block devices or directories, without mounting "
        "or changing them. A directory is tried with one of its images, or a temporary file.",
    )
    probe.add_argument("paths", metavar="PATH", nargs="+")
    probe.add_argument("--cache", metavar="MODE", help="decide for this cache mode; " + ", ".join(CacheMode))
    probe.add_argument("--json", action="store_true", help="print JSON, for programs")
    probe.set_defaults(command=_probe)


def _add_top(commands: Commands) -> None:
    top = commands.add_parser(
        "top",
        help="what each image does right now: a screen with keys, or text",
        description="Requests, throughput, depth, batches and latency of each image, live.",
        epilog=_TOP_EPILOG,
        formatter_class=_RAW,
    )
    _top_arguments(top)
    top.set_defaults(command=_top)


def _add_bench(commands: Commands) -> None:
    bench = commands.add_parser(
        "bench",
        help="compare the drivers for one image, without FUSE",
        description=bench_words.DESCRIPTION,
        epilog=bench_words.EPILOG,
        formatter_class=_RAW,
    )
    bench_words.add_arguments(bench)
    bench.set_defaults(command=_bench)


def _add_drivers(commands: Commands) -> None:
    drivers = commands.add_parser("drivers", help="the AIO drivers: which work here, and why not")
    drivers.set_defaults(command=_drivers)


def _top_arguments(top: argparse.ArgumentParser) -> None:
    add = top.add_argument
    add("mountpoint", metavar="MOUNTPOINT")
    add("--interval", metavar="S", default="1", help="seconds between two looks, 0.1 to 3600 (default 1)")
    add(
        "-b",
        "--batch",
        action="store_true",
        help="print text, no screen (default where there is no terminal)",
    )
    add("-n", "--count", metavar="N", help="end after N intervals")


def _mount_arguments(mount: argparse.ArgumentParser) -> None:
    add = mount.add_argument
    add("source", metavar="SOURCE", nargs="?", help="a directory of images, an image file, or a block device")
    add("mountpoint", metavar="MOUNTPOINT", nargs="?", help="an existing directory")
    _serving_arguments(mount)
    add("--read-only", dest="read_only", action="store_const", const=True, help="nothing can be changed")
    add("--allow-other", action="store_true", help="let other users use the mount")
    add("--foreground", action="store_true", help="stay in the foreground, log to stderr; Ctrl-C unmounts")
    add(
        "--no-survive",
        dest="survive",
        action="store_const",
        const=False,
        help="no second server when this one dies: the mount ends with it",
    )
    add(
        "-o",
        dest="options",
        metavar="A,B=C",
        action="append",
        default=[],
        help="the same options, as mount(8) has them",
    )


def _serving_arguments(parser: argparse.ArgumentParser) -> None:
    """What a restart may change as well."""
    add = parser.add_argument
    add("--aio", metavar="DRIVER", help=f"{AUTO} (default), {', '.join(DRIVERS)}; help or ? describes them")
    add("--cache", metavar="MODE", help=", ".join(CacheMode) + " (see aiofs mount --help)")
    add(
        "--queue-depth",
        metavar="N",
        help=f"requests in work at once, 1 to {MAX_QUEUE_DEPTH} (default {DEFAULT_QUEUE_DEPTH})",
    )
    add("--no-merge", dest="merge", action="store_const", const=False, help="do not merge adjacent requests")
    add("--log-level", metavar="LEVEL", help="debug, info (default), warning, error")
    add("--log-file", metavar="FILE", help="where a background server logs; default: syslog, if there is one")
