"""Checkpoints made of a few numbers, and ways to damage them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch

from kit.store import checkpoint, records as writer


def state(step: int = 1, **changes: Any) -> dict[str, Any]:
    """Return a checkpoint after `step` batches, ten to an epoch; its weights tell the step."""
    return {
        "epoch": step // 10,
        "model_state_dict": {"weight": torch.full((64,), float(step)), "count": torch.tensor(step)},
        "optimizer_state_dict": {"state": {}, "param_groups": []},
        "scheduler_state_dict": {},
        "best_map": None,
        "config": {},
        "ema_state_dict": {},
        "scaler_state_dict": {},
        "progress": {
            "global_step": step,
            "batch": step % 10,
            "batches": 10,
            "epochs": 5,
            "elapsed_s": 1.0,
            "saved": 1e9,
        },
        "rng_state": {},
        "history": [],
        "run_id": "one",
        "format_version": checkpoint.FORMAT,
        "versions": {},
        "architecture": {"task": "detect", "model": "yolov8n.yaml", "names": ["cat", "dog"]},
        **changes,
    }


def save(path: Path, value: Any) -> Path:
    """Save a value the way a checkpoint is saved, without the door."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        writer.save(value, file)
    return path


def records(path: Path) -> dict[str, tuple[int, int]]:
    """Return the records of a checkpoint: name -> (offset of its bytes in the file, their number)."""
    raw, found = path.read_bytes(), {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():  # a local header is 30 bytes, the name and the padding
            header = raw[entry.header_offset : entry.header_offset + 30]
            rest = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
            found[entry.filename] = (entry.header_offset + 30 + rest, entry.file_size)
    return found


def flip(path: Path, byte: int, bit: int = 0) -> Path:
    """Flip one bit of a file."""
    raw = bytearray(path.read_bytes())
    raw[byte] ^= 1 << bit
    path.write_bytes(raw)
    return path


def flip_weights(path: Path) -> Path:
    """Flip one bit in the middle of a checkpoint's first tensor."""
    name = next(name for name in records(path) if "/data/" in name)
    offset, size = records(path)[name]
    return flip(path, offset + size // 2)
