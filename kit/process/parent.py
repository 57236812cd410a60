"""A child is tied to its parent: no orphan holds a GPU."""

from __future__ import annotations

import os
import signal

from kit.kaggle import deaths

PARENT = "KIT_PARENT"  # set by the launcher, and by torchrun as it starts it: its process id
ORPHANED = signal.SIGUSR2  # sent by the kernel when the parent dies; anybody may send SIGTERM
ORPHAN_S = 20  # seconds that a process whose parent died has to save and leave


def tie_to_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Have the kernel send a signal when the parent dies, so that no orphan holds a GPU.

    The parent may have died before this call: then it is too late for the signal.
    Threads die one by one, and the first may send it: for some milliseconds `os.getppid()` still names the parent.
    """
    deaths.die_with_parent(number)
    if os.getppid() != parent:
        raise SystemExit(1)
