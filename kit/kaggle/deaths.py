"""Processes that were killed by a signal: by which one, and what may help.

The kernel ends a process with SIGKILL when memory is full, and counts how often it did (`machine.oom_kills`).
"""

from __future__ import annotations

import ctypes
import signal
import sys

from kit.errors import DiedError, FullError
from kit.kaggle import machine

AGAIN = "Run again to go on from the last checkpoint."
FULL = "Lower workers=, batch= or imgsz=, and leave cache= off."
CAUSES: dict[int, tuple[str, str]] = {  # what may have been, and what may help
    signal.SIGKILL: ("Most often memory is full.", FULL),
    signal.SIGBUS: ("Shared memory (/dev/shm) or a disk is full.", "Lower workers= or batch=, or make room."),
    signal.SIGSEGV: ("A library has failed: an image that it cannot read, or two versions that do not fit.", ""),
}


def lost(who: str, code: int, kills_before: int) -> DiedError:
    """Return the exception for a process that was ended: how, and what to do."""
    kind = FullError if _is_full(code, kills_before) else DiedError
    what, advice = explain(who, code, kills_before)
    return kind(what, f"{advice} {AGAIN}".lstrip())


def explain(who: str, code: int, kills_before: int) -> tuple[str, str]:
    """Say how a process ended, and what may help; nothing where nothing is known.

    Args:
        who: The process.
        code: Its exit code, the negative number of the signal where there was one.
        kills_before: What `machine.oom_kills` was while the process lived.
    """
    cause, advice = CAUSES.get(-code, ("", ""))
    if _is_full(code, kills_before):
        cause = "Memory is full, and the kernel ended it."
    how = f"was ended by {_name(-code)}" if code < 0 else f"ended with exit code {code}"
    return f"{who} {how}. {cause}".rstrip(), advice


def _is_full(code: int, kills_before: int) -> bool:
    return code == -signal.SIGKILL and machine.oom_kills() > kills_before


def die_with_parent(number: int = signal.SIGKILL) -> None:
    """Have the kernel send a signal when the thread that started this process ends: prctl(2), PR_SET_PDEATHSIG = 1."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, number, 0, 0, 0)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return f"signal {number}"
