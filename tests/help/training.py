"""Small trainings for the tests: tiny models on a few drawn images, in this process or in one of their own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from kit.config import to_args
from kit.data import shapes
from kit.kaggle import session
from kit.yolo.settings import load

TINY = """
nc: 3
kpt_shape: [3, 3]
depth_multiple: 0.34
width_multiple: 0.125
backbone:
  - [-1, 1, Conv, [64, 3, 2]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 1, C2f, [128, True]]
  - [-1, 1, Conv, [128, 3, 2]]
  - [-1, 1, SPPF, [128, 5]]
head:
  - [{head}]
"""
HEADS = {
    "detect": "[2, 4], 1, Detect, [nc]",
    "segment": "[4], 1, Segment, [nc, 8, 32]",  # validation takes for granted that the finest level has stride 8
    "pose": "[2, 4], 1, Pose, [nc, [3, 3]]",
    "obb": "[2, 4], 1, OBB, [nc, 1]",
}
QUICK = {"imgsz": 64, "batch": 4, "epochs": 3, "workers": 0, "plots": False, "optimizer": "AdamW", "lr0": 0.01}


BATCHES = 3  # per epoch, of 12 images in batches of 4
STEPS = BATCHES + 2  # per epoch: each batch, the batch of validation, and its end


class Steps:
    """Counts the steps of a training in this process by Ultralytics' callbacks, which run before the kit's own."""

    events = ("on_train_batch_end", "on_val_batch_start", "on_val_end")
    done = 0

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Count from here on."""
        from ultralytics.utils.callbacks import default_callbacks

        def count(_: Any) -> None:
            self.done += 1

        self.done = 0
        for event in self.events:
            default_callbacks[event].append(count)
        try:
            yield
        finally:
            for event in self.events:
                default_callbacks[event].remove(count)


steps = Steps()


class Killed(BaseException):
    """What a SIGKILL looks like from within: nothing is saved, nothing is tidied up."""


def write_tiny(folder: Path, task: str = "detect", width: float = 0.125) -> Path:
    """Write a model description of about 100,000 parameters; one that is twice as wide has more."""
    path = folder / f"tiny-{task}.yaml"
    path.write_text(TINY.replace("{head}", HEADS[task]).replace("0.125", str(width)))
    return path


def describe(folder: Path, task: str, width: float = 0.125) -> Path | str:
    """Return a small model's description: a tiny one, or Ultralytics' smallest that sorts images."""
    return "yolov8n-cls.yaml" if task == "classify" else write_tiny(folder, task, width)


def settings(
    folder: Path, task: str = "detect", *, images: int = 12, start: Path | None = None, **changes: Any
) -> dict[str, Any]:
    """Return settings for a quick run on 12 (or `images`) + 4 drawn images below `folder`.

    It starts from a description, or from a copy of the pretrained file `start`.
    """
    data = shapes.make(folder / f"shapes-{task}", splits={"train": images, "val": 4}, size=64)
    model = shutil.copy(start, folder) if start else describe(folder, task)
    return {"model": str(model), "data": str(relabel(data, task)), **QUICK, **changes}


def relabel(data: Path, task: str) -> Path:
    """Turn the boxes of a drawn set into what another task learns from, and return what `data=` takes."""
    if task == "classify":
        return classified(data.parent)
    for file in data.parent.glob("labels/*/*.txt"):
        lines = []
        for line in file.read_text().splitlines():
            kind, x, y, w, h = line.split()
            left, right = float(x) - float(w) / 2, float(x) + float(w) / 2
            top, bottom = float(y) - float(h) / 2, float(y) + float(h) / 2
            corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
            if task in ("segment", "obb"):
                line = f"{kind} " + " ".join(f"{a:.6f} {b:.6f}" for a, b in corners)
            elif task == "pose":
                line += " " + " ".join(f"{a:.6f} {b:.6f} 2" for a, b in corners[:3])
            lines.append(line)
        file.write_text("\n".join(lines) + "\n")
    if task == "pose":
        data.write_text(data.read_text() + "kpt_shape: [3, 3]\nflip_idx: [1, 0, 2]\n")
    return data


def name_more(data: str, count: int) -> None:
    """Have the description of a drawn set name so many classes, of which the images show the first three."""
    values = yaml.safe_load(Path(data).read_text())
    values["names"] |= {number: f"class{number}" for number in range(len(values["names"]), count)}
    Path(data).write_text(yaml.safe_dump(values))


def classified(folder: Path) -> Path:
    """Sort the images into one folder per class, by the first shape in each."""
    for label in sorted(folder.glob("labels/*/*.txt")):
        split, kind = label.parent.name, label.read_text().split()[0]
        target = folder / "classified" / split / f"class{kind}"
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / "images" / split / f"{label.stem}.png", target)
    return folder / "classified"


def train(values: dict[str, Any], stop: Callable[[], str] = lambda: "", resume: str = "auto") -> dict[str, Any]:
    """Train in this process and return the checkpoint that it leaves."""
    from kit.yolo import train as trainer

    config = load(_no_file(), values)
    with steps.counted():
        trainer.train(config, resume, stop)
    return read(config.run_folder / "checkpoints" / "latest.pt")


def start(place: Path, values: dict[str, Any], *arguments: str, **environment: str) -> Child:
    """Start the training that `train` does, in a process of its own."""
    return Child(place, ["--config", str(_no_file()), *to_args(values), *arguments], **environment)


def _no_file() -> Path:
    """Return a config that sets nothing."""
    empty = session.scratch() / "empty.yaml"
    empty.write_text("{}")
    return empty


def read(path: Path) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def kill_at(step: int, there: Path = Path()) -> Callable[[], str]:
    """Return a `stop` that kills the training after its n-th step, or later: once that file is there."""

    def stop() -> str:
        if steps.done >= step and there.exists():
            raise Killed
        return ""

    return stop


def stop_at(step: int) -> Callable[[], str]:
    """Return a `stop` that asks for a stop after the n-th step."""
    return lambda: "the test says so" if steps.done >= step else ""


def acting(at: dict[int, Callable[[], object]], then: Callable[[], str] = lambda: "") -> Callable[[], str]:
    """Return a `stop` that does something once, after the n-th step."""
    left = dict(at)

    def stop() -> str:
        for step in sorted(step for step in left if step <= steps.done):
            left.pop(step)()
        return then()

    return stop


EXACT = ("model_state_dict", "ema_state_dict", "optimizer_state_dict", "gradients")


def differences(one: dict[str, Any], other: dict[str, Any], sections: tuple[str, ...] = EXACT) -> list[str]:
    """Name every tensor and value in which two checkpoints differ; tensors must be equal to the bit."""
    return [name for section in sections for name in _walk(one[section], other[section], section)]


def rows(state: dict[str, Any]) -> list[dict[str, float]]:
    """Return the results without the clock."""
    return [{name: value for name, value in row.items() if name != "time"} for row in state["history"]]


def _walk(one: Any, other: Any, path: str) -> Iterator[str]:
    if isinstance(one, torch.Tensor):
        if not (isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)):
            yield path
    elif isinstance(one, dict):
        if set(one) != set(other):
            yield f"{path}: {sorted(map(str, set(one) ^ set(other)))}"
        for key in set(one) & set(other):
            yield from _walk(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, (list, tuple)):
        if len(one) != len(other):
            yield path
        for number, (a, b) in enumerate(zip(one, other, strict=False)):
            yield from _walk(a, b, f"{path}/{number}")
    elif one != other:
        yield f"{path}: {one!r} != {other!r}"


class Child:
    """`python -m kit train` in a process of its own, as a user starts it, but for `kit.restarts=0`."""

    def __init__(self, working: Path, words: list[str], **environment: str) -> None:
        words = list(words)
        if not any(word.startswith("kit.restarts=") for word in words):  # who kills a run wants to see it ended
            first = next((n for n, word in enumerate(words) if "=" in word), len(words))
            words.insert(first, "kit.restarts=0")
        self.working = working
        self.log = open(working / "output.txt", "a+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kit", "train", *words],
            cwd=working,
            env={**os.environ, "PYTHONPATH": str(session.REPOSITORY), **environment},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def status(self, run: str = "runs/train") -> dict[str, Any]:
        """Return what the run last said."""
        try:
            values: dict[str, Any] = json.loads((self.working / run / "status.json").read_text())
        except (OSError, ValueError):
            return {}
        return values

    def step(self, run: str = "runs/train") -> int:
        """Return the step that latest.pt was saved at, in batches since the beginning of the run."""
        try:
            return int(read(self.working / run / "checkpoints/latest.pt")["progress"]["global_step"])
        except FileNotFoundError:
            return 0

    def wait_for(self, condition: Callable[[dict[str, Any]], bool], run: str = "runs/train") -> dict[str, Any]:
        """Wait until the status fulfils a condition; the process must not end before."""
        while self.process.poll() is None:
            if condition(self.status(run)):
                return self.status(run)
            time.sleep(0.05)
        raise AssertionError(f"training ended before: {self.output()}")

    def wait(self) -> int:
        """Wait for the end and return the exit code."""
        return self.process.wait(timeout=900)

    def output(self) -> str:
        """Return all that was printed so far."""
        self.log.seek(0)
        return self.log.read()
