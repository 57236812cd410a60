"""The training loop: exact resume, checkpoints and best model, on tiny models in this process."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.errors import ConfigError, DataError, MismatchError, ModelError, Stopped, StorageError
from kit.kaggle import session
from kit.run import status
from kit.store import checkpoint, disk
from kit.yolo import models
from kit.yolo.samples import LabelledDataset
from tests.help import training
from tests.help.training import BATCHES, STEPS, Killed, differences, kill_at, rows, stop_at
from tests.yolo.test_parity import build

EVERY_STEP = {"kit.max_lost_s": 1e-6, "kit.max_cost_percent": 1e9}  # a checkpoint after every batch


def run(values: dict[str, Any], name: str, **changes: Any) -> dict[str, Any]:
    return {**values, "kit.run": f"runs/{name}", **changes}


def kill(values: dict[str, Any], at: int) -> None:
    with pytest.raises(Killed):
        training.train(values, kill_at(at))


@pytest.mark.parametrize("workers", [0, 2])
def test_run_killed_between_epochs_ends_bit_identical(place: Path, workers: int) -> None:
    """Killed in epochs 2 and 3 and run again, with mosaic on, a run ends with the bits of an untouched one."""
    values = training.settings(place, workers=workers, close_mosaic=1)
    untouched = training.train(run(values, "untouched", workers=0))
    killed = run(values, "killed")
    kill(killed, at=STEPS + 2)
    assert training.read(place / "working/runs/killed/checkpoints/latest.pt")["epoch"] == 1
    kill(killed, at=STEPS + 1)
    again = training.train(killed)
    assert differences(untouched, again) == []
    assert rows(untouched) == rows(again)


@pytest.mark.parametrize("at", range(1, 3 * STEPS + 1))
def test_run_stopped_at_any_batch_ends_bit_identical(place: Path, at: int) -> None:
    """A stop after any batch, or during validation, costs nothing: running again ends with the same bits."""
    values = training.settings(place, nbs=12, warmup_epochs=1, close_mosaic=1)  # gradients of up to 3 batches in flight
    untouched = training.train(run(values, "untouched"))
    with pytest.raises(Stopped):
        training.train(run(values, "stopped"), stop_at(at))
    again = training.train(run(values, "stopped"))
    assert differences(untouched, again) == []
    assert rows(untouched) == rows(again)


def test_run_killed_within_every_epoch_ends_bit_identical(place: Path) -> None:
    """With a checkpoint after every batch, kills all over a run change nothing, whatever the number of workers."""
    values = training.settings(
        place, epochs=4, nbs=8, mixup=0.5, cutmix=0.3, multi_scale=0.5, degrees=10.0, **EVERY_STEP
    )
    untouched = training.train(run(values, "untouched"))
    for number, at in enumerate((2, 3, 2, 4, 3)):
        kill(run(values, "killed", workers=number % 3), at)
    again = training.train(run(values, "killed", workers=1))
    assert differences(untouched, again) == []
    assert rows(untouched) == rows(again)


def test_going_to_a_late_batch_costs_no_replay(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A resume at batch 11 of 12 makes the samples of the last two batches and no other."""
    values = training.settings(place, epochs=1, batch=1, val=False)
    with pytest.raises(Stopped):
        training.train(values, stop_at(10))
    made: list[int] = []
    own = LabelledDataset.__getitem__

    def item(self: LabelledDataset, key: Any) -> Any:
        made.extend([key.position] if hasattr(key, "position") else [])
        return own(self, key)

    monkeypatch.setattr(LabelledDataset, "__getitem__", item)
    training.train(values)
    assert made == [10, 11]


@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify"])
def test_every_task_resumes_bit_identical(place: Path, task: str) -> None:
    """One mixin serves all tasks."""
    values = training.settings(place, task, epochs=2, copy_paste=0.5, **EVERY_STEP)
    untouched = training.train(run(values, "untouched"))
    kill(run(values, "killed"), at=2)
    again = training.train(run(values, "killed", workers=1))
    assert differences(untouched, again) == []
    assert rows(untouched) == rows(again)


def test_pretrained_start_resumes_without_its_file(place: Path) -> None:
    """The usual start is a .pt file; a resume needs neither that file nor the internet."""
    values = training.settings(place, epochs=1)
    training.train(run(values, "first"))
    weights = place / "pretrained.pt"
    shutil.copy(place / "working/runs/first/checkpoints/best.pt", weights)
    values = {**values, "model": str(weights), "epochs": 2}
    untouched = training.train(run(values, "untouched"))
    scratch_start = training.train(run({**values, "model": str(place / "tiny-detect.yaml")}, "scratch"))
    assert differences(untouched, scratch_start, ("model_state_dict",)), "the pretrained weights must have been used"
    kill(run(values, "killed"), at=STEPS + 1)
    weights.unlink()
    assert differences(untouched, training.train(run(values, "killed"))) == []


def test_checkpoint_has_the_keys_of_the_contract(place: Path) -> None:
    """Plain `torch.load(weights_only=True)` opens it, and every key is there, weights and EMA in fp32."""
    state = training.train(training.settings(place, epochs=2, nbs=64))
    assert set(checkpoint.KEYS) <= set(state)
    assert state["epoch"] == 2
    progress = state["progress"]
    assert (progress["global_step"], progress["batch"], progress["batches"], progress["epochs"]) == (6, 0, BATCHES, 2)
    for section in ("model_state_dict", "ema_state_dict"):
        assert {v.dtype for v in state[section].values()} == {torch.float32, torch.int64}
    assert state["config"]["epochs"] == 2
    assert state["config"]["kit"]["run"] == "runs/train"
    assert [row["epoch"] for row in state["history"]] == [1, 2]


def test_results_file_holds_the_history_and_comes_back_on_a_fresh_disk(place: Path) -> None:
    """A lone latest.pt brings results.csv back; no row is doubled by a kill."""
    values = training.settings(place)
    kill(run(values, "a"), at=2 * STEPS + 1)
    shutil.copytree(place / "working/runs/a/checkpoints", place / "input/earlier/runs/train/checkpoints")
    shutil.rmtree(place / "working/runs")
    state = training.train(run(values, "b"))
    with open(place / "working/runs/b/results.csv") as file:
        table = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in table] == [1, 2, 3]
    assert [f"{row['train/box_loss']:.6g}" for row in state["history"]] == [row["train/box_loss"] for row in table]


def test_best_model_predicts_anywhere(place: Path) -> None:
    """`YOLO("best.pt")` predicts, and best.pt carries the keys of a checkpoint too."""
    from ultralytics import YOLO

    training.train(training.settings(place, epochs=1))
    best = place / "working/runs/train/checkpoints/best.pt"
    image = next((place / "shapes-detect/images/val").glob("*.png"))
    result = YOLO(best).predict(image, imgsz=64, verbose=False, save=False)[0]
    assert list(result.names.values()) == ["circle", "square", "triangle"]


def test_best_model_is_rewritten_only_for_a_greater_map(place: Path) -> None:
    """Ultralytics rewrites best.pt on ties; here the first validation writes it and then only a greater mAP."""
    state = training.train(training.settings(place))
    maps = [row["metrics/mAP50-95(B)"] for row in state["history"]]
    assert state["best_map"] == max(maps)
    first = 1 + maps.index(max(maps))
    best = checkpoint.read(place / "working/runs/train/checkpoints/best.pt", load=models.open_checkpoint)
    assert best["epoch"] == first


def test_stop_is_told_at_its_place_however_fast_training_is(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two writes of the status several epochs may pass: the last word is where training stands."""
    monkeypatch.setattr(status, "EVERY", 3600.0)
    with pytest.raises(Stopped):
        training.train(training.settings(place, val=False), stop=training.stop_at(7))
    seen = status.read(place / "working/runs/train")
    assert (seen["state"], seen["completed"], seen["epoch"], seen["batch"], seen["batches"]) == ("stopped", 2, 3, 1, 3)


def test_run_remembers_where_its_sessions_began(place: Path) -> None:
    """In epochs, in the checkpoint: each session may have had another disk."""
    values = training.settings(place, val=False)
    for calls in (2, 4):
        with pytest.raises(Stopped):
            training.train(values, training.stop_at(calls))
    assert status.read(place / "working/runs/train")["sessions"] == [pytest.approx(2 / 3)]
    assert training.train(values)["progress"]["sessions"] == [pytest.approx(2 / 3), 2.0]


def test_finished_run_says_so_and_goes_on_when_epochs_are_raised(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A finished run does nothing; with more epochs it goes on from its end."""
    values = training.settings(place, epochs=1)
    training.train(values)
    before = (place / "working/runs/train/checkpoints/latest.pt").stat().st_mtime_ns
    capsys.readouterr()
    training.train(values)
    assert "This run is finished" in capsys.readouterr().out
    assert (place / "working/runs/train/checkpoints/latest.pt").stat().st_mtime_ns == before
    assert status.read(place / "working/runs/train")["state"] == "finished"
    assert training.train({**values, "epochs": 2})["epoch"] == 2
    assert "Starting training from epoch 2/2 (batch 1/3)" in capsys.readouterr().out


def test_resume_speaks_in_the_guides_words(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line each: found, resuming, resumed, best, starting."""
    values = training.settings(place, epochs=3)
    kill(values, at=2 * STEPS + 1)
    capsys.readouterr()
    training.train(values)
    said = capsys.readouterr().out
    path = place / "working/runs/train/checkpoints/latest.pt"
    for line in (
        f"Found checkpoint: {path} (epoch 2/3, best mAP ",
        f"Resuming from checkpoint: {path}\n",
        "Resumed from epoch 2\n",
        "Best mAP so far: ",
        "Starting training from epoch 3/3 (batch 1/3)\n",
    ):
        assert line in said


def test_damaged_latest_falls_back_to_previous(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A corrupt latest.pt never ends a run: previous.pt is used, the bad one is set aside, the output says so."""
    values = training.settings(place)
    untouched = training.train(run(values, "untouched"))
    kill(run(values, "killed"), at=2 * STEPS + 1)
    folder = place / "working/runs/killed/checkpoints"
    content = bytearray((folder / "latest.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "latest.pt").write_bytes(content)
    capsys.readouterr()
    again = training.train(run(values, "killed"))
    said = capsys.readouterr().out
    assert "is damaged" in said
    assert "set aside as latest.pt.bad" in said
    assert f"Found checkpoint: {folder / 'previous.pt'} (epoch 1/3" in said
    assert (folder / "latest.pt.bad").exists()
    assert differences(untouched, again) == []


def test_other_settings_are_refused_until_the_user_decides(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A changed setting is listed with the two ways out; --resume FILE goes on and says what is no longer exact."""
    values = training.settings(place, epochs=2)
    kill(values, at=STEPS + 1)
    latest = place / "working/runs/train/checkpoints/latest.pt"
    with pytest.raises(MismatchError, match=r"batch: 4 -> 6.*--resume .*latest.pt.*--resume never"):
        training.train({**values, "batch": 6})
    capsys.readouterr()
    state = training.train({**values, "batch": 6}, resume=str(latest))
    assert "No longer bit-exact, the settings changed: batch: 4 -> 6" in capsys.readouterr().out
    assert state["progress"]["batches"] == 2
    assert state["epoch"] == 2


def test_another_run_in_the_folder_is_never_overwritten(place: Path) -> None:
    """Another architecture or other classes make another run; --resume never keeps the old one aside."""
    values = training.settings(place, epochs=1)
    training.train(values)
    other = {**values, "model": "yolov8n.yaml"}
    with pytest.raises(MismatchError, match=r"another run: its model is 'tiny-detect' and not 'yolov8n'"):
        training.train(other)
    training.train(other, resume="never")
    assert (place / "working/runs/train-1/checkpoints/latest.pt").exists()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": "missing.yaml"}, ModelError, "missing.yaml"),
        ({"model": "missing/model.pt"}, ModelError, "missing/model.pt"),
        ({"model": "weights.bin"}, ModelError, "must be a .pt or a .yaml"),
        ({"model": "yolo11n-sem.pt"}, ModelError, "does not train the task 'semantic'"),
        ({"data": "missing.yaml"}, DataError, "missing.yaml"),
        ({"lr0": 7.0}, ConfigError, "lr0=7.0"),
        ({"device": "0"}, ConfigError, "device"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    place: Path, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    """What cannot be used ends with exit code 2 and names the value."""
    with pytest.raises(error, match=words) as caught:
        training.train({**training.settings(place), **change})
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert not list((place / "working").rglob("*.pt"))


def test_data_set_folder_may_be_read_only_and_its_caches_are_not_read(place: Path) -> None:
    """Label caches go to scratch; one that lies beside the data is neither read nor replaced."""
    values = training.settings(place, epochs=1)
    planted = place / "shapes-detect/labels/train.cache"
    planted.write_bytes(b"not a cache")
    training.train(values)
    assert planted.read_bytes() == b"not a cache"
    assert not (place / "shapes-detect/labels/val.cache").exists()
    assert len(list((session.scratch() / "labels").glob("*.cache"))) == 2


def test_lone_latest_writes_a_new_best(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Where latest.pt arrives alone, the next validation writes a best.pt and the output says that the old is gone."""
    values = training.settings(place, epochs=2)
    with pytest.raises(Stopped):
        training.train(values, stop_at(STEPS + 2))
    best = place / "working/runs/train/checkpoints/best.pt"
    best.unlink()
    training.train(values)
    assert "The best model so far is gone" in capsys.readouterr().out
    assert best.exists()


def test_damaged_best_is_set_aside_and_made_anew_where_its_state_is_known(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training stands at the model of the best mAP: best.pt is what it was."""
    values = training.settings(place, epochs=3)
    kill(values, at=STEPS + 1)
    folder = place / "working/runs/train/checkpoints"
    before = checkpoint.read(folder / "best.pt", load=models.open_checkpoint)
    content = bytearray((folder / "best.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "best.pt").unlink()  # the file that was read above is still open
    (folder / "best.pt").write_bytes(content)
    kill(values, at=1)
    said = capsys.readouterr().out
    assert "was set aside as best.pt.bad" in said
    assert "best.pt was missing and has been rebuilt from the checkpoint" in said
    after = checkpoint.read(folder / "best.pt", load=models.open_checkpoint)
    assert differences(before, after) == []
    assert differences({"m": before["model"].state_dict()}, {"m": after["model"].state_dict()}, ("m",)) == []


def test_best_of_the_same_run_is_brought_from_another_input(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """latest.pt and best.pt may come from two attached inputs; a best.pt of another run is not taken."""
    values = training.settings(place, epochs=3)
    kill(run(values, "a"), at=2 * STEPS + 2)
    kill(run(values, "b"), at=STEPS + 1)
    a, b = (place / f"working/runs/{name}/checkpoints" for name in "ab")
    for source, name in ((b / "best.pt", "one"), (a / "best.pt", "two"), (a / "latest.pt", "three")):
        (place / "input" / name).mkdir()
        shutil.copy(source, place / "input" / name)
    content = (a / "best.pt").read_bytes()
    shutil.rmtree(place / "working/runs")
    kill(values, at=1)
    assert "best model so far is gone" not in capsys.readouterr().out
    assert (place / "working/runs/train/checkpoints/best.pt").read_bytes() == content


def test_checkpoints_in_the_way_of_a_given_one_are_kept(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--resume FILE` from elsewhere overwrites nothing in the run folder."""
    values = training.settings(place, epochs=3)
    kill(run(values, "a"), at=STEPS + 1)
    kill(run(values, "b"), at=2 * STEPS + 1)
    folder = place / "working/runs/b/checkpoints"
    contents = {name: (folder / name).read_bytes() for name in ("latest.pt", "previous.pt", "best.pt")}
    training.train(run(values, "b"), resume=str(place / "working/runs/a/checkpoints/latest.pt"))
    assert "latest.pt of the run folder was kept as latest.pt.old" in capsys.readouterr().out
    for name, content in contents.items():
        assert (folder / f"{name}.old").read_bytes() == content


def test_given_checkpoint_that_does_not_fit_moves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 2 says that nothing was lost: the next plain start goes on where the run stood."""
    values = training.settings(place, epochs=3)
    kill(run(values, "a"), at=STEPS + 1)
    kill(run(values, "b"), at=2 * STEPS + 1)
    folder = place / "working/runs/b/checkpoints"
    before = {path.name: path.read_bytes() for path in folder.glob("*.pt")}

    def full(source: Path, target: Path) -> None:
        raise StorageError(f"'{target}' could not be written: the disk is full.")

    monkeypatch.setattr(disk, "copy", full)
    with pytest.raises(StorageError):
        training.train(run(values, "b"), resume=str(place / "working/runs/a/checkpoints/latest.pt"))
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("task", ["detect", "classify"])
def test_class_names_that_cannot_be_drawn_do_not_end_a_run(
    place: Path, capsys: pytest.CaptureFixture[str], task: str
) -> None:
    """Mathematics to matplotlib, and no mathematics at all: what draws is left out, and the run finishes."""
    values = training.settings(place, task, epochs=2)
    if task == "detect":
        description = Path(values["data"])
        description.write_text(description.read_text().replace("circle", "$1_$5").replace("square", "$\\foo{"))
    else:
        for split in ("train", "val"):
            (Path(values["data"]) / split / "class0").rename(Path(values["data"]) / split / "$1_$5")
    quiet = training.train({**values, "kit.run": "runs/quiet"})
    drawn = training.train({**values, "plots": True, "kit.run": "runs/drawn"})
    assert differences(quiet, drawn) == []
    assert rows(quiet) == rows(drawn)
    said = [line for line in capsys.readouterr().out.splitlines() if "A picture or a report failed" in line]
    assert len(said) == len(set(said))
    assert said or task == "classify"


def test_callback_that_fails_is_said_once_and_ends_nothing(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A logger's, say; a stop passes."""
    trainer = build({**training.settings(place), "epochs": 2}, "callbacks", stock=False)

    def fail(_: Any) -> None:
        raise ValueError("the logger is not there")

    for event in ("on_train_start", "on_train_batch_end", "on_fit_epoch_end", "on_model_save", "on_train_end"):
        trainer.add_callback(event, fail)
    trainer.train()
    assert capsys.readouterr().out.count("the logger is not there") == 1
    assert trainer.history[-1]["epoch"] == 2
