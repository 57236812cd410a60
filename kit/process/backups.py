"""Backups off the machine, by a process of their own beside the one that trains.

The launcher starts it twice: `python -m kit backups fetch` before training brings the newest backup of the run into
scratch, where discovery finds it; `python -m kit backups keep` during training uploads the newest published
checkpoints, and the last ones at the end. A process can be ended in mid-upload, which a thread cannot; the clients'
imports, threads and output stay out of the notebook's kernel; and it is nicer to the CPU than training.

`Keeper` is the second one as the launcher sees it: it lives as long as training, whatever ends it.

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
from functools import partial
from pathlib import Path
from subprocess import Popen

from kit.backup.pins import remove_leftovers
from kit.backup.reporter import Reporter
from kit.backup.restore import Restore
from kit.backup.secrets import describe, leave
from kit.backup.stores import open_store
from kit.backup.upload import Backup, read_news, report
from kit.config import Config
from kit.errors import KitError, Stopped
from kit.kaggle import deaths, machine, session
from kit.process.children import POLL_S, Log
from kit.process.parent import ORPHAN_S, ORPHANED, PARENT, tie_to_parent, write_ending, write_notice

FETCH, KEEP = "fetch", "keep"
LOOK_S = 1.0  # between two looks for a new checkpoint
LAST_S = 300.0  # seconds for the last upload
LAST_PAUSES_S = (1, 2, 4)  # after each time that it failed
READY_PAUSE_S = 5  # between two looks for what was uploaded at last
FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 600.0  # before it is started again; doubled each time
LAST_TRIES = 2  # where the last upload itself is killed


def time_left(config: Config) -> float:
    """Return the seconds that the last upload may take: never beyond the session's end."""
    end = session.deadline(config.kit.session_hours)
    return LAST_S if end is None else max(0.0, min(LAST_S, end - time.time() - 5))


def main(task: str, config: Config, resume: str, ended: Path) -> int:
    """Fetch or keep backups in this process; `ended` takes an exception, and warnings beside it, for the launcher.

    Returns:
        0, or what `kit train` has to exit with.
    """
    stop: list[int] = []
    out = os.fdopen(os.dup(1), "w", buffering=1)

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # the log may lie on a full disk
            print(line, file=out)

    reporter = Reporter(say, partial(write_notice, ended), partial(write_ending, ended))

    def stopped() -> int:
        say("Stopped before training began.")
        return Stopped.exit_code

    def ask(number: int, frame: object) -> None:
        stop.append(number)
        if number == ORPHANED:
            signal.alarm(ORPHAN_S)

    for number in (signal.SIGINT, signal.SIGTERM, ORPHANED):
        signal.signal(number, ask if task == KEEP else leave(stopped))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})  # held back by the launcher until here
    tie_to_parent(int(os.environ[PARENT]), ORPHANED)
    for stream in (1, 2):  # the clients' progress bars, and whatever they print of a request
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    try:
        if task == FETCH:
            Restore(config, open_store, reporter).fetch(resume)
        else:
            _keep(config, resume, stop, say)
    except Exception as error:  # in a client or here
        problem = error if isinstance(error, KitError) else KitError(f"There are no backups: {describe(error)}")
        if task == FETCH and (problem is error or config.kit.backup_required):
            return reporter.fail(problem)
        return reporter.warn(problem.message, problem.hint)
    return 0


def _keep(config: Config, resume: str, stop: list[int], say: Callable[[str], None]) -> None:
    os.nice(10)
    address = str(config.kit.backup)
    remove_leftovers(config.run_folder)
    backup = Backup(config.run_folder, address, open_store(address), resume == "never", say)
    while not stop:
        backup.step()
        time.sleep(LOOK_S)
    left, pauses = time_left(config), list(LAST_PAUSES_S)
    give_up = time.monotonic() + left - LOOK_S
    if not backup.current:
        say(f"Backing up the last state, for {left:.0f} s at most; a stop now skips it.")
    while not backup.step(last=True) and (backup.waits or pauses) and time.monotonic() < give_up:
        time.sleep(READY_PAUSE_S if backup.waits else pauses.pop(0))
    if line := report(config.run_folder):
        say(f"WARNING: {line}" if read_news(config.run_folder).get("problem") else line)


class Keeper:
    """Starts the process that keeps backups, and starts it again."""

    def __init__(self, start: Callable[[], Popen[bytes]], config: Config, log: Log) -> None:
        self._begin, self._config, self._log = start, config, log
        self._pause, self._next, self._said = FIRST_PAUSE_S, 0.0, False
        self._start()

    def _start(self) -> None:
        self._kills = machine.oom_kills()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until it knows what that asks for
        try:
            self._process = self._begin()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def _died(self) -> bool:
        """Tell whether the process was ended from outside, and say so the first time."""
        code = self._process.poll()
        if code is None or code >= 0:  # what ends by itself has said why
            return False
        if not self._said:
            self._said = True
            what, advice = deaths.explain("The process that keeps backups", code, self._kills)
            self._log.warn(f"{what} It is started again.", advice)
        return True

    def watch(self) -> None:
        """Start the process again where it was killed, after a pause."""
        if not self._died():
            return
        if not self._next:
            self._next = time.monotonic() + self._pause
        elif time.monotonic() >= self._next:
            self._pause, self._next = min(2 * self._pause, LONGEST_PAUSE_S), 0.0
            self._start()

    def finish(self, asked: list[float]) -> None:
        """Ask for the last backup and wait for it, for some minutes and until a stop is asked for once more."""
        for _ in range(LAST_TRIES):
            if self._died():
                self._start()
            give_up, so_far = time.monotonic() + time_left(self._config), len(asked)
            self._process.terminate()
            while (code := self._process.poll()) is None and time.monotonic() < give_up and len(asked) == so_far:
                self._log.show()
                time.sleep(POLL_S)
            if code is None or code >= 0:
                break
        self._log.show()
        if code is None:
            self._log.warn("The last backup was cut off.", report(self._config.run_folder))
        elif code < 0:
            what, _ = deaths.explain("The process that makes the last backup", code, self._kills)
            self._log.warn(what, report(self._config.run_folder))

    def close(self) -> None:
        """End the process, whatever it is at."""
        self._process.kill()
        self._process.wait()
        remove_leftovers(self._config.run_folder)
