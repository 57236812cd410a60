"""The files of images: what identifies their content, duplicates, and which look whole."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from kit.data import files
from kit.data.files import Hashes, ImageFile


def picture(path: Path, size: tuple[int, int] = (40, 30), seed: int = 0, **options: Any) -> Path:
    """Draw a picture of noise, which no other seed draws."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = random.Random(seed).randbytes(size[0] * size[1] * 3)
    Image.frombytes("RGB", size, noise).save(path, **options)
    return path


def image_file(path: Path, class_id: int = -1, label: str = "") -> ImageFile:
    return files.with_stamps([(str(path), label, class_id)])[0]


def read(path: Path, label: str = "") -> Hashes:
    return files.hashes([image_file(path, label=label)])[0]


# --- looking whole


@pytest.mark.parametrize(
    ("suffix", "share", "whole"),
    [
        ("jpg", 1.0, True),
        ("png", 1.0, True),
        ("webp", 1.0, True),
        ("webp", 0.9, False),
        ("webp", 0.02, False),
        ("bmp", 1.0, False),
        ("tiff", 1.0, False),
    ],
)
def test_header_tells_what_need_not_be_decoded(tmp_path: Path, suffix: str, share: float, whole: bool) -> None:
    """A JPEG or PNG is for Ultralytics' scan to judge; a WebP knows its size; others have to be decoded."""
    path = picture(tmp_path / f"0.{suffix}", size=(200, 200))
    os.truncate(path, int(path.stat().st_size * share))
    assert files.looks_whole(str(path)) is whole
    assert not files.looks_whole(str(tmp_path / "none.jpg"))


def test_pipe_is_stamped_as_special(tmp_path: Path) -> None:
    """Opening one waits for its writer."""
    os.mkfifo(tmp_path / "0.jpg")
    assert files.stamp(str(tmp_path / "0.jpg"))[0] == files.SPECIAL
    assert files.stamp(str(tmp_path / "none.jpg")) == (-1, 0)
    assert files.hashes([image_file(tmp_path / "0.jpg")]) == [Hashes(files.NOTHING, files.NOTHING)]


# --- fingerprints


def fingerprint(*images: ImageFile) -> dict[str, str]:
    return files.fingerprint(list(images), files.hashes(list(images)))


def test_order_is_part_of_a_list(tmp_path: Path) -> None:
    """Training draws its batches by it."""
    one, two = (image_file(picture(tmp_path / f"{number}.png", seed=number)) for number in (1, 2))
    assert fingerprint(one, two)["list"] != fingerprint(two, one)["list"]
    assert fingerprint(one, one)["list"] != fingerprint(one)["list"]


def test_class_that_a_folder_tells_is_part_of_a_list(tmp_path: Path) -> None:
    """Also where all images lie in the same one, and are seen from there."""
    path = picture(tmp_path / "dog/1.png")
    assert fingerprint(image_file(path, 0))["list"] != fingerprint(image_file(path, 1))["list"]


def test_folder_that_all_images_lie_in_is_no_part_of_a_list(tmp_path: Path) -> None:
    """Nor is a beginning that their names have in common; none at all is a list as well, and any name will do."""
    names = ["00a.png", "00b.png", "00/c.png", "00\udcff.png"]
    here, there = ([picture(tmp_path / root / name) for name in names] for root in ("here", "somewhere/else/00"))
    assert fingerprint(*map(image_file, here)) == fingerprint(*map(image_file, there))
    assert fingerprint(*map(image_file, here[:2]))["list"] != fingerprint(*map(image_file, here[1:3]))["list"]
    assert fingerprint(image_file(here[0]))["list"] != fingerprint(image_file(here[1]))["list"]
    assert len({*fingerprint().values()}) == 1
    moved = [here[0], picture(tmp_path / "here/deeper/00b.png")]
    assert fingerprint(*map(image_file, here[:2]))["list"] != fingerprint(*map(image_file, moved))["list"]


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
        fingerprints.add(fingerprint(image_file(path))["images"])
    assert len(fingerprints) == 3


def test_labels_of_an_image_that_is_left_out_are_hashed(tmp_path: Path) -> None:
    """Cut off or missing: when it is replaced, only the images have changed."""
    path, label = picture(tmp_path / "0.png"), tmp_path / "0.txt"
    label.write_text("1 0.5 0.5 0.2 0.2")
    seen = [read(path, str(label))]
    os.truncate(path, 500)
    seen.append(read(path, str(label)))
    path.unlink()
    seen.append(read(path, str(label)))
    assert len({each.image for each in seen}) == 3
    assert len({each.label for each in seen}) == 1
    assert seen[0].label != seen[2].image == files.NOTHING


def test_hashes_are_of_one_length_and_by_content_alone(tmp_path: Path) -> None:
    """They are joined: a file that is not there must not stand for the next one."""
    path, label = picture(tmp_path / "0.png"), tmp_path / "0.txt"
    label.write_bytes(b"")
    first = read(path, str(label))
    assert {len(each) for each in (*first, files.NOTHING)} == {16}
    assert first.label != files.NOTHING
    os.utime(path, ns=(1, 1))
    assert read(Path(shutil.copy(path, tmp_path / "copy.jpg")), str(label)) == first
    label.write_text("1 0.5 0.5 0.2 0.2")
    assert read(path, str(label)).label.hex() == "6b737607d319a8674cdb5fa4b7058bf1"  # checkpoints keep them


# --- duplicates


def twins(*paths: Path, others: list[Path]) -> list[str]:
    groups = [{image_file(path): read(path).image for path in group} for group in (paths, others)]
    return [Path(image.path).name for image in files.duplicates(*groups)]


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
    assert read(one) == read(other)
    assert twins(other, others=[one]) == []
