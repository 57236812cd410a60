"""The n-th call to the file system fails, at a size that fits here; `make chaos` fails them all."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("calls.py")


@pytest.mark.slow
def test_no_failing_call_loses_a_run(shown: list[str]) -> None:
    """No room, a broken disk, an interrupted call, half a write, and a kill, at calls all over a session."""
    done = subprocess.run(
        [sys.executable, str(HARNESS), "--step", "19"], capture_output=True, text=True, check=False, timeout=1200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"^(\d+) cut points, 0 runs lost$", done.stdout, re.MULTILINE)
    assert found
    assert int(found[1]) >= 5 * 8, "each of five kinds at several calls"
    shown.append(f"file system  {found[0]}")
