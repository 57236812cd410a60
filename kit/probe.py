"""What torch and the checkpoints within reach say, from a process of its own: `python -m kit.probe RUN_FOLDER`.

The notebook's kernel never imports torch and never makes a CUDA context, so `kit.report` starts this and reads what it
prints: one line of JSON about torch and its GPUs, then one about the checkpoints.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from kit import discovery, session
from kit.errors import ConfigError

NO_KERNELS = ("no kernel image", "ARCH_MISMATCH")  # torch's own kernels, cuDNN's


def convolve(device: torch.device) -> None:
    """Run the smallest convolution there is, and wait for its result."""
    ones = torch.ones(1, 1, 3, 3, device=device)
    torch.nn.functional.conv2d(ones, ones).item()


def check(device: torch.device, kernel: Callable[[torch.device], None] = convolve, cuda: Any = torch.cuda) -> None:
    """Run a small kernel on a GPU, because its name and its architecture only promise that it can; a CPU is good.

    Raises:
        ConfigError: This build of torch has no kernels for it.
        RuntimeError: It cannot be used just now, in torch's words.
    """
    if not str(device).startswith("cuda"):
        return
    try:
        kernel(device)
    except RuntimeError as error:
        if not any(words in str(error) for words in NO_KERNELS):
            raise
        major, minor = cuda.get_device_capability(device)
        name, built = cuda.get_device_name(device), ", ".join(cuda.get_arch_list())
        way = "choose GPU T4 x2 in Session options" if session.on_kaggle() else "take another GPU or build of torch"
        raise ConfigError(
            f"{name} (sm_{major}{minor}) has no kernels in torch {torch.__version__.partition('+')[0]} "
            f"(built for {built}): {way}, or device=cpu."
        ) from None


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
