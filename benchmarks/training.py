"""Training as a whole, the kit over Ultralytics, and the first batch of a resume over that of a fresh start.

Both are measured in one process and take turns, so that a busy machine slows both. The loops train the same small
model on the same drawn photographs with two loader workers; the clock runs from the first batch of the second epoch
to the last one. The resume goes to batch 900 of 1000.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from kit.kaggle import session
from kit.yolo import environment
from kit.yolo.settings import load

MODEL = {"model": "yolo11n.yaml", "imgsz": 160, "batch": 8, "workers": 2, "val": False, "plots": False, "nbs": 8}


class Enough(BaseException):
    """Ends a training from within; nothing more is saved."""


def describe(folder: Path, count: int, width: int, height: int) -> Path:
    """Draw a data set and return its description."""
    from loader import draw

    draw(folder, count, width, height)
    description = folder / "data.yaml"
    description.write_text("train: images\nval: images\nnames: [a, b, c]\n")
    return description


def kit_train(settings: dict[str, Any], stop: Callable[[], str]) -> None:
    """Train with the kit, in this process."""
    from kit.yolo import train as trainer

    empty = session.scratch() / "empty.yaml"
    empty.write_text("{}")
    trainer.train(load(empty, settings), "auto", stop)


def stock_train(settings: dict[str, Any], stop: Callable[[], str]) -> None:
    """Train with Ultralytics as it is, but for the workers that it would refuse on a CPU."""
    from ultralytics.models.yolo.detect import DetectionTrainer

    from kit.yolo.train import quiet

    quiet()
    trainer = DetectionTrainer(overrides=settings)
    trainer.args.workers = settings["workers"]
    trainer.add_callback("on_train_batch_end", lambda _: stop())
    trainer.train()


def rate(train: Callable[..., None], settings: dict[str, Any], batches: int, epochs: int) -> float:
    """Return the batches per second after the first epoch."""
    times: list[float] = []

    def stop() -> str:
        times.append(time.perf_counter())
        if len(times) == batches * epochs:
            raise Enough
        return ""

    try:
        train({**settings, "epochs": epochs + 1}, stop)
    except Enough:
        return (len(times) - batches - 1) / (times[-1] - times[batches])
    raise AssertionError("training ended before its time")


def first_batch(settings: dict[str, Any], batches: int = 1) -> float:
    """Start a process that trains so many batches and saves, as the notebook does; return the seconds to the first."""
    code = f"import training; training.train_some({settings!r}, {batches!r})"
    began = time.time()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent)
    return float(done.stdout.rpartition("first batch at ")[2].split()[0]) - began


def train_some(settings: dict[str, Any], batches: int) -> None:
    """Train so many batches, tell when the first was done, and stop with a checkpoint."""
    from kit.errors import Stopped

    environment.prepare()
    times: list[float] = []

    def stop() -> str:
        times.append(time.time())
        return "" if len(times) < batches else "enough"

    with contextlib.suppress(Stopped):
        kit_train(settings, stop)
    print(f"first batch at {times[0]} ")


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batches", type=int, default=1000, help="of the epoch that is resumed at nine tenths")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for name in ("WORKING", "SCRATCH"):
            os.environ[f"KIT_{name}"] = str(place / name.lower())
        environment.prepare()
        photographs = {"data": str(describe(place / "photographs", 96, 1280, 720)), **MODEL}
        ratios = []
        for repeat in range(options.repeats):
            turns = [("kit", kit_train, {"kit.run": f"runs/{repeat}"})]
            turns.append(("stock", stock_train, {"project": folder, "name": f"stock{repeat}"}))  # type: ignore[arg-type]
            rates = {}
            for name, train, where in turns[:: 1 if repeat % 2 else -1]:
                rates[name] = rate(train, {**photographs, **where}, 96 // MODEL["batch"], options.epochs)
            ratios.append(rates["kit"] / rates["stock"])
        print(f"training, batches/s, kit over stock: {_median(ratios)}")

        many = {"data": str(describe(place / "many", options.batches, 96, 96)), **MODEL, "batch": 1, "imgsz": 64}
        many["epochs"] = 2
        first_batch({**many, "kit.run": "runs/late"}, batches=options.batches * 9 // 10)
        ratios = []
        for repeat in range(options.repeats):
            fresh = first_batch({**many, "kit.run": f"runs/fresh{repeat}"})
            ratios.append(first_batch({**many, "kit.run": "runs/late"}) / fresh)
        print(f"first batch, resume at nine tenths over a fresh start: {_median(ratios)}")


def _median(ratios: list[float]) -> str:
    return f"median {statistics.median(ratios):.2f} of {' '.join(f'{ratio:.2f}' for ratio in ratios)}"


if __name__ == "__main__":
    main()
