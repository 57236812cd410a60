"""The kit on a GPU beside stock Ultralytics: `make gpu`, or on a CPU, at its smallest, with `--device cpu --quick`.

In one process and by turns: images per second of whole trainings and their peak memory; what the kit's training waits
for; what a save holds training for, beside a copy of the same bytes into pinned memory; what saves cost training, from
windows with and without. Each line is printed and kept in the JSON file as soon as it is measured, what is worth most
first.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from kit.yolo import environment

SAVES = 10  # that are timed
APART_S = 2.0  # seconds between two saves, in the windows that have some; the cost is told for one in 30 s


class Bench:
    """What is measured, on one device.

    Args:
        options: Of the command line.
        place: A folder.
    """

    def __init__(self, options: argparse.Namespace, place: Path) -> None:
        import training

        self.place, self.out, self.quick = place, options.out, options.quick
        size, images, width, height = (64, 32, 96, 96) if self.quick else (640, 256, 640, 480)
        self.batches, self.epochs = (2, 1) if self.quick else (32, 3)  # that are waited for, and that are measured
        data = training.describe(place / "data", images, width, height)
        files = [f"{place}/data/images/{number % images:04d}.jpg" for number in range(200 * images)]
        (place / "many.txt").write_text("\n".join(files))  # no epoch ends while the clock counts
        data.write_text(f"train: {place}/many.txt\nval: images\nnames: [a, b, c]\n")
        self.settings = {"data": str(data), "imgsz": size, "batch": 16, "workers": options.workers, "plots": False}
        self.settings |= {"val": False, "device": options.device, "amp": options.device != "cpu"}
        self.gpu, self.runs = options.device != "cpu", 0
        self.found: dict[str, Any] = {}

    def tell(self, name: str, text: str, **figures: Any) -> None:
        """Print a line, and keep its figures."""
        print(f"{name}: {text}", flush=True)
        self.found[name] = figures
        self.out.write_text(json.dumps(self.found, indent=2) + "\n")

    def own(self) -> dict[str, Any]:
        """Return settings for a run with a folder of its own."""
        self.runs += 1
        return {"kit.run": f"runs/{self.runs}", "project": str(self.place), "name": f"stock{self.runs}"}

    def rates(self, model: str) -> None:
        """Images per second and peak memory of whole trainings, by turns."""
        import torch
        import training

        rates: dict[str, list[float]] = {"kit": [], "stock": []}
        memory = {"kit": 0.0, "stock": 0.0}
        for name in ("kit", "stock", "stock", "kit")[: 2 if self.quick else 4]:
            values = {**self.settings, "model": f"{model}.yaml"} | self.own()
            for word in ("project", "name") if name == "kit" else ("kit.run",):
                del values[word]
            if self.gpu:
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            train = training.kit_train if name == "kit" else training.stock_train
            rates[name].append(16 * training.rate(train, values, self.batches, self.epochs + 1))
            memory[name] = torch.cuda.max_memory_allocated() / 2**20 if self.gpu else 0.0
        kit, stock = (statistics.mean(rates[name]) for name in ("kit", "stock"))
        text = f"{kit:.0f} images/s, stock {stock:.0f} ({kit / stock:.2f}); peak {memory['kit']:.0f} MiB, stock "
        self.tell(f"{model} whole training", f"{text}{memory['stock']:.0f}", rates=rates, peak_mib=memory)

    def train(self, model: str, stop: Callable[[], str], kind: Callable[[type], type] = lambda own: own) -> None:
        """Train with the kit until `stop` has had enough, with a trainer made from the kit's own."""
        import training

        from kit.errors import Stopped
        from kit.yolo import train

        own = train.TRAINERS["detect"]
        train.TRAINERS["detect"] = kind(own)
        values = {**self.settings, "model": f"{model}.yaml", "epochs": 1000, "kit.max_cost_percent": 1e9}
        try:
            training.kit_train({**values, "kit.run": self.own()["kit.run"]}, stop)
        except Stopped:
            pass
        finally:
            train.TRAINERS["detect"] = own

    def waits(self, model: str) -> None:
        """What a step is spent on: waiting for the loader, the process's own work, waiting for the card."""
        import torch

        times: list[tuple[float, float, float]] = []
        here = {"end": 0.0, "begun": 0.0}

        def stop() -> str:
            now = time.perf_counter()
            if self.gpu:
                torch.cuda.synchronize()
            end = time.perf_counter()
            if here["end"]:
                times.append((here["begun"] - here["end"], now - here["begun"], end - now))
            here["end"] = end
            return "measured" if len(times) >= self.batches * (self.epochs + 1) else ""

        def timed(own: type) -> type:
            def preprocess_batch(trainer: Any, batch: dict[str, Any]) -> dict[str, Any]:
                here["begun"] = time.perf_counter()
                return own.preprocess_batch(trainer, batch)  # type: ignore[attr-defined, no-any-return]

            return type("Timed", (own,), {"preprocess_batch": preprocess_batch})

        self.train(model, stop, timed)
        loader, process, card = (sum(column) for column in zip(*times[self.batches :], strict=True))
        total = (loader + process + card) / 100
        text = f"{loader / total:.0f} % waits for the loader, {process / total:.0f} % is the process's own"
        text += f", {card / total:.0f} % waits for the card"
        self.tell(f"{model} a step", text, loader=loader / total, process=process / total, card=card / total)

    def stall(self, model: str) -> None:
        """What a save holds training for, and its CPU time in the background, beside a copy of the same bytes."""
        found: list[Any] = []

        def watched(own: type) -> type:
            def _report(trainer: Any) -> None:
                own._report(trainer)  # type: ignore[attr-defined]
                if not found:
                    found.extend(self._saves(trainer))

            return type("Watched", (own,), {"_report": _report})

        calls = iter(range(1, 1000))
        self.train(model, lambda: "measured" if next(calls) > 3 or found else "", watched)
        held, cpu, copy, size = found
        text = f"holds training {held:.1f} ms and takes {cpu:.0f} ms of CPU time besides; "
        text += f"{size / 1e6:.0f} MB into pinned memory take {copy:.1f} ms"
        self.tell(f"{model} a save", text, held_ms=held, cpu_ms=cpu, copy_ms=copy, bytes=size)

    def _saves(self, trainer: Any) -> tuple[float, float, float, int]:
        import torch

        writer, held = trainer.run.writer, []
        trainer._save(trainer.epoch, trainer.batch)
        writer.wait()
        cpu = writer.cpu_s
        for _ in range(SAVES):
            before = writer.held_s
            trainer._save(trainer.epoch, trainer.batch)
            held.append(writer.held_s - before)
            writer.wait()
        size = (writer.folder / "latest.pt").stat().st_size
        source = torch.empty(size, dtype=torch.uint8, device=trainer.device)
        target = torch.empty(size, dtype=torch.uint8, pin_memory=self.gpu)
        copies = []
        for _ in range(SAVES + 1):
            began = time.perf_counter()
            target.copy_(source, non_blocking=True)
            if self.gpu:
                torch.cuda.synchronize()
            copies.append(time.perf_counter() - began)
        cost = (writer.cpu_s - cpu) / SAVES
        return statistics.median(held) * 1000, cost * 1000, statistics.median(copies[1:]) * 1000, size

    def cost(self, model: str) -> None:
        """What saves take out of training: windows with one every two seconds, and without, by turns."""
        from cost import Windows

        windows = Windows(1 if self.quick else 8, 1 if self.quick else 4, apart=0.5 if self.quick else APART_S)
        windows.watch()
        self.train(model, windows)
        ratios, costs = windows.result()
        scale = windows.apart / 30
        lost, measured = 100 * (statistics.median(ratios) - 1) * scale, statistics.mean(costs) * scale
        text = f"{lost:.2f} % of training by the clock, {measured:.2f} % by the kit's own measure"
        self.tell(f"{model} saves 30 s apart", text, percent=lost, measured=measured, ratios=ratios)

    def first_batch(self) -> None:
        """The first batch of a resume late in an epoch, over a fresh start's."""
        import training

        count = 20 if self.quick else 1000
        many = {"data": str(training.describe(self.place / "many", count, 96, 96)), **training.MODEL, "epochs": 2}
        many |= {"device": self.settings["device"], "batch": 1, "imgsz": 64}
        training.first_batch({**many, "kit.run": "runs/late"}, batches=count * 9 // 10)
        fresh = training.first_batch({**many, "kit.run": "runs/fresh"})
        late = training.first_batch({**many, "kit.run": "runs/late"})
        text = f"{late:.1f} s, a fresh start's {fresh:.1f} ({late / fresh:.2f})"
        self.tell(f"first batch of a resume at {count * 9 // 10} of {count}", text, resume_s=late, fresh_s=fresh)


def main() -> None:
    """Print a line for each, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="0")
    parser.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1))
    parser.add_argument("--quick", action="store_true", help="whether it runs, not how fast")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("gpu.json"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in ("WORKING", "SCRATCH"):
            os.environ[f"KIT_{name}"] = str(Path(folder) / name.lower())
        environment.prepare()
        import torch

        if options.device != "cpu" and not torch.cuda.is_available():
            print("There is no GPU here: nothing was measured.")
            return
        bench = Bench(options, Path(folder))
        gpu = torch.cuda.get_device_name() if bench.gpu else "none"
        bench.tell("machine", f"{gpu}, {os.cpu_count()} cores, torch {torch.__version__}", gpu=gpu)
        small, large = ("yolo11n", "yolo11n") if options.quick else ("yolo11n", "yolo11m")
        for part, model in (
            (bench.rates, small),
            (bench.rates, large),
            (bench.stall, large),
            (bench.cost, large),
            (bench.waits, small),
            (bench.waits, large),
            (bench.cost, small),
        )[:: 2 if options.quick else 1]:
            part(model)
        bench.first_batch()


if __name__ == "__main__":
    main()
