"""How a child ended reaches the launcher, the notebook's box and `status.json` by its kind, never by its words."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import kit
from kit import errors
from kit.dashboard import board, errors as dashboard_errors
from kit.errors import CrashError, FullError, InputError, KitError, StorageError
from kit.kaggle import machine, session
from kit.process import launch, parent
from kit.run import status
from kit.run.status import Status
from kit.store import disk
from kit.store.folder import RunFolder
from tests.help import training

DIES = "import os, sys\nif 'worker' in sys.orig_argv: os.kill(os.getpid(), {number})\n"
FAILS = "import sys\nif 'worker' in sys.orig_argv: sys.modules['torch'] = None\n"
MUTE = "import os, sys\nif 'worker' in sys.orig_argv: print('last words'), sys.stdout.flush(), os._exit(3)\n"
FULL = """
import sys
if 'worker' in sys.orig_argv:
    from kit.errors import StorageError
    from kit.store import disk
    def sweep(folder):
        raise StorageError("The disk is full.", "Make room.")
    disk.remove_leftovers = sweep
"""


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a quick run."""
    for name in ("working", "input", "scratch"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"KIT_{name.upper()}", str(tmp_path / name))
    return {**training.settings(tmp_path, epochs=1, val=False), "kit.restarts": 0}


@pytest.fixture
def boxes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what a notebook shows of errors."""
    shown: list[str] = []
    monkeypatch.setattr(board, "shell", lambda: object())
    monkeypatch.setattr(dashboard_errors, "shell", lambda: object())
    monkeypatch.setattr(board, "show", lambda html, text, *_, **__: shown.append(html))
    monkeypatch.setattr(dashboard_errors, "show", lambda html, text, *_, **__: shown.append(html))
    return shown


def train(values: dict[str, Any]) -> dict[str, Any]:
    own = {name.removeprefix("kit."): value for name, value in values.items() if name.startswith("kit.")}
    others = {name: value for name, value in values.items() if not name.startswith("kit.")}
    return kit.train(training._no_file(), kit=own, **others)


def broken_model(place: Path, values: dict[str, Any]) -> None:
    values["model"] = str(place / "broken.pt")
    (place / "broken.pt").write_bytes(b"nothing")


def broken_data(place: Path, values: dict[str, Any]) -> None:
    values["data"] = str(place / "data.yaml")
    (place / "data.yaml").write_text("train: nowhere\nval: nowhere\nnames: [a]\n")


def bad_setting(place: Path, values: dict[str, Any]) -> None:
    values["epochs"] = -3


def hook(text: str) -> Callable[[Path, dict[str, Any]], None]:
    def write(place: Path, values: dict[str, Any]) -> None:
        (place / "sitecustomize.py").write_text(text)
        os.environ["PYTHONPATH"] = str(place)

    return write


@pytest.mark.parametrize(
    ("spoil", "kind", "title", "said"),
    [
        (broken_model, "model", "The model cannot be used", "broken.pt"),
        (broken_data, "data", "The data set cannot be used", "nowhere"),
        (bad_setting, "config", "A setting has to be corrected first", "must be at least 1 but got -3"),
        (hook(FULL), "storage", "The disk cannot take what has to be written", "<div>Make room.</div>"),
        (hook(FAILS), "crash", "Training failed", "import of torch halted"),
        (hook(MUTE), "crash", "Training failed", "last words"),
        (hook(DIES.format(number=int(signal.SIGKILL))), "died", "A part of training was killed", "SIGKILL"),
    ],
)
def test_box_has_the_title_of_what_ended_the_child(
    tmp_path: Path,
    values: dict[str, Any],
    boxes: list[str],
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path, dict[str, Any]], None],
    kind: str,
    title: str,
    said: str,
) -> None:
    """By a real child; the exception is of the child's class."""
    monkeypatch.setenv("PYTHONPATH", "")
    spoil(tmp_path, values)
    with pytest.raises(KitError) as caught:
        train(values)
    assert caught.value.kind == kind
    assert f"<b>{title}</b>" in boxes[-1]
    assert said in boxes[-1]


def test_memory_that_is_full_has_a_title_of_its_own(
    tmp_path: Path, values: dict[str, Any], boxes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel's counter says that it was the reason of a SIGKILL."""
    kills = iter(range(100))
    monkeypatch.setattr(machine, "oom_kills", lambda: next(kills))
    monkeypatch.setenv("PYTHONPATH", "")
    hook(DIES.format(number=int(signal.SIGKILL)))(tmp_path, values)
    with pytest.raises(FullError):
        train(values)
    assert "<b>Memory is full</b>" in boxes[-1]


HOLD = """
import pathlib, sys
from kit.store.lock import Lock
with Lock(pathlib.Path(sys.argv[1])):
    print(flush=True)
    input()
"""


@pytest.mark.slow  # half a minute of waiting
def test_busy_run_is_said_to_be_in_use_and_keeps_its_status(
    tmp_path: Path, values: dict[str, Any], boxes: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the process that holds it has written is not touched by the one that has to wait."""
    folder = tmp_path / "working/runs/train"
    folder.mkdir(parents=True)
    Status(RunFolder(folder)).update(now=True, state="training")
    disk.write_json(RunFolder(folder).status, {**status.read(folder), "updated": time.time() + 3600})
    before = RunFolder(folder).status.read_bytes()
    monkeypatch.setattr(launch, "take_notices", lambda ended: [status.notice("Something.")])
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = {**os.environ, "PYTHONPATH": str(session.REPOSITORY)}
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(folder / ".lock")], env=environment, **pipes)
    assert holder.stdout
    assert holder.stdout.readline()
    try:
        with pytest.raises(errors.BusyError):
            train(values)
    finally:
        holder.communicate(b"\n")
    assert "<b>The run is in use</b>" in boxes[-1]
    assert RunFolder(folder).status.read_bytes() == before


def test_every_kind_survives_the_way_and_has_a_name_and_a_title() -> None:
    """A class that is forgotten would be shown as a failure of training."""
    classes = [each for each in vars(errors).values() if isinstance(each, type)]
    kinds = [each.kind for each in classes]
    assert len(set(kinds)) == len(kinds)
    assert set(kinds) - {"error", "crash"} == set(dashboard_errors.TITLES)
    for each in classes:
        again = errors.KitError.from_dict(json.loads(json.dumps(each("What.", "Do this.").to_dict())), 5)
        assert (type(again), again.message, again.hint, str(again)) == (each, "What.", "Do this.", "What. Do this.")
        assert again.exit_code == 5


def test_child_without_a_word_is_told_by_its_code_and_the_log(tmp_path: Path) -> None:
    """As one that was killed while it wrote."""
    (tmp_path / "torn").write_text("{")
    for name in ("missing", "torn"):
        error = parent.read_ending(tmp_path / name, 3, ["one", "two"])
        assert isinstance(error, CrashError)
        assert "exit code 3" in error.message
        assert error.details == "one\ntwo"
    assert isinstance(parent.read_ending(tmp_path / "missing", 2, []), InputError)


def test_end_goes_into_the_status_of_this_process_alone(tmp_path: Path) -> None:
    """The keys that were there stay."""
    said = Status(RunFolder(tmp_path))
    said.update(now=True, state="training", epoch=3)
    status.end(RunFolder(tmp_path), StorageError("The disk is full.", "Make room."))
    seen = status.read(tmp_path)
    assert (seen["state"], seen["epoch"], seen["kind"]) == ("failed", 3, "storage")
    assert (seen["message"], seen["hint"]) == ("The disk is full.", "Make room.")
    said.update(now=True, state="training", pid=1)
    status.end(RunFolder(tmp_path), StorageError("It is full."))
    assert status.read(tmp_path)["state"] == "training"
