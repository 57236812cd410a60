"""The only door to disk: publish a file whole or not at all, verify it, lock a run folder.

A file is published by writing a temporary one in the same folder, fsync, rename, fsync of the folder: across file
systems a «move» is a copy, and a name must never point at half a file. The generation before is kept by hard link,
made before the rename, so that no name ever points at nothing.

Not covered: a disk that acknowledges an fsync and loses the data all the same.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

from kit.errors import BusyError, CheckpointError, MovedError, StorageError
from kit.kaggle import session
from kit.store import archive
from kit.store.direct import DirectFile
from kit.store.folder import RunFolder

TEMPORARY = ".tmp"  # the suffix of a file that is still being written; swept at the next start
RESERVE = 64 << 20  # bytes that a write leaves free, but for one that nothing comes after
FULL = (errno.ENOSPC, errno.EDQUOT)


class Disk:
    """The system calls that publishing makes, one method each: a test puts in a disk that fails at call n."""

    def open(self, path: Path, direct: bool = False) -> BinaryIO:
        """Create `path` for writing; with `direct` past the page cache, where the file system can do that."""
        if direct:
            with contextlib.suppress(OSError, AttributeError):  # what else is wrong is wrong below too
                return cast(BinaryIO, DirectFile(path))
        return open(path, "wb")

    def sync(self, file: BinaryIO) -> None:
        """Wait until the bytes of `file` are on the disk."""
        file.flush()
        os.fsync(file.fileno())

    def sync_folder(self, folder: Path) -> None:
        """Wait until the names in `folder` are on the disk."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def link(self, source: Path, target: Path) -> None:
        """Give `source` the second name `target`."""
        os.link(source, target)

    def replace(self, source: Path, target: Path) -> None:
        """Rename, replacing what was there, in one step."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a name that may be missing."""
        path.unlink(missing_ok=True)

    def free(self, folder: Path) -> int:
        """Bytes free for this user."""
        return session.free(folder)


DISK = Disk()
_held: set[Lock] = set()  # by this process
_checking = threading.RLock()
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)  # where there is no second name


def publish(
    path: Path,
    write: Callable[[BinaryIO], object],
    *,
    previous: Path | None = None,
    durable: bool = True,
    disk: Disk = DISK,
) -> None:
    """Put a file at `path`, whole or not at all.

    Args:
        path: The name that readers know.
        write: Writes the content to the open file that it is given.
        previous: A name in the same folder that keeps the generation before.
        durable: Wait for the disk. Progress that is rewritten every second need not.
        disk: The system calls.

    Raises:
        StorageError: The disk refused; `path` is as it was, or `published`: whole and new, and only the folder's fsync
            failed.
        MovedError: The folder is no longer the one that this process has locked.
    """
    check_place(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{TEMPORARY}")
    second = temporary.with_name(temporary.name.replace(TEMPORARY, f".link{TEMPORARY}"))
    published = False
    try:
        with disk.open(temporary, durable) as file:
            write(file)
            if durable:
                disk.sync(file)
        check_place(path)
        if previous is not None and path.exists():
            try:
                disk.link(path, second)
            except OSError as error:
                if error.errno not in NO_LINKS:
                    raise
                disk.replace(path, previous)  # for a moment it is the only one
            else:
                disk.replace(second, previous)  # where both are names of one file, this leaves both; see below
        disk.replace(temporary, path)
        published = True
        if durable:
            disk.sync_folder(path.parent)
    except OSError as error:
        text = f"'{path}' could not be written: {reason(error)}."
        raise StorageError(text, full=error.errno in FULL, published=published) from error
    finally:
        for leftover in (temporary, second):
            with contextlib.suppress(OSError):  # the next start sweeps it
                disk.unlink(leftover)


def link(source: Path, target: Path, disk: Disk = DISK) -> None:
    """Give a published file a second name, replacing what had it.

    Raises:
        StorageError: The disk refused; `target` is as it was.
    """
    check_place(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}{TEMPORARY}")
    try:
        disk.unlink(temporary)
        disk.link(source, temporary)
        disk.replace(temporary, target)
        disk.unlink(temporary)
    except OSError as error:
        raise StorageError(f"'{target}' could not be made: {reason(error)}.") from error


def link_or_copy(source: Path, target: Path, disk: Disk = DISK) -> None:
    """Give a published file a second name, or a copy of its own where the disk knows no second names.

    Raises:
        StorageError: The disk refused; `target` is as it was.
    """
    try:
        link(source, target, disk)
    except StorageError as error:
        if getattr(error.__cause__, "errno", None) not in NO_LINKS:
            raise
        make_room(target.parent, source.stat().st_size, disk)
        copy(source, target, disk)


def copy(source: Path, target: Path, disk: Disk = DISK) -> None:
    """Publish a copy of a file that may lie on another file system."""
    with open(source, "rb") as origin:
        publish(target, lambda file: shutil.copyfileobj(origin, file, 1 << 20), disk=disk)


def reason(error: OSError) -> str:
    """Say what a disk error means and what to do."""
    advice = {
        errno.ENOSPC: "the disk is full, delete files that you do not need",
        errno.EDQUOT: "the disk quota is used up, delete files that you do not need",
        errno.EROFS: "the folder is read-only, choose another with KIT_WORKING",
        errno.EACCES: "no permission to write there, choose another folder with KIT_WORKING",
        errno.EEXIST: "a file is in its place, choose another folder with KIT_WORKING",
        errno.ENOTDIR: "a file is in its place, choose another folder with KIT_WORKING",
    }
    return advice.get(error.errno or 0, error.strerror or str(error))


def make_folder(path: Path) -> Path:
    """Make a folder, wait until its name is on the disk, and prove that it can be written.

    Raises:
        StorageError: It cannot.
        MovedError: It lies where a folder was that this process has locked.
    """
    check_place(path)
    try:
        new = [folder for folder in (path, *path.parents) if not folder.exists()]
        path.mkdir(parents=True, exist_ok=True)
        for folder in new:
            DISK.sync_folder(folder.parent)
        probe = path / f".{os.getpid()}{TEMPORARY}"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        raise StorageError(f"The folder '{path}' cannot be written: {reason(error)}.") from error
    return path


def make_room(folder: Path, size: int, disk: Disk = DISK, reserve: int = RESERVE) -> None:
    """Make sure that `size` bytes fit into `folder`, and leave `reserve` bytes free.

    Raises:
        StorageError: They do not.
    """
    free, need = disk.free(folder), size + reserve
    if free < need:
        raise StorageError(
            f"'{folder}' has {free / 1e6:.0f} MB free, and {need / 1e6:.0f} MB are needed: delete files that you do "
            "not need.",
            full=True,
        )


def sweep(folder: Path) -> None:
    """Remove the temporary files that a killed process left behind; call it with the lock held."""
    for leftover in folder.glob(f".*{TEMPORARY}"):
        with contextlib.suppress(OSError):  # the next start tries again
            leftover.unlink()


def set_aside(path: Path, word: str = "bad") -> Path:
    """Rename a file to `NAME.bad`, `NAME.bad2`, …, or a folder to `NAME-1`, `NAME-2`, …; return the new name."""
    names = [f"{path.name}.{word}", *(f"{path.name}.{word}{n}" for n in range(2, 1000))]
    if path.is_dir():
        names = [f"{path.name}-{n}" for n in range(1, 1000)]
    target = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    path.rename(target)
    return target


def set_run_aside(folder: Path) -> Path | None:
    """Move a run folder that holds checkpoints out of the way, and return where to.

    Raises:
        BusyError: Another process trains in it.
    """
    files = RunFolder(folder)
    if not files.checkpoints.is_dir() or not any(files.checkpoints.iterdir()):
        return None
    with Lock(files.lock):
        return set_aside(folder)


def verify(path: Path) -> None:
    """Read a checkpoint's bytes and compare each record with its CRC-32; it must lie there as torch takes it.

    `torch.save` writes these checksums and `torch.load` never looks at them. The padding between records, 0.3 % of a
    file, carries none.

    Raises:
        CheckpointError: The file is missing, cut off, damaged or packed anew.
    """
    try:
        with archive.stored(path) as records:
            damaged = records.testzip()
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"'{path}' does not exist.") from None
    except Exception as error:  # each kind of damage has its own
        raise CheckpointError(f"'{path}' is not a whole checkpoint: {error}.") from error
    if damaged is not None:
        raise CheckpointError(f"'{path}' is damaged: the checksum of its record '{damaged}' does not match.")


def check_place(path: Path) -> None:
    """Make sure that the folder that a file goes into is still the one that this process has locked.

    Raises:
        MovedError: It was moved away, or another process holds what is in its place.
    """
    for lock in tuple(_held):
        if path.is_relative_to(lock.path.parent):
            lock.check()


class Lock:
    """One writer per run folder, for as long as this process lives.

    POSIX record locks (`fcntl.lockf`) belong to the process and die with it; a `flock` would live on in a forked
    loader worker. The lock is that of the folder and not of its name: see `check`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None
        self._lost = ""

    def acquire(self, wait: float = 30.0) -> None:
        """Take the lock.

        Args:
            wait: Seconds to wait for a dying holder.

        Raises:
            BusyError: Another process still holds it; the message says which.
            StorageError: The disk refused.
        """
        give_up = time.monotonic() + wait
        while self._file is None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            except OSError as error:
                raise StorageError(f"'{self.path}' cannot be locked: {reason(error)}.") from error
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file), self.path.stat()):
                    self._file = file
            except FileNotFoundError:
                pass  # who held it has moved the folder away: the next one is that of the folder that is there then
            except OSError as error:
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise StorageError(f"'{self.path}' cannot be locked: {reason(error)}.") from error
                if time.monotonic() >= give_up:
                    holder = os.pread(file, 200, 0).decode(errors="replace").strip()
                    raise BusyError(
                        f"'{self.path.parent}' is in use by {holder or 'another process'}: "
                        "wait for it to end, stop it, or choose another folder with kit.run=runs/other."
                    ) from None
                time.sleep(0.2)
            finally:
                if self._file is None:
                    os.close(file)
        _held.add(self)
        holder = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%H:%M')}"
        with contextlib.suppress(OSError):  # it is locked without
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, holder.encode(), 0)

    def check(self) -> None:
        """Make sure that the folder of that name is the one that was locked; one that was deleted is made anew.

        Raises:
            MovedError: It was moved away, or was deleted and another process holds the one that is there now.
        """
        with _checking:
            if not self._lost:
                self._look()
            if self._lost:
                raise MovedError(self._lost)

    def _look(self) -> None:
        if self._file is None:
            return
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._file), os.stat(self.path)):
                return
        if os.fstat(self._file).st_nlink:
            self._lost = (
                f"'{self.path.parent}' was moved to '{self._whereabouts()}' while training went on: what was saved is "
                "there. To go on from it, move it back or choose it with kit.run=, and run again."
            )
            return
        self.release()
        try:
            self.acquire(wait=0)
        except BusyError as error:
            self._lost = f"The run folder was deleted while training went on, and now {error}"
            _held.add(self)

    def _whereabouts(self) -> Path:
        try:
            return Path(os.readlink(f"/proc/self/fd/{self._file}")).parent
        except OSError:
            return Path("another place")

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the lock back."""
        _held.discard(self)
        if self._file is not None:
            os.close(self._file)  # closing any descriptor of the file drops a record lock
            self._file = None
