"""SIGKILL at random times during back-to-back saves: after each, a good checkpoint must stand (`make chaos`).

A child saves as fast as it can, through the kit's writer with its two slots and its thread, and tells through a pipe
which step it knows to be on the disk. After the kill, `latest.pt` must be whole, hold one step only, and no older one
than was told; `previous.pt` and `best.pt` must be whole too.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from kit.store import checkpoint, disk
from kit.store.writer import Writer
from tests.help.samples import state

SIZES = (1000, 200_000, 7, 150_000)  # of the tensors, 1.4 MB in all


def save_forever(folder: Path, first: int, told: int) -> None:
    """Save step after step, each a state of its own, and tell which ones are on the disk."""
    torch.set_num_threads(1)
    writer = Writer(folder, 1e-9, 1e12)
    tensors = [torch.zeros(size) for size in SIZES]
    for step in count(first):
        for tensor in tensors:
            tensor.fill_(step)
        whole = state(step)

        def build(copies: dict[str, list[Any]], whole: dict[str, Any] = whole) -> dict[str, Any]:
            return {**whole, "model_state_dict": {str(n): value for n, value in enumerate(copies["model_state_dict"])}}

        writer.save({"model_state_dict": tensors}, build, best={} if step % 7 == 0 else None)
        if writer.position is not None:
            os.write(told, f"{writer.position['global_step']}\n".encode())


def look(path: Path) -> int:
    """Verify a checkpoint and return its step; it must be of that step through and through."""
    found = checkpoint.read(path)
    step = int(found["progress"]["global_step"])
    weights = found["model_state_dict"].values()
    assert all(torch.equal(value, torch.full_like(value, step)) for value in weights), f"{path} mixes steps"
    return step


def kill(folder: Path, first: int, seconds: float) -> tuple[int, bool]:
    """Let a child save and kill it.

    Returns:
        The step that stands afterwards, and whether the kill fell into a save.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        save_forever(folder, first, writer)
    os.close(writer)
    told = os.read(reader, 100)  # the clock starts when something is on the disk
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(reader, 1 << 16):
        told += more
    os.close(reader)
    torn = any(folder.glob(f".*{disk.TEMPORARY}"))
    disk.remove_leftovers(folder)
    step = look(folder / "latest.pt")
    assert step >= int(told.split()[-1]), "a checkpoint that was on the disk is gone"
    if (folder / "previous.pt").exists():
        assert look(folder / "previous.pt") <= step
    if (folder / "best.pt").exists():
        look(folder / "best.pt")  # written first, so it may be one step ahead
    return step, torn


def sweep(folder: Path, kills: int, seed: int = 0) -> tuple[int, int]:
    """Kill so many times over one folder; return the last step and how many kills fell into a save."""
    chance, step, torn = random.Random(seed), 0, 0
    for _ in range(kills):
        step, fell = kill(folder, step + 1, chance.uniform(0, 0.05))
        torn += fell
    return step, torn


def main() -> None:
    """Kill a thousand times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        step, torn = sweep(Path(folder), options.kills)
    print(f"{options.kills} kills, {torn} of them within a save, over {step} saves: a good checkpoint after each")


if __name__ == "__main__":
    main()
