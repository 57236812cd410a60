"""The notebook at home on Kaggle: from a bare session to the end of training, whatever the sessions come to.

Not covered: a GPU's arithmetic, which has its own tests, and what Kaggle itself does to files between two sessions.
"""

from __future__ import annotations

import importlib.metadata
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kit.store import disk as storage, trust
from tests.help import training, twin
from tests.help.pretrained import PUBLISHED
from tests.help.training import differences, rows
from tests.help.twin import Kaggle, Session
from tests.help.walk import walk
from tests.yolo.test_kills import IMAGES, SETTINGS, results

pytestmark = pytest.mark.twin

OUTPUTS = ("training", "notebooks/somebody/training")  # where a notebook's output is attached: the old way and the new
LENGTH_S, AGE_S = 1200.0, 1030.0  # of a session that most of has gone for something else: what is left is short
EVERY_BATCH_IN_A_NOTEBOOK = {"kit": {"max_lost_s": 1e-6, "max_cost_percent": 1e9}}
CARDS = [  # how a session runs, how it ends, and what became of the draft's disk before it
    ("Interactive", "left", "kept"),
    ("Interactive", "left", "wiped"),
    ("Interactive", "killed", "kept"),
    ("Interactive", "killed", "wiped"),
    ("Batch", "left", "its own"),
    ("Batch", "killed", "its own"),
]


class Clock:
    """A watch that takes the time of a session's parts.

    Args:
        spare_s: Seconds of training after which the session is killed.

    Attributes:
        startup_s: Seconds until training went on.
        training_s: Seconds from then to now.
    """

    def __init__(self, spare_s: float = math.inf) -> None:
        self.began, self.spare_s = time.time(), spare_s
        self.startup_s = self.training_s = 0.0

    def __call__(self, news: dict[str, Any]) -> bool:
        now = time.time() - self.began
        if not self.startup_s and news.get("state") == "training" and news["updated"] > self.began:
            self.startup_s = now
        self.training_s = now - self.startup_s if self.startup_s else 0.0
        return self.training_s > self.spare_s


def account(place: Path, **changes: Any) -> tuple[Kaggle, dict[str, Any]]:
    """Return an account with a data set and a model attached, and what its user sets: 100 epochs of 3 batches."""
    kaggle = Kaggle(place)
    values = training.settings(place / "made", **{"epochs": 100, **changes})
    kaggle.attach(Path(values["data"]).parent, "datasets/somebody/shapes")
    model = kaggle.attach(Path(values["model"]), "tiny/tiny-detect.yaml")
    return kaggle, {**values, "data": "auto", "model": str(model), "patience": 0}


def hours(seconds: float) -> dict[str, Any]:
    """Return the setting that tells the kit how long a session is."""
    return {"kit": {"session_hours": seconds / 3600}}


def saved(epoch: int) -> Callable[[dict[str, Any]], bool]:
    """Return a watch that kills the session when a checkpoint of this epoch, or of a later one, is on the disk."""
    return lambda news: (news.get("checkpoint") or {}).get("epoch", 0) >= epoch


def done(session: Session) -> int:
    """Return the epochs that the session's newest checkpoint has behind it."""
    latest = session.run / "checkpoints/latest.pt"
    return training.read(latest)["epoch"] if latest.exists() else 0


def assert_same_bits(one: Path, other: Path) -> None:
    """Compare all that two finished runs have come to, but the clock."""
    first, second = (training.read(run / "checkpoints/latest.pt") for run in (one, other))
    assert differences(first, second) == []
    assert rows(first) == rows(second)
    assert results(one) == results(other)


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Session, Clock]:
    """A run of a hundred epochs in one session."""
    kaggle, values = account(tmp_path_factory.mktemp("untouched") / "account")
    clock = Clock()
    session = kaggle.session("Interactive", values, watch=clock)
    assert "Training finished: 100 epochs" in session.text
    return session, clock


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A batch run that its session has no time for."""
    kaggle, values = account(tmp_path_factory.mktemp("stopped") / "account", epochs=10_000)
    return kaggle.session("Batch", {**values, **hours(LENGTH_S)}, limit_s=LENGTH_S - AGE_S, age_s=AGE_S)


def test_twin_keeps_and_refuses_what_kaggle_does(tmp_path: Path) -> None:
    """The working folder stays, scratch goes with the session, inputs are read-only, and there is no network."""
    kaggle = Kaggle(tmp_path / "account")
    (tmp_path / "data.yaml").write_text("")
    attached = kaggle.attach(tmp_path / "data.yaml", "mine/data.yaml")
    script = """if True:
        import os, socket, sys, time
        from kit.kaggle import session
        assert session.on_kaggle() and 0 <= time.time() - session.started() < 30
        assert "https_proxy" in os.environ or socket.if_nameindex() == [(1, "lo")]
        assert list(session.scratch().iterdir()) == []
        (session.scratch() / "lost").write_text("")
        with open(session.working() / "kept", "a") as file:
            file.write("x")
        if sys.argv[1:]:
            open(sys.argv[1], "w")
    """
    path = {"PYTHONPATH": str(kaggle.repository)}
    for _ in range(2):
        assert kaggle.execute(("-c", script), "Batch", kaggle.draft, **path) == (0, False), kaggle.console()
    assert (kaggle.draft / "kept").read_text() == "xx"
    if twin.unshare():
        assert kaggle.execute(("-c", script, str(attached)), "Batch", kaggle.draft, **path) == (1, False)
        assert "Read-only file system" in kaggle.console()


def test_limit_leaves_nothing_of_a_session(tmp_path: Path) -> None:
    """Whatever a notebook has started, and however it hides, the SIGKILL at the limit ends it."""
    kaggle = Kaggle(tmp_path)
    script = """if True:
        import os, signal, subprocess, time
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        subprocess.Popen(["sleep", "600"], start_new_session=True)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                open("started", "w")
        time.sleep(600)
    """
    seen: list[int] = []

    def watch(news: dict[str, Any]) -> bool:
        if (kaggle.draft / "started").exists():
            seen.extend(twin.processes(kaggle.container))
        return bool(seen)

    code, killed = kaggle.execute(("-c", script), "Interactive", kaggle.draft, 60, watch)
    assert killed
    assert code != 0
    assert len(seen) >= 4
    assert twin.processes(kaggle.container) == []


def test_batch_run_goes_on_from_the_output_of_a_killed_session(tmp_path: Path) -> None:
    """The notebook alone, a copy of the kit, no internet and a kill; then a clone, an empty disk, and the run's end."""
    kaggle, values = account(tmp_path, epochs=8)
    attach_all(kaggle)
    killed = kaggle.session("Interactive", values, internet=False, watch=saved(2))
    assert killed.killed, kaggle.console()
    output = kaggle.attach(killed.working, OUTPUTS[1])
    shutil.rmtree(kaggle.input / twin.COPY)
    finished = kaggle.session("Batch", values)
    assert f"Found checkpoint: {output}/runs/train/checkpoints/latest.pt" in finished.text
    assert "Training finished: 8 epochs" in finished.text
    assert finished.code == 0


def attach_all(kaggle: Kaggle) -> None:
    """Attach what the notebook needs without internet."""
    kaggle.attach(kaggle.repository, twin.COPY)
    if twin.bare():
        kaggle.attach(twin.WHEELS, f"{twin.COPY}/wheels")


@pytest.mark.slow
@pytest.mark.parametrize(("run_type", "internet"), [("Interactive", True), ("Batch", False)])
def test_notebook_runs_top_to_bottom_from_a_bare_image(tmp_path: Path, run_type: str, internet: bool) -> None:
    """Cell by cell, with internet or with what is attached; nothing that was on the image is moved."""
    kaggle, values = account(tmp_path, epochs=2)
    if not internet:
        attach_all(kaggle)
    session = kaggle.session(run_type, values, internet=internet)
    assert session.code == 0, session.text
    assert ("installed ultralytics" if twin.bare() else "nothing had to be installed") in session.text
    assert "Training finished: 2 epochs" in session.text
    assert "latest.pt: " in session.text.rpartition("Training finished")[2]
    assert session.status["state"] == "finished"
    present, added = names(twin.packages()), names(map(str, tmp_path.glob("image/lib/*/site-packages")))
    assert ("ultralytics" in added) == twin.bare()
    assert not present & added


def names(folders: Any) -> set[str]:
    """Return the names of the packages in some folders."""
    return {package.metadata["Name"] for package in importlib.metadata.distributions(path=list(folders))}


@pytest.mark.slow
def test_run_of_three_sessions_finishes_by_running_again(tmp_path: Path, untouched: tuple[Session, Clock]) -> None:
    """The user does nothing but run all cells again, and gets the bits of the run that was never touched."""
    whole, clock = untouched
    kaggle, values = account(tmp_path)
    sessions: list[Session] = []
    for share in (3, 6, 12):  # a machine that has become faster since needs shorter sessions
        kaggle.wipe()
        length, sessions = (clock.startup_s + clock.training_s / share) / 0.9, []
        while not sessions or sessions[-1].status["state"] != "finished":
            assert len(sessions) < 15
            sessions.append(kaggle.session("Interactive", {**values, **hours(length)}, limit_s=3 * length))
            assert sessions[-1].code == 0, sessions[-1].text
        if len(sessions) >= 3:
            break
    assert len(sessions) >= 3
    assert ["Run again to resume" in session.text for session in sessions] == [True] * (len(sessions) - 1) + [False]
    assert_same_bits(whole.run, sessions[-1].run)


@pytest.mark.slow
def test_batch_run_completes_before_its_limit(stopped: Session) -> None:
    """Complete and in time, so that Kaggle keeps its output, in which lies a good checkpoint of where it stood."""
    assert not stopped.killed
    assert stopped.code == 0
    assert "the session's limit is near" in stopped.text
    assert "more session" in stopped.text
    assert stopped.status["state"] == "stopped"
    trust.verify(stopped.run / "checkpoints/latest.pt")
    assert done(stopped) == stopped.status["completed"] >= 1


@pytest.mark.slow
@pytest.mark.parametrize("way", [*OUTPUTS, "upload", "datasets/somebody/my-checkpoint"])
def test_wiped_disk_is_restored(tmp_path: Path, stopped: Session, way: str) -> None:
    """From the output of an earlier session, or from a latest.pt that its user had downloaded."""
    epoch = done(stopped)
    kaggle, values = account(tmp_path, epochs=epoch + 2)
    if way in OUTPUTS:
        found = kaggle.attach(stopped.working, way) / "runs/train/checkpoints/latest.pt"
    elif way == "upload":
        shutil.copy(stopped.run / "checkpoints/latest.pt", kaggle.draft / "latest (1).pt")
        found = kaggle.folder(kaggle.draft) / "latest (1).pt"
    else:
        found = kaggle.attach(stopped.run / "checkpoints/latest.pt", f"{way}/latest.pt")
    session = kaggle.session("Interactive", values)
    assert f"Found checkpoint: {found} " in session.text
    assert f"Resumed from epoch {epoch}" in session.text
    assert ("The best model so far is gone" in session.text) == (way not in OUTPUTS)
    assert f"Training finished: {epoch + 2} epochs" in session.text
    assert (session.run / "checkpoints/best.pt").exists()


@pytest.mark.slow
def test_empty_disk_is_restored_from_a_backup(tmp_path: Path) -> None:
    """Nothing is attached; the last backup is of where the session before stood when it left, best.pt too."""
    kaggle, values = account(tmp_path / "account", epochs=10_000)
    kit = {"backup": (tmp_path / "backup").as_uri()}
    limited = {**values, "kit": {**kit, **hours(LENGTH_S)["kit"]}}
    stopped = kaggle.session("Batch", limited, limit_s=LENGTH_S - AGE_S, age_s=AGE_S)
    assert (stopped.killed, stopped.code) == (False, 0), stopped.text
    epoch = done(stopped)
    session = kaggle.session("Interactive", {**values, "epochs": epoch + 2, "kit": kit})
    assert f"Resumed from epoch {epoch}" in session.text
    assert "The best model so far is gone" not in session.text
    assert f"Training finished: {epoch + 2} epochs" in session.text


@pytest.mark.slow
def test_full_quota_is_said_once_and_ends_nothing(tmp_path: Path) -> None:
    """What lies beside the run fills the quota and is deleted again: training goes on, and so does saving."""
    kaggle, values = account(tmp_path, epochs=60)
    kaggle.quota = storage.RESERVE + (16 << 20)
    heap, seen = kaggle.draft / "heap.bin", []

    def watch(news: dict[str, Any]) -> bool:
        done = news.get("completed", 0)
        if not seen and done >= 3:
            seen.append(done)
            with open(heap, "wb") as file:
                os.posix_fallocate(file.fileno(), 0, kaggle.quota)
        if heap.exists() and done >= seen[0] + 10:
            heap.unlink()
        return False

    session = kaggle.session("Interactive", values, watch=watch)
    assert session.code == 0, session.text
    assert "0 MB free" in session.text
    assert (session.run / "train.log").read_text().count("0 MB free") == 1
    assert "Saving works again" in session.text
    assert "Training finished: 60 epochs" in session.text


@pytest.mark.slow
def test_hundred_epochs_over_many_short_sessions_end_with_the_untouched_runs_bits(
    tmp_path: Path, untouched: tuple[Session, Clock], shown: list[str]
) -> None:
    """Left before the limit or killed at a random time, in both run types, on a disk that is kept, wiped or new."""
    whole, clock = untouched
    startup_s, share_s = clock.startup_s, clock.training_s
    kaggle, values = account(tmp_path)
    chance, story = random.Random(5), []
    for number, (run_type, end, disk) in enumerate(deal(chance)):
        assert number < 60, story
        if disk == "wiped":
            kaggle.wipe()
        spare_s = share_s * chance.uniform(0.04, 0.14)
        clock = Clock(spare_s if end == "killed" else math.inf)
        known = hours((startup_s + spare_s) / 0.9) if end == "left" else {}  # a kill is nothing that the kit knows of
        session = kaggle.session(run_type, {**values, "workers": number % 3, **known}, watch=clock)
        assert session.killed or session.code == 0, session.text
        startup_s = clock.startup_s or startup_s
        story.append((run_type, "killed" if session.killed else "left", done(session)))
        if session.status["state"] == "finished":
            break
        if not session.killed:  # a version is saved, and attached to the sessions that follow
            kaggle.attach(session.working, OUTPUTS[number % 2])
    shown.append(f"twin      100 epochs over {len(story)} sessions: " + ", ".join(" ".join(map(str, s)) for s in story))
    assert len(story) >= 8
    assert_same_bits(whole.run, session.run)


@pytest.mark.slow
def test_first_steps_of_the_readme_as_they_stand(tmp_path: Path, big: Callable[[str], Path]) -> None:
    """A hundred epochs of 640 pixels, or fewer where early stopping ends them."""
    walk(tmp_path, big)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_fine_tuned_model_killed_in_the_notebook_ends_bit_identical(
    tmp_path: Path, shown: list[str], big: Callable[[str], Path], name: str
) -> None:
    """What people start from, of 80 classes and trained on three, with five kills of the whole session."""
    task, chance = PUBLISHED[name], random.Random(name)
    kaggle = Kaggle(tmp_path / "account")
    values = training.settings(tmp_path / "made", task, images=IMAGES, epochs=3, **SETTINGS, workers=2)
    values |= {**EVERY_BATCH_IN_A_NOTEBOOK, "imgsz": 96}
    kaggle.attach(tmp_path / f"made/shapes-{task}", "datasets/somebody/shapes")
    data = "classified" if task == "classify" else "data.yaml"
    values["data"] = str(kaggle.folder(kaggle.input) / "datasets/somebody/shapes" / data)
    values["model"] = str(kaggle.attach(big(f"{name}@80"), f"models/{name}.pt"))
    whole = kaggle.session("Interactive", {**values, "kit": {"run": "runs/untouched"}})
    assert whole.code == 0, whole.text
    run, places = kaggle.draft / "runs/train", []
    for number in range(5):
        target = max(chance.randrange(5 * number, 5 * number + 5), step(run) + 1)
        killed = kaggle.session("Interactive", values, watch=lambda news, target=target: step(run) >= target)
        assert killed.killed, killed.text
        places.append(step(run))
    finished = kaggle.session("Interactive", values)
    assert finished.code == 0, finished.text
    assert_same_bits(kaggle.draft / "runs/untouched", run)
    shown.append(f"twin      {name:13} 5 kills after batches {' '.join(map(str, places))}: the same bits")


def step(run: Path) -> int:
    """Return the step that latest.pt was saved at."""
    latest = run / "checkpoints/latest.pt"
    return int(training.read(latest)["progress"]["global_step"]) if latest.exists() else 0


def deal(chance: random.Random) -> Iterator[tuple[str, str, str]]:
    """Yield cards without end; with the first one a run begins that can be attached."""
    yield CARDS[0]
    while True:
        yield from chance.sample(CARDS, len(CARDS))
