"""What is missing is installed, what is present stays: bare environments, tiny wheels, no network but the loopback."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from kit.errors import KitError
from kit.kaggle import bootstrap, session
from tests.help import wheels

SETUP = """
import sys
sys.path.insert(0, {root!r})
from kit.kaggle import bootstrap
bootstrap.PATIENCE_S = {patience}
try:
    print(bootstrap.setup())
except bootstrap.KitError as error:
    sys.exit("error: " + str(error))
import {module}
print("imported", {module}.VERSION)
"""


class Machine:
    """A bare machine with a copy of the kit that needs `tool>=2,<3`, and an index that is a folder of wheels."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.index, self.root = folder, folder / "index", folder / "copy"
        self.environment = wheels.Environment(folder / "environment")
        self.variables = {
            "HOME": str(folder),
            "KIT_INPUT": str(folder / "input"),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": str(self.index),
        }
        self.index.mkdir()
        shutil.copytree(session.REPOSITORY / "kit", self.root / "kit", ignore=shutil.ignore_patterns("__pycache__"))
        self.needs("tool>=2,<3  # a reason may stand here")

    def needs(self, *lines: str) -> None:
        (self.root / "requirements.txt").write_text("# what the kit needs\n" + "\n".join(lines) + "\n")

    def offline(self, port: int) -> None:
        """Leave nothing but an index that does not answer."""
        self.variables = {
            "HOME": str(self.folder),
            "KIT_INPUT": str(self.folder / "input"),
            "PIP_INDEX_URL": f"http://127.0.0.1:{port}/simple",
            "KIT_WHEELS": str(self.folder / "input/mine"),
        }

    def have(self, name: str, version: str, requires: tuple[str, ...] = (), module: str = "") -> None:
        self.environment.install(wheels.make(self.folder / "present", name, version, requires, module))

    def setup(self, patience: float = 15, module: str = "tool") -> str:
        """Run the bootstrap and return what it said, its error or the module's version included."""
        code = SETUP.format(root=str(self.root), patience=patience, module=module)
        done = self.environment.run(code, **self.variables)
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.fixture
def silent() -> Iterator[int]:
    """A port that takes every call and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_missing_package_is_installed_with_what_it_needs(machine: Machine) -> None:
    """And usable at once, in the process that asked for it."""
    wheels.make(machine.index, "tool", "2.1", ["helper>=1"])
    wheels.make(machine.index, "tool", "3.0")
    wheels.make(machine.index, "helper", "1.5")
    said = machine.setup()
    assert f"The kit is in {machine.root}; installed helper 1.5, tool 2.1; nothing that was there has moved" in said
    assert "imported 2.1" in said


def test_present_package_is_held_in_place(machine: Machine) -> None:
    """The newest tool would move numpylike; an older one that leaves it alone is taken instead."""
    machine.have("numpylike", "1.0")
    wheels.make(machine.index, "numpylike", "2.0")
    wheels.make(machine.index, "tool", "2.2", ["numpylike>=2"])
    wheels.make(machine.index, "tool", "2.1", ["numpylike>=1"])
    assert "installed tool 2.1; nothing that was there has moved" in machine.setup()
    assert machine.environment.has() == {"numpylike": "1.0", "tool": "2.1"}


def test_conflict_is_one_sentence_and_changes_nothing(machine: Machine) -> None:
    """It names who needs what, what is installed, and what to do."""
    machine.have("numpylike", "1.0")
    wheels.make(machine.index, "numpylike", "2.0")
    wheels.make(machine.index, "helper", "1.0")
    wheels.make(machine.index, "tool", "2.2", ["helper", "numpylike>=2"])
    said = machine.setup()
    assert (
        "error: tool>=2,<3 could not be installed: tool 2.2 needs numpylike>=2, and numpylike 1.0 is installed" in said
    )
    assert "Nothing was changed. Take another environment" in said
    assert len(said.splitlines()) == 1
    assert machine.environment.has() == {"numpylike": "1.0"}


def test_present_package_out_of_bounds_stays_and_is_said(machine: Machine) -> None:
    """Moving it is the user's to decide: the sentence has the command."""
    machine.have("tool", "1.9")
    wheels.make(machine.index, "tool", "2.1")
    said = machine.setup()
    assert "error: tool 1.9 is installed, and the kit needs tool>=2,<3." in said
    assert "pip install 'tool>=2,<3'" in said
    assert machine.environment.has() == {"tool": "1.9"}


def test_remains_of_a_broken_removal_are_not_held(machine: Machine) -> None:
    """They carry the name of what is there, in an old version, or no name at all."""
    packages = machine.environment.packages
    for name in ("numpylike", "other"):
        machine.have(name, "0.9")
        (packages / f"{name}-0.9.dist-info").rename(packages / f"~{name[1:]}-0.9.dist-info")
    machine.have("numpylike", "1.0")
    (packages / "nameless-1.0.dist-info").mkdir()
    (packages / "nameless-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\n")
    code = (
        f"import sys; sys.path.insert(0, {str(machine.root)!r})\nfrom kit.kaggle.bootstrap import *; print(installed())"
    )
    assert machine.environment.run(code).stdout == "{'numpylike': '1.0'}\n"


def test_module_that_is_there_under_another_name_is_not_installed_again(machine: Machine) -> None:
    """opencv-python beside opencv-python-headless would overwrite its files."""
    machine.have("opencv-python-headless", "4.10.0.84", module="cv2")
    wheels.make(machine.index, "opencv-python", "4.13.0.92", module="cv2")
    wheels.make(machine.index, "tool", "2.1", ["opencv-python>=4.7.0,!=4.13.0.90"])
    assert "installed tool 2.1; nothing" in machine.setup()
    assert machine.environment.has() == {"opencv_python_headless": "4.10.0.84", "tool": "2.1"}


def test_module_that_is_not_there_is_installed(machine: Machine) -> None:
    """A bare machine gets its opencv."""
    wheels.make(machine.index, "opencv-python", "4.13.0.92", module="cv2")
    wheels.make(machine.index, "tool", "2.1", ["opencv-python>=4.7.0"])
    assert "installed opencv-python 4.13.0.92, tool 2.1" in machine.setup()


def test_second_run_has_nothing_to_do_and_does_not_start_pip(machine: Machine) -> None:
    """Which is what makes it fast."""
    wheels.make(machine.index, "tool", "2.1")
    machine.setup()
    (machine.environment.packages / "pip").unlink()
    assert "nothing had to be installed" in machine.setup()


def test_what_the_kit_names_is_installed_last(machine: Machine) -> None:
    """A run that is killed in between would else leave the next one content with half of it."""
    machine.needs("zebra>=1", "ant>=1")
    for name in ("ant", "zebra"):
        wheels.make(machine.index, name, "1.0", ["middle"])
    wheels.make(machine.index, "middle", "1.0")
    assert "installed ant 1.0, middle 1.0, zebra 1.0" in machine.setup(module="zebra")
    written = {path.parent.name: path.stat().st_mtime_ns for path in machine.environment.packages.glob("*/RECORD")}
    assert min(written, key=written.__getitem__) == "middle-1.0.dist-info"


def test_without_internet_attached_wheels_are_installed(machine: Machine, closed: int) -> None:
    """Wherever they lie in the input that is named; not the newer ones of another."""
    machine.offline(closed)
    wheels.make(machine.folder / "input/mine/wheels", "tool", "2.1", ["helper"])
    wheels.make(machine.folder / "input/mine/a/b", "helper", "1.0")
    wheels.make(machine.folder / "input/somebody", "tool", "2.9", ["helper"])
    assert "installed helper 1.0, tool 2.1" in machine.setup()


@pytest.mark.parametrize("named", [True, False])
def test_wheels_of_an_input_that_is_not_named_are_not_installed(machine: Machine, closed: int, named: bool) -> None:
    """One sentence says where they lie."""
    machine.offline(closed)
    if not named:
        del machine.variables["KIT_WHEELS"]
    wheels.make(machine.folder / "input/somebody/flowers", "tool", "2.9")
    said = machine.setup()
    assert f"COPY names no wheels. Not used, because COPY does not name it: '{machine.folder}/input/somebody/fl" in said
    assert len(said.splitlines()) == 1
    assert machine.environment.has() == {}


def test_without_internet_and_wheels_one_sentence_says_so(machine: Machine, closed: int) -> None:
    """Both ways out are named."""
    machine.offline(closed)
    said = machine.setup()
    assert "error: tool>=2,<3 could not be installed: there is no internet, and COPY names no wheels. Switch it" in said
    assert len(said.splitlines()) == 1


def test_without_internet_the_wheel_that_is_lacking_is_named(machine: Machine, closed: int) -> None:
    """The data set was made for another version of the kit."""
    machine.offline(closed)
    wheels.make(machine.folder / "input/mine", "tool", "2.1", ["helper>=1"])
    assert "the wheels in COPY lack helper>=1. See docs/notebook.md." in machine.setup()
    assert machine.environment.has() == {}


def test_index_that_never_answers_is_no_internet(machine: Machine, silent: int) -> None:
    """It is waited for once, and not for minutes."""
    machine.offline(silent)
    assert "there is no internet" in machine.setup(patience=2)


def test_package_that_the_index_does_not_have_is_not_taken_for_a_lost_network(machine: Machine) -> None:
    """What pip says itself is passed on."""
    said = machine.setup()
    assert "error: tool>=2,<3 could not be installed: pip says «Could not find a version that satisfies" in said


def test_import_path_is_handed_on_once(machine: Machine) -> None:
    """To this process and, by PYTHONPATH, to `!python -m kit` in a cell; a newer copy goes before an older one."""
    machine.have("tool", "2.1")
    code = f"""
import os, sys
sys.path.insert(0, {str(machine.root)!r}); sys.path.insert(0, "other")
from kit.kaggle import bootstrap
bootstrap.setup(); bootstrap.setup()
print(sys.path[:2], sys.path.count({str(machine.root)!r}), os.environ["PYTHONPATH"])
"""
    done = machine.environment.run(code, PYTHONPATH="older", **machine.variables)
    assert done.stdout.split("\n")[-2] == f"['{machine.root}', 'other'] 1 {machine.root}:older"


@pytest.mark.parametrize(
    ("after", "changes"),
    [
        ({"torch": "2.10.0+cu128", "numpy": "2.0.2", "tool": "2.1"}, []),
        ({"torch": "2.10.0", "numpy": "2.0.2"}, ["torch 2.10.0+cu128 -> 2.10.0"]),
        ({"torch": "2.10.0+cu128"}, ["numpy 2.0.2 -> gone"]),
    ],
)
def test_what_has_moved_is_noticed(after: dict[str, str], changes: list[str]) -> None:
    """To another version, to another build of the same one, or away; what is new has not moved."""
    assert bootstrap.moved({"torch": "2.10.0+cu128", "numpy": "2.0.2"}, after) == changes


def test_requirements_of_the_kit_are_met_here() -> None:
    """The lines of requirements.txt are understood, bounds and all."""
    assert [line for line in bootstrap.requirements() if not bootstrap.satisfied(line)] == []
    assert not bootstrap.satisfied("no-such-package>=1")
    for line in ("pytest>=99", "pytest>=1,<2", "pytest[extra]<2"):
        with pytest.raises(KitError, match=r"pytest \S+ is installed, and the kit needs pytest"):
            bootstrap.satisfied(line)


def test_cell_of_an_earlier_notebook_works_and_is_told_what_to_do(machine: Machine) -> None:
    """It looks for kit/bootstrap.py, in clones and in copies, and calls its `setup`."""
    shutil.copy(session.REPOSITORY / "kit/bootstrap.py", machine.root / "kit/bootstrap.py")
    machine.have("tool", "2.1")
    code = f"import sys; sys.path.insert(0, {str(machine.root)!r})\nfrom kit import bootstrap; print(bootstrap.setup())"
    (said,) = machine.environment.run(code, **machine.variables).stdout.splitlines()
    assert said.startswith(f"The kit is in {machine.root}; nothing had to be installed. The notebook is of an earlier")
    assert said.endswith("copy the first cell of notebooks/train.ipynb over this one.")
