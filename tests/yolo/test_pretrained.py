"""The stand-ins for pretrained files have what published files have, and start what published files start."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from ultralytics import YOLO
from ultralytics.nn.tasks import DetectionModel, guess_model_task, torch_safe_load

from kit.data import shapes
from kit.yolo.train import quiet
from tests.help import pretrained, training
from tests.help.pretrained import PUBLISHED, TINY

Big = Callable[[str], Path]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED]
EMPTIED = ("optimizer", "best_fitness", "ema", "updates")  # by Ultralytics, at the end of a training
KEYS = {"epoch", "model", "train_args", "train_metrics", "train_results", "date", "version", "license", "docs"}
COUNTS = {"detect": 80, "segment": 80, "pose": 1, "obb": 15, "classify": 1000}  # classes of the published files


def task_of(name: str) -> str:
    return PUBLISHED.get(name) or name.split("-")[1]


def read(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch_safe_load(path, safe_only=True)[0]
    return state


@pytest.mark.parametrize("name", [*TINY, *SLOW])
def test_file_has_the_layout_of_a_published_one(big: Big, name: str) -> None:
    """As Ultralytics strips it: the averaged model in half precision, and nothing to resume from."""
    state = read(big(name))
    model = state["model"]
    assert set(state) >= KEYS | set(EMPTIED)
    assert state["epoch"] == -1
    assert [state[key] for key in EMPTIED] == [None] * len(EMPTIED)
    assert state["train_args"]["task"] == guess_model_task(model) == task_of(name)
    assert not hasattr(model, "task")
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert {value.dtype for value in model.state_dict().values()} == {torch.float16, torch.int64}


@pytest.mark.parametrize("name", [*TINY, *SLOW])
def test_file_holds_a_model_that_has_seen_images(big: Big, name: str) -> None:
    """Finite numbers, which no untrained model has."""
    model = read(big(name))["model"]
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all(norm.running_mean.any() and (norm.running_var != 1).any() for norm in norms)
    assert any((norm.weight != 1).any() for norm in norms)


@pytest.mark.parametrize("name", [*TINY, *SLOW])
def test_file_predicts_under_the_names_of_its_classes(big: Big, name: str) -> None:
    """All of them, of which Ultralytics knows three again in the drawn sets, at other places."""
    model = YOLO(big(name))
    names = list(model.names.values())
    assert model.task == task_of(name)
    assert len(names) == len(set(names)) == int(name.split("-")[2] if name in TINY else COUNTS[model.task])
    if len(names) > 1 and model.task != "classify":  # whose classes are in the order of the alphabet
        assert all(names.index(shape) != number for number, shape in enumerate(shapes.NAMES))
    (result,) = model.predict(torch.rand(1, 3, 64, 64), verbose=False, save=False)
    assert result.names == model.names


@pytest.mark.slow
def test_pose_model_has_the_keypoints_of_a_person(big: Big) -> None:
    """As COCO counts them."""
    model = read(big("yolo11n-pose"))["model"]
    assert (model.model[-1].kpt_shape, model.names) == ([17, 3], {0: "person"})


def fine_tuned(file: Path, place: Path, task: str) -> nn.Module:
    """Have stock Ultralytics train a file on the three classes of a drawn set, and return the model."""
    quiet()
    values = training.settings(place, task, epochs=1, start=file)
    model = YOLO(values.pop("model"))
    model.train(**values, project=str(place), name="stock", device="cpu", verbose=False)
    trained: nn.Module = read(place / "stock/weights/last.pt")["model"]
    return trained


def grown(model: Any) -> set[str]:
    """Return the layers of the head that have other shapes than in the model that the description alone makes."""
    described = type(model)(model.yaml, verbose=False).state_dict()
    changed = {name for name, value in model.state_dict().items() if described[name].shape != value.shape}
    return {name.split(".")[2] for name in changed}


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb"])
def test_fine_tuned_tiny_model_is_not_what_its_description_makes(big: Big, place: Path, task: str) -> None:
    """Its class branch is 80 wide, as in the file, and 16 where the description alone decides."""
    model = fine_tuned(big(f"tiny-{task}-80"), place, task)
    described = type(model)(model.yaml, verbose=False)
    assert (model.yaml["nc"], described.yaml["nc"]) == (3, 3)
    assert 60_000 < sum(parameter.numel() for parameter in described.parameters()) < 130_000
    assert {branch[-1].in_channels for branch in model.model[-1].cv3} == {80}
    assert {branch[-1].in_channels for branch in described.model[-1].cv3} == {16}
    assert grown(model) == {"cv3"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("yolov8n", {"cv3"}),
        ("yolo11n", {"cv3"}),
        ("yolo26n", {"cv3", "one2one_cv3"}),
        ("yolo12n", {"cv3"}),
        ("yolov10n", {"cv3", "one2one_cv3"}),
        ("yolo11n-seg", {"cv3"}),
        ("yolo11s", set()),
        ("yolo11n-pose", set()),
        ("yolo11n-obb", set()),
        ("yolo11n-cls", set()),
    ],
)
def test_fine_tuned_published_model_keeps_the_class_branch_of_its_file(
    big: Big, place: Path, name: str, expected: set[str]
) -> None:
    """Where 80 classes need a wider one than three do: in the smallest models."""
    assert grown(fine_tuned(big(name), place, PUBLISHED[name])) == expected


def test_class_rows_go_where_their_names_are(big: Big) -> None:
    """`cls_remap` has something to do."""
    source = read(big("tiny-detect-80"))["model"].float()
    target = DetectionModel(source.yaml, nc=3, verbose=False)
    target.names = dict(enumerate(shapes.NAMES))
    target.load(source, verbose=False)
    for old, new in zip(source.model[-1].cv3, target.model[-1].cv3, strict=True):
        for row, name in enumerate(shapes.NAMES):
            (found,) = (number for number, each in source.names.items() if each == name)
            assert torch.equal(new[-1].weight[row], old[-1].weight[found])


def test_file_is_made_once_and_nothing_else_is_left(pretrained_folder: Path) -> None:
    """Not even settings or caches of Ultralytics'."""
    first = pretrained.make_tiny("detect", pretrained_folder).stat()
    assert pretrained.make_tiny("detect", pretrained_folder).stat().st_mtime_ns == first.st_mtime_ns
    assert {path.suffix for path in pretrained_folder.iterdir()} == {".pt"}


def test_what_cannot_be_made_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    """The test that asked for it fails with the output of the process."""
    with pytest.raises(AssertionError, match=r"no-such-model\.yaml"):
        pretrained.make("no-such-model", tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_half_made_file_is_never_taken(tmp_path: Path) -> None:
    """A maker that is killed leaves whole files, and the next one makes the others."""
    maker = subprocess.Popen([sys.executable, pretrained.__file__, tmp_path, *TINY], stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob("*.pt")):
        assert maker.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    maker.kill()
    maker.wait()
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.pt")}
    assert len(kept) < len(TINY)
    assert all(read(pretrained.make(name, tmp_path))["epoch"] == -1 for name in TINY)
    assert all(path.stat().st_mtime_ns == modified for path, modified in kept.items())
