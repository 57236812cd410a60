"""What the mixins of this room share: every attribute that one of them sets and another one reads, declared once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from kit.run.run import Run
from kit.yolo.upstream import Upstream


class Trainer(Upstream):
    """One of Ultralytics' trainers with the kit's own attributes; `upstream.StockTrainer` declares Ultralytics'."""

    run: Run
    batch = 0  # batches done of this epoch
    global_step = 0  # batches done since the run began
    last_opt_step = -1  # the batch after which the optimizer stepped last, counted over the epochs
    progressed = False  # in this session: it may stop at the limit
    oom_retries = 0  # halvings of the batch because memory was full
    best_map: float | None = None  # best validation mAP50-95 so far
    history: list[dict[str, float]]  # the rows of results.csv
    average_is_finite = True
    rolled_back: dict[str, Any] | None = None  # the checkpoint that this epoch went back to, for the other processes
    data_hash = ""  # of the list of training images
    modules: Tensor  # the model's module tree, pickled without its numbers

    def seek(self) -> None:
        """Have the loader go on with the batch that comes next."""
        self.train_loader.reset()
        self.train_loader.batch_sampler.start = (self.epoch, self.batch)

    def on_main(self, work: Callable[[], None]) -> None:
        """Do something in the main process only."""
        work()

    def look_ahead(self) -> None:
        """After the save of a stop, train a few batches more, for the next session to compare itself with."""
        raise NotImplementedError

    def poll_stop(self) -> None:
        """Save and leave where a stop was asked for; called between batches and while there is none."""
        raise NotImplementedError

    def while_waiting(self, seconds: float) -> None:
        """Go on waiting for a batch of the loader, for which training has waited so long."""
