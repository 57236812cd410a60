"""Exact resume on a GPU: mixed precision with a gradient scaler, channels_last, deterministic kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.help import training
from tests.help.training import Killed, differences, kill_at, rows

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]

EVERY_BATCH = {"kit.max_lost_s": 1e-6, "kit.max_cost_percent": 1e9}
GPU = {"device": "0", "amp": True, "channels_last": True, "deterministic": True, "imgsz": 160}


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify"])
def test_killed_run_ends_bit_identical_on_a_gpu(place: Path, task: str) -> None:
    """Killed at several batches, with workers, accumulation and warm-up, a run ends with the bits of an untouched."""
    values: dict[str, Any] = training.settings(
        place, task, images=48, epochs=4, workers=2, nbs=12, warmup_epochs=1, mixup=0.5, copy_paste=0.5, **GPU
    )
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    twin = training.train({**values, "kit.run": "runs/twin"})
    assert differences(untouched, twin) == [], "two untouched runs differ: an operation is not deterministic"
    for at in (3, 17, 9, 12):
        with pytest.raises(Killed):
            training.train({**values, **EVERY_BATCH}, kill_at(at))
    again = training.train({**values, **EVERY_BATCH})
    assert differences(untouched, again) == []
    assert rows(untouched) == rows(again)
    assert untouched["scaler_state_dict"] == again["scaler_state_dict"] != {}
    assert untouched["loop"]["amp"] is True
