"""When to save and where to: the generations of a run's checkpoints, written in the background, and their cost.

The training thread is held for a copy into memory that is there already (`kit.store.snapshot`); a thread of its own
writes that copy to the disk. It waits for the disk only where it is told to: at the end, at a stop and for a new best
model. There are two slots, so a snapshot can be taken while the one before is being written. Saves between epochs are
skipped while the writer is busy; the others wait for a free slot.

What is done where the disk is full is in `kit.store.full`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from kit.errors import StorageError
from kit.store import checkpoint, full
from kit.store.disk import DISK, RESERVE, Disk, make_folder, make_room, publish
from kit.store.folder import BEST, LATEST, PREVIOUS, RunFolder
from kit.store.snapshot import FlatBuffer, Sections, StagingBuffer, TensorLayout

SLOTS = 2
RECENT = 8  # saves that the interval is measured from


class Writer:
    """Writes a run's checkpoints and keeps their cost within bounds.

    Args:
        folder: The run's `checkpoints` folder.
        max_lost_s: Bound on the work that a kill may cost, in seconds.
        max_cost_percent: Bound on the share of time that saving may take; it wins where the two conflict.
        disk: The system calls.

    Attributes:
        saves: Checkpoints written so far.
        skipped: Saves between epochs that fell into one that was still being written.
        held_s: Seconds that training was held.
        cpu_s: Seconds of CPU time that the writing thread took, and of a GPU's for its copies.
        position: Of the newest checkpoint on the disk, as `progress` has it, or None.
        best_map: Of the best.pt that was written, or None.
    """

    def __init__(self, folder: Path, max_lost_s: float, max_cost_percent: float, disk: Disk = DISK) -> None:
        self.folder, self.disk = folder, disk
        self.max_lost_s, self.max_cost_percent = max_lost_s, max_cost_percent
        self.saves = self.skipped = 0
        self.held_s = self.cpu_s = 0.0
        self.recent: list[tuple[float, float]] = []  # cost of a save, and the time until it was on the disk, in seconds
        self._problems: dict[str, StorageError | None] = {LATEST: None, BEST: None}
        self.position: dict[str, Any] | None = None
        self.best_map: float | None = None
        self._slots = [(StagingBuffer(), _done()) for _ in range(SLOTS)]  # the next one first
        self._pool = ThreadPoolExecutor(1, "writer")
        self._began = self._last = time.monotonic()
        self._late = False

    def start(self) -> None:
        """Count cost and intervals from here on: training starts."""
        self._began = self._last = time.monotonic()

    def make_room(self, size: int) -> None:
        """Make sure, before training starts, that the disk has room for so many bytes.

        Raises:
            StorageError: It has not.
        """
        make_room(self.folder.parent, size, self.disk)

    def allocate(self, layout: dict[str, list[TensorLayout]]) -> None:
        """Have the memory for snapshots made in the background, before it is needed."""
        self._slots = [(slot, self._pool.submit(slot.allocate, layout)) for slot, _ in self._slots]

    @property
    def problem(self) -> StorageError | None:
        """Why the last save failed; None when it did not."""
        return self._problems[LATEST] or self._problems[BEST]

    @property
    def cost_percent(self) -> float:
        """Share of the time since the start that training was held or the writing thread computed, in percent."""
        return 100 * (self.held_s + self.cpu_s) / max(time.monotonic() - self._began, 1e-9)

    @property
    def save_s(self) -> float:
        """What a save of `latest.pt` costs at present, in seconds."""
        return sum(cost for cost, _ in self.recent) / len(self.recent) if self.recent else 0.0

    @property
    def latency_s(self) -> float:
        """Seconds until a save is on the disk, the slowest at present."""
        return max((latency for _, latency in self.recent), default=0.0)

    @property
    def interval_s(self) -> float:
        """Seconds between two saves within an epoch, from what the saves cost so far."""
        return max(self.max_lost_s - self.latency_s, self._affordable_s)

    @property
    def _affordable_s(self) -> float:
        """Seconds after the last save when another is paid for, with all that was spent on saves since the start.

        Forced saves may exceed the budget; optional saves then slow down, to a tenth at most.
        """
        pace = self.save_s * 100 / self.max_cost_percent
        debt = (self.held_s + self.cpu_s) * 100 / self.max_cost_percent - (self._last - self._began)
        return pace + min(max(debt, 0.0), 9 * pace)

    @property
    def lost_work_bound_s(self) -> float:
        """Seconds of work that a kill may cost: the interval, and the save that it falls into."""
        return self.interval_s + self.latency_s

    def due(self, pause: bool = False) -> bool:
        """Tell whether a save within an epoch is due, and the writer is free.

        Args:
            pause: The last chance for a while, because validation follows: save if the budget allows.
        """
        if time.monotonic() - self._last < (self._affordable_s if pause else self.interval_s):
            return False
        busy = any(not job.done() for _, job in self._slots)
        self.skipped += busy and not self._late
        self._late = busy
        return not busy

    def report(self) -> dict[str, Any]:
        """Return what protection has cost so far, for `status.json`."""
        return {
            "saves": self.saves,
            "skipped": self.skipped,
            "cost_percent": self.cost_percent,
            "lost_work_bound_s": self.lost_work_bound_s,
        }

    def save(
        self,
        sections: Sections,
        build: Callable[[Sections], dict[str, Any]],
        buffers: dict[str, FlatBuffer] | None = None,
        best: dict[str, Any] | None = None,
        wait: bool = False,
        began: float | None = None,
    ) -> None:
        """Take a snapshot and have it published as `latest.pt`, with the one before as `previous.pt`.

        Args:
            sections: The tensors, by section of the checkpoint.
            build: Makes the checkpoint of their copies, in the writing thread.
            buffers: That hold the tensors of some sections together.
            best: Publish the snapshot as `best.pt` first, with these entries beside; return when that is on the disk.
            wait: Return when `latest.pt` is on the disk.
            began: When training began to be held, by `time.monotonic()`; default now.

        Raises:
            StorageError: The disk refused a save that was waited for; the checkpoints are as they were.
        """
        began = time.monotonic() if began is None else began
        slot, job = self._slots[0]
        if not isinstance(error := job.exception(), StorageError | None):
            raise error
        copying = time.monotonic()
        staged, delivered = slot.copy(sections, buffers)
        copied = time.monotonic() - copying
        waited = []
        if best is not None:
            whole = lambda copies: {**build(copies), **best}  # noqa: E731
            waited.append(self._pool.submit(self._write, BEST, staged, delivered, whole, True))
        job = self._pool.submit(self._write, LATEST, staged, delivered, build, wait, began, copied)
        self._slots = [*self._slots[1:], (slot, job)]
        self._last = began
        try:
            for each in [*waited, job] if wait else waited:
                each.result()
        finally:
            self.held_s += time.monotonic() - began

    def rescue(self, path: Path, sections: Sections, build: Callable[[Sections], dict[str, Any]]) -> None:
        """Publish a checkpoint elsewhere, when nothing is being written; training waits.

        Args:
            path: Of the file.
            sections: The tensors, by section of the checkpoint.
            build: Makes the checkpoint of their copies.

        Raises:
            StorageError: There is no room either.
        """
        state = build({name: [tensor.detach().cpu() for tensor in each] for name, each in sections.items()})
        make_room(make_folder(path.parent), sum(t.nbytes for each in sections.values() for t in each))
        publish(path, lambda file: checkpoint.write(state, file))

    def write_extra(self, path: Path, state: dict[str, Any], size: int) -> None:
        """Publish a file that no resume needs, after what is being written; skipped when the disk is full.

        Args:
            path: Of the file.
            state: What goes into it.
            size: Bytes that it takes.
        """

        def write() -> None:
            cpu = time.thread_time()
            with suppress(StorageError):  # latest.pt, which is larger, tells of a full disk
                make_room(path.parent, size, self.disk)
                publish(path, lambda file: checkpoint.write(state, file), durable=False, disk=self.disk)
            self.cpu_s += time.thread_time() - cpu

        self._pool.submit(write)

    def wait(self) -> None:
        """Wait for what is still to be written."""
        for _, job in self._slots:
            job.exception()

    def close(self) -> None:
        """Wait for what is still to be written; nothing can be saved after that."""
        self._pool.shutdown()

    def _write(
        self,
        name: str,
        staged: Sections,
        delivered: Callable[[], float],
        build: Callable[[Sections], dict[str, Any]],
        must: bool,
        began: float = 0.0,
        copied: float = 0.0,
    ) -> None:
        cpu = time.thread_time()
        try:
            held = delivered()
            self.cpu_s += held if name == LATEST else 0.0  # a copy that two files are made of is taken once
            state = build(staged)
            self._publish(name, state, sum(tensor.nbytes for section in staged.values() for tensor in section), must)
            self._problems[name] = None
        except StorageError as error:
            self._problems[name] = StorageError(error.message, error.hint)  # without its traceback
            if not error.published:
                raise
        finally:
            cpu = time.thread_time() - cpu
            self.cpu_s += cpu
        if name == LATEST:
            self.saves += 1
            self.recent = [*self.recent, (copied + held + cpu, time.monotonic() - began)][-RECENT:]
            self.position = {"epoch": state["epoch"], **state["progress"]}
        else:
            self.best_map = state["best_map"]

    def _publish(self, name: str, state: dict[str, Any], size: int, must: bool) -> None:
        """Publish a checkpoint; a forced one may delete what can be made again."""
        if not self.folder.is_dir():
            make_folder(self.folder)  # deleted while training
        previous = self.folder / PREVIOUS if name == LATEST else None
        path, reserve = self.folder / name, 0 if must else RESERVE + size // 4

        def attempt() -> None:
            make_room(self.folder, size, self.disk, reserve)
            publish(path, lambda file: checkpoint.write(state, file), previous=previous, disk=self.disk)

        if must:
            full.make_way(attempt, RunFolder(self.folder.parent), self.disk)
        else:
            attempt()


def _done() -> Future[None]:
    job: Future[None] = Future()
    job.set_result(None)
    return job
