"""The quick start as it is shipped, in full."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.help import training
from tests.help.training import Child, differences, rows

pytestmark = pytest.mark.slow


def test_quick_start_learns_and_survives_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten epochs: the best mAP grows to more than 0.4; killed at epoch 2 and resumed, it ends with the same bits."""
    monkeypatch.setenv("KIT_SCRATCH", str(tmp_path))
    untouched = Child(tmp_path, ["kit.run=runs/untouched"])
    assert untouched.wait() == 0, untouched.output()
    first = training.read(tmp_path / "runs/untouched/checkpoints/latest.pt")
    maps = [row["metrics/mAP50-95(B)"] for row in first["history"]]
    improved = sum(value > max(maps[:number]) for number, value in enumerate(maps) if number)
    assert improved >= 7, maps
    assert first["best_map"] == max(maps) > 0.4

    child = Child(tmp_path, ["workers=2"])
    seen = child.wait_for(lambda _: child.step() >= 2 * first["progress"]["global_step"] // 10)
    os.kill(seen["pid"], signal.SIGKILL)
    assert child.wait() == 1
    again = Child(tmp_path, ["workers=2"])
    assert again.wait() == 0, again.output()
    assert "Resumed from epoch 2\n" in again.output()
    assert "Starting training from epoch 3/10" in again.output()
    second = training.read(tmp_path / "runs/train/checkpoints/latest.pt")
    assert differences(first, second) == []
    assert rows(first) == rows(second)


def test_quick_start_from_a_pretrained_model_survives_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, big: Callable[[str], Path]
) -> None:
    """As it is shipped, but for what it starts from and its length."""
    monkeypatch.setenv("KIT_SCRATCH", str(tmp_path))
    words = [f"model={shutil.copy(big('yolov8n'), tmp_path)}", "epochs=2"]
    untouched = Child(tmp_path, [*words, "kit.run=runs/untouched"])
    assert untouched.wait() == 0, untouched.output()
    child = Child(tmp_path, words)
    first = training.read(tmp_path / "runs/untouched/checkpoints/latest.pt")
    seen = child.wait_for(lambda _: child.step() >= first["progress"]["global_step"] // 2)
    os.kill(seen["pid"], signal.SIGKILL)
    assert child.wait() == 1
    again = Child(tmp_path, words)
    assert again.wait() == 0, again.output()
    assert "Resuming from checkpoint" in again.output()
    second = training.read(tmp_path / "runs/train/checkpoints/latest.pt")
    assert differences(first, second) == []
    assert rows(first) == rows(second)
