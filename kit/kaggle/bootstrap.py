"""What the notebook's first cell calls: put the repository on the import path and install what is missing.

Standard library only, because nothing else may be there yet. The cell itself finds or clones the repository; its text
is made by `kit.kaggle.notebook`.

pip gets a constraint for everything that is installed: it resolves and downloads all before it changes anything, so a
conflict changes nothing, and nothing that was there moves. It installs a package after those that it needs, so one that
is there is whole, also after a kill.

Not covered: an installation that is broken already. Only the presence and the version of what requirements.txt names
are looked at when nothing has to be installed.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

from kit.errors import KitError
from kit.kaggle import inputs, session

PATIENCE_S = 15.0  # for the package index's first answer: a resolver without a network may keep silent for minutes
# The same module comes in packages of other names (-headless, -contrib), and two of them overwrite each other's files.
MODULES = {"opencv-python": "cv2"}


def setup() -> str:
    """Make the kit usable from this process and from those that it starts.

    Returns:
        One line that says what was found and what was installed.

    Raises:
        KitError: A package is missing and could not be installed, or is there in a version that the kit cannot use.
    """
    sys.path[:] = dict.fromkeys([str(session.REPOSITORY), *sys.path])
    paths = [str(session.REPOSITORY), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    os.environ["PYTHONPATH"] = os.pathsep.join(dict.fromkeys(filter(None, paths)))
    missing = [line for line in requirements() if not satisfied(line)]
    said = install(missing) if missing else "nothing had to be installed"
    return f"The kit is in {session.REPOSITORY}; {said}"


def requirements() -> list[str]:
    """Return the lines of requirements.txt without their comments."""
    lines = (session.REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in (line.partition("#")[0].strip() for line in lines) if line]


def satisfied(requirement: str) -> bool:
    """Tell whether a line like `torch>=2.6,<3` is met by what is installed; False when it is not there at all.

    Raises:
        KitError: An incompatible version is there. It stays, because other packages may depend on it.
    """
    name, bounds = re.match(r"([\w.-]+)(?:\[.*?\])?(.*)", requirement).groups()  # type: ignore[union-attr]
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    for operator, bound in re.findall(r"(>=|<)\s*([\w.]+)", bounds):
        if (_numbers(version) >= _numbers(bound)) != (operator == ">="):
            raise KitError(
                f"{name} {version} is installed, and the kit needs {requirement}. What is installed is never moved.",
                f"Run `pip install '{requirement}'` if nothing else here needs the other version, and restart.",
            )
    return True


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])][:4]


def install(missing: list[str]) -> str:
    """Install packages and what they need, without moving any that is there already.

    Args:
        missing: Lines of requirements.txt.

    Returns:
        What was installed, and that nothing else has moved.

    Raises:
        KitError: pip failed; one sentence says why, and what to do.
    """
    before = installed()
    source = [] if _index_answers(_name(missing[0])) else ["--no-index", *_named_wheels()]
    with tempfile.TemporaryDirectory() as folder:
        stand_ins = {
            name: _stand_in(name, before, Path(folder))
            for name, module in MODULES.items()
            if name not in before and importlib.util.find_spec(module)
        }
        held = Path(folder, "constraints.txt")
        lines = [f"{name}=={version}\n" for name, version in {**before, **stand_ins}.items()]
        held.write_text("".join(lines), encoding="utf-8")
        code, said = _pip("install", "--constraint", str(held), "--find-links", folder, *source, *missing)
    if code:
        reason, hint = _reason(said, source)
        raise KitError(f"{', '.join(missing)} could not be installed: {reason}", hint)
    if stand_ins:
        _pip("uninstall", "--yes", *stand_ins)
    importlib.invalidate_caches()
    after = installed()
    if changes := moved(before, after):
        raise KitError(
            f"pip has moved {', '.join(changes)}.", "Restart the session, so that nothing runs on a mixture."
        )
    new = [f"{name} {version}" for name, version in sorted(after.items()) if name not in before]
    return f"installed {', '.join(new)}; nothing that was there has moved"


def installed() -> dict[str, str]:
    """Return name -> version of every installed package, the one that an import finds first."""
    found = {}
    for package in importlib.metadata.distributions():
        name = package.metadata["Name"] or "?"
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # `~umpy`, the rest of a broken removal
            found[_name(name)] = importlib.metadata.version(name)
    return found


def moved(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """List, as `name old -> new`, what is not what it was; what is new is left out."""
    return [f"{name} {old} -> {after.get(name, 'gone')}" for name, old in before.items() if after.get(name) != old]


def _name(requirement: str) -> str:
    """Return the package's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", re.split(r"[\[<>=!~; ]", requirement)[0]).lower()


def _stand_in(name: str, present: Mapping[str, str], folder: Path) -> str:
    """Make an empty wheel that pip can choose, for a package whose module is there under another name.

    It is removed again once pip is done.

    Returns:
        Its version: that of the package whose place it takes.
    """
    family = name.partition("-")[0]
    version = next((found for other, found in present.items() if other.startswith(family)), "999")
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")
    return version


def _index_answers(name: str) -> bool:
    """Ask the package index about one package. Any answer will do: what it means, pip says later."""
    code, said = _pip("index", "versions", name, "--timeout", "5", "--retries", "1", seconds=PATIENCE_S)
    return code == 0 or not re.search("connection|timed out|unreachable|resolution", said, re.IGNORECASE)


def _named_wheels() -> list[str]:
    """Return pip's options for the folders with wheels in the place that the user named: a wheel is code."""
    named = os.environ.get("KIT_WHEELS")
    return [f"--find-links={folder}" for folder in _with_wheels(Path(named))] if named else []


def _with_wheels(root: Path) -> list[Path]:
    return [place.folder for place in inputs.walk(root) if any(name.endswith(".whl") for name in place.files)]


def _reason(said: str, source: list[str]) -> tuple[str, str]:
    """Turn what pip said into what is wrong and what to do."""
    for name, version in re.findall(r"\(constraint\) (\S+?)==(\S+)", said):
        if needs := re.search(rf"(?im)^ +(\S+ \S+) depends on ({re.escape(name)}\b.*)$", said):
            return (
                f"{needs[1]} needs {needs[2]}, and {name} {version} is installed and stays. Nothing was changed.",
                "Take another environment in the notebook's settings, or a version of the kit that fits this one.",
            )
    if source == ["--no-index"]:
        others = ", ".join(f"'{each}'" for each in _with_wheels(session.inputs()))
        unused = f" Not used, because COPY does not name it: {others}." if others else ""
        return (
            f"there is no internet, and COPY names no wheels.{unused}",
            "Switch it on (Session options), or see «Without internet» in docs/notebook.md.",
        )
    lacking = re.search(r"No matching distribution found for (\S+)", said)
    if source and lacking:
        return f"there is no internet, and the wheels in COPY lack {lacking[1]}.", "See docs/notebook.md."
    errors = re.findall(r"(?im)^error:(?! *exception:) *(.+)$", said) or said.strip().splitlines()[-1:]
    return f"pip says «{errors[0] if errors else 'nothing'}».", ""


def _pip(*words: str, seconds: float | None = None) -> tuple[int, str]:
    """Run pip and return its exit code and all that it said."""
    command = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check", *words]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return 1, "timed out"
    return done.returncode, done.stdout
