"""What a checkpoint holds, how it is written and how it is read safely.

One file that plain `torch.load(path, weights_only=True)` opens: tensors and plain Python, in torch's own zip format.
Keys: `epoch` (completed, validation included), `model_state_dict` (raw, fp32), `optimizer_state_dict`,
`scheduler_state_dict`, `best_map`, `config`, `ema_state_dict`, `scaler_state_dict`, `progress`, `rng_state`,
`history`, `run_id`, `format_version`, `versions`, `architecture`; the trainer adds `gradients`, `loop` and `ranks` (the
number of slices).
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import serialization

from kit.errors import CheckpointError
from kit.store import records, trust
from kit.text import duration

FORMAT = 1
MODEL_CLASSES = ("torch.nn.modules.", "ultralytics.nn.")  # where those come from that a module tree names
DESCRIBED = ("backbone", "head", "activation", "end2end", "reg_max", "kpt_shape", "channels")  # what a model computes
KEYS = (
    "epoch",
    "model_state_dict",
    "optimizer_state_dict",
    "scheduler_state_dict",
    "best_map",
    "config",
    "ema_state_dict",
    "scaler_state_dict",
    "progress",
    "rng_state",
    "history",
    "run_id",
    "format_version",
    "versions",
    "architecture",
)


@dataclass(frozen=True)
class Summary:
    """What is worth knowing of a checkpoint before it is loaded.

    Attributes:
        epoch: Epochs completed, validation included.
        epochs: Epochs in all.
        batch: Batches done of the epoch that comes next.
        batches: Batches per epoch.
        global_step: Batches done since the run began.
        branch: How often the run was sent on from a given file; a later branch wins, whatever its steps.
        best_map: Best validation mAP50-95 so far, or None before the first validation.
        run_id: Same for every checkpoint of a run.
        saved: When it was written, in Unix seconds.
    """

    epoch: int
    epochs: int
    batch: int
    batches: int
    global_step: int
    best_map: float | None
    run_id: str
    saved: float
    branch: int = 0

    @property
    def order(self) -> tuple[int, int]:
        """The sort key: of two checkpoints of a run, the greater one is further."""
        return self.branch, self.global_step

    @property
    def best(self) -> tuple[str, float | None]:
        """The key that it shares with the matching `best.pt`."""
        return self.run_id, self.best_map

    @property
    def age(self) -> str:
        """How long ago it was written, in words."""
        return duration(time.time() - self.saved)

    @property
    def position(self) -> str:
        """The position in words."""
        return position({"epoch": self.epoch, "epochs": self.epochs, "batch": self.batch, "batches": self.batches})


def position(progress: dict[str, Any]) -> str:
    """Say where a checkpoint stands, by its `progress` and `epoch`."""
    batch = ", batch {batch}/{batches}" if progress["batch"] else ""
    return ("epoch {epoch}/{epochs}" + batch).format(**progress)


def summarize(state: dict[str, Any]) -> Summary:
    """Return the summary of a checkpoint that was read.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: It lacks something, or that is not what it should be.
    """
    progress = state["progress"]
    for name in ("epoch", "epochs", "batch", "batches", "global_step"):
        count = (progress if name in progress else state)[name]
        if not isinstance(count, int) or count < 0:
            raise ValueError(f"'{name}'")
    numbers = [progress["saved"], progress["elapsed_s"], state["best_map"] or 0.0, *progress.get("sessions", ())]
    numbers += [value for row in state["history"] for value in row.values()]
    if not all(isinstance(value, (int, float)) for value in numbers) or not isinstance(state["run_id"], str):
        raise ValueError("numbers")
    return Summary(
        epoch=state["epoch"],
        epochs=progress["epochs"],
        batch=progress["batch"],
        batches=progress["batches"],
        global_step=progress["global_step"],
        best_map=state["best_map"],
        run_id=state["run_id"],
        saved=progress["saved"],
        branch=int(progress.get("branch", 0)),
    )


def identify(state: dict[str, Any]) -> dict[str, Any]:
    """Return what tells a checkpoint's run from others; its `structure` is that of its tensors, whatever its name.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: It lacks something, or that is not what it should be.
    """
    architecture, tensors = state["architecture"], state["model_state_dict"]
    named = {name: architecture.get(name) for name in ("task", "model", "names", "files")}
    dict(named["files"] or {})
    built = structure(architecture.get("yaml") or {}, tensors)
    return {**named, "structure": built, "ultralytics": state["versions"].get("ultralytics")}


def write(state: dict[str, Any], file: BinaryIO) -> None:
    """Write a checkpoint into an open file."""
    records.save(state, file)
    file.flush()


def load(path: Path) -> Any:
    """Open a file of tensors and plain values; the tensors stay on disk until they are touched."""
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def read(path: Path, load: Callable[[Path], Any] = load, *, verify: bool = True) -> dict[str, Any]:
    """Verify a checkpoint and read it, executing nothing.

    Args:
        path: The file.
        load: What opens it; the trainer has one that knows the model classes in a `best.pt`.
        verify: Compare every byte with its checksum first; without, the tensors may be anything.

    Returns:
        The checkpoint, its tensors on the CPU.

    Raises:
        CheckpointError: The file is missing, damaged, of another format, or holds more than tensors and plain values.
    """
    if verify:
        trust.verify(path)
    trust.look_through(path)
    try:
        state = load(path)
        foreign = _foreign(state)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        foreign = str(error).partition("GLOBAL ")[2].split(" ")[0] or "objects"
    except Exception as error:  # a pickle that is damaged can raise anything
        raise CheckpointError(f"'{path}' is not a checkpoint: {' '.join(str(error).split())[:200]}.") from error
    if foreign:
        raise CheckpointError(
            f"'{path}' was refused: it holds {foreign}, which is code, not weights. Nothing was executed."
        )
    missing = [key for key in KEYS if not isinstance(state, dict) or key not in state]
    if missing:
        raise CheckpointError(f"'{path}' is not a checkpoint of this kit: it has no '{missing[0]}'.")
    if state["format_version"] not in range(1, FORMAT + 1):
        raise CheckpointError(
            f"'{path}' has format {state['format_version']!r}, and this kit reads up to {FORMAT}.", "Update the kit."
        )
    return dict(state)


def _foreign(state: Any) -> str:
    """Name what the pickled module tree of a checkpoint holds beside classes of models; nothing is unpickled."""
    architecture = state.get("architecture") if isinstance(state, dict) else None
    packed = architecture.get("modules") if isinstance(architecture, dict) else None
    if packed is None:
        return ""
    tree = packed.numpy().tobytes()
    try:
        trust.look_through(io.BytesIO(tree))
    except CheckpointError as error:
        raise ValueError(str(error)) from error  # `read` knows the file's name
    named = serialization.get_unsafe_globals_in_checkpoint(io.BytesIO(tree))
    return next((name for name in named if not name.startswith(MODEL_CLASSES)), "")


def shapes(tensors: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    """Return the shape of each tensor of a state dict."""
    return {name: list(tensor.shape) for name, tensor in tensors.items()}


def structure(description: dict[str, Any], tensors: dict[str, torch.Tensor]) -> str:
    """Hash what a model computes: the layers of its description, and the names and shapes of its tensors.

    Args:
        description: Ultralytics' own, `model.yaml`.
        tensors: The model's state dict.
    """
    layers = [description.get(name) for name in DESCRIBED]
    text = json.dumps([layers, sorted(shapes(tensors).items())], default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def plain(value: Any) -> Any:
    """Turn numpy's numbers, paths and named tuples into what `weights_only` loading accepts; tensors stay."""
    if value is None or isinstance(value, torch.Tensor):
        return value
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return (list if isinstance(value, list) else tuple)(plain(item) for item in value)
    for kind in (bool, int, float, str):  # numpy.float64 is a float, and pickles as numpy's own
        if isinstance(value, kind):
            return kind(value)
    return plain(value.tolist()) if hasattr(value, "tolist") else str(value)
