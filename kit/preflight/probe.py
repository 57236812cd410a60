"""What torch and the checkpoints within reach say, in a process of its own: `python -m kit.preflight.probe RUN_FOLDER`.

The notebook's kernel never imports torch and never makes a CUDA context, so `kit.preflight.report` starts this and
reads what it prints: one line of JSON about torch and its GPUs, then one about the checkpoints.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kit.errors import ConfigError
from kit.kaggle.gpu import check, convolve
from kit.run import discovery


def look(kernel: Callable[[torch.device], None] = convolve, cuda: Any = torch.cuda) -> dict[str, Any]:
    """Return torch's version, the version of CUDA that it was built for, and for each GPU its name and its problem.

    Returns:
        `torch`, `cuda` (None: for the CPU only) and `gpus`, a list of `name`, `problem` (empty: none) and `kernels`
        (False: this torch has none for it).
    """
    gpus = []
    for number in range(cuda.device_count()):
        gpu: dict[str, Any] = {"name": f"GPU {number}", "problem": "", "kernels": True}
        try:
            gpu["name"] = cuda.get_device_name(number)
            check(torch.device("cuda", number), kernel, cuda)
        except ConfigError as error:
            gpu |= {"problem": str(error), "kernels": False}
        except RuntimeError as error:
            text = str(error).strip().partition("\n")[0]
            gpu["problem"] = f"{gpu['name']} cannot be used ({text}): end what else uses it, or restart the session."
        gpus.append(gpu)
    return {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": gpus}


def checkpoints(run_folder: Path) -> list[dict[str, Any]]:
    """Return what is known of every checkpoint within reach; they are verified up to the first good one."""
    found: list[discovery.Candidate] = []
    for candidate in discovery.scan(run_folder):
        known = candidate.problem or any(not better.problem for better in found)
        found.append(candidate if known else discovery.look(candidate.path))
    return [{**each.to_dict(), "position": each.summary.position if each.summary else ""} for each in found]


def main(run_folder: Path) -> None:
    """Print the two lines; the first does not wait for the second, which may have to read large files."""
    print(json.dumps(look()), flush=True)
    print(json.dumps({"checkpoints": checkpoints(run_folder)}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
