"""The newest checkpoints of a run folder, held by hard links and verified while they are uploaded."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kit.errors import CheckpointError
from kit.store import disk, trust
from kit.store.folder import BEST, LATEST, RunFolder
from kit.store.peek import checksum, read_facts

PINS = ".backup-"  # and the number of the process: a folder of hard links in the run folder
AGREE_S = 30  # seconds that latest.pt and best.pt may be of different saves: the writer is between the two

Look = list[tuple[int, int, int]]


class Pins:
    """Looks at a run folder's checkpoints, and holds them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.checkpoints = folder, RunFolder(folder).checkpoints
        self._described: dict[tuple[int, int, int], dict[str, Any] | None] = {}

    def look(self) -> Look:
        """Tell the files from those before: a checkpoint is replaced as a whole and never written into."""
        found = Look()
        with contextlib.suppress(OSError):
            for name in (LATEST, BEST):
                found += [disk.identity(self.checkpoints / name)]
        return found

    @contextlib.contextmanager
    def hold(self, patient: bool) -> Iterator[dict[str, Path]]:
        """Hard-link the good files, so that they stay for the upload although training replaces them.

        Who is patient waits for a pair of the same save.
        """
        place = self.folder / f"{PINS}{os.getpid()}"
        pins = {name: place / name for name in (LATEST, BEST)}
        try:
            for left in range(AGREE_S if patient else 0, -1, -1):
                disk.remove(place)
                disk.make_folder(place)
                for name, pin in pins.items():
                    if (self.checkpoints / name).exists():
                        disk.link_or_copy(self.checkpoints / name, pin)
                if self.describe(pins[LATEST]) is None:
                    raise CheckpointError(f"{LATEST} is damaged, and is not uploaded.")
                latest = read_facts(pins[LATEST])
                best = read_facts(pins[BEST]) if self.describe(pins[BEST]) else {}
                agree = all(latest[key] == best.get(key) for key in ("run_id", "best_map"))
                if agree or not best or not left:
                    break
                time.sleep(1)
            if not agree:
                disk.remove(pins[BEST])  # damaged, or no resume would take it
            yield {name: pin for name, pin in pins.items() if pin.exists()}
        finally:
            disk.remove(place)

    def describe(self, path: Path) -> dict[str, Any] | None:
        """Return size and checksum of a good file, which is read once; None of a damaged one, and of none."""
        if not path.exists():
            return None
        key = disk.identity(path)
        if key not in self._described:
            try:
                trust.verify(path)
                self._described[key] = {"size": path.stat().st_size, "sha256": checksum(path)}
            except CheckpointError:
                self._described[key] = None
        return self._described[key]


def remove_leftovers(folder: Path) -> None:
    """Remove the hard links of a process that was killed during an upload."""
    for place in folder.glob(f"{PINS}*"):
        if not Path("/proc", place.name.removeprefix(PINS)).exists():
            disk.remove(place)
