"""Decoded images that several processes share: a cache and nothing but a cache.

Mosaic needs four images for each sample, and decoding is most of the work. Whatever is found here is what decoding
would give, bit for bit, so nothing depends on whether the cache is cold, warm, half full or gone.

Where all images of a set fit, they get a file in scratch, filled as they are first decoded. Where they do not, a ring
in memory holds those that the samples around the current position are made of.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import multiprocessing
import os
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy

from kit.kaggle import machine, session
from kit.store import disk

RING_SHARE = 0.125  # most that a ring may take of the machine's memory
SHARE = 0.5  # most that a file may take of what is free in scratch, and of the machine's memory
HEAD = 6  # numbers per slot: tag, height, width, channels, original height, original width
Loaded = tuple[Any, tuple[int, int], tuple[int, int]]  # image (H, W, C) uint8, original (H, W), (H, W)


class ImageCache:
    """Slots for images, in a file or in memory, shared with the processes that are forked from this one.

    Args:
        slots: How many images it holds.
        slot_bytes: Size of the largest image.
        path: Of the file; without one the slots are in memory.
        contested: An image may take the slot of another that is being looked at.
    """

    def __init__(self, slots: int, slot_bytes: int, path: Path | None = None, contested: bool = False) -> None:
        self.slots, self.slot_bytes = slots, slot_bytes
        self._start = slots * HEAD * 8
        size = self._start + slots * slot_bytes
        self._file = None if path is None else _open(path, self._start, size)
        if self._file is None:  # all of it at once: page by page, a first touch takes longer than what is put there
            flags = mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)
            self._map = mmap.mmap(-1, size, flags=flags)
        else:
            self._map = mmap.mmap(self._file, size)
        self._heads = numpy.frombuffer(self._map, numpy.int64, slots * HEAD).reshape(slots, HEAD)
        self._bytes = numpy.frombuffer(self._map, numpy.uint8, offset=self._start)
        # Uncontested, an image is written before its head, and stays while it is looked at: nothing has to be locked.
        self._contested = contested
        self._lock: Any = multiprocessing.Lock() if contested else nullcontext()

    def get(self, slot: int, item: int) -> Loaded | None:
        """Return an image, or None where the slot holds another or nothing; it must not be written to."""
        with self._lock:
            tag, height, width, channels, full_height, full_width = self._heads[slot].tolist()
            if tag != item + 1:
                return None
            begin = slot * self.slot_bytes
            image = self._bytes[begin : begin + height * width * channels].reshape(height, width, channels)
            if self._contested:
                image = image.copy()
        image.flags.writeable = False
        return image, (full_height, full_width), (height, width)

    def put(self, slot: int, item: int, loaded: Loaded) -> None:
        """Keep an image; one that does not fit, or that the disk has no room for, is not kept."""
        image, original, _ = loaded
        if image.nbytes > self.slot_bytes or image.dtype != numpy.uint8 or image.ndim != 3:
            return
        begin = slot * self.slot_bytes
        with self._lock:
            self._heads[slot, 0] = 0
            if self._file is None:
                self._bytes[begin : begin + image.nbytes] = image.reshape(-1)
            else:
                content = numpy.ascontiguousarray(image).data
                try:  # a write to the map would end the process where the disk is full
                    if os.pwrite(self._file, content, self._start + begin) < image.nbytes:
                        return
                except OSError:
                    return
            self._heads[slot, 1:] = (*image.shape, *original)
            self._heads[slot, 0] = item + 1

    def __reduce__(self) -> Any:
        """A process that is started anew, and not forked, does without."""
        return (type(None), ())


def cache_for(
    files: Sequence[str], slot_bytes: int, ring: int, words: object, on_disk: bool = False, processes: int = 1
) -> tuple[ImageCache | None, bool]:
    """Make the cache for a data set.

    Args:
        files: The images.
        slot_bytes: Size of the largest image when decoded and resized.
        ring: Images that samples made at the same time draw from: with so many slots, none is taken from under another.
        words: What else decides on the decoded pixels.
        on_disk: The user wants them on the disk, whether or not they would fit into memory.
        processes: That make a ring of their own on this machine; a file they share.

    Returns:
        The cache, or None, and whether it has a slot for every image (else image n of the order has slot n modulo
        `slots`).
    """
    folder = session.scratch() / "images"
    memory, _ = machine.memory()
    folder.mkdir(exist_ok=True)
    name = f"{_digest(files, (slot_bytes, words))}.images"
    for other in folder.iterdir():
        if other.name != name:
            other.unlink(missing_ok=True)  # one set at a time: that bounds the folder
    room = disk.DISK.free(folder) + ((folder / name).stat().st_blocks * 512 if (folder / name).exists() else 0)
    if len(files) * slot_bytes <= SHARE * (room if on_disk else min(room, memory)):
        try:
            return ImageCache(len(files), slot_bytes, folder / name), True
        except OSError:
            pass  # no room even for the heads: the ring will do
    slots = min(ring, int(RING_SHARE * memory / processes) // slot_bytes)
    return (ImageCache(slots, slot_bytes, contested=slots < ring), False) if slots else (None, False)


def _open(path: Path, heads: int, size: int) -> int:
    """Open or make the file; its heads have room on the disk, its images get theirs as they come."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)  # another process that trains too may be making it
        if os.fstat(file).st_size != size:
            os.ftruncate(file, 0)
            os.pwrite(file, bytes(heads), 0)
            os.ftruncate(file, size)
    finally:
        fcntl.flock(file, fcntl.LOCK_UN)
    return file


def _digest(files: Sequence[str], words: object) -> str:
    """Hash the files' names, sizes and dates; and the boot, because a power cut leaves heads without their images."""
    digest = hashlib.sha256(repr(words).encode())
    try:
        digest.update(Path("/proc/sys/kernel/random/boot_id").read_bytes())
    except OSError:
        digest.update(str(session.started()).encode())
    for file in files:
        state = os.stat(file)
        digest.update(f"{file}\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return digest.hexdigest()[:16]
