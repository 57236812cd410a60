"""The training loop where a batch is cut into slices, one per logical rank, over one process or several.

As in Ultralytics' own training on several GPUs, each slice has a forward pass of its own, with BatchNorm's statistics
of its images alone; the gradients of all slices are added up; and model, running losses and results are those of the
first rank. With two ranks the weights have the bits of that training. On purpose it differs in this:
- The slices are cut from the batches of one process, so images, augmentation and multi-scale sizes do not depend on
  the number of ranks. Ultralytics deals the epoch out anew, and repeats images where the ranks do not come out even.
- A rank without an image of the last batch adds nothing.
- Classification's loss is the mean over the whole batch; Ultralytics' grows with the number of ranks.
- Rank 0 alone validates: split over ranks, the validation losses are not those of one process.
- Full memory halves the batch, as with one process.

Beside the position nothing differs between the ranks that anything depends on: the gradients are the same once they
are added up, every random number is a function of (seed, epoch, batch, rank), and the statistics of BatchNorm in the
other ranks are never used. So a save needs no other process, and costs the same however many there are.
"""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import Any

import torch
from torch import Tensor
from ultralytics.utils.torch_utils import unwrap_model

from kit.errors import ConfigError
from kit.kaggle import machine
from kit.parallel.gradients import Gradient, Gradients, add
from kit.parallel.ranks import one_by_one, tree
from kit.run.order import mix, seed_all
from kit.run.run import Run
from kit.yolo.loop import Resumable
from kit.yolo.recovery import out_of_memory
from kit.yolo.state import versions
from kit.yolo.tasks import STOCK


class Several(Resumable):
    """Mixin over one of Ultralytics' trainers, in place of `Resumable`."""

    gradients: Gradients
    _agreed: str | None = None  # why to stop after this batch
    _waiting = False  # the others wait for the process that leads
    _back: dict[str, Any] | None = None
    _shown: dict[str, Any] | None = None  # of a process that has had no image yet
    _buffers: list[Tensor]

    def _setup_train(self) -> None:
        ranks, resumed = self.run.ranks, self.run.resumed
        most = max(int(machine.cores()) // ranks.world.local_size, 1)
        threads = resumed["versions"]["threads"] if resumed else min(torch.get_num_threads(), most)
        threads = ranks.share(lambda: threads)
        if self.device.type == "cpu":  # where the bits depend on it
            torch.set_num_threads(threads)
        super()._setup_train()
        model = unwrap_model(self.model)
        if resumed is None and ranks.world.size > ranks.world.local_size:  # the machines may have made others
            model.load_state_dict(ranks.share(model.state_dict))
        self.ema.enabled = ranks.leads
        self.gradients = Gradients([each for each in model.parameters() if each.requires_grad], ranks)
        self._buffers = list(model.buffers())

    def _load_model(self, path: str) -> Any:
        return self.run.ranks.share(lambda: super(Several, self)._load_model(path))

    def _mixed_precision(self) -> bool:
        return self.run.ranks.share(super()._mixed_precision)

    def auto_batch(self, *args: Any, **kwargs: Any) -> int:
        """Estimate the batch size, of which each slice has to fit into memory."""
        ranks = self.run.ranks
        return ranks.share(lambda: super(Several, self).auto_batch(*args, **kwargs) * ranks.logical)

    def get_dataset(self) -> Any:
        """Find the data set; of the processes of one machine, the first one downloads it where it has to be."""
        with one_by_one():
            return super().get_dataset()

    def build_dataset(self, *args: Any, **kwargs: Any) -> Any:
        """Build a data set; of the processes of one machine, the first one scans its labels."""
        with one_by_one():
            dataset = super().build_dataset(*args, **kwargs)
        dataset.processes = self.run.ranks.world.local_size
        return dataset

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """Build a loader whose batches are lists: the slices that this process runs, None for an empty one."""
        loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
        if mode == "train":
            ranks, order = self.run.ranks, loader.batch_sampler
            self._check(order.samples % order.batch_size or order.batch_size, order.batch_size)
            order.own, order.ranks = ranks.own, ranks.logical
            loader.collate_fn = partial(_collate, loader.collate_fn)
        return loader

    def _check(self, last: int, batch: int) -> None:
        """Refuse what BatchNorm or the ranks cannot do.

        Raises:
            ConfigError: A rank never gets an image, or one alone that ends as a single value per channel.
        """
        ranks = self.run.ranks.logical
        if batch < ranks:
            raise ConfigError(f"batch={batch} is too small for {ranks} ranks: raise batch, or set kit.ranks={batch}.")
        smallest = int(self.args.imgsz * (1 - self.args.multi_scale))
        if last < 2 * ranks and smallest < 2 * self.stride:
            raise ConfigError(
                f"The last batch of an epoch has {last} images for {ranks} ranks: with imgsz={smallest} BatchNorm gets "
                "a single value per channel. Change batch, imgsz or multi_scale."
            )

    def _make_room(self) -> None:
        if self.run.ranks.leads:
            super()._make_room()

    def _see_to_best(self) -> None:
        if self.run.ranks.leads:
            super()._see_to_best()

    def _forward_backward(self, i: int, batch: Any, share: float = 1.0) -> Any:
        """Run this process's slices, and have the sum over all ranks as gradients.

        Raises:
            RuntimeError: Memory is full here or in another process; the gradients are gone.
        """
        ranks, problem = self.run.ranks, None
        slices = dict(zip(ranks.own, batch, strict=True))
        self.gradients.begin()
        try:
            total = tree(ranks.own, lambda rank: self._run_slice(i, rank, slices[rank]), add)
            if len(ranks.own) > 1:
                self.gradients.set(total)
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            problem = error
        reason = super()._reason()
        answer = ranks.ask(bool(reason), problem is not None, *self.gradients.send())
        self.gradients.collect()
        stop, failed, *used = answer()
        self._agreed = (reason or "another process was asked to") if stop else ""
        if failed:
            self.gradients.drop()
            raise problem or RuntimeError("out of memory in another process")
        self.gradients.receive(used)
        return self._shown

    def _run_slice(self, i: int, rank: int, batch: dict[str, Any] | None) -> list[Gradient]:
        """Return the gradients of one slice; losses and statistics stay those of this process's first one."""
        first = rank == self.run.ranks.own.start
        if not first:
            self.gradients.clear()
        if batch is None:
            return self.gradients.take()
        kept = self.loss, self.loss_items, self.tloss
        buffers = [] if first else [buffer.clone() for buffer in self._buffers]
        words = self.args.seed, self.epoch, i
        if not first:
            seed_all(mix("batch", *words), cuda=True)  # one size for all, where it is drawn
        if rank:
            torch.manual_seed(mix("batch", *words, rank))
        order, share = self.train_loader.batch_sampler, 1.0
        if self.args.task == "classify":  # the others' losses are sums over the images
            share = len(batch["img"]) / min(order.batch_size, order.samples - i * order.batch_size)
        try:
            shown = super()._forward_backward(i, batch, share)
        finally:  # also where memory is full: another process may have had the room
            if not first:
                self.loss, self.loss_items, self.tloss = kept
                torch._foreach_copy_(self._buffers, buffers)
        if first:
            self._shown = shown
        return self.gradients.take()

    def _wait_for_batch(self, seconds: float) -> None:
        """Hear a stop where the others ask for it too: in validation; in training the launcher ends what hangs."""
        if self._waiting:
            super()._wait_for_batch(seconds)

    def _reason(self) -> str:
        """Return why all processes stop now: after a batch as agreed on with the gradients, else by agreeing now."""
        agreed, self._agreed = self._agreed, None
        if agreed is not None:
            return agreed
        reason = super()._reason()
        stop, self._waiting = self.run.ranks.agree(bool(reason), self._waiting and self.run.ranks.leads)
        return (reason or "another process was asked to") if stop else ""

    def _lead(self, work: Any) -> None:
        """Have the process that leads do something, while the others wait and a stop is still heard."""
        self._waiting = True
        if self.run.ranks.leads:
            work()
            self._waiting = False
            self._stop_if_asked()
        while self._waiting:
            self._stop_if_asked()

    def _end_epoch(self) -> None:
        """Validate, log and save in the process that leads; where training goes on from, it tells the others."""
        self._lead(super()._end_epoch)
        leads = self.run.ranks.leads
        self.stop, self._back = self.run.ranks.share(lambda: (self.stop, self._back))
        if not leads:
            self._update_criterion()
            self.epoch, self.batch = self.epoch + 1, 0
            if self._back is not None:
                super()._go_back(self._back)
        self._back = None

    def _go_back(self, saved: dict[str, Any]) -> None:
        self._back = saved
        super()._go_back(saved)

    def final_eval(self) -> None:
        """Validate the best model once more in the process that leads."""
        self._lead(super().final_eval)


def _collate(collate: Any, slices: list[list[Any]]) -> list[Any]:
    return [collate(samples) if samples else None for samples in slices]


def deal(run: Run, cuda: bool) -> None:
    """Decide how many slices a batch is cut into, for the life of the run, and deal them out to the processes.

    Args:
        run: The run.
        cuda: This process has a GPU to itself.
    """
    ranks, wanted, say = run.ranks, run.config.kit.ranks, run.status.say
    processes = ranks.world.size
    before = (run.resumed.get("ranks", 1) if run.resumed else None) or processes
    ranks.form(before if isinstance(wanted, str) else wanted, cuda)
    if ranks.logical > 1:
        some = f"{ranks.size} processes" if ranks.size > 1 else "one process"
        say(f"Each batch is cut into {ranks.logical} slices, which {some} will run")
    if run.resumed and before != ranks.logical:
        run.not_exact(f"Not exact from here on: slices per batch {before} -> {ranks.logical}")
    if processes > ranks.size:
        say(
            f"{processes - ranks.size} of {processes} processes have nothing to do, because this run cuts each batch "
            f"into {ranks.logical}. To use them, no longer exactly: kit.ranks={processes}"
        )


def trainer_class(run: Run, overrides: dict[str, Any]) -> type:
    """Return the trainer of the task in slices, and make the settings ready for it."""
    ranks = run.ranks
    overrides["plots"] = ranks.leads and run.config.get("plots")
    same = {name: value for name, value in versions().items() if name != "threads"}  # those of the run are set
    members = ranks.gather({"pid": os.getpid(), "host": socket.gethostname(), "versions": same})
    run.status.update(now=True, processes=[{name: each[name] for name in ("pid", "host")} for each in members])
    if any(each["versions"] != members[0]["versions"] for each in members):
        kinds = "; ".join(f"{each['host']}: {each['versions']}" for each in members)
        run.status.say(f"WARNING: The processes differ, and their weights will drift apart by rounding: {kinds}")
    stock = STOCK[run.identity["task"]]
    return type(f"Several{stock.__name__}", (Several, stock), {})
