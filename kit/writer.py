"""When to save and where to: the generations of a run's checkpoints and the interval between them."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from kit import checkpoint, storage
from kit.checkpoint import BEST, LATEST, PREVIOUS
from kit.storage import DISK, Disk


class Writer:
    """Writes a run's checkpoints and keeps their cost within bounds.

    Args:
        folder: The run's `checkpoints` folder.
        max_lost_s: Bound on the work that a kill may cost, in seconds.
        max_cost_percent: Bound on the share of time that saving may take; it wins where the two conflict.
        disk: The system calls.
    """

    def __init__(self, folder: Path, max_lost_s: float, max_cost_percent: float, disk: Disk = DISK) -> None:
        self.folder, self.disk = folder, disk
        self.max_lost_s, self.max_cost_percent = max_lost_s, max_cost_percent
        self.saves = 0
        self.held_s = 0.0  # what saving has taken from training so far
        self.slowest_s = 0.0
        self._began = self._last = time.monotonic()

    @property
    def interval_s(self) -> float:
        """Seconds between two saves within an epoch, from what the saves cost so far."""
        typical = self.held_s / self.saves if self.saves else 0.0
        return max(self.max_lost_s - self.slowest_s, typical * 100 / self.max_cost_percent)

    @property
    def cost_percent(self) -> float:
        """Share of the time since the start that saving took, in percent."""
        return 100 * self.held_s / max(time.monotonic() - self._began, 1e-9)

    def due(self) -> bool:
        """Tell whether a save within an epoch is due."""
        return time.monotonic() - self._last >= self.interval_s

    def save(self, state: dict[str, Any]) -> Path:
        """Publish `latest.pt` and keep the one before as `previous.pt`.

        Raises:
            StorageError: The disk refused; the checkpoints are as they were.
        """
        return self._publish(LATEST, state, self.folder / PREVIOUS)

    def save_best(self, state: dict[str, Any]) -> Path:
        """Publish `best.pt`.

        Raises:
            StorageError: The disk refused; `best.pt` is as it was.
        """
        return self._publish(BEST, state, None)

    def _publish(self, name: str, state: dict[str, Any], previous: Path | None) -> Path:
        began = time.monotonic()
        path = self.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        storage.publish(path, lambda file: checkpoint.write(state, file), previous=previous, disk=self.disk)
        self._last = time.monotonic()
        self.saves += 1
        self.held_s += self._last - began
        self.slowest_s = max(self.slowest_s, self._last - began)
        return path
