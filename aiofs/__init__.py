"""aiofs: disk images as files, through batched and merged asynchronous I/O."""

from importlib.metadata import version

__version__ = version("aiofs")
