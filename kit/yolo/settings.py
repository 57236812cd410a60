"""The settings that Ultralytics has, without importing it (and so torch): read from its `default.yaml`."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from kit import config
from kit.config import Config, Schema
from kit.errors import ConfigError
from kit.store import peek

RESERVED = {  # the kit's own business, with the way to the same end
    "resume": "use --resume auto, never or FILE",
    "project": "use kit.run=runs/NAME",
    "name": "use kit.run=runs/NAME",
    "save_dir": "use kit.run=runs/NAME",
    "mode": "the kit only trains",
    "time": "it rewrites the schedule as it goes; use kit.session_hours to stop in time and go on later",
    "compile": "compiled kernels are not the same from session to session, which would cost exact resume",
    "distill_model": "the teacher's state is not part of a checkpoint, which would cost exact resume",
    "quantize": "the quantizers' state is not part of a checkpoint, which would cost exact resume",
    "cfg": "use --config FILE",
}
MAY_CHANGE = {"epochs", "patience", "workers", "device", "plots", "verbose"}  # may change from session to session
MAY_CHANGE |= {"task", "data"}  # what they name is compared by what it is


def load(path: str | Path | None = None, settings: Iterable[str] | Mapping[str, Any] = ()) -> Config:
    """Read and check a config, as `kit.config.load` does, by Ultralytics' settings."""
    return config.load(schema(), path, settings)


def from_dict(values: Mapping[str, Any]) -> Config:
    """Rebuild the config that a checkpoint holds."""
    return config.from_dict(schema(), values)


@functools.cache
def schema() -> Schema:
    """Return the settings that Ultralytics has."""
    return Schema(defaults(), RESERVED, frozenset(MAY_CHANGE), classifies)


@functools.cache
def defaults() -> dict[str, tuple[Any, frozenset[str]]]:
    """Return name -> (default, types) of Ultralytics' settings, from the file that documents them.

    Its lines read `epochs: 100 # (int) number of epochs to train for`.

    Raises:
        ConfigError: ultralytics is not installed.
    """
    spec = importlib.util.find_spec("ultralytics")
    if spec is None or spec.origin is None:
        raise ConfigError("ultralytics is not installed: run `pip install -r requirements.txt`.")
    text = (Path(spec.origin).parent / "cfg" / "default.yaml").read_text(encoding="utf-8")
    types = {
        match[1]: frozenset(re.split(r"[|,\s]+", match[2])) | ({"optional"} if "optional" in match[2] else set())
        for match in re.finditer(r"^(\w+):.*?#\s*\(([^)]*)\)", text, re.MULTILINE)
    }
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
