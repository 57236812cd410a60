"""The kill sweep: runs that are killed again and again at random batches end with the bits of an untouched one.

Not covered: a machine that loses power; the kernel, which lives on here, keeps what was handed to it.
"""

from __future__ import annotations

import csv
import os
import random
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.help import training
from tests.help.pretrained import PUBLISHED
from tests.help.training import Child, differences, rows
from tests.process.test_launch import words

IMAGES, BATCH = 48, 4
BATCHES = IMAGES // BATCH  # per epoch
SETTINGS = {
    "batch": BATCH,
    "imgsz": 160,  # keeps a batch busy for longer than the killer needs to look
    "nbs": 3 * BATCH,  # gradients of up to three batches in flight
    "warmup_epochs": 1.5,
    "cos_lr": True,
    "mosaic": 1.0,
    "mixup": 0.5,
    "copy_paste": 0.5,
    "multi_scale": 0.3,
    "close_mosaic": 2,
}
EVERY_BATCH = {"kit.max_lost_s": 1e-6, "kit.max_cost_percent": 1e9}  # a checkpoint after every batch
STARTED = re.compile(r"Starting training from epoch (\d+)/\d+ \((?:batch )?(\w+)")


def test_run_killed_at_random_batches_ends_bit_identical(place: Path, shown: list[str]) -> None:
    """A run of three epochs that is killed four times ends with the tensors and the results of an untouched one."""
    sweep(place, shown, "detect", epochs=3, kills=4)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "kills"), [("detect", 3), ("segment", 10), ("pose", 3), ("obb", 3), ("classify", 3)])
def test_every_task_killed_at_random_batches_ends_bit_identical(
    place: Path, shown: list[str], task: str, kills: int
) -> None:
    """Kills all over six epochs change no bit, whatever the task; segment, which copy_paste acts on, gets ten."""
    sweep(place, shown, task, epochs=6, kills=kills)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_fine_tuned_model_killed_at_random_batches_ends_bit_identical(
    place: Path, shown: list[str], big: Callable[[str], Path], name: str
) -> None:
    """What people start from: a published file, here of 80 classes for each task, trained on three of their own."""
    task = PUBLISHED[name]
    model = big(name if task in ("detect", "segment") else f"{name}@80")
    sweep(place, shown, task, epochs=3, kills=5, model=str(model), imgsz=96)


def sweep(place: Path, shown: list[str], task: str, epochs: int, kills: int, **changes: Any) -> None:
    """Train once untouched and once with kills, compare the two, and leave a line to show."""
    values = training.settings(place, task, images=IMAGES, epochs=epochs, **{**SETTINGS, **changes})
    whole = Child(place, words(values, **{"kit.run": "runs/untouched"}))
    assert whole.wait() == 0, whole.output()
    places = kill_and_resume(place / "working", {**values, **EVERY_BATCH}, kills, random.Random(task))
    untouched, killed = place / "working/runs/untouched", place / "working/runs/train"
    one, other = (training.read(run / "checkpoints/latest.pt") for run in (untouched, killed))
    unequal = differences(one, other)
    same = not unequal and rows(one) == rows(other) and results(untouched) == results(killed)
    shown.append(
        f"{Path(values['model']).stem:13}  {epochs} epochs  {len(places) - 1:2} kills, resumed at epoch/batch "
        f"{' '.join(places[1:])}: " + ("the same bits" if same else "NOT THE SAME")
    )
    assert places[0] == "1/1"
    assert len(set(places)) == len(places) == kills + 1
    assert unequal == []
    assert rows(one) == rows(other)
    assert results(untouched) == results(killed)
    assert len(results(killed)) == epochs


def kill_and_resume(working: Path, values: dict[str, Any], kills: int, chance: random.Random) -> list[str]:
    """Kill a run so many times, each time further on, and let it end.

    Returns:
        The places, as epoch/batch, that the sessions started at, the beginning first.
    """
    last = (values["epochs"] - 1) * BATCHES  # the last epoch is for a killer that comes late
    targets = [chance.randrange(last * n // kills, last * (n + 1) // kills) for n in range(kills)]  # all over the run
    pid = 0
    for session, target in enumerate(targets):
        child = Child(working, words(values, workers=session % 3))
        pid = kill(child, max(target, child.step() + 1), pid, chance)
    child = Child(working, words(values))
    assert child.wait() == 0, child.output()
    return ["/".join(found) for found in STARTED.findall(child.output())]


def kill(child: Child, step: int, earlier: int, chance: random.Random) -> int:
    """Kill the training process some time after it saved a checkpoint at this step or beyond; return its id.

    Args:
        child: The session.
        step: In batches since the beginning of the run; further than where the session starts.
        earlier: The process that was killed last: until the new one writes, the status is still its.
        chance: Decides how long to wait.
    """
    pid: int = child.wait_for(lambda status: status.get("pid", earlier) != earlier and child.step() >= step)["pid"]
    time.sleep(chance.uniform(0, 0.1))
    os.kill(pid, signal.SIGKILL)
    assert child.wait() == 1, child.output()
    return pid


def results(run: Path) -> list[dict[str, str]]:
    """Return the rows of results.csv as they stand there, without the clock."""
    with open(run / "results.csv") as file:
        return [{name: text for name, text in row.items() if name != "time"} for row in csv.DictReader(file)]
