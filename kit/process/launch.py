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
from kit.errors import CheckpointError, DiedError, KitError, ModelError, Stopped
from kit.kaggle import deaths, machine, session
from kit.process import backups, children
from kit.process.backups import Keeper
from kit.process.children import LAST_S, Bounds, Log
from kit.process.parent import ending, read_ending
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
        error: What went wrong; None where nothing did.
    """

    code: int
    status: dict[str, Any]
    folder: Path
    error: KitError | None


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
        follow: Called ten times a second with new text of the log, and the config.

    Raises:
        InputError: Something given cannot be used; nothing was started or written.
    """
    config = load(path, words)
    find.check(str(config.get("data")), config.classifies)
    if resume not in ("auto", "never") and not Path(resume).expanduser().is_file():
        raise CheckpointError(f"The checkpoint '{resume}' does not exist.", "Check --resume.")
    for name in ("model", "pretrained"):
        file = Path(str(config.get(name)))
        if file.exists() and not (file.is_file() or file.is_dir()):  # to open a pipe waits for who writes into it
            raise ModelError(f"The model '{file}' is no plain file.", f"Check {name}=...")
    folder = config.run_folder
    new = not folder.exists()
    made = os.stat(disk.make_folder(folder))
    disk.make_room(folder, 0)  # the log lies there too
    said: deque[str] = deque(maxlen=100)  # the log may go with its folder

    def tell(text: str) -> None:
        said.extend(filter(None, [text]))
        follow(text, config)

    with _forwarding() as asked, ending() as ended, ExitStack() as stack:
        job = _Job(config, resume, _arguments(path, words), ended, said, asked)
        code, error = 0, None
        if config.kit.backup:
            with Log(RunFolder(folder).log, tell) as log:
                code, error = _fetch(job, log)
        if code == 0 and asked:
            code = Stopped.exit_code
        if code == 0:
            if resume == "never" and (old := disk.quarantine_run(folder)):
                tell(f"The old run was moved to {old}\n")
                disk.make_folder(folder)
            code, error = _train(job, stack.enter_context(Log(RunFolder(folder).log, tell)))
    with suppress(FileNotFoundError):  # it was moved away
        same = new and os.path.samestat(made, os.stat(folder))
        if code == 2 and same and not list(RunFolder(folder).checkpoints.glob("*.pt")):
            disk.remove(folder)  # it was made above and holds nothing but this failure
    return Outcome(code, status.read(folder), folder, error)


@dataclass(frozen=True)
class _Job:
    """What the children of one training have in common.

    Attributes:
        config: The settings.
        resume: `auto`, `never` or the path of a checkpoint.
        arguments: Of each child's command line.
        ended: Where a child that fails writes its exception.
        said: The end of the log.
        asked: Requests to stop; it may grow.
    """

    config: Config
    resume: str
    arguments: list[str]
    ended: Path
    said: deque[str]
    asked: list[float]

    def start(self, log: Log, *role: str, resume: str = "", processes: int = 1) -> Popen[bytes]:
        command, *own = role
        options = ["--resume", resume or self.resume, "--ended", str(self.ended)]
        words = [command, *options, *own, *self.arguments]  # the words side by side: else argparse refuses them
        return children.start(words, log, processes)

    def error(self, code: int) -> KitError:
        return read_ending(self.ended, code, "".join(self.said).splitlines())


def _arguments(path: str | Path | None, words: Sequence[str]) -> list[str]:
    return [*words, *(["--config", str(path)] if path is not None else [])]


def _fetch(job: _Job, log: Log) -> tuple[int, KitError | None]:
    """Have the newest backup brought into scratch; return the exit code, and what went wrong."""
    kills = machine.oom_kills()
    child = job.start(log, "backups", backups.FETCH)
    code = children.watch(child, log, job.asked, Bounds(job.config))
    if code < 0:
        lost = deaths.lost("The process that fetches the backup", code, kills)
        log.say(f"error: {lost}")
        return 1, lost
    return code, job.error(code) if code not in (0, Stopped.exit_code) else None


def _train(job: _Job, log: Log) -> tuple[int, KitError | None]:
    """Have a run trained, again where a part of it was killed; beside it another process keeps backups.

    Returns:
        The exit code, and what went wrong.
    """
    config, error = job.config, None
    count, restarts = processes(config), Restarts(config, job.resume)
    with ExitStack() as stack:
        keeper = None
        if config.kit.backup:
            start = partial(job.start, log, "backups", backups.KEEP)
            keeper = stack.enter_context(Keeper(start, config, log))
        while True:
            job.said.clear()
            disk.remove(job.ended)
            kills = machine.oom_kills()
            role = ["worker", *(f"--restarted={line}" for line in restarts.warnings)]
            child = job.start(log, *role, resume=restarts.begin(), processes=count)
            tick = keeper.watch if keeper else lambda: None
            code = children.watch(child, log, job.asked, Bounds(config), count > 1, tick)
            if code in (0, Stopped.exit_code):
                break
            error = job.error(code) if code > 0 else deaths.lost("The training process", code, kills)
            if not isinstance(error, DiedError):
                break
            told, error = error, restarts.judge(error, bool(job.asked))
            if error:
                if code < 0 or error is not told:
                    log.say(f"error: {error}")
                restarts.give_up(error)
                code = 1
                break
            log.say(f"WARNING: {restarts.warnings[-1]}")
        if keeper:
            keeper.finish(job.asked)
    if count > 1 and code == 0 and status.read(config.run_folder).get("state") != "finished":
        code = Stopped.exit_code  # torchrun knows only 0 and 1
    return code, error


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
        raise CheckpointError(f"There is no '{best}' yet.", "The first validation writes it.")
    if not scores.current(folder):
        left = None if ends is None else max(ends - time.time() - LAST_S, 0)
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        with ending() as ended:
            command = [sys.executable, "-m", "kit", "measure", "--ended", str(ended), *_arguments(path, words)]
            try:
                done = subprocess.run(command, env=children.environment(), timeout=left, **pipes, check=False)
            except KeyboardInterrupt:
                raise Stopped("Measuring the best model was stopped.", "Run again to have it measured.") from None
            except subprocess.TimeoutExpired:
                raise Stopped(
                    "There is no time left in this session to measure the best model.", "Run again."
                ) from None
            if done.returncode:
                raise read_ending(ended, done.returncode, (done.stdout + done.stderr).splitlines())
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
