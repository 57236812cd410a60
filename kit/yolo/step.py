"""One batch of training: Ultralytics' arithmetic in Ultralytics' order, with random numbers of the batch's own."""

from __future__ import annotations

from typing import Any

import numpy
import torch
from ultralytics.utils.torch_utils import autocast

from kit.run import order
from kit.yolo.trainer import Trainer


class Step(Trainer):
    """Mixin over one of Ultralytics' trainers: learning rates, forward and backward pass, the optimizer's step."""

    def run_batch(self, i: int, batch: Any) -> Any:
        """Run a batch, whose random numbers are a function of its position; return it as it went in."""
        batches = len(self.train_loader)
        self._warm_up(i + batches * self.epoch, batches)
        order.seed_all(order.mix("batch", self.args.seed, self.epoch, i), cuda=True)
        return self.forward_backward(i, batch)

    def step_if_due(self, i: int) -> None:
        """Step the optimizer when gradients of enough batches are accumulated."""
        step = i + len(self.train_loader) * self.epoch
        if step - self.last_opt_step >= self.accumulate:
            self.optimizer_step()
            self.last_opt_step = step

    def _warm_up(self, step: int, batches: int) -> None:
        """Bring learning rates, momentum and accumulation to their targets over the first batches."""
        length = self.warmup_batches(batches)
        if not length or step > length:
            return
        nominal = max(round(self.args.nbs / self.batch_size), 1)
        nominal = min(nominal, batches * self.epochs)
        self.accumulate = max(1, int(numpy.interp(step, [0, length], [1, nominal]).round()))
        for group in self.optimizer.param_groups:
            first = self.args.warmup_bias_lr if group.get("param_group") == "bias" else 0.0
            target = group["initial_lr"] * self.lf(self.epoch)
            group["lr"] = float(numpy.interp(step, [0, length], [first, target]))
            if "momentum" in group:
                ends = [self.args.warmup_momentum, self.args.momentum]
                group["momentum"] = float(numpy.interp(step, [0, length], ends))

    def forward_backward(self, i: int, batch: Any, share: float = 1.0) -> Any:
        """Add the gradients of a batch, or of a slice of one, to those that are there.

        Args:
            i: The batch's number within the epoch.
            batch: As the loader has it.
            share: What the loss counts for in that of the whole batch.

        Returns:
            The batch as it went into the model.
        """
        with autocast(torch.bfloat16 if self.args.amp == "bf16" else self.amp, device=self.device.type):
            batch = self.preprocess_batch(batch)
            loss, items = self.model(batch)
            self.loss, self.loss_items, means = loss.sum(), items, self.tloss
            if not self.loss_names:
                self.loss_names = tuple(items)
                self.metrics.update(dict.fromkeys(self.label_loss_items(prefix="val"), 0.0))
            self.tloss = (
                items if means is None else {name: (means[name] * i + value) / (i + 1) for name, value in items.items()}
            )
        self.scaler.scale(self.loss if share == 1.0 else self.loss * share).backward()
        self.loss = self.loss.detach()
        return batch
