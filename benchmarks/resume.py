"""A kill in mid-epoch and a resume, by `yolo train resume=True` and by the kit, against runs that nobody touched.

Each training is a process of its own, which kills itself (SIGKILL) after a batch. Both train the same model on the same
drawn photographs with Ultralytics' default settings but for the size, and note the images of every batch. A second
untouched run says what would differ anyway.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from kit.yolo import environment
from kit.yolo.settings import load

BATCH = 8


def train_stock(place: Path, settings: dict[str, Any], note: Callable[[int, list[str]], None]) -> None:
    """Train with Ultralytics as it is, or resume from its `last.pt`."""
    from ultralytics import YOLO
    from ultralytics.models.yolo.detect import DetectionTrainer

    class Noting(DetectionTrainer):
        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            note(self.epoch, batch["im_file"])
            return super().preprocess_batch(batch)

    last = place / "run/weights/last.pt"
    if last.exists():
        YOLO(last).train(trainer=Noting, resume=True)
    else:
        YOLO(settings.pop("model")).train(trainer=Noting, project=str(place), name="run", **settings)


def train_kit(place: Path, settings: dict[str, Any], note: Callable[[int, list[str]], None]) -> None:
    """Train with the kit; a resume is the same call."""
    from kit.yolo import train

    class Noting(train.TRAINERS["detect"]):  # type: ignore[misc]
        def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
            note(self.epoch, batch["im_file"])
            return super().preprocess_batch(batch)  # type: ignore[no-any-return]

    train.TRAINERS["detect"] = Noting
    empty = place / "empty.yaml"
    empty.write_text("{}")
    train.train(load(empty, settings), "auto", lambda: "")


def child(place: Path, name: str, settings: dict[str, Any], kill_at: int) -> None:
    """Train in this process, which kills itself with so many batches trained; 0: never."""
    for variable in ("WORKING", "SCRATCH"):
        os.environ[f"KIT_{variable}"] = str(place / variable.lower())
    environment.prepare()
    from kit.yolo.train import quiet

    quiet()
    trained = 0
    with (place / "order.jsonl").open("a") as order:

        def note(epoch: int, files: list[str]) -> None:
            nonlocal trained
            if kill_at and trained == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            trained += 1
            print(json.dumps([epoch, [Path(file).name for file in files]]), file=order, flush=True)

        {"stock": train_stock, "kit": train_kit}[name](place, settings, note)


def weights(place: Path, name: str) -> dict[str, Any]:
    """Return the averaged model at the end of a run."""
    import torch

    path = place / {"stock": "run/weights/last.pt", "kit": "working/runs/train/checkpoints/latest.pt"}[name]
    state = torch.load(path, weights_only=name == "kit")
    return state["ema_state_dict"] if name == "kit" else state["model"].state_dict()


def order(place: Path) -> list[tuple[int, list[str]]]:
    """Return the batches that a run trained, in all its processes: the epoch and the files of each."""
    return [tuple(json.loads(line)) for line in (place / "order.jsonl").read_text().splitlines()]


def main() -> None:
    """Print a table, stock beside the kit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="yolov8n.yaml")
    parser.add_argument("--images", type=int, default=480)
    parser.add_argument("--imgsz", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        place, name, settings, kill_at = options.child
        child(Path(place), name, json.loads(settings), int(kill_at))
        return
    batches = options.images // BATCH
    kill_at = (options.epochs - 2) * batches + batches * 4 // 5  # in the last epoch but one
    with tempfile.TemporaryDirectory() as folder:
        from training import describe

        settings = {
            "model": options.model,
            "data": str(describe(Path(folder), options.images, 640, 480)),
            "batch": BATCH,
        }
        settings |= {"epochs": options.epochs, "imgsz": options.imgsz, "workers": 0, "plots": False, "verbose": False}
        print(f"{batches} batches an epoch, {options.epochs} epochs, killed after batch {kill_at}")
        print("| | `yolo train resume=True` | the kit |\n|---|---|---|")
        rows: dict[str, list[str]] = {}
        for name in ("stock", "kit"):
            for row, text in compare(Path(folder) / name, name, settings, kill_at).items():
                rows.setdefault(row, []).append(text)
        for row, texts in rows.items():
            print(f"| {row} | {' | '.join(texts)} |")


def compare(place: Path, name: str, settings: dict[str, Any], kill_at: int) -> dict[str, str]:
    """Train untouched twice, and once with a kill; return the rows of the table."""

    def run(which: str, kill_at: int = 0) -> None:
        (place / which).mkdir(parents=True, exist_ok=True)
        words = [str(place / which), name, json.dumps(settings), str(kill_at)]
        done = subprocess.run([sys.executable, __file__, "--child", *words], capture_output=True, text=True)
        assert done.returncode == (-signal.SIGKILL if kill_at else 0), done.stdout[-2000:] + done.stderr[-2000:]

    for which in ("untouched", "again", "killed"):
        run(which, kill_at * (which == "killed"))
    before = order(place / "killed")
    run("killed")
    resumed = order(place / "killed")[len(before) :]
    again = [batch for batch in resumed if any(batch[1] == old[1] and batch[0] != old[0] for old in before)]
    end, untouched, twin = (weights(place / which, name) for which in ("killed", "untouched", "again"))
    import torch

    def differing(one: dict[str, Any], other: dict[str, Any]) -> str:
        return f"{sum(not torch.equal(one[key], other[key]) for key in one)} of {len(one)}"

    return {
        "batches trained a second time": str(len(before) + len(resumed) - len(order(place / "untouched"))),
        "batches after the resume that repeat one of an earlier epoch": f"{len(again)} of {len(resumed)}",
        "tensors that differ from an untouched run's at the end": differing(end, untouched),
        "tensors that differ between two untouched runs": differing(twin, untouched),
    }


if __name__ == "__main__":
    main()
