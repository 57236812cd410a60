"""One run in this session: what a training loop of any framework needs to know of it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kit.config import Config
from kit.parallel.ranks import Ranks
from kit.run.limit import Deadline
from kit.run.receipt import Receipt
from kit.run.status import Status
from kit.store import disk
from kit.store.folder import RunFolder
from kit.store.lock import Lock
from kit.store.writer import Writer


class NoWriter(Writer):
    """The writer of a process that is not the main one: it needs no memory and no room, and saves nothing."""

    def due(self, pause: bool = False) -> bool:
        """No save ever is."""
        return False

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        pass

    allocate = make_room = save = write_extra = _nothing


def open_folder(files: RunFolder, stack: ExitStack) -> tuple[dict[str, Any], Status]:
    """Make a run folder where there is none, lock it and remove what a kill has left.

    Args:
        files: Those of the run.
        stack: Holds the lock until it is closed.

    Returns:
        What the run last said, and the status of this session.

    Raises:
        BusyError: Another process trains in it.
    """
    status = Status(files)
    disk.make_folder(files.checkpoints)
    stack.enter_context(Lock(files.lock))
    for folder in (files.path, files.checkpoints):
        disk.remove_leftovers(folder)
    before = disk.read_json(files.status)
    status.values["receipt"] = before.get("receipt")
    return before, status


@dataclass
class Run:
    """One run, in this session."""

    config: Config
    folder: Path
    identity: dict[str, Any]  # what tells this run from others, as `kit.yolo.identity.identify` has it
    status: Status  # silent, except in the main process
    stop: Callable[[], str]  # returns why to stop training now, or an empty text
    resumed: dict[str, Any] | None  # the checkpoint to resume from; dropped once restored, for it holds its file open
    ranks: Ranks = field(default_factory=Ranks)
    source: str = ""  # the checkpoint's path
    install: Callable[[], None] = lambda: None  # brings it into the run folder once it is restored

    def __post_init__(self) -> None:
        self.sessions: list[float] = []  # where those after the first began, in epochs
        self.known = False  # it was said why this session is not exact
        progress = self.resumed["progress"] if self.resumed else {}
        self.branch: int = progress.get("branch", 0)  # how often it was resumed from a given file
        self.branched: bool = progress.get("branched", False)  # this session was
        self.data: dict[str, Any] = {}  # `path`, which a model remembers, and `fingerprint` (`kit.data.report`)
        began = self.resumed["architecture"] if self.resumed else self.identity
        self.files: dict[str, str] = began.get("files", {})  # a hash of each that the run's model began with
        self.run_id: str = self.resumed["run_id"] if self.resumed else uuid.uuid4().hex[:12]  # the same in all sessions
        self.limit = Deadline(self.config.kit.session_hours, bool(self.config.kit.backup))
        kit, line = self.config.kit, {"run_id": self.run_id, "branch": self.branch, "epochs": self.config.get("epochs")}
        self.receipt = Receipt(self.status.values.get("receipt"), line)
        kind = Writer if self.ranks.is_main else NoWriter
        self.writer = kind(RunFolder(self.folder).checkpoints, kit.max_lost_s, kit.max_cost_percent)

    def not_exact(self, line: str) -> None:
        """Say why this session is not exact."""
        self.known = True
        self.status.say(line)

    def begin_session(self, progress: dict[str, Any], place: float) -> None:
        """Note where this session begins, for the checkpoint: each session may be on another machine."""
        self.sessions = [each for each in progress.get("sessions", ()) if each < place] + [place] * (place > 0)

    def close(self) -> None:
        """Wait for pending writes, and report what the checkpoints have cost."""
        self.writer.close()
        report = self.writer.report()
        self.status.update(now=True, **report)
        if self.writer.saves:
            self.status.say(
                "Checkpoints: {saves} written, {skipped} skipped, {cost_percent:.2f} % of the time; a kill would have "
                "cost {lost_work_bound_s:.0f} s of work at most".format(**report)
            )
