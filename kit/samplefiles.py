"""The files of a data set's samples: list them as Ultralytics does, look at one, find those that are in two splits.

An image is read at its two ends: where a JPEG, PNG or WebP does not end as it should, it is decoded to see whether it
is cut off. *Not covered*: damage in the middle of an image, and the ends of other formats.
"""

from __future__ import annotations

import filecmp
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from kit import description, labels
from kit.data import DataSet
from kit.labels import Rules

END = 1024  # bytes read at either end of an image
COMPARED = 4 << 30  # bytes of images that are compared in full
ENDINGS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG\r\n\x1a\n": b"IEND\xaeB`\x82"}
OTHERS = (b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")  # BMP, TIFF, JPEG 2000


class Sample(NamedTuple):
    """An image with what belongs to it.

    Attributes:
        path: Of the image.
        label: The path of its label file; empty where its folder tells the class.
        kind: The class that its folder tells.
        stamps: Size in bytes (-1 for a missing file) and date of the image, and of its label file.
    """

    path: str
    label: str
    kind: int
    stamps: tuple[int, int, int, int]

    @property
    def has_label(self) -> bool:
        """Tell whether its class, or that there is no object, is written anywhere."""
        return not self.label or self.stamps[2] >= 0


class Looked(NamedTuple):
    """What was seen of a sample.

    Attributes:
        problem: Why it cannot be used, a key of `datacheck.LEFT_OUT` or `REFUSED`; or nothing.
        line: Of its label file, that the problem is in.
        kinds: The class of each object.
        mark: Equal for images that are equal, and hardly ever for others; within this process.
    """

    problem: str
    line: str = ""
    kinds: list[int] = []  # noqa: RUF012  # a tuple's default, and never changed
    mark: int = 0


def find(dataset: DataSet, values: dict[str, Any], split: str, fraction: Any) -> list[Sample]:
    """List the samples of a split, in the order of Ultralytics.

    Args:
        dataset: The data set.
        values: Its description; empty for a classification set.
        split: `train` or `val`.
        fraction: Of the images, or how many, or a list of that for train, val and test.
    """
    if values:
        places = values[split] if isinstance(values[split], list) else [values[split]]
        paths = sorted(path for place in places for path in _images(place))
        found = [(path, labels.path_of(path), -1) for path in paths]
    else:
        folder = dataset.path / "train" if split == "train" else description.validation_folder(dataset.path)
        found = [
            (path, "", number)
            for number, name in enumerate(dataset.names)
            for path in sorted(_images(f"{folder}{os.sep}{name}"))
        ]
    if isinstance(fraction, list):
        fraction = dict(zip(description.SPLITS, fraction, strict=False)).get(split, 1.0)
    elif split != "train":
        fraction = 1.0
    whole = len(found)
    count = fraction if isinstance(fraction, int) and fraction > 1 else max(1, round(whole * fraction))
    if count < whole:  # the first ones; of a classification set, whose classes follow each other, evenly spread ones
        found = found[:count] if values else [found[n * (whole - 1) // max(count - 1, 1)] for n in range(count)]
    return [Sample(*each, (*_stamp(each[0]), *_stamp(each[1]))) for each in found]


def _images(place: str) -> Iterator[str]:
    """List the images in a folder, at whatever depth, or those that a text file names."""
    if not os.path.isfile(place):
        for folder, folders, names in os.walk(place, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            yield from (os.path.join(folder, name) for name in names if description.is_image(name))
        return
    with open(place, encoding="utf-8-sig", errors="replace") as file:
        for line in file.read().strip().splitlines():
            if description.is_image(os.path.basename(line)):
                yield line.replace("./", f"{os.path.dirname(place)}{os.sep}", 1) if line.startswith("./") else line


def _stamp(path: str) -> tuple[int, int]:
    try:
        state = os.stat(path)
    except OSError:
        return -1, 0
    return state.st_size, state.st_mtime_ns


def look(sample: Sample, rules: Rules) -> Looked:
    """Read the ends of a sample's image, and its label file."""
    size = sample.stamps[0]
    if size < 0:
        return Looked("missing")
    try:
        with open(sample.path, "rb", buffering=0) as file:
            head = file.read(END)
            file.seek(max(size - END, 0))
            tail = file.read(END)
        if not _is_whole(sample.path, size, head, tail):
            return Looked("unreadable")
        mark = hash((size, head, tail))
        if not sample.label or not sample.has_label:
            return Looked("", "", [] if sample.label else [sample.kind], mark)
        with open(sample.label, encoding="utf-8-sig") as text:
            kinds, problem, line = labels.judge(text.read(), rules)
    except UnicodeDecodeError:
        return Looked("numbers")
    except OSError:
        return Looked("unreadable")
    return Looked(problem, line, kinds, mark)


def _is_whole(path: str, size: int, head: bytes, tail: bytes) -> bool:
    for start, end in ENDINGS.items():
        if head.startswith(start):
            return tail.endswith(end) or _decodes(path)  # bytes that a camera put behind the image do no harm
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return int.from_bytes(head[4:8], "little") + 8 <= size or _decodes(path)
    return head.startswith(OTHERS) or head[4:8] == b"ftyp"  # AVIF, HEIC


def _decodes(path: str) -> bool:
    from PIL import Image  # comes with torchvision

    try:
        with Image.open(path) as image:
            image.load()
    except Exception:  # each format has its own
        return False
    return True


def twins(some: dict[int, list[Sample]], others: dict[int, list[Sample]]) -> list[Sample]:
    """Return those of `some` that are among `others` too: the same file, or another with the same bytes.

    Args:
        some: By mark.
        others: By mark.
    """
    found, left = [], COMPARED
    for mark in some.keys() & others.keys():
        for sample in some[mark]:
            left -= sample.stamps[0]
            if left > 0 and any(_equal(sample.path, other.path) for other in others[mark]):
                found.append(sample)
    return sorted(found)


def _equal(one: str, other: str) -> bool:
    return os.path.samefile(one, other) or filecmp.cmp(one, other, shallow=False)
