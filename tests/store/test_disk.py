"""The door to disk: whole or not at all, verified by checksum, one writer per run folder."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import pytest

from kit.errors import BusyError, CheckpointError, MovedError, StorageError
from kit.kaggle import session
from kit.store import disk as storage, trust
from kit.store.lock import Lock
from tests.help import samples
from tests.help.fakes import FailingDisk, FullDisk, SickDisk


def write(text: str) -> Callable[[BinaryIO], None]:
    def into(file: BinaryIO) -> None:
        file.write(text.encode())

    return into


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two generations of a file."""
    return fill(tmp_path)


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "previous.pt").write_text("oldest")
    (folder / "latest.pt").write_text("old")
    return folder


def content(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def publish(folder: Path, disk: storage.Disk = storage.DISK) -> None:
    storage.publish(folder / "latest.pt", write("new"), previous=folder / "previous.pt", disk=disk)


def test_published_file_replaces_the_old_one_and_keeps_it_as_previous(folder: Path) -> None:
    """After publishing, the name holds the new content, `previous` the old one, and nothing else is left."""
    publish(folder)
    assert content(folder) == {"latest.pt": "new", "previous.pt": "old"}


def test_first_file_is_published_without_a_previous_one(tmp_path: Path) -> None:
    """Where there was no file yet, there is no generation before."""
    publish(tmp_path)
    assert content(tmp_path) == {"latest.pt": "new"}


def test_previous_is_the_old_file_itself_not_a_copy(folder: Path) -> None:
    """The generation before is kept by hard link: same inode, so no bytes are written twice."""
    inode = (folder / "latest.pt").stat().st_ino
    publish(folder)
    assert (folder / "previous.pt").stat().st_ino == inode


def test_previous_that_is_already_the_same_file_leaves_nothing_behind(folder: Path) -> None:
    """Renaming one name of a file onto another of the same file leaves both; the extra one is removed."""
    (folder / "previous.pt").unlink()
    os.link(folder / "latest.pt", folder / "previous.pt")
    publish(folder)
    assert content(folder) == {"latest.pt": "new", "previous.pt": "old"}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS])
def test_disk_without_hard_links_keeps_the_generation_before_all_the_same(folder: Path, number: int) -> None:
    """exFAT, and many a mount, know one name for each file."""
    made, _ = calls(folder.parent / "elsewhere")
    publish(folder, FailingDisk(made.index("link") + 1, number))
    assert content(folder) == {"latest.pt": "new", "previous.pt": "old"}


def calls(folder: Path) -> tuple[list[str], int]:
    """Return the disk calls of publishing, and the number of the one after which the name points at the new file."""
    disk = FailingDisk()
    publish(fill(folder), disk)
    return disk.calls, disk.calls.index("replace latest.pt") + 1


def test_bytes_reach_the_disk_before_the_name_and_the_name_before_success(tmp_path: Path) -> None:
    """Payload first, marker last: fsync of the file, the old one kept by link, rename, fsync of the folder."""
    made, renamed = calls(tmp_path)
    order = [made.index(name) + 1 for name in ("open", "sync", "link", "replace previous.pt")]
    assert sorted(order) == order
    assert order[-1] < renamed < made.index("sync_folder") + 1


def test_progress_is_published_without_waiting_for_the_disk(folder: Path) -> None:
    """What is rewritten every second is renamed into place and not synced."""
    disk = FailingDisk()
    storage.publish(folder / "latest.pt", write("new"), durable=False, disk=disk)
    assert content(folder)["latest.pt"] == "new"
    assert not {"sync", "sync_folder"} & set(disk.calls)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_disk_call_that_fails_leaves_the_old_file_whole(tmp_path: Path, number: int) -> None:
    """Whichever call fails up to the rename, the name holds the old content and no temporary file is left."""
    _, renamed = calls(tmp_path / "good")
    for at in range(1, renamed + 1):
        folder = fill(tmp_path / str(at))
        with pytest.raises(StorageError, match="could not be written"):
            publish(folder, FailingDisk(at, number))
        after = content(folder)
        assert after.pop("latest.pt") == "old"
        assert after in ({"previous.pt": "oldest"}, {"previous.pt": "old"})


def test_failed_sync_of_the_folder_is_told(tmp_path: Path) -> None:
    """A rename that may not have reached the disk is no success, although both generations are whole."""
    made, _ = calls(tmp_path / "good")
    folder = fill(tmp_path / "bad")
    with pytest.raises(StorageError):
        publish(folder, FailingDisk(made.index("sync_folder") + 1, errno.EIO))
    assert content(folder) == {"latest.pt": "new", "previous.pt": "old"}


def test_tidying_up_that_fails_does_not_undo_a_success(tmp_path: Path) -> None:
    """When only the removal of leftovers fails, the file stands: the next start sweeps."""
    made, _ = calls(tmp_path / "good")
    for at in range(made.index("sync_folder") + 2, len(made) + 1):
        folder = fill(tmp_path / str(at))
        publish(folder, FailingDisk(at, errno.EIO))
        assert content(folder) == {"latest.pt": "new", "previous.pt": "old"}


DIE = """
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from kit.store import disk as storage
from tests.help.fakes import DyingDisk
folder = Path(sys.argv[1])
storage.publish(folder / "latest.pt", lambda file: file.write(b"new"), previous=folder / "previous.pt",
                disk=DyingDisk(int(sys.argv[2])))
"""


def python(script: str, *arguments: object, **options: object) -> subprocess.Popen[str]:
    """Start a script that can import the kit and the samples."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(session.REPOSITORY)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,  # type: ignore[call-overload]
    )


def test_process_that_dies_at_any_disk_call_leaves_whole_files_at_the_names(tmp_path: Path) -> None:
    """A kill at any moment leaves old or new content at the name, never half of it or nothing; a sweep tidies up."""
    made, renamed = calls(tmp_path / "good")
    children = []
    for at in range(1, len(made) + 1):
        folder = fill(tmp_path / str(at))
        children.append((at, folder, python(DIE, folder, at)))
    for at, folder, child in children:
        child.communicate()
        assert child.returncode == 9
        storage.remove_leftovers(folder)
        after = content(folder)
        assert after.pop("latest.pt") == ("old" if at <= renamed else "new")
        assert after in ({"previous.pt": "oldest"}, {"previous.pt": "old"})


def test_disk_that_fills_up_while_writing_leaves_the_old_file_whole(folder: Path) -> None:
    """Half a file is never published, and the message says what to do."""
    with pytest.raises(StorageError, match=r"could not be written: the disk is full\. Delete files"):
        publish(folder, FullDisk(2))
    assert content(folder) == {"latest.pt": "old", "previous.pt": "oldest"}


def test_content_that_cannot_be_made_leaves_the_old_file_whole(folder: Path) -> None:
    """An error of the writing function is passed on, and no temporary file is left."""

    def broken(file: BinaryIO) -> None:
        file.write(b"ne")
        raise ValueError("no such content")

    with pytest.raises(ValueError, match="no such content"):
        storage.publish(folder / "latest.pt", broken, previous=folder / "previous.pt")
    assert content(folder) == {"latest.pt": "old", "previous.pt": "oldest"}


def test_sweep_removes_temporary_files_and_nothing_else(folder: Path) -> None:
    """What a killed process was still writing goes; everything with a name of its own stays."""
    for name in (".latest.pt.123.tmp", ".latest.pt.123.link.tmp", "notes.tmp", ".hidden"):
        (folder / name).write_text("x")
    storage.remove_leftovers(folder)
    assert set(content(folder)) == {"latest.pt", "previous.pt", "notes.tmp", ".hidden"}


def test_link_replaces_the_target_by_a_second_name(folder: Path) -> None:
    """A linked file is the same file under both names, whatever the target was before, and can be linked again."""
    for _ in range(2):
        storage.link(folder / "latest.pt", folder / "previous.pt")
        assert (folder / "latest.pt").samefile(folder / "previous.pt")
        assert content(folder) == {"latest.pt": "old", "previous.pt": "old"}


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.EXDEV, errno.EMLINK, errno.ENOSPC])
def test_disk_without_second_names_gets_a_copy(folder: Path, number: int) -> None:
    """What else is wrong with a disk is an error, and leaves what was there."""
    disk = SickDisk("link", number)
    disk.sick = True
    if number == errno.ENOSPC:
        with pytest.raises(StorageError):
            storage.link_or_copy(folder / "latest.pt", folder / "previous.pt", disk)
        assert content(folder)["previous.pt"] == "oldest"
    else:
        storage.link_or_copy(folder / "latest.pt", folder / "previous.pt", disk)
        assert content(folder) == {"latest.pt": "old", "previous.pt": "old"}
        assert not (folder / "latest.pt").samefile(folder / "previous.pt")


def test_copy_is_whole_or_not_at_all(folder: Path) -> None:
    """A copy is published like any other file: a full disk leaves what was there."""
    with pytest.raises(StorageError):
        storage.copy(folder / "latest.pt", folder / "previous.pt", FullDisk(1))
    assert content(folder)["previous.pt"] == "oldest"
    storage.copy(folder / "latest.pt", folder / "previous.pt")
    assert content(folder) == {"latest.pt": "old", "previous.pt": "old"}
    assert not (folder / "latest.pt").samefile(folder / "previous.pt")


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """A folder below a file cannot be; one that can is made with its parents and left empty."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        storage.make_folder(tmp_path / "file" / "below")
    made = storage.make_folder(tmp_path / "a" / "b")
    assert list(made.iterdir()) == []


def test_room_is_asked_for_before_writing(tmp_path: Path) -> None:
    """A write must leave a reserve free; the message says how much there is and how much is needed."""
    storage.make_room(tmp_path, 100, FullDisk(storage.RESERVE + 100))
    with pytest.raises(StorageError, match="0 MB free, and 67 MB are needed"):
        storage.make_room(tmp_path, 100, FullDisk(99))
    with pytest.raises(StorageError):
        storage.make_room(tmp_path, 100, FullDisk(storage.RESERVE + 99))


def test_file_set_aside_never_overwrites_another(tmp_path: Path) -> None:
    """Each file and each folder that is set aside gets a name that is free."""
    for text in ("first", "second", "third"):
        (tmp_path / "latest.pt").write_text(text)
        storage.quarantine(tmp_path / "latest.pt")
    assert content(tmp_path) == {"latest.pt.bad": "first", "latest.pt.bad2": "second", "latest.pt.bad3": "third"}
    for _ in range(2):
        (tmp_path / "run").mkdir()
        storage.quarantine(tmp_path / "run")
    assert (tmp_path / "run-1").is_dir()
    assert (tmp_path / "run-2").is_dir()


def test_run_folder_is_set_aside_only_when_it_holds_checkpoints(tmp_path: Path) -> None:
    """An empty run folder stays where it is; one with checkpoints moves whole."""
    run = tmp_path / "train"
    assert storage.quarantine_run(run) is None
    (run / "checkpoints").mkdir(parents=True)
    assert storage.quarantine_run(run) is None
    (run / "checkpoints" / "latest.pt").write_text("good")
    moved = storage.quarantine_run(run)
    assert moved == tmp_path / "train-1"
    assert (moved / "checkpoints" / "latest.pt").read_text() == "good"
    assert not run.exists()


# --- verify


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A whole checkpoint."""
    return samples.save(tmp_path / "good.pt", samples.state(7))


def test_whole_checkpoint_is_verified(good: Path) -> None:
    """What `torch.save` wrote has the right checksums."""
    trust.verify(good)


def test_file_cut_off_anywhere_is_noticed(good: Path) -> None:
    """Empty, the first bytes, cut inside a record, between records, inside the directory, without the last byte."""
    raw = good.read_bytes()
    offset, size = samples.records(good)[list(samples.records(good))[-1]]
    lengths = {0, 1, 4, 30, len(raw) // 2, offset, offset + size, offset + size + 40, len(raw) - 22, len(raw) - 1}
    for length in sorted(lengths | set(range(0, len(raw), 97))):
        good.write_bytes(raw[:length])
        with pytest.raises(CheckpointError, match="is not a whole checkpoint"):
            trust.verify(good)


def test_file_whose_tail_was_never_written_is_noticed(good: Path) -> None:
    """A file system that lost the last blocks leaves zeros: right length, no content."""
    raw = good.read_bytes()
    for length in (0, len(raw) // 2, len(raw) - 100):
        good.write_bytes(raw[:length] + bytes(len(raw) - length))
        with pytest.raises(CheckpointError):
            trust.verify(good)


def test_flipped_bit_inside_any_record_is_noticed_and_the_record_named(good: Path) -> None:
    """Each record carries a checksum: a bit flipped at its start, middle or end does not match."""
    for name, (offset, size) in samples.records(good).items():
        for byte in {offset, offset + size // 2, offset + size - 1}:
            samples.flip(good, byte, bit=byte % 8)
            with pytest.raises(CheckpointError, match=f"is damaged: the checksum of its record '{name}'"):
                trust.verify(good)
            samples.flip(good, byte, bit=byte % 8)
    trust.verify(good)


def test_flipped_bit_in_the_directory_is_an_error_of_ours(good: Path) -> None:
    """A flipped bit in the zip's directory is refused in one sentence, or harmless; never a foreign exception."""
    start = good.read_bytes().index(b"PK\x01\x02")
    for position in range(8 * start, 8 * good.stat().st_size):
        samples.flip(good, position // 8, position % 8)
        try:
            trust.verify(good)
        except CheckpointError:
            pass
        finally:
            samples.flip(good, position // 8, position % 8)


@pytest.mark.parametrize(
    "raw", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100), b"<html>404</html>", b"\x80\x02}q\x00."]
)
def test_foreign_file_is_refused(tmp_path: Path, raw: bytes) -> None:
    """A text, a picture, an error page saved as .pt, a bare pickle: none is a checkpoint."""
    path = tmp_path / "latest.pt"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match="is not a whole checkpoint"):
        trust.verify(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    """Nothing at the name, or a folder: one sentence each."""
    with pytest.raises(CheckpointError, match="does not exist"):
        trust.verify(tmp_path / "none.pt")
    with pytest.raises(CheckpointError):
        trust.verify(tmp_path)


# --- lock


HOLD = """
import os, sys
from pathlib import Path
from kit.errors import BusyError
from kit.store.lock import Lock
lock = Lock(Path(sys.argv[1]))
try:
    lock.acquire(wait=0)
except BusyError:
    sys.exit(3)
if "fork" in sys.argv and os.fork() == 0:
    print(os.getpid(), flush=True)  # a loader worker, which has the lock file open too
    sys.stdin.read()
    os._exit(0)
if "fork" not in sys.argv:
    print(os.getpid(), flush=True)
sys.stdin.read()
"""


def test_lock_keeps_a_second_process_out_and_names_the_holder(tmp_path: Path) -> None:
    """While a process holds the lock, another is refused, with the holder's process number; afterwards it is let in."""
    holder = python(HOLD, tmp_path / ".lock")
    assert holder.stdout is not None
    pid = int(holder.stdout.readline())
    with pytest.raises(BusyError, match=rf"is in use by process {pid} on .* kit\.run="):
        Lock(tmp_path / ".lock").acquire(wait=0)
    holder.communicate()
    Lock(tmp_path / ".lock").acquire(wait=0)


def test_lock_held_here_keeps_another_process_out_until_released(tmp_path: Path) -> None:
    """`with` holds the lock for its block and no longer."""
    with Lock(tmp_path / ".lock"):
        other = python(HOLD, tmp_path / ".lock")
        other.communicate()
        assert other.returncode == 3
    other = python(HOLD, tmp_path / ".lock")
    other.communicate()
    assert other.returncode == 0


@pytest.mark.parametrize("forked", ["alone", "fork"])
def test_lock_dies_with_its_holder(tmp_path: Path, forked: str) -> None:
    """A killed holder's lock is free at once, even when a worker that it forked lives on."""
    holder = python(HOLD, tmp_path / ".lock", forked)
    assert holder.stdout is not None
    holder.stdout.readline()
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    Lock(tmp_path / ".lock").acquire(wait=0)
    holder.communicate()  # closes the worker's stdin, which ends it


def test_lock_waits_for_a_dying_holder(tmp_path: Path) -> None:
    """A starter that waits is let in as soon as the holder is gone."""
    holder = python(HOLD, tmp_path / ".lock")
    assert holder.stdout is not None
    holder.stdout.readline()
    assert holder.stdin is not None
    holder.stdin.close()  # it ends, some time after this
    Lock(tmp_path / ".lock").acquire(wait=60)
    holder.stdout.close()
    holder.wait()


def test_lock_of_a_folder_that_was_moved_away_is_not_the_lock_of_its_place(tmp_path: Path) -> None:
    """`--resume never` moves the run folder while another starter waits for its lock."""
    (tmp_path / "run").mkdir()
    holder = python(HOLD, tmp_path / "run/.lock")
    assert holder.stdout is not None
    holder.stdout.readline()
    waiting = Lock(tmp_path / "run/.lock")
    thread = threading.Thread(target=waiting.acquire, args=[60])
    thread.start()
    time.sleep(0.5)
    (tmp_path / "run").rename(tmp_path / "run-1")
    holder.communicate()
    thread.join()
    other = python(HOLD, tmp_path / "run/.lock")
    other.communicate()
    assert other.returncode == 3
    waiting.release()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    """A run folder that this process has locked, with a file in it."""
    lock = Lock(tmp_path / "run/.lock")
    lock.acquire()
    fill(tmp_path / "run/checkpoints")
    yield tmp_path / "run"
    lock.release()


def writes(run: Path) -> list[Callable[[], object]]:
    """Return every way to write into a run folder."""
    folder = run / "checkpoints"
    return [
        lambda: publish(folder),
        lambda: storage.publish(run / "status.json", write("new"), durable=False),
        lambda: storage.link(folder / "latest.pt", folder / "other.pt"),
        lambda: storage.copy(Path(__file__), run / "copy"),
        lambda: storage.make_folder(folder),
    ]


def test_nothing_is_written_where_a_locked_folder_was_moved_away(run: Path) -> None:
    """Neither into nothing nor into a new folder of that name; the sentence says where the work lies."""
    moved = run.rename(run.with_name("moved"))
    before = content(moved / "checkpoints")
    for again in (False, True):
        if again:
            fill(run / "checkpoints")
        for each in writes(run):
            with pytest.raises(MovedError, match=f"was moved to '{moved}' while training went on"):
                each()
        assert run.exists() is again
    assert content(run / "checkpoints") == content(moved / "checkpoints") == before
    assert sorted(path.name for path in run.iterdir()) == ["checkpoints"]


def test_folder_that_is_moved_while_a_file_is_written_gets_no_name_in_its_place(run: Path) -> None:
    """Writing takes seconds: it is asked once more before the names change."""

    def write_and_move(file: BinaryIO) -> None:
        file.write(b"new")
        run.rename(run.with_name("moved"))
        fill(run / "checkpoints")

    before = content(run / "checkpoints")
    with pytest.raises(MovedError):
        storage.publish(run / "checkpoints/latest.pt", write_and_move, previous=run / "checkpoints/previous.pt")
    assert content(run / "checkpoints") == before


def test_folder_that_was_deleted_is_locked_anew(run: Path) -> None:
    """Nobody else is there: training makes it again, and keeps others out."""
    shutil.rmtree(run)
    storage.publish(run / "status.json", write("new"), durable=False)
    other = python(HOLD, run / ".lock")
    other.communicate()
    assert other.returncode == 3


def test_folder_that_was_deleted_and_is_held_by_another_process_is_left_to_it(run: Path) -> None:
    """The second start is the writer from then on."""
    shutil.rmtree(run)
    run.mkdir()
    other = python(HOLD, run / ".lock")
    assert other.stdout is not None
    other.stdout.readline()
    for each in writes(run):
        with pytest.raises(
            MovedError, match=f"deleted while training went on, and now .* in use by process {other.pid}"
        ):
            each()
    other.communicate()
    assert sorted(path.name for path in run.iterdir()) == [".lock"]


@pytest.mark.parametrize(("call", "fatal"), [("open", True), ("ftruncate", False), ("pwrite", False)])
def test_lock_that_the_disk_refuses_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, fatal: bool
) -> None:
    """A folder that cannot be locked is a sentence; one whose lock cannot name its holder is locked without."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    lock = Lock(tmp_path / ".lock")
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuse)
        if fatal:
            with pytest.raises(StorageError, match="cannot be locked"):
                lock.acquire()
            return
        lock.acquire()
    lock.release()


def test_leftover_that_cannot_be_removed_waits_for_the_next_start(tmp_path: Path) -> None:
    """A folder stands in for a file that the disk keeps."""
    (tmp_path / f".stuck{storage.TEMPORARY}").mkdir()
    (tmp_path / f".old{storage.TEMPORARY}").touch()
    storage.remove_leftovers(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [f".stuck{storage.TEMPORARY}"]
