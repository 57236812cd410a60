"""Label files: judged as Ultralytics judges them, with a word for what is wrong."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from PIL import Image
from ultralytics.data.utils import img2label_paths, verify_image_label

from kit.data import labels
from kit.data.labels import Rules

DETECT = Rules("detect", 3)
POSE = Rules("pose", 3, keypoints=(2, 3))
BOX = "0 0.5 0.5 0.2 0.2"
OUTLINE = "1 0.1 0.1 0.9 0.1 0.9 0.9"
POINTS = " 0.1 0.1 2 0.9 0.9 0"


@pytest.mark.parametrize(
    ("rules", "text", "problem"),
    [
        (DETECT, BOX, ""),
        (DETECT, f"{BOX}\n\n 2 0 0 1 1\t\n", ""),
        (DETECT, "", ""),
        (DETECT, "2.0 0.5 0.5 1.005 1", ""),
        (DETECT, OUTLINE, ""),
        (DETECT, "3 0.5 0.5 0.2 0.2", "class"),
        (DETECT, "-1 0.5 0.5 0.2 0.2", "class"),
        (DETECT, "0.5 0.5 0.2 0.2 0.1", "class"),
        (DETECT, "nan 0.5 0.2 0.2 0.1", "class"),
        (DETECT, "dog 0.5 0.5 0.2 0.2", "numbers"),
        (DETECT, "0,0.5,0.5,0.2,0.2", "numbers"),
        (DETECT, "0 0.5 0.5 0.2", "columns"),
        (DETECT, "0 0.5 0.5 0.2 0.2 0.9", "columns"),
        (DETECT, f"{BOX}\n{OUTLINE}", "columns"),
        (DETECT, f"{OUTLINE} 0.5", "columns"),
        (DETECT, "0 120 80 40 40", "coordinates"),
        (DETECT, "0 0.5 0.5 -0.005 0.2", "coordinates"),
        (DETECT, "0 0.5 -0.02 0.2 0.2", "coordinates"),
        (DETECT, "0 0.5 0.5 nan 0.2", "coordinates"),
        (DETECT, "0 0.1 0.1 nan 0.1 0.9 0.9", "coordinates"),
        (DETECT, "0 0.5 1.05 0.9 1.05 0.9 1.05", "coordinates"),
        (DETECT, "0 0.95 0.5 1.03 0.5 1.03 0.6", ""),
        (Rules("detect", 3, single=True), "7 0.5 0.5 0.2 0.2", ""),
        (Rules("detect", 3, keypoints=(2, 3)), BOX + POINTS, ""),
        (Rules("segment", 3), OUTLINE, ""),
        (Rules("segment", 3), "", ""),
        (Rules("segment", 3), BOX, "boxes"),
        (Rules("obb", 3), f"{OUTLINE} 0.1 0.9", ""),
        (Rules("obb", 3), BOX, "boxes"),
        (POSE, BOX + POINTS, ""),
        (POSE, BOX, "columns"),
        (POSE, f"{BOX}{POINTS} 0.1", "columns"),
        (POSE, f"{BOX} 0.1 1.2 2 0.9 0.9 0", "coordinates"),
        (POSE, f"{BOX} 0.1 0.2 -1 0.9 0.9 0", "coordinates"),
        (Rules("pose", 3, keypoints=(2, 2)), f"{BOX} 0.1 0.1 0.9 1.2", "coordinates"),
    ],
)
def test_problem_has_a_name(rules: Rules, text: str, problem: str) -> None:
    """Class first, then the columns, then what they hold; the line that is wrong is told."""
    kinds, found, line = labels.judge(text, rules)
    assert found == problem
    assert bool(line) == bool(problem)
    assert not (kinds and problem)


def test_classes_are_told_object_by_object() -> None:
    """They are counted."""
    assert labels.judge(f"{BOX}\n2 0 0 1 1\n{BOX}\n", DETECT) == ([0, 2, 0], "", "")


def test_first_line_that_is_wrong_is_told() -> None:
    """For the user to look it up."""
    assert labels.judge(f"{BOX}\n7 0 0 1 1\n8 0 0 1 1", DETECT)[2] == "7 0 0 1 1"


@pytest.mark.parametrize(
    "rules", [DETECT, Rules("segment", 3, single=True), Rules("detect", 3, keypoints=(1, 2)), POSE]
)
def test_what_is_judged_bad_is_what_ultralytics_drops(tmp_path: Path, rules: Rules) -> None:
    """Of two thousand random label files the same are kept, with the same classes; but for the words «boxes»."""
    image, label = str(tmp_path / "a.png"), tmp_path / "a.txt"
    Image.new("RGB", (32, 32)).save(image)
    draw, kept = random.Random(0), 0
    for _ in range(2000):
        label.write_text("\n".join(random_line(draw) for _ in range(draw.choice([0, 1, 1, 2]))), encoding="utf-8-sig")
        arguments = (image, str(label), "", rules.task == "pose", rules.classes, *rules.keypoints, rules.single)
        theirs = verify_image_label(arguments)
        kinds, problem, _ = labels.judge(label.read_text(encoding="utf-8-sig"), rules)
        assert bool(theirs[8]) == (problem not in ("", "boxes")), (label.read_text(), problem, theirs[9])
        if not problem:
            kept += bool(kinds)
            assert sorted(kinds) == sorted(theirs[1][:, 0].astype(int).tolist())
    assert kept > 50


def random_line(draw: random.Random) -> str:
    """Return a line that is mostly right: the numbers are so fine that no two lines are the same."""
    columns = draw.choice([5, 5, 5, 5, 4, 6, 7, 7, 9, 11, 11, 8])
    kind = draw.choice(["0", "1", "2", "2", "3", "-1", "1.0", "0.5"] if draw.random() < 0.2 else "012")
    values = [f"{draw.uniform(0, 1):.9f}" for _ in range(columns - 1)]
    if draw.random() < 0.3:
        wrong = ["1.005", "1.02", "-0.005", "-0.02", "7", "nan", "x"]
        values[draw.randrange(len(values))] = draw.choice(wrong)
    return " ".join([kind, *values])


@pytest.mark.parametrize(
    "image",
    [
        "/a/images/train/0.jpg",
        "/a/train/images/0.b.jpg",
        "/images/images/0.PNG",
        "/a/flat/0.jpg",
        "/a.b/images.c/0.jpg",
        "images/0.jpg",
        "./images/train/0.jpg",
    ],
)
def test_labels_lie_where_ultralytics_looks_for_them(image: str) -> None:
    """The last folder `images` is replaced by `labels`."""
    assert labels.path_of(image) == img2label_paths([image])[0]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ([17, 3], (17, 3)),
        ([4, 2], (4, 2)),
        (None, (0, 0)),
        ([17], (0, 0)),
        ([0, 3], (0, 0)),
        ([17, 4], (0, 0)),
        ("17, 3", (0, 0)),
        (["17", 3], (0, 0)),
    ],
)
def test_key_points_are_a_number_and_two_or_three_values_each(shape: object, expected: tuple[int, int]) -> None:
    """As in Ultralytics."""
    assert labels.keypoints({"kpt_shape": shape}) == expected
