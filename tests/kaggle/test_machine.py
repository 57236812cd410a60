"""Cores and memory as a container may use them, from trees of files like the kernel's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from kit.kaggle import machine

GB = 10**9


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A machine with 32 GB, of which 24 are available."""
    return tree(tmp_path, {"proc/meminfo": f"MemTotal: {32 * GB // 1024} kB\nMemAvailable: {24 * GB // 1024} kB\n"})


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


def gigabytes(root: Path) -> tuple[float, float]:
    total, available = machine.memory(root)
    return round(total / GB, 1), round(available / GB, 1)


def test_machine_without_limits_is_used_whole(root: Path) -> None:
    """Without control groups, and with groups that limit nothing."""
    mine = len(os.sched_getaffinity(0))
    assert (gigabytes(root), machine.cores(root)) == ((32, 24), mine)
    free = {"memory.max": "max", "memory.current": GB, "cpu.max": "max 100000"}
    tree(root, {"proc/self/cgroup": "0::/", **{f"sys/fs/cgroup/{name}": value for name, value in free.items()}})
    assert (gigabytes(root), machine.cores(root)) == ((32, 24), mine)


def test_limits_of_a_container_count(root: Path) -> None:
    """Version 2: what is cached and not in use is given up when memory is needed, so it is available."""
    files = {
        "memory.max": 8 * GB,
        "memory.current": 5 * GB,
        "memory.stat": f"anon 1\ninactive_file {2 * GB}",
        "cpu.max": "50000 100000",
    }
    tree(root, {"proc/self/cgroup": "0::/", **{f"sys/fs/cgroup/{name}": value for name, value in files.items()}})
    assert gigabytes(root) == (8, 5)
    assert machine.cores(root) == 0.5


def test_limits_of_version_1_count(root: Path) -> None:
    """They lie in a folder for each controller; its own path is that outside the container, and not there."""
    files = {
        "memory/memory.limit_in_bytes": 8 * GB,
        "memory/memory.usage_in_bytes": 3 * GB,
        "memory/memory.stat": f"inactive_file 1\ntotal_inactive_file {GB}",
        "cpu/cpu.cfs_quota_us": 50000,
        "cpu/cpu.cfs_period_us": 100000,
    }
    groups = "4:memory:/docker/0123\n3:cpu,cpuacct:/docker/0123\n2:cpuset:/docker/0123\n0::/docker/0123"
    tree(root, {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": value for name, value in files.items()}})
    assert gigabytes(root) == (8, 6)
    assert machine.cores(root) == 0.5


def test_version_1_without_limits_is_used_whole(root: Path) -> None:
    """Its words for «none» are a number larger than any memory, and -1."""
    files = {
        "memory/memory.limit_in_bytes": 9223372036854771712,
        "memory/memory.usage_in_bytes": 3 * GB,
        "cpu/cpu.cfs_quota_us": -1,
        "cpu/cpu.cfs_period_us": 100000,
    }
    groups = "4:memory:/\n3:cpu:/"
    tree(root, {"proc/self/cgroup": groups, **{f"sys/fs/cgroup/{name}": value for name, value in files.items()}})
    assert gigabytes(root) == (32, 24)
    assert machine.cores(root) == len(os.sched_getaffinity(0))


def test_smallest_limit_on_the_way_up_counts(root: Path) -> None:
    """A group may have none while the one around it has."""
    groups = {"user/job": ("max", GB), "user": (4 * GB, 6 * GB)}
    tree(root, {"proc/self/cgroup": "0::/user/job"})
    for name, (limit, used) in groups.items():
        tree(root, {f"sys/fs/cgroup/{name}/memory.max": limit, f"sys/fs/cgroup/{name}/memory.current": used})
    assert gigabytes(root) == (4, 0)


@pytest.mark.parametrize(
    ("groups", "name", "text"),
    [
        ("0::/", "memory.events", "low 0\nhigh 5\nmax 7\noom 3\noom_kill 2\noom_group_kill 0"),
        ("4:memory:/docker/0123\n0::/", "memory/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 2"),
    ],
)
def test_processes_that_the_kernel_has_ended_are_counted(root: Path, groups: str, name: str, text: str) -> None:
    """In either version of control groups; none where nobody counts."""
    assert machine.oom_kills(root) == 0
    tree(root, {"proc/self/cgroup": groups, f"sys/fs/cgroup/{name}": text})
    assert machine.oom_kills(root) == 2


def test_this_machine_has_something() -> None:
    """The files of the kernel that runs this test are understood."""
    total, available = machine.memory()
    assert 0 < available <= total <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < machine.cores() <= (os.cpu_count() or 0)
