"""What is done where the disk is full.

- A save between epochs leaves `kit.store.disk.RESERVE` free. Where it finds no room it is left out, and the next one is
  tried: `kit.store.writer`.
- A save that must be made deletes what can be made again: the hard links in `downloads`, which keep older checkpoints
  alive, and at last `previous.pt`. So the last save of a run fits wherever there was room for two: `make_way`.
- The last save of a run or a session goes into scratch where that was not enough, and then waits for room: `insist`.

What is small (`status.json`, `results.csv`) is written again with the next news.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from kit.errors import StorageError
from kit.kaggle import session
from kit.store.disk import DISK, Disk
from kit.store.folder import RunFolder

WAIT_S, POLL_S = 60.0, 1.0  # for room


def make_way(save: Callable[[], None], files: RunFolder, disk: Disk = DISK) -> None:
    """Save, and delete one after the other of what can be made again until there is room.

    Args:
        save: Raises where there is no room.
        files: Those of the run.
        disk: The system calls.

    Raises:
        StorageError: The disk refused.
    """
    spare = _spare(files)
    while True:
        try:
            return save()
        except StorageError as error:
            gone = next(spare, None) if error.full else None
            if gone is None:
                raise
            disk.unlink(gone)


def _spare(files: RunFolder) -> Iterator[Path]:
    """Yield what may be deleted; `previous.pt` only where it is not the only checkpoint."""
    yield from sorted(files.downloads.glob("*.pt"))
    if files.latest.exists() and files.previous.exists():
        yield files.previous


def insist(
    save: Callable[[], None],
    rescue: Callable[[Path], None],
    path: Path,
    warn: Callable[[str, str], None],
    enough: Callable[[], bool],
) -> bool:
    """Save where no other save follows: without room into scratch, and then wait for room.

    On Kaggle scratch goes with the session, so where a user may make room the wait is as long as training may wait.

    Args:
        save: Raises where there is no room.
        rescue: Saves under another path.
        path: In scratch.
        warn: Told what happened and what to do, before the wait.
        enough: Asked whether to give up.

    Returns:
        Whether it had to wait.

    Raises:
        StorageError: There was no room in the end; the message says where the checkpoint is, if it is anywhere.
    """
    try:
        save()
    except StorageError as error:
        if not error.full:
            raise
        where, hint = f"The checkpoint is in '{path}', which ends with the session.", "Make room and run again before."
        try:
            rescue(path)
        except StorageError as problem:
            where = "Nor is there room in scratch: what was trained since the last checkpoint is lost without it."
            hint = problem.hint
        text = f"{error.message} {where}"
        warn(f"{text} Waiting for room.", "Make room; a stop gives up.")
        give_up = time.monotonic() + (math.inf if session.run_type() == "interactive" else WAIT_S)
        while time.monotonic() < give_up and not enough():
            time.sleep(POLL_S)
            with suppress(StorageError):
                save()
                return True
        raise StorageError(text, hint, full=True) from error
    return False
