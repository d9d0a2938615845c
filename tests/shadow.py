"""What an image may hold, known from the answers to its requests alone: the model of the fault sweep."""

from __future__ import annotations


class Shadow:
    """One image. What was answered as done is there, to the byte; what failed may be there, in part."""

    def __init__(self, content: bytes) -> None:
        self._bytes = bytearray(content)
        """What it holds if nothing of what failed was done."""
        self._either: dict[int, set[int]] = {}
        """Bytes that something that failed may have changed, by their place, and all that they may be."""
        self._longest = len(content)

    @property
    def size(self) -> int:
        """Bytes, if nothing of what failed was done."""
        return len(self._bytes)

    def written(self, offset: int, data: bytes, done: bool) -> None:
        """A write, or a hole (zeros), was answered."""
        end = offset + len(data)
        if done:
            self._bytes.extend(bytes(max(0, end - self.size)))
            self._bytes[offset:end] = data
            for place in [place for place in self._either if offset <= place < end]:
                del self._either[place]
        else:
            for place, byte in enumerate(data, offset):
                self._either.setdefault(place, {self._at(place)}).add(byte)
        self._longest = max(self._longest, end)

    def resized(self, size: int, done: bool) -> None:
        """It was to become longer."""
        if done:
            self._bytes.extend(bytes(size - self.size))
        self._longest = max(self._longest, size)

    def _at(self, place: int) -> int:
        return self._bytes[place] if place < self.size else 0

    def wrong(self, offset: int, found: bytes, whole: int) -> list[int]:
        """Places that cannot hold what was read from `offset` on, `whole` bytes or up to the end."""
        shortest = min(self.size, offset + whole) - offset
        longest = min(self._longest, offset + whole) - offset
        if not max(0, shortest) <= len(found) <= max(0, longest):
            return [offset + len(found)]
        if found == self._bytes[offset : offset + len(found)]:
            return []
        return [
            place
            for place, byte in enumerate(found, offset)
            if byte != self._at(place) and byte not in self._either.get(place, ())
        ]
