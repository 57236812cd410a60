"""Bring the newest backup of a run into scratch, where `kit.run.discovery` finds it, before training starts.

A store that cannot be asked is asked again for some minutes; then the start ends, for it may hold what is further than
anything here. Where the newest backup is damaged there, the one before it is fetched.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.backup.manifests import Manifest, order, position
from kit.backup.reporter import Reporter
from kit.backup.secrets import denied, describe, limit, missing, patiently, refused
from kit.backup.stores import Store
from kit.backup.upload import read_news
from kit.config import Config
from kit.data import find
from kit.errors import ConfigError, KitError, StorageError
from kit.kaggle import session
from kit.store import disk, trust
from kit.store.folder import BEST, LATEST, RunFolder
from kit.store.peek import checksum, read_facts

WAIT_S, SHORT_WAIT_S = 300.0, 7.0  # seconds to wait for a store that fails; the same where no backup is required
LOOK_S, FETCH_S = 60, 600  # seconds that a store may take to answer, and that a backup may take in all
AGAIN_S = 2.0  # before a second look, where an empty disk finds nothing: a list may be an old one
TRIES = 3  # until a file counts as damaged there
WITHOUT = "Run again when it answers, or without a backup: kit.backup_required=False."
LOCAL = "Training goes on from what is here."


class DamagedError(KitError):
    """A file in the store is not what was uploaded."""


class Restore:
    """Fetches what is further than the run folder, and proves that the store can be used, which `opened` opens."""

    store: Store

    def __init__(
        self,
        config: Config,
        opened: Callable[[str], Store],
        report: Reporter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.config, self.opened, self.report, self.sleep = config, opened, report, sleep
        assert config.restored_folder is not None
        self.address, self.folder = str(config.kit.backup), config.restored_folder
        self.required = config.kit.backup_required
        self.here = _standing(RunFolder(config.run_folder))

    def fetch(self, resume: str) -> None:
        """Ask the store, and fetch where `resume` is `auto`.

        Raises:
            ConfigError: The store turned the key away, or holds another run and has room for one.
            KitError: The store could not be asked, or what it holds for this run could not be fetched.
        """
        if resume == "never":
            disk.remove(self.folder)
        manifests = self._ask()
        if manifests is None:
            return
        for name in sorted(self.store.odd):
            self.report.warn(f"'{name}' is no manifest of a backup, and is left out.")
        found = self._choose(manifests)
        if not self.store.shared and resume != "never":
            self._compare(manifests, found)
        if resume != "auto":
            return
        if not found:
            disk.remove(self.folder)  # fetched for an earlier start, and no backup of this run any more
        further = [each for each in found if self.here is None or order(each) > order(self.here)]
        if further and not self._has(further[0]):  # a start beside this one may have brought it
            self._bring(further)

    def _ask(self) -> list[Manifest] | None:
        """Open the store and return what it holds of the run that is here, else all; ask again where that fails.

        Return None where it cannot be asked and need not be.
        """
        address, end = self.address, session.deadline(self.config.kit.session_hours)
        left = WAIT_S if self.required else SHORT_WAIT_S
        left = left if end is None else max(min(left, end - time.time() - LOOK_S), 0.0)

        def late() -> int:
            text = f"{address} did not answer within {LOOK_S} s."
            return self.report.fail(KitError(text, WITHOUT)) if self.required else self.report.warn(f"{text} {LOCAL}")

        def ask() -> list[Manifest]:
            with limit(LOOK_S, late):
                self.store = self.opened(address)
                self.store.check()
                manifests = self.store.manifests(self.here["run_id"] if self.here else None)
                if not self.here and not self._choose(manifests):
                    self.sleep(AGAIN_S)
                    manifests = self.store.manifests()
                return manifests

        def waiting(error: str) -> None:
            text = f"{address} cannot be asked: {error} It is tried for {left:.0f} s; a stop ends that."
            self.report.say(f"WARNING: {text}")

        try:
            return patiently(ask, left, waiting, lambda error, calls: refused(error), self.sleep)
        except ConfigError:
            raise
        except Exception as error:  # each client has its own
            if refused(error) or denied(error):
                text = f"{address} cannot be used: {describe(error)}"
                raise ConfigError(text, "Check its token and kit.backup=...") from error
            text = f"{address} cannot be reached: {describe(error)}"
            if self.required:
                raise KitError(text, WITHOUT) from error
            self.report.warn(f"{text} {LOCAL}")
            return None

    def _choose(self, manifests: list[Manifest]) -> list[Manifest]:
        """Choose the backups of the run that is here; else of the same model and classes, first of the same `kit.run`.

        They are of one run, the furthest first. The training process compares all that makes a run the same; this
        spares a download.
        """
        here = self.here
        if here is None:
            names = find.resolve(str(self.config.get("data")), self.config.classifies).trained(self.config)
            same = {"model": Path(str(self.config.get("model"))).stem, "names": names}
            replaced = {run for manifest in manifests for run in manifest["replaces"]}
            fits = [
                manifest
                for manifest in manifests
                if manifest["run_id"] not in replaced and {key: manifest["identity"].get(key) for key in same} == same
            ]
            run = self.config.kit.run
            here = max(fits, key=lambda each: (each.get("run") == run, each["step"]), default={"run_id": None})
        own = [manifest for manifest in manifests if manifest["run_id"] == here["run_id"]]
        return sorted(own, key=lambda each: (order(each), each["time"]), reverse=True)

    def _compare(self, manifests: list[Manifest], found: list[Manifest]) -> None:
        """Make sure that a store with room for one run holds this one, or none."""
        own = self.here["run_id"] if self.here else found[0]["run_id"] if found else None
        if manifests and manifests[0]["run_id"] != own and not read_news(self.config.run_folder).get("anew"):
            other = f"{manifests[0]['identity'].get('model')}, {position(manifests[0])}"
            raise ConfigError(
                f"{self.address} holds another run ({other}) and has room for one.",
                "Choose another with kit.backup=..., or put a new run in its place with --resume never.",
            )

    def _bring(self, found: list[Manifest]) -> None:
        """Fetch the first of some backups, or the next one where that is damaged."""
        folder, name = self.folder, self.folder.name
        for old in folder.parent.glob(f"{name}.*{disk.TEMPORARY}"):
            if not Path("/proc", old.name.split(".")[1]).exists():  # of a process that was ended in mid-download
                disk.remove(old)
        new, old = (folder.with_name(f"{name}.{os.getpid()}{end}{disk.TEMPORARY}") for end in ("", ".old"))
        lost = "Run again, or start anew with --resume never."
        problem: Exception
        late = KitError(f"It could not be fetched from {self.address} within {FETCH_S} s.", lost)
        with limit(FETCH_S, lambda: self.report.fail(late)):
            for names, each in itertools.product(((LATEST, BEST), (LATEST,)), found):  # a best.pt may be gone for good
                size = sum(entry["size"] for name, entry in each["files"].items() if name in names)
                self.report.say(f"Found backup: {self.address} ({position(each)}): fetching {size / 1e6:.0f} MB")
                try:
                    disk.make_room(disk.make_folder(new), size)
                    for name in each["files"].keys() & set(names):
                        self._download(each, name, new)
                    with contextlib.suppress(FileNotFoundError):
                        disk.DISK.replace(folder, old)
                    disk.DISK.replace(new, folder)  # latest.pt never without its best.pt
                    return
                except Exception as error:  # each client has its own
                    if self._has(each):
                        return  # a start beside this one was faster
                    problem = error
                    if not isinstance(error, DamagedError):
                        break
                finally:
                    for leftover in (new, old):
                        disk.remove(leftover)
                self.report.warn(str(problem))
        text = f"It could not be fetched from {self.address}: {describe(problem)}"
        if not self.here or (self.required and not isinstance(problem, (DamagedError, StorageError))):
            raise KitError(text, lost) from problem
        self.report.warn(f"{text} {LOCAL}")

    def _download(self, manifest: Manifest, name: str, folder: Path) -> None:
        """Download a file of a backup; it is damaged where it is not what was uploaded, however often it is fetched."""
        of = f"{name} of step {manifest['step']}"

        def get() -> None:
            try:
                self.store.fetch(manifest, name, folder / name)
            except Exception as error:
                if missing(error):
                    raise DamagedError(f"{of} is gone from there.") from error
                raise
            if checksum(folder / name) != manifest["files"][name]["sha256"]:
                raise DamagedError(f"{of} is not what was uploaded, its checksum differs.")

        def waiting(error: str) -> None:
            self.report.say(f"WARNING: It could not be fetched: {error} It is tried again; a stop ends that.")

        def hopeless(error: Exception, calls: int) -> bool:
            return isinstance(error, DamagedError) and calls >= TRIES

        patiently(get, WAIT_S, waiting, hopeless, self.sleep)

    def _has(self, manifest: Manifest) -> bool:
        """Tell whether the folder holds a backup, byte for byte."""
        files = manifest["files"].items()
        paths = {self.folder / name: entry["sha256"] for name, entry in files if name in (LATEST, BEST)}
        return all(path.exists() and checksum(path) == expected for path, expected in paths.items())


def _standing(folder: RunFolder) -> dict[str, Any] | None:
    """Return what the furthest good checkpoint in the run folder says of itself."""
    found = []
    for path in (folder.latest, folder.previous):
        with contextlib.suppress(KitError):
            trust.verify(path)
            found.append(read_facts(path))
    return max(found, key=order, default=None)
