"""What hangs before training or in it: the stop button and the session's limit end it, and the checkpoint stands."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from kit import config
from kit.config import Config, KitSettings
from kit.process import children, launch
from kit.process.children import Bounds
from kit.run import limit, status
from kit.yolo.settings import schema
from tests.help import training
from tests.help.training import Child
from tests.parallel.test_processes import gone, start
from tests.parallel.test_ranks import run_settings
from tests.process.test_deaths import hook
from tests.process.test_launch import _members

BLOCKED = """
import os, sys
if "KIT_PARENT" in os.environ and "backups" not in sys.orig_argv:
    import {module} as module
    def blocked(*words, **named):
        open({pipe!r})
    assert callable(module.{name})
    module.{name} = blocked
"""


def pipe(path: Path) -> Path:
    """Put a pipe in the place of a file: to open it waits for who writes into it."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def split(values: dict[str, Any], name: str) -> Path:
    """Return the images of a split."""
    return Path(values["data"]).parent / "images" / name


def press(child: Child, seconds: float = 60) -> int:
    """Press the stop button, and return the exit code."""
    child.process.send_signal(signal.SIGINT)
    return child.process.wait(seconds)


def test_images_and_labels_that_are_no_plain_files_are_left_out(place: Path) -> None:
    """A pipe, a device, a socket's like: said, and training goes on without them."""
    values = training.settings(place, epochs=1, workers=2)
    images = sorted(split(values, "train").iterdir())
    pipe(images[0])
    images[1].unlink()
    images[1].symlink_to("/dev/zero")
    pipe(Path(values["data"]).parent / "labels/train" / f"{images[2].stem}.txt")
    pipe(sorted(split(values, "val").iterdir())[0])
    child = training.start(place / "working", values)
    assert child.process.wait(120) == 0, child.output()
    assert "Left out of train: 2 images (for example " in child.output()
    assert "Left out of val: 1 image (for example " in child.output()
    assert "Background in train: 1 image (for example " in child.output()


def test_folders_of_images_by_class_may_hold_a_pipe(place: Path) -> None:
    """The same for a classification."""
    values = training.settings(place, "classify", epochs=1)
    pipe(sorted((Path(values["data"]) / "train").rglob("*.png"))[0])
    child = training.start(place / "working", values)
    assert child.process.wait(120) == 0, child.output()
    assert "Left out of train: 1 image (for example " in child.output()


@pytest.mark.parametrize("name", ["data", "model", "pretrained"])
def test_settings_that_name_no_plain_file_exit_2(place: Path, name: str) -> None:
    """In the first second, with a sentence."""
    values = training.settings(place, epochs=1)
    values[name] = str(pipe(place / ("pipe.yaml" if name == "data" else "pipe.pt")))
    child = training.start(place / "working", values)
    assert child.process.wait(60) == 2, child.output()
    assert f"pipe.{'yaml' if name == 'data' else 'pt'}' is no plain file. Check {name}=..." in child.output()


def test_data_set_among_the_inputs_that_is_a_pipe_is_passed_over(place: Path) -> None:
    """`data=auto` looks at whatever is attached."""
    values = training.settings(place / "input", epochs=1)
    for name in ("a", "b"):
        (place / "input" / name).mkdir()
    pipe(place / "input/a/data.yaml")
    pipe(place / "input/b/other.yaml")
    child = training.start(place / "working", {**values, "data": "auto"})
    assert child.process.wait(120) == 0, child.output()


@pytest.mark.parametrize("at", ["kit.data.check look", "kit.store.disk remove_leftovers"])
def test_stop_ends_what_hangs_before_training(place: Path, at: str) -> None:
    """Wherever: nothing was trained yet, so nothing is lost."""
    module, name = at.split()
    text = BLOCKED.format(module=module, name=name, pipe=str(pipe(place / "pipe")))
    child = training.start(place / "working", training.settings(place), **hook(place, text))
    child.wait_for(lambda news: (place / "working/runs/train/.lock").exists())
    assert press(child) == 75, child.output()
    assert "Stopped before training began: run again." in child.output()
    assert "Traceback" not in child.output()


@pytest.mark.slow
def test_stop_ends_two_processes_that_hang_before_training(place: Path) -> None:
    """Under torchrun: one of them hangs, the other waits for it; exit 75, and nobody is left."""
    text = BLOCKED.format(module="kit.data.check", name="look", pipe=str(pipe(place / "pipe")))
    child = start(place, run_settings(place), 2, **hook(place, text))
    child.wait_for(lambda _: (place / "working/runs/train/.lock").exists())
    time.sleep(1)
    ranks = [int(each) for each in _members_named(place)]
    assert press(child) == 75, child.output()
    assert "Stopped before training began: run again." in child.output()
    assert gone(ranks, 5)


def _members_named(place: Path) -> list[str]:
    """Return the processes that train below a folder."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"KIT_WORKING={place}/working\0".encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


def test_stop_is_heard_while_a_worker_hangs(place: Path) -> None:
    """Images of val on a disk that does not answer: the wait hears the stop, the workers go, nothing is lost."""
    values = training.settings(place, epochs=1000, workers=2)
    for image in list(split(values, "val").iterdir()):  # of one batch there are no workers
        for number in range(9):
            shutil.copy(image, image.with_name(f"{number}-{image.name}"))
    child = training.start(place / "working", values)
    seen = child.wait_for(lambda news: news.get("completed", 0) >= 1)
    for image in split(values, "val").iterdir():
        pipe(image)
    last = child.wait_for(lambda news: news["state"] == "validating" and news["updated"] < time.time() - 3)
    assert press(child) == 75, child.output()
    assert "(a stop was asked for). Run again to resume" in child.output()
    assert child.step() == 3 * (last["completed"] + 1)
    assert _members(seen["pid"]) == []


def test_stop_is_heard_before_the_first_batch(place: Path) -> None:
    """Both workers wait for ever from the start: there is nothing to save but the beginning."""
    values = training.settings(place, epochs=1000, workers=2)
    text = "import os\nif 'KIT_PARENT' in os.environ:\n    import kit.data.images as module\n"
    text += f"    module.ImageCache.get = lambda *words: open({str(pipe(place / 'pipe'))!r})\n"
    child = training.start(place / "working", values, **hook(place, text))
    child.wait_for(lambda news: any("Starting training" in line for line in news["messages"]) if news else False)
    time.sleep(3)
    assert press(child) == 75, child.output()
    assert "Traceback" not in child.output()


def test_process_that_does_not_answer_a_stop_is_ended(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits in a call that no signal ends; the checkpoint stands, and run again it goes on."""
    monkeypatch.setattr(children, "ANSWER_S", 3.0)
    values = training.settings(place, epochs=1000, workers=0)
    frozen: list[int] = []
    folder = place / "working/runs/train"
    latest = folder / "checkpoints/latest.pt"

    def follow(text: str, settings: Config) -> None:
        news = status.read(folder)
        if not frozen and news.get("completed", 0) >= 2 and latest.exists():
            frozen.append(news["pid"])
            os.kill(news["pid"], signal.SIGSTOP)
            os.kill(os.getpid(), signal.SIGINT)

    outcome = launch.run(training._no_file(), config.to_args(values), follow=follow)
    assert outcome.code == 75
    assert not Path(f"/proc/{frozen[0]}").exists()
    assert training.read(latest)["epoch"] >= 1  # the second epoch's may be in writing yet
    said = "Training did not answer the stop and was ended."
    assert f"WARNING: {said} Run again to go on" in (folder / "train.log").read_text()
    assert [notice["message"] for notice in outcome.status["notices"]] == [said], "for the dashboard"


def test_limit_ends_what_hangs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is there to press a button; the cells after training still run."""
    monkeypatch.setattr(children, "FIRST_S", 5.0)
    monkeypatch.setattr(children, "LAST_S", 2.0)
    monkeypatch.setenv("KIT_SESSION_START", str(time.time() - 3600))
    for name, value in hook(
        place, BLOCKED.format(module="kit.data.check", name="look", pipe=str(pipe(place / "pipe")))
    ).items():
        monkeypatch.setenv(name, value)
    values = training.settings(place, **{"kit.session_hours": 1})
    outcome = launch.run(training._no_file(), config.to_args(values))
    assert outcome.code == 75
    assert "The session's limit is near" in (outcome.folder / "train.log").read_text()


def test_time_to_answer_grows_with_what_a_step_and_a_save_take(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model on a CPU may take minutes, and a process that waits for room gives signs of life."""
    settings = Config(schema(), {}, KitSettings())
    settings.run_folder.mkdir(parents=True)
    limits, now = Bounds(settings), time.time()
    assert not limits.hangs(now - 50, 0.0)
    assert limits.hangs(now - 70, 0.0)
    assert not limits.hangs(now - 70, now - 10)
    (settings.run_folder / "status.json").write_text('{"stop_s": 100}')
    assert not limits.hangs(now - 350, 0.0)
    assert limits.hangs(now - 370, 0.0)
    assert not limits.over()


@pytest.mark.parametrize(("left", "over"), [(400.0, False), (40.0, True), (-100.0, True)])
def test_limit_is_over_when_training_should_have_left(
    place: Path, monkeypatch: pytest.MonkeyPatch, left: float, over: bool
) -> None:
    """A minute before the end; but each session has ten minutes for a step."""
    monkeypatch.setenv("KIT_SESSION_START", str(time.time() - 9 * 3600 + left))
    settings = Config(schema(), {}, KitSettings(session_hours=9))
    assert not Bounds(settings).over()
    monkeypatch.setattr(children, "FIRST_S", -1.0)
    assert Bounds(settings).over() is over
    assert limit.MARGIN_S / 2 == 60
