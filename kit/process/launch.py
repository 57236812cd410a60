"""Start, watch and stop the training process.

Training runs in a child: a crash leaves the notebook's kernel alive, and the GPU's memory is free afterwards. The
child has a process group of its own, so that only this parent forwards a stop; it writes to `train.log`, never into a
pipe, and this parent follows the file. Where several GPUs train, torchrun is put in front of the same command; of the
processes that it starts, the first one writes to `train.log`, and the others to `train-1.log` and so on.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from pathlib import Path
from subprocess import Popen
from typing import Any

from kit.config import Config
from kit.data import find
from kit.errors import BusyError, CheckpointError, ConfigError, DiedError, KitError, ModelError, Stopped
from kit.kaggle import deaths, machine, session
from kit.process import backups, children, torchrun
from kit.process.backups import Keeper
from kit.process.children import LAST_S, Log
from kit.process.parent import ending, read_ending, take_notices
from kit.process.restarts import Restarts
from kit.run import scores, status
from kit.run.status import Notice
from kit.store import disk
from kit.yolo.settings import load

REPEAT_S = 5.0  # a kernel that shuts down sends four signals within 60 ms: they are one request


@dataclass(frozen=True)
class Outcome:
    """How a training process ended."""

    code: int  # 0 finished, 75 stopped with a good checkpoint, 2 bad input, 1 anything else
    status: dict[str, Any]  # the last that it wrote into `status.json`
    folder: Path
    error: KitError | None  # what went wrong


def run(
    path: str | Path | None,
    words: Sequence[str],
    resume: str = "auto",
    follow: Callable[[str, Config], None] = lambda text, config: None,
) -> Outcome:
    """Check the settings, of a config file and as `key=value`, start a training process and wait for its end.

    Ten times a second new text of the log is given to `follow`.

    Raises:
        InputError: Something given cannot be used; nothing was started or written.
    """
    config = load(path, words)
    find.check(str(config.get("data")), config.classifies)
    if resume not in ("auto", "never") and not Path(resume).expanduser().is_file():
        raise CheckpointError(f"The checkpoint '{resume}' does not exist.", "Check --resume.")
    folder = config.run_folder
    for name in ("model", "pretrained", "data"):
        file = Path(str(config.get(name)))
        if resume == "never" and file.exists() and folder.resolve() in file.resolve().parents:
            raise ConfigError(
                f"{name}={file} lies in the run folder, which a fresh start sets aside.",
                "Choose another folder with kit.run=runs/other.",
            )
        special = file.exists() and not (file.is_file() or file.is_dir())
        if name != "data" and special:  # to open a pipe waits for who writes into it
            raise ModelError(f"The model '{file}' is no plain file.", f"Check {name}=...")
    said: deque[str] = deque(maxlen=100)  # the log may go with its folder

    def tell(text: str) -> None:
        said.extend(filter(None, [text]))
        follow(text, config)

    if resume != "never":
        disk.refuse_foreign(folder)
    elif config.files.foreign() and (old := disk.quarantine_run(folder)):  # before anything is written into it
        tell(f"The old run was moved to {old}\n")
    new = not folder.exists()
    made = os.stat(disk.make_folder(folder))
    disk.make_room(folder, 0)  # the log lies there too
    with _forwarding() as asked, ending() as ended, ExitStack() as stack:
        job = _Job(config, resume, _arguments(path, words), ended, said, asked)
        error: KitError | None = None
        notices: list[Notice] = []
        if config.kit.backup:
            with closing(Log(config.files.log, tell)) as log:
                error = _fetch(job, log)
                notices = log.notices + take_notices(ended)
        if not error and asked:
            error = Stopped()
        if not error:
            if resume == "never" and (old := disk.quarantine_run(folder)):
                tell(f"The old run was moved to {old}\n")
                disk.make_folder(folder)
            error = _train(job, stack.enter_context(closing(Log(config.files.log, tell, notices))))
    code = error.exit_code if error else 0
    with suppress(FileNotFoundError):  # it was moved away
        same = new and os.path.samestat(made, os.stat(folder))
        if code == 2 and same and not list(config.files.checkpoints.glob("*.pt")):
            disk.remove(folder)  # it was made above and holds nothing but this failure
    return Outcome(code, status.read(folder), folder, None if isinstance(error, Stopped) else error)


@dataclass(frozen=True)
class _Job:
    """What the children of one training have in common."""

    config: Config
    resume: str
    arguments: list[str]  # of each child's command line
    ended: Path  # takes the exception of a child that fails
    said: deque[str]  # the end of the log
    asked: list[float]  # requests to stop; it may grow

    def start(self, log: Log, *role: str, resume: str = "", processes: int = 1) -> Popen[bytes]:
        command, *own = role
        options = ["--resume", resume or self.resume, "--ended", str(self.ended)]
        words = [command, *options, *own, *self.arguments]  # the words side by side: else argparse refuses them
        return children.start(words, log, processes)

    def error(self, code: int, who: str, kills: int) -> KitError | None:
        """Return what went wrong, or that it stopped, from an exit code and the kernel's kills before."""
        if code in (0, Stopped.exit_code):
            return Stopped() if code else None
        if code < 0:
            return deaths.lost(who, code, kills)
        return read_ending(self.ended, code, "".join(self.said).splitlines())


def _arguments(path: str | Path | None, words: Sequence[str]) -> list[str]:
    return [*words, *(["--config", str(path)] if path is not None else [])]


def _fetch(job: _Job, log: Log) -> KitError | None:
    """Have the newest backup brought into scratch; return what went wrong."""
    kills = machine.oom_kills()
    code = children.watch(job.start(log, "backups", backups.FETCH), log, job.asked, job.config)
    error = job.error(code, "The process that fetches the backup", kills)
    if error and code < 0:
        log.say(f"error: {error}")
        error.exit_code = 1
    return error


def _train(job: _Job, log: Log) -> KitError | None:
    """Have a run trained, again where a part of it was killed; beside it another process keeps backups.

    Returns:
        What went wrong, or that it stopped.
    """
    config = job.config
    count, restarts = processes(config), Restarts(config, job.resume, log.warn)
    stop = torchrun.STOP if count > 1 else signal.SIGTERM
    with ExitStack() as stack:
        keeper = None
        if config.kit.backup:
            start = partial(job.start, log, "backups", backups.KEEP)
            keeper = stack.enter_context(closing(Keeper(start, config, log)))
        tick = keeper.watch if keeper else lambda: None
        while True:
            job.said.clear()
            disk.remove(job.ended)
            kills = machine.oom_kills()
            known = len(log.notices)
            role = "worker", f"--notices={json.dumps(log.notices)}"
            child = job.start(log, *role, resume=restarts.begin(), processes=count)
            code = children.watch(child, log, job.asked, config, stop, tick)
            error = job.error(code, "The training process", kills)
            if not isinstance(error, DiedError):
                break
            told, error = error, restarts.judge(error, bool(job.asked))
            if error:
                if code < 0 or error is not told:
                    log.say(f"error: {error}")
                restarts.give_up(error)
                error.exit_code = 1
                break
        if keeper:
            keeper.finish(job.asked)
    if not isinstance(error, BusyError):  # the status is that of the process which holds the run
        restarts.keep(log.notices[known:] + take_notices(job.ended))
    if count > 1 and not error and status.read(config.run_folder).get("state") != "finished":
        return Stopped()  # torchrun knows only 0 and 1
    return error


def processes(config: Config) -> int:
    """Return how many processes train: one per GPU, of those that `device` names or else of all visible ones."""
    if isinstance(config.kit.processes, int):
        return config.kit.processes
    device, visible = config.get("device"), os.environ.get("CUDA_VISIBLE_DEVICES")
    if device not in (None, ""):
        count = len(re.findall(r"\d+", str(device)))
    else:
        count = len(session.gpus()) if visible is None else _visible(visible)
    batch = config.get("batch")
    return max(min(count, batch) if batch >= 1 else count, 1)


def _visible(names: str) -> int:
    """Count the GPUs that CUDA makes of CUDA_VISIBLE_DEVICES: those before the first that is none; of MIG's, one."""
    known = re.compile(r"\d|GPU-|MIG-")
    found = [*takewhile(known.match, map(str.strip, names.split(",")))]
    return min(len(found), 1) if names.startswith("MIG-") else len(found)


def measure(path: str | Path | None, words: Sequence[str]) -> Path:
    """Have the best model of a run measured in a process of its own, unless it was; return the run folder.

    Raises:
        CheckpointError: There is no best.pt yet.
        Stopped: The user stopped it, or the session is about to end.
        KitError: The process failed.
    """
    config = load(path, words)
    folder, best, ends = config.run_folder, config.files.best, session.deadline(config.kit.session_hours)
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
