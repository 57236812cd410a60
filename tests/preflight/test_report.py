"""The session report: each thing that would stop training or is worth a look has its sentence and its advice."""

from __future__ import annotations

import errno
import json
import os
import socket
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from nbclient import NotebookClient

import kit
from kit import cli
from kit.kaggle import session
from kit.preflight import report
from kit.preflight.report import Finding
from kit.store.disk import Disk
from tests.help import samples
from tests.help.fakes import FullDisk

GB = 10**9
GOOD: dict[str, Any] = {
    "torch": "2.10.0+cu128",
    "cuda": "12.8",
    "gpus": [],
    "checkpoints": [],
    "exit": 0,
    "error": "exit code 0, no message",
}
FINE = {"name": "Tesla T4", "problem": "", "hint": "", "kernels": True}
NONE = {"problem": "Tesla P100 (sm_60) has no kernels in torch 2.10.", "hint": "Choose GPU T4 x2."}
LOST = {"name": "Tesla P100", **NONE, "kernels": False}
BUSY = {**FINE, "problem": "Tesla T4 cannot be used (busy).", "hint": "End what else uses it."}


@pytest.fixture(autouse=True)
def session_of_its_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not on Kaggle, without a GPU, with an internet that is a closed port of this machine."""
    monkeypatch.setenv("KIT_INTERNET", "127.0.0.1:9")
    (place / "programs").mkdir()
    monkeypatch.setenv("PATH", str(place / "programs"))


@pytest.fixture(params=["Interactive", "Batch"])
def kaggle(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A session on Kaggle that is a quarter of an hour old."""
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", request.param)
    monkeypatch.setenv("KIT_SESSION_START", str(time.time() - 905))
    return str(request.param).lower()


class Rooms(Disk):
    """A disk with some room in each folder, by name, and 100 GB elsewhere."""

    def __init__(self, **rooms: float) -> None:
        self.rooms = rooms

    def free(self, folder: Path) -> int:
        return int(next((self.rooms[name] for name in folder.parts if name in self.rooms), 100 * GB))


def look(
    facts: dict[str, Any] = GOOD,
    disk: Disk | None = None,
    settings: dict[str, Any] | None = None,
    root: Path = Path("/"),
) -> dict[str, Finding]:
    """Return the findings by name; the probe says what is given."""
    probe = lambda *_: nullcontext(lambda: facts)  # noqa: E731
    found = report.findings(None, settings or {}, probe=probe, disk=disk or Rooms(), root=root)
    return {finding.name: finding for finding in found}


def check(finding: Finding, level: str, text: str, advice: str) -> None:
    """Compare a finding; what is not `ok` says what to do, and what is `ok` leaves one in peace."""
    assert finding.level == level
    assert text in finding.text
    assert advice in finding.advice
    assert bool(advice) is bool(finding.advice) is (level != report.OK)
    assert not advice or (finding.advice[0].isupper() and finding.advice.endswith((".", "?")))


def driver(place: Path, *names: str) -> None:
    """Put a `nvidia-smi` on the path that names GPUs."""
    program = place / "programs" / "nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f"echo '{name}'\n" for name in names))
    program.chmod(0o755)


def test_quiet_machine_has_nothing_in_the_way(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from Kaggle with room and internet, everything is ok."""
    (place / "proc").mkdir()
    (place / "proc/meminfo").write_text("MemTotal: 31250000 kB\nMemAvailable: 29296875 kB\n")
    with listening(monkeypatch):
        found = look(root=place)
    assert [f for f in found.values() if f.level != report.OK] == []
    assert report.conclusion(list(found.values())) == "✓ Nothing stands in the way of training."
    assert found["place"].text == "not Kaggle"
    assert found["time"].text == "no limit"
    assert "persistence" not in found
    assert "settings" not in found


def test_kaggle_session_is_named(kaggle: str) -> None:
    """Interactive or batch, its age, and what is left of its twelve hours."""
    found = look()
    check(found["place"], "ok", f"Kaggle, {kaggle} session", "")
    check(found["time"], "ok", "0:15 h since the session's start, 11:44 h left", "")


def test_persistence_is_what_interactive_sessions_need(kaggle: str) -> None:
    """It cannot be seen from within; a batch run keeps its output when it finishes."""
    if kaggle == "batch":
        check(look()["persistence"], "ok", "the output is kept when the run finishes", "")
    else:
        check(look()["persistence"], "warning", "cannot be seen", "Persistence: Files only in Session options")


@pytest.mark.parametrize("hours", [12, 1])
def test_session_that_is_nearly_over_is_said(monkeypatch: pytest.MonkeyPatch, hours: int) -> None:
    """Kaggle's twelve hours, or those of `kit.session_hours`."""
    monkeypatch.setenv("KIT_SESSION_START", str(time.time() - hours * 3600 + 25 * 60 + 30))
    if hours == 12:
        monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    found = look(settings={} if hours == 12 else {"kit.session_hours": hours})
    check(found["time"], "warning", f"{hours - 1}:34 h since the session's start, 0:25 h left", "Start a new session")


def test_session_that_is_over_has_nothing_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not less than nothing."""
    monkeypatch.setenv("KIT_SESSION_START", "1000")
    check(look(settings={"kit.session_hours": 1})["time"], "warning", " 0:00 h left", "Start a new session")


def test_little_memory_is_said(tmp_path: Path) -> None:
    """What is available counts, not what the machine has."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 31250000 kB\nMemAvailable: 1464844 kB\n")
    found = look(root=tmp_path)
    check(found["machine"], "warning", "32.0 GB of memory, 1.5 GB available", "lower batch and workers")
    assert "cores" in found["machine"].text


def test_small_shared_memory_is_said(tmp_path: Path) -> None:
    """Containers often have 64 MB there, in which loader workers die with a bus error."""
    assert "shared memory" not in look(root=tmp_path)
    (tmp_path / "dev/shm").mkdir(parents=True)
    check(look(root=tmp_path)["shared memory"], "ok", "100.0 GB free", "")
    check(look(disk=Rooms(shm=64e6), root=tmp_path)["shared memory"], "warning", "0.1 GB free", "Set workers=0")


def test_working_folder_without_space_stops() -> None:
    """With the sentence that training would stop with."""
    found = look(disk=FullDisk(5_000_000))
    check(found["working"], "stop", "working' has 5 MB free, and 67 MB are needed", "Delete files")
    check(found["scratch"], "stop", "has 5 MB free", "Delete files")


def test_working_folder_that_cannot_be_written_stops(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a file is in its place."""
    (place / "file").touch()
    for name in ("file", "file/below"):
        monkeypatch.setenv("KIT_WORKING", str(place / name))
        check(look()["working"], "stop", f"{name}' cannot be written", "Choose another folder with KIT_WORKING")


def test_little_room_in_the_working_folder_is_said(place: Path) -> None:
    """Enough to start, and not for long."""
    check(look(disk=Rooms(working=2e9))["working"], "warning", "working, 2.0 GB free", "Delete files")


def test_quota_of_kaggle_counts(kaggle: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk may have room that Kaggle does not keep."""
    monkeypatch.setenv("KIT_QUOTA", "2000000000")
    check(look(disk=Disk())["working"], "warning", "2.0 GB free", "Delete files")


def test_scratch_on_the_small_disk_of_the_working_folder_is_said(place: Path) -> None:
    """What is cached there takes room from the checkpoints."""
    found = look(disk=Rooms(scratch=9e9))
    check(found["scratch"], "warning", "9.0 GB free, on the disk of the working folder", "KIT_SCRATCH to another disk")
    check(look(disk=Rooms(scratch=11e9))["scratch"], "ok", "11.0 GB free", "")


def test_small_scratch_of_its_own_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Downloads and decoded images need room too."""
    other = Path("/dev/shm")
    if not os.access(other, os.W_OK) or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second disk here")
    monkeypatch.setenv("KIT_SCRATCH", str(other))
    check(look(disk=Rooms(shm=9e9))["scratch"], "ok", "9.0 GB free", "")
    check(look(disk=Rooms(shm=2e9))["scratch"], "warning", "2.0 GB free", "KIT_SCRATCH to a larger disk")


def test_scratch_that_somebody_planted_stops(place: Path) -> None:
    """With the sentence that training would stop with."""
    (place / "scratch" / f"kit-{os.getuid()}").symlink_to(place / "input")
    check(look()["scratch"], "stop", "belongs to another user", "Set KIT_SCRATCH to a folder of yours")


def listening(monkeypatch: pytest.MonkeyPatch, waiting: int = 8) -> socket.socket:
    """Return a server of this machine, which is the internet now."""
    server = socket.create_server(("127.0.0.1", 0), backlog=waiting)
    monkeypatch.setenv("KIT_INTERNET", f"127.0.0.1:{server.getsockname()[1]}")
    return server


def test_internet_is_on_where_a_connection_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """No more than a connection is made."""
    with listening(monkeypatch):
        check(look()["internet"], "ok", "on", "")


def test_internet_that_is_off_says_what_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what to attach instead; the switch is Kaggle's."""
    off = look()["internet"]
    check(off, "warning", "off: no download of a model by its name", "Attach the model's .pt file")
    assert "Session options" not in off.advice
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")
    assert look()["internet"].advice.startswith("Switch it on in Session options, or attach")


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:port", "no such host:443", "a" * 300 + ":443"])
def test_address_that_makes_no_sense_is_no_error(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    """It is as if the internet were off."""
    monkeypatch.setenv("KIT_INTERNET", address)
    assert report.connecting()() is False


def test_internet_that_does_not_answer_takes_three_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose queue is full drops the call, as a firewall does."""
    with listening(monkeypatch, 0) as server, socket.socket() as one, socket.socket() as two:
        for caller in (one, two):
            caller.setblocking(False)
            caller.connect_ex(server.getsockname())
        begun = time.monotonic()
        assert report.connecting()() is False
        assert 2 < time.monotonic() - begun < 5


def test_accelerator_that_is_off_is_said_on_kaggle_alone(kaggle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere there is nothing to switch on."""
    check(look()["GPU"], "warning", "none: training runs on the CPU", "GPU T4 x2 in Session options")
    monkeypatch.delenv("KAGGLE_KERNEL_RUN_TYPE")
    check(look()["GPU"], "ok", "none: training runs on the CPU", "")


def test_gpus_with_kernels_are_named(kaggle: str, place: Path) -> None:
    """By the driver, each kind once."""
    driver(place, "Tesla T4", "Tesla T4")
    check(look({**GOOD, "gpus": [FINE, FINE]})["GPU"], "ok", "2 x Tesla T4, and torch has kernels for them", "")
    driver(place, "Tesla T4")
    check(look({**GOOD, "gpus": [FINE]})["GPU"], "ok", "Tesla T4, and torch has kernels for it", "")


def test_gpu_that_only_torch_sees_is_named(place: Path) -> None:
    """`nvidia-smi` may be missing."""
    check(look({**GOOD, "gpus": [FINE]})["GPU"], "ok", "Tesla T4, and torch has kernels for it", "")


def test_gpu_without_kernels_stops(place: Path) -> None:
    """Kaggle's P100 under today's torch."""
    driver(place, "Tesla P100")
    found = look({**GOOD, "gpus": [LOST]})
    check(found["GPU"], "stop", "Tesla P100 (sm_60) has no kernels in torch 2.10", "Choose GPU T4 x2")
    assert report.conclusion(list(found.values())) == "✗ Training cannot start like this: see GPU."


def test_gpu_without_kernels_beside_a_good_one_stops_where_it_is_used(place: Path) -> None:
    """Each visible GPU trains, unless `device` or `kit.processes` leaves it out."""
    driver(place, "Tesla T4", "Tesla P100")
    two = {**GOOD, "gpus": [FINE, LOST]}
    for settings in ({}, {"device": 1}, {"device": "0,1"}, {"device": "-1"}):
        check(look(two, settings=settings)["GPU"], "stop", "Tesla P100 (sm_60) has no kernels", "Or device=0.")
    for settings in ({"device": 0}, {"device": "cuda:0"}, {"kit.processes": 1}):
        assert look(two, settings=settings)["GPU"].level == "ok"


def test_gpu_that_is_not_used_does_not_stop(place: Path) -> None:
    """With `device=cpu` it need not have kernels."""
    driver(place, "Tesla P100")
    found = look({**GOOD, "gpus": [LOST]}, settings={"device": "cpu"})
    check(found["GPU"], "ok", "Tesla P100: training runs on the CPU", "")


def test_busy_gpu_is_said(place: Path) -> None:
    """It may be free when training starts."""
    driver(place, "Tesla T4")
    check(look({**GOOD, "gpus": [BUSY]})["GPU"], "warning", "cannot be used (busy)", "End what else uses it")


def test_torch_for_the_cpu_beside_a_gpu_is_said(place: Path) -> None:
    """Training would take days and say nothing."""
    driver(place, "Tesla T4")
    found = look({**GOOD, "torch": "2.10.0+cpu", "cuda": None})
    check(found["GPU"], "warning", "Tesla T4, but torch 2.10.0+cpu is built for the CPU", "built for CUDA")


def test_gpu_that_torch_does_not_see_is_said(place: Path) -> None:
    """A driver that is too old, or a variable that hides it."""
    driver(place, "Tesla T4")
    found = look()
    check(found["GPU"], "warning", "Tesla T4, but torch 2.10.0+cu128 sees none", "CUDA_VISIBLE_DEVICES")
    assert report.conclusion(list(found.values())) == "! Training can start; worth a look: internet, GPU."


def test_torch_that_cannot_be_imported_stops(place: Path) -> None:
    """Training would fail at its first line; a GPU stays named."""
    driver(place, "Tesla T4")
    found = look({"exit": 1, "error": "exit code 1, ModuleNotFoundError: No module named 'torch'"})
    check(found["torch"], "stop", "No module named 'torch'", "pip install -r requirements.txt")
    check(
        found["GPU"], "warning", "Tesla T4; whether torch has kernels for it is not known", "See what is said of torch"
    )
    check(found["checkpoints"], "warning", "No module named 'torch'", "python -m kit find")


def test_torch_that_does_not_answer_is_said() -> None:
    """A driver may hang for a moment, and for ever."""
    found = look({"exit": 0, "error": "no answer within 60 s"})
    check(found["torch"], "warning", "could not be asked: no answer within 60 s", "restart the session")


def checkpoint(path: str, step: int = 25, problem: str = "") -> dict[str, Any]:
    """Return what the probe says of a checkpoint file."""
    summary = None if problem else {"run_id": "one", "global_step": step}
    return {"path": path, "summary": summary, "position": f"epoch {step // 10}/5", "problem": problem, "hint": ""}


def test_newest_checkpoint_is_named() -> None:
    """The first of those that were found; the generation before it is not worth a word."""
    check(look()["checkpoints"], "ok", "none: training starts at the beginning", "")
    found = [checkpoint("/w/checkpoints/latest.pt"), checkpoint("/w/checkpoints/previous.pt", 10)]
    check(look({**GOOD, "checkpoints": found})["checkpoints"], "ok", "epoch 2/5 in /w/checkpoints/latest.pt", "")


def test_generation_before_that_is_the_same_file_is_no_copy() -> None:
    """A kill between two renames leaves both names on one file."""
    found = [checkpoint("/w/checkpoints/latest.pt"), checkpoint("/w/checkpoints/previous.pt")]
    check(look({**GOOD, "checkpoints": found})["checkpoints"], "ok", "epoch 2/5 in /w/checkpoints/latest.pt", "")


def test_several_copies_of_the_newest_checkpoint_are_said() -> None:
    """The output of an older version that is still attached, say."""
    found = [checkpoint("/w/latest.pt"), checkpoint("/i/a/latest.pt"), checkpoint("/i/b/latest.pt")]
    text = "epoch 2/5 in /w/latest.pt, and 2 more of the same"
    check(look({**GOOD, "checkpoints": found})["checkpoints"], "warning", text, "Detach or delete")


def test_damaged_checkpoint_is_said() -> None:
    """Beside a good one, and alone."""
    good, bad = (
        checkpoint("/w/previous.pt"),
        checkpoint("/w/latest.pt", problem="'/w/latest.pt' is damaged: a checksum."),
    )
    text = "epoch 2/5 in /w/previous.pt; not used: '/w/latest.pt' is damaged: a checksum"
    check(look({**GOOD, "checkpoints": [good, bad]})["checkpoints"], "warning", text, "python -m kit find")
    alone = look({**GOOD, "checkpoints": [bad]})["checkpoints"]
    check(alone, "warning", "none: training starts at the beginning; not used: '/w/latest.pt'", "python -m kit find")


def test_settings_that_cannot_be_used_stop() -> None:
    """With the sentence that training would stop with; everything else is looked at all the same."""
    found = look(settings={"epohcs": 5})
    check(found["settings"], "stop", "There is no setting 'epohcs' (given: 5).", "Did you mean 'epochs'?")
    assert found["place"].level == "ok"


def test_variable_that_makes_no_sense_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here there is no next step beside the sentence's own."""
    monkeypatch.setenv("KIT_SESSION_START", "soon")
    found = look(settings={"kit.session_hours": 9})
    assert found["time"] == Finding("time", "stop", "KIT_SESSION_START must be a time in Unix seconds but is 'soon'.")


def test_disk_that_fails_is_no_error_of_the_report(tmp_path: Path) -> None:
    """What cannot be looked at is said, and the rest is looked at."""

    class Failing(Rooms):
        def free(self, folder: Path) -> int:
            if folder.name == "working":
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().free(folder)

    found = look(disk=Failing())
    assert found["working"].level == "warning"
    assert found["working"].text.startswith("could not be looked at: ")
    assert "checkpoints" in found


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_probe_answers_from_a_process_of_its_own(place: Path) -> None:
    """Torch, its GPUs and the run folder's checkpoints; this process is left as it was."""
    run = place / "working/runs/train"
    samples.save(run / "checkpoints/latest.pt", samples.state(25))
    with report.probing("{}") as answer:
        facts = answer()
        assert answer() is facts, "it is asked once"
    assert (facts["exit"], facts["torch"], facts["gpus"]) == (0, torch.__version__, [])
    assert [found["path"] for found in facts["checkpoints"]] == [str(run / "checkpoints/latest.pt")]


def module(place: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> str:
    """Write a module that a child process can be started with, and return its name."""
    (place / "stand_in.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(place))
    return "stand_in"


HANGING = """
import os, pathlib, sys, time
print('{"torch": "2"}')
print('{"half', end="", flush=True)
pathlib.Path(sys.argv[1], "part").write_text(str(os.getpid()))
os.replace(f"{sys.argv[1]}/part", f"{sys.argv[1]}/pid")
time.sleep(99)
"""


def hanging(place: Path) -> int:
    """Wait until a `HANGING` probe hangs, and return its process id."""
    while not (place / "pid").exists():
        time.sleep(0.05)
    return int((place / "pid").read_text())


def test_probe_that_hangs_is_left_behind(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it said before is kept, half a line is not, and it does not outlive the report."""
    with report.probing(str(place), module=module(place, monkeypatch, HANGING), limit=1.0) as answer:
        number = hanging(place)
        begun = time.monotonic()
        assert answer() == {"torch": "2", "exit": 0, "error": "no answer within 1 s"}
        assert 0.9 < time.monotonic() - begun < 10
        assert answer()["torch"] == "2", "it is asked once"
        assert time.monotonic() - begun < 10
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_probe_that_is_not_waited_for_ends_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A report that is interrupted leaves no process behind."""
    with report.probing(str(place), module=module(place, monkeypatch, HANGING)):
        number = hanging(place)
    with pytest.raises(ProcessLookupError):
        os.kill(number, 0)


def test_probe_that_dies_says_why(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With its last words, what it said before, and nothing of what a library printed."""
    text = "print('hello')\nprint(7)\nprint('{\"torch\": \"2\"}')\nraise ImportError('libcudnn.so.9: no such file')"
    with report.probing(str(place), module=module(place, monkeypatch, text)) as answer:
        facts = answer()
    error = "exit code 1, ImportError: libcudnn.so.9: no such file"
    assert facts == {"exit": 1, "error": error, "torch": "2"}


def test_command_prints_the_report_and_exits_0(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line for each finding, aligned, with a word beside each mark."""
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "✓ ok       place          not Kaggle"
    assert f"✓ ok       torch          {torch.__version__}" in lines
    row = next(number for number, line in enumerate(lines) if line.startswith("! warning  internet       off"))
    assert lines[row + 1].startswith(" " * 26 + "→ Attach the model's .pt file")
    assert lines[-1].startswith("! Training can start; worth a look: ")


def test_command_exits_2_where_training_would_stop(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which `train` itself exits with; as JSON there is nothing but the findings."""
    (place / "file").touch()
    monkeypatch.setenv("KIT_WORKING", str(place / "file"))
    assert cli.main(["doctor", "--json", "epochs=5"]) == 2
    found = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert found["working"]["level"] == "stop"
    assert set(found["working"]) == {"name", "level", "text", "advice"}
    assert found["torch"]["text"] == torch.__version__


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("data=/nowhere/data.yaml", "'/nowhere/data.yaml'"),
        ("data=auto", "Attach"),
        ("model=nowhere.pt", "The model 'nowhere.pt' does not exist"),
        ("model=nowhere.yaml", "nowhere.yaml"),
        ("device=7", "device"),
        ("optimizer=Lion", "optimizer"),
    ],
)
def test_what_training_would_not_start_with_stops(
    place: Path, capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    """By training's own checks, in its words; `train` ends with the same code."""
    words = ["data=shapes", "model=yolov8n.yaml", "device=cpu"]
    words = [each for each in words if each.partition("=")[0] != word.partition("=")[0]]
    assert cli.main(["doctor", "--json", *words, word]) == 2
    stops = [each for each in json.loads(capsys.readouterr().out) if each["level"] == report.STOP]
    assert len(stops) == 1
    assert said in f"{stops[0]['text']}: {stops[0]['advice']}"


def test_what_training_would_start_with_is_shown(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The task, the model, the data set and its classes."""
    assert cli.main(["doctor", "--json", "data=shapes", "model=yolov8n.yaml"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)}
    assert found["start"]["text"].startswith("detect: yolov8n.yaml on ")
    assert found["start"]["text"].endswith(", 3 classes")


def test_report_in_python_is_text(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`kit.doctor` raises nothing and returns nothing, also where training would stop."""
    assert kit.doctor(epohcs=5) is None  # type: ignore[func-returns-value]
    said = capsys.readouterr().out.splitlines()
    assert said[0].startswith("✗ stop     settings       There is no setting 'epohcs' (given: 5)")
    assert said[-1] == "✗ Training cannot start like this: see settings."


def test_report_in_a_notebook_is_one_table(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One output, as text and as HTML, in the state that it ended in; «Run all» goes on after a stop."""
    (place / "file").touch()
    monkeypatch.setenv("KIT_WORKING", str(place / "file"))
    monkeypatch.setenv("PYTHONPATH", str(session.REPOSITORY))
    cells = ["import kit\nkit.doctor()", "import sys\nprint('torch' in sys.modules)"]
    node = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(node, timeout=120, resources={"metadata": {"path": str(place)}}).execute()
    (output,) = node.cells[0].outputs
    assert "✗ Training cannot start like this: see working." in output["data"]["text/plain"]
    assert "<p><b>✗ Training cannot start like this: see working.</b></p>" in output["data"]["text/html"]
    assert torch.__version__ in output["data"]["text/html"]
    assert node.cells[1].outputs[0]["text"] == "False\n", "the kernel never imports torch"


def test_table_is_readable_in_light_and_dark_themes() -> None:
    """It has marks and words instead of colours, and shows what was found as it is."""
    page = report.table([Finding("data", "stop", "<script>&", "give data=<PATH>")], "title")[0]
    assert "✗ stop" in page
    assert "&lt;script&gt;&amp;" in page
    assert "→ give data=&lt;PATH&gt;" in page
    assert "color" not in page
    assert "background" not in page
