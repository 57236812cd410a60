"""Processes that train as one: who leads, which slices of a batch each of them runs, and what they agree on.

Each batch is cut into as many slices as the run has *logical* ranks. That number is chosen when a run is first started
(one per process) and kept in its checkpoints, so that a later session with fewer processes runs the same slices, some
of them one after the other: see `kit.parallel.gradients` for why that leaves every bit. Processes that are more than
the logical ranks have nothing to do.

One process leads: it finds, reads and writes checkpoints and validates; the others get what they need from it. It is
the one on whose machine the run has got the farthest, because torchrun counts machines anew at every start.
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
from kit.store.disk import Lock

SETTING_UP = timedelta(hours=3)  # that one process may wait for another which reads its data for the first time
STEP = timedelta(minutes=10)  # the same for a step, and to meet; after that a process that hangs is given up
ALONE = World()
T = TypeVar("T")


class Ranks:
    """This process among those that train together; without arguments, the only one.

    Args:
        world: Of all processes.

    Attributes:
        lead: The process that leads, by its number in the world.
        logical: Slices that a batch is cut into.
        cuda: The processes exchange gradients from GPU to GPU.
        group: The processes that have slices to run, or None where that is only this one.
    """

    def __init__(self, world: World = ALONE) -> None:
        self.world, self.lead, self.logical, self.cuda = world, 0, 1, False
        self.group: Any = None
        self._patient: Any = None  # the same processes, where one may take long

    @property
    def leads(self) -> bool:
        """Whether this process leads."""
        return self.world.rank == self.lead

    @property
    def size(self) -> int:
        """Processes that have slices to run."""
        return min(self.world.size, self.logical)

    @property
    def own(self) -> range:
        """The logical ranks whose slices this process runs; empty where there is nothing left for it."""
        place = (self.world.rank - self.lead) % self.world.size
        return spread(range(self.logical), self.size)[place] if place < self.size else range(0)

    @property
    def order(self) -> list[int]:
        """The places in `group` of its processes, in the order of their slices."""
        members = [(self.lead + place) % self.world.size for place in range(self.size)]
        return [sorted(members).index(member) for member in members]

    def elect(self, steps: int) -> None:
        """Have the process lead that has come the farthest, the first one of several."""
        got = self.gather(steps)
        self.lead = got.index(max(got))

    def form(self, logical: int, cuda: bool = False) -> None:
        """Cut batches into so many slices from here on.

        Args:
            logical: The slices.
            cuda: This process has a GPU to itself.
        """
        self.logical = logical
        if self.world.size > 1:
            self.cuda = all(self.gather(cuda))
            members = sorted((self.lead + place) % self.world.size for place in range(self.size))
            with together():
                backend = "cpu:gloo,cuda:nccl" if self.cuda else "gloo"
                self.group = dist.new_group(members, timeout=STEP, backend=backend)
                self._patient = dist.new_group(members, timeout=SETTING_UP, backend="gloo")

    def share(self, make: Callable[[], T]) -> T:
        """Return what `make` returns in the process that leads; it is not called in the others."""
        if self.world.size == 1:
            return make()
        box: list[Any] = [None]
        if self.leads:
            value, file = make(), io.BytesIO()
            torch.save(value, file)  # which writes memory once that several tensors lie in; pickle would for each
            box = [file.getvalue()]
        with together():
            dist.broadcast_object_list(box, self.lead, self._patient, torch.device("cpu"))
        # Written by this program a moment ago: nothing that was found on a disk.
        return value if self.leads else torch.load(io.BytesIO(box[0]), map_location="cpu", weights_only=False)

    def gather(self, value: T) -> list[T]:
        """Return the values of all processes."""
        if self.world.size == 1:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self._patient)
        with together():
            dist.all_gather_object(values, value, self._patient)
        return values

    def ask(self, *flags: bool) -> Callable[[], list[bool]]:
        """Ask all processes which flags any has raised; what is returned waits for the answer."""
        if self.group is None:
            return lambda: list(flags)
        raised = torch.tensor(flags, dtype=torch.uint8)
        with together():
            work = dist.all_reduce(raised, dist.ReduceOp.MAX, self.group, async_op=True)

        def answer() -> list[bool]:
            with together():
                work.wait()
            return [bool(flag) for flag in raised.tolist()]

        return answer

    def agree(self, *flags: bool) -> list[bool]:
        """Return which flags any process has raised; each of them waits here for the others."""
        return self.ask(*flags)()

    def __enter__(self) -> Ranks:
        """Meet the other processes."""
        rank, size = self.world.rank, self.world.size
        if size > 1:
            with together():
                dist.init_process_group("gloo", rank=rank, world_size=size, timeout=STEP)
                self._patient = dist.new_group(timeout=SETTING_UP)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Part where all do; after an error, taking leave of the others could take long."""
        if self.world.size > 1 and kind in (None, Stopped):
            dist.destroy_process_group()


def spread(ranks: range, processes: int) -> list[range]:
    """Deal ranks out to no more processes than there are, each a branch of the tree that `tree` adds along."""
    if processes == 1:
        return [ranks]
    first, middle = (processes + 1) // 2, ranks.start + (len(ranks) + 1) // 2
    return [
        *spread(range(ranks.start, middle), first),
        *spread(range(middle, ranks.stop), processes - first),
    ]


def tree(ranks: range, term: Callable[[int], T], add: Callable[[T, T], T]) -> T:
    """Add terms up: the sum of the first half plus the sum of the second, which are made in this order."""
    if len(ranks) == 1:
        return term(ranks.start)
    middle = ranks.start + (len(ranks) + 1) // 2
    left = tree(range(ranks.start, middle), term, add)
    return add(left, tree(range(middle, ranks.stop), term, add))


@contextmanager
def one_by_one() -> Iterator[None]:
    """Let one process of this machine at a time do what writes into scratch, however long it takes."""
    lock = Lock(scratch() / ".lock")
    lock.acquire(wait=float("inf"))
    try:
        yield
    finally:
        lock.release()


@contextmanager
def together() -> Iterator[None]:
    """Say in one sentence that another process is gone, where torch has a page for it.

    Raises:
        LostError: It is.
    """
    try:
        yield
    except RuntimeError as error:
        text = " ".join(str(error).split())
        raise LostError(f"Another process of this training has ended, or cannot be reached: {text}") from error
