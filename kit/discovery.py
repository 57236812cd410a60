"""Find the checkpoint to go on from, by content and never by modification time.

A candidate counts when it is verified and belongs to the same run; among those the one with the most steps wins. Each
candidate says why it was taken or not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from kit import checkpoint, session
from kit.checkpoint import LATEST, PREVIOUS, Summary
from kit.errors import CheckpointError


@dataclass(frozen=True)
class Candidate:
    """A checkpoint file that was looked at.

    Attributes:
        path: Where it lies.
        summary: What it holds, or None when it is no good checkpoint.
        identity: What it was trained as: `task`, `model` (architecture) and `names` (classes).
        problem: Why it is no good checkpoint, or an empty text.
        state: All of it; the tensors stay on disk until they are touched.
    """

    path: Path
    summary: Summary | None
    identity: dict[str, Any]
    problem: str = ""
    state: dict[str, Any] | None = field(default=None, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return what is worth printing, as plain values."""
        summary = None if self.summary is None else asdict(self.summary)
        return {"path": str(self.path), "summary": summary, "identity": self.identity, "problem": self.problem}


def scan(run_folder: Path) -> list[Candidate]:
    """Look at every checkpoint within reach, the one with the most steps first.

    Args:
        run_folder: Of the run; everything attached under the input folder is looked at too.
    """
    candidates = [look(path) for path in _places(run_folder)]
    return sorted(
        candidates, key=lambda found: -1 if found.summary is None else found.summary.global_step, reverse=True
    )


def look(path: Path, load: Callable[[Path], Any] = checkpoint.load) -> Candidate:
    """Verify one file and say what it holds."""
    try:
        state = checkpoint.read(path, load)
        return Candidate(path, checkpoint.summarize(state), dict(state["architecture"]), state=state)
    except CheckpointError as error:
        return Candidate(path, None, {}, str(error))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return Candidate(path, None, {}, f"'{path}' is not a checkpoint of this kit: it has no sound {error}.")


def mismatch(candidate: Candidate, identity: dict[str, Any]) -> str:
    """Say in which way a candidate is of another run; empty when it is of the same one."""
    for key, word in (("task", "task"), ("model", "model"), ("names", "classes")):
        if candidate.identity.get(key) != identity[key]:
            return f"its {word} is {_short(candidate.identity.get(key))} and not {_short(identity[key])}"
    return ""


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    return f"'{text}'" if len(text) < 60 else f"'{text[:57]}...'"


def _places(run_folder: Path) -> Iterator[Path]:
    for name in (LATEST, PREVIOUS):
        if (run_folder / "checkpoints" / name).exists():
            yield run_folder / "checkpoints" / name
    if session.inputs().is_dir():
        for name in (LATEST, PREVIOUS):
            yield from sorted(session.inputs().rglob(name))
