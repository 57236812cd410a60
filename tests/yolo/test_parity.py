"""The kit's model and loop against Ultralytics' own: with the same data, the same bits.

This guards upgrades of ultralytics too: a release that changes the arithmetic of its loop makes these tests fail.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ultralytics.engine.trainer import BaseTrainer

from kit.kaggle import session
from kit.run import order
from kit.run.status import Status
from kit.store.folder import RunFolder
from kit.yolo.identity import identify
from kit.yolo.loop import Run
from kit.yolo.settings import load
from kit.yolo.setup import Setup
from kit.yolo.train import TRAINERS, quiet
from tests.help import training

Start = Callable[..., dict[str, Any]]


def build(values: dict[str, Any], name: str, stock: bool) -> Any:
    """Build a trainer: the kit's, or one with the kit's data and Ultralytics' own loop and model."""
    quiet()
    empty = session.scratch() / "empty.yaml"
    empty.write_text("{}")
    config = load(empty, {**values, "kit.run": f"runs/{name}"})
    dataset, identity = identify(config)
    folder = config.run_folder
    (folder / "checkpoints").mkdir(parents=True)
    run = Run(config, folder, identity, Status(RunFolder(folder)), lambda: "", None)
    overrides = {**config.train, "task": identity["task"], "data": str(dataset.path), "save_dir": str(folder)}
    kind = TRAINERS[identity["task"]]
    if not stock:
        return kind(run, overrides)
    base = next(base for base in kind.__mro__ if issubclass(base, BaseTrainer) and not issubclass(base, Setup))
    own = {"run": run, "setup_model": base.setup_model}
    trainer = type(f"Stock{base.__name__}", (Setup, base), own)(overrides=overrides)
    trainer.args.workers = values["workers"]
    trainer.add_callback("on_train_epoch_start", start_epoch)
    trainer.add_callback("on_train_batch_start", start_batch)
    return trainer


def start_epoch(trainer: Any) -> None:
    """Where stock training restarts its loader (close_mosaic), the order goes on with this epoch."""
    trainer.train_loader.batch_sampler.start = (trainer.epoch, 0)
    trainer.at = 0


def start_batch(trainer: Any) -> None:
    """Seed as the kit's loop does; stock training leaves multi-scale and dropout to whatever came before."""
    order.seed_all(order.mix("batch", trainer.args.seed, trainer.epoch, trainer.at), cuda=True)
    trainer.at += 1


def outcome(trainer: Any) -> tuple[dict[str, Any], list[str]]:
    """Train, and return the state at the end and the lines of results.csv without the clock."""
    trainer.train()
    lines = (line.split(",") for line in trainer.csv.read_text().splitlines())
    state = {
        "epoch": trainer.epoch,
        "model": trainer.model.state_dict(),
        "ema": trainer.ema.ema.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.scheduler.get_last_lr(),
        "stopper": (trainer.stopper.best_epoch, trainer.stopper.best_fitness),
    }
    return state, [",".join(cells[:1] + cells[2:]) for cells in lines]


def assert_same_bits(values: dict[str, Any]) -> dict[str, Any]:
    """The kit's training ends as Ultralytics' does; return the state."""
    mine, own = outcome(build(values, "own", stock=False))
    theirs, stock = outcome(build(values, "stock", stock=True))
    assert training.differences(mine, theirs, tuple(mine)) == []
    assert own == stock
    return mine


LONG = {"epochs": 4, "nbs": 12, "warmup_epochs": 1.5, "close_mosaic": 2}  # accumulation over 3 batches, warm-up


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("detect", {"optimizer": "SGD", "cos_lr": True, "multi_scale": 0.5}),
        ("detect", {"optimizer": "auto", "workers": 2}),
        ("detect", {"val": False, "freeze": 2, "optimizer": "MuSGD"}),
        ("segment", {"copy_paste": 0.5, "mixup": 0.3}),
        ("pose", {"cos_lr": True}),
        ("obb", {"degrees": 45.0}),
        ("classify", {"dropout": 0.2}),
        ("classify", {"epochs": 8, "patience": 1}),
        ("end2end", {}),
    ],
)
def test_loop_gives_the_bits_of_ultralytics_own(place: Path, task: str, changes: dict[str, Any]) -> None:
    """Over several epochs, with warm-up, accumulation, close_mosaic, schedules and early stopping."""
    values = training.settings(place, "detect" if task == "end2end" else task, **{**LONG, **changes})
    if task == "end2end":
        values["model"] = "yolo26n.yaml"
    mine = assert_same_bits(values)
    if "patience" in changes:
        assert mine["epoch"] < changes["epochs"] - 1, "early stopping must have come into it"


@pytest.mark.parametrize(
    ("task", "classes", "changes"),
    [
        ("detect", 80, {}),
        ("detect", 80, {"cls_remap": False, "freeze": 2}),
        ("detect", 80, {"single_cls": True}),
        ("detect", 80, {"pretrained": False}),
        ("detect", 3, {"optimizer": "MuSGD"}),
        ("detect", 3, {"cls_remap": False}),
        ("segment", 80, {}),
        ("classify", 80, {}),
    ],
)
def test_loop_gives_the_bits_of_ultralytics_own_from_a_pretrained_file(
    place: Path, pretrained: Start, task: str, classes: int, changes: dict[str, Any]
) -> None:
    """With more classes than the data set and as many, whose names stand in another order."""
    assert_same_bits(pretrained(place, task, nc=classes, **{**LONG, **changes}))


@pytest.mark.parametrize("classes", [3, 6])
def test_loop_gives_the_bits_of_ultralytics_own_from_a_file_of_fewer_classes(
    place: Path, pretrained: Start, classes: int
) -> None:
    """Trained on 80: the class branch stays as narrow as the file's."""
    values = pretrained(place, nc=classes, **LONG)
    training.name_more(values["data"], 80)
    assert_same_bits(values)


@pytest.mark.parametrize("model", ["a description", "another file"])
def test_loop_gives_the_bits_of_ultralytics_own_with_weights_of_another_file(
    place: Path, pretrained: Start, model: str
) -> None:
    """`pretrained=FILE`: the layers are those of `model=`, the weights and the class branch those of FILE."""
    values = pretrained(place, nc=6, **LONG) if model == "another file" else training.settings(place, **LONG)
    assert_same_bits({**values, "pretrained": pretrained(place)["model"]})


@pytest.mark.slow
def test_loop_gives_the_bits_of_ultralytics_own_from_a_pretrained_end_to_end_model(
    place: Path, big: Callable[[str], Path]
) -> None:
    """It has two class branches, and both are taken over."""
    mine = assert_same_bits(training.settings(place, start=big("yolo26n"), **LONG))
    widths = {name: value.shape[1] for name, value in mine["model"].items() if name.endswith("cv3.0.2.weight")}
    assert widths == {"model.23.cv3.0.2.weight": 80, "model.23.one2one_cv3.0.2.weight": 80}
