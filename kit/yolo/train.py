"""The training process: it locks the run folder, finds the checkpoint to resume from, builds the trainer and trains.

Of several processes the main one does so, and broadcasts what it found.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import matplotlib
import torch
from ultralytics import settings as ultralytics_settings
from ultralytics.cfg import get_cfg
from ultralytics.utils import LOGGER, USER_CONFIG_DIR
from ultralytics.utils.torch_utils import parse_device, select_device

from kit.config import Config
from kit.data.find import DataSet, bring
from kit.errors import ConfigError, DataError, DiedError, Stopped, StorageError
from kit.kaggle import deaths, gpu, inputs, session
from kit.parallel.ranks import ALONE, Ranks
from kit.parallel.world import World
from kit.run import discovery, status as status_module
from kit.run.limit import Deadline
from kit.run.run import Run, open_folder
from kit.run.status import Notice, Status
from kit.store import checkpoint, disk
from kit.store.disk_errors import refused
from kit.text import duration
from kit.yolo import scan
from kit.yolo.identity import identify
from kit.yolo.logger import listening
from kit.yolo.loop import Resumable
from kit.yolo.models import open_checkpoint
from kit.yolo.recovery import lost_gpu, out_of_memory
from kit.yolo.resume import choose, complete, install
from kit.yolo.setup import remembered
from kit.yolo.slices import assign_slices, sliced_trainer
from kit.yolo.soundness import check as check_state, fitting
from kit.yolo.tasks import STOCK

TRAINERS: dict[str, type[Resumable]] = {
    task: type(f"Resumable{stock.__name__}", (Resumable, stock), {}) for task, stock in STOCK.items()
}


class Prepared(NamedTuple):
    """What was given, checked.

    Attributes:
        dataset: The data set.
        identity: What tells the run from others.
        overrides: Ultralytics' settings.
        device: Of this process.
        alone: No process of its machine shares it.
        chosen: The same, as torch has it.
    """

    dataset: DataSet
    identity: dict[str, Any]
    overrides: dict[str, Any]
    device: str
    alone: bool
    chosen: torch.device


def prepare(config: Config, resume: str = "auto", world: World = ALONE) -> Prepared:
    """Check what was given, before anything is looked through or written.

    Raises:
        InputError: The data set, the model, a setting or the device cannot be used.
    """
    inputs.forget()
    try:
        device, alone = _device(config, world)
        chosen = select_device(device, verbose=False)
        get_cfg(overrides=config.train)
    except (ValueError, TypeError, SyntaxError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    dataset, identity = identify(config, resume, elsewhere=world.size > world.local_size)
    overrides = {**config.train, "task": identity["task"], "data": str(dataset.path)}
    if resume != "never":
        disk.refuse_foreign(config.run_folder)
    return Prepared(dataset, identity, overrides, device, alone, chosen)


def train(
    config: Config,
    resume: str = "auto",
    stop: Callable[[], str] = lambda: "",
    world: World = ALONE,
    check: Callable[[Any], None] = gpu.check,
    notices: Sequence[Notice] = (),
) -> None:
    """Train a run to its end, from its newest good checkpoint.

    Args:
        config: The settings.
        resume: `auto` finds the checkpoint, `never` starts fresh, anything else is the path of one.
        stop: Asked after every batch; the reason that it returns ends training with a checkpoint.
        world: The processes that call this together.
        check: Raises where the device cannot be trained on.
        notices: Warnings that were printed before, of a part of training that was killed say.

    Raises:
        InputError: Something given cannot be used; nothing was written.
        BusyError: Another process trains this run.
        LostError: Another of the processes that train together has ended.
        Stopped: Training was stopped; running again resumes.
    """
    quiet()
    with Ranks(world) as ranks, ExitStack() as stack:
        warnings = stack.enter_context(listening())
        dataset, identity, overrides, device, alone, chosen = prepare(config, resume, world)
        with suppress(RuntimeError):  # a GPU that is busy now, with a run that is just ending, is free in a moment
            check(chosen)
        overrides["device"] = device  # as it was resolved: an idle GPU (-1) is looked for once
        if resume == "never" and world.local_rank == 0 and (old := disk.quarantine_run(config.run_folder)):
            status_module.tell(f"The old run was moved to {old}")
        if world.size > world.local_size:
            leads = world.local_rank == 0
            ranks.elect_main(discovery.steps(config, resume, identity, open_checkpoint) if leads else -1)
        before, status = open_folder(config.files, stack) if ranks.is_main else ({}, Status())
        status.restore(notices)
        run = _open(config, resume, identity, stop, ranks, stack, before, status)
        if run is None:
            return
        warnings.forward(run.status.warn)
        dataset = bring(dataset)
        overrides["data"] = str(dataset.path)
        if chosen.type == "cuda" and not config.get("deterministic"):
            run.not_exact("Not exact: deterministic=False lets a GPU add up in any order")
        if world.local_rank == 0:
            _check(run, dataset)
        assign_slices(run, cuda=chosen.type == "cuda" and alone)
        if ranks.my_slices:
            _train(run, overrides, chosen)


def _device(config: Config, world: World) -> tuple[str, bool]:
    """Return the device that this process trains on, and whether no process of its machine shares it."""
    given = str(config.get("device"))
    if world.size > 1 and "-1" in given:
        raise ConfigError(
            f"device={given}: each process would look for idle GPUs anew.", "Name them, as in device=0,1."
        )
    device: str = parse_device(config.get("device"))
    if world.size == 1:
        if "," in device:
            raise ConfigError(f"device={device} needs one process per device.", "Set kit.processes=auto.")
        return device, True
    devices = device.split(",") if device else [str(number) for number in range(torch.cuda.device_count())] or ["cpu"]
    return devices[world.local_rank % len(devices)], world.local_size <= len(set(devices))


def _open(
    config: Config,
    resume: str,
    identity: dict[str, Any],
    stop: Callable[[], str],
    ranks: Ranks,
    stack: ExitStack,
    before: dict[str, Any],
    status: Status,
) -> Run | None:
    """Find the checkpoint in the main process, and broadcast it; None where the run is finished."""
    if ranks.is_main:
        folder, found = config.run_folder, choose(config, resume, identity, status)
    else:  # what Ultralytics writes there is of no use
        folder, found = Path(stack.enter_context(TemporaryDirectory(dir=session.scratch()))), None
    resumed, source = ranks.broadcast(lambda: (found.state, str(found.path)) if found else (None, ""))
    with fitting(source):
        if resumed:
            check_state(resumed)
        run = Run(config, folder, identity, status, stop, resumed, ranks, source)
        finished = ranks.broadcast(lambda: bool(resumed and complete(config, resumed) and _finished(before, run)))
    if found:
        run.install = partial(install, config, found, status)
    if finished:
        if resumed and ranks.is_main:
            run.install()
            told, run.status.values = run.status.values["notices"], {"notices": [], **before}
            run.status.restore(told)
            best = resumed["best_map"] or 0.0
            run.status.say(f"This run is finished: {resumed['epoch']} epochs, best mAP {best:.4f}.")
            run.status.say("Raise epochs to continue, or start fresh with --resume never.")
        return None
    return run


def _finished(before: dict[str, Any], run: Run) -> bool:
    """Tell whether the final evaluation of this run was done already."""
    return before.get("state") == "finished" and before.get("run_id") == run.run_id


def _check(run: Run, dataset: DataSet) -> None:
    """Check the data set before the GPU is used, and report what is in it.

    Raises:
        DataError: It cannot be trained on.
    """
    config = run.config
    status_module.tell("Checking the data set ...")
    report = scan.look(dataset, run.identity["task"], config.train)
    status_module.tell(report.describe())
    for warning in report.warnings:
        run.status.warn(warning)
    if report.errors:
        raise DataError(" ".join(report.errors))
    copy = run.folder / "data.yaml"
    if dataset.path.is_file():
        with suppress(StorageError):  # a full disk; it is there to be read by people
            disk.copy(dataset.path, copy)
    run.data = {"path": remembered(dataset, copy), "fingerprint": report.fingerprint}


def _train(run: Run, overrides: dict[str, Any], device: torch.device) -> None:
    status, config = run.status, run.config
    overrides["save_dir"] = str(run.folder)
    if run.resumed:  # what set-up decided then holds, unless the setting was changed since
        old = run.resumed["config"]
        with fitting(run.source):
            decided = run.resumed["loop"]["decided"]
            overrides |= {
                name: value for name, value in decided.items() if old.get(name, ...) == config.train.get(name, ...)
            }
            get_cfg(overrides=overrides)
    status.update(now=True, state="starting", run_id=run.run_id, run=config.kit.run, epochs=config.get("epochs"))
    status.update(session_ends=run.limit.ends)
    try:
        kind = TRAINERS[run.identity["task"]] if run.ranks.slices == 1 else sliced_trainer(run, overrides, device)
        try:
            trainer = kind(run, overrides)
        except OSError as error:  # Ultralytics makes folders and writes args.yaml
            raise refused(f"'{run.folder}' cannot be written", error) from error
        try:
            trainer.train()
        except RuntimeError as error:
            if out_of_memory(error):  # in set-up, in validation, in the optimizer's first step
                raise trainer.memory_is_full() from error
            raise
    except Stopped as stopped:
        status.update(now=True, state="stopped")
        epoch = min(trainer.epoch + 1, trainer.epochs)
        place = f"epoch {epoch}/{trainer.epochs}, batch {trainer.batch}/{len(trainer.train_loader)}"
        saved = run.writer.position
        if saved and saved["global_step"] < trainer.global_step and run.ranks.is_main:
            place += f", and saved until {checkpoint.position(saved)}"
        status.say(f"Stopped in {place} ({stopped}). Run again to resume: {_left(trainer, run.limit)}.")
        raise
    except BaseException as error:
        status.update(now=True, state="failed", error=str(error))
        if isinstance(error, RuntimeError) and lost_gpu(error):
            raise DiedError(f"The GPU has failed: {str(error).splitlines()[0]}.", deaths.AGAIN) from error
        raise
    status.update(now=True, state="finished", best_map=trainer.best_map)
    where = f" in {trainer.best}" if trainer.best.exists() else ""
    best = f"best mAP {trainer.best_map:.4f}{where}" if trainer.best_map is not None else "no validation"
    status.say(f"Training finished: {len(trainer.history)} epochs, {best}")


def _left(trainer: Resumable, limit: Deadline) -> str:
    """Return how much is left to do, estimated from the epochs so far."""
    if trainer.stop:
        return "only the final evaluation is left"
    done = trainer.epoch + trainer.batch / len(trainer.train_loader)
    seconds = (time.monotonic() - trainer.train_time_start) / max(done, 1e-9) * (trainer.epochs - done)
    sessions = limit.sessions(seconds)
    text = f"about {duration(seconds)} of training left"
    return text if sessions is None else f"{text}, about {max(sessions, 1)} more session{'s' * (sessions > 1)}"


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
