"""The program of a server that a keeper has started: `python -m aiofs.serve FD`, not for people.

Its orders come over the channel FD.
"""

from __future__ import annotations

import sys

from .channel import Channel


def main(channel_fd: int) -> int:
    """Serve as ordered; the exit status. The keeper is told when there is nothing to serve with."""
    try:
        from . import orders
    except Exception as error:  # whatever a version that is broken raises
        failed = {"is": "failed", "text": f"cannot import what serves: {error!r}", "status": 1}
        Channel.of(channel_fd).send(failed)
        return 1
    return orders.obey(channel_fd)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])))
