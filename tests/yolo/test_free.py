"""Settings that are declared free from session to session (`settings.MAY_CHANGE`) change no bit of training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit.config import differences as differ
from kit.errors import Stopped
from kit.yolo import settings
from tests.help import training
from tests.help.training import STEPS, differences, rows, stop_at

OTHERS = {  # each with another value than its default
    "save_period": 1,
    "plots": True,
    "verbose": False,
    "profile": True,
    "exist_ok": True,
    "show_labels": False,
    "show_conf": False,
    "show_boxes": False,
    "line_width": 3,
    "save_conf": True,
    "save_crop": True,
    "save_frames": True,
    "show": True,
    "visualize": True,
    "source": "nowhere",
    "vid_stride": 2,
    "stream_buffer": True,
    "embed": [1],
    "retina_masks": True,
    "tracker": "botsort.yaml",
    "format": "onnx",
    "optimize": True,
    "dynamic": True,
    "simplify": False,
    "opset": 17,
    "workspace": 4.0,
    "patience": 50,
    "workers": 2,
    "device": "cpu",
    "task": "detect",
}


@pytest.fixture(params=["yaml", "pretrained"])
def values(request: pytest.FixtureRequest, place: Path, pretrained: Callable[..., dict[str, Any]]) -> dict[str, Any]:
    """Settings of a run from a description, or from a pretrained file; images are resized, mosaic closes at the end."""
    make = training.settings if request.param == "yaml" else pretrained
    return make(place, imgsz=96, close_mosaic=1, **{"kit.max_lost_s": 1e-6})


def in_two_sessions(values: dict[str, Any], first: dict[str, Any], second: dict[str, Any], at: int) -> dict[str, Any]:
    with pytest.raises(Stopped):
        training.train({**values, **first}, stop_at(at))
    return training.train({**values, **second})


@pytest.mark.parametrize(("first", "second"), [(False, "ram"), (True, False), ("ram", "disk"), ("disk", "ram")])
def test_cache_of_images_may_change_between_two_sessions(values: dict[str, Any], first: Any, second: Any) -> None:
    """Every tensor and every result is that of a run without a cache; it stops within an epoch."""
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    found = in_two_sessions(values, {"cache": first}, {"cache": second}, STEPS + 2)
    assert differences(untouched, found) == []
    assert rows(untouched) == rows(found)


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_cache_of_images_by_class_may_change_between_two_sessions(place: Path, cache: str) -> None:
    """Classification has a cache of its own."""
    values = training.settings(place, "classify", imgsz=32, epochs=2, **{"kit.max_lost_s": 1e-6})
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    assert differences(untouched, in_two_sessions(values, {}, {"cache": cache}, 2)) == []


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("at", [2, STEPS + 2])
def test_validation_may_be_switched_between_two_sessions(values: dict[str, Any], first: bool, at: int) -> None:
    """Every tensor is that of a run with validation in each epoch, wherever it stopped."""
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    found = in_two_sessions(values, {"val": first}, {"val": not first}, at if first else min(at, 4))
    assert differences(untouched, found) == []


def test_all_other_free_settings_may_change_between_two_sessions(values: dict[str, Any]) -> None:
    """All at once."""
    left = {"epochs", "data", "cache", "val"}  # `epochs` changes the schedule, and says so; the others are above
    assert set(OTHERS) | left == settings.MAY_CHANGE
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    found = in_two_sessions(values, {}, OTHERS, STEPS + 2)
    assert differences(untouched, found) == []
    assert rows(untouched) == rows(found)


@pytest.mark.parametrize("word", ["nms=false", "save_json=true", "save_txt=true", "conf=0.1", "split=train"])
def test_setting_that_changes_how_is_validated_is_a_difference(word: str) -> None:
    """`nms` chooses the head, `save_json` and `save_txt` how masks are made: which model is best depends on it."""
    base = ["model=a.yaml", "data=b.yaml"]
    assert len(differ(settings.load(None, base), settings.load(None, [*base, word]))) == 1
