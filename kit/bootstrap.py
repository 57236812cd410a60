"""What the notebook's first cell calls: put the repository on the import path and install what is missing.

Standard library only, because nothing else may be there yet. The cell itself finds or clones the repository; its text
is made by `kit.notebook`.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from kit.errors import KitError

ROOT = Path(__file__).resolve().parent.parent


def setup() -> str:
    """Make the kit usable from this process and from those that it starts.

    Returns:
        One line that says what was found and what was installed.

    Raises:
        KitError: A package is missing and could not be installed.
    """
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    missing = [line for line in requirements() if not satisfied(line)]
    if missing:
        install(missing)
    return f"The kit is in {ROOT}; " + (f"installed {', '.join(missing)}" if missing else "nothing had to be installed")


def requirements() -> list[str]:
    """Return the lines of requirements.txt."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def satisfied(requirement: str) -> bool:
    """Tell whether a line like `torch>=2.6,<3` is met by what is installed."""
    name, _, bounds = re.match(r"([\w.-]+)(\[.*?\])?(.*)", requirement).groups()  # type: ignore[union-attr]
    try:
        have = _numbers(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False
    for operator, bound in re.findall(r"(>=|<)\s*([\w.]+)", bounds):
        if (have >= _numbers(bound)) != (operator == ">="):
            return False
    return True


def _numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version.partition("+")[0])][:4]


def install(missing: list[str]) -> None:
    """Install packages without moving any that is there already: everything present is held by a constraint.

    Raises:
        KitError: pip failed; the message carries its last line.
    """
    present = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions() if d.metadata["Name"]}
    wanted = {re.split(r"[\[<>=]", line)[0].lower() for line in missing}
    with tempfile.TemporaryDirectory() as folder:
        held = Path(folder) / "constraints.txt"
        lines = [f"{name}=={version}" for name, version in present.items() if name.lower() not in wanted]
        held.write_text("\n".join(lines) + "\n", encoding="utf-8")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--constraint", str(held), *missing]
        wheels = [str(path) for path in Path(os.environ.get("KIT_INPUT", "/kaggle/input")).rglob("*.whl")]
        command += [
            word for folder in sorted({str(Path(w).parent) for w in wheels}) for word in ("--find-links", folder)
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise KitError(
            f"{', '.join(missing)} could not be installed ({last}). Switch the internet on in the notebook's settings, "
            "or attach the wheels as a data set."
        )
