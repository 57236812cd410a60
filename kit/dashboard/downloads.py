"""Files to take away while training runs: immutable second names, with their size and checksum.

A link to `latest.pt` itself would be replaced in mid-download; one to a hard link of it arrives whole, and is what the
checksum beside it says. A checksum is made once for each new file, in a thread that yields to training, and so rarely
that it costs no more than 0.2 % of one core. In a batch run nobody can click: its links go to the files themselves, and
there are no second names, which the saved output would hold twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import html
import os
import re
import sys
import threading
import time
import zipfile
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from kit.dashboard import page
from kit.errors import CheckpointError, StorageError
from kit.kaggle import session
from kit.kaggle.frontend import on_colab, show, start_folder
from kit.store import disk, trust
from kit.store.folder import BEST, LATEST, RunFolder
from kit.text import size

CHECK_S = 5.0  # seconds between two looks at the files
SHARE = 500  # seconds between two refreshes, for each second of CPU time that one takes
SOURCES = {  # what is offered: which file of the run folder, name of the download, what for
    "best": (BEST, "the best model, with all of its training state"),
    "slim": ("slim-best.pt", "the best model for inference only, as Ultralytics strips it"),
    "latest": (LATEST, "where training stands: put it back to go on"),
    "table": (RunFolder(Path()).table.name, "a row for each epoch"),
}
PLOTS = "plots.zip"
_OWN = re.compile(r"(best|slim-best|latest|results|plots)(-e\d+)?-[0-9a-f]{8}\.\w+|plots\.zip|\..*\.tmp")


@dataclass(frozen=True)
class Item:
    """A file to download."""

    name: str  # that it is saved as
    path: Path  # that the link goes to
    size: int
    sha256: str
    epoch: int | None  # completed
    best_map: float | None
    purpose: str

    @property
    def facts(self) -> str:
        """Size, epoch and mAP in words."""
        epoch = "" if self.epoch is None else f"epoch {self.epoch}"
        best = "" if self.best_map is None else f"best mAP {self.best_map:.4f}"
        return ", ".join(filter(None, [size(self.size), epoch, best]))


class Downloads:
    """Keeps second names of a run's newest files, or offers the files themselves where it must not make any."""

    def __init__(self, folder: Path, second_names: bool = True) -> None:
        self.folder, self.second_names = folder, second_names
        self.items: list[Item] = []
        self._seen: dict[str, tuple[object, Item]] = {}  # by name: what tells the file from the one before, and it
        self._next, self._cost = 0.0, 0.0
        self._pool: ThreadPoolExecutor | None = None
        self._job: Future[list[Item]] | None = None

    def poll(self) -> bool:
        """Look after the files in the background; true when there is something new to show."""
        if self._job and self._job.done():
            found, self._job = self._job.result(), None
            changed, self.items = found != self.items, found
            return changed
        if self._job is None and time.monotonic() >= self._next:
            self._pool = self._pool or ThreadPoolExecutor(1, "downloads", initializer=_yield_to_training)
            self._job = self._pool.submit(self._refresh)
        return False

    def settle(self) -> list[Item]:
        """Have everything up to date and return it."""
        if self._pool:
            self._pool.shutdown()
            self._pool = self._job = None
        self._seen = {name: kept for name, kept in self._seen.items() if kept[1].path.exists()}
        self.items = self._refresh()
        return self.items

    def clear(self) -> None:
        """Remove all second names."""
        self._remove()
        with contextlib.suppress(OSError):
            RunFolder(self.folder).downloads.rmdir()

    def _refresh(self) -> list[Item]:
        began, files = time.thread_time(), RunFolder(self.folder)
        offers = [(name, purpose, [getattr(files, source)]) for source, (name, purpose) in SOURCES.items()]
        if self.second_names:
            plots = sorted([*self.folder.glob("*.png"), *self.folder.glob("*.jpg"), *files.results.glob("*.??g")])
            offers.append((PLOTS, "all pictures", plots))
        found = [self._offer(*each) for each in offers]
        items = [item for item in found if item and item.path.exists()]
        self._remove({item.path for item in (*items, *self.items)})  # an open page may still have the one before
        self._cost = max(time.thread_time() - began, self._cost)
        self._next = time.monotonic() + max(CHECK_S, self._cost * SHARE)
        return items

    def _remove(self, keep: Iterable[Path] = ()) -> None:
        """Remove second names; what somebody else has put there stays."""
        for path in RunFolder(self.folder).downloads.glob("*"):
            if path not in keep and _OWN.fullmatch(path.name):
                disk.remove(path)

    def _offer(self, name: str, purpose: str, paths: list[Path]) -> Item | None:
        """Offer a file, or pictures as one, unless the one that is offered is it; None where it is not there yet."""
        with contextlib.suppress(OSError, StorageError):  # it is not there, or was replaced just now
            key = [disk.identity(path) for path in paths]
            if key and (name not in self._seen or self._seen[name][0] != key):
                self._seen[name] = key, self._make(name, purpose, self._pack(paths) if name == PLOTS else paths[0])
        return self._seen[name][1] if name in self._seen else None

    def _make(self, name: str, purpose: str, path: Path) -> Item:
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            told = peek(file) if path.suffix == ".pt" else {}
            epoch = told.get("of_epoch", told.get("epoch"))
            if self.second_names:
                stem, _, suffix = name.rpartition(".")
                number = "" if epoch is None else f"-e{epoch:03d}"
                path = self._link(path, f"{stem}{number}-{digest[:8]}.{suffix}", file)
            return Item(name, path, os.fstat(file.fileno()).st_size, digest, epoch, told.get("best_map"), purpose)

    def _link(self, path: Path, name: str, file: BinaryIO) -> Path:
        """Give the file that is open a second name; where the disk knows none, its own has to do."""
        try:
            target = disk.make_folder(RunFolder(self.folder).downloads) / name
            if path.parent == target.parent:
                disk.DISK.replace(path, target)
                return target
            disk.link(path, target)
        except StorageError:
            return path
        if not os.path.samestat(os.fstat(file.fileno()), target.stat()):
            disk.remove(target)
            raise OSError(f"{path} was replaced")  # the next look finds the new one
        return target

    def _pack(self, plots: list[Path]) -> Path:
        """Pack pictures, which are compressed already; the same ones make the same bytes."""
        target = disk.make_folder(RunFolder(self.folder).downloads) / PLOTS

        def write(file: BinaryIO) -> None:
            with zipfile.ZipFile(file, "w") as packed:
                for path in plots:
                    packed.write(path, path.relative_to(self.folder))

        disk.publish(target, write, durable=False)
        return target


def _yield_to_training() -> None:
    """Have this thread take only the time that nobody else wants."""
    if sys.platform == "linux":
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


def peek(file: BinaryIO) -> dict[str, Any]:
    """Read `epoch`, `of_epoch` and `best_map` of a checkpoint without torch; nothing in it is executed."""
    try:
        state = trust.look_through(file)
    except CheckpointError:
        return {}
    found = {name: state.get(name) for name in ("epoch", "of_epoch", "best_map")} if isinstance(state, dict) else {}
    return {name: value for name, value in found.items() if isinstance(value, (int, float))}


def link(path: Path, name: str, text: str = "") -> str:
    """Return an HTML link, relative to the notebook, that works in every front end and also while a cell runs.

    Args:
        path: The file.
        name: What it is saved as; empty for a page to open in a tab of its own.
        text: What to click on; default the name.
    """
    if on_colab():  # it shows a page of another host: no link reaches the files
        return html.escape(text or name)
    what = f'download="{html.escape(name)}"' if name else 'target="_blank"'
    return f'<a href="{quote(os.path.relpath(path, start_folder()))}" {what}>{html.escape(text or name)}</a>'


def render(downloads: Downloads) -> tuple[str, str]:
    """Return the downloads as HTML and as text; in HTML with the log and the page for a tab of its own."""
    files, items, more = RunFolder(downloads.folder), downloads.items, []
    if files.page.exists() and session.run_type() != "batch":
        address = link(files.page, "", "the dashboard as a page of its own")
        more.append(f"{address}, for when this one was reloaded and stands still")
    if files.log.exists():
        more.append(link(files.log, files.log.name, "the whole log"))
    foot = f'<div class="kit kit-note">{" · ".join(more)}</div>' if more and not on_colab() else ""
    if not items:
        drawn, text = page.note("Downloads: the first checkpoint is not there yet.")
        return drawn + foot, text
    cells = "".join(
        f"<b>{link(item.path, item.name)}</b><span>{html.escape(item.facts)}</span>"
        f'<span class="kit-note">{html.escape(item.purpose)}</span><span class="kit-sum">sha256 {item.sha256}</span>'
        for item in items
    )
    ways = _other_ways(files)
    rest = "".join(f'<div class="kit-note">{html.escape(way)}</div>' for way in ways)
    lines = [f"{item.name}: {item.path} ({item.facts}, sha256 {item.sha256})" for item in items]
    return page.wrap(f'<div class="kit-files">{cells}</div>{rest}') + foot, "\n".join([*lines, *ways])


def _other_ways(files: RunFolder) -> list[str]:
    """Name the ways to the files that need no link."""
    place = os.path.relpath(files.checkpoints, session.working())
    if not session.on_kaggle():
        return [f"Or take them from {place} in the working folder."]
    return [
        f"Or, once the version is saved: the Output tab, under {place}.",
        f"Or, on any machine: kaggle kernels output YOUR-NAME/NOTEBOOK --file-pattern '{place}/(best|latest)'",
    ]


def show_downloads(folder: Path) -> None:
    """Show the downloads of a run: links with size, epoch, mAP and checksum; in Colab the browser's own download."""
    ready = Downloads(folder, session.run_type() != "batch")
    ready.settle()
    show(*render(ready))
    if on_colab():
        from google.colab import files

        for item in ready.items:
            if item.name in (BEST, LATEST):
                files.download(str(item.path))
