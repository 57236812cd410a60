"""A trainer's state as a checkpoint: what is copied while training waits, and what is made of it afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from datetime import datetime
from itertools import islice
from typing import Any

import torch
import ultralytics
from ultralytics.cfg import DEFAULT_CFG_DICT, TASK2METRIC
from ultralytics.utils.torch_utils import unwrap_model

from kit.config import from_dict
from kit.run import order
from kit.store.checkpoint import FORMAT, plain
from kit.store.snapshot import Home, Place, Sections, place
from kit.yolo import models
from kit.yolo.state import DECIDED, SCALARS, TENSORS, copied, schedule, versions


class _Tensors:
    """The tensors of a module's state dict, found without building one."""

    def __init__(self, module: torch.nn.Module) -> None:
        self._places = [
            (holder, key, prefix + key)
            for prefix, each in _modules(module)
            for holder in (each._parameters, each._buffers)
            for key, value in holder.items()
            if value is not None and key not in each._non_persistent_buffers_set
        ]
        self.names = [name for _, _, name in self._places]

    def __call__(self) -> list[torch.Tensor]:
        return [holder[key] for holder, key, _ in self._places]  # type: ignore[misc]


def _modules(module: torch.nn.Module, prefix: str = "") -> Iterator[tuple[str, torch.nn.Module]]:
    """Yield a module and those in it in the order of its state dict, a shared one under each of its names."""
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _modules(child, f"{prefix}{name}.")


class Snapshot:
    """Takes the state of a trainer apart: tensors to copy, and a function that makes a checkpoint of the copies.

    Training waits while this looks tensors up, so it builds nothing: that is for the thread that writes. The tensors of
    model, EMA and optimizer are moved together, for a copy of a thousand small ones takes twice as long.

    Args:
        trainer: The trainer, set up.

    Attributes:
        homes: The memory that the tensors of a section were moved to.
    """

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        model = unwrap_model(trainer.model)
        self._modules = {"model_state_dict": _Tensors(model), "ema_state_dict": _Tensors(trainer.ema.ema)}
        self._parameters = list(model.named_parameters())
        self.homes: dict[str, Home] = {}
        self._constant = {
            "config": trainer.run.config.to_dict(),
            "architecture": {
                **{name: trainer.run.identity[name] for name in ("task", "model", "names")},
                "files": trainer.run.files,
                "yaml": plain(deepcopy(model.yaml)),
                "modules": trainer.modules,
                "data": trainer.run.data,
                "data_hash": trainer.data_hash,
            },
            "run_id": trainer.run.run_id,
            "ranks": trainer.run.ranks.logical,
            "format_version": FORMAT,
            "versions": versions(),
        }

    def settle(self) -> dict[str, list[Place]]:
        """Move the tensors together and return how they lie, with room for gradients in flight."""
        sections, _ = self(0, 0)
        for name, tensors in sections.items():
            if tensors and not (name in self.homes and len(self.homes[name].places) == len(tensors)):
                self.homes[name] = Home([place(tensor) for tensor in tensors])
            if tensors:
                self.homes[name].take_in(tensors)
        parameters = [parameter for _, parameter in self._parameters if parameter.requires_grad]
        layout = {name: home.places for name, home in self.homes.items()}
        return {**layout, "gradients": [place(parameter) for parameter in parameters]}

    def __call__(self, epoch: int, batch: int) -> tuple[Sections, Callable[[Sections], dict[str, Any]]]:
        """Return the sections, and what makes a checkpoint of them for `batch` batches into `epoch` (from 0)."""
        trainer, optimizer = self.trainer, self.trainer.optimizer
        memory = [(parameter, [*each.items()]) for parameter, each in optimizer.state.items()]
        in_flight = batch + epoch * len(trainer.train_loader) - trainer.last_opt_step > 1
        gradients = {
            name: parameter.grad for name, parameter in self._parameters if in_flight and parameter.grad is not None
        }
        sections: Sections = {
            **{name: tensors() for name, tensors in self._modules.items()},
            "optimizer_state_dict": [
                value for _, each in memory for _, value in each if isinstance(value, torch.Tensor)
            ],
            "gradients": list(gradients.values()),
        }
        groups = [dict(group) for group in optimizer.param_groups]
        rest = {
            **self._constant,
            "epoch": epoch,
            "best_map": plain(trainer.best_map),
            "scheduler_state_dict": plain(trainer.scheduler.state_dict()),
            "scaler_state_dict": plain(trainer.scaler.state_dict()),
            "progress": self._progress(batch),
            "loop": copied(self._loop(), None),
            "history": list(trainer.history),
        }
        generators = order.generators()

        def build(copies: Sections) -> dict[str, Any]:
            moments = iter(copies["optimizer_state_dict"])
            kept = {
                parameter: {n: next(moments) if isinstance(v, torch.Tensor) else plain(v) for n, v in each}
                for parameter, each in memory
            }
            parameters = [parameter for group in groups for parameter in group["params"]]
            state = {i: kept[parameter] for i, parameter in enumerate(parameters) if parameter in kept}
            numbers = iter(range(len(parameters)))
            numbered = [{**group, "params": list(islice(numbers, len(group["params"])))} for group in groups]
            return {
                **rest,
                "rng_state": order.state_dict(generators),
                **{name: dict(zip(self._modules[name].names, copies[name], strict=True)) for name in self._modules},
                "optimizer_state_dict": {"state": state, "param_groups": plain(numbered)},
                "gradients": dict(zip(gradients, copies["gradients"], strict=True)),
                "loop": copied(rest["loop"], torch.device("cpu")),
            }

        return sections, build

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

    def _loop(self) -> dict[str, Any]:
        trainer = self.trainer
        loop: dict[str, Any] = plain(
            {
                **{name: getattr(trainer, name) for name in (*SCALARS, *TENSORS)},
                "loss_names": trainer.loss_names,
                "metrics": trainer.metrics,
                "ema_updates": trainer.ema.updates,
                "stopper": vars(trainer.stopper),
                "criterion": schedule(unwrap_model(trainer.model)),
                "decided": {name: getattr(trainer.args, name) for name in DECIDED},
                "amp": trainer.amp,
            }
        )
        return loop


def as_ultralytics(model: Any, args: dict[str, Any], metrics: dict[str, Any]) -> dict[str, Any]:
    """Return the entries that make `YOLO("best.pt")` predict: a model in fp16, as Ultralytics strips it.

    Args:
        model: The averaged one; it stays as it is.
        args: The settings that it was trained with; Ultralytics remembers some of them, `data` for one.
        metrics: Of its validation.
    """
    model = deepcopy(model).half().cpu().to(memory_format=torch.contiguous_format).eval()
    model.criterion, model.args = None, args
    for value in model.state_dict().values():
        if value.is_floating_point():
            torch.nan_to_num_(value)
    for parameter in model.parameters():
        parameter.requires_grad = False
    arguments = {**DEFAULT_CFG_DICT, **args}
    return {
        "model": model,
        "ema": None,
        "train_args": plain({name: arguments[name] for name in DEFAULT_CFG_DICT}),
        "train_metrics": plain(metrics),
        "date": datetime.now().astimezone().isoformat(),
        "version": ultralytics.__version__,
        "license": "AGPL-3.0 (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
    }


def as_slim(entries: dict[str, Any], epoch: int, value: float | None) -> dict[str, Any]:
    """Return what Ultralytics leaves of a checkpoint that it strips: the model, and nothing to train on with.

    Args:
        entries: As `as_ultralytics` returns them.
        epoch: Epochs completed; `epoch` itself says -1, as in Ultralytics' own.
        value: Its mAP.
    """
    gone = dict.fromkeys(("optimizer", "best_fitness", "updates", "scaler"))
    return {"epoch": -1, "of_epoch": epoch, "best_map": plain(value), **gone, **entries}


def export(state: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint's averaged model in the form of `as_slim`, for `YOLO()`."""
    model, loop, config = models.assemble(state, "ema_state_dict"), state["loop"], from_dict(state["config"])
    names = state["architecture"]["names"]
    model.nc, model.names, model.task = len(names), dict(enumerate(names)), state["architecture"]["task"]
    args = {**DEFAULT_CFG_DICT, **config.train, **loop["decided"], "task": model.task, "mode": "train"}
    args["data"] = state["architecture"].get("data", {}).get("path") or args["data"]
    entries = as_ultralytics(model, args, {**loop["metrics"], "fitness": loop["fitness"]})
    return as_slim(entries, state["epoch"], loop["metrics"].get(TASK2METRIC[model.task], loop["fitness"]))
