"""How long the launcher waits for a training process: from a stop to its end, and at the session's limit."""

from __future__ import annotations

import time

from kit.config import Config
from kit.kaggle import session
from kit.run import status
from kit.run.limit import BACKUP_S, LARGEST_RESERVE, MARGIN_S

ANSWER_S = 60.0  # from a stop or the last sign of life, beside three times the slowest step and save
FIRST_S = 600.0  # that each session has, however short it is, to set up and to make a step
LAST_S = 20.0  # of the session, that are left to what follows training


class Bounds:
    """Of one training process.

    Args:
        config: The settings.
    """

    def __init__(self, config: Config) -> None:
        self._folder, self._ends = config.run_folder, session.deadline(config.kit.session_hours)
        self._first = time.time() + FIRST_S
        margin = MARGIN_S + (BACKUP_S if config.kit.backup else 0)
        self._late = margin / 2  # seconds before the end when training should have left by itself

    def over(self) -> bool:
        """Tell whether training should have left for the session's limit."""
        if self._ends is None:
            return False
        late = min(self._late, LARGEST_RESERVE * (self._ends - session.started()) / 2)
        return time.time() > max(self._ends - late, self._first)

    def hangs(self, asked: float, life: float) -> bool:
        """Tell whether a process that was asked to stop will not do so any more.

        Args:
            asked: When, in Unix seconds.
            life: When it has last given a sign of life.
        """
        now = time.time()
        if self._ends is not None and now > max(self._ends - LAST_S, self._first, asked + LAST_S):
            return True
        answer = ANSWER_S + 3 * float(status.read(self._folder).get("stop_s", 0))
        return now > max(asked, life) + answer
