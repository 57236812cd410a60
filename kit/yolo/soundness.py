"""Whether the values of a checkpoint are sound, and the sentence for one that does not fit the run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from kit.errors import CheckpointError
from kit.yolo.recovery import out_of_memory
from kit.yolo.state import SCALARS, TENSORS


def check(state: dict[str, Any]) -> None:
    """Make sure that a checkpoint's values have the types that training takes them for, some of them hours later.

    Raises:
        TypeError, KeyError: They have not.
    """
    loop, architecture = state["loop"], state["architecture"]
    tables = {name: loop[name] for name in ("metrics", "stopper", "criterion", "decided")}
    tables |= {name: state[name] for name in ("scheduler_state_dict", "scaler_state_dict", "progress", "gradients")}
    tables |= {name: architecture.get(name) or {} for name in ("files", "data")}
    tables |= {name: loop[name] or {} for name in TENSORS[1:]}
    optimizer = state["optimizer_state_dict"]
    groups = [{**group, "param_group": None} for group in optimizer["param_groups"]]
    numbers = [
        tables[name] for name in ("metrics", "stopper", "criterion", "scheduler_state_dict", "scaler_state_dict")
    ]
    numbers += [optimizer["state"], state.get("ranks"), loop["ema_updates"], *(loop[name] for name in SCALARS), *groups]
    keys = [key for row in [*tables.values(), *state["history"]] for key in dict(row)]
    if not isinstance(loop["loss"], (Tensor, type(None))) or not all(isinstance(key, str) for key in keys):
        raise TypeError("no sound values")
    for value in _leaves(numbers):
        if not isinstance(value, (int, float, Tensor, type(None))):
            raise TypeError(f"{value!r:.60} is no number")


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list, tuple)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _leaves(item)
    else:
        yield value


@contextmanager
def fitting(path: str) -> Iterator[None]:
    """Turn the errors of what is done here with a checkpoint's state into one sentence.

    Raises:
        CheckpointError: It failed, for any reason but a full GPU.
    """
    try:
        yield
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, RuntimeError) and out_of_memory(error):
            raise
        text = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise CheckpointError(
            f"The checkpoint '{path}' does not fit the run ({text}). Nothing of it was taken.",
            "Detach it or move it away, or start fresh with --resume never.",
        ) from error
