"""Exact resume on a GPU: every precision, task and memory layout, full memory, processes that share a device.

`KIT_TEST_DEVICE=cpu` runs the same tests on the CPU, but for what only a GPU has.
"""

from __future__ import annotations

import os
import signal
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.errors import Stopped
from tests.help import training
from tests.help.training import Killed, differences, kill_at, rows, stop_at
from tests.parallel import test_processes as processes
from tests.parallel.test_ranks import run_settings

DEVICE = os.environ.get("KIT_TEST_DEVICE", "0")
REAL = DEVICE != "cpu"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(REAL and not torch.cuda.is_available(), reason="no GPU here")]
only_gpu = pytest.mark.skipif(not REAL, reason="only a GPU has this")

EVERY_BATCH = {"kit.max_lost_s": 1e-6, "kit.max_cost_percent": 1e9}
GPU = {"device": DEVICE, "amp": REAL, "imgsz": 160 if REAL else 64, "plots": False}
LAYERED = {"nbs": 12, "warmup_epochs": 1, "mixup": 0.5, "copy_paste": 0.5}
YOLO26 = {"model": "yolo26n.yaml"}
# What torch names as not deterministic on CUDA in these trainings; docs/how-it-works.md says why there is none.
NOT_DETERMINISTIC: set[str] = set()


def settings(place: Path, task: str = "detect", **changes: Any) -> dict[str, Any]:
    values = training.settings(place, task, images=48, epochs=4, workers=2 * REAL, **LAYERED, **GPU)
    return {**values, "channels_last": REAL or None, **changes}


def killed_and_untouched(
    values: dict[str, Any], at: tuple[int, ...] = (3, 17, 9, 12)
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train twice untouched, which must not differ, and once with kills; return both ends."""
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    twin = training.train({**values, "kit.run": "runs/twin"})
    assert differences(untouched, twin) == [], "two untouched runs differ: an operation is not deterministic"
    for call in at:
        with pytest.raises(Killed):
            training.train({**values, **EVERY_BATCH}, kill_at(call))
    return untouched, training.train({**values, **EVERY_BATCH})


def assert_same(untouched: dict[str, Any], again: dict[str, Any]) -> None:
    assert differences(untouched, again) == []
    assert rows(untouched) == rows(again)
    assert untouched["scaler_state_dict"] == again["scaler_state_dict"]


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("detect", {}),
        ("segment", {}),
        ("pose", {}),
        ("obb", {}),
        ("classify", {}),
        ("detect", YOLO26),
        ("detect", {"amp": False}),
        ("detect", {"channels_last": False}),
        pytest.param("detect", {"amp": "bf16"}, marks=only_gpu),
        pytest.param("segment", {"amp": "bf16"}, marks=only_gpu),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())) or "default",
)
def test_killed_run_ends_bit_identical_on_a_gpu(place: Path, task: str, changes: dict[str, Any]) -> None:
    """Killed at several batches, with workers, accumulation and warm-up, a run ends with the bits of an untouched."""
    values = settings(place, task, **changes)
    untouched, again = killed_and_untouched(values)
    assert_same(untouched, again)
    assert untouched["loop"]["amp"] is bool(values["amp"])
    assert bool(untouched["scaler_state_dict"]) is (values["amp"] is True)


@only_gpu
@pytest.mark.parametrize(("first", "grows"), [(2.0**8, True), (2.0**60, False)])
def test_scale_that_has_grown_or_overflowed_goes_on(
    place: Path, monkeypatch: pytest.MonkeyPatch, first: float, grows: bool
) -> None:
    """A scale that doubles every three steps, and one that is halved until the gradients are finite."""
    scaler = partial(torch.amp.GradScaler, init_scale=first, growth_interval=3)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    untouched, again = killed_and_untouched(settings(place))
    assert_same(untouched, again)
    assert (untouched["scaler_state_dict"]["scale"] > first) is grows


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify"])
def test_operations_that_torch_calls_not_deterministic_are_those_that_are_named(
    place: Path, shown: list[str], task: str
) -> None:
    """Torch warns of each, because Ultralytics asks it to (`deterministic=True`)."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        training.train({**settings(place, task), "epochs": 1})
    named = {str(each.message).split()[0] for each in caught if "deterministic implementation" in str(each.message)}
    shown.append(f"{task}: not deterministic by torch's word: {', '.join(sorted(named)) or 'none'}")
    assert named <= NOT_DETERMINISTIC


@only_gpu
def test_full_memory_halves_the_batch_and_a_killed_run_ends_the_same(place: Path) -> None:
    """The device itself refuses: the process may have little more than the first batches need."""
    values = settings(place, batch=16, imgsz=640, epochs=2, channels_last=None)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    training.train({**values, "kit.run": "runs/probe", "epochs": 1})
    peak, total = torch.cuda.max_memory_allocated(), torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(0.75 * peak / total)
    try:
        untouched = training.train({**values, "kit.run": "runs/untouched"})
        assert untouched["loop"]["decided"]["batch"] < 16
        for call in (2, 5):
            with pytest.raises(Killed):
                training.train({**values, **EVERY_BATCH}, kill_at(call))
        assert_same(untouched, training.train({**values, **EVERY_BATCH}))
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_batch_that_was_estimated_is_kept(place: Path) -> None:
    """`batch=-1` is chosen at the start and is part of the checkpoint; a CPU takes Ultralytics' default."""
    values = settings(place, batch=-1, epochs=2)
    with pytest.raises(Stopped):
        training.train(values, stop_at(1))
    first = training.read(place / "working/runs/train/checkpoints/latest.pt")
    again = training.train(values)
    assert first["loop"]["decided"]["batch"] == again["loop"]["decided"]["batch"] > 0


def test_processes_that_share_a_gpu_give_the_bits_of_one(place: Path) -> None:
    """From two to one and back, a rank killed on the way: gloo, because NCCL takes no GPU twice."""
    values = run_settings(place, device=DEVICE, amp=REAL, **EVERY_BATCH)
    whole = processes.start(place, {**values, "kit.run": "runs/untouched"}, 2)
    assert whole.wait() == 0, whole.output()
    child = processes.start(place, values, 2)
    seen = processes.wait_for_step(child, processes.BATCHES)
    os.kill(processes.pids(seen)[1], signal.SIGKILL)
    assert child.wait() == 1
    with pytest.raises(Stopped):
        training.train({**values, "kit.processes": 1}, stop_at(6))
    child = processes.start(place, values, 2)
    assert child.wait() == 0, child.output()
    assert_same(training.read(place / "working/runs/untouched/checkpoints/latest.pt"), processes.latest(child))


def test_memory_that_is_full_in_one_process_is_agreed_on(place: Path) -> None:
    """Both halve the batch."""
    values = run_settings(place, device=DEVICE, amp=REAL)
    processes.variant(place, "Broken", values)
    assert "Out of memory: the epoch starts again with batch=4" in (place / "output.txt").read_text()


@only_gpu
def test_gradients_travel_by_nccl_as_they_are(tmp_path: Path) -> None:
    """One process alone in a group of NCCL's: what it sums is what it had, and its agreements hold."""
    import torch.distributed as dist

    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        sent = torch.randn(1 << 20, device="cuda")
        got = sent.clone()
        dist.all_reduce(got)
        assert torch.equal(sent, got)
    finally:
        dist.destroy_process_group()
