"""The only door to disk: publish a file whole or not at all, make folders and room, clean up.

A file is published by writing a temporary one in the same folder, fsync, rename, fsync of the folder: across file
systems a «move» is a copy, and a name must never point at half a file. The generation before is kept by hard link,
made before the rename, so that no name ever points at nothing.

What is done where the disk is full is in `kit.store.full`.

Not covered: a disk that acknowledges an fsync and loses the data all the same.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

from kit.errors import MismatchError, StorageError
from kit.kaggle import session
from kit.store.direct import DirectFile
from kit.store.disk_errors import DELETE, NO_LINKS, refused
from kit.store.folder import RunFolder
from kit.store.lock import Lock, check_place

TEMPORARY = ".tmp"  # the suffix of a file that is still being written; removed at the next start
LARGEST = 4 << 20  # bytes of JSON that are read
RESERVE = 64 << 20  # bytes that a write leaves free, but for one that nothing comes after


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
        """Hard-link `source` as `target`."""
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
                disk.replace(path, previous)  # a brief window with one file
            else:
                disk.replace(second, previous)  # of two names of one file, both stay; the second is removed below
        disk.replace(temporary, path)
        published = True
        if durable:
            disk.sync_folder(path.parent)
    except OSError as error:
        raise refused(f"'{path}' could not be written", error, published=published) from error
    finally:
        for leftover in (temporary, second):
            with contextlib.suppress(OSError):  # the next start removes it
                disk.unlink(leftover)


def link(source: Path, target: Path, disk: Disk = DISK) -> None:
    """Hard-link a published file, replacing the target.

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
        raise refused(f"'{target}' could not be made", error) from error


def link_or_copy(source: Path, target: Path, disk: Disk = DISK) -> None:
    """Hard-link a published file, or copy it where the disk knows no hard links.

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
        raise refused(f"The folder '{path}' cannot be written", error) from error
    return path


def make_room(folder: Path, size: int, disk: Disk = DISK, reserve: int = RESERVE) -> None:
    """Make sure that `size` bytes fit into `folder`, and leave `reserve` bytes free.

    Raises:
        StorageError: They do not.
    """
    free, need = disk.free(folder), size + reserve
    if free < need:
        raise StorageError(
            f"'{folder}' has {free / 1e6:.0f} MB free, and {need / 1e6:.0f} MB are needed.", DELETE, full=True
        )


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files that a killed process left behind; call it with the lock held."""
    for leftover in folder.glob(f".*{TEMPORARY}"):
        with contextlib.suppress(OSError):  # the next start tries again
            leftover.unlink()


def quarantine(path: Path, word: str = "bad") -> Path:
    """Rename a file to `NAME.bad`, `NAME.bad2`, …, or a folder to `NAME-1`, `NAME-2`, …; return the new name."""
    names = [f"{path.name}.{word}", *(f"{path.name}.{word}{n}" for n in range(2, 1000))]
    if path.is_dir():
        names = [f"{path.name}-{n}" for n in range(1, 1000)]
    target = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    path.rename(target)
    return target


def refuse_foreign(folder: Path) -> None:
    """Make sure that a run may be kept in a folder: it is new, or the kit's.

    Raises:
        MismatchError: It holds what a training would write over and the kit has not written, Ultralytics' own run say.
    """
    if found := RunFolder(folder).foreign():
        raise MismatchError(
            f"'{folder}' holds what is not the kit's: {', '.join(found)}.",
            "Choose another folder with kit.run=runs/other, or have it set aside as a whole with --resume never.",
        )


def quarantine_run(folder: Path) -> Path | None:
    """Move a run folder that holds checkpoints, or what is not the kit's, out of the way, and return where to.

    Raises:
        BusyError: Another process trains in it.
        StorageError: It cannot be moved.
    """
    files = RunFolder(folder)

    def holds() -> bool:
        return bool(files.foreign()) or (files.checkpoints.is_dir() and any(files.checkpoints.iterdir()))

    if not holds():
        return None
    with Lock(files.lock):
        if not holds():  # who held the lock has moved it
            return None
        try:
            return quarantine(folder)
        except OSError as error:  # it is a disk of its own, or what it lies in is read-only
            raise refused(f"'{folder}' cannot be set aside", error) from error


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; what cannot be removed, or is not there, stays as it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        DISK.unlink(path)


def write_json(path: Path, values: Any) -> None:
    """Publish values as JSON; it need not last: the next news replaces it.

    Raises:
        StorageError: The disk refused.
    """
    text = json.dumps(values, indent=1).encode()
    publish(path, lambda file: file.write(text), durable=False)


def read_json(path: Path) -> dict[str, Any]:
    """Return what `write_json` wrote; empty where there is nothing readable, or somebody else's."""
    try:
        values = json.loads(path.read_bytes()) if path.stat().st_size < LARGEST else {}
    except (OSError, ValueError, RecursionError):  # a thousand brackets
        return {}
    return values if isinstance(values, dict) else {}


def identity(path: Path) -> tuple[int, int, int]:
    """Tell a published file from the one before: it is replaced as a whole and never written into."""
    state = path.stat()
    return state.st_ino, state.st_mtime_ns, state.st_size
