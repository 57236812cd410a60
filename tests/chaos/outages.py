"""The n-th request to a store fails in the life of a small run: `tests/chaos/outages.py`, a part of `make chaos`.

A run lives through four sessions: it starts and is backed up, goes on from the backup on an empty disk, has an older
output put back, and has a checkpoint damaged. In each the n-th request to the store fails; n = 1, 2, … until a session
meets no failure. A start has what was last said to be uploaded, or ends in a sentence. After each session a start
without a failure, on an empty disk, has it too, and the run goes on and is backed up from there.

Checkpoints are made and not trained, and nothing pauses, so a session takes some milliseconds.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from kit.backup.files import Files
from kit.backup.reporter import Reporter
from kit.backup.restore import Restore
from kit.backup.stores import Store, open_store
from kit.backup.upload import Backup, read_news
from kit.config import Config
from kit.errors import KitError
from kit.kaggle import session
from kit.yolo.settings import load
from tests.help import samples
from tests.help.backups import IDENTITY, wipe
from tests.help.standins import PAGE, Hub, Kaggle

KINDS = ("refused", "403", "429", "500", "cut", "page", "old")
STEPS = {10: 0.1, 20: 0.2, 30: 0.2, 40: 0.4, 50: 0.5}  # of the checkpoints, and the best mAP so far
TOKEN = "a-token"  # noqa: S105  # of the stand-ins
TRIES, LOOKS = 3, 12  # of an upload, and for one that the store has not made ready


class Fault:
    """Counts requests, and tells how the n-th one fails; it may be set anew.

    Attributes:
        before: Lists of a folder's files from before the last change.
    """

    def __init__(self) -> None:
        self.before: dict[str, list[str]] = {}
        self.set(0, "")

    def set(self, at: int, kind: str) -> None:
        self.at, self.kind, self.calls = at, kind, 0

    def __call__(self) -> str:
        self.calls += 1
        return self.kind if self.calls == self.at else ""


class Failing(Files):
    """A folder whose n-th request fails.

    Args:
        address: As of `Files`.
        fault: Which.
    """

    def __init__(self, address: str, fault: Fault) -> None:
        super().__init__(address)
        self.fault, self.real = fault, self.fs
        self.fs = self

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def _failure(self, reading: bool = False) -> str:
        kind = self.fault()
        errors = {"refused": ConnectionRefusedError(), "403": PermissionError("Forbidden")}
        errors |= {code: OSError(f"HTTP {code}") for code in ("429", "500")}
        if kind in errors:
            raise errors[kind]
        if not reading and kind != "old":
            self.fault.before = {str(path): self._names(path) for path in Path(self.root).rglob("*") if path.is_dir()}
        return kind

    def _names(self, path: Path | str) -> list[str]:
        return [f"{path}/{name}" for name in os.listdir(path)]

    def makedirs(self, path: str, exist_ok: bool = True) -> None:
        self._failure()
        self.real.makedirs(path, exist_ok=exist_ok)

    def ls(self, path: str, detail: bool = False) -> list[str]:
        kind = self._failure(reading=True)
        if kind in ("cut", "page"):
            raise ValueError("This is no list.")
        if kind == "old" and path not in self.fault.before:
            raise FileNotFoundError(path)
        return self.fault.before[path] if kind == "old" else self.real.ls(path, detail=detail)

    def cat_file(self, path: str) -> bytes:
        kind = self._failure(reading=True)
        content = self.real.cat_file(path)
        return {"cut": content[: len(content) // 2], "page": PAGE}.get(kind, content)

    def open(self, path: str, mode: str) -> io.BytesIO:
        return io.BytesIO(self.cat_file(path))

    def get_file(self, path: str, target: str) -> None:
        Path(target).write_bytes(self.cat_file(path))

    def pipe_file(self, path: str, content: bytes) -> None:
        kind = self._failure()
        if kind == "page":
            return
        Path(path).write_bytes(content[: len(content) // 2] if kind == "cut" else content)
        if kind == "cut":
            raise ConnectionResetError

    def put_file(self, source: str, path: str) -> None:
        self.pipe_file(path, Path(source).read_bytes())

    def rm_file(self, path: str) -> None:
        if self._failure() != "page":
            self.real.rm_file(path)


class Life:
    """A run from its first session to the last, in a folder of its own.

    Args:
        place: An empty folder.
        address: Of the store.
        opened: Opens it.

    Attributes:
        sessions: What it lives through.
        safe: The step of what was last said to be uploaded.
        lost: What went wrong.
    """

    def __init__(self, place: Path, address: str, opened: Callable[[str], Store]) -> None:
        self.address, self.opened, self.made = address, opened, place / "made"
        for name in ("working", "input", "scratch"):
            (place / name).mkdir()
            os.environ[f"KIT_{name.upper()}"] = str(place / name)
        (place / "data.yaml").write_text("train: images\nval: images\nnames: [cat, dog]\n")
        (place / "images").mkdir()
        (place / "images/1.png").touch()
        (place / "empty.yaml").write_text("{}")
        words = {"model": "yolov8n.yaml", "data": str(place / "data.yaml"), "kit.backup": address}
        self.config: Config = load(place / "empty.yaml", words)
        for step, best in STEPS.items():
            for name, at in (("latest", step), ("best", 20 if step == 30 else step)):
                state = samples.state(at, best_map=best, architecture=IDENTITY)
                samples.save(self.made / str(step) / f"{name}.pt", state)
        self.run = session.working() / "runs/train"
        self.sessions = self.first, self.second, self.older, self.damaged
        self.safe, self.lost = 0, list[str]()

    def first(self) -> None:
        """Begin, and be backed up twice."""
        self.start()
        for step in (10, 20):
            self.train(step)
            self.keep()

    def second(self) -> None:
        """Go on from the backup."""
        self.start()
        self.train(30)
        self.keep()

    def older(self) -> None:
        """Have an older output put back, and a keeper that is faster than training."""
        self.train(10)
        self.keep()
        self.start()

    def damaged(self) -> None:
        """Have a damaged checkpoint, and then a good one."""
        self.train(40)
        samples.flip_weights(self.run / "checkpoints/latest.pt")
        self.keep()
        self.start()
        self.train(40)
        self.keep()

    def end(self) -> None:
        """Start on an empty disk, and go on."""
        self.move_on()
        self.start()
        self.train(50)
        self.keep()
        if self.safe != 50:
            self.lost.append("no upload works any more")

    def move_on(self) -> None:
        """Have an empty disk."""
        wipe(session.working())
        wipe(session.scratch())

    def train(self, step: int) -> None:
        """Put the checkpoints of a step where training publishes them."""
        (self.run / "checkpoints").mkdir(parents=True, exist_ok=True)
        for name in ("best.pt", "latest.pt"):
            shutil.copyfile(self.made / str(step) / name, self.run / f"{name}.tmp")
            os.replace(self.run / f"{name}.tmp", self.run / "checkpoints" / name)

    def start(self) -> None:
        """Start a session, and again where that ends in a sentence."""
        self.run.mkdir(parents=True, exist_ok=True)
        for _ in range(2):
            try:
                Restore(self.config, self.opened, Reporter(self.note), lambda seconds: None).fetch("auto")
                break
            except KitError as error:
                self.note(str(error))
        folder = self.config.restored_folder
        assert folder is not None
        here = [path for path in (folder, self.run / "checkpoints") if self.holds(path, self.safe)]
        if self.safe and not here:
            self.lost.append(f"a start goes on without step {self.safe}")

    def holds(self, folder: Path, step: int) -> bool:
        """Tell whether a folder holds the checkpoints of a step, byte for byte, or of a later one."""
        return any(
            all(
                (folder / made.name).exists() and (folder / made.name).read_bytes() == made.read_bytes()
                for made in files
            )
            for files in (list((self.made / str(each)).iterdir()) for each in STEPS if each >= step)
        )

    def keep(self) -> None:
        """Keep a backup of what is in the run folder."""
        backup = Backup(self.run, self.address, self.opened(self.address), say=self.note)
        tries, looks = TRIES, LOOKS
        while not backup.step(last=True) and tries and looks:
            looks -= backup.waits
            tries -= not backup.waits
        self.safe = max(self.safe, int(read_news(self.run).get("step", 0)))

    def note(self, line: str) -> None:
        """Leave out what is said."""


class Place(NamedTuple):
    """A store that fails.

    Attributes:
        address: Of it.
        opened: Opens it.
        saved: Returns all that it holds.
        restore: Has it hold that again.
    """

    address: str
    opened: Callable[[str], Store]
    saved: Callable[[], Any]
    restore: Callable[[Any], None]


@contextmanager
def files(folder: Path, fault: Fault) -> Iterator[Place]:
    """A folder on a file system of fsspec."""
    store = folder / "store"

    def saved() -> Any:
        return {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}, dict(fault.before)

    def restore(values: Any) -> None:
        shutil.rmtree(store, ignore_errors=True)
        for path, content in values[0].items():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        fault.before = dict(values[1])

    yield Place(f"file://{store}", lambda address: Failing(address, fault), saved, restore)


@contextmanager
def kaggle(folder: Path, fault: Fault) -> Iterator[Place]:
    """Kaggle's client, and a stand-in that takes its time to make a version ready."""
    os.environ |= {"KAGGLE_API_ENVIRONMENT": "TEST", "KAGGLE_API_TOKEN": TOKEN}
    import kagglehub.clients
    from kagglesdk.kaggle_http_client import KaggleHttpClient

    kagglehub.clients.get_user_agent = lambda: "outages"  # it walks the stack, for longer than all the rest takes
    KaggleHttpClient._print_request = KaggleHttpClient._print_response = lambda *_: None
    with Kaggle(TOKEN) as server:
        server.fault, server.slow = fault, 2
        yield Place("kaggle://me/run", open_store, server.saved, server.restore)


@contextmanager
def hub(folder: Path, fault: Fault) -> Iterator[Place]:
    """Hugging Face's client and a stand-in."""
    with Hub(TOKEN) as server:
        os.environ |= {"HF_ENDPOINT": server.url, "HF_TOKEN": TOKEN}
        server.fault = fault
        yield Place("hf://me/run/some/where", open_store, server.saved, server.restore)


STORES = {"files": files, "kaggle": kaggle, "hub": hub}


def sweep(folder: Path, store: str, kinds: tuple[str, ...] = KINDS, step: int = 1) -> tuple[int, list[str]]:
    """Fail request after request.

    Args:
        folder: An empty folder.
        store: One of `STORES`.
        kinds: Ways to fail.
        step: Only each so manieth request.

    Returns:
        How many sessions had a failure, and what went wrong.
    """
    time.sleep = lambda seconds: None
    fault, cuts, wrong = Fault(), 0, list[str]()
    with STORES[store](folder, fault) as place:
        life = Life(folder, place.address, place.opened)
        for live in life.sessions:
            begun = place.saved(), life.safe

            def through(at: int, kind: str, live: Callable[[], None] = live, begun: Any = begun) -> int:
                place.restore(begun[0])
                life.safe, life.lost = begun[1], []
                life.move_on()
                fault.set(at, kind)
                live()
                calls = fault.calls
                fault.set(0, "")
                return calls

            for kind in kinds:
                at = 1
                while through(at, kind) >= at:
                    cuts += 1
                    at += step
                    life.end()
                    wrong += [f"{store}, {live.__name__}, request {at - step}, {kind}: {each}" for each in life.lost]
            through(0, "")
            assert not life.lost, f"without a failure: {life.lost}"
    return cuts, wrong


def sweep_alone(store: str, kinds: tuple[str, ...], step: int) -> tuple[int, list[str]]:
    """Sweep in a process of its own, in silence: the clients show every transfer and every retry."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"HOME": folder, "KAGGLEHUB_CACHE": f"{folder}/hub", "HF_HOME": f"{folder}/hf"}
        return sweep(Path(folder), store, kinds, step)


def main() -> None:
    """Fail every request in every way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--step", type=int, default=1)
    parser.add_argument("--kinds", nargs="*", default=list(KINDS))
    parser.add_argument("--stores", nargs="*", default=list(STORES))
    options = parser.parse_args()
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        jobs = [pool.submit(sweep_alone, store, tuple(options.kinds), options.step) for store in options.stores]
        found = [job.result() for job in jobs]
    wrong = [line for _, lines in found for line in lines]
    print("\n".join([*wrong, f"{sum(cuts for cuts, _ in found)} cut points, {len(wrong)} runs lost"]))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
