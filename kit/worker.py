"""The training process around the trainer: tied to its parent and stopped by signals."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import traceback
from types import FrameType

from kit import session
from kit.config import Config
from kit.errors import KitError

PARENT = "KIT_PARENT"  # set by the launcher: its process id
ORPHAN_S = 20  # seconds that a process whose parent died has to save and leave


def is_worker() -> bool:
    """Tell whether this process is the one that trains: started by the launcher, or by torchrun."""
    return PARENT in os.environ or "TORCHELASTIC_RUN_ID" in os.environ


class Stop:
    """Tells the trainer when to stop because of a signal; it is asked after every batch."""

    def __init__(self) -> None:
        self.reason = ""

    def __call__(self) -> str:
        """Return why to stop now, or an empty text."""
        return self.reason

    def on_signal(self, number: int, frame: FrameType | None) -> None:
        """Ask for a stop; an orphan that does not manage it in time is ended by the alarm."""
        self.reason = "a stop was asked for"
        if PARENT in os.environ and os.getppid() != int(os.environ[PARENT]):
            signal.alarm(ORPHAN_S)


def main(config: Config, resume: str) -> int:
    """Train in this process and return the exit code of `kit train`."""
    session.prepare_environment()
    stop = Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop.on_signal)
    tie_to_parent()
    try:
        from kit import trainer

        trainer.train(config, resume, stop)
    except KitError as error:
        if error.exit_code != 75:
            print(f"error: {error}", file=sys.stderr, flush=True)
        return error.exit_code
    except Exception:
        traceback.print_exc()
        return 1
    return 0


def measure(config: Config) -> int:
    """Measure the best model in this process and return the exit code."""
    session.prepare_environment()
    tie_to_parent()
    from kit.trainer import evaluation

    evaluation.evaluate(config)
    return 0


def tie_to_parent() -> None:
    """Have the kernel send SIGTERM when the launcher dies, so that no orphan holds a GPU.

    prctl(2), PR_SET_PDEATHSIG = 1. The launcher may have died before this call: then it is too late for the signal.
    """
    if PARENT not in os.environ:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != int(os.environ[PARENT]):
        raise SystemExit(1)
