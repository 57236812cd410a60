"""The training loop: Ultralytics' arithmetic in Ultralytics' order, with a position that can be saved and restored.

It stands in place of `BaseTrainer._do_train`, step by step the same, so that with the same data the weights are the
same to the bit. On purpose it differs in this:
- The data: see `kit.yolo.samples`. Stock training replays the data of epoch 1 after every resume.
- Every batch seeds the generators of the training process; stock training lets validation and plots shift them.
- `best.pt` is rewritten only for a strictly greater mAP, and neither it nor `latest.pt` is stripped at the end.
- Whether mixed precision works is decided on this machine and kept; stock training downloads a model to decide.
"""

from __future__ import annotations

import time
import warnings
from contextlib import suppress
from typing import Any

from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import unwrap_model

from kit.config import differences
from kit.errors import DiedError
from kit.run.receipt import AHEAD_S
from kit.run.run import Run
from kit.store.disk_errors import refused
from kit.store.folder import BEST, LATEST
from kit.yolo.recovery import Recovery
from kit.yolo.settings import from_dict
from kit.yolo.soundness import fitting
from kit.yolo.state import TrainerState
from kit.yolo.step import Step
from kit.yolo.upstream import OwnLoop


class Resumable(Recovery, Step, OwnLoop):
    """Mixin over one of Ultralytics' trainers; it resumes from wherever `run.resumed` stands."""

    def __init__(self, run: Run, overrides: dict[str, Any], callbacks: dict[str, Any] | None = None) -> None:
        self.run, self.epoch, self.history, self._failures = run, 0, [], set()
        self.loss_items = None
        super().__init__(overrides=overrides, _callbacks=callbacks)
        if "workers" in overrides:
            self.args.workers = overrides["workers"]  # Ultralytics takes it to 0 on a CPU
        self.args.resume = False
        with suppress(OSError):  # it is not empty: somebody's own
            self.wdir.rmdir()  # the folder 'weights', which Ultralytics has made
        self.wdir = run.writer.folder
        self.last, self.best = self.wdir / LATEST, self.wdir / BEST
        for event in ("on_val_batch_start", "on_val_end"):
            self.add_callback(event, lambda _: self.poll_stop())

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Ultralytics' own resume is not used; with `args.resume` set it leaves results.csv where it is."""
        self.resume = self.args.resume = self.run.resumed is not None

    def run_loop(self) -> None:
        """Set up, restore, train and evaluate."""
        self.set_up()
        self.state = TrainerState(self)
        self._check_room()
        self._begin()
        try:
            self.run_callbacks("on_train_start")
            while not self.stop and self.epoch < self.epochs:
                if self._train_epoch():
                    self._end_epoch()
            self.stop, self.epoch = True, self.epoch - 1  # the last epoch, for callbacks and plots
            self.run.status.update(now=True, state="evaluating")
            self.on_main(self.final_eval)
            if self.args.plots:
                self.plot_metrics()
            self.run_callbacks("on_train_end")
        finally:
            self.run.close()
            for loader in (self.train_loader, self.test_loader):
                loader.close()

    def _begin(self) -> None:
        """Begin where the checkpoint stands, or at the start."""
        self.optimizer.zero_grad()
        elapsed, resumed = 0.0, self.run.resumed
        if resumed is not None:
            with fitting(self.run.source):
                changed = differences(from_dict(resumed["config"]), self.run.config)
                self.state.load_state_dict(resumed, changed=bool(changed))
                self._restore_position(resumed)
                self.run.begin_session(resumed["progress"], self.epoch + self.batch / len(self.train_loader))
                elapsed = resumed["progress"]["elapsed_s"]
                if self.epoch and self.fitness is not None:
                    self.stop = self.epoch - self.stopper.best_epoch >= self.stopper.patience
            self.run.install()
            self.run.writer.position = {"epoch": resumed["epoch"], **resumed["progress"]}
            self.run.receipt.begin(resumed["progress"]["global_step"])
            self._write_results()
            self._compare(resumed)
        self.epoch_time_start = time.monotonic()
        self.train_time_start = self.epoch_time_start - elapsed
        if self.args.close_mosaic:
            self.plot_idx += [(self.epochs - self.args.close_mosaic) * len(self.train_loader) + i for i in range(3)]
        self.run.writer.allocate(self.state.move_together())
        self.seek()
        self._announce()
        if self.run.branched:
            self._save(self.epoch, self.batch)  # a kill does not undo the decision
        self.run.resumed, self.run.install = None, lambda: None
        self.run.writer.start()

    def optimizer_step(self) -> None:
        """Step as Ultralytics does; only after the first one it is known how much the optimizer keeps."""
        first = not self.optimizer.state
        super().optimizer_step()
        if first:
            self.run.writer.allocate(self.state.move_together())

    def _restore_position(self, resumed: dict[str, Any]) -> None:
        """Convert the checkpoint's position into batches of today, which may hold more or fewer samples.

        Then a few samples of the epoch are seen twice; gradients in flight stay so for as many batches as they had
        left.
        """
        progress, batches = resumed["progress"], len(self.train_loader)
        in_flight = progress["batch"] + progress["batches"] * resumed["epoch"] - self.last_opt_step
        self.epoch = resumed["epoch"]
        self.batch = min(progress["batch"] * resumed["loop"]["decided"]["batch"] // self.batch_size, batches)
        self.last_opt_step = self.batch + batches * self.epoch - in_flight

    def _train_epoch(self) -> bool:
        """Train from the current batch to the end of the epoch; False when the epoch has to be started again."""
        self.run_callbacks("on_train_epoch_start")
        if self.batch == 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the scheduler steps before the optimizer's first step
                self.scheduler.step()
            self.tloss = None
        self.train_mode()
        batches = len(self.train_loader)
        for i, batch in zip(range(self.batch, batches), self.train_loader, strict=False):
            self.run_callbacks("on_train_batch_start")
            try:
                batch = self.run_batch(i, batch)
            except RuntimeError as error:
                self._halve_batch(error)
                return False
            self.step_if_due(i)
            self.batch, self.global_step, self.progressed = i + 1, self.global_step + 1, True
            if self.args.plots and i + batches * self.epoch in self.plot_idx:
                self.plot_training_samples(batch, i + batches * self.epoch)
            self.run_callbacks("on_train_batch_end")
            self._report()
            self.poll_stop()
            if self.run.writer.due(pause=i + 1 == batches):
                self._save(self.epoch, i + 1)
            if self.stop:
                break
        self.oom_retries = 0
        return True

    def look_ahead(self) -> None:
        """After the save of a stop, train a few batches more, for the next session to compare itself with."""
        if self.stop or self.batch == len(self.train_loader):
            return
        run, step = self.run, self.global_step
        wanted = min(run.config.kit.receipt * self.accumulate, len(self.train_loader) - self.batch)
        last = self.batch + run.ranks.broadcast(lambda: int(min(wanted, AHEAD_S / run.limit.step_s)))
        self._ahead = True
        with suppress(RuntimeError, DiedError):  # memory is full, a worker is gone, no batch comes: there is no receipt
            for i, batch in zip(range(self.batch, last), self.train_loader, strict=False):
                self.run_batch(i, batch)
                self.step_if_due(i)
                step += 1
                run.status.update(receipt=run.receipt.note(step, self.tloss or {}, self.global_step))

    def _end_epoch(self) -> None:
        """Validate, log and save in the main process; the others follow where it goes on from."""
        ranks = self.run.ranks
        self.on_main(self._finish_epoch)
        self.stop, best = ranks.broadcast(lambda: (self.stop, self.rolled_back))
        if not ranks.is_main:
            self._update_criterion()
            self.epoch, self.batch = self.epoch + 1, 0
            if best is not None:
                self._roll_back(best)
        self.rolled_back = None

    def _finish_epoch(self) -> None:
        self.lr = {f"lr/pg{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
        self.run_callbacks("on_train_epoch_end")
        self.ema.update_attr(self.model, include=["yaml", "nc", "args", "names", "stride", "class_weights"])
        self._mend_average()
        final = self.epoch + 1 >= self.epochs
        if self.args.val or final or self.stopper.possible_stop or self.stop:
            self.free_memory(None if self.device.type == "mps" else 0.5)
            self.run.status.update(now=True, state="validating")
            self.metrics, self.fitness = self._validated(self.validate)
            self.progressed = True
        self._update_criterion()  # after validation, so that one that was abandoned can be repeated
        if self._recover_from_nan():
            return
        self.save_metrics({**self.label_loss_items(self.tloss), **self.metrics, **self.lr})
        self.stop |= self.stopper(self.epoch + 1, self.fitness) or final
        self._save_epoch()
        self._report_saves()
        self.run_callbacks("on_model_save")
        now = time.monotonic()
        self.epoch_time, self.epoch_time_start = now - self.epoch_time_start, now
        self._report_epoch()
        self.run_callbacks("on_fit_epoch_end")
        self.free_memory(None if self.device.type == "mps" else 0.5)
        self.epoch, self.batch = self.epoch + 1, 0

    def _update_criterion(self) -> None:
        criterion: Any = getattr(unwrap_model(self.model), "criterion", None)
        if hasattr(criterion, "update"):
            criterion.update()

    def final_eval(self) -> None:
        """Validate the best model once more, with plots; unlike stock training, no file is changed.

        Raises:
            StorageError: Its file or an image could not be read.
        """
        if self._read_best() is None:
            self.run.status.say(
                "There is no good best.pt, and no final evaluation: the results are those of the epochs"
            )
            return
        LOGGER.info(f"\nValidating {self.best}...")
        self.validator.args.plots, self.validator.args.compile = self.args.plots, False
        try:
            self.metrics = self._validated(lambda: self.validator(model=self.best))
        except OSError as error:
            what = f"'{error.filename or self.best}' could not be read"
            raise refused(f"The final evaluation is left to the next start: {what}", error) from error
        self.metrics.pop("fitness", None)
        self.epoch += 1  # loggers put these metrics one epoch further
        self.run_callbacks("on_fit_epoch_end")
        self.epoch -= 1
