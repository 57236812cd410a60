"""The ways to save a training checkpoint that `saving.py` compares, each behind the same few methods.

Import it after `kit.yolo.environment.prepare()`: it imports Ultralytics. All save the state of one `Training`, which
they gather themselves, as they would have to in training; only the memcpy, the limit, gathers nothing.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from lightning.pytorch.plugins.io import AsyncCheckpointIO, TorchCheckpointIO
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.utils._pytree import tree_leaves, tree_map_only
from ultralytics.cfg import get_cfg
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn.tasks import DetectionModel, load_checkpoint
from ultralytics.utils.torch_utils import ModelEMA

from kit.config import Config
from kit.store import checkpoint
from kit.store.folder import LATEST, PREVIOUS
from kit.store.writer import Writer
from kit.yolo.settings import schema
from kit.yolo.state import SCALARS, TENSORS, TrainerState


class Training:
    """What is to be saved: a model, its EMA and an SGD that has gone a step, every number of them drawn at random.

    Args:
        size: Of YOLO11: `n`, `m` or `x`.
    """

    def __init__(self, size: str) -> None:
        self.model = DetectionModel(f"yolo11{size}.yaml", verbose=False)
        self.model.args = get_cfg()
        self.ema = ModelEMA(self.model)
        self.optimizer = BaseTrainer.build_optimizer(None, self.model, "SGD", lr=0.01, momentum=0.937, decay=5e-4)
        for parameter in self.model.parameters():
            if parameter.requires_grad:
                self.optimizer.state[parameter]["momentum_buffer"] = torch.empty_like(parameter)
        self.parameters = [parameter.detach() for parameter in self.model.parameters()]
        for tensor in self.tensors():
            if tensor.is_floating_point():
                tensor.normal_()

    def state(self) -> dict[str, Any]:
        """Gather the state dict, as the kit's trainer does; nothing is copied."""
        return {
            **dict.fromkeys(checkpoint.KEYS),
            "format_version": checkpoint.FORMAT,
            "model_state_dict": self.model.state_dict(),
            "ema_state_dict": self.ema.ema.state_dict(),
            "optimizer_state_dict": self.optimizer.state_dict(),
        }

    def tensors(self) -> list[torch.Tensor]:
        """Return every tensor of the state."""
        return tensors(self.state())

    def step(self) -> None:
        """Write to every parameter in place, as an optimizer does."""
        torch._foreach_mul_(self.parameters, 0.9999)

    def stamp(self, value: int) -> None:
        """Set every number of the state to `value`, by which a mixture of two states is told from a whole one."""
        for tensor in self.tensors():
            tensor.fill_(value)


def tensors(tree: Any) -> list[torch.Tensor]:
    """Return the tensors in nested containers."""
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Scheme:
    """One way to save, with its own way to find and read what it saved.

    Args:
        training: What is saved.
        folder: Where; made if it is missing.
    """

    name = ""
    on_disk = True  # False: nothing can be read back
    variant = False  # True: writes the same files as the scheme before, and differs only in how training is held

    def __init__(self, training: Training, folder: Path) -> None:
        self.training, self.folder = training, folder
        folder.mkdir(parents=True, exist_ok=True)

    def save(self) -> None:
        """Save; returns as soon as training may go on."""
        raise NotImplementedError

    def wait(self) -> None:
        """Return when what was saved has its final name."""

    def candidates(self) -> Iterator[Path]:
        """Yield the checkpoints that a resume would try, newest first."""
        if (self.folder / "last.pt").exists():
            yield self.folder / "last.pt"

    def read(self, path: Path) -> Any:
        """Return the state, its tensors in memory; raises what the scheme raises when it notices damage."""
        return torch.load(path, map_location="cpu", weights_only=True)

    def data_file(self) -> Path:
        """Return the file that holds the tensors of the newest checkpoint."""
        newest = next(self.candidates())
        return newest if newest.is_file() else max(newest.iterdir(), key=lambda path: path.stat().st_size)

    def close(self) -> None:
        """End what runs in the background."""
        self.wait()


class Memcpy(Scheme):
    """The limit for any stall: the bytes are copied once, into memory that was touched before."""

    name, on_disk = "memcpy", False

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        self.sources = training.tensors()
        self.buffers = [source.clone() for source in self.sources]

    def save(self) -> None:
        """Copy."""
        torch._foreach_copy_(self.buffers, self.sources)


class Save(Scheme):
    """`torch.save` onto the name that is read."""

    name = "torch.save"

    def save(self) -> None:
        """Overwrite the one file."""
        torch.save(self.training.state(), self.folder / "last.pt")


class DurableSave(Scheme):
    """`torch.save` to a second name, fsync, rename, fsync of the folder."""

    name = "torch.save, fsync, rename"

    def save(self) -> None:
        """Publish whole and durable."""
        with open(self.folder / "last.tmp", "wb") as file:
            torch.save(self.training.state(), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(self.folder / "last.tmp", self.folder / "last.pt")
        descriptor = os.open(self.folder, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


class Distributed(Scheme):
    """`torch.distributed.checkpoint.async_save` in one process, without a process group (`no_dist=True`).

    As its users do: each save into a new folder, the last one awaited first, the two newest kept. A folder without
    `.metadata`, which is written last, does not count.
    """

    name = "DCP async_save"
    stager: DefaultStager | None = None  # None: made anew by each save

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        self.number = 0
        self.done: Future[None] | None = None

    def save(self) -> None:
        """Copy the state, then let a thread write it, fsync included."""
        self.wait()
        self.number += 1
        self.done = Future()
        written = dcp.async_save(
            self.training.state(),
            checkpoint_id=self.folder / f"step-{self.number:06d}",
            async_stager=self.stager,
            no_dist=True,
        )
        written.add_done_callback(self._prune)  # in the writing thread

    def _prune(self, written: Future[Any]) -> None:
        try:
            written.result()
            for old in list(self.candidates())[2:]:
                shutil.rmtree(old)
            self.done.set_result(None)
        except Exception as error:
            self.done.set_exception(error)

    def wait(self) -> None:
        """Await the thread."""
        if self.done is not None:
            self.done.result()

    def candidates(self) -> Iterator[Path]:
        """Yield the folders that are complete."""
        yield from (path.parent for path in sorted(self.folder.glob("step-*/.metadata"), reverse=True))

    def read(self, path: Path) -> Any:
        """Fill tensors of the right shapes, as DCP wants it."""
        state = tree_map_only(torch.Tensor, torch.empty_like, self.training.state())
        dcp.load(state, checkpoint_id=path, no_dist=True)
        return state


class DistributedKept(Distributed):
    """The same with a stager that is kept, and with it the memory that it copies into.

    The fastest that PyTorch has for a CPU. Pinned memory, copies that do not block and staging in a stream need CUDA;
    `AsyncCheckpointerType.PROCESS` held training several times as long, as each tensor is handed through a pipe.
    """

    name, variant = "DCP async_save, stager kept", True

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        self.stager = DefaultStager(
            StagingOptions(
                use_pinned_memory=False, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=False
            )
        )

    def close(self) -> None:
        """Await the thread and give the memory back."""
        super().close()
        if self.stager is not None:
            self.stager.close()


class Lightning(Scheme):
    """Lightning's `AsyncCheckpointIO` around `TorchCheckpointIO`, called as `Strategy.save_checkpoint` calls it.

    Its temporary file goes where `tempfile` says, here onto the same file system; on another, the move is a copy.
    """

    name = "Lightning AsyncCheckpointIO"

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        self.io = AsyncCheckpointIO(TorchCheckpointIO())

    def save(self) -> None:
        """Clone the state, then let a thread write it: into memory, a temporary file, and the name."""
        self.io.save_checkpoint(self.training.state(), str(self.folder / "last.pt"), storage_options=None)

    def wait(self) -> None:
        """Await the thread, by the only way there is; the next save starts another."""
        self.io.teardown()

    def read(self, path: Path) -> Any:
        """Read as `Strategy.load_checkpoint` does."""
        return self.io.load_checkpoint(str(path))


class Ultralytics(Scheme):
    """Ultralytics' own `save_model`: EMA and optimizer as fp16, into memory, then onto `last.pt`; no raw weights.

    It runs on a trainer that has the attributes it reads and nothing more. The epoch is none of the best, so that
    `best.pt` is not written as well.
    """

    name = "Ultralytics save_model"

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        columns = "epoch,time,train/box_loss,metrics/mAP50-95(B),lr/pg0"
        (folder / "results.csv").write_text("\n".join([columns, *(f"{n},{n}.5,1.25,0.5,0.01" for n in range(50))]))
        self.trainer = BaseTrainer.__new__(BaseTrainer)
        vars(self.trainer).update(
            model=training.model,
            ema=training.ema,
            optimizer=training.optimizer,
            scaler=torch.amp.GradScaler("cpu", enabled=False),
            stopper=SimpleNamespace(best_fitness=0.5, best_epoch=1),
            epoch=50,
            best_fitness=0.5,
            fitness=0.4,
            metrics={"metrics/mAP50-95(B)": 0.4},
            args=training.model.args,
            csv=folder / "results.csv",
            wdir=folder,
            last=folder / "last.pt",
            best=folder / "best.pt",
            save_period=-1,
        )

    def save(self) -> None:
        """Save as at the end of an epoch."""
        self.trainer.save_model()

    def read(self, path: Path) -> Any:
        """Read as its resume does."""
        model, saved = load_checkpoint(path)
        return {"ema": model.state_dict(), "optimizer": saved["optimizer"]}


class Kit(Scheme):
    """The kit's snapshot, writer and reader: verified before it is believed, the generation before kept.

    It runs on a trainer that has the attributes it reads and nothing more.
    """

    name = "kit"

    def __init__(self, training: Training, folder: Path) -> None:
        super().__init__(training, folder)
        names = (*SCALARS, *TENSORS, "loss_names", "metrics", "best_map", "data_hash", "amp")
        self.state: Any = TrainerState(
            SimpleNamespace(
                **(dict.fromkeys(names) | {"last_opt_step": 0}),
                model=training.model,
                ema=training.ema,
                optimizer=training.optimizer,
                scheduler=torch.optim.lr_scheduler.LambdaLR(training.optimizer, lambda epoch: 1.0),
                scaler=torch.amp.GradScaler("cpu", enabled=False),
                stopper=SimpleNamespace(best_fitness=0.5, best_epoch=1),
                args=training.model.args,
                device=torch.device("cpu"),
                run=SimpleNamespace(
                    config=Config(schema()),
                    identity={"task": "detect", "model": "yolo11.yaml", "names": []},
                    run_id="benchmark",
                    files={},
                    data={},
                    ranks=SimpleNamespace(slices=1),
                    sessions=[],
                    branch=0,
                ),
                modules=None,
                history=[],
                epochs=100,
                global_step=1,
                train_loader=range(100),
                train_time_start=0.0,
            )
        )
        self.writer = Writer(folder, max_lost_s=30, max_cost_percent=1)
        self.writer.allocate(self.state.move_together())
        self.writer.wait()

    def save(self) -> None:
        """Copy the state, then let a thread publish `latest.pt`."""
        self.writer.save(*self.state.state_dict(0, 1), self.state.buffers)

    def wait(self) -> None:
        """Await the thread."""
        self.writer.wait()

    def candidates(self) -> Iterator[Path]:
        """Yield the two generations."""
        yield from filter(Path.exists, (self.folder / LATEST, self.folder / PREVIOUS))

    def read(self, path: Path) -> Any:
        """Verify, open, and copy out of the mapped file what a resume copies."""
        state = checkpoint.read(path)
        sections = ("model_state_dict", "ema_state_dict", "optimizer_state_dict")
        return tree_map_only(torch.Tensor, torch.clone, {name: state[name] for name in sections})


SCHEMES: tuple[type[Scheme], ...] = (
    Memcpy,
    Save,
    DurableSave,
    Distributed,
    DistributedKept,
    Lightning,
    Ultralytics,
    Kit,
)
