"""Trainers that torchrun runs in place of the kit's own: a reference, and one that things go wrong in.

torchrun --nproc-per-node=2 tests/help/variants.py Reference CONFIG key=value ...
"""

from __future__ import annotations

import sys
from typing import Any

from kit.parallel.world import World
from kit.yolo import environment
from kit.yolo.settings import load

world = World.current()
environment.prepare()

import torch  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

from kit.parallel import gradients  # noqa: E402
from kit.yolo import slices, train  # noqa: E402
from kit.yolo.loop import Resumable  # noqa: E402
from kit.yolo.slices import SlicedTrainer  # noqa: E402


class Reference(SlicedTrainer):
    """torch's reducer with Ultralytics' arithmetic: the loss times the processes, and gradients averaged."""

    def set_up(self) -> None:
        Resumable.set_up(self)
        self.parallel = DistributedDataParallel(
            self.model, process_group=self.run.ranks.group, find_unused_parameters=True, broadcast_buffers=False
        )

    def forward_backward(self, i: int, batch: Any, share: float = 1.0) -> dict[str, Any]:
        images = self.preprocess_batch(batch[0])
        loss, self.loss_items = self.parallel(images)
        self.loss = loss.sum() * self.run.ranks.size
        if not self.loss_names:
            self.loss_names = tuple(self.loss_items)
            self.metrics.update(dict.fromkeys(self.label_loss_items(prefix="val"), 0.0))
        kept = self.tloss
        self.tloss = {
            name: value if kept is None else (kept[name] * i + value) / (i + 1)
            for name, value in self.loss_items.items()
        }
        self.scaler.scale(self.loss).backward()
        self.loss, self._agreed = self.loss.detach(), ""
        return images


class Buckets(SlicedTrainer):
    """Gradients travel in many buckets, where a small model's would in one."""

    def set_up(self) -> None:
        gradients.BUCKET = 1 << 13
        super().set_up()
        assert len(self.gradients.buckets) > 10


class Broken(Buckets):
    """Memory is full in the second process's third slice; in the third epoch the first one's loss is no number.

    It is full in the middle of the backward pass, when some buckets are on their way already.
    """

    calls = 0

    def set_up(self) -> None:
        super().set_up()
        if self.run.ranks.world.rank == 1:
            middle = len(self.gradients.buckets) // 2
            self.gradients.buckets[middle].parameters[0].register_post_accumulate_grad_hook(self._fill)

    def _fill(self, _: Any) -> None:
        self.calls += 1
        if self.calls == 3:
            assert 0 < self.gradients.sent < len(self.gradients.buckets)
            raise torch.OutOfMemoryError("CUDA is out of room")

    def _run_slice(self, i: int, rank: int, batch: Any) -> Any:
        taken = super()._run_slice(i, rank, batch)
        if self.run.ranks.is_main and self.epoch == 2 and not self.nan_recovery_attempts:
            self.loss = self.loss * float("nan")
        return taken


if __name__ == "__main__":
    slices.SlicedTrainer = globals()[sys.argv[1]]  # type: ignore[misc]
    train.train(load(sys.argv[2], sys.argv[3:]), world=world)
