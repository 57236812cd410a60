"""What torch, the checkpoints within reach and training itself say: `python -m kit.preflight.probe SETTINGS [sound]`.

The notebook's kernel never imports torch and never makes a CUDA context, so `kit.preflight.report` starts this and
reads what it prints: lines of JSON about torch and its GPUs, the checkpoints, and what training would start with.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from kit.config import Config
from kit.errors import ConfigError, KitError
from kit.kaggle.gpu import check, convolve
from kit.run import discovery
from kit.yolo import environment
from kit.yolo.settings import from_dict


def look(kernel: Callable[[torch.device], None] = convolve, cuda: Any = torch.cuda) -> dict[str, Any]:
    """Return torch's version, the version of CUDA that it was built for, and for each GPU its name and its problem.

    Returns:
        `torch`, `cuda` (None: for the CPU only) and `gpus`, a list of `name`, `problem` (empty: none), `hint` (what to
        do about it) and `kernels` (False: this torch has none for it).
    """
    gpus = []
    for number in range(cuda.device_count()):
        gpu: dict[str, Any] = {"name": f"GPU {number}", "problem": "", "hint": "", "kernels": True}
        try:
            gpu["name"] = cuda.get_device_name(number)
            check(torch.device("cuda", number), kernel, cuda)
        except ConfigError as error:
            gpu |= {"problem": error.message, "hint": error.hint, "kernels": False}
        except RuntimeError as error:
            text = str(error).strip().partition("\n")[0]
            gpu["problem"] = f"{gpu['name']} cannot be used ({text})."
            gpu["hint"] = "End what else uses it, or restart the session."
        gpus.append(gpu)
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}


def checkpoints(config: Config) -> list[dict[str, Any]]:
    """Return what is known of every checkpoint within reach; they are verified up to the first good one."""
    found: list[discovery.Candidate] = []
    for candidate in discovery.scan(config):
        known = candidate.problem or any(not better.problem for better in found)
        found.append(candidate if known else discovery.look(candidate.path))
    return [{**each.to_dict(), "position": each.summary.position if each.summary else ""} for each in found]


def start(config: Config) -> dict[str, Any]:
    """Return what training would start with, by its own checks, or the error that it would end with."""
    try:
        environment.prepare()
        from kit.yolo.train import prepare

        prepared = prepare(config)
    except KitError as error:
        return error.to_dict()
    dataset, identity = prepared.dataset, prepared.identity
    names = {"task": identity["task"], "model": str(config.get("model")), "data": str(dataset.source or dataset.path)}
    return {**names, "classes": len(identity["names"])}


def main(settings: str, sound: str = "") -> None:
    """Print a line each; the first does not wait for the others, which may have to read large files."""
    print(json.dumps(look()), flush=True)
    config = from_dict(json.loads(settings))
    print(json.dumps({"checkpoints": checkpoints(config)}), flush=True)
    if sound:
        print(json.dumps({"start": start(config)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
