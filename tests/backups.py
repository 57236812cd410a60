"""Helpers for the tests of backups: a run's checkpoints, and hand-written stores put in where the kit takes one."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from samples import save, state

from kit import storage
from kit.backup.stores import Files, Manifest, Store

IDENTITY = {"task": "detect", "model": "yolov8n", "names": ["cat", "dog"]}


def write(run: Path, step: int, best: float | None = None, **changes: Any) -> None:
    """Publish a latest.pt, and with `best` a best.pt of the same mAP."""
    (run / "checkpoints").mkdir(parents=True, exist_ok=True)
    changes.setdefault("architecture", IDENTITY)
    for name in ("best.pt", "latest.pt") if best is not None else ("latest.pt",):
        made = save(run / "made.pt", state(step, best_map=best, **changes))
        storage.publish(run / "checkpoints" / name, lambda file, made=made: file.write(made.read_bytes()))


def content(run: Path, name: str) -> bytes:
    """Return the bytes of a checkpoint."""
    return (run / "checkpoints" / name).read_bytes()


def files(place: Path) -> Files:
    """Open the store in a folder of the test's own, as a new session does."""
    return Files(f"file://{place}/store")


def opened(store: Store) -> Callable[[str], Store]:
    """Return what opens a store, whatever its address."""
    return lambda address: store


class Shelf:
    """A store in memory that fails, at the calls that it is told to.

    Args:
        fails: The uploads that fail, counted from 1.
        during: Called in the middle of an upload.
        shared: Whether several runs have room beside each other.
    """

    pause = 60.0

    def __init__(
        self, fails: Callable[[int], bool] = lambda call: False, during: Any = lambda: None, shared: bool = True
    ) -> None:
        self.fails, self.during, self.shared = fails, during, shared
        self.calls = 0
        self.pushed: list[tuple[Manifest, dict[str, bytes]]] = []

    def check(self) -> None:
        """Nothing is to be made."""

    def manifests(self) -> list[Manifest]:
        return list({manifest["run_id"]: manifest for manifest, _ in self.pushed}.values())

    def push(self, manifest: Manifest, paths: dict[str, Path]) -> None:
        self.calls += 1
        self.during()
        if self.fails(self.calls):
            raise ConnectionError("the network is gone")
        self.pushed.append((manifest, {name: path.read_bytes() for name, path in paths.items()}))

    def fetch(self, manifest: Manifest, name: str, target: Path) -> None:
        target.write_bytes(next(files for known, files in self.pushed[::-1] if known == manifest)[name])


class Unreachable(Shelf):
    """A store that answers nothing but an error.

    Args:
        error: The error.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def check(self) -> None:
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
