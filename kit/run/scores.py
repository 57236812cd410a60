"""What was measured of a run's best model, as a file: `python -m kit results` writes it, the notebook shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kit.store import disk
from kit.store.folder import RunFolder


def read(folder: Path) -> dict[str, Any]:
    """Return what was measured last; empty where nothing was.

    Args:
        folder: The run folder.
    """
    return disk.read_json(RunFolder(folder).scores)


def fingerprint(best: Path) -> list[int]:
    """Return what tells a best.pt from the one before."""
    state = best.stat()
    return [state.st_size, state.st_mtime_ns]


def current(folder: Path) -> bool:
    """Tell whether what was measured is of the best.pt that is there, and with the settings that it keeps.

    An earlier version of the kit took other settings, and did not write down which.
    """
    best, values = RunFolder(folder).best, read(folder)
    return best.exists() and values.get("file") == fingerprint(best) and "settings" in values
