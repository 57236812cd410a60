"""A checkpoint's averaged model in the form of Ultralytics' own files, for `YOLO()`."""

from __future__ import annotations

from copy import deepcopy
from datetime import datetime
from typing import Any

import torch
import ultralytics
from ultralytics.cfg import DEFAULT_CFG_DICT, TASK2METRIC

from kit.store.checkpoint import plain
from kit.yolo import models
from kit.yolo.settings import from_dict


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
