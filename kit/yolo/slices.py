"""The training loop where a batch is cut into slices, which one process runs or several; `kit.run.order` cuts it.

As in Ultralytics' own training on several GPUs, where a slice is a rank, each slice has a forward pass of its own, with
BatchNorm's statistics of its images alone; the gradients of all slices are added up; and model, running losses and
results are those of the first slice. With two slices the weights have the bits of that training. On purpose it differs
in this:
- The slices are cut from the batches of one process, so images, augmentation and multi-scale sizes do not depend on
  their number. Ultralytics splits the epoch over the ranks, and repeats images where it cannot be split evenly.
- A slice without an image of the last batch adds nothing.
- Classification's loss is the mean over the whole batch; Ultralytics' grows with the number of ranks.
- One process validates: split over ranks, the validation losses are not those of one process.
- Full memory halves the batch, as with one process.

Apart from position, all processes hold identical state: the gradients are the same once they are added up, every random
number is a function of (seed, epoch, batch, slice), and BatchNorm's statistics in the other slices are never used. So
a save needs no other process, and costs the same however many there are. What the main process alone does goes through
`on_main`, and the others have a writer and a status that do nothing (`kit.yolo.train`).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.torch_utils import unwrap_model

from kit.errors import ConfigError
from kit.kaggle import machine
from kit.parallel.gradients import Gradient, Gradients, add
from kit.parallel.ranks import tree_reduce
from kit.run.order import mix, seed_all
from kit.run.run import Run
from kit.yolo.loop import Resumable
from kit.yolo.recovery import out_of_memory
from kit.yolo.state import versions
from kit.yolo.tasks import STOCK


class SlicedTrainer(Resumable):
    """Mixin over one of Ultralytics' trainers, in place of `Resumable`."""

    gradients: Gradients
    _agreed: str | None = None  # why all stop after this batch, as they agreed with the gradients; None: not asked yet
    _waiting = False  # for the main process
    _shown: dict[str, Any] | None = None  # the first slice of this process; None until it had an image
    _buffers: list[Tensor]

    def set_up(self) -> None:
        """Set up with the run's number of threads and, on several machines, the main one's weights."""
        ranks, resumed = self.run.ranks, self.run.resumed
        most = max(int(machine.cores()) // ranks.world.local_size, 1)
        threads = resumed["versions"]["threads"] if resumed else min(torch.get_num_threads(), most)
        threads = ranks.broadcast(lambda: threads)
        if self.device.type == "cpu":  # where the bits depend on it
            torch.set_num_threads(threads)
        super().set_up()
        model = unwrap_model(self.model)
        if resumed is None and ranks.world.size > ranks.world.local_size:  # the machines may have made others
            model.load_state_dict(ranks.broadcast(model.state_dict))
        self.ema.enabled = ranks.is_main
        self.gradients = Gradients([each for each in model.parameters() if each.requires_grad], ranks)
        self._buffers = list(model.buffers())

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """Build a loader whose batches are lists: the slices that this process runs, None for an empty one."""
        loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
        if mode == "train":
            ranks, order = self.run.ranks, loader.batch_sampler
            self._check_slices(order.samples % order.batch_size or order.batch_size, order.batch_size)
            order.my_slices, order.slices = ranks.my_slices, ranks.slices
            loader.collate_fn = partial(_collate, loader.collate_fn)
        return loader

    def _check_slices(self, last: int, batch: int) -> None:
        """Refuse what BatchNorm or the slices cannot do.

        Raises:
            ConfigError: A slice never gets an image, or one image reduced to 1x1, which BatchNorm cannot use.
        """
        slices = self.run.ranks.slices
        if batch < slices:
            raise ConfigError(
                f"batch={batch} is too small for {slices} slices.", f"Raise batch, or set kit.slices={batch}."
            )
        smallest = int(self.args.imgsz * (1 - self.args.multi_scale))
        if last < 2 * slices and smallest < 2 * self.stride:
            raise ConfigError(
                f"The last batch of an epoch has {last} images for {slices} slices: with imgsz={smallest} BatchNorm "
                "gets a single value per channel.",
                "Change batch, imgsz or multi_scale.",
            )

    def forward_backward(self, i: int, batch: Any, share: float = 1.0) -> Any:
        """Run this process's slices, and assign the sum over all slices as gradients.

        Raises:
            RuntimeError: Memory is full here or in another process; the gradients are discarded.
        """
        ranks, problem = self.run.ranks, None
        slices = dict(zip(ranks.my_slices, batch, strict=True))
        self.gradients.start_batch()
        try:
            total = tree_reduce(ranks.my_slices, lambda number: self._run_slice(i, number, slices[number]), add)
            if len(slices) > 1:
                self.gradients.assign(total)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            problem = error
        reason = super()._stop_reason()
        answer = ranks.any_async(bool(reason), problem is not None, *self.gradients.send())
        self.gradients.collect()
        stop, failed, *used = answer()
        self._agreed = (reason or "another process was asked to") if stop else ""
        if failed:
            self.gradients.discard()
            raise problem or torch.OutOfMemoryError("another process has run out of memory")
        self.gradients.finish(used)
        return self._shown

    def _run_slice(self, i: int, number: int, batch: dict[str, Any] | None) -> list[Gradient]:
        """Return the gradients of one slice; losses and statistics stay those of this process's first one."""
        first = number == self.run.ranks.my_slices.start
        if not first:
            self.gradients.clear()
        if batch is None:
            return self.gradients.read()
        kept = self.loss, self.loss_items, self.tloss
        buffers = [] if first else [buffer.clone() for buffer in self._buffers]
        words = self.args.seed, self.epoch, i
        if not first:
            seed_all(mix("batch", *words), cuda=True)  # one size for all, where it is drawn
        if number:
            torch.manual_seed(mix("batch", *words, number))
        order, share = self.train_loader.batch_sampler, 1.0
        if self.args.task == "classify":  # the others' losses are sums over the images
            share = len(batch["img"]) / min(order.batch_size, order.samples - i * order.batch_size)
        try:
            shown = super().forward_backward(i, batch, share)
        finally:  # also where memory is full: another process may have had the room
            if not first:
                self.loss, self.loss_items, self.tloss = kept
                torch._foreach_copy_(self._buffers, buffers)
        if first:
            self._shown = shown
        return self.gradients.read()

    def while_waiting(self, seconds: float) -> None:
        """Poll for a stop where the others do too: in validation. In training the launcher ends what hangs."""
        if self._waiting:
            super().while_waiting(seconds)

    def _stop_reason(self) -> str:
        """Return why all processes stop now: after a batch as agreed with the gradients, else by agreeing now."""
        agreed, self._agreed = self._agreed, None
        if agreed is not None:
            return agreed
        reason, ranks = super()._stop_reason(), self.run.ranks
        stop, self._waiting = ranks.any(bool(reason), self._waiting and ranks.is_main)
        return (reason or "another process was asked to") if stop else ""

    def on_main(self, work: Callable[[], None]) -> None:
        """Do something in the main process, while the others poll for a stop."""
        self._waiting = True
        if self.run.ranks.is_main:
            work()
            self._waiting = False
            self.poll_stop()
        while self._waiting:
            self.poll_stop()


def _collate(collate: Any, slices: list[list[Any]]) -> list[Any]:
    return [collate(samples) if samples else None for samples in slices]


def assign_slices(run: Run, cuda: bool) -> None:
    """Decide how many slices a batch is cut into, for the life of the run, and split them over the processes.

    Args:
        run: The run.
        cuda: This process has a GPU to itself.
    """
    ranks, wanted, say = run.ranks, run.config.kit.slices, run.status.say
    processes = ranks.world.size
    before = (run.resumed.get("ranks", 1) if run.resumed else None) or processes
    ranks.set_slices(before if isinstance(wanted, str) else wanted, cuda)
    if ranks.slices > 1:
        some = f"{ranks.size} processes" if ranks.size > 1 else "one process"
        say(f"Each batch is cut into {ranks.slices} slices, run by {some}")
    if run.resumed and before != ranks.slices:
        run.not_exact(f"No longer bit-exact: slices per batch {before} -> {ranks.slices}")
    if processes > ranks.size:
        say(
            f"{processes - ranks.size} of {processes} processes stay idle, because this run cuts each batch into "
            f"{ranks.slices}. To use them, no longer exactly: kit.slices={processes}"
        )


def sliced_trainer(run: Run, overrides: dict[str, Any], device: torch.device) -> type[SlicedTrainer]:
    """Return the trainer of the task in slices, and prepare its settings."""
    ranks = run.ranks
    overrides["plots"] = ranks.is_main and run.config.get("plots")
    same = {name: value for name, value in versions(device).items() if name != "threads"}  # those of the run are set
    members = ranks.gather({"pid": os.getpid(), "host": socket.gethostname(), "versions": same})
    run.status.update(now=True, processes=[{name: each[name] for name in ("pid", "host")} for each in members])
    if any(each["versions"] != members[0]["versions"] for each in members):
        kinds = "; ".join(f"{each['host']}: {each['versions']}" for each in members)
        run.status.warn(f"The processes differ, and their weights will drift apart by rounding: {kinds}")
    stock = STOCK[run.identity["task"]]
    return type(f"Sliced{stock.__name__}", (SlicedTrainer, stock), {})
