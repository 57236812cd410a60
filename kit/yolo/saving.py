"""Saving: checkpoints, the best model, results.csv, and what is done where the disk is full."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Any

from ultralytics.cfg import TASK2METRIC

from kit.errors import StorageError
from kit.kaggle import session
from kit.run import discovery
from kit.run.discovery import ABANDONED
from kit.store import disk, full
from kit.store.checkpoint import plain
from kit.store.folder import LATEST, RunFolder
from kit.yolo.export import as_slim, as_ultralytics
from kit.yolo.setup import Setup
from kit.yolo.state import TrainerState


class Saving(Setup):
    """Mixin over the loop: what it writes."""

    state: TrainerState
    _unwritten: StorageError | None = None  # why results.csv could not be written

    def _check_room(self) -> None:
        """Check at the start, and not in hour nine, that the disk has room for the checkpoints.

        Raises:
            StorageError: It has not.
        """
        weights = sum(value.nbytes for value in self.ema.ema.state_dict().values())
        files = 3 if self.run.resumed is None else 1  # best, latest and the one that becomes latest
        self.run.writer.make_room(files * 4 * weights)  # raw, average, and two moments of the optimizer

    def _restore_best(self) -> None:
        """Rebuild a missing `best.pt`, where the current model is the best one."""
        if self.best.exists():
            return
        if self.batch == 0 and self.current_map() == self.best_map:
            self._save(self.epoch, 0, best=True)
            self.run.status.say("best.pt was missing and has been rebuilt from the checkpoint")
        else:
            self.run.status.say("The best model so far is gone: the next validation writes a new best.pt.")

    def _improved(self) -> bool:
        """Note a strictly greater mAP50-95, or any if `best.pt` is missing."""
        value = self.current_map()
        if value is None or (self.best_map is not None and value <= self.best_map and self.best.exists()):
            return False
        self.best_map = value
        return True

    def current_map(self) -> float | None:
        """Return the last validation's mAP50-95 (for tasks without one, Ultralytics' fitness); None of bad weights."""
        value = self.fitness if self.args.task == "classify" else (self.metrics or {}).get(TASK2METRIC[self.args.task])
        if value is None or self.fitness is None or self.loss is None or not math.isfinite(value + float(self.loss)):
            return None
        return float(value)

    def _save_epoch(self) -> None:
        """Save with the epoch completed; a failed save is tolerated, except the last.

        Raises:
            StorageError: The disk refused the last save.
        """
        best_before, best = self.best_map, self._improved()
        if self.save_period > 0 and self.epoch % self.save_period == 0:  # before latest.pt: a resume would not make it
            self._write_model(self.wdir / f"epoch{self.epoch}.pt", self.epoch + 1)
        try:
            (self._save_surely if self.stop else self._save)(self.epoch + 1, 0, best=best)
        except StorageError:
            if best and self.run.writer.best_map != self.best_map:
                self.best_map = best_before  # what is on the disk: a later model that is better than it will be kept
            if self.stop:
                raise
        if self.stop:
            self._write_model(RunFolder(self.run.folder).last, self.epoch + 1)
        for kept in self.wdir.glob(f"{LATEST}.{ABANDONED}") if self.run.branch else ():
            line = discovery.look(kept, verify=False).summary
            if line and line.global_step < self.global_step:
                disk.remove(kept)

    def _save_surely(self, epoch: int, batch: int, *, best: bool = False) -> None:
        """Save where no other save follows.

        Raises:
            StorageError: There was no room in the end, also after a wait; the message says where the checkpoint is.
        """
        stop = self.run.stop()
        waited = full.insist(
            partial(self._save, epoch, batch, best=best, wait=True),
            lambda path: self.run.writer.rescue(path, *self.state.state_dict(epoch, batch)),
            session.rescue_folder(self.run.folder) / LATEST,
            lambda text, hint: self.run.status.warn(text, "storage", hint),
            lambda: self.run.stop() != stop or self.limit_is_near(),
        )
        if waited:
            self.run.status.resolve("storage", "Saving works again.")

    def _save(self, epoch: int, batch: int, *, best: bool = False, wait: bool = False) -> None:
        began = time.monotonic()
        extra = self._as_ultralytics() if best else None
        sections, build = self.state.state_dict(epoch, batch)
        self.run.writer.save(sections, build, self.state.buffers, best=extra, wait=wait, began=began)
        if extra is not None:
            self._write_model(RunFolder(self.run.folder).slim, epoch, extra)

    def _as_ultralytics(self) -> dict[str, Any]:
        args = {**vars(self.args), "data": self.run.data.get("path") or self.args.data}
        return as_ultralytics(self.ema.ema, args, {**self.metrics, "fitness": self.fitness})

    def _write_model(self, path: Path, epoch: int, entries: dict[str, Any] | None = None) -> None:
        """Write the averaged model alone, as Ultralytics strips it."""
        entries = entries or self._as_ultralytics()
        size = sum(2 * parameter.numel() for parameter in entries["model"].parameters())
        self.run.writer.write_extra(path, as_slim(entries, epoch, self.current_map()), size)

    def save_metrics(self, metrics: dict[str, float]) -> None:
        """Add a row to the results; the file is rewritten from all rows, so that no kill doubles or tears one."""
        elapsed = time.monotonic() - self.train_time_start
        self.history.append(plain({"epoch": self.epoch + 1, "time": elapsed, **metrics}))
        self._write_results()

    def _write_results(self) -> None:
        names = list(dict.fromkeys(name for row in self.history for name in row))
        lines = [",".join(names)] if names else []
        lines += [",".join(f"{row[name]:.6g}" if name in row else "" for name in names) for row in self.history]
        text = "".join(line + "\n" for line in lines).encode()
        try:
            if not self.csv.parent.is_dir():
                disk.make_folder(self.csv.parent)  # deleted while training
            disk.publish(self.csv, lambda file: file.write(text), durable=False)
            self._unwritten = None
        except StorageError as error:
            self._unwritten = error  # all rows are written again after the next epoch

    def limit_is_near(self) -> bool:
        """Tell whether the session's limit is near; asked after every step, which it measures."""
        return self.run.limit.should_stop(self.run.writer.latency_s)
