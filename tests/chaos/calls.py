"""The n-th call to the file system fails in a whole small session: `tests/chaos/calls.py`, a part of `make chaos`.

A session takes up a run, trains, saves after every batch, and ends. In it the n-th call that touches the working folder
is refused (no room, a broken disk, an interrupted call), does half of its work, or is the last thing that the process
does; n = 1, 2, … until a session meets no failure. After each: the session has ended well or in one sentence, every
checkpoint that stands is whole, and run again without a failure it ends with the bits of an untouched run.

Each session is forked from a process that has loaded everything and computed nothing, so one takes a second.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import io
import os
import shutil
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

KINDS = {"ENOSPC": errno.ENOSPC, "EIO": errno.EIO, "EINTR": errno.EINTR, "half": 0, "kill": 0}
PATHS = ("open", "mkdir", "rmdir", "rename", "replace", "link", "unlink", "remove")
DESCRIPTORS = ("write", "pwrite", "fsync", "ftruncate")
KILLED = 9
BLOCK = 1 << 16  # bytes


class Faults:
    """Counts the calls that touch a folder, and has the n-th one fail.

    Args:
        folder: The folder; what happens elsewhere is not counted.
        at: The call that fails, counted from 1; 0 for none.
        kind: How.
    """

    def __init__(self, folder: Path, at: int, kind: str) -> None:
        self.folder, self.at, self.kind, self.calls = str(folder), at, kind, 0
        self.lock, self.own = threading.Lock(), threading.local()

    def install(self) -> None:
        """Put the faults between Python and the system."""
        for name in PATHS:
            setattr(os, name, self._counted(name, getattr(os, name), lambda words: words[0]))
        for name in DESCRIPTORS:
            setattr(os, name, self._counted(name, getattr(os, name), lambda words: _path_of(words[0])))
        opened = self._counted("open", io.open, lambda words: words[0])

        def open_file(*words: Any, **named: Any) -> Any:
            file, mode = opened(*words, **named), str(named.get("mode", words[1] if len(words) > 1 else "r"))
            inside = self._touches(words[0]) and {*mode} & {*"wax+"}
            return _File(file, self._counted("write", file.write, lambda _: self.folder)) if inside else file

        builtins.open = io.open = open_file  # type: ignore[assignment]

    def _touches(self, place: Any) -> bool:
        return isinstance(place, (str, os.PathLike)) and os.fspath(place).startswith(self.folder)

    def _counted(self, name: str, call: Callable[..., Any], place: Callable[[Any], Any]) -> Callable[..., Any]:
        def counted(*words: Any, **named: Any) -> Any:
            if not self._touches(place(words)):
                return call(*words, **named)
            with self.lock:
                self.calls += 1
                fails = self.calls == self.at
            if not fails:
                return call(*words, **named)
            if self.kind == "kill":
                os._exit(KILLED)
            if self.kind != "half":
                raise OSError(KINDS[self.kind], os.strerror(KINDS[self.kind]))
            if name == "pwrite":
                descriptor, data, offset = words
                return call(descriptor, memoryview(data)[: max(len(data) // 8192 * 4096, 4096)], offset)
            if name == "write":
                call(*words[:-1], words[-1][: len(words[-1]) // 2], **named)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        return counted


class _File:
    """A file whose writes are counted, as far as they reach the system: in blocks, and the rest at the end."""

    def __init__(self, file: Any, counted: Callable[..., Any]) -> None:
        self.file, self.counted, self.waiting = file, counted, 0

    def write(self, data: Any) -> Any:
        self.waiting += len(data)
        if self.waiting < BLOCK:
            return self.file.write(data)
        self.waiting = 0
        return self.counted(data)

    def close(self) -> None:
        waiting, self.waiting = self.waiting, 0
        try:
            if waiting:
                self.counted(b"" if "b" in self.file.mode else "")
        finally:
            self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> _File:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.file)


def _path_of(descriptor: Any) -> Any:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:
        return None


def session(place: Path, values: dict[str, Any], at: int, kind: str) -> tuple[int, int]:
    """Run a session in a process of its own.

    Returns:
        Its exit code (9 for a kill, 1 for a traceback), and how many calls it made where it could still say so.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = _child(place, values, Faults(place / "working", at, kind), writer)
        os._exit(code)
    os.close(writer)
    said = os.read(reader, 100)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), int(said or 0)


def _child(place: Path, values: dict[str, Any], faults: Faults, writer: int) -> int:
    import torch

    from kit.errors import KitError
    from kit.yolo import train
    from kit.yolo.settings import load

    torch.set_num_threads(1)
    log = os.open(place / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(log, number)
    print(f"--- call {faults.at} {faults.kind}", flush=True)
    checked = load(place / "empty.yaml", values)
    faults.install()
    try:
        train.train(checked)
        code = 0
    except KitError as error:
        print(f"error: {error}")
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os.write(writer, str(faults.calls).encode())
    return code


def sweep(place: Path, step: int = 1, kinds: tuple[str, ...] = tuple(KINDS), first: int = 1) -> tuple[int, list[str]]:
    """Fail call after call.

    Args:
        place: An empty folder.
        step: Only each so manieth call.
        kinds: Ways to fail.
        first: The first call.

    Returns:
        How many sessions had a failure, and what went wrong.
    """
    from kit.store import checkpoint
    from kit.yolo import models
    from tests.help import training
    from tests.help.training import differences, rows

    for name in ("working", "input", "scratch"):
        (place / name).mkdir()
        os.environ[f"KIT_{name.upper()}"] = str(place / name)
    (place / "empty.yaml").write_text("{}")
    values = training.settings(place, images=8, epochs=2, val=True)
    values |= {"kit.max_lost_s": 1e-6, "kit.max_cost_percent": 1e9}
    runs, cuts, wrong = place / "working/runs", 0, list[str]()

    def begin() -> None:
        shutil.rmtree(runs, ignore_errors=True)
        shutil.rmtree(place / "scratch/kit-0/rescued", ignore_errors=True)
        if (place / "begun").exists():
            shutil.copytree(place / "begun", runs)

    code, _ = session(place, values, 0, "")
    assert code == 0, (place / "log.txt").read_text()
    untouched = training.read(runs / "train/checkpoints/latest.pt")
    begin()
    code, calls = session(place, values, 0, "")
    session(place, values, calls // 2, "kill")
    begin()
    session(place, values, calls // 2, "kill")
    shutil.copytree(runs, place / "begun")  # killed half-way: a session takes it up
    for kind in kinds:
        at = first
        while True:
            begin()
            code, calls = session(place, values, at, kind)
            if 0 < calls < at:
                break
            cuts += 1
            problem = "" if code in (0, 2, 75, KILLED * (kind == "kill")) else f"exit {code}"
            for path in [] if problem else sorted((runs / "train/checkpoints").glob("*.pt")):
                try:
                    checkpoint.read(path, models.open_checkpoint)
                except Exception as error:
                    problem = repr(error)
            if not problem:
                code, _ = session(place, values, 0, "")
                problem = f"exit {code} when run again" if code else ""
            if not problem:
                again = training.read(runs / "train/checkpoints/latest.pt")
                problem = "other bits" if differences(untouched, again) or rows(untouched) != rows(again) else ""
            if problem:
                wrong.append(f"call {at}, {kind}: {problem}")
                print(wrong[-1], flush=True)
            at += step
    return cuts, wrong


def main() -> None:
    """Fail every call in every way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KIT_SCRATCH"] = folder
        from kit.yolo import environment

        environment.prepare()
        from kit.yolo import evaluation  # noqa: F401  # what a session imports

        place = Path(folder) / "place"
        place.mkdir()
        cuts, wrong = sweep(place, options.step, tuple(options.kinds), options.first)
        if wrong:
            shutil.copy(place / "log.txt", "calls.log")
    print(f"{cuts} cut points, {len(wrong)} runs lost")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
