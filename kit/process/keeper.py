"""The process that keeps backups, seen from the launcher: it lives as long as training, whatever ends it."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from subprocess import Popen
from types import TracebackType

from kit.backup.pins import remove_leftovers
from kit.backup.upload import report
from kit.config import Config
from kit.kaggle import deaths, machine
from kit.process.backups import time_left
from kit.process.children import POLL_S, Log

FIRST_PAUSE_S, LONGEST_PAUSE_S = 1.0, 600.0  # before it is started again; doubled each time
LAST_TRIES = 2  # where the last upload itself is killed


class Keeper:
    """Starts the process that keeps backups, and starts it again.

    Args:
        start: Starts the process.
        config: The settings.
        log: Takes what is said.
    """

    def __init__(self, start: Callable[[], Popen[bytes]], config: Config, log: Log) -> None:
        self._begin, self._config, self._log = start, config, log
        self._pause, self._next = FIRST_PAUSE_S, 0.0
        self._said = False
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
            lost = deaths.ended("The process that keeps backups", code)
            self._log.say(f"WARNING: {lost}: it is started again.{deaths.hint(code, self._kills)}")
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
        """Wait for the last backup, for some minutes and until a stop is asked for once more.

        Args:
            asked: Requests to stop; it may grow.
        """
        for _ in range(LAST_TRIES):
            if self._died():
                self._start()
            wait_for(self._process, self._config, asked, self._log.show)
            if self._process.poll() is None or self._process.returncode >= 0:
                break
        self._log.show()
        if self._process.poll() is None:
            self._log.say(f"WARNING: The last backup was cut off. {report(self._config.run_folder)}")
        elif self._process.returncode < 0:
            lost = deaths.ended("The process that keeps backups", self._process.returncode)
            self._log.say(f"WARNING: {lost} in the last upload. {report(self._config.run_folder)}")

    def __enter__(self) -> Keeper:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait()
        remove_leftovers(self._config.run_folder)


def wait_for(process: Popen[bytes], config: Config, asked: list[float], show: Callable[[], None]) -> None:
    """Ask for the last backup and wait for it, for some minutes and until a stop is asked for once more."""
    give_up, so_far = time.monotonic() + time_left(config), len(asked)
    process.terminate()
    while process.poll() is None and time.monotonic() < give_up and len(asked) == so_far:
        show()
        time.sleep(POLL_S)
