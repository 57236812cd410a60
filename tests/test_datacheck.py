"""The check of a data set: what it holds, what will be left out, what cannot be trained on; and fast."""

from __future__ import annotations

import builtins
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_samplefiles import picture

from kit import data, datacheck, session
from kit.datacheck import Report

BOX = "0.5 0.5 0.2 0.2"
OUTLINE = "0.1 0.1 0.9 0.1 0.9 0.9 0.1 0.9"
LINES = {"detect": BOX, "segment": OUTLINE, "obb": OUTLINE, "pose": f"{BOX} 0.1 0.1 2 0.9 0.9 0"}


def make(folder: Path, task: str = "detect", images: tuple[int, int] = (4, 2), **values: Any) -> Path:
    """Make a data set of two classes: image n has one object, of class n modulo 2."""
    seeds = iter(range(1000))
    for split, count in zip(("train", "val"), images, strict=True):
        (folder / "images" / split).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            if task == "classify":
                picture(folder / split / ["cat", "dog"][number % 2] / f"{number}.png", seed=next(seeds))
            else:
                picture(folder / f"images/{split}/{number}.png", seed=next(seeds))
                write(folder, f"{split}/{number}", f"{number % 2} {LINES[task]}")
    if task == "classify":
        shutil.rmtree(folder / "images")
        return folder
    values = {"train": "images/train", "val": "images/val", "names": ["cat", "dog"], **values}
    if task == "pose":
        values.setdefault("kpt_shape", [2, 3])
    (folder / "data.yaml").write_text(yaml.safe_dump(values))
    return folder


def write(folder: Path, name: str, *lines: str) -> None:
    path = folder / f"labels/{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


def check(folder: Path, task: str = "detect", **options: Any) -> Report:
    return datacheck.check(data.resolve(str(folder)), task, **options)


def only(sentences: list[str], *words: str) -> None:
    """Assert that there is one sentence, which says all of this."""
    assert len(sentences) == 1, sentences
    assert [word for word in words if word not in sentences[0]] == [], sentences
    assert "\n" not in sentences[0]
    assert sentences[0].endswith(".")


# --- good ones


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify"])
def test_good_data_set_has_nothing_to_say(place: Path, task: str) -> None:
    """Its splits and classes are counted."""
    report = check(make(place / "set", task, (5, 2)), task)
    assert (report.warnings, report.errors) == ([], [])
    assert report.splits["train"] == datacheck.Split(5, 5, 0, 0, [3, 2])
    assert report.splits["val"] == datacheck.Split(2, 2, 0, 0, [1, 1])


def test_table_tells_splits_and_classes(place: Path) -> None:
    """Images with labels, background, what is left out, and objects by class."""
    folder = make(place / "set", images=(6, 2))
    write(folder, "train/0", f"0 {BOX}", f"1 {BOX}", f"1 {BOX}")
    write(folder, "train/1")
    (folder / "images/train/2.png").write_bytes(b"")
    assert check(folder).describe().splitlines() == [
        f"Data set {folder} (detect, 2 classes)",
        "  split       images  labelled  background  left out   objects",
        "  train            6         4           1         1         6",
        "  val              2         2           0         0         2",
        "  class                  in train     in val",
        "  0 cat                         2          1",
        "  1 dog                         4          1",
    ]


def test_table_of_many_classes_is_cut(place: Path) -> None:
    """Fifteen lines at most, and how many classes are not shown."""
    folder = make(
        place / "set", names=[f"{number} a class with a name that is longer than its column" for number in range(80)]
    )
    lines = check(folder).describe().splitlines()
    assert len(lines) <= 15
    assert lines[-1] == "  … and 71 more classes"
    assert len({len(line) for line in lines[4:-1]}) == 1


@pytest.mark.parametrize(
    ("options", "train"),
    [
        ({"fraction": 0.5}, (2, 2, 0, [1, 1])),
        ({"fraction": 3}, (3, 3, 0, [2, 1])),
        ({"fraction": [0.5, 1.0]}, (2, 2, 0, [1, 1])),
        ({"classes": [1]}, (4, 2, 2, [0, 2])),
        ({"classes": 1}, (4, 2, 2, [0, 2])),
        ({"single_cls": True}, (4, 4, 0, [4])),
        ({"single_cls": True, "classes": [1]}, (4, 2, 2, [2])),
    ],
)
def test_settings_that_choose_a_part_are_followed(
    place: Path, options: dict[str, Any], train: tuple[int, int, int, list[int]]
) -> None:
    """What is not used is neither counted nor missed; and what is wrong in it does not matter."""
    folder = make(place / "set")
    if "fraction" in options:
        (folder / "images/train/3.png").write_bytes(b"")
    report = check(folder, **options)
    held = report.splits["train"]
    assert (held.images, held.labelled, held.background, held.objects) == train
    assert report.splits["val"].images == 2
    assert (report.warnings, report.errors) == ([], [])


def test_class_of_any_number_will_do_where_all_count_as_one(place: Path) -> None:
    """`single_cls=True`."""
    folder = make(place / "set")
    write(folder, "train/0", f"17 {BOX}")
    assert check(folder, single_cls=True).errors == []
    assert check(folder).errors != []


# --- what is left out


@pytest.mark.parametrize(
    ("task", "line", "words"),
    [
        ("detect", "0 120 80 40 40", ["labels outside 0..1", "divide pixels by the image's width and height"]),
        ("detect", "0 0.5 0.5 0.2", ["other columns than the task 'detect' takes", "class x y width height"]),
        ("detect", f"cat {BOX}", ["labels that are no numbers"]),
        ("segment", f"0 {OUTLINE} 0.5", ["other columns than the task 'segment' takes", "class x1 y1 x2 y2"]),
        ("obb", f"0 {OUTLINE} 0.5", ["other columns than the task 'obb' takes", "class x1 y1 x2 y2"]),
        ("pose", f"0 {BOX}", ["other columns than the task 'pose' takes", "and 6 numbers for the keypoints"]),
        ("pose", f"0 {BOX} 12 20 2 0.9 0.9 0", ["labels outside 0..1"]),
    ],
)
def test_image_with_bad_labels_is_said_to_be_left_out(place: Path, task: str, line: str, words: list[str]) -> None:
    """Ultralytics drops it: how many, which, the line, and what to write."""
    folder = make(place / "set", task)
    write(folder, "train/0", line)
    report = check(folder, task)
    only(report.warnings, "Left out of train: 1 image with ", f"'labels/train/0.txt' with '{line[:40]}'", *words)
    assert report.errors == []
    assert report.splits["train"].left_out == 1


@pytest.mark.parametrize("task", ["detect", "classify"])
def test_unreadable_image_is_said_to_be_left_out(place: Path, task: str) -> None:
    """Cut off, or no image at all; the first three are named."""
    folder = make(place / "set", task, (9, 2))
    files = sorted((folder / "images/train" if task == "detect" else folder / "train/cat").iterdir())[:4]
    for file in files:
        os.truncate(file, file.stat().st_size // 2)
    report = check(folder, task)
    names = ", ".join(f"'{file.relative_to(folder)}'" for file in files[:3])
    only(report.warnings, f"Left out of train: 4 images cut off or unreadable (for example {names}): replace or delete")
    assert report.errors == []
    assert report.splits["train"].left_out == 4


def test_listed_file_that_is_not_there_is_said_to_be_left_out(place: Path) -> None:
    """A text file names the images of a split."""
    folder = make(place / "set", train="train.txt")
    (folder / "train.txt").write_text("./images/train/0.png\n./images/train/1.png\n/content/none.png\n")
    report = check(folder)
    only(report.warnings, "Left out of train: 1 image listed but not there (for example '/content/none.png')", "'./'")
    assert report.errors == []


def test_image_without_a_label_file_is_said_to_be_background(place: Path) -> None:
    """An empty one is deliberate, and only counted."""
    folder = make(place / "set")
    (folder / "labels/train/0.txt").unlink()
    write(folder, "train/1")
    report = check(folder)
    assert report.warnings[0] == "Background in train: 1 image without a label file (for example 'images/train/0.png')."
    assert report.splits["train"].background == 2


def test_class_without_an_example_is_named(place: Path) -> None:
    """It cannot be learned."""
    folder = make(place / "set", names=["cat", "dog", "cow", "hen", "pig", "ox"])
    only(check(folder).warnings, "Without an example in train: 4 classes (cow, hen, pig, …).")


def test_class_folder_without_images_is_named(place: Path) -> None:
    """`.ipynb_checkpoints` becomes a class that way."""
    folder = make(place / "set", "classify")
    (folder / "train/.ipynb_checkpoints").mkdir()
    only(check(folder, "classify").warnings, "Without an example in train: 1 class (.ipynb_checkpoints).")


def test_class_folder_that_train_has_not_is_named(place: Path) -> None:
    """Ultralytics leaves its images out."""
    folder = make(place / "set", "classify")
    picture(folder / "val/cow/0.png", seed=99)
    only(check(folder, "classify").warnings, "Left out of val: 1 class (cow) that train has not.")


def test_validation_without_labels_is_said(place: Path) -> None:
    """Training works; choosing the best model does not."""
    folder = make(place / "set")
    for number in range(2):
        write(folder, f"val/{number}")
    report = check(folder)
    only(report.warnings, "No image of val has a label: the mAP will be 0")
    assert report.errors == []


@pytest.mark.parametrize("kind", ["copy", "link", "same folder"])
@pytest.mark.parametrize("task", ["detect", "classify"])
def test_image_in_both_splits_is_said(place: Path, kind: str, task: str) -> None:
    """The same file, or the same bytes under another name."""
    folder = make(place / "set", task)
    train, val = (
        folder / name for name in (("images/train", "images/val") if task == "detect" else ("train/cat", "val/cat"))
    )
    if kind == "copy":
        shutil.copy(train / "0.png", val / "0.png")
    elif kind == "link":
        (val / "0.png").unlink()
        (val / "0.png").symlink_to(train / "0.png")
    else:
        shutil.rmtree(val)
        val.symlink_to(train)
        for number in range(4):
            write(folder, f"val/{number}", f"0 {BOX}")
    report = check(folder, task)
    count = "1 image" if kind != "same folder" else "4 images" if task == "detect" else "2 images"
    only(
        report.warnings,
        f"Also in train: {count} of val (for example '",
        "0.png'",
        "the mAP will look better than it is",
    )
    assert report.errors == []


# --- what is refused


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_class_number_that_is_out_of_range_is_an_error(place: Path, task: str, split: str) -> None:
    """Ultralytics drops the image; the mistake is in all the others as well, or in the list of classes."""
    folder = make(place / "set", task)
    write(folder, f"{split}/0", f"2 {LINES[task]}")
    report = check(folder, task)
    only(
        report.errors,
        f"Class numbers outside 0..1 in the labels of 1 image of {split}",
        f"'labels/{split}/0.txt' with '2 ",
    )
    assert "'names:'" in report.errors[0]


def test_labels_that_are_refused_are_not_missed_as_well(place: Path) -> None:
    """One mistake, one sentence, also where all other images are background."""
    folder = make(place / "set")
    write(folder, "train/0", f"2 {BOX}")
    for number in range(1, 4):
        write(folder, f"train/{number}")
    only(check(folder).errors, "Class numbers outside 0..1")


@pytest.mark.parametrize("task", ["segment", "obb"])
def test_boxes_for_a_task_that_needs_outlines_are_an_error(place: Path, task: str) -> None:
    """Ultralytics refuses the whole set for one of them."""
    folder = make(place / "set", task)
    write(folder, "train/0", f"0 {BOX}")
    report = check(folder, task)
    only(report.errors, f"Boxes where the task '{task}' needs outlines, in the labels of 1 image of train", "'detect'")


def test_no_label_at_all_in_train_is_an_error(place: Path) -> None:
    """With where a label is looked for."""
    folder = make(place / "set")
    shutil.rmtree(folder / "labels/train")
    report = check(folder)
    path = folder / "images/train/0.png", folder / "labels/train/0.txt"
    only(
        report.errors, "No image of train has a label", "4 of 4", f"for '{path[0]}' the file '{path[1]}' is looked for"
    )


def test_only_empty_labels_in_train_are_an_error(place: Path) -> None:
    """There is nothing to learn from; nor are there labels of the classes that were chosen."""
    folder = make(place / "set")
    assert check(folder, classes=[0]).errors == []
    for number in range(0, 4, 2):
        write(folder, f"train/{number}")
    assert check(folder).errors == []
    only(check(folder, classes=[0]).errors, "No image of train has a label", "0 of 4")


@pytest.mark.parametrize("split", ["train", "val"])
def test_split_of_which_everything_is_left_out_is_an_error(place: Path, split: str) -> None:
    """With the reason: pixels where fractions are meant, in all of them."""
    folder = make(place / "set")
    for number in range(4 if split == "train" else 2):
        write(folder, f"{split}/{number}", "0 120 80 40 40")
    only(check(folder).errors, f"Left out of {split}: ", "labels outside 0..1", "divide")


@pytest.mark.parametrize("split", ["train", "val"])
def test_empty_split_is_an_error(place: Path, split: str) -> None:
    """A list without a line, or class folders without an image."""
    folder = make(place / "set", **{split: "list.txt"})
    (folder / "list.txt").write_text("readme.md\n")
    only(check(folder).errors, f"There is no image in {split} of '{folder}'")
    folder = make(place / "classes", "classify")
    for file in (folder / split).rglob("*.png"):
        file.unlink()
    only(check(folder, "classify").errors, f"There is no image in {split} of '{folder}'")


@pytest.mark.parametrize("shape", [None, [17], [4, 5]])
def test_pose_without_a_sound_kpt_shape_is_an_error(place: Path, shape: Any) -> None:
    """It says how many columns there are."""
    only(check(make(place / "set", "pose", kpt_shape=shape), "pose").errors, "kpt_shape", repr(shape), "[17, 3]")


@pytest.mark.parametrize(("kind", "task"), [("detect", "classify"), ("classify", "detect")])
def test_data_set_of_another_kind_is_an_error(place: Path, kind: str, task: str) -> None:
    """What the task needs, and where it was looked for."""
    folder = make(place / "set", kind)
    only(check(folder, task).errors, f"The task '{task}' needs ", str(folder))


def test_data_set_that_is_still_to_be_fetched_is_not_looked_at(place: Path) -> None:
    """Ultralytics' own, whose images are not here yet."""
    report = check(Path("coco8.yaml"))
    assert (report.splits, report.warnings, report.errors) == ({}, [], [])
    assert report.describe().endswith("(detect, 80 classes)")


# --- cost


def test_same_files_are_not_read_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report is kept until an image, a label file, a setting or the list of classes changes."""
    folder, kept = make(place / "set"), place / "scratch/checks"
    write(folder, "train/0", "0 120 80 40 40")
    first = check(folder, remember=kept)
    opened: list[str] = []
    real = builtins.open
    monkeypatch.setattr(builtins, "open", lambda file, *a, **k: opened.append(str(file)) or real(file, *a, **k))
    assert check(folder, remember=kept) == first
    assert [name for name in opened if name.startswith(str(folder)) and not name.endswith("data.yaml")] == []

    changes: list[Callable[[], object]] = [
        lambda: write(folder, "train/0", f"0 {BOX}", f"1 {BOX}"),
        lambda: os.utime(folder / "images/val/0.png", ns=(1, 1)),
        lambda: (folder / "labels/val/1.txt").unlink(),
        lambda: picture(folder / "images/val/new.png", seed=99),
    ]
    for change in changes:
        change()
        opened.clear()
        report = check(folder, remember=kept)
        assert str(folder / "images/train/0.png") in opened
        assert report == check(folder)
    assert check(folder, remember=kept, fraction=0.5) != report
    assert len(list(kept.iterdir())) == 6


def test_report_that_is_damaged_is_made_anew(place: Path) -> None:
    """It is only a memory."""
    folder, kept = make(place / "set"), place / "scratch/checks"
    first = check(folder, remember=kept)
    for text in ("", "[]", "{}", '{"splits": {"train": {}}}'):
        (file,) = kept.iterdir()
        file.write_text(text)
        assert check(folder, remember=kept) == first


def test_nothing_is_written_without_a_memory(place: Path) -> None:
    """The check is a function of the files."""
    folder = make(place / "set")
    dataset = data.resolve(str(folder))
    before = sorted(place.rglob("*"))
    datacheck.check(dataset, "detect")
    assert sorted(place.rglob("*")) == before


def test_check_needs_neither_torch_nor_ultralytics() -> None:
    """The notebook's kernel may ask for it."""
    script = "import sys, kit.datacheck; print(*{'torch', 'ultralytics', 'numpy', 'PIL'} & {*sys.modules})"
    environment = {**os.environ, "PYTHONPATH": str(session.REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


@pytest.mark.slow  # it makes ten thousand files
def test_ten_thousand_images_take_seconds(place: Path, shown: list[str]) -> None:
    """Warm: two reads of an image, one of its labels; and next to nothing the second time."""
    folder = make(place / "set")
    image = (folder / "images/train/0.png").read_bytes()
    for number in range(10_000):
        (folder / f"images/train/{number:05d}.png").write_bytes(image[:60] + number.to_bytes(4) + image[64:])
        write(folder, f"train/{number:05d}", *[f"{number % 2} {BOX}"] * 5)
    begin = time.perf_counter()
    report = check(folder, remember=place / "kept")
    took = time.perf_counter() - begin
    begin = time.perf_counter()
    assert check(folder, remember=place / "kept") == report
    again = time.perf_counter() - begin
    shown.append(f"data check of 10,000 images: {took:.2f} s ({10_000 / took:.0f} images/s), again {again:.2f} s")
    assert report.splits["train"].images == 10_004
