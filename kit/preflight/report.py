"""Where this is, what it has and what stands in the way of training: `kit.doctor()` and `python -m kit doctor`.

What `kit.preflight.checks` looks at is shown as it is found, the quick things first. Torch is asked in a child process
(`kit.preflight.probe`), which has a minute; the internet has three seconds.

Not covered: whether the model fits the GPU's memory, and whether Kaggle keeps the files (Persistence cannot be seen
from within a session).
"""

from __future__ import annotations

import functools
import html
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kit.config import Config
from kit.errors import KitError
from kit.kaggle import frontend, machine, session
from kit.preflight import checks
from kit.preflight.checks import OK, STOP, WARNING
from kit.store.disk import DISK, Disk
from kit.yolo.settings import load, schema

PROBE_S = 60.0  # for importing torch, one kernel on each GPU, and reading the checkpoints
INTERNET_S = 3.0
MARKS = {OK: "✓", WARNING: "!", STOP: "✗"}

Facts = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    level: str  # `ok`, `warning` or `stop`
    text: str  # what was found
    advice: str = ""  # what to do


@contextmanager
def probing(*words: str, module: str = "kit.preflight.probe", limit: float = PROBE_S) -> Iterator[Callable[[], Facts]]:
    """Start `kit.preflight.probe`; what is yielded waits for it, for `limit` seconds, and returns what it said.

    Yields:
        A function that returns the probe's facts, `exit` (its exit code, 0 where it was still running) and `error`
        (why it did not say everything).
    """
    child = subprocess.Popen(
        [sys.executable, "-m", module, *words],
        env={**os.environ, "PYTHONPATH": session.import_path()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )

    @functools.cache
    def answer() -> Facts:
        facts: Facts = {}
        try:
            said, errors = child.communicate(timeout=limit)
            last = (errors.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            facts |= {"exit": child.returncode, "error": f"exit code {child.returncode}, {last}"}
        except subprocess.TimeoutExpired as error:
            said = error.stdout or b""
            facts |= {"exit": 0, "error": f"no answer within {limit:.0f} s"}
        for line in said.decode(errors="replace").splitlines():
            with suppress(ValueError, TypeError):  # a library may print too, and the last line may be half of one
                facts |= json.loads(line)
        return facts

    try:
        yield answer
    finally:
        child.kill()
        with suppress(subprocess.TimeoutExpired):  # a process that hangs in a driver cannot even die
            child.wait(timeout=1)
        for pipe in filter(None, (child.stdout, child.stderr)):
            pipe.close()


def connecting() -> Callable[[], bool]:
    """Start to connect to `$KIT_INTERNET` (`host:port`); what is returned waits and tells whether it worked."""
    reached = threading.Event()

    def connect() -> None:
        host, _, port = os.environ.get("KIT_INTERNET", "pypi.org:443").rpartition(":")
        with suppress(OSError, ValueError), socket.create_connection((host, int(port))):
            reached.set()

    thread = threading.Thread(target=connect, daemon=True)  # looking up a name cannot be given a time limit
    thread.start()

    def answer() -> bool:
        thread.join(INTERNET_S)
        return reached.is_set()

    return answer


def findings(
    path: str | Path | None = None,
    settings: Iterable[str] | Mapping[str, Any] = (),
    *,
    probe: Callable[..., AbstractContextManager[Callable[[], Facts]]] = probing,
    disk: Disk = DISK,
    root: Path = machine.ROOT,
) -> Iterator[Finding]:
    """Look at everything, with the settings that training takes; nothing that is found is raised.

    The file system below `root` says what the machine has.
    """
    config = Config(schema())
    problem: checks.Verdict | None = None
    try:
        config = load(path, settings)
    except KitError as error:
        problem = STOP, error.message, error.hint
    internet = connecting()
    with probe(json.dumps(config.to_dict()), *([] if problem else ["sound"])) as facts:
        looks: dict[str, Callable[[], checks.Verdict | None]] = {
            "settings": lambda: problem,
            "place": checks.place,
            "time": lambda: checks.time_left(config.kit.session_hours),
            "persistence": checks.persistence,
            "machine": lambda: checks.compute(root),
            "shared memory": lambda: checks.shared_memory(root / "dev/shm", disk),
            "working": lambda: checks.working(disk),
            "scratch": lambda: checks.scratch(disk),
            "internet": lambda: checks.online(internet()),
            "torch": lambda: checks.torch_itself(facts()),
            "GPU": lambda: checks.gpus(session.gpus(), facts(), config.train.get("device"), config.kit.processes),
            "checkpoints": lambda: checks.checkpoints(facts()),
            "start": lambda: checks.start(facts()),
        }
        for name, look in looks.items():
            try:
                verdict = look()
            except KitError as error:  # what training would stop with
                verdict = STOP, error.message, error.hint
            except OSError as error:
                verdict = WARNING, f"could not be looked at: {error}", ""
            if verdict:
                yield Finding(name, *verdict)


def show(found: Iterable[Finding]) -> list[Finding]:
    """Show findings as they come: a table in a notebook, lines elsewhere; and return them."""
    seen: list[Finding] = []
    place = os.urandom(8).hex() if frontend.shell() else ""  # a display is updated: a batch run keeps it as it ends
    if place:
        frontend.show(*table([], "Looking …"), place)
    for finding in found:
        seen.append(finding)
        if place:
            frontend.show(*table(seen, "Looking …"), place, update=True)
        else:
            print(line(finding), flush=True)
    if place:
        frontend.show(*table(seen, conclusion(seen)), place, update=True)
    else:
        print(conclusion(seen))
    return seen


def line(finding: Finding) -> str:
    """Return a finding as text, its advice on a line of its own."""
    head = f"{MARKS[finding.level]} {finding.level:9}{finding.name:15}"
    return head + finding.text + (f"\n{'':{len(head)}}→ {finding.advice}" if finding.advice else "")


def conclusion(found: list[Finding]) -> str:
    """Say in one line what stops training, or what is worth a look."""
    names = {level: [f.name for f in found if f.level == level] for level in MARKS}
    if names[STOP]:
        return f"{MARKS[STOP]} Training cannot start like this: see {', '.join(names[STOP])}."
    if names[WARNING]:
        return f"{MARKS[WARNING]} Training can start; worth a look: {', '.join(names[WARNING])}."
    return f"{MARKS[OK]} Nothing stands in the way of training."


def table(found: list[Finding], title: str) -> tuple[str, str]:
    """Return what a notebook shows: a table without colours of its own, for light and dark themes, and text."""
    rows = ""
    for each in found:
        advice = f"<br><b>→ {html.escape(each.advice)}</b>" if each.advice else ""
        cells = f"{MARKS[each.level]} {each.level}", html.escape(each.name), html.escape(each.text) + advice
        rows += (
            "<tr>"
            + "".join(f'<td style="text-align: left; white-space: pre-line">{cell}</td>' for cell in cells)
            + "</tr>"
        )
    text = "\n".join([*map(line, found), title])
    return f"<p><b>{html.escape(title)}</b></p><table>{rows}</table>", text
