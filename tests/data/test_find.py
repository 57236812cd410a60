"""Data sets: found wherever their description says or means, described anew in scratch, never written to."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kit.data import description, find, search
from kit.errors import DataError
from kit.kaggle import inputs, session
from kit.yolo.settings import load

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
    values: dict[str, Any] = yaml.safe_load(find.resolve(str(path)).path.read_text())
    return values


def snapshot(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    for path in sorted(folder.rglob("*")):
        yield str(path), path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b""


def refused(name: object) -> str:
    with pytest.raises(DataError) as caught:
        find.resolve(str(name))
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def refused_lines(name: str) -> str:
    with pytest.raises(DataError) as caught:
        find.resolve(name)
    return str(caught.value)


def test_description_without_a_path_is_seen_from_its_own_folder(place: Path) -> None:
    """The images lie beside the file; the new description has absolute paths."""
    path = make(place / "input/set", train="images/train", val="images/val")
    values = resolved(path)
    assert values["train"] == str(place / "input/set/images/train")
    assert values["val"] == str(place / "input/set/images/val")
    assert find.resolve(str(path)).names == ("cat", "dog")


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


@pytest.mark.parametrize(
    "elsewhere", ["/content/datasets/set", "../datasets/set", "set", r"C:\Users\somebody\set", "C:/set"]
)
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


@pytest.mark.parametrize(
    "train",
    [
        "/content/datasets/set/train/images",
        r"C:\Users\somebody\set\train\images",
        r"train\images",
        "../datasets/set/train/images",
        "set/train/images",
        "../../train/images",
    ],
)
@pytest.mark.parametrize("values", [{}, {"path": "/content/datasets/set"}, {"path": r"C:\Users\somebody\set"}])
def test_images_of_another_machines_path_are_found_by_its_end(place: Path, train: str, values: dict[str, Any]) -> None:
    """What of the path lies beside the description is taken, and as much of it as there is."""
    path = make(
        place / "input/set", images="{}/images", splits="train valid", train=train, val="valid/images", **values
    )
    assert resolved(path)["train"] == str(place / "input/set/train/images")
    assert resolved(path)["val"] == str(place / "input/set/valid/images")


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
    assert find.resolve(str(path.parent)) == find.resolve(str(path))


def test_same_set_gets_the_same_description_and_another_set_another(place: Path) -> None:
    """The new file's folder depends on its content, so that two data sets never share one."""
    one = make(place / "input/one", train="images/train", val="images/val")
    other = make(place / "input/other", train="images/train", val="images/val")
    assert find.resolve(str(one)).path == find.resolve(str(one)).path
    assert find.resolve(str(one)).path != find.resolve(str(other)).path


def test_attached_data_set_is_never_written_to(place: Path) -> None:
    """An input folder is read-only on Kaggle: nothing in it changes, and what is written lies in scratch."""
    path = make(place / "input/set", train="images/train", val="images/val", download="https://x/y.zip")
    before = list(snapshot(place / "input"))
    found = find.resolve(str(path))
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
    assert find.resolve(str(path)).names == names


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
        {"names": None, "nc": None},
        {"names": {0: "cat", "0": "dog"}},
    ],
)
def test_classes_that_are_not_numbered_from_0_are_refused(place: Path, values: dict[str, Any]) -> None:
    """A label's number would mean nothing."""
    path = make(place / "input/set", train="images/train", val="images/val", **values)
    assert "must list the classes" in refused(path)


def test_number_of_classes_that_contradicts_their_names_is_refused(place: Path) -> None:
    """`nc: 3` with two names is a mistake in one of the two."""
    refused(make(place / "input/set", train="images/train", val="images/val", nc=3))


@pytest.mark.parametrize("count", ["two", 1.5, "1.5", [2], float("inf")])
@pytest.mark.parametrize("names", [None, NAMES])
def test_number_of_classes_that_is_none_is_refused(place: Path, names: Any, count: Any) -> None:
    """With the user's own file and the value."""
    path = make(place / "input/set", train="images/train", val="images/val", names=names, nc=count)
    assert f"'{path}' says `nc: {count}`, which is no number of classes" in refused(path)


SPLITS = "train: images/train\nval: images/val\n"
LIST = f"{SPLITS}names: [cat, dog]\n"
JSON = '{"train": "images/train", "val": "images/val", "names": {"0": "cat", "1": "dog"}}'
FORMS = {
    "numbers as texts": f"{SPLITS}names:\n  '0': cat\n  '1': dog\n",
    "numbers of both kinds": f"{SPLITS}names:\n  '1': dog\n  0: cat\n",
    "JSON": JSON,
    "JSON with tabs": JSON.replace(", ", ",\n\t"),
    "nc as text": f"{LIST}nc: '2'\n",
    "nc with a point": f"{LIST}nc: '2.0'\n",
    "nc empty": f"{LIST}nc:\n",
    "bell": LIST.replace("dog", "d\aog"),
    "zeros": f"\0\0{LIST}",
    "control character of Windows": LIST.replace("dog", "do\x92g"),
    "mark": b"\xef\xbb\xbf" + LIST.encode(),
    "UTF-16": LIST.encode("utf-16"),
    "UTF-16, the other way": b"\xfe\xff" + LIST.encode("utf-16-be"),
    "UTF-16 without a mark": LIST.encode("utf-16-le"),
    "UTF-32": LIST.encode("utf-32"),
    "another encoding": LIST.replace("dog", "d\xf6og").encode("latin-1"),
    "lines of Windows": LIST.replace("\n", "\r\n"),
}


@pytest.mark.parametrize("content", FORMS.values(), ids=list(FORMS))
@pytest.mark.parametrize("name", ["data.yaml", "pets.yaml"])
def test_every_form_that_ultralytics_reads_is_read(place: Path, name: str, content: str | bytes) -> None:
    """Given or attached; what is handed on is plain."""
    path = make(place / "input/set").with_name(name)
    path.with_name("data.yaml").unlink()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    for given in (str(path), "auto"):
        found = find.resolve(given)
        assert found.names == ("cat", "dog")
        values = yaml.safe_load(found.path.read_text())
        assert (values["names"], "nc" in values) == (["cat", "dog"], False)
        assert values["train"] == str(place / "input/set/images/train")


def test_number_of_classes_may_be_a_text(place: Path) -> None:
    """Where the names are left out."""
    path = make(place / "input/set", train="images/train", val="images/val", names=None, nc="2")
    assert find.resolve(str(path)).names == ("class_0", "class_1")


def test_letters_of_utf_16_are_kept(place: Path) -> None:
    """Ultralytics drops them."""
    path = make(place / "input/set")
    path.write_bytes(LIST.replace("dog", "größer").encode("utf-16"))
    assert find.resolve(str(path)).names == ("cat", "größer")


@pytest.mark.parametrize("text", ["", "- a\n", "train: [1\n", "just text"])
def test_file_that_is_no_description_is_refused(place: Path, text: str) -> None:
    """One sentence with the file's name."""
    path = place / "input" / "data.yaml"
    path.write_text(text)
    assert str(path) in refused(path)


def test_date_that_is_none_is_no_description(place: Path) -> None:
    """YAML reads dates, and gives up on a wrong one in its own way."""
    (place / "input/data.yaml").write_text("made: 2024-13-45\n")
    assert "is not YAML" in refused(place / "input/data.yaml")


def references(depth: int) -> str:
    """Lists of ten references to lists of ten references."""
    lines = ["a0: &a0 [x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, depth))]
    return "\n".join([*lines, f"names: *a{depth - 1}", "train: images", "val: images"])


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (references(8), "unfolds to more than it holds"),
        ("train: images\nval: images\nnc: 10000000\n", "must list the classes as `names:`"),
        ("#" * (1 << 20) + "\nnames: [cat]\n", "has 1 MB and describes no data set"),
        ("[" * 10000, "is not YAML"),
    ],
    ids=["references", "number", "length", "brackets"],
)
def test_description_that_asks_for_much_is_refused(place: Path, text: str, reason: str) -> None:
    """Before anything of it is made: what is attached is read without being asked for."""
    (place / "input/images").mkdir()
    (place / "input/data.yaml").write_text(text)
    assert reason in refused(place / "input/data.yaml")
    assert "data.yaml" in refused("auto")


def test_missing_file_is_refused(place: Path) -> None:
    """The path is in the message, with the setting to check."""
    message = refused(place / "none.yaml")
    assert "none.yaml' cannot be read: No such file" in message
    assert "data=" in message


# --- where Ultralytics looks


@pytest.mark.parametrize("where", [".", "datasets", "chosen"])
def test_relative_path_is_seen_from_where_ultralytics_sees_it(
    place: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """The current folder, and the folder of data sets that its settings name."""
    monkeypatch.chdir(place / "working")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(place / "home"))
    if where == "chosen":
        (place / "home/Ultralytics").mkdir(parents=True)
        (place / "home/Ultralytics/settings.json").write_text(f'{{"datasets_dir": "{place}/working/chosen"}}')
    make(place / "working" / where / "pets")
    make(place / "input/set")  # images beside the description are not what it means
    path = make(place / "input/set", splits="", path="pets", train="images/train", val="images/val")
    assert resolved(path)["train"] == str(place / "working" / where / "pets/images/train")


def test_images_that_are_not_there_are_said_with_the_path_that_was_read(place: Path) -> None:
    """It may be what is wrong."""
    path = make(place / "input/set", path="../pets", train="images/none", val="images/val")
    assert f"(seen from its `path: ../pets` and '{path.parent}')" in refused(path)


def test_data_set_that_ultralytics_downloads_from_an_archive_is_known(place: Path) -> None:
    """Its description is the shipped one, whose `download:` is an address and no script."""
    for name in ("coco8.yaml", "coco8"):
        found = find.resolve(name)
        assert found.path.name == "coco8.yaml"
        assert (len(found.names), found.names[0], str(found.source)) == (80, "person", name)


@pytest.mark.parametrize("name", ["SKU-110K.yaml", "VisDrone.yaml", "coco.yaml", "VOC.yaml"])
def test_data_set_that_ultralytics_downloads_by_a_script_is_refused(place: Path, name: str) -> None:
    """Its script is not run, not even Ultralytics' own; the message says what to attach."""
    make(place / "input/another", train="images/train", val="images/val")
    assert f"Attach them in a folder named '{name.removesuffix('.yaml')}', which holds " in refused(name)


@pytest.mark.parametrize(
    "folder",
    [
        "working/VisDrone",
        "working/datasets/VisDrone",
        "input/VisDrone",
        "input/visdrone",
        "input/datasets/somebody/the-visdrone-2019/export",
        "input/x/VisDrone2019-DET",
    ],
)
def test_images_of_a_data_set_that_ultralytics_ships_are_found(
    place: Path, monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    """Where Ultralytics looks, or attached under its name; the best model remembers where they are."""
    from kit.yolo import setup

    monkeypatch.chdir(place / "working")
    make(place / "input/another", train="images/train", val="images/val")
    make(place / folder, splits="train val test").unlink()
    found = find.resolve("VisDrone.yaml")
    assert (found.names[0], found.source) == ("pedestrian", Path("VisDrone.yaml"))
    values = yaml.safe_load(found.path.read_text())
    for split in ("train", "val", "test"):
        assert values[split] == str(place / folder / "images" / split)
    assert values["path"] == str(place / folder)
    assert "download" not in values
    known = "VisDrone.yaml" if folder == "working/VisDrone" else str(place / "copy.yaml")  # as Ultralytics finds it
    assert setup.remembered(found, place / "copy.yaml") == known


def test_attached_folder_of_the_very_name_is_taken_first(place: Path) -> None:
    """What only begins so may be another one."""
    for name in ("a/coco8-pose", "b/c/coco8", "coco8-seg"):
        make(place / "input" / name).unlink()
    assert find.resolve("coco8.yaml").values["path"] == str(place / "input/b/c/coco8")


def test_data_set_of_lists_and_one_of_several_folders_are_found(place: Path) -> None:
    """As COCO's and VOC's descriptions have them."""
    for split in ("train2017", "val2017"):
        make(place / "input/coco-2017/coco", splits=split)
        (place / f"input/coco-2017/coco/{split}.txt").write_text(f"./images/{split}/0.jpg\n")
    make(place / "input/voc", splits="train2007 train2012 val2007 val2012 test2007")
    assert find.resolve("coco.yaml").values["val"] == str(place / "input/coco-2017/coco/val2017.txt")
    assert [Path(folder).name for folder in find.resolve("VOC").values["train"]] == [
        "train2012",
        "train2007",
        "val2012",
        "val2007",
    ]


# --- auto


def yolo(folder: Path, name: str = "data.yaml", **values: Any) -> Path:
    """Make a data set whose description has a name of its own."""
    path = make(folder, **{"train": "images/train", "val": "images/val", **values})
    return path.rename(path.with_name(name))


@pytest.mark.parametrize("layout", ["my-set", "datasets/somebody/my-set", "my-set/v1/export/my-set", "images"])
@pytest.mark.parametrize("name", ["data.yaml", "data.yml", "my-set.yaml", "Pets.YML"])
def test_only_attached_data_set_is_found(place: Path, layout: str, name: str) -> None:
    """In both of Kaggle's layouts, at whatever depth, and whatever the name of its description."""
    yolo(place / "input" / layout, name)
    assert find.resolve("auto").names == ("cat", "dog")


def test_data_set_without_names_is_found_by_its_number_of_classes(place: Path) -> None:
    """`nc: 2` is enough for Ultralytics."""
    yolo(place / "input/set", "pets.yaml", names=None, nc=2)
    assert find.resolve("auto").names == ("class_0", "class_1")


def test_nothing_attached_is_refused_with_what_to_do(place: Path) -> None:
    """The message says how to attach one and how to try without."""
    message = refused("auto")
    assert "No YOLO data set was found under" in message
    assert "Add input" in message
    assert "data=shapes" in message


def test_data_set_that_is_attached_after_a_failed_start_is_found(place: Path) -> None:
    """The notebook's process is still the same."""
    with pytest.raises(DataError, match="No YOLO data set was found"):
        find.check("auto")
    yolo(place / "input/set")
    find.check("auto")


def several(*paths: Path, classify: bool = False) -> None:
    """Resolve `auto`, which must list these data sets, one per line."""
    with pytest.raises(DataError) as caught:
        find.resolve("auto", classify)
    first, *lines = str(caught.value).splitlines()
    assert first == f"{len(paths)} data sets lie under '{session.inputs()}'. Choose one of them:"
    assert lines == [f"  data={path}" for path in sorted(paths)]


def test_several_attached_data_sets_are_listed(place: Path) -> None:
    """The kit does not guess which one is meant: each line is the setting that chooses it."""
    several(*(yolo(place / "input" / name) for name in ("one", "datasets/somebody/other")))


def test_two_descriptions_of_one_folder_are_two_data_sets(place: Path) -> None:
    """The same images with other classes, or with key points."""
    path = yolo(place / "input/set")
    other = path.with_name("other.yaml")
    other.write_text(path.read_text().replace("dog", "horse"))
    points = path.with_name("points.yaml")
    points.write_text(path.read_text() + "kpt_shape: [17, 3]\n")
    several(path, other, points)


def test_long_list_of_data_sets_is_cut(place: Path) -> None:
    """With how many more there are."""
    for number in range(search.LISTED + 3):
        yolo(place / f"input/{number:02d}")
    with pytest.raises(DataError) as caught:
        find.resolve("auto")
    lines = str(caught.value).splitlines()
    assert len(lines) == 1 + search.LISTED + 1
    assert lines[-1] == "  … and 3 more"


def test_end_of_a_path_is_not_looked_for_outside_the_data_set(place: Path) -> None:
    """`../../train/images` may be another data set's, one folder up."""
    make(place / "input", images="{}/images")
    path = make(place / "input/set", images="{}/images", train="../../train/images", val="val/images")
    assert resolved(path)["train"] == str(place / "input/set/train/images")


@pytest.mark.parametrize("name", ["notebooks/me/run/runs/train", "earlier", "a"])
@pytest.mark.parametrize("alone", [False, True])
def test_run_folder_is_no_data_set(place: Path, name: str, alone: bool) -> None:
    """An earlier notebook's output, attached to go on from: args.yaml tells it, and its data.yaml is only a copy."""
    found = place / "elsewhere/set/data.yaml" if alone else place / "input/z/set/data.yaml"
    yolo(found.parent)
    run = place / "input" / name
    (run / "checkpoints").mkdir(parents=True)
    (run / "args.yaml").write_text("task: detect\ndata: data.yaml\nval: true\nnames: [cat, dog]\ntrain: x\n")
    (run / "data.yaml").write_text(find.resolve(str(found)).path.read_text())
    (run / "train_batch0.jpg").write_bytes(b"a picture")
    if alone:
        assert "No YOLO data set was found" in refused("auto")
    else:
        assert resolved(found) == yaml.safe_load(find.resolve("auto").path.read_text())


def test_copy_of_a_description_is_no_second_data_set(place: Path) -> None:
    """A notebook writes one with absolute paths because the input is read-only; the one with its images is taken."""
    path = yolo(place / "input/z/set", flip_idx=[0])
    copy = place / "input/notebooks/me/run/data.yaml"
    copy.parent.mkdir(parents=True)
    copy.write_text(path.read_text().replace("flip_idx", "other") + f"path: {path.parent}\n")
    assert "flip_idx" in yaml.safe_load(find.resolve("auto").path.read_text())


def test_clone_of_a_repository_is_no_data_set(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configs and model descriptions are YAML too; and what describes a data set has its images elsewhere."""
    path = yolo(place / "input/z/set")
    clone = place / "input/clone"
    for folder in ("configs", "notebooks"):
        shutil.copytree(session.REPOSITORY / folder, clone / folder)
    (clone / "coco.yaml").write_text("path: coco\ntrain: images/train2017\nval: images/val2017\nnames: [person]\n")
    (clone / "model.yaml").write_text("nc: 80\nbackbone: []\n")
    (clone / "broken.yaml").write_text("train: [names\n")
    (clone / "date.yaml").write_text("train: names\nmade: 2024-13-45\n")
    (clone / "deep.yaml").write_text("train: x\nnames: " + "[" * 1500)
    shutil.copytree(clone, place / "scratch/only/clone")
    labels = path.with_name("annotations.yaml")
    labels.write_text(path.read_text().replace("dog", "horse") + "#" * description.LARGEST)
    assert resolved(path) == yaml.safe_load(find.resolve("auto").path.read_text())
    monkeypatch.setenv("KIT_INPUT", str(place / "scratch/only"))
    (place / "scratch/only/clone/coco.yaml").unlink()
    assert "No YOLO data set was found" in refused("auto")


def test_lone_broken_description_says_what_it_lacks(place: Path) -> None:
    """Rather than that there is none."""
    path = yolo(place / "input/set", train="images/none")
    assert f"'{path}' names 'images/none' for 'train', where there are no images" in refused("auto")
    path.write_text("train: [")
    assert f"'{path}' is not YAML" in refused("auto")


def test_broken_description_beside_a_whole_one_is_passed_over(place: Path) -> None:
    """There is only one that can be meant."""
    yolo(place / "input/a", train="images/none")
    yolo(place / "input/b", names={0: "horse"})
    assert find.resolve("auto").names == ("horse",)


def test_several_broken_descriptions_are_told_from_none(place: Path) -> None:
    """The message says how to hear what is wrong with one."""
    for name in "ab":
        yolo(place / "input" / name, train="images/none")
    message = refused("auto")
    assert "2 descriptions of data sets lie under" in message
    assert "none of them is whole" in message
    assert "Give data=PATH" in message


def test_linked_folders_hold_images_and_links_in_circles_end(place: Path) -> None:
    """As in Ultralytics, where a circle is listed 41 times over."""
    real = make(place / "elsewhere/set", splits="a b", images="{}").parent
    path = make(place / "input/set", splits="", train="train", val="val")
    for split, name in (("train", "a"), ("val", "b")):
        (path.parent / split).mkdir()
        (path.parent / split / "more").symlink_to(real / name)
        (path.parent / split / "0.txt").symlink_to(path)
    for name in ("again", "once-more"):
        (path.parent / "train" / name).symlink_to(path.parent)
    (path.parent / "train/self").symlink_to("self")
    assert resolved(path)["train"] == str(path.parent / "train")
    (real / "a/0.jpg").unlink()
    assert "names 'train' for 'train', where there are no images" in refused(path)


def test_search_does_not_go_through_the_images(place: Path) -> None:
    """A description that lies among them is not looked for: 100,000 images would have to be listed."""
    yolo(place / "input/set")
    (place / "input/set/labels").mkdir()
    yolo(place / "input/set/images/train")
    assert find.resolve("auto").names == ("cat", "dog")


@pytest.mark.parametrize("name", ["pets.yaml", "v1/data.yaml"])
def test_folder_above_a_description_is_a_data_set(place: Path, name: str) -> None:
    """`data=/kaggle/input/my-data`, whatever it holds, as long as it is one."""
    path = yolo((place / "input/set" / name).parent, Path(name).name)
    assert find.resolve(str(place / "input/set")) == find.resolve(str(path))


def test_data_yaml_of_the_folder_itself_is_taken(place: Path) -> None:
    """What lies deeper is not asked."""
    path = yolo(place / "input/set")
    yolo(place / "input/set/more", names={0: "horse"})
    assert find.resolve(str(path.parent)).names == ("cat", "dog")


def test_image_formats_are_those_of_ultralytics() -> None:
    """A folder of HEIC images is no empty folder."""
    from ultralytics.data.utils import IMG_FORMATS

    assert {f".{kind}" for kind in IMG_FORMATS} == description.IMAGES


# --- images and labels without a description


@pytest.mark.parametrize(
    ("images", "splits", "expected"),
    [
        ("images/{}", "train val", ("images/train", "images/val")),
        ("images/{}", "train2017 val2017 test2017", ("images/train2017", "images/val2017")),
        ("{}/images", "train valid test", ("train/images", "valid/images")),
        ("{}/images", "train test", ("train/images", "test/images")),
        ("{}/images", "train", ("train/images", "train/images")),
        ("images", ".", ("images", "images")),
        ("images/{}", "part-1 part-2", ("images", "images")),
    ],
)
@pytest.mark.parametrize("given", ["auto", "input/pets", "input"])
def test_images_and_labels_without_a_description_are_told_what_to_write(
    place: Path, given: str, images: str, splits: str, expected: tuple[str, str]
) -> None:
    """The lines that are shown are a data.yaml of that data set, with as many classes as its labels have."""
    folder = place / "input/pets"
    make(folder, splits=splits, images=images).unlink()
    for number, split in enumerate(splits.split()):
        labels = folder / "/".join(part.replace("images", "labels") for part in images.format(split).split("/"))
        labels.mkdir(parents=True)
        (labels / "0.txt").write_text("0 .5 .5 .1 .1\n\n2 .5 .5 .1 .1\n" if number == 0 else "")
        (labels / "classes.txt").write_text("cat\n")
    with pytest.raises(DataError) as caught:
        find.resolve(given if given == "auto" else str(place / given))
    error = caught.value
    assert error.message == f"'{folder}' holds images and labels, but no data.yaml that names their 3 classes."
    first, *lines = error.hint.splitlines()
    target = place / "working/pets.yaml"
    assert first == f"Write one, with their names, into '{target}', and give data={target}:"
    target.write_text("\n".join(lines))
    found = find.resolve(str(target))
    assert found.names == ("class_0", "class_1", "class_2")
    assert (found.values["train"], found.values["val"]) == tuple(str(folder / path) for path in expected)


def test_folder_that_is_empty_or_without_labels_is_not_offered(place: Path) -> None:
    """The next one that would do is."""
    folder = place / "input/pets"
    make(folder, splits="train test val", images="{}/images").unlink()
    for split in ("train", "test", "valid"):
        (folder / split / "labels").mkdir(parents=True)
    (folder / "valid/images").mkdir()
    assert "\n  train: train/images\n  val: test/images\n" in refused_lines("auto")


def test_images_alone_and_a_model_that_classifies_are_told_nothing_of_it(place: Path) -> None:
    """There is nothing that a data.yaml could describe."""
    make(place / "input/pets").unlink()
    assert "No YOLO data set was found" in refused("auto")
    assert "neither a data.yaml nor" in refused(place / "input/pets")
    (place / "input/pets/labels").mkdir()
    inputs.forget()
    with pytest.raises(DataError, match="No YOLO data set was found"):
        find.resolve("auto", classify=True)
    assert "that names their 1 class." in refused_lines("auto")


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
    assert find.resolve(str(folder)) == find.DataSet(folder, ("cat", "dog"))
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


@pytest.mark.parametrize("layout", ["pets", "datasets/somebody/pets", "pets/v1"])
def test_attached_classification_set_is_found_for_a_classification(place: Path, layout: str) -> None:
    """A data set for detection beside it is not meant, and the other way round."""
    folder = classes(place / "input" / layout, "train", "val")
    yolo(place / "input/z")
    for name in ("train/weights", "val"):
        (place / "input/runs" / name).mkdir(parents=True)
    assert find.resolve("auto", classify=True) == find.DataSet(folder, ("cat", "dog"))
    assert find.resolve("auto").path.name == "data.yaml"


def test_folder_above_a_classification_set_is_a_data_set(place: Path) -> None:
    """The user named it: there is nothing to guess."""
    folder = classes(place / "input/pets/v1", "train", "val")
    assert find.resolve(str(place / "input/pets")).path == folder


def test_several_attached_classification_sets_are_listed(place: Path) -> None:
    """By their folders."""
    several(*(classes(place / "input" / name, "train", "test") for name in ("one", "two")), classify=True)


def test_attached_set_of_the_other_kind_is_named(place: Path) -> None:
    """With the setting that it is for."""
    folder = classes(place / "input/pets", "train", "val")
    message = refused("auto")
    assert f"'{folder}' has one folder per class" in message
    assert "task=classify" in message


def test_attached_set_for_detection_is_named_to_a_classification(place: Path) -> None:
    """With what is missing."""
    path = yolo(place / "input/set")
    with pytest.raises(DataError, match=f"'{path}' is not for the task 'classify'"):
        find.resolve("auto", classify=True)


def test_lone_classification_set_without_validation_says_what_it_lacks(place: Path) -> None:
    """Rather than that there is none."""
    classes(place / "input/pets", "train")
    with pytest.raises(DataError, match="has no folder 'val'"):
        find.resolve("auto", classify=True)


def test_broken_classification_set_beside_a_whole_one_is_passed_over(place: Path) -> None:
    """There is only one that can be meant."""
    classes(place / "input/a", "train")
    folder = classes(place / "input/b", "train", "valid")
    assert find.resolve("auto", classify=True).path == folder


def test_folders_of_images_and_labels_are_no_classes(place: Path) -> None:
    """Roboflow's layout has `train/images` and `train/labels`."""
    yolo(place / "input/set", images="{}/images", splits="train val", train="train/images", val="val/images")
    (place / "input/set/train/labels").mkdir()
    with pytest.raises(DataError, match="is not for the task 'classify'"):
        find.resolve("auto", classify=True)
    assert find.resolve("auto").names == ("cat", "dog")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model": "yolo11n-cls.pt"}, True),
        ({"model": "best.pt", "task": "classify"}, True),
        ({"model": "yolo11n.pt"}, False),
        ({"model": "cls.pt", "task": "segment"}, False),
    ],
)
def test_model_or_task_tells_which_kind_is_wanted(settings: dict[str, str], expected: bool, tmp_path: Path) -> None:
    """Without opening the model."""
    (tmp_path / "empty.yaml").write_text("{}")
    assert load(tmp_path / "empty.yaml", {**settings, "data": "auto"}).classifies is expected


# --- shapes


def test_embedded_data_set_is_drawn_into_scratch(place: Path) -> None:
    """`data=shapes` needs nothing that is not here: it is drawn on first use, and found again on the next."""
    found = find.resolve("shapes")
    assert found.names == ("circle", "square", "triangle")
    assert found.path.is_relative_to(session.scratch())
    values = yaml.safe_load(found.path.read_text())
    assert Path(values["train"]).is_dir()
    assert Path(values["val"]).is_dir()
    assert find.resolve("shapes") == found
