"""Fixtures for all tests: folders of the test's own, and no trace of the machine's session."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

SESSION = ("KAGGLE_KERNEL_RUN_TYPE", "KIT_SESSION_START", "TPU_NAME", "TPU_ACCELERATOR_TYPE", "JPY_SESSION_NAME")

SHOWN: list[str] = []


@pytest.fixture
def shown() -> list[str]:
    """Lines to show when all tests are done, whether they passed or not."""
    return SHOWN


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Show what the tests have to show."""
    for line in SHOWN:
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


@pytest.fixture
def closed() -> Iterator[int]:
    """A port of this machine on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]
