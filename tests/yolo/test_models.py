"""What a model is, is kept and not guessed: its shapes, its architecture, its task, and its way back to Ultralytics."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn
from ultralytics import YOLO
from ultralytics.engine.trainer import BaseTrainer

from kit import cli
from kit.errors import CheckpointError, MismatchError, ModelError, Stopped
from kit.kaggle import session
from kit.yolo import models
from kit.yolo.settings import load
from tests.help import training
from tests.help.training import STEPS, Killed, differences, kill_at, rows, stop_at
from tests.yolo.test_surroundings import rewrite

Start = Callable[..., dict[str, Any]]
EVERY_STEP = {"kit.max_lost_s": 1e-6, "kit.max_cost_percent": 1e9}


def killed(values: dict[str, Any], *places: int) -> dict[str, Any]:
    """Train, killed when `stop` was asked so often in each session and something was saved; return the end."""
    latest = session.working() / values.get("kit.run", "runs/train") / "checkpoints/latest.pt"
    for at in places:
        with pytest.raises(Killed):
            training.train({**values, **EVERY_STEP}, kill_at(at, latest))
    return training.train({**values, **EVERY_STEP})


def assert_exact(values: dict[str, Any], *places: int) -> dict[str, Any]:
    """A run that is killed ends with the bits of an untouched one; return that."""
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    again = killed(values, *places)
    assert len(again["progress"]["sessions"]) >= len(places), "each went on where the one before was killed"
    assert differences(untouched, again) == []
    assert rows(untouched) == rows(again)
    return untouched


def width(state: dict[str, Any]) -> int:
    """Return how wide the class branch is before its last convolution."""
    (name,) = (name for name in state["model_state_dict"] if name.endswith(".cv3.0.2.weight"))
    return int(state["model_state_dict"][name].shape[1])


# --- shape


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify"])
def test_fine_tuned_model_resumes_exactly(place: Path, pretrained: Start, task: str) -> None:
    """Made with 80 classes and trained on three: the class branch keeps the width of 80."""
    end = assert_exact(pretrained(place, task), 2, STEPS, STEPS + 1)
    assert width(end) == 80 if task != "classify" else True


@pytest.mark.parametrize(
    ("classes", "named", "wide"), [(3, 3, 16), (6, 3, 16), (200, 3, 100), (3, 80, 16), (6, 80, 16)]
)
def test_model_made_with_fewer_equal_or_more_classes_resumes_exactly(
    place: Path, pretrained: Start, classes: int, named: int, wide: int
) -> None:
    """Whatever the number of classes of the file that it starts from, and of the data set; the width is the file's."""
    values = pretrained(place, nc=classes)
    training.name_more(values["data"], named)
    end = assert_exact(values, 2, STEPS + 1)
    assert (len(end["architecture"]["names"]), width(end)) == (named, wide)


@pytest.mark.parametrize(
    "changes",
    [
        {"freeze": 2},
        {"single_cls": True},
        {"pretrained": False},
        {"cls_remap": False},
        {"val": False},
        {"optimizer": "MuSGD", "freeze": [0, 1]},
        {"workers": 2},
    ],
    ids=str,
)
def test_fine_tuned_model_resumes_exactly_with_settings_of_its_own(
    place: Path, pretrained: Start, changes: dict[str, Any]
) -> None:
    """Those that act on what is taken from the pretrained file."""
    assert_exact(pretrained(place, **changes), 2, STEPS + 1)


def test_description_with_a_pretrained_file_resumes_exactly(place: Path, pretrained: Start) -> None:
    """`model=x.yaml pretrained=y.pt` gives the class branch of y.pt to the model of x.yaml."""
    values = training.settings(place)
    end = assert_exact({**values, "pretrained": pretrained(place)["model"]}, 2, STEPS + 1)
    assert width(end) == 80


def test_class_branch_keeps_the_activation_of_the_file_that_it_is_from(place: Path, pretrained: Start) -> None:
    """It is taken over module by module, so no description and no shape tells what it computes."""
    values = {**training.settings(place), "pretrained": pretrained(place)["model"]}
    described = yaml.safe_load(Path(values["model"]).read_text()) | {"activation": "torch.nn.ReLU()"}
    Path(values["model"]).write_text(yaml.safe_dump(described))
    end = assert_exact(values, 2, STEPS + 1)
    model = models.assemble(end)
    head = model.model[-1]
    assert isinstance(model.model[0].act, nn.ReLU)
    assert isinstance(head.cv2[0][0].act, nn.ReLU)
    assert isinstance(head.cv3[0][0].act, nn.SiLU)


@pytest.mark.slow
def test_class_branch_of_another_family_resumes_exactly(place: Path, big: Callable[[str], Path]) -> None:
    """That of yolov8n in yolo11n: other layers, and other names of its tensors."""
    values = {**training.settings(place), "model": "yolo11n.yaml", "pretrained": str(big("yolov8n"))}
    end = assert_exact(values, 2, STEPS + 1)
    assert "model.23.cv3.0.0.conv.weight" in end["model_state_dict"]


def test_longer_run_of_a_fine_tuned_model_goes_on(place: Path, pretrained: Start) -> None:
    """From its end, killed or not."""
    values = pretrained(place, epochs=2)
    for name in ("untouched", "train"):
        training.train({**values, "kit.run": f"runs/{name}"})
    assert_exact({**values, "epochs": 4}, 2)


def test_fine_tuned_model_goes_on_from_a_given_file(place: Path, pretrained: Start) -> None:
    """`--resume FILE`, with the file that it began with gone."""
    values = pretrained(place)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    with pytest.raises(Stopped):
        training.train(values, stop_at(STEPS + 2))
    Path(values["model"]).unlink()
    latest = place / "working/runs/train/checkpoints/latest.pt"
    assert differences(untouched, training.train(values, resume=str(latest))) == []


@pytest.mark.parametrize(("classes", "named"), [(80, 3), (200, 3), (6, 80)])
def test_checkpoint_of_an_earlier_version_resumes_exactly(
    place: Path, pretrained: Start, classes: int, named: int
) -> None:
    """Without a module tree; its tensors say how wide the class branch is."""
    values = pretrained(place, nc=classes)
    training.name_more(values["data"], named)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    with pytest.raises(Stopped):
        training.train(values, stop_at(STEPS + 2))
    forget_modules(place / "working/runs/train/checkpoints/latest.pt")
    assert differences(untouched, training.train(values)) == []


def test_checkpoint_of_an_earlier_version_that_does_not_say_enough_is_refused(place: Path, pretrained: Start) -> None:
    """In one sentence, and it stays where it is."""
    values = pretrained(place)
    with pytest.raises(Stopped):
        training.train(values, stop_at(STEPS + 2))
    latest = place / "working/runs/train/checkpoints/latest.pt"
    forget_modules(latest)
    state = training.read(latest)
    odd = {
        name: value[:5] if name.endswith("cv3.0.1.conv.weight") else value
        for name, value in state["model_state_dict"].items()
    }
    rewrite(latest, model_state_dict=odd)
    Path(values["model"]).unlink()
    with pytest.raises(CheckpointError, match="The model of the checkpoint cannot be put together: "):
        training.train(values)


def forget_modules(latest: Path) -> None:
    """Make a checkpoint one of the versions that kept no module tree."""
    architecture = training.read(latest)["architecture"]
    del architecture["modules"]
    rewrite(latest, architecture=architecture)


# --- identity


def refused(values: dict[str, Any], **more: Any) -> str:
    """Train, which must be refused as another run, and return the sentence."""
    with pytest.raises(MismatchError) as caught:
        training.train(values, **more)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


EDITS: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("a layer", lambda net: net["backbone"].insert(2, [-1, 1, "Conv", [128, 3, 1]])),
    ("a width", lambda net: net.update(width_multiple=0.25)),
    ("an activation", lambda net: net.update(activation="torch.nn.ReLU()")),
    ("a stride", lambda net: net["backbone"][0][3].__setitem__(2, 1)),
    ("where a layer reads", lambda net: net["head"][-1][0].__setitem__(0, 3)),
]


@pytest.mark.parametrize(("what", "edit"), EDITS, ids=[what for what, _ in EDITS])
@pytest.mark.parametrize("given", [False, True])
def test_edited_description_is_another_run(place: Path, what: str, edit: Callable[[Any], Any], given: bool) -> None:
    """Under the same name; the old architecture does not go on without a word, and `--resume never` starts anew."""
    values = training.settings(place, epochs=2)
    training.train(values)
    description = Path(values["model"])
    net = yaml.safe_load(description.read_text())
    edit(net)
    description.write_text(yaml.safe_dump(net))
    latest = place / "working/runs/train/checkpoints/latest.pt"
    said = refused(values, resume=str(latest) if given else "auto")
    assert "its model 'tiny-detect' has other layers than that of model=... has now" in said
    before = latest.read_bytes()
    assert training.train(values, resume="never")["epoch"] == 2
    assert (place / "working/runs/train-1/checkpoints/latest.pt").read_bytes() == before


def test_comment_in_a_description_makes_no_other_run(place: Path) -> None:
    """Nor does a size that is not used, or the order of the entries."""
    values = training.settings(place)
    description = Path(values["model"])
    net = yaml.safe_load(description.read_text()) | {"scales": {"n": [0.34, 0.125, 128]}}
    description.write_text(yaml.safe_dump(net))
    with pytest.raises(Stopped):
        training.train(values, stop_at(STEPS + 1))
    net["scales"]["s"] = [1.0, 1.0, 1024]
    description.write_text("# mine\n" + yaml.safe_dump(net, sort_keys=True))
    assert training.train(values)["epoch"] == 3


@pytest.mark.parametrize("same", [True, False])
def test_other_version_of_ultralytics_may_build_it_otherwise(
    place: Path, capsys: pytest.CaptureFixture[str], same: bool
) -> None:
    """From the same file it is the same run, which goes on with what it is; with an edited one it is another."""
    values = training.settings(place)
    with pytest.raises(Stopped):
        training.train(values, stop_at(STEPS + 1))
    latest = place / "working/runs/train/checkpoints/latest.pt"
    state = training.read(latest)
    built = {**state["architecture"], "yaml": {**state["architecture"]["yaml"], "reg_max": 17}}
    rewrite(latest, architecture=built)
    assert "has other layers" in refused(values)
    rewrite(latest, architecture=built, versions={**state["versions"], "ultralytics": "8.4.0"})
    if same:
        assert training.train(values)["epoch"] == 3
        assert "the environment changed: ultralytics 8.4.0 -> " in capsys.readouterr().out
    else:
        Path(values["model"]).write_text(Path(values["model"]).read_text() + "# edited\n")
        assert "has other layers" in refused(values)


def test_other_model_under_the_same_name_is_another_run(place: Path, pretrained: Start) -> None:
    """Another best.pt, of another size."""
    values = pretrained(place, epochs=2)
    model = Path(values["model"]).rename(place / "best.pt")
    training.train({**values, "model": str(model)})
    larger = pretrained(place / "larger", epochs=2, wide=True)
    shutil.copy(larger["model"], model)
    assert "its model 'best' has other layers" in refused({**values, "model": str(model)})


def test_attached_output_of_another_model_of_the_same_name_is_not_taken(
    place: Path, pretrained: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever it is called and however far it got."""
    values = pretrained(place, epochs=2)
    larger = pretrained(place / "larger", epochs=5, wide=True)
    for settings in (values, larger):
        settings["model"] = str(Path(settings["model"]).rename(Path(settings["model"]).with_name("best.pt")))
    training.train({**larger, "kit.run": "runs/larger"})
    shutil.move(place / "working/runs/larger", place / "input/output")
    assert training.train(values)["epoch"] == 2
    said = capsys.readouterr().out
    assert "output/checkpoints/latest.pt (of another run: its model 'best' has other layers than" in said
    assert "Starting training from epoch 1/2" in said


def test_same_model_under_another_name_is_the_same_run_with_another_setting(place: Path, pretrained: Start) -> None:
    """It is not mixed up with another architecture: the setting that changed is listed."""
    values = pretrained(place, epochs=2)
    training.train(values)
    renamed = Path(values["model"]).rename(place / "renamed.pt")
    assert "model: " in refused({**values, "model": str(renamed)})
    assert "holds another run" not in refused({**values, "model": str(renamed)})


@pytest.mark.parametrize("setting", ["model", "pretrained"])
def test_model_file_in_another_folder_is_the_same(place: Path, pretrained: Start, setting: str) -> None:
    """Kaggle attaches it elsewhere in the next session."""
    values = pretrained(place)
    if setting == "pretrained":
        values |= {"pretrained": values["model"], "model": training.settings(place)["model"]}
    with pytest.raises(Stopped):
        training.train(values, stop_at(STEPS + 1))
    (place / "elsewhere").mkdir()
    moved = Path(values[setting]).rename(place / "elsewhere" / Path(values[setting]).name)
    assert training.train({**values, setting: str(moved)})["epoch"] == 3


def test_other_weights_under_the_same_name_are_said(
    place: Path, pretrained: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on with its own, exactly; each session says so."""
    values = pretrained(place)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    other = torch.load(values["model"], weights_only=False)
    for at in (2, STEPS):
        assert "is not the one that this run began with" not in capsys.readouterr().out
        with pytest.raises(Stopped):
            training.train(values, stop_at(at))
    for parameter in other["model"].parameters():
        parameter.data.mul_(0.5)
    torch.save(other, values["model"])
    for at in (1, 100):
        with pytest.raises(Stopped) if at == 1 else nullcontext():
            again = training.train(values, stop_at(at))
        assert "The file of model= is not the one that this run began with" in capsys.readouterr().out
    assert differences(untouched, again) == []


# --- task


@pytest.mark.parametrize("task", ["segment", "pose", "obb", "classify"])
def test_task_is_that_of_the_model(place: Path, task: str) -> None:
    """A best.pt of any task is `model=` without `task=`; here, and when its file is gone, the run goes on."""
    values = training.settings(place, task, epochs=1)
    training.train({**values, "kit.run": "runs/first"})
    model = shutil.copy(place / "working/runs/first/checkpoints/best.pt", place / "mine.pt")
    values = {**values, "model": str(model), "epochs": 2}
    assert load(training._no_file(), values).classifies is (task == "classify"), "what the launcher looks for"
    with pytest.raises(Stopped):
        training.train(values, stop_at(2))
    Path(model).unlink()
    end = training.train(values)
    assert (end["architecture"]["task"], end["epoch"]) == (task, 2)


@pytest.mark.parametrize("task", ["segment", "classify"])
def test_task_is_that_of_the_model_in_a_process_of_its_own(place: Path, task: str) -> None:
    """Also for what the launcher looks at before, with the data set found by itself."""
    values = training.settings(place, task, epochs=1)
    training.train({**values, "kit.run": "runs/first"})
    model = shutil.copy(place / "working/runs/first/checkpoints/best.pt", place / "mine.pt")
    shutil.move(Path(values["data"]).parent if task == "segment" else values["data"], place / "input/set")
    child = training.start(place, {**values, "model": str(model), "data": "auto"})
    assert child.wait() == 0, child.output()


def test_task_of_the_settings_must_be_that_of_the_model(place: Path) -> None:
    """In one sentence, before anything is written."""
    with pytest.raises(ModelError, match=r"is for the task 'segment', not 'pose'\. Correct task= or model="):
        training.train({**training.settings(place, "segment"), "task": "pose"})
    with pytest.raises(
        ModelError, match=r"does not train the task 'semantic' of 'yolo26n-sem\.yaml'\. It trains detect"
    ):
        training.train({**training.settings(place), "model": "yolo26n-sem.yaml"})


# --- the way back to Ultralytics


def test_best_model_finds_its_data_set_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`YOLO("best.pt").val()` in another session, whose scratch is empty."""
    values = training.settings(place, epochs=1)
    training.train(values)
    shutil.rmtree(place / "scratch")
    (place / "scratch").mkdir()
    for name in ("checkpoints/best.pt", "slim.pt", "last.pt"):
        model = YOLO(place / "working/runs/train" / name)
        assert model.overrides["data"] == values["data"]
        assert model.val(imgsz=64, workers=0, plots=False, verbose=False).box.map >= 0


def test_best_model_remembers_the_mended_description_where_ultralytics_cannot_read_the_own(place: Path) -> None:
    """Roboflow's `../train/images`, say."""
    values = training.settings(place, epochs=1)
    described = yaml.safe_load(Path(values["data"]).read_text()) | {"path": "/content/nowhere"}
    Path(values["data"]).write_text(yaml.safe_dump(described))
    training.train(values)
    run = place / "working/runs/train"
    assert YOLO(run / "checkpoints/best.pt").overrides["data"] == str(run / "data.yaml")


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify"])
def test_any_checkpoint_becomes_a_model_for_ultralytics(
    place: Path, pretrained: Start, task: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m kit export`: the average that the checkpoint holds, under the names of the classes."""
    training.train(pretrained(place, task, epochs=2, save_period=1))
    run = place / "working/runs/train"
    state = training.read(run / "checkpoints/latest.pt")
    for source in ("latest.pt", "best.pt"):
        target = place / f"exported-{source}"
        assert cli.main(["export", str(run / "checkpoints" / source), str(target)]) == 0
        model = YOLO(target)
        assert (model.task, list(model.names.values())) == (task, state["architecture"]["names"])
        assert model.predict(torch.rand(1, 3, 64, 64), verbose=False, save=False)
    assert "the model after epoch 2" in capsys.readouterr().out
    for path in (place / "exported-latest.pt", run / "last.pt", run / "checkpoints/epoch1.pt"):
        found = YOLO(path).model.state_dict()
        average = state["ema_state_dict"].items()
        halved = {name: value.half().float() if value.is_floating_point() else value for name, value in average}
        assert differences({"model": halved}, {"model": dict(found)}, ("model",)) == []
        assert path.stat().st_size < (run / "checkpoints/latest.pt").stat().st_size / 4


@pytest.mark.parametrize("setting", ["model", "pretrained"])
@pytest.mark.parametrize("name", ["checkpoints/latest.pt", "checkpoints/best.pt", "slim.pt", "last.pt"])
def test_training_starts_from_any_file_of_another_run(place: Path, pretrained: Start, setting: str, name: str) -> None:
    """And resumes exactly."""
    values = pretrained(place, epochs=1)
    training.train({**values, "kit.run": "runs/first"})
    first = str(place / "working/runs/first" / name)
    start = (
        {"pretrained": first, "model": training.settings(place)["model"]}
        if setting == "pretrained"
        else {"model": first}
    )
    assert_exact({**values, **start, "epochs": 2}, 2)


class Lost(BaseException):
    """The end of a session of stock training."""


@pytest.mark.parametrize("task", ["detect", "segment", "pose", "obb", "classify", "end2end"])
def test_training_that_ultralytics_began_goes_on(
    place: Path, task: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`--resume last.pt`: weights, average, optimizer, epoch, results and early stopping as stock's own resume has."""
    values = training.settings(place, "detect" if task == "end2end" else task, epochs=4, nbs=4, close_mosaic=0)
    if task == "end2end":
        values["model"] = "yolo26n.yaml"
    last = begun(place, values, epochs=2)
    saved = models.torch_safe_load(last, safe_only=True)[0]
    taken: list[Any] = []
    own = BaseTrainer._model_train

    def model_train(self: Any) -> None:
        taken.append(((self.epoch, self.ema.updates), {n: v.clone() for n, v in self.ema.ema.state_dict().items()}))
        own(self)

    monkeypatch.setattr(BaseTrainer, "_model_train", model_train)
    state = training.train(values, resume=str(last))
    said = capsys.readouterr().out
    assert "is Ultralytics' own checkpoint" in said
    assert "Starting training from epoch 3/4" in said
    (position, average), *_ = taken
    assert position == (2, saved["updates"])
    assert differences({"m": dict(saved["ema"].float().state_dict())}, {"m": average}, ("m",)) == []
    assert [row["epoch"] for row in state["history"]] == [1, 2, 3, 4]
    assert state["loop"]["criterion"].get("updates", 4) == 4
    assert training.train(values)["run_id"] == state["run_id"]


def begun(place: Path, values: dict[str, Any], epochs: int) -> Path:
    """Have Ultralytics train some epochs of a run, lose the session and return its last.pt."""

    def lose(trainer: Any) -> None:
        if trainer.epoch + 1 == epochs:
            raise Lost

    model = YOLO(values["model"])
    model.add_callback("on_fit_epoch_end", lose)
    with pytest.raises(Lost):
        model.train(**{n: v for n, v in values.items() if n != "model"}, project=str(place), name="stock", device="cpu")
    return place / "stock/weights/last.pt"


def test_model_without_a_training_is_no_checkpoint(place: Path, pretrained: Start) -> None:
    """`--resume slim.pt`: the sentence says how to start from it."""
    values = pretrained(place)
    model = values["model"]
    with pytest.raises(
        CheckpointError, match=f"'{model}' holds a model and no state of a training. Start from it with"
    ):
        training.train(values, resume=model)
