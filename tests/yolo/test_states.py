"""Every state that must survive: left out of a checkpoint, the run ends differently; put back, it ends the same.

The numbers are those of the list in `kit.yolo.state`. A state whose loss makes no difference is not one.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit.errors import Stopped
from kit.run import order
from kit.run.order import EpochOrder
from kit.store import checkpoint
from kit.yolo.loop import Resumable
from kit.yolo.samples import DeterministicDataset, LabelledDataset
from tests.help import pretrained, training
from tests.help.training import differences, rows, stop_at

State = dict[str, Any]
BASE = {
    "epochs": 4,
    "nbs": 12,
    "warmup_epochs": 1,
    "close_mosaic": 1,
    "optimizer": "SGD",
    "multi_scale": 0.3,
    "mixup": 0.5,
}
SECTIONS = (*training.EXACT, "scheduler_state_dict", "loop")


def average_for_raw(state: State) -> None:
    state["model_state_dict"] = state["ema_state_dict"]


def fresh_statistics(state: State) -> None:
    for name, value in state["model_state_dict"].items():
        if name.endswith("running_mean"):
            value.zero_()


def no_batches_tracked(state: State) -> None:
    for name, value in state["model_state_dict"].items():
        if name.endswith("num_batches_tracked"):
            value.zero_()


def half_precision(state: State) -> None:
    for name, value in state["model_state_dict"].items():
        if value.is_floating_point():
            state["model_state_dict"][name] = value.half().float()


def raw_for_average(state: State) -> None:
    state["ema_state_dict"] = state["model_state_dict"]


def half_momentum(state: State) -> None:
    for values in state["optimizer_state_dict"]["state"].values():
        values["momentum_buffer"] = values["momentum_buffer"].half().float()


def no_momentum(state: State) -> None:
    state["optimizer_state_dict"]["state"] = {}


def first_rates(state: State) -> None:
    for group in state["optimizer_state_dict"]["param_groups"]:
        group["lr"] = group["initial_lr"]


def setter(*path: str, value: Any) -> Callable[[State], None]:
    def drop(state: State) -> None:
        for name in path[:-1]:
            state = state[name]
        assert state[path[-1]] != value, "nothing would be left out"
        state[path[-1]] = value

    drop.__name__ = f"no_{'_'.join(path)}"
    return drop


def wrong_means(state: State) -> None:
    state["loop"]["tloss"] = {name: value * 0 for name, value in state["loop"]["tloss"].items()}


IN_THE_CHECKPOINT = [
    average_for_raw,  # 10
    fresh_statistics,
    no_batches_tracked,
    half_precision,
    raw_for_average,  # 11
    setter("loop", "ema_updates", value=0),
    no_momentum,  # 12
    half_momentum,
    first_rates,
    setter("gradients", value={}),  # 13
    setter("loop", "last_opt_step", value=-1),
    setter("scheduler_state_dict", "last_epoch", value=0),  # 14
    wrong_means,  # 16
    setter("loop", "best_fitness", value=0.9),  # 17
    setter("history", value=[]),  # 19
    setter("progress", "batch", value=0),  # 1: the position
    setter("epoch", value=2),
]


@pytest.fixture(scope="module", params=["yaml", "pretrained"])
def halfway(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, pretrained_folder: Path
) -> tuple[Path, dict[str, Any], State]:
    """A run that was stopped in epoch 2 with gradients in flight, and the end of one that was not."""
    place = tmp_path_factory.mktemp("halfway")
    model = pretrained.make_tiny("detect", pretrained_folder) if request.param == "pretrained" else None
    with pytest.MonkeyPatch.context() as patch:
        for name in ("working", "input", "scratch"):
            (place / name).mkdir()
            patch.setenv(f"KIT_{name.upper()}", str(place / name))
        values = training.settings(place, start=model, **BASE)
        untouched = training.train({**values, "kit.run": "runs/untouched"})
        with pytest.raises(Stopped):
            training.train({**values, "kit.run": "runs/stopped"}, stop_at(3 + 2 + 1))
    state = training.read(place / "working/runs/stopped/checkpoints/latest.pt")
    assert (state["epoch"], state["progress"]["batch"]) == (1, 1)
    assert state["gradients"], "the stop must fall between two steps of the optimizer"
    return place, values, untouched


def resume_without(
    halfway: tuple[Path, dict[str, Any], State], drop: Callable[[State], None], patch: pytest.MonkeyPatch
) -> list[str]:
    """Leave a state out of the checkpoint, resume, and name the differences to the untouched run."""
    place, values, untouched = halfway
    for name in ("working", "input", "scratch"):
        patch.setenv(f"KIT_{name.upper()}", str(place / name))
    runs = place / "working/runs"
    shutil.rmtree(runs / "again", ignore_errors=True)
    shutil.copytree(runs / "stopped", runs / "again")
    latest = runs / "again/checkpoints/latest.pt"
    state = training.read(latest)
    drop(state)
    with open(latest, "wb") as file:
        checkpoint.write(state, file)
    again = training.train({**values, "kit.run": "runs/again"})
    return differences(untouched, again, SECTIONS) + ["rows" for _ in "1" if rows(untouched) != rows(again)]


def test_nothing_left_out_ends_bit_identical(
    halfway: tuple[Path, dict[str, Any], State], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other tests of this module would fail for any reason; this one says that there is none but theirs."""
    assert resume_without(halfway, lambda state: None, monkeypatch) == []


@pytest.mark.parametrize("drop", IN_THE_CHECKPOINT, ids=lambda drop: drop.__name__)
def test_state_left_out_of_the_checkpoint_changes_the_end(
    halfway: tuple[Path, dict[str, Any], State], drop: Callable[[State], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropped, or put to what a fresh start or stock Ultralytics would have."""
    assert resume_without(halfway, drop, monkeypatch) != []


def unseeded_samples(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(DeterministicDataset, "_seed", lambda self, value: None)
    patch.setattr(LabelledDataset, "_seed", lambda self, value: None)


def unseeded_batches(patch: pytest.MonkeyPatch) -> None:
    seed = order.seed_all
    patch.setattr(order, "seed_all", lambda value, cuda=False: None if cuda else seed(value))


def order_of_the_first_epoch(patch: pytest.MonkeyPatch) -> None:
    """Stock's fault: every start of the loader goes through the epochs' orders from the first one on."""
    own = EpochOrder.permutation
    base: list[int] = []

    def permutation(self: EpochOrder, epoch: int) -> list[int]:
        base.append(epoch)
        return own(self, epoch - base[0])

    patch.setattr(EpochOrder, "permutation", permutation)


def partners_of_the_worker(patch: pytest.MonkeyPatch) -> None:
    """Stock's buffer: what this process happened to load."""
    own = LabelledDataset._index_of

    def turn_to(self: LabelledDataset, key: Any) -> int:
        kept = getattr(self, "kept", [])
        item = own(self, key)
        self.kept = self.buffer = [*kept, item]
        return item

    patch.setattr(LabelledDataset, "_index_of", turn_to)


def loader_from_the_start(patch: pytest.MonkeyPatch) -> None:
    """Stock's loader begins anew, and has prefetched beyond where training stood."""
    patch.setattr(Resumable, "seek", lambda self: self.train_loader.reset())


def unseeded_numpy(patch: pytest.MonkeyPatch) -> None:
    """Mixup draws from numpy's global stream."""
    patch.setattr(order.numpy.random, "seed", lambda value: None)


def mosaic_open_again(patch: pytest.MonkeyPatch) -> None:
    """The flag is a local variable of stock's loop: a resume in the last epochs opens mosaic again."""
    patch.setattr(LabelledDataset, "close_mosaic", lambda self, hyp: None)


@pytest.mark.parametrize(
    "drop",
    [
        unseeded_samples,
        unseeded_numpy,
        unseeded_batches,
        order_of_the_first_epoch,
        partners_of_the_worker,
        loader_from_the_start,
        mosaic_open_again,
    ],
    ids=lambda drop: drop.__name__,
)
def test_randomness_that_depends_on_the_past_changes_the_end(
    halfway: tuple[Path, dict[str, Any], State],
    drop: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1 to 9: with the pure function taken out, a resume no longer sees what the untouched run saw."""
    drop(monkeypatch)
    assert resume_without(halfway, lambda state: None, monkeypatch) != []
