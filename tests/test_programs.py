"""Each program, make target and command of the README is run, at its smallest."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from kit.kaggle import session
from tests.test_readme import COMMANDS

REPOSITORY = session.REPOSITORY
MAKEFILE = (REPOSITORY / "Makefile").read_text()
PROGRAMS = {
    "benchmarks/cost.py": "--models yolov8n --pairs 1 --seconds 1",
    "benchmarks/gpu.py": "--device cpu --quick --out gpu.json",
    "benchmarks/loader.py": "--sizes 320x240 --images 40 --epochs 2 --repeats 1",
    "benchmarks/ranks.py": "--processes 1 2 --launches 1 --turns 2",
    "benchmarks/resume.py": "--images 16 --imgsz 32 --epochs 3",
    "benchmarks/saving.py": "--quick",
    "benchmarks/training.py": "--repeats 1 --epochs 2 --batches 20",
    "tests/chaos/kills.py": "--kills 3",
}
ELSEWHERE = {  # a program -> the test that runs it
    "scripts/train.py": "process/test_launch.py",
    "tests/chaos/calls.py": "chaos/test_calls.py",
    "tests/chaos/outages.py": "chaos/test_outages.py",
    "tests/dashboard/pictures.py": "kaggle/test_browser.py",
    "tests/help/pretrained.py": "help/pretrained.py",
    "tests/help/variants.py": "parallel/test_processes.py",
}
TARGETS = {"train", "gpu", "clean"}  # of the Makefile, run here; the others run what is above, or are CI's own
SMALL = ["data=shapes", "model=yolov8n.yaml", "epochs=1", "imgsz=32", "batch=32"]


def programs() -> set[str]:
    """Return the programs of the repository, beside the kit itself."""
    files = (path for folder in ("benchmarks", "scripts", "tests") for path in (REPOSITORY / folder).rglob("*.py"))
    return {
        str(path.relative_to(REPOSITORY))
        for path in files
        if path.parent.name == "scripts" or '\nif __name__ == "__main__":\n' in path.read_text()
    }


def recipe(target: str) -> list[list[str]]:
    """Return the commands of a make target."""
    lines = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert lines
    return [shlex.split(line.split("#")[0]) for line in lines[1].replace("\t", "").splitlines()]


def run(*command: str, cwd: Path, code: int = 0) -> str:
    """Run a command, which must end with that code; return what it printed."""
    environment = {**os.environ, "PYTHONPATH": session.import_path()}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=900)
    assert done.returncode == code, f"{command}: exit {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def test_each_program_is_run_by_a_test() -> None:
    """Here, or by a test that names it."""
    assert programs() == {*PROGRAMS, *ELSEWHERE}
    for program, test in ELSEWHERE.items():
        name = Path(program).name
        assert name in (REPOSITORY / "tests" / test).read_text() or name == test, f"{test} does not run {program}"


def test_each_make_target_is_run_by_a_test_or_by_ci() -> None:
    """What a target runs is a program of the table, pytest, or a tool of the linting that CI does."""
    ci = set(re.findall(r"^make ([\w-]+)", (REPOSITORY / ".ci/run").read_text(), re.MULTILINE))
    for target in re.findall(r"^([\w-]+):", MAKEFILE, re.MULTILINE):
        if target not in ci | TARGETS:
            words = [word for command in recipe(target) for word in command]
            named = {word for word in words if word.endswith(".py")}
            assert named <= {*PROGRAMS, *ELSEWHERE}, target
            assert named or "pytest" in words, target


@pytest.mark.slow
@pytest.mark.parametrize("program", PROGRAMS)
def test_program_runs(place: Path, program: str) -> None:
    """To its end, with a figure."""
    said = run(sys.executable, str(REPOSITORY / program), *shlex.split(PROGRAMS[program]), cwd=place)
    assert re.search(r"\d\.\d|\d kills|\d of \d", said), said


@pytest.mark.slow
def test_make_targets_run(place: Path) -> None:
    """On an environment that is there: training, what a GPU is asked, and taking everything away."""
    made = [word for name in ("run", "dev", "bench") for word in ("-o", f"{sys.prefix}/{name}")]
    make = ["make", "-C", str(REPOSITORY), *made]
    said = run(*make, f"VENV={sys.prefix}", f"ARGS={' '.join(SMALL)}", "train", cwd=place)
    assert "Training finished: 1 epochs" in said
    said = run(*make, f"PYTHON={sys.executable}", "gpu", cwd=place)
    assert torch.cuda.is_available() or ("skipped" in said and "There is no GPU here: nothing was measured." in said)
    (place / "venv").mkdir()
    run(*make, f"VENV={place}/venv", f"TWIN={place}/twin", "clean", cwd=place)
    assert not (place / "venv").exists()


@pytest.mark.slow
def test_commands_of_the_readme_run(place: Path) -> None:
    """In their order, with an epoch on small images."""
    folder = place / "working"
    (folder / "my.yaml").write_text("\n".join(word.replace("=", ": ") for word in SMALL))
    commands = [shlex.split(line) for line in COMMANDS if line.startswith("python -m kit")]
    trained = 0
    for command in commands:
        code = 0
        if command[3] == "train":
            command = [*command, *SMALL, *([f"kit.run=runs/{trained}"] if trained else [])]
            code, trained = 2 * ("device=0" in command and not torch.cuda.is_available()), trained + 1
        run(sys.executable, *command[1:], cwd=folder, code=code)
    assert trained >= 4
    assert len(commands) >= 10
    assert (folder / "model.pt").exists()
