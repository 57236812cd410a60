"""What the GPUs are doing, asked of NVIDIA's management library: no process, no CUDA context, microseconds a call.

https://docs.nvidia.com/deploy/nvml-api: nvmlInit_v2, nvmlDeviceGetCount_v2, nvmlDeviceGetHandleByIndex_v2,
nvmlDeviceGetName, nvmlDeviceGetMemoryInfo, nvmlDeviceGetUtilizationRates.
"""

from __future__ import annotations

import ctypes
from typing import Any

from kit.dashboard.facts import Gpu

LIBRARY = "libnvidia-ml.so.1"  # a part of the driver


def open_library(name: str = LIBRARY) -> Any:
    """Open the library; None where there is no NVIDIA driver."""
    try:
        library = ctypes.CDLL(name)
        return None if library.nvmlInit_v2() else library
    except (OSError, AttributeError):
        return None


def look(library: Any) -> tuple[Gpu, ...]:
    """Return the GPUs as they are now, by what `open_library` returned."""
    count, found = ctypes.c_uint(), []
    if library is None or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return ()
    for number in range(count.value):
        device, name = ctypes.c_void_p(), ctypes.create_string_buffer(96)
        memory = (ctypes.c_ulonglong * 3)()  # nvmlMemory_t: total, free, used
        load = (ctypes.c_uint * 2)()  # nvmlUtilization_t: gpu, memory
        if (
            library.nvmlDeviceGetHandleByIndex_v2(number, ctypes.byref(device))
            or library.nvmlDeviceGetName(device, name, len(name))
            or library.nvmlDeviceGetMemoryInfo(device, ctypes.byref(memory))
        ):
            continue
        silent = library.nvmlDeviceGetUtilizationRates(device, ctypes.byref(load))  # a part of a GPU (MIG) has none
        found.append(Gpu(name.value.decode(errors="replace"), memory[2], memory[0], None if silent else load[0]))
    return tuple(found)
