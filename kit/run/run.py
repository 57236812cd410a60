"""One run in this session: what a training loop of any framework needs to know of it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from kit.config import Config
from kit.parallel.ranks import Ranks
from kit.run.limit import Deadline
from kit.run.receipt import Receipt
from kit.run.status import Status
from kit.store.writer import Writer


class NoWriter(Writer):
    """The writer of a process that is not the main one: it needs no memory and no room, and saves nothing."""

    def due(self, pause: bool = False) -> bool:
        """No save ever is."""
        return False

    def _nothing(self, *args: Any, **kwargs: Any) -> None:
        pass

    allocate = make_room = save = write_extra = _nothing


@dataclass
class Run:
    """One run, in this session.

    Attributes:
        config: The settings.
        folder: The run folder.
        identity: What tells this run from others, as `kit.yolo.resume.identify` has it.
        status: Where news goes.
        stop: Returns why to stop training now, or an empty text.
        limit: The session's end.
        resumed: The checkpoint to resume from, or None; dropped once it is restored, for it holds its file open.
        source: The checkpoint's path.
        install: Brings it into the run folder once it is restored.
        run_id: Same for every session of the run.
        files: A hash of each file that the run's model began with.
        data: The data set: `path`, which a model of the run remembers, and `fingerprint`, as `kit.data.check` has it.
        branch: How often it was resumed from a given file; `branched` says that this session was.
        sessions: Where the sessions after the first began, in epochs.
        ranks: The processes that train together.
        writer: Where checkpoints go; nowhere, except in the main process.
        receipt: The losses after the checkpoint, to be compared with those of the session before.
        known: It was said why this session is not exact.
    """

    config: Config
    folder: Path
    identity: dict[str, Any]
    status: Status
    stop: Callable[[], str]
    resumed: dict[str, Any] | None
    limit: Deadline = field(default_factory=Deadline)
    ranks: Ranks = field(default_factory=Ranks)
    source: str = ""
    install: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.sessions: list[float] = []
        self.known = False
        progress = self.resumed["progress"] if self.resumed else {}
        self.branch, self.branched = progress.get("branch", 0), progress.get("branched", False)
        self.data: dict[str, Any] = {}
        began = self.resumed["architecture"] if self.resumed else self.identity
        self.files: dict[str, str] = began.get("files", {})
        self.run_id: str = self.resumed["run_id"] if self.resumed else uuid.uuid4().hex[:12]
        kit, line = self.config.kit, {"run_id": self.run_id, "branch": self.branch, "epochs": self.config.get("epochs")}
        self.receipt = Receipt(self.status.values.get("receipt"), line)
        pinned = torch.cuda.is_available() and self.config.get("device") != "cpu"
        kind = Writer if self.ranks.is_main else NoWriter
        self.writer = kind(self.folder / "checkpoints", kit.max_lost_s, kit.max_cost_percent, pinned)

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
