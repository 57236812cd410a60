"""Start, watch and stop the training process.

Training runs in a child: a crash leaves the notebook's kernel alive, and the GPU's memory is free afterwards. The
child has a process group of its own, so that only this parent forwards a stop; it writes to `train.log`, never into a
pipe, and this parent follows the file. Where several GPUs train, torchrun is put in front of the same command; of the
processes that it starts, the first one writes to `train.log`, and the others to `train-1.log` and so on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import Popen
from typing import Any

from kit.config import Config
from kit.data import find
from kit.errors import CheckpointError, DiedError, InputError, KitError, ModelError, Stopped
from kit.kaggle import deaths, machine, session
from kit.process import backups, children
from kit.process.bounds import LAST_S, Bounds
from kit.process.children import Log
from kit.process.keeper import Keeper
from kit.process.restarts import Restarts
from kit.run import scores, status
from kit.store import disk
from kit.store.folder import RunFolder
from kit.yolo.settings import load

REPEAT_S = 5.0  # a kernel that shuts down sends four signals within 60 ms: they are one request


@dataclass(frozen=True)
class Outcome:
    """How a training process ended.

    Attributes:
        code: 0 finished, 75 stopped with a good checkpoint, 2 bad input, 1 anything else.
        status: The last that it wrote into `status.json`.
        folder: The run folder.
        error: What went wrong, from what this process wrote into the log; empty when nothing did.
    """

    code: int
    status: dict[str, Any]
    folder: Path
    error: str


def run(
    path: str | Path | None,
    words: Sequence[str],
    resume: str = "auto",
    follow: Callable[[str, Config], None] = lambda text, config: None,
) -> Outcome:
    """Check the settings, start a training process and wait for its end.

    Args:
        path: Of the config file.
        words: Settings as `key=value`.
        resume: `auto`, `never` or the path of a checkpoint.
        follow: Called ten times a second with what the log has got since, and the config.

    Raises:
        InputError: Something given cannot be used; nothing was started or written.
    """
    config = load(path, words)
    find.resolve(str(config.get("data")), config.classifies)
    if resume not in ("auto", "never") and not Path(resume).expanduser().is_file():
        raise CheckpointError(f"The checkpoint '{resume}' does not exist: check --resume.")
    for name in ("model", "pretrained"):
        file = Path(str(config.get(name)))
        if file.exists() and not (file.is_file() or file.is_dir()):  # to open a pipe waits for who writes into it
            raise ModelError(f"The model '{file}' is no plain file: check {name}=...")
    folder = config.run_folder
    new = not folder.exists()
    made = os.stat(disk.make_folder(folder))
    disk.make_room(folder, 0)  # the log lies there too
    said: deque[str] = deque(maxlen=100)  # the log may go with its folder

    def tell(text: str) -> None:
        said.extend(filter(None, [text]))
        follow(text, config)

    def start(log: Log, resume: str, processes: int = 1, task: str = "", **variables: str) -> Popen[bytes]:
        arguments = ["train", "--resume", resume, *words, *(["--config", str(path)] if path is not None else [])]
        return children.start(arguments, log, processes, task, **variables)

    with _forwarding() as asked:
        code = 0
        if config.kit.backup:
            with Log(RunFolder(folder).log, tell) as log:
                code = children.watch(start(log, resume, task=backups.FETCH), log, asked, Bounds(config))
                if code < 0:
                    log.say(f"error: {deaths.lost('The process that fetches the backup', code, machine.oom_kills())}")
                    code = 1
        if code == 0 and asked:
            code = Stopped.exit_code
        if code == 0:
            if resume == "never" and (old := disk.quarantine_run(folder)):
                tell(f"The old run was moved to {old}\n")
                disk.make_folder(folder)
            with Log(RunFolder(folder).log, tell) as log:
                code = _train(config, resume, start, log, said, asked)
    error = "" if code in (0, 75) else _error("".join(said).splitlines())
    with suppress(FileNotFoundError):  # it was moved away
        same = new and os.path.samestat(made, os.stat(folder))
        if code == 2 and same and not list(RunFolder(folder).checkpoints.glob("*.pt")):
            disk.remove(folder)  # it was made above and holds nothing but this failure
    return Outcome(code, status.read(folder), folder, error)


def _train(
    config: Config,
    resume: str,
    start: Callable[..., Popen[bytes]],
    log: Log,
    said: deque[str],
    asked: list[float],
) -> int:
    """Have a run trained, again where a part of it was killed, with another process beside it that keeps backups."""
    count, restarts = processes(config), Restarts(config, resume)
    with ExitStack() as stack:
        keeper = None
        if config.kit.backup:
            keeper = stack.enter_context(Keeper(partial(start, log, resume, task=backups.KEEP), config, log))
        while True:
            said.clear()
            kills = machine.oom_kills()
            child = start(log, restarts.begin(), count, **{status.AGAIN: "\n".join(restarts.lines)})
            code = children.watch(
                child, log, asked, Bounds(config), count > 1, keeper.watch if keeper else lambda: None
            )
            if code >= 0 and code != DiedError.exit_code:
                break
            told = _error("".join(said).splitlines())
            lost = told if code >= 0 else deaths.lost("The training process", code, kills)
            again, line = restarts.judge(lost, bool(asked))
            if line != f"error: {told}":
                log.say(line)
            if not again:
                code = 1
                break
        if keeper:
            keeper.finish(asked)
    if count > 1 and code == 0 and status.read(config.run_folder).get("state") != "finished":
        code = Stopped.exit_code  # torchrun knows only 0 and 1
    return code


def processes(config: Config) -> int:
    """Return how many processes train: one per GPU, of those that `device` names or else of all visible ones."""
    if isinstance(config.kit.processes, int):
        return config.kit.processes
    device, visible = config.get("device"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if device in (None, ""):
        device = visible
    count = len(session.gpus()) if device is None else str(device).count(",") + 1
    batch = config.get("batch")
    return max(min(count, batch) if batch >= 1 else count, 1)


def _error(lines: list[str]) -> str:
    said = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return said[-1] if said else "\n".join(lines[-15:])


def measure(path: str | Path | None, words: Sequence[str]) -> Path:
    """Have the best model of a run measured in a process of its own, unless it was; return the run folder.

    Args:
        path: Of the config file.
        words: Settings as `key=value`.

    Raises:
        CheckpointError: There is no best.pt yet.
        Stopped: The user stopped it, or the session is about to end.
        KitError: The process failed.
    """
    config = load(path, words)
    folder, ends = config.run_folder, session.deadline(config.kit.session_hours)
    best = RunFolder(folder).best
    if not best.exists():
        raise CheckpointError(f"There is no '{best}' yet: the first validation writes it.")
    if not scores.current(folder):
        command = [sys.executable, "-m", "kit", "results", *words, *(["--config", str(path)] if path else [])]
        left = None if ends is None else max(ends - time.time() - LAST_S, 0)
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        try:
            done = subprocess.run(command, env=children.environment(), timeout=left, **pipes, check=False)
        except KeyboardInterrupt:
            raise Stopped("Measuring the best model was stopped: run again to have it measured.") from None
        except subprocess.TimeoutExpired:
            raise Stopped("There is no time left in this session to measure the best model: run again.") from None
        if done.returncode:
            kind = InputError if done.returncode == InputError.exit_code else KitError
            raise kind(_error((done.stdout + done.stderr).splitlines()))
    return folder


@contextmanager
def _forwarding() -> Iterator[list[float]]:
    """Collect requests to stop, one per `REPEAT_S`, instead of being interrupted by them."""
    asked: list[float] = []

    def ask(number: int, frame: object) -> None:
        if not asked or time.monotonic() - asked[-1] > REPEAT_S:
            asked.append(time.monotonic())

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
