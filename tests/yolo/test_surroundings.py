"""States that the short run of test_states.py does not have, or that are not in a checkpoint's tensors.

The numbers are those of the list in `kit.yolo.state`.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from kit.data import shapes
from kit.errors import Stopped
from kit.run import order
from kit.store import checkpoint
from kit.yolo.setup import Setup
from kit.yolo.state import TrainerState, mapped, scaler_state, versions
from tests.help import training
from tests.help.training import differences, rows, stop_at
from tests.yolo.test_parity import build


def stopped(place: Path, values: dict[str, Any], at: int, **changes: Any) -> Path:
    """Train, stopped when `stop` was asked so often; put values into the checkpoint's `loop`; return its path."""
    with pytest.raises(Stopped):
        training.train(values, stop_at(at))
    latest = place / "working/runs/train/checkpoints/latest.pt"
    rewrite(latest, loop={**training.read(latest)["loop"], **changes})
    return latest


def rewrite(latest: Path, **changes: Any) -> None:
    state = {**training.read(latest), **changes}
    with open(latest, "wb") as file:
        checkpoint.write(state, file)


@pytest.mark.parametrize("seeded", [True, False])
def test_dropout_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch, seeded: bool) -> None:
    """4: it draws from torch's generator, which is seeded batch by batch."""
    values = training.settings(place, "classify", epochs=2, dropout=0.5)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    latest = stopped(place, values, 4 + 2)
    if not seeded:
        seed = order.seed_all
        monkeypatch.setattr(order, "seed_all", lambda value, cuda=False: None if cuda else seed(value))
        rewrite(latest, rng_state=order.state_dict())
    assert (differences(untouched, training.train(values)) == []) is seeded


def test_gradient_scaler_goes_on() -> None:
    """15: its scale and the steps since it grew last."""
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=7)
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    assert scaler_state(scaler) == scaler.state_dict()
    for _ in range(3):
        scaler.scale(weight.sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    saved = scaler.state_dict()
    assert saved["_growth_tracker"] == 3
    held = scaler_state(scaler)
    assert mapped(held, torch.Tensor.item) == saved
    assert held["scale"] is scaler._scale, "a save would wait for all that the GPU has to do"
    assert scaler_state(torch.amp.GradScaler("cpu", enabled=False)) == {}
    other = torch.amp.GradScaler("cpu")
    other.load_state_dict(checkpoint.plain(saved))
    assert other.state_dict() == saved


def test_metrics_of_the_last_validation_stay_in_the_results(place: Path) -> None:
    """16: a row repeats them where an epoch is not validated."""
    values = training.settings(place, val=False)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    latest = stopped(place, values, 4 + 1)
    shutil.copytree(latest.parents[1], latest.parents[2] / "whole")
    assert rows(training.train({**values, "kit.run": "runs/whole"})) == rows(untouched)
    rewrite(latest, loop={**training.read(latest)["loop"], "metrics": {}})
    assert rows(training.train(values)) != rows(untouched)


@pytest.mark.parametrize("name", ["loss", "loss_items", "tloss", ""])
def test_losses_of_the_epoch_are_there_for_its_validation(place: Path, name: str) -> None:
    """16: a resume between the last batch and the validation has no batch to get them from."""
    values = training.settings(place, epochs=2)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    latest = stopped(place, values, 3 + 2 + 3)
    state = training.read(latest)
    assert (state["epoch"], state["progress"]["batch"]) == (1, 3)
    if not name:
        assert rows(training.train(values)) == rows(untouched)
        return
    rewrite(latest, loop={**state["loop"], name: None})
    with pytest.raises((AttributeError, TypeError)):
        training.train(values)


@pytest.mark.parametrize("ordered", [True, False])
def test_validation_of_classes_sees_the_same_batches(
    place: Path, monkeypatch: pytest.MonkeyPatch, ordered: bool
) -> None:
    """22: Ultralytics shuffles them, by a generator that a resume starts anew; val/loss depends on the order."""
    shapes.make(place / "shapes-classify", splits={"train": 12, "val": 5}, size=64)
    values = training.settings(place, "classify", batch=1, epochs=3)
    if not ordered:
        stock = Setup.get_dataloader

        def get_dataloader(self: Any, path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
            return (stock if mode == "train" else super(Setup, type(self)).get_dataloader)(
                self, path, batch_size, rank, mode
            )

        monkeypatch.setattr(Setup, "get_dataloader", get_dataloader)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    stopped(place, values, 12 + 4 + 3)
    assert (rows(untouched) == rows(training.train(values))) is ordered


def test_other_surroundings_are_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """23: versions, GPUs and threads decide on bits too; training goes on."""
    values = training.settings(place, epochs=2)
    latest = stopped(place, values, 4 + 2)
    rewrite(latest, versions={**training.read(latest)["versions"], "torch": "2.0.1", "gpu": ["Tesla T4"]})
    assert training.train(values)["epoch"] == 2
    said = capsys.readouterr().out
    assert f"No longer bit-exact, the environment changed: torch 2.0.1 -> {torch.__version__}; gpu ['Tesla" in said


def test_gpu_of_a_run_is_the_one_that_it_trains_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """23: not each that is there: one may be of another kind, and with `device=cpu` none counts."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(
        torch.cuda,
        "get_device_name",
        lambda device: (
            f"kind {torch.device('cuda', device).index}" if isinstance(device, int) else f"kind {device.index}"
        ),
    )
    assert versions(torch.device("cuda", 1))["gpu"] == ["kind 1"]
    assert versions(torch.device("cpu"))["gpu"] == []


def test_moments_and_gradients_lie_as_their_parameters_do(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """12, 13: from a machine, or with a setting, that laid them out otherwise; fused optimizers would refuse them."""
    values = training.settings(place, epochs=2, nbs=12, optimizer="AdamW")
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    latest = stopped(place, values, 3 + 2 + 2)
    state, seen = training.read(latest), []
    tensors = [*state["gradients"].values()]
    for kept in state["optimizer_state_dict"]["state"].values():
        tensors += [kept["exp_avg"], kept["exp_avg_sq"]]
    for each in tensors:
        if each.dim() == 4:
            each.data = each.clone(memory_format=torch.channels_last)
    assert state["gradients"]
    rewrite(latest, gradients=state["gradients"], optimizer_state_dict=state["optimizer_state_dict"])
    assert any(not each.is_contiguous() for each in training.read(latest)["gradients"].values())
    move = TrainerState.move_together

    def look(self: TrainerState) -> Any:
        if not seen:
            for parameter, kept in self.trainer.optimizer.state.items():
                values = [*kept.values(), *([] if parameter.grad is None else [parameter.grad])]
                seen.extend(value.is_contiguous() for value in values if value.dim())
        return move(self)

    monkeypatch.setattr(TrainerState, "move_together", look)
    assert differences(untouched, training.train(values)) == []
    assert set(seen) == {True}


def test_other_images_are_said(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """24: the order of an epoch is that of the file list; training goes on at the same place of the epoch."""
    values = training.settings(place, epochs=2)
    stopped(place, values, 3 + 2 + 2)
    images = place / "shapes-detect/images/train"
    for number in range(4):
        shutil.copy(images / "0000.png", images / f"more{number}.png")
        shutil.copy(place / "shapes-detect/labels/train/0000.txt", images.parents[1] / f"labels/train/more{number}.txt")
    state = training.train(values)
    said = capsys.readouterr().out
    assert "No longer bit-exact, the environment changed: the list of training images" in said
    assert "Starting training from epoch 2/2 (batch 3/4)" in said
    assert state["epoch"] == 2


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("part", ["images", "labels"])
def test_other_content_under_the_same_names_is_said(
    place: Path, capsys: pytest.CaptureFixture[str], split: str, part: str
) -> None:
    """24: a new version of the data set, with pictures or labels replaced."""
    values = training.settings(place, epochs=2)
    stopped(place, values, 3 + 2 + 2)
    one, other = sorted((place / f"shapes-detect/{part}/{split}").iterdir())[:2]
    shutil.copy(other, one)
    shutil.rmtree(place / "scratch")
    (place / "scratch").mkdir()
    assert training.train(values)["epoch"] == 2
    kind = "training" if split == "train" else "validation"
    assert f"the environment changed: the {kind} {part}\n" in capsys.readouterr().out


def test_data_set_in_another_folder_with_other_dates_is_the_same(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """24: as Kaggle attaches it in the next session."""
    values = training.settings(place, epochs=2)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    stopped(place, values, 3 + 2 + 2)
    shutil.copytree(place / "shapes-detect", place / "elsewhere", copy_function=shutil.copyfile)
    shutil.rmtree(place / "shapes-detect")
    capsys.readouterr()
    again = training.train({**values, "data": str(place / "elsewhere/data.yaml")})
    assert "Not exact" not in capsys.readouterr().out
    assert differences(untouched, again) == []


def test_order_of_the_file_list_is_part_of_its_hash() -> None:
    """24: and the folder that it lies in is not."""
    from kit.yolo.setup import data_hash

    assert data_hash(["/a/1.png", "/a/2.png"], "/a") == data_hash(["/b/1.png", "/b/2.png"], "/b")
    assert data_hash(["/a/1.png", "/a/2.png"], "/a") != data_hash(["/a/2.png", "/a/1.png"], "/a")


@pytest.mark.parametrize("verdict", [True, False])
def test_verdict_on_mixed_precision_is_kept(verdict: bool) -> None:
    """26: decided once, on the first GPU of the run, and not by a model from the network."""
    stub = SimpleNamespace(args=SimpleNamespace(amp=True), device=torch.device("cuda"))
    stub.run = SimpleNamespace(resumed={"versions": {"gpu": ["Tesla T4"]}, "loop": {"amp": verdict}})
    assert Setup._mixed_precision(stub) is verdict
    stub.args.amp = False
    assert Setup._mixed_precision(stub) is False


@pytest.mark.parametrize("kept", [True, False])
def test_end_to_end_head_resumes_with_its_schedule(place: Path, kept: bool) -> None:
    """18: the weights of its two losses change from epoch to epoch."""
    values = {**training.settings(place, epochs=3), "model": "yolo26n.yaml"}
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    with pytest.raises(Stopped):
        training.train(values, stop_at(3 + 2 + 2))
    latest = place / "working/runs/train/checkpoints/latest.pt"
    state = training.read(latest)
    assert state["loop"]["criterion"]["updates"] == 1
    if not kept:
        state["loop"]["criterion"] = {}
        with open(latest, "wb") as file:
            checkpoint.write(state, file)
    assert (differences(untouched, training.train(values)) == []) is kept


def test_early_stopper_remembers_its_best_epoch(place: Path) -> None:
    """17: patience counts from the best epoch so far, of whatever session."""
    values = training.settings(place, "classify", epochs=6, patience=2)
    with pytest.raises(Stopped):
        training.train(values, stop_at(3 + 2 + 2))
    latest = place / "working/runs/train/checkpoints/latest.pt"
    state = training.read(latest)
    assert state["loop"]["stopper"]["best_epoch"] == 1
    state["loop"]["stopper"]["best_fitness"] = 1.5  # no later epoch can be better
    with open(latest, "wb") as file:
        checkpoint.write(state, file)
    assert training.train(values)["epoch"] == 3


def test_clock_goes_on(place: Path) -> None:
    """20: the time column of results.csv counts training, not the pause between two sessions."""
    values = training.settings(place)
    with pytest.raises(Stopped):
        training.train(values, stop_at(3 + 2 + 2))
    latest = place / "working/runs/train/checkpoints/latest.pt"
    state = training.read(latest)
    state["progress"]["elapsed_s"] = 5000.0
    with open(latest, "wb") as file:
        checkpoint.write(state, file)
    times = [row["time"] for row in training.train(values)["history"]]
    assert times[0] < 1000 < 5000 < times[1] < times[2] < 6000


def test_what_set_up_decided_holds(place: Path) -> None:
    """21: `optimizer=auto` decides by the length of the run; a longer run must not decide anew."""
    values = training.settings(place, optimizer="auto", epochs=2)
    del values["lr0"]
    first = training.train(values)
    assert first["loop"]["decided"]["optimizer"] == "AdamW"
    with pytest.raises(Stopped):
        training.train({**values, "epochs": 20000}, stop_at(2))  # a fresh run of this length takes MuSGD
    again = training.read(place / "working/runs/train/checkpoints/latest.pt")
    assert again["loop"]["decided"] == first["loop"]["decided"]
    assert again["progress"]["epochs"] == 20000


@pytest.mark.parametrize("plots", [True, False])
def test_plots_and_callbacks_do_not_shift_training(place: Path, plots: bool) -> None:
    """Validation, plots and a user's callbacks draw random numbers as they like: the weights are the same."""
    values = training.settings(place, plots=plots, epochs=2, multi_scale=0.3)
    quiet = build({**values, "plots": False}, "quiet", stock=False)
    quiet.train()
    noisy = build(values, "noisy", stock=False)
    for event in ("on_train_batch_start", "on_train_batch_end", "on_train_epoch_start", "on_val_batch_end"):
        noisy.add_callback(event, lambda _: (torch.rand(3), order.random.random(), order.numpy.random.rand()))
    noisy.train()
    assert differences({"model": quiet.model.state_dict()}, {"model": noisy.model.state_dict()}, ("model",)) == []


@pytest.mark.parametrize(
    ("kind", "deterministic", "said"), [("cuda", False, True), ("cuda", True, False), ("cpu", False, False)]
)
def test_gpu_that_need_not_be_deterministic_is_not_exact_and_says_so(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    deterministic: bool,
    said: bool,
) -> None:
    """A CPU adds up in one order either way; the trainer chooses its device itself, here the CPU."""
    monkeypatch.setattr("kit.yolo.train.select_device", lambda *_, **__: torch.device(kind))
    training.train(training.settings(place, epochs=1, deterministic=deterministic))
    assert ("Not exact: deterministic=False" in capsys.readouterr().out) is said
