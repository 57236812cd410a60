"""How good the best model is: a validation of best.pt, with pictures, kept in the run folder's `results`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
from ultralytics.cfg import TASK2METRIC
from ultralytics.models.yolo.classify import ClassificationValidator
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.models.yolo.obb import OBBValidator
from ultralytics.models.yolo.pose import PoseValidator
from ultralytics.models.yolo.segment import SegmentationValidator

from kit import checkpoint, data, scores, storage
from kit.checkpoint import BEST
from kit.config import Config
from kit.errors import CheckpointError
from kit.status import plain
from kit.trainer import quiet
from kit.trainer.models import open_checkpoint
from kit.trainer.setup import make_samples

WIDTH = 1280  # pixels of the picture of predictions


class _OwnSamples:
    """Mixin over a validator: the kit's data sets, which read no cache that lies beside the images."""

    args: Any
    data: Any
    stride: Any

    def build_dataset(self, img_path: str, mode: str = "val", batch: int | None = None) -> Any:
        return make_samples(self.args, self.data, int(self.stride), img_path, mode, batch)


VALIDATORS: dict[str, type] = {
    task: type(f"Own{stock.__name__}", (_OwnSamples, stock), {})
    for task, stock in {
        "detect": DetectionValidator,
        "segment": SegmentationValidator,
        "pose": PoseValidator,
        "obb": OBBValidator,
        "classify": ClassificationValidator,
    }.items()
}


def evaluate(config: Config) -> dict[str, Any]:
    """Validate a run's best model and write what there is to see into its folder `results`.

    Args:
        config: The settings of the run.

    Returns:
        What `results.json` holds: `epoch`, `images`, `measures`, `classes`, `matrix`, and `before`, the best model that
        was measured before this one.

    Raises:
        CheckpointError: There is no good best.pt.
    """
    quiet()
    best = config.run_folder / "checkpoints" / BEST
    if not best.exists():
        raise CheckpointError(f"There is no '{best}' yet: the first validation writes it.")
    state = checkpoint.read(best, load=open_checkpoint)
    file = scores.fingerprint(best)
    task, decided = state["architecture"]["task"], state["loop"]["decided"]
    folder = storage.make_folder(config.run_folder / scores.FOLDER)
    arguments = {
        "task": task,
        "mode": "val",
        "data": str(data.resolve(str(config.get("data")), task == "classify").path),
        "imgsz": decided["imgsz"],
        "batch": decided["batch"],
        "device": config.get("device"),
        "workers": config.get("workers"),
        "single_cls": config.get("single_cls"),
        "rect": task != "classify",
        "plots": True,
    }
    validator = VALIDATORS[task](save_dir=folder, args=arguments)
    stats = validator(model=str(best))
    picture = cv2.imread(str(folder / "val_batch0_pred.jpg"))
    if picture is not None:
        height, width = picture.shape[:2]
        scale = min(1.0, WIDTH / max(height, width))
        small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(folder / scores.PICTURE), small, [cv2.IMWRITE_JPEG_QUALITY, 80])
    found: dict[str, Any] = plain(
        {
            "file": file,
            "epoch": state["epoch"],
            "images": len(validator.dataloader.dataset),
            "measures": _measures(task, stats),
            "classes": _classes(task, validator),
            "matrix": _matrix(validator),
            "before": _before(config.run_folder, state),
        }
    )
    text = json.dumps(found, indent=1).encode()
    storage.publish(folder / scores.NAME, lambda out: out.write(text), durable=False)
    return found


def _measures(task: str, stats: dict[str, Any]) -> dict[str, float]:
    """Name what was measured, the measure that best.pt goes by first; of two sets (boxes and masks) its own."""
    first = TASK2METRIC[task]
    kind = first.partition("(")[2]
    names = [first, *(name for name in stats if name.startswith("metrics/") and name.partition("(")[2] == kind)]
    labels = {"accuracy_top1": "top-1 accuracy", "accuracy_top5": "top-5 accuracy"}
    short = {name: name.removeprefix("metrics/").partition("(")[0] for name in dict.fromkeys(names)}
    return {labels.get(label, label): float(stats[name]) for name, label in short.items()}


def _classes(task: str, validator: Any) -> list[dict[str, Any]]:
    metrics, names = validator.metrics, validator.names
    if task == "classify":
        matrix = validator.confusion_matrix.matrix  # found by true
        counts = [int(count) for count in matrix.sum(0)]
        return [
            {"name": names[i], "images": counts[i], "accuracy": matrix[i, i] / counts[i] if counts[i] else None}
            for i in range(len(names))
        ]
    rows = {int(number): metrics.class_result(i)[-4:] for i, number in enumerate(metrics.ap_class_index)}
    return [
        {
            "name": names[i],
            "images": int(metrics.nt_per_image[i]),
            "objects": int(metrics.nt_per_class[i]),
            **dict(zip(("precision", "recall", "mAP50", "mAP50-95"), map(float, rows.get(i, ())), strict=False)),
        }
        for i in range(len(names))
    ]


def _matrix(validator: Any) -> dict[str, Any]:
    """Return the confusion matrix as rows of what there is, by what was found."""
    counts = validator.confusion_matrix.matrix.T.tolist()
    names = [str(name) for name in validator.names.values()]
    return {"names": [*names, "nothing"][: len(counts)], "counts": counts}


def _before(folder: Path, state: dict[str, Any]) -> dict[str, Any] | None:
    """Return the best model before this one: as it was measured then, or as results.csv has it."""
    old = scores.read(folder)
    if old and old["epoch"] < state["epoch"]:
        column = list(old["classes"][0])[-1]
        classes = {each["name"]: each[column] for each in old["classes"] if each.get(column) is not None}
        return {"epoch": old["epoch"], "map": next(iter(old["measures"].values())), "classes": classes}
    if old.get("before") and old["epoch"] == state["epoch"]:
        return dict(old["before"])
    name = TASK2METRIC[state["architecture"]["task"]]
    rows = [(row[name], int(row["epoch"])) for row in state["history"] if name in row and row["epoch"] < state["epoch"]]
    if not rows:
        return None
    value, epoch = max(rows, key=lambda each: (each[0], -each[1]))
    return {"epoch": epoch, "map": value, "classes": {}}
