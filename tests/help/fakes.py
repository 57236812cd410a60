"""Hand-written fakes that are put in through the storage seam. No torch here: children import it too."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any, BinaryIO

from kit.store.disk import Disk


class FailingDisk(Disk):
    """A disk whose n-th call fails; without `at` it fails never and only keeps the names of the calls.

    Args:
        at: The call that fails, counted from 1.
        number: The error number it fails with.
    """

    def __init__(self, at: int = 0, number: int = errno.ENOSPC) -> None:
        self.at, self.number = at, number
        self.calls: list[str] = []

    def _count(self, name: str) -> None:
        self.calls.append(name)
        if len(self.calls) == self.at:
            self.fail()

    def fail(self) -> None:
        raise OSError(self.number, os.strerror(self.number))

    def open(self, path: Path, direct: bool = False) -> BinaryIO:
        self._count("open")
        return super().open(path, direct)

    def sync(self, file: BinaryIO) -> None:
        self._count("sync")
        super().sync(file)

    def sync_folder(self, folder: Path) -> None:
        self._count("sync_folder")
        super().sync_folder(folder)

    def link(self, source: Path, target: Path) -> None:
        self._count("link")
        super().link(source, target)

    def replace(self, source: Path, target: Path) -> None:
        self._count(f"replace {target.name}")
        super().replace(source, target)

    def unlink(self, path: Path) -> None:
        self._count("unlink")
        super().unlink(path)


class DyingDisk(FailingDisk):
    """A disk at whose n-th call the whole process dies, as from a SIGKILL: nothing is tidied up."""

    def fail(self) -> None:
        os._exit(9)


class SickDisk(FailingDisk):
    """A disk whose calls of one name fail for as long as it is sick.

    Args:
        call: The name, as `calls` has it.
        number: The error number they fail with.
    """

    def __init__(self, call: str, number: int = errno.EIO) -> None:
        super().__init__(0, number)
        self.call, self.sick = call, False

    def _count(self, name: str) -> None:
        self.calls.append(name)
        if self.sick and name == self.call:
            self.fail()


class FullDisk(Disk):
    """A disk with room for `size` bytes of a file."""

    def __init__(self, size: int) -> None:
        self.size = size

    def open(self, path: Path, direct: bool = False) -> BinaryIO:
        return _Limited(super().open(path, direct), self.size)  # type: ignore[return-value]

    def free(self, folder: Path) -> int:
        return self.size


class _Limited:
    def __init__(self, file: BinaryIO, room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: Any) -> int:
        self.room -= len(memoryview(data).cast("B"))
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()

    def fileno(self) -> int:
        return self.file.fileno()

    def __enter__(self) -> _Limited:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()
