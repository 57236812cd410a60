"""The processes that keep backups and fetch them, beside the one that trains."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kit import config
from kit.backup.stores import open_store
from kit.kaggle import session
from kit.process import backups
from kit.run.limit import Deadline
from kit.store import checkpoint
from kit.yolo.settings import schema
from tests.help import training
from tests.help.backups import wipe
from tests.help.standins import Kaggle
from tests.help.training import Child, differences, rows

ROOT = session.REPOSITORY
SETTINGS = config.Config(schema(), {}, config.KitSettings(backup="s3://bucket"))


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a quick run with a backup in a folder; the process works in tmp_path/working."""
    for name in ("working", "input", "scratch"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"KIT_{name.upper()}", str(tmp_path / name))
    return training.settings(tmp_path, epochs=12, **{"kit.backup": f"file://{tmp_path}/store"})


def start(tmp_path: Path, values: dict[str, Any]) -> Child:
    return training.start(tmp_path / "working", values)


def holding(folder: Path, secret: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]


def weights(best: Path) -> dict[str, Any]:
    from kit.yolo.models import open_checkpoint

    return checkpoint.read(best, open_checkpoint)


def latest(tmp_path: Path, run: str = "runs/train") -> dict[str, Any]:
    return training.read(tmp_path / "working" / run / "checkpoints/latest.pt")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of an empty bucket on a real S3 server on loopback."""
    pytest.importorskip("s3fs")
    server = pytest.importorskip("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "a-key", "AWS_SECRET_ACCESS_KEY": "very-secret-indeed"}
    for name, value in {**keys, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        monkeypatch.setenv(name, value)
    store: Any = open_store(f"s3://bucket{port}")
    store.fs.mkdir(f"bucket{port}")
    yield f"s3://bucket{port}/some/where"
    server.stop()


@pytest.fixture
def dataset(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a Kaggle data set that takes its time to make a version ready."""
    pytest.importorskip("kagglehub")
    for name, value in {"KAGGLE_API_ENVIRONMENT": "TEST", "KAGGLE_API_TOKEN": "very-secret-indeed"}.items():
        monkeypatch.setenv(name, value)
    with Kaggle("very-secret-indeed") as server:
        server.slow = 3
        yield "kaggle://me/run"


@pytest.mark.parametrize(
    "kind", ["folder", pytest.param("bucket", marks=pytest.mark.slow), pytest.param("dataset", marks=pytest.mark.slow)]
)
def test_session_with_an_empty_disk_ends_with_the_same_bits(
    tmp_path: Path, values: dict[str, Any], kind: str, request: pytest.FixtureRequest
) -> None:
    """Stopped in mid-run, all files gone, run again: it goes on from the backup, and best.pt is there too."""
    address = values["kit.backup"] = values["kit.backup"] if kind == "folder" else request.getfixturevalue(kind)
    expected = training.train({**values, "kit.backup": None, "kit.run": "runs/untouched"})
    best = weights(tmp_path / "working/runs/untouched/checkpoints/best.pt")
    child = start(tmp_path, values)
    child.wait_for(lambda _: child.step() >= 6)
    child.process.send_signal(signal.SIGTERM)
    assert child.wait() == 75, child.output()
    assert f"In {address}: latest.pt and best.pt (epoch " in child.output()
    news = json.loads((tmp_path / "working/runs/train/backup.json").read_text())
    assert news["step"] == latest(tmp_path)["progress"]["global_step"]
    wipe(tmp_path / "working")
    wipe(tmp_path / "scratch")
    child = start(tmp_path, values)
    assert child.wait() == 0, child.output()
    assert f"Found backup: {address} (epoch " in child.output()
    assert "Resumed from epoch" in child.output()
    assert differences(expected, latest(tmp_path)) == []
    assert rows(expected) == rows(latest(tmp_path))
    assert differences(best, weights(tmp_path / "working/runs/train/checkpoints/best.pt")) == []
    assert holding(tmp_path, "very-secret-indeed") == []
    assert list((tmp_path / "working/runs/train").glob(".backup*")) == []


KAGGLE = {"KAGGLE_API_ENVIRONMENT": "TEST", "KAGGLE_USERNAME": "somebody-here", "KAGGLE_KEY": "very-secret-indeed"}


def test_store_without_a_network_neither_fails_nor_changes_training(
    tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the backup is not required: warnings, the same bits, exit 0; nothing secret is in any file or output."""
    pytest.importorskip("kagglehub")
    expected = training.train({**values, "epochs": 3, "kit.backup": None, "kit.run": "runs/plain"})
    for name, value in KAGGLE.items():
        monkeypatch.setenv(name, value)
    free = {"kit.backup": "kaggle://me/run", "kit.backup_required": False}
    child = start(tmp_path, {**values, "epochs": 3, **free})
    assert child.wait() == 0, child.output()
    assert "WARNING: kaggle://me/run cannot be reached" in child.output()
    assert ["kaggle://me/run cannot be reached" in each["message"] for each in child.status()["notices"]] == [True]
    assert child.output().count("WARNING: The backup to kaggle://me/run failed") == 1
    assert "WARNING: The last backup failed: " in child.output()
    assert differences(expected, latest(tmp_path)) == []
    assert holding(tmp_path, KAGGLE["KAGGLE_KEY"]) == []


def test_wait_for_a_store_can_be_stopped(
    tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The button is heard; nothing was trained beside a backup that may be further."""
    pytest.importorskip("kagglehub")
    for name, value in KAGGLE.items():
        monkeypatch.setenv(name, value)
    child = start(tmp_path, {**values, "kit.backup": "kaggle://me/run"})
    child.wait_for(lambda _: "It is tried for 300 s; a stop ends that." in child.output())
    child.process.send_signal(signal.SIGINT)
    assert child.wait() == 75, child.output()
    assert "Stopped before training began." in child.output()
    assert not list(tmp_path.glob("working/runs/train/checkpoints/*.pt"))


def test_backups_end_with_the_launcher(tmp_path: Path, values: dict[str, Any]) -> None:
    """A launcher that is killed leaves no process behind, but what was saved at last is backed up."""
    child = start(tmp_path, {**values, "epochs": 100000})
    child.wait_for(lambda status: status.get("completed", 0) >= 1)
    assert len(started_by(child.process.pid)) == 2
    child.process.kill()
    give_up = time.monotonic() + 60
    while started_by(child.process.pid) and time.monotonic() < give_up:
        time.sleep(0.1)
    assert started_by(child.process.pid) == []
    assert list(tmp_path.glob("store/*/manifest-*.json"))


def keepers(launcher: int) -> list[int]:
    """Return the processes that keep backups for a launcher."""
    return [int(pid) for pid in started_by(launcher) if b"\0keep\0" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def test_process_that_is_killed_is_started_again_and_the_last_state_is_backed_up(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    """Said once, however often it happens; at the end the store has the last epoch."""
    child = start(tmp_path, {**values, "epochs": 100000})
    killed: set[int] = set()

    def another() -> bool:
        for pid in {*keepers(child.process.pid)} - killed:
            os.kill(pid, signal.SIGKILL)
            killed.add(pid)
        return len(killed) == 2

    child.wait_for(lambda status: status.get("completed", 0) >= 1 and another())
    child.wait_for(lambda _: any(pid not in killed for pid in keepers(child.process.pid)))
    child.process.send_signal(signal.SIGTERM)
    assert child.wait() == 75, child.output()
    assert child.output().count("WARNING: The process that keeps backups was ended by SIGKILL") == 1
    assert ["backups was ended by SIGKILL" in each["message"] for each in child.status()["notices"]] == [True]
    news = json.loads((tmp_path / "working/runs/train/backup.json").read_text())
    assert news["step"] == latest(tmp_path)["progress"]["global_step"]


def test_process_that_is_killed_at_the_end_makes_the_last_backup_all_the_same(
    tmp_path: Path, values: dict[str, Any]
) -> None:
    """Training ends before it would have been started again."""
    child = start(tmp_path, {**values, "epochs": 100000})
    child.wait_for(lambda status: status.get("completed", 0) >= 1)
    for pid in keepers(child.process.pid):
        os.kill(pid, signal.SIGKILL)
    child.process.send_signal(signal.SIGTERM)
    assert child.wait() == 75, child.output()
    assert "WARNING: The process that keeps backups was ended by SIGKILL" in child.output()
    news = json.loads((tmp_path / "working/runs/train/backup.json").read_text())
    assert news["step"] == latest(tmp_path)["progress"]["global_step"]


def test_last_backup_that_is_killed_is_said(tmp_path: Path, values: dict[str, Any]) -> None:
    """Twice: whatever ends it, it would end a third one too. What is safe, and that this is not the last, is said."""
    child = start(tmp_path, {**values, "epochs": 100000})
    child.wait_for(lambda status: status.get("completed", 0) >= 1)
    child.process.send_signal(signal.SIGTERM)
    while child.process.poll() is None:
        for pid in keepers(child.process.pid):
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    assert child.wait() == 75, child.output()
    assert "WARNING: The process that makes the last backup was ended by SIGKILL. " in child.output()


def started_by(launcher: int) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"KIT_PARENT={launcher}\0".encode() in path.read_bytes():
                found.append(path.parent.name)
    return found


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_client_that_is_missing_is_asked_for_by_name(tmp_path: Path, values: dict[str, Any], resume: str) -> None:
    """Exit 2 in second one; nothing is left behind, and no old run was moved away for nothing."""
    hook, run = tmp_path / "hook", tmp_path / "working/runs/train"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text("import sys\nsys.modules['kagglehub'] = None\n")
    if resume == "never":
        (run / "checkpoints").mkdir(parents=True)
        (run / "checkpoints/latest.pt").touch()
    words = [*config.to_args({**values, "kit.backup": "kaggle://me/run"}), "--resume", resume]
    child = Child(tmp_path / "working", words, PYTHONPATH=os.pathsep.join([str(ROOT), str(hook)]))
    assert child.wait() == 2, child.output()
    assert "error: kit.backup=kaggle://me/run cannot be used" in child.output()
    assert "pip install kagglehub" in child.output()
    assert "Traceback" not in child.output()
    assert run.exists() == (resume == "never")
    assert not run.with_name("train-1").exists()


def hanging() -> subprocess.Popen[bytes]:
    script = "import signal, time; signal.signal(15, lambda *_: print(flush=True)); print(flush=True); time.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def finish(process: subprocess.Popen[bytes], settings: config.Config, asked: list[float], show: Any) -> list[str]:
    """Have the keeper of a process wait for the last backup, and return what it warns of."""
    said: list[str] = []
    log: Any = types.SimpleNamespace(show=show, warn=lambda message, hint: said.append(message))
    backups.Keeper(lambda: process, settings, log).finish(asked)
    return said


def test_second_stop_cuts_the_last_upload_short() -> None:
    """The first one ended training; whoever presses again does not want to wait."""
    process, asked = hanging(), [1.0]
    shown: list[float] = []

    def show() -> None:
        shown.append(time.monotonic())
        if len(shown) == 3:
            asked.append(2.0)

    try:
        assert finish(process, SETTINGS, asked, show) == ["The last backup was cut off."]
        assert process.poll() is None
        assert len(shown) == 4, "three times while it waited, and at last"
    finally:
        process.kill()
        process.wait()


def test_last_upload_is_not_waited_for_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """What hangs is ended by the launcher."""
    monkeypatch.setenv("KIT_SESSION_START", str(time.time() - 3600 + 6))
    process = hanging()
    try:
        began = time.monotonic()
        limited = config.Config(schema(), {}, config.KitSettings(session_hours=1))
        assert finish(process, limited, [], lambda: None) == ["The last backup was cut off."]
        assert process.poll() is None
        assert time.monotonic() - began < 5
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(("left", "expected"), [(3600.0, backups.LAST_S), (100.0, 95.0), (3.0, 0.0)])
def test_last_upload_ends_with_the_session(monkeypatch: pytest.MonkeyPatch, left: float, expected: float) -> None:
    """Five minutes at most, and never beyond the limit."""
    monkeypatch.setenv("KIT_SESSION_START", str(time.time() - 3600 + left))
    limited = config.Config(schema(), {}, config.KitSettings(backup="s3://bucket", session_hours=1))
    assert abs(backups.time_left(limited) - expected) < 1
    assert backups.time_left(SETTINGS) == backups.LAST_S


def test_training_stops_early_enough_for_the_last_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two minutes earlier where there is a backup."""
    monkeypatch.setenv("KIT_SESSION_START", str(time.time() - 10 * 3600 + 200))
    assert not Deadline(10).should_stop()
    assert Deadline(10, backup=True).should_stop()
