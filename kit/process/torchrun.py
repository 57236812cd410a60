"""torchrun as the launcher starts it: tied to its parent, passing a stop on, and ending with the first error's code.

PyTorch's agent starts one process per GPU, watches them, and ends the others where one fails. Its own way to pass a
SIGTERM on kills them 30 seconds later; a request to stop has to leave time for a step and a save. So the launcher
sends SIGUSR1, which torchrun leaves alone, and keeps SIGTERM for the end of its own life.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kit.errors import DiedError, InputError, LostError
from kit.kaggle import deaths, machine
from kit.process.parent import PARENT, tie_to_parent, write_ending

STOP = signal.SIGUSR1


def command(processes: int) -> list[str]:
    """Return what starts so many processes of the `python` words that are put behind it."""
    alone = ("--standalone", "--local-addr=127.0.0.1")  # the name of a machine need not lead to it
    return [sys.executable, "-m", "kit.process.torchrun", *alone, f"--nproc-per-node={processes}"]


def main(arguments: Sequence[str]) -> int:
    """Run torchrun and return 0, or the exit code of the process that failed first."""
    signal.signal(STOP, _pass_on)
    tie_to_parent(int(os.environ[PARENT]))
    os.environ[PARENT] = str(os.getpid())
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # `explain` says it in a sentence
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    kills = machine.oom_kills()
    try:
        run.main(list(arguments))
    except ChildFailedError as error:
        ended = Path(arguments[arguments.index("--ended") + 1])
        return explain(error.failures, kills, bool(_stopped), ended)
    except SignalException:
        return 1
    return 0


def explain(
    failures: Mapping[int, Any], kills_before: int = 0, stopped: bool = False, ended: Path | None = None
) -> int:
    """Say what a signal did, and return the exit code of the process whose failure was not caused by another's.

    Given are torch's `ProcessFailure` by rank, what `machine.oom_kills` was while all lived, whether a stop was passed
    on, which ends those that have nothing to save, and the file that takes the exception, for the launcher.
    """
    consequences = (LostError.exit_code, -signal.SIGTERM)
    if stopped and all(each.exitcode in consequences for each in failures.values()):
        print("Stopped before training began: run again.")
        return 0  # as for any stop
    rank, first = min(failures.items(), key=lambda item: (item[1].exitcode in consequences, item[1].timestamp))
    if first.exitcode < 0:
        write_ending(ended, error := deaths.lost(f"Training process {rank}", first.exitcode, kills_before))
        print(f"error: {error}")
        return error.exit_code
    return first.exitcode if first.exitcode in (InputError.exit_code, DiedError.exit_code) else 1


_stopped: list[int] = []


def _pass_on(number: int, frame: object) -> None:
    import psutil  # comes with ultralytics

    _stopped.append(number)
    children = psutil.Process().children()
    for child in children:
        child.terminate()
    if not children:  # there are none yet: the stop must not be lost
        signal.signal(number, signal.SIG_DFL)
        signal.raise_signal(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
