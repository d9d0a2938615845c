"""The program of a server that a keeper has started: `python -m aiofs.serve FD`, not for people.

Its orders come over the channel FD.
"""

import gc
import sys


def main(channel_fd: int) -> int:
    """Import what serving takes, all of it and at once, and serve as ordered; the exit status."""
    gc.disable()  # nothing of it is garbage now...
    try:
        from . import choice, directio, evidence, memory, orders, source  # noqa: F401 -- mount.py's, later
    except Exception as error:
        from .channel import Channel

        failed = {"is": "failed", "text": f"cannot import what serves: {error!r}", "status": 1}
        Channel.of(channel_fd).send(failed)
        return 1
    gc.freeze()  # ...nor later: the search for some takes a tenth of the start
    gc.enable()
    return orders.obey(channel_fd)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
