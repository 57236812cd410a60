"""Upload a run's newest published checkpoints, again and again."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from kit import storage
from kit.backup.access import describe
from kit.backup.stores import Manifest, Store
from kit.errors import StorageError
from kit.peek import BEST, LATEST, checksum, read_facts

NAME = "backup.json"
PINS = ".backup-"  # and the number of the process: a folder for second names in the run folder
SHARE = 0.1  # of the time that uploading may take
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 600.0  # after an upload that failed; doubled from the one to the other
AGREE_S = 30  # seconds that latest.pt and best.pt may be of different saves: the writer is between the two


class Backup:
    """Uploads a run's newest checkpoints when they changed, and keeps `backup.json`.

    Args:
        folder: The run folder.
        address: `kit.backup`, to be shown.
        store: Where to.
        anew: The run was started anew: the ones that are in the store now are not to be restored any more.
        say: Prints one line for the user.
        clock: Seconds from anywhere.
    """

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
        self.anew = anew
        self.news: dict[str, Any] = {"address": address, "problem": ""}
        self._there: dict[str, Manifest] | None = None
        self._seen: list[tuple[int, int, int]] = []
        self._next, self._pause = -float("inf"), FIRST_PAUSE_S

    @property
    def current(self) -> bool:
        """Whether the store has what is in the run folder."""
        return self._look() == self._seen

    def step(self, last: bool = False) -> bool:
        """Upload, if there is something new and it is time for it.

        Args:
            last: Training is over: upload at once.

        Returns:
            Whether the store has what is in the run folder.
        """
        seen, began = self._look(), self.clock()
        if seen == self._seen:
            return True
        if began < self._next and not last:
            return False
        try:
            with self._pinned(patient=not last) as paths:
                manifest = self._push(paths)
        except Exception as error:  # each client has its own, and none may end the backups of a run
            self._next = self.clock() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE_S)
            if not self.news["problem"]:
                self.say(f"WARNING: The backup to {self.address} failed: {describe(error)} It is tried again.")
            self._tell(problem=describe(error))
            return False
        took = self.clock() - began
        self._next, self._pause, self._seen = began + max(self.store.pause, took / SHARE), FIRST_PAUSE_S, seen
        if self.news["problem"]:
            self.say(f"Backups to {self.address} work again.")
        facts = {key: manifest[key] for key in ("run_id", "step", "epoch", "epochs", "best_map", "time")}
        self._tell(problem="", seconds=took, files=list(paths), **facts)
        return True

    def _look(self) -> list[tuple[int, int, int]]:
        """Tell the files from those before: a checkpoint is replaced as a whole and never written into."""
        found = []
        with contextlib.suppress(OSError):
            for name in (LATEST, BEST):
                state = (self.folder / "checkpoints" / name).stat()
                found.append((state.st_ino, state.st_mtime_ns, state.st_size))
        return found

    @contextlib.contextmanager
    def _pinned(self, patient: bool) -> Iterator[dict[str, Path]]:
        """Give the files second names, which last as long as the upload whatever becomes of the first ones."""
        place = self.folder / f"{PINS}{os.getpid()}"
        pins = {name: place / name for name in (LATEST, BEST)}
        try:
            for left in range(AGREE_S if patient else 0, -1, -1):
                shutil.rmtree(place, ignore_errors=True)
                storage.make_folder(place)
                for name, pin in pins.items():
                    with contextlib.suppress(FileNotFoundError):
                        os.link(self.folder / "checkpoints" / name, pin)
                if not pins[BEST].exists():
                    break
                latest, best = read_facts(pins[LATEST]), read_facts(pins[BEST])
                if all(latest[key] == best[key] for key in ("run_id", "best_map")):
                    break
                if not left:
                    pins[BEST].unlink()  # no resume would take it
                    break
                time.sleep(1)
            yield {name: pin for name, pin in pins.items() if pin.exists()}
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _push(self, paths: dict[str, Path]) -> Manifest:
        facts = read_facts(paths[LATEST])
        run = facts["run_id"]
        if self._there is None:
            self._there = {manifest["run_id"]: manifest for manifest in self.store.manifests()}
        same = {"run": facts["run"], "identity": facts["identity"]}
        old = [name for name, each in self._there.items() if self.anew and {**same, **each} == {**each, **same}]
        before = self._there.get(run) or {"files": {}, "replaces": sorted(old)}
        files = {name: {"size": path.stat().st_size, "sha256": checksum(path)} for name, path in paths.items()}
        manifest = {**facts, "time": time.time(), "replaces": before["replaces"], "files": files}
        if files == before["files"]:
            return before  # as at the start of a session, which goes on from what the one before backed up
        self.store.push(manifest, paths)
        self._there[run] = manifest
        return manifest

    def _tell(self, **news: Any) -> None:
        self.news.update(news, updated=time.time())
        text = json.dumps(self.news, indent=1).encode()
        with contextlib.suppress(StorageError):  # as for all news: the next time will do
            storage.publish(self.folder / NAME, lambda file: file.write(text), durable=False)


def sweep(folder: Path) -> None:
    """Remove the second names that a process left in a run folder which was ended in mid-upload."""
    for place in folder.glob(f"{PINS}*"):
        if not Path("/proc", place.name.removeprefix(PINS)).exists():
            shutil.rmtree(place, ignore_errors=True)


def position(facts: dict[str, Any]) -> str:
    """Say where a checkpoint stands and when it was backed up."""
    best = "" if facts["best_map"] is None else f", best mAP {facts['best_map']:.4f}"
    when = time.strftime("%Y-%m-%d %H:%M", time.localtime(facts["time"]))
    return f"epoch {facts['epoch']}/{facts['epochs']}, step {facts['step']}{best}, of {when}"


def report(folder: Path) -> str:
    """Say in one line what of a run is safe where; empty where nothing is."""
    try:
        news = json.loads((folder / NAME).read_bytes())
    except (OSError, ValueError):
        return ""
    safe = f"In {news['address']}: {' and '.join(news['files'])} ({position(news)})." if "step" in news else ""
    return f"WARNING: The last backup failed: {news['problem']} {safe}" if news["problem"] else safe
