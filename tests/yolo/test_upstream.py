"""What the kit leans on in Ultralytics is as it was: a release that changes it needs a look at `kit.yolo.upstream`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader
from ultralytics.data import YOLODataset, base, utils
from ultralytics.data.augment import Mosaic, RandomPerspective
from ultralytics.data.build import InfiniteDataLoader
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.nn import tasks

from kit.yolo import upstream
from kit.yolo.mosaic import LazyMosaic, LazyPerspective
from tests.help import training
from tests.yolo.test_parity import build


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


DECLARED = [name for name, value in vars(upstream.StockTrainer).items() if inspect.isfunction(value)]


@pytest.mark.parametrize("name", DECLARED)
def test_method_of_the_trainer_has_the_parameters_that_are_declared(name: str) -> None:
    """Whether the kit calls it or stands in its place."""
    assert parameters(getattr(BaseTrainer, name)) == parameters(getattr(upstream.StockTrainer, name))


def test_attributes_of_the_trainer_are_there_after_a_training(place: Path) -> None:
    """Each that is declared, on Ultralytics' own trainer with Ultralytics' own loop."""
    trainer = build(training.settings(place, epochs=1), "stock", stock=True)
    trainer.train()
    assert [name for name in upstream.StockTrainer.__annotations__ if not hasattr(trainer, name)] == []


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (YOLODataset._load_or_scan_cache, parameters(upstream.ReadOnlyDataset._load_or_scan_cache)),
        (utils._replace_image, ["im_file", "write"]),
        (base.check_file_speeds, ["files", "threshold_ms", "threshold_mb", "max_files", "prefix"]),
        (tasks._SafeLoad.loading, ["weight"]),
        (DataLoader._get_iterator, ["self"]),
        (Mosaic.apply_image, parameters(LazyMosaic.apply_image)),
        (RandomPerspective.apply_image, parameters(LazyPerspective.apply_image)),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_is_patched_or_called_has_the_parameters_that_it_had(
    function: Callable[..., Any], expected: list[str]
) -> None:
    """A patch that is called otherwise would fail in a user's training."""
    assert parameters(function) == expected


def test_images_are_listed_by_one_call_of_glob() -> None:
    """`Listing` stands in for it."""
    calls = re.findall(r"\bglob\.\w+\(.*\)", inspect.getsource(base))
    assert calls == ['glob.glob(str(Path(glob.escape(p)) / "**" / "*.*"), recursive=True)']


def test_loader_of_ultralytics_asks_for_its_iterator_and_ends_it_as_it_did() -> None:
    """`Workers` stands in for that iterator, and `EpochOrder` for the batch sampler."""
    source = inspect.getsource(InfiniteDataLoader)
    assert set(re.findall(r"self\.(_\w+|iterator\.\w+|batch_sampler\.\w+)", source)) == {
        "_get_iterator",
        "iterator._shutdown_workers",
        "batch_sampler.sampler",
    }
