"""The files of a run, by name: no other module spells one out."""

from __future__ import annotations

import os
from pathlib import Path

OTHERS = ("args.yaml", "data.yaml", "weights", "labels.jpg", "results.png")  # of the names that a training writes to
LATEST, PREVIOUS, BEST = "latest.pt", "previous.pt", "best.pt"


class RunFolder:
    """Where the files of a run are.

    Attributes:
        lock: Held by the process that trains.
        latest: The newest checkpoint; `previous` is the one before, `best` that of the best epoch.
        slim, last: The best and the last model alone, no checkpoints.
        table: A row for each epoch, as Ultralytics writes it.
        status: What `kit.run.status` writes; `backup` is the same of the uploads.
        log: What the training process prints.
        page: The dashboard as a page of its own.
        downloads: Hard links for the notebook.
        results: What was measured of the best model: `scores` and the picture `predictions`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = path / ".lock"
        self.checkpoints = path / "checkpoints"
        self.latest, self.previous, self.best = (self.checkpoints / name for name in (LATEST, PREVIOUS, BEST))
        self.slim, self.last = path / "slim.pt", path / "last.pt"
        self.table, self.log = path / "results.csv", path / "train.log"
        self.page = path / "progress.html"
        self.status, self.backup = path / "status.json", path / "backup.json"
        self.downloads, self.results = path / "downloads", path / "results"
        self.scores, self.predictions = self.results / "results.json", self.results / "predictions.jpg"

    def foreign(self) -> list[str]:
        """Name what a training would write over, where no run of the kit has been: it is somebody else's."""
        if any(os.path.lexists(path) for path in (self.checkpoints, self.status)):
            return []
        names = [self.table.name, *OTHERS, self.slim.name, self.last.name]
        return [name for name in names if os.path.lexists(self.path / name)]

    def log_of(self, rank: int) -> Path:
        """Return the log of another process of this machine than the first."""
        return self.log.with_stem(f"{self.log.stem}-{rank}")
