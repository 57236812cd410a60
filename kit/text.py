"""Words for sizes and times, and values as JSON takes them."""

from __future__ import annotations

import math
from typing import Any


def for_json(value: Any) -> Any:
    """Turn a value into what JSON knows: neither NaN nor numpy's and torch's numbers."""
    if isinstance(value, dict):
        return {str(k): for_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(v) for v in value]
    if value is None or isinstance(value, (str, bool, int)):
        return value
    try:
        return float(value) if math.isfinite(value) else None
    except (TypeError, ValueError):
        return str(value)


def size(number: float) -> str:
    """Write a number of bytes in its unit."""
    for unit, length in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= length:
            return f"{number / length:.1f} {unit}" if number < 100 * length else f"{number / length:.0f} {unit}"
    return f"{number:.0f} B"


def clock(seconds: float) -> str:
    """Write a time with its two largest units, the smaller one always with two digits, so that nothing jumps."""
    whole = round(max(seconds, 0))
    if whole >= 86400:
        return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def duration(seconds: float) -> str:
    """Write a time in its largest unit that is at least two."""
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
