"""Whether torch can use a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kit.errors import ConfigError
from kit.kaggle import session

NO_KERNELS = 209  # cudaErrorNoKernelImageForDevice, as `torch.AcceleratorError.error_code` has it
WORDS = ("no kernel image", "ARCH_MISMATCH", "unable to find an engine")  # of a torch before 2.8 and for cuDNN


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
        if getattr(error, "error_code", None) != NO_KERNELS and not any(words in str(error) for words in WORDS):
            raise
        major, minor = cuda.get_device_capability(device)
        name, built = cuda.get_device_name(device), ", ".join(cuda.get_arch_list())
        way = "Choose GPU T4 x2 in Session options" if session.on_kaggle() else "Take another GPU or build of torch"
        raise ConfigError(
            f"{name} (sm_{major}{minor}) has no kernels in torch {torch.__version__.partition('+')[0]} "
            f"(built for {built}).",
            f"{way}, or device=cpu.",
        ) from None
