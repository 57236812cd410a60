"""Made-up runs for the tests of what is shown: the files that a trainer would have left. No torch here."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from kit.dashboard.facts import Row

NOW = 1_700_000_000.0


def rows(count: int, seconds: float = 100.0) -> tuple[Row, ...]:
    """Return results that get better from epoch to epoch, the best one before the last."""
    found: list[Row] = []
    for epoch in range(1, count + 1):
        value = 0.6 * (1 - math.exp(-epoch / 10)) - (0.05 if epoch == count and count > 1 else 0)
        found.append(
            {
                "epoch": float(epoch),
                "time": epoch * seconds,
                "train/box_loss": 1 + 1 / epoch,
                "train/cls_loss": 0.5 + 1 / epoch,
                "val/box_loss": 1.1 + 1 / epoch,
                "metrics/precision(B)": 0.8,
                "metrics/mAP50(B)": 1.3 * value,
                "metrics/mAP50-95(B)": value,
            }
        )
    return tuple(found)


def status(**changes: Any) -> dict[str, Any]:
    """Return the status of a run in the middle of epoch 11 of 20, two minutes into it."""
    return {
        "pid": 1,
        "state": "training",
        "run": "runs/train",
        "epochs": 20,
        "epoch": 11,
        "batch": 50,
        "batches": 100,
        "losses": {"box_loss": 1.05, "cls_loss": 0.6},
        "elapsed_s": 1050.0,
        "best_map": max(row["metrics/mAP50-95(B)"] for row in rows(10)),
        "checkpoint": {"epoch": 10, "batch": 30, "time": NOW - 12},
        "cost_percent": 0.3,
        "messages": ["Starting training from epoch 11/20 (batch 1/100)"],
        "sessions": [4.5, 10.0],
        "updated": NOW,
        **changes,
    }


def write(folder: Path, values: dict[str, Any] | None = None, results: tuple[Row, ...] = ()) -> Path:
    """Leave the files of a run in a folder and return it."""
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps(values or {}))
    if results:
        names = list(results[0])
        lines = [",".join(names), *(",".join(str(row.get(name, "")) for name in names) for row in results)]
        (folder / "results.csv").write_text("\n".join(lines) + "\n")
    return folder
