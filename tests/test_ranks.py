"""Several processes that train as one: the same bits whatever their number, and no process left behind."""

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
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
import training
from test_kills import EVERY_BATCH
from training import Child, differences, rows, stop_at

from kit import agent, checkpoint, config, launch
from kit.errors import ConfigError, Stopped
from kit.randomness import EpochOrder, Sample, cut
from kit.session import World
from kit.trainer.gradients import Gradients, add
from kit.trainer.ranks import Ranks, spread, tree

SETTINGS = {
    "epochs": 4,
    "imgsz": 96,
    "nbs": 12,
    "warmup_epochs": 1,
    "close_mosaic": 1,
    "multi_scale": 0.3,
    "mixup": 0.5,
}
IMAGES = 26  # in batches of 8: the last one holds 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The end of a run of two processes that nobody touched."""
    place = tmp_path_factory.mktemp("untouched")
    child = start(place, run_settings(place), 2)
    assert child.wait() == 0, child.output()
    return latest(child)


def run_settings(place: Path, task: str = "detect", **changes: Any) -> dict[str, Any]:
    """Return settings for a run below `place`, which gets folders of its own."""
    for name in ("working", "input", "scratch"):
        (place / name).mkdir(exist_ok=True)
    return training.settings(place, task, images=IMAGES, batch=8, **{**SETTINGS, **changes})


def start(place: Path, values: dict[str, Any], processes: int, **environment: str) -> Child:
    """Start `kit train` with so many processes, each with one thread."""
    folders = {f"KIT_{name.upper()}": str(place / name) for name in ("working", "input", "scratch")}
    empty = place / "empty.yaml"
    empty.write_text("{}")
    words = ["--config", str(empty), *config.to_words({**values, "kit.processes": processes})]
    return Child(place / "working", words, OMP_NUM_THREADS="1", **folders, **environment)


def latest(child: Child) -> dict[str, Any]:
    return training.read(child.working / "runs/train/checkpoints/latest.pt")


def after(epochs: int) -> Callable[[dict[str, Any]], bool]:
    return lambda status: status.get("completed", 0) >= epochs and len(status.get("processes", [])) > 1


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


@pytest.mark.parametrize("ranks", range(1, 6))
def test_slices_make_up_the_batch_and_the_first_is_never_empty(ranks: int) -> None:
    """Contiguous and as equal as can be, also where there are fewer images than ranks."""
    for count in range(9):
        batch = [Sample(0, number) for number in range(count)]
        slices = [cut(batch, rank, ranks) for rank in range(ranks)]
        assert [sample for each in slices for sample in each] == batch
        assert max(map(len, slices)) - min(map(len, slices)) <= 1
        assert slices[0] or not batch


@pytest.mark.parametrize("own", [range(2), range(1, 2), range(1, 3), range(2, 3)])
def test_processes_see_the_batches_of_one_whatever_their_number(own: range) -> None:
    """The order of an epoch is cut, never dealt anew."""
    order, sliced = (EpochOrder(26, 8, 2, seed=0) for _ in range(2))
    sliced.own, sliced.ranks = own, 3
    assert [[cut(batch, rank, 3) for rank in own] for batch in order] == list(sliced)


@pytest.mark.parametrize("ranks", range(1, 10))
def test_sum_over_ranks_has_one_order_for_any_number_of_processes(ranks: int) -> None:
    """Each process adds up a branch of the tree, so a sum over processes is the sum over ranks to the last bracket."""

    def add(one: str, other: str) -> str:
        return f"({one}+{other})"

    alone = tree(range(ranks), str, add)
    for processes in range(1, ranks + 1):
        dealt = spread(range(ranks), processes)
        assert [rank for own in dealt for rank in own] == list(range(ranks))
        assert all(dealt)
        assert alone == tree(range(processes), lambda number, dealt=dealt: tree(dealt[number], str, add), add)


@pytest.mark.parametrize("logical", range(1, 6))
@pytest.mark.parametrize(("size", "lead"), [(1, 0), (2, 1), (3, 1), (4, 0), (4, 3)])
def test_whichever_process_leads_runs_the_first_slice(size: int, lead: int, logical: int) -> None:
    """The slices go round from the one that leads; pieces are put into their order before they are added."""
    world = [Ranks(World(rank, size)) for rank in range(size)]
    for ranks in world:
        ranks.lead, ranks.logical = lead, logical
    assert world[lead].own.start == 0
    members = [ranks for ranks in world if ranks.own]
    assert len(members) == min(size, logical)
    in_order = [members[place].own for place in members[0].order]
    assert [rank for own in in_order for rank in own] == list(range(logical))


def test_run_goes_from_two_processes_to_one_and_back_without_losing_a_bit(place: Path, whole: dict[str, Any]) -> None:
    """Stopped, then run by one process with two slices, then by two again, it ends as one that was never touched."""
    values = run_settings(place)
    child = start(place, values, 2)
    seen = child.wait_for(after(1))
    child.process.send_signal(signal.SIGTERM)
    assert child.wait() == 75, child.output()
    assert child.status()["state"] == "stopped"
    assert gone(pids(seen), 1)
    stopped = latest(child)
    assert stopped["ranks"] == 2
    with pytest.raises(Stopped):
        training.train({**values, "kit.processes": 1}, stop_at(6))  # the first ones are asked in a validation, perhaps
    assert latest(child)["progress"]["global_step"] > stopped["progress"]["global_step"]
    child = start(place, values, 2)
    assert child.wait() == 0, child.output()
    assert differences(whole, latest(child)) == []
    assert rows(whole) == rows(latest(child))
    assert "Not exact" not in child.output()


def test_rank_that_is_killed_takes_the_others_with_it_and_the_next_start_goes_on(
    place: Path, whole: dict[str, Any]
) -> None:
    """Within seconds all are gone, the output says who was killed, and the run ends with the bits of an untouched."""
    values = run_settings(place, **EVERY_BATCH)
    child = start(place, values, 2)
    seen = child.wait_for(after(1))
    os.kill(pids(seen)[1], signal.SIGKILL)
    began = time.monotonic()
    assert child.wait() == 1
    assert time.monotonic() - began < 10
    assert gone(pids(seen), 0.1)
    assert "error: Training process 1 was ended by SIGKILL: run again" in child.output()
    child = start(place, values, 2)
    assert child.wait() == 0, child.output()
    assert "Resumed from epoch" in child.output()
    assert differences(whole, latest(child)) == []
    assert rows(whole) == rows(latest(child))
    assert (place / "working/runs/train/train-1.log").exists()


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify"])
def test_every_task_trains_in_slices_and_resumes_bit_identical(place: Path, task: str) -> None:
    """One process runs three slices; the last batch of two images leaves one of them empty."""
    values = run_settings(place, task, **{"kit.ranks": 3, "epochs": 2, "dropout": 0.2 if task == "classify" else 0.0})
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    with pytest.raises(Stopped):
        training.train({**values, "kit.run": "runs/stopped"}, stop_at(3))
    again = training.train({**values, "kit.run": "runs/stopped"})
    assert differences(untouched, again) == []
    assert rows(untouched) == rows(again)
    assert untouched["ranks"] == 3


def test_gradients_of_slices_add_up_to_those_of_the_batch(place: Path) -> None:
    """For a model without BatchNorm's statistics, and a loss that is a mean or a sum over images, slicing is rounding.

    Classification: its loss is a mean over the batch, which Ultralytics' own training multiplies by the ranks.
    """
    values = run_settings(place, "classify", epochs=1, freeze=9, optimizer="SGD", mixup=0.0, warmup_epochs=0)
    one, other = (training.train({**values, "kit.run": f"runs/{n}", "kit.ranks": n}) for n in (1, 4))
    for name, value in one["model_state_dict"].items():
        if ".linear." in name:
            torch.testing.assert_close(value, other["model_state_dict"][name], rtol=1e-4, atol=1e-6)


def test_missing_gradients_count_as_zeros_to_the_sign() -> None:
    """They travel between processes as zeros, and a negative zero plus zero is a positive one."""
    one, other = [torch.tensor([-0.0]), None, None], [None, torch.tensor([-0.0]), None]
    sums = add(one, other)
    assert sums[2] is None
    assert not any(torch.signbit(each) for each in sums[:2] if each is not None)


def test_images_do_not_depend_on_the_number_of_ranks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every image of every epoch is seen once, with the same pixels and at the same size; noise is each rank's own."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    seen: dict[int, list[bytes]] = {}
    seeds: list[int] = []
    own = DetectionTrainer.preprocess_batch

    def look(self: Any, batch: dict[str, Any]) -> dict[str, Any]:
        batch = own(self, batch)
        seen[self.run.ranks.logical].extend(image.numpy().tobytes() for image in batch["img"])
        seeds.append(torch.initial_seed())
        return batch

    monkeypatch.setattr(DetectionTrainer, "preprocess_batch", look)
    for ranks in (1, 3):
        seen[ranks] = []
        training.train({**run_settings(place, epochs=2), "kit.run": f"runs/{ranks}", "kit.ranks": ranks})
    assert len(seen[1]) == 2 * IMAGES
    assert seen[1] == seen[3]
    assert len(set(seeds)) == len(seeds) - 2 * 4, "of the first rank it is that of the batch"


def test_run_keeps_its_ranks_until_the_user_changes_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run begun by one process stays one of one rank; kit.ranks changes that, and the output says what it costs."""
    values = run_settings(place, epochs=2)
    with pytest.raises(Stopped):
        training.train(values, stop_at(2))
    with pytest.raises(Stopped):
        training.train(values, stop_at(1))
    assert "Not exact" not in capsys.readouterr().out
    state = training.train({**values, "kit.ranks": 2})
    said = capsys.readouterr().out
    assert "Each batch is cut into 2 slices, which one process will run" in said
    assert "Not exact from here on: a batch was cut into 1 before, and is cut into 2 now" in said
    assert state["ranks"] == 2


def test_run_of_several_ranks_keeps_its_threads(place: Path) -> None:
    """On a CPU the bits depend on their number, and a machine with other cores would take another."""
    values, before = run_settings(place, epochs=2, **{"kit.ranks": 2}), torch.get_num_threads()
    with pytest.raises(Stopped):
        training.train(values, stop_at(2))
    latest = place / "working/runs/train/checkpoints/latest.pt"
    state = training.read(latest)
    assert state["versions"]["threads"] == before
    state["versions"]["threads"] = before + 1
    torch.save(state, latest)
    try:
        assert training.train(values)["versions"]["threads"] == before + 1
    finally:
        torch.set_num_threads(before)


def test_gradient_that_no_rank_has_stays_missing() -> None:
    """As in DistributedDataParallel: the optimizer leaves a parameter alone that nobody used."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        used, others, nobodys = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
        ranks: Any = SimpleNamespace(size=2, logical=4, cuda=False, order=[0, 1], group=None)
        gradients = Gradients([used, others, nobodys], ranks)
        used.grad = torch.ones(3)
        for _ in range(2):
            gradients.begin()
            (2 * used).sum().backward()
            assert gradients.send() == [True, False, False]
            gradients.collect()
            gradients.receive([True, True, False])
        assert torch.equal(used.grad, torch.full((3,), 5.0))
        assert torch.equal(others.grad, torch.zeros(3))
        assert nobodys.grad is None
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": 2, "kit.ranks": 3}, r"batch=2 is too small for 3 ranks: .*kit.ranks=2"),
        ({"kit.ranks": 2, "imgsz": 32}, r"has 2 images for 2 ranks: with imgsz=22 BatchNorm"),
        ({"kit.ranks": 0}, "kit.ranks' must be 'auto' or 1, 2, 3"),
        ({"kit.processes": "many"}, "kit.processes' must be 'auto' or 1, 2, 3"),
        ({"device": "0,1", "kit.processes": 1}, "device=0,1 needs one process per device"),
    ],
)
def test_what_the_ranks_cannot_do_is_said_at_the_start(place: Path, change: dict[str, Any], words: str) -> None:
    """One sentence, exit code 2."""
    with pytest.raises(ConfigError, match=words):
        training.train({**run_settings(place), **change})


@pytest.mark.parametrize(
    ("settings", "visible", "count"),
    [
        ({"device": "cpu"}, None, 1),
        ({"device": 0}, None, 1),
        ({"device": "0,1"}, None, 2),
        ({"device": [0, 1, 2]}, None, 3),
        ({"device": "0,1", "batch": 1}, None, 1),
        ({"device": "0,1", "batch": -1}, None, 2),
        ({}, "0,3", 2),
        ({}, "", 1),
        ({"kit.processes": 3}, "0,1", 3),
        ({"kit.processes": 1}, "0,1", 1),
    ],
)
def test_one_process_per_gpu_is_started(
    place: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], visible: str | None, count: int
) -> None:
    """Those that `device` names, or else all visible ones; never more than a batch has images."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (place / "config.yaml").write_text("model: a.yaml\ndata: b.yaml\n")
    assert launch.processes(config.load(place / "config.yaml", settings)) == count


@pytest.mark.parametrize(
    ("codes", "code", "said"),
    [
        ({0: 76, 1: -9}, 1, "Training process 1 was ended by SIGKILL"),
        ({0: 2, 1: -15}, 2, ""),
        ({0: 76, 1: 2}, 2, ""),
        ({0: 76}, 1, ""),
    ],
)
def test_first_failure_decides_and_not_what_it_caused(
    codes: dict[int, int], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Torch counts time in seconds, in which one failure has caused the others."""
    failures = {rank: SimpleNamespace(exitcode=code, timestamp=1) for rank, code in codes.items()}
    assert agent.explain(failures) == code
    assert said in capsys.readouterr().out


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
def test_number_of_buckets_changes_no_bit(place: Path, whole: dict[str, Any]) -> None:
    """They are sent in one order, also where the last parameter of one is not the last whose gradient comes."""
    variant(place, "Buckets", run_settings(place))
    state = training.read(place / "working/runs/train/checkpoints/latest.pt")
    assert differences(whole, state) == []
    assert rows(whole) == rows(state)


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "processes"), [(3, 2), (3, 3), (4, 2), (4, 3), (4, 4)])
def test_any_number_of_processes_gives_the_bits_of_one(place: Path, ranks: int, processes: int) -> None:
    """Three or four slices, dealt out to two, three or four processes; gradients are in flight over three batches.

    Most images have no object in them.
    """
    values = run_settings(place, epochs=2, mosaic=0.0, mixup=0.0, **{"kit.ranks": ranks})
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
    values = {**run_settings(place, epochs=1), "kit.ranks": 2, **EVERY_BATCH}
    for kind in ("images", "labels"):
        sorted(Path(values["data"]).parent.glob(f"{kind}/train/*"))[-1].unlink()
    alone = training.train({**values, "kit.run": "runs/alone"})
    with pytest.raises(Stopped):
        training.train(values, stop_at(3))
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
    batches = -(-IMAGES // 8)
    for victim in ("rank 0", "rank 1", "agent", "launcher", "rank 1", "rank 0"):
        step = len(places) * batches * epochs // 7 + 1
        child = start(place, values, 2)
        before = child.status().get("pid")

        def reached(status: dict[str, Any], step: int = step, before: Any = before) -> bool:
            saved = status.get("checkpoint") or {"epoch": 0, "batch": 0}
            new = status.get("pid") != before and len(status.get("processes", [])) == 2
            return new and saved["epoch"] * batches + saved["batch"] >= step

        seen = child.wait_for(reached)
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
    quick = ["-m", "kit", "train", "epochs=3", *config.to_words(EVERY_BATCH)]
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
    seen = child.wait_for(after(1))
    child.process.kill()
    assert gone([*pids(seen), parent(pids(seen)[0])], 25)
    assert checkpoint.summarize(latest(child)).epoch >= 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"device": "0,1"}, 2, "error: Invalid CUDA 'device="),
        ({"kit.session_hours": 1e-6, "epochs": 100000}, 75, "the session's limit is near"),
        ({"kit.ranks": 1}, 0, "1 of 2 processes have nothing to do"),
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
    assert "going back to the best model" in said
    state = training.read(place / "working/runs/train/checkpoints/latest.pt")
    assert len(state["history"]) == values["epochs"]
    assert state["loop"]["decided"]["batch"] == 4


def variant(place: Path, name: str, values: dict[str, Any]) -> None:
    """Train to the end with one of the trainers in `variants.py`, in two processes."""
    (place / "empty.yaml").write_text("{}")
    script = str(Path(__file__).with_name("variants.py"))
    words = [script, name, str(place / "empty.yaml"), *config.to_words(values)]
    process = torchrun(place, "--standalone", "--nproc-per-node=2", *words)
    assert process.wait(300) == 0, (place / "output.txt").read_text()
