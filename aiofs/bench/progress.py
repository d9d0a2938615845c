"""How far a run is: a bar with the time left on a terminal, a line now and then elsewhere. On stderr."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY_S = 10.0


class Bar:
    """A context manager. It draws between the cells only: what it costs is not measured as a driver's."""

    def __init__(self, total: int) -> None:
        self._console = Console(stderr=True)
        self._total = total
        self._done = 0
        self._next_line = time.monotonic()
        self._progress = Progress(
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
            console=self._console,
            auto_refresh=False,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._progress.add_task("", total=total)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, words: str) -> None:
        """The next cell begins."""
        if self._console.is_terminal:
            self._progress.update(self._task, completed=self._done, description=words, refresh=True)
        elif time.monotonic() >= self._next_line:
            print(f"{self._done} of {self._total}: {words}", file=sys.stderr, flush=True)
            self._next_line = time.monotonic() + LINE_EVERY_S
        self._done += 1
