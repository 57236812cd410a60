"""The session's limit: when training has to stop."""

from __future__ import annotations

import math
import time
from typing import Any

from kit.kaggle.session import deadline, started

MARGIN_S = 120.0  # seconds kept for the notebook's last cells, beside three times the slowest step and save
BACKUP_S = 120.0  # seconds kept for the last backup, where there is one
LARGEST_RESERVE = 0.1  # share of the session that stopping early may cost


class Deadline:
    """The session's end: training stops before it, in time for a slow step, a save and the notebook's last cells.

    Args:
        hours: Length of the session in hours, or 'auto'.
        backup: The last checkpoint has to be uploaded too.
    """

    step_s = math.inf  # seconds that the last step took

    def __init__(self, hours: float | str = "auto", backup: bool = False) -> None:
        self.ends = deadline(hours)  # in Unix seconds, or None
        self._length = self.ends - started() if self.ends else math.inf
        self._end = time.monotonic() + self.ends - time.time() if self.ends else math.inf
        self._margin = MARGIN_S + (BACKUP_S if backup else 0)
        self.slowest_s = 0.0  # the longest time between two steps
        self._asked, self._reserve = 0.0, self._margin

    def should_stop(self, save_s: float = 0.0) -> bool:
        """Tell whether to stop now; asked after every step, it measures how long one takes.

        Args:
            save_s: Seconds that a save takes until it is on the disk.
        """
        now = time.monotonic()
        if self._asked:
            self.step_s = now - self._asked
            self.slowest_s = max(self.slowest_s, self.step_s)
        self._asked = now
        self._reserve = min(3 * (self.slowest_s + save_s) + self._margin, LARGEST_RESERVE * self._length)
        return now + self._reserve >= self._end

    def report(self) -> dict[str, Any]:
        """Return for `status.json` when the session ends, when training leaves it, and how long one trains."""
        if self.ends is None:
            return {}
        return {
            "session_ends": self.ends,
            "session_leaves": self.ends - self._reserve,
            "session_s": self._length - self._reserve,
        }

    def sessions(self, seconds: float) -> int | None:
        """Return how many sessions of this length that much training takes; None where there is no limit."""
        return math.ceil(seconds / (self._length - self._reserve)) if self.ends else None
