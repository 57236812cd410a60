"""Staging memory for a snapshot: a copy of a training's tensors that a background thread can write in its own time.

Invariant: a snapshot holds one instant. It is taken between two batches, and on a GPU its copies are queued on the
stream of training, behind the optimizer's step and before the next forward, so nothing can tear it.

Each section of a checkpoint gets one buffer per dtype, and its tensors are views of it. So a file has a handful of
records, which makes `torch.save` cheap, and a section that is saved again by itself takes no other with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor

Sections = dict[str, list[Tensor]]


class Place(NamedTuple):
    """How a tensor lies in memory."""

    shape: torch.Size
    dtype: torch.dtype
    stride: tuple[int, ...]


class Slot:
    """Memory for one snapshot, made once and used again and again.

    Args:
        pinned: Page-locked memory, which a GPU copies into by itself.
    """

    def __init__(self, pinned: bool = False) -> None:
        self._pinned = pinned
        self._views: dict[str, list[Tensor]] = {}
        self._seen: dict[str, list[ref[Tensor]]] = {}

    def make(self, layout: dict[str, list[Place]]) -> None:
        """Make the memory for sections that lie like this, and touch it: the first touch is the slow one."""
        for name, section in layout.items():
            if section and not self._fits(name, section):
                self._views[name] = self._carve(section)

    def copy(self, sections: Sections) -> tuple[Sections, Callable[[], float]]:
        """Copy tensors into this memory, which is made anew where it does not fit.

        Args:
            sections: The tensors of each section, on the CPU or on a GPU.

        Returns:
            Their copies, and a function that waits until a GPU has delivered them and returns the seconds that it
            was kept from training.
        """
        for name, tensors in sections.items():
            seen = self._seen.get(name, ())
            if len(seen) != len(tensors) or any(one() is not other for one, other in zip(seen, tensors, strict=True)):
                self.make({name: [place(tensor) for tensor in tensors]})
                self._seen[name] = [ref(tensor) for tensor in tensors]
        staged = {name: self._views[name] if tensors else [] for name, tensors in sections.items()}
        began = _mark() if self._pinned else None
        if any(staged.values()):
            with torch.no_grad():
                torch._foreach_copy_([*chain(*staged.values())], [*chain(*sections.values())], non_blocking=True)
        ended = _mark() if self._pinned else None
        return staged, lambda: _between(began, ended)

    def _fits(self, name: str, section: Sequence[Place]) -> bool:
        views = self._views.get(name, [])
        return len(views) == len(section) and all(
            view.shape == other.shape and view.dtype == other.dtype for view, other in zip(views, section, strict=True)
        )

    def _carve(self, section: list[Place]) -> list[Tensor]:
        sizes: dict[torch.dtype, int] = {}
        offsets = []
        for place in section:
            offsets.append(sizes.get(place.dtype, 0))
            sizes[place.dtype] = offsets[-1] + place.shape.numel()
        buffers = {
            dtype: torch.empty(size, dtype=dtype, pin_memory=self._pinned).zero_() for dtype, size in sizes.items()
        }
        return [
            buffers[place.dtype].as_strided(place.shape, place.stride, offset)
            for place, offset in zip(section, offsets, strict=True)
        ]


def place(tensor: Tensor) -> Place:
    """Tell how a tensor lies (channels_last stays so), unless it leaves gaps or overlaps: then how a copy would."""
    if not torch.ops.aten.is_non_overlapping_and_dense(tensor):
        tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return Place(tensor.shape, tensor.dtype, tensor.stride())


def _mark() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def _between(began: torch.cuda.Event | None, ended: torch.cuda.Event | None) -> float:
    if began is None or ended is None:
        return 0.0
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1000
