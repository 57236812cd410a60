"""Ultralytics' warnings: each is told once, in the log and as a notice, and plain; what the kit sees to is not."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import ultralytics
import yaml
from ultralytics.utils import LOGGER, colorstr

from kit.errors import Stopped
from kit.yolo.logger import SEEN_TO, listening
from kit.yolo.samples import LabelledDataset
from tests.help import training
from tests.help.training import acting, differences, stop_at

SCALE = "Ultralytics: no model scale passed. Assuming scale='n'."  # of each description of the tests


def told(place: Path) -> list[str]:
    """Return the messages of the notices that the run has left, without what is about a test's description."""
    notices = json.loads((place / "working/runs/train/status.json").read_text())["notices"]
    assert all(set(notice) == {"kind", "message", "hint"} for notice in notices)
    return [notice["message"] for notice in notices if notice["message"] != SCALE]


def without_flips(values: dict[str, Any]) -> None:
    """Take the order of mirrored keypoints out of a description."""
    description = Path(values["data"])
    given = yaml.safe_load(description.read_text())
    del given["flip_idx"]
    description.write_text(yaml.safe_dump(given))


def no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have Ultralytics find next to no memory free."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10, total=100))


CASES: dict[str, tuple[str, dict[str, Any], str]] = {  # task, settings, what has to be told
    "size": ("detect", {"imgsz": 100}, "imgsz=[100] must be multiple of max stride 32, updating to [128]"),
    "flips": (
        "pose",
        {"workers": 2, "close_mosaic": 1},
        "No 'flip_idx' array defined in data.yaml, disabling 'fliplr' and 'flipud' augmentations.",
    ),
    "batch": ("detect", {"batch": -1}, "AutoBatch: intended for GPU devices, using default batch-size 16"),
    "memory": (
        "detect",
        {"cache": "ram"},
        "train: 0.0GB RAM required to cache images with 100% safety margin but only 0.0/0.0GB available, not caching "
        "images",
    ),
    "limit": (
        "detect",
        {"max_det": 1},
        "Dataset images contain up to 4 objects (train=4, val=4), but max_det=1. This mismatch can cap recall and "
        "produce invalid validation metrics. Raising it may increase validation cost but cannot increase model or "
        "export capacity, which may cap recall. Keeping the user-specified max_det=1.",
    ),
}


DECIDED = ("size", "batch")  # once for the run: the checkpoint holds what set-up made of them


@pytest.mark.parametrize("case", list(CASES))
def test_warning_is_told_once_in_each_session(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], case: str
) -> None:
    """By the training process and by no loader worker, whatever the epochs; after a resume where it is found anew."""
    task, changes, text = CASES[case]
    values = training.settings(place, task, **changes)
    if case == "flips":
        without_flips(values)
    if case == "memory":
        no_memory(monkeypatch)
    for stop, count in ((stop_at(2), 1), (lambda: "", int(case not in DECIDED))):
        with contextlib.suppress(Stopped):
            training.train(values, stop)
        assert told(place) == [f"Ultralytics: {text}"] * count
        printed = capfd.readouterr().out
        assert printed.count(f"WARNING: Ultralytics: {text}") == printed.count(text) == count


def test_warning_reaches_the_log_of_a_process_of_its_own(place: Path) -> None:
    """Whose environment keeps Ultralytics silent; without its own mark and colours."""
    child = training.start(place, training.settings(place, imgsz=100, epochs=1))
    assert child.wait() == 0, child.output()
    text = "Ultralytics: imgsz=[100] must be multiple of max stride 32, updating to [128]"
    assert told(place) == [text]
    for output in (child.output(), (place / "working/runs/train/train.log").read_text()):
        assert [line for line in output.splitlines() if "must be multiple" in line] == [f"WARNING: {text}"]
        assert "\x1b" not in output
        assert output.isascii() or not {"⚠", "❌"} & set(output)


def test_colours_emoji_and_lines_do_not_get_through() -> None:
    """What is left is one line of text, in whatever language."""
    heard: list[str] = []
    with listening() as warnings:
        warnings.forward(heard.append)
        LOGGER.warning(f"{colorstr('bold', 'red', 'train:')} ⚠️ Größe 90° ×2\n日本 ✅🚀")
        LOGGER.error("❌ broken")
    assert heard == ["Ultralytics: train: Größe 90° ×2 日本", "Ultralytics: broken"]


def test_same_line_of_code_is_told_once_and_another_one_too() -> None:
    """Numbers and names in the text do not make it another warning."""
    heard: list[str] = []
    with listening() as warnings:
        warnings.forward(heard.append)
        for number in range(3):
            LOGGER.warning(f"{number} images are odd")
        LOGGER.warning("0 images are odd")
        LOGGER.info("not a warning")
    assert heard == ["Ultralytics: 0 images are odd"] * 2


def test_warning_from_before_there_is_a_status_is_told_when_there_is_one() -> None:
    """A model is built before the run folder is known to be good."""
    heard: list[str] = []
    with listening() as warnings:
        LOGGER.warning("early")
        assert heard == []
        warnings.forward(heard.append)
        LOGGER.warning("late")
    assert heard == ["Ultralytics: early", "Ultralytics: late"]


def test_handlers_of_others_come_back(place: Path) -> None:
    """Also after a failure."""
    mine = logging.NullHandler()
    LOGGER.addHandler(mine)
    before = list(LOGGER.handlers)
    try:
        with pytest.raises(ZeroDivisionError):
            training.train(training.settings(place), acting({1: lambda: 1 // 0}))
        assert LOGGER.handlers == before
    finally:
        LOGGER.removeHandler(mine)


def test_warning_of_a_loader_worker_does_not_touch_the_status(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is another process: with its copy of the status it would write an older one over that of training."""
    untouched = training.train(training.settings(place, **{"kit.run": "runs/untouched"}))
    load = LabelledDataset.load_image

    def warns(self: Any, *args: Any, **kwargs: Any) -> Any:
        if torch.utils.data.get_worker_info():
            LOGGER.warning("from a worker")
        return load(self, *args, **kwargs)

    monkeypatch.setattr(LabelledDataset, "load_image", warns)
    assert differences(untouched, training.train(training.settings(place, workers=2))) == []
    assert told(place) == []
    assert "from a worker" not in capfd.readouterr().out


# --- what the kit sees to


@pytest.mark.parametrize("text", list(SEEN_TO))
def test_text_that_is_left_out_is_one_of_ultralytics(text: str) -> None:
    """Of the installed version: else nobody would notice that it was changed there."""
    sources = Path(ultralytics.__file__).parent.rglob("*.py")
    assert any(text in source.read_text(encoding="utf-8") for source in sources)
    heard: list[str] = []
    with listening() as warnings:
        warnings.forward(heard.append)
        LOGGER.warning(f"begin {text} end")
    assert heard == []


def no_labels(folder: Path) -> None:
    for file in folder.glob("labels/val/*"):
        file.write_text("")


def no_class(folder: Path) -> None:
    first = min((folder / "val").iterdir())
    first.rename(first.with_name("unknown"))


LEFT_OUT: dict[str, tuple[str, dict[str, Any], Callable[[Path], object], list[str]]] = {
    "cache": ("detect", {"cache": "ram"}, lambda folder: None, []),
    "labels": (
        "detect",
        {},
        no_labels,
        ["No image of val has a label: the mAP will be 0 and tell nothing of the model."],
    ),
    "classes": ("classify", {}, no_class, ["Left out of val: 1 class (unknown) that train has not."]),
}


@pytest.mark.parametrize("case", list(LEFT_OUT))
def test_what_the_kit_sees_to_is_not_told_twice(place: Path, case: str) -> None:
    """The kit's own warning stands alone."""
    task, changes, spoil, wanted = LEFT_OUT[case]
    values = training.settings(place, task, epochs=1, **changes)
    spoil(Path(values["data"]) if task == "classify" else Path(values["data"]).parent)
    training.train(values)
    assert told(place) == wanted
