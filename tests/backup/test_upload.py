"""What is uploaded and when, what a checkpoint says of itself, and what a crash leaves in a store."""

from __future__ import annotations

import errno
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kit.backup.pins import remove_leftovers
from kit.backup.upload import Backup, report
from kit.errors import CheckpointError
from kit.kaggle import session
from kit.run import discovery
from kit.store import trust
from kit.store.peek import read_facts
from tests.help.backups import IDENTITY, Clock, Shelf, Tearing, content, files, wipe, write
from tests.help.samples import flip_weights, save, state

ROOT = session.REPOSITORY


@pytest.fixture
def run(place: Path) -> Path:
    """A run folder."""
    return place / "working/runs/train"


def steps(store: Shelf) -> list[int]:
    return [manifest["step"] for manifest, _ in store.pushed]


def test_checkpoint_and_its_best_are_uploaded_and_described(run: Path) -> None:
    """The bytes are those of the run folder; the manifest says what they are; `backup.json` says that they are safe."""
    store = Shelf()
    write(run, 25, best=0.5)
    assert Backup(run, "s3://here", store).step()
    manifest, uploaded = store.pushed[0]
    assert uploaded == {name: content(run, name) for name in ("latest.pt", "best.pt")}
    assert {key: manifest[key] for key in ("run_id", "step", "epoch", "epochs", "best_map")} == {
        "run_id": "one",
        "step": 25,
        "epoch": 2,
        "epochs": 5,
        "best_map": 0.5,
    }
    assert manifest["identity"] == IDENTITY
    news = json.loads((run / "backup.json").read_text())
    assert (news["address"], news["step"], news["epoch"], news["problem"]) == ("s3://here", 25, 2, "")
    assert "In s3://here: latest.pt and best.pt (epoch 2/5, step 25, best mAP 0.5000" in report(run)


def test_nothing_is_uploaded_where_nothing_is_new(run: Path) -> None:
    """Neither before the first checkpoint nor again and again; looking costs no reading."""
    store = Shelf()
    keeper = Backup(run, "s3://here", store, clock=(clock := Clock()))
    assert keeper.step()
    write(run, 1)
    assert keeper.step()
    news = (run / "backup.json").stat()
    for _ in range(3):
        clock.now += 1000
        assert keeper.step()
    assert steps(store) == [1]
    assert (run / "backup.json").stat() == news


def test_next_session_uploads_nothing_that_the_store_has(run: Path) -> None:
    """A session that goes on from what was backed up starts with the same bytes under other inodes."""
    store = Shelf()
    write(run, 1, best=0.5)
    Backup(run, "s3://here", store).step()
    write(run, 1, best=0.5)
    assert Backup(run, "s3://here", store).step()
    assert steps(store) == [1]
    assert "step 1" in report(run)


def test_newest_wins_and_those_between_are_left_out(run: Path) -> None:
    """A minute passes between two uploads, whatever is saved meanwhile; at the end there is no waiting."""
    store, clock = Shelf(), Clock()
    keeper = Backup(run, "s3://here", store, clock=clock)
    for second in range(100):
        write(run, second + 1)
        keeper.step()
        clock.now += 1
    assert steps(store) == [1, 61]
    assert keeper.step(last=True)
    assert steps(store) == [1, 61, 100]


def test_uploading_takes_a_tenth_of_the_time_at_most(run: Path) -> None:
    """Where an upload takes half a minute, five pass until the next."""
    clock = Clock()

    def slow() -> None:
        clock.now += 30

    store = Shelf(during=slow)
    keeper = Backup(run, "s3://here", store, clock=clock)
    began = []
    for number in range(70):
        write(run, number + 1)
        before, calls = clock.now, store.calls
        keeper.step()
        began += [before] if store.calls > calls else []
        clock.now += 10
    assert {round(after - before) for before, after in itertools.pairwise(began)} == {300}


def test_failed_upload_is_said_once_and_tried_again_with_growing_pauses(run: Path) -> None:
    """One second, two, four, … ten minutes; then it says once that it works again, and waits as before."""
    store, clock, said = Shelf(fails=lambda call: call <= 13), Clock(), []
    keeper = Backup(run, "s3://here", store, say=said.append, clock=clock)
    write(run, 1)
    tried = []
    while not store.pushed:
        before = store.calls
        keeper.step()
        tried += [clock.now] if store.calls > before else []
        clock.now += 0.5
    assert [round(b - a) for a, b in itertools.pairwise(tried)] == [2**n for n in range(10)] + [600] * 3
    assert said == [
        "WARNING: The backup to s3://here failed: the network is gone. It is tried again.",
        "Backups to s3://here work again.",
    ]


def test_problem_is_in_the_news_until_it_is_over(run: Path) -> None:
    """The dashboard shows it; what was safe before still is."""
    store = Shelf(fails=lambda call: call == 2)
    keeper = Backup(run, "s3://here", store)
    for step in (1, 2):
        write(run, step)
        keeper.step(last=True)
    news = json.loads((run / "backup.json").read_text())
    assert (news["problem"], news["step"]) == ("the network is gone.", 1)
    assert report(run).startswith("The last backup failed: the network is gone. In s3://here: latest.pt")
    keeper.step(last=True)
    news = json.loads((run / "backup.json").read_text())
    assert (news["problem"], news["step"]) == ("", 2)


def test_file_that_is_replaced_during_its_upload_arrives_whole(run: Path) -> None:
    """What is uploaded has a second name; it goes afterwards, and the new file is the next to be uploaded."""
    store = Shelf(during=lambda: write(run, 2) if store.calls == 1 else None)
    write(run, 1)
    before = content(run, "latest.pt")
    keeper = Backup(run, "s3://here", store)
    keeper.step()
    assert store.pushed[0][1]["latest.pt"] == before
    assert list(run.glob(".backup*")) == []
    assert not keeper.current
    keeper.step(last=True)
    assert steps(store) == [1, 2]


def test_second_names_go_when_an_upload_fails(run: Path) -> None:
    """They would keep two generations of checkpoints in what Kaggle keeps of the working folder."""
    write(run, 1, best=0.5)
    Backup(run, "s3://here", Shelf(fails=lambda call: True), say=lambda line: None).step()
    assert list(run.glob(".backup*")) == []


def test_second_names_of_a_process_that_was_killed_are_swept(run: Path) -> None:
    """The next start finds them; those of one that is alive are left alone."""
    for number in (os.getpid(), 2**22 + 1):  # above the largest process number
        (run / f".backup-{number}").mkdir(parents=True)
        (run / f".backup-{number}/latest.pt").touch()
    remove_leftovers(run)
    assert [path.name for path in run.glob(".backup*")] == [f".backup-{os.getpid()}"]


def test_best_of_another_save_than_latest_is_waited_for(run: Path) -> None:
    """The writer publishes the one and then the other; a resume takes only a pair."""
    write(run, 1, best=0.5)
    old = content(run, "latest.pt")
    write(run, 2, best=0.6)
    (run / "checkpoints/latest.pt").write_bytes(old)
    later = "import shutil, sys, time; time.sleep(1.5); shutil.move(*sys.argv[1:])"
    made = save(run / "next.pt", state(2, best_map=0.6, architecture=IDENTITY))
    writer = subprocess.Popen([sys.executable, "-c", later, str(made), str(run / "checkpoints/latest.pt")])
    store = Shelf()
    Backup(run, "s3://here", store).step()
    writer.wait()
    assert (steps(store), store.pushed[0][0]["best_map"]) == ([2], 0.6)
    assert set(store.pushed[0][1]) == {"latest.pt", "best.pt"}


def test_best_that_never_fits_is_left_out_at_the_end(run: Path) -> None:
    """What cannot be used does not keep what can from being safe."""
    write(run, 1, best=0.6)
    write(run, 2)
    store = Shelf()
    assert Backup(run, "s3://here", store).step(last=True)
    assert set(store.pushed[0][1]) == {"latest.pt"}


# --- what a checkpoint says of itself


def test_facts_are_read_without_torch(run: Path) -> None:
    """The process that keeps backups stays light, and agrees with what discovery reads."""
    write(run, 25, best=0.5)
    found = discovery.look(run / "checkpoints/latest.pt")
    facts = read_facts(run / "checkpoints/latest.pt")
    assert found.summary is not None
    assert (facts["step"], facts["run_id"]) == (found.summary.global_step, found.summary.run_id)
    assert facts["identity"] == {name: found.identity[name] for name in ("task", "model", "names")}
    path = str(run / "checkpoints/latest.pt")
    script = f"import sys; from pathlib import Path; from kit.store.peek import read_facts; read_facts(Path({path!r}))"
    command = [sys.executable, "-c", f"{script}; assert 'torch' not in sys.modules"]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


class Planted:
    """Runs a command when a pickle that holds it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_facts_are_read_without_executing_anything(tmp_path: Path) -> None:
    """Code in a checkpoint is neither found nor called."""
    path = save(tmp_path / "latest.pt", state(7, extra=Planted(tmp_path / "planted"), more=[{1: Planted}, {Planted}]))
    assert read_facts(path)["step"] == 7
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: save(path, {"model": 1}),
        lambda path: save(path, state(1, run_id="../../elsewhere")),
        lambda path: save(path, state(1, run_id=1)),
    ],
)
def test_what_is_no_checkpoint_has_no_facts(tmp_path: Path, damage: Any) -> None:
    """One sentence, whatever is wrong with it."""
    damage(tmp_path / "latest.pt")
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        read_facts(tmp_path / "latest.pt")


# --- what a crash leaves


def test_crash_at_any_point_of_an_upload_leaves_a_whole_backup(place: Path, run: Path) -> None:
    """Every change in the store in turn is cut off in the middle: what is found is the old backup or the new one."""
    write(run, 1, best=0.5)
    Backup(run, "s3://here", files(place)).step()
    old = {name: content(run, name) for name in ("latest.pt", "best.pt")}
    write(run, 2, best=0.6)
    new = {name: content(run, name) for name in ("latest.pt", "best.pt")}
    found = []
    for call in range(1, 20):
        snapshot = {path: path.read_bytes() for path in (place / "store").rglob("*") if path.is_file()}
        store = Tearing(f"file://{place}/store", at=call)
        Backup(run, "s3://here", store, say=lambda line: None).step()
        manifest = files(place).manifests()[0]
        for name, expected in (old if manifest["step"] == 1 else new).items():
            files(place).fetch(manifest, name, place / "fetched")
            assert (place / "fetched").read_bytes() == expected, call
        found.append(manifest["step"])
        wipe(place / "store")
        for path, data in snapshot.items():
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
        if store.calls < call:
            break
    assert found == [1, 1, 1, 2]


def test_upload_after_a_crash_leaves_nothing_of_it_behind(place: Path, run: Path) -> None:
    """Half a file, half a manifest and the files before are gone after the next one that succeeds; two stay."""
    write(run, 1, best=0.5)
    Backup(run, "s3://here", files(place)).step()
    write(run, 2, best=0.6)
    Backup(run, "s3://here", Tearing(f"file://{place}/store", at=3), say=lambda line: None).step()
    assert len(list((place / "store/one").iterdir())) == 6
    for step in (3, 4, 5):
        write(run, step, best=0.6)
        Backup(run, "s3://here", files(place)).step()
    names = sorted(path.name.partition("-")[0] for path in (place / "store/one").iterdir())
    assert names == ["best", "best", "latest", "latest", "manifest", "manifest"]
    assert [manifest["step"] for manifest in files(place).manifests()] == [5, 4]


# --- a good copy is never replaced by a worse one


def test_backup_that_is_further_stays(place: Path, run: Path) -> None:
    """As where an earlier output was put back; said once, and uploads go on when the run is further again."""
    store, said = Shelf(), list[str]()
    write(run, 30)
    Backup(run, "s3://here", store).step()
    write(run, 20)
    keeper = Backup(run, "s3://here", store, say=said.append)
    for _ in range(3):
        assert not keeper.step(last=True)
    assert steps(store) == [30]
    assert len(said) == 1
    assert "The one there is further (epoch 3/5, step 30" in said[0]
    assert "The one there is further" in report(run)
    write(run, 31)
    assert keeper.step(last=True)
    assert steps(store) == [30, 31]
    assert said[1:] == ["Backups to s3://here work again."]


def test_backup_that_is_further_and_damaged_is_no_reason_to_upload_nothing(run: Path) -> None:
    """It cannot be restored, so what is here is further than what can."""
    store = Shelf()
    for step in (20, 30):
        write(run, step)
        Backup(run, "s3://here", store).step()
    store.there[-1][1]["latest.pt"] = b"something else"
    write(run, 21)
    assert Backup(run, "s3://here", store).step()
    assert steps(store) == [20, 30, 21]


def test_later_branch_replaces_more_steps_and_is_not_replaced_by_them(run: Path) -> None:
    """A branch is a decision that wins over steps."""
    progress = state(10)["progress"]
    store = Shelf()
    for step, branch in ((30, 0), (10, 1), (40, 0)):
        write(run, step, progress={**progress, "global_step": step, "branch": branch})
        Backup(run, "s3://here", store, say=lambda line: None).step()
    assert steps(store) == [30, 10]


def test_damaged_checkpoint_is_not_uploaded(run: Path) -> None:
    """Before training has set it aside; it is read once, and what is published next goes up."""
    store, said = Shelf(), list[str]()
    write(run, 20)
    keeper = Backup(run, "s3://here", store, say=said.append)
    keeper.step()
    write(run, 30)
    flip_weights(run / "checkpoints/latest.pt")
    for _ in range(3):
        assert not keeper.step(last=True)
    assert steps(store) == [20]
    assert said == [
        "WARNING: The backup to s3://here failed: latest.pt is damaged, and is not uploaded. It is tried again."
    ]
    write(run, 31)
    assert keeper.step(last=True)
    assert steps(store) == [20, 31]


def test_file_is_verified_once(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often its upload fails."""
    read = list[str]()
    verify = trust.verify
    monkeypatch.setattr(trust, "verify", lambda path: (read.append(path.name), verify(path)))
    write(run, 20, best=0.5)
    keeper = Backup(run, "s3://here", Shelf(fails=lambda call: call < 4), say=lambda line: None)
    while not keeper.step(last=True):
        pass
    assert sorted(read) == ["best.pt", "latest.pt"]


@pytest.mark.parametrize("loss", [Path.unlink, flip_weights])
@pytest.mark.parametrize("shared", [True, False])
def test_best_model_that_the_run_folder_has_lost_stays_in_the_backup(run: Path, loss: Any, shared: bool) -> None:
    """Deleted or damaged here, it is still the best one of the run there."""
    store = Shelf(shared=shared)
    write(run, 1, best=0.5)
    best = content(run, "best.pt")
    keeper = Backup(run, "s3://here", store)
    keeper.step()
    loss(run / "checkpoints/best.pt")
    for step in (2, 3, 4):
        (run / "next").mkdir(exist_ok=True)
        write(run / "next", step, best=0.5)
        (run / "next/checkpoints/latest.pt").replace(run / "checkpoints/latest.pt")
        assert keeper.step(last=True)
    assert store.content(store.manifests()[0], "best.pt") == best


def test_best_model_that_is_lost_there_too_is_no_reason_to_upload_nothing(place: Path, run: Path) -> None:
    """The state of the run is safe without it."""
    write(run, 1, best=0.5)
    keeper = Backup(run, "s3://here", files(place))
    assert keeper.step()
    Path(files(place)._path(files(place).manifests()[0], "best.pt")).unlink()
    (run / "checkpoints/best.pt").unlink()
    write(run / "next", 2, best=0.5)
    (run / "next/checkpoints/latest.pt").replace(run / "checkpoints/latest.pt")
    assert keeper.step(last=True)
    assert list(files(place).manifests()[0]["files"]) == ["latest.pt"]


def test_store_that_cannot_be_asked_is_not_written_over(run: Path) -> None:
    """What it holds may be further."""

    class Silent(Shelf):
        silent = False

        def manifests(self, run: str | None = None) -> list[dict[str, Any]]:
            if self.silent:
                raise PermissionError("Forbidden")
            return super().manifests(run)

    store = Silent()
    write(run, 30)
    keeper = Backup(run, "s3://here", store, say=lambda line: None)
    keeper.step()
    store.silent = True
    write(run, 31)
    assert not keeper.step(last=True)
    assert steps(store) == [30]
    store.silent = False
    assert keeper.step(last=True)
    assert steps(store) == [30, 31]


def test_other_run_in_a_store_for_one_stays(run: Path) -> None:
    """But for one that was started anew, also where that was killed before its first upload."""
    store, said = Shelf(shared=False), list[str]()
    write(run, 30, run_id="other")
    Backup(run, "s3://here", store).step()
    wipe(run)
    write(run, 40)
    assert not Backup(run, "s3://here", store, say=said.append).step()
    assert "It holds another run (epoch 3/5, step 30" in said[0]
    wipe(run)
    Backup(run, "s3://here", store, anew=True).step()
    write(run, 1)
    assert Backup(run, "s3://here", store).step()
    assert steps(store) == [30, 1]
    assert store.manifests()[0]["replaces"] == ["other"]


# --- what was uploaded is read back


def test_uploaded_is_said_of_what_was_read_back(run: Path) -> None:
    """A store that needs time for it is asked again, without a warning; nothing is removed before."""

    class Slow(Shelf):
        ready = 0

        def manifests(self, run: str | None = None) -> list[dict[str, Any]]:
            return super().manifests(run)[len(self.there) - self.ready :]

    store, said, clock = Slow(), list[str](), Clock()
    keeper = Backup(run, "s3://here", store, say=said.append, clock=clock)
    write(run, 1)
    assert not keeper.step()
    assert "step" not in json.loads((run / "backup.json").read_text())
    assert report(run).startswith("Uploaded, and not yet read back: epoch 0/5, step 1, of ")
    write(run, 2)
    for _ in range(100):
        clock.now += 1
        assert not keeper.step()
    assert steps(store) == [1]
    assert "prune" not in store.log
    store.ready = 1
    clock.now += 30
    assert not keeper.step()
    assert store.log[-2:] == ["checksum latest.pt", "prune"]
    assert report(run).startswith("In s3://here: latest.pt (epoch 0/5, step 1, of ")
    assert "not yet read back" not in report(run)
    clock.now += 1000
    store.ready = 2
    assert keeper.step()
    assert (steps(store), said) == ([1, 2], [])


def test_upload_that_is_never_shown_is_said_and_made_again(run: Path) -> None:
    """After twenty minutes."""

    class Losing(Shelf):
        def manifests(self, run: str | None = None) -> list[dict[str, Any]]:
            return []

    store, said, clock = Losing(), list[str](), Clock()
    keeper = Backup(run, "s3://here", store, say=said.append, clock=clock)
    write(run, 1)
    while len(store.pushed) < 2 and clock.now < 5000:
        keeper.step()
        clock.now += 1
    assert 2200 < clock.now < 2300
    assert said == [
        "WARNING: The backup to s3://here failed: What was uploaded is not there yet. It is tried again.",
    ]


def test_last_state_is_uploaded_also_where_the_one_before_is_not_ready(run: Path) -> None:
    """There may be no time to read that one back first."""

    class Slow(Shelf):
        def manifests(self, run: str | None = None) -> list[dict[str, Any]]:
            return super().manifests(run)[2 - min(len(self.log), 2) :] if len(self.there) > 1 else []

    store = Slow()
    keeper = Backup(run, "s3://here", store, say=lambda line: None)
    write(run, 1)
    assert not keeper.step()
    write(run, 2)
    keeper.step(last=True)
    assert steps(store) == [1, 2]


@pytest.mark.parametrize("name", ["latest.pt", "best.pt"])
def test_upload_that_cannot_be_read_back_is_made_again(run: Path, name: str) -> None:
    """The ones before it stay; the damaged one is no backup."""

    class Damaging(Shelf):
        def push(self, manifest: dict[str, Any], paths: dict[str, Path]) -> None:
            super().push(manifest, paths)
            if self.calls in (3, 4):
                self.there[-1][1][name] = b"something else"

    store, said = Damaging(), list[str]()
    keeper = Backup(run, "s3://here", store, say=said.append)
    for step in (1, 2):
        write(run, step, best=step / 10)
        assert keeper.step(last=True)
    write(run, 3, best=0.3)
    assert not keeper.step(last=True)
    assert f"{name} cannot be read back as uploaded, the checksum differs." in said[0]
    assert [each["step"] for each in store.manifests()] == [2, 1]
    assert json.loads((run / "backup.json").read_text())["step"] == 2
    assert not keeper.step(last=True)
    assert keeper.step(last=True)
    assert [each["step"] for each in store.manifests()] == [3, 2]
    assert json.loads((run / "backup.json").read_text())["step"] == 3


def test_upload_that_never_arrived_is_made_again(place: Path, run: Path) -> None:
    """Something between answered for the store, and the manifest names a file that is not there."""
    store: Any = files(place)
    put, sent = store.fs.put_file, list[str]()

    def swallow(source: str, target: str) -> None:
        sent.append(target)
        if len(sent) != 2:
            put(source, target)

    store.fs.put_file = swallow
    write(run, 1, best=0.5)
    keeper = Backup(run, "s3://here", store, say=lambda line: None)
    assert not keeper.step()
    assert keeper.step(last=True)
    manifest = files(place).manifests()[0]
    assert all(Path(store._path(manifest, name)).read_bytes() == content(run, name) for name in manifest["files"])


def test_keeper_that_is_started_again_proves_what_the_one_before_has_sent(run: Path) -> None:
    """It is not uploaded twice."""
    store = Shelf()
    write(run, 1)
    Backup(run, "s3://here", store).step()
    store.log.clear()
    assert Backup(run, "s3://here", store).step()
    assert store.log == ["manifests", "checksum latest.pt", "manifests", "prune"]


def test_disk_without_hard_links_is_backed_up(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a copy, which goes afterwards."""

    def refuse(source: Path, target: Path) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write(run, 1, best=0.5)
    store, said = Shelf(), list[str]()
    assert Backup(run, "s3://here", store, say=said.append).step()
    assert store.pushed[0][1] == {name: content(run, name) for name in ("latest.pt", "best.pt")}
    assert list(run.glob(".backup-*")) == []
    assert said == []
