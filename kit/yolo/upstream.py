"""All of Ultralytics that the kit leans on and that no documentation promises: nothing else in `kit.yolo` names it.

`StockTrainer` declares what the mixins use of Ultralytics' trainer, for mypy; tests compare it with the installed
version. Below it, each private name has a public one here, and each patch a context, with the reason beside it.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from ultralytics.data import YOLODataset, base, dataset, utils
from ultralytics.data.utils import load_dataset_cache_file
from ultralytics.nn.tasks import _SafeLoad
from ultralytics.utils.patches import imread

from kit.data.description import below
from kit.data.files import THREADS, looks_whole

IGNORED = ": ignoring corrupt image/label: "  # between a path and the reason, in what the scan says


class StockTrainer:
    """Ultralytics' `BaseTrainer`, as far as the kit uses it. At run time the task's own trainer takes its place."""

    args: Any  # the settings, with what set-up made of them
    device: torch.device
    model: Any  # a name, until `setup_model` has built it
    data: dict[str, Any]  # the data set's description
    wdir: Path  # where checkpoints go
    last: Path
    best: Path
    csv: Path
    epoch: int  # from 0
    epochs: int
    batch_size: int
    accumulate: int  # batches that one step of the optimizer sums up
    stride: int
    train_loader: Any
    test_loader: Any
    validator: Any
    optimizer: torch.optim.Optimizer
    scheduler: Any
    scaler: torch.amp.GradScaler
    ema: Any
    stopper: Any
    lf: Callable[[float], float]  # the learning rate's factor by epoch
    lr: dict[str, float]
    amp: bool
    stop: bool
    resume: bool
    loss: Tensor | None
    loss_items: dict[str, Tensor] | None
    tloss: dict[str, Tensor] | None  # running means of the epoch
    loss_names: tuple[str, ...]
    metrics: dict[str, float]
    fitness: float | None
    best_fitness: float | None
    nan_recovery_attempts: int
    plot_idx: list[int]
    save_period: int
    epoch_time: float
    epoch_time_start: float
    train_time_start: float
    callbacks: dict[str, list[Callable[[Any], None]]]

    def __init__(
        self, cfg: Any = None, overrides: dict[str, Any] | None = None, _callbacks: dict[str, Any] | None = None
    ) -> None: ...
    def train(self) -> None: ...
    def _do_train(self) -> None: ...  # the loop: `kit.yolo.loop` stands in its place
    def _setup_train(self) -> None: ...  # `Setup.set_up` goes around it
    def _build_train_pipeline(self) -> None: ...  # loaders anew, for a halved batch
    def _get_warmup_iterations(self, num_batches: int) -> int: ...  # type: ignore[empty-body]  # part of the loop
    def _model_train(self) -> None: ...  # part of the loop: training mode, frozen BatchNorm left out
    def _clear_memory(self, threshold: float | None = None) -> None: ...  # part of the loop
    def add_callback(self, event: str, callback: Callable[[Any], None]) -> None: ...
    def run_callbacks(self, event: str) -> None: ...
    def check_resume(self, overrides: dict[str, Any]) -> None: ...
    def setup_model(self) -> None: ...
    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any: ...
    def get_dataset(self) -> Any: ...
    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any: ...
    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any: ...
    def auto_batch(self, max_num_obj: int = 0, dataset_size: int = 0) -> int: ...  # type: ignore[empty-body]
    def optimizer_step(self) -> None: ...
    def preprocess_batch(self, batch: Any) -> Any: ...
    def validate(self) -> Any: ...
    def final_eval(self) -> None: ...
    def save_metrics(self, metrics: dict[str, float]) -> None: ...
    def label_loss_items(self, loss_items: Any = None, prefix: str = "train") -> Any: ...
    def plot_training_samples(self, batch: Any, ni: int) -> None: ...
    def plot_training_labels(self) -> None: ...
    def plot_metrics(self) -> None: ...


if TYPE_CHECKING:
    Base = StockTrainer
else:
    Base = object


class Upstream(Base):
    """Mixin over one of Ultralytics' trainers: public names for what it keeps to itself."""

    def _setup_train(self) -> None:
        self.set_up()

    def set_up(self) -> None:
        """Build model, loaders, optimizer and all else that training needs."""
        super()._setup_train()

    def build_pipeline(self) -> None:
        """Build the loaders for the batch size of now."""
        self._build_train_pipeline()

    def warmup_batches(self, batches: int) -> int:
        """Return over how many batches learning rates warm up, for so many in an epoch."""
        return self._get_warmup_iterations(batches)

    def train_mode(self) -> None:
        """Put the model into training mode."""
        self._model_train()

    def free_memory(self, threshold: float | None = None) -> None:
        """Free what PyTorch keeps of the GPU's memory, where more than this share of it is taken."""
        self._clear_memory(threshold)


class OwnLoop(Upstream):
    """Mixin over one of Ultralytics' trainers: `run_loop` in place of its training loop."""

    def _do_train(self) -> None:
        self.run_loop()

    def run_loop(self) -> None:
        """Set up, train and evaluate."""
        raise NotImplementedError


class Listing:
    """What Ultralytics uses of the module `glob` to list images: `glob(escape(FOLDER)/**/*.*)`."""

    escape = staticmethod(str)

    @staticmethod
    def glob(pattern: str, recursive: bool = True) -> list[str]:
        """List what lies below a folder; a link that leads back to a folder above it is not followed."""
        return [path for path, _ in below(pattern.removesuffix(f"{os.sep}**{os.sep}*.*"))]


class ReadOnlyDataset(YOLODataset):  # type: ignore[misc]
    """Ultralytics' data set, which finds its label cache where `cache_file` says and writes nothing beside the data."""

    def cache_file(self, path: Path, digest: str) -> Path:
        """Return where the label cache goes that Ultralytics would put at `path`."""
        raise NotImplementedError

    def get_img_files(self, img_path: Any) -> list[str]:
        """List the images, without links in circles, and without the reading of some that Ultralytics times."""
        before = base.check_file_speeds, base.glob
        base.check_file_speeds, base.glob = (lambda files, threshold_ms=0, threshold_mb=0, **_: None), Listing
        try:
            files: list[str] = super().get_img_files(img_path)
        finally:
            base.check_file_speeds, base.glob = before
        return files

    augment: bool

    def verified(self, cache: dict[str, Any]) -> None:
        """Called with what the scan found, from the cache or anew: `labels` and `msgs`."""

    def cache_labels(self, path: Path = Path("./labels.cache")) -> dict[str, Any]:
        """Scan; that no image has a label is no exception here, but an error of the kit's own check."""
        augment = self.augment
        self.augment = False
        try:
            found: dict[str, Any] = super().cache_labels(path)
        finally:
            self.augment = augment
        return found

    def _load_or_scan_cache(self, cache_path: Path, cache_hash: str) -> tuple[dict[str, Any], bool]:
        with scanning(self.decodes):
            loaded: tuple[dict[str, Any], bool] = super()._load_or_scan_cache(
                self.cache_file(cache_path, cache_hash), cache_hash
            )
        self.verified(loaded[0])
        return loaded

    def decodes(self, path: str) -> bool:
        """Tell whether an image can be read, as training reads it."""
        return can_read(path, self.cv2_flag)


UNREADABLE = "the image cannot be decoded"


@contextmanager
def scanning(decodes: Callable[[str], bool]) -> Iterator[None]:
    """Have Ultralytics' scan write nothing, use many threads, and drop what cannot be decoded.

    A JPEG that looks cut off is decoded, and dropped if it is, but not rewritten. Other images look whole to the scan
    when their header is: training would end at the first that is not.

    Args:
        decodes: Tells whether the image at a path can be decoded; asked for those that the scan keeps.
    """
    names = ("verify_image_label", "verify_image", "NUM_THREADS")
    before, write = [getattr(dataset, name) for name in names], utils._replace_image

    def with_label(args: tuple[Any, ...]) -> Any:
        found = utils.verify_image_label(args)
        if found[0] is None or decodes(args[0]):
            return found
        return [*[None] * 5, *found[5:8], 1, f"{args[2]}{args[0]}{IGNORED}{UNREADABLE}"]

    def alone(args: tuple[Any, ...]) -> Any:
        found = utils.verify_image(args)
        (path, _), prefix = args
        return found if found[2] or decodes(path) else (args[0], 0, 1, f"{prefix}{path}{IGNORED}{UNREADABLE}")

    for name, value in zip(names, (with_label, alone, THREADS), strict=True):
        setattr(dataset, name, value)
    utils._replace_image = lambda im_file, save: save(io.BytesIO())
    try:
        yield
    finally:
        utils._replace_image = write
        for name, value in zip(names, before, strict=True):
            setattr(dataset, name, value)


def can_read(path: str, flags: int) -> bool:
    """Tell whether an image can be read, as training reads it; those whose header or whose scan tells are not read."""
    return looks_whole(path) or imread(path, flags) is not None


def label_files(images: list[str]) -> list[str]:
    """Return where the label files of images are looked for."""
    found: list[str] = utils.img2label_paths(images)
    return found


def load_cache(root: Path) -> dict[str, Any]:
    """Return the cache that the scan of a classification set has written, under this name with another ending."""
    loaded: dict[str, Any] = load_dataset_cache_file(root.with_suffix(".cache"))
    return loaded


def read_messages(messages: list[str], prefix: str) -> tuple[dict[str, str], dict[str, int]]:
    """Return why images were dropped, and how many of their label rows were there twice, each by the image's path."""
    dropped, repeated = {}, {}
    for message in messages:
        path, ignored, reason = message.removeprefix(prefix).partition(IGNORED)
        if ignored:
            dropped[path] = reason
        elif found := re.fullmatch(r"(.*): (\d+) duplicate labels removed", path, re.DOTALL):
            repeated[found[1]] = int(found[2])
    return dropped, repeated


def allowing_models(file: Any) -> AbstractContextManager[None]:
    """Have `torch.load(weights_only=True)` accept the model classes on Ultralytics' allow-list that a file names."""
    allowed: AbstractContextManager[None] = _SafeLoad.loading(file)
    return allowed


def bare_trainer(kind: type, args: Any, data: dict[str, Any]) -> Any:
    """Return a trainer that is not set up, for its `get_model`, which reads nothing but these."""
    trainer: Any = object.__new__(kind)
    vars(trainer).update(args=args, data=data, resume=False)
    return trainer


def own_iterator(loader: Any) -> Any:
    """Return the iterator that a loader of Ultralytics' would make for itself."""
    return DataLoader._get_iterator(loader)


def set_iterator(loader: Any, make: Callable[[], Any]) -> None:
    """Have a loader of Ultralytics' fetch its batches from what `make` returns."""
    loader._get_iterator = make


def set_batches(loader: Any, order: Any) -> None:
    """Give a loader of Ultralytics' another order; torch forbids the plain way once it is built."""
    object.__setattr__(loader, "batch_sampler", order)
