"""Steps per second of several gloo processes, the kit over plain DistributedDataParallel, and what the kit adds.

Both train the same model on the same slices of the same batches, one thread per process, and take turns. The plain one
is Ultralytics' own loop with its model wrapped as Ultralytics wraps it; no checkpoint is written in either. Then, in
the kit's loop: one agreement (an all-reduce of one byte per flag and parameter), and what a save holds training for.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from kit import session

SETTINGS = {"model": "yolo11n.yaml", "imgsz": 160, "batch": 16, "workers": 0, "val": False, "plots": False}
WARM, SAVES, ROUNDS = 5, 10, 200  # steps before the clock starts; saves and agreements that are timed


def measure(kind: str, processes: int, place: Path, settings: list[str]) -> list[float]:
    """Train in so many processes and return the numbers that the first one prints."""
    words = [str(Path(__file__)), "--child", kind, *settings]
    torchrun = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--local-addr=127.0.0.1",
        f"--nproc-per-node={processes}",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "KIT_WORKING": str(place / kind / str(time.time_ns()))}
    command = [sys.executable, *(torchrun if processes > 1 else []), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("measured ")]
    if not lines:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    return [float(word) for word in lines[0].split()[1:]]


def child(kind: str, settings: list[str]) -> None:
    """Train for so many steps and print the rate; then what an agreement and a save take, in milliseconds."""
    world = session.world()
    session.prepare_environment()
    from kit import config, trainer

    steps = int(settings.pop())
    empty = session.scratch() / f"empty-{world.rank}.yaml"
    empty.write_text("{}")
    loaded = config.load(empty, settings)
    times: list[float] = []

    if kind == "plain":
        plain(loaded, world, times, steps)
        return

    from kit.trainer.loop import Resumable

    own = Resumable._report

    def report(self: Any) -> None:
        own(self)
        times.append(time.perf_counter())
        if len(times) == WARM + steps:
            finish(times, [agreement(self), *saves(self)], world.rank)

    Resumable._report = report  # type: ignore[method-assign]
    trainer.train(loaded, "never", world=world)


def agreement(trainer: Any) -> float:
    """Return the milliseconds that one agreement takes, of processes that do nothing else."""
    if trainer.run.ranks.size == 1:
        return 0.0
    flags = [True] * (2 + len(trainer.gradients.take()))
    began = time.perf_counter()
    for _ in range(ROUNDS):
        trainer.run.ranks.agree(*flags)
    return (time.perf_counter() - began) / ROUNDS * 1000


def saves(trainer: Any) -> list[float]:
    """Return the milliseconds that a save holds training, and those of CPU time that it takes besides."""
    if not trainer.run.ranks.leads:
        return []
    writer = trainer.run.writer
    held, cpu = writer.held_s, writer.cpu_s
    for _ in range(SAVES):
        trainer._save(trainer.epoch, trainer.batch)
        writer.wait()
    return [(writer.held_s - held) / SAVES * 1000, (writer.cpu_s - cpu) / SAVES * 1000]


def plain(loaded: Any, world: session.World, times: list[float], steps: int) -> None:
    """Train as Ultralytics does on several GPUs, but for the device."""
    import torch.distributed as dist
    from torch.nn.parallel import DistributedDataParallel
    from ultralytics.models.yolo.detect import DetectionTrainer

    from kit import data
    from kit.status import Status
    from kit.trainer import quiet
    from kit.trainer.resume import identify
    from kit.trainer.run import Run
    from kit.trainer.setup import Setup

    class Plain(Setup, DetectionTrainer):  # type: ignore[misc]
        def _build_train_pipeline(self) -> None:
            if world.size > 1:
                self.model = DistributedDataParallel(self.model, find_unused_parameters=True, broadcast_buffers=False)
            super()._build_train_pipeline()

        def get_dataloader(self, *args: Any, **kwargs: Any) -> Any:
            loader = super().get_dataloader(*args, **kwargs)
            if kwargs["mode"] == "train":
                collate, order = loader.collate_fn, loader.batch_sampler
                order.own, order.ranks = range(world.rank, world.rank + 1), world.size
                loader.collate_fn = lambda slices: collate(slices[0])
            return loader

    if world.size > 1:
        dist.init_process_group("gloo", rank=world.rank, world_size=world.size)
    quiet()
    folder = Path(tempfile.mkdtemp(dir=session.scratch()))
    dataset = data.resolve(str(loaded.get("data")))
    identity = identify(loaded, dataset)
    overrides = {**loaded.train, "data": str(dataset.path), "save_dir": str(folder), "save": False}
    kind = type("Plain", (Plain,), {"run": Run(loaded, folder, identity, Status(folder), lambda: "", None)})
    trainer = kind(overrides=overrides)

    def count(_: Any) -> None:
        times.append(time.perf_counter())
        if len(times) == WARM + steps:
            finish(times, [], world.rank)

    trainer.add_callback("on_train_batch_end", count)
    trainer.train()


def finish(times: list[float], others: list[float], rank: int) -> None:
    """Print the measures in the first process, and end."""
    if rank == 0:
        print("measured", (len(times) - WARM) / (times[-1] - times[WARM - 1]), *others, flush=True)
    os._exit(0)


def main() -> None:
    """Print a line per number of processes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        os.environ["KIT_SCRATCH"] = str(place / "scratch")
        from loader import draw

        from kit.config import to_words

        draw(place / "set", 160, 320, 240)
        many = [f"{place}/set/images/{number % 160:04d}.jpg" for number in range(16 * (options.steps + WARM + 5))]
        (place / "many.txt").write_text("\n".join(many))  # an epoch does not end, and nothing is saved, while it counts
        (place / "set/data.yaml").write_text(f"train: {place}/many.txt\nval: images\nnames: [a, b, c]\n")
        words = to_words({**SETTINGS, "data": str(place / "set/data.yaml"), "epochs": 1000})
        for processes in options.processes:
            ratios, found = [], []
            for repeat in range(options.repeats):
                rates = {}
                for kind in ("kit", "plain")[:: 1 if repeat % 2 else -1]:
                    rates[kind], *others = measure(kind, processes, place, [*words, str(options.steps)])
                    found += [others] if others else []
                ratios.append(rates["kit"] / rates["plain"])
            agreed, held, cpu = (statistics.median(column) for column in zip(*found, strict=True))
            print(
                f"{processes} processes: steps/s, kit over plain {statistics.median(ratios):.3f} of "
                f"{' '.join(f'{ratio:.3f}' for ratio in ratios)} (last: {rates['kit']:.2f}); an agreement "
                f"{agreed:.2f} ms; a save holds training {held:.1f} ms and takes {cpu:.0f} ms of CPU time besides",
                flush=True,
            )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], sys.argv[3:])
    else:
        main()
