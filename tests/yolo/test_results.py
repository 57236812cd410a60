"""How good the best model is: measured in a process of its own, kept as files, shown with pictures."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from ultralytics.cfg import TASK2METRIC

import kit
from kit import config
from kit.config import Config
from kit.dashboard import results
from kit.errors import CheckpointError, DataError, Stopped
from kit.kaggle import session
from kit.process import launch
from kit.run import scores
from kit.yolo import evaluation, models, setup
from kit.yolo.settings import load
from tests.help import training

LEARNS = {  # enough from twelve images for a mAP that settings change
    "epochs": 40,
    "lr0": 0.005,
    "nbs": 4,
    "warmup_epochs": 0,
    "val": False,  # but after the last epoch
    "mosaic": 0.0,
    "scale": 0.1,
    "translate": 0.0,
    "fliplr": 0.0,
    "hsv_h": 0.0,
    "hsv_s": 0.0,
    "hsv_v": 0.0,
}


TAUGHT = {**LEARNS, "epochs": 1, "lr0": 1e-5}  # for a run that starts from what has learnt


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path | None]:
    """Return what trains a small model of a task until it finds something, once, and returns its file."""

    @functools.cache
    def teach(task: str) -> Path | None:
        if task == "classify":  # chance is enough
            return None
        folder = tmp_path_factory.mktemp(task)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("working", "input", "scratch"):
                (folder / name).mkdir()
                patch.setenv(f"KIT_{name.upper()}", str(folder / name))
            training.train(training.settings(folder, task, **LEARNS))
        return folder / "working/runs/train/slim.pt"

    return teach


def add_test_images(data: Path) -> None:
    """Give a drawn set test images: the first four of those to train on."""
    for file in data.parent.glob("*/train/000[0-3].*"):
        target = file.parents[1] / "test" / file.name
        target.parent.mkdir(exist_ok=True)
        shutil.copy(file, target)
    data.write_text(data.read_text() + "test: images/test\n")


def trained(place: Path, **changes: Any) -> Config:
    """Train a quick run and return its settings."""
    values = training.settings(place, **changes)
    training.train(values)
    return load(training._no_file(), values)


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


@pytest.mark.parametrize(
    ("task", "changes"),
    [
        ("detect", {}),
        ("detect", {"classes": [0]}),
        ("detect", {"classes": 2}),
        ("detect", {"single_cls": True, "epochs": 30, "lr0": 0.005}),  # with a class branch of its own
        ("detect", {"max_det": 1}),
        ("detect", {"conf": 0.2}),
        ("detect", {"iou": 0.3}),
        ("detect", {"agnostic_nms": True}),
        ("detect", {"augment": True}),
        ("detect", {"split": "test"}),
        ("detect", {"split": "train", "fraction": 0.5}),
        ("detect", {"imgsz": 50, "conf": 0.1}),
        ("segment", {"max_det": 1}),
        ("pose", {"max_det": 1}),
        ("obb", {"max_det": 1}),
        ("classify", {"split": "train"}),
    ],
    ids=str,
)
def test_measure_agrees_with_the_one_that_chose_the_best_model(
    place: Path, taught: Callable[[str], Path | None], task: str, changes: dict[str, Any]
) -> None:
    """What training found in its validation is found again, whatever the settings that it validated with."""
    values = training.settings(place, task, start=taught(task), **TAUGHT | changes)
    if task != "classify":
        add_test_images(Path(values["data"]))
    state = training.train(values)
    checked = load(training._no_file(), values)
    value = next(iter(evaluation.evaluate(checked)["measures"].values()))
    assert value == pytest.approx(state["history"][-1][TASK2METRIC[task]], abs=2e-3)
    assert value > 0.01
    if task != "classify":
        assert value == pytest.approx(state["best_map"], abs=2e-3)


@pytest.mark.parametrize("task", ["detect", "obb"])
def test_images_are_padded_as_training_pads_them(place: Path, task: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of one batch get one shape; training validates with two batches in one, but for rotated boxes."""
    shapes: list[Any] = []
    make = setup.make_samples

    def make_samples(*arguments: Any) -> Any:
        made = make(*arguments)
        if "val" in arguments:
            shapes.append(made.batch_shapes.tolist())
        return made

    values = training.settings(place, task, epochs=1, batch=2)
    for file in sorted((place / f"shapes-{task}/images/val").iterdir())[::2]:
        with Image.open(file) as image:
            image.resize((64, 12)).save(file)
    monkeypatch.setattr(setup, "make_samples", make_samples)
    monkeypatch.setattr(evaluation, "make_samples", make_samples)
    training.train(values)
    evaluation.evaluate(load(training._no_file(), values))
    assert shapes == [shapes[0]] * 2
    assert len(shapes[0]) == (1 if task == "detect" else 2)


def test_coco_is_measured_as_in_training(place: Path, taught: Callable[[str], Path | None]) -> None:
    """Ultralytics has COCO's own program measure it after training: other numbers, and a package to install."""
    values = training.settings(place, start=taught("detect"), **TAUGHT)
    data, images = Path(values["data"]), sorted((place / "shapes-detect/images/val").iterdir())
    listed = data.parent / "coco/val2017.txt"
    listed.parent.mkdir()
    listed.write_text("\n".join(map(str, images)))
    data.write_text(data.read_text().replace("val: images/val", f"val: {listed}"))
    training.train(values)
    checked = load(training._no_file(), values)
    assert evaluation.evaluate(checked)["images"] == 4
    assert not (checked.run_folder / "results/predictions.json").exists()


def test_run_is_measured_with_its_own_settings_whatever_is_given(
    place: Path, taught: Callable[[str], Path | None]
) -> None:
    """The default config names another data set, of the same classes, and another model; the run's own hold."""
    values = training.settings(place, start=taught("detect"), **TAUGHT, conf=0.2)
    training.train(values)
    found = evaluation.evaluate(load(training._no_file(), values))
    assert evaluation.evaluate(load()) == found
    other = {"conf": 0.5, "imgsz": 32, "batch": 1, "data": values["data"], "model": "yolov8n.yaml"}
    assert evaluation.evaluate(load(training._no_file(), other)) == found


def test_data_set_that_was_given_counts_where_its_classes_are_those_of_the_run(place: Path) -> None:
    """It may lie in another folder in this session; that of another run is refused."""
    values = training.settings(place, epochs=1)
    training.train(values)
    found = evaluation.evaluate(load(training._no_file(), values))
    moved = (place / "shapes-detect").rename(place / "moved") / "data.yaml"
    given = load(training._no_file(), {**values, "data": str(moved)})
    assert evaluation.evaluate(given) == found
    with pytest.raises(
        DataError, match=r"cannot be measured\. The data set '.*shapes-detect/data\.yaml' cannot be read"
    ):
        evaluation.evaluate(load(training._no_file(), values))
    moved.write_text(moved.read_text().replace("circle", "ring"))
    with pytest.raises(
        DataError, match=r"The data set '.*moved/data\.yaml' has other classes than the run\. Give data="
    ):
        evaluation.evaluate(given)


def test_data_set_without_the_split_of_the_run_is_one_sentence(place: Path) -> None:
    """A run that was validated on test images is measured on no others."""
    values = training.settings(place, epochs=1, split="test")
    plain = Path(values["data"]).read_text()
    add_test_images(Path(values["data"]))
    training.train(values)
    checked = load(training._no_file(), values)
    evaluation.evaluate(checked)
    assert "4 test images" in results.render(checked.run_folder)[1]
    Path(values["data"]).write_text(plain)
    with pytest.raises(DataError, match=f"^The best model cannot be measured: {values['data']} 'test:' images not"):
        evaluation.evaluate(checked)


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


@pytest.mark.parametrize(
    "other", [{"run_id": "another"}, {"settings": {"classes": [0]}}, {"data": "coco8.yaml"}, {"run_id": None}], ids=str
)
def test_number_that_was_measured_otherwise_is_not_compared_with(place: Path, other: dict[str, Any]) -> None:
    """Another run's, with other settings, on other images, or by an earlier version of the kit, which wrote no more."""
    checked = trained(place, epochs=3)
    found = evaluation.evaluate(checked)
    old = {**found, "epoch": found["epoch"] - 1, "measures": {"mAP50-95": 0.125}, **other}
    if old.get("run_id") is None:
        old = {name: value for name, value in old.items() if name not in ("run_id", "settings", "data")}
    file = checked.run_folder / "results/results.json"
    file.write_text(json.dumps(old))
    assert evaluation.evaluate(checked)["before"] == found["before"]
    file.write_text(json.dumps({**old, "epoch": found["epoch"], "before": {"epoch": 1, "map": 0.5, "classes": {}}}))
    assert evaluation.evaluate(checked)["before"] == found["before"]


def test_validation_with_other_settings_is_not_compared_with(place: Path) -> None:
    """An epoch before a branch is none to compare with; one of the session that the best model is of is."""
    values = training.settings(place, **LEARNS | {"val": True, "max_det": 1})
    state = training.train(values)
    rows = {row["epoch"]: row["metrics/mAP50-95(B)"] for row in state["history"]}
    found = evaluation.evaluate(load(training._no_file(), values))
    earlier = {epoch: value for epoch, value in rows.items() if epoch < found["epoch"]}
    assert found["before"] == {
        "epoch": max(earlier, key=earlier.__getitem__),
        "map": max(earlier.values()),
        "classes": {},
    }

    branch = {**values, "max_det": 300, "epochs": 41}
    training.train(branch, resume=str(session.working() / "runs/train/checkpoints/latest.pt"))
    found = evaluation.evaluate(load(training._no_file(), branch))
    assert (found["epoch"], found["before"]) == (41, None)


def test_measure_of_an_earlier_version_is_made_again(place: Path) -> None:
    """It did not go by the run's settings, and says nothing of those that it went by."""
    checked = trained(place, epochs=1)
    old = {name: value for name, value in evaluation.evaluate(checked).items() if name != "settings"}
    assert scores.current(checked.run_folder)
    (checked.run_folder / "results/results.json").write_text(json.dumps(old))
    assert not scores.current(checked.run_folder)


def test_measuring_is_done_once_for_each_best_model(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cell shows what is kept; with another best.pt it is measured again, in a child."""
    checked = trained(place, epochs=1)
    words = config.to_args(training.settings(place, epochs=1))
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
    with pytest.raises(CheckpointError, match=r"There is no '.*best\.pt' yet\. The first validation writes it"):
        launch.measure(training._no_file(), config.to_args(values))
    kit.results(training._no_file(), **values)
    assert "The first validation writes it" in capsys.readouterr().out


def test_session_that_is_about_to_end_is_left_in_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kaggle ends it with a SIGKILL, and a batch run would lose its output."""
    values = training.settings(place, epochs=1)
    training.train(values)
    monkeypatch.setenv("KIT_SESSION_START", "0")
    with pytest.raises(Stopped, match="no time left in this session"):
        launch.measure(training._no_file(), config.to_args({**values, "kit.session_hours": 1}))


def test_damaged_best_model_is_one_sentence(place: Path) -> None:
    """Not a traceback, and the notebook's kernel does not load it."""
    checked = trained(place, epochs=1)
    with open(checked.run_folder / "checkpoints/best.pt", "r+b") as file:
        file.truncate(1000)
    with pytest.raises(kit.KitError, match=r"^'.*best\.pt' is not a whole checkpoint"):
        launch.measure(training._no_file(), config.to_args(training.settings(place, epochs=1)))


def test_command_prints_what_was_measured(place: Path) -> None:
    """`python -m kit results`, and as JSON."""
    values = training.settings(place, epochs=1)
    training.train(values)
    command = [sys.executable, "-m", "kit", "results", "--config", str(training._no_file()), *config.to_args(values)]
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
    state = models.open_checkpoint(slim)
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
