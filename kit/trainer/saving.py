"""Saving and telling: checkpoints, results.csv, status.json and the lines that the run prints."""

from __future__ import annotations

import math
import time
from typing import Any

from ultralytics.cfg import TASK2METRIC

from kit import storage
from kit.checkpoint import plain
from kit.errors import Stopped, StorageError
from kit.trainer import state
from kit.trainer.run import Run
from kit.trainer.setup import Setup


class Saving(Setup):
    """Mixin over the loop: where it stands, put on disk and into words."""

    run: Run
    best_map: float | None
    history: list[dict[str, float]]

    loss: Any

    def _make_room(self) -> None:
        """Say at the start, and not in hour nine, that the disk has no room for the checkpoints.

        Raises:
            StorageError: It has not.
        """
        weights = sum(value.nbytes for value in self.ema.ema.state_dict().values())
        files = 3 if self.run.resumed is None else 1  # best, latest and the one that becomes latest
        storage.make_room(self.run.folder, files * 4 * weights)  # raw, average, and two moments of the optimizer

    def _compare(self, resumed: dict[str, Any]) -> None:
        """Say what is no longer as it was when the checkpoint was written."""
        old, new = resumed["versions"], state.versions()
        changed = [f"{name} {old.get(name)} -> {new[name]}" for name in new if old.get(name) != new[name]]
        if resumed["architecture"]["data_hash"] != self.data_hash:
            changed.append("the list of training images")
        if (optimizer := resumed["loop"]["decided"]["optimizer"]) != self.args.optimizer:
            changed.append(f"the optimizer, which starts with no momentum ({optimizer} -> {self.args.optimizer})")
        if changed:
            self.run.status.say(f"Not exact from here on, the surroundings changed: {'; '.join(changed)}")
        if (epochs := resumed["progress"]["epochs"]) != self.epochs:
            self.run.status.say(
                f"The run has {self.epochs} epochs now and had {epochs}: learning rate, warm-up and close_mosaic are "
                f"from here on those of a run of {self.epochs}"
            )

    def _announce(self) -> None:
        say, batches = self.run.status.say, len(self.train_loader)
        if self.run.resumed is not None:
            say(f"Resumed from epoch {self.epoch}")
            if self.best_map is not None:
                say(f"Best mAP so far: {self.best_map:.4f}")
        if self.stop or self.epoch >= self.epochs:
            say(f"Training is complete after {self.epoch} epochs: only the final evaluation is left")
            return
        place = f"batch {self.batch + 1}/{batches}" if self.batch < batches else "validation"
        say(f"Starting training from epoch {self.epoch + 1}/{self.epochs} ({place})")

    def _improved(self) -> bool:
        """Take note of a strictly greater mAP50-95, or of any where `best.pt` has gone."""
        value = self._current_map()
        if value is None or (self.best_map is not None and value <= self.best_map and self.best.exists()):
            return False
        self.best_map = value
        return True

    def _current_map(self) -> float | None:
        """Return the last validation's mAP50-95 (for tasks without one, Ultralytics' fitness); None of bad weights."""
        value = self.fitness if self.args.task == "classify" else (self.metrics or {}).get(TASK2METRIC[self.args.task])
        if value is None or self.fitness is None or not math.isfinite(value + float(self.loss)):
            return None
        return float(value)

    def _save(self, *, completed: bool = False, best: bool = False, required: bool = True) -> None:
        """Save the current position: after the current batch, or with the epoch completed.

        Raises:
            StorageError: The disk refused a save that is required.
        """
        at = (self.epoch + 1, 0) if completed else (self.epoch, self.batch)
        saved = state.capture(self, *at)
        try:
            if best:
                self.run.writer.save_best({**saved, **state.as_ultralytics(self)})
            self.run.writer.save(saved)
        except StorageError as error:
            if required:
                raise
            self.run.status.say(f"WARNING: {error}")
            return
        if completed and self.save_period > 0 and self.epoch % self.save_period == 0:
            storage.link(self.last, self.wdir / f"epoch{self.epoch}.pt")
        position = {"epoch": at[0], "batch": at[1], "time": saved["progress"]["saved"]}
        self.run.status.update(now=True, checkpoint={"path": str(self.last), **position})

    def save_metrics(self, metrics: dict[str, float]) -> None:
        """Add a row to the results; the file is made anew from all rows, so that no kill doubles or tears one."""
        elapsed = time.time() - self.train_time_start
        self.history.append(plain({"epoch": self.epoch + 1, "time": elapsed, **metrics}))
        self._write_results()

    def _write_results(self) -> None:
        names = list(dict.fromkeys(name for row in self.history for name in row))
        lines = [",".join(names)] if names else []
        lines += [",".join(f"{row[name]:.6g}" if name in row else "" for name in names) for row in self.history]
        text = "".join(line + "\n" for line in lines).encode()
        try:
            storage.publish(self.csv, lambda file: file.write(text), durable=False)
        except StorageError as error:
            self.run.status.say(f"WARNING: {error}")

    def _stop_if_asked(self) -> None:
        """Save and leave when a stop was asked for. A stop during validation abandons it; a resume repeats it."""
        if reason := self.run.stop():
            if not self.stop:
                self._save()
            raise Stopped(reason)

    def _report(self) -> None:
        if self.run.status.due():
            losses = {name: float(value) for name, value in (self.tloss or {}).items()}
            elapsed = time.time() - self.train_time_start
            self.run.status.update(
                state="training",
                epoch=self.epoch + 1,
                epochs=self.epochs,
                batch=self.batch,
                batches=len(self.train_loader),
                losses=losses,
                elapsed_s=elapsed,
                best_map=self.best_map,
            )

    def _report_epoch(self) -> None:
        current, word = self._current_map(), "fitness" if self.args.task == "classify" else "mAP50-95"
        losses = "  ".join(f"{name} {float(value):.4f}" for name, value in self.tloss.items())
        found = f"  {word} {current:.4f}  best {self.best_map:.4f}" if current is not None else ""
        print(f"epoch {self.epoch + 1}/{self.epochs}  {losses}{found}  {self.epoch_time:.1f} s", flush=True)
        self.run.status.update(
            now=True, state="training", map=current, best_map=self.best_map, completed=self.epoch + 1
        )
