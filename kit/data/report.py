"""The report on a data set: what it holds, what is wrong with it, and what tells whether it has changed."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

SHOWN = 10  # classes in the table
SETTINGS = {  # of a data.yaml, that training depends on: the words for each, and the default
    "channels": ("the number of channels", 3),
    "kpt_shape": ("the keypoints' shape", None),
    "flip_idx": ("the keypoints' order in mirrored images", None),
    "kpt_oks_sigmas": ("the keypoints' sigmas", None),
}
FOR_POSE = {"flip_idx", "kpt_oks_sigmas"}

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
        fingerprint: A hash each of its `list`, `images` and `labels` (`kit.data.files.fingerprint`).
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
        splits: `train` and `val`; none where it was not looked at, because it is no such set.
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
        lines = [f"Data set {self.place} ({self.task}, {count(len(self.names), 'class')})"]
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


def settings_of(values: dict[str, Any], task: str) -> dict[str, str]:
    """Return those of a `data.yaml` that training of a task depends on, as text."""
    names = SETTINGS.keys() - (set() if task == "pose" else FOR_POSE)
    return {name: repr(values.get(name) or SETTINGS[name][1]) for name in sorted(names)}


def recall(path: Path) -> Report | None:
    """Return a report that was kept as JSON; None where it is missing or damaged."""
    try:
        values = json.loads(path.read_bytes())
        return Report(**values | {"splits": {name: Split(**split) for name, split in values["splits"].items()}})
    except (OSError, ValueError, TypeError, KeyError, AttributeError):  # damaged
        return None


def count(number: int, word: str) -> str:
    """Return a number with its word, in the plural where it has to be."""
    return f"{number} {word}" + ("" if number == 1 else "es" if word.endswith("s") else "s")
