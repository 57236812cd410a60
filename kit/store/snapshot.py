"""Staging memory for a snapshot: a copy of a training's tensors that a background thread can write in its own time.

Invariant: a snapshot holds one instant. It is taken between two batches, and on a GPU its copies are queued on the
stream of training, behind the optimizer's step and before the next forward, so nothing can tear it.

Each section of a checkpoint gets one buffer per dtype, and its tensors are views of it. So a file has a handful of
records, which makes `torch.save` cheap, and a section that is saved again by itself takes no other with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor

Sections = dict[str, list[Tensor]]
ALIGNMENT = 64  # bytes, as PyTorch aligns the memory of a tensor


class Place(NamedTuple):
    """How a tensor lies in memory."""

    shape: torch.Size
    dtype: torch.dtype
    stride: tuple[int, ...]
    device: torch.device


class Home:
    """Memory in which tensors lie side by side: one buffer per device and dtype, so that few copies copy them all.

    Args:
        places: How the tensors lie, in the order in which they will lie side by side.
        staging: On the CPU, wherever the tensors are.
        pinned: Page-locked memory, which a GPU copies into by itself.
    """

    def __init__(self, places: list[Place], staging: bool = False, pinned: bool = False) -> None:
        self.places = places
        sizes: dict[tuple[torch.device, torch.dtype], int] = {}
        offsets = []
        for place in places:
            kind, step = (place.device, place.dtype), ALIGNMENT // place.dtype.itemsize
            offsets.append(-(-sizes.get(kind, 0) // step) * step)
            sizes[kind] = offsets[-1] + place.shape.numel()
        self.buffers = {
            kind: torch.empty(
                size, dtype=kind[1], device="cpu" if staging else kind[0], pin_memory=staging and pinned
            ).zero_()
            for kind, size in sizes.items()
        }
        self.views = [
            self.buffers[place.device, place.dtype].as_strided(place.shape, place.stride, offset)
            for place, offset in zip(places, offsets, strict=True)
        ]
        self._addresses = [view.data_ptr() for view in self.views]

    def take_in(self, tensors: Sequence[Tensor]) -> None:
        """Move tensors into this memory; they stay the same objects with the same values.

        Nothing is moved where two of them share memory, which has to stay so.
        """
        away = [(one, view) for one, view in zip(tensors, self.views, strict=True) if one.data_ptr() != view.data_ptr()]
        shared = {buffer.untyped_storage().data_ptr() for buffer in self.buffers.values()}
        if len(shared | {one.untyped_storage().data_ptr() for one, _ in away}) == len(shared) + len(away):
            for one, view in away:
                one.data = view.copy_(one.detach())

    def holds(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether it is these tensors that lie here, each in its place."""
        return self._addresses == [tensor.data_ptr() for tensor in tensors]


class Slot:
    """Memory for one snapshot, made once and used again and again.

    Args:
        pinned: Page-locked memory, which a GPU copies into by itself.
    """

    def __init__(self, pinned: bool = False) -> None:
        self._pinned = pinned
        self._staged: dict[str, Home] = {}
        self._seen: dict[str, list[ref[Tensor]]] = {}

    def make(self, layout: dict[str, list[Place]]) -> None:
        """Make the memory for sections that lie like this, and touch it: the first touch is the slow one."""
        for name, places in layout.items():
            if places and (name not in self._staged or self._staged[name].places != places):
                self._staged[name] = Home(places, staging=True, pinned=self._pinned)
                self._seen.pop(name, None)

    def copy(self, sections: Sections, homes: dict[str, Home] | None = None) -> tuple[Sections, Callable[[], float]]:
        """Copy tensors into this memory, which is made anew where it does not fit.

        Args:
            sections: The tensors of each section, on the CPU or on a GPU.
            homes: Where those of some sections were taken in; those that do not lie there any more are copied singly.

        Returns:
            Their copies, and a function that waits until a GPU has delivered them and returns the seconds that it
            was kept from training.
        """
        staged: Sections = {}
        copies: list[Tensor] = []
        sources: list[Tensor] = []
        for name, tensors in sections.items():
            home = (homes or {}).get(name)
            if home is not None and home.holds(tensors):
                self.make({name: home.places})
                copies += self._staged[name].buffers.values()
                sources += home.buffers.values()
            elif tensors:
                self._prepare(name, tensors)
                copies += self._staged[name].views
                sources += tensors
            staged[name] = self._staged[name].views if tensors else []
        began = _mark() if self._pinned else None
        if copies:
            with torch.no_grad():
                torch._foreach_copy_(copies, sources, non_blocking=True)
        ended = _mark() if self._pinned else None
        return staged, lambda: _between(began, ended)

    def _prepare(self, name: str, tensors: list[Tensor]) -> None:
        seen = self._seen.get(name, ())
        if len(seen) != len(tensors) or any(one() is not other for one, other in zip(seen, tensors, strict=True)):
            self.make({name: [place(tensor) for tensor in tensors]})
            self._seen[name] = [ref(tensor) for tensor in tensors]


def place(tensor: Tensor) -> Place:
    """Tell how a tensor lies (channels_last stays so), unless it leaves gaps or overlaps: then how a copy would."""
    device = tensor.device
    if not torch.ops.aten.is_non_overlapping_and_dense(tensor):
        tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return Place(tensor.shape, tensor.dtype, tensor.stride(), device)


def _mark() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(began: torch.cuda.Event | None, ended: torch.cuda.Event | None) -> float:
    if began is None or ended is None:
        return 0.0
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1000
