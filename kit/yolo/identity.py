"""What tells a run from others: its task, its model and its classes; `kit.run.discovery.mismatch` compares them."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import ultralytics
from ultralytics.nn.tasks import guess_model_task

from kit.config import Config
from kit.data import find
from kit.data.find import DataSet
from kit.errors import ModelError
from kit.parallel.ranks import one_at_a_time
from kit.run import discovery
from kit.store import checkpoint, peek
from kit.yolo import models
from kit.yolo.models import open_checkpoint
from kit.yolo.tasks import STOCK


def identify(config: Config, resume: str = "auto", *, elsewhere: bool = False) -> tuple[DataSet, dict[str, Any]]:
    """Return a run's data set, and what tells it from others.

    Args:
        config: The settings.
        resume: `auto`, `never` or the path of a checkpoint.
        elsewhere: The model may be in a checkpoint that is not here.

    Returns:
        The data set; and `task`, `model` (the name of its file), `names` (its classes), `structure` (a hash of the
        model as it is built here; empty where one of its files is not here), `files` (a hash of each that it starts
        from) and the version of `ultralytics`.

    Raises:
        DataError: The data set is missing or broken.
        ModelError: The model does not exist, is damaged, or is of another task than `task=` says.
    """
    task = _task(config, resume, elsewhere)
    with one_at_a_time():
        dataset = find.resolve(str(config.get("data")), task == "classify")
    model, pretrained, names = str(config.get("model")), config.get("pretrained"), dataset.trained(config)
    files = {"model": model, **({"pretrained": pretrained} if isinstance(pretrained, str) else {})}
    structure = ""
    if all(map(models.is_here, files.values())):
        made_for = {
            "nc": len(names),
            "names": dict(enumerate(names)),
            "channels": dataset.values.get("channels", 3),
            "kpt_shape": dataset.values.get("kpt_shape"),
        }
        with suppress(ModelError):  # set-up fails in the same way, and says so
            built = models.build(task, *models.sources(model, pretrained), made_for)
            structure = checkpoint.structure(built.yaml, built.state_dict())
    return dataset, {
        "task": task,
        "model": Path(model).stem,
        "names": names,
        "structure": structure,
        "files": {name: peek.checksum(Path(file)) for name, file in files.items() if Path(file).is_file()},
        "ultralytics": ultralytics.__version__,
    }


def _task(config: Config, resume: str, elsewhere: bool) -> str:
    """Return the task of the model, or that of its checkpoint where the model's file is not here."""
    model, wanted = str(config.get("model")), config.train.get("task")
    weights = model.lower().endswith(".pt")
    if not weights and not model.lower().endswith((".yaml", ".yml")):
        raise ModelError(f"The model '{model}' must be a .pt or a .yaml file, for example yolov8n.pt.")
    task = None
    if models.is_here(model):
        task = models.task_of(model)
        if None not in (task, wanted) and task != wanted:
            raise ModelError(
                f"The model '{model}' is for the task '{task}', not '{wanted}'.", "Correct task= or model=."
            )
    elif (task := _task_found(config, resume)) is None and weights:
        task = guess_model_task(model)
        if task in STOCK and not (elsewhere or models.is_published(model)):
            raise ModelError(f"The model '{model}' does not exist.", "Check model=...")
    task = wanted or task or models.task_of(model)
    if task not in STOCK:
        raise ModelError(f"The kit does not train the task '{task}' of '{model}'.", f"It trains {', '.join(STOCK)}.")
    return str(task)


def _task_found(config: Config, resume: str) -> str | None:
    """Return the task of the checkpoint that is there for a model of this name."""
    if resume in ("auto", "never"):
        found = discovery.scan(config) if resume == "auto" else []
    else:
        found = [discovery.look(Path(resume).expanduser(), open_checkpoint, verify=False)]
    name = Path(str(config.get("model"))).stem
    return next((str(each.identity["task"]) for each in found if each.identity.get("model") == name), None)
