"""The training process: the only place that knows Ultralytics.

`train` is what runs in the child: it takes the run folder's lock, finds the checkpoint to go on from, builds the
trainer of the task and trains.
"""

from __future__ import annotations

import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import torch
import yaml
from ultralytics import settings as ultralytics_settings
from ultralytics.cfg import get_cfg
from ultralytics.models.yolo.classify import ClassificationTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.models.yolo.obb import OBBTrainer
from ultralytics.models.yolo.pose import PoseTrainer
from ultralytics.models.yolo.segment import SegmentationTrainer
from ultralytics.nn.tasks import guess_model_task, torch_safe_load, yaml_model_load
from ultralytics.utils import LOGGER, USER_CONFIG_DIR
from ultralytics.utils.torch_utils import parse_device

from kit import checkpoint, config as config_module, data, discovery, session, status as status_module, storage
from kit.checkpoint import BEST, LATEST, PREVIOUS
from kit.config import Config
from kit.discovery import Candidate
from kit.errors import CheckpointError, ConfigError, MismatchError, ModelError, Stopped
from kit.status import Status
from kit.storage import Lock
from kit.trainer.loop import Resumable, Run, load_model
from kit.writer import Writer

TRAINERS: dict[str, type] = {
    task: type(f"Resumable{base.__name__}", (Resumable, base), {})
    for task, base in {
        "detect": DetectionTrainer,
        "segment": SegmentationTrainer,
        "pose": PoseTrainer,
        "obb": OBBTrainer,
        "classify": ClassificationTrainer,
    }.items()
}


def train(config: Config, resume: str = "auto", stop: Callable[[], str] = lambda: "") -> None:
    """Train a run to its end, from where its newest good checkpoint stands.

    Args:
        config: The settings.
        resume: `auto` finds the checkpoint, `never` starts anew, anything else is the path of one.
        stop: Asked after every batch; the reason that it returns ends training with a checkpoint.

    Raises:
        InputError: Something given cannot be used; nothing was written.
        BusyError: Another process trains this run.
        Stopped: Training was stopped; running again goes on.
    """
    quiet()
    dataset = data.resolve(str(config.get("data")))
    overrides = {**config.train, "data": str(dataset.path), "save_dir": str(config.run_folder)}
    identity = identify(config, dataset)
    overrides["task"] = identity["task"]
    try:
        get_cfg(overrides=overrides)
        if "," in parse_device(config.get("device")):
            raise ValueError(f"several devices ({config.get('device')}) are not supported yet: give one, device=0")
    except (ValueError, TypeError, SyntaxError) as error:
        raise ConfigError(" ".join(str(error).split())) from error

    folder = config.run_folder
    storage.make_folder(folder / "checkpoints")
    lock = Lock(folder / ".lock")
    lock.acquire()
    storage.sweep(folder)
    storage.sweep(folder / "checkpoints")
    before = status_module.read(folder)
    status = Status(folder)
    resumed = choose(config, resume, identity, status)
    run_id = resumed["run_id"] if resumed else uuid.uuid4().hex[:12]
    if resumed and before.get("state") == "finished" and before.get("run_id") == run_id and complete(config, resumed):
        status.values = before
        return status.say(
            f"This run is finished: {resumed['epoch']} epochs, best mAP {resumed['best_map'] or 0:.4f}. "
            "Raise epochs to go on, or start anew with --resume never."
        )
    if resumed:
        old = config_module.from_dict(resumed["config"])
        same = {name: value for name, value in resumed["loop"]["decided"].items() if old.get(name) == config.get(name)}
        overrides.update(same)
    status.update(now=True, state="starting", run_id=run_id, run=config.kit.run, epochs=config.get("epochs"))
    writer = Writer(folder / "checkpoints", config.kit.max_lost_s, config.kit.max_cost_percent)
    run = Run(config, folder, identity, run_id, writer, status, resumed, stop)
    try:
        trainer = TRAINERS[identity["task"]](run, overrides)
        trainer.train()
    except Stopped as stopped:
        status.update(now=True, state="stopped")
        place = f"epoch {trainer.epoch}/{trainer.epochs}, batch {trainer.batch}/{len(trainer.train_loader)}"
        status.say(f"Stopped at {place} ({stopped}). Run again to go on.")
        raise
    except BaseException as error:
        status.update(now=True, state="failed", error=str(error))
        raise
    finally:
        status.update(now=True, saves=writer.saves, cost_percent=writer.cost_percent)
    status.update(now=True, state="finished", best_map=trainer.best_map)
    best = f"best mAP {trainer.best_map:.4f} in {trainer.best}" if trainer.best_map is not None else "no validation"
    status.say(f"Training finished: {len(trainer.history)} epochs, {best}")


def quiet() -> None:
    """Keep Ultralytics off the network: no integrations, no usage statistics, fonts from matplotlib."""
    LOGGER.setLevel("WARNING")
    off = ("sync", "clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb")
    if Path(USER_CONFIG_DIR).is_relative_to(session.scratch()):  # a user's own settings are left alone
        ultralytics_settings.update(
            {
                **dict.fromkeys(off, False),
                "datasets_dir": str(session.scratch() / "datasets"),
                "weights_dir": str(session.scratch() / "weights"),
            }
        )
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    for name in ("Arial.ttf", "Arial.Unicode.ttf"):  # what Ultralytics downloads when it is not there
        if not (USER_CONFIG_DIR / name).exists():
            shutil.copyfile(font, USER_CONFIG_DIR / name)


def identify(config: Config, dataset: data.DataSet) -> dict[str, Any]:
    """Return what tells a run from others: its task, its architecture's name and its classes.

    Raises:
        ModelError: The model is missing or of a task that the kit does not train.
    """
    name = str(config.get("model"))
    task = config.train.get("task")
    if name.lower().endswith((".yaml", ".yml")):
        try:
            task = task or guess_model_task(yaml_model_load(name))
        except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
            raise ModelError(f"The model '{name}' cannot be read: {error}. Check model=...") from error
    elif not name.lower().endswith(".pt"):
        raise ModelError(f"The model '{name}' must be a .pt or a .yaml file, for example yolov8n.pt.")
    elif task is None and Path(name).exists():
        task = getattr(load_model(name), "task", None)
    task = task or guess_model_task(name)
    if task not in TRAINERS:
        raise ModelError(f"The kit does not train the task '{task}' of '{name}': it trains {', '.join(TRAINERS)}.")
    names = ("item",) if config.get("single_cls") else dataset.names
    return {"task": task, "model": Path(name).stem, "names": list(names)}


def choose(config: Config, resume: str, identity: dict[str, Any], status: Status) -> dict[str, Any] | None:
    """Return the checkpoint to go on from, or None to start at the beginning.

    Raises:
        CheckpointError: The file that was asked for is no good checkpoint.
        MismatchError: The checkpoint belongs to another run or to other settings.
    """
    if resume == "never":
        return None
    folder = config.run_folder / "checkpoints"
    found = _search(config, identity, status) if resume == "auto" else _given(Path(resume).expanduser(), identity)
    if found is None or found.summary is None:
        return None
    state = checkpoint.read(found.path, load=_load)
    changed = config_module.differences(config_module.from_dict(state["config"]), config)
    if changed and resume == "auto":
        raise MismatchError(
            f"The checkpoint '{found.path}' was trained with other settings ({'; '.join(changed)}). "
            f"Go on with the new ones: --resume {found.path}. Start anew and keep the old run: --resume never."
        )
    best = "" if found.summary.best_map is None else f", best mAP {found.summary.best_map:.4f}"
    age = _age(time.time() - found.summary.saved)
    status.say(f"Found checkpoint: {found.path} ({found.summary.position}{best}, saved {age} ago)")
    status.say(f"Resuming from checkpoint: {found.path}")
    if changed:
        status.say(f"Not exact from here on, the settings changed: {'; '.join(changed)}")
    if found.path.parent != folder:
        storage.copy(found.path, folder / LATEST)
        if (found.path.parent / BEST).exists():
            storage.copy(found.path.parent / BEST, folder / BEST)
    if found.summary.best_map is not None and not (folder / BEST).exists():
        status.say("The best model so far is gone: the next validation writes a new best.pt.")
    return state


def complete(config: Config, state: dict[str, Any]) -> bool:
    """Tell whether a checkpoint stands at the end: all epochs done, or stopped early for want of progress."""
    idle = state["epoch"] - state["loop"]["stopper"]["best_epoch"]
    return bool(state["epoch"] >= config.get("epochs") or idle >= (config.get("patience") or float("inf")))


def _search(config: Config, identity: dict[str, Any], status: Status) -> Candidate | None:
    folder = config.run_folder / "checkpoints"
    for candidate in discovery.scan(config.run_folder):
        own = candidate.path.parent == folder
        if candidate.problem:
            status.say(f"WARNING: {candidate.problem}")
            if own:
                status.say(f"It was set aside as {storage.set_aside(candidate.path).name}")
        elif problem := discovery.mismatch(candidate, identity):
            if own:
                raise MismatchError(
                    f"'{config.run_folder}' holds another run: {problem}. Choose another folder with "
                    "kit.run=runs/other, or start anew and keep the old run with --resume never."
                )
        else:
            return candidate
    return None


def _given(path: Path, identity: dict[str, Any]) -> Candidate:
    candidate = discovery.look(path, load=_load)
    if candidate.problem:
        raise CheckpointError(candidate.problem)
    if problem := discovery.mismatch(candidate, identity):
        raise MismatchError(f"'{path}' belongs to another run: {problem}. Check --resume, model= and data=.")
    return candidate


def _load(path: Path) -> Any:
    """Open a checkpoint that may hold a model, as `best.pt` does, through Ultralytics' allow-list of classes."""
    if torch.serialization.get_unsafe_globals_in_checkpoint(str(path)):
        return torch_safe_load(path, safe_only=True)[0] if path.suffix == ".pt" else checkpoint.load(path)
    return checkpoint.load(path)


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


__all__ = ["PREVIOUS", "TRAINERS", "train"]
