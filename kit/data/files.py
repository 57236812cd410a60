"""The files of a data set's samples: list them as Ultralytics does, look at one, find twins, tell what has changed.

An image is read at its two ends: where a JPEG, PNG or WebP does not end as it should, it is decoded to see whether it
is cut off. *Not covered*: damage in the middle of an image, and the ends of other formats.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from kit.data import description, labels
from kit.data.find import DataSet
from kit.data.labels import Rules

END = 1024  # bytes read at either end of an image
COMPARED = 4 << 30  # bytes of images that are compared in full
SPECIAL = -2
NOTHING = bytes(16)  # the mark of a file that is not there or cannot be read; of the same length as the others
ENDINGS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG\r\n\x1a\n": b"IEND\xaeB`\x82"}
OTHERS = (b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+", b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51")  # BMP, TIFF, JPEG 2000


class Sample(NamedTuple):
    """An image with what belongs to it.

    Attributes:
        path: Of the image.
        label: The path of its label file; empty where its folder tells the class.
        kind: The class that its folder tells.
        stamps: Size in bytes (-1 for a missing file, `SPECIAL` for what is no plain one) and date of the last change of
            the image, and of its label file.
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
        problem: Why it cannot be used, a key of `datacheck.SENTENCES`; or nothing.
        line: Of its label file, that the problem is in.
        kinds: The class of each object.
        mark: Of the image, by its size and both ends: equal for images that are equal, and hardly ever for others.
        label_mark: Of the label file, by all its bytes.
    """

    problem: str
    line: str = ""
    kinds: list[int] = []  # noqa: RUF012  # a tuple's default, and never changed
    mark: bytes = NOTHING
    label_mark: bytes = NOTHING


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
    if not stat.S_ISREG(state.st_mode):  # to open a pipe waits for who writes into it
        return SPECIAL, 0
    return state.st_size, max(state.st_mtime_ns, state.st_ctime_ns)  # a file put in another's place may have its mtime


def look(sample: Sample, rules: Rules) -> Looked:
    """Read the ends of a sample's image, and its label file."""
    problem, mark = _look_at_image(sample)
    if not (sample.label and sample.has_label):
        return Looked(problem, "", [] if sample.label else [sample.kind], mark)
    try:
        with open(sample.label, "rb", buffering=0) as file:
            raw = file.read()
    except OSError:
        return Looked(problem or "unreadable", "", [], mark)
    label_mark = _mark(raw)
    if problem:
        return Looked(problem, "", [], mark, label_mark)
    try:
        kinds, problem, line = labels.judge(raw.decode("utf-8-sig"), rules)
    except UnicodeDecodeError:
        return Looked("numbers", "", [], mark, label_mark)
    return Looked(problem, line, kinds, mark, label_mark)


def _look_at_image(sample: Sample) -> tuple[str, bytes]:
    """Return what is wrong with an image, and its mark."""
    size = sample.stamps[0]
    if size == SPECIAL:
        return "special", NOTHING
    if size < 0:
        return "missing", NOTHING
    try:
        with open(sample.path, "rb", buffering=0) as file:
            head = file.read(END)
            file.seek(max(size - END, 0))
            tail = file.read(END)
    except OSError:
        return "unreadable", NOTHING
    return "" if _is_whole(sample.path, size, head, tail) else "unreadable", _mark(b"%d" % size, head, tail)


def _mark(*parts: bytes) -> bytes:
    """Hash the content of a file; the same in every process."""
    digest = hashlib.blake2b(digest_size=len(NOTHING))
    for part in parts:
        digest.update(part)
    return digest.digest()


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


def fingerprint(samples: list[Sample], looks: Iterable[Looked]) -> dict[str, str]:
    """Return what tells whether a split is as it was, wherever it is mounted and whatever the dates of its files are.

    *Not covered*: a change of an image that keeps its size and both ends. In the middle of an uncompressed one (BMP,
    TIFF) any does; of a JPEG now and then one of a pixel or two, because it ends without a checksum of its content.

    Args:
        samples: All that are listed, in their order.
        looks: What was seen of each, whether it can be used or not.

    Returns:
        A hash each: `list` of the paths, seen from the deepest folder that all lie in, with the class that a folder
        tells; `images` and `labels` of the files' contents. Whoever changes how one is made gives it another name:
        checkpoints keep them.
    """
    prefix = os.path.commonprefix([sample.path for sample in samples])  # noqa: RUF071  # cut at a separator here
    root = prefix.rfind(os.sep) + 1
    names, images, written = (hashlib.blake2b(digest_size=len(NOTHING)) for _ in range(3))
    for sample, looked in zip(samples, looks, strict=True):
        names.update(b"%d %b\0" % (sample.kind, os.fsencode(sample.path[root:])))
        images.update(looked.mark)
        written.update(looked.label_mark)
    return {"list": names.hexdigest(), "images": images.hexdigest(), "labels": written.hexdigest()}


def twins(some: dict[bytes, list[Sample]], others: dict[bytes, list[Sample]]) -> list[Sample]:
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
