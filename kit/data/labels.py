"""Label files: one per image, one line per object, judged as Ultralytics does, which drops an image without a word."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

SLACK = 0.01  # that coordinates may lie outside 0..1


@dataclass(frozen=True)
class Rules:
    """What the lines of a data set's label files have to hold.

    Attributes:
        task: `detect`, `segment`, `pose` or `obb`.
        classes: Their number.
        single: Any class will do, because all count as one.
        keypoints: Per object, as `kpt_shape` has it: how many, and numbers for each (2 or 3).
    """

    task: str
    classes: int
    single: bool = False
    keypoints: tuple[int, int] = (0, 0)

    @property
    def columns(self) -> str:
        """Return the columns of a line, in words."""
        more = self.keypoints[0] * self.keypoints[1]
        return {
            "detect": "class x y width height",
            "pose": f"class x y width height and {more} numbers for the keypoints",
        }.get(self.task, "class x1 y1 x2 y2 x3 y3 …")


def keypoints(values: dict[str, Any]) -> tuple[int, int]:
    """Return the `kpt_shape` of a `data.yaml`; zeros where it has no sound one."""
    match values.get("kpt_shape"):
        case [int(number), (2 | 3) as each] if number > 0:
            return number, each
    return 0, 0


def path_of(image: str) -> str:
    """Return where an image's labels lie: the last folder `images` of its path replaced by `labels`."""
    folder, found, name = image.rpartition(f"{os.sep}images{os.sep}")
    if found:
        image = f"{folder}{os.sep}labels{os.sep}{name}"
    return image.rpartition(".")[0] + ".txt"


def judge(text: str, rules: Rules) -> tuple[list[int], str, str]:
    """Read the content of a label file.

    Returns:
        The class of each object, what is wrong (`class`, `columns`, `coordinates`, `numbers`, `boxes`, or nothing), and
        the line that it is wrong in.
    """
    found: list[int] = []
    rows = [(line, line.split()) for line in text.splitlines() if line.strip()]
    more = rules.keypoints[0] * rules.keypoints[1]
    if more and rules.task != "pose":  # only their boxes are used
        rows = [(line, row[:5] if len(row) == 5 + more else row) for line, row in rows]
    outlines = rules.task != "pose" and any(len(row) > 6 for _, row in rows)
    for line, row in rows:
        try:
            kind, *values = map(float, row)
        except ValueError:
            return [], "numbers", line
        if kind % 1 or kind < 0 or (kind >= rules.classes and not rules.single):
            return [], "class", line
        if (len(values) % 2 or len(values) < 6) if outlines else len(values) != 4 + more * (rules.task == "pose"):
            return [], "columns", line
        if _outside(values, rules, outlines):
            return [], "coordinates", line
        found.append(int(kind))
    if rows and not outlines and rules.task in ("segment", "obb"):
        return [], "boxes", rows[0][0]
    return found, "", ""


def _outside(values: list[float], rules: Rules, outlines: bool) -> bool:
    if not math.isfinite(sum(values)):
        return True
    if outlines:  # what counts is the box around it
        (left, right), (top, bottom) = ((min(side), max(side)) for side in (values[::2], values[1::2]))
        values = [(left + right) / 2, (top + bottom) / 2, right - left, bottom - top]
    bounded = values
    if rules.task == "pose":
        step = rules.keypoints[1]
        bounded = values[4::step] + values[5::step]
    return min(values) < -SLACK or min(values[2:4]) < 0 or max(bounded) > 1 + SLACK
