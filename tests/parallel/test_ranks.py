"""A batch that is cut into slices: dealing them out, adding them up, and what the settings allow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from kit.errors import ConfigError, KitError, Stopped
from kit.parallel.gradients import Gradients, add
from kit.parallel.ranks import Ranks, split_slices, tree_reduce
from kit.parallel.world import World
from kit.process import launch, torchrun
from kit.run.order import EpochOrder, Sample, cut
from kit.yolo.loop import Resumable
from kit.yolo.settings import load
from kit.yolo.train import _device
from tests.help import training
from tests.help.training import differences, rows, stop_at

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


def run_settings(place: Path, task: str = "detect", **changes: Any) -> dict[str, Any]:
    """Return settings for a run below `place`, which gets folders of its own."""
    for name in ("working", "input", "scratch"):
        (place / name).mkdir(exist_ok=True)
    return training.settings(place, task, images=IMAGES, batch=8, **{**SETTINGS, **changes})


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
    sliced.my_slices, sliced.slices = own, 3
    assert [[cut(batch, rank, 3) for rank in own] for batch in order] == list(sliced)


@pytest.mark.parametrize("ranks", range(1, 10))
def test_sum_over_ranks_has_one_order_for_any_number_of_processes(ranks: int) -> None:
    """Each process adds up a branch of the tree, so a sum over processes is the sum over ranks to the last bracket."""

    def add(one: str, other: str) -> str:
        return f"({one}+{other})"

    alone = tree_reduce(range(ranks), str, add)
    for processes in range(1, ranks + 1):
        dealt = split_slices(range(ranks), processes)
        assert [rank for own in dealt for rank in own] == list(range(ranks))
        assert all(dealt)
        assert alone == tree_reduce(
            range(processes), lambda number, dealt=dealt: tree_reduce(dealt[number], str, add), add
        )


@pytest.mark.parametrize("slices", range(1, 6))
@pytest.mark.parametrize(("size", "lead"), [(1, 0), (2, 1), (3, 1), (4, 0), (4, 3)])
def test_whichever_process_leads_runs_the_first_slice(size: int, lead: int, slices: int) -> None:
    """The slices go round from the one that leads; pieces are put into their order before they are added."""
    world = [Ranks(World(rank, size)) for rank in range(size)]
    for ranks in world:
        ranks.main_rank, ranks.slices = lead, slices
    assert world[lead].my_slices.start == 0
    members = [ranks for ranks in world if ranks.my_slices]
    assert len(members) == min(size, slices)
    in_order = [members[place].my_slices for place in members[0].order]
    assert [rank for own in in_order for rank in own] == list(range(slices))


@pytest.mark.parametrize("start", ["description", "pretrained"])
@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify"])
def test_every_task_trains_in_slices_and_resumes_bit_identical(
    place: Path, big: Callable[[str], Path], task: str, start: str
) -> None:
    """One process runs three slices; the last batch of two images leaves one of them empty."""
    changes = {"kit.slices": 3, "epochs": 2, "dropout": 0.2 if task == "classify" else 0.0}
    file = big(f"tiny-{task}-80") if start == "pretrained" else None
    values = run_settings(place, task, start=file, **changes)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    with pytest.raises(Stopped):
        training.train({**values, "kit.run": "runs/stopped"}, stop_at(3))
    again = training.train({**values, "kit.run": "runs/stopped"})
    assert differences(untouched, again) == []
    assert rows(untouched) == rows(again)
    assert untouched["ranks"] == 3


def test_gradients_of_slices_add_up_to_those_of_the_batch(place: Path) -> None:
    """For a model without BatchNorm's statistics, and a loss that is a mean or a sum over images, slicing is rounding.

    Classification: its loss is a mean over the batch, which Ultralytics' own training multiplies by the ranks. All but
    the last linear layer is frozen, with its statistics.
    """
    frozen: dict[str, Any] = {"freeze": [*range(9), "9.conv"], "optimizer": "SGD", "mixup": 0.0, "warmup_epochs": 0}
    values = run_settings(place, "classify", epochs=1, **frozen)
    one, other = (training.train({**values, "kit.run": f"runs/{n}", "kit.slices": n}) for n in (1, 4))
    trained = {name for name in one["model_state_dict"] if ".linear." in name}
    moved = [each["momentum_buffer"].any() for each in one["optimizer_state_dict"]["state"].values()]
    assert len(trained) == len(moved) == 2
    assert all(moved), "it must have trained"
    assert set(one["model_state_dict"]) == set(other["model_state_dict"])
    for name, value in one["model_state_dict"].items():
        if name in trained:
            torch.testing.assert_close(value, other["model_state_dict"][name], rtol=1e-4, atol=1e-6)
        else:
            assert torch.equal(value, other["model_state_dict"][name]), name


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
        seen[self.run.ranks.slices].extend(image.numpy().tobytes() for image in batch["img"])
        seeds.append(torch.initial_seed())
        return batch

    monkeypatch.setattr(DetectionTrainer, "preprocess_batch", look)
    for ranks in (1, 3):
        seen[ranks] = []
        training.train({**run_settings(place, epochs=2), "kit.run": f"runs/{ranks}", "kit.slices": ranks})
    assert len(seen[1]) == 2 * IMAGES
    assert seen[1] == seen[3]
    assert len(set(seeds)) == len(seeds) - 2 * 4, "of the first rank it is that of the batch"


def test_run_keeps_its_ranks_until_the_user_changes_them(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run begun by one process stays one of one rank; kit.slices changes that, and the output says what it costs."""
    values = run_settings(place, epochs=2)
    with pytest.raises(Stopped):
        training.train(values, stop_at(2))
    with pytest.raises(Stopped):
        training.train(values, stop_at(1))
    said = capsys.readouterr().out
    assert "Not exact" not in said
    assert "No longer bit-exact" not in said
    state = training.train({**values, "kit.slices": 2})
    said = capsys.readouterr().out
    assert "Each batch is cut into 2 slices, run by one process" in said
    assert "No longer bit-exact: slices per batch 1 -> 2" in said
    assert state["ranks"] == 2


def test_run_of_several_ranks_keeps_its_threads(place: Path) -> None:
    """On a CPU the bits depend on their number, and a machine with other cores would take another."""
    values, before = run_settings(place, epochs=2, **{"kit.slices": 2}), torch.get_num_threads()
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


def test_full_memory_in_a_later_slice_leaves_the_statistics_of_the_first(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process may run that slice: what it did to BatchNorm before memory was full must not be seen."""
    own, calls, ends = Resumable.forward_backward, 0, []

    def fail(self: Any, *words: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2 and not late:
            raise torch.OutOfMemoryError("CUDA is out of room")
        batch = own(self, *words)
        if calls == 2:
            raise torch.OutOfMemoryError("CUDA is out of room")
        return batch

    monkeypatch.setattr(Resumable, "forward_backward", fail)
    for late in (False, True):
        calls = 0
        ends.append(training.train({**run_settings(place, epochs=1), "kit.slices": 2, "kit.run": f"runs/{late}"}))
    assert ends[0]["loop"]["decided"]["batch"] == 4
    assert differences(*ends) == []


def test_batch_is_not_halved_below_an_image_for_each_slice(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would end in advice to raise the batch, where memory is full."""

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA is out of room")

    monkeypatch.setattr(Resumable, "forward_backward", fail)
    with pytest.raises(KitError, match="memory is full in epoch 1 with batch=2"):
        training.train({**run_settings(place), "batch": 2, "kit.slices": 2})


def test_gradient_that_no_rank_has_stays_missing() -> None:
    """As in DistributedDataParallel: the optimizer leaves a parameter alone that nobody used."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        used, others, nobodys = (torch.nn.Parameter(torch.ones(3)) for _ in range(3))
        ranks: Any = SimpleNamespace(size=2, slices=4, cuda=False, order=[0, 1], group=None)
        gradients = Gradients([used, others, nobodys], ranks)
        views = [view for bucket in gradients.buckets for view in bucket.views]
        assert all(view.data_ptr() % 64 == 0 for view in views), "a GPU's norm depends on it"
        used.grad = torch.ones(3)
        for _ in range(2):
            gradients.start_batch()
            (2 * used).sum().backward()
            assert gradients.send() == [True, False, False]
            gradients.collect()
            gradients.finish([True, True, False])
        assert torch.equal(used.grad, torch.full((3,), 5.0))
        assert torch.equal(others.grad, torch.zeros(3))
        assert nobodys.grad is None
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"batch": 2, "kit.slices": 3}, r"batch=2 is too small for 3 slices\. .*kit.slices=2"),
        ({"kit.slices": 2, "imgsz": 32}, r"has 2 images for 2 slices: with imgsz=22 BatchNorm"),
        ({"kit.slices": 0}, "kit.slices' must be 'auto' or 1, 2, 3"),
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
        ({"device": "0,"}, None, 1),
        ({"device": "cuda:1"}, None, 1),
        ({"device": -1}, "0,1", 1),
        ({"device": "0,1", "batch": 1}, None, 1),
        ({"device": "0,1", "batch": -1}, None, 2),
        ({}, "0,3", 2),
        ({}, "", 1),
        ({}, "0,", 1),
        ({}, "-1", 1),
        ({}, "1,-1,0", 1),
        ({}, "GPU-8f6a-0,GPU-8f6a-1", 2),
        ({}, "MIG-4c2d-0,MIG-4c2d-1", 1),
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
    assert launch.processes(load(place / "config.yaml", settings)) == count


def test_processes_that_are_given_one_gpu_twice_share_it(place: Path) -> None:
    """NCCL takes no GPU twice."""
    (place / "config.yaml").write_text("model: a.yaml\ndata: b.yaml\n")
    shared, apart = (load(place / "config.yaml", {"device": device}) for device in ("0,0", "0,1"))
    assert [_device(shared, World(rank, 2, rank, 2)) for rank in (0, 1)] == [("0", False), ("0", False)]
    assert [_device(apart, World(rank, 2, rank, 2)) for rank in (0, 1)] == [("0", True), ("1", True)]


def test_idle_gpus_are_not_looked_for_by_each_process(place: Path) -> None:
    """The first one's work would change what the second finds."""
    (place / "config.yaml").write_text("model: a.yaml\ndata: b.yaml\n")
    with pytest.raises(ConfigError, match="Name them"):
        _device(load(place / "config.yaml", {"device": "-1,-1"}), World(1, 2, 1, 2))


def test_stop_that_ends_all_before_training_is_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    """They had nothing to save, and the signal ended them; another end among them is still told."""
    failures = {rank: SimpleNamespace(exitcode=code, timestamp=1) for rank, code in {0: -15, 1: 76}.items()}
    assert torchrun.explain(failures, stopped=True) == 0
    assert "Stopped before training began" in capsys.readouterr().out
    failures[1].exitcode = -9
    assert torchrun.explain(failures, stopped=True) == 77


@pytest.mark.parametrize(
    ("codes", "code", "said"),
    [
        ({0: 76, 1: -9}, 77, "Training process 1 was ended by SIGKILL"),
        ({0: 2, 1: -15}, 2, ""),
        ({0: 76, 1: 2}, 2, ""),
        ({0: 77, 1: 76}, 77, ""),
        ({0: 76}, 1, ""),
    ],
)
def test_first_failure_decides_and_not_what_it_caused(
    codes: dict[int, int], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Torch counts time in seconds, in which one failure has caused the others."""
    failures = {rank: SimpleNamespace(exitcode=code, timestamp=1) for rank, code in codes.items()}
    assert torchrun.explain(failures) == code
    assert said in capsys.readouterr().out
