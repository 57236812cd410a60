"""How good the best model is: a validation of best.pt, with pictures, kept in the run folder's `results`.

It is measured as training's own validation measures it: with the settings that best.pt keeps, and with what set-up made
of them. What may change from session to session (`kit.yolo.settings.MAY_CHANGE`: the device, the place of the data)
is as given.
"""

from __future__ import annotations

from typing import Any

import cv2
from ultralytics.cfg import TASK2METRIC
from ultralytics.models.yolo.classify import ClassificationValidator
from ultralytics.models.yolo.detect import DetectionValidator
from ultralytics.models.yolo.obb import OBBValidator
from ultralytics.models.yolo.pose import PoseValidator
from ultralytics.models.yolo.segment import SegmentationValidator

from kit.config import Config, differences
from kit.data import find
from kit.data.find import DataSet
from kit.errors import CheckpointError, DataError
from kit.run import scores
from kit.store import checkpoint, disk
from kit.text import for_json
from kit.yolo import scan
from kit.yolo.models import open_best
from kit.yolo.settings import MAY_CHANGE, from_dict, load
from kit.yolo.setup import make_samples
from kit.yolo.train import quiet

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
        config: Names the run, and gives what may change from session to session; the rest is as best.pt keeps it.

    Returns:
        What `results.json` holds: `epoch`, `images`, `measures`, `classes`, `matrix`; `run_id`, `settings` and `data`,
        which two measurements must have in common to be compared; and `before`, the best model before this one.

    Raises:
        CheckpointError: There is no good best.pt.
        DataError: The data set is not here, or not for the run's classes.
    """
    quiet()
    files = config.files
    best = files.best
    if not best.exists():
        raise CheckpointError(f"There is no '{best}' yet.", "The first validation writes it.")
    state = checkpoint.read(best, load=open_best)
    file = scores.fingerprint(best)
    run, task = from_dict(state["config"]), state["architecture"]["task"]
    dataset = _find_data(config, run, state["architecture"])
    folder = disk.make_folder(files.results)
    validator = VALIDATORS[task](save_dir=folder, args=_arguments(config, run, state, dataset))
    model = state["model"].float()
    model.load_state_dict(state["ema_state_dict"])  # in full precision, as training validates it
    try:
        stats = validator(model=model)
    except FileNotFoundError as error:
        text = " ".join(str(error).replace(str(dataset.path), str(dataset.source)).split())
        raise DataError(f"The best model cannot be measured: {text}.", "Check data=...") from error
    picture = cv2.imread(str(folder / "val_batch0_pred.jpg"))
    if picture is not None:
        height, width = picture.shape[:2]
        scale = min(1.0, WIDTH / max(height, width))
        small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        cv2.imwrite(str(files.predictions), small, [cv2.IMWRITE_JPEG_QUALITY, 80])
    under = {"run_id": state["run_id"], "settings": run.train, "data": _contents(dataset, run, task)}
    found: dict[str, Any] = for_json(
        {
            "file": file,
            **under,
            "epoch": state["epoch"],
            "images": len(validator.dataloader.dataset),
            "measures": _measures(task, stats),
            "classes": _classes(task, validator),
            "matrix": _matrix(validator),
            "before": _before(scores.read(config.run_folder), state, under),
        }
    )
    disk.write_json(files.scores, found)
    return found


def _find_data(config: Config, run: Config, architecture: dict[str, Any]) -> DataSet:
    """Return the data set to measure on: the given one, else the run's own.

    What the default config names was not given; it counts where the run's own is no longer where it was.

    Raises:
        DataError: It is not here, or not for the run's classes.
    """
    own, given, usual = (str(each.get("data")) for each in (run, config, load()))
    problems = []
    for name in dict.fromkeys([own, given] if given == usual else [given]):
        try:
            dataset = find.resolve(name, architecture["task"] == "classify")
        except DataError as error:
            problems.append(str(error))
            continue
        if dataset.trained(run) == architecture["names"]:
            return find.bring(dataset)
        problems.append(f"The data set '{name}' has other classes than the run.")
    raise DataError(f"The best model cannot be measured. {' '.join(problems)}", "Give data=PATH of the run's data set.")


def _arguments(config: Config, run: Config, state: dict[str, Any], dataset: DataSet) -> dict[str, Any]:
    """Return what training's validator had as arguments: all of the run's settings, and what set-up made of them.

    The last ones are what a separate validation would do otherwise than one in training.
    """
    task, loop = state["architecture"]["task"], state["loop"]
    return {
        **run.train,
        **{name: config.get(name) for name in MAY_CHANGE},
        **loop["decided"],
        "task": task,
        "mode": "val",
        "data": str(dataset.path),
        "batch": loop["decided"]["batch"] * (1 if task == "obb" else 2),  # images of one batch are padded to one shape
        "quantize": 16 if loop["amp"] else None,  # on a GPU; of no effect on a CPU
        "augment": False,  # training's validation does without
        "val": False,  # or COCO's own evaluation takes the place of the mAP that training goes by
        "plots": True,
    }


def _contents(dataset: DataSet, run: Config, task: str) -> Any:
    """Return a data set's fingerprint, wherever it is; its name where it cannot be looked at."""
    report = scan.look(dataset, task, run.train)
    return report.fingerprint or str(dataset.source)


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


def _before(old: dict[str, Any], state: dict[str, Any], under: dict[str, Any]) -> dict[str, Any] | None:
    """Return the best model before this one: as it was measured then, or as training's own validation found it.

    Only numbers that were measured alike are compared: of one run, with the same settings, on the same data. A row of
    the history does not say how it was measured. Those of the session that wrote best.pt were with its settings; in an
    earlier one the settings may have been others (`--resume FILE classes=0`).

    Args:
        old: What was measured before, as `scores.read` returns it.
        state: The best model's checkpoint.
        under: `run_id`, `settings` and `data` of this measurement.
    """
    if _alike(old, under) and old["epoch"] < state["epoch"]:
        column = list(old["classes"][0])[-1]
        classes = {each["name"]: each[column] for each in old["classes"] if each.get(column) is not None}
        return {"epoch": old["epoch"], "map": next(iter(old["measures"].values())), "classes": classes}
    if _alike(old, under) and old["before"] and old["epoch"] == state["epoch"]:
        return dict(old["before"])
    kept = state["architecture"].get("data", {})
    if (kept.get("fingerprint") or kept.get("path")) != under["data"]:
        return None
    name, began = TASK2METRIC[state["architecture"]["task"]], [0.0, *state["progress"].get("sessions", ())][-1]
    rows = [(row[name], int(row["epoch"])) for row in state["history"] if name in row and row["epoch"] < state["epoch"]]
    value, epoch = max(rows, key=lambda each: (each[0], -each[1]), default=(0.0, 0))
    return {"epoch": epoch, "map": value, "classes": {}} if epoch > began else None


def _alike(old: dict[str, Any], under: dict[str, Any]) -> bool:
    """Tell whether a measurement may be compared; one by an earlier version of the kit does not say how it was made."""
    return all(old.get(name) == under[name] for name in ("run_id", "data")) and not differences(
        *(from_dict(each["settings"]) for each in (old, under))
    )
