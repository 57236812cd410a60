"""Find the checkpoint to resume from, by content and never by modification time.

A candidate counts when it is verified and belongs to the same run; among those the one of the latest branch wins, and
of that the one with the most steps. Each gets a verdict that says why it was taken or not. Where none is left
`kit.yolo.resume` looks at `best.pt`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from kit.config import Config, differences, from_dict
from kit.errors import CheckpointError, InputError, MismatchError
from kit.kaggle import inputs, session
from kit.store import checkpoint
from kit.store.checkpoint import Summary
from kit.store.folder import LATEST, PREVIOUS

LESS = "fewer steps than the one that is taken"
FAR = 1 << 40  # more steps than any run has: a later branch is further
ABANDONED = "abandoned"  # the suffix of the newest checkpoint before a branch, until the branch has more steps


@dataclass(frozen=True)
class Candidate:
    """A checkpoint file that was inspected."""

    path: Path
    summary: Summary | None = None  # None where it is damaged or none of the kit's
    identity: dict[str, Any] = field(default_factory=dict)  # what it was trained as: `task`, `names`, `structure` ...
    config: dict[str, Any] = field(default_factory=dict, repr=False)  # the settings that it was trained with
    problem: str = ""  # why it is no good checkpoint
    hint: str = ""  # what to do about that
    state: dict[str, Any] | None = field(default=None, repr=False)  # all of it; tensors stay on disk until touched

    def to_dict(self) -> dict[str, Any]:
        """Return what is worth printing, as plain values."""
        summary = None if self.summary is None else asdict(self.summary)
        known = {"path": str(self.path), "summary": summary, "identity": self.identity}
        return {**known, "problem": self.problem, "hint": self.hint}


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate is taken; one that is, or could be, is verified."""

    candidate: Candidate
    taken: bool = False
    reason: str = ""  # why not
    foreign: bool = False  # it is good, and of another run

    def to_dict(self) -> dict[str, Any]:
        """Return what is worth printing, as plain values."""
        return {**self.candidate.to_dict(), "taken": self.taken, "reason": self.reason}


def scan(config: Config) -> list[Candidate]:
    """Open every checkpoint within reach, most steps first; the good ones are still to be verified.

    That is what lies in the run folder, what was uploaded into the working folder, all that is attached, and what was
    fetched from a backup or rescued from a full disk.
    """
    opened = [look(path, verify=False) for path in _places(config)]
    candidates = [look(found.path) if found.problem else found for found in opened]  # which says what is damaged
    return sorted(candidates, key=lambda found: (-1, 0) if found.summary is None else found.summary.order, reverse=True)


def look(path: Path, load: Callable[[Path], Any] = checkpoint.load, *, verify: bool = True) -> Candidate:
    """Inspect one file: what it holds, and whether every byte of it is good."""
    try:
        state = checkpoint.read(path, load, verify=verify)
        config = dict(state["config"])
        dict(config.get("kit") or {})  # which `changes` looks at
        return Candidate(path, checkpoint.summarize(state), checkpoint.identify(state), config, state=state)
    except CheckpointError as error:
        return Candidate(path, problem=error.message, hint=error.hint)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return Candidate(path, problem=f"'{path}' is not a checkpoint of this kit: it has no sound {error}.")


def judge(config: Config, identity: dict[str, Any]) -> list[Verdict]:
    """Decide which checkpoint to resume from: verified, of the same run, with the most steps.

    The run folder decides which run that is: another one is not taken, whatever its steps. Where the folder is empty,
    checkpoints of the same task, architecture and classes count, those with the same settings first.

    Args:
        config: The settings.
        identity: What tells this run from others: `task`, `names`, `model` and `structure`.

    Returns:
        A verdict for every candidate, the one with the most steps first. At most one is taken; a file is read to its
        end only where that could still change the choice.

    Raises:
        MismatchError: The run folder holds another run.
    """
    candidates, folder = scan(config), config.files.checkpoints
    looked = {found.path: found for found in candidates if found.problem}

    def good(found: Candidate) -> bool:
        if found.path not in looked:
            looked[found.path] = look(found.path)
        return not looked[found.path].problem

    own = next((found for found in candidates if found.path.parent == folder and good(found)), None)
    if own and (problem := mismatch(own, identity)):
        raise MismatchError(
            f"'{config.run_folder}' holds another run: {problem}.",
            "Choose another folder with kit.run=runs/other, or start fresh and keep the old run with --resume never.",
        )
    others = {found.path: _another(found, own, identity) for found in candidates if not found.problem}
    same = [found for found in candidates if others.get(found.path) == ""]
    if not own:
        same.sort(key=lambda found: bool(changes(found, config)))
    taken = next(filter(good, same), None)
    return [
        Verdict(
            replace(found, problem=seen.problem, hint=seen.hint),
            taken=found is taken,
            reason="" if found is taken else seen.problem or others[found.path] or LESS,
            foreign=bool(others.get(found.path)) and not seen.problem,
        )
        for found in candidates
        for seen in [looked.get(found.path, found)]
    ]


def changes(found: Candidate, config: Config) -> list[str]:
    """List the settings that differ from a good candidate's and must not change silently."""
    return differences(from_dict(config.schema, found.config), config)


def steps(config: Config, resume: str, identity: dict[str, Any], load: Callable[[Path], Any]) -> int:
    """Return a number that is the greater the further the checkpoint is that this machine would resume from, or -1.

    Args:
        config: The settings.
        resume: `auto`, `never` or the path of a checkpoint, which `load` opens.
        identity: What tells this run from others.
        load: As `look` takes it.
    """
    try:
        if resume == "auto":
            found = [verdict.candidate for verdict in judge(config, identity) if verdict.taken]
        else:
            paths = [Path(resume).expanduser()] if resume != "never" else []
            found = [look(path, load, verify=False) for path in paths]
    except InputError:
        return -1  # if no machine has one, the main process says why
    orders = [each.summary.order for each in found if each.summary]
    return max((branch * FAR + step for branch, step in orders), default=-1)


def branch(found: Candidate, config: Config, *, changed: bool) -> None:
    """Note that the run is resumed from this checkpoint where another one would be taken, or with other settings.

    That is a decision: it is part of each checkpoint from here on, and counts more than steps. The newest checkpoint of
    the old line is kept under a name of its own until the branch has more steps (`kit.yolo.resume.install`).
    """
    assert found.summary is not None
    assert found.state is not None
    rivals = [
        each.summary.order
        for each in scan(config)
        if each.summary
        and (each.path.parent == config.files.checkpoints or each.summary.run_id == found.summary.run_id)
    ]
    furthest = max(rivals, default=found.summary.order)
    if changed or furthest > found.summary.order:
        found.state["progress"] |= {"branch": furthest[0] + 1, "branched": True}


def _another(found: Candidate, own: Candidate | None, identity: dict[str, Any]) -> str:
    if problem := mismatch(found, identity):
        return f"of another run: {problem}"
    if own and own.summary and found.summary and own.summary.run_id != found.summary.run_id:
        return "of another run than the one in the run folder"
    return ""


def mismatch(candidate: Candidate, identity: dict[str, Any]) -> str:
    """Return why a candidate is of another run; empty when it is of the same one.

    A model is what it is built of. Its name tells only where that is not known, because its file is not here or
    because another version of Ultralytics may build it otherwise.
    """
    own = candidate.identity
    for key, word in (("task", "task"), ("names", "classes")):
        if own.get(key) != identity[key]:
            return f"its {word} is {_short(own.get(key))} and not {_short(identity[key])}"
    known = bool(identity.get("structure")) and own["structure"] != identity["structure"]
    if known and own["ultralytics"] != identity["ultralytics"]:  # which may build another one of the same files
        known = own["files"] not in (None, identity["files"])
    if own.get("model") != identity["model"] and (known or own["structure"] != identity.get("structure")):
        return f"its model is {_short(own.get('model'))} and not {_short(identity['model'])}"
    return f"its model {_short(own.get('model'))} has other layers than that of model=... has now" if known else ""


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return f"'{text}'" if len(text) < 60 else f"'{text[:57]}...'"


def _places(config: Config) -> Iterator[Path]:
    """Yield the run's own checkpoints, then uploads, also under a browser's renamed copy."""
    for pattern in (LATEST, PREVIOUS, f"{LATEST}.{ABANDONED}*"):
        yield from sorted(config.files.checkpoints.glob(pattern))
    for name in (LATEST, PREVIOUS):
        pattern = name.replace(".", "*.")
        yield from sorted(session.working().glob(pattern))
        yield from inputs.files(pattern)
    for folder in (config.restored_folder, session.rescue_folder(config.run_folder)):
        if folder is not None and (folder / LATEST).exists():
            yield folder / LATEST
