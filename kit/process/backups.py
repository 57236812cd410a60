"""Backups off the machine, by a process of their own beside the one that trains.

The launcher starts it twice, with the words that it starts training with: `FETCH` before training brings the newest
backup of the run into scratch, where discovery finds it; `KEEP` during training uploads the newest published
checkpoints, and the last ones at the end. A process can be ended in mid-upload, which a thread cannot; the clients'
imports, threads and output stay out of the notebook's kernel; and it is nicer to the CPU than training.

Neither goes on where it does not know what the store holds: the one ends the start then (unless
`kit.backup_required=False`), the other uploads nothing.

Not covered: what was saved after the last upload, when the machine goes without warning.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from types import FrameType

from kit.backup.pins import remove_leftovers
from kit.backup.restore import fetch
from kit.backup.secrets import describe, leave
from kit.backup.stores import open_store
from kit.backup.upload import Backup, report
from kit.config import Config
from kit.errors import KitError
from kit.kaggle import session
from kit.process.parent import ORPHAN_S, ORPHANED, PARENT, tie_to_parent

TASK = "KIT_BACKUP"  # set by the launcher: FETCH or KEEP
FETCH, KEEP = "fetch", "keep"
POLL_S = 1.0
LAST_S = 300.0  # seconds for the last upload
LAST_PAUSES_S = (1, 2, 4)  # after each time that it failed
READY_PAUSE_S = 5  # between two looks for what was uploaded at last


def time_left(config: Config) -> float:
    """Return the seconds that the last upload may take: never beyond the session's end."""
    end = session.deadline(config.kit.session_hours)
    return LAST_S if end is None else max(0.0, min(LAST_S, end - time.time() - 5))


def main(config: Config, resume: str) -> int:
    """Do in this process what the launcher asked for.

    Returns:
        0, or what `kit train` has to exit with.
    """
    stop: list[int] = []
    out = os.fdopen(os.dup(1), "w", buffering=1)

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # the log may lie on a full disk
            print(line, file=out)

    def ask(number: int, frame: FrameType | None) -> None:
        stop.append(number)
        if number == ORPHANED:
            signal.alarm(ORPHAN_S)

    task = os.environ[TASK]
    for number in (signal.SIGINT, signal.SIGTERM, ORPHANED):
        signal.signal(number, ask if task == KEEP else leave(say, "Stopped before training began.", 75))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # held back by the launcher until here
    tie_to_parent(int(os.environ[PARENT]), ORPHANED)
    for stream in (1, 2):  # the clients' progress bars, and whatever they print of a request
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    try:
        if task == FETCH:
            fetch(config, resume, open_store, say)
        else:
            _keep(config, resume, stop, say)
    except KitError as error:
        say(f"error: {error}")
        return error.exit_code
    except Exception as error:  # in a client or here
        required = config.kit.backup_required
        say(f"{'error' if required and task == FETCH else 'WARNING'}: There are no backups: {describe(error)}")
        return int(required)
    return 0


def _keep(config: Config, resume: str, stop: list[int], say: Callable[[str], None]) -> None:
    os.nice(10)
    address = str(config.kit.backup)
    remove_leftovers(config.run_folder)
    backup = Backup(config.run_folder, address, open_store(address), resume == "never", say)
    while not stop:
        backup.step()
        time.sleep(POLL_S)
    left, pauses = time_left(config), list(LAST_PAUSES_S)
    give_up = time.monotonic() + left - POLL_S
    if not backup.current:
        say(f"Backing up the last state, for {left:.0f} s at most; a stop now skips it.")
    while not backup.step(last=True) and (backup.waits or pauses) and time.monotonic() < give_up:
        time.sleep(READY_PAUSE_S if backup.waits else pauses.pop(0))
    if line := report(config.run_folder):
        say(line)
