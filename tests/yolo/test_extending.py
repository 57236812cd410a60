"""A run that gets longer, stops early or goes on with other settings: what changes, and that it is said."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kit.errors import Stopped
from kit.yolo.samples import LabelledDataset
from tests.help import training
from tests.help.training import STEPS, Killed, differences, kill_at, rows, stop_at


def rates(state: dict[str, Any]) -> list[float]:
    return [row["lr/pg1"] for row in state["history"]]


def test_longer_run_enters_the_schedule_of_its_new_length(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Finished with 3 epochs and extended to 6: learning rates are those of a run of 6 from there on."""
    values = training.settings(place, cos_lr=True, warmup_epochs=0)
    short = rates(training.train(values))
    fresh = rates(training.train({**values, "epochs": 6, "kit.run": "runs/fresh"}))
    capsys.readouterr()
    longer = rates(training.train({**values, "epochs": 6}))
    assert longer == short + fresh[3:]
    said = capsys.readouterr().out
    assert "The run has 6 epochs now and had 3: learning rate, warm-up and close_mosaic are from here on" in said
    assert "Starting training from epoch 4/6 (batch 1/3)" in said


def test_mosaic_closes_before_the_changed_end(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed for the last epoch of 2, open again in a longer run, and closed for the last of 4."""
    closed: list[int] = []
    own = LabelledDataset.__getitem__

    def item(self: LabelledDataset, key: Any) -> Any:
        sample = own(self, key)
        if self._closed and hasattr(key, "epoch") and key.epoch not in closed:
            closed.append(key.epoch)
        return sample

    monkeypatch.setattr(LabelledDataset, "__getitem__", item)
    values = training.settings(place, epochs=2, close_mosaic=1)
    training.train(values)
    assert closed == [1]
    training.train({**values, "epochs": 4})
    assert closed == [1, 3]


def test_longer_run_that_is_killed_ends_with_the_bits_of_one_that_is_not(place: Path) -> None:
    """Extending is exact as well: the second half depends on nothing but the first half's end."""
    values = training.settings(place, epochs=2, close_mosaic=1)
    for name in ("untouched", "killed"):
        training.train({**values, "kit.run": f"runs/{name}"})
    assert_exact_when_longer(values)


def assert_exact_when_longer(values: dict[str, Any], gone: str = "") -> None:
    """Extend two finished runs, of which one is killed: they end with the same bits, without a file that is gone."""
    longer = {**values, "epochs": 4}
    untouched = training.train({**longer, "kit.run": "runs/untouched"})
    if gone:
        Path(gone).unlink()
    for at in (2, STEPS + 1):
        with pytest.raises(Killed):
            training.train({**longer, "kit.run": "runs/killed"}, kill_at(at))
    again = training.train({**longer, "kit.run": "runs/killed"})
    assert differences(untouched, again) == []
    assert rows(untouched) == rows(again)


def test_longer_run_of_a_fine_tuned_model_needs_its_pretrained_file_no_more(
    place: Path, pretrained: Callable[..., dict[str, Any]]
) -> None:
    """The file is gone when the run is extended and killed: the bits are those of a run that has it."""
    values = pretrained(place, epochs=2, close_mosaic=1)
    for name in ("untouched", "killed"):
        training.train({**values, "kit.run": f"runs/{name}"})
    assert_exact_when_longer(values, gone=values["model"])


def test_shorter_run_is_complete(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With fewer epochs than are done, only the final evaluation is left."""
    values = training.settings(place)
    with pytest.raises(Stopped):
        training.train(values, stop_at(2 * STEPS + 1))
    training.train({**values, "epochs": 1})
    assert "Training is complete after 2 epochs: only the final evaluation is left" in capsys.readouterr().out


def test_run_that_stopped_early_goes_on_with_more_patience(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`patience` may change: counted from the best epoch so far, as if it had always been so."""
    values = training.settings(place, "classify", epochs=8, patience=1)
    early = training.train(values)
    assert early["epoch"] < 8
    training.train(values)
    assert f"This run is finished: {early['epoch']} epochs" in capsys.readouterr().out
    patient = training.train({**values, "patience": 100})
    untouched = training.train({**values, "patience": 100, "kit.run": "runs/untouched"})
    assert patient["epoch"] == 8
    assert differences(untouched, patient) == []


def test_other_learning_rate_takes_effect(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--resume FILE lr0=...`: the new rate and weight decay, with the optimizer's momentum kept."""
    values = training.settings(place, epochs=4, warmup_epochs=0, optimizer="SGD")
    with pytest.raises(Stopped):
        training.train(values, stop_at(2 * STEPS + 2))
    latest = place / "working/runs/train/checkpoints/latest.pt"
    state = training.train({**values, "lr0": 0.001, "weight_decay": 0.1}, resume=str(latest))
    assert "No longer bit-exact, the settings changed: lr0: 0.01 -> 0.001" in capsys.readouterr().out
    before, after = rates(state)[1], rates(state)[2]
    assert 8 < before / after < 15
    decays = {group["weight_decay"] for group in state["optimizer_state_dict"]["param_groups"]}
    assert max(decays) > 0.05


def test_other_optimizer_starts_anew(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its memory does not fit another one; weights and position do."""
    values = training.settings(place, epochs=2, optimizer="SGD", nbs=4)
    with pytest.raises(Stopped):
        training.train(values, stop_at(STEPS + 1))
    latest = place / "working/runs/train/checkpoints/latest.pt"
    state = training.train({**values, "optimizer": "AdamW"}, resume=str(latest))
    assert "the optimizer, which starts with no momentum (SGD -> AdamW)" in capsys.readouterr().out
    assert state["epoch"] == 2
    assert "exp_avg" in state["optimizer_state_dict"]["state"][0]


@pytest.mark.parametrize(("batch", "place_in_epoch"), [(2, "batch 5/6"), (6, "batch 2/2"), (12, "batch 1/1")])
def test_other_batch_size_goes_on_at_the_same_sample(
    place: Path, capsys: pytest.CaptureFixture[str], batch: int, place_in_epoch: str
) -> None:
    """Eight of twelve samples were done: no sample is left out, and few are seen twice."""
    values = training.settings(place, epochs=2, nbs=8)
    with pytest.raises(Stopped):
        training.train(values, stop_at(STEPS + 2))
    latest = place / "working/runs/train/checkpoints/latest.pt"
    state = training.train({**values, "batch": batch}, resume=str(latest))
    assert f"Starting training from epoch 2/2 ({place_in_epoch})" in capsys.readouterr().out
    assert state["epoch"] == 2
    assert state["loop"]["last_opt_step"] > 2 * state["progress"]["batches"] - 1 - 8 // batch - 1


# --- branches


@pytest.mark.parametrize("again", ["auto", "killed"])
def test_branch_from_the_best_model_is_gone_on_with(
    place: Path, capsys: pytest.CaptureFixture[str], again: str
) -> None:
    """The kit's own advice after a bad loss: fewer steps than the line before, and still the one that counts."""
    values = training.settings(place, epochs=4)
    saves = {"kit.max_lost_s": 1e-6, "kit.max_cost_percent": 1e9}
    with pytest.raises(Stopped):
        training.train({**values, **saves}, stop_at(2 * STEPS + 3))
    folder = place / "working/runs/train/checkpoints"
    steps = training.read(folder / "latest.pt")["progress"]["global_step"]
    branch = {**values, **saves, "lr0": 0.001}
    end, stop = (Killed, kill_at(2)) if again == "killed" else (Stopped, stop_at(1))
    with pytest.raises(end):
        training.train(branch, stop, resume=str(folder / "best.pt"))
    assert training.read(folder / "latest.pt")["progress"]["global_step"] < steps
    assert training.read(folder / "latest.pt.abandoned")["progress"]["global_step"] == steps
    capsys.readouterr()
    state = training.train(branch)
    said = capsys.readouterr().out
    assert f"Resuming from checkpoint: {folder / 'latest.pt'}" in said
    assert "Not exact" not in said
    assert (state["epoch"], state["progress"]["branch"]) == (4, 1)
    assert state["optimizer_state_dict"]["param_groups"][0]["initial_lr"] == 0.001
    assert not (folder / "latest.pt.abandoned").exists(), "the branch has got further"


def test_branch_wins_over_an_attached_line_that_got_further(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The output of the session before is still attached."""
    values = training.settings(place, epochs=4)
    with pytest.raises(Stopped):
        training.train(values, stop_at(2 * STEPS + 3))
    shutil.copytree(place / "working/runs/train", place / "input/output")
    branch = {**values, "lr0": 0.001}
    with pytest.raises(Stopped):
        training.train(branch, stop_at(2), resume=str(place / "working/runs/train/checkpoints/best.pt"))
    capsys.readouterr()
    assert training.train(branch)["epoch"] == 4
    found = capsys.readouterr().out
    assert "Resuming from checkpoint: " + str(place / "working") in found


def test_given_file_that_would_be_taken_anyway_is_no_branch(place: Path) -> None:
    """The guide's manual resume command, session after session."""
    values = training.settings(place)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    latest = place / "working/runs/train/checkpoints/latest.pt"
    with pytest.raises(Stopped):
        training.train(values, stop_at(STEPS + 2))
    end = training.train(values, resume=str(latest))
    assert end["progress"]["branch"] == 0
    assert differences(untouched, end) == []
