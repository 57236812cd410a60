"""How good the best model is: measured in a process of its own, kept as files, shown with pictures."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import training

import kit
from kit import config, launch, scores, session
from kit.config import Config
from kit.dashboard import results
from kit.errors import CheckpointError, Stopped
from kit.trainer import evaluation


def trained(place: Path, **changes: Any) -> Config:
    """Train a quick run and return its settings."""
    values = training.settings(place, **changes)
    training.train(values)
    return config.load(training._no_file(), values)


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify"])
def test_best_model_is_measured_for_every_task(place: Path, task: str) -> None:
    """Measures, classes, mistakes and a picture; nothing is written beside the images."""
    checked = trained(place, task=task, epochs=1)
    before = set(place.glob("shapes-*/**/*"))
    found = evaluation.evaluate(checked)
    assert found == scores.read(checked.run_folder)
    assert scores.current(checked.run_folder)
    first = "top-1 accuracy" if task == "classify" else "mAP50-95"
    assert next(iter(found["measures"])) == first
    assert len(found["classes"]) == 3
    assert len(found["matrix"]["counts"]) == len(found["matrix"]["names"]) == (3 if task == "classify" else 4)
    assert found["images"] == 4
    assert (checked.run_folder / "results/predictions.jpg").stat().st_size > 1000
    assert set(place.glob("shapes-*/**/*")) == before
    html, text = results.render(checked.run_folder)
    assert "data:image/jpeg;base64," in html
    assert f"{first}: " in text
    assert "nan" not in text


def test_measure_agrees_with_the_one_that_chose_the_best_model(place: Path) -> None:
    """What training found in its validation is found again in the file."""
    checked = trained(place, epochs=3, lr0=0.02)
    state = training.read(checked.run_folder / "checkpoints/latest.pt")
    assert evaluation.evaluate(checked)["measures"]["mAP50-95"] == pytest.approx(state["best_map"], abs=2e-3)


def test_best_model_is_compared_with_the_best_before(place: Path) -> None:
    """With what was measured of it, class by class; where nothing was, with what results.csv has."""
    checked = trained(place, epochs=3)
    folder = checked.run_folder
    found = evaluation.evaluate(checked)
    rows = training.read(folder / "checkpoints/latest.pt")["history"]
    earlier = [row["metrics/mAP50-95(B)"] for row in rows if row["epoch"] < found["epoch"]]
    assert (found["before"] or {}).get("map") == (max(earlier) if earlier else None)

    old = {**found, "epoch": found["epoch"] - 1, "file": [0, 0], "before": None}
    old["measures"] = {"mAP50-95": 0.125}
    old["classes"] = [{"name": "circle", "mAP50-95": 0.25}, {"name": "square"}]
    (folder / "results/results.json").write_text(json.dumps(old))
    again = evaluation.evaluate(checked)
    assert again["before"] == {"epoch": found["epoch"] - 1, "map": 0.125, "classes": {"circle": 0.25}}
    assert evaluation.evaluate(checked)["before"] == again["before"], "measured once more, it is the same comparison"
    html, text = results.render(folder)
    assert "against 0.1250, the best before" in text
    assert "<th>change</th>" in html


def test_measuring_is_done_once_for_each_best_model(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell shows what is kept; with another best.pt it is measured again, in a child."""
    checked = trained(place, epochs=1)
    words = config.to_words(training.settings(place, epochs=1))
    path = str(training._no_file())
    assert launch.measure(path, words) == checked.run_folder
    kept = (checked.run_folder / "results/results.json").stat().st_mtime_ns
    launch.measure(path, words)
    assert (checked.run_folder / "results/results.json").stat().st_mtime_ns == kept
    os.utime(checked.run_folder / "checkpoints/best.pt")
    assert not scores.current(checked.run_folder)
    launch.measure(path, words)
    assert scores.current(checked.run_folder)


def test_run_without_a_best_model_says_so_and_stops_no_notebook(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A batch run that left before its first validation still ends well."""
    values = training.settings(place)
    with pytest.raises(CheckpointError, match=r"There is no '.*best\.pt' yet: the first validation writes it"):
        launch.measure(training._no_file(), config.to_words(values))
    kit.results(training._no_file(), **values)
    assert "the first validation writes it" in capsys.readouterr().out


def test_session_that_is_about_to_end_is_left_in_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kaggle ends it with a SIGKILL, and a batch run would lose its output."""
    values = training.settings(place, epochs=1)
    training.train(values)
    monkeypatch.setenv("KIT_SESSION_START", "0")
    with pytest.raises(Stopped, match="no time left in this session"):
        launch.measure(training._no_file(), config.to_words({**values, "kit.session_hours": 1}))


def test_damaged_best_model_is_one_sentence(place: Path) -> None:
    """Not a traceback, and the notebook's kernel does not load it."""
    checked = trained(place, epochs=1)
    with open(checked.run_folder / "checkpoints/best.pt", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(kit.KitError, match=r"^'.*best\.pt' is not a whole checkpoint"):
        launch.measure(training._no_file(), config.to_words(training.settings(place, epochs=1)))


def test_command_prints_what_was_measured(place: Path) -> None:
    """`python -m kit results`, and as JSON."""
    values = training.settings(place, epochs=1)
    training.train(values)
    command = [sys.executable, "-m", "kit", "results", "--config", str(training._no_file()), *config.to_words(values)]
    environment = {**os.environ, "PYTHONPATH": str(session.REPOSITORY)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "mAP50-95: " in done.stdout
    assert "circle" in done.stdout
    done = subprocess.run([*command, "--json"], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["images"] == 4


@pytest.mark.parametrize("count", [3, 40])
def test_mistakes_are_drawn_or_listed(tmp_path: Path, count: int) -> None:
    """Of few classes the matrix, in shares of what there is; of many the most frequent confusions."""
    names = [f"class <{number}>" for number in range(count)]
    counts = [[8.0 if i == j else 2.0 * (i == 1 and j == 2) for j in range(count)] for i in range(count)]
    drawn = results._matrix({"matrix": {"names": names, "counts": counts}})
    assert ("20" if count == 3 else "20%") in drawn
    assert "class &lt;1&gt;" in drawn
    assert "class <" not in drawn
    assert len(drawn) < 6000


def test_slim_model_predicts_and_is_small(place: Path) -> None:
    """As Ultralytics strips its own: the model alone, in half precision; beside it nothing to train on with."""
    from ultralytics import YOLO

    checked = trained(place, epochs=1)
    slim, best = checked.run_folder / "slim.pt", checked.run_folder / "checkpoints/best.pt"
    assert slim.stat().st_size < best.stat().st_size / 3
    state = evaluation.open_checkpoint(slim)
    assert (state["epoch"], state["of_epoch"]) == (-1, 1)
    assert state["optimizer"] is state["ema"] is None
    assert {value.dtype.itemsize for value in state["model"].parameters()} == {2}
    image = next((place / "shapes-detect/images/val").glob("*.png"))
    result = YOLO(slim).predict(image, imgsz=64, verbose=False, save=False)[0]
    assert list(result.names.values()) == ["circle", "square", "triangle"]


def test_slim_model_is_no_checkpoint_to_go_on_from(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Put beside the others by a person, it is passed over and warned of by no one."""
    checked = trained(place, epochs=1)
    capsys.readouterr()
    training.train(training.settings(place, epochs=2))
    assert "slim.pt" not in capsys.readouterr().out
    assert (checked.run_folder / "slim.pt").exists()
