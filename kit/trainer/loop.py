"""The training loop: Ultralytics' arithmetic in Ultralytics' order, with a position that can be saved and taken up.

It stands in place of `BaseTrainer._do_train`, step by step the same, so that with the same data the weights are the
same to the bit. On purpose it differs in this:
- The data: see `kit.trainer.samples`. Stock training replays the data of epoch 1 after every resume.
- Every batch seeds the generators of the training process; stock training lets validation and plots shift them.
- `best.pt` is rewritten only for a strictly greater mAP, and neither it nor `latest.pt` is stripped at the end.
- Whether mixed precision works is decided on this machine and kept; stock training downloads a model to decide.
"""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from ultralytics.cfg import TASK2METRIC
from ultralytics.utils import LOGGER
from ultralytics.utils.torch_utils import autocast, unwrap_model

from kit import checkpoint, randomness, storage
from kit.checkpoint import plain
from kit.config import Config
from kit.errors import KitError, Stopped, StorageError
from kit.status import Status
from kit.trainer import state
from kit.trainer.setup import Setup
from kit.writer import Writer

OUT_OF_MEMORY = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_INTERNAL_ERROR", "unable to find an engine")


@dataclass
class Run:
    """What a trainer needs to know of the run that it is part of.

    Attributes:
        config: The settings.
        folder: The run folder.
        identity: What tells this run from others: `task`, `model`, `names`.
        status: Where news goes.
        stop: Returns why training has to stop now, or an empty text.
        resumed: The checkpoint to go on from, or None; let go once it is taken up, for it holds its file open.
        run_id: Same for every session of the run.
        writer: Where checkpoints go.
    """

    config: Config
    folder: Path
    identity: dict[str, Any]
    status: Status
    stop: Callable[[], str]
    resumed: dict[str, Any] | None

    def __post_init__(self) -> None:
        self.run_id: str = self.resumed["run_id"] if self.resumed else uuid.uuid4().hex[:12]
        kit = self.config.kit
        self.writer = Writer(self.folder / "checkpoints", kit.max_lost_s, kit.max_cost_percent)


class Resumable(Setup):
    """Mixin over one of Ultralytics' trainers; it goes on from wherever `run.resumed` stands."""

    def __init__(self, run: Run, overrides: dict[str, Any], callbacks: dict[str, Any] | None = None) -> None:
        self.run = run
        self.epoch = self.batch = self.global_step = 0
        self.last_opt_step, self._oom_retries = -1, 0
        self.best_map: float | None = None
        self.history: list[dict[str, float]] = []
        self.loss_items: Any = None
        super().__init__(overrides=overrides, _callbacks=callbacks)
        if "workers" in overrides:
            self.args.workers = overrides["workers"]  # Ultralytics takes it to 0 on a CPU
        self.args.resume = False
        if self.wdir.is_dir() and not any(self.wdir.iterdir()):
            self.wdir.rmdir()  # the empty folder 'weights'
        self.wdir = run.writer.folder
        self.last, self.best = self.wdir / checkpoint.LATEST, self.wdir / checkpoint.BEST
        for event in ("on_val_batch_start", "on_val_end"):
            self.add_callback(event, lambda _: self._stop_if_asked())

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Ultralytics' own resume is not used; with `args.resume` set it leaves results.csv where it is."""
        self.resume = self.args.resume = self.run.resumed is not None

    # The loop --------------------------------------------------------------------------------------------------------

    def _do_train(self) -> None:
        self._setup_train()
        self._make_room()
        self._take_up()
        self.run_callbacks("on_train_start")
        while not self.stop and self.epoch < self.epochs:
            if self._train_epoch():
                self._end_epoch()
        self.stop, self.epoch = True, self.epoch - 1  # the last epoch, for callbacks and plots
        self.run.status.update(now=True, state="evaluating")
        self.final_eval()
        if self.args.plots:
            self.plot_metrics()
        self.run_callbacks("on_train_end")
        for loader in (self.train_loader, self.test_loader):
            loader.close()

    def _make_room(self) -> None:
        """Say at the start, and not in hour nine, that the disk has no room for the checkpoints.

        Raises:
            StorageError: It has not.
        """
        weights = sum(value.nbytes for value in self.ema.ema.state_dict().values())
        files = 3 if self.run.resumed is None else 1  # best, latest and the one that becomes latest
        storage.make_room(self.run.folder, files * 4 * weights)  # raw, average, and two moments of the optimizer

    def _take_up(self) -> None:
        """Stand where the checkpoint stands, or at the beginning."""
        self.optimizer.zero_grad()
        elapsed, resumed = 0.0, self.run.resumed
        if resumed is not None:
            state.restore(self, resumed)
            self.epoch, self.batch = resumed["epoch"], resumed["progress"]["batch"]
            elapsed = resumed["progress"]["elapsed_s"]
            self._write_results()
            self._compare(resumed)
            if self.epoch and self.fitness is not None:
                self.stop = self.epoch - self.stopper.best_epoch >= self.stopper.patience
        self.epoch_time_start = time.time()
        self.train_time_start = self.epoch_time_start - elapsed
        if self.args.close_mosaic:
            self.plot_idx += [(self.epochs - self.args.close_mosaic) * len(self.train_loader) + i for i in range(3)]
        self._seek()
        self._announce()
        self.run.resumed = None

    def _compare(self, resumed: dict[str, Any]) -> None:
        """Say what is no longer as it was when the checkpoint was written."""
        old, new = resumed["versions"], state.versions()
        changed = [f"{name} {old.get(name)} -> {new[name]}" for name in new if old.get(name) != new[name]]
        if resumed["architecture"]["data_hash"] != self.data_hash:
            changed.append("the list of training images")
        if changed:
            self.run.status.say(f"Not exact from here on, the surroundings changed: {'; '.join(changed)}")

    def _seek(self) -> None:
        self.train_loader.reset()
        self.train_loader.batch_sampler.start = (self.epoch, self.batch)

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

    def _train_epoch(self) -> bool:
        """Train from the current batch to the end of the epoch; False when the epoch has to be started again."""
        self.run_callbacks("on_train_epoch_start")
        if self.batch == 0:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the scheduler steps before the optimizer's first step
                self.scheduler.step()
            self.tloss = None
        self._model_train()
        batches = len(self.train_loader)
        for i, batch in zip(range(self.batch, batches), self.train_loader, strict=False):
            self.run_callbacks("on_train_batch_start")
            step = i + batches * self.epoch
            self._warm_up(step, batches)
            randomness.seed_all(randomness.mix("batch", self.args.seed, self.epoch, i), cuda=True)
            try:
                batch = self._forward_backward(i, batch)
            except RuntimeError as error:
                self._halve_batch(error)
                return False
            if step - self.last_opt_step >= self.accumulate:
                self.optimizer_step()
                self.last_opt_step = step
            self.batch, self.global_step = i + 1, self.global_step + 1
            if self.args.plots and step in self.plot_idx:
                self.plot_training_samples(batch, step)
            self.run_callbacks("on_train_batch_end")
            self._report()
            self._stop_if_asked()
            if self.run.writer.due():
                self._save(required=False)
            if self.stop:
                break
        self._oom_retries = 0
        return True

    def _warm_up(self, step: int, batches: int) -> None:
        """Bring learning rates, momentum and accumulation to their targets over the first batches."""
        length = self._get_warmup_iterations(batches)
        if not length or step > length:
            return
        nominal = max(round(self.args.nbs / self.batch_size), 1)
        nominal = min(nominal, batches * self.epochs)
        self.accumulate = max(1, int(numpy.interp(step, [0, length], [1, nominal]).round()))
        for group in self.optimizer.param_groups:
            first = self.args.warmup_bias_lr if group.get("param_group") == "bias" else 0.0
            target = group["initial_lr"] * self.lf(self.epoch)
            group["lr"] = float(numpy.interp(step, [0, length], [first, target]))
            if "momentum" in group:
                ends = [self.args.warmup_momentum, self.args.momentum]
                group["momentum"] = float(numpy.interp(step, [0, length], ends))

    def _forward_backward(self, i: int, batch: dict[str, Any]) -> dict[str, Any]:
        with autocast(torch.bfloat16 if self.args.amp == "bf16" else self.amp, device=self.device.type):
            batch = self.preprocess_batch(batch)
            loss, self.loss_items = self.model(batch)
            self.loss = loss.sum()
            if not self.loss_names:
                self.loss_names = tuple(self.loss_items)
                self.metrics.update(dict.fromkeys(self.label_loss_items(prefix="val"), 0.0))
            self.tloss = (
                self.loss_items
                if self.tloss is None
                else {name: (self.tloss[name] * i + value) / (i + 1) for name, value in self.loss_items.items()}
            )
        self.scaler.scale(self.loss).backward()
        self.loss = self.loss.detach()
        return batch

    def _halve_batch(self, error: RuntimeError) -> None:
        """Start the first epoch again with half the batch when the GPU's memory is full, as Ultralytics does."""
        full = "out of memory" in str(error).lower() or any(text in str(error) for text in OUT_OF_MEMORY)
        if not full or self.epoch > 0 or self._oom_retries >= 3:
            raise error
        self._oom_retries += 1
        self.args.batch = self.batch_size = max(self.batch_size // 2, 1)
        self.run.status.say(f"Out of memory: training goes on with batch={self.batch_size}")
        self.loss = self.loss_items = self.tloss = None
        self.train_loader.close()
        self._clear_memory()
        self._build_train_pipeline()
        self.validator.dataloader = self.test_loader
        self.scheduler.last_epoch, self.last_opt_step, self.batch = -1, -1, 0
        self.optimizer.zero_grad()
        self._seek()

    def _end_epoch(self) -> None:
        """Validate, log and save: what follows the last batch of an epoch."""
        self.lr = {f"lr/pg{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
        self.run_callbacks("on_train_epoch_end")
        self.ema.update_attr(self.model, include=["yaml", "nc", "args", "names", "stride", "class_weights"])
        final = self.epoch + 1 >= self.epochs
        if self.args.val or final or self.stopper.possible_stop or self.stop:
            self._clear_memory(None if self.device.type == "mps" else 0.5)
            self.run.status.update(now=True, state="validating")
            self.metrics, self.fitness = self.validate()
        criterion: Any = getattr(unwrap_model(self.model), "criterion", None)
        if hasattr(criterion, "update"):  # after validation, so that one that was abandoned can be repeated
            criterion.update()
        if self._handle_nan_recovery(self.epoch):
            return
        self.nan_recovery_attempts = 0
        self.save_metrics({**self.label_loss_items(self.tloss), **self.metrics, **self.lr})
        self.stop |= self.stopper(self.epoch + 1, self.fitness) or final
        self._save(completed=True, best=self._improved())
        self.run_callbacks("on_model_save")
        now = time.time()
        self.epoch_time, self.epoch_time_start = now - self.epoch_time_start, now
        self._report_epoch()
        self.run_callbacks("on_fit_epoch_end")
        self._clear_memory(None if self.device.type == "mps" else 0.5)
        self.epoch, self.batch = self.epoch + 1, 0

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """Go back to the last finite checkpoint when the loss or the fitness is not a number, three times at most."""
        values = [value for value in (self.loss, self.fitness) if value is not None]
        if all(numpy.isfinite(float(value)) for value in values) or epoch == 0:
            return False
        if self.nan_recovery_attempts >= 3:
            raise KitError(
                "The loss is not a number, and going back did not help three times: try a lower lr0, or amp=False."
            )
        attempts = self.nan_recovery_attempts + 1
        saved = checkpoint.read(self.last)
        state.restore(self, saved)
        self.nan_recovery_attempts = attempts
        self.epoch, self.batch = saved["epoch"], saved["progress"]["batch"]
        self._seek()
        self.run.status.say(f"The loss is not a number: going back to epoch {self.epoch} (attempt {attempts}/3)")
        return True

    def final_eval(self) -> None:
        """Validate the best model once more, with plots; unlike stock training, no file is changed."""
        if not self.best.exists():
            return
        LOGGER.info(f"\nValidating {self.best}...")
        self.validator.args.plots, self.validator.args.compile = self.args.plots, False
        self.metrics = self.validator(model=self.best)
        self.metrics.pop("fitness", None)
        self.epoch += 1  # loggers put these metrics one epoch further
        self.run_callbacks("on_fit_epoch_end")
        self.epoch -= 1

    # Saving and telling ----------------------------------------------------------------------------------------------

    def _improved(self) -> bool:
        """Take note of a strictly greater mAP50-95, or of any where `best.pt` has gone."""
        value = self._current_map()
        if value is None or not (self.best_map is None or value > self.best_map or not self.best.exists()):
            return False
        self.best_map = value
        return True

    def _current_map(self) -> float | None:
        """Return the last validation's mAP50-95; for tasks without one, Ultralytics' fitness."""
        value = self.fitness if self.args.task == "classify" else (self.metrics or {}).get(TASK2METRIC[self.args.task])
        return None if value is None or self.fitness is None else float(value)

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
