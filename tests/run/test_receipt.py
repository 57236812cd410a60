"""A resume tells how sure it is: the losses after the checkpoint are compared with those of the session before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.errors import Stopped
from kit.run import status
from kit.run.receipt import KEPT, Receipt
from tests.help import training
from tests.help.training import Killed, differences, kill_at, stop_at

Start = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is told: a small model trains several within half a second."""
    monkeypatch.setattr(status, "EVERY", 0.0)


def lines(said: str) -> list[str]:
    found = (line.removeprefix("WARNING: ") for line in said.splitlines())
    return [line for line in found if line.startswith(("Exact", "Not exact", "No longer bit-exact"))]


def stopped(values: dict[str, Any], at: int = 2) -> Path:
    """Train until a stop in the first epoch, and return the run folder."""
    with pytest.raises(Stopped):
        training.train(values, stop_at(at))
    return Path(training.load(training._no_file(), values).run_folder)


def change(latest: Path, how: Callable[[dict[str, Any]], None]) -> None:
    """Change a checkpoint and save it as a whole one."""
    state = training.read(latest)
    how(state)
    torch.save(state, latest)


@pytest.mark.parametrize("start", ["description", "pretrained"])
def test_resume_after_a_stop_says_that_it_is_exact(
    place: Path, pretrained: Start, capsys: pytest.CaptureFixture[str], start: str
) -> None:
    """Two batches were trained after the save; they are trained again, and the run has the bits of an untouched one."""
    changes = {"images": 24, "nbs": 4}
    values = training.settings(place, **changes) if start == "description" else pretrained(place, **changes)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    folder = stopped(values)
    state = status.read(folder)
    assert [step for step, _ in state["receipt"]["seen"]] == [3, 4]
    assert state["batch"] == state["checkpoint"]["batch"] == 2, "what was trained for the receipt is thrown away"
    capsys.readouterr()
    again = training.train(values)
    said = "Exact: the 2 batches after the checkpoint gave the same losses as before, to the bit"
    assert lines(capsys.readouterr().out) == [said]
    assert differences(untouched, again) == []


def test_resume_after_a_kill_says_that_it_is_exact(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The batches that the kill cost are the receipt."""
    values = training.settings(place, images=24, **{"kit.max_lost_s": 1e9})
    with pytest.raises(Killed):
        training.train(values, kill_at(6 + 2 + 4))  # in the second epoch
    capsys.readouterr()
    training.train(values)
    assert lines(capsys.readouterr().out) == [
        "Exact: the 4 batches after the checkpoint gave the same losses as before, to the bit"
    ]


def test_receipt_lies_beside_a_checkpoint_that_was_attached(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An earlier output, attached to a session with an empty disk."""
    values = training.settings(place, images=24)
    folder = stopped(values)
    shutil.move(folder.parent, place / "input/earlier")
    capsys.readouterr()
    training.train(values)
    assert len(lines(capsys.readouterr().out)) == 1


def weights(state: dict[str, Any]) -> None:
    next(iter(state["model_state_dict"].values())).view(-1)[0] += 1e-3


def momentum(state: dict[str, Any]) -> None:
    memory = state["optimizer_state_dict"]["state"].values()
    for value in (each for entry in memory for each in entry.values() if isinstance(each, torch.Tensor)):
        value.add_(1e-3)


def accumulation(state: dict[str, Any]) -> None:
    state["loop"]["last_opt_step"] += 1


@pytest.mark.parametrize("how", [weights, momentum, accumulation])
def test_resume_that_is_not_exact_is_told_and_what_differs(
    place: Path, capsys: pytest.CaptureFixture[str], how: Callable[[dict[str, Any]], None]
) -> None:
    """One weight, the optimizer's memory, or the place in an accumulation is another."""
    values = training.settings(place, images=24, nbs=8, warmup_epochs=0)
    folder = stopped(values, 3)
    change(folder / "checkpoints/latest.pt", how)
    capsys.readouterr()
    training.train(values)
    (said,) = lines(capsys.readouterr().out)
    assert said.startswith("Not exact, though nothing is known to have changed: ")
    assert "in the session before, after batch " in said
    assert said.endswith("of epoch 1")


def test_difference_that_was_to_be_expected_is_said_as_that(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another version of torch."""
    values = training.settings(place, images=24)
    folder = stopped(values)

    def other(state: dict[str, Any]) -> None:
        state["versions"]["torch"] = "1.0"
        weights(state)

    change(folder / "checkpoints/latest.pt", other)
    capsys.readouterr()
    training.train(values)
    first, second = lines(capsys.readouterr().out)
    assert first.startswith("No longer bit-exact, the environment changed: ")
    assert second.startswith("Not exact, as was said: ")


@pytest.mark.parametrize("again", [{"kit.receipt": 0}, {"epochs": 4}])
def test_nothing_is_said_where_there_is_nothing_to_compare(
    place: Path, capsys: pytest.CaptureFixture[str], again: dict[str, Any]
) -> None:
    """By choice, or because the losses of a longer run are others."""
    values = training.settings(place, images=24, **(again if "kit.receipt" in again else {}))
    folder = stopped(values)
    assert bool(status.read(folder)["receipt"]) == ("epochs" in again)
    capsys.readouterr()
    training.train({**values, **again})
    assert lines(capsys.readouterr().out) == []


def test_batches_too_slow_for_a_receipt_are_not_trained(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A stop takes no longer for it than two seconds."""
    monkeypatch.setattr("kit.yolo.loop.AHEAD_S", 0.0)
    folder = stopped(training.settings(place, images=24))
    assert all(step <= 2 for step, _ in status.read(folder)["receipt"]["seen"])


@pytest.mark.parametrize("before", [None, [], "x", {"seen": 3}, {"run_id": "a", "seen": [[1], 2, ["x", {}], None]}])
def test_receipt_that_is_none_is_no_receipt(before: Any) -> None:
    """Whatever stands in a `status.json`."""
    assert Receipt(before, {"run_id": "a"}).expected == {}


def test_receipt_is_bounded_and_survives_json() -> None:
    """It keeps what follows the newest checkpoint, and numbers come back as they were."""
    one = Receipt(None, {"run_id": "a"})
    for step in range(1, 100):
        text = json.dumps(one.note(step, {"loss": torch.tensor(step / 3), "bad": torch.tensor(float("nan"))}, 10))
    other = Receipt(json.loads(text), {"run_id": "a"})
    other.begin(12)
    assert len(json.loads(text)["seen"]) == KEPT
    assert next(iter(other.expected)) == 13
    assert other.compare(13, {"loss": torch.tensor(13 / 3), "bad": torch.tensor(float("nan"))}) is None
    assert "loss is 4.6" in str(other.compare(14, {"loss": torch.tensor(14 / 3 + 1e-6), "bad": torch.tensor(0.0)}))
