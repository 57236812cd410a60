"""Reporting: what `status.json` and the printed lines say, a stop in time, and drawing that may fail."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

from kit.data import report
from kit.errors import KitError, Stopped, StorageError
from kit.run.receipt import AHEAD_S
from kit.run.status import tell
from kit.store import checkpoint
from kit.store.lock import check_place
from kit.yolo.saving import Saving
from kit.yolo.state import versions

SILENCE_S = 60.0  # without a batch, until that is reported


class Reporting(Saving):
    """Mixin over the loop: what it reports, and when it stops."""

    _warned = _thinned = _silent = False  # what was reported once
    _ahead = False  # batches are trained only for the receipt
    _reported: dict[str, Any] | None = None  # the position of the last checkpoint that was reported
    _failures: set[str]

    def _compare(self, resumed: dict[str, Any]) -> None:
        """Report what has changed since the checkpoint was written."""
        old, new = resumed["versions"], versions(self.device)
        if self.device.type != "cpu":
            new.pop("threads")  # irrelevant on a GPU
        changed = [f"{name} {old.get(name)} -> {new[name]}" for name in new if old.get(name) != new[name]]
        changed += self._changed_data(resumed["architecture"])
        if (optimizer := resumed["loop"]["decided"]["optimizer"]) != self.args.optimizer:
            changed.append(f"the optimizer, which starts with no momentum ({optimizer} -> {self.args.optimizer})")
        if changed:
            self.run.not_exact(f"No longer bit-exact, the environment changed: {'; '.join(changed)}")
        if (epochs := resumed["progress"]["epochs"]) != self.epochs:
            self.run.status.say(
                f"The run has {self.epochs} epochs now and had {epochs}: learning rate, warm-up and close_mosaic are "
                f"from here on those of a run of {self.epochs}"
            )

    def _changed_data(self, before: dict[str, Any]) -> list[str]:
        """Name what changed in the data set; an earlier version of the kit kept the list of images alone."""
        if known := before.get("data", {}).get("fingerprint"):
            return report.changed(known, self.run.data.get("fingerprint", {}))
        same = before.get("data_hash", self.data_hash) == self.data_hash
        return [] if same else ["the list of training images"]

    def _announce(self) -> None:
        say, batches = self.run.status.say, len(self.train_loader)
        if self.run.resumed is not None:
            say(f"Resumed from epoch {self.epoch}")
            self.run.status.update(sessions=self.run.sessions)
            if self.best_map is not None:
                say(f"Best mAP so far: {self.best_map:.4f}")
                self._restore_best()
        if self.stop or self.epoch >= self.epochs:
            say(f"Training is complete after {self.epoch} epochs: only the final evaluation is left")
            return
        place = f"batch {self.batch + 1}/{batches}" if self.batch < batches else "validation"
        say(f"Starting training from epoch {self.epoch + 1}/{self.epochs} ({place})")

    def _drawn(self, work: Callable[[], Any], again: Callable[[], Any] = lambda: None) -> Any:
        """Return the result of work that draws or reports; a failure is reported once and never ends training.

        Args:
            work: What is done.
            again: What is done in its place.

        Raises:
            KitError: The kit itself raised it there, a stop for one.
        """
        try:
            return work()
        except KitError:
            raise
        except Exception as error:  # matplotlib, pandas, a logger: each has its own
            text = f"A picture or a report failed and is left out: {' '.join(repr(error).split())[:200]}"
            if text not in self._failures:
                self._failures.add(text)
                self.run.status.warn(text)
            return again()

    def run_callbacks(self, event: str) -> None:
        """Run the callbacks of an event, loggers' and the user's own; one that fails never ends training."""
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
        """Return a validation's result; one that draws and fails is repeated without drawing."""

        def without() -> Any:
            self.validator.args.plots = False
            return work()

        return self._drawn(work, without) if self.validator.args.plots else work()

    def _report_saves(self) -> None:
        """Report what the writer has done since: a checkpoint on the disk, a problem (once), and its end."""
        writer, status = self.run.writer, self.run.status
        problem = writer.problem or self._unwritten
        if problem and not self._warned:
            status.warn(f"{problem.message} Training goes on, and saving is tried again.", "storage", problem.hint)
        elif self._warned and not problem:
            status.resolve("storage", "Saving works again.")
        self._warned = bool(problem)
        if writer.interval_s > writer.max_lost_s and not self._thinned:
            self._thinned = True
            status.say(
                f"A save costs {writer.save_s:.2f} s: to stay within {writer.max_cost_percent:g} %, "
                f"checkpoints are {writer.interval_s:.0f} s apart, not {writer.max_lost_s:g}."
            )
        if writer.position is not None and writer.position is not self._reported:
            self._reported = writer.position
            at = {"epoch": self._reported["epoch"], "batch": self._reported["batch"], "time": self._reported["saved"]}
            status.update(checkpoint={"path": str(self.last), **at}, **writer.report())

    def poll_stop(self) -> None:
        """Save and leave when a stop was asked for, or before the session's limit.

        A stop during validation abandons it; a resume repeats it. The limit leaves every session its first step, or the
        validation that it began with: else a run in sessions that are too short would never end.
        """
        if reason := self._stop_reason():
            try:
                if not self.stop:
                    self._save_surely(self.epoch, self.batch)
            except StorageError as error:
                if not (self.last.exists() and self.run.writer.position):
                    raise
                at = checkpoint.position(self.run.writer.position)
                self.run.status.warn(f"{error.message} In the run folder is {at}.", "storage", error.hint)
            self._report_saves()
            self.run.status.update(**self._position())
            self.look_ahead()
            raise Stopped(reason)

    def while_waiting(self, seconds: float) -> None:
        """Poll for a stop while no batch comes, and report once that none does."""
        if self._ahead:
            if seconds > AHEAD_S:
                raise RuntimeError("no batch has come")
            return
        if seconds > SILENCE_S and not self._silent:
            self._silent = True
            self.run.status.warn(
                f"No batch has come from the loader for {seconds:.0f} s: does a disk not answer? Training "
                "waits, and a stop is heard."
            )
        self.poll_stop()

    def _stop_reason(self) -> str:
        """Return why to stop now, or an empty text."""
        near = self.limit_is_near()  # asked each time: it measures the steps
        return self.run.stop() or ("the session's limit is near" if near and self.progressed else "")

    def _report(self) -> None:
        self._report_saves()
        self._compare_losses()
        if self.run.status.due():
            check_place(self.run.folder)
            saved = (self.run.writer.position or {}).get("global_step", 0)
            receipt = (
                self.run.receipt.note(self.global_step, self.tloss or {}, saved) if self.run.config.kit.receipt else {}
            )
            self.run.status.update(state="training", receipt=receipt, **self._position())

    def _compare_losses(self) -> None:
        """Report whether batches that are trained again give the losses of the session before."""
        receipt = self.run.receipt
        differs = receipt.compare(self.global_step, self.tloss or {})
        if differs == "":
            count = self.global_step - receipt.began
            again = "batch" if count == 1 else f"{count} batches"
            self.run.status.say(f"Exact: the {again} after the checkpoint gave the same losses as before, to the bit")
        elif differs:
            known = self.run.known
            how = "Not exact, as was said" if known else "Not exact, though nothing is known to have changed"
            tell = self.run.status.say if known else self.run.status.warn
            tell(f"{how}: {differs}, after batch {self.batch} of epoch {self.epoch + 1}")

    def _position(self) -> dict[str, Any]:
        """Return the position and the progress for `status.json`."""
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
        assert self.tloss is not None
        current, word = self.current_map(), "fitness" if self.args.task == "classify" else "mAP50-95"
        losses = "  ".join(f"{name} {float(value):.4f}" for name, value in self.tloss.items())
        found = "" if current is None else f"  {word} {current:.4f}"
        found += "" if self.best_map is None else f"  best {self.best_map:.4f}"  # no room for a first best.pt
        tell(f"epoch {self.epoch + 1}/{self.epochs}  {losses}{found}  {self.epoch_time:.1f} s")
        self.run.status.update(now=True, state="training", map=current, completed=self.epoch + 1, **self._position())
