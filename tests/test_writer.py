"""Generations of checkpoints, and the interval between them."""

from __future__ import annotations

import errno
import time
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from fakes import FailingDisk, FullDisk
from samples import state

from kit import checkpoint
from kit.errors import StorageError
from kit.storage import Disk
from kit.writer import Writer


def step(path: Path) -> int:
    read = checkpoint.read(path)
    number = read["progress"]["global_step"]
    assert torch.equal(read["model_state_dict"]["weight"], torch.full((64,), float(number)))
    return int(number)


def steps(folder: Path) -> dict[str, int]:
    return {path.name: step(path) for path in folder.iterdir()}


class SlowDisk(Disk):
    """A disk that takes at least `seconds` to sync a file."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def sync(self, file: BinaryIO) -> None:
        time.sleep(self.seconds)
        super().sync(file)


def test_save_keeps_the_generation_before(tmp_path: Path) -> None:
    """`latest.pt` is the last one, `previous.pt` the one before, and there is no third."""
    writer = Writer(tmp_path / "checkpoints", 30, 1)
    assert writer.save(state(1)) == tmp_path / "checkpoints" / "latest.pt"
    assert steps(tmp_path / "checkpoints") == {"latest.pt": 1}
    for number in (2, 3):
        writer.save(state(number))
        assert steps(tmp_path / "checkpoints") == {"latest.pt": number, "previous.pt": number - 1}


def test_best_has_no_generation_before_and_leaves_the_others_alone(tmp_path: Path) -> None:
    """`best.pt` is replaced in one step."""
    writer = Writer(tmp_path, 30, 1)
    writer.save(state(1))
    for number in (2, 3):
        assert writer.save_best(state(number)) == tmp_path / "best.pt"
    assert steps(tmp_path) == {"latest.pt": 1, "best.pt": 3}


def test_disk_that_refuses_a_save_costs_no_checkpoint(tmp_path: Path) -> None:
    """Whichever call fails up to the rename, `latest.pt` stays what it was, and the next save succeeds."""
    good = FailingDisk()
    Writer(tmp_path / "good", 30, 1).save(state(1))
    Writer(tmp_path / "good", 30, 1, good).save(state(2))
    for at in range(1, good.calls.index("replace latest.pt") + 2):
        folder = tmp_path / str(at)
        Writer(folder, 30, 1).save(state(1))
        Writer(folder, 30, 1).save(state(2))
        writer = Writer(folder, 30, 1, FailingDisk(at, errno.EIO))
        with pytest.raises(StorageError):
            writer.save(state(3))
        after = steps(folder)
        assert after.pop("latest.pt") == 2
        assert after in ({"previous.pt": 1}, {"previous.pt": 2})
        writer.save(state(4))
        assert steps(folder) == {"latest.pt": 4, "previous.pt": 2}


def test_disk_that_refuses_the_best_leaves_the_old_best(tmp_path: Path) -> None:
    """A best model is replaced by a whole one or not at all."""
    Writer(tmp_path, 30, 1).save_best(state(1))
    with pytest.raises(StorageError):
        Writer(tmp_path, 30, 1, FullDisk(0)).save_best(state(2))
    assert steps(tmp_path) == {"best.pt": 1}


def test_refused_save_is_not_counted(tmp_path: Path) -> None:
    """The costs are those of the saves that were made."""
    writer = Writer(tmp_path, 30, 1, FailingDisk(1))
    with pytest.raises(StorageError):
        writer.save(state(1))
    assert writer.saves == 0


def test_interval_before_the_first_save_is_what_may_be_lost(tmp_path: Path) -> None:
    """Nothing is known of the cost yet."""
    assert Writer(tmp_path, 30, 1).interval_s == 30


def test_save_takes_its_time_from_what_may_be_lost(tmp_path: Path) -> None:
    """A kill during a save costs the interval and the save: both together stay within the bound."""
    writer = Writer(tmp_path, 30, 50)
    writer.saves, writer.held_s, writer.slowest_s = 2, 3.0, 2.0
    assert writer.interval_s == 28


def test_interval_grows_with_the_cost_of_a_save(tmp_path: Path) -> None:
    """One second per save at 1 % is a save every hundred seconds; where the two bounds conflict, the cost wins."""
    writer = Writer(tmp_path, 30, 1)
    intervals = []
    for seconds in (0.1, 1.0, 2.0, 10.0):
        writer.saves, writer.held_s, writer.slowest_s = 10, 10 * seconds, seconds
        intervals.append(writer.interval_s)
    assert intervals == [29.9, 100, 200, 1000]


def test_interval_comes_back_when_saves_get_cheaper(tmp_path: Path) -> None:
    """One slow save does not thin out the checkpoints of the rest of the run."""
    writer = Writer(tmp_path, 30, 1)
    writer.saves, writer.held_s, writer.slowest_s = 1, 10.0, 10.0
    assert writer.interval_s == 1000
    writer.saves, writer.held_s = 101, 20.0
    assert writer.interval_s < 30


def test_cost_is_measured_at_the_disk(tmp_path: Path) -> None:
    """What a save holds training for is counted, the wait for the disk included, and sets the interval."""
    writer = Writer(tmp_path, 1, 1, SlowDisk(0.05))
    writer.save(state(1))
    writer.save(state(2))
    assert writer.saves == 2
    assert writer.held_s >= 0.1
    assert writer.slowest_s >= 0.05
    assert writer.interval_s >= 5
    assert not writer.due()
    assert writer.cost_percent > 0


def test_save_is_due_when_the_interval_is_over(tmp_path: Path) -> None:
    """Not before the bound, and at once where nothing may be lost."""
    assert not Writer(tmp_path, 1e6, 1).due()
    writer = Writer(tmp_path, 1e-9, 1e12)
    writer.save(state(1))
    assert writer.due()
