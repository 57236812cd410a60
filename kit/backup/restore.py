"""Bring the newest backup of a run into scratch, where `kit.discovery` finds it, before training starts.

A store that cannot be asked is asked again for some minutes; then the start ends, for it may hold what is further than
anything here. Where the newest backup is damaged there, the one before it is fetched.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from kit import data, session, storage
from kit.backup.access import denied, describe, missing, patiently, refused
from kit.backup.manifests import Manifest, order, position
from kit.backup.stores import Store
from kit.backup.upload import read_news
from kit.config import Config
from kit.errors import ConfigError, KitError, StorageError
from kit.peek import BEST, LATEST, PREVIOUS, checksum, read_facts

WAIT_S, SHORT_WAIT_S = 300.0, 7.0  # seconds to wait for a store that fails; the short one where it need not be
LOOK_S, FETCH_S = 60, 600  # seconds that it may take to answer, and to hand out a backup
AGAIN_S = 2.0  # before a second look, where an empty disk finds nothing: a list may be an old one
TRIES = 3  # until a file counts as damaged there
LOCAL = "Training goes on from what is here."
WITHOUT = "Run again when it answers, or without a backup: kit.backup_required=False."

Say = Callable[[str], None]
Sleep = Callable[[float], None]


class DamagedError(KitError):
    """A file in the store is not what was uploaded."""


def fetch(config: Config, resume: str, opened: Callable[[str], Store], say: Say, sleep: Sleep = time.sleep) -> None:
    """Fetch what is further than the run folder, and prove that the store can be used.

    Args:
        config: The settings; `kit.backup` is set.
        resume: As of `kit train`: only `auto` fetches.
        opened: Opens the store of an address.
        say: Prints one line for the user.
        sleep: Pauses.

    Raises:
        ConfigError: The store turned the key away, or holds another run and has room for one.
        KitError: The store could not be asked, or what it holds for this run could not be fetched.
    """
    address, folder = config.kit.backup, config.restored_folder
    assert address is not None
    assert folder is not None
    if resume == "never":
        shutil.rmtree(folder, ignore_errors=True)
    here = _standing(config.run_folder)
    try:
        store, manifests = _ask(config, opened, here, say, sleep)
    except ConfigError:
        raise
    except Exception as error:  # each client has its own
        text = f"{address} cannot be reached: {describe(error)}"
        if config.kit.backup_required:
            raise KitError(f"{text} {WITHOUT}") from error
        say(f"WARNING: {text} {LOCAL}")
        return
    for name in sorted(store.odd):
        say(f"WARNING: '{name}' is no manifest of a backup, and is left out.")
    found = _choose(manifests, config, here)
    if not store.shared and resume != "never":
        _compare(manifests, found, config, here)
    if resume != "auto":
        return
    if not found:
        shutil.rmtree(folder, ignore_errors=True)  # fetched for an earlier start, and no backup of this run any more
    further = [each for each in found if here is None or order(each) > order(here)]
    if further and not _holds(folder, further[0]):  # a start beside this one may have brought it
        _bring(config, store, further, here is None, say, sleep)


def _ask(
    config: Config, opened: Callable[[str], Store], here: dict[str, Any] | None, say: Say, sleep: Sleep
) -> tuple[Store, list[Manifest]]:
    """Open the store and return what it holds of the run that is here, else all; ask again where that fails.

    Raises:
        ConfigError: It turned the key away.
        Exception: It cannot be asked.
    """
    address, required, run = config.kit.backup, config.kit.backup_required, here["run_id"] if here else None
    end = session.deadline(config.kit.session_hours)
    left = WAIT_S if required else SHORT_WAIT_S
    left = left if end is None else max(min(left, end - time.time() - LOOK_S), 0.0)

    late = f"{address} did not answer within {LOOK_S} s."
    late = f"error: {late} {WITHOUT}" if required else f"WARNING: {late} {LOCAL}"

    def ask() -> tuple[Store, list[Manifest]]:
        with _limit(LOOK_S, say, late, int(required)):
            store = opened(str(address))
            store.check()
            manifests = store.manifests(run)
            if not here and not _choose(manifests, config, here):
                sleep(AGAIN_S)
                manifests = store.manifests()
            return store, manifests

    def waiting(error: Exception) -> None:
        say(f"WARNING: {address} cannot be asked: {describe(error)} It is tried for {left:.0f} s; a stop ends that.")

    try:
        return patiently(ask, left, waiting, lambda error, _: refused(error), sleep)
    except Exception as error:
        if isinstance(error, ConfigError) or not (refused(error) or denied(error)):
            raise
        raise ConfigError(f"{address} cannot be used: {describe(error)} Check its token and kit.backup=...") from error


def _compare(manifests: list[Manifest], found: list[Manifest], config: Config, here: dict[str, Any] | None) -> None:
    """Make sure that a store with room for one run holds this one, or none.

    Raises:
        ConfigError: It holds another one.
    """
    own = here["run_id"] if here else found[0]["run_id"] if found else None
    if manifests and manifests[0]["run_id"] != own and not read_news(config.run_folder).get("anew"):
        other = f"{manifests[0]['identity'].get('model')}, {position(manifests[0])}"
        raise ConfigError(
            f"{config.kit.backup} holds another run ({other}) and has room for one: choose another with "
            "kit.backup=..., or put a new run in its place with --resume never."
        )


def _bring(config: Config, store: Store, found: list[Manifest], empty: bool, say: Say, sleep: Sleep) -> None:
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
    for old in folder.parent.glob(f"{folder.name}.*{storage.TEMPORARY}"):
        if not Path("/proc", old.name.split(".")[1]).exists():  # of a process that was ended in mid-download
            shutil.rmtree(old, ignore_errors=True)
    new, old = (folder.with_name(f"{folder.name}.{os.getpid()}{end}{storage.TEMPORARY}") for end in ("", ".old"))
    lost = "Run again, or start anew with --resume never."
    problem: Exception
    with _limit(FETCH_S, say, f"error: It could not be fetched from {address} within {FETCH_S} s. {lost}", 1):
        for names, each in itertools.product(((LATEST, BEST), (LATEST,)), found):  # a best model may be gone for good
            size = sum(entry["size"] for name, entry in each["files"].items() if name in names)
            say(f"Found backup: {address} ({position(each)}): fetching {size / 1e6:.0f} MB")
            try:
                storage.make_room(storage.make_folder(new), size)
                for name in each["files"].keys() & set(names):
                    _download(store, each, name, new, say, sleep)
                with contextlib.suppress(FileNotFoundError):
                    folder.rename(old)
                new.rename(folder)  # latest.pt never without its best.pt
                return
            except Exception as error:  # each client has its own
                if _holds(folder, each):
                    return  # a start beside this one was faster
                problem = error
                if not isinstance(error, DamagedError):
                    break
            finally:
                for leftover in (new, old):
                    shutil.rmtree(leftover, ignore_errors=True)
            say(f"WARNING: {problem}")
    text = f"It could not be fetched from {address}: {describe(problem)}"
    if empty or (config.kit.backup_required and not isinstance(problem, (DamagedError, StorageError))):
        raise KitError(f"{text} {lost}") from problem
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


def _holds(folder: Path, manifest: Manifest) -> bool:
    """Tell whether a folder holds a backup, byte for byte."""
    files = {folder / name: entry["sha256"] for name, entry in manifest["files"].items() if name in (LATEST, BEST)}
    return all(path.exists() and checksum(path) == expected for path, expected in files.items())


def _standing(folder: Path) -> dict[str, Any] | None:
    """Return the facts of the furthest good checkpoint in the run folder."""
    found = []
    for name in (LATEST, PREVIOUS):
        with contextlib.suppress(KitError):
            storage.verify(folder / "checkpoints" / name)
            found.append(read_facts(folder / "checkpoints" / name))
    return max(found, key=order, default=None)


def _choose(manifests: list[Manifest], config: Config, here: dict[str, Any] | None) -> list[Manifest]:
    """Choose the backups of the run that is here; else of the same model and classes, first of the same `kit.run`.

    The training process compares all that makes a run the same; this spares a download.

    Returns:
        Those of one run, the furthest first.
    """
    if here is None:
        same = {"model": Path(str(config.get("model"))).stem, "names": data.names(config)}
        replaced = {run for manifest in manifests for run in manifest["replaces"]}
        fits = [
            manifest
            for manifest in manifests
            if manifest["run_id"] not in replaced and {key: manifest["identity"].get(key) for key in same} == same
        ]
        here = max(fits, key=lambda each: (each.get("run") == config.kit.run, each["step"]), default={"run_id": None})
    own = [manifest for manifest in manifests if manifest["run_id"] == here["run_id"]]
    return sorted(own, key=lambda each: (order(each), each["time"]), reverse=True)


@contextlib.contextmanager
def _limit(seconds: int, say: Callable[[str], None], line: str, code: int) -> Iterator[None]:
    """End the process after some time, whatever a client is in the middle of; it may catch any exception."""
    signal.signal(signal.SIGALRM, leave(say, line, code))
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def leave(say: Callable[[str], None], line: str, code: int) -> Callable[[int, FrameType | None], None]:
    """Return a signal handler that says a line and ends the process at once."""

    def handler(number: int, frame: FrameType | None) -> None:
        say(line)
        os._exit(code)

    return handler
