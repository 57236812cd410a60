"""The files that a run keeps of its progress, read when they have changed."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kit.run import status
from kit.store.folder import RunFolder

Row = dict[str, float]


class Files:
    """The files that a run keeps; those that have not changed are not read again.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: dict[Path, tuple[tuple[int, int], Any]] = {}

    def status(self) -> dict[str, Any]:
        """Return what the run last said; empty where there is none."""
        return status.read(self.folder)

    def rows(self) -> tuple[Row, ...]:
        """Return the rows of results.csv."""
        return tuple(self._read(RunFolder(self.folder).table, read_rows) or ())

    def backup(self) -> dict[str, Any]:
        """Return what the backup last said; empty where there is none."""
        values = self._read(RunFolder(self.folder).backup, lambda path: json.loads(path.read_bytes()))
        return values if isinstance(values, dict) else {}

    def _read(self, path: Path, read: Callable[[Path], Any]) -> Any:
        try:
            state = path.stat()
            key = state.st_ino, state.st_mtime_ns
            if path not in self._kept or self._kept[path][0] != key:
                self._kept[path] = key, read(path)
        except (OSError, ValueError):
            return None
        return self._kept[path][1]


def read_rows(path: Path) -> list[Row]:
    """Read results.csv; what is missing or no number is left out of its row."""
    with open(path, encoding="utf-8", newline="") as file:
        return [
            {name.strip(): value for name, text in row.items() if (value := _number(text)) is not None}
            for row in csv.DictReader(file)
        ]


def _number(text: Any) -> float | None:
    try:
        value = float(text)
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def alive(values: dict[str, Any]) -> bool:
    """Tell whether the process that wrote a status lives on this machine."""
    try:
        return b"kit" in Path(f"/proc/{int(values['pid'])}/cmdline").read_bytes()
    except (OSError, KeyError, TypeError, ValueError):
        return False
