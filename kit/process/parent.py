"""A child and the launcher: no orphan holds a GPU, and the launcher learns how the child ended.

The launcher names a file (`--ended`), into which a child that fails writes its exception; a child for backups keeps its
warnings beside it. `status.json` cannot carry that alone: it belongs to the process that trains, and a run that is in
use to one whose status must stay as it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from kit.errors import CrashError, InputError, KitError, StorageError
from kit.kaggle import deaths, session
from kit.run.status import Notice, notice
from kit.store import disk

PARENT = "KIT_PARENT"  # set by the launcher, and by torchrun as it starts it: its process id
ORPHANED = signal.SIGUSR2  # sent by the kernel when the parent dies; anybody may send SIGTERM
CRASHED = "Run the cell again: it goes on from the last checkpoint. If it happens again, the log says where."
NOTICES = "notices.json"  # beside the file that `--ended` names
DETAILS = 15  # lines of the log that explain a crash
ORPHAN_S = 20  # seconds that a process whose parent died has to save and leave


def tie_to_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Have the kernel send a signal when the parent dies, so that no orphan holds a GPU.

    The parent may have died before this call: then it is too late for the signal.
    Threads die one by one, and the first may send it: for some milliseconds `os.getppid()` still names the parent.
    """
    deaths.die_with_parent(number)
    if os.getppid() != parent:
        raise SystemExit(1)


@contextlib.contextmanager
def ending() -> Iterator[Path]:
    """Name a file for a child to write its exception into."""
    with tempfile.TemporaryDirectory(dir=session.scratch()) as folder:
        yield Path(folder) / "ended.json"


def write_ending(path: Path | None, error: KitError) -> None:
    """Tell the launcher what ended this process; on a full disk it has the exit code and the log."""
    if path:
        with contextlib.suppress(StorageError):
            disk.write_json(path, error.to_dict())


def write_notice(ended: Path, message: str, hint: str) -> None:
    """Keep a warning for the launcher, which puts it into the run's status."""
    with contextlib.suppress(StorageError):
        path = ended.with_name(NOTICES)
        disk.write_json(path, {"notices": [*disk.read_json(path).get("notices", ()), notice(message, hint)]})


def take_notices(ended: Path) -> list[Notice]:
    """Return the warnings that children have kept since, and forget them."""
    path = ended.with_name(NOTICES)
    found: list[Notice] = disk.read_json(path).get("notices", [])
    disk.remove(path)
    return found


def read_ending(path: Path, code: int, lines: Sequence[str]) -> KitError:
    """Return what ended a child with some exit code; lines of the log explain a crash, and an end without a word."""
    if values := disk.read_json(path):
        error = KitError.from_dict(values, code)
    else:
        kind = InputError if code == InputError.exit_code else CrashError
        error = kind(f"The process ended with exit code {code}", CRASHED)
    if isinstance(error, CrashError):
        error.details = "\n".join(lines[-DETAILS:])
    return error
