"""The files of samples: listed as Ultralytics lists them, looked at in passing."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from ultralytics.data.base import BaseDataset
from ultralytics.data.dataset import ClassificationDataset
from ultralytics.data.utils import get_split_fraction

from kit.data import files, find
from kit.data.labels import Rules

RULES = Rules("detect", 2)


def picture(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0, **options: Any) -> Path:
    """Draw a picture of noise, which no other seed draws."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = random.Random(seed).randbytes(size[0] * size[1] * 3)
    Image.frombytes("RGB", size, noise).save(path, **options)
    return path


def look(path: Path, kind: int = -1, label: str = "") -> files.Looked:
    stamps = (path.stat().st_size, 0, 1 if label else -1, 0)
    return files.look(files.Sample(str(path), label, kind, stamps), RULES)


# --- listing


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Folders with images, and with what is none."""
    for name in ("b.jpg", "a.PNG", "sub/c.tiff", "sub/deep/d.webp", "notes.txt", "._b.jpg", ".hidden/e.jpg", "f.gif"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "images" / name).write_bytes(b"x")
    (tmp_path / "more").mkdir()
    (tmp_path / "more/0.jpg").write_bytes(b"x")
    (tmp_path / "images/linked").symlink_to(tmp_path / "more")
    lines = ["./images/b.jpg", "./images/none.jpg", str(tmp_path / "more/0.jpg"), "", "odd./1.jpg", "notes.txt"]
    (tmp_path / "list.txt").write_text("\n".join(lines), encoding="utf-8-sig")
    return tmp_path


@pytest.mark.parametrize("places", ["images", ["images", "more"], "list.txt", ["list.txt", "images"]])
@pytest.mark.parametrize("fraction", [1.0, 1, 0.5, 2, 0.01, [0.5, 3], [1, 1]])
@pytest.mark.parametrize("split", ["train", "val"])
def test_images_are_those_that_ultralytics_lists(images: Path, places: Any, fraction: Any, split: str) -> None:
    """In the same order, and the same part of them."""
    places = [str(images / place) for place in places] if isinstance(places, list) else str(images / places)
    stock = SimpleNamespace(prefix="", fraction=get_split_fraction(fraction, split))
    expected = BaseDataset.get_img_files(stock, places)
    found = files.find(find.DataSet(images, ()), {split: places}, split, fraction)
    assert [sample.path for sample in found] == expected
    assert [sample.stamps[0] for sample in found] == [1 if os.path.exists(path) else -1 for path in expected]


@pytest.mark.parametrize("fraction", [1.0, 0.5, 3, 0.001])
@pytest.mark.parametrize("split", ["train", "val"])
def test_images_of_classes_are_those_that_ultralytics_lists(tmp_path: Path, fraction: Any, split: str) -> None:
    """Evenly spread over the classes where only a part is used."""
    for folder in ("train", "valid"):
        for name, count in (("dog", 5), ("cat", 7)):
            for number in range(count):
                picture(tmp_path / folder / name / f"{number}.png", seed=number)
    names = {0: "cat", 1: "dog"}
    folder = {"train": "train", "val": "valid"}[split]
    default = {"cache": False, "single_cls": False, "scale": 0.5, "imgsz": 32}
    stock = ClassificationDataset(
        str(tmp_path / folder), SimpleNamespace(fraction=fraction, **default), prefix=split, names=names
    )
    found = files.find(find.resolve(str(tmp_path)), {}, split, fraction)
    assert [(sample.path, sample.kind) for sample in found] == [tuple(sample[:2]) for sample in stock.samples]


def test_sample_without_a_label_file_is_told(images: Path) -> None:
    """And one whose folder tells the class needs none."""
    (images / "labels").mkdir()
    (images / "labels/b.txt").write_text("")
    found = files.find(find.DataSet(images, ()), {"train": str(images / "images")}, "train", 1.0)
    assert [sample.has_label for sample in found] == [sample.path.endswith("b.jpg") for sample in found]
    assert files.Sample("a.jpg", "", 0, (1, 1, -1, 0)).has_label


# --- looking


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tiff", "jp2", "mpo", "avif"])
def test_whole_image_is_no_problem(tmp_path: Path, suffix: str) -> None:
    """Of whatever format, decoded or not."""
    try:
        path = picture(tmp_path / f"0.{suffix}")
    except (KeyError, OSError, ValueError) as error:
        pytest.skip(f"this PIL does not write {suffix}: {error}")
    assert look(path).problem == ""


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.9, 0.999])
def test_image_that_is_cut_off_is_told(tmp_path: Path, suffix: str, share: float) -> None:
    """As an interrupted download leaves it."""
    path = picture(tmp_path / f"0.{suffix}", size=(200, 200))
    os.truncate(path, int(path.stat().st_size * share))
    assert look(path).problem == "unreadable"


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_image_with_bytes_behind_its_end_is_no_problem(tmp_path: Path, suffix: str) -> None:
    """Some cameras put them there."""
    path = picture(tmp_path / f"0.{suffix}")
    path.write_bytes(path.read_bytes() + b"more" * 1000)
    assert look(path).problem == ""


@pytest.mark.parametrize("content", [b"", b"<html>404</html>", b"GIF89a" + bytes(100), bytes(5000)])
def test_file_that_is_no_image_is_told(tmp_path: Path, content: bytes) -> None:
    """A page saved under an image's name, a placeholder, another format."""
    (tmp_path / "0.jpg").write_bytes(content)
    assert look(tmp_path / "0.jpg").problem == "unreadable"


def test_label_file_is_judged(tmp_path: Path) -> None:
    """With a byte-order mark or without; one that is no text is told."""
    path, label = picture(tmp_path / "0.png"), tmp_path / "0.txt"
    label.write_text("1 0.5 0.5 0.2 0.2", encoding="utf-8-sig")
    assert look(path, label=str(label))[:3] == ("", "", [1])
    label.write_text("2 0.5 0.5 0.2 0.2")
    assert look(path, label=str(label))[:2] == ("class", "2 0.5 0.5 0.2 0.2")
    label.write_bytes(b"\xff\xfe0\x00")
    assert look(path, label=str(label)).problem == "numbers"
    assert look(path, kind=1).kinds == [1]


def test_file_that_has_gone_is_told(tmp_path: Path) -> None:
    """Between the listing and the look."""
    sample = files.Sample(str(tmp_path / "none.jpg"), "", 0, (10, 0, -1, 0))
    assert files.look(sample, RULES).problem == "unreadable"


# --- fingerprints


def fingerprint(*samples: files.Sample) -> dict[str, str]:
    return files.fingerprint(list(samples), [files.look(sample, RULES) for sample in samples])


def sample(path: Path, kind: int = -1) -> files.Sample:
    return files.Sample(str(path), "", kind, (path.stat().st_size, 0, -1, 0))


def test_order_is_part_of_a_list(tmp_path: Path) -> None:
    """Training draws its batches by it."""
    one, two = (sample(picture(tmp_path / f"{number}.png", seed=number)) for number in (1, 2))
    assert fingerprint(one, two)["list"] != fingerprint(two, one)["list"]
    assert fingerprint(one, one)["list"] != fingerprint(one)["list"]


def test_class_that_a_folder_tells_is_part_of_a_list(tmp_path: Path) -> None:
    """Also where all images lie in the same one, and are seen from there."""
    path = picture(tmp_path / "dog/1.png")
    assert fingerprint(sample(path, 0))["list"] != fingerprint(sample(path, 1))["list"]


def test_folder_that_all_images_lie_in_is_no_part_of_a_list(tmp_path: Path) -> None:
    """Nor is a beginning that their names have in common; none at all is a list as well, and any name will do."""
    names = ["00a.png", "00b.png", "00/c.png", "00\udcff.png"]
    here, there = ([picture(tmp_path / root / name) for name in names] for root in ("here", "somewhere/else/00"))
    assert fingerprint(*map(sample, here)) == fingerprint(*map(sample, there))
    assert fingerprint(*map(sample, here[:2]))["list"] != fingerprint(*map(sample, here[1:3]))["list"]
    assert fingerprint(sample(here[0]))["list"] != fingerprint(sample(here[1]))["list"]
    assert len({*fingerprint().values()}) == 1
    moved = [here[0], picture(tmp_path / "here/deeper/00b.png")]
    assert fingerprint(*map(sample, here[:2]))["list"] != fingerprint(*map(sample, moved))["list"]


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_retouched_image_is_told(tmp_path: Path, suffix: str) -> None:
    """A patch in the middle changes the size of a compressed image, or its end."""
    path, fingerprints = picture(tmp_path / f"0.{suffix}", size=(300, 300)), set()
    for colour in ("original", "red", "blue"):
        if colour != "original":
            with Image.open(path) as image:
                retouched = image.convert("RGB")
            retouched.paste(colour, (140, 140, 156, 156))
            retouched.save(path)
        fingerprints.add(fingerprint(sample(path))["images"])
    assert len(fingerprints) == 3


def test_labels_of_an_image_that_is_left_out_are_marked(tmp_path: Path) -> None:
    """Cut off or missing: when it is replaced, only the images have changed."""
    path, label = picture(tmp_path / "0.png"), tmp_path / "0.txt"
    label.write_text("1 0.5 0.5 0.2 0.2")
    seen = [look(path, label=str(label))]
    os.truncate(path, 500)
    seen.append(look(path, label=str(label)))
    seen.append(files.look(files.Sample(str(path), str(label), -1, (-1, 0, 17, 0)), RULES))
    assert [each.problem for each in seen] == ["", "unreadable", "missing"]
    assert len({each.mark for each in seen}) == 3
    assert len({each.label_mark for each in seen}) == 1
    assert seen[0].label_mark != seen[2].mark == files.NOTHING


def test_marks_are_of_one_length_and_by_content_alone(tmp_path: Path) -> None:
    """They are joined: a file that is not there must not stand for the next one."""
    path, label = picture(tmp_path / "0.png"), tmp_path / "0.txt"
    label.write_bytes(b"")
    first = look(path, label=str(label))
    assert {len(mark) for mark in (first.mark, first.label_mark, files.NOTHING)} == {16}
    assert first.label_mark != files.NOTHING
    os.utime(path, ns=(1, 1))
    assert look(Path(shutil.copy(path, tmp_path / "copy.jpg")), label=str(label))[3:] == first[3:]
    label.write_text("1 0.5 0.5 0.2 0.2")
    assert look(path, label=str(label)).label_mark.hex() == "6b737607d319a8674cdb5fa4b7058bf1"  # checkpoints keep them


# --- twins


def twins(*paths: Path, others: list[Path]) -> list[str]:
    found = []
    for group in (list(paths), others):
        marks: dict[bytes, list[files.Sample]] = {}
        for path in group:
            sample = files.Sample(str(path), "", 0, (path.stat().st_size, 0, -1, 0))
            marks.setdefault(look(path).mark, []).append(sample)
        found.append(marks)
    return [Path(sample.path).name for sample in files.twins(*found)]


def test_same_file_and_same_bytes_are_twins(tmp_path: Path) -> None:
    """Under whatever name; another picture of the same size is none."""
    one, two = picture(tmp_path / "1.bmp", seed=1), picture(tmp_path / "2.bmp", seed=2)
    (tmp_path / "linked.bmp").symlink_to(one)
    copy = Path(shutil.copy(one, tmp_path / "copy.bmp"))
    assert one.stat().st_size == two.stat().st_size
    assert twins(one, two, copy, tmp_path / "linked.bmp", others=[one]) == ["1.bmp", "copy.bmp", "linked.bmp"]
    assert twins(two, others=[one, copy]) == []


def test_comparison_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A data set of large images that are all alike at both ends is not read twice."""
    one = picture(tmp_path / "1.png")
    copy = Path(shutil.copy(one, tmp_path / "2.png"))
    monkeypatch.setattr(files, "COMPARED", one.stat().st_size)
    assert twins(copy, others=[one]) == []


def test_difference_in_the_middle_is_seen(tmp_path: Path) -> None:
    """Two pictures with the same border are compared byte by byte."""
    one = tmp_path / "1.bmp"
    Image.new("RGB", (200, 200)).save(one)
    other = tmp_path / "2.bmp"
    raw = bytearray(one.read_bytes())
    raw[len(raw) // 2] ^= 1
    other.write_bytes(raw)
    assert look(one).mark == look(other).mark
    assert twins(other, others=[one]) == []
