"""A run's progress as a file: what was said is read back, and nothing about it can end a training run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy
import pytest
import torch

from kit.run import status
from kit.run.status import Status
from kit.store.folder import RunFolder


def test_progress_is_read_back(tmp_path: Path) -> None:
    """What the trainer said last is what the dashboard reads, with the writer's process and the time."""
    said = Status(RunFolder(tmp_path))
    said.update(now=True, state="training", epoch=1)
    said.update(now=True, epoch=2)
    values = status.read(tmp_path)
    assert (values["state"], values["epoch"], values["pid"]) == ("training", 2, os.getpid())
    assert values["updated"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


def test_fast_loop_writes_only_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two writes values are kept, and the next write has them all."""
    monkeypatch.setattr(status, "EVERY", 3600.0)
    said = Status(RunFolder(tmp_path))
    assert said.due()
    said.update(batch=1)
    assert not said.due()
    said.update(batch=2)
    said.update(loss=0.5)
    assert said._job is not None
    said._job.result()  # it is written by a thread
    assert status.read(tmp_path)["batch"] == 1
    said.update(now=True, epoch=1)
    values = status.read(tmp_path)
    assert (values["batch"], values["loss"], values["epoch"]) == (2, 0.5, 1)


def test_line_for_the_user_is_printed_and_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The notebook finds in the file, in order and at once, what the terminal showed."""
    said = Status(RunFolder(tmp_path))
    said.say("Found checkpoint: latest.pt")
    said.say("Resuming from checkpoint")
    assert capsys.readouterr().out == "Found checkpoint: latest.pt\nResuming from checkpoint\n"
    assert status.read(tmp_path)["messages"] == ["Found checkpoint: latest.pt", "Resuming from checkpoint"]


def test_any_number_of_training_becomes_plain_json(tmp_path: Path) -> None:
    """NaN and infinity are no JSON and become null; numbers of numpy and torch become numbers."""
    said = Status(RunFolder(tmp_path))
    said.update(
        now=True,
        loss=float("nan"),
        best=float("-inf"),
        rows=[{"map": numpy.float32(0.5), "count": numpy.int64(3)}, (torch.tensor(0.25), None, True, "text")],
    )
    values = json.loads((tmp_path / "status.json").read_text(), parse_constant=pytest.fail)
    assert values["loss"] is None
    assert values["best"] is None
    assert values["rows"] == [{"map": 0.5, "count": 3}, [0.25, None, True, "text"]]


def test_disk_that_refuses_does_not_end_training(tmp_path: Path) -> None:
    """What could not be written is written the next time."""
    (tmp_path / "status.json").mkdir()  # a rename onto a folder fails
    said = Status(RunFolder(tmp_path))
    said.update(now=True, epoch=1)
    (tmp_path / "status.json").rmdir()
    said.update(now=True)
    assert status.read(tmp_path)["epoch"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"]


@pytest.mark.parametrize(
    "raw", [b"", b'{"epoch": 1', b"[1]", b"null", b"\xff\xfe\x00", b"[" * 100_000, b" " * 5_000_000 + b'{"epoch": 1}']
)
def test_unreadable_progress_is_empty(tmp_path: Path, raw: bytes) -> None:
    """A reader never stumbles over a torn or foreign file, or takes long over a huge one."""
    (tmp_path / "status.json").write_bytes(raw)
    assert status.read(tmp_path) == {}


def test_missing_progress_is_empty(tmp_path: Path) -> None:
    """Before the first run there is no folder."""
    assert status.read(tmp_path / "runs" / "train") == {}


def test_warnings_from_before_and_after_training_stand_beside_its_own(tmp_path: Path) -> None:
    """The launcher's: what it printed before the process began, and what it printed when that was gone."""
    said = Status(RunFolder(tmp_path))
    said.restore([status.notice("It died.", "It starts again.")])
    said.warn("No room.", "storage", "Make some.")
    status.add(RunFolder(tmp_path), [status.notice("The last backup was cut off.")])
    values = status.read(tmp_path)
    assert values["messages"] == [
        "WARNING: It died. It starts again.",
        "WARNING: No room. Make some.",
        "WARNING: The last backup was cut off.",
    ]
    assert [(each["kind"], each["message"], each["hint"]) for each in values["notices"]] == [
        ("warning", "It died.", "It starts again."),
        ("storage", "No room.", "Make some."),
        ("warning", "The last backup was cut off.", ""),
    ]


def test_nothing_is_added_to_a_run_that_has_said_nothing(tmp_path: Path) -> None:
    """There is no status to read it in."""
    status.add(RunFolder(tmp_path), [status.notice("The last backup was cut off.")])
    assert list(tmp_path.iterdir()) == []
