"""Training that was killed is started again from its checkpoint, where that may help."""

from __future__ import annotations

import time
from collections.abc import Callable

from kit.config import Config
from kit.errors import KitError
from kit.kaggle import session
from kit.run import status
from kit.run.status import Notice
from kit.store import disk

TWICE = "Lower workers=, batch= or imgsz=, leave cache= off, or look at the images of that batch."
LEAST_S = 300.0  # seconds of the session that are left, for a start to be worth while


class Restarts:
    """Decides whether a run, that the user has started with some `resume`, is started again after it was killed."""

    def __init__(self, config: Config, resume: str, warn: Callable[[str, str], None]) -> None:
        self._starts, self._warn = 0, warn  # which takes message and hint
        self._files, self._most, self._resume = config.files, config.kit.restarts, resume
        self._ends = session.deadline(config.kit.session_hours)
        self._before, self._began = self._stamp(), 0.0
        self._place: tuple[float, float, str] | None = None

    def begin(self) -> str:
        """Note that training starts, and return what from: `auto` as soon as it has saved a checkpoint of its own."""
        self._began = time.time()
        return self._resume if self._stamp() == self._before else "auto"

    def judge(self, lost: KitError, asked: bool) -> KitError | None:
        """Return why not to start again, as where a stop was asked for; None to start, which is said."""
        before, self._place = self._place, self._look()
        step, slack, place = self._place
        if before and abs(step - before[0]) <= slack and self._most:
            what = f"{lost.message} That is twice in a row in {place}: it would end there again."
            return type(lost)(what, TWICE)
        if asked or self._starts >= self._most or (self._ends and time.time() + LEAST_S > self._ends):
            return lost
        self._starts += 1
        count = f"{self._starts} of {self._most}, kit.restarts"
        self._warn(lost.message, f"Training starts again from the last checkpoint ({count}).")
        status.change(self._files, {"state": "starting"})
        return None

    def give_up(self, error: KitError) -> None:
        """Write what ended training into its status, which it could not do itself."""
        if self._told():
            status.change(self._files, {"state": "failed", **error.to_dict()})

    def keep(self, notices: list[Notice]) -> None:
        """Write warnings into the status of training that has ended."""
        if self._told():
            status.add(self._files, notices)

    def _told(self) -> bool:
        return bool(status.read(self._files.path).get("updated", 0) >= self._began)

    def _stamp(self) -> tuple[int, ...]:
        try:
            return disk.identity(self._files.latest)
        except OSError:
            return ()

    def _look(self) -> tuple[float, float, str]:
        """Return the step that training was in, how far news of it may lag behind, and words for it."""
        values = status.read(self._files.path)
        if values.get("updated", 0) < self._began or not values.get("batches"):
            return -1e9, 0.0, "its beginning"
        step = (values["epoch"] - 1) * values["batches"] + values["batch"]
        per_second = step / max(values["elapsed_s"], 1e-9)
        return step, 1 + status.EVERY * per_second, f"epoch {values['epoch']}, batch {values['batch']}"
