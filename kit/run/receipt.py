"""Whether a resume is exact: the losses that a session saw after its last checkpoint must come again in the next.

A kill leaves batches that were trained after the newest checkpoint, and the next session trains them once more. A stop
leaves none, so a few batches are trained after its save for this alone (`kit.receipt`), and thrown away. The running
losses of an epoch after such a batch depend on all that an exact resume needs: weights, optimizer, learning rates, the
order of the data, augmentation and random numbers. `status.json` has them anyway, so they cost nothing.

Not covered: the averaged weights and what validation finds; a stop during validation, and after an epoch's last batch.
"""

from __future__ import annotations

from typing import Any

from kit.text import for_json

KEPT = 20  # entries, which are at least half a second apart
AHEAD_S = 2.0  # seconds that a stop may take longer for the sake of a receipt


class Receipt:
    """The losses that a session saw after its newest checkpoint, and those that the one before had seen.

    Args:
        before: The receipt of the session before, from `status.json`; anything else counts as none.
        line: `run_id`, `branch` and `epochs`: what the losses are a function of, beside the step.
    """

    def __init__(self, before: Any, line: dict[str, Any]) -> None:
        self.line, self._seen = line, list[tuple[int, dict[str, Any]]]()
        known = isinstance(before, dict) and before.items() >= line.items() and isinstance(before.get("seen"), list)
        self.expected: dict[int, Any] = {}
        for entry in before["seen"] if known else ():
            if isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], int):
                self.expected[entry[0]] = entry[1]

    def begin(self, step: int) -> None:
        """Forget what precedes the step that this session resumes from."""
        self.began = step
        self.expected = {at: losses for at, losses in self.expected.items() if at > step}

    def note(self, step: int, losses: dict[str, Any], saved: int) -> dict[str, Any]:
        """Take note of the running losses after a batch, and return the receipt for `status.json`.

        Args:
            step: Batches since the beginning of the run.
            losses: By name.
            saved: The step of the newest checkpoint on the disk; earlier losses are of no use.
        """
        self._seen = [(at, seen) for at, seen in self._seen if at > saved][: KEPT - 1]
        self._seen.append((step, for_json(losses)))
        return {**self.line, "seen": self._seen}

    def compare(self, step: int, losses: dict[str, Any]) -> str | None:
        """Compare with what the session before saw after this batch, where it took note of that.

        Returns:
            None where there is nothing to report yet; an empty text when all losses were the same; else what differs
            first.
        """
        if step not in self.expected:
            return None
        before, now = self.expected.pop(step), for_json(losses)
        if before == now:
            return None if self.expected else ""
        self.expected.clear()
        names = [name for name in now if not isinstance(before, dict) or before.get(name) != now[name]] or ["a loss"]
        was = before.get(names[0]) if isinstance(before, dict) else before
        return f"{names[0]} is {now.get(names[0])!r}, and was {was!r} in the session before"
