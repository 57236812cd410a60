"""The check of a data set: what it holds, what will be left out, what cannot be trained on; and fast."""

from __future__ import annotations

import builtins
import glob
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import pytest
import yaml

from kit.data import check as datacheck, description, find, report as datareport
from kit.data.report import Report
from kit.errors import DataError
from kit.kaggle import session
from kit.yolo import scan
from tests.data.test_files import picture

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


def check(folder: Path, task: str = "detect", remember: Path | None = None, **settings: Any) -> Report:
    return scan.look(find.resolve(str(folder)), task, settings, remember)


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
    for name, expected in (("train", (5, 5, 0, 0, [3, 2])), ("val", (2, 2, 0, 0, [1, 1]))):
        held = report.splits[name]
        assert (held.images, held.labelled, held.background, held.left_out, held.objects) == expected


def test_table_tells_splits_and_classes(place: Path) -> None:
    """Images with labels, background, what is left out, and objects by class."""
    folder = make(place / "set", images=(6, 2))
    write(folder, "train/0", f"0 {BOX}", f"1 {BOX}", "1 0.4 0.4 0.2 0.2")
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
    assert check(folder, single_cls=True).splits["train"].left_out == 0
    assert check(folder).splits["train"].left_out == 1


# --- what is left out


@pytest.mark.parametrize(
    ("task", "line", "words"),
    [
        ("detect", "0 120 80 40 40", ["non-normalized", "divide pixels by the image's width and height"]),
        ("detect", "0 0.5 0.5 0.2", ["labels require 5 columns", "write class x y width height"]),
        ("detect", f"0.5 {BOX}", ["a class that is not a whole number"]),
        ("detect", f"cat {BOX}", ["could not convert string to float", "write class x y width height"]),
        ("segment", f"0 {OUTLINE} 0.5", ["class x1 y1 x2 y2"]),
        ("obb", f"0 {OUTLINE} 0.5", ["class x1 y1 x2 y2"]),
        ("pose", f"0 {BOX}", ["labels require 11 columns", "numbers of the keypoints"]),
        ("pose", f"0 {BOX} 12 20 2 0.9 0.9 0", ["non-normalized"]),
    ],
)
def test_image_with_bad_labels_is_said_to_be_left_out(place: Path, task: str, line: str, words: list[str]) -> None:
    """Ultralytics drops it: how many, which, the line, and what to write."""
    folder = make(place / "set", task)
    write(folder, "train/0", line)
    report = check(folder, task)
    only(report.warnings, "Left out of train: 1 image (for example 'images/train/0.png'), because of: ", *words)
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
    only(report.warnings, f"Left out of train: 4 images (for example {names}), because of: ", "replace or delete")
    assert report.errors == []
    assert report.splits["train"].left_out == 4


def test_listed_file_that_is_not_there_is_said_to_be_left_out(place: Path) -> None:
    """A text file names the images of a split."""
    folder = make(place / "set", train="train.txt")
    (folder / "train.txt").write_text("./images/train/0.png\n./images/train/1.png\n/content/none.png\n")
    report = check(folder)
    only(report.warnings, "Left out of train: 1 image (for example '/content/none.png')", "No such file", "'./'")
    assert report.errors == []


def test_image_without_a_label_file_is_said_to_be_background(place: Path) -> None:
    """An empty one is deliberate, and only counted."""
    folder = make(place / "set")
    (folder / "labels/train/0.txt").unlink()
    write(folder, "train/1")
    report = check(folder)
    assert report.warnings[0] == "Background in train: 1 image (for example 'images/train/0.png') without a label file."
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
def test_class_number_that_is_out_of_range_is_a_warning(place: Path, task: str, split: str) -> None:
    """Ultralytics drops the image, and a read-only input cannot be corrected; an error where nothing is left."""
    folder = make(place / "set", task)
    write(folder, f"{split}/0", f"2 {LINES[task]}")
    report = check(folder, task)
    words = ("1 image", "Label class 2 exceeds dataset class count 2", "'names:'")
    assert report.errors == []
    assert [all(word in text for word in words) for text in report.warnings].count(True) == 1
    for number in range(4 if split == "train" else 2):
        write(folder, f"{split}/{number}", f"2 {LINES[task]}")
    only(check(folder, task).errors, f"Left out of {split}: ", *words[1:])


def test_labels_that_are_dropped_are_not_missed_as_well(place: Path) -> None:
    """One mistake, one sentence, also where all other images are background."""
    folder = make(place / "set")
    write(folder, "train/0", f"2 {BOX}")
    for number in range(1, 4):
        write(folder, f"train/{number}")
    only(check(folder).errors, "Label class 2 exceeds")


def test_report_tells_what_training_will_use(place: Path) -> None:
    """Small images, rows that are there twice, a PNG with a bad checksum, formats that are not listed, pipes."""
    folder = make(place / "set", images=(9, 2))
    images = folder / "images/train"
    picture(images / "0.png", size=(8, 8))
    write(folder, "train/1", f"1 {BOX}", f"1 {BOX}", f"0 {BOX}")
    raw = bytearray((images / "2.png").read_bytes())
    raw[len(raw) // 2] ^= 1
    (images / "2.png").write_bytes(raw)
    (images / "3.png").rename(images / "3.jfif")
    os.mkfifo(images / "9.jpg")
    report = check(folder)
    held = report.splits["train"]
    assert (held.images, held.labelled, held.left_out, sum(held.objects)) == (9, 6, 3, 7)
    for words in (
        ["images/train/0.png", "<10 pixels", "take larger ones"],
        ["images/train/2.png", "replace or delete"],
        ["Counted once in train: 1 label row", "images/train/1.png"],
        ["Not images to Ultralytics in train: 1 image", "3.jfif"],
        ["images/train/9.jpg", "a pipe, device or folder"],
    ):
        assert any(all(word in text for word in words) for text in report.warnings), (words, report.warnings)
    assert report.errors == []
    assert len(report.warnings) == 5


@pytest.mark.parametrize("task", ["detect", "classify"])
@pytest.mark.parametrize("suffix", ["bmp", "tiff", "jp2", "webp"])
def test_image_that_cannot_be_decoded_is_dropped(place: Path, suffix: str, task: str) -> None:
    """Its header is whole, so Ultralytics' scan keeps it, and training would end at it."""
    folder = make(place / "set", task, (5, 2))
    path = next((folder / "images/train" if task == "detect" else folder / "train/cat").glob("0.png"))
    path.unlink()
    path = picture(path.with_suffix(f".{suffix}"), size=(200, 200))
    assert check(folder, task).splits["train"].left_out == 0
    os.truncate(path, path.stat().st_size // 2)
    for _ in range(2):  # anew and from the cache
        report = check(folder, task)
        if report.splits["train"].left_out == 0:
            assert cv2.imread(str(path)) is not None  # this decoder takes what there is
            return
        only(report.warnings, "Left out of train: 1 image", path.name, "replace or delete")


@pytest.mark.parametrize("task", ["segment", "obb"])
def test_boxes_for_a_task_that_needs_outlines_are_an_error(place: Path, task: str) -> None:
    """Ultralytics refuses the whole set for one of them."""
    folder = make(place / "set", task)
    write(folder, "train/0", f"0 {BOX}")
    report = check(folder, task)
    only(report.errors, "The images of train cannot be used: ", "not a detect dataset")


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
    only(check(folder).errors, f"Left out of {split}: ", "non-normalized", "divide")


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


@pytest.mark.parametrize("values", [{"kpt_shape": "[2, 3]"}, {"flip_idx": 1}])
def test_what_ultralytics_refuses_is_said_of_the_users_own_file(place: Path, values: dict[str, Any]) -> None:
    """And not of the description in scratch."""
    folder = make(place / "set", **values)
    with pytest.raises(DataError, match=f"{folder}/data.yaml '{next(iter(values))}' must be list, not") as caught:
        check(folder)
    assert str(place / "scratch") not in str(caught.value)


@pytest.mark.parametrize("values", [{}, {"test": "images/none"}])
def test_split_that_is_missing_is_said_of_the_users_own_file(place: Path, values: dict[str, Any]) -> None:
    """`split=test` validates on images that many data sets have not."""
    folder = make(place / "set", **values)
    with pytest.raises(DataError, match=f"^'{folder}/data.yaml' has no images for split=test. "):
        check(folder, split="test")


def test_split_that_is_asked_for_is_what_is_looked_at(place: Path) -> None:
    """Its images are those of the validation."""
    folder = make(place / "set", test="images/test")
    for number in range(3):
        picture(folder / f"images/test/{number}.png", seed=number)
    assert check(folder, split="test").splits["val"].images == 3


def test_linked_folders_are_listed_as_ultralytics_lists_them(place: Path) -> None:
    """Each as often as it is linked, hidden ones not at all; a circle is walked once."""
    folder = make(place / "set")
    images = folder / "images/train"
    for name in ("other", "other/deep.er", ".hidden"):
        picture(images / name / "9.png", seed=len(name))
    for name in ("one", "two"):
        (images / name).symlink_to(images / "other")
    (images / "8.png").symlink_to(images / "0.png")
    expected = sorted(glob.glob(f"{images}/**/*.png", recursive=True))
    for name in ("circle", "round"):
        (images / "other" / name).symlink_to(images)
    scanned = check(folder)
    assert len(expected) == 4 + 1 + 3 * 2
    assert (scanned.errors, scanned.splits["train"].images) == ([], len(expected))
    assert sorted(path for path, _ in description.below(str(images)) if path.endswith(".png")) == expected


# --- what has changed


def replace(folder: Path, name: str) -> None:
    """Put another picture in the place of one."""
    picture(folder / name, seed=99)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: replace(folder, "images/train/1.png"), ["the training images"]),
        (lambda folder: replace(folder, "images/val/1.png"), ["the validation images"]),
        (lambda folder: write(folder, "train/1", f"0 {BOX}"), ["the training labels"]),
        (lambda folder: write(folder, "val/1", f"0 {BOX}"), ["the validation labels"]),
        (lambda folder: write(folder, "train/1", f"1 {BOX} "), ["the training labels"]),
        (lambda folder: write(folder, "train/1"), ["the training labels"]),
        (lambda folder: (folder / "labels/train/1.txt").unlink(), ["the training labels"]),
        (lambda folder: replace(folder, "images/train/9.png"), ["the list of training images (4 before, 5 now)"]),
        (lambda folder: replace(folder, "images/val/9.png"), ["the list of validation images (2 before, 3 now)"]),
        (
            lambda folder: (folder / "images/val/1.png").rename(folder / "images/val/2.png"),
            ["the list of validation images"],
        ),
        (
            lambda folder: [replace(folder, "images/train/0.png"), write(folder, "train/0"), write(folder, "val/0")],
            ["the training images", "the training labels", "the validation labels"],
        ),
        (lambda folder: (folder / "readme.md").write_text("of a new version"), []),
    ],
)
def test_change_of_the_files_is_said(place: Path, change: Callable[[Path], object], said: list[str]) -> None:
    """Replaced or edited under the same name, added, renamed; in either split; and nothing else."""
    folder = make(place / "set")
    old = check(folder).fingerprint
    change(folder)
    new = check(folder).fingerprint
    assert datareport.changed(old, new) == said
    assert datareport.changed(new, new) == []


def test_empty_label_file_and_none_at_all_are_not_the_same(place: Path) -> None:
    """And it matters which image a label file belongs to."""
    folder = make(place / "set")
    write(folder, "train/0")
    write(folder, "train/1")
    seen = [check(folder).fingerprint]
    for change in (
        lambda: (folder / "labels/train/0.txt").unlink(),
        lambda: (folder / "labels/train/1.txt").rename(folder / "labels/train/0.txt"),
    ):
        change()
        seen.append(check(folder).fingerprint)
    for old, new in ((0, 1), (1, 2), (0, 2)):
        assert datareport.changed(seen[old], seen[new]) == ["the training labels"]


def test_images_that_have_changed_places_are_said(place: Path) -> None:
    """The same files under each other's names."""
    folder = make(place / "set")
    old, images = check(folder).fingerprint, folder / "images/train"
    for names in (("0.png", "x"), ("1.png", "0.png"), ("x", "1.png")):
        (images / names[0]).rename(images / names[1])
    assert datareport.changed(old, check(folder).fingerprint) == ["the training images"]


@pytest.mark.parametrize("kind", ["folder", "list", "list of whole paths", "two folders", "beside"])
def test_same_data_set_elsewhere_with_other_dates_is_the_same(place: Path, kind: str) -> None:
    """Kaggle mounts it under another path, at another time; also where its description lies beside the images."""
    old = make(place / "input/set", **({"train": "train.txt"} if kind.startswith("list") else {}))
    new = place / "input/datasets/somebody/a-set"
    if kind == "two folders":
        make(old, train=["images/train", "images/more"])
        picture(old / "images/more/0.png", seed=99)
    if kind == "beside":
        (old / "v1").mkdir()
        (old / "data.yaml").write_text("train: ../images/train\nval: ../images/val\nnames: [cat, dog]\n")
        (old / "data.yaml").rename(old / "v1/data.yaml")
    shutil.copytree(old, new)
    for folder in (old, new):
        root = "." if kind == "list" else folder
        lines = [f"{root}/images/train/{number}.png" for number in range(3)]
        if kind.startswith("list"):
            (folder / "train.txt").write_text("\n".join(lines))
    for number, file in enumerate(sorted(new.rglob("*"))):
        os.utime(file, ns=(number, number))
    fingerprints = [check(folder).fingerprint for folder in (old, new)]
    assert fingerprints[0] == fingerprints[1] != {}
    assert datareport.changed(*fingerprints) == []
    replace(new, "images/train/0.png")
    assert datareport.changed(fingerprints[0], check(new).fingerprint) == ["the training images"]


def test_longer_list_is_said(place: Path) -> None:
    """A text file names the images of a split: a line more, whose image is not there, counts too; and once it is."""
    folder = make(place / "set", train="train.txt")
    seen = []
    for names in (["0", "1"], ["0", "1", "9"]):
        (folder / "train.txt").write_text("\n".join(f"./images/train/{name}.png" for name in names))
        seen.append(check(folder).fingerprint)
    assert datareport.changed(*seen) == ["the list of training images (2 before, 3 now)"]
    replace(folder, "images/train/9.png")
    assert datareport.changed(seen[1], check(folder).fingerprint) == ["the training images"]


def test_change_of_a_classification_set_is_said(place: Path) -> None:
    """The class is part of the path, and there are no labels."""
    folder = make(place / "set", "classify", (5, 2))
    old = check(folder, "classify").fingerprint
    replace(folder, "train/cat/0.png")
    assert datareport.changed(old, check(folder, "classify").fingerprint) == ["the training images"]
    picture(folder / "train/cat/0.png", seed=0)
    assert datareport.changed(old, check(folder, "classify").fingerprint) == []
    (folder / "train/cat/4.png").rename(folder / "train/dog/4.png")
    assert datareport.changed(old, check(folder, "classify").fingerprint) == ["the list of training images"]
    shutil.copytree(folder, place / "copy")
    assert check(place / "copy", "classify").fingerprint == check(folder, "classify").fingerprint


@pytest.mark.parametrize("damage", ["cut off", "label of letters", "label that is wrong"])
def test_file_that_becomes_usable_is_a_change(place: Path, damage: str) -> None:
    """What is left out belongs to the data set as well."""
    folder = make(place / "set")
    good = check(folder).fingerprint
    if damage == "cut off":
        os.truncate(folder / "images/train/0.png", 500)
    else:
        (folder / "labels/train/0.txt").write_bytes(b"\xff\xfe0" if damage == "label of letters" else b"0 9 9 9 9")
    report = check(folder)
    assert report.splits["train"].left_out == 1
    said = "the training images" if damage == "cut off" else "the training labels"
    assert datareport.changed(report.fingerprint, good) == [said]


@pytest.mark.parametrize("options", [{"classes": [1]}, {"single_cls": True}, {"single_cls": True, "classes": 0}])
def test_settings_that_choose_objects_leave_the_fingerprint(place: Path, options: dict[str, Any]) -> None:
    """They are settings of the run, which are compared on their own; and so is the part of the images that is used."""
    folder = make(place / "set")
    old = check(folder).fingerprint
    assert check(folder, **options).fingerprint == old
    new = check(folder, fraction=0.5, **options).fingerprint
    assert datareport.changed(old, new) == ["the list of training images (4 before, 2 now)"]


@pytest.mark.parametrize(
    ("task", "values", "said"),
    [
        ("pose", {"flip_idx": [1, 0]}, ["the keypoints' order in mirrored images"]),
        ("pose", {"kpt_oks_sigmas": [0.1, 0.2]}, ["the keypoints' sigmas"]),
        ("pose", {"kpt_shape": [3, 2], "channels": 1}, ["the number of channels", "the keypoints' shape"]),
        ("detect", {"channels": 1}, ["the number of channels"]),
        ("detect", {"flip_idx": [1, 0], "kpt_oks_sigmas": [0.1, 0.2], "roboflow": {"version": 2}}, []),
        ("pose", {"channels": 3, "flip_idx": []}, []),
    ],
)
def test_change_of_the_descriptions_settings_is_said(
    place: Path, task: str, values: dict[str, Any], said: list[str]
) -> None:
    """Those that training depends on, where it does; Ultralytics' own default is the same as none."""
    old, new = (check(make(place / "set", task, **more), task).fingerprint for more in ({}, values))
    assert datareport.changed(old, new) == said


def test_what_either_side_does_not_know_is_not_compared(place: Path) -> None:
    """A checkpoint of an earlier version, and a data set that could not be looked at."""
    folder = make(place / "set")
    old = check(folder).fingerprint
    for path in ("images/train/9.png", "images/val/0.png"):
        replace(folder, path)
    new = check(folder).fingerprint
    assert check(folder, "classify").fingerprint == {}
    assert datareport.changed(old, {}) == datareport.changed({}, new) == datareport.changed({}, {}) == []
    known = {"train": {}, "val": {"images": old["val"]["images"]}, "test": {"list": "of a later version"}}
    assert datareport.changed(known, new) == ["the validation images"]
    assert datareport.changed(old | {"train": {"list": ""}}, new)[0] == "the list of training images"


def test_fingerprint_is_the_same_in_every_process(place: Path) -> None:
    """It is kept in checkpoints: as JSON or not, whatever Python salts its hashes with."""
    folder = make(place / "set")
    expected = check(folder).fingerprint
    script = (
        "import json, sys; from kit.data import find; from kit.yolo import scan; "
        "print(json.dumps(scan.look(find.resolve(sys.argv[1]), 'detect', {}).fingerprint))"
    )
    for salt in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(session.REPOSITORY), "PYTHONHASHSEED": salt}
        command = [sys.executable, "-c", script, str(folder)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout.splitlines()[-1]) == expected


def test_remembered_report_has_the_same_fingerprint(place: Path) -> None:
    """And it is looked at only once."""
    folder, kept = make(place / "set", "pose"), place / "scratch/checks"
    report = check(folder, "pose", remember=kept)
    (file,) = kept.iterdir()
    made = file.stat().st_mtime_ns
    recalled = check(folder, "pose", remember=kept)
    assert recalled.fingerprint == report.fingerprint == check(folder, "pose").fingerprint
    assert set(report.fingerprint) == {"train", "val", "settings"}
    assert file.stat().st_mtime_ns == made


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
    for text in ("", "[]", "{}", '{"splits": []}', '{"splits": {"train": {}}}'):
        (file,) = kept.iterdir()
        file.write_text(text)
        assert check(folder, remember=kept) == first


def test_report_of_an_earlier_version_is_made_anew(place: Path) -> None:
    """One that knows no fingerprint, under whatever name; and one of other rules has another name."""
    folder, kept = make(place / "set"), place / "scratch/checks"
    first = check(folder, remember=kept)
    (file,) = kept.iterdir()
    values = json.loads(file.read_text())
    for split in values["splits"].values():
        del split["fingerprint"]
    file.write_text(json.dumps(values))
    assert check(folder, remember=kept) == first
    assert json.loads(file.read_text())["splits"]["val"]["fingerprint"] == first.splits["val"].fingerprint


def test_form_is_part_of_a_remembered_reports_name(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that makes another report of the same files does not take this one's."""
    folder, kept = make(place / "set"), place / "scratch/checks"
    check(folder, remember=kept)
    monkeypatch.setattr(datacheck, "VERSION", datacheck.VERSION + 1)
    check(folder, remember=kept)
    assert len(list(kept.iterdir())) == 2


def test_same_size_and_date_do_not_hide_a_change(place: Path) -> None:
    """Another class for an object: as many bytes, and tools that unpack put the dates back."""
    folder, kept = make(place / "set"), place / "scratch/checks"
    file = folder / "labels/train/0.txt"
    state, first = file.stat(), check(folder, remember=kept)
    write(folder, "train/0", f"1 {BOX}")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert file.stat().st_size == state.st_size
    assert datareport.changed(first.fingerprint, check(folder, remember=kept).fingerprint) == ["the training labels"]


def test_nothing_is_written_beside_the_images(place: Path) -> None:
    """Caches and reports go to scratch."""
    folder = make(place / "set")
    before = sorted(folder.rglob("*"))
    check(folder)
    assert sorted(folder.rglob("*")) == before


def test_check_needs_neither_torch_nor_ultralytics() -> None:
    """The notebook's kernel may ask for it."""
    script = (
        "import sys, kit.data.check, kit.data.report; print(*{'torch', 'ultralytics', 'numpy', 'PIL'} & {*sys.modules})"
    )
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
