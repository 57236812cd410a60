"""Look through a data set before the GPU starts: what it holds, what will be left out, what cannot be trained on.

Nothing here imports torch or ultralytics. Where Ultralytics drops an image without a word, a warning says so; what it
cannot train on is an error.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

from kit.data import description, files, labels
from kit.data.files import Looked, Sample
from kit.data.find import DataSet
from kit.data.labels import Rules
from kit.store import disk

FORM = 3  # of a remembered report: raise it whenever the same files would give another one
THREADS = 16  # an attached data set lies in the network: what is waited for is its answers
EXAMPLES = 3  # in a message
SHOWN = 10  # classes in the table

SENTENCES = {
    "missing": "Left out of {split}: {count} listed but not there{examples}: write paths that begin with './', as seen "
    "from the list's folder.",
    "special": "Left out of {split}: {count} that are pipes, devices or folders{examples}: replace or delete them.",
    "unreadable": "Left out of {split}: {count} cut off or unreadable{examples}: replace or delete them.",
    "numbers": "Left out of {split}: {count} with labels that are no numbers{examples}: write {columns}.",
    "columns": "Left out of {split}: {count} with labels of other columns than the task '{task}' takes{examples}: "
    "write {columns}.",
    "coordinates": "Left out of {split}: {count} with labels outside 0..1{examples}: divide pixels by the image's "
    "width and height.",
    "unlabelled": "Background in {split}: {count} without a label file{examples}.",
    "class": "Class numbers outside 0..{last} in the labels of {count} of {split}{examples}: correct them, or list all "
    "classes under 'names:' in the data.yaml.",
    "boxes": "Boxes where the task '{task}' needs outlines, in the labels of {count} of {split}{examples}: write "
    "{columns}, or choose a model for the task 'detect'.",
}
FATAL = {"class", "boxes"}
SETTINGS = {  # of a data.yaml, that training depends on: the words for each, and the default
    "channels": ("the number of channels", 3),
    "kpt_shape": ("the keypoints' shape", None),
    "flip_idx": ("the keypoints' order in mirrored images", None),
    "kpt_oks_sigmas": ("the keypoints' sigmas", None),
}
FOR_POSE = {"flip_idx", "kpt_oks_sigmas"}

Marks = dict[bytes, list[Sample]]
Fingerprint = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Split:
    """What one part of a data set holds.

    Attributes:
        images: How many are listed.
        labelled: Of those, with at least one object.
        background: Of those, without any.
        left_out: Of those, what cannot be used.
        objects: Their number per class; for a classification that of its images.
        fingerprint: As `samplefiles.fingerprint` returns it: a hash each of its `list`, `images` and `labels`.
    """

    images: int
    labelled: int
    background: int
    left_out: int
    objects: list[int]
    fingerprint: dict[str, str]


@dataclass(frozen=True)
class Report:
    """What a data set holds, and what is wrong with it.

    Attributes:
        place: Its folder.
        task: What it was looked at for.
        names: The classes.
        splits: `train` and `val`; none where it was not looked at, because it is still to be fetched or no such set.
        warnings: What will be left out or is doubtful, a sentence each.
        errors: What cannot be trained on, a sentence each.
        settings: Those of the `data.yaml` that training depends on, as text.
    """

    place: str
    task: str
    names: list[str]
    splits: dict[str, Split] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> Fingerprint:
        """Return what `changed` compares, for a checkpoint to keep; empty where the data set was not looked at.

        It is plain numbers and text. The classes are no part of it: a run is told from others by them.
        """
        if not self.splits:
            return {}
        splits = {name: {"count": split.images, **split.fingerprint} for name, split in self.splits.items()}
        return {**splits, "settings": dict(self.settings)}

    def describe(self) -> str:
        """Return what it holds as a table of 15 lines at most."""
        lines = [f"Data set {self.place} ({self.task}, {_count(len(self.names), 'class')})"]
        if not self.splits:
            return lines[0]
        lines.append("  split       images  labelled  background  left out   objects")
        for name, split in self.splits.items():
            lines.append(
                f"  {name:9}{split.images:9}{split.labelled:10}{split.background:12}{split.left_out:10}"
                f"{sum(split.objects):10}"
            )
        lines.append("  class               " + "".join(f"{f'in {name}':>11}" for name in self.splits))
        shown = len(self.names) if len(self.names) <= SHOWN else SHOWN - 1
        for number, name in enumerate(self.names[:shown]):
            counts = "".join(f"{split.objects[number]:11}" for split in self.splits.values())
            lines.append(f"  {f'{number} {name}'[:19]:20}{counts}")
        if shown < len(self.names):
            lines.append(f"  … and {len(self.names) - shown} more classes")
        return "\n".join(lines)


def changed(old: Fingerprint, new: Fingerprint) -> list[str]:
    """Say what of a data set is no longer as it was; nothing of what either side does not know.

    Where the list of a split is another, the contents of its files are not compared as well.

    Args:
        old: A report's fingerprint then, for example the one that a checkpoint keeps.
        new: That of now.

    Returns:
        The words for each difference, for example `the list of training images (12 before, 16 now)`.
    """
    found = []
    for split, kind in (("train", "training"), ("val", "validation")):
        parts = _differing(old, new, split)
        if "list" in parts:
            counts = f" ({old[split]['count']} before, {new[split]['count']} now)" if "count" in parts else ""
            found.append(f"the list of {kind} images{counts}")
        else:
            found += [f"the {kind} {part}" for part in ("images", "labels") if part in parts]
    parts = _differing(old, new, "settings")
    return found + [words for name, (words, _) in SETTINGS.items() if name in parts]


def _differing(old: Fingerprint, new: Fingerprint, section: str) -> set[str]:
    before, now = old.get(section, {}), new.get(section, {})
    return {part for part in before.keys() & now.keys() if before[part] != now[part]}


def check(
    dataset: DataSet,
    task: str,
    *,
    fraction: Any = 1.0,
    single_cls: bool = False,
    classes: int | Sequence[int] | None = None,
    remember: Path | None = None,
) -> Report:
    """Look through what training would read.

    Args:
        dataset: As `data.resolve` found it.
        task: `detect`, `segment`, `pose`, `obb` or `classify`.
        fraction: The part of the images that is used, as Ultralytics' setting has it.
        single_cls: All classes count as one.
        classes: The numbers of those that are used.
        remember: A folder that keeps reports: files that are as they were are not read again.
    """
    by_folder = dataset.path.is_dir()
    values = {} if by_folder else description.read(dataset.path)
    place = str(dataset.path if by_folder else values.get("path"))
    report = Report(place, task, ["item"] if single_cls else list(dataset.names), settings=_settings(values, task))
    rules = Rules(task, len(dataset.names), single_cls, labels.keypoints(values))
    if by_folder != (task == "classify"):
        needed = "a data.yaml and label files" if by_folder else "'train' and 'val' with one folder of images per class"
        report.errors.append(f"The task '{task}' needs {needed}, which '{place}' has not: check data= and model=...")
    elif task == "pose" and not rules.keypoints[0]:
        report.errors.append(
            f"The data.yaml of '{place}' has no sound kpt_shape ({values.get('kpt_shape')!r}): say how many key points "
            "an object has, and how many numbers each, for example 'kpt_shape: [17, 3]'."
        )
    if report.errors or values.get("download"):  # or Ultralytics is still to fetch it
        return report
    listed = {split: files.find(dataset, values, split, fraction) for split in ("train", "val")}
    seen = (FORM, rules, dataset, classes, report.settings, listed)
    digest = hashlib.sha256(repr(seen).encode()).hexdigest()[:16]
    if remember and (known := _recall(remember / f"{digest}.json")):
        return known
    used = None if classes is None or by_folder else {classes} if isinstance(classes, int) else {*classes}
    marks = {split: _look(report, split, samples, rules, used) for split, samples in listed.items()}
    _compare(report, dataset, marks)
    if remember:
        text = json.dumps(asdict(report)).encode()
        disk.publish(disk.make_folder(remember) / f"{digest}.json", lambda file: file.write(text), durable=False)
    return report


def _settings(values: dict[str, Any], task: str) -> dict[str, str]:
    names = SETTINGS.keys() - (set() if task == "pose" else FOR_POSE)
    return {name: repr(values.get(name) or SETTINGS[name][1]) for name in sorted(names)}


def _look(report: Report, split: str, samples: list[Sample], rules: Rules, used: set[int] | None) -> Marks:
    """Look at the samples of a split, report on them, and return the good ones."""
    with ThreadPool(THREADS) as pool:
        looks: list[Looked] = pool.map(partial(files.look, rules=rules), samples, chunksize=64)
    objects, labelled = [0] * len(report.names), 0
    problems: dict[str, list[str]] = defaultdict(list)
    marks: Marks = defaultdict(list)
    for sample, looked in zip(samples, looks, strict=True):
        if looked.problem:
            found = problems[looked.problem]
            found.append(_name(report, sample, looked.line, quote=not found))
            continue
        marks[looked.mark].append(sample)
        if not sample.has_label:
            problems["unlabelled"].append(_name(report, sample))
        kinds = [0 if rules.single else kind for kind in looked.kinds if used is None or kind in used]
        labelled += bool(kinds)
        for kind in kinds:
            objects[kind] += 1
    good = sum(map(len, marks.values()))
    fingerprint = files.fingerprint(samples, looks)
    report.splits[split] = Split(len(samples), labelled, good - labelled, len(samples) - good, objects, fingerprint)
    for problem, found in problems.items():
        count, examples = _count(len(found), "image"), f" (for example {', '.join(found[:EXAMPLES])})"
        sentence = SENTENCES[problem].format(
            count=count, split=split, examples=examples, task=rules.task, columns=rules.columns, last=rules.classes - 1
        )
        fatal = problem in FATAL or (not good and samples)
        (report.errors if fatal else report.warnings).append(sentence)
    if not samples:
        report.errors.append(f"There is no image in {split} of '{report.place}': put some there, or check data=...")
    elif good and not labelled and not FATAL & problems.keys():
        if split == "train":
            report.errors.append(
                f"No image of train has a label to learn from: {len(problems['unlabelled'])} of {good} have no label "
                f"file, the others an empty one or one of other classes; for '{samples[0].path}' the file "
                f"'{samples[0].label}' is looked for."
            )
        else:
            report.warnings.append("No image of val has a label: the mAP will be 0 and tell nothing of the model.")
    numbered = enumerate(zip(report.names, objects, strict=True))
    missing = [name for number, (name, held) in numbered if not held and (used is None or number in used)]
    if split == "train" and labelled and missing:
        report.warnings.append(f"Without an example in train: {_classes(missing)}.")
    return marks


def _compare(report: Report, dataset: DataSet, marks: dict[str, Marks]) -> None:
    """Report on what the two splits have in common, and what they should have."""
    folder = description.validation_folder(dataset.path)  # None where there is a data.yaml
    if folder and (extra := sorted({*description.class_folders(folder)} - {*dataset.names})):
        report.warnings.append(f"Left out of val: {_classes(extra)} that train has not.")
    if twins := files.twins(marks["val"], marks["train"]):
        names = ", ".join(_name(report, twin) for twin in twins[:EXAMPLES])
        report.warnings.append(
            f"Also in train: {_count(len(twins), 'image')} of val (for example {names}): the mAP will look better than "
            "it is."
        )


def _name(report: Report, sample: Sample, line: str = "", quote: bool = False) -> str:
    """Name a sample's image, or its label file where a line of that is wrong."""
    path = (sample.label if line else sample.path).removeprefix(f"{report.place}/")
    return f"'{path}'" + (f" with '{line[:40]}'" if line and quote else "")


def _recall(path: Path) -> Report | None:
    try:
        values = json.loads(path.read_bytes())
        return Report(**values | {"splits": {name: Split(**split) for name, split in values["splits"].items()}})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # damaged
        return None


def _count(number: int, word: str) -> str:
    return f"{number} {word}" + ("" if number == 1 else "es" if word.endswith("s") else "s")


def _classes(names: list[str]) -> str:
    more = ", …" if len(names) > EXAMPLES else ""
    return f"{_count(len(names), 'class')} ({', '.join(names[:EXAMPLES])}{more})"
