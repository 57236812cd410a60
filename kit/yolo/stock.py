"""Ultralytics' own `last.pt` as a checkpoint of the kit, so that a training that began without the kit resumes with it.

Ultralytics keeps the averaged weights and the optimizer in half precision, after whole epochs. These are converted,
with the epoch, the early stopper and the results; the raw weights were never written. So it is not exact, as stock
training is not either.
"""

from __future__ import annotations

import uuid
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn
from ultralytics.cfg import DEFAULT_CFG_DICT, TASK2METRIC
from ultralytics.nn.tasks import guess_model_task
from ultralytics.utils import IterableSimpleNamespace

from kit.errors import CheckpointError
from kit.run import order
from kit.store import checkpoint, trust
from kit.store.checkpoint import plain
from kit.yolo import models
from kit.yolo.settings import RESERVED
from kit.yolo.state import DECIDED, schedule, versions


def convert(path: Path) -> dict[str, Any] | None:
    """Convert a checkpoint of Ultralytics' to one of the kit's; None where it is neither.

    Raises:
        CheckpointError: It holds a model and no training state.
    """
    try:
        trust.look_through(path)
        trust.verify(path)
        saved = models.open_checkpoint(path)
        model: Any = saved.get("ema") or saved.get("model")
        args = saved["train_args"]
    except Exception:  # it is damaged, refused or something else altogether
        return None
    if not isinstance(model, nn.Module):
        return None
    if not saved.get("optimizer"):
        raise CheckpointError(
            f"'{path}' holds a model and no state of a training.", f"Start from it with model={path}."
        )
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")  # which it was is not kept
    task, epoch, rows = guess_model_task(model), saved["epoch"] + 1, _rows(saved)
    model, args = model.float(), {**DEFAULT_CFG_DICT, **args}
    average = {name: value.clone() for name, value in model.state_dict().items()}
    metrics = {**saved["train_metrics"]}
    fitness, best = metrics.pop("fitness"), saved["best_fitness"]
    maps = [row[TASK2METRIC[task]] for row in rows if TASK2METRIC[task] in row]
    state = {
        "epoch": epoch,
        "model_state_dict": average,
        "ema_state_dict": average,
        "optimizer_state_dict": _in_full(saved["optimizer"]),
        "scheduler_state_dict": {
            "last_epoch": epoch - 1,
            "_step_count": epoch,
            "lr_lambdas": [None] * len(saved["optimizer"]["param_groups"]),
        },
        "scaler_state_dict": saved["scaler"],
        "best_map": max(maps, default=best),
        "config": {name: args[name] for name in DEFAULT_CFG_DICT if name not in RESERVED},
        "progress": {
            "global_step": epoch,
            "batch": 0,
            "batches": 1,
            "epochs": args["epochs"],
            "elapsed_s": rows[-1]["time"] if rows else 0.0,
            "saved": datetime.fromisoformat(saved["date"]).timestamp(),
        },
        "rng_state": order.state_dict(),
        "history": rows,
        "run_id": uuid.uuid4().hex[:12],
        "format_version": checkpoint.FORMAT,
        "versions": {**versions(device), "ultralytics": saved["version"]},
        "gradients": {},
        "ranks": None,
        "loop": {
            "best_fitness": best,
            "fitness": fitness,
            "nan_recovery_attempts": 0,
            "oom_retries": 0,
            "last_opt_step": epoch - 1,
            "loss": torch.zeros(()),
            "loss_items": None,
            "tloss": None,
            "loss_names": [name.removeprefix("train/") for name in (rows or [{}])[-1] if name.startswith("train/")],
            "metrics": metrics,
            "ema_updates": saved["updates"],
            "stopper": saved.get("stopper") or {"best_fitness": best or 0.0, "best_epoch": epoch},
            "criterion": _criterion(model, args, epoch),
            "decided": {name: args[name] for name in DECIDED},
            "amp": bool(saved["scaler"]) or args["amp"] == "bf16",
        },
        "architecture": {
            "task": task,
            "model": Path(str(args["model"])).stem,
            "names": [str(name) for name in model.names.values()],
            "yaml": model.yaml,
            "modules": models.skeleton(model),
        },
    }
    converted: dict[str, Any] = plain(state)
    return converted


def _rows(saved: dict[str, Any]) -> list[dict[str, float]]:
    """Return the results, which Ultralytics keeps by column."""
    columns = saved.get("train_results") or {}
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _in_full(optimizer: dict[str, Any]) -> dict[str, Any]:
    """Return the state of an optimizer in fp32."""
    state = {
        number: {
            name: value.float() if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for name, value in each.items()
        }
        for number, each in optimizer["state"].items()
    }
    return {**optimizer, "state": state}


def _criterion(model: Any, args: dict[str, Any], epoch: int) -> dict[str, float]:
    """Return the state of an end-to-end head's loss, which Ultralytics computes from the epoch."""
    model.args = IterableSimpleNamespace(**args)
    model.criterion = model.init_criterion()
    if hasattr(model.criterion, "update"):
        model.criterion.updates = epoch - 1
        model.criterion.update()
    numbers = schedule(model)
    model.criterion = model.args = None
    return numbers
