"""Faults of the disk and of the clock, end to end: training goes on, and what is on the disk stays good.

Disks are real small ones (tmpfs) that a file fills up; where one has to fail in a certain call, a fake is put in.

Not covered: a disk that acknowledges an fsync and loses the data all the same.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import math
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from kit.errors import Stopped, StorageError
from kit.run import status
from kit.store import checkpoint
from kit.store.writer import Writer
from kit.yolo import models
from tests.help import samples, training
from tests.help.fakes import FailingDisk, SickDisk
from tests.help.training import STEPS, acting, differences, kill_at, rows, stop_at
from tests.yolo.test_trainer import EVERY_STEP, run

LOW = 32 << 20  # bytes left on a disk that is full for checkpoints, which leave a reserve, but not for small files
AGAIN = "Saving works again."


@pytest.fixture
def small(place: Path) -> Iterator[Path]:
    """The working folder, on a disk of its own of 96 MB."""
    folder = place / "working"
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(folder)], check=False).returncode:
        pytest.skip("no tmpfs here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training does not wait for room."""
    monkeypatch.setattr("kit.store.full.WAIT_S", 0.0)


def crammed(small: Path) -> Callable[[], None]:
    """Return what fills a disk up for good: there is nothing left in the run folder that could give way."""

    def cram() -> None:
        (small / "runs/full/checkpoints/previous.pt").unlink(missing_ok=True)
        fill(small)

    return cram


def fill(folder: Path, left: int = 0) -> None:
    """Fill a disk up, with one file that only grows, until so many bytes are left; others may write to it too."""
    with contextlib.suppress(OSError), open(folder / "filler", "ab", buffering=0) as file:
        while (room := shutil.disk_usage(folder).free - left) > 0:
            file.write(bytes(min(room, 1 << 20)))


def empty(folder: Path) -> None:
    """Make room again."""
    (folder / "filler").unlink()


def step(path: Path) -> int:
    """Read a checkpoint, which must be a good one, and return its batches since the beginning of the run."""
    number: int = checkpoint.read(path, load=models.open_checkpoint)["progress"]["global_step"]
    return number


def assert_same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert differences(one, other) == []
    assert rows(one) == rows(other)


def assert_finished(folder: Path, epochs: int) -> None:
    """The status tells of the end, and of the checkpoint that was written there."""
    told = status.read(folder)
    assert told["state"] == "finished"
    assert told["checkpoint"]["epoch"] == epochs


def warnings(said: str) -> list[str]:
    return [line for line in said.splitlines() if line.startswith("WARNING:")]


# --- a full disk


@pytest.mark.parametrize("left", [0, LOW])
def test_full_disk_is_said_once_and_training_goes_on(
    small: Path, capsys: pytest.CaptureFixture[str], left: int
) -> None:
    """Full over three epochs: the last checkpoint stays good, and with room again the run ends as an untouched one."""
    values = training.settings(small.parent, epochs=6, **EVERY_STEP)
    untouched = training.train(run(values, "untouched"))
    latest = small / "runs/full/checkpoints/latest.pt"
    capsys.readouterr()
    seen: list[int] = []

    def look() -> None:
        fill(small, left)  # what a failed save gave back
        seen.append(step(latest))

    calls: dict[int, Callable[[], object]] = {n: lambda: fill(small, left) for n in range(STEPS + 2, 2 * STEPS + 1)}
    calls |= dict.fromkeys(range(2 * STEPS + 1, 4 * STEPS + 2), look) | {4 * STEPS + 2: lambda: empty(small)}
    again = training.train(run(values, "full"), acting(calls))
    said = capsys.readouterr().out
    assert len(warnings(said)) == 1, warnings(said)
    assert "are needed. Training goes on, and saving is tried again. Delete files that you do not need." in said
    assert said.count(AGAIN) == 1
    assert len(set(seen)) == 1, "nothing was written while the disk was full"
    assert 3 <= seen[0] <= 5
    assert_finished(small / "runs/full", epochs=6)
    assert_same(untouched, again)


@pytest.mark.parametrize("left", [0, LOW])
@pytest.mark.parametrize("end", [False, True])
def test_last_save_takes_the_room_of_what_can_be_made_again(small: Path, left: int, end: bool) -> None:
    """A stop, and the end of a run, on a disk that is full: the older generation and second names give way."""
    values = training.settings(small.parent, nbs=4, **EVERY_STEP)
    untouched = training.train(run(values, "untouched"))
    folder, second = small / "runs/full/checkpoints", small / "runs/full/downloads/latest-e001-12345678.pt"
    at = 2 * STEPS + 3 if end else STEPS + 3

    def prepare() -> None:
        second.parent.mkdir()
        os.link(folder / "latest.pt", second)
        fill(small, left)

    with contextlib.nullcontext() if end else pytest.raises(Stopped):
        training.train(run(values, "full"), acting({at - 1: prepare}, (lambda: "") if end else stop_at(at)))
    assert step(folder / "latest.pt") == (9 if end else 6)
    assert second.exists() is (left > 0), "no more than is needed gives way"
    empty(small)
    assert_same(untouched, training.train(run(values, "full")))


def test_only_good_checkpoint_never_gives_way(small: Path, impatient: None) -> None:
    """A run that goes on from previous.pt, with latest.pt set aside: it stays until there is another one."""
    values = training.settings(small.parent, **EVERY_STEP)
    with pytest.raises(Stopped):
        training.train(run(values, "full"), stop_at(STEPS + 3))
    folder = small / "runs/full/checkpoints"
    flip_a_bit(folder / "latest.pt")
    with pytest.raises((Stopped, StorageError)):
        training.train(run(values, "full"), acting({1: lambda: fill(small)}, stop_at(2)))
    assert step(folder / "previous.pt") in (4, 5)


def test_stop_on_a_crammed_disk_saves_into_scratch(
    small: Path, capsys: pytest.CaptureFixture[str], impatient: None
) -> None:
    """What was trained is not lost: the warning names the file, and the next start goes on from there."""
    values = training.settings(small.parent, **EVERY_STEP)
    untouched = training.train(run(values, "untouched"))
    latest = small / "runs/full/checkpoints/latest.pt"
    capsys.readouterr()
    with pytest.raises(Stopped) as caught:
        training.train(run(values, "full"), acting({STEPS + 2: crammed(small)}, stop_at(STEPS + 3)))
    assert caught.value.exit_code == 75
    said = capsys.readouterr().out
    (rescued,) = (small.parent / "scratch").glob("*/rescued/*/latest.pt")
    assert f"The checkpoint is in '{rescued}', which ends with the session" in said
    assert re.search(r"Stopped in epoch 2/3, batch 3/3, and saved until epoch 1/3, batch [12]/3 \(", said)
    assert 3 <= step(latest) <= 5
    assert step(rescued) == 6
    empty(small)
    again = training.train(run(values, "full"))
    assert f"Resuming from checkpoint: {rescued}\n" in capsys.readouterr().out
    assert_same(untouched, again)


def test_disk_that_is_crammed_at_the_end_is_an_error(small: Path, impatient: None) -> None:
    """A run whose last checkpoint is not on the disk has not ended; with room, running again ends it."""
    values = training.settings(small.parent, **EVERY_STEP)
    untouched = training.train(run(values, "untouched"))
    with pytest.raises(StorageError, match=r"The checkpoint is in .*Make room and run again") as caught:
        training.train(run(values, "full"), acting({2 * STEPS + 3: crammed(small)}))
    assert caught.value.exit_code == 2
    assert 3 <= step(small / "runs/full/checkpoints/latest.pt") < 9
    assert status.read(small / "runs/full").get("state") != "finished"
    empty(small)
    assert_same(untouched, training.train(run(values, "full")))


def test_end_waits_for_room(small: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody deletes something meanwhile: the run ends as if nothing had been."""
    values = training.settings(small.parent, **EVERY_STEP)
    untouched = training.train(run(values, "untouched"))
    monkeypatch.setattr("kit.yolo.saving.time.sleep", lambda seconds: empty(small))
    again = training.train(run(values, "full"), acting({2 * STEPS + 3: crammed(small)}))
    assert "Waiting for room. Make room; a stop gives up." in capsys.readouterr().out
    assert_same(untouched, again)


def test_second_stop_gives_up_waiting_for_room(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever presses the button again wants to leave."""
    values, asked = training.settings(small.parent, **EVERY_STEP), ["once"]
    monkeypatch.setattr("kit.store.full.WAIT_S", math.inf)
    monkeypatch.setattr("kit.yolo.saving.time.sleep", lambda seconds: asked.append("twice"))
    stop = stop_at(STEPS + 3)
    with pytest.raises(Stopped, match="once"):
        training.train(run(values, "full"), acting({STEPS + 2: crammed(small)}, lambda: stop() and asked[-1]))


@pytest.mark.parametrize("epochs", [1, 2])
def test_disk_that_is_full_in_the_first_epoch_is_no_traceback(
    small: Path, capsys: pytest.CaptureFixture[str], impatient: None, epochs: int
) -> None:
    """There is no first best.pt; with room again the next validation writes one."""
    values = training.settings(small.parent, epochs=epochs)
    untouched = training.train(run(values, "untouched"))
    room = {STEPS + 2: lambda: empty(small)}
    with pytest.raises(StorageError) if epochs == 1 else contextlib.nullcontext():
        training.train(run(values, "full"), acting({2: lambda: fill(small)} | room))
    assert len(warnings(capsys.readouterr().out)) == 1
    if epochs == 1:
        empty(small)
    assert_same(untouched, training.train(run(values, "full")))
    assert step(small / "runs/full/checkpoints/best.pt") == 3 * epochs


def test_kill_while_the_disk_is_full_costs_no_more_than_the_older_checkpoint(small: Path) -> None:
    """Half-written files go at the next start, and the run ends with the same bits."""
    values = training.settings(small.parent, **EVERY_STEP)
    untouched = training.train(run(values, "untouched"))
    with pytest.raises(training.Killed):
        training.train(run(values, "full"), acting({STEPS + 1: lambda: fill(small)}, kill_at(2 * STEPS + 2)))
    folder = small / "runs/full/checkpoints"
    (folder / ".latest.pt.1.tmp").write_bytes(b"")
    empty(small)
    assert_same(untouched, training.train(run(values, "full")))
    assert sorted(path.name for path in folder.iterdir()) == ["best.pt", "latest.pt", "previous.pt"]


def test_full_disk_that_takes_no_log_does_not_end_training(small: Path) -> None:
    """The log lies on the same disk: lines that it has no room for are lost, and nothing else is."""
    values = training.settings(small.parent, epochs=40, val=False, **EVERY_STEP)
    untouched = training.train(run(values, "untouched"))
    child = training.start(small.parent, values)
    child.wait_for(lambda _: child.step("working/runs/train") >= 6)
    end = time.monotonic() + 1
    while time.monotonic() < end:
        fill(small)
        with contextlib.suppress(OSError), open(small / "runs/train/train.log", "ab", buffering=0) as log:
            while True:  # the room in its last page
                log.write(b".")
        time.sleep(0.02)
    assert child.process.poll() is None, child.output()
    empty(small)
    assert child.wait() == 0, child.output()
    assert AGAIN in child.output()
    assert_same(untouched, training.read(small / "runs/train/checkpoints/latest.pt"))


def test_disk_that_is_full_from_the_start_exits_2(small: Path) -> None:
    """Not even the log has room, and the user is told all the same."""
    values = training.settings(small.parent)
    fill(small)
    child = training.start(small.parent, values)
    assert child.wait() == 2, child.output()
    assert "Delete files that you do not need." in child.output()
    assert "Traceback" not in child.output()


# --- a disk that fails, a folder that goes away or is read-only


@pytest.mark.parametrize("call", ["open", "sync", "link", "replace previous.pt", "replace latest.pt", "sync_folder"])
def test_failing_disk_is_said_once_and_saving_comes_back(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """Whichever call returns EIO for an epoch, latest.pt stays good and the run ends as an untouched one."""
    values = training.settings(place, epochs=4, **EVERY_STEP)
    untouched = training.train(run(values, "untouched"))
    disk, latest = SickDisk(call), place / "working/runs/sick/checkpoints/latest.pt"
    monkeypatch.setattr("kit.run.run.Writer", functools.partial(Writer, disk=disk))
    capsys.readouterr()
    seen: list[int] = []
    look = {n: lambda: seen.append(step(latest)) for n in range(STEPS + 3, 2 * STEPS + 3)}
    turn = {STEPS + 2: lambda: setattr(disk, "sick", True), 2 * STEPS + 3: lambda: setattr(disk, "sick", False)}
    again = training.train(run(values, "sick"), acting(look | turn))
    said = capsys.readouterr().out
    assert len(warnings(said)) == 1, warnings(said)
    assert "latest.pt' could not be written: Input/output error." in said
    assert said.count(AGAIN) == 1
    assert seen == sorted(seen)
    assert sorted(path.name for path in latest.parent.iterdir()) == ["best.pt", "latest.pt", "previous.pt"]
    assert_same(untouched, again)


def test_best_model_that_cannot_be_read_at_the_end_leaves_the_final_evaluation_to_the_next_start(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk fails when Ultralytics opens best.pt, after it was found good: a sentence, and nothing is lost."""
    values = run(training.settings(place), "unread")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO), "best.pt")

    with monkeypatch.context() as patch:
        patch.setattr("ultralytics.nn.tasks.load_checkpoint", refuse)
        with pytest.raises(StorageError, match=r"left to the next start: 'best.pt' could not be read: Input/output"):
            training.train(values)
    end = training.read(place / "working/runs/unread/checkpoints/latest.pt")
    again = training.train(values)
    assert_same(end, again)
    assert status.read(place / "working/runs/unread")["state"] == "finished"


def test_best_model_that_is_there_in_spite_of_an_error_is_not_replaced_by_a_worse_one(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder cannot be synced once, just after the rename of best.pt in epoch 2; epoch 3 is better than epoch 1."""
    found = [0.5, 0.7, 0.6]
    monkeypatch.setattr("kit.yolo.loop.Resumable.current_map", lambda self: found[self.epoch])

    class Once(FailingDisk):
        def sync_folder(self, folder: Path) -> None:
            if self.calls[-1] == "replace best.pt" and self.calls.count("replace best.pt") == 2:
                self.fail()
            super().sync_folder(folder)

    monkeypatch.setattr("kit.run.run.Writer", functools.partial(Writer, disk=Once(0, errno.EIO)))
    training.train(run(training.settings(place), "once"))
    best = checkpoint.read(place / "working/runs/once/checkpoints/best.pt", load=models.open_checkpoint)
    assert (best["epoch"], best["best_map"]) == (2, 0.7)


@pytest.mark.parametrize("saving", [{}, EVERY_STEP], ids=["by the clock", "every batch"])
@pytest.mark.parametrize("at", [2, STEPS + 3, 2 * STEPS + 3])
def test_run_folder_that_is_deleted_comes_back(place: Path, at: int, saving: dict[str, float]) -> None:
    """Deleted in the first, second or last epoch: at the end all that a run leaves is there, with the same bits."""
    values = training.settings(place, **saving)
    untouched = training.train(run(values, "untouched"))
    folder = place / "working/runs/deleted"

    def delete() -> None:
        while folder.exists():
            shutil.rmtree(folder, ignore_errors=True)  # the writer may be at work in it

    again = training.train(run(values, "deleted"), acting({at: delete}))
    assert_same(untouched, again)
    assert step(folder / "checkpoints/latest.pt") == 9
    assert step(folder / "checkpoints/best.pt") in (3, 6, 9)
    assert len((folder / "results.csv").read_text().splitlines()) == 1 + 3
    assert_finished(folder, epochs=3)


def test_launcher_outlives_the_run_folder(place: Path) -> None:
    """Its log went with the folder; what becomes of training is said all the same, without a traceback."""
    child = training.start(place, training.settings(place, epochs=1000, val=False))
    seen = child.wait_for(lambda status: status.get("completed", 0) >= 1, "working/runs/train")
    os.kill(seen["pid"], signal.SIGSTOP)  # so that it does not make the folder anew
    shutil.rmtree(place / "working/runs")
    os.kill(seen["pid"], signal.SIGKILL)
    assert child.wait() == 1, child.output()
    assert "The training process was ended by SIGKILL" in child.output()
    assert "Traceback" not in child.output()


@pytest.mark.parametrize("known", [True, False])
def test_read_only_working_folder_exits_2(small: Path, known: bool) -> None:
    """One sentence that says what to do, whether the run folder is there already or not."""
    values = training.settings(small.parent)
    if known:
        (small / "runs/train").mkdir(parents=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    child = training.start(small.parent, values)
    assert child.wait() == 2, child.output()
    said = child.output().splitlines()
    assert len(said) == 1, said
    assert said[0].startswith(f"error: The folder '{small / 'runs/train'}' cannot be written: the folder is read-only")


# --- a clock that goes backwards


@pytest.mark.parametrize("ahead", ["latest.pt", "previous.pt"])
def test_dates_do_not_decide_between_checkpoints(place: Path, capsys: pytest.CaptureFixture[str], ahead: str) -> None:
    """One is dated ten days ahead and the other in 1970: the one with more steps is taken, and no age is negative."""
    values = training.settings(place, **EVERY_STEP)
    untouched = training.train(run(values, "untouched"))
    with pytest.raises(Stopped):
        training.train(run(values, "dated"), stop_at(STEPS + 3))
    folder = place / "working/runs/dated/checkpoints"
    assert step(folder / "latest.pt") > step(folder / "previous.pt")
    for name in ("latest.pt", "previous.pt"):
        date(folder / name, time.time() + 864000 if name == ahead else 0.0)
    capsys.readouterr()
    again = training.train(run(values, "dated"))
    age = re.search(rf"Found checkpoint: {folder / 'latest.pt'} .*saved (\S+) \w+ ago", capsys.readouterr().out)
    assert age is not None
    assert float(age[1]) >= 0
    assert_same(untouched, again)


def date(path: Path, when: float) -> None:
    """Have a checkpoint, and its file, say that it was saved then."""
    state = training.read(path)
    state["progress"]["saved"] = when
    samples.save(path, state)
    os.utime(path, (when, when))


def test_clock_that_is_set_back_while_training_changes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Set back by an hour in epoch 2, and again in the next session: same bits, and times that only grow."""
    values = training.settings(place, epochs=4, **EVERY_STEP)
    untouched = training.train(run(values, "untouched"))
    real = time.time

    def set_back(hours: int) -> None:
        monkeypatch.setattr(time, "time", lambda: real() - 3600 * hours)

    with pytest.raises(Stopped):
        training.train(run(values, "back"), acting({STEPS + 2: lambda: set_back(1)}, stop_at(2 * STEPS + 2)))
    state = training.read(place / "working/runs/back/checkpoints/latest.pt")
    assert 0 <= state["progress"]["elapsed_s"] < 600
    again = training.train(run(values, "back"), acting({2: lambda: set_back(2)}))
    times = [row["time"] for row in again["history"]]
    assert 0 <= times[0] < times[1] < times[2] < times[3] < 600
    assert " -" not in capsys.readouterr().out, "an epoch takes no negative time"
    assert_same(untouched, again)


# --- damaged checkpoints


class Halfway(NamedTuple):
    """A run that was stopped in epoch 2, and what it would have become."""

    values: dict[str, Any]
    folder: Path
    untouched: dict[str, Any]


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> Halfway:
    """One for all classes of damage; a test trains on in a copy."""
    folder = tmp_path_factory.mktemp("halfway")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("working", "input", "scratch"):
            (folder / name).mkdir()
            patch.setenv(f"KIT_{name.upper()}", str(folder / name))
        values = training.settings(folder, **EVERY_STEP)
        untouched = training.train(run(values, "untouched"))
        with pytest.raises(Stopped):
            training.train(values, stop_at(STEPS + 3))
    return Halfway(values, folder / "working/runs/train", untouched)


def cut_to_nothing(path: Path) -> None:
    os.truncate(path, 0)


def cut_in_the_middle(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def cut_by_a_byte(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def zero_a_page(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    middle = len(raw) // 2 // 4096 * 4096
    raw[middle : middle + 4096] = bytes(4096)
    path.write_bytes(raw)


def flip_a_bit(path: Path) -> None:
    samples.flip_weights(path)


def make_noise(path: Path) -> None:
    path.write_bytes(random.Random(0).randbytes(path.stat().st_size))


DAMAGES = [cut_to_nothing, cut_in_the_middle, cut_by_a_byte, zero_a_page, flip_a_bit, make_noise]


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_latest_costs_one_generation(
    place: Path, halfway: Halfway, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    """previous.pt is used, latest.pt kept aside with the reason printed, and the end is that of an untouched run."""
    folder = shutil.copytree(halfway.folder, place / "working/runs/train") / "checkpoints"
    before = (folder / "latest.pt").read_bytes()
    damage(folder / "latest.pt")
    damaged = (folder / "latest.pt").read_bytes()
    assert damaged != before
    again = training.train(halfway.values)
    said = capsys.readouterr().out
    assert re.search(rf"WARNING: '{folder / 'latest.pt'}' (is damaged: |is not a whole checkpoint: ).+\.\n", said)
    assert "It was set aside as latest.pt.bad\n" in said
    assert f"Resuming from checkpoint: {folder / 'previous.pt'}\n" in said
    assert (folder / "latest.pt.bad").read_bytes() == damaged
    assert_same(halfway.untouched, again)


@pytest.mark.parametrize("best", [True, False])
def test_two_damaged_checkpoints_leave_the_best_one(
    place: Path, halfway: Halfway, capsys: pytest.CaptureFixture[str], best: bool
) -> None:
    """best.pt holds a whole checkpoint; where it is damaged too, the run starts anew, and nothing is thrown away."""
    folder = shutil.copytree(halfway.folder, place / "working/runs/train") / "checkpoints"
    cut_in_the_middle(folder / "latest.pt")
    flip_a_bit(folder / "previous.pt")
    if not best:
        cut_in_the_middle(folder / "best.pt")
    again = training.train(halfway.values)
    said = capsys.readouterr().out
    for name in ("latest.pt", "previous.pt", "best.pt")[: 2 if best else 3]:
        assert f"It was set aside as {name}.bad\n" in said
        assert (folder / f"{name}.bad").exists()
    assert len(warnings(said)) == (2 if best else 3)
    assert ("Starting training from epoch 1/3 (batch 1/3)\n" in said) is not best
    assert (f"Found checkpoint: {folder / 'best.pt'} (epoch 1/3" in said) is best
    assert_same(halfway.untouched, again)


def test_disk_without_hard_links_keeps_every_file_of_a_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The generation before, the models that `save_period` asks for, and the line that a branch leaves."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    values = training.settings(place, epochs=3, save_period=1)
    training.train(values)
    folder = place / "working/runs/train/checkpoints"
    models_made = {f"epoch{number}.pt" for number in range(3)}
    assert {"latest.pt", "previous.pt", "best.pt"} | models_made <= {path.name for path in folder.iterdir()}
    with pytest.raises(Stopped):
        training.train({**values, "lr0": 0.5}, resume=str(folder / "best.pt"), stop=stop_at(2))
    assert training.read(folder / "latest.pt.abandoned")["epoch"] == 3
