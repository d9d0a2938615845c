"""Work that commits, and what it may count on after a power failure.

Each worker makes its commits one after another in a directory, and tells of each when it is acknowledged:
when the fsync(2) behind it has returned. Afterwards all that was acknowledged must be there as it was
written, and a transaction that was not is there as a whole or not at all. Knows no disks.
"""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

Acknowledge = Callable[[int], None]
"""To be called with the number of commits made so far."""


class Appender:
    """A file that grows by records, each synced."""

    name = "append"
    LONGEST = 3000

    def prepare(self, directory: Path) -> None:
        """Make the file."""
        fd = os.open(directory / self.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        os.fsync(fd)
        os.close(fd)

    def work(self, directory: Path, commits: int, acknowledge: Acknowledge) -> None:
        """Append records."""
        fd = os.open(directory / self.name, os.O_WRONLY | os.O_APPEND)
        try:
            for number in range(commits):
                record = self._record(number)
                assert os.write(fd, record) == len(record)
                os.fdatasync(fd)
                acknowledge(number + 1)
        finally:
            os.close(fd)

    def wrong(self, directory: Path, acknowledged: int) -> str:
        """What is not as it must be; empty when all is. OSError."""
        found = (directory / self.name).read_bytes()
        expected = b"".join(self._record(number) for number in range(acknowledged))
        if found.startswith(expected):
            return ""
        pairs = enumerate(zip(found, expected, strict=False))
        right = next((at for at, (one, other) in pairs if one != other), min(len(found), len(expected)))
        return f"{len(found)} bytes, right up to {right}, and {len(expected)} were acknowledged"

    def _record(self, number: int) -> bytes:
        chance = random.Random(number)
        return chance.randbytes(chance.randrange(1, self.LONGEST))


class Database:
    """Transactions of SQLite: each adds a row, counts it, and replaces an older one's bytes."""

    LONGEST = 6000

    def __init__(self, journal: str) -> None:
        """`journal`: SQLite's journal_mode."""
        self.name = f"{journal}.db"
        self._journal = journal

    def prepare(self, directory: Path) -> None:
        """Make the database."""
        with self._opened(directory) as database:
            assert database.execute(f"PRAGMA journal_mode = {self._journal}").fetchone() == (self._journal,)
            database.execute("BEGIN")
            database.execute("CREATE TABLE rows (number INTEGER PRIMARY KEY, bytes BLOB)")
            database.execute("CREATE TABLE count (rows INTEGER)")
            database.execute("INSERT INTO count VALUES (0)")
            database.execute("COMMIT")

    def work(self, directory: Path, commits: int, acknowledge: Acknowledge) -> None:
        """Commit transactions."""
        with self._opened(directory) as database:
            for number in range(commits):
                database.execute("BEGIN")
                database.execute("INSERT INTO rows VALUES (?, ?)", (number, self._bytes(number, number)))
                database.execute("UPDATE count SET rows = rows + 1")
                old = self._replaced(number)
                database.execute(
                    "UPDATE rows SET bytes = ? WHERE number = ?", (self._bytes(old, number), old)
                )
                database.execute("COMMIT")
                acknowledge(number + 1)

    def wrong(self, directory: Path, acknowledged: int) -> str:
        """What is not as it must be; empty when all is. OSError, sqlite3.Error."""
        with self._opened(directory) as database:
            told = database.execute("PRAGMA integrity_check").fetchall()
            counted = database.execute("SELECT rows FROM count").fetchall()
            rows = dict(database.execute("SELECT number, bytes FROM rows"))
        if told != [("ok",)]:
            return f"integrity_check: {told[:3]}"
        if counted != [(len(rows),)] or len(rows) < acknowledged:
            return f"{len(rows)} rows, counted as {counted}, and {acknowledged} were acknowledged"
        return "" if rows == self._expected(len(rows)) else f"{len(rows)} rows with other bytes in them"

    @contextmanager
    def _opened(self, directory: Path) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(directory / self.name, isolation_level=None)) as database:
            # FULL, and the directory is synced when the rollback journal has gone: that is the commit.
            database.execute("PRAGMA synchronous = EXTRA")
            database.execute("PRAGMA wal_autocheckpoint = 30")  # pages; the default is never reached here
            yield database

    def _expected(self, count: int) -> dict[int, bytes]:
        rows = {}
        for number in range(count):
            rows[number] = self._bytes(number, number)
            old = self._replaced(number)
            rows[old] = self._bytes(old, number)
        return rows

    def _replaced(self, number: int) -> int:
        """The older row that the transaction of row `number` replaces."""
        return random.Random(number).randrange(number + 1)

    def _bytes(self, row: int, transaction: int) -> bytes:
        chance = random.Random(row * 1_000_003 + transaction)
        return chance.randbytes(chance.randrange(self.LONGEST))


Worker = Appender | Database


def workers() -> list[Worker]:
    """One of each kind."""
    return [Appender(), Database("wal"), Database("delete")]


def lost(directory: Path, acknowledged: Mapping[str, int]) -> list[str]:
    """What is not as it must be after so many commits of each worker, by its name."""
    found = []
    for worker in workers():
        try:
            wrong = worker.wrong(directory, acknowledged[worker.name])
        except (OSError, sqlite3.Error) as error:
            wrong = f"{type(error).__name__}: {error}"
        if wrong:
            found.append(f"{worker.name}: {wrong}")
    return found
