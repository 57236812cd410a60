"""The files that a run keeps of its progress."""

from __future__ import annotations

import csv
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from kit.store import disk
from kit.store.folder import RunFolder

Row = dict[str, float]


def read_rows(folder: Path) -> tuple[Row, ...]:
    """Return the rows of results.csv, without what is missing or no number; it is read again when it was replaced."""
    path = RunFolder(folder).table
    try:
        return _parse(path, disk.identity(path))
    except (OSError, ValueError):
        return ()


@lru_cache(maxsize=1)
def _parse(path: Path, identity: tuple[int, int, int]) -> tuple[Row, ...]:
    with open(path, encoding="utf-8", newline="") as file:
        return tuple(
            {name.strip(): value for name, text in row.items() if (value := _number(text)) is not None}
            for row in csv.DictReader(file)
        )


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
