"""Which checkpoint a run goes on from."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import yaml
from ultralytics.nn.tasks import guess_model_task, yaml_model_load

from kit import data, discovery, session, storage
from kit.checkpoint import BEST, LATEST, PREVIOUS
from kit.config import Config
from kit.discovery import LESS, Candidate, Verdict
from kit.errors import CheckpointError, MismatchError, ModelError
from kit.status import Status, duration
from kit.trainer.run import STOCK
from kit.trainer.setup import load_model, open_checkpoint

UPLOADED = BEST.replace(".", "*.")  # a browser may have given it a number
SHOWN = 3  # checkpoints that are said not to be taken; `find` lists them all


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
    if task not in STOCK:
        raise ModelError(f"The kit does not train the task '{task}' of '{name}': it trains {', '.join(STOCK)}.")
    return {"task": task, "model": Path(name).stem, "names": data.names(config, dataset)}


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
    if found is None or found.summary is None or found.state is None:
        return None
    state, changed = found.state, discovery.changes(found, config)
    if changed and resume == "auto":
        raise MismatchError(
            f"The checkpoint '{found.path}' was trained with other settings ({'; '.join(changed)}). "
            f"Go on with the new ones: --resume {found.path}. Start anew and keep the old run: --resume never."
        )
    best = "" if found.summary.best_map is None else f", best mAP {found.summary.best_map:.4f}"
    age = duration(time.time() - found.summary.saved)
    status.say(f"Found checkpoint: {found.path} ({found.summary.position}{best}, saved {age} ago)")
    status.say(f"Resuming from checkpoint: {found.path}")
    if changed:
        status.say(f"Not exact from here on, the settings changed: {'; '.join(changed)}")
    if found.path.parent != folder:
        arriving = folder / f".{LATEST}{storage.TEMPORARY}"
        storage.make_room(folder, found.path.stat().st_size)
        storage.copy(found.path, arriving)  # before anything gives way to it
        for path in (folder / LATEST, folder / PREVIOUS):
            if path.exists():
                status.say(f"{path.name} of the run folder was kept as {storage.set_aside(path, 'old').name}")
        arriving.replace(folder / LATEST)
    _see_to_best(folder / BEST, found, status)
    return state


def _see_to_best(best: Path, found: Candidate, status: Status) -> None:
    """Have a good `best.pt` in the run folder: the one that is there, or one of the same run that lies elsewhere."""
    if found.path == best:
        return
    if best.exists():
        seen = discovery.look(best, load=open_checkpoint)
        if seen.problem:
            status.say(f"WARNING: {seen.problem}")
            status.say(f"It was set aside as {storage.set_aside(best).name}")
        elif found.path.parent == best.parent or _same_best(seen, found):
            return
        else:
            status.say(f"{best.name} of the run folder was kept as {storage.set_aside(best, 'old').name}")
    if found.summary is None or found.summary.best_map is None:
        return
    for path in [*sorted(found.path.parent.glob(UPLOADED)), *sorted(session.inputs().rglob(UPLOADED))]:
        if path != best:
            seen = discovery.look(path, load=open_checkpoint)
            if seen.problem:
                status.say(f"WARNING: {seen.problem}")
            elif _same_best(seen, found):
                storage.copy(path, best)
                return


def _same_best(one: Candidate, other: Candidate) -> bool:
    return bool(one.summary and other.summary and one.summary.best == other.summary.best)


def complete(config: Config, state: dict[str, Any]) -> bool:
    """Tell whether a checkpoint stands at the end: all epochs done, or stopped early for want of progress."""
    idle = state["epoch"] - state["loop"]["stopper"]["best_epoch"]
    return bool(state["epoch"] >= config.get("epochs") or idle >= (config.get("patience") or float("inf")))


def _search(config: Config, identity: dict[str, Any], status: Status) -> Candidate | None:
    folder = config.run_folder / "checkpoints"
    verdicts = discovery.judge(config, identity)
    taken = next((verdict.candidate for verdict in verdicts if verdict.taken), None)
    if not taken and (folder / BEST).exists():
        best = discovery.look(folder / BEST, load=open_checkpoint)  # a whole checkpoint too
        reason = best.problem or discovery.mismatch(best, identity)
        verdicts.append(Verdict(best, taken=not reason, reason=reason))
        taken = None if reason else best
    for damaged in [verdict.candidate for verdict in verdicts if verdict.candidate.problem]:
        status.say(f"WARNING: {damaged.problem}")
        if damaged.path.parent == folder:
            status.say(f"It was set aside as {storage.set_aside(damaged.path).name}")
    refused = [each for each in verdicts if not each.taken and not each.candidate.problem and each.reason != LESS]
    for verdict in refused[:SHOWN]:
        status.say(f"Not taken: {verdict.candidate.path} ({verdict.reason})")
    if refused[SHOWN:]:
        status.say(f"Not taken: {len(refused) - SHOWN} more, which `python -m kit find` lists")
    return taken


def _given(path: Path, identity: dict[str, Any]) -> Candidate:
    candidate = discovery.look(path, load=open_checkpoint)
    if candidate.problem:
        raise CheckpointError(candidate.problem)
    if problem := discovery.mismatch(candidate, identity):
        raise MismatchError(f"'{path}' belongs to another run: {problem}. Check --resume, model= and data=.")
    return candidate
