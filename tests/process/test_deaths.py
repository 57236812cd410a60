"""Parts of a training that are killed: said in a sentence, ended within seconds, and started again."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import torch

from kit import config
from kit.config import Config, KitSettings
from kit.errors import DiedError
from kit.kaggle import deaths, machine, session
from kit.process.restarts import Restarts
from kit.yolo import recovery
from kit.yolo.settings import schema
from kit.yolo.workers import Workers
from tests.help import training
from tests.help.training import Child, differences, rows
from tests.parallel.test_processes import gone, pids, start, wait_for_step
from tests.parallel.test_ranks import run_settings
from tests.process.test_launch import words

EVERY_BATCH = {"kit.max_lost_s": 1e-6, "kit.max_cost_percent": 1e9}
SUICIDE = """
import os, signal, sys
if "KIT_PARENT" in os.environ and "backups" not in sys.orig_argv:
    from kit.process import worker
    calls = []
    def asked(self):
        calls.append(1)
        if len(calls) == {call}:
            os.kill(os.getpid(), signal.{name})
        return self.reason
    worker.Stop.__call__ = asked
"""
HANG = "import signal, time; signal.signal(signal.SIGUSR1, lambda *_: time.sleep(10**6))"  # as in a lock


@pytest.fixture
def values(place: Path) -> dict[str, Any]:
    """Settings of a quick run with two loader workers."""
    return training.settings(place, epochs=6, workers=2)


def workers(pid: int) -> list[int]:
    """Return the loader workers of a training process, the first one first."""
    return sorted(child.pid for child in psutil.Process(pid).children() if child.name() == "pt_data_worker")


def begin(
    place: Path, values: dict[str, Any], step: int = 1, known: dict[str, str] | None = None, **changes: Any
) -> tuple[Child, int]:
    """Start a run, and return it with its training process when it has got somewhere."""
    child = training.start(place / "working", {**values, **changes}, **(known or {}))
    return child, child.wait_for(lambda news: news.get("batch") and child.step() >= step)["pid"]


@pytest.mark.parametrize("plots", [False, True])
def test_lost_worker_is_a_sentence_and_ends_training_within_seconds(
    place: Path, values: dict[str, Any], plots: bool
) -> None:
    """Which one, by which signal, what to lower; no traceback; the checkpoint stands and goes on exactly."""
    child, pid = begin(place, values, epochs=1000, plots=plots)
    victim, other = workers(pid)[:2]
    os.kill(victim, signal.SIGKILL)
    assert child.process.wait(60) == 1
    assert gone([pid, victim, other], 5)
    assert "error: Loader worker 1 of 2 was ended by SIGKILL. Most often" in child.output()
    assert "memory is full. Lower workers=, batch= or imgsz=" in child.output()
    assert "Traceback" not in child.output()
    assert child.status()["state"] == "failed"


def test_lost_worker_is_told_where_the_other_one_hangs(place: Path, values: dict[str, Any]) -> None:
    """As one that waits for a lock which the killed one held: it ignores signals, and is killed with its process."""
    child, pid = begin(place, values, epochs=1000, known=hook(place, HANG))
    victim, other = workers(pid)[:2]
    os.kill(other, signal.SIGUSR1)
    os.kill(victim, signal.SIGKILL)
    assert child.process.wait(60) == 1
    assert gone([pid, victim, other], 5)
    assert "Loader worker 1 of 2 was ended by SIGKILL" in child.output()


def test_workers_go_with_a_training_process_that_is_killed(place: Path, values: dict[str, Any]) -> None:
    """Also those that hang, which would never look for their parent."""
    child, pid = begin(place, values, epochs=1000, known=hook(place, HANG))
    left = workers(pid)
    os.kill(left[0], signal.SIGUSR1)
    os.kill(pid, signal.SIGKILL)
    assert child.process.wait(60) == 1
    assert gone(left, 5)


def test_run_that_loses_a_worker_and_then_its_process_is_started_again_and_ends_with_the_same_bits(
    place: Path, values: dict[str, Any]
) -> None:
    """Two deaths in different places: said on the screen and kept for the dashboard, exit 0."""
    long = {**values, "epochs": 20, **EVERY_BATCH}
    untouched = training.train({**long, "workers": 0, "kit.run": "runs/untouched"})
    child, pid = begin(place, long, step=5, **{"kit.restarts": 2})
    os.kill(workers(pid)[0], signal.SIGKILL)
    seen = child.wait_for(lambda news: news["pid"] != pid and news.get("batch") and child.step() >= 36)
    assert any("(1 of 2, kit.restarts)" in line for line in seen["messages"])
    os.kill(seen["pid"], signal.SIGSEGV)
    assert child.wait() == 0, child.output()
    assert "WARNING: Loader worker 1 of 2 was ended by SIGKILL. Most often memory is full" in child.output()
    assert "WARNING: The training process was ended by SIGSEGV. " in child.output()
    last = child.status()
    assert last["state"] == "finished"
    assert [line.split("(")[1] for line in last["messages"] if "starts again" in line] == [
        "1 of 2, kit.restarts).",
        "2 of 2, kit.restarts).",
    ]
    assert ["(1 of 2" in each["hint"] for each in last["notices"]] == [True, False]
    again = training.read(place / "working/runs/train/checkpoints/latest.pt")
    assert differences(untouched, again) == []
    assert rows(untouched) == rows(again)


def hook(place: Path, text: str) -> dict[str, str]:
    """Have every Python that a child starts begin with these lines."""
    (place / "hook").mkdir()
    (place / "hook/sitecustomize.py").write_text(text)
    return {"PYTHONPATH": os.pathsep.join([str(session.REPOSITORY), str(place / "hook")])}


def test_run_that_dies_twice_at_the_same_batch_is_given_up(place: Path, values: dict[str, Any]) -> None:
    """It would end there again; the sentence says where."""
    known = hook(place, SUICIDE.format(call=2, name="SIGKILL"))
    child = Child(place / "working", words({**values, "kit.restarts": 9, "val": False, "imgsz": 480}), **known)
    assert child.wait() == 1, child.output()
    assert child.output().count("starts again from the last checkpoint") == 1
    assert "error: The training process was ended by SIGKILL. " in child.output()
    assert "That is twice in a row in epoch 1, batch " in child.output()
    assert child.output().rstrip().endswith("or look at the images of that batch.")


@pytest.mark.slow
def test_number_of_restarts_is_bounded(place: Path, values: dict[str, Any]) -> None:
    """A run that dies further on each time is given up after so many."""
    known = hook(place, SUICIDE.format(call=40, name="SIGABRT"))
    long = {**values, "epochs": 10**6, "kit.restarts": 1, "val": False, **EVERY_BATCH}
    child = Child(place / "working", words(long), **known)
    assert child.wait() == 1, child.output()
    assert child.output().count("starts again from the last checkpoint") == 1
    assert child.output().rstrip().endswith("ended by SIGABRT. Run again to go on from the last checkpoint.")
    assert child.step() >= 70


@pytest.mark.slow
def test_new_run_that_is_killed_goes_on_and_does_not_begin_once_more(place: Path, values: dict[str, Any]) -> None:
    """`--resume never` holds for the first start alone: started again, a run takes up its own checkpoint."""
    training.train({**values, "workers": 0, "epochs": 1})
    long = {**values, "epochs": 20, "kit.restarts": 1, **EVERY_BATCH}
    child = training.start(place / "working", long, "--resume", "never")
    first = child.wait_for(lambda news: news.get("epochs") == 20 and news.get("batch") and child.step() >= 8)
    os.kill(first["pid"], signal.SIGKILL)
    assert child.wait() == 0, child.output()
    assert "Resumed from epoch" in child.output()
    assert (place / "working/runs/train-1").is_dir()
    assert not (place / "working/runs/train-2").exists()


@pytest.mark.slow
def test_rank_that_loses_a_worker_is_started_again_with_the_others(place: Path) -> None:
    """Under torchrun: the sentence is that of the one that lost it, and the bits are those of an untouched run."""
    values = run_settings(place, **EVERY_BATCH, workers=2, epochs=8)
    untouched = start(place, {**values, "kit.run": "runs/untouched"}, 2)
    assert untouched.wait() == 0, untouched.output()
    child = start(place, {**values, "kit.restarts": 2}, 2)
    first = pids(wait_for_step(child, 3))
    os.kill(workers(first[1])[0], signal.SIGKILL)
    second = pids(child.wait_for(lambda news: news["pid"] != first[0] and len(news.get("processes", [])) == 2))
    assert gone(first, 1)
    child.wait_for(lambda news: news.get("batch") and child.step() >= 20)
    os.kill(second[0], signal.SIGKILL)
    assert child.wait() == 0, child.output()
    assert "WARNING: Loader worker 1 of 2 was ended by SIGKILL. " in child.output()
    assert "WARNING: Training process 0 was ended by SIGKILL. " in child.output()
    one, other = (training.read(place / f"working/runs/{run}/checkpoints/latest.pt") for run in ("untouched", "train"))
    assert differences(one, other) == []
    assert rows(one) == rows(other)


def judged(place: Path, first: dict[str, Any], second: dict[str, Any], asked: bool = False, **kit: Any) -> list[str]:
    """Return what is said of two deaths, each with what the run said last."""
    settings = Config(schema(), {}, KitSettings(**kit))
    settings.run_folder.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []
    restarts = Restarts(settings, "auto", lambda *words: lines.append(" ".join(words)))
    for values in (first, second):
        restarts.begin()
        known = {"updated": time.time(), "elapsed_s": 100.0, "batches": 10, **values}
        (settings.run_folder / "status.json").write_text(config.json.dumps(known))
        if error := restarts.judge(DiedError("It died. Sad.", deaths.AGAIN), asked):
            lines.append(str(error))
    return lines


def test_stop_or_the_limit_wins_over_a_start(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever pressed it does not want it to go on, and a session that is about to end cannot."""
    places = {"epoch": 1, "batch": 2}, {"epoch": 4, "batch": 2}
    again = "It died. Sad. Training starts again from the last checkpoint"
    assert [line.startswith(again) for line in judged(place, *places)] == [True, True]
    plain = f"It died. Sad. {deaths.AGAIN}"
    assert judged(place, *places, asked=True) == [plain, plain]
    monkeypatch.setenv("KIT_SESSION_START", str(time.time() - 3600 + 100))
    assert judged(place, *places, session_hours=1.0) == [plain, plain]
    assert judged(place, *places, restarts=0) == [plain, plain]
    assert judged(place, *places, restarts=1)[1] == plain


def test_news_of_the_place_may_lag_behind(place: Path) -> None:
    """Ten batches a second: the status, written twice a second, may miss some of them."""
    fast = {"elapsed_s": 3.2}
    near = judged(place, {"epoch": 4, "batch": 2, **fast}, {"epoch": 3, "batch": 9, **fast})
    assert "That is twice in a row in epoch 3, batch 9" in near[1]
    far = judged(place, {"epoch": 4, "batch": 2, **fast}, {"epoch": 6, "batch": 2, **fast})
    assert "starts again" in far[1]


def test_kernel_that_has_ended_a_process_for_memory_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it counts them; else it is the most likely reason of a SIGKILL."""
    monkeypatch.setattr(machine, "oom_kills", lambda: 3)
    assert "Memory is full, and the kernel ended it. Lower workers=" in str(deaths.lost("It", -9, 2))
    assert "Most often memory is full. Lower workers=" in str(deaths.lost("It", -9, 3))
    assert "Shared memory (/dev/shm) or a disk is full" in str(deaths.lost("It", -7, 2))
    assert str(deaths.lost("It", 3, 2)) == "It ended with exit code 3. Run again to go on from the last checkpoint."


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError])
def test_worker_that_is_lost_while_it_hands_a_batch_over_is_named(error: type[Exception]) -> None:
    """Its end of the pipe closes before it counts as ended."""
    ends = iter([None, None, -9])
    worker = type("Worker", (), {"exitcode": property(lambda self: next(ends))})()
    workers = Workers.__new__(Workers)
    workers._workers, workers._pinning, workers._kills = [worker], None, 0

    def hand_over() -> Iterator[Any]:
        raise error
        yield

    workers._stock = hand_over()
    with pytest.raises(DiedError, match="Loader worker 1 of 1 was ended by SIGKILL"):
        next(workers)


def test_end_of_the_thread_that_pins_batches_is_noticed() -> None:
    """On a GPU alone; torch says no more than that no batch came in time, for ever."""
    workers = Workers.__new__(Workers)
    workers._workers, workers._pinning = [], Thread(target=lambda: None)
    workers._pinning.start()
    workers._pinning.join()
    workers._stock = iter([1])
    with pytest.raises(DiedError, match="thread that copies batches into memory for the GPU has ended"):
        next(workers)
    workers._pinning = None
    assert next(workers) == 1


def test_broken_gpu_is_told_from_a_full_one() -> None:
    """After the one every call fails; of the other training recovers by itself. By class and code, else by words."""
    lost, full = torch.AcceleratorError("It broke."), torch.AcceleratorError("It broke.")
    lost.error_code, full.error_code = 700, recovery.CUDA_FULL  # type: ignore[attr-defined]
    assert recovery.lost_gpu(lost)
    assert not recovery.lost_gpu(full)
    assert not recovery.lost_gpu(torch.OutOfMemoryError("It is full."))
    assert recovery.out_of_memory(full)
    assert recovery.out_of_memory(torch.OutOfMemoryError("It is full."))
    assert recovery.out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"))
    assert recovery.lost_gpu(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert recovery.lost_gpu(RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"))
    assert not recovery.lost_gpu(RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR"))
    assert not recovery.lost_gpu(RuntimeError("CUDA error: out of memory"))
    assert not recovery.lost_gpu(RuntimeError("shape '[2, 3]' is invalid for input of size 5"))
