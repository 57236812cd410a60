"""Out of memory, and a loss that is not a number: a run that is killed on the way recovers as one that is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.errors import KitError
from kit.store import checkpoint
from kit.yolo import models
from kit.yolo.loop import Resumable
from kit.yolo.setup import Setup
from tests.help import training
from tests.help.training import Killed, differences, kill_at, rows

EVERY_STEP = {"kit.max_lost_s": 1e-6, "kit.max_cost_percent": 1e9}


def with_little_memory(patch: pytest.MonkeyPatch, largest: int, epoch: int = 0) -> None:
    """Have the second batch of an epoch not fit into memory when it holds more than `largest` samples."""
    own = Resumable.forward_backward

    def forward_backward(self: Any, i: int, batch: dict[str, Any]) -> dict[str, Any]:
        result = own(self, i, batch)
        if (self.epoch, i) == (epoch, 1) and len(batch["img"]) > largest:
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return result

    patch.setattr(Resumable, "forward_backward", forward_backward)


def with_weights_gone_bad(patch: pytest.MonkeyPatch, epoch: int, times: int) -> None:
    """Have the second batch of an epoch break the weights, so many times in the run."""
    own = Resumable.forward_backward

    def forward_backward(self: Any, i: int, batch: dict[str, Any]) -> dict[str, Any]:
        result = own(self, i, batch)
        if (self.epoch, i) == (epoch, 1) and self.nan_recovery_attempts < times:
            next(self.model.parameters()).data.fill_(float("nan"))
        return result

    patch.setattr(Resumable, "forward_backward", forward_backward)


def run_killed(values: dict[str, Any], at: tuple[int, ...]) -> dict[str, Any]:
    """Train, killed each time that `stop` was asked so often, and return the checkpoint at the end."""
    for call in at:
        with pytest.raises(Killed):
            training.train(values, kill_at(call))
    return training.train(values)


@pytest.mark.parametrize("at", [(1,), (2,), (4, 3), (6, 2, 2)])
def test_halved_batch_survives_a_kill(place: Path, monkeypatch: pytest.MonkeyPatch, at: tuple[int, ...]) -> None:
    """Killed before and after the batch is halved, the run ends with the bits of an untouched one."""
    values = training.settings(place, epochs=2, optimizer="SGD", nbs=8, **EVERY_STEP)
    with_little_memory(monkeypatch, largest=2)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    assert untouched["progress"]["batches"] == 6
    assert untouched["loop"]["decided"]["batch"] == 2
    again = run_killed(values, at)
    assert differences(untouched, again) == []
    assert rows(untouched) == rows(again)


def test_halved_batch_builds_the_loaders_of_a_fine_tuned_model_anew_and_not_the_model(
    place: Path, pretrained: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its class branch is not what its description says; killed or not, it is the one of the pretrained file."""
    built: list[str] = []
    for name in ("setup_model", "get_dataloader"):
        monkeypatch.setattr(Setup, name, noted(getattr(Setup, name), built))
    values = pretrained(place, epochs=2, optimizer="SGD", nbs=8, **EVERY_STEP)
    with_little_memory(monkeypatch, largest=2)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    assert built == ["setup_model"] + 4 * ["get_dataloader"]
    assert untouched["loop"]["decided"]["batch"] == 2
    assert untouched["model_state_dict"]["model.5.cv3.0.2.weight"].shape[1] == 80
    again = run_killed(values, (4, 3))
    assert differences(untouched, again) == []
    assert rows(untouched) == rows(again)


def noted(method: Callable[..., Any], names: list[str]) -> Callable[..., Any]:
    """Return a method that notes its name where it is called."""

    def call(*arguments: Any, **named: Any) -> Any:
        names.append(method.__name__)
        return method(*arguments, **named)

    return call


def test_halvings_are_counted_over_sessions(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three in the first epoch of the run, not of each session; the fourth says what to do."""
    values = training.settings(place, batch=12, epochs=1, **EVERY_STEP)
    own = Resumable.forward_backward

    def forward_backward(self: Any, i: int, batch: dict[str, Any]) -> dict[str, Any]:
        if i == 1 or self.batch_size == 12:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED")
        return own(self, i, batch)

    monkeypatch.setattr(Resumable, "forward_backward", forward_backward)
    with pytest.raises(Killed):
        training.train(values, kill_at(2))  # after 12 -> 6 and 6 -> 3, in the first batch of 3
    latest = place / "working/runs/train/checkpoints/latest.pt"
    assert training.read(latest)["loop"]["oom_retries"] == 1
    with pytest.raises(KitError, match=r"memory is full in epoch 1 with batch=1 .*--resume .*latest\.pt batch=1\."):
        training.train(values)


def test_full_memory_in_a_later_epoch_says_what_to_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program beside training may have taken the memory: the run is not changed behind the user's back."""
    values = training.settings(place, epochs=2)
    with_little_memory(monkeypatch, largest=2, epoch=1)
    with pytest.raises(KitError, match=r"full in epoch 2 with batch=4 and imgsz=64.*--resume .*latest\.pt batch=2\."):
        training.train(values)
    assert training.read(place / "working/runs/train/checkpoints/latest.pt")["epoch"] == 1


@pytest.mark.parametrize("where", ["_validated", "optimizer_step", "build_pipeline"])
def test_full_memory_outside_of_a_batch_says_what_to_do(
    place: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """A validation has twice the images, and no gradients: nothing is halved for it."""

    def full(self: Any, *_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(Resumable, where, full)
    if where == "build_pipeline":
        with_little_memory(monkeypatch, largest=2)
    with pytest.raises(KitError, match=r"memory is full in epoch 1 with batch=\d .*--resume .*latest\.pt batch=\d\."):
        training.train(training.settings(place, epochs=1))


def test_other_errors_are_not_taken_for_full_memory(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They come through as they are."""

    def forward_backward(self: Any, i: int, batch: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("a layer is wrong")

    monkeypatch.setattr(Resumable, "forward_backward", forward_backward)
    with pytest.raises(RuntimeError, match="a layer is wrong"):
        training.train(training.settings(place))


@pytest.mark.parametrize("at", [(11,), (12, 1), (13, 2), (16, 3)])
def test_way_back_from_bad_weights_survives_a_kill(
    place: Path, monkeypatch: pytest.MonkeyPatch, at: tuple[int, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed before, while the weights are bad and after the way back, the run ends with the same bits."""
    values = training.settings(place, epochs=4, nbs=8, **EVERY_STEP)
    with_weights_gone_bad(monkeypatch, epoch=2, times=1)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    assert "NaN or inf in epoch 3: rolled back to the best model, of epoch" in capsys.readouterr().out
    assert untouched["epoch"] == 4
    assert untouched["loop"]["nan_recovery_attempts"] == 1
    assert all(value.isfinite().all() for value in untouched["model_state_dict"].values())
    again = run_killed(values, at)
    assert differences(untouched, again) == []
    assert rows(untouched) == rows(again)


def test_ways_back_are_counted_over_the_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong again and again ends with a sentence; good epochs in between do not hide it."""
    values = training.settings(place, epochs=3)
    with_weights_gone_bad(monkeypatch, epoch=1, times=99)
    with pytest.raises(KitError, match=r"epoch 2, for the fourth time in this run\. .*--resume .*best\.pt lr0=0\.005"):
        training.train(values)


def test_bad_weights_before_the_first_best_are_said_and_never_kept_as_best(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """There is nothing to go back to yet."""
    values = training.settings(place, epochs=1)
    with_weights_gone_bad(monkeypatch, epoch=0, times=1)
    training.train(values)
    assert "there is no best.pt to roll back to" in capsys.readouterr().out
    assert not (place / "working/runs/train/checkpoints/best.pt").exists()


def with_an_infinite_average(patch: pytest.MonkeyPatch, epoch: int, *sections: str) -> None:
    """Have the second batch of an epoch put one Inf into the average, and into the model where it is named too."""
    own = Resumable.forward_backward

    def forward_backward(self: Any, i: int, batch: dict[str, Any]) -> dict[str, Any]:
        result = own(self, i, batch)
        if (self.epoch, i, self.nan_recovery_attempts) == (epoch, 1, 0):
            for module in (self.ema.ema, *([self.model] if "model" in sections else [])):
                next(buffer for name, buffer in module.named_buffers() if name.endswith("running_var"))[0] = math.inf
        return result

    patch.setattr(Resumable, "forward_backward", forward_backward)


@pytest.mark.parametrize("at", [(), (6,), (8, 2)])
def test_passing_infinity_in_the_average_is_mended_and_said(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], at: tuple[int, ...]
) -> None:
    """It would stay in every later average; best.pt and the end of the run are finite, killed or not."""
    values = training.settings(place, **EVERY_STEP)
    with_an_infinite_average(monkeypatch, 1)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    assert "WARNING: The averaged model was not finite in 1 tensors (model.0.bn.running_var, …) in epoch 2" in (
        capsys.readouterr().out
    )
    again = run_killed(values, at)
    assert differences(untouched, again) == []
    best = checkpoint.read(place / "working/runs/train/checkpoints/best.pt", models.open_checkpoint)
    for state in (untouched["ema_state_dict"], best["ema_state_dict"], best["model"].state_dict()):
        assert all(value.isfinite().all() for value in state.values())
    assert untouched["loop"]["nan_recovery_attempts"] == 0


def test_infinity_in_the_model_too_goes_back_to_the_best_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """BatchNorm's statistics never lose it: nothing that could be taken from the model is finite."""
    values = training.settings(place, **EVERY_STEP)
    with_an_infinite_average(monkeypatch, 1, "model")
    state = training.train(values)
    assert "rolled back to the best model, of epoch 1 (attempt 1/3)" in capsys.readouterr().out
    assert state["epoch"] == 3
    assert all(
        value.isfinite().all() for value in (*state["ema_state_dict"].values(), *state["model_state_dict"].values())
    )
