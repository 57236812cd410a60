"""Start a child of the launcher, follow the log that it writes, and wait for its end: how long, `Bounds` says."""

from __future__ import annotations

import codecs
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from subprocess import Popen

from kit.config import Config
from kit.errors import Stopped
from kit.kaggle import machine, session
from kit.kaggle.deaths import AGAIN
from kit.process import torchrun
from kit.process.parent import PARENT
from kit.run import status
from kit.run.limit import BACKUP_S, LARGEST_RESERVE, MARGIN_S
from kit.run.status import Notice

POLL_S = 0.1
ANSWER_S = 60.0  # from a stop or the last sign of life, beside three times the slowest step and save
FIRST_S = 600.0  # that each session has, however short it is, to set up and to make a step
LAST_S = 20.0  # of the session, that are left to what follows training


class Log:
    """A log that children append to, what they append is passed on; and all warnings so far, for the run's status."""

    def __init__(self, path: Path, follow: Callable[[str], None], notices: Iterable[Notice] = ()) -> None:
        self.notices = list(notices)
        self.output, self._tail = open(path, "ab"), open(path, "rb")  # noqa: SIM115
        self._follow = follow
        self._tail.seek(0, os.SEEK_END)
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def show(self) -> None:
        """Pass on what has come since; an empty text where nothing has."""
        self._follow(self._decode(self._tail.read()))

    def say(self, line: str) -> None:
        """Append a line of the launcher's own; where the disk takes none it is only passed on."""
        text = f"{line}\n"
        with suppress(OSError):
            self.output.write(text.encode())
            self.output.flush()
            text = ""
        self._follow(self._decode(self._tail.read()) + text)

    def warn(self, message: str, hint: str = "") -> None:
        """Append a warning of the launcher's own, and keep it."""
        self.say(f"WARNING: {message} {hint}".rstrip())
        self.notices.append(status.notice(message, hint))

    def close(self) -> None:
        """Close the file."""
        for file in (self.output, self._tail):
            with suppress(OSError):  # a line that the disk did not take is tried again
                file.close()


class Bounds:
    """How long one training process may take."""

    def __init__(self, config: Config) -> None:
        self._folder, self._ends = config.run_folder, session.deadline(config.kit.session_hours)
        self._first = time.time() + FIRST_S
        self._reserve = MARGIN_S + (BACKUP_S if config.kit.backup else 0)

    def over(self) -> bool:
        """Tell whether training should have left for the session's limit: by half of the reserve that it keeps."""
        if self._ends is None:
            return False
        reserve = min(self._reserve, LARGEST_RESERVE * (self._ends - session.started()))
        return time.time() > max(self._ends - reserve / 2, self._first)

    def hangs(self, asked: float, life: float) -> bool:
        """Tell whether a process that was asked to stop, and has last given a sign of life, will not stop any more."""
        now = time.time()
        if self._ends is not None and now > max(self._ends - LAST_S, self._first, asked + LAST_S):
            return True
        answer = ANSWER_S + 3 * float(status.read(self._folder).get("stop_s", 0))
        return now > max(asked, life) + answer


def start(arguments: list[str], log: Log, processes: int = 1) -> Popen[bytes]:
    """Start `python -m kit` with its output into a log; with torchrun where several processes train together."""
    known, python = environment(), [sys.executable]
    if processes > 1:
        python = torchrun.command(processes)
        known.setdefault("OMP_NUM_THREADS", str(max(int(machine.cores()) // processes, 1)))  # else 1
    return Popen(
        [*python, "-m", "kit", *arguments],
        env=known,
        stdin=subprocess.DEVNULL,
        stdout=log.output,
        stderr=subprocess.STDOUT,
        process_group=0,
    )


def watch(
    child: Popen[bytes],
    log: Log,
    asked: list[float],
    config: Config,
    stop: int = signal.SIGTERM,
    tick: Callable[[], None] = lambda: None,
) -> int:
    """Wait for the end of a child, pass a stop on to it, and end it where it does not answer.

    `asked` are the requests to stop; it may grow, and does at the session's limit. `tick` is called ten times a second.

    Returns:
        Its exit code, 75 where it was stopped before it began or did not answer; the negative number of another signal
        that ended it.
    """
    bounds, sent, since, hung = Bounds(config), 0, 0.0, False
    try:
        while child.poll() is None:
            log.show()
            tick()
            if not asked and bounds.over():
                asked.append(time.monotonic())
                log.warn("The session's limit is near, and training has not left by itself.")
            if len(asked) > sent:
                sent, since = len(asked), since or time.time()
                child.send_signal(stop)
                log.say("Stopping: the last checkpoint is being written ...")
            if since and not hung and bounds.hangs(since, os.fstat(log.output.fileno()).st_mtime):
                hung = True
                child.kill()
            time.sleep(POLL_S)
    except BaseException:
        child.terminate()  # a failing follower must not leave training behind
        try:
            child.wait(ANSWER_S)
        except subprocess.TimeoutExpired:
            child.kill()
        raise
    log.show()
    if hung:
        log.warn("Training did not answer the stop and was ended.", AGAIN)
        return Stopped.exit_code
    if -child.returncode in (signal.SIGTERM, signal.SIGINT, torchrun.STOP):
        log.say("Stopped before training began: run again.")
        return Stopped.exit_code
    return child.returncode


def environment() -> dict[str, str]:
    """Return the environment of a child: it knows its parent, the session's start and where the kit is."""
    return {
        **os.environ,
        PARENT: str(os.getpid()),
        "KIT_SESSION_START": str(session.started()),
        "PYTHONPATH": session.import_path(),
        "PYTHONUNBUFFERED": "1",
    }
