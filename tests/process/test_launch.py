"""The command line as a user runs it: real processes, real signals, exit codes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kit import config
from kit.errors import CrashError
from kit.kaggle import session
from kit.process import launch
from tests.help import training
from tests.help.training import Child, differences, rows

ROOT = session.REPOSITORY


@pytest.fixture
def values(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Settings of a quick run; the process works in tmp_path."""
    for name in ("input", "scratch"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(f"KIT_{name.upper()}", str(tmp_path / name))
    monkeypatch.chdir(tmp_path)
    return training.settings(tmp_path, epochs=3, val=False)


def words(values: dict[str, Any], **changes: Any) -> list[str]:
    return ["--config", str(ROOT / "configs/quickstart.yaml"), *config.to_args({**values, **changes})]


def finished(tmp_path: Path, values: dict[str, Any], **changes: Any) -> dict[str, Any]:
    child = Child(tmp_path, words(values, **changes))
    assert child.wait() == 0, child.output()
    return training.read(tmp_path / changes.get("kit.run", "runs/train") / "checkpoints/latest.pt")


def kit(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "kit", *arguments], capture_output=True, text=True, env=environment)


@pytest.mark.parametrize("victim", ["training", "launcher"])
def test_killed_process_resumes_bit_identical(tmp_path: Path, values: dict[str, Any], victim: str) -> None:
    """SIGKILL to the training process, or to the launcher: the next start goes on and ends with the same bits."""
    long = {**values, "epochs": 25}
    untouched = finished(tmp_path, long, **{"kit.run": "runs/untouched"})
    child = Child(tmp_path, words(long))
    seen = child.wait_for(lambda _: child.step() >= 6)
    os.kill(seen["pid"] if victim == "training" else child.process.pid, signal.SIGKILL)
    assert child.wait() == (1 if victim == "training" else -signal.SIGKILL)
    again = finished(tmp_path, long)
    assert "Resumed from epoch" in child.output()
    assert differences(untouched, again) == []
    assert rows(untouched) == rows(again)


def test_signal_to_the_whole_group_saves_and_exits_75(tmp_path: Path, values: dict[str, Any]) -> None:
    """It reaches the loader's workers too; they leave their end to the training process."""
    child = Child(tmp_path, words(values, epochs=1000, workers=2))
    seen = child.wait_for(lambda status: status.get("completed", 0) >= 1)
    os.killpg(seen["pid"], signal.SIGTERM)
    assert child.wait() == 75, child.output()
    assert "Run again to resume: about" in child.output()
    assert _members(seen["pid"]) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_saves_and_exits_75(tmp_path: Path, values: dict[str, Any], number: signal.Signals) -> None:
    """Ctrl-C and SIGTERM, four times over as a kernel's shutdown sends them, save once and exit 75."""
    child = Child(tmp_path, words(values, epochs=1000))
    child.wait_for(lambda status: status.get("completed", 0) >= 1)
    for _ in range(4):
        child.process.send_signal(number)
    assert child.wait() == 75, child.output()
    assert "Run again to resume: about" in child.output()
    assert child.status()["state"] == "stopped"
    assert training.read(tmp_path / "runs/train/checkpoints/latest.pt")["epoch"] >= 1


def test_variable_that_somebody_has_exported_starts_no_backup(
    tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launcher tells a child with it what to do; the user may have meant kit.backup."""
    monkeypatch.setenv("KIT_BACKUP", "fetch")
    outcome = launch.run(words(values)[1], words(values, epochs=1)[2:])
    assert outcome.status.get("state") == "finished"


def test_error_of_an_earlier_session_is_not_told_again(
    tmp_path: Path, values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log goes on from session to session; a crash shows its own traceback, not an older sentence."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'KIT_PARENT' in os.environ: sys.modules['torch'] = None\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "runs/train").mkdir(parents=True)
    (tmp_path / "runs/train/train.log").write_text("error: of an earlier session\n")
    outcome = launch.run(words(values)[1], words(values)[2:])
    assert outcome.code == 1
    assert isinstance(outcome.error, CrashError)
    assert "earlier session" not in str(outcome.error) + outcome.error.details
    assert "import of torch halted" in outcome.error.message
    assert "Traceback" in outcome.error.details


@pytest.mark.slow  # half a minute of waiting
def test_second_start_waits_for_the_first_and_says_who_holds_the_run(tmp_path: Path, values: dict[str, Any]) -> None:
    """One writer per run folder."""
    child = Child(tmp_path, words(values, epochs=100000))
    seen = child.wait_for(lambda status: status.get("completed", 0) >= 1)
    second = kit("train", *words(values, epochs=100000))
    assert second.returncode == 1
    assert f"is in use by process {seen['pid']}" in second.stdout
    child.process.terminate()
    assert child.wait() == 75


@pytest.mark.parametrize("deleted", [False, True])
def test_second_start_where_a_run_was_moved_or_deleted_is_the_only_writer_there(
    tmp_path: Path, values: dict[str, Any], deleted: bool
) -> None:
    """The first one ends in a sentence that says where its work is; no byte of the second one's is from it."""
    saving = {"kit.max_lost_s": 1e-6, "kit.max_cost_percent": 1e9}
    folder, moved = tmp_path / "runs/train", tmp_path / "runs/moved"
    first = Child(tmp_path, words(values, epochs=100000, **saving))
    seen = first.wait_for(lambda status: status.get("completed", 0) >= 1)
    os.kill(seen["pid"], signal.SIGSTOP)  # so that the second one is there before it looks
    if deleted:
        shutil.rmtree(folder)
    else:
        folder.rename(moved)
    second = Child(tmp_path, words(values, epochs=100001, **saving))
    begun = second.wait_for(lambda status: status.get("batch"))
    os.kill(seen["pid"], signal.SIGCONT)
    assert first.wait() == 2, first.output()
    if deleted:
        assert f"was deleted while training went on, and now '{folder}' is in use by process" in first.output()
    else:
        assert f"error: '{folder}' was moved to '{moved}' while training went on" in first.output()
        assert training.read(moved / "checkpoints/latest.pt")["progress"]["epochs"] == 100000
    assert "Traceback" not in first.output()
    second.wait_for(lambda status: status["completed"] > begun.get("completed", 0) + 1)
    for name in ("latest", "previous"):
        assert training.read(folder / f"checkpoints/{name}.pt")["progress"]["epochs"] == 100001
    assert second.status()["pid"] == begun["pid"]
    second.process.terminate()
    assert second.wait() == 75


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["epohcs=3"], "There is no setting 'epohcs' (given: 3). Did you mean 'epochs'?"),
        (["epochs=many"], "The setting 'epochs' must be int but got 'many' (str)."),
        (["epochs"], "'epochs' is not a setting. Write key=value"),
        (["resume=True"], "Use --resume auto, never or FILE."),
        (["--config", "missing.yaml"], "The config 'missing.yaml' cannot be read"),
        (["data=missing.yaml"], "missing.yaml' cannot be read"),
        (["model=missing.yaml"], "The model 'missing.yaml' cannot be read"),
        (["--resume", "missing.pt"], "The checkpoint 'missing.pt' does not exist"),
        (["epochs=-3"], "The setting 'epochs' must be at least 1 but got -3."),
    ],
)
def test_bad_input_is_one_sentence_and_exits_2(
    tmp_path: Path, values: dict[str, Any], arguments: list[str], said: str
) -> None:
    """What was wrong, the value, the next step; no traceback; nothing written."""
    done = kit("train", *words(values), *arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def test_unwritable_folder_exits_2(tmp_path: Path, values: dict[str, Any]) -> None:
    """A run folder that cannot be made is said before anything starts."""
    (tmp_path / "runs").write_text("a file where the folder should be")
    done = kit("train", *words(values))
    assert done.returncode == 2
    assert "cannot be written" in done.stderr


def test_too_little_disk_exits_2_before_the_first_step(tmp_path: Path, values: dict[str, Any]) -> None:
    """A disk without room for the checkpoints is said at the start (a real small tmpfs)."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(small)], check=False).returncode:
        pytest.skip("no tmpfs here")
    try:
        child = Child(tmp_path, words(values), KIT_WORKING=str(small))
        assert child.wait() == 2, child.output()
        assert "MB free, and" in child.output()
        assert "Starting training" not in child.output()
        assert not list(small.rglob("*.pt"))
    finally:
        subprocess.run(["umount", "-l", str(small)], check=False)


def test_guides_manual_resume_works_to_the_letter(tmp_path: Path, values: dict[str, Any]) -> None:
    """`python scripts/train.py --config ... --resume .../latest.pt`, from any folder."""
    state = finished(tmp_path, values, epochs=1)
    latest = tmp_path / "runs/train/checkpoints/latest.pt"
    own = tmp_path / "own.yaml"
    own.write_text("\n".join(f"{k}: {v}" for k, v in {**values, "epochs": 2}.items()))
    command = [sys.executable, str(ROOT / "scripts/train.py"), "--config", str(own), "--resume", str(latest)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Resumed from epoch 1" in done.stdout
    assert training.read(latest)["run_id"] == state["run_id"]


def test_status_find_and_verify_tell_of_a_run(tmp_path: Path, values: dict[str, Any]) -> None:
    """The three commands that look at a run without touching it."""
    finished(tmp_path, values, epochs=1)
    settings = words(values)
    latest = tmp_path / "runs/train/checkpoints/latest.pt"
    assert "finished" in kit("status", *settings).stdout
    assert '"state": "finished"' in kit("status", "--json", *settings).stdout
    assert f"-> {latest} (epoch 1/1): taken" in kit("find", *settings).stdout
    assert kit("verify", str(latest)).stdout == f"{latest}: good\n"
    with open(latest, "r+b") as file:
        file.truncate(1000)
    broken = kit("verify", str(latest))
    assert broken.returncode == 2
    assert "is not a whole checkpoint" in broken.stdout


def test_training_never_looks_for_the_network(tmp_path: Path, values: dict[str, Any]) -> None:
    """No name is looked up and no socket is connected, from the first import to the last line."""
    hook = tmp_path / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        "import sys\n"
        "def watch(event, arguments):\n"
        "    local = event == 'socket.connect' and not isinstance(arguments[1], tuple)\n"
        "    if event in ('socket.getaddrinfo', 'socket.connect') and not local:\n"
        f"        open({str(tmp_path / 'network.txt')!r}, 'a').write(f'{{event}} {{arguments}}\\n')\n"
        "sys.addaudithook(watch)\n"
    )
    child = Child(tmp_path, words(values, val=True, plots=True), PYTHONPATH=f"{ROOT}{os.pathsep}{hook}")
    assert child.wait() == 0, child.output()
    assert not (tmp_path / "network.txt").exists(), (tmp_path / "network.txt").read_text()


def test_worker_processes_leave_with_the_training_process(tmp_path: Path, values: dict[str, Any]) -> None:
    """A launcher that is killed leaves no process behind, loader workers included."""
    child = Child(tmp_path, words(values, epochs=100000, workers=2))
    seen = child.wait_for(lambda status: status.get("completed", 0) >= 1)
    group = seen["pid"]
    child.process.kill()
    deadline = training.time.monotonic() + 60
    while training.time.monotonic() < deadline and _members(group):
        training.time.sleep(0.1)
    assert _members(group) == []
    shutil.rmtree(tmp_path / "runs")


DYING = """
import ctypes, os, subprocess, sys, threading
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]], stdout=subprocess.PIPE)
child.stdout.readline()
threading.Thread(target=lambda: os._exit(child.wait())).start()
ctypes.CDLL(None).pthread_exit(None)
"""
TIED = """
import os, signal, sys, time
from kit.process.worker import Stop
stop = Stop(apart="apart" in sys.argv)
stop.heed(os.getppid())
stop()  # from here on there is something to save
print(flush=True)
while not stop():
    time.sleep(0.01)
sys.exit(75 if signal.alarm(0) else 0)
"""


@pytest.mark.parametrize(("words", "code"), [([], 75), (["apart"], 1)])
def test_death_of_the_parent_is_known_while_threads_of_it_live(words: list[str], code: int) -> None:
    """A killed process dies thread by thread; taken for a stop, the first would have other machines wait minutes."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", DYING, TIED, *words], env=environment, timeout=60)
    assert done.returncode == code


def _members(group: int) -> list[int]:
    members = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[2]) == group and fields[0] != "Z":
                members.append(int(entry.name))
    return members
