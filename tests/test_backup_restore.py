"""What a session finds in a store, and what it makes of a store that it cannot use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import samples
from backups import IDENTITY, Shelf, Unreachable, content, files, opened, wipe, write

from kit import config, discovery, session
from kit.backup.restore import fetch
from kit.backup.upload import Backup
from kit.config import Config
from kit.errors import ConfigError, KitError

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
    return config.load(place / "empty.yaml", words)


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
    (found,) = discovery.scan(run, settings.restored_folder)
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
    fetch(config.load(place / "empty.yaml", words), "auto", opened(files(place)), said.append)
    assert "step 7," in said[0]


@pytest.mark.parametrize("resume", ["never", "somewhere/latest.pt"])
def test_nothing_is_fetched_for_a_start_anew_or_from_a_file(
    place: Path, run: Path, settings: Config, resume: str
) -> None:
    """And what was fetched before stays, for it may be the file."""
    write(run, 25)
    Backup(run, "s3://here", files(place)).step()
    wipe(place / "working")
    fetch(settings, "auto", opened(files(place)), lambda line: None)
    assert settings.restored_folder is not None
    before = (settings.restored_folder / "latest.pt").stat()
    fetch(settings, resume, opened(files(place)), lambda line: None)
    assert (settings.restored_folder / "latest.pt").stat() == before


def test_what_was_fetched_for_an_earlier_start_is_not_found_again(place: Path, run: Path, settings: Config) -> None:
    """It may be of a run that was started anew since."""
    write(run, 25)
    Backup(run, "s3://here", files(place)).step()
    wipe(place / "working")
    fetch(settings, "auto", opened(files(place)), lambda line: None)
    fetch(settings, "auto", opened(Unreachable(ConnectionError("no network"))), lambda line: None)
    assert discovery.scan(run, settings.restored_folder) == []


def test_store_that_cannot_be_reached_is_a_warning(settings: Config) -> None:
    """Training goes on from what is here."""
    said: list[str] = []
    fetch(settings, "auto", opened(Unreachable(ConnectionError("no network"))), said.append)
    assert said == [
        f"WARNING: {settings.kit.backup} cannot be reached: no network. Training goes on from what is here."
    ]


def test_store_that_turns_the_key_away_ends_the_start(settings: Config) -> None:
    """In second one, and not in hour nine."""
    with pytest.raises(ConfigError, match=r"cannot be used: Forbidden\. Check its token"):
        fetch(settings, "auto", opened(Unreachable(PermissionError("Forbidden"))), lambda line: None)


def test_store_that_hangs_is_given_up(place: Path, settings: Config) -> None:
    """The process ends itself in mid-call, whatever the client would catch."""
    words = config.to_words({**settings.train, "kit.backup": "s3://a/b"})
    script = (
        "import time; from kit import config; from kit.backup import restore\n"
        "class Hanging:\n    def check(self):\n        while True:\n            try: time.sleep(100)\n"
        "            except BaseException: pass\n"
        "restore.LOOK_S = 1\n"
        f"settings = config.load({str(place / 'empty.yaml')!r}, {words!r})\n"
        "restore.fetch(settings, 'auto', lambda address: Hanging(), lambda line: print(line, flush=True))\n"
    )
    command = [sys.executable, "-c", script]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "WARNING: s3://a/b did not answer within 1 s. Training goes on from what is here.\n"


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


def test_other_run_in_a_store_for_one_is_said(run: Path, settings: Config) -> None:
    """A Kaggle data set keeps it as an older version."""
    store = Shelf(shared=False)
    write(run, 25, run_id="other", architecture={**IDENTITY, "model": "yolo11x"})
    Backup(run, "s3://here", store).step()
    wipe(run)
    said: list[str] = []
    fetch(settings, "auto", opened(store), said.append)
    assert said == [
        f"{settings.kit.backup} holds another run: it becomes an older version there, behind the backups of this one."
    ]
