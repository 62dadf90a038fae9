"""A file of the hub as a Python file, so that a few documents of a large one cost a few of its bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass

from rebase.errors import UnsafeFile
from workers.hub.port import ByteSource

MAX_CORPUS_BYTES = 256 * 2**20  # of all of a corpus's files together
CHUNK_BYTES = 2**20


@dataclass
class ReadBudget:
    """What may still be read. One for all of a corpus's files."""

    remaining: int = MAX_CORPUS_BYTES

    def spend(self, count: int, name: str) -> None:
        """UnsafeFile when it is used up."""
        self.remaining -= count
        if self.remaining < 0:
            raise UnsafeFile(
                f"More than {MAX_CORPUS_BYTES >> 20} MiB of '{name}' would have to be read for this corpus.",
                hint="Ask for fewer documents (corpus.n), or name a split with shorter ones.",
                pointer="/corpus",
            )


class ByteSourceStream(io.RawIOBase):
    """Reads forward and back in a `ByteSource`."""

    def __init__(self, source: ByteSource, name: str, budget: ReadBudget) -> None:
        super().__init__()
        self._source = source
        self._name = name
        self._budget = budget
        self._position = 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes from the beginning."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """To a place, which may lie behind the end."""
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._source.size}[whence]
        self._position = max(0, origin + offset)
        return self._position

    def read(self, size: int = -1, /) -> bytes:
        """At most what is there: a file that lies about its sizes gets no memory for them."""
        remaining = max(0, self._source.size - self._position)
        return super().read(remaining if size < 0 else min(size, remaining)) or b""

    def readinto(self, buffer: object, /) -> int:
        """As much as fits and is there. Raises as `ByteSource.read_into`; UnsafeFile beyond the budget."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        count = max(0, min(len(view), self._source.size - self._position))
        if count:
            self._budget.spend(count, self._name)
            self._source.read_into(self._position, view[:count])
            self._position += count
        return count


def open_text(stream: ByteSourceStream) -> io.TextIOWrapper:
    """The file as UTF-8 text, a chunk at a time; line ends stay as they are."""
    return io.TextIOWrapper(io.BufferedReader(stream, CHUNK_BYTES), "utf-8-sig", newline="")
