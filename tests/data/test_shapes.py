"""The embedded data set: the same pixels every time, with labels that fit them."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
from pathlib import Path

import yaml
from PIL import Image

from kit.data import shapes
from kit.kaggle import session

FEW = {"train": 6, "val": 3}


def digest(folder: Path) -> str:
    """Hash every pixel and every label, but not how the image file packs them."""
    total = hashlib.sha256()
    for path in sorted((*folder.glob("images/*/*.png"), *folder.glob("labels/*/*.txt"))):
        total.update(str(path.relative_to(folder)).encode())
        total.update(Image.open(path).tobytes() if path.suffix == ".png" else path.read_bytes())
    return total.hexdigest()


def make(folder: Path, **options: int) -> str:
    shapes.make(folder, splits=FEW, size=32, **options)
    return digest(folder)


def test_shapes_made_twice_have_the_same_pixels(tmp_path: Path) -> None:
    """The set is a pure function of its seed: whatever was drawn at random before does not matter."""
    random.seed(1)
    one = make(tmp_path / "one")
    random.seed(2)
    assert make(tmp_path / "other") == one


def test_shapes_made_by_another_process_have_the_same_pixels(tmp_path: Path) -> None:
    """Nothing depends on the process, such as the hash of texts."""
    script = (
        "import sys; from pathlib import Path; from kit.data import shapes; "
        "shapes.make(Path(sys.argv[1]), splits={'train': 6, 'val': 3}, size=32)"
    )
    environment = {**os.environ, "PYTHONPATH": str(session.REPOSITORY), "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "other")], env=environment, check=True)
    assert digest(tmp_path / "other") == make(tmp_path / "one")


def test_another_seed_draws_other_images(tmp_path: Path) -> None:
    """And no image is drawn twice, within a split or across."""
    assert make(tmp_path / "one") != make(tmp_path / "other", seed=1)
    pixels = [Image.open(path).tobytes() for path in (tmp_path / "one").glob("images/*/*.png")]
    assert len(pixels) == len(set(pixels)) == 9


def test_drawing_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    """A run whose data set is drawn on the way has the same random numbers as one that finds it."""
    random.seed(1)
    before = random.getstate()
    make(tmp_path)
    assert random.getstate() == before


def test_half_drawn_set_is_drawn_again(tmp_path: Path) -> None:
    """The description is written last: where it is missing, what is there is not trusted."""
    whole = make(tmp_path)
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "images/train/0001.png").write_bytes(b"\x89PNG")
    (tmp_path / "labels/val/0000.txt").write_text("")
    assert make(tmp_path) == whole


def test_whole_set_is_not_drawn_again(tmp_path: Path) -> None:
    """Where the description stands, nothing is touched."""
    make(tmp_path)
    before = [(path, path.stat().st_mtime_ns) for path in sorted(tmp_path.rglob("*"))]
    make(tmp_path)
    assert [(path, path.stat().st_mtime_ns) for path in sorted(tmp_path.rglob("*"))] == before


def test_description_names_the_splits_and_the_classes(tmp_path: Path) -> None:
    """It is a plain data.yaml, with an image and a label file for each number that was asked for."""
    values = yaml.safe_load(shapes.make(tmp_path, splits=FEW, size=32).read_text())
    assert values["names"] == dict(enumerate(shapes.NAMES))
    for split, count in FEW.items():
        images = sorted((tmp_path / values[split]).glob("*.png"))
        labels = sorted((tmp_path / "labels" / split).glob("*.txt"))
        assert [path.stem for path in images] == [path.stem for path in labels]
        assert len(images) == count
        assert Image.open(images[0]).size == (32, 32)


def test_labels_lie_within_the_image_and_on_a_shape(tmp_path: Path) -> None:
    """Every class occurs; every box is a fraction of the image, not empty and not cut off."""
    shapes.make(tmp_path, splits={"train": 20}, size=64)
    seen = set()
    for path in tmp_path.glob("labels/*/*.txt"):
        lines = path.read_text().splitlines()
        assert 1 <= len(lines) <= 4
        for line in lines:
            kind, x, y, width, height = map(float, line.split())
            seen.add(kind)
            assert 0.1 < min(width, height) <= max(width, height) < 0.5
            for centre, extent in ((x, width), (y, height)):
                assert centre - extent / 2 >= -1e-6
                assert centre + extent / 2 <= 1 + 1e-6
    assert seen == {0, 1, 2}
