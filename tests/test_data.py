"""Data sets: found wherever their description says or means, described anew in scratch, never written to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kit import data, session
from kit.errors import DataError

NAMES = {0: "cat", 1: "dog"}


def make(folder: Path, *, splits: str = "train val", images: str = "images/{}", **values: Any) -> Path:
    """Make a data set: a description with `values`, and one image per split in `images`."""
    for split in splits.split():
        place = folder / images.format(split)
        place.mkdir(parents=True)
        (place / "0.jpg").write_bytes(b"a picture")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "data.yaml"
    path.write_text(yaml.safe_dump({"names": NAMES, **values}, sort_keys=False))
    return path


def resolved(path: Path) -> dict[str, Any]:
    """Resolve a data set and return the description that was written."""
    values: dict[str, Any] = yaml.safe_load(data.resolve(str(path)).path.read_text())
    return values


def snapshot(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    for path in sorted(folder.rglob("*")):
        yield str(path), path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b""


def refused(name: object) -> str:
    with pytest.raises(DataError) as caught:
        data.resolve(str(name))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_description_without_a_path_is_seen_from_its_own_folder(place: Path) -> None:
    """The images lie beside the file; the new description has absolute paths."""
    path = make(place / "input/set", train="images/train", val="images/val")
    values = resolved(path)
    assert values["train"] == str(place / "input/set/images/train")
    assert values["val"] == str(place / "input/set/images/val")
    assert data.resolve(str(path)).names == ("cat", "dog")


@pytest.mark.parametrize("relative", [".", "..", "inner", "./inner/"])
def test_relative_path_is_seen_from_the_files_folder(place: Path, relative: str) -> None:
    """Ultralytics sees it from its own settings' folder, or from the current one."""
    folder = place / "input/a/set"
    path = make(folder, images=f"{relative}/images/{{}}", path=relative, train="images/train", val="images/val")
    assert resolved(path)["train"] == str((folder / relative / "images/train").resolve())


def test_path_that_exists_beats_the_files_folder(place: Path) -> None:
    """Where both hold images, the description means what it says."""
    folder = place / "input/set"
    make(folder / "inner")
    path = make(folder, path="inner", train="images/train", val="images/val")
    assert resolved(path)["train"] == str(folder / "inner/images/train")


def test_absolute_path_that_exists_is_taken(place: Path) -> None:
    """The images may lie in another folder than their description."""
    make(place / "input/images-only")
    path = make(
        place / "input/set", splits="", path=str(place / "input/images-only"), train="images/train", val="images/val"
    )
    assert resolved(path)["val"] == str(place / "input/images-only/images/val")


@pytest.mark.parametrize("elsewhere", ["/home/somebody/set", "../datasets/set", "set"])
def test_path_of_another_machine_is_replaced_by_the_files_folder(place: Path, elsewhere: str) -> None:
    """A description that was made elsewhere says where the images were; they lie beside it now."""
    path = make(place / "input/set", path=elsewhere, train="images/train", val="images/val")
    assert resolved(path)["train"] == str(place / "input/set/images/train")


def test_roboflows_leading_dots_are_seen_through(place: Path) -> None:
    """`../train/images` in a file that lies beside `train`."""
    path = make(
        place / "input/set",
        images="{}/images",
        splits="train valid test",
        train="../train/images",
        val="../valid/images",
        test="../test/images",
    )
    values = resolved(path)
    assert values["train"] == str(place / "input/set/train/images")
    assert values["val"] == str(place / "input/set/valid/images")
    assert values["test"] == str(place / "input/set/test/images")


def test_leading_dots_that_are_right_are_kept(place: Path) -> None:
    """Where `../train/images` is as written, a folder of the same name beside the file does not win."""
    make(place / "input", images="{}/images")
    path = make(place / "input/set", images="{}/images", train="../train/images", val="../val/images")
    assert resolved(path)["train"] == str(place / "input/train/images")


def test_split_of_several_folders_stays_a_list(place: Path) -> None:
    """Each of its folders is found."""
    path = make(place / "input/set", splits="a b val", train=["images/a", "../images/b"], val="images/val")
    assert resolved(path)["train"] == [str(place / "input/set/images" / name) for name in "ab"]


def test_split_may_be_a_list_of_files(place: Path) -> None:
    """A text file that names the images is taken as it is."""
    path = make(place / "input/set", train="train.txt", val="images/val")
    (path.parent / "train.txt").write_text("./images/train/0.jpg\n")
    assert resolved(path)["train"] == str(place / "input/set/train.txt")


def test_folder_that_holds_a_description_is_a_data_set(place: Path) -> None:
    """`data=/kaggle/input/my-data` is enough."""
    path = make(place / "input/set", train="images/train", val="images/val")
    assert data.resolve(str(path.parent)) == data.resolve(str(path))


def test_same_set_gets_the_same_description_and_another_set_another(place: Path) -> None:
    """The new file's folder depends on its content, so that two data sets never share one."""
    one = make(place / "input/one", train="images/train", val="images/val")
    other = make(place / "input/other", train="images/train", val="images/val")
    assert data.resolve(str(one)).path == data.resolve(str(one)).path
    assert data.resolve(str(one)).path != data.resolve(str(other)).path


def test_attached_data_set_is_never_written_to(place: Path) -> None:
    """An input folder is read-only on Kaggle: nothing in it changes, and what is written lies in scratch."""
    path = make(place / "input/set", train="images/train", val="images/val", download="https://x/y.zip")
    before = list(snapshot(place / "input"))
    found = data.resolve(str(path))
    assert list(snapshot(place / "input")) == before
    assert found.path.is_relative_to(session.scratch())


def test_download_script_is_dropped(place: Path) -> None:
    """Ultralytics executes the `download:` of a description; what is handed to it has none."""
    path = make(place / "input/set", train="images/train", val="images/val", download="import os; os.abort()")
    assert "download" not in resolved(path)


def test_other_entries_are_kept(place: Path) -> None:
    """Key points and whatever else Ultralytics reads arrive unchanged."""
    path = make(place / "input/set", train="images/train", val="images/val", kpt_shape=[17, 3], flip_idx=[0, 2, 1])
    values = resolved(path)
    assert (values["kpt_shape"], values["flip_idx"]) == ([17, 3], [0, 2, 1])


def test_validation_is_another_word_for_val(place: Path) -> None:
    """As in Ultralytics."""
    path = make(place / "input/set", train="images/train", validation="images/val")
    assert resolved(path)["val"] == str(place / "input/set/images/val")


@pytest.mark.parametrize("split", ["train", "val"])
def test_missing_split_is_refused(place: Path, split: str) -> None:
    """Without one of the two there is nothing to learn from, or nothing to measure by."""
    splits = {"train": "images/train", "val": "images/val"}
    splits.pop(split)
    assert f"has no '{split}'" in refused(make(place / "input/set", **splits))


@pytest.mark.parametrize("there", ["images/none", "/home/somebody/images", "images/empty", "images/texts"])
def test_split_without_images_is_refused(place: Path, there: str) -> None:
    """A folder that is missing, empty or without pictures; the message names it and where it was looked for."""
    path = make(place / "input/set", train=there, val="images/val")
    (path.parent / "images/empty").mkdir()
    (path.parent / "images/texts").mkdir()
    (path.parent / "images/texts/0.txt").write_text("0 .5 .5 .1 .1")
    message = refused(path)
    assert f"names '{there}' for 'train'" in message
    assert str(path.parent) in message


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"names": {0: "cat", 1: "dog"}}, ("cat", "dog")),
        ({"names": {1: "dog", 0: "cat"}}, ("cat", "dog")),
        ({"names": ["cat", "dog"]}, ("cat", "dog")),
        ({"names": ["cat", 7]}, ("cat", "7")),
        ({"names": None, "nc": 3}, ("class_0", "class_1", "class_2")),
    ],
)
def test_classes_are_a_list_a_numbered_mapping_or_a_number(
    place: Path, values: dict[str, Any], names: tuple[str, ...]
) -> None:
    """They come in the order of their numbers."""
    path = make(place / "input/set", train="images/train", val="images/val", **values)
    assert data.resolve(str(path)).names == names


@pytest.mark.parametrize(
    "values",
    [
        {"names": None},
        {"names": []},
        {"names": {}},
        {"names": "cat"},
        {"names": {1: "cat", 2: "dog"}},
        {"names": {"a": "cat"}},
        {"names": None, "nc": 0},
        {"names": None, "nc": "two"},
    ],
)
def test_classes_that_are_not_numbered_from_0_are_refused(place: Path, values: dict[str, Any]) -> None:
    """A label's number would mean nothing."""
    path = make(place / "input/set", train="images/train", val="images/val", **values)
    assert "must list the classes" in refused(path)


def test_number_of_classes_that_contradicts_their_names_is_refused(place: Path) -> None:
    """`nc: 3` with two names is a mistake in one of the two."""
    refused(make(place / "input/set", train="images/train", val="images/val", nc=3))


@pytest.mark.parametrize("text", ["", "- a\n", "train: [1\n", "just text"])
def test_file_that_is_no_description_is_refused(place: Path, text: str) -> None:
    """One sentence with the file's name."""
    path = place / "input" / "data.yaml"
    path.write_text(text)
    assert str(path) in refused(path)


def test_missing_file_is_refused(place: Path) -> None:
    """The path is in the message, with the setting to check."""
    message = refused(place / "none.yaml")
    assert "none.yaml' cannot be read: No such file" in message
    assert "data=" in message


def test_data_set_that_ultralytics_downloads_from_an_archive_is_known(place: Path) -> None:
    """Its description is the shipped one, whose `download:` is an address and no script."""
    found = data.resolve("coco8.yaml")
    assert found.path.name == "coco8.yaml"
    assert (len(found.names), found.names[0]) == (80, "person")


def test_data_set_that_ultralytics_downloads_by_a_script_is_refused(place: Path) -> None:
    """A description whose `download:` is code is not taken, not even from Ultralytics."""
    refused("SKU-110K.yaml")


# --- auto


def test_only_attached_data_set_is_found(place: Path) -> None:
    """However deep Kaggle put it."""
    make(place / "input/datasets/somebody/set/v1", train="images/train", val="images/val")
    assert data.resolve("auto").names == ("cat", "dog")


def test_nothing_attached_is_refused_with_what_to_do(place: Path) -> None:
    """The message says how to attach one and how to try without."""
    message = refused("auto")
    assert "Add input" in message
    assert "data=shapes" in message


def test_several_attached_data_sets_are_listed(place: Path) -> None:
    """The kit does not guess which one is meant."""
    for name in ("one", "other"):
        make(place / "input" / name, train="images/train", val="images/val")
    message = refused("auto")
    assert str(place / "input/one/data.yaml") in message
    assert str(place / "input/other/data.yaml") in message


# --- classification


def classes(folder: Path, *splits: str) -> Path:
    for split in splits:
        for name in ("dog", "cat"):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / "0.jpg").write_bytes(b"a picture")
    return folder


@pytest.mark.parametrize("split", ["val", "valid", "validation", "test"])
def test_classification_set_is_its_folder(place: Path, split: str) -> None:
    """One folder per class, in the order of their names, as Ultralytics numbers them; nothing is written."""
    folder = classes(place / "input/pets", "train", split)
    before = list(snapshot(place / "input"))
    assert data.resolve(str(folder)) == data.DataSet(folder, ("cat", "dog"))
    assert list(snapshot(place / "input")) == before


def test_classification_set_without_validation_is_refused(place: Path) -> None:
    """There would be nothing to measure by."""
    assert "has no folder 'val'" in refused(classes(place / "input/pets", "train"))


def test_classification_set_without_classes_is_refused(place: Path) -> None:
    """Images that lie directly in `train` belong to no class."""
    (place / "input/pets/train").mkdir(parents=True)
    (place / "input/pets/train/0.jpg").write_bytes(b"a picture")
    assert "one folder per class" in refused(place / "input/pets")


def test_folder_that_is_no_data_set_is_refused(place: Path) -> None:
    """The message says what was looked for."""
    assert "neither a data.yaml nor a folder 'train'" in refused(place / "input")


# --- shapes


def test_embedded_data_set_is_drawn_into_scratch(place: Path) -> None:
    """`data=shapes` needs nothing that is not here: it is drawn on first use, and found again on the next."""
    found = data.resolve("shapes")
    assert found.names == ("circle", "square", "triangle")
    assert found.path.is_relative_to(session.scratch())
    values = yaml.safe_load(found.path.read_text())
    assert Path(values["train"]).is_dir()
    assert Path(values["val"]).is_dir()
    assert data.resolve("shapes") == found
