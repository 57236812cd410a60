"""Tiny wheels, made by the tests, and environments that hold little else than pip."""

from __future__ import annotations

import os
import subprocess
import venv
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pip


def make(folder: Path, name: str, version: str, requires: Sequence[str] = (), module: str = "") -> Path:
    """Write a wheel that holds one module; `module.py` says the version."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name.replace('-', '_')}-{version}.dist-info"
    files = {
        f"{module or name.replace('-', '_')}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": "\n".join(
            [
                "Metadata-Version: 2.1",
                f"Name: {name}",
                f"Version: {version}",
                *(f"Requires-Dist: {r}" for r in requires),
            ]
        ),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    path = folder / f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, text)
    return path


class Environment:
    """A virtual environment with the pip of this one and nothing else, which takes a tenth of a second to make."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / "bin" / "python"
        self.packages = next(folder.glob("lib/python*/site-packages"))
        (self.packages / "pip").symlink_to(Path(pip.__file__).parent)

    def install(self, wheel: Path) -> None:
        """Unpack a wheel, which is what installing comes to."""
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(self.packages)

    def has(self) -> dict[str, str]:
        """Return name -> version of what is installed."""
        infos = [folder.name.removesuffix(".dist-info") for folder in self.packages.glob("*.dist-info")]
        return dict(sorted(info.split("-", 1) for info in infos))

    def run(self, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run Python code without this process's settings of pip and git."""
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        return subprocess.run(
            [self.python, "-c", code],
            env={**kept, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
