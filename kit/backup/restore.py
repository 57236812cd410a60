"""Bring the newest backup of a run into scratch, where `kit.discovery` finds it, before training starts."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from kit import data, storage
from kit.backup.access import describe, refused
from kit.backup.stores import Manifest, Store
from kit.backup.upload import position
from kit.config import Config
from kit.errors import ConfigError, KitError, StorageError
from kit.peek import BEST, LATEST, PREVIOUS, checksum, read_facts

LOOK_S, FETCH_S = 60, 600  # seconds to find a backup, and to download it
LOCAL = "Training goes on from what is here."


def fetch(config: Config, resume: str, opened: Callable[[str], Store], say: Callable[[str], None]) -> None:
    """Fetch what is further than the run folder, and prove that the store can be used.

    Args:
        config: The settings; `kit.backup` is set.
        resume: As of `kit train`: only `auto` fetches.
        opened: Opens the store of an address.
        say: Prints one line for the user.

    Raises:
        ConfigError: The store turned the key away.
        KitError: There is a backup, and nothing in the run folder, but it could not be fetched.
    """
    address, folder = config.kit.backup, config.restored_folder
    assert address is not None
    assert folder is not None
    partial = folder.with_name(f"{folder.name}{storage.TEMPORARY}")
    for old in (folder, partial) if resume == "auto" else ():  # else it may be what the user goes on from
        shutil.rmtree(old, ignore_errors=True)
    with _limit(LOOK_S, say, f"WARNING: {address} did not answer within {LOOK_S} s. {LOCAL}", 0):
        try:
            store = opened(address)
            store.check()
            manifests = store.manifests()
        except Exception as error:  # each client has its own
            if isinstance(error, ConfigError):
                raise
            if refused(error):
                text = f"{address} cannot be used: {describe(error)} Check its token and kit.backup=..."
                raise ConfigError(text) from error
            say(f"WARNING: {address} cannot be reached: {describe(error)} {LOCAL}")
            return
    here = _standing(config.run_folder)
    found = _choose(manifests, config, here)
    if manifests and found is None and not store.shared:
        say(f"{address} holds another run: it becomes an older version there, behind the backups of this one.")
    if resume != "auto" or found is None or (here is not None and found["step"] <= here["step"]):
        return
    size = sum(entry["size"] for entry in found["files"].values())
    say(f"Found backup: {address} ({position(found)}): fetching {size / 1e6:.0f} MB")
    lost = "Run again, or start anew with --resume never."
    line, code = (f"error: {{}} {lost}", 1) if here is None else (f"WARNING: {{}} {LOCAL}", 0)
    with _limit(FETCH_S, say, line.format(f"It could not be fetched from {address} within {FETCH_S} s."), code):
        try:
            storage.make_room(storage.make_folder(partial), size)
            _download(store, found, partial)
            partial.rename(folder)  # latest.pt never without its best.pt
        except Exception as error:  # each client has its own
            shutil.rmtree(partial, ignore_errors=True)
            text = f"It could not be fetched from {address}: {describe(error)}"
            if here is None:
                raise KitError(f"{text} {lost}") from error
            say(f"WARNING: {text} {LOCAL}")


def _download(store: Store, manifest: Manifest, folder: Path) -> None:
    for name in manifest["files"].keys() & {LATEST, BEST}:
        store.fetch(manifest, name, folder / name)
        if checksum(folder / name) != manifest["files"][name]["sha256"]:
            raise StorageError(f"{name} is not what was uploaded, its checksum differs.")


def _standing(folder: Path) -> dict[str, Any] | None:
    """Return the facts of the furthest good checkpoint in the run folder."""
    found = []
    for name in (LATEST, PREVIOUS):
        with contextlib.suppress(KitError):
            storage.verify(folder / "checkpoints" / name)
            found.append(read_facts(folder / "checkpoints" / name))
    return max(found, key=lambda facts: int(facts["step"]), default=None)


def _choose(manifests: list[Manifest], config: Config, here: dict[str, Any] | None) -> Manifest | None:
    """Choose the backup of the run that is here; else of the same model and classes, first of the same `kit.run`.

    The training process compares all that makes a run the same; this spares a download.
    """
    if here is not None:
        return next((manifest for manifest in manifests if manifest["run_id"] == here["run_id"]), None)
    same = {"model": Path(str(config.get("model"))).stem, "names": data.names(config)}
    replaced = {run for manifest in manifests for run in manifest["replaces"]}
    found = [
        manifest
        for manifest in manifests
        if manifest["run_id"] not in replaced and {key: manifest["identity"].get(key) for key in same} == same
    ]
    return max(found, key=lambda each: (each.get("run") == config.kit.run, int(each["step"])), default=None)


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
