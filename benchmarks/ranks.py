"""Steps per second of several gloo processes, the kit over plain DistributedDataParallel, and what the kit adds.

Both train the same model on the same slices of the same batches in the same processes, one thread each, and take
turns of a few steps, so that whatever the machine does meanwhile happens to both. The plain one is Ultralytics' own
loop with its model wrapped as Ultralytics wraps it (and averaged weights in every process, as there); no checkpoint is
written in either. Then, in the kit: the way there and back of one agreement (an all-reduce of one byte per flag and
parameter, which travels with the gradients), and what a save holds training for.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from kit.kaggle import session
from kit.parallel.world import World
from kit.yolo import environment
from kit.yolo.settings import load

SETTINGS = {"model": "yolo11n.yaml", "imgsz": 160, "batch": 16, "workers": 0, "val": False, "plots": False}
SETTINGS |= {"cache": "ram", "epochs": 1000}  # with the kit's cache one would find what the other has decoded
SETTINGS |= {"kit.max_lost_s": 1e9}  # nothing is saved while the clock counts
STEPS, WARM = 4, 2  # steps of a turn, and turns before the clock counts
SAVES, ROUNDS = 10, 200  # saves and agreements that are timed


def measure(processes: int, place: Path, settings: list[str]) -> list[list[float]]:
    """Train in so many processes; return the first one's ratios, and its times of an agreement and a save."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    torchrun.append(f"--nproc-per-node={processes}")
    command = [sys.executable, *(torchrun if processes > 1 else []), __file__, "--child", *settings]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KIT_WORKING": str(place / f"working-{processes}")}
    environment["MALLOC_ARENA_MAX"] = "1"  # a heap for each thread would not be the same for both
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("measured ")]
    if not lines:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    return [[float(word) for word in line] for line in lines]


class Turns:
    """Two trainings in two threads, of which one runs at a time.

    Attributes:
        seconds: What the turns of each took, once warm.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {"kit": [], "plain": []}
        self._turn, self._steps, self._began = "kit", 0, 0.0
        self._change = threading.Condition()

    def wait(self, kind: str) -> None:
        """Wait for the turn of this training."""
        with self._change:
            self._change.wait_for(lambda: self._turn == kind)
        self._steps, self._began = 0, time.perf_counter()

    def step(self, kind: str) -> None:
        """Count a step of this training; after a few it is the other's turn."""
        self._steps += 1
        if self._steps == STEPS:
            self.seconds[kind].append(time.perf_counter() - self._began)
            with self._change:
                self._turn = "plain" if kind == "kit" else "kit"
                self._change.notify()
            self.wait(kind)


def child(settings: list[str]) -> None:
    """Train in turns; print the ratios, and what an agreement and a save take in milliseconds."""
    world = World.current()
    environment.prepare()
    from kit.yolo import train
    from kit.yolo.loop import Resumable

    turns, count = Turns(), WARM + int(settings.pop())
    empty = session.scratch() / f"empty-{world.rank}.yaml"
    empty.write_text("{}")
    loaded = load(empty, settings)
    own = Resumable._report

    def report(self: Any) -> None:
        own(self)
        turns.step("kit")
        if len(turns.seconds["plain"]) == count:
            finish(turns, self)

    Resumable._report = report  # type: ignore[method-assign]

    def run(work: Any) -> None:
        try:
            work()
        finally:  # neither comes to its end
            traceback.print_exc()
            os._exit(1)

    kit = threading.Thread(target=run, args=[lambda: train.train(loaded, "never", world=world)])
    kit.start()
    threading.Thread(target=run, args=[lambda: plain(loaded, world, turns)]).start()
    kit.join()


def finish(turns: Turns, trainer: Any) -> None:
    """Print what was measured in the first process, and end."""
    others = [[number] for number in (agreement(trainer), *saves(trainer))]
    if trainer.run.ranks.is_main:
        pairs = zip(turns.seconds["plain"][WARM:], turns.seconds["kit"][WARM:], strict=True)
        for row in [[plain / kit for plain, kit in pairs], turns.seconds["kit"][WARM:], *others]:
            print("measured", *row, flush=True)
    os._exit(0)


def agreement(trainer: Any) -> float:
    """Return the milliseconds that one agreement takes, of processes that do nothing else."""
    if trainer.run.ranks.size == 1:
        return 0.0
    flags = [True] * (2 + len(trainer.gradients.read()))
    began = time.perf_counter()
    for _ in range(ROUNDS):
        trainer.run.ranks.any(*flags)
    return (time.perf_counter() - began) / ROUNDS * 1000


def saves(trainer: Any) -> list[float]:
    """Return the milliseconds that a save holds training, and those of CPU time that it takes besides."""
    if not trainer.run.ranks.is_main:
        return []
    writer = trainer.run.writer
    held, cpu = writer.held_s, writer.cpu_s
    for _ in range(SAVES):
        trainer._save(trainer.epoch, trainer.batch)
        writer.wait()
    return [(writer.held_s - held) / SAVES * 1000, (writer.cpu_s - cpu) / SAVES * 1000]


def plain(loaded: Any, world: World, turns: Turns) -> None:
    """Train as Ultralytics does on several GPUs, but for the device."""
    turns.wait("plain")
    from torch.nn.parallel import DistributedDataParallel
    from ultralytics.models.yolo.detect import DetectionTrainer

    from kit.run.run import Run
    from kit.run.status import Status
    from kit.store.folder import RunFolder
    from kit.yolo.identity import identify
    from kit.yolo.setup import Setup

    class Plain(Setup, DetectionTrainer):  # type: ignore[misc]
        def _build_train_pipeline(self) -> None:
            if world.size > 1:
                self.model = DistributedDataParallel(self.model, find_unused_parameters=True, broadcast_buffers=False)
            super()._build_train_pipeline()

        def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
            loader = super().get_dataloader(*args, **kwargs)
            if kwargs["mode"] == "train":
                collate, order = loader.collate_fn, loader.batch_sampler
                order.my_slices, order.slices = range(world.rank, world.rank + 1), world.size
                loader.collate_fn = lambda slices: collate(slices[0])
            return loader

    folder = Path(tempfile.mkdtemp(dir=session.scratch()))
    dataset, identity = identify(loaded)
    overrides = {**loaded.train, "data": str(dataset.path), "save_dir": str(folder), "save": False}
    kind = type("Plain", (Plain,), {"run": Run(loaded, folder, identity, Status(RunFolder(folder)), lambda: "", None)})
    trainer = kind(overrides=overrides)

    trainer.add_callback("on_train_batch_end", lambda _: turns.step("plain"))
    trainer.train()


def main() -> None:
    """Print a line per number of processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--launches", type=int, default=4)  # memory that lies well or badly is worth 3 % of a launch
    parser.add_argument("--turns", type=int, default=25)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["KIT_SCRATCH"] = str(place / "scratch")
        from loader import draw

        from kit.config import to_args

        draw(place / "set", 160, 320, 240)
        images = 16 * STEPS * (options.turns + WARM + 1)  # no epoch ends while the clock counts
        many = [f"{place}/set/images/{number % 160:04d}.jpg" for number in range(images)]
        (place / "many.txt").write_text("\n".join(many))
        (place / "set/data.yaml").write_text(f"train: {place}/many.txt\nval: images\nnames: [a, b, c]\n")
        words = to_args({**SETTINGS, "data": str(place / "set/data.yaml")})
        for processes in options.processes:
            found = [measure(processes, place, [*words, str(options.turns)]) for _ in range(options.launches)]
            ratios, seconds, agreed, held, cpu = ([n for row in rows for n in row] for rows in zip(*found, strict=True))
            first, middle, last = statistics.quantiles(ratios)
            print(
                f"{processes} processes: steps/s, kit over plain {middle:.3f} (quartiles {first:.3f} and {last:.3f} of "
                f"{len(ratios)} turns; kit {STEPS / statistics.mean(seconds):.2f} steps/s); an agreement "
                f"{statistics.median(agreed):.2f} ms; a save holds training {statistics.median(held):.1f} ms and takes "
                f"{statistics.median(cpu):.0f} ms of CPU time besides",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
