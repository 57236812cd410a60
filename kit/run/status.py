"""A run's progress, as a file: the trainer replaces `status.json`, dashboard and command line read it.

News travels by files, never by import: trainer and dashboard do not know each other, and a page that was reloaded
finds everything again.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kit.errors import MovedError, StorageError
from kit.store import disk
from kit.store.folder import RunFolder

AGAIN = "KIT_AGAIN"  # set by the launcher: what a run that was started again keeps of that, in lines
EVERY = 0.5  # seconds between two writes, so that a fast loop is not slowed


class Status:
    """The progress of one run, written as it changes, by a thread: a rename can take as long as a training step.

    Args:
        folder: The run folder.
        silent: Neither print nor write: another process tells the same.
    """

    def __init__(self, folder: Path, silent: bool = False) -> None:
        self.path, self.silent = RunFolder(folder).status, silent
        self.values: dict[str, Any] = {"pid": os.getpid(), "messages": []}
        self._next = 0.0
        self._pool = ThreadPoolExecutor(1, "status")
        self._job: Future[None] | None = None

    def update(self, *, now: bool = False, **values: Any) -> None:
        """Change values and have them written, at most every `EVERY` seconds; with `now` they are when this returns.

        A full disk does not end a training run: what could not be written is written the next time.
        """
        self.values.update(values)
        if self.silent or not (now or self.due()):
            return
        self._next = time.monotonic() + EVERY
        self.values["updated"] = time.time()
        self._job = self._pool.submit(self._write, json.dumps(plain(self.values), indent=1).encode())
        if now:
            self._job.result()

    def _write(self, text: bytes) -> None:
        with contextlib.suppress(StorageError, MovedError):
            disk.publish(self.path, lambda file: file.write(text), durable=False)

    def due(self) -> bool:
        """Tell whether the next update will be written."""
        return not self.silent and time.monotonic() >= self._next and (self._job is None or self._job.done())

    def say(self, line: str) -> None:
        """Print one line for the user and keep it in the file, where the notebook finds it."""
        if not self.silent:
            tell(line)
        self.update(now=True, messages=[*self.values["messages"], line])


def tell(line: str) -> None:
    """Print a line, unless the log that it goes to lies on a full disk."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def plain(value: Any) -> Any:
    """Turn a value into what JSON knows: neither NaN nor numpy's and torch's numbers."""
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    try:
        return float(value) if math.isfinite(value) else None
    except (TypeError, ValueError):
        return str(value)


def read(folder: Path) -> dict[str, Any]:
    """Return what the run last said; empty where there is nothing readable."""
    return disk.read_json(RunFolder(folder).status)


def change(folder: Path, **values: Any) -> None:
    """Change what a run last said, when its process is gone."""
    if known := read(folder):
        with contextlib.suppress(StorageError):
            disk.write_json(RunFolder(folder).status, {**known, **values})


def duration(seconds: float) -> str:
    """Write a time in its largest unit that is at least two."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
