"""Fixtures for all tests: folders of the test's own, and no trace of the machine's session."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.help import pretrained as pretrained_files

SESSION = ("KAGGLE_KERNEL_RUN_TYPE", "KIT_SESSION_START", "TPU_NAME", "TPU_ACCELERATOR_TYPE", "JPY_SESSION_NAME")


@pytest.fixture
def shown(request: pytest.FixtureRequest) -> Iterator[list[str]]:
    """Lines to show when all tests are done, whether they passed or not, and in whichever process they ran."""
    lines: list[str] = []
    yield lines
    request.node.user_properties += [("shown", line) for line in lines]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the tests have to show."""
    reports = [report for found in terminalreporter.stats.values() for report in found]
    for report in sorted((each for each in reports if getattr(each, "when", "") == "teardown"), key=lambda r: r.nodeid):
        for name, line in report.user_properties:
            if name == "shown":
                terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def no_session(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget the session that the tests happen to run in."""
    for name in SESSION:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, an input folder and scratch of the test's own."""
    for name in ("working", "input", "scratch"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"KIT_{name.upper()}", str(tmp_path / name))
    return tmp_path


@pytest.fixture(scope="session")
def pretrained_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pretrained files are, each made once for all tests, by the first that asks for it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "pretrained"  # one for all workers
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def big(pretrained_folder: Path) -> Callable[[str], Path]:
    """Return what makes a stand-in for a published file, `yolo11n` say."""
    return partial(pretrained_files.make, folder=pretrained_folder)


@pytest.fixture
def pretrained(pretrained_folder: Path) -> Callable[..., dict[str, Any]]:
    """Return what `training.settings` does, but of a run that starts from a pretrained file, in the run's own place."""

    def settings(place: Path, task: str = "detect", nc: int = 80, wide: bool = False, **changes: Any) -> dict[str, Any]:
        from tests.help import training

        start = pretrained_files.make_tiny(task, pretrained_folder, nc, wide)
        return training.settings(place, task, start=start, **changes)

    return settings


@pytest.fixture
def closed() -> Iterator[int]:
    """A port of this machine on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]
