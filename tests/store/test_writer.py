"""Generations of checkpoints, the thread that writes them, and the interval between them."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch

from kit.errors import StorageError
from kit.store import checkpoint
from kit.store.disk import Disk
from kit.store.snapshot import StagingBuffer
from kit.store.writer import Writer
from tests.chaos import kills
from tests.help.fakes import FailingDisk, FullDisk
from tests.help.samples import state


def step(path: Path) -> int:
    read = checkpoint.read(path)
    number = read["progress"]["global_step"]
    assert torch.equal(read["model_state_dict"]["weight"], torch.full((64,), float(number)))
    return int(number)


def steps(folder: Path) -> dict[str, int]:
    return {path.name: step(path) for path in folder.iterdir()}


def save(writer: Writer, number: int, best: bool = False, wait: bool = True) -> None:
    """Save a checkpoint after so many batches."""
    whole = state(number)

    def build(copies: dict[str, list[torch.Tensor]]) -> dict[str, Any]:
        weight, count = copies["model_state_dict"]
        return {**whole, "model_state_dict": {"weight": weight, "count": count}}

    sections = {"model_state_dict": list(whole["model_state_dict"].values())}
    writer.save(sections, build, best={"best_map": number} if best else None, wait=wait)


class SlowDisk(Disk):
    """A disk whose files are synced only while `open_door` is set."""

    def __init__(self) -> None:
        self.open_door = threading.Event()

    def sync(self, file: BinaryIO) -> None:
        assert self.open_door.wait(60)
        super().sync(file)


@pytest.fixture
def slow(tmp_path: Path) -> Any:
    """A writer whose disk is stuck until `disk.open_door` is set."""
    writer = Writer(tmp_path, 30, 1, disk=SlowDisk())
    yield writer
    writer.disk.open_door.set()
    writer.close()


def test_save_keeps_the_generation_before(tmp_path: Path) -> None:
    """`latest.pt` is the last one, `previous.pt` the one before, and there is no third."""
    writer = Writer(tmp_path / "checkpoints", 30, 1)
    save(writer, 1)
    assert steps(tmp_path / "checkpoints") == {"latest.pt": 1}
    for number in (2, 3):
        save(writer, number)
        assert steps(tmp_path / "checkpoints") == {"latest.pt": number, "previous.pt": number - 1}


def test_copy_of_a_gpu_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new best model and the newest checkpoint are made of one."""
    own = StagingBuffer.copy
    monkeypatch.setattr(StagingBuffer, "copy", lambda *given: (own(*given)[0], lambda: 100.0))
    writer = Writer(tmp_path, 30, 1)
    save(writer, 1, best=True)
    assert 100 <= writer.cpu_s < 200
    writer.close()


def test_new_best_is_written_beside_the_latest(tmp_path: Path) -> None:
    """From the same snapshot, and it is there when the call returns."""
    writer = Writer(tmp_path, 30, 1)
    save(writer, 1)
    save(writer, 2, best=True, wait=False)
    assert step(tmp_path / "best.pt") == 2
    save(writer, 3)
    assert steps(tmp_path) == {"latest.pt": 3, "previous.pt": 2, "best.pt": 2}


def test_training_does_not_wait_for_the_disk(slow: Writer, tmp_path: Path) -> None:
    """A save returns when the copy is made; what training does to the tensors afterwards is not in the file."""
    weight = torch.full((64,), 5.0)
    whole = state(5)

    def build(copies: dict[str, list[torch.Tensor]]) -> dict[str, Any]:
        return {**whole, "model_state_dict": {"weight": copies["model_state_dict"][0]}}

    slow.save({"model_state_dict": [weight]}, build)
    weight.zero_()
    assert not (tmp_path / "latest.pt").exists()
    slow.disk.open_door.set()  # type: ignore[attr-defined]
    slow.close()
    assert step(tmp_path / "latest.pt") == 5


def test_save_within_an_epoch_is_skipped_while_the_writer_is_busy(slow: Writer) -> None:
    """Each such save counts once, however often it is asked for."""
    slow.max_lost_s, slow.max_cost_percent = 1e-9, 1e12
    assert slow.due()
    save(slow, 1, wait=False)
    assert not slow.due()
    assert not slow.due()
    assert slow.skipped == 1
    slow.disk.open_door.set()  # type: ignore[attr-defined]
    save(slow, 2)
    assert slow.due()
    assert (slow.saves, slow.skipped) == (2, 1)


def test_saves_that_may_not_be_skipped_wait_for_a_slot(slow: Writer, tmp_path: Path) -> None:
    """Two snapshots fit; the third waits until the first is on the disk, and none is lost."""
    save(slow, 1, wait=False)
    save(slow, 2, wait=False)
    third = threading.Thread(target=save, args=(slow, 3))
    third.start()
    third.join(0.3)
    assert third.is_alive()
    slow.disk.open_door.set()  # type: ignore[attr-defined]
    third.join(60)
    assert slow.saves == 3
    assert steps(tmp_path) == {"latest.pt": 3, "previous.pt": 2}


def test_position_is_that_of_the_newest_file_on_the_disk(slow: Writer) -> None:
    """And not of one that is still being written."""
    save(slow, 11, wait=False)
    assert slow.position is None
    slow.disk.open_door.set()  # type: ignore[attr-defined]
    slow.close()
    assert slow.position is not None
    assert (slow.position["epoch"], slow.position["batch"]) == (1, 1)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_disk_that_refuses_a_save_costs_no_checkpoint(tmp_path: Path, number: int) -> None:
    """Whichever call fails up to the rename, `latest.pt` stays what it was, and the next save succeeds."""
    good = FailingDisk()
    save(Writer(tmp_path / "good", 30, 1), 1)
    save(Writer(tmp_path / "good", 30, 1, disk=good), 2)
    for at in range(1, good.calls.index("replace latest.pt") + 2):
        folder = tmp_path / str(at)
        save(Writer(folder, 30, 1), 1)
        save(Writer(folder, 30, 1), 2)
        writer = Writer(folder, 30, 1, disk=FailingDisk(at, number))
        with pytest.raises(StorageError):
            save(writer, 3)
        assert writer.problem
        after = steps(folder)
        assert after.pop("latest.pt") == 2
        assert after in ({"previous.pt": 1}, {"previous.pt": 2})
        save(writer, 4)
        assert not writer.problem
        assert steps(folder) == {"latest.pt": 4, "previous.pt": 2}


def test_writer_knows_after_any_error_what_is_on_the_disk(tmp_path: Path) -> None:
    """Whichever call of a save fails: it tells the steps of the best.pt and latest.pt that are there then."""
    good = FailingDisk()
    save(Writer(tmp_path / "good", 30, 1, disk=good), 1, best=True)
    for at in range(1, len(good.calls) + 1):
        writer = Writer(tmp_path / str(at), 30, 1)
        save(writer, 1, best=True)
        writer.disk = FailingDisk(at, errno.EIO)
        with suppress(StorageError):
            save(writer, 2, best=True)
        writer.wait()
        there = steps(tmp_path / str(at))
        assert writer.position is not None
        assert (writer.best_map, writer.position["global_step"]) == (there["best.pt"], there["latest.pt"]), at


def test_refusal_in_the_background_is_told_and_ends_nothing(tmp_path: Path) -> None:
    """The training thread reads it from `problem`; the next save may work."""
    writer = Writer(tmp_path, 30, 1, disk=FailingDisk(1))
    save(writer, 1, wait=False)
    save(writer, 2, wait=False)
    save(writer, 3, wait=False)
    writer.close()
    assert writer.saves == 2
    assert steps(tmp_path) == {"latest.pt": 3, "previous.pt": 2}


def test_fault_of_the_kit_in_the_background_is_not_swallowed(tmp_path: Path) -> None:
    """What is no refusal of the disk comes out at one of the next saves."""

    def build(copies: object) -> dict[str, Any]:
        raise KeyError("a fault")

    writer = Writer(tmp_path, 30, 1)
    writer.save({}, build)
    save(writer, 2)
    with pytest.raises(KeyError, match="a fault"):
        save(writer, 3)


def test_disk_without_room_is_not_written_to(tmp_path: Path) -> None:
    """Free space is looked at before each write, and a best model is replaced by a whole one or not at all."""
    save(Writer(tmp_path, 30, 1), 1, best=True)
    with pytest.raises(StorageError, match="MB free"):
        save(Writer(tmp_path, 30, 1, disk=FullDisk(0)), 2, best=True)
    assert steps(tmp_path) == {"latest.pt": 1, "best.pt": 1}


def test_folder_that_was_deleted_comes_back(tmp_path: Path) -> None:
    """A user tidies up while training runs."""
    writer = Writer(tmp_path / "checkpoints", 30, 1)
    save(writer, 1)
    (tmp_path / "checkpoints/latest.pt").unlink()
    (tmp_path / "checkpoints").rmdir()
    save(writer, 2)
    assert steps(tmp_path / "checkpoints") == {"latest.pt": 2}


def test_interval_before_the_first_save_is_what_may_be_lost(tmp_path: Path) -> None:
    """Nothing is known of the cost yet."""
    assert Writer(tmp_path, 30, 1).interval_s == 30


def test_save_takes_its_time_from_what_may_be_lost(tmp_path: Path) -> None:
    """A kill during a save costs the interval and the save: both together stay within the bound."""
    writer = Writer(tmp_path, 30, 50)
    writer.recent = [(1.0, 1.0), (1.0, 2.0)]
    assert writer.interval_s == 28
    assert writer.lost_work_bound_s == 30


def test_interval_grows_with_the_cost_of_a_save(tmp_path: Path) -> None:
    """One second per save at 1 % is a save every hundred seconds; where the two bounds conflict, the cost wins."""
    writer = Writer(tmp_path, 30, 1)
    intervals = []
    for seconds in (0.1, 1.0, 2.0, 10.0):
        writer.recent = [(seconds, 3.0)] * 4
        intervals.append(writer.interval_s)
    assert intervals == [27, 100, 200, 1000]


def test_interval_comes_back_when_saves_get_cheaper(tmp_path: Path) -> None:
    """One slow save does not thin out the checkpoints of the rest of the run."""
    writer = Writer(tmp_path, 30, 1)
    writer.recent = [(10.0, 20.0)]
    assert writer.interval_s == 1000
    for number in range(8):
        save(writer, number)
    writer.held_s = writer.cpu_s = 0.0
    assert 29 < writer.interval_s < 30


def test_saves_that_may_not_be_skipped_are_paid_for_by_the_others(tmp_path: Path) -> None:
    """A debt thins out the saves between epochs, to a tenth and no further."""
    writer = Writer(tmp_path, 1e-9, 1)
    writer.recent = [(0.1, 0.1)]
    intervals = []
    for spent in (0.0, 0.2, 5.0):
        writer.held_s = spent
        intervals.append(round(writer.interval_s))
    assert intervals == [10, 30, 100]


def test_save_before_a_pause_is_due_as_soon_as_it_may_cost(tmp_path: Path) -> None:
    """Nothing can be saved during validation: what was done since the last save would be lost with it."""
    writer = Writer(tmp_path, 30, 1)
    assert writer.due(pause=True)
    writer.recent = [(1.0, 1.0)]
    assert not writer.due(pause=True)


def test_wait_for_the_disk_counts_as_cost_where_training_waits(tmp_path: Path) -> None:
    """And what the thread does in the background counts as its CPU time, not as the time that the disk took."""
    writer = Writer(tmp_path, 1, 1, disk=SlowDisk())

    def later(seconds: float) -> Callable[[], None]:
        def open_door() -> None:
            time.sleep(seconds)
            writer.disk.open_door.set()  # type: ignore[attr-defined]

        return open_door

    opener = threading.Thread(target=later(0.5))
    opener.start()
    save(writer, 1)
    opener.join()
    assert writer.held_s >= 0.4
    held = writer.held_s
    writer.disk.open_door.clear()  # type: ignore[attr-defined]
    opener = threading.Thread(target=later(0.5))
    opener.start()
    save(writer, 2, wait=False)
    assert writer.held_s - held < 0.4
    opener.join()
    writer.close()
    assert 0 < writer.cpu_s < 0.4
    assert writer.latency_s >= 0.4
    assert writer.save_s < 0.4
    assert set(writer.report()) == {"saves", "skipped", "cost_percent", "lost_work_bound_s"}


def test_save_is_due_when_the_interval_is_over(tmp_path: Path) -> None:
    """Not before the bound, and at once where nothing may be lost."""
    assert not Writer(tmp_path, 1e6, 1).due()
    writer = Writer(tmp_path, 1e-9, 1e12)
    save(writer, 1)
    assert writer.due()


def test_kills_during_saves_leave_a_good_checkpoint_each(tmp_path: Path) -> None:
    """SIGKILL at random times, thirty times over one folder; `make chaos` does it a thousand times."""
    _, torn = kills.sweep(tmp_path, kills=30)
    assert torn > 0, "a kill must have fallen into a save"
