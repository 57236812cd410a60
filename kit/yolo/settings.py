"""The settings that Ultralytics has, without importing it (and so torch): read from its `default.yaml`."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from kit import config
from kit.config import Config, Schema
from kit.errors import ConfigError
from kit.store import peek

KNOWN = re.compile(r"(yolo|rtdetr)[\w-]*")  # a model of Ultralytics' without a suffix
RESERVED = {  # the kit's own business, with the way to the same end
    "resume": "Use --resume auto, never or FILE.",
    "project": "Use kit.run=runs/NAME.",
    "name": "Use kit.run=runs/NAME.",
    "save_dir": "Use kit.run=runs/NAME.",
    "mode": "The kit only trains.",
    "time": "It rewrites the schedule as it goes; use kit.session_hours to stop in time and go on later.",
    "compile": "Compiled kernels are not the same from session to session, which would cost exact resume.",
    "distill_model": "The teacher's state is not part of a checkpoint, which would cost exact resume.",
    "quantize": "The quantizers' state is not part of a checkpoint, which would cost exact resume.",
    "cfg": "Use --config FILE.",
    "save": "The kit always saves, that is what a resume needs.",
    "augmentations": "Transforms are Python objects, which no checkpoint keeps; use hsv_h, mosaic, mixup and the like.",
    "end2end": "It is part of the model: write it into the description (.yaml) that model= names.",
}
MAY_CHANGE = {"epochs", "patience", "workers", "device", "cache"}  # from session to session: they change no bit
MAY_CHANGE |= {"save_period", "val", "plots", "verbose", "profile", "exist_ok", "show_labels", "show_conf"}
MAY_CHANGE |= {"show_boxes", "line_width", "save_conf", "save_crop", "save_frames", "show", "visualize"}
MAY_CHANGE |= {"task", "data"}  # what they name is compared by what it is
MAY_CHANGE |= {"source", "vid_stride", "stream_buffer", "embed", "retina_masks", "tracker"}  # of a prediction
MAY_CHANGE |= {"format", "optimize", "dynamic", "simplify", "opset", "workspace"}  # of an export
CHANGE_BITS = {"model", "batch", "imgsz", "pretrained", "cls_remap", "optimizer", "seed", "deterministic"}
CHANGE_BITS |= {"single_cls", "rect", "cos_lr", "close_mosaic", "amp", "fraction", "freeze", "multi_scale"}
CHANGE_BITS |= {"channels_last", "overlap_mask", "mask_ratio", "dropout", "classes", "nbs"}
CHANGE_BITS |= {"split", "conf", "iou", "max_det", "dnn", "augment", "agnostic_nms"}  # of validation: which is best
CHANGE_BITS |= {"nms", "save_json", "save_txt"}  # the same: which head is used, and how its masks are made
CHANGE_BITS |= {"lr0", "lrf", "momentum", "weight_decay", "warmup_epochs", "warmup_momentum", "warmup_bias_lr", "dis"}
CHANGE_BITS |= {"box", "cls", "cls_pw", "dfl", "pose", "kobj", "rle", "angle", "dlog", "dgrad", "dlam", "hsv_h"}
CHANGE_BITS |= {"hsv_s", "hsv_v", "degrees", "translate", "scale", "shear", "perspective", "flipud", "fliplr", "bgr"}
CHANGE_BITS |= {"mosaic", "mixup", "cutmix", "copy_paste", "copy_paste_mode", "auto_augment", "erasing"}
SEVERAL = re.compile(r"[\[(].*[\])]|.*\.ya?ml\s*,.*", re.DOTALL)  # data sets, as stock's Python takes them in a list
OPTIMIZERS = ("Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSprop", "SGD", "MuSGD", "auto")
LIMITS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "optimizer": (lambda value: value.lower() in map(str.lower, OPTIMIZERS), f"one of {', '.join(OPTIMIZERS)}"),
    "seed": (lambda value: 0 <= value < 2**32, "from 0 to 4294967295"),
    "data": (
        lambda value: os.path.exists(value) or not SEVERAL.fullmatch(value),
        "one data set (a data.yaml may list the images of several: `train: [a/images, b/images]`)",
    ),
    "batch": (
        lambda value: value < 1 or isinstance(value, int),
        "a whole number, -1 to have it found, or a share of the GPU's memory below 1",
    ),
    "imgsz": (
        lambda value: isinstance(value, int) or bool(value and all(isinstance(each, int) for each in value)),
        "a whole number of pixels",
    ),
    "cache": (lambda value: value in (True, False, "ram", "disk"), "True, False, ram or disk"),
    "epochs": (lambda value: value >= 1, "at least 1"),
    "workers": (lambda value: value >= 0, "0 or more"),
    "nbs": (lambda value: value >= 1, "at least 1"),
    "close_mosaic": (lambda value: value >= 0, "0 or more"),
}


def load(path: str | Path | None = None, settings: Iterable[str] | Mapping[str, Any] = ()) -> Config:
    """Read and check a config, as `kit.config.load` does, by Ultralytics' settings."""
    checked = config.load(schema(), path, settings)
    model = str(checked.get("model"))
    if KNOWN.fullmatch(model) and not Path(model).exists():  # as Ultralytics completes its own models' names
        return replace(checked, train={**checked.train, "model": f"{model}.pt"})
    return checked


def from_dict(values: Mapping[str, Any]) -> Config:
    """Rebuild the config that a checkpoint holds."""
    return config.from_dict(schema(), values)


@functools.cache
def schema() -> Schema:
    """Return the settings that Ultralytics has."""
    return Schema(defaults(), RESERVED, frozenset(MAY_CHANGE), classifies, LIMITS)


@functools.cache
def defaults() -> dict[str, tuple[Any, frozenset[str]]]:
    """Return name -> (default, types) of Ultralytics' settings, from the file that documents them.

    Its lines read `epochs: 100 # (int) number of epochs to train for`.

    Raises:
        ConfigError: ultralytics is not installed.
    """
    spec = importlib.util.find_spec("ultralytics")
    if spec is None or spec.origin is None:
        raise ConfigError("ultralytics is not installed.", "Run `pip install -r requirements.txt`.")
    text = (Path(spec.origin).parent / "cfg" / "default.yaml").read_text(encoding="utf-8")
    types = {
        match[1]: frozenset(re.split(r"[|,\s]+", match[2])) | ({"optional"} if "optional" in match[2] else set())
        for match in re.finditer(r"^(\w+):.*?#\s*\(([^)]*)\)", text, re.MULTILINE)
    }
    types["auto_augment"] |= {"optional"}  # Ultralytics knows none, and does not say so
    return {name: (value, types.get(name, frozenset())) for name, value in yaml.safe_load(text).items()}


def classifies(config: Config) -> bool | None:
    """Tell whether the run is a classification; None where that is in a model file that is not here."""
    model = Path(str(config.get("model")))
    if "task" in config.train:
        return bool(config.train["task"] == "classify")
    if model.is_file():
        return peek.mentions(model, "Classify")
    known = model.suffix != ".pt" or model.stem.startswith("yolo")  # by their names, as Ultralytics tells them
    return "-cls" in model.stem if known else None
