"""Files that carry code, wherever a stranger could put one: training refuses them or does without, and runs nothing.

A kernel's output and an attached data set are other people's files. Each test proves that its payload is a live one:
read without care, it runs.
"""

from __future__ import annotations

import io
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import yaml
from ultralytics.data.utils import check_det_dataset, load_dataset_cache_file
from ultralytics.nn.tasks import DetectionModel

from kit.errors import CheckpointError, DataError, InputError, ModelError, Stopped
from kit.store import checkpoint
from kit.yolo import models
from tests.help import samples, training
from tests.help.training import STEPS, differences, stop_at
from tests.store.test_checkpoint import Bomb
from tests.yolo.test_trainer import EVERY_STEP

CODE = f"was refused: it holds {open.__module__}.open, which is code, not weights. Nothing was executed."


@pytest.fixture
def fuse(place: Path) -> Path:
    """What a payload creates when it runs."""
    return place / "it-ran"


def stopped(place: Path, **changes: Any) -> tuple[dict[str, Any], Path]:
    """Train until epoch 2 and stop; return the settings and the folder of the checkpoints."""
    values = training.settings(place, **EVERY_STEP, **changes)
    with pytest.raises(Stopped):
        training.train(values, stop_at(STEPS + 3))
    return values, place / "working/runs/train/checkpoints"


def plant(source: Path, target: Path, fuse: Path) -> Path:
    """Put a checkpoint to `target` that is good in all else, and carries a payload."""
    state = torch.load(source, map_location="cpu", weights_only=False)
    return samples.save(target, {**state, "extra": Bomb(fuse)})


def assert_live(load: Callable[[], object], fuse: Path) -> None:
    """Nothing has run so far; read without care, it does."""
    assert not fuse.exists()
    load()
    assert fuse.exists()


def unsafe(path: Path) -> Callable[[], object]:
    return lambda: torch.load(path, weights_only=False)


def refused(values: dict[str, Any], error: type[InputError], resume: str = "auto") -> str:
    """Train, which must be refused, and return the one sentence that says why."""
    with pytest.raises(error) as caught:
        training.train(values, resume=resume)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- checkpoints


def test_planted_latest_is_set_aside_and_previous_is_used(
    place: Path, fuse: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ignored: in the run folder it costs no more than a damaged one."""
    values, folder = stopped(place)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    plant(folder / "latest.pt", folder / "latest.pt", fuse)
    capsys.readouterr()
    again = training.train(values)
    said = capsys.readouterr().out
    assert f"WARNING: '{folder / 'latest.pt'}' {CODE}\nIt was set aside as latest.pt.bad\n" in said
    assert f"Resuming from checkpoint: {folder / 'previous.pt'}\n" in said
    assert differences(untouched, again) == []
    assert_live(unsafe(folder / "latest.pt.bad"), fuse)


def test_planted_latest_in_an_attached_data_set_is_not_used(
    place: Path, fuse: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ignored: the run starts at its beginning, and the attached file stays where it is."""
    values, folder = stopped(place)
    planted = plant(folder / "latest.pt", place / "input/kernel/runs/train/checkpoints/latest.pt", fuse)
    shutil.rmtree(place / "working/runs")
    capsys.readouterr()
    assert training.train(values)["epoch"] == 3
    said = capsys.readouterr().out
    assert f"WARNING: '{planted}' {CODE}\n" in said
    assert "Starting training from epoch 1/3 (batch 1/3)\n" in said
    assert_live(unsafe(planted), fuse)


@pytest.mark.parametrize("name", ["latest.pt", "best.pt"])
def test_planted_file_behind_resume_is_refused(place: Path, fuse: Path, name: str) -> None:
    """Refused: the user named this file and no other. A best.pt, which holds a model, may hold nothing else."""
    values, folder = stopped(place)
    planted = plant(folder / name, place / "given.pt", fuse)
    assert f"'{planted}' {CODE}" == refused(values, CheckpointError, resume=str(planted))
    assert_live(unsafe(planted), fuse)


@pytest.mark.parametrize("attached", [False, True])
def test_planted_best_is_set_aside_and_a_new_one_written(place: Path, fuse: Path, attached: bool) -> None:
    """Ignored: no later model is better than it was, so it would be the one that is validated at the end."""
    values, folder = stopped(place)
    samples.save(folder / "latest.pt", {**training.read(folder / "latest.pt"), "best_map": 1.0})
    planted = plant(folder / "best.pt", folder / "best.pt", fuse)
    if attached:
        shutil.move(place / "working/runs", place / "input/runs")
        planted = place / "input/runs/train/checkpoints/best.pt"
    copy = Path(shutil.copy(planted, place / "copy.pt"))
    child = training.start(place, values)
    assert child.wait() == 0, child.output()
    assert f"WARNING: '{planted}' {CODE}" in child.output()
    assert "The best model so far is gone: the next validation writes a new best.pt." in child.output()
    assert "Traceback" not in child.output()
    assert checkpoint.read(folder / "best.pt", load=models.open_checkpoint)["epoch"] in (2, 3)
    assert_live(unsafe(copy), fuse)


@pytest.mark.parametrize("earlier", [True, False])
def test_code_in_a_checkpoints_description_is_refused(place: Path, fuse: Path, earlier: bool) -> None:
    """Refused: a description of a model may name an activation, which Ultralytics evaluates as Python.

    It lies in the module tree, and where an earlier version of the kit wrote none beside the tensors.
    """
    values, folder = stopped(place)
    Path(values["model"]).unlink()  # so that there is nothing to compare it with
    state = training.read(folder / "latest.pt")
    if earlier:
        del state["architecture"]["modules"]
        state["architecture"]["yaml"]["activation"] = activation(fuse)
    else:
        model = models.assemble(state)
        model.yaml["activation"] = activation(fuse)
        state["architecture"]["modules"] = models.skeleton(model)
    samples.save(folder / "latest.pt", state)
    child = training.start(place, values)
    assert child.wait() == 2, child.output()
    assert f"unsupported activation '{activation(fuse)}' blocked" in child.output()
    assert "Traceback" not in child.output()
    assert_live(lambda: evaluate(model.yaml if not earlier else state["architecture"]["yaml"]), fuse)


def test_code_in_a_checkpoints_module_tree_is_refused(
    place: Path, fuse: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ignored, like any planted checkpoint: the tree is a pickle of its own, which names classes of models alone."""
    values, folder = stopped(place)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    state = training.read(folder / "latest.pt")
    buffer = io.BytesIO()
    torch.save({"model": Bomb(fuse)}, buffer)
    state["architecture"]["modules"] = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    samples.save(folder / "latest.pt", state)
    capsys.readouterr()
    again = training.train(values)
    assert f"WARNING: '{folder / 'latest.pt'}' {CODE}\nIt was set aside as latest.pt.bad\n" in capsys.readouterr().out
    assert differences(untouched, again) == []
    packed = training.read(folder / "latest.pt.bad")["architecture"]["modules"]
    assert_live(lambda: torch.load(io.BytesIO(packed.numpy().tobytes()), weights_only=False), fuse)


# --- models


@pytest.mark.parametrize("setting", ["model", "pretrained"])
@pytest.mark.parametrize("zipped", [True, False])
def test_planted_model_is_refused(place: Path, fuse: Path, setting: str, zipped: bool) -> None:
    """Refused: a model file may hold the classes of models and nothing else, in torch's new format and in the old."""
    planted = place / "x.pt"
    torch.save({"model": Bomb(fuse)}, planted, _use_new_zipfile_serialization=zipped)
    said = refused(training.settings(place, **{setting: str(planted)}), ModelError)
    assert said.startswith(f"The model '{planted}' cannot be loaded: ")
    assert not list((place / "working").rglob("*.pt"))
    assert_live(unsafe(planted), fuse)


def test_code_in_a_model_description_is_refused(place: Path, fuse: Path) -> None:
    """Refused, like that of a checkpoint."""
    values = training.settings(place)
    description = yaml.safe_load(Path(values["model"]).read_text()) | {"activation": activation(fuse)}
    Path(values["model"]).write_text(yaml.safe_dump(description))
    child = training.start(place, values)
    assert child.wait() == 2, child.output()
    assert f"unsupported activation '{activation(fuse)}' blocked" in child.output()
    assert "Traceback" not in child.output()
    assert_live(lambda: evaluate(description), fuse)


def activation(fuse: Path) -> str:
    """Return Ultralytics' usual activation, with a payload in front."""
    return f"open({str(fuse)!r}, 'w') and nn.SiLU()"


def evaluate(description: dict[str, Any]) -> None:
    """Build a model as Ultralytics does where nothing else is asked for."""
    DetectionModel(description, verbose=False)


# --- data sets


def test_planted_label_cache_is_not_read(place: Path, fuse: Path) -> None:
    """Ignored: labels are read from the label files, and the cache beside them stays as it is."""
    values = training.settings(place, epochs=1)
    planted = place / "shapes-detect/labels/train.cache"
    with open(planted, "wb") as file:
        numpy.save(file, {"labels": [], "hash": Bomb(fuse), "version": "1.0.3"})  # type: ignore[arg-type]
    before = planted.read_bytes()
    assert training.train(values)["epoch"] == 1
    assert planted.read_bytes() == before
    assert_live(lambda: load_dataset_cache_file(planted), fuse)


@pytest.mark.parametrize("there", [True, False])
def test_download_script_of_a_data_set_is_not_run(place: Path, fuse: Path, there: bool) -> None:
    """Ignored where the images are there; where they are not, the data set is refused instead of downloaded."""
    values = training.settings(place, epochs=1)
    description = Path(values["data"])
    entries = yaml.safe_load(description.read_text()) | {"download": f"open({str(fuse)!r}, 'w')"}
    description.write_text(yaml.safe_dump(entries))
    if there:
        assert training.train(values)["epoch"] == 1
    shutil.rmtree(place / "shapes-detect/images/val")
    assert "there are no images" in refused(values, DataError)
    assert_live(lambda: check_det_dataset(str(description)), fuse)


@pytest.mark.parametrize("cache", [False, "ram", "disk"])
@pytest.mark.parametrize("split", ["train", "val"])
def test_planted_twin_of_an_image_is_not_read(place: Path, fuse: Path, split: str, cache: bool | str) -> None:
    """Ignored: the image is decoded, and the .npy beside it stays as it is."""
    values = training.settings(place, epochs=2, cache=cache)
    untouched = training.train({**values, "cache": False, "kit.run": "runs/untouched"})
    twins = [file.with_suffix(".npy") for file in (place / f"shapes-detect/images/{split}").glob("*.png")]
    for twin in twins:
        numpy.save(twin, numpy.array([Bomb(fuse)], object), allow_pickle=True)
        os.utime(twin, (time.time() + 60,) * 2)  # newer than its image: Ultralytics' condition for reading it
    shutil.rmtree(place / "scratch")
    (place / "scratch").mkdir()
    assert differences(untouched, training.train(values)) == []
    assert all(twin.exists() for twin in twins), "an attached data set is never written to"
    assert_live(lambda: numpy.load(twins[0], allow_pickle=True), fuse)


def test_foreign_twin_of_a_validation_image_does_not_shift_the_results(place: Path) -> None:
    """A plain array needs no code to do harm: black images would decide which model is the best."""
    values = training.settings(place, epochs=2)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    for file in (place / "shapes-detect/images/val").glob("*.png"):
        numpy.save(file.with_suffix(".npy"), numpy.zeros((64, 64, 3), numpy.uint8))
    again = training.train(values)
    assert training.rows(untouched) == training.rows(again)
