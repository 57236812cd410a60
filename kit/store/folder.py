"""The files of a run, by name: no other module spells one out."""

from __future__ import annotations

from pathlib import Path

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

    def log_of(self, rank: int) -> Path:
        """Return the log of another process of this machine than the first."""
        return self.log.with_stem(f"{self.log.stem}-{rank}")
