"""The training loop: Ultralytics' arithmetic in Ultralytics' order, with a position that can be saved and taken up.

It stands in place of `BaseTrainer._do_train`, step by step the same, so that with the same data the weights are the
same to the bit. On purpose it differs in this:
- The data: see `kit.trainer.samples`. Stock training replays the data of epoch 1 after every resume.
- Every batch seeds the generators of the training process; stock training lets validation and plots shift them.
- `best.pt` is rewritten only for a strictly greater mAP, and neither it nor `latest.pt` is stripped at the end.
- Whether mixed precision works is decided on this machine and kept; stock training downloads a model to decide.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy
import torch
import ultralytics
from torch.utils.data import RandomSampler
from ultralytics.cfg import DEFAULT_CFG_DICT, TASK2METRIC
from ultralytics.data.utils import get_split_fraction
from ultralytics.nn.tasks import torch_safe_load
from ultralytics.utils import LOGGER, colorstr
from ultralytics.utils.torch_utils import autocast, unwrap_model

from kit import checkpoint, randomness, storage
from kit.checkpoint import plain
from kit.config import Config
from kit.errors import DataError, KitError, ModelError, Stopped, StorageError
from kit.randomness import EpochOrder
from kit.status import Status
from kit.trainer import state
from kit.trainer.samples import ClassifiedSamples, LabelledSamples
from kit.writer import Writer

OUT_OF_MEMORY = ("CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_INTERNAL_ERROR", "unable to find an engine")


@dataclass
class Run:
    """What a trainer needs to know of the run that it is part of.

    Attributes:
        config: The settings.
        folder: The run folder.
        identity: What tells this run from others: `task`, `model`, `names`.
        run_id: Same for every session of the run.
        writer: Where checkpoints go.
        status: Where news goes.
        resumed: The checkpoint to go on from, or None.
        stop: Returns why training has to stop now, or an empty text.
    """

    config: Config
    folder: Path
    identity: dict[str, Any]
    run_id: str
    writer: Writer
    status: Status
    resumed: dict[str, Any] | None
    stop: Any


class Resumable:
    """Mixin over one of Ultralytics' trainers; it goes on from wherever `run.resumed` stands."""

    def __init__(self, run: Run, overrides: dict[str, Any], callbacks: dict[str, Any] | None = None) -> None:
        self.run = run
        self.epoch = self.batch = self.global_step = 0
        self.last_opt_step, self._oom_retries = -1, 0
        self.best_map: float | None = None
        self.history: list[dict[str, float]] = []
        self.loss_items: Any = None
        self.data_hash = ""
        super().__init__(overrides=overrides, _callbacks=callbacks)  # type: ignore[call-arg]
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

    # Set-up ----------------------------------------------------------------------------------------------------------

    def setup_model(self) -> None:
        """Build the model: on a resume from the checkpoint alone, else from a model file or a description."""
        source, weights = self.model, None
        if self.run.resumed is not None:
            source = deepcopy(self.run.resumed["architecture"]["yaml"])
        elif str(source).lower().endswith(".pt"):
            weights = load_model(str(source))
            source = weights.yaml
        if self.run.resumed is None and isinstance(self.args.pretrained, (str, Path)):
            weights = load_model(str(self.args.pretrained))
        elif self.args.pretrained is False:
            weights = None
        try:
            self.model = self.get_model(cfg=source, weights=weights, verbose=True)
        except (OSError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise ModelError(f"The model '{source}' cannot be built: {error}. Check model=...") from error
        super().setup_model()  # type: ignore[misc]  # a model that is built already is left, but for classify's head

    def _setup_train(self) -> None:
        """Set up as Ultralytics does, but for its check of mixed precision, which downloads a model."""
        wanted, self.args.amp = self.args.amp, self.args.amp if self.args.amp == "bf16" else False
        super()._setup_train()  # type: ignore[misc]
        self.args.amp = wanted
        self.amp = self._mixed_precision()
        half = self.amp and wanted != "bf16"
        self.scaler = torch.amp.GradScaler(self.device.type if self.device.type != "cpu" else "cuda", enabled=half)

    def _mixed_precision(self) -> bool:
        """Decide whether fp16 works for this model on this GPU: its outputs must stay finite and close to fp32's."""
        if self.args.amp in {False, "fp32", "bf16"} or self.device.type != "cuda":
            return self.args.amp == "bf16"
        if self.run.resumed is not None and self.run.resumed["versions"]["gpu"]:
            return bool(self.run.resumed["loop"]["amp"])
        model = deepcopy(unwrap_model(self.model)).eval()
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(1, self.data["channels"], 256, 256, generator=generator).to(self.device)
        with torch.no_grad():
            full = model(image)
            with autocast(True, device=self.device.type):
                half = model(image)
        pairs = list(zip(_tensors(full), _tensors(half), strict=True))
        good = all(h.isfinite().all() and torch.allclose(f, h.float(), rtol=0.1, atol=0.5) for f, h in pairs)
        if not good:
            self.run.status.say("Mixed precision gives other results on this GPU: training in fp32.")
        return good

    def auto_batch(self, *args: Any, **kwargs: Any) -> int:
        """Estimate the batch size with the precision that training will have."""
        self.amp = self.args.amp not in {False, "fp32"} and self.device.type == "cuda"
        size: int = super().auto_batch(*args, **kwargs)  # type: ignore[misc]
        return size

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Build a data set as Ultralytics does, of a class whose samples are pure functions of their key."""
        training = mode == "train"
        if self.args.task == "classify":
            prefix = "train" if training else self.args.split
            return ClassifiedSamples(img_path, self.args, augment=training, prefix=prefix, names=self.data["names"])
        fraction = get_split_fraction(self.args.fraction, "train" if training else self.args.split)
        return LabelledSamples(
            img_path=img_path,
            imgsz=self.args.imgsz,
            batch_size=batch,
            augment=training,
            hyp=self.args,
            rect=self.args.rect or not training,
            cache=self.args.cache or None,
            single_cls=self.args.single_cls or False,
            stride=max(int(unwrap_model(self.model).stride.max()), 32),
            pad=0.0 if training else 0.5,
            prefix=colorstr(f"{mode}: "),
            task=self.args.task,
            classes=self.args.classes,
            data=self.data,
            fraction=1.0 if self.data.get("complete") else fraction,
        )

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """Build a loader whose batches are a pure function of (seed, epoch, batch)."""
        try:
            loader = super().get_dataloader(dataset_path, batch_size, rank, mode)  # type: ignore[misc]
        except (FileNotFoundError, ValueError, RuntimeError) as error:
            raise DataError(f"The {mode} images cannot be used: {' '.join(str(error).split())}") from error
        shuffled = isinstance(loader.sampler, RandomSampler)
        if mode == "train":
            files = getattr(loader.dataset, "im_files", None) or [sample[0] for sample in loader.dataset.samples]
            self.data_hash = data_hash(files, dataset_path)
            loader.dataset.seed, loader.dataset.hyp = self.args.seed, self.args
            loader.dataset.closing = self.epochs - self.args.close_mosaic if self.args.close_mosaic else None
        elif not shuffled:
            return loader
        epochs, shuffle = (self.epochs, shuffled) if mode == "train" else (1 << 62, False)
        order = EpochOrder(len(loader.dataset), loader.batch_size, epochs, self.args.seed, shuffle)
        object.__setattr__(loader, "batch_sampler", order)  # as Ultralytics' loader does: torch forbids the plain way
        return loader

    def get_dataset(self) -> Any:
        """Read the data set's description.

        Raises:
            DataError: Ultralytics found it broken.
        """
        try:
            return super().get_dataset()  # type: ignore[misc]
        except RuntimeError as error:
            raise DataError(" ".join(str(error).split())) from error

    # The loop --------------------------------------------------------------------------------------------------------

    def _do_train(self) -> None:
        self._setup_train()
        self._take_up()
        self.run_callbacks("on_train_start")
        while not self.stop and self.epoch < self.epochs:
            if self._train_epoch():
                self._end_epoch()
        self.epoch = min(self.epoch, self.epochs - 1)  # what callbacks and plots take for the last one
        self.run.status.update(now=True, state="evaluating")
        self.final_eval()
        if self.args.plots:
            self.plot_metrics()
        self.run_callbacks("on_train_end")
        for loader in (self.train_loader, self.test_loader):
            loader.close()

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
            return say(f"Training is complete after {self.epoch} epochs: only the final evaluation is left")
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
        criterion = unwrap_model(self.model).criterion
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
            raise KitError("The loss is not a number, and going back three times did not help: lower lr0, or amp=False.")
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
        self.run_callbacks("on_fit_epoch_end")

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
                self.run.writer.save_best({**saved, **self._as_ultralytics()})
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

    def _as_ultralytics(self) -> dict[str, Any]:
        """Return the entries that make `YOLO("best.pt")` predict: the EMA model in fp16, as Ultralytics strips it."""
        model = deepcopy(self.ema.ema).half().to(memory_format=torch.contiguous_format)
        model.criterion, model.args = None, dict(vars(self.args))
        for value in model.state_dict().values():
            if value.is_floating_point():
                torch.nan_to_num_(value)
        for parameter in model.parameters():
            parameter.requires_grad = False
        arguments = {**DEFAULT_CFG_DICT, **vars(self.args)}
        return {
            "model": model,
            "ema": None,
            "train_args": plain({name: arguments[name] for name in DEFAULT_CFG_DICT}),
            "train_metrics": plain({**self.metrics, "fitness": self.fitness}),
            "date": datetime.now().astimezone().isoformat(),
            "version": ultralytics.__version__,
            "license": "AGPL-3.0 (https://ultralytics.com/license)",
            "docs": "https://docs.ultralytics.com",
        }

    def save_metrics(self, metrics: dict[str, float]) -> None:
        """Add a row to the results; the file is made anew from all rows, so that no kill doubles or tears one."""
        elapsed = time.time() - self.train_time_start
        self.history.append(plain({"epoch": self.epoch + 1, "time": elapsed, **metrics}))
        self._write_results()

    def _write_results(self) -> None:
        names = list(dict.fromkeys(name for row in self.history for name in row))
        lines = [",".join(names)] if names else []
        lines += [",".join("%.6g" % row[name] if name in row else "" for name in names) for row in self.history]
        text = "".join(line + "\n" for line in lines).encode()
        try:
            storage.publish(self.csv, lambda file: file.write(text), durable=False)
        except StorageError as error:
            self.run.status.say(f"WARNING: {error}")

    def _stop_if_asked(self) -> None:
        """Save and leave when a stop was asked for. A stop during validation abandons it; a resume repeats it."""
        if reason := self.run.stop():
            if self.epoch < self.epochs and not self.stop:
                self._save()
            raise Stopped(reason)

    def _report(self) -> None:
        if self.run.status.due():
            losses = {name: float(value) for name, value in self.tloss.items()}
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
        self.run.status.say(
            f"epoch {self.epoch + 1}/{self.epochs}  {losses}"
            + (f"  {word} {current:.4f}  best {self.best_map:.4f}" if current is not None else "")
            + f"  {self.epoch_time:.1f} s"
        )
        self.run.status.update(now=True, map=current, best_map=self.best_map, completed=self.epoch + 1)


def load_model(path: str) -> Any:
    """Read a model file through Ultralytics' allow-list of classes; a name it publishes is downloaded.

    Returns:
        The model, an fp32 `nn.Module` with its `yaml` and `task`.

    Raises:
        ModelError: It is missing, damaged, or holds anything but a model.
    """
    try:
        loaded, _ = torch_safe_load(path, safe_only=True)
        model = loaded.get("ema") or loaded["model"]
        if not isinstance(model, torch.nn.Module):
            raise TypeError("it holds no model")
        return model.float()
    except Exception as error:  # an unreadable file, a refused class, a failed download: each has its own exception
        text = " ".join(str(error).split())
        raise ModelError(f"The model '{path}' cannot be loaded: {text}. Check model=...") from error


def data_hash(files: Iterable[str], root: str) -> str:
    """Hash the order and the names of the training images, without the folder that they lie in."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file).removeprefix(str(root)).encode() + b"\0")
    return digest.hexdigest()[:16]


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
