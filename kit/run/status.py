"""A run's progress, as a file: the trainer replaces `status.json`, dashboard and command line read it.

News travels by files, never by import: trainer and dashboard do not know each other, and a page that was reloaded
finds everything again.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from kit.errors import KitError, MovedError, Stopped, StorageError
from kit.store import disk
from kit.store.folder import RunFolder
from kit.text import for_json

Notice = dict[str, str]  # `kind`, `message` and `hint`

WARNING = "warning"  # the kind of which all are kept
EVERY = 0.5  # seconds between two writes, so that a fast loop is not slowed


class Status:
    """The progress of one run, written as it changes, by a thread: a rename can take as long as a training step.

    Args:
        files: Those of the run; without them it neither prints nor writes, because another process tells the same.
    """

    def __init__(self, files: RunFolder | None = None) -> None:
        self.files = files
        self.values: dict[str, Any] = {"pid": os.getpid(), "messages": [], "notices": []}
        self._next = 0.0
        self._pool = ThreadPoolExecutor(1, "status")
        self._job: Future[None] | None = None

    def update(self, *, now: bool = False, **values: Any) -> None:
        """Change values and have them written, at most every `EVERY` seconds; with `now` they are when this returns.

        A full disk does not end a training run: what could not be written is written the next time.
        """
        self.values.update(values)
        if self.files is None or not (now or self.due()):
            return
        self._next = time.monotonic() + EVERY
        self.values["updated"] = time.time()
        self._job = self._pool.submit(_publish, self.files.status, json.dumps(for_json(self.values), indent=1).encode())
        if now:
            self._job.result()

    def due(self) -> bool:
        """Tell whether the next update will be written."""
        return self.files is not None and time.monotonic() >= self._next and (self._job is None or self._job.done())

    def say(self, line: str) -> None:
        """Print one line for the user and keep it in the file, where the notebook finds it."""
        if self.files:
            tell(line)
        self.update(now=True, messages=[*self.values["messages"], line])

    def warn(self, message: str, kind: str = WARNING, hint: str = "") -> None:
        """Print a warning and keep it as a notice for the dashboard.

        Args:
            message: What is wrong.
            kind: `warning`, or one of which the newest is kept alone, until `resolve` takes it away.
            hint: What to do.
        """
        self._keep(new := notice(message, hint, kind))
        self.say(_line(new))

    def resolve(self, kind: str, line: str) -> None:
        """Say that what a notice of that kind was about is over, and take it away."""
        self.values["notices"] = [each for each in self.values["notices"] if each["kind"] != kind]
        self.say(line)

    def restore(self, notices: Iterable[Notice]) -> None:
        """Keep the warnings that were printed before this process began."""
        for each in notices:
            self._keep(each)
            self.values["messages"].append(_line(each))

    def _keep(self, new: Notice) -> None:
        kind, known = new["kind"], self.values["notices"]
        self.values["notices"] = [each for each in known if each != new and not each["kind"] == kind != WARNING] + [new]


def notice(message: str, hint: str = "", kind: str = WARNING) -> Notice:
    """Return a warning as the dashboard takes it."""
    return {"kind": kind, "message": message, "hint": hint}


def _line(notice: Notice) -> str:
    return f"WARNING: {notice['message']} {notice['hint']}".rstrip()


def _publish(path: Path, text: bytes) -> None:
    with contextlib.suppress(StorageError, MovedError):
        disk.publish(path, lambda file: file.write(text), durable=False)


def tell(line: str) -> None:
    """Print a line, unless the log that it goes to lies on a full disk."""
    with contextlib.suppress(OSError):
        print(line, flush=True)


def read(folder: Path) -> dict[str, Any]:
    """Return what the run last said; empty where there is nothing readable."""
    return disk.read_json(RunFolder(folder).status)


def change(files: RunFolder, values: dict[str, Any], pid: int | None = None) -> None:
    """Change what a run last said, when its process is gone, or is this one.

    Args:
        files: Those of the run.
        values: What is new.
        pid: Change it only where this process has said it.
    """
    known = disk.read_json(files.status)
    if known and pid in (None, known.get("pid")):
        with contextlib.suppress(StorageError):
            disk.write_json(files.status, {**known, **values})


def add(files: RunFolder, notices: list[Notice]) -> None:
    """Add warnings to what a run last said, when its process is gone."""
    if notices:
        known = disk.read_json(files.status)
        lines = [*known.get("messages", ()), *map(_line, notices)]
        change(files, {"notices": [*known.get("notices", ()), *notices], "messages": lines})


def end(files: RunFolder, error: KitError) -> None:
    """Say what ended this process, unless the status is of another one: that still trains, or did so before."""
    state = "stopped" if isinstance(error, Stopped) else "failed"
    change(files, {"state": state, **error.to_dict()}, os.getpid())
