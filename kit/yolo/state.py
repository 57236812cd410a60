"""Everything that a training run is: how it is captured into a checkpoint, and how it is restored from one.

The states that must survive: raw weights with BatchNorm's buffers, the EMA and its update count, the optimizer with
the group values of mid-warm-up, the scheduler, the gradient scaler, gradients in flight, the running losses, the early
stopper, the criterion's schedule, metrics, fitness, the results so far, the clock, and what set-up decided (optimizer,
learning rate, batch size, mixed precision).
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from copy import deepcopy
from itertools import islice
from typing import Any

import numpy
import torch
import torchvision
import ultralytics
from torch import Tensor
from ultralytics.utils.torch_utils import unwrap_model

from kit.run import order
from kit.store.checkpoint import FORMAT, plain
from kit.store.snapshot import FlatBuffer, ModuleTensors, Sections, TensorLayout, laid_out_as, layout_of
from kit.yolo.trainer import Trainer

DECIDED = ("optimizer", "lr0", "warmup_bias_lr", "max_det", "batch", "imgsz")  # what Ultralytics' set-up changes
SCALARS = ("best_fitness", "fitness", "nan_recovery_attempts", "oom_retries", "last_opt_step")
TENSORS = ("loss", "loss_items", "tloss")
PASSING = ("gradients", "running")  # sections whose tensors are others after each batch
Build = Callable[[Sections], dict[str, Any]]


class TrainerState:
    """The state of a trainer that is set up.

    Training waits while tensors are looked up, so that builds nothing: the checkpoint is made of their copies, by the
    thread that writes it. The tensors of model, EMA and optimizer are moved together, for a copy of a thousand small
    ones takes twice as long.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.model = model = unwrap_model(trainer.model)
        self._modules = {"model_state_dict": ModuleTensors(model), "ema_state_dict": ModuleTensors(trainer.ema.ema)}
        self._parameters = list(model.named_parameters())
        self.buffers: dict[str, FlatBuffer] = {}  # the memory that the tensors of a section were moved to
        run = trainer.run
        self._constant = {
            "config": run.config.to_dict(),
            "architecture": {
                **{name: run.identity[name] for name in ("task", "model", "names")},
                "files": run.files,
                "yaml": plain(deepcopy(model.yaml)),
                "modules": trainer.modules,
                "data": run.data,
                "data_hash": trainer.data_hash,
            },
            "run_id": run.run_id,
            "ranks": run.ranks.slices,
            "format_version": FORMAT,
            "versions": versions(trainer.device),
        }

    def move_together(self) -> dict[str, list[TensorLayout]]:
        """Move the tensors of each section into one buffer; return how they lie, with room for gradients in flight."""
        sections, _ = self.state_dict(0, 0)
        for name, tensors in sections.items():
            if not tensors or name in PASSING:
                continue
            if name not in self.buffers or len(self.buffers[name].layouts) != len(tensors):
                self.buffers[name] = FlatBuffer([layout_of(tensor) for tensor in tensors])
            self.buffers[name].adopt(tensors)
        gradients = [layout_of(parameter) for _, parameter in self._parameters if parameter.requires_grad]
        return {**{name: buffer.layouts for name, buffer in self.buffers.items()}, "gradients": gradients}

    def state_dict(self, epoch: int, batch: int) -> tuple[Sections, Build]:
        """Capture the state `batch` batches into `epoch` (from 0).

        Returns:
            The tensors by section of the checkpoint, and what makes the checkpoint of their copies.
        """
        trainer, modules, constant = self.trainer, self._modules, self._constant
        in_flight = batch + epoch * len(trainer.train_loader) - trainer.last_opt_step > 1
        gradients = {name: each.grad for name, each in self._parameters if in_flight and each.grad is not None}
        moments, build_optimizer = self._optimizer()
        passing = {"loop": self._loop(), "scaler_state_dict": scaler_state(trainer.scaler)}
        generators, running = order.generators(), list[Tensor]()
        mapped(passing, running.append)
        sections: Sections = {
            **{name: tensors() for name, tensors in modules.items()},
            "optimizer_state_dict": moments,
            "gradients": list(gradients.values()),
            "running": running,  # copied with the others, so that no thread waits for what training has queued
        }
        rest = {
            "epoch": epoch,
            "best_map": plain(trainer.best_map),
            "scheduler_state_dict": plain(trainer.scheduler.state_dict()),
            "progress": self._progress(batch),
            "history": list(trainer.history),
        }

        def build(copies: Sections) -> dict[str, Any]:
            running = iter(copies["running"])
            passed = mapped(passing, lambda _: next(running))
            return {
                **constant,
                **rest,
                "rng_state": order.state_dict(generators),
                **{name: dict(zip(modules[name].names, copies[name], strict=True)) for name in modules},
                "optimizer_state_dict": build_optimizer(copies["optimizer_state_dict"]),
                "gradients": dict(zip(gradients, copies["gradients"], strict=True)),
                "loop": passed["loop"],
                "scaler_state_dict": mapped(passed["scaler_state_dict"], Tensor.item),
            }

        return sections, build

    def load_state_dict(self, state: dict[str, Any], changed: bool = False) -> None:
        """Restore what `state_dict` captured; the position is for the loop to restore.

        Args:
            state: The checkpoint.
            changed: Settings differ from the checkpoint's: learning rate, momentum and weight decay stay as set up.
        """
        trainer = self.trainer
        self.model.load_state_dict(state["model_state_dict"])
        trainer.ema.ema.load_state_dict(state["ema_state_dict"])
        self._load_optimizer(state, changed)
        if state["scaler_state_dict"]:
            trainer.scaler.load_state_dict(state["scaler_state_dict"])
        for name, parameter in self._parameters:
            gradient = state["gradients"].get(name)
            parameter.grad = None if gradient is None else laid_out_as(parameter, gradient)
        self._load_loop(state["loop"])
        trainer.best_map, trainer.history = state["best_map"], state["history"]
        trainer.global_step = state["progress"]["global_step"]
        order.load_state_dict(state["rng_state"])

    def _loop(self) -> dict[str, Any]:
        trainer = self.trainer
        loop: dict[str, Any] = plain(
            {
                **{name: getattr(trainer, name) for name in (*SCALARS, *TENSORS)},
                "loss_names": trainer.loss_names,
                "metrics": trainer.metrics,
                "ema_updates": trainer.ema.updates,
                "stopper": vars(trainer.stopper),
                "criterion": schedule(self.model),
                "decided": {name: getattr(trainer.args, name) for name in DECIDED},
                "amp": trainer.amp,
            }
        )
        return loop

    def _load_loop(self, loop: dict[str, Any]) -> None:
        """Restore these; `decided` and `amp` were, when the trainer was set up."""
        trainer, patience = self.trainer, self.trainer.stopper.patience  # which may change from session to session
        for name in SCALARS:
            setattr(trainer, name, loop[name])
        for name in TENSORS:
            setattr(trainer, name, mapped(loop[name], lambda each: each.to(trainer.device, copy=True)))
        trainer.loss_names, trainer.metrics = tuple(loop["loss_names"]), loop["metrics"]
        trainer.ema.updates = loop["ema_updates"]
        vars(trainer.stopper).update(loop["stopper"], patience=patience)
        if loop["criterion"]:
            self.model.criterion = self.model.init_criterion()
            vars(self.model.criterion).update(loop["criterion"])

    def _optimizer(self) -> tuple[list[Tensor], Callable[[list[Tensor]], dict[str, Any]]]:
        optimizer = self.trainer.optimizer
        memory = [(parameter, [*each.items()]) for parameter, each in optimizer.state.items()]
        groups = [dict(group) for group in optimizer.param_groups]

        def build(copies: list[Tensor]) -> dict[str, Any]:
            moments = iter(copies)
            kept = {
                parameter: {name: next(moments) if isinstance(v, Tensor) else plain(v) for name, v in each}
                for parameter, each in memory
            }
            parameters = [parameter for group in groups for parameter in group["params"]]
            numbers = iter(range(len(parameters)))
            return {
                "state": {i: kept[parameter] for i, parameter in enumerate(parameters) if parameter in kept},
                "param_groups": plain(
                    [{**group, "params": list(islice(numbers, len(group["params"])))} for group in groups]
                ),
            }

        return [value for _, each in memory for _, value in each if isinstance(value, Tensor)], build

    def _load_optimizer(self, state: dict[str, Any], changed: bool) -> None:
        trainer, optimizer, scheduler = self.trainer, self.trainer.optimizer, self.trainer.scheduler
        saved = deepcopy(state["optimizer_state_dict"])
        if changed:
            if state["loop"]["decided"]["optimizer"] == trainer.args.optimizer:
                optimizer.load_state_dict({**saved, "param_groups": optimizer.state_dict()["param_groups"]})
                self._lay_out_moments()
            scheduler.last_epoch = state["scheduler_state_dict"]["last_epoch"]
            for group, rate in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
                group["lr"] = rate * trainer.lf(max(scheduler.last_epoch, 0))
            return
        for old, group in zip(saved["param_groups"], optimizer.param_groups, strict=True):
            if "fused" in group:
                old["fused"] = group["fused"]  # the device, not the checkpoint, picks the kernel
        needed = [set(group) for group in optimizer.param_groups]
        optimizer.load_state_dict(saved)
        scheduler.load_state_dict(state["scheduler_state_dict"])
        for names, group in zip(needed, optimizer.param_groups, strict=True):
            if lacking := names - set(group):
                raise KeyError(lacking.pop())
        self._lay_out_moments()

    def _lay_out_moments(self) -> None:
        """Have the optimizer's moments lie as their parameters do; it takes any, and fails at its first step.

        Those of a CPU do not where a GPU trains channels_last, nor where that setting was changed.
        """
        for parameter, kept in self.trainer.optimizer.state.items():
            for name, value in kept.items():
                if isinstance(value, Tensor) and value.dim():
                    kept[name] = laid_out_as(parameter, value, name)

    def _progress(self, batch: int) -> dict[str, Any]:
        trainer = self.trainer
        return {
            "global_step": trainer.global_step,
            "batch": batch,
            "batches": len(trainer.train_loader),
            "epochs": trainer.epochs,
            "elapsed_s": time.monotonic() - trainer.train_time_start,
            "saved": time.time(),
            "sessions": list(trainer.run.sessions),
            "branch": trainer.run.branch,
        }


def versions(device: torch.device) -> dict[str, Any]:
    """Return what the bits of a run on this device depend on beside its settings."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "ultralytics": ultralytics.__version__,
        "numpy": numpy.__version__,
        "gpu": [torch.cuda.get_device_name(device)] if device.type == "cuda" else [],
        "threads": torch.get_num_threads(),
    }


def schedule(model: Any) -> dict[str, float]:
    """Return the numbers of a criterion that changes as training goes (the end-to-end heads' loss weights)."""
    criterion = getattr(model, "criterion", None)
    if not hasattr(criterion, "update"):
        return {}
    return {name: value for name, value in vars(criterion).items() if isinstance(value, (int, float))}


def scaler_state(scaler: torch.amp.GradScaler) -> dict[str, Any]:
    """Return a scaler's state with tensors for its own numbers; its `state_dict` waits until the GPU has them."""
    if getattr(scaler, "_scale", None) is None:  # before its first use, or off
        return plain(scaler.state_dict())  # type: ignore[no-any-return]
    return {
        "scale": scaler._scale,
        "growth_factor": scaler.get_growth_factor(),
        "backoff_factor": scaler.get_backoff_factor(),
        "growth_interval": scaler.get_growth_interval(),
        "_growth_tracker": scaler._growth_tracker,
    }


def mapped(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Replace each tensor in a value by what `change` makes of it."""
    if isinstance(value, dict):
        return {name: mapped(item, change) for name, item in value.items()}
    return change(value) if isinstance(value, Tensor) else value
