"""A run folder that holds what is not the kit's: Ultralytics' own run, or anything that a training would write over."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import kit
from kit import config
from kit.errors import BusyError, ConfigError, KitError, MismatchError, StorageError
from kit.kaggle import session
from kit.preflight import report
from kit.process import launch
from kit.store import disk
from kit.store.folder import RunFolder
from kit.store.lock import Lock
from tests.help import training
from tests.yolo.test_models import begun

RUN = {"kit.run": "runs/stock"}
HOLDS = "holds what is not the kit's: results.csv, args.yaml, weights"
Files = dict[str, tuple[bytes, int]]


def files(folder: Path) -> Files:
    """Return the content and the date of every file below a folder, but for the lock that a move leaves."""
    found = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in found}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """What Ultralytics' own training leaves when its session is lost after one of two epochs, and its settings."""
    place = tmp_path_factory.mktemp("stock")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KIT_SCRATCH", str(place))
        values = training.settings(place, epochs=2)
        return begun(place, values, epochs=1).parent.parent, values


@pytest.fixture
def stock(place: Path, trained: tuple[Path, dict[str, Any]]) -> Path:
    """A copy of it in the working folder, where a run of the kit would go."""
    return Path(shutil.copytree(trained[0], place / "working/runs/stock"))


@pytest.fixture
def values(trained: tuple[Path, dict[str, Any]]) -> dict[str, Any]:
    """The settings of that training, with the run folder where it lies."""
    return {**trained[1], **RUN}


def command(values: dict[str, Any], *more: str) -> list[str]:
    return ["train", "--config", str(session.REPOSITORY / "configs/quickstart.yaml"), *config.to_args(values), *more]


def kit_says(*words: str, torchrun: bool = False) -> subprocess.CompletedProcess[str]:
    """Run the command line, alone or as a user starts torchrun."""
    front = ["-m", "torch.distributed.run", "--nproc-per-node=2"] if torchrun else []
    environment = {**os.environ, "PYTHONPATH": str(session.REPOSITORY)}
    line = [sys.executable, *front, "-m", "kit", *words]
    return subprocess.run(line, capture_output=True, text=True, env=environment, check=False)


# --- refused


@pytest.mark.parametrize(("torchrun", "resume"), [(False, "auto"), (False, "FILE"), (True, "auto")])
def test_command_line_refuses_it_and_touches_nothing(
    stock: Path, values: dict[str, Any], torchrun: bool, resume: str
) -> None:
    """In one sentence with the two ways out, also where its own checkpoint is to be gone on from."""
    before = files(stock)
    done = kit_says(*command(values, "--resume", resume.replace("FILE", f"{stock}/weights/last.pt")), torchrun=torchrun)
    said = done.stdout + done.stderr
    assert done.returncode == (1 if torchrun else 2), said
    assert f"error: '{stock}' {HOLDS}" in said
    assert "kit.run=runs/other" in said
    assert "--resume never" in said
    assert files(stock) == before
    assert not (stock / ".lock").exists()
    assert [each.name for each in stock.parent.iterdir()] == ["stock"]


@pytest.mark.parametrize("resume", ["auto", True])
def test_python_and_the_notebook_refuse_it(stock: Path, values: dict[str, Any], resume: Any) -> None:
    """They share `kit.train`; nothing is started, and the dashboard writes nothing."""
    before = files(stock)
    with pytest.raises(MismatchError, match=HOLDS) as caught:
        kit.train(resume=resume, **values)
    assert caught.value.exit_code == 2
    assert "kit.run=runs/other" in caught.value.hint
    assert files(stock) == before


def test_trainer_refuses_it_by_itself(stock: Path, values: dict[str, Any]) -> None:
    """Whoever starts it."""
    before = files(stock)
    with pytest.raises(MismatchError, match=HOLDS):
        training.train(values)
    assert files(stock) == before


def test_doctor_says_what_training_would(stock: Path, values: dict[str, Any]) -> None:
    """As what stops it."""
    before = files(stock)
    found = {each.name: each for each in report.findings(None, values)}
    assert (found["start"].level, HOLDS in found["start"].text) == ("stop", True)
    assert files(stock) == before


def test_training_in_another_folder_goes_on_from_it(
    stock: Path, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The way that the sentence names, with Ultralytics' own checkpoint."""
    before = files(stock)
    state = training.train({**values, "kit.run": "runs/other"}, resume=str(stock / "weights/last.pt"))
    assert "is Ultralytics' own checkpoint" in capsys.readouterr().out
    assert [row["epoch"] for row in state["history"]] == [1, 2]
    assert files(stock) == before


# --- set aside


def test_fresh_start_sets_all_of_it_aside_and_says_so_once(stock: Path, values: dict[str, Any]) -> None:
    """On the command line; every file is there as it was, and the run has a folder of its own."""
    before = files(stock)
    done = kit_says(*command(values, "--resume", "never"))
    assert done.returncode == 0, done.stdout + done.stderr
    aside = stock.with_name("stock-1")
    assert done.stdout.count(f"The old run was moved to {aside}") == 1
    assert files(aside) == before
    assert training.read(stock / "checkpoints/latest.pt")["epoch"] == 2
    assert not (stock / "weights").exists()


def test_fresh_start_from_python_sets_it_aside(
    place: Path, stock: Path, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """`kit.train(resume=False)`; with a backup too, for which a log is begun before training starts."""
    before = files(stock)
    own = {**values, "kit": {"backup": f"file://{place}/backup", "run": values["kit.run"]}}
    del own["kit.run"]
    assert kit.train(resume=False, **own)["state"] == "finished"
    aside = stock.with_name("stock-1")
    assert files(aside) == before
    assert capsys.readouterr().out.count("The old run was moved to") == 1


def test_fresh_start_of_two_processes_sets_it_aside_once(stock: Path, values: dict[str, Any]) -> None:
    """Under a torchrun that the user has started."""
    before = files(stock)
    done = kit_says(*command(values, "--resume", "never"), torchrun=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count("The old run was moved to") == 1
    assert files(stock.with_name("stock-1")) == before
    assert [each.name for each in sorted(stock.parent.iterdir())] == ["stock", "stock-1"]


@pytest.mark.parametrize("name", ["model", "data", "pretrained"])
@pytest.mark.parametrize("foreign", [True, False])
def test_fresh_start_does_not_set_aside_what_it_reads(
    stock: Path, values: dict[str, Any], name: str, foreign: bool
) -> None:
    """A model out of the run folder, of the kit's own run too: nothing is moved, and a sentence says why."""
    if not foreign:
        (stock / "checkpoints").mkdir()
        (stock / "checkpoints/latest.pt").write_bytes(b"x")
    description = yaml.safe_load(Path(values["data"]).read_text())
    (stock / "own.yaml").write_text(yaml.safe_dump({**description, "path": str(Path(values["data"]).parent)}))
    before = files(stock)
    given = stock / ("own.yaml" if name == "data" else "weights/last.pt")
    with pytest.raises(ConfigError, match=f"{name}={given} lies in the run folder"):
        launch.run(None, config.to_args({**values, name: str(given)}), "never")
    assert files(stock) == before
    assert [each.name for each in stock.parent.iterdir()] == ["stock"]


@pytest.fixture
def disk_of_its_own(stock: Path) -> Iterator[Path]:
    """The folder on a disk of its own, which cannot be renamed and may be made read-only."""
    kept = shutil.copytree(stock, stock.parent.parent / "kept")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(stock)], check=False).returncode:
        pytest.skip("no tmpfs here")
    try:
        shutil.copytree(kept, stock, dirs_exist_ok=True)
        yield stock
    finally:
        subprocess.run(["umount", "-l", str(stock)], check=False)


@pytest.mark.parametrize("writable", ["rw", "ro"])
@pytest.mark.parametrize(("resume", "kind"), [("auto", MismatchError), ("never", StorageError)])
def test_folder_that_cannot_be_moved_or_written_is_left_alone(
    disk_of_its_own: Path, values: dict[str, Any], resume: str, kind: type[KitError], writable: str
) -> None:
    """A sentence in any case; `never` says why it could not."""
    subprocess.run(["mount", "-o", f"remount,{writable}", str(disk_of_its_own)], check=True)
    before = files(disk_of_its_own)
    with pytest.raises(kind) as caught:
        launch.run(None, config.to_args(values), resume)
    assert str(disk_of_its_own) in str(caught.value)
    assert files(disk_of_its_own) == before


# --- whose it is


@pytest.mark.parametrize("name", ["results.csv", "args.yaml", "data.yaml", "weights", "last.pt", "slim.pt"])
def test_each_name_that_a_training_writes_to_is_looked_for(tmp_path: Path, name: str) -> None:
    """Also a link that leads nowhere: it would be written through."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "nowhere")
    with pytest.raises(MismatchError, match=f"not the kit's: {name}"):
        disk.refuse_foreign(tmp_path / "run")
    (tmp_path / "run/status.json").write_text("{}")
    disk.refuse_foreign(tmp_path / "run")


def test_names_are_those_that_a_training_writes(place: Path) -> None:
    """All that a run with pictures leaves, but for what the kit is known by, and pictures of batches and curves."""
    training.train(training.settings(place, epochs=1, plots=True))
    run = RunFolder(place / "working/runs/train")
    pictures = {each.name for pattern in ("*_batch*", "*curve*", "confusion*") for each in run.path.glob(pattern)}
    left = {each.name for each in run.path.iterdir()} - pictures - {"checkpoints", "status.json", ".lock"}
    run.checkpoints.rename(place / "checkpoints")
    run.status.unlink()
    assert len(pictures) > 5
    assert set(run.foreign()) == left


def test_folder_with_other_things_in_it_is_taken(place: Path) -> None:
    """Nothing that a run writes is there."""
    run = place / "working/runs/train"
    run.mkdir(parents=True)
    (run / "notes.txt").write_text("mine")
    training.train(training.settings(place, epochs=1))
    assert (run / "notes.txt").read_text() == "mine"


def test_run_that_was_killed_before_its_first_checkpoint_is_the_kits(place: Path) -> None:
    """Its folder has Ultralytics' files, and goes on as it always did."""
    values = training.settings(place, epochs=1)
    with pytest.raises(training.Killed):
        training.train(values, training.kill_at(1))
    run = RunFolder(place / "working/runs/train")
    assert (run.path / "args.yaml").exists()
    assert not list(run.checkpoints.iterdir())
    run.status.unlink(missing_ok=True)
    assert training.train(values)["epoch"] == 1


def test_folder_that_another_process_has_just_set_aside_is_not_moved_twice(stock: Path) -> None:
    """Of two fresh starts at once the second finds the first one's new folder, and leaves it there."""
    held = multiprocessing.get_context("fork").Event()

    def other() -> None:
        with Lock(RunFolder(stock).lock):
            held.set()
            time.sleep(0.5)
            stock.rename(stock.with_name("stock-1"))
            stock.mkdir()
            (stock / "train.log").write_text("of the first")

    process = multiprocessing.get_context("fork").Process(target=other)
    process.start()
    assert held.wait(20)
    assert disk.quarantine_run(stock) is None
    process.join()
    assert (stock / "train.log").read_text() == "of the first"
    assert not stock.with_name("stock-2").exists()


def test_folder_in_which_another_process_trains_is_not_set_aside(stock: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is busy."""
    acquire = Lock.acquire
    monkeypatch.setattr(Lock, "acquire", lambda self, wait=0.1: acquire(self, 0.1))
    code = (
        "import time; from pathlib import Path; from kit.store.lock import Lock\n"
        f"Lock(Path('{stock}/.lock')).acquire(); print('held', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=session.REPOSITORY)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(BusyError):
            disk.quarantine_run(stock)
    finally:
        process.kill()
        process.wait()
    assert (stock / "results.csv").exists()
