"""Bring the checkpoint that `kit.run.discovery` chose, or that was given, into the run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kit.config import Config
from kit.errors import CheckpointError, MismatchError
from kit.kaggle import inputs, session
from kit.run import discovery
from kit.run.discovery import ABANDONED, Candidate, Verdict
from kit.run.status import Status, read as news
from kit.store import checkpoint, disk
from kit.store.folder import BEST, LATEST, PREVIOUS
from kit.yolo import stock
from kit.yolo.models import open_best, open_checkpoint

UPLOADED = BEST.replace(".", "*.")  # a browser may have given it a number
SHOWN = 3  # checkpoints that are reported as not taken; `find` lists them all


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
    if changed and resume == "auto":
        raise MismatchError(
            f"The checkpoint '{found.path}' was trained with other settings ({'; '.join(changed)}).",
            f"Resume with the new ones: --resume {found.path}. Start fresh and keep the old run: --resume never.",
        )
    best = "" if found.summary.best_map is None else f", best mAP {found.summary.best_map:.4f}"
    status.say(f"Found checkpoint: {found.path} ({found.summary.position}{best}, saved {found.summary.age} ago)")
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
        discovery.branch(found, config, changed=bool(changed))
    if found.path.parent != config.files.checkpoints:
        status.values["receipt"] = news(found.path.parent.parent).get("receipt")
    return found


def install(config: Config, found: Candidate, status: Status) -> None:
    """Bring a checkpoint that was restored into the run folder, and its best model.

    Raises:
        StorageError: There is no room.
    """
    folder = config.files.checkpoints
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
    for path in [*sorted(found.path.parent.glob(UPLOADED)), *inputs.files(UPLOADED)]:
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
    folder = config.files.checkpoints
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
