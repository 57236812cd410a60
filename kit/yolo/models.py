"""Models: read from a file, kept in a checkpoint and put together again.

A description does not say what a model is: Ultralytics gives a model that starts from a pretrained file the class
branch of that file, whose width depends on the classes which that one was made for. So a checkpoint holds the module
tree itself, pickled without its numbers. It is read as every model file is, through Ultralytics' allow-list of classes.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn, serialization
from ultralytics.cfg import DEFAULT_CFG
from ultralytics.nn.tasks import (
    ClassificationModel,
    guess_model_task,
    torch_safe_load,
    yaml_model_load,
)
from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset

from kit.errors import CheckpointError, ModelError
from kit.store import trust
from kit.store.checkpoint import shapes
from kit.yolo.tasks import STOCK
from kit.yolo.upstream import allowing_models, bare_trainer

INPUT_WIDTH = re.compile(r"\.(one2one_)?cv3\.0\.2\.weight$")  # of the last convolution of a class branch


def open_checkpoint(file: Path | io.BytesIO) -> Any:
    """Open a file that may hold a model, as `best.pt` does, through Ultralytics' allow-list of classes."""
    with allowing_models(file):
        if isinstance(file, io.BytesIO):
            trust.look_through(file)
            file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=isinstance(file, Path) or None)


def load_model(path: str) -> Any:
    """Read a model file through Ultralytics' allow-list of classes; a name it publishes is downloaded.

    Args:
        path: Of Ultralytics' own file or of one of the kit's checkpoints, whose average is taken.

    Returns:
        The model, an fp32 `nn.Module` with its `yaml`.

    Raises:
        ModelError: It is missing, damaged, or holds anything but a model of finite numbers.
    """
    try:
        file = Path(attempt_download_asset(path))
        trust.look_through(file)
        trust.verify(file)
        loaded, _ = torch_safe_load(path, safe_only=True)
        if "ema_state_dict" in loaded and "model" not in loaded:
            model = assemble(loaded, "ema_state_dict")
        else:
            model = loaded.get("ema") or loaded.get("model")
        if not isinstance(model, nn.Module) or not hasattr(model, "yaml"):
            raise TypeError("it holds no model of Ultralytics'")
        check_finite(model.state_dict())
        return model.float()
    except Exception as error:  # an unreadable file, a refused class, a failed download: each has its own exception
        text = " ".join(str(getattr(error, "message", error)).split()).rstrip(".")
        hint = f"{getattr(error, 'hint', '')} Check model=...".lstrip()
        raise ModelError(f"The model '{path}' cannot be loaded: {text}.", hint) from error


def open_best(path: Path) -> Any:
    """Open a `best.pt` that is worth measuring.

    Raises:
        CheckpointError: It holds no model, or numbers that are not finite.
    """
    state = open_checkpoint(path)
    try:
        check_finite(state["ema_state_dict"])
        check_finite(state["model"].state_dict())
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"'{path}' holds no model that can be measured: {error}.") from error
    return state


def check_finite(tensors: dict[str, Tensor]) -> None:
    """Make sure that a model's numbers are numbers.

    Raises:
        ValueError: They are not.
    """
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ValueError(f"its tensor '{name}' is not finite")


def is_here(model: str) -> bool:
    """Tell whether a model file or a description can be read, without a download."""
    if model.lower().endswith(".pt"):
        return Path(model).is_file()
    try:
        return bool(yaml_model_load(model))
    except FileNotFoundError:
        return False
    except Exception:  # it is here, and broken
        return True


def is_published(model: str) -> bool:
    """Tell whether Ultralytics can fetch a model file: by its name, or from an address."""
    return Path(model).name in GITHUB_ASSETS_NAMES or "://" in model


def task_of(model: str) -> str | None:
    """Return the task of a model by what it holds; None where Ultralytics cannot tell.

    Args:
        model: A model file or a description that is here.

    Raises:
        ModelError: It is damaged.
    """
    if model.lower().endswith(".pt"):
        found: str | None = guess_model_task(load_model(model))
        return found
    try:
        found = guess_model_task(yaml_model_load(model))
    except (OSError, yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ModelError(f"The model '{model}' cannot be read: {error}.", "Check model=...") from error
    return found


def sources(model: str, pretrained: Any, load: Callable[[str], Any] = load_model) -> tuple[Any, Any]:
    """Return what Ultralytics builds a model from: a description, and a model whose weights it takes or None.

    Args:
        model: The setting, a model file or a description.
        pretrained: The setting: another model file, or False for none.
        load: Reads a model file.
    """
    description, weights = model, None
    if model.lower().endswith(".pt"):
        weights = load(model)
        description = weights.yaml
    if isinstance(pretrained, (str, Path)):
        weights = load(str(pretrained))
    return description, None if pretrained is False else weights


def build(task: str, description: Any, weights: Any, data: dict[str, Any]) -> Any:
    """Build a model as the trainer of its task does.

    Args:
        task: Of the model.
        description: A path, or the entries of a description.
        weights: A model whose weights it takes, or None.
        data: `nc`, `names`, `channels`, and for pose `kpt_shape`.

    Raises:
        ModelError: It cannot be built.
    """
    trainer = bare_trainer(STOCK[task], DEFAULT_CFG, data)
    try:
        model = trainer.get_model(cfg=deepcopy(description), weights=weights, verbose=False)
    except Exception as error:  # a description may be wrong in any way
        name = description.get("yaml_file", "") if isinstance(description, dict) else description
        raise ModelError(f"The model '{name}' cannot be built: {error}.", "Check model=...") from error
    if task == "classify":
        ClassificationModel.reshape_outputs(model, data["nc"])
    return model


def skeleton(model: nn.Module) -> Tensor:
    """Return a model's module tree without its numbers, pickled: bytes, about 100 kB."""
    bare = {id(tensor): _bare(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    file = io.BytesIO()
    serialization.save({"model": deepcopy(model, bare)}, file)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def _bare(tensor: Tensor) -> Tensor:
    bare = torch.empty_like(tensor, device="meta")
    return nn.Parameter(bare, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else bare


def assemble(state: dict[str, Any], section: str = "model_state_dict") -> Any:
    """Put the model of a checkpoint together.

    Args:
        state: The checkpoint; its tensors become the model's.
        section: Whose numbers: `model_state_dict` or `ema_state_dict`.

    Raises:
        CheckpointError: Its module tree holds more than a model, or does not fit its tensors.
    """
    packed = state["architecture"].get("modules")
    try:
        model = _earlier(state) if packed is None else open_checkpoint(io.BytesIO(packed.numpy().tobytes()))["model"]
        model.load_state_dict(state[section], assign=True)
    except (pickle.UnpicklingError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"The model of the checkpoint cannot be put together: {text}.", "Choose another."
        ) from error
    return model


def _earlier(state: dict[str, Any]) -> Any:
    """Build the model of a checkpoint without a module tree, as the kit wrote them before version 0.2.

    The tensors tell the width of the class branch, the one thing that the description does not.
    """
    architecture, wanted = state["architecture"], shapes(state["model_state_dict"])
    description, names = architecture["yaml"], architecture["names"]
    data = {
        "nc": len(names),
        "names": dict(enumerate(names)),
        "channels": description.get("channels", 3),
        "kpt_shape": description.get("kpt_shape"),
    }
    model = build(architecture["task"], description, None, data)
    widths = [shape[1] for name, shape in wanted.items() if INPUT_WIDTH.search(name)]
    if widths and shapes(model.state_dict()) != wanted:  # a branch for as many classes as it is wide has that width
        model.load(build(architecture["task"], description, None, {**data, "nc": widths[0], "names": {}}))
    return model
