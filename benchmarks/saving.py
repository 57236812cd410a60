"""What saving a checkpoint costs and whether it can be trusted, the kit's way beside others': `make bench`.

The state is a YOLO11's raw weights, EMA and momentum, all fp32, on the CPU. The schemes take turns, round by round and
in an order that rotates, so that a busy machine slows them all; `schemes.py` says how each is called. Measured:

- `stall`: how long the training thread is held, and the CPU time that the whole process spends on the save, the
  background included. Between saves the thread computes, for twice as long as the background takes.
- `total`: a training of steps that compute and write to the parameters, with a save every few seconds, over the same
  training without saves. The interval is far shorter than in real training, alike for all.
  Each operator runs on one thread, as the threads of one wait for each other and on a shared machine that is all they
  do. So the background finds a core free; `taskset -c 0` shows what happens where it finds none.
- `load`: from files that are in the page cache to tensors in memory.
- `flips`: of single bits flipped in the tensors' bytes, how many the scheme's own reading notices.
- `kills`: a process that saves back to back is killed at a random time; how often no whole state can be read back.

Not covered: a GPU, a slow or remote disk, several processes, the kernel's own threads, and a power cut, which only
fsync survives.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import trust
from trust import SMALL

if TYPE_CHECKING:
    from schemes import Scheme, Training

SAVES, STEP_S = 3, 0.05


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a Markdown table."""
    print(f"\n{title}\n\n| scheme | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
    for row in rows:
        cells = (f"{x:.{1 if x < 100 else 0}f}" if isinstance(x, float) else str(x) for x in row)
        print(f"| {' | '.join(cells)} |", flush=True)


def in_turns(rounds: int, names: Sequence[str], measure: Callable[[str], Any]) -> dict[str, list[Any]]:
    """Measure each of `names` once a round, beginning with another one in each."""
    results: dict[str, list[Any]] = {name: [] for name in names}
    for number in range(rounds):
        start = number * len(names) // rounds
        for name in (*names[start:], *names[:start]):
            gc.collect()
            results[name].append(measure(name))
    return results


def ratios(values: Sequence[float], base: Sequence[float]) -> list[float]:
    """Return each value over the base of the same round."""
    return [value / other for value, other in zip(values, base, strict=True)]


def settle(folder: Path) -> None:
    """Wait for the disk, so that no scheme pays for the bytes of another."""
    for path in folder.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())


def compute(seconds: float) -> float:
    """Keep this thread, and no other, at matrix products; returns the CPU seconds that they took."""
    threads, began, until = torch.get_num_threads(), time.thread_time(), time.perf_counter() + seconds
    matrix = torch.ones(256, 256)
    torch.set_num_threads(1)
    while time.perf_counter() < until:
        matrix @ matrix
    torch.set_num_threads(threads)
    return time.thread_time() - began


def warm_up(schemes: dict[str, Scheme]) -> dict[str, float]:
    """Save twice, as the first time makes files and buffers; returns the seconds that the background took."""
    background = {}
    for name, scheme in schemes.items():
        for _ in range(2):
            scheme.save()
            began = time.perf_counter()
            scheme.wait()
            background[name] = time.perf_counter() - began
        settle(scheme.folder)
    return background


def stall(schemes: dict[str, Scheme], background: dict[str, float], rounds: int, title: str) -> None:
    """Print how long training is held and what CPU time a save takes."""

    def measure(name: str) -> tuple[float, float]:
        scheme, cpu, began = schemes[name], time.process_time(), time.perf_counter()
        scheme.save()
        held = time.perf_counter() - began
        own = compute(max(0.2, 2 * background[name]))
        scheme.wait()
        cpu = time.process_time() - cpu - own
        settle(scheme.folder)
        return 1000 * held, 1000 * cpu

    results = {
        name: tuple(zip(*pairs, strict=True)) for name, pairs in in_turns(rounds, list(schemes), measure).items()
    }
    base = next(iter(results.values()))[0]
    table(
        f"Stall per save, {title}, {rounds} rounds",
        ("median ms", "minimum ms", "× memcpy", "CPU ms, median", "CPU ms, minimum", "background ms"),
        (
            (
                name,
                statistics.median(held),
                min(held),
                statistics.median(ratios(held, base)),
                statistics.median(cpu),
                min(cpu),
                1000 * background[name],
            )
            for name, (held, cpu) in results.items()
        ),
    )


def total(schemes: dict[str, Scheme], training: Training, rounds: int, interval: float, title: str) -> None:
    """Print how much longer a training with saves takes than the same without."""
    matrix, out = torch.ones(512, 512), torch.empty(512, 512)

    def step(products: int) -> float:
        began = time.perf_counter()
        for _ in range(products):
            torch.mm(matrix, matrix, out=out)
        training.step()
        return time.perf_counter() - began

    empty, hundred = (min(step(products) for _ in range(9)) for products in (0, 100))
    products = max(1, round(100 * (STEP_S - empty) / (hundred - empty)))
    every = round(interval / STEP_S)

    def measure(name: str) -> float:
        scheme, began = schemes.get(name), time.perf_counter()
        for number in range(SAVES * every):
            if scheme is not None and number % every == every // 2:
                scheme.save()
            step(products)
        if scheme is None:
            return time.perf_counter() - began
        scheme.wait()
        passed = time.perf_counter() - began
        settle(scheme.folder)
        return passed

    results = in_turns(rounds, ["no saves", *schemes], measure)
    base = results["no saves"]
    table(
        f"Training of {SAVES * every} steps with {SAVES} saves, one every {interval:g} s, {title}, {rounds} rounds",
        ("median s", "× no saves, median", "lowest", "highest"),
        (
            (
                name,
                f"{statistics.median(values):.2f}",
                *(f"{pick(ratios(values, base)):.3f}" for pick in (statistics.median, min, max)),
            )
            for name, values in results.items()
        ),
    )


def load(schemes: dict[str, Scheme], rounds: int, title: str) -> None:
    """Print how long reading back takes."""

    def measure(name: str) -> float:
        began = time.perf_counter()
        schemes[name].read(next(schemes[name].candidates()))
        return 1000 * (time.perf_counter() - began)

    names = [name for name, scheme in schemes.items() if scheme.on_disk and not scheme.variant]
    results = in_turns(rounds, names, measure)
    table(
        f"Loading, {title}, {rounds} rounds",
        ("median ms", "minimum ms", "× torch.save's", "file MB"),
        (
            (
                name,
                statistics.median(values),
                min(values),
                statistics.median(ratios(values, results[names[0]])),
                schemes[name].data_file().stat().st_size / 1e6,
            )
            for name, values in results.items()
        ),
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="n,m,x", help="sizes of YOLO11; 'total' takes the middle one")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between the saves of 'total'")
    parser.add_argument("--threads", type=int, default=1, help="that torch uses for one operator")
    parser.add_argument("--only", default="stall,total,load,flips,kills")
    parser.add_argument("--quick", action="store_true", help="a trial of a minute")
    options = parser.parse_args()
    if options.quick:
        options.models, options.rounds, options.interval = SMALL, 1, 0.5
    tries = 1 if options.quick else 20
    only, models = options.only.split(","), options.models.split(",")
    with tempfile.TemporaryDirectory() as scratch:
        tempfile.tempdir = os.environ["TMPDIR"] = os.environ["KIT_SCRATCH"] = scratch  # all on one file system
        trust.prepare()
        from schemes import SCHEMES, Training

        torch.set_num_threads(options.threads)
        print(f"torch {torch.__version__}, threads: {options.threads}, cores: {len(os.sched_getaffinity(0))}")
        for size in models if {"stall", "total", "load"} & set(only) else ():
            training = Training(size)
            schemes = {kind.name: kind(training, Path(scratch, size, kind.name)) for kind in SCHEMES}
            title = f"yolo11{size}, {sum(tensor.nbytes for tensor in training.tensors()) / 1e6:.0f} MB"
            background = warm_up(schemes)
            if "stall" in only:
                stall(schemes, background, options.rounds, title)
            if "total" in only and size == models[len(models) // 2]:
                total(schemes, training, options.rounds, options.interval, title)
            if "load" in only:
                load(schemes, options.rounds, title)
            for scheme in schemes.values():
                scheme.close()
        judged = [kind for kind in SCHEMES if kind.on_disk and not kind.variant]
        columns: dict[str, list[str]] = {}
        if "flips" in only:
            training = Training(SMALL)
            columns["flipped bits noticed"] = [
                trust.noticed(kind(training, Path(scratch, "flips", kind.name)), tries) for kind in judged
            ]
        if "kills" in only:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                runs = [
                    process.submit(trust.killed, kind.name, tries, Path(scratch, "kills", kind.name)) for kind in judged
                ]
                columns["kills that left nothing whole"] = [run.result() for run in runs]
        if columns:
            names = [kind.name for kind in judged]
            table(f"Trust, yolo11{SMALL}", list(columns), zip(names, *columns.values(), strict=True))


if __name__ == "__main__":
    main()
