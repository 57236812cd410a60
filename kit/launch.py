"""Start, watch and stop the training process.

Training runs in a child: a crash leaves the notebook's kernel alive, and the GPU's memory is free afterwards. The
child has a process group of its own, so that only this parent forwards a stop; it writes to `train.log`, never into a
pipe, and this parent follows the file. Where several GPUs train, torchrun is put in front of the same command; of the
processes that it starts, the first one writes to `train.log`, and the others to `train-1.log` and so on.
"""

from __future__ import annotations

import codecs
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from kit import agent, backup, config as config_module, data, machine, scores, session, status, storage
from kit.config import Config
from kit.errors import CheckpointError, InputError, KitError, Stopped
from kit.worker import PARENT

LOG = "train.log"
POLL_S = 0.1
LAST_S = 20.0  # seconds of the session that are left to what follows a measurement
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
    config = config_module.load(path, words)
    data.resolve(str(config.get("data")), config.classifies)
    if resume not in ("auto", "never") and not Path(resume).expanduser().is_file():
        raise CheckpointError(f"The checkpoint '{resume}' does not exist: check --resume.")
    folder = config.run_folder
    new = not folder.exists()
    storage.make_folder(folder)
    storage.make_room(folder, 0)  # the log lies there too
    arguments = ["train", "--resume", resume, *words]
    if path is not None:
        arguments += ["--config", str(path)]
    said: deque[str] = deque(maxlen=100)  # the log may go with its folder

    def tell(text: str) -> None:
        said.extend(filter(None, [text]))
        follow(text, config)

    count = processes(config)
    code = _watch(arguments, config, tell, task=backup.FETCH) if config.kit.backup else 0
    if code == 0:
        if resume == "never" and (old := storage.set_run_aside(folder)):
            follow(f"The old run was moved to {old}\n", config)
            storage.make_folder(folder)
        code = _watch(arguments, config, tell, count)
        if count > 1 and code == 0 and status.read(folder).get("state") != "finished":
            code = Stopped.exit_code  # torchrun knows only 0 and 1
    error = "" if code in (0, 75) else _error("".join(said).splitlines())
    if code == 2 and new and not list((folder / "checkpoints").glob("*.pt")):
        shutil.rmtree(folder)  # it was made above and holds nothing but this failure
    return Outcome(code, status.read(folder), folder, error)


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
    config = config_module.load(path, words)
    folder, ends = config.run_folder, session.deadline(config.kit.session_hours)
    best = folder / "checkpoints" / "best.pt"
    if not best.exists():
        raise CheckpointError(f"There is no '{best}' yet: the first validation writes it.")
    if not scores.current(folder):
        command = [sys.executable, "-m", "kit", "results", *words, *(["--config", str(path)] if path else [])]
        left = None if ends is None else max(ends - time.time() - LAST_S, 0)
        pipes: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        try:
            done = subprocess.run(command, env=_environment(), timeout=left, **pipes, check=False)
        except KeyboardInterrupt:
            raise Stopped("Measuring the best model was stopped: run again to have it measured.") from None
        except subprocess.TimeoutExpired:
            raise Stopped("There is no time left in this session to measure the best model: run again.") from None
        if done.returncode:
            kind = InputError if done.returncode == InputError.exit_code else KitError
            raise kind(_error((done.stdout + done.stderr).splitlines()))
    return folder


def _environment() -> dict[str, str]:
    """Return the environment of a child: it knows its parent, the session's start and where the kit is."""
    return {
        **os.environ,
        PARENT: str(os.getpid()),
        "KIT_SESSION_START": str(session.started()),
        "PYTHONPATH": session.import_path(),
        "PYTHONUNBUFFERED": "1",
    }


def _start(arguments: list[str], output: BinaryIO, processes: int = 1, task: str = "") -> subprocess.Popen[bytes]:
    """Start `python -m kit`, several times where several processes train together."""
    environment, python = {**_environment(), backup.TASK: task}, [sys.executable]
    if processes > 1:
        python = agent.command(processes)
        environment.setdefault("OMP_NUM_THREADS", str(max(int(machine.cores()) // processes, 1)))  # else 1
    return subprocess.Popen(
        [*python, "-m", "kit", *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        process_group=0,
    )


def _watch(
    arguments: list[str], config: Config, follow: Callable[[str], None], processes: int = 1, task: str = ""
) -> int:
    """Start a process, or several, and wait for the end; beside those that train, another keeps backups."""
    log = config.run_folder / LOG
    with open(log, "ab") as output, open(log, "rb") as tail, _forwarding() as asked:
        tail.seek(0, os.SEEK_END)
        child, keeper = _start(arguments, output, processes, task), None
        sent, decode = 0, codecs.getincrementaldecoder("utf-8")("replace").decode
        try:
            if config.kit.backup and not task:
                keeper = _start(arguments, output, task=backup.KEEP)
            while child.poll() is None:
                follow(decode(tail.read()))
                if len(asked) > sent:
                    sent = len(asked)
                    child.send_signal(signal.SIGTERM if processes == 1 else agent.STOP)
                    follow("Stopping: the last checkpoint is being written ...\n")
                time.sleep(POLL_S)
            if keeper is not None:
                _finish(keeper, config, asked, lambda: follow(decode(tail.read())))
                if keeper.poll() is None:
                    follow(f"WARNING: The last backup was cut off. {backup.report(config.run_folder)}\n")
        except BaseException:
            child.terminate()  # a failing follower must not leave training behind
            child.wait()
            raise
        finally:
            if keeper is not None:
                keeper.kill()
                keeper.wait()
                backup.sweep(config.run_folder)
        follow(decode(tail.read()))
        if sent and -child.returncode in (signal.SIGTERM, agent.STOP):
            follow("Stopped before training began: run again.\n")
            return Stopped.exit_code
        if child.returncode < 0:
            name = signal.Signals(-child.returncode).name
            text = f"error: The training process was ended by {name}: run again to go on from the last checkpoint.\n"
            with suppress(OSError):
                output.write(text.encode())
                output.flush()
            follow(text)
    return child.returncode if child.returncode >= 0 else 1


def _finish(keeper: subprocess.Popen[bytes], config: Config, asked: list[float], show: Callable[[], None]) -> None:
    """Wait for the last backup, for some minutes and until a stop is asked for once more."""
    give_up, so_far = time.monotonic() + backup.time_left(config), len(asked)
    keeper.terminate()
    while keeper.poll() is None and time.monotonic() < give_up and len(asked) == so_far:
        show()
        time.sleep(POLL_S)


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
