"""Helpers for the tests of backups: a run's checkpoints, and hand-written stores put in where the kit takes one."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.backup import restore
from kit.backup.files import Files
from kit.backup.manifests import Manifest
from kit.backup.reporter import Reporter
from kit.backup.stores import Store
from kit.config import Config
from kit.store import disk
from tests.help.samples import save, state

IDENTITY = {"task": "detect", "model": "yolov8n", "names": ["cat", "dog"]}


def write(run: Path, step: int, best: float | None = None, **changes: Any) -> None:
    """Publish a latest.pt, and with `best` a best.pt of the same mAP."""
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    changes.setdefault("architecture", IDENTITY)
    for name in ("best.pt", "latest.pt") if best is not None else ("latest.pt",):
        made = save(run / "made.pt", state(step, best_map=best, **changes))
        disk.publish(run / "checkpoints" / name, lambda file, made=made: file.write(made.read_bytes()))


def content(run: Path, name: str) -> bytes:
    """Return the bytes of a checkpoint."""
    return (run / "checkpoints" / name).read_bytes()


def files(place: Path) -> Files:
    """Open the store in a folder of the test's own, as a new session does."""
    return Files(f"file://{place}/store")


def fetch(
    settings: Config, resume: str, opened: Callable[[str], Store], say: Callable[[str], None], pauses: Any = None
) -> None:
    """Fetch as a start does, but note the pauses and make none."""
    restore.Restore(settings, opened, Reporter(say), sleep=([] if pauses is None else pauses).append).fetch(resume)


def opened(store: Store) -> Callable[[str], Store]:
    """Return what opens a store, whatever its address."""
    return lambda address: store


class Shelf:
    """A store in memory that fails, at the calls that it is told to.

    Args:
        fails: The uploads that fail, counted from 1.
        during: Called in the middle of an upload.
        shared: Whether several runs have room beside each other.

    Attributes:
        pushed: All uploads so far: the manifest, and the files that came with it.
        there: The backups that lie there, the oldest first: the manifest, and all of its files.
        log: The calls, by name.
    """

    pause = 60.0

    def __init__(
        self, fails: Callable[[int], bool] = lambda call: False, during: Any = lambda: None, shared: bool = True
    ) -> None:
        self.fails, self.during, self.shared = fails, during, shared
        self.calls, self.odd, self.log = 0, set[str](), list[str]()
        self.pushed: list[tuple[Manifest, dict[str, bytes]]] = []
        self.there: list[tuple[Manifest, dict[str, bytes]]] = []

    def check(self) -> None:
        """Nothing is to be made."""

    def manifests(self, run: str | None = None) -> list[Manifest]:
        self.log.append("manifests")
        return [each for each, _ in reversed(self.there) if run in (None, each["run_id"]) or not self.shared]

    def push(self, manifest: Manifest, paths: dict[str, Path]) -> None:
        self.log.append("push")
        self.calls += 1
        self.during()
        if self.fails(self.calls):
            raise ConnectionError("the network is gone")
        new = {name: path.read_bytes() for name, path in paths.items()}
        old = {
            name: files[name] for each, files in self.there for name in files if each["run_id"] == manifest["run_id"]
        }
        self.pushed.append((manifest, new))
        self.there.append((manifest, {name: {**old, **new}[name] for name in manifest["files"]}))

    def checksum(self, manifest: Manifest, name: str) -> str:
        self.log.append(f"checksum {name}")
        return hashlib.sha256(self.content(manifest, name)).hexdigest()

    def fetch(self, manifest: Manifest, name: str, target: Path) -> None:
        target.write_bytes(self.content(manifest, name))

    def content(self, manifest: Manifest, name: str) -> bytes:
        return next(files for known, files in self.there[::-1] if known == manifest)[name]

    def prune(self, run: str, kept: list[Manifest]) -> None:
        self.log.append("prune")
        self.there = [each for each in self.there if each[0]["run_id"] != run or each[0] in kept]


class Unreachable(Shelf):
    """A store that answers with an error.

    Args:
        error: The error.
        times: How often.
    """

    def __init__(self, error: Exception, times: int = 1000) -> None:
        super().__init__()
        self.error, self.times = error, times

    def check(self) -> None:
        self.times -= 1
        if self.times >= 0:
            raise self.error


class Tearing(Files):
    """A folder whose n-th change is cut off in the middle: half of the bytes are there, and an error follows.

    Args:
        address: As of `Files`.
        at: The change that is cut off, counted from 1; without it none is.
    """

    def __init__(self, address: str, at: int = 0) -> None:
        super().__init__(address)
        self.at, self.calls = at, 0
        self.fs.put_file = self._torn(self.fs.put_file, lambda path: Path(path).read_bytes())
        self.fs.pipe_file = self._torn(self.fs.pipe_file, lambda data: data)
        self.fs.rm_file = self._torn(self.fs.rm_file, None)

    def _torn(self, change: Any, content: Any) -> Any:
        def torn(first: Any, *rest: Any) -> None:
            self.calls += 1
            if self.calls < self.at or not self.at:
                change(first, *rest)
                return
            if self.calls == self.at and content is not None:
                source, target = (rest[0], first) if change.__name__ == "pipe_file" else (first, rest[0])
                data = content(source)
                Path(target).write_bytes(data[: len(data) // 2])
            raise ConnectionError("the network is gone")

        return torn


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def wipe(folder: Path) -> None:
    """Leave nothing of a working folder, as a new machine does."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
