"""Set-up: what Ultralytics refuses there is a sentence, and what it changes is changed here too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kit.errors import ConfigError, KitError, Stopped
from tests.help import training
from tests.help.training import differences, stop_at


@pytest.mark.parametrize("task", ["detect", "classify"])
@pytest.mark.parametrize("freeze", [1000, list(range(99))])
def test_model_that_is_frozen_as_a_whole_is_a_sentence(place: Path, task: str, freeze: Any) -> None:
    """Which says how many layers there are."""
    layers = {"detect": 6, "classify": 10}[task]
    with pytest.raises(ConfigError, match=rf"leaves nothing of the model to train: it has {layers} layers") as caught:
        training.train(training.settings(place, task, freeze=freeze))
    assert f"freeze={freeze}" in str(caught.value)


def test_all_layers_but_the_last_may_be_frozen(place: Path) -> None:
    """It is no error, and they stay as they were."""
    values = training.settings(place, freeze=5, epochs=2)
    with pytest.raises(Stopped):
        training.train(values, stop_at(1))
    began = training.read(place / "working/runs/train/checkpoints/latest.pt")["model_state_dict"]
    ended = training.train(values)["model_state_dict"]
    moved = {name.split(".")[1] for name in began if not torch.equal(began[name], ended[name])}
    assert moved == {"5"}


def test_bfloat16_without_a_gpu_that_has_it_is_a_sentence(place: Path) -> None:
    """And no traceback at the first batch."""
    with pytest.raises(ConfigError, match="amp=bf16 needs a GPU that computes in bfloat16"):
        training.train(training.settings(place, amp="bf16"))


def test_image_size_of_two_sides_trains_on_squares_of_the_longer_one(place: Path) -> None:
    """As in stock Ultralytics: the same bits as with that size alone."""
    two = training.train(training.settings(place, imgsz=[64, 96], epochs=1, **{"kit.run": "runs/two"}))
    one = training.train(training.settings(place, imgsz=96, epochs=1))
    assert differences(one, two) == []
    assert yaml.safe_load((place / "working/runs/two/args.yaml").read_text())["imgsz"] == [64, 96]


def test_gpu_on_which_no_batch_size_fits_is_a_sentence(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ultralytics raises then is no error of CUDA's; full memory is said as anywhere else."""
    raised: list[RuntimeError] = [RuntimeError("AutoBatch: no usable batch size found"), torch.OutOfMemoryError("full")]

    def autobatch(*args: Any, **kwargs: Any) -> int:
        raise raised.pop(0)

    monkeypatch.setattr("ultralytics.engine.trainer.check_train_batch_size", autobatch)
    with pytest.raises(ConfigError, match=r"No batch size was found .* with imgsz=64. End what else uses the GPU"):
        training.train(training.settings(place, batch=-1))
    with pytest.raises(KitError, match="The GPU's memory is full"):
        training.train(training.settings(place, batch=-1), resume="never")
