"""Bring the checkpoint that `kit.run.discovery` chose, or that was given, into the run folder."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ultralytics
from ultralytics.nn.tasks import guess_model_task

from kit.config import Config
from kit.data import description, find
from kit.errors import CheckpointError, MismatchError, ModelError
from kit.kaggle import session
from kit.run import discovery
from kit.run.discovery import ABANDONED, Candidate, Verdict
from kit.run.status import Status, read as news
from kit.store import checkpoint, disk, peek
from kit.store.folder import BEST, LATEST, PREVIOUS, RunFolder
from kit.text import duration
from kit.yolo import models, stock
from kit.yolo.compatible import check, fitting
from kit.yolo.models import open_best, open_checkpoint
from kit.yolo.tasks import STOCK

UPLOADED = BEST.replace(".", "*.")  # a browser may have given it a number
SHOWN = 3  # checkpoints that are reported as not taken; `find` lists them all


def task_of(config: Config, resume: str = "auto") -> str:
    """Return the task that a run trains: that of its model, or of its checkpoint where the model's file is not here.

    Raises:
        ModelError: The model is of a task that the kit does not train or of another than `task=` says; it is damaged.
    """
    model, wanted = str(config.get("model")), config.train.get("task")
    if not model.lower().endswith((".pt", ".yaml", ".yml")):
        raise ModelError(f"The model '{model}' must be a .pt or a .yaml file, for example yolov8n.pt.")
    task = models.task_of(model) if models.is_here(model) else None
    if None not in (task, wanted) and task != wanted:
        raise ModelError(f"The model '{model}' is for the task '{task}', not '{wanted}'.", "Correct task= or model=.")
    task = task or wanted or _task_found(config, resume)
    if task is None:  # no checkpoint can do without the model's file
        task = guess_model_task(model) if model.lower().endswith(".pt") else models.task_of(model)
    if task not in STOCK:
        raise ModelError(f"The kit does not train the task '{task}' of '{model}'.", f"It trains {', '.join(STOCK)}.")
    return str(task)


def check_model(config: Config, resume: str) -> None:
    """Make sure that there is something to begin with.

    Raises:
        ModelError: The model's file is not here and cannot be fetched, and no checkpoint does without it.
    """
    model = str(config.get("model"))
    known = not model.lower().endswith(".pt") or models.is_here(model) or models.is_published(model)
    if not known and _task_found(config, resume) is None:
        raise ModelError(f"The model '{model}' does not exist.", "Check model=...")


def _task_found(config: Config, resume: str) -> str | None:
    """Return the task of the checkpoint that is there for a model of this name."""
    if resume in ("auto", "never"):
        found = discovery.scan(config.run_folder, config.restored_folder) if resume == "auto" else []
    else:
        found = [discovery.look(Path(resume).expanduser(), open_checkpoint, verify=False)]
    name = Path(str(config.get("model"))).stem
    return next((str(each.identity["task"]) for each in found if each.identity.get("model") == name), None)


def identify(config: Config, dataset: find.DataSet, task: str) -> dict[str, Any]:
    """Return what tells a run from others.

    Returns:
        `task`, `model` (the name of its file), `names` (its classes), `structure` (a hash of the model as it is built
        here; empty where one of its files is not here), `files` (a hash of each that it starts from) and the version of
        `ultralytics`.
    """
    model, pretrained, names = str(config.get("model")), config.get("pretrained"), find.names(config, dataset)
    files = {"model": model, **({"pretrained": pretrained} if isinstance(pretrained, str) else {})}
    structure = ""
    if all(map(models.is_here, files.values())):
        values = {} if dataset.path.is_dir() else description.read(dataset.path)
        made_for = {
            "nc": len(names),
            "names": dict(enumerate(names)),
            "channels": values.get("channels", 3),
            "kpt_shape": values.get("kpt_shape"),
        }
        with suppress(ModelError):  # set-up fails in the same way, and says so
            built = models.build(task, *models.sources(model, pretrained), made_for)
            structure = checkpoint.structure(built.yaml, built.state_dict())
    return {
        "task": task,
        "model": Path(model).stem,
        "names": names,
        "structure": structure,
        "files": {name: peek.checksum(Path(file)) for name, file in files.items() if Path(file).is_file()},
        "ultralytics": ultralytics.__version__,
    }


def choose(config: Config, resume: str, identity: dict[str, Any], status: Status) -> Candidate | None:
    """Return the checkpoint to resume from, or None to start at the beginning; `install` brings it into the run folder.

    Raises:
        CheckpointError: The file that was asked for is no good checkpoint.
        MismatchError: The checkpoint belongs to another run or to other settings.
    """
    if resume == "never":
        return None
    found = _search(config, identity, status) if resume == "auto" else _given(resume, identity, status)
    if found is None or found.summary is None or found.state is None:
        return None
    state, changed = found.state, discovery.changes(found, config)
    with fitting(str(found.path)):
        check(state)
    if changed and resume == "auto":
        raise MismatchError(
            f"The checkpoint '{found.path}' was trained with other settings ({'; '.join(changed)}).",
            f"Resume with the new ones: --resume {found.path}. Start fresh and keep the old run: --resume never.",
        )
    best = "" if found.summary.best_map is None else f", best mAP {found.summary.best_map:.4f}"
    age = duration(time.time() - found.summary.saved)
    status.say(f"Found checkpoint: {found.path} ({found.summary.position}{best}, saved {age} ago)")
    status.say(f"Resuming from checkpoint: {found.path}")
    if changed:
        status.say(f"No longer bit-exact, the settings changed: {'; '.join(changed)}")
    began = state["architecture"].get("files") or {}
    if other := [name for name in began if identity["files"].get(name, began[name]) != began[name]]:
        status.say(
            f"The file of {' and '.join(other)}= is not the one that this run began with, and is not used: to start "
            "from it, --resume never"
        )
    if resume != "auto":
        _branch(found, bool(changed), config)
    if found.path.parent != RunFolder(config.run_folder).checkpoints:
        status.values["receipt"] = news(found.path.parent.parent).get("receipt")
    return found


def install(config: Config, found: Candidate, status: Status) -> None:
    """Bring a checkpoint that was restored into the run folder, and its best model.

    Raises:
        StorageError: There is no room.
    """
    folder = RunFolder(config.run_folder).checkpoints
    latest, branched = folder / LATEST, found.state and found.state["progress"].get("branched")
    if branched and latest.exists() and found.path.parent == folder and found.path != latest:
        kept = folder / f"{LATEST}.{ABANDONED}"
        disk.link_or_copy(latest, kept)
        status.say(f"The run's newest checkpoint is kept as {kept.name} until this branch has more steps")
    if found.path.parent != folder:
        arriving = folder / f".{LATEST}{disk.TEMPORARY}"
        disk.make_room(folder, found.path.stat().st_size)
        disk.copy(found.path, arriving)  # before anything gives way to it
        for path in (folder / LATEST, folder / PREVIOUS):
            if path.exists():
                status.say(f"{path.name} of the run folder was kept as {disk.quarantine(path, 'old').name}")
        disk.DISK.replace(arriving, folder / LATEST)
    _see_to_best(folder / BEST, found, status)


def _branch(found: Candidate, changed: bool, config: Config) -> None:
    """Note that the run was resumed from this checkpoint where another one would be taken, or with other settings.

    That is a decision: it is part of each checkpoint from here on, and counts more than steps. The newest checkpoint of
    the old line is kept under a name of its own until the branch has more steps (`install`).
    """
    assert found.summary is not None
    assert found.state is not None
    folder = RunFolder(config.run_folder).checkpoints
    scanned = [each for each in discovery.scan(config.run_folder, config.restored_folder) if each.summary]
    rivals = [each for each in scanned if each.path.parent == folder or _same_run(each, found)]
    furthest = max((each.summary.order for each in rivals if each.summary), default=found.summary.order)
    if not changed and furthest <= found.summary.order:
        return
    found.state["progress"] |= {"branch": furthest[0] + 1, "branched": True}


def _same_run(one: Candidate, other: Candidate) -> bool:
    return bool(one.summary and other.summary and one.summary.run_id == other.summary.run_id)


def _see_to_best(best: Path, found: Candidate, status: Status) -> None:
    """Make sure that the run folder has a good `best.pt`: the one that is there, or one of the same run elsewhere."""
    if found.path == best:
        return
    if best.exists():
        seen = discovery.look(best, load=open_best)
        if seen.problem:
            status.warn(seen.problem, hint=seen.hint)
            status.say(f"It was set aside as {disk.quarantine(best).name}")
        elif found.path.parent == best.parent or _same_best(seen, found):
            return
        else:
            status.say(f"{best.name} of the run folder was kept as {disk.quarantine(best, 'old').name}")
    if found.summary is None or found.summary.best_map is None:
        return
    for path in [*sorted(found.path.parent.glob(UPLOADED)), *sorted(session.inputs().rglob(UPLOADED))]:
        if path != best:
            seen = discovery.look(path, load=open_best)
            if seen.problem:
                status.warn(seen.problem, hint=seen.hint)
            elif _same_best(seen, found):
                disk.copy(path, best)
                return


def _same_best(one: Candidate, other: Candidate) -> bool:
    return bool(one.summary and other.summary and one.summary.best == other.summary.best)


def complete(config: Config, state: dict[str, Any]) -> bool:
    """Tell whether a checkpoint is at the end: all epochs done, or stopped early without progress."""
    idle = state["epoch"] - state["loop"]["stopper"]["best_epoch"]
    return bool(state["epoch"] >= config.get("epochs") or idle >= (config.get("patience") or float("inf")))


def _search(config: Config, identity: dict[str, Any], status: Status) -> Candidate | None:
    folder = RunFolder(config.run_folder).checkpoints
    verdicts = discovery.judge(config, identity)
    taken = next((verdict.candidate for verdict in verdicts if verdict.taken), None)
    if not taken and (folder / BEST).exists():
        best = discovery.look(folder / BEST, load=open_checkpoint)  # a whole checkpoint too
        other = "" if best.problem else discovery.mismatch(best, identity)
        reason = best.problem or other
        verdicts.append(Verdict(best, taken=not reason, reason=reason, foreign=bool(other)))
        taken = None if reason else best
    for damaged in [verdict.candidate for verdict in verdicts if verdict.candidate.problem]:
        status.warn(damaged.problem, hint=damaged.hint)
        if damaged.path.parent == folder:
            status.say(f"It was set aside as {disk.quarantine(damaged.path).name}")
    refused = [each for each in verdicts if each.foreign]
    for verdict in refused[:SHOWN]:
        status.say(f"Not taken: {verdict.candidate.path} ({verdict.reason})")
    if refused[SHOWN:]:
        status.say(f"Not taken: {len(refused) - SHOWN} more, which `python -m kit find` lists")
    return taken


def _given(name: str, identity: dict[str, Any], status: Status) -> Candidate:
    path = Path(name).expanduser()
    candidate = discovery.look(path, load=open_checkpoint)
    if candidate.problem and (converted := stock.convert(path)):
        status.say(
            f"'{path}' is Ultralytics' own checkpoint: weights, average, optimizer, epoch and results are taken over, "
            "in its half precision and so not exactly"
        )
        place = disk.make_folder(session.scratch() / "converted") / LATEST
        disk.publish(place, lambda file: checkpoint.write(converted, file), durable=False)
        candidate = discovery.look(place)
    if candidate.problem:
        raise CheckpointError(candidate.problem, candidate.hint)
    if problem := discovery.mismatch(candidate, identity):
        raise MismatchError(f"'{path}' belongs to another run: {problem}.", "Check --resume, model= and data=.")
    return candidate
