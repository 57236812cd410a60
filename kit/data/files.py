"""The files of a data set's images: what identifies their content, which are duplicates, which look whole."""

from __future__ import annotations

import filecmp
import hashlib
import os
import stat
from collections import defaultdict
from collections.abc import Callable, Iterable
from multiprocessing.pool import ThreadPool
from typing import NamedTuple, TypeVar

END = 1024  # bytes read at either end of an image
COMPARED = 4 << 30  # bytes of images that are compared in full
SPECIAL = -2
NOTHING = bytes(16)  # the hash of a file that is missing or cannot be read; as long as the others
THREADS = 16  # network-mounted files are latency-bound
UNLISTED = frozenset({".apng", ".gif", ".jfif", ".jpe", ".pgm", ".pjpeg", ".ppm", ".svg", ".tga"})
T = TypeVar("T")
R = TypeVar("R")


class ImageFile(NamedTuple):
    """An image with what belongs to it.

    Attributes:
        path: Of the image.
        label: The path of its label file; empty where its folder tells the class.
        class_id: The class that its folder tells, else -1.
        stamps: Size in bytes (-1 for a missing file, `SPECIAL` for a pipe, device or folder) and date of the last
            change of the image, and of its label file.
    """

    path: str
    label: str
    class_id: int
    stamps: tuple[int, int, int, int]


class Hashes(NamedTuple):
    """What identifies the content of an image (by its size and both ends), and of its label file (by all bytes)."""

    image: bytes
    label: bytes


def in_threads(work: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Do the same for each item, many at a time."""
    with ThreadPool(THREADS) as pool:
        return pool.map(work, items, chunksize=64)


def stamp(path: str) -> tuple[int, int]:
    """Return a file's size (-1: missing, `SPECIAL`: not a plain file) and the date of its last change."""
    try:
        state = os.stat(path)
    except (OSError, ValueError):
        return -1, 0
    if not stat.S_ISREG(state.st_mode):  # opening a pipe waits for its writer
        return SPECIAL, 0
    return state.st_size, max(state.st_mtime_ns, state.st_ctime_ns)  # a replaced file may keep its mtime


def with_stamps(found: Iterable[tuple[str, str, int]]) -> list[ImageFile]:
    """Return images, given as path, label file and class, with their stamps."""
    return in_threads(lambda each: ImageFile(*each, (*stamp(each[0]), *stamp(each[1]))), found)


def hashes(images: list[ImageFile]) -> list[Hashes]:
    """Read both ends of each image, and its label file."""
    return in_threads(_hashes, images)


def _hashes(image: ImageFile) -> Hashes:
    label = NOTHING
    if image.label and image.stamps[2] >= 0:
        try:
            with open(image.label, "rb", buffering=0) as file:
                label = _hash(file.read())
        except OSError:
            pass
    size = image.stamps[0]
    try:
        return Hashes(_hash(b"%d" % size, *_ends(image.path, size)) if size >= 0 else NOTHING, label)
    except OSError:
        return Hashes(NOTHING, label)


def _ends(path: str, size: int) -> tuple[bytes, bytes]:
    with open(path, "rb", buffering=0) as file:
        head = file.read(END)
        file.seek(max(size - END, 0))
        return head, file.read(END)


def _hash(*parts: bytes) -> bytes:
    """Hash the content of a file; the same in every process."""
    digest = hashlib.blake2b(digest_size=len(NOTHING))
    for part in parts:
        digest.update(part)
    return digest.digest()


def looks_whole(path: str) -> bool:
    """Tell by its header that an image is not cut off; False where only decoding it can tell.

    Ultralytics' own scan finds a JPEG or PNG that is cut off.
    """
    try:
        size = os.path.getsize(path)
        head = _ends(path, size)[0]
    except OSError:
        return False
    if head.startswith(b"RIFF"):  # WebP
        return int.from_bytes(head[4:8], "little") + 8 <= size
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"))


def fingerprint(images: list[ImageFile], read: list[Hashes]) -> dict[str, str]:
    """Return what tells whether a split has changed, wherever it is mounted and whatever the dates of its files are.

    *Not covered*: a change of an image that keeps its size and both ends. In the middle of an uncompressed one (BMP,
    TIFF) any does; of a JPEG now and then one of a pixel or two, because it ends without a checksum of its content.

    Args:
        images: All that are listed, in their order.
        read: The hashes of each, whether it can be used or not.

    Returns:
        A hash each: `list` of the paths, seen from the deepest folder that holds all, with the class that a folder
        tells; `images` and `labels` of the files' contents. Checkpoints keep them: another way of making one needs
        another name.
    """
    prefix = os.path.commonprefix([image.path for image in images])  # noqa: RUF071  # cut at a separator here
    root = prefix.rfind(os.sep) + 1
    names, contents, labels = (hashlib.blake2b(digest_size=len(NOTHING)) for _ in range(3))
    for image, each in zip(images, read, strict=True):
        names.update(b"%d %b\0" % (image.class_id, os.fsencode(image.path[root:])))
        contents.update(each.image)
        labels.update(each.label)
    return {"list": names.hexdigest(), "images": contents.hexdigest(), "labels": labels.hexdigest()}


def duplicates(some: dict[ImageFile, bytes], others: dict[ImageFile, bytes]) -> list[ImageFile]:
    """Return those of `some` that are among `others` too: the same file, or another with the same bytes.

    Args:
        some: The hash of each image.
        others: The same.
    """
    found, left = [], COMPARED
    by_hash = defaultdict(list)
    for image, content in others.items():
        by_hash[content].append(image)
    for image, content in some.items():
        if content in by_hash and content != NOTHING:
            left -= image.stamps[0]
            if left > 0 and any(_equal(image.path, other.path) for other in by_hash[content]):
                found.append(image)
    return sorted(found)


def _equal(one: str, other: str) -> bool:
    return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)


def unlisted(images: list[ImageFile]) -> list[str]:
    """Return the files beside these images that are images too, of formats that Ultralytics does not list."""
    folders = sorted({os.path.dirname(image.path) for image in images})
    return sorted(path for found in in_threads(_unlisted, folders) for path in found)


def _unlisted(folder: str) -> list[str]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return [os.path.join(folder, name) for name in names if os.path.splitext(name)[1].lower() in UNLISTED]
