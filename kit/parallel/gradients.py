"""Gradients summed over the slices of a batch, in one order however many processes there are.

A floating-point sum depends on its order, and the order of an all-reduce on the number of processes, the backend and
the hardware. Here it is that of a tree: the sum over the first half of the slices plus the sum over the second. Each
process runs the slices of a whole branch and sends only that branch's sum, so from one to as many processes as there
are slices the sum has the same bits, and nothing more is sent than in an all-reduce.

- The sum of two numbers has no order: two processes use the backend's all-reduce.
- More than two send each other pieces (all-to-all), add them along the tree, and gather the sums: as many bytes as a
  ring takes.

As in `DistributedDataParallel`, gradients travel in buckets while the backward pass is still on its way (where each
process runs one slice), and what no slice has a gradient of keeps none. It is not used itself because a process that
runs several slices, or whose memory is full in the middle of a backward pass, has no place in it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import Parameter

from kit.parallel.ranks import Ranks, torch_errors, tree_reduce
from kit.store.snapshot import layout_of

BUCKET = 25 << 20  # bytes after which a new one begins
ALIGNMENT = 16  # numbers that views and pieces are multiples of: a GPU sums the norm of others in another order
Gradient = Tensor | None


class Bucket:
    """Parameters whose gradients travel together.

    Args:
        parameters: The parameters, all of one dtype.
        processes: That exchange them.
        on_cpu: In the CPU's memory, wherever the parameters are.
    """

    def __init__(self, parameters: list[Parameter], processes: int, on_cpu: bool) -> None:
        self.parameters = parameters
        starts, end, piece = [], 0, ALIGNMENT * processes
        for parameter in parameters:
            starts.append(end)
            end += -(-parameter.numel() // ALIGNMENT) * ALIGNMENT
        device = torch.device("cpu") if on_cpu else parameters[0].device
        self.sum = torch.zeros(-(-end // piece) * piece, dtype=parameters[0].dtype, device=device)
        self._pieces = torch.empty_like(self.sum) if processes > 2 else None
        self._work: Any = None
        layouts = [layout_of(parameter) for parameter in parameters]
        self.views = [
            self.sum.as_strided(form.shape, form.stride, at) for form, at in zip(layouts, starts, strict=True)
        ]

    @property
    def full(self) -> bool:
        """Whether all gradients are there."""
        return all(parameter.grad is not None for parameter in self.parameters)

    def send(self, group: Any) -> None:
        """Send the gradients as they are; those that are missing count as zeros."""
        there = [(view, p.grad) for view, p in zip(self.views, self.parameters, strict=True) if p.grad is not None]
        for view, parameter in zip(self.views, self.parameters, strict=True):
            if parameter.grad is None:
                view.zero_()
        if there:
            views, gradients = zip(*there, strict=True)
            torch._foreach_copy_(views, gradients)
        with torch_errors():
            if self._pieces is None:
                self._work = dist.all_reduce(self.sum, group=group, async_op=True)
            else:
                self._work = dist.all_to_all_single(self._pieces, self.sum, group=group, async_op=True)

    def reduce(self, order: list[int], group: Any) -> None:
        """Add up the pieces that were received, and gather the sums."""
        if self._pieces is None:
            return
        self.wait()
        rows = self._pieces.view(len(order), -1)
        total = tree_reduce(range(len(order)), lambda number: rows[order[number]], Tensor.add_)
        with torch_errors():
            self._work = dist.all_gather_into_tensor(self.sum, total, group=group, async_op=True)

    def wait(self) -> None:
        """Wait for what is in flight; on a GPU, have its stream wait."""
        with torch_errors():
            self._work.wait()

    def sums(self) -> list[Tensor]:
        """Return the sums, where the parameters are."""
        device = self.parameters[0].device
        return self.views if self.sum.device == device else [view.to(device) for view in self.views]


class Gradients:
    """The `.grad` of a model's parameters, from the slices of one batch to the sum over all of them.

    Args:
        parameters: The parameters that are trained.
        ranks: The processes.
    """

    def __init__(self, parameters: list[Parameter], ranks: Ranks) -> None:
        self._parameters, self._ranks = parameters, ranks
        self._before: list[Gradient] = []
        self.sent, self._order = 0, ranks.order  # how many buckets of this batch were sent
        self.buckets, self._others = self._make(), self._make()  # a sum stays in one while the next is on its way
        if ranks.size == ranks.slices:
            for bucket in self.buckets:  # whose last gradient comes last, or nearly so: a hook for each costs more
                bucket.parameters[-1].register_post_accumulate_grad_hook(self._on_gradient)  # type: ignore[no-untyped-call]
        self.send()  # zeros: what a backend needs for its connections is taken before the first batch fills the memory
        self.collect()

    def start_batch(self) -> None:
        """Keep what earlier batches left: a new one begins."""
        self._before, self.sent = self.read(), 0
        if any(gradient is not None for gradient in self._before):
            self.buckets, self._others = self._others, self.buckets
            self.clear()

    def read(self) -> list[Gradient]:
        """Return the gradients of the parameters, None where there is none."""
        return [parameter.grad for parameter in self._parameters]

    def assign(self, gradients: list[Gradient]) -> None:
        """Set the gradients of the parameters."""
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient

    def clear(self) -> None:
        """Set all gradients to None."""
        self.assign([None] * len(self._parameters))

    def send(self) -> list[bool]:
        """Send what is not in flight yet, and return which parameters have a gradient here."""
        while self.sent < len(self.buckets):
            self._send_next()
        return [parameter.grad is not None for parameter in self._parameters]

    def collect(self) -> None:
        """Wait until the buckets hold the sums over all processes."""
        for bucket in self.buckets:
            bucket.reduce(self._order, self._ranks.group)
        for bucket in self.buckets:
            bucket.wait()

    def finish(self, used: list[bool]) -> None:
        """Assign the sum over all slices, and over the batches since the last step, as gradients.

        Args:
            used: Which parameters any slice has a gradient of.
        """
        if self.buckets:
            sums = [view for bucket in self.buckets for view in bucket.sums()][::-1]
            for parameter, total, there, before in zip(self._parameters, sums, used, self._before, strict=True):
                if there or before is not None:
                    parameter.grad = total
        if any(gradient is not None for gradient in self._before):
            self.assign(add(self.read(), self._before))
        self._before = []

    def discard(self) -> None:
        """Discard this batch and those since the last step."""
        self._before = []
        self.clear()

    def _make(self) -> list[Bucket]:
        """Cut the parameters into buckets, the last ones first: their gradients are."""
        cuts: list[list[Parameter]] = []
        for parameter in reversed(self._parameters) if self._ranks.size > 1 else ():
            if not cuts or parameter.dtype != cuts[-1][0].dtype or sum(p.nbytes for p in cuts[-1]) >= BUCKET:
                cuts.append([])
            cuts[-1].append(parameter)
        return [Bucket(cut, self._ranks.size, on_cpu=not self._ranks.cuda) for cut in cuts]

    def _on_gradient(self, _: Tensor) -> None:
        """Send buckets as soon as they are full, one after the other: the processes have to send in one order."""
        while self.sent < len(self.buckets) and self.buckets[self.sent].full:
            self._send_next()

    def _send_next(self) -> None:
        self.buckets[self.sent].send(self._ranks.group)
        self.sent += 1


def add(one: list[Gradient], other: list[Gradient]) -> list[Gradient]:
    """Add lists of gradients, in place; one that is missing counts as zeros where the other is there."""
    both: tuple[list[Tensor], list[Tensor]] = ([], [])
    alone: list[Tensor] = []
    for a, b in zip(one, other, strict=True):
        if a is not None and b is not None:
            both[0].append(a)
            both[1].append(b)
        elif (single := b if a is None else a) is not None:
            alone.append(single)
    if both[0]:
        torch._foreach_add_(*both)
    if alone:
        torch._foreach_add_(alone, 0.0)  # -0 + 0 is 0: it travels so too
    return [b if a is None else a for a, b in zip(one, other, strict=True)]
