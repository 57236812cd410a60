"""Setting up as Ultralytics does, except for what would cost exactness, safety or the network."""

from __future__ import annotations

import hashlib
import re
import signal
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext, suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import RandomSampler
from ultralytics.data.build import seed_worker
from ultralytics.data.utils import check_det_dataset, get_split_fraction
from ultralytics.utils import colorstr
from ultralytics.utils.torch_utils import autocast, unwrap_model

from kit.data.check import Scan
from kit.data.find import DataSet
from kit.errors import ConfigError, DataError, ModelError
from kit.kaggle import deaths, session
from kit.parallel.ranks import one_at_a_time
from kit.run.order import EpochOrder
from kit.yolo import models, upstream
from kit.yolo.samples import ClassifiedDataset, LabelledDataset
from kit.yolo.trainer import Trainer
from kit.yolo.workers import Workers


class Setup(Trainer):
    """Mixin over one of Ultralytics' trainers: model, data, loaders and precision."""

    def setup_model(self) -> None:
        """Build the model: on a resume from the checkpoint alone, else from a model file or a description."""
        if self.run.resumed is not None:
            weights = models.assemble(self.run.resumed)
            source = weights.yaml
        else:
            load = lambda path: self.run.ranks.broadcast(partial(models.load_model, path))  # noqa: E731
            source, weights = models.sources(str(self.model), self.args.pretrained, load)
        try:
            self.model = self.get_model(cfg=deepcopy(source), weights=weights, verbose=True)
        except (OSError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise ModelError(f"The model '{self.model}' cannot be built: {error}.", "Check model=...") from error
        super().setup_model()  # which leaves a model that is built, except for classify's head
        self.modules = models.skeleton(self.model)  # before set-up adds what is no part of it

    def set_up(self) -> None:
        """Set up as Ultralytics does, except for its check of mixed precision, which downloads a model."""
        wanted, self.args.amp = self.args.amp, self.args.amp if self.args.amp == "bf16" else False
        if wanted == "bf16":
            self._check_bf16()
        try:
            super().set_up()
        except ValueError as error:
            raise ConfigError(" ".join(str(error).split())) from error
        except RuntimeError as error:
            built = isinstance(self.model, torch.nn.Module)
            if not built or any(each.requires_grad for each in self.model.parameters()):
                raise
            layers = len(unwrap_model(self.model).model)
            raise ConfigError(
                f"freeze={self.args.freeze!r} leaves nothing of the model to train: it has {layers} layers.",
                f"Give less than {layers}, or a list of layers.",
            ) from error
        self.args.amp = wanted
        self.amp = self.run.ranks.broadcast(self._mixed_precision)
        half = self.amp and wanted != "bf16"
        self.scaler = torch.amp.GradScaler(self.device.type if self.device.type != "cpu" else "cuda", enabled=half)

    def _check_bf16(self) -> None:
        try:
            autocast(torch.bfloat16, device=self.device.type)
        except RuntimeError as error:
            raise ConfigError(
                "amp=bf16 needs a GPU that computes in bfloat16: a T4, a P100 and a CPU do not.", "Leave amp=True."
            ) from error

    def _mixed_precision(self) -> bool:
        """Return whether fp16 works for this model on this GPU: its outputs stay finite and close to fp32's."""
        if self.args.amp in {False, "fp32", "bf16"} or self.device.type != "cuda":
            return bool(self.args.amp == "bf16")
        if self.run.resumed is not None and self.run.resumed["versions"]["gpu"]:
            return bool(self.run.resumed["loop"]["amp"])
        model = deepcopy(unwrap_model(self.model)).eval()
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(1, self.data["channels"], 256, 256, generator=generator).to(self.device)
        with torch.no_grad():
            full = model(image)
            with autocast(True, device=self.device.type):
                half = model(image)
        pairs = list(zip(_tensors(full), _tensors(half), strict=True))
        good: bool = all(h.isfinite().all() and torch.allclose(f, h.float(), rtol=0.1, atol=0.5) for f, h in pairs)
        if not good:
            self.run.status.say("Mixed precision gives other results on this GPU: training in fp32.")
        return good

    def auto_batch(self, *args: Any, **kwargs: Any) -> int:
        """Estimate the batch size, with training's own precision; each slice of a batch has to fit into memory.

        Raises:
            ConfigError: Not even one image fits.
        """
        self.amp, ranks = self.args.amp not in {False, "fp32"} and self.device.type == "cuda", self.run.ranks
        try:
            return ranks.broadcast(lambda: super(Setup, self).auto_batch(*args, **kwargs) * ranks.slices)
        except RuntimeError as error:
            if type(error) is not RuntimeError:  # those of CUDA have classes of their own
                raise
            text = f"No batch size was found that fits the GPU's memory with imgsz={self.args.imgsz}."
            raise ConfigError(text, "End what else uses the GPU, lower imgsz, or give batch=1.") from error

    def build_dataset(self, img_path: str, mode: str = "train", batch: int | None = None) -> Any:
        """Build a data set as Ultralytics does, of a class whose samples are pure functions of their key."""
        stride = max(int(unwrap_model(self.model).stride.max()), 32)
        with self._one_at_a_time():  # the first process of a machine scans the labels
            dataset = make_samples(self.args, self.data, stride, img_path, mode, batch)
        dataset.processes = self.run.ranks.world.local_size
        return dataset

    def _one_at_a_time(self) -> AbstractContextManager[None]:
        return one_at_a_time() if self.run.ranks.world.local_size > 1 else nullcontext()

    def get_dataloader(self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train") -> Any:
        """Build a loader whose batches are a pure function of (seed, epoch, batch)."""
        try:
            loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
        except (FileNotFoundError, ValueError, RuntimeError) as error:
            raise DataError(f"The {mode} images cannot be used: {' '.join(str(error).split())}") from error
        loader.worker_init_fn = start_worker
        if loader.num_workers:
            upstream.set_iterator(loader, partial(Workers, loader, self.while_waiting))
        shuffled = isinstance(loader.sampler, RandomSampler)
        if mode != "train" and not shuffled:
            return loader
        training, dataset = mode == "train", loader.dataset
        epochs = self.epochs if training else 1 << 62
        order = EpochOrder(len(dataset), loader.batch_size, epochs, self.args.seed, shuffled and training)
        upstream.set_batches(loader, order)
        dataset.order, dataset.hyp = order, self.args
        if training:
            files = getattr(dataset, "im_files", None) or [sample[0] for sample in dataset.samples]
            self.data_hash = data_hash(files, dataset_path)
            dataset.close_mosaic_epoch = self.epochs - self.args.close_mosaic if self.args.close_mosaic else None
            if isinstance(dataset, LabelledDataset):
                dataset.share_images(loader.num_workers)
        return loader

    def get_dataset(self) -> Any:
        """Read the data set's description, one process of a machine at a time.

        Raises:
            DataError: Ultralytics found it broken.
        """
        try:
            with self._one_at_a_time():
                return super().get_dataset()
        except RuntimeError as error:
            raise DataError(" ".join(str(error).split())) from error


def make_samples(
    args: Any,
    data: dict[str, Any],
    stride: int,
    img_path: str,
    mode: str = "train",
    batch: int | None = None,
    scan: Scan | None = None,
) -> Any:
    """Build the kit's data set as Ultralytics would build its own.

    Args:
        args: Ultralytics' settings.
        data: The data set's description, as Ultralytics has read it.
        stride: Images are padded to multiples of it.
        img_path: Of the images.
        mode: `train` or `val`.
        batch: Images in a batch, where those of one batch have one shape.
        scan: Takes what the scan finds.
    """
    training = mode == "train"
    if args.task == "classify":
        return ClassifiedDataset(
            img_path,
            args,
            scan,
            augment=training,
            prefix="train" if training else args.split,
            names=data["names"],
        )
    fraction = get_split_fraction(args.fraction, "train" if training else args.split)
    return LabelledDataset(
        img_path=img_path,
        imgsz=args.imgsz,
        batch_size=batch,
        augment=training,
        hyp=args,
        rect=args.rect or not training,
        cache=args.cache or None,
        single_cls=args.single_cls or False,
        stride=stride,
        pad=0.0 if training else 0.5,
        prefix=colorstr(f"{mode}: "),
        task=args.task,
        classes=args.classes,
        data=data,
        fraction=1.0 if data.get("complete") else fraction,
        scan=scan,
    )


def start_worker(number: int) -> None:
    """Start a loader worker, which ignores signals to the process group: it ends with its training process."""
    deaths.die_with_parent()
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    seed_worker(number)


def remembered(dataset: DataSet, copy: Path) -> str:
    """Return the path under which a model remembers its data set, for `YOLO("best.pt").val()` in another session.

    Args:
        dataset: The data set.
        copy: The run's copy of its description, for where Ultralytics does not find the same images by the set's own.
    """
    scratch, found, values = session.scratch(), {}, dataset.values
    fetched = values and _images(values["train"])[0].is_relative_to(scratch.resolve())
    if dataset.path.is_dir() or (fetched and not dataset.source.is_relative_to(scratch)):  # a name, or what is packed
        return re.sub("^(https?:/)(?!/)", r"\1/", str(dataset.source))
    if not dataset.source.is_relative_to(scratch):
        with suppress(Exception):  # it may be wrong in any way
            found = check_det_dataset(str(dataset.source), autodownload=False)
    same = all(_images(found.get(split)) == _images(values[split]) for split in ("train", "val"))
    return str(dataset.source if same else copy)


def _images(places: Any) -> list[Path]:
    return [Path(place).resolve() for place in (places if isinstance(places, list) else [places or ""])]


def data_hash(files: Iterable[str], root: str) -> str:
    """Hash the order and the names of the training images, without the folder that they lie in."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(str(file).removeprefix(str(root)).encode() + b"\0")
    return digest.hexdigest()[:16]


def _tensors(value: Any) -> Iterable[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
