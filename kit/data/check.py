"""What a data set holds, what of it is left out and what stops training: a report of Ultralytics' own scan.

`kit.yolo.scan` makes the scan, on the very data sets that training uses. Computed here is what Ultralytics does not
know: images in both splits, classes without an example, and what tells whether the data set has changed. Nothing here
imports torch or ultralytics.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kit.data import description, files
from kit.data.files import ImageFile
from kit.data.find import DataSet
from kit.data.report import Report, Split, count, recall, settings_of
from kit.store import disk

VERSION = 4  # of a remembered report: raise it whenever the same files would give another one
EXAMPLES = 3  # in a message
COLUMNS = {"detect": "class x y width height", "pose": "class x y width height and the numbers of the keypoints"}

# What to do about an image that was left out, by what Ultralytics says of it; other words only lose the advice.
ADVICE = {
    r"non-normalized|negative label": "divide pixels by the image's width and height",
    r"labels require|labels mix|inhomogeneous|reshape|could not convert|codec": "write {columns}",
    r"non-integer class": "a class that is not a whole number: write {columns}",
    r"Label class": "correct them, or list all classes under 'names:' in the data.yaml",
    r"Errno 2\b": "write paths that begin with './', as seen from the list's folder",
    r"Invalid image format": "save them as JPEG or PNG",
    r"<10 pixels": "take larger ones",
    r"decompression bomb": "make them smaller",
    r"": "replace or delete them",
}


@dataclass
class Scan:
    """What Ultralytics' scan of a split found.

    Attributes:
        listed: The path of each image that is listed, the path of its label file (empty where its folder tells the
            class) and the class that its folder tells (else -1).
        kept: The path of each image that training uses, and the classes of its objects.
        dropped: Why an image is not used, by its path.
        repeated: How many label rows of an image were there twice, by its path.
        error: Why the split cannot be used at all.
    """

    listed: list[tuple[str, str, int]] = field(default_factory=list)
    kept: list[tuple[str, list[int]]] = field(default_factory=list)
    dropped: dict[str, str] = field(default_factory=dict)
    repeated: dict[str, int] = field(default_factory=dict)
    error: str = ""


def look(
    dataset: DataSet,
    task: str,
    scan: Callable[[], dict[str, Scan]],
    remember: Path,
    *,
    single_cls: bool = False,
    classes: int | Sequence[int] | None = None,
) -> Report:
    """Report on a data set; on its description alone where that has an error.

    Args:
        dataset: As `find.resolve` found it, with its images here.
        task: `detect`, `segment`, `pose`, `obb` or `classify`.
        scan: Scans the images of `train` and `val`.
        remember: A folder that keeps reports: files that have not changed are not read again.
        single_cls: All classes count as one.
        classes: The numbers of those that are used.
    """
    report = _start(dataset, task, single_cls)
    if report.errors:
        return report
    scans = scan()
    images = {split: files.with_stamps(scan.listed) for split, scan in scans.items()}
    seen = (VERSION, asdict(report), dataset.names, classes, scans, images)
    memory = remember / f"{hashlib.sha256(repr(seen).encode()).hexdigest()[:16]}.json"
    if known := recall(memory):
        return known
    used = None if classes is None or dataset.path.is_dir() else {classes} if isinstance(classes, int) else {*classes}
    hashes = {split: _add(report, split, scan, images[split], used) for split, scan in scans.items()}
    _compare(report, dataset, hashes)
    text = json.dumps(asdict(report)).encode()
    disk.publish(disk.make_folder(remember) / memory.name, lambda file: file.write(text), durable=False)
    return report


def _start(dataset: DataSet, task: str, single_cls: bool) -> Report:
    by_folder = dataset.path.is_dir()
    values = dataset.values
    place = str(values.get("path", dataset.path))
    report = Report(place, task, ["item"] if single_cls else list(dataset.names), settings=settings_of(values, task))
    if by_folder != (task == "classify"):
        needed = "a data.yaml and label files" if by_folder else "'train' and 'val' with one folder of images per class"
        report.errors.append(f"The task '{task}' needs {needed}, which '{place}' has not: check data= and model=...")
    elif task == "pose" and not _is_sound(values.get("kpt_shape")):
        report.errors.append(
            f"The data.yaml of '{place}' has no sound kpt_shape ({values.get('kpt_shape')!r}): say how many key points "
            "an object has, and how many numbers each, for example 'kpt_shape: [17, 3]'."
        )
    return report


def _is_sound(kpt_shape: Any) -> bool:
    match kpt_shape:
        case [int(number), 2 | 3]:
            return number > 0
    return False


def _add(
    report: Report, split: str, scan: Scan, images: list[ImageFile], used: set[int] | None
) -> dict[ImageFile, bytes]:
    """Report on a split, and return the hashes of the images that are used."""
    objects = [0] * len(report.names)
    for number in (number for _, numbers in scan.kept for number in numbers):
        objects[number] += 1
    labelled = sum(bool(numbers) for _, numbers in scan.kept)
    read, good = files.hashes(images), {path for path, _ in scan.kept}
    report.splits[split] = Split(
        len(images),
        labelled,
        len(scan.kept) - labelled,
        len(images) - len(scan.kept),
        objects,
        files.fingerprint(images, read),
    )
    special = {image.path: "a pipe, device or folder" for image in images if image.stamps[0] == files.SPECIAL}
    dropped = scan.dropped | special
    _add_dropped(report, split, dropped, fatal=not scan.kept or (split == "train" and not labelled))
    if scan.error and len(dropped) < len(images):
        report.errors.append(f"The images of {split} cannot be used: {scan.error.rstrip('.')}.")
    unlabelled = [image for image in images if image.label and image.stamps[2] < 0 and image.path in good]
    if unlabelled:
        report.warnings.append(
            f"Background in {split}: {_examples(report, [image.path for image in unlabelled])} without a label file."
        )
    if scan.repeated:
        report.warnings.append(
            f"Counted once in {split}: {count(sum(scan.repeated.values()), 'label row')} that the label file of its "
            f"image has twice, in {_examples(report, list(scan.repeated))}."
        )
    if more := files.unlisted(images):
        report.warnings.append(f"Not images to Ultralytics in {split}: {_examples(report, more)}: save as JPEG or PNG.")
    if not images:
        report.errors.append(f"There is no image in {split} of '{report.place}': put some there, or check data=...")
    elif scan.kept and not labelled and not (scan.error or (dropped and split == "train")):
        if split == "train":
            report.errors.append(
                f"No image of train has a label to learn from: {len(unlabelled)} of {len(scan.kept)} have no label "
                f"file, the others an empty one or one of other classes; for '{images[0].path}' the file "
                f"'{images[0].label}' is looked for."
            )
        else:
            report.warnings.append("No image of val has a label: the mAP will be 0 and tell nothing of the model.")
    numbered = enumerate(zip(report.names, objects, strict=True))
    missing = [name for number, (name, held) in numbered if not held and (used is None or number in used)]
    if split == "train" and labelled and missing:
        report.warnings.append(f"Without an example in train: {_classes(missing)}.")
    return {image: each.image for image, each in zip(images, read, strict=True) if image.path in good}


def _add_dropped(report: Report, split: str, dropped: dict[str, str], fatal: bool) -> None:
    """Report what is left out of a split: one sentence for each reason, in Ultralytics' words."""
    groups: dict[str, list[str]] = defaultdict(list)
    for path, reason in dropped.items():
        groups[re.sub(r"'[^']*'|\[.*\]|[^A-Za-z]+", " ", reason.replace(path, ""))].append(path)
    for paths in groups.values():
        reason = " ".join(dropped[paths[0]].replace(paths[0], "the file").split()).rstrip(".")
        advice = next(advice for words, advice in ADVICE.items() if re.search(words, reason))
        columns = COLUMNS.get(report.task, "class x1 y1 x2 y2 x3 y3 …")
        text = f"Left out of {split}: {_examples(report, paths)}, because of: {reason[:200]}; "
        (report.errors if fatal else report.warnings).append(text + advice.format(columns=columns) + ".")


def _compare(report: Report, dataset: DataSet, hashes: dict[str, dict[ImageFile, bytes]]) -> None:
    """Report on what the two splits have in common, and what they should have."""
    folder = description.validation_folder(dataset.path)  # None where there is a data.yaml
    if folder and (extra := sorted({*description.class_folders(folder)} - {*dataset.names})):
        report.warnings.append(f"Left out of val: {_classes(extra)} that train has not.")
    if found := files.duplicates(hashes["val"], hashes["train"]):
        report.warnings.append(
            f"Also in train: {_examples(report, [image.path for image in found], 'of val ')}: the mAP will look better "
            "than it is."
        )


def _examples(report: Report, paths: list[str], more: str = "") -> str:
    """Count images, and name the first ones."""
    names = ", ".join(f"'{path.removeprefix(f'{report.place}/')}'" for path in paths[:EXAMPLES])
    return f"{count(len(paths), 'image')} {more}(for example {names})"


def _classes(names: list[str]) -> str:
    more = ", …" if len(names) > EXAMPLES else ""
    return f"{count(len(names), 'class')} ({', '.join(names[:EXAMPLES])}{more})"
