"""The n-th request to a store fails, at a size that fits here; `make chaos` fails them all."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

HARNESS = Path(__file__).with_name("outages.py")


@pytest.mark.slow
@pytest.mark.parametrize(("store", "step"), [("files", 3), ("kaggle", 17), ("hub", 17)])
def test_no_failing_request_loses_a_run(shown: list[str], store: str, step: int) -> None:
    """Refused, 403, 429, 500, cut in mid-body, a page in place of the file, an old list; all over four sessions."""
    pytest.importorskip({"files": "fsspec", "kaggle": "kagglehub", "hub": "huggingface_hub"}[store])
    command = [sys.executable, str(HARNESS), "--stores", store, "--step", str(step)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    found = re.search(r"^(\d+) cut points, 0 runs lost$", done.stdout, re.MULTILINE)
    assert found
    assert int(found[1]) >= 7 * 4, "each of seven kinds in each of four sessions"
    shown.append(f"store, {store}  {found[0]}")
