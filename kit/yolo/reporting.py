"""Saving and telling: checkpoints, results.csv, status.json and the lines that the run prints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from ultralytics.cfg import TASK2METRIC

from kit.data import check
from kit.errors import KitError, Stopped, StorageError
from kit.kaggle import session
from kit.run import discovery
from kit.run.discovery import ABANDONED
from kit.run.receipt import AHEAD_S
from kit.run.run import Run
from kit.run.status import tell
from kit.store import checkpoint, disk
from kit.store.checkpoint import LAST, LATEST, SLIM, plain
from kit.yolo import state
from kit.yolo.capture import Snapshot, as_slim, as_ultralytics
from kit.yolo.setup import Setup

WAIT_S, POLL_S = 60.0, 1.0  # for room, where the last save of a run or of a session finds none
SILENCE_S = 60.0  # without a batch, until that is said


class Saving(Setup):
    """Mixin over the loop: where it stands, put on disk and into words."""

    run: Run
    best_map: float | None
    history: list[dict[str, float]]
    advanced: bool
    global_step: int
    loss: Any
    snapshot: Snapshot
    _warned = _thinned = _silent = _ahead = False
    _unwritten = ""
    _told: dict[str, Any] | None = None
    _failures: set[str]

    def _make_room(self) -> None:
        """Say at the start, and not in hour nine, that the disk has no room for the checkpoints.

        Raises:
            StorageError: It has not.
        """
        weights = sum(value.nbytes for value in self.ema.ema.state_dict().values())
        files = 3 if self.run.resumed is None else 1  # best, latest and the one that becomes latest
        disk.make_room(self.run.folder, files * 4 * weights)  # raw, average, and two moments of the optimizer

    def _compare(self, resumed: dict[str, Any]) -> None:
        """Say what is no longer as it was when the checkpoint was written."""
        old, new = resumed["versions"], state.versions()
        if self.device.type != "cpu":
            new.pop("threads")  # which no bit of a GPU's depends on
        changed = [f"{name} {old.get(name)} -> {new[name]}" for name in new if old.get(name) != new[name]]
        changed += self._changed_data(resumed["architecture"])
        if (optimizer := resumed["loop"]["decided"]["optimizer"]) != self.args.optimizer:
            changed.append(f"the optimizer, which starts with no momentum ({optimizer} -> {self.args.optimizer})")
        if changed:
            self.run.not_exact(f"Not exact from here on, the surroundings changed: {'; '.join(changed)}")
        if (epochs := resumed["progress"]["epochs"]) != self.epochs:
            self.run.status.say(
                f"The run has {self.epochs} epochs now and had {epochs}: learning rate, warm-up and close_mosaic are "
                f"from here on those of a run of {self.epochs}"
            )

    def _changed_data(self, before: dict[str, Any]) -> list[str]:
        """Name what of the data set is not as it was; an earlier version of the kit kept the list of images alone."""
        if known := before.get("data", {}).get("fingerprint"):
            return check.changed(known, self.run.data.get("fingerprint", {}))
        same = before.get("data_hash", self.data_hash) == self.data_hash
        return [] if same else ["the list of training images"]

    def _announce(self) -> None:
        say, batches = self.run.status.say, len(self.train_loader)
        if self.run.resumed is not None:
            say(f"Resumed from epoch {self.epoch}")
            self.run.status.update(sessions=self.run.sessions)
            if self.best_map is not None:
                say(f"Best mAP so far: {self.best_map:.4f}")
                self._see_to_best()
        if self.stop or self.epoch >= self.epochs:
            say(f"Training is complete after {self.epoch} epochs: only the final evaluation is left")
            return
        place = f"batch {self.batch + 1}/{batches}" if self.batch < batches else "validation"
        say(f"Starting training from epoch {self.epoch + 1}/{self.epochs} ({place})")

    def _see_to_best(self) -> None:
        """Make a `best.pt` that has gone anew, where the model of that mAP is the one that training stands at."""
        if self.best.exists():
            return
        if self.batch == 0 and self._current_map() == self.best_map:
            self._save(self.epoch, 0, best=True)
            self.run.status.say("best.pt had gone: it was made anew from the checkpoint")
        else:
            self.run.status.say("The best model so far is gone: the next validation writes a new best.pt.")

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

    def _save_epoch(self) -> None:
        """Save with the epoch completed; training goes on without where the disk refuses, but does not end so.

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
            self._write_model(self.run.folder / LAST, self.epoch + 1)
        for kept in self.wdir.glob(f"{LATEST}.{ABANDONED}") if self.run.branch else ():
            line = discovery.look(kept, verify=False).summary
            if line and line.global_step < self.global_step:
                kept.unlink(missing_ok=True)

    def _save_surely(self, epoch: int, batch: int, *, best: bool = False) -> None:
        """Save where nothing comes after: with no room into scratch, and then wait for room as long as that may help.

        On Kaggle scratch goes with the session, so where somebody may come and make room that is until its limit.

        Raises:
            StorageError: There was no room in the end; the message says where the checkpoint is, if it is anywhere.
        """
        try:
            self._save(epoch, batch, best=best, wait=True)
        except StorageError as error:
            if not error.full:
                raise
            where = self._rescue(epoch, batch)
            stop, wait_s = self.run.stop(), math.inf if session.run_type() == "interactive" else WAIT_S
            self.run.status.say(f"WARNING: {error} {where} Waiting for room; a stop gives up.")
            give_up = time.monotonic() + wait_s
            while time.monotonic() < give_up and self.run.stop() == stop and not self._limit_is_near():
                time.sleep(POLL_S)
                with suppress(StorageError):
                    self._save(epoch, batch, best=best, wait=True)
                    self.run.status.say("Saving works again.")
                    return
            raise StorageError(f"{error} {where}", full=True) from error

    def _rescue(self, epoch: int, batch: int) -> str:
        """Write the checkpoint into scratch, and say where it is."""
        path = session.rescue_folder(self.run.folder) / LATEST
        try:
            self.run.writer.rescue(path, *self.snapshot(epoch, batch))
        except StorageError:
            return "Nor is there room in scratch: what was trained since the last checkpoint is lost without it."
        return f"The checkpoint is in '{path}', which goes with the session: make room and run again before."

    def _save(self, epoch: int, batch: int, *, best: bool = False, wait: bool = False) -> None:
        began = time.monotonic()
        extra = self._as_ultralytics() if best else None
        taken = self.snapshot(epoch, batch)
        self.run.writer.save(*taken, homes=self.snapshot.homes, best=extra, wait=wait, began=began)
        if extra is not None:
            self._write_model(self.run.folder / SLIM, epoch, extra)

    def _as_ultralytics(self) -> dict[str, Any]:
        args = {**vars(self.args), "data": self.run.data.get("path") or self.args.data}
        return as_ultralytics(self.ema.ema, args, {**self.metrics, "fitness": self.fitness})

    def _write_model(self, path: Path, epoch: int, entries: dict[str, Any] | None = None) -> None:
        """Write the averaged model alone, as Ultralytics strips it."""
        entries = entries or self._as_ultralytics()
        size = sum(2 * parameter.numel() for parameter in entries["model"].parameters())
        self.run.writer.aside(path, as_slim(entries, epoch, self._current_map()), size)

    def _drawn(self, work: Callable[[], Any], again: Callable[[], Any] = lambda: None) -> Any:
        """Return what drawing or reporting does; where that fails it is said once, and nothing ends.

        Args:
            work: What is done.
            again: What is done in its place.

        Raises:
            KitError: What the kit itself has raised there, a stop for one.
        """
        try:
            return work()
        except KitError:
            raise
        except Exception as error:  # matplotlib, pandas, a logger: each has its own
            text = f"WARNING: A picture or a report failed and is left out: {' '.join(repr(error).split())[:200]}"
            if text not in self._failures:
                self._failures.add(text)
                self.run.status.say(text)
            return again()

    def run_callbacks(self, event: str) -> None:
        """Run the callbacks of an event, loggers and the user's own; one that fails ends nothing."""
        for callback in self.callbacks.get(event, ()):
            self._drawn(partial(callback, self))

    def plot_training_labels(self) -> None:
        """Draw the labels."""
        self._drawn(super().plot_training_labels)

    def plot_training_samples(self, batch: Any, step: int) -> None:
        """Draw a batch."""
        self._drawn(partial(super().plot_training_samples, batch, step))

    def plot_metrics(self) -> None:
        """Draw the results."""
        self._drawn(super().plot_metrics)

    def _validated(self, work: Callable[[], Any]) -> Any:
        """Return what a validation does; where it draws too and fails, it is done once more without."""

        def without() -> Any:
            self.validator.args.plots = False
            return work()

        return self._drawn(work, without) if self.validator.args.plots else work()

    def _tell_saves(self) -> None:
        """Tell what the writer has done since: a checkpoint on the disk, a problem (once), and its end."""
        writer, status = self.run.writer, self.run.status
        problem = writer.problem or self._unwritten
        if problem and not self._warned:
            status.say(f"WARNING: {problem} Training goes on, and saving is tried again.")
        elif self._warned and not problem:
            status.say("Saving works again.")
        self._warned = bool(problem)
        if writer.interval_s > writer.max_lost_s and not self._thinned:
            self._thinned = True
            status.say(
                f"A save costs {writer.save_s:.2f} s: to stay within {writer.max_cost_percent:g} %, "
                f"checkpoints are {writer.interval_s:.0f} s apart, not {writer.max_lost_s:g}."
            )
        if writer.position is not None and writer.position is not self._told:
            self._told = writer.position
            at = {"epoch": self._told["epoch"], "batch": self._told["batch"], "time": self._told["saved"]}
            status.update(checkpoint={"path": str(self.last), **at}, **writer.report())

    def save_metrics(self, metrics: dict[str, float]) -> None:
        """Add a row to the results; the file is made anew from all rows, so that no kill doubles or tears one."""
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
            self._unwritten = ""
        except StorageError as error:
            self._unwritten = str(error)  # all rows are written again after the next epoch

    def _stop_if_asked(self) -> None:
        """Save and leave when a stop was asked for, or before the session's limit.

        A stop during validation abandons it; a resume repeats it. The limit leaves every session its first step, or the
        validation that it began with: else a run in sessions that are too short would never end.
        """
        if reason := self._reason():
            try:
                if not self.stop:
                    self._save_surely(self.epoch, self.batch)
            except StorageError as error:
                if not (self.last.exists() and self.run.writer.position):
                    raise
                at = checkpoint.position(self.run.writer.position)
                self.run.status.say(f"WARNING: {error} In the run folder is {at}.")
            self._tell_saves()
            self.run.status.update(**self._place())
            self._look_ahead()
            raise Stopped(reason)

    def _wait_for_batch(self, seconds: float) -> None:
        """Hear a stop while no batch comes, and say once that none does."""
        if self._ahead:
            if seconds > AHEAD_S:
                raise RuntimeError("no batch has come")
            return
        if seconds > SILENCE_S and not self._silent:
            self._silent = True
            self.run.status.say(
                f"WARNING: No batch has come from the loader for {seconds:.0f} s: does a disk not answer? Training "
                "waits, and a stop is heard."
            )
        self._stop_if_asked()

    def _reason(self) -> str:
        """Return why to stop now, or an empty text."""
        near = self._limit_is_near()  # asked each time: it measures the steps
        return self.run.stop() or ("the session's limit is near" if near and self.advanced else "")

    def _limit_is_near(self) -> bool:
        return self.run.limit.should_stop(self.run.writer.latency_s)

    def _report(self) -> None:
        self._tell_saves()
        self._compare_losses()
        if self.run.status.due():
            disk.check_place(self.run.folder)
            saved = (self.run.writer.position or {}).get("global_step", 0)
            receipt = self.run.receipt.note(self.global_step, self.tloss, saved) if self.run.config.kit.receipt else {}
            self.run.status.update(state="training", receipt=receipt, **self._place())

    def _compare_losses(self) -> None:
        """Say whether the batches that are trained again give the losses that they gave in the session before."""
        receipt = self.run.receipt
        differs = receipt.compare(self.global_step, self.tloss)
        if differs == "":
            count = self.global_step - receipt.began
            again = "batch" if count == 1 else f"{count} batches"
            self.run.status.say(f"Exact: the {again} after the checkpoint gave the same losses as before, to the bit")
        elif differs:
            known = self.run.known
            how = "Not exact, as was said" if known else "WARNING: Not exact, though nothing is known to have changed"
            self.run.status.say(f"{how}: {differs}, after batch {self.batch} of epoch {self.epoch + 1}")

    def _place(self) -> dict[str, Any]:
        """Return for `status.json` where training stands."""
        return {
            "epoch": self.epoch + 1,
            "epochs": self.epochs,
            "batch": self.batch,
            "batches": len(self.train_loader),
            "losses": {name: float(value) for name, value in (self.tloss or {}).items()},
            "elapsed_s": time.monotonic() - self.train_time_start,
            "best_map": self.best_map,
            "stop_s": self.run.limit.slowest_s + self.run.writer.latency_s,
            **self.run.limit.report(),
        }

    def _report_epoch(self) -> None:
        current, word = self._current_map(), "fitness" if self.args.task == "classify" else "mAP50-95"
        losses = "  ".join(f"{name} {float(value):.4f}" for name, value in self.tloss.items())
        found = "" if current is None else f"  {word} {current:.4f}"
        found += "" if self.best_map is None else f"  best {self.best_map:.4f}"  # no room for a first best.pt
        tell(f"epoch {self.epoch + 1}/{self.epochs}  {losses}{found}  {self.epoch_time:.1f} s")
        self.run.status.update(now=True, state="training", map=current, completed=self.epoch + 1, **self._place())
