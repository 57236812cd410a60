"""Recovery when the GPU's memory is full, or when the loss is NaN or inf.

Both resume from a position that is a function of the run and not of the clock, so a run that was killed meanwhile
recovers as one that was not: Ultralytics looks at the session's first epoch and at the last file that it wrote, which
here would depend on where the last kill fell.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from ultralytics.utils.torch_utils import unwrap_model

from kit.errors import CheckpointError, KitError
from kit.store import checkpoint, disk
from kit.yolo import models
from kit.yolo.reporting import Reporting

ATTEMPTS = 3  # halvings of the batch, and rollbacks from a loss that is NaN or inf
CUDA_FULL = 2  # cudaErrorMemoryAllocation, as `torch.AcceleratorError.error_code` has it
OUT_OF_MEMORY = (  # in lower case: of a torch before 2.8 and of cuBLAS, cuDNN and NCCL, whose errors have no type
    "out of memory",
    "cublas_status_alloc_failed",
    "cudnn_status_internal_error",
    "unable to find an engine",
)


class Recovery(Reporting):
    """Mixin over the loop: half the batch, or back to the best model."""

    def _halve_batch(self, error: RuntimeError) -> None:
        """Start the first epoch again with half the batch when the GPU's memory is full, as Ultralytics does.

        Ultralytics does so in the first epoch of every session; here it is the first of the run, and the batch size is
        kept for all of it.

        Raises:
            KitError: Memory is full in a later epoch, again after three halvings, or with an image in each slice.
            RuntimeError: `error`, which is of another kind.
        """
        if not out_of_memory(error):
            raise error
        if self.epoch > 0 or self.oom_retries >= ATTEMPTS or self.batch_size // 2 < self.run.ranks.slices:
            raise self.memory_is_full() from error
        self.oom_retries += 1
        self.args.batch = self.batch_size = self.batch_size // 2
        self.run.status.say(f"Out of memory: the epoch starts again with batch={self.batch_size}")
        self.loss = self.loss_items = self.tloss = None
        self.train_loader.close()
        self.free_memory()
        self.build_pipeline()
        self.validator.dataloader = self.test_loader
        self.scheduler.last_epoch, self.last_opt_step, self.batch = -1, -1, 0
        self.optimizer.zero_grad()
        self.seek()

    def memory_is_full(self) -> KitError:
        """Return the error for memory that is full where no smaller batch is tried."""
        return KitError(
            f"The GPU's memory is full in epoch {self.epoch + 1} with batch={self.batch_size} and "
            f"imgsz={self.args.imgsz}.",
            "Is another program using it? Else resume with a smaller batch (no longer exact): "
            f"--resume {self.run.config.files.latest} batch={max(self.batch_size // 2, 1)}.",
        )

    def _mend_average(self) -> None:
        """Replace what is NaN or inf in the average by the model's own, as Ultralytics does on saving.

        Where the model's own is not finite either, the run rolls back as from a loss that is NaN or inf.
        """
        model, average = unwrap_model(self.model).state_dict(), self.ema.ema.state_dict()
        bad = [name for name, value in average.items() if not torch.isfinite(value).all()]
        mended = [name for name in bad if torch.isfinite(model[name]).all()]
        self.average_is_finite = len(mended) == len(bad)
        for name in mended:
            average[name].copy_(model[name])
        if mended:
            self.run.status.warn(
                f"The averaged model was not finite in {len(mended)} tensors ({mended[0]}, …) in epoch "
                f"{self.epoch + 1}: they were taken from the model itself"
            )

    def _recover_from_nan(self) -> bool:
        """Roll back to the best model when the loss or the fitness is NaN or inf, three times at most in a run.

        As in Ultralytics, the averaged weights become the raw ones. Ultralytics goes back to its last file; here that
        is written by the clock, while `best.pt` is a function of the run.

        Returns:
            Whether the run was rolled back.

        Raises:
            KitError: It did not help.
        """
        numbers = [float(value) for value in (self.loss, self.fitness) if value is not None]
        if self.average_is_finite and all(map(math.isfinite, numbers)):
            return False
        self.nan_recovery_attempts, epoch = self.nan_recovery_attempts + 1, self.epoch + 1
        if self.nan_recovery_attempts > ATTEMPTS:
            raise KitError(
                f"Loss is NaN or inf in epoch {epoch}, for the fourth time in this run.",
                f"Try a lower lr0, or amp=False: --resume {self.best} lr0={self.args.lr0 / 2:g}.",
            )
        best = self._read_best()
        if best is None:
            self.run.status.warn("Loss is NaN or inf, and there is no best.pt to roll back to")
            return False
        self._roll_back(best)
        self.run.status.say(
            f"Loss is NaN or inf in epoch {epoch}: rolled back to the best model, of epoch {self.epoch} "
            f"(attempt {self.nan_recovery_attempts}/{ATTEMPTS})"
        )
        return True

    def _read_best(self) -> dict[str, Any] | None:
        """Return `best.pt`; None where there is none. A damaged one is reported and set aside."""
        if not self.best.exists():
            return None
        try:
            return checkpoint.read(self.best, models.open_best)
        except CheckpointError as error:
            self.run.status.warn(str(error))
            self.run.status.say(f"It was set aside as {disk.quarantine(self.best).name}")
            return None

    def _roll_back(self, saved: dict[str, Any]) -> None:
        attempts, steps, self.rolled_back = self.nan_recovery_attempts, self.global_step, saved
        self.state.load_state_dict(saved)
        self.nan_recovery_attempts, self.global_step = attempts, steps  # neither ever goes back
        self.model.load_state_dict(saved["ema_state_dict"])
        self.optimizer.zero_grad()
        self.epoch, self.batch, self.last_opt_step = saved["epoch"], 0, -1
        self.seek()


def out_of_memory(error: RuntimeError) -> bool:
    """Tell whether an error of torch's means that the GPU's memory is full."""
    if isinstance(error, torch.OutOfMemoryError) or getattr(error, "error_code", None) == CUDA_FULL:
        return True
    return any(text in str(error).lower() for text in OUT_OF_MEMORY)


def lost_gpu(error: RuntimeError) -> bool:
    """Tell whether an error is one of CUDA's after which every call fails: a new process is needed."""
    kind = getattr(torch, "AcceleratorError", ())  # of a torch before 2.8, cuBLAS and cuDNN the words alone tell
    words = "CUDA error", "cuDNN error"
    return (isinstance(error, kind) or any(each in str(error) for each in words)) and not out_of_memory(error)
