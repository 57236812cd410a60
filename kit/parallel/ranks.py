"""Processes that train as one: which is the main one, which slices of a batch each runs, and what they agree on.

Each batch is cut into slices. Their number is chosen when a run is first started (one per process) and kept in its
checkpoints, so that a later session with fewer processes runs the same slices, some of them one after the other: see
`kit.parallel.gradients` for why that changes no bit. Processes beyond the number of slices stay idle.

The main process finds, reads and writes checkpoints and validates; the others get what they need from it. It is the
one whose machine has the newest checkpoint, because torchrun numbers machines anew at every start.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from kit.errors import LostError, Stopped
from kit.kaggle.session import scratch
from kit.parallel.world import World
from kit.store.lock import Lock

SETTING_UP = timedelta(hours=3)  # that one process may wait for another, which reads its data for the first time
STEP = timedelta(minutes=10)  # the same for a step, and to connect; then a process that hangs is given up
ALONE = World()
T = TypeVar("T")


class Ranks:
    """This process among those that train together; without arguments, the only one."""

    def __init__(self, world: World = ALONE) -> None:
        self.world = world
        self.main_rank = 0  # the main process, by its number in the world
        self.slices = 1  # that a batch is cut into
        self.cuda = False  # gradients are exchanged from GPU to GPU
        self.group: Any = None  # the processes that have slices to run, or None where that is only this one
        self._patient: Any = None  # the same processes, where one may take long

    @property
    def is_main(self) -> bool:
        """Whether this is the main process."""
        return self.world.rank == self.main_rank

    @property
    def size(self) -> int:
        """Processes that have slices to run."""
        return min(self.world.size, self.slices)

    @property
    def _members(self) -> list[int]:
        return [(self.main_rank + place) % self.world.size for place in range(self.size)]

    @property
    def my_slices(self) -> range:
        """The numbers of the slices that this process runs; empty where it stays idle."""
        place = (self.world.rank - self.main_rank) % self.world.size
        return split_slices(range(self.slices), self.size)[place] if place < self.size else range(0)

    @property
    def order(self) -> list[int]:
        """The places in `group` of its processes, in the order of their slices."""
        return [sorted(self._members).index(member) for member in self._members]

    def elect_main(self, steps: int) -> None:
        """Make the process with the most steps the main one, the first of several."""
        got = self.gather(steps)
        self.main_rank = got.index(max(got))

    def set_slices(self, slices: int, cuda: bool = False) -> None:
        """Cut batches into so many slices from here on.

        Args:
            slices: Their number.
            cuda: This process has a GPU to itself.
        """
        self.slices = slices
        if self.world.size > 1:
            self.cuda, members = all(self.gather(cuda)), sorted(self._members)
            with torch_errors():
                backend = "cpu:gloo,cuda:nccl" if self.cuda else "gloo"
                self.group = dist.new_group(members, timeout=STEP, backend=backend)
                self._patient = dist.new_group(members, timeout=SETTING_UP, backend="gloo")

    def broadcast(self, make: Callable[[], T]) -> T:
        """Return what `make` returns in the main process; it is not called in the others."""
        if self.world.size == 1:
            return make()
        box: list[Any] = [None]
        if self.is_main:
            value, file = make(), io.BytesIO()
            torch.save(value, file)  # which writes memory once that several tensors lie in; pickle would for each
            box = [file.getvalue()]
        with torch_errors():
            dist.broadcast_object_list(box, self.main_rank, self._patient, torch.device("cpu"))
        # Written by this program a moment ago: nothing that was found on a disk.
        return value if self.is_main else torch.load(io.BytesIO(box[0]), map_location="cpu", weights_only=False)

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes."""
        if self.world.size == 1:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self._patient)
        with torch_errors():
            dist.all_gather_object(values, value, self._patient)
        return values

    def any_async(self, *flags: bool) -> Callable[[], list[bool]]:
        """Start to reduce flags by "any" over the processes; the returned function waits for the result."""
        if self.group is None:
            return lambda: list(flags)
        raised = torch.tensor(flags, dtype=torch.uint8)
        with torch_errors():
            work = dist.all_reduce(raised, dist.ReduceOp.MAX, self.group, async_op=True)

        def answer() -> list[bool]:
            with torch_errors():
                work.wait()
            return [bool(flag) for flag in raised.tolist()]

        return answer

    def any(self, *flags: bool) -> list[bool]:
        """Return which flags any process has raised; each of them waits here for the others."""
        return self.any_async(*flags)()

    def __enter__(self) -> Ranks:
        """Connect to the other processes."""
        rank, size = self.world.rank, self.world.size
        if size > 1:
            with torch_errors():
                dist.init_process_group("gloo", rank=rank, world_size=size, timeout=STEP)
                self._patient = dist.new_group(timeout=SETTING_UP)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Disconnect, where all do; after an error that could take long."""
        if self.world.size > 1 and kind in (None, Stopped):
            dist.destroy_process_group()


def split_slices(slices: range, processes: int) -> list[range]:
    """Split slices over no more processes than there are slices: each gets a branch of the tree of `tree_reduce`."""
    if processes == 1:
        return [slices]
    (left, right), first = _halves(slices), (processes + 1) // 2
    return [*split_slices(left, first), *split_slices(right, processes - first)]


def tree_reduce(slices: range, term: Callable[[int], T], add: Callable[[T, T], T]) -> T:
    """Add up the terms of all slices: the sum of the first half plus that of the second, made in this order."""
    if len(slices) == 1:
        return term(slices.start)
    left, right = _halves(slices)
    total = tree_reduce(left, term, add)
    return add(total, tree_reduce(right, term, add))


def _halves(slices: range) -> tuple[range, range]:
    middle = (len(slices) + 1) // 2
    return slices[:middle], slices[middle:]


@contextmanager
def one_at_a_time() -> Iterator[None]:
    """Let one process of this machine at a time do what writes into scratch, however long it takes."""
    lock = Lock(scratch() / "ranks.lock")
    lock.acquire(wait=float("inf"))
    try:
        yield
    finally:
        lock.release()


@contextmanager
def torch_errors() -> Iterator[None]:
    """Turn torch's page about a process that is gone into one sentence.

    Raises:
        LostError: One is.
    """
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise LostError(f"Another process of this training has ended, or cannot be reached: {text}") from error
