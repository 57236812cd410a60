"""Download a backup into scratch, or the one before it where that is damaged."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path

from kit.backup.manifests import Manifest, position
from kit.backup.secrets import describe, limit, missing, patiently
from kit.backup.stores import Store
from kit.config import Config
from kit.errors import KitError, StorageError
from kit.store import disk
from kit.store.folder import BEST, LATEST
from kit.store.peek import checksum

WAIT_S, FETCH_S = 300.0, 600  # seconds to wait for a store that fails, and that a backup may take in all
TRIES = 3  # until a file counts as damaged there
LOCAL = "Training goes on from what is here."

Say = Callable[[str], None]
Sleep = Callable[[float], None]


class DamagedError(KitError):
    """A file in the store is not what was uploaded."""


def bring(config: Config, store: Store, found: list[Manifest], empty: bool, say: Say, sleep: Sleep) -> None:
    """Fetch the first of some backups, or the next one where that is damaged.

    Args:
        config: The settings.
        store: Where they are.
        found: The backups, the furthest first.
        empty: There is nothing here to go on from.
        say: Prints one line for the user.
        sleep: Pauses.

    Raises:
        KitError: None was fetched, and training must not start without.
    """
    address, folder = config.kit.backup, config.restored_folder
    assert folder is not None
    for old in folder.parent.glob(f"{folder.name}.*{disk.TEMPORARY}"):
        if not Path("/proc", old.name.split(".")[1]).exists():  # of a process that was ended in mid-download
            disk.remove(old)
    new, old = (folder.with_name(f"{folder.name}.{os.getpid()}{end}{disk.TEMPORARY}") for end in ("", ".old"))
    lost = "Run again, or start anew with --resume never."
    problem: Exception
    with limit(FETCH_S, say, f"error: It could not be fetched from {address} within {FETCH_S} s. {lost}", 1):
        for names, each in itertools.product(((LATEST, BEST), (LATEST,)), found):  # a best model may be gone for good
            size = sum(entry["size"] for name, entry in each["files"].items() if name in names)
            say(f"Found backup: {address} ({position(each)}): fetching {size / 1e6:.0f} MB")
            try:
                disk.make_room(disk.make_folder(new), size)
                for name in each["files"].keys() & set(names):
                    _download(store, each, name, new, say, sleep)
                with contextlib.suppress(FileNotFoundError):
                    disk.DISK.replace(folder, old)
                disk.DISK.replace(new, folder)  # latest.pt never without its best.pt
                return
            except Exception as error:  # each client has its own
                if holds(folder, each):
                    return  # a start beside this one was faster
                problem = error
                if not isinstance(error, DamagedError):
                    break
            finally:
                for leftover in (new, old):
                    disk.remove(leftover)
            say(f"WARNING: {problem}")
    text = f"It could not be fetched from {address}: {describe(problem)}"
    if empty or (config.kit.backup_required and not isinstance(problem, (DamagedError, StorageError))):
        raise KitError(text, lost) from problem
    say(f"WARNING: {text} {LOCAL}")


def _download(store: Store, manifest: Manifest, name: str, folder: Path, say: Say, sleep: Sleep) -> None:
    """Download a file of a backup.

    Raises:
        DamagedError: It is not what was uploaded, however often it is fetched.
    """
    of = f"{name} of step {manifest['step']}"

    def get() -> None:
        try:
            store.fetch(manifest, name, folder / name)
        except Exception as error:
            if missing(error):
                raise DamagedError(f"{of} is gone from there.") from error
            raise
        if checksum(folder / name) != manifest["files"][name]["sha256"]:
            raise DamagedError(f"{of} is not what was uploaded, its checksum differs.")

    def waiting(error: Exception) -> None:
        say(f"WARNING: It could not be fetched: {describe(error)} It is tried again; a stop ends that.")

    patiently(get, WAIT_S, waiting, lambda error, calls: isinstance(error, DamagedError) and calls >= TRIES, sleep)


def holds(folder: Path, manifest: Manifest) -> bool:
    """Tell whether a folder holds a backup, byte for byte."""
    files = {folder / name: entry["sha256"] for name, entry in manifest["files"].items() if name in (LATEST, BEST)}
    return all(path.exists() and checksum(path) == expected for path, expected in files.items())
