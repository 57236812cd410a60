"""Whether a checkpoint can be trusted, by flipped bits and killed writers; `saving.py` prints it."""

from __future__ import annotations

import os
import random
import signal
import struct
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from kit.yolo import environment

if TYPE_CHECKING:
    from schemes import Scheme

SMALL = "n"  # the size of the model whose checkpoints are damaged


def prepare() -> None:
    """Make ready for the import of `schemes`, in this process and in those that it starts."""
    environment.prepare()
    os.environ["ULTRALYTICS_SAFE_LOAD"] = "false"  # Ultralytics as it is
    warnings.filterwarnings("ignore")  # DCP's, at every save


def places(scheme: Scheme, count: int) -> Iterator[tuple[int, int]]:
    """Yield random places in the tensors' bytes of the newest checkpoint: offset in its file, and bit."""
    from schemes import tensors

    generator, content = random.Random(0), scheme.data_file().read_bytes()
    loaded = [tensor for tensor in tensors(scheme.read(next(scheme.candidates()))) if tensor.numel() >= 16]
    for tensor in generator.choices(loaded, [tensor.numel() for tensor in loaded], k=count):
        for stored in (tensor, tensor.half()):  # Ultralytics' reading turns fp16 into fp32, exactly
            found = content.find(stored.contiguous().numpy().tobytes())
            if found >= 0:
                yield found + generator.randrange(stored.nbytes), generator.randrange(8)
                break


def noticed(scheme: Scheme, count: int) -> str:
    """Return how many flipped bits the scheme's own reading notices, of how many."""
    scheme.save()
    scheme.wait()
    newest, tried, seen = next(scheme.candidates()), 0, 0
    with open(scheme.data_file(), "r+b", buffering=0) as file:
        for offset, bit in places(scheme, count):
            byte = os.pread(file.fileno(), 1, offset)
            os.pwrite(file.fileno(), bytes((byte[0] ^ 1 << bit,)), offset)
            tried += 1
            try:
                scheme.read(newest)
            except Exception:  # whatever it raises, it noticed
                seen += 1
            os.pwrite(file.fileno(), byte, offset)
    scheme.close()
    return f"{seen} of {tried}"


def killed(name: str, count: int, folder: Path) -> str:
    """Return after how many of `count` kills no whole state could be read back; runs in a process of its own.

    The process that saves is a fork of this one, which therefore never starts torch's threads.
    """
    prepare()
    from schemes import SCHEMES, Training

    torch.set_num_threads(1)
    training, generator, broken = Training(SMALL), random.Random(0), 0
    kind = next(kind for kind in SCHEMES if kind.name == name)
    for number in range(count):
        place = folder / f"{number}"
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                save_until_killed(kind(training, place), writing)
            finally:
                os._exit(1)
        os.close(writing)
        message = os.read(reading, 8)
        os.close(reading)
        time.sleep(generator.uniform(0, 3 * struct.unpack("d", message)[0]) if message else 0)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if not message:
            raise RuntimeError(f"'{name}' could not save.")
        scheme = kind(training, place)
        broken += not any(is_whole(scheme, path) for path in scheme.candidates())
    return f"{broken} of {count}"


def save_until_killed(scheme: Scheme, tell: int) -> None:
    """Save back to back, the state changing in between; write the seconds that the second save took to `tell`."""
    number = 0
    while True:
        began = time.perf_counter()
        scheme.save()
        number += 1
        scheme.training.stamp(number % 1000)  # training goes on; fp16 holds these numbers exactly
        scheme.wait()
        if number == 2:
            os.write(tell, struct.pack("d", time.perf_counter() - began))


def is_whole(scheme: Scheme, path: Path) -> bool:
    """Tell whether a checkpoint can be read and all its numbers are of one moment."""
    from schemes import tensors

    try:
        loaded = tensors(scheme.read(path))
    except Exception:  # whatever it raises, this one is lost
        return False
    return len({float(edge) for tensor in loaded for edge in (tensor.min(), tensor.max())}) == 1
