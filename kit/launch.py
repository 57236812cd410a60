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
from typing import Any

from kit import agent, config as config_module, data, session, status, storage
from kit.config import Config
from kit.errors import CheckpointError, Stopped
from kit.worker import PARENT

LOG = "train.log"
POLL_S = 0.1
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
    data.resolve(str(config.get("data")))
    if resume not in ("auto", "never") and not Path(resume).expanduser().is_file():
        raise CheckpointError(f"The checkpoint '{resume}' does not exist: check --resume.")
    folder = config.run_folder
    new = not folder.exists()
    storage.make_folder(folder)
    storage.make_room(folder, 0)  # the log lies there too
    if resume == "never" and (old := storage.set_run_aside(folder)):
        follow(f"The old run was moved to {old}\n", config)
        storage.make_folder(folder)
    several = (count := processes(config)) > 1
    command = [*(agent.command(count) if several else [sys.executable]), "-m", "kit", "train", "--resume", resume]
    command += words
    if path is not None:
        command += ["--config", str(path)]
    said: deque[str] = deque(maxlen=100)  # the log may go with its folder

    def tell(text: str) -> None:
        said.extend(filter(None, [text]))
        follow(text, config)

    code = _watch(command, folder, tell, count)
    if several and not code and status.read(folder).get("state") == "stopped":
        code = Stopped.exit_code
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


def _watch(command: list[str], folder: Path, follow: Callable[[str], None], processes: int) -> int:
    environment = {
        **os.environ,
        PARENT: str(os.getpid()),
        "KIT_SESSION_START": str(session.started()),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(session.REPOSITORY), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
    }
    if processes > 1:  # else torchrun takes it to 1
        environment.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 1) // processes, 1)))
    log = folder / LOG
    with open(log, "ab") as output, open(log, "rb") as tail, _forwarding() as asked:
        tail.seek(0, os.SEEK_END)
        child = subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, process_group=0
        )
        sent, decode = 0, codecs.getincrementaldecoder("utf-8")("replace").decode
        try:
            while child.poll() is None:
                follow(decode(tail.read()))
                if len(asked) > sent:
                    sent = len(asked)
                    child.send_signal(signal.SIGTERM if processes == 1 else agent.STOP)
                time.sleep(POLL_S)
        except BaseException:
            child.terminate()  # a failing follower must not leave training behind
            child.wait()
            raise
        follow(decode(tail.read()))
        if child.returncode < 0:
            name = signal.Signals(-child.returncode).name
            text = f"error: The training process was ended by {name}: run again to go on from the last checkpoint.\n"
            with suppress(OSError):
                output.write(text.encode())
                output.flush()
            follow(text)
    return child.returncode if child.returncode >= 0 else 1


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
