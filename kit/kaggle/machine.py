"""What this process may use of the machine: cores and memory, with the limits that a container sets.

Sources: proc(5), cgroups(7), and the kernel's descriptions of control groups, version 2 (`cpu.max`, `memory.max`,
`memory.events`) and version 1 (`cpu.cfs_quota_us`, `memory.limit_in_bytes`, `memory.oom_control`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

ROOT = Path("/")


def cores(root: Path = ROOT) -> float:
    """Return how many cores this process can keep busy; it may be fractional under a cgroup quota.

    Args:
        root: Of the file system that `/proc` and `/sys` are looked up in.
    """
    count = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for group in _groups("cpu", root):
        words = _words(group / "cpu.max") or _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        if len(words) == 2 and words[0] not in ("max", "-1"):
            count = min(count, int(words[0]) / int(words[1]))
    return count


def memory(root: Path = ROOT) -> tuple[int, int]:
    """Return the memory that this process may have in all, and what of it is free or can be freed, in bytes.

    Args:
        root: Of the file system that `/proc` and `/sys` are looked up in.
    """
    words = _words(root / "proc/meminfo")
    kilobytes = {name: int(value) for name, value in pairwise(words) if name.endswith(":")}
    total = kilobytes.get("MemTotal:", 0) * 1024 or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = kilobytes.get("MemAvailable:", 0) * 1024 or total
    for group in _groups("memory", root):
        limit = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
        used = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes")
        if limit and used and limit != ["max"]:
            words = _words(group / "memory.stat")
            counts = dict(zip(words[::2], words[1::2], strict=False))
            cached = int(counts.get("total_inactive_file", counts.get("inactive_file", 0)))  # reclaimable
            total = min(total, int(limit[0]))
            available = min(available, int(limit[0]) - int(used[0]) + cached)
    return total, max(available, 0)


def oom_kills(root: Path = ROOT) -> int:
    """Return how many processes the kernel has ended because memory was full, in this control group and in all below.

    Args:
        root: Of the file system that `/proc` and `/sys` are looked up in.
    """
    for group in _groups("memory", root):
        words = _words(group / "memory.events") or _words(group / "memory.oom_control")
        if "oom_kill" in words:
            return int(words[words.index("oom_kill") + 1])
    return 0


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control group and of those around it.

    A container sees its own group at the root, under whatever path it was given outside.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, names, path = line.split(":", 2)
        if not names or controller in names.split(","):  # version 2 has one hierarchy, without a name
            base = root / "sys/fs/cgroup" / (controller if names else "")
            group = base / path.lstrip("/")
            yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(base))


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
