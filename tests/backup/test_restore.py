"""What a session finds in a store, and what it makes of a store that it cannot use."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest

from kit import config
from kit.backup import manifests, restore
from kit.backup.upload import Backup
from kit.config import Config
from kit.errors import ConfigError, KitError
from kit.kaggle import session
from kit.process import parent
from kit.run import discovery
from kit.store.peek import read_facts
from kit.yolo.settings import load
from tests.help import samples
from tests.help.backups import IDENTITY, Shelf, Unreachable, content, fetch, files, opened, wipe, write

ROOT = session.REPOSITORY


@pytest.fixture
def run(place: Path) -> Path:
    """A run folder."""
    return place / "working/runs/train"


@pytest.fixture
def settings(place: Path) -> Config:
    """Settings of the run that `write` writes checkpoints of."""
    data = place / "data.yaml"
    data.write_text("train: images\nval: images\nnames: [cat, dog]\n")
    (place / "images").mkdir()
    (place / "images/1.png").touch()
    (place / "empty.yaml").write_text("{}")
    words = {"model": "yolov8n.yaml", "data": str(data), "kit.backup": f"file://{place}/store"}
    return load(place / "empty.yaml", words)


def test_empty_disk_gets_the_backup_and_its_best(place: Path, run: Path, settings: Config) -> None:
    """They lie where discovery finds them, byte for byte."""
    write(run, 25, best=0.5)
    Backup(run, "s3://here", files(place)).step()
    before = {name: content(run, name) for name in ("latest.pt", "best.pt")}
    wipe(place / "working")
    said: list[str] = []
    fetch(settings, "auto", opened(files(place)), said.append)
    assert settings.restored_folder is not None
    assert {path.name: path.read_bytes() for path in settings.restored_folder.iterdir()} == before
    assert said[0].startswith(f"Found backup: file://{place}/store (epoch 2/5, step 25, best mAP 0.5000, of ")
    (found,) = discovery.scan(settings)
    assert found.path == settings.restored_folder / "latest.pt"
    assert found.summary is not None


@pytest.mark.parametrize(("here", "fetched"), [(24, True), (25, False), (26, False)])
def test_backup_is_fetched_where_it_is_further_than_the_run_folder(
    place: Path, run: Path, settings: Config, here: int, fetched: bool
) -> None:
    """Steps are counted, of checkpoints that are whole."""
    write(run, 25)
    Backup(run, "s3://here", files(place)).step()
    write(run, here)
    fetch(settings, "auto", opened(files(place)), lambda line: None)
    assert settings.restored_folder is not None
    assert settings.restored_folder.exists() == fetched


def test_damaged_checkpoint_does_not_keep_the_backup_away(place: Path, run: Path, settings: Config) -> None:
    """It counts as none, however far it says that it is."""
    write(run, 25)
    Backup(run, "s3://here", files(place)).step()
    write(run, 30)
    samples.flip_weights(run / "checkpoints/latest.pt")
    fetch(settings, "auto", opened(files(place)), lambda line: None)
    assert settings.restored_folder is not None
    assert settings.restored_folder.exists()


@pytest.mark.parametrize(
    "other",
    [
        {"architecture": {**IDENTITY, "model": "yolov8s"}},
        {"architecture": {**IDENTITY, "names": ["cat"]}},
    ],
)
def test_backup_of_another_model_or_of_other_classes_is_left(
    place: Path, run: Path, settings: Config, other: dict[str, Any]
) -> None:
    """Several runs share a store; the furthest one that fits is taken."""
    for number, changes in enumerate([{}, {}, other], 1):
        write(run, number, run_id=f"run{number}", **changes)
        Backup(run, "s3://here", files(place)).step()
        wipe(place / "working")
    said: list[str] = []
    fetch(settings, "auto", opened(files(place)), said.append)
    assert "step 2," in said[0]


def test_run_in_the_folder_gets_its_own_backup_and_no_other(place: Path, run: Path, settings: Config) -> None:
    """Another run of the same model may be further; it is another run."""
    write(run, 40, run_id="other")
    Backup(run, "s3://here", files(place)).step()
    write(run, 20)
    fetch(settings, "auto", opened(files(place)), lambda line: None)
    assert settings.restored_folder is not None
    assert not settings.restored_folder.exists()


def test_run_that_was_started_anew_replaces_the_one_before(place: Path, run: Path, settings: Config) -> None:
    """The old one stays in the store, further as it is, and a new session goes on from the new one, now and later."""
    write(run, 40, run_id="old")
    Backup(run, "s3://here", files(place)).step()
    wipe(place / "working")
    write(run, 2, run_id="new")
    Backup(run, "s3://here", files(place), anew=True).step()
    write(run, 3, run_id="new")
    Backup(run, "s3://here", files(place)).step()
    wipe(place / "working")
    said: list[str] = []
    fetch(settings, "auto", opened(files(place)), said.append)
    assert "step 3," in said[0]
    assert {manifest["run_id"] for manifest in files(place).manifests()} == {"old", "new"}


@pytest.mark.parametrize(
    "other",
    [{"architecture": {**IDENTITY, "model": "yolov8s"}}, {"config": {"kit": {"run": "runs/other"}}}],
)
def test_run_that_was_started_anew_leaves_the_others_of_a_store(
    place: Path, run: Path, settings: Config, other: dict[str, Any]
) -> None:
    """A store may hold runs of several models, and several of one."""
    own = {"config": {"kit": {"run": "runs/train"}}}
    write(run, 40, run_id="mine", **own)
    Backup(run, "s3://here", files(place)).step()
    wipe(place / "working")
    write(run, 50, run_id="other", **{**own, **other})
    Backup(run, "s3://here", files(place), anew=True).step()
    wipe(place / "working")
    said: list[str] = []
    fetch(settings, "auto", opened(files(place)), said.append)
    assert "step 40," in said[0]


def test_backup_of_a_classification_run_is_found_by_its_folders(place: Path, run: Path) -> None:
    """The data set that is attached has one folder per class."""
    for name in ("cat", "dog"):
        for split in ("train", "val"):
            folder = place / "input/pets" / split / name
            folder.mkdir(parents=True)
            (folder / "1.png").touch()
    (place / "empty.yaml").write_text("{}")
    words = {"model": "yolov8n-cls.yaml", "data": "auto", "kit.backup": f"file://{place}/store"}
    write(run, 7, architecture={"task": "classify", "model": "yolov8n-cls", "names": ["cat", "dog"]})
    Backup(run, "s3://here", files(place)).step()
    wipe(place / "working")
    said: list[str] = []
    fetch(load(place / "empty.yaml", words), "auto", opened(files(place)), said.append)
    assert "step 7," in said[0]


@pytest.mark.parametrize("resume", ["never", "somewhere/latest.pt"])
def test_nothing_is_fetched_for_a_start_anew_or_from_a_file(
    place: Path, run: Path, settings: Config, resume: str
) -> None:
    """What was fetched before may be the file; for a start anew it is of the run that is left."""
    write(run, 25)
    Backup(run, "s3://here", files(place)).step()
    wipe(place / "working")
    fetch(settings, "auto", opened(files(place)), lambda line: None)
    assert settings.restored_folder is not None
    before = (settings.restored_folder / "latest.pt").stat()
    fetch(settings, resume, opened(files(place)), lambda line: None)
    if resume == "never":
        assert not settings.restored_folder.exists()
    else:
        assert (settings.restored_folder / "latest.pt").stat() == before


def test_second_start_beside_the_first_leaves_what_that_one_has_brought(
    place: Path, run: Path, settings: Config
) -> None:
    """The first one's training may be about to read it; also where the store cannot be asked just then."""
    write(run, 25, best=0.5)
    Backup(run, "s3://here", files(place)).step()
    wipe(place / "working")
    fetch(settings, "auto", opened(files(place)), lambda line: None)
    assert settings.restored_folder is not None
    before = {path.name: path.stat() for path in settings.restored_folder.iterdir()}
    assert set(before) == {"latest.pt", "best.pt"}
    fetch(settings, "auto", opened(files(place)), lambda line: None)
    with pytest.raises(KitError):
        fetch(settings, "auto", opened(Unreachable(ConnectionError("no network"))), lambda line: None)
    assert {path.name: path.stat() for path in settings.restored_folder.iterdir()} == before


def test_starts_at_the_same_time_all_find_the_backup(place: Path, run: Path, settings: Config) -> None:
    """Processes that fetch at once do not take each other's files away."""
    write(run, 25, best=0.5)
    Backup(run, "s3://here", files(place)).step()
    wipe(place / "working")
    script = (
        "import sys; from kit.yolo import settings as config; from kit.backup import reporter, restore, stores\n"
        f"settings = config.load({str(place / 'empty.yaml')!r}, sys.argv[1:])\n"
        "restore.Restore(settings, stores.open_store, reporter.Reporter(print)).fetch('auto')\n"
        "assert {path.name for path in settings.restored_folder.iterdir()} == {'latest.pt', 'best.pt'}\n"
    )
    words = config.to_args({**settings.train, "kit.backup": settings.kit.backup})
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = [subprocess.Popen([sys.executable, "-c", script, *words], env=environment) for _ in range(4)]
    assert [process.wait() for process in started] == [0] * 4
    assert settings.restored_folder is not None
    assert [path.name for path in settings.restored_folder.parent.iterdir()] == [settings.restored_folder.name]


def test_what_was_fetched_for_an_earlier_start_goes_where_it_is_no_backup_any_more(
    place: Path, run: Path, settings: Config
) -> None:
    """Who has removed the backup does not want it back."""
    write(run, 25)
    Backup(run, "s3://here", files(place)).step()
    wipe(place / "working")
    fetch(settings, "auto", opened(files(place)), lambda line: None)
    fetch(settings, "auto", opened(Shelf()), lambda line: None)
    assert discovery.scan(settings) == []


# --- a store that fails


def test_store_that_cannot_be_asked_ends_the_start_after_some_minutes(settings: Config) -> None:
    """It may hold what is further than anything here: the run does not begin at epoch 1 beside it."""
    said, pauses = list[str](), list[float]()
    with pytest.raises(
        KitError, match=r"cannot be reached: no network\. Run again .* kit\.backup_required=False"
    ) as caught:
        fetch(settings, "auto", opened(Unreachable(ConnectionError("no network"))), said.append, pauses)
    assert caught.value.exit_code == 1
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert said == [
        f"WARNING: {settings.kit.backup} cannot be asked: no network. It is tried for 300 s; a stop ends that."
    ]


def test_wait_ends_with_the_session(settings: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left to be trained after its limit."""
    monkeypatch.setenv("KIT_SESSION_START", str(time.time() - 3600 + 70))
    limited = dataclasses.replace(settings, kit=dataclasses.replace(settings.kit, session_hours=1))
    pauses = list[float]()
    with pytest.raises(KitError):
        fetch(limited, "auto", opened(Unreachable(ConnectionError("no network"))), lambda line: None, pauses)
    assert sum(pauses) <= 10


def test_start_goes_on_without_a_backup_that_is_not_required(settings: Config) -> None:
    """After seconds, and it says so."""
    free = dataclasses.replace(settings, kit=dataclasses.replace(settings.kit, backup_required=False))
    said, pauses = list[str](), list[float]()
    fetch(free, "auto", opened(Unreachable(ConnectionError("no network"))), said.append, pauses)
    assert sum(pauses) == 7
    assert said[-1] == (
        f"WARNING: {settings.kit.backup} cannot be reached: no network. Training goes on from what is here."
    )


class AnswerError(Exception):
    """What a client makes of an HTTP status."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.response = types.SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    "error",
    [ConnectionError("no network"), PermissionError("Forbidden"), TimeoutError(), AnswerError(403), AnswerError(429)],
)
def test_store_that_fails_for_a_moment_is_waited_for(
    place: Path, run: Path, settings: Config, error: Exception
) -> None:
    """A single refusal is no word for good: some stores answer so while they are busy."""
    store = Unreachable(error, times=2)
    write(run, 25)
    Backup(run, "s3://here", store).step()
    wipe(place / "working")
    said = list[str]()
    fetch(settings, "auto", opened(store), said.append)
    assert said[1].startswith(f"Found backup: {settings.kit.backup} (epoch 2/5, step 25")
    assert settings.restored_folder is not None
    assert (settings.restored_folder / "latest.pt").exists()


def test_empty_list_is_asked_for_again(place: Path, run: Path, settings: Config) -> None:
    """It may be an old one, and an empty disk would begin at epoch 1."""

    class Slow(Shelf):
        def manifests(self, run: str | None = None) -> list[dict[str, Any]]:
            found = super().manifests(run)
            return [] if self.log.count("manifests") == asked + 1 else found

    asked, store = 100, Slow()
    write(run, 25)
    Backup(run, "s3://here", store).step()
    wipe(place / "working")
    asked = store.log.count("manifests")
    said = list[str]()
    fetch(settings, "auto", opened(store), said.append)
    assert "step 25" in said[0]


def test_store_that_does_not_know_the_key_ends_the_start_at_once(settings: Config) -> None:
    """No retry makes it a good one."""
    pauses = list[float]()
    with pytest.raises(ConfigError, match=r"cannot be used: HTTP 401\. Check its token"):
        fetch(settings, "auto", opened(Unreachable(AnswerError(401))), lambda line: None, pauses)
    assert pauses == []


def test_store_that_turns_the_key_away_ends_the_start(settings: Config) -> None:
    """In second one, and not in hour nine."""
    with pytest.raises(ConfigError, match=r"cannot be used: Forbidden\. Check its token"):
        fetch(settings, "auto", opened(Unreachable(PermissionError("Forbidden"))), lambda line: None)


HANGING = """
import sys, time
from pathlib import Path
from kit.backup import restore
from kit.process import backups
from kit.yolo.settings import load

def hang(*arguments):
    while True:
        try: time.sleep(100)
        except BaseException: pass

def opened(address, open_store=backups.open_store):
    store = open_store(address)
    setattr(store, sys.argv[2], hang)
    return store

restore.LOOK_S, restore.FETCH_S, backups.open_store = 2, 1, opened
sys.exit(backups.main("fetch", load(sys.argv[1], sys.argv[4:]), "auto", Path(sys.argv[3])))
"""


@pytest.mark.parametrize("required", [True, False])
@pytest.mark.parametrize(("call", "seconds"), [("check", 2), ("fetch", 1)])
def test_store_that_hangs_is_given_up(
    place: Path, run: Path, settings: Config, call: str, seconds: int, required: bool
) -> None:
    """The process ends itself in mid-call, whatever the client would catch; the launcher is told how and what to do."""
    write(run, 25)
    Backup(run, "s3://here", files(place)).step()
    wipe(place / "working")
    words = config.to_args({**settings.train, "kit.backup": settings.kit.backup, "kit.backup_required": required})
    command = [sys.executable, "-c", HANGING, str(place / "empty.yaml"), call, str(place / "ended.json"), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "KIT_PARENT": str(os.getpid())}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    (notices, error), said = told(place / "ended.json"), done.stdout.splitlines()[-1]
    if not required and call == "check":
        assert (done.returncode, error) == (0, None)
        assert [notice["message"] for notice in notices] == [said.removeprefix("WARNING: ")]
        assert said.endswith(f" did not answer within {seconds} s. Training goes on from what is here.")
    else:
        assert (done.returncode, notices) == (1, [])
        assert error
        assert said == f"error: {error}"
        assert f" within {seconds} s." in error.message
        assert error.hint == (restore.WITHOUT if call == "check" else "Run again, or start anew with --resume never.")


def told(ended: Path) -> tuple[list[dict[str, str]], KitError | None]:
    """Return what a process has kept for the launcher."""
    return parent.take_notices(ended), parent.read_ending(ended, 1, []) if ended.exists() else None


class Changed(Shelf):
    """A store that gives back other bytes than it was given."""

    def fetch(self, manifest: dict[str, Any], name: str, target: Path) -> None:
        target.write_bytes(b"something else")


def test_download_that_is_not_what_was_uploaded_is_not_used(place: Path, run: Path, settings: Config) -> None:
    """With nothing here the start ends, for the backup is the only copy; else training goes on from what is here."""
    store = Changed()
    write(run, 25)
    Backup(run, "s3://here", store).step()
    write(run, 20)
    said: list[str] = []
    fetch(settings, "auto", opened(store), said.append)
    assert said[1].startswith("WARNING: It could not be fetched")
    assert settings.restored_folder is not None
    assert not settings.restored_folder.exists()
    wipe(place / "working")
    assert list(settings.restored_folder.parent.iterdir()) == []
    with pytest.raises(KitError, match=r"checksum differs\. Run again, or start anew with --resume never\.") as caught:
        fetch(settings, "auto", opened(store), said.append)
    assert caught.value.exit_code == 1
    assert not settings.restored_folder.exists()


def test_newest_backup_that_is_damaged_gives_way_to_the_one_before(place: Path, run: Path, settings: Config) -> None:
    """Two are kept of a run."""
    store = files(place)
    for step in (1, 2, 3):
        write(run, step, best=0.5)
        Backup(run, "s3://here", store).step()
    wipe(place / "working")
    newest, before = store.manifests()
    assert [each["step"] for each in (newest, before)] == [3, 2]
    samples.flip_weights(Path(store._path(newest, "latest.pt")))
    said = list[str]()
    fetch(settings, "auto", opened(files(place)), said.append)
    assert "WARNING: latest.pt of step 3 is not what was uploaded, its checksum differs." in said
    assert settings.restored_folder is not None
    assert read_facts(settings.restored_folder / "latest.pt")["step"] == 2


def test_damaged_best_does_not_keep_the_newest_state_away(place: Path, run: Path, settings: Config) -> None:
    """Training goes on where it stood; that the best model is gone is said."""
    store = files(place)
    write(run, 3, best=0.5)
    Backup(run, "s3://here", store).step()
    wipe(place / "working")
    samples.flip_weights(Path(store._path(store.manifests()[0], "best.pt")))
    said = list[str]()
    fetch(settings, "auto", opened(files(place)), said.append)
    assert settings.restored_folder is not None
    assert [path.name for path in settings.restored_folder.iterdir()] == ["latest.pt"]
    assert "WARNING: best.pt of step 3 is not what was uploaded, its checksum differs." in said


def test_whole_backup_before_goes_before_one_without_its_best(place: Path, run: Path, settings: Config) -> None:
    """What was trained since is trained again to the bit, and makes the best model again."""
    store = files(place)
    for step in (2, 3):
        write(run, step, best=step / 10)
        Backup(run, "s3://here", store).step()
    expected = {each: content(run, each) for each in ("latest.pt", "best.pt")}
    write(run, 4, best=0.4)
    Backup(run, "s3://here", store).step()
    wipe(place / "working")
    Path(store._path(store.manifests()[0], "best.pt")).unlink()
    fetch(settings, "auto", opened(files(place)), lambda line: None)
    assert settings.restored_folder is not None
    assert {path.name: path.read_bytes() for path in settings.restored_folder.iterdir()} == expected


def test_later_branch_is_further_whatever_its_steps(place: Path, run: Path, settings: Config) -> None:
    """As in the run folder; a manifest of an earlier version of the kit counts as the first branch."""
    progress = samples.state(10)["progress"]
    write(run, 40)
    Backup(run, "s3://here", files(place)).step()
    write(run, 10, progress={**progress, "branch": 1})
    Backup(run, "s3://here", files(place)).step()
    write(run, 40)
    said = list[str]()
    fetch(settings, "auto", opened(files(place)), said.append)
    assert "step 10," in said[0]
    (place / "store/one/manifest-000002.json").unlink()
    write(run, 10, progress={**progress, "branch": 1})
    old = place / "store/one/manifest-000001.json"
    old.write_text(old.read_text().replace('"branch": 0, ', ""))
    said.clear()
    fetch(settings, "auto", opened(files(place)), said.append)
    assert said == []


GOOD = {"run_id": "two", "identity": {}, "step": 99, "epoch": 1, "epochs": 2, "best_map": None, "time": 1.0}
GOOD = {**GOOD, "replaces": [], "files": {"latest.pt": {"size": 1, "sha256": "0" * 64}}}


@pytest.mark.parametrize(
    "odd",
    [
        {"time": 1e300},
        {"time": float("nan")},
        {"replaces": [["one"]]},
        {"replaces": [{"one": 1}]},
        {"step": 1e99},
        {"step": True},
        {"best_map": "0.5"},
        {"run_id": "../one"},
        {"files": {"latest.pt": {"size": "1e400", "sha256": "0" * 64}}},
        {"files": {"latest.pt": {"size": 1, "sha256": ["0"]}}},
        {"files": {}},
        None,
        [],
        "<!DOCTYPE html>",
    ],
)
def test_odd_manifest_of_any_run_is_left_out(
    place: Path, run: Path, settings: Config, odd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said once, and the others count; it is asked for more than once before that."""
    monkeypatch.setattr(manifests, "PAUSE_S", 0)
    write(run, 25)
    Backup(run, "s3://here", files(place)).step()
    wipe(place / "working")
    for number, folder in enumerate(("two", "one", "three"), 1):
        (place / "store" / folder).mkdir(exist_ok=True)
        text = json.dumps({**GOOD, **odd} if isinstance(odd, dict) else odd)
        (place / "store" / folder / f"manifest-{number:06d}.json").write_text(text)
    (place / "store/three/manifest-000004.json").mkdir()
    said = list[str]()
    fetch(settings, "auto", opened(files(place)), said.append)
    assert "step 25," in said[-1]
    assert len(said) == 5
    assert settings.restored_folder is not None
    assert (settings.restored_folder / "latest.pt").exists()


def test_other_run_in_a_store_for_one_ends_the_start(run: Path, settings: Config) -> None:
    """Two runs would hide each other's backups; a start anew is what takes its place."""
    store = Shelf(shared=False)
    write(run, 25, run_id="other", architecture={**IDENTITY, "model": "yolo11x"})
    Backup(run, "s3://here", store).step()
    wipe(run)
    with pytest.raises(ConfigError, match=r"holds another run \(yolo11x, epoch 2/5.*--resume never"):
        fetch(settings, "auto", opened(store), lambda line: None)
    fetch(settings, "never", opened(store), lambda line: None)
    Backup(run, "s3://here", store, anew=True).step()  # and killed before there is anything to upload
    write(run, 1)
    fetch(settings, "auto", opened(store), lambda line: None)
    assert Backup(run, "s3://here", store).step()
    fetch(settings, "auto", opened(store), lambda line: None)
    assert store.manifests()[0]["run_id"] == "one"
