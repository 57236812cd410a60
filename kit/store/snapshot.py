"""Staging memory for a snapshot: a copy of a training's tensors that a background thread can write in its own time.

Invariant: a snapshot holds one instant. It is taken between two batches, and on a GPU its copies are queued on the
stream of training, behind the optimizer's step and before the next forward, so nothing can tear it.

Each section of a checkpoint gets one buffer per dtype, and its tensors are views of it. So a file has a handful of
records, which makes `torch.save` cheap, and a section that is saved again by itself takes no other with it.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn

Sections = dict[str, list[Tensor]]
ALIGNMENT = 64  # bytes, as PyTorch aligns the memory of a tensor


class TensorLayout(NamedTuple):
    """How a tensor lies in memory, or is to lie."""

    shape: torch.Size
    dtype: torch.dtype
    stride: tuple[int, ...]
    device: torch.device


class FlatBuffer:
    """Memory in which tensors lie side by side: one buffer per device and dtype, so that few copies copy them all.

    Args:
        layouts: Of the tensors, in the order in which they will lie.
        staging: On the CPU, wherever the tensors are; for those on a GPU page-locked, which it copies into by itself.
    """

    def __init__(self, layouts: list[TensorLayout], staging: bool = False) -> None:
        self.layouts = layouts
        sizes: dict[tuple[torch.device, torch.dtype], int] = {}
        offsets = []
        for layout in layouts:
            kind, step = (layout.device, layout.dtype), ALIGNMENT // layout.dtype.itemsize
            offsets.append(-(-sizes.get(kind, 0) // step) * step)
            sizes[kind] = offsets[-1] + layout.shape.numel()
        self.buffers = {
            kind: _staging(size, *kind) if staging else torch.zeros(size, dtype=kind[1], device=kind[0])
            for kind, size in sizes.items()
        }
        self.views = [
            self.buffers[layout.device, layout.dtype].as_strided(layout.shape, layout.stride, offset)
            for layout, offset in zip(layouts, offsets, strict=True)
        ]
        self._addresses = [view.data_ptr() for view in self.views]

    def adopt(self, tensors: Sequence[Tensor]) -> None:
        """Move tensors into this memory; they stay the same objects with the same values.

        Nothing is moved where two of them share memory, which has to stay so.
        """
        away = [(one, view) for one, view in zip(tensors, self.views, strict=True) if one.data_ptr() != view.data_ptr()]
        shared = {buffer.untyped_storage().data_ptr() for buffer in self.buffers.values()}
        if len(shared | {one.untyped_storage().data_ptr() for one, _ in away}) == len(shared) + len(away):
            for one, view in away:
                one.data = view.copy_(one.detach())

    def owns(self, tensors: Sequence[Tensor]) -> bool:
        """Tell whether these tensors still live in this buffer, each in its place."""
        return self._addresses == [tensor.data_ptr() for tensor in tensors]


class ModuleTensors:
    """The tensors of a module's state dict, found without building one: training waits for them."""

    def __init__(self, module: nn.Module) -> None:
        self._places = [
            (holder, key, prefix + key)
            for prefix, each in _modules(module)
            for holder in (each._parameters, each._buffers)
            for key, value in holder.items()
            if value is not None and key not in each._non_persistent_buffers_set
        ]
        self.names = [name for _, _, name in self._places]

    def __call__(self) -> list[Tensor]:
        """Return the tensors that have these names now."""
        return [holder[key] for holder, key, _ in self._places]  # type: ignore[misc]


def _modules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield a module and those in it in the order of its state dict, a shared one under each of its names."""
    yield prefix, module
    for name, child in module._modules.items():
        if child is not None:
            yield from _modules(child, f"{prefix}{name}.")


def _staging(size: int, source: torch.device, dtype: torch.dtype) -> Tensor:
    """Make memory that is touched already and begins at a page, as direct writing wants it (`kit.store.direct`)."""
    if not size:
        return torch.zeros(0, dtype=dtype)
    if source.type == "cuda":
        with suppress(RuntimeError):  # the machine has none left: copies take longer, which is counted as their cost
            return torch.zeros(size, dtype=dtype, pin_memory=True)
    pages = mmap.mmap(-1, size * dtype.itemsize, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(pages, dtype=dtype).zero_()


class StagingBuffer:
    """Memory for one snapshot, made once and used again and again."""

    def __init__(self) -> None:
        self._staged: dict[str, FlatBuffer] = {}
        self._seen: dict[str, list[ref[Tensor]]] = {}

    def allocate(self, layout: dict[str, list[TensorLayout]]) -> None:
        """Allocate memory for sections of these layouts, and touch it: the first touch is the slow one."""
        for name, layouts in layout.items():
            if layouts and (name not in self._staged or self._staged[name].layouts != layouts):
                self._staged[name] = FlatBuffer(layouts, staging=True)
                self._seen.pop(name, None)

    def copy(
        self, sections: Sections, buffers: dict[str, FlatBuffer] | None = None
    ) -> tuple[Sections, Callable[[], float]]:
        """Copy tensors into this memory, which is allocated again where it does not fit.

        Args:
            sections: The tensors of each section, on the CPU or on a GPU.
            buffers: That adopted the tensors of some sections; those that have left theirs are copied one by one.

        Returns:
            Their copies, and a function that waits until the copies are there and returns the seconds of GPU time that
            they took.
        """
        staged: Sections = {}
        copies: list[Tensor] = []
        sources: list[Tensor] = []
        for name, tensors in sections.items():
            flat = (buffers or {}).get(name)
            if flat is not None and flat.owns(tensors):
                self.allocate({name: flat.layouts})
                copies += self._staged[name].buffers.values()
                sources += flat.buffers.values()
            elif tensors:
                self._prepare(name, tensors)
                copies += self._staged[name].views
                sources += tensors
            staged[name] = self._staged[name].views if tensors else []
        stream = _stream(sources)
        began = _mark(stream)
        if copies:
            with torch.no_grad():
                torch._foreach_copy_(copies, sources, non_blocking=True)
        ended = _mark(stream)
        return staged, lambda: _between(began, ended)

    def _prepare(self, name: str, tensors: list[Tensor]) -> None:
        seen = self._seen.get(name, ())
        if len(seen) != len(tensors) or any(one() is not other for one, other in zip(seen, tensors, strict=True)):
            self.allocate({name: [layout_of(tensor) for tensor in tensors]})
            self._seen[name] = [ref(tensor) for tensor in tensors]


def layout_of(tensor: Tensor) -> TensorLayout:
    """Return a tensor's layout, channels_last for one; that of a copy where it has gaps or overlaps itself."""
    device = tensor.device
    if not torch.ops.aten.is_non_overlapping_and_dense(tensor):
        tensor = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return TensorLayout(tensor.shape, tensor.dtype, tensor.stride(), device)


def laid_out_as(parameter: Tensor, value: Tensor, name: str = "gradient") -> Tensor:
    """Copy a value that belongs to a parameter to its device, with its strides.

    Raises:
        ValueError: It has another shape.
    """
    if value.shape != parameter.shape:
        raise ValueError(f"{name} of shape {list(value.shape)} for {list(parameter.shape)}")
    return torch.empty_like(parameter, dtype=value.dtype, requires_grad=False).copy_(value)


def _stream(sources: list[Tensor]) -> torch.cuda.Stream | None:
    """Return the stream that copies of these tensors are queued on, which is training's; None where none is needed."""
    return next((torch.cuda.current_stream(each.device) for each in sources if each.is_cuda), None)


def _mark(stream: torch.cuda.Stream | None) -> torch.cuda.Event | None:
    if stream is None:
        return None
    event = torch.cuda.Event(enable_timing=True, blocking=True)  # type: ignore[no-untyped-call]  # who waits, sleeps
    event.record(stream)
    return event


def _between(began: torch.cuda.Event | None, ended: torch.cuda.Event | None) -> float:
    if began is None or ended is None:
        return 0.0
    ended.synchronize()
    return float(began.elapsed_time(ended)) / 1000
