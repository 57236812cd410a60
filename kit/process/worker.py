"""The training process around the trainer: tied to its parent and stopped by signals."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from kit.config import Config
from kit.errors import CrashError, KitError, LostError, Stopped
from kit.parallel.world import World
from kit.process.parent import CRASHED, ORPHAN_S, ORPHANED, PARENT, tie_to_parent, write_ending
from kit.run import status
from kit.run.status import Notice
from kit.yolo import environment


def under_torchrun() -> bool:
    """Tell whether torchrun started this process, the launcher's or one that the user has started."""
    return "TORCHELASTIC_RUN_ID" in os.environ


class Stop:
    """Tells the trainer when to stop because of a signal; it is asked after every batch, and while it waits for one.

    Until it is asked for the first time there is nothing to save: a signal ends the process, whatever it is at.
    """

    def __init__(self, apart: bool = False) -> None:
        self.reason, self.began = "", False
        self.apart = apart  # there are processes on other machines too

    def __call__(self) -> str:
        """Return why to stop now, or an empty text."""
        if not self.began:
            self.began = True
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self.on_stop)
        if self.reason:
            with suppress(OSError):
                os.utime(1)  # the log's date: a sign of life for who has asked, also where the disk is full
        return self.reason

    def heed(self, parent: int) -> None:
        """Take the signals of this process, and the kernel's when the parent dies."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback
        signal.signal(ORPHANED, self.on_orphaned)
        tie_to_parent(parent, ORPHANED)

    def on_stop(self, number: int, frame: object) -> None:
        """Ask for a stop; asked for again, one that waits for something gives up."""
        self.reason = "a stop was asked for" + " again" * bool(self.reason)

    def on_orphaned(self, number: int, frame: object) -> None:
        """Ask for a stop; the alarm ends an orphan that does not manage it in time."""
        if self.apart or not self.began:  # another machine's torchrun would wait minutes for the one that is gone
            os._exit(1)
        self.on_stop(number, frame)
        signal.alarm(ORPHAN_S)


def main(config: Config, resume: str, ended: Path | None = None, notices: Sequence[Notice] = ()) -> int:
    """Train in this process and return its exit code: that of `kit train`, but 0 on a stop under torchrun.

    `ended` takes an exception, for the launcher; without it, the user has started torchrun. `notices` are the
    warnings that were printed before.
    """
    world = World.current()
    environment.prepare()
    stop = Stop(apart=world.size > world.local_size)
    stop.heed(int(os.environ.get(PARENT, os.getppid())))
    shown = _own_log(config, world.rank) if world.rank and ended else sys.stderr
    if config.kit.backup and not ended and world.rank == 0:
        notices = [status.notice("There are no backups under a torchrun that the kit has not started.")]
        print(f"WARNING: {notices[0]['message']}", file=shown)
    code = 0
    ending: KitError | None = None
    try:
        from kit.yolo import train

        train.train(config, resume, stop, world, notices=notices)
    except LostError as error:
        print(error, file=sys.stderr)  # what ended the other one is the error
        code = error.exit_code
    except KitError as error:
        code, ending = error.exit_code, error
        if not isinstance(error, Stopped):
            print(f"error: {error}", file=shown)
        elif under_torchrun():
            code = 0  # torchrun turns any other into 1
    except Exception as error:
        traceback.print_exc()
        if shown is not sys.stderr:
            print(f"error: Process {world.rank}: {error!r}", file=shown)
        what = f"Process {world.rank}: {error!r}" if world.rank else f"{type(error).__name__}: {error}"
        code, ending = 1, CrashError(what, CRASHED)
    if ending:
        status.end(config.files, ending)
        if not isinstance(ending, Stopped):
            write_ending(ended, ending)
    if code:
        for file in (shown, sys.stdout, sys.stderr):
            file.flush()
        os._exit(code)  # a library that still waits for a lost worker, or for other processes, would wait for long
    return code


def _own_log(config: Config, rank: int) -> TextIO:
    """Send what this process prints into a log of its own, and return where the first process's goes."""
    shared = open(os.dup(2), "w")  # noqa: SIM115
    with open(config.files.log_of(rank), "a") as log:
        for number in (1, 2):
            os.dup2(log.fileno(), number)
    return shared


def measure(config: Config, ended: Path) -> int:
    """Measure the best model in this process and return the exit code."""
    environment.prepare()
    tie_to_parent(int(os.environ[PARENT]))
    try:
        from kit.yolo import evaluation

        evaluation.evaluate(config)
    except KitError as error:
        write_ending(ended, error)
        raise
    return 0
