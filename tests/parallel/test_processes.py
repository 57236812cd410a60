"""Runs of several processes and machines: the same bits whatever their number, and no process left behind."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit import config
from kit.errors import Stopped
from kit.store import checkpoint
from tests.help import training
from tests.help.training import Child, differences, rows, stop_at
from tests.parallel.test_ranks import IMAGES, run_settings
from tests.yolo.test_kills import EVERY_BATCH, kill

BATCHES = -(-IMAGES // 8)  # per epoch


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The end of a run of two processes that nobody touched."""
    place = tmp_path_factory.mktemp("untouched")
    child = start(place, run_settings(place), 2)
    assert child.wait() == 0, child.output()
    return latest(child)


def start(place: Path, values: dict[str, Any], processes: int, **environment: str) -> Child:
    """Start `kit train` with so many processes, each with one thread."""
    folders = {f"KIT_{name.upper()}": str(place / name) for name in ("working", "input", "scratch")}
    empty = place / "empty.yaml"
    empty.write_text("{}")
    words = ["--config", str(empty), *config.to_args({**values, "kit.processes": processes})]
    return Child(place / "working", words, OMP_NUM_THREADS="1", **folders, **environment)


def latest(child: Child) -> dict[str, Any]:
    return training.read(child.working / "runs/train/checkpoints/latest.pt")


def wait_for_step(child: Child, step: int, earlier: int = 0) -> dict[str, Any]:
    """Wait until two processes, not those of an earlier session, saved a checkpoint at this step or beyond."""
    return child.wait_for(
        lambda status: status.get("pid") != earlier and len(status.get("processes", [])) == 2 and child.step() >= step
    )


def pids(status: dict[str, Any]) -> list[int]:
    return [each["pid"] for each in status["processes"]]


def gone(numbers: list[int], seconds: float) -> bool:
    """Tell whether these processes end within so many seconds."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(alive(number) for number in numbers):
            return True
        time.sleep(0.05)
    return False


def alive(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def parent(number: int) -> int:
    return int(Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[1])


def test_run_goes_from_two_processes_to_one_and_back_without_losing_a_bit(place: Path, whole: dict[str, Any]) -> None:
    """Stopped, then run by one process with two slices, then by two again, it ends as one that was never touched."""
    values = run_settings(place)
    child = start(place, values, 2)
    seen = wait_for_step(child, BATCHES)
    child.process.send_signal(signal.SIGTERM)
    assert child.wait() == 75, child.output()
    assert child.status()["state"] == "stopped"
    assert gone(pids(seen), 1)
    stopped = latest(child)
    assert stopped["ranks"] == 2
    with pytest.raises(Stopped):
        training.train({**values, "kit.processes": 1}, stop_at(6))  # the first ones are asked in a validation, perhaps
    again = latest(child)["progress"]["global_step"]
    assert again > stopped["progress"]["global_step"]
    ahead = [step for step, _ in child.status()["receipt"]["seen"] if step > again]
    child = start(place, values, 2)
    assert child.wait() == 0, child.output()
    assert ("Exact: " in child.output()) == bool(ahead), "two processes give the losses that one gave"
    assert differences(whole, latest(child)) == []
    assert rows(whole) == rows(latest(child))
    assert "Not exact" not in child.output()
    assert "No longer bit-exact" not in child.output()


@pytest.mark.slow
def test_fine_tuned_model_goes_from_two_processes_to_one_and_back(place: Path, big: Callable[[str], Path]) -> None:
    """From a pretrained file of 80 classes, killed twice: the bits of two processes' run and of two slices in one."""
    values, pid, chance = run_settings(place, start=big("tiny-detect-80"), **EVERY_BATCH), 0, random.Random(0)
    whole = start(place, {**values, "kit.run": "runs/untouched"}, 2)
    assert whole.wait() == 0, whole.output()
    for processes in (2, 1):
        child = start(place, values, processes)
        pid = kill(child, child.step() + 2, pid, chance)
    child = start(place, values, 2)
    assert child.wait() == 0, child.output()
    assert len(latest(child)["progress"]["sessions"]) == 2, "each went on where the one before was killed"
    assert "Not exact" not in child.output()
    assert "No longer bit-exact" not in child.output()
    alone = training.train({**values, "kit.run": "runs/alone", "kit.slices": 2})
    for end in (latest(child), alone):
        untouched = training.read(place / "working/runs/untouched/checkpoints/latest.pt")
        assert differences(untouched, end) == []
        assert rows(untouched) == rows(end)


def test_rank_that_is_killed_takes_the_others_with_it_and_the_next_start_goes_on(
    place: Path, whole: dict[str, Any]
) -> None:
    """Within seconds all are gone, the output says who was killed, and the run ends with the bits of an untouched."""
    values = run_settings(place, **EVERY_BATCH)
    child = start(place, values, 2)
    seen = wait_for_step(child, BATCHES)
    os.kill(pids(seen)[1], signal.SIGKILL)
    began = time.monotonic()
    assert child.wait() == 1
    assert time.monotonic() - began < 10
    assert gone(pids(seen), 0.1)
    assert "error: Training process 1 was ended by SIGKILL. " in child.output()
    child = start(place, values, 2)
    assert child.wait() == 0, child.output()
    assert "Resumed from epoch" in child.output()
    assert differences(whole, latest(child)) == []
    assert rows(whole) == rows(latest(child))
    assert (place / "working/runs/train/train-1.log").exists()


def torchrun(place: Path, *words: str, **environment: str) -> subprocess.Popen[str]:
    """Start torchrun itself, as somebody does who has several machines."""
    folders = {f"KIT_{name.upper()}": str(place / name) for name in ("working", "input", "scratch")}
    with open(place / "output.txt", "a") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--local-addr=127.0.0.1", *words],
            env={**os.environ, "PYTHONPATH": str(training.session.REPOSITORY), **folders, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.mark.slow
def test_two_ranks_give_the_bits_of_distributed_data_parallel(place: Path) -> None:
    """Same data, same model, same step: torch's reducer and Ultralytics' scaling end with the same weights."""
    values = run_settings(place, nbs=8)
    child = start(place, values, 2)
    assert child.wait() == 0, child.output()
    variant(place, "Reference", {**values, "kit.run": "runs/reference"})
    state = training.read(place / "working/runs/reference/checkpoints/latest.pt")
    assert differences(latest(child), state) == []
    assert rows(latest(child)) == rows(state)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_number_of_buckets_changes_no_bit(place: Path, processes: int) -> None:
    """They are sent in one order, also where the last parameter of one is not the last whose gradient comes."""
    values = {**run_settings(place, epochs=2), "kit.slices": processes}
    variant(place, "Buckets", values, processes)
    state = training.read(place / "working/runs/train/checkpoints/latest.pt")
    alone = training.train({**values, "kit.run": "runs/alone"})
    assert differences(alone, state) == []
    assert rows(alone) == rows(state)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "processes"), [(3, 2), (3, 3), (4, 2), (4, 3), (4, 4)])
def test_any_number_of_processes_gives_the_bits_of_one(place: Path, ranks: int, processes: int) -> None:
    """Three or four slices, dealt out to two, three or four processes; gradients are in flight over three batches.

    Most images have no object in them.
    """
    values = run_settings(place, epochs=2, mosaic=0.0, mixup=0.0, **{"kit.slices": ranks})
    for number, file in enumerate(sorted(Path(values["data"]).parent.glob("labels/train/*.txt"))):
        if number % 7:
            file.write_text("")
    child = start(place, values, processes)
    assert child.wait() == 0, child.output()
    alone = training.train({**values, "kit.run": "runs/alone"})
    assert differences(alone, latest(child)) == []
    assert rows(alone) == rows(latest(child))


@pytest.mark.slow
def test_session_may_begin_with_a_batch_that_has_no_image_for_a_process(place: Path) -> None:
    """The last batch holds one image, and two processes go on right there."""
    values = {**run_settings(place, epochs=1), "kit.slices": 2, **EVERY_BATCH}
    for kind in ("images", "labels"):
        sorted(Path(values["data"]).parent.glob(f"{kind}/train/*"))[-1].unlink()
    alone = training.train({**values, "kit.run": "runs/alone"})
    with pytest.raises(Stopped):
        training.train(values, stop_at(2))  # agreed on with the gradients of the third batch
    child = start(place, values, 2)
    assert child.wait() == 0, child.output()
    assert "(batch 4/4)" in child.output()
    assert differences(alone, latest(child)) == []
    assert rows(alone) == rows(latest(child))


@pytest.mark.slow
def test_run_killed_all_over_with_two_processes_ends_bit_identical(place: Path, shown: list[str]) -> None:
    """Any rank, the agent or the launcher, at any batch: nobody is left behind, and no bit is lost."""
    epochs = 30
    values, chance, places = run_settings(place, epochs=epochs, **EVERY_BATCH), random.Random(0), []
    child = start(place, {**values, "kit.run": "runs/untouched"}, 2)
    assert child.wait() == 0, child.output()
    whole = training.read(place / "working/runs/untouched/checkpoints/latest.pt")
    for victim in ("rank 0", "rank 1", "agent", "launcher", "rank 1", "rank 0"):
        step = len(places) * BATCHES * epochs // 7 + 1
        child = start(place, values, 2)
        seen = wait_for_step(child, max(step, child.step() + 1), child.status().get("pid", 0))
        ranks = pids(seen)
        above = parent(ranks[0])
        time.sleep(chance.uniform(0, 0.2))
        numbers = {"rank 0": ranks[0], "rank 1": ranks[1], "agent": above, "launcher": child.process.pid}
        os.kill(numbers[victim], signal.SIGKILL)
        child.wait()
        assert gone([*ranks, above], 25), victim
        progress = latest(child)["progress"]
        places.append(f"{victim} at {progress['global_step']}")
    child = start(place, values, 2)
    assert child.wait() == 0, child.output()
    shown.append(f"two processes, SIGKILL to {', '.join(places)}: compared with an untouched run")
    assert differences(whole, latest(child)) == []
    assert rows(whole) == rows(latest(child))


@pytest.mark.slow
def test_two_machines_train_the_quick_start_and_one_is_killed(tmp_path: Path) -> None:
    """Two agents with folders of their own; a killed one ends the other, and both go on wherever rank 0 then is."""
    ends = []
    for name, killed in (("untouched", False), ("killed", True)):
        machines = [tmp_path / name / machine for machine in ("one", "two")]
        for machine in machines:
            machine.mkdir(parents=True)
        agents = start_machines(machines)
        if killed:
            wait_for_checkpoint(machines, agents)
            lead = next(each for each in machines if list(each.rglob("latest.pt")))
            victim = agents[1 - machines.index(lead)]
            victim.kill()
            assert agents[machines.index(lead)].wait(60) == 1
            agents = start_machines(machines[::-1])  # the machine that holds nothing may become the first
        for process in agents:
            assert process.wait(600) == 0, [(each / "output.txt").read_text()[-3000:] for each in machines]
        files = list((tmp_path / name).rglob("latest.pt"))
        assert len(files) == 1
        ends.append(training.read(files[0]))
        text = "".join((machine / "output.txt").read_text() for machine in machines)
        assert ("Resumed from epoch" in text) is killed
    assert differences(*ends) == []
    assert rows(ends[0]) == rows(ends[1])


def start_machines(machines: list[Path]) -> list[subprocess.Popen[str]]:
    """Start an agent on each of two machines, here with folders of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    quick = ["-m", "kit", "train", "epochs=3", *config.to_args(EVERY_BATCH)]
    for machine in machines:
        for folder in ("working", "input", "scratch"):
            (machine / folder).mkdir(exist_ok=True)
    return [torchrun(machine, *words, *quick, OMP_NUM_THREADS="1") for machine in machines]


def wait_for_checkpoint(machines: list[Path], agents: list[subprocess.Popen[str]]) -> None:
    """Wait for a checkpoint in the second epoch."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        assert all(process.poll() is None for process in agents), [(m / "output.txt").read_text() for m in machines]
        for file in (each for machine in machines for each in machine.rglob("latest.pt")):
            if checkpoint.summarize(checkpoint.read(file)).epoch:
                return
        time.sleep(0.2)
    raise AssertionError("no checkpoint")


@pytest.mark.slow
def test_launcher_that_is_killed_leaves_no_rank_behind(place: Path) -> None:
    """The agent gets a signal from the kernel, and passes it on; the ranks save and leave."""
    child = start(place, run_settings(place, epochs=100000), 2)
    seen = wait_for_step(child, BATCHES)
    child.process.kill()
    assert gone([*pids(seen), parent(pids(seen)[0])], 25)
    assert checkpoint.summarize(latest(child)).epoch >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"device": "0,1"}, 2, "error: Invalid CUDA 'device="),
        ({"kit.session_hours": 1e-6, "epochs": 100000}, 75, "the session's limit is near"),
        ({"kit.slices": 1}, 0, "1 of 2 processes stay idle"),
    ],
)
def test_exit_codes_are_those_of_one_process(place: Path, change: dict[str, Any], code: int, said: str) -> None:
    """2 bad input, 75 stopped, 0 finished; one sentence and no traceback."""
    child = start(place, run_settings(place, **change), 2)
    assert child.wait() == code, child.output()
    assert said in child.output()
    assert "Traceback" not in child.output()


@pytest.mark.slow
def test_full_memory_and_a_bad_loss_are_agreed_on(place: Path) -> None:
    """Memory is full in the second process alone: both halve the batch; the loss is bad: both go back."""
    values = run_settings(place)
    variant(place, "Broken", values)
    said = (place / "output.txt").read_text()
    assert "Out of memory: the epoch starts again with batch=4" in said
    assert "rolled back to the best model" in said
    state = training.read(place / "working/runs/train/checkpoints/latest.pt")
    assert len(state["history"]) == values["epochs"]
    assert state["loop"]["decided"]["batch"] == 4


def variant(place: Path, name: str, values: dict[str, Any], processes: int = 2) -> None:
    """Train to the end with one of the trainers in `variants.py`."""
    (place / "empty.yaml").write_text("{}")
    script = str(training.session.REPOSITORY / "tests/help/variants.py")
    words = [script, name, str(place / "empty.yaml"), *config.to_args(values)]
    process = torchrun(place, "--standalone", f"--nproc-per-node={processes}", *words)
    assert process.wait(300) == 0, (place / "output.txt").read_text()
