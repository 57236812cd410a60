"""Upload a run's newest published checkpoints, again and again.

A good copy is never replaced by a worse one: a file is verified before it is uploaded, and only where what is there is
known, is of the same run and is not further. What was uploaded counts when it was read back, and then all but the last
two backups of the run are removed.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.backup.manifests import Manifest, order, position
from kit.backup.pins import Look, Pins
from kit.backup.secrets import NotReadyError, describe, missing
from kit.backup.stores import Store
from kit.errors import KitError, StorageError
from kit.store import disk
from kit.store.folder import BEST, LATEST, RunFolder
from kit.store.peek import read_facts

SHARE = 0.1  # of the time that uploading may take
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 600.0  # after an upload that failed; doubled from the one to the other
READY_S, READY_PAUSE_S = 1200.0, 30.0  # until a store has made ready what it got, and between two looks
KEPT = 2  # backups of a run


class Backup:
    """Uploads a run's newest checkpoints when they changed, and keeps `backup.json`.

    Of a run that was started `anew`, older backups are ignored.
    """

    waits = False  # the store needs time for what it got last

    def __init__(
        self,
        folder: Path,
        address: str,
        store: Store,
        anew: bool = False,
        say: Callable[[str], None] = print,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.folder, self.address, self.store, self.say, self.clock = folder, address, store, say, clock
        self.anew = anew or read_news(folder).get("anew") is True
        self.news: dict[str, Any] = {"address": address, "problem": ""}
        if self.anew:
            self._tell(anew=True)  # until the store knows it too
        self._seen: Look = []
        self._sent: tuple[Manifest, Look] | None = None
        self._read_back: set[tuple[str, str]] = set()  # name and checksum of files that lie in the store as they should
        self.pins = Pins(folder)
        self._next, self._pause = -float("inf"), FIRST_PAUSE_S
        self._began = self._took = 0.0

    @property
    def current(self) -> bool:
        """Whether the store has what is in the run folder."""
        return self.pins.look() in ([], self._seen)

    def step(self, last: bool = False) -> bool:
        """Upload what is new when it is time for it, and at last at once, or read back what was uploaded.

        Returns:
            Whether the store has what is in the run folder.
        """
        seen, began = self.pins.look(), self.clock()
        if self._sent is None and seen in ([], self._seen):
            return True
        if began < self._next and not last:
            return False
        if last and self._sent and seen != self._sent[1]:
            self._sent = None  # there may be no time to read it back first
        try:
            if self._sent is None:
                self._began, self._took = began, 0.0
                with self.pins.hold(patient=not last) as paths:
                    self._sent = self._upload(paths), seen
            manifest, seen = self._sent
            self._prove(manifest)
        except Exception as error:  # each client has its own, and none may end the backups of a run
            self._put_off(error)
            return False
        finally:
            self._took += self.clock() - began
        self._next, self._pause = self._began + max(self.store.pause, self._took / SHARE), FIRST_PAUSE_S
        self._sent, self._seen, self.anew, self.waits = None, seen, False, False
        if self.news["problem"]:
            self.say(f"Backups to {self.address} work again.")
        facts = {key: manifest[key] for key in ("run_id", "step", "epoch", "epochs", "best_map", "time")}
        self._tell(problem="", waits="", anew=False, seconds=self._took, files=list(manifest["files"]), **facts)
        return self.current

    def _put_off(self, error: Exception) -> None:
        """Try again later; say what is wrong, unless the store is only slow."""
        now, pause, self.waits = self.clock(), self._pause, isinstance(error, NotReadyError)
        if self._sent and self.waits and now < self._began + READY_S:
            pause = min(pause, READY_PAUSE_S)
            self._tell(waits=position(self._sent[0]))
        else:
            if isinstance(error, (StorageError, NotReadyError)):
                self._sent = None
            if not self.news["problem"]:
                self.say(f"WARNING: The backup to {self.address} failed: {describe(error)} It is tried again.")
            self._tell(problem=describe(error))
        self._next, self._pause = now + pause, min(2 * pause, LONGEST_PAUSE_S)

    def _upload(self, paths: dict[str, Path]) -> Manifest:
        """Upload unless what is there is further, or another run's; return the manifest that is there then."""
        facts = read_facts(paths[LATEST])
        run = facts["run_id"]
        found = self.store.manifests(None if self.anew else run)
        own = sorted((each for each in found if each["run_id"] == run), key=lambda each: (order(each), each["time"]))
        while own and order(own[-1]) > order(facts):
            if self._is_good(further := own.pop(), LATEST):
                raise KitError(f"The one there is further ({position(further)}) and stays.")
        newest: Manifest = own[-1] if own else {"files": {}, "replaces": self._replaced(found, facts)}
        if found and found[0]["run_id"] != run and not self.store.shared and not self.anew:
            raise KitError(f"It holds another run ({position(found[0])}), which stays.")
        if BEST in newest["files"] and BEST not in paths and newest["best_map"] == facts["best_map"]:
            self._keep_best(newest, paths)
        files = {name: self.pins.describe(path) for name, path in paths.items()}
        there = {name: each for each in own for name in files if each["files"].get(name) == files[name]}
        known = files == newest["files"]  # as at the start of a session, which goes on from what was backed up
        good = {name for name, each in there.items() if (known or self.store.shared) and self._is_good(each, name)}
        if known and good == files.keys():
            return newest
        manifest = {**facts, "time": time.time(), "replaces": newest["replaces"], "files": files}
        spared = good if self.store.shared else set()
        self.store.push(manifest, {name: path for name, path in paths.items() if name not in spared})
        return manifest

    def _replaced(self, found: list[Manifest], facts: dict[str, Any]) -> list[str]:
        """Return the runs that one which was started anew takes the place of."""
        kind = {"run": facts["run"], "identity": facts["identity"]}
        return sorted({each["run_id"] for each in found if self.anew and {**kind, **each} == {**each, **kind}})

    def _keep_best(self, newest: Manifest, paths: dict[str, Path]) -> None:
        """Upload the store's best model again, where the run folder has lost its own."""
        path = paths[LATEST].with_name(BEST)
        try:
            self.store.fetch(newest, BEST, path)
        except Exception as error:
            if not missing(error):
                raise
        if self.pins.describe(path) == newest["files"][BEST]:
            paths[BEST] = path
        else:
            disk.remove(path)

    def _is_good(self, manifest: Manifest, name: str) -> bool:
        """Read a file back from the store, once, and compare its checksum."""
        key = name, manifest["files"][name]["sha256"]
        try:
            if key not in self._read_back and self.store.checksum(manifest, name) == key[1]:
                self._read_back.add(key)
        except Exception as error:
            if not missing(error):
                raise
        return key in self._read_back

    def _prove(self, manifest: Manifest) -> None:
        """Read back what was uploaded, and remove older backups."""
        found = [each for each in self.store.manifests(manifest["run_id"]) if each["run_id"] == manifest["run_id"]]
        there = next((each for each in found if each["files"] == manifest["files"]), None)
        if there is None:
            raise NotReadyError("What was uploaded is not there yet.")
        if bad := [name for name in there["files"] if not self._is_good(there, name)]:
            self._prune([each for each in found if each["files"] != manifest["files"]])
            raise StorageError(f"{' and '.join(bad)} cannot be read back as uploaded, the checksum differs.")
        self._prune(found)

    def _prune(self, found: list[Manifest]) -> None:
        """Keep the furthest backups of a run, first those that were read back."""

        def rank(each: Manifest) -> tuple[Any, ...]:
            good = {(name, entry["sha256"]) for name, entry in each["files"].items()} <= self._read_back
            return good, order(each), each["time"]

        kept = list[Manifest]()
        for each in sorted(found, key=rank, reverse=True):
            if len(kept) < KEPT and each["files"] not in [one["files"] for one in kept]:
                kept.append(each)
        if kept:
            with contextlib.suppress(Exception):  # the next upload tries again
                self.store.prune(kept[0]["run_id"], kept)

    def _tell(self, **news: Any) -> None:
        self.news.update(news, updated=time.time())
        with contextlib.suppress(StorageError):  # as for all news: the next time will do
            disk.write_json(RunFolder(self.folder).backup, self.news)


def read_news(folder: Path) -> dict[str, Any]:
    """Return what `backup.json` of a run folder says; empty where there is none."""
    return disk.read_json(RunFolder(folder).backup)


def report(folder: Path) -> str:
    """Say what is backed up and where, and why the last upload failed; empty where there is nothing to say."""
    news = read_news(folder)
    safe = f"In {news['address']}: {' and '.join(news['files'])} ({position(news)})." if "step" in news else ""
    if news.get("waits"):
        safe = f"{safe} Uploaded, and not yet read back: {news['waits']}.".lstrip()
    return f"The last backup failed: {news['problem']} {safe}".rstrip() if news.get("problem") else safe
