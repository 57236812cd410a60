"""torch's own file format, written by one pass over the memory.

torch's writer computes its checksums at less than 2 GB/s, and copies what it writes. Here a record is read once for its
checksum and handed to the file as it lies in memory. The file is what `torch.save` makes: a zip of stored records, each
at a multiple of 64 bytes (torch/serialization.py `_save`, caffe2/serialize/inline_container.cc). Large ones begin at a
multiple of 4096, so that they can be written past the page cache without a copy.
"""

from __future__ import annotations

import pickle
from typing import Any, BinaryIO, cast
from zipfile import ZIP64_LIMIT, ZipFile, ZipInfo

import torch
from torch import serialization

try:
    from isal.isal_zlib import crc32
except ImportError:  # the same checksum, at a sixth of the speed
    from zlib import crc32

PREFIX = "archive"  # what torch calls a file that it does not know the name of
VERSION = b"3\n"  # of the records' layout: torch.load wants it
SMALL, LARGE = 64, 4096  # bytes that a record's place is a multiple of
PADDING = b"FB"  # the name of the zip field that torch pads with


def save(state: Any, file: BinaryIO) -> None:
    """Write an object as `torch.save` does, but for Ultralytics' retries in it, which would go on in mid-file.

    Args:
        state: Its tensors are on the CPU.
        file: Open for writing, at its beginning; it need not be able to seek.
    """
    records = _Records(file)
    serialization._save(state, records, pickle, serialization.DEFAULT_PROTOCOL, False)  # type: ignore[no-untyped-call]
    records.close()


class _Records:
    """Takes a file's records from torch, in the place of torch's own writer."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._at = file, 0
        self._written: list[ZipInfo] = []

    def write_record(self, name: str, data: Any, size: int) -> None:
        """Write a record: a text, bytes, or the memory of a storage."""
        view = _memory(data)
        info = ZipInfo(f"{PREFIX}/{name}")
        info.file_size = info.compress_size = size
        info.CRC, info.header_offset = crc32(view), self._at
        begins = self._at + len(info.FileHeader(zip64=size > ZIP64_LIMIT)) + 4
        fill = -begins % (LARGE if size >= LARGE else SMALL)
        info.extra = PADDING + fill.to_bytes(2, "little") + b"Z" * fill
        self.write(info.FileHeader(zip64=size > ZIP64_LIMIT))
        self.write(view)
        info.extra = b""  # the directory needs none
        self._written.append(info)

    def close(self) -> None:
        """Write what torch's own writer ends with: the version, and the directory."""
        self.write_record("version", VERSION, len(VERSION))
        with ZipFile(cast(BinaryIO, self), "w") as directory:
            directory.filelist.extend(self._written)

    def write(self, data: Any) -> int:
        """Write at the end."""
        self._file.write(data)
        self._at += len(data)
        return len(data)

    def tell(self) -> int:
        """Return where the end is."""
        return self._at

    def flush(self) -> None:
        """Leave that to whoever opened the file."""


def _memory(data: Any) -> memoryview:
    if isinstance(data, torch.UntypedStorage):
        data = torch.empty(0, dtype=torch.uint8).set_(data).numpy()
    return memoryview(data.encode() if isinstance(data, str) else data)
