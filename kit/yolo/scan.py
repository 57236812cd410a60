"""One look at the data set before the GPU is used: the data sets of training are built, and what their scan says shown.

Ultralytics scans each file once: training finds the results in the label cache in scratch.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from ultralytics.cfg import get_cfg
from ultralytics.data.utils import check_det_dataset

from kit.data import check, description
from kit.data.check import Scan
from kit.data.find import DataSet
from kit.data.report import Report
from kit.errors import DataError
from kit.kaggle import session
from kit.yolo.setup import make_samples

STRIDE = 32


def look(dataset: DataSet, task: str, settings: dict[str, Any], remember: Path | None = None) -> Report:
    """Scan what training would read, and report what it holds.

    Args:
        dataset: As `find.resolve` found it.
        task: `detect`, `segment`, `pose`, `obb` or `classify`.
        settings: Ultralytics' settings of the run.
        remember: The folder that keeps reports; that of this user's scratch by default.
    """
    return check.look(
        dataset,
        task,
        partial(_scan, dataset, task, settings),
        remember or session.scratch() / "checks",
        single_cls=bool(settings.get("single_cls")),
        classes=settings.get("classes"),
    )


def _scan(dataset: DataSet, task: str, settings: dict[str, Any]) -> dict[str, Scan]:
    overrides = {**settings, "task": task, "data": str(dataset.path), "cache": False, "rect": False, "imgsz": STRIDE}
    args = get_cfg(overrides=overrides)
    if task == "classify":
        names = dict(enumerate(dataset.names))
        data: dict[str, Any] = {
            "train": dataset.path / "train",
            "val": description.validation_folder(dataset.path),
            "names": names,
        }
    else:
        data = _read(dataset, args.split)
    scans, places = {split: Scan() for split in ("train", "val")}, data | {"val": data.get(args.split) or data["val"]}
    for split, scan in scans.items():
        try:
            make_samples(args, data, STRIDE, places[split], split, 1, scan)
        except (FileNotFoundError, ValueError, RuntimeError, AssertionError) as error:
            scan.error = " ".join(str(error).split())
    return scans


def _read(dataset: DataSet, split: str) -> dict[str, Any]:
    """Return a description as Ultralytics reads it.

    Raises:
        DataError: Something in it is missing or broken.
    """
    try:
        data: dict[str, Any] = check_det_dataset(str(dataset.path), autodownload=False)
    except Exception as error:
        text = " ".join(str(error).replace(str(dataset.path), str(dataset.source)).split())
        raise DataError(f"The data set cannot be used: {text}.", "Check data=...") from error
    if not data.get(split):
        raise DataError(
            f"'{dataset.source}' has no images for split={split}.",
            f"Name their folder as '{split}:', or leave out split=.",
        )
    return data
