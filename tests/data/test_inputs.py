"""An attached data set is only read, and looked through before training starts."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import yaml
from PIL import Image

from kit.data import images
from kit.errors import DataError
from kit.kaggle import machine, session
from kit.run import status
from tests.data.test_find import snapshot
from tests.help import training
from tests.help.training import differences


def attach(place: Path, task: str = "detect", **changes: Any) -> tuple[dict[str, Any], Path]:
    """Put a drawn data set under the input folder, with what stood beside it elsewhere; return settings and folder."""
    values = training.settings(place / "input", task, epochs=1, **changes)
    folder = Path(values["data"]) if task == "classify" else Path(values["data"]).parent
    for image in folder.rglob("*.png"):
        numpy.save(image.with_suffix(".npy"), numpy.zeros((64, 64, 3), numpy.uint8))
    for name in ("labels/train.cache", "labels/val.cache", "train.cache", "val.cache"):
        if (folder / name).with_suffix("").is_dir():
            (folder / name).write_bytes(b"not a cache")
    return values, folder


def add(folder: Path, name: str, share: float = 1.0, more: bytes = b"") -> None:
    """Add a JPEG to the training images, cut off, or with more bytes behind its end."""
    path = folder / f"images/train/{name}.jpg"
    Image.effect_noise((64, 64), 50).convert("RGB").save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)] + more)
    (folder / f"labels/train/{name}.txt").write_text("0 0.5 0.5 0.2 0.2\n")


@pytest.fixture
def mounted(place: Path) -> Iterator[Path]:
    """An input folder that is mounted read-only, as on Kaggle, so that not even root can write to it."""
    outside = place / "outside"
    (place / "input").rename(outside)
    (place / "input").mkdir()
    yield outside
    subprocess.run(["umount", "-l", str(place / "input")], check=False, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("cache", [False, "ram", "disk"])
@pytest.mark.parametrize("task", ["detect", "classify"])
def test_training_leaves_no_trace_in_the_data_set(place: Path, task: str, cache: bool | str) -> None:
    """No cache, no decoded image, no repaired JPEG; and none of those that lie there is read."""
    values, folder = attach(place, task, cache=cache)
    if task == "detect":
        add(folder, "tail", more=b"what a camera put there")
        add(folder, "cut", share=0.5)
    before = list(snapshot(place / "input"))
    trained = training.train(values)
    assert list(snapshot(place / "input")) == before
    for planted in [*folder.rglob("*.npy"), *folder.rglob("*.cache")]:
        planted.unlink()
    clean = training.train({**values, "cache": False, "kit.run": "runs/clean"})
    assert differences(clean, trained) == []


@pytest.mark.parametrize("cache", [False, "disk"])
@pytest.mark.parametrize("task", ["detect", "classify"])
def test_data_set_that_is_mounted_read_only_trains(place: Path, mounted: Path, task: str, cache: bool | str) -> None:
    """As every data set on Kaggle; `data=auto` finds it."""
    (place / "input").rmdir()
    (place / "input").symlink_to(mounted)
    values, _ = attach(place, task, cache=cache)
    (place / "input").unlink()
    (place / "input").mkdir()
    for command in (
        ["mount", "--bind", str(mounted), str(place / "input")],
        ["mount", "-o", "remount,bind,ro", str(place / "input")],
    ):
        if subprocess.run(command, check=False, stderr=subprocess.DEVNULL).returncode:
            pytest.skip("no mounting here")
    with pytest.raises(OSError, match="Read-only"):
        (place / "input/probe").write_bytes(b"")
    assert training.train({**values, "data": "auto"})["epoch"] == 1


def test_jpeg_with_bytes_behind_its_end_is_used_and_one_that_is_cut_off_is_not(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same on a data set that could be written to: Ultralytics would repair the first and train on it."""
    values, folder = attach(place, batch=1)
    add(folder, "tail", more=b"what a camera put there")
    add(folder, "cut", share=0.5)
    assert training.train(values)["progress"]["batches"] == 12 + 1
    assert "1 image (for example 'images/train/cut.jpg'), because of: " in capsys.readouterr().out


def test_cache_on_disk_may_be_larger_than_memory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`cache=disk` says that the disk has the room; it lies in scratch."""
    file = place / "a.png"
    file.write_bytes(b"")
    monkeypatch.setattr(machine, "memory", lambda: (1, 1))
    assert images.cache_for([str(file)], 100, 1, "")[0] is None
    cache, complete = images.cache_for([str(file)], 100, 1, "", on_disk=True)
    assert cache is not None
    assert complete
    assert len(list((session.scratch() / "images").iterdir())) == 1


@pytest.mark.parametrize("cache", [False, "disk"])
def test_cache_on_disk_is_asked_for_by_the_setting(
    place: Path, monkeypatch: pytest.MonkeyPatch, cache: bool | str
) -> None:
    """A machine with next to no memory decodes each image anew unless it is told otherwise."""
    values, _ = attach(place, cache=cache)
    monkeypatch.setattr(machine, "memory", lambda: (1, 1))
    training.train(values)
    assert len(list((session.scratch() / "images").iterdir())) == bool(cache)


def test_run_folder_has_the_description_that_was_used(place: Path) -> None:
    """With the paths as they were mended."""
    values, folder = attach(place)
    description = yaml.safe_load(Path(values["data"]).read_text())
    Path(values["data"]).write_text(yaml.safe_dump({**description, "path": "/content/datasets/shapes"}))
    training.train(values)
    used = yaml.safe_load((place / "working/runs/train/data.yaml").read_text())
    assert used["train"] == str(folder / "images/train")


def test_description_that_cannot_be_copied_does_not_stop_training(place: Path) -> None:
    """It is there to be read by people; a full disk does not end a run."""
    values, _ = attach(place)
    for name in ("checkpoints", "data.yaml"):
        (place / "working/runs/train" / name).mkdir(parents=True)
    assert training.train(values)["epoch"] == 1


def test_what_is_in_the_data_set_is_said_before_training(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table in the log; warnings there and in status.json, where the notebook finds them."""
    values, folder = attach(place)
    (folder / "labels/train/0000.txt").unlink()
    training.train(values)
    said = capsys.readouterr().out
    assert f"Data set {folder} (detect, 3 classes)\n" in said
    warning = "WARNING: Background in train: 1 image (for example 'images/train/0000.png') without a label file."
    assert said.index("(detect, 3 classes)") < said.index(warning) < said.index("Starting training")
    assert warning in status.read(place / "working/runs/train")["messages"]


def test_data_set_that_cannot_be_trained_on_stops_before_anything_is_built(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2, and no trainer, which would take the GPU."""
    values, folder = attach(place)
    for label in (folder / "labels").rglob("*.txt"):
        label.write_text("7 0.5 0.5 0.2 0.2\n")
    with pytest.raises(DataError, match=r"of train: .*Label class 7 exceeds .*of val: ") as caught:
        training.train(values)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert "(detect, 3 classes)" in capsys.readouterr().out
    assert not (place / "working/runs/train/args.yaml").exists()


def test_settings_decide_what_is_looked_at(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`fraction`, `single_cls` and `classes` as Ultralytics has them."""
    values, folder = attach(place, single_cls=True, fraction=0.5)
    (folder / "labels/train/0000.txt").write_text("7 0.5 0.5 0.2 0.2\n")
    training.train(values)
    said = capsys.readouterr().out
    assert "(detect, 1 class)" in said
    assert f"  train    {6:9}{6:10}" in said


def test_run_that_is_finished_is_not_looked_through_again(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It reads nothing any more."""
    values, folder = attach(place)
    training.train(values)
    capsys.readouterr()
    (folder / "labels/train/0000.txt").write_text("7 0.5 0.5 0.2 0.2\n")
    training.train(values)
    said = capsys.readouterr().out
    assert "This run is finished" in said
    assert "(detect, 3 classes)" not in said
