"""A model file that is damaged, or something else altogether, is one sentence and never a number."""

from __future__ import annotations

import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.errors import CheckpointError, ModelError, Stopped
from kit.yolo import evaluation, models
from kit.yolo.settings import load
from tests.help import samples, training
from tests.help.training import STEPS, acting, stop_at
from tests.store.test_trust import repack

Start = Callable[..., dict[str, Any]]


def change(path: Path, edit: Callable[[dict[str, Any]], Any]) -> None:
    """Write a file anew after an edit; its checksums are right."""
    state = torch.load(path, weights_only=False)
    edit(state)
    torch.save(state, path)


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-500])


def flip(path: Path) -> None:
    samples.flip_weights(path)


def lose_a_number(path: Path) -> None:
    change(path, lambda state: next(state["model"].parameters()).data.view(-1)[:1].fill_(float("nan")))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def make_page(path: Path) -> None:
    path.write_text("<!DOCTYPE html><title>404</title>")


def make_pointer(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 5\n")


def make_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as made:
        made.writestr("readme.txt", "hello")


def take_out_the_model(path: Path) -> None:
    change(path, lambda state: state.pop("model"))


def make_layer(path: Path) -> None:
    torch.save({"model": torch.nn.Linear(3, 3)}, path)


def make_list(path: Path) -> None:
    torch.save([torch.ones(3)], path)


def pack(path: Path) -> None:
    repack(path)


FILES = [cut_off, flip, lose_a_number, empty, make_page, make_pointer, make_zip]
FILES += [take_out_the_model, make_layer, make_list, pack]


@pytest.mark.parametrize("setting", ["model", "pretrained"])
@pytest.mark.parametrize("damage", FILES)
def test_damaged_model_is_one_sentence(
    place: Path, pretrained: Start, setting: str, damage: Callable[[Path], None]
) -> None:
    """As what is trained and as what it starts from; no checkpoint is written."""
    values = pretrained(place)
    damaged = Path(shutil.copy(values["model"], place / "x.pt"))
    damage(damaged)
    with pytest.raises(ModelError) as caught:
        training.train({**values, setting: str(damaged)})
    assert str(caught.value).startswith(f"The model '{damaged}' cannot be loaded: ")
    assert str(caught.value).endswith("Check model=...")
    assert "\n" not in str(caught.value)
    assert not list((place / "working").rglob("*.pt"))


def test_checkpoint_that_lost_a_number_is_no_model(place: Path) -> None:
    """A `latest.pt` as `model=`: its average is what is taken."""
    values = training.settings(place, epochs=1)
    training.train(values)
    path = Path(shutil.copy(place / "working/runs/train/checkpoints/latest.pt", place / "x.pt"))
    models.load_model(str(path))
    change(path, lambda state: next(iter(state["ema_state_dict"].values())).view(-1)[:1].fill_(float("inf")))
    with pytest.raises(ModelError, match=r"its tensor 'model\.0\.conv\.weight' is not finite"):
        models.load_model(str(path))


def lose_a_number_of_the_average(path: Path) -> None:
    change(path, lambda state: next(iter(state["ema_state_dict"].values())).view(-1)[:1].fill_(float("nan")))


def make_latest(path: Path) -> None:
    shutil.copy(path.with_name("latest.pt"), path)


@pytest.mark.parametrize("damage", [cut_off, flip, empty, lose_a_number, lose_a_number_of_the_average, make_latest])
def test_damaged_best_is_not_evaluated_at_the_end(
    place: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None]
) -> None:
    """It is said and set aside, and the run ends with what its epochs have found."""
    values = training.settings(place, lr0=0.0, warmup_bias_lr=0.0, epochs=2)  # the first epoch stays the best
    best = place / "working/runs/train/checkpoints/best.pt"
    end = training.train(values, acting({STEPS + 1: lambda: damage(best)}))
    said = capsys.readouterr().out
    assert f"WARNING: '{best}' " in said
    assert "It was set aside as best.pt.bad\n" in said
    assert "There is no good best.pt, and no final evaluation: the results are those of the epochs\n" in said
    assert f"Training finished: 2 epochs, best mAP {end['best_map']:.4f}\n" in said


@pytest.mark.parametrize("damage", [cut_off, flip, lose_a_number_of_the_average, take_out_the_model])
def test_damaged_best_is_not_measured(place: Path, damage: Callable[[Path], None]) -> None:
    """`kit results` says what it lacks."""
    values = training.settings(place, epochs=1)
    training.train(values)
    damage(place / "working/runs/train/checkpoints/best.pt")
    with pytest.raises(CheckpointError, match=r"best\.pt' (is|holds) "):
        evaluation.evaluate(load(training._no_file(), values))


@pytest.mark.parametrize("damage", [lose_a_number_of_the_average, make_latest])
@pytest.mark.parametrize("attached", [False, True])
def test_best_that_cannot_be_measured_is_no_best(
    place: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], None], attached: bool
) -> None:
    """Its checksums are right. In the run folder it is set aside, and an attached one does not enter that."""
    values = training.settings(place)
    with pytest.raises(Stopped):
        training.train(values, stop_at(STEPS + 2))
    folder = place / "working/runs/train/checkpoints"
    damage(folder / "best.pt")
    if attached:
        shutil.move(place / "working/runs", place / "input/runs")
    training.train(values)
    said = capsys.readouterr().out
    assert re.search(r"WARNING: '.+/best\.pt' holds no model that can be measured: ", said)
    assert ("It was set aside as best.pt.bad\n" in said) is not attached
    assert "The best model so far is gone: the next validation writes a new best.pt." in said
    models.open_best(folder / "best.pt")
