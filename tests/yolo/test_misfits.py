"""Checkpoints that are whole and do not fit: nothing of them enters the run folder before the model has taken it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.errors import CheckpointError, Stopped
from kit.yolo import models
from tests.help import training
from tests.help.training import STEPS, differences, stop_at
from tests.yolo.test_surroundings import rewrite
from tests.yolo.test_trainer import EVERY_STEP

State = dict[str, Any]


@dataclass
class Attached:
    """Settings, a checkpoint that stopped in epoch 2, and the end of a run that was never touched."""

    values: dict[str, Any]
    latest: Path
    untouched: State


@pytest.fixture(scope="module")
def attached(tmp_path_factory: pytest.TempPathFactory) -> Attached:
    """One for all ways in which it may not fit; a test attaches a copy."""
    folder = tmp_path_factory.mktemp("attached")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("working", "input", "scratch"):
            (folder / name).mkdir()
            patch.setenv(f"KIT_{name.upper()}", str(folder / name))
        values = training.settings(folder, **EVERY_STEP)
        untouched = training.train({**values, "kit.run": "runs/untouched"})
        with pytest.raises(Stopped):
            training.train(values, stop_at(STEPS + 3))
    return Attached(values, folder / "working/runs/train/checkpoints/latest.pt", untouched)


def larger(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Make the first tensor longer."""
    name = next(iter(tensors))
    return {**tensors, name: torch.cat([tensors[name]] * 2)}


def fewer(tensors: dict[str, Any]) -> dict[str, Any]:
    """Leave the first one out."""
    return dict(list(tensors.items())[1:])


def optimizer(whole: State, **changes: Any) -> State:
    return {"optimizer_state_dict": {**whole["optimizer_state_dict"], **changes}}


def groups(whole: State) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = whole["optimizer_state_dict"]["param_groups"]
    return found


def moments(state: State) -> State:
    """Give a parameter moments of another shape, which torch's optimizer takes, to fail at the first step."""
    kept = state["optimizer_state_dict"]["state"]
    return optimizer(state, state={**kept, 0: {**kept[0], "exp_avg": torch.zeros(3, 5)}})


def wider(state: State) -> State:
    """A module tree of another width."""
    model = models.assemble(state)
    model.model[0].conv = torch.nn.Conv2d(3, 999, 3)
    return {"architecture": {**state["architecture"], "modules": models.skeleton(model)}}


def progress(**changes: Any) -> Callable[[State], State]:
    return lambda state: {"progress": {**state["progress"], **changes}}


def loop(**changes: Any) -> Callable[[State], State]:
    return lambda state: {"loop": {**state["loop"], **changes}}


TRIED: dict[str, Callable[[State], State]] = {  # found out where the model takes it
    "tree": wider,
    "average of other shapes": lambda state: {"ema_state_dict": larger(state["ema_state_dict"])},
    "average that lacks a tensor": lambda state: {"ema_state_dict": fewer(state["ema_state_dict"])},
    "optimizer of other groups": lambda state: optimizer(state, param_groups=[]),
    "optimizer without groups": lambda state: {"optimizer_state_dict": {}},
    "moments of other shapes": moments,
    "gradients of other shapes": lambda state: {"gradients": larger(state["model_state_dict"])},
    "no loop": lambda state: {"loop": {}},
    "decided rubbish": loop(decided={"batch": "rubbish", "optimizer": 3}),
    "rubbish of the stopper": loop(stopper={"best_epoch": "x"}),
    "rubbish of steps": loop(last_opt_step="x"),
    "rubbish of the learning rate": lambda state: {
        "scheduler_state_dict": {**state["scheduler_state_dict"], "last_epoch": "x"}
    },
    "optimizer that lacks a setting": lambda state: optimizer(
        state, param_groups=[{k: v for k, v in g.items() if k != "betas"} for g in groups(state)]
    ),
    "optimizer with rubbish": lambda state: optimizer(state, param_groups=[{**g, "lr": "x"} for g in groups(state)]),
    "optimizer that remembers rubbish": lambda state: optimizer(state, state={0: {"exp_avg": "x"}}),
    "text for a loss": loop(loss="x"),
    "number for losses": loop(tloss=3),
    "text for a fitness": loop(best_fitness="x"),
    "number for metrics": loop(metrics=3),
    "number for data": lambda state: {"architecture": {**state["architecture"], "data": 3}},
    "text for ranks": lambda state: {"ranks": "x"},
    "numbers for names of results": lambda state: {"history": [{1: 2.0}]},
    "random rubbish": lambda state: {"rng_state": {"torch": "x"}},
}
UNSOUND: dict[str, Callable[[State], State]] = {  # found out in a first look
    "text for a batch": progress(batch="x"),
    "batch before the first": progress(batch=-1),
    "nothing for a session": progress(sessions=[None]),
    "no steps": progress(global_step=None),
    "list of an epoch": lambda state: {"epoch": [1]},
    "no progress": lambda state: {"progress": None},
    "text in the results": lambda state: {"history": [{"epoch": "x"}]},
    "number for settings": lambda state: {"config": {**state["config"], "kit": 3}},
    "number for files": lambda state: {"architecture": {**state["architecture"], "files": 3}},
    "no numbers": lambda state: {"best_map": "high"},
}


def attach(place: Path, attached: Attached, spoil: Callable[[State], State]) -> Path:
    """Attach what does not fit, alone, and return it."""
    path = place / "input/old/latest.pt"
    path.parent.mkdir()
    shutil.copy(attached.latest, path)
    rewrite(path, **spoil(training.read(path)))
    return path


@pytest.mark.parametrize("what", list(TRIED))
@pytest.mark.parametrize("given", [False, True])
def test_attached_checkpoint_that_does_not_fit_is_one_sentence_and_leaves_nothing(
    place: Path, attached: Attached, what: str, given: bool
) -> None:
    """Found or named; detached, the run starts as if it had never been there."""
    path = attach(place, attached, TRIED[what])
    with pytest.raises(CheckpointError) as caught:
        training.train(attached.values, resume=str(path) if given else "auto")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
    checkpoints = place / "working/runs/train/checkpoints"
    assert not [*checkpoints.iterdir(), *(place / "working").rglob("results.csv")]
    if not given:
        path.unlink()
        assert differences(attached.untouched, training.train(attached.values)) == []


@pytest.mark.parametrize("what", list(UNSOUND))
def test_attached_checkpoint_with_rubbish_is_not_taken(
    place: Path, attached: Attached, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    """It is told like any damaged one, and the run starts."""
    path = attach(place, attached, UNSOUND[what])
    assert differences(attached.untouched, training.train(attached.values)) == []
    assert f"WARNING: '{path}' is not a checkpoint of this kit: it has no sound " in capsys.readouterr().out


def test_own_checkpoint_stays_where_a_given_one_does_not_fit(place: Path, attached: Attached) -> None:
    """Neither set aside nor replaced; without the other the run goes on."""
    own = place / "working/runs/train/checkpoints/latest.pt"
    own.parent.mkdir(parents=True)
    shutil.copy(attached.latest, own)
    path = attach(place, attached, moments)
    before = own.read_bytes()
    with pytest.raises(CheckpointError, match=r"does not fit the run \(ValueError: exp_avg of shape"):
        training.train(attached.values, resume=str(path))
    assert [each.name for each in own.parent.iterdir()] == ["latest.pt"]
    assert own.read_bytes() == before
    assert differences(attached.untouched, training.train(attached.values)) == []


def test_attached_checkpoint_that_fits_enters_the_run_folder(place: Path, attached: Attached) -> None:
    """As it was, before the first batch."""
    path = attach(place, attached, lambda state: {})
    asked = []

    def stop() -> str:
        asked.append((place / "working/runs/train/checkpoints/latest.pt").read_bytes())
        return ""

    assert differences(attached.untouched, training.train({**attached.values, "kit.max_lost_s": 1e6}, stop)) == []
    assert asked[0] == path.read_bytes()
