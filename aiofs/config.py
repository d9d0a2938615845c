"""What a mount is asked to be: frozen, checked, free of I/O. cli.py makes it, everything else reads it.

The flags of `aiofs mount` and the words of its `-o` end in the same settings, checked by the same
functions, so an option means the same wherever it stands.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from . import faults
from .errors import BadInput


class CacheMode(enum.StrEnum):
    """How images are opened and what fsync does, in QEMU's words."""

    NONE = "none"
    WRITEBACK = "writeback"
    WRITETHROUGH = "writethrough"
    DIRECTSYNC = "directsync"
    UNSAFE = "unsafe"

    @property
    def direct(self) -> bool:
        """The image is opened with O_DIRECT."""
        return self in (CacheMode.NONE, CacheMode.DIRECTSYNC)

    @property
    def dsync(self) -> bool:
        """The image is opened with O_DSYNC: every write is durable before it is answered."""
        return self in (CacheMode.WRITETHROUGH, CacheMode.DIRECTSYNC)

    @property
    def honours_fsync(self) -> bool:
        """fsync reaches the image (false for `unsafe` only)."""
        return self is not CacheMode.UNSAFE


DRIVERS = ("io_uring", "linux", "threads", "posix", "sync")
"""The names of the drivers: known here so that a wrong word needs no C to be refused."""
AUTO = "auto"
"""The word for "aiofs chooses the driver"."""
LOG_LEVELS = ("debug", "info", "warning", "error")
DEFAULT_QUEUE_DEPTH = 128
MAX_QUEUE_DEPTH = 4096


Settings = dict[str, str | bool]
"""Fields of MountConfig as they were written: text, or a bool for a word without a value."""


@dataclass(frozen=True)
class MountConfig:
    """One mount, as asked for."""

    source: Path
    """A directory of images, one image file, or one block device; absolute."""
    mountpoint: Path
    """An existing directory; absolute."""
    aio: str | None = None
    """The name of a driver; None: aiofs decides for each image."""
    faults: faults.Plan | None = None
    """What is to go wrong on purpose, before the driver."""
    aio_words: str = field(default=AUTO, compare=False)
    """`--aio` as it was written: both of them."""
    cache: CacheMode | None = None
    """None: `none` where O_DIRECT works for the image, else `writeback`."""
    queue_depth: int = DEFAULT_QUEUE_DEPTH
    """Requests in work at once, 1 .. MAX_QUEUE_DEPTH."""
    merge: bool = True
    read_only: bool = False
    allow_other: bool = False
    noexec: bool = False
    """Files of the mount cannot be executed (mount(8); implied by `user` in fstab)."""
    foreground: bool = False
    log_level: str = "info"
    log_file: Path | None = None
    survive: bool = True
    """Another server is started when this one dies."""

    @property
    def asked_driver(self) -> str:
        """The driver asked for, as it is told: `io_uring`, `auto`, `fault:io_uring`."""
        return (faults.PREFIX if self.faults else "") + (self.aio or AUTO)

    def to_words(self) -> Settings:
        """All of it as JSON can say it; `from_words` reads it."""
        words: Settings = {"aio": self.aio_words}
        for name in {each.name for each in fields(self)} - {"aio", "faults", "aio_words"}:
            value = getattr(self, name)
            if value is not None:
                words[name] = value if isinstance(value, bool) else str(value)
        return words

    @classmethod
    def from_words(cls, words: Settings) -> MountConfig:
        """What `to_words` made, checked anew. BadInput."""
        rest = dict(words)
        source, mountpoint = Path(str(rest.pop("source"))), Path(str(rest.pop("mountpoint")))
        return make_config(source, mountpoint, [rest])

    def changed(self, settings: Settings) -> MountConfig:
        """With some settings changed, of those that a mount need not be made anew for. BadInput."""
        config = self
        for name, value in settings.items():
            if name not in CHANGEABLE:
                raise BadInput(f"'{name}' cannot be changed by a restart; valid: {' '.join(CHANGEABLE)}")
            config = _apply(config, name, value)
        return config


CHANGEABLE = ("aio", "cache", "queue_depth", "merge", "log_level", "log_file")
"""What a restart may change."""


def parse_driver(word: str) -> str | None:
    """A driver's name, or None for `auto`. BadInput lists the names."""
    if word == AUTO:
        return None
    if word not in DRIVERS:
        raise BadInput(
            f"unknown AIO driver '{word}'; valid: {AUTO} {' '.join(DRIVERS)}, {faults.PREFIX}DRIVER "
            "('aiofs drivers' describes them)"
        )
    return word


def parse_cache(word: str) -> CacheMode:
    """A cache mode by its word. BadInput lists the words."""
    try:
        return CacheMode(word)
    except ValueError:
        raise BadInput(f"unknown cache mode '{word}'; valid: {' '.join(CacheMode)}") from None


def parse_queue_depth(word: str) -> int:
    """A queue depth in requests, 1 .. MAX_QUEUE_DEPTH, decimal."""
    try:
        if not word.isascii():
            raise ValueError
        depth = int(word, 10)
    except ValueError:
        raise BadInput(f"queue depth '{word}' is not a number; use 1 to {MAX_QUEUE_DEPTH}") from None
    if not 1 <= depth <= MAX_QUEUE_DEPTH:
        raise BadInput(f"queue depth {word} is out of range; use 1 to {MAX_QUEUE_DEPTH}")
    return depth


def parse_log_level(word: str) -> str:
    """A log level by its word. BadInput lists the words."""
    if word not in LOG_LEVELS:
        raise BadInput(f"unknown log level '{word}'; valid: {' '.join(LOG_LEVELS)}")
    return word


_VALUES = ("aio", "cache", "queue_depth", "log_level", "log_file")
_WORDS: Mapping[str, tuple[str, bool]] = {
    "merge": ("merge", True),
    "no_merge": ("merge", False),
    "ro": ("read_only", True),
    "read_only": ("read_only", True),
    "rw": ("read_only", False),
    "allow_other": ("allow_other", True),
    "exec": ("noexec", False),
    "noexec": ("noexec", True),
    "foreground": ("foreground", True),
    "survive": ("survive", True),
    "no_survive": ("survive", False),
}
OPTION_WORDS = (*(f"{name}=" for name in _VALUES), *_WORDS)
"""What may stand in `-o`, as listed by the message for a word that may not."""


def parse_options(text: str) -> Settings:
    """The settings in the text of one `-o a,b=c`; a later word wins. `-` and `_` are the same in names."""
    settings: Settings = {}
    for item in filter(None, text.split(",")):
        written, equals, value = item.partition("=")
        name = written.strip().replace("-", "_")
        if equals and name in _VALUES:
            settings[name] = value
        elif not equals and name in _WORDS:
            field, setting = _WORDS[name]
            settings[field] = setting
        elif name in _VALUES:
            raise BadInput(f"option -o {written} needs a value: -o {name}=...")
        elif name in _WORDS:
            raise BadInput(f"option -o {written} takes no value, got '{value}'")
        else:
            raise BadInput(f"unknown option -o {written}; valid: {' '.join(OPTION_WORDS)}")
    return settings


def make_config(source: Path, mountpoint: Path, layers: Iterable[Settings]) -> MountConfig:
    """The checked configuration; a later layer of settings wins over an earlier one."""
    merged: Settings = {}
    for layer in layers:
        merged |= layer
    config = MountConfig(source=source, mountpoint=mountpoint)
    for name, value in merged.items():
        config = _apply(config, name, value)
    return config


def check_setting(name: str, value: str | bool) -> None:
    """BadInput when no mount could be made with this setting."""
    _apply(MountConfig(Path(), Path()), name, value)


def _apply(config: MountConfig, name: str, value: str | bool) -> MountConfig:
    text = str(value)
    match name:
        case "aio":
            driver, plan = faults.parse(text) if faults.is_faulty(text) else (text, None)
            return replace(config, aio=parse_driver(driver), faults=plan, aio_words=text)
        case "cache":
            return replace(config, cache=parse_cache(text))
        case "queue_depth":
            return replace(config, queue_depth=parse_queue_depth(text))
        case "log_level":
            return replace(config, log_level=parse_log_level(text))
        case "log_file":
            if not text:
                raise BadInput("option log_file needs a file name")
            return replace(config, log_file=Path(text).absolute())
        case "merge":
            return replace(config, merge=bool(value))
        case "read_only":
            return replace(config, read_only=bool(value))
        case "allow_other":
            return replace(config, allow_other=bool(value))
        case "noexec":
            return replace(config, noexec=bool(value))
        case "foreground":
            return replace(config, foreground=bool(value))
        case "survive":
            return replace(config, survive=bool(value))
    raise AssertionError(f"no such setting: {name}")
