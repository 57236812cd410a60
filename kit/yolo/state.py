"""Everything that a training run is, and how it is put back; `kit.yolo.capture` takes it.

The numbers below are those of the states that must survive: raw weights with BatchNorm's buffers, the EMA and its
update count, the optimizer with the group values of mid-warm-up, the scheduler, the gradient scaler, gradients in
flight, the running losses, the early stopper, the criterion's schedule, metrics, fitness, the results so far, the
clock, and what set-up decided (optimizer, learning rate, batch size, mixed precision).
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import numpy
import torch
import torchvision
import ultralytics
from ultralytics.utils.torch_utils import unwrap_model

from kit.run import order

DECIDED = ("optimizer", "lr0", "warmup_bias_lr", "max_det", "batch", "imgsz")  # what Ultralytics' set-up changes
SCALARS = ("best_fitness", "fitness", "nan_recovery_attempts", "oom_retries", "last_opt_step")
TENSORS = ("loss", "loss_items", "tloss")


def versions() -> dict[str, Any]:
    """Return what the bits of a run depend on beside its settings."""
    return {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "ultralytics": ultralytics.__version__,
        "numpy": numpy.__version__,
        "gpu": sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())}),  # not how many
        "threads": torch.get_num_threads(),
    }


def check(state: dict[str, Any]) -> None:
    """Make sure that a checkpoint's values are of the kinds that they are taken for, hours later some of them.

    Raises:
        TypeError, KeyError: They are not.
    """
    loop, architecture = state["loop"], state["architecture"]
    tables = {name: loop[name] for name in ("metrics", "stopper", "criterion", "decided")}
    tables |= {name: state[name] for name in ("scheduler_state_dict", "scaler_state_dict", "progress", "gradients")}
    tables |= {name: architecture.get(name) or {} for name in ("files", "data")}
    tables |= {name: loop[name] or {} for name in TENSORS[1:]}
    optimizer = state["optimizer_state_dict"]
    groups = [{**group, "param_group": None} for group in optimizer["param_groups"]]
    numbers = [
        tables[name] for name in ("metrics", "stopper", "criterion", "scheduler_state_dict", "scaler_state_dict")
    ]
    numbers += [optimizer["state"], state.get("ranks"), loop["ema_updates"], *(loop[name] for name in SCALARS), *groups]
    keys = [key for row in [*tables.values(), *state["history"]] for key in dict(row)]
    if not isinstance(loop["loss"], (torch.Tensor, type(None))) or not all(isinstance(key, str) for key in keys):
        raise TypeError("no sound values")
    for value in _leaves(numbers):
        if not isinstance(value, (int, float, torch.Tensor, type(None))):
            raise TypeError(f"{value!r:.60} is no number")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


def restore(trainer: Any, state: dict[str, Any], changed: bool = False) -> None:
    """Put a checkpoint back into a trainer that is set up; its position is taken up by the loop.

    Args:
        trainer: The trainer.
        state: The checkpoint.
        changed: Settings differ from the checkpoint's: learning rate, momentum and weight decay stay as set up.
    """
    model, loop = unwrap_model(trainer.model), state["loop"]
    model.load_state_dict(state["model_state_dict"])
    trainer.ema.ema.load_state_dict(state["ema_state_dict"])
    trainer.ema.updates = loop["ema_updates"]
    _restore_optimizer(trainer, state, changed)
    if state["scaler_state_dict"]:
        trainer.scaler.load_state_dict(state["scaler_state_dict"])
    for name, parameter in model.named_parameters():
        gradient = state["gradients"].get(name)
        parameter.grad = None if gradient is None else gradient.to(parameter.device, copy=True)
    for name in SCALARS:
        setattr(trainer, name, loop[name])
    for name in TENSORS:
        setattr(trainer, name, copied(loop[name], trainer.device))
    trainer.loss_names, trainer.metrics = tuple(loop["loss_names"]), loop["metrics"]
    patience = trainer.stopper.patience  # may change from session to session
    vars(trainer.stopper).update(loop["stopper"])
    trainer.stopper.patience = patience
    if loop["criterion"]:
        model.criterion = model.init_criterion()
        vars(model.criterion).update(loop["criterion"])
    trainer.best_map, trainer.history = state["best_map"], state["history"]
    trainer.global_step = state["progress"]["global_step"]
    order.load_state_dict(state["rng_state"])


def _restore_optimizer(trainer: Any, state: dict[str, Any], changed: bool) -> None:
    optimizer, scheduler = trainer.optimizer, trainer.scheduler
    saved = deepcopy(state["optimizer_state_dict"])
    if changed:
        if state["loop"]["decided"]["optimizer"] == trainer.args.optimizer:
            optimizer.load_state_dict({**saved, "param_groups": optimizer.state_dict()["param_groups"]})
        scheduler.last_epoch = state["scheduler_state_dict"]["last_epoch"]
        for group, base in zip(optimizer.param_groups, scheduler.base_lrs, strict=True):
            group["lr"] = base * trainer.lf(max(scheduler.last_epoch, 0))
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
    for parameter, kept in optimizer.state.items():  # which takes any shape, and fails at its first step
        for name, value in kept.items():
            if isinstance(value, torch.Tensor) and value.dim() and value.shape != parameter.shape:
                raise ValueError(f"{name} of shape {list(value.shape)} for {list(parameter.shape)}")


def schedule(model: Any) -> dict[str, float]:
    """Return the numbers of a criterion that changes as training goes (the end-to-end heads' loss weights)."""
    criterion = getattr(model, "criterion", None)
    if not hasattr(criterion, "update"):
        return {}
    return {name: value for name, value in vars(criterion).items() if isinstance(value, (int, float))}


def copied(value: Any, device: torch.device | None) -> Any:
    """Copy the tensors in a value to a device, or to where each is."""
    if isinstance(value, dict):
        return {name: copied(item, device) for name, item in value.items()}
    return value.detach().to(device or value.device, copy=True) if isinstance(value, torch.Tensor) else value
