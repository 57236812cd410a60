"""What protection costs: the kit's own measure of it, and training with saves over training without, in pairs.

One training run per model; windows with a bound of 30 seconds on lost work take turns with windows without saves, and
the batches of each are counted. The measure is (time that training was held + CPU time of the writing thread) over
the time of the windows with saves. The epoch is longer than the measurement: a validation is no cost of protection.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from kit.yolo import environment

SETTINGS = {"imgsz": 160, "batch": 4, "workers": 0, "val": False, "plots": False, "nbs": 4, "epochs": 2}
NEVER = 1e12


class Windows:
    """Switches saving on and off, from within the training: it is what the trainer asks whether to stop.

    Args:
        seconds: Length of a window.
        pairs: How many pairs to measure.
        apart: Seconds between two saves.

    Attributes:
        writers: The last one is the run's.
    """

    def __init__(self, seconds: float, pairs: int, apart: float = 30.0) -> None:
        self.seconds, self.pairs, self.apart = seconds, pairs, apart
        self.writers: list[Any] = []
        self.rates: list[float] = []
        self.costs: list[float] = []
        self._began, self._batches, self._cost = 0.0, -10, 0.0  # ten batches to warm up

    def watch(self) -> None:
        """Get hold of the writer of the next run."""
        from kit.run import run
        from kit.store.writer import Writer

        def watched(*args: Any, **kwargs: Any) -> Writer:
            self.writers.append(Writer(*args, **kwargs))
            return self.writers[-1]

        run.Writer = watched

    def __call__(self) -> str:
        """Count a batch, and change windows."""
        self._batches += 1
        now = time.perf_counter()
        if self._batches <= 0:
            self._turn(now)
        elif now - self._began >= self.seconds:
            self.rates.append(self._batches / (now - self._began))
            self.costs.append((self._spent() - self._cost) / (now - self._began))
            self._turn(now)
        return "measured" if len(self.rates) == 2 * self.pairs else ""

    def _turn(self, now: float) -> None:
        saving = len(self.rates) % 4 in (0, 3)  # with, without, without, with: a drift slows both
        self.writers[-1].max_lost_s = self.apart if saving else NEVER
        self._began, self._batches, self._cost = now, min(self._batches, 0), self._spent()

    def _spent(self) -> float:
        return float(self.writers[-1].held_s + self.writers[-1].cpu_s)

    def result(self) -> tuple[list[float], list[float]]:
        """Return the ratio of the times with and without saves, pair by pair, and the measured costs in percent."""
        pairs = [self.rates[n : n + 2][:: -1 if n % 4 else 1] for n in range(0, len(self.rates), 2)]
        costs = [100 * cost for n, cost in enumerate(self.costs) if n % 4 in (0, 3)]
        return [without / saving for saving, without in pairs], costs


def main() -> None:
    """Print a line per model."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="yolov8n,yolo11m")
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("WORKING", "SCRATCH"):
            os.environ[f"KIT_{name}"] = str(Path(folder) / name.lower())
        environment.prepare()
        from training import describe, kit_train

        from kit.errors import Stopped

        data = str(describe(Path(folder) / "data", 64, 320, 240))
        images = [f"{folder}/data/images/{number % 64:04d}.jpg" for number in range(20_000)]
        (Path(folder) / "many.txt").write_text("\n".join(images))
        Path(data).write_text(f"train: {folder}/many.txt\nval: images\nnames: [a, b, c]\n")
        for model in options.models.split(","):
            windows = Windows(options.seconds, options.pairs)
            windows.watch()
            try:
                kit_train({"data": data, "model": f"{model}.yaml", "kit.run": f"runs/{model}", **SETTINGS}, windows)
            except Stopped:
                ratios, costs = windows.result()
                print(
                    f"{model}: cost {statistics.mean(costs):.2f} %; time with saves over without: median "
                    f"{statistics.median(ratios):.4f} of {' '.join(f'{ratio:.4f}' for ratio in ratios)}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
