"""A file that is written past the page cache.

A checkpoint is written once and hardly ever read, and its pages would push out those of the training images. To make
them takes more computing time than all the rest of a save: 50 to 500 ms for 240 MB where this takes 15. What lies in
memory as the disk wants it is not even copied.

Not covered: file systems that know no direct writing (`open` then refuses, and the caller writes as usual).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path
from typing import Any

ALIGNMENT = 4096  # of memory, offset and length, which open(2) leaves to the file system: its block, at most a page
BLOCK = 1 << 20  # bytes; a write of less wastes time, and Python's lock is held while a block is filled
LARGEST = 1 << 23  # bytes of one write: the next one sees that the disk is full


class DirectFile:
    """Collects what is written, and hands it to the disk in whole blocks.

    Args:
        path: Created, or emptied.

    Raises:
        OSError: The disk refused; EINVAL where it cannot write directly.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_DIRECT, 0o666)
        self._block = memoryview(mmap.mmap(-1, BLOCK))
        self._offset = self._filled = 0  # of the block in the file, and what there is in it
        try:
            self._put(self._block[:ALIGNMENT])  # some file systems say no only now
            os.ftruncate(self._descriptor, 0)
        except OSError:
            self.close()
            raise

    def write(self, data: Any) -> int:
        """Take bytes; those of a block that is full are on their way to the disk when this returns."""
        view = memoryview(data).cast("B")
        done = 0
        if len(view) >= BLOCK and not self._filled % ALIGNMENT and _aligned(view):
            self._next(self._block[: self._filled])
            done = len(view) // ALIGNMENT * ALIGNMENT
            self._next(view[:done])
        while done < len(view):
            count = min(BLOCK - self._filled, len(view) - done)
            self._block[self._filled : self._filled + count] = view[done : done + count]
            self._filled, done = self._filled + count, done + count
            if self._filled == BLOCK:
                self._next(self._block)
        return len(view)

    def flush(self) -> None:
        """Write the block that is not full, padded, and cut the padding off; it may still be filled."""
        if self._filled:
            self._put(self._block[: -(-self._filled // ALIGNMENT) * ALIGNMENT])
            os.ftruncate(self._descriptor, self._offset + self._filled)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def close(self) -> None:
        """Close the file; what was not flushed is lost."""
        os.close(self._descriptor)

    def __enter__(self) -> DirectFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _next(self, view: memoryview) -> None:
        """Write whole units, and begin a new block behind them."""
        self._put(view)
        self._offset, self._filled = self._offset + len(view), 0

    def _put(self, view: memoryview) -> None:
        done = 0
        while done < len(view):  # a disk that fills up takes a part, and refuses the rest
            done += os.pwrite(self._descriptor, view[done : done + LARGEST], self._offset + done)


def _aligned(view: memoryview) -> bool:
    """Tell whether memory lies as direct writing wants it; a text or a pickle, which cannot be changed, does not."""
    return not view.readonly and ctypes.addressof(ctypes.c_char.from_buffer(view)) % ALIGNMENT == 0
