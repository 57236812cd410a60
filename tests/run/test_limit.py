"""The session's limit: training leaves before it, and every session gets on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from kit.errors import Stopped
from kit.run import limit, status
from kit.run.limit import Deadline
from kit.store import checkpoint
from kit.yolo import models
from tests.help import training
from tests.help.training import differences, rows


def sessions(values: dict[str, Any], most: int) -> int:
    """Train in session after session until the run is finished; returns how many were stopped before."""
    for number in range(most):
        try:
            training.train(values)
        except Stopped:
            continue
        return number
    raise AssertionError(f"not finished after {most} sessions")


def test_run_in_sessions_that_are_too_short_for_anything_ends_bit_identical(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session whose end has come before it starts trains one batch, or validates, and leaves."""
    values = training.settings(place, epochs=2, nbs=8)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    monkeypatch.setenv("KIT_SESSION_START", "1")
    assert sessions({**values, "kit.session_hours": 9}, most=12) == 7  # six batches and the last validation
    again = training.train(values)
    assert differences(untouched, again) == []
    assert rows(untouched) == rows(again)


def test_leaving_says_how_much_is_left_and_in_how_many_sessions(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From the epochs' times: a run of a billion epochs takes many more sessions of an hour."""
    values = training.settings(place, epochs=10**9, **{"kit.session_hours": 1})
    monkeypatch.setenv("KIT_SESSION_START", "1")
    with pytest.raises(Stopped):
        training.train(values)
    said = capsys.readouterr().out
    assert "Stopped in epoch 1/1000000000, batch 1/3 (the session's limit is near). Run again to resume: about " in said
    left = said.partition("Run again to resume: about ")[2].split()
    assert left[1:5] == ["d", "of", "training", "left,"]
    assert left[5] == "about"
    hours = 24 * int(left[0])
    assert hours < int(left[6]) < hours / 0.9  # an hour each, of which a tenth at most is kept
    assert left[7:9] == ["more", "sessions."]
    assert status.read(place / "working/runs/train")["session_ends"] == 3601


def test_stop_without_a_limit_says_how_much_is_left(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Away from Kaggle there are no sessions to count."""
    with pytest.raises(Stopped):
        training.train(training.settings(place), training.stop_at(2))
    said = capsys.readouterr().out
    assert "(the test says so). Run again to resume: about " in said
    assert "of training left." in said


def test_run_that_was_started_anew_is_not_left_for_the_attached_old_one(place: Path) -> None:
    """`--resume never` begins another run; the old one's output among the inputs got further and is not it."""
    values = training.settings(place, epochs=3)
    training.train(values)
    (place / "working/runs/train").rename(place / "input/version-1")
    with pytest.raises(Stopped):
        training.train(values, training.stop_at(2), resume="never")
    with pytest.raises(Stopped) as stopped:
        training.train(values, training.stop_at(2))
    assert stopped.value
    latest = training.read(place / "working/runs/train/checkpoints/latest.pt")
    assert latest["progress"]["global_step"] == 3


@pytest.mark.parametrize("folder", ["working", "input/mine"])
def test_upload_of_both_models_is_all_that_a_resume_needs(place: Path, folder: str) -> None:
    """Whoever kept latest.pt and best.pt on a laptop puts them back, and the run ends with the same bits."""
    values = training.settings(place, epochs=3)
    untouched = training.train({**values, "kit.run": "runs/untouched"})
    with pytest.raises(Stopped):
        training.train(values, training.stop_at(12))
    checkpoints = place / "working/runs/train/checkpoints"
    kept = {name: (checkpoints / f"{name}.pt").read_bytes() for name in ("latest", "best")}
    (place / "working/runs/train").rename(place / "elsewhere")
    (place / folder).mkdir(exist_ok=True)
    for name, content in kept.items():
        (place / folder / f"{name} (1).pt").write_bytes(content)
    again = training.train(values)
    assert differences(untouched, again) == []
    assert rows(untouched) == rows(again)
    one, other = (
        checkpoint.read(place / f"working/runs/{name}/checkpoints/best.pt", load=models.open_checkpoint)
        for name in ("untouched", "train")
    )
    assert differences(one, other) == []


@pytest.fixture
def hour(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A session of an hour that has just begun; returns the clock, which the test sets in seconds since then."""
    now = [0.0]
    monkeypatch.setenv("KIT_SESSION_START", "1000")
    monkeypatch.setattr(limit.time, "time", lambda: 1000 + now[0])
    monkeypatch.setattr(limit.time, "monotonic", lambda: 50 + now[0])
    return now


def leaves(clock: list[float], step: float, save_s: float = 0.0) -> float:
    """Return when a training of such steps leaves a session of an hour, in seconds since it began."""
    deadline = Deadline(1)
    while not deadline.should_stop(save_s):
        clock[0] += step
    return clock[0]


@pytest.mark.parametrize(
    ("step", "save_s", "reserve"), [(1, 0, 120 + 3), (30, 0, 120 + 90), (1, 20, 120 + 63), (200, 0, 360)]
)
def test_training_leaves_in_time_for_a_slow_step_and_a_save(
    hour: list[float], step: float, save_s: float, reserve: float
) -> None:
    """Three steps and saves and the notebook's last cells fit; at most a tenth of the session is given away."""
    assert 3600 - reserve <= leaves(hour, step, save_s) < 3600 - reserve + step


def test_clock_that_is_set_back_does_not_move_the_limit(hour: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Kaggle counts on, whatever the container's clock says."""
    deadline = Deadline(1)
    monkeypatch.setattr(limit.time, "time", lambda: 0.0)
    hour[0] = 3500
    assert deadline.should_stop()


def test_sessions_that_are_still_needed_are_counted(hour: list[float]) -> None:
    """From the time that training still takes, and what a session has room for."""
    deadline = Deadline(1)
    deadline.should_stop()
    assert [deadline.sessions(seconds) for seconds in (1, 3480, 3481, 36000)] == [1, 1, 2, 11]
    assert Deadline().sessions(36000) is None
    assert Deadline().report() == {}
    assert deadline.report() == {"session_ends": 4600, "session_leaves": 4480, "session_s": 3480}
    assert not Deadline().should_stop()
