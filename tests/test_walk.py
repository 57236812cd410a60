"""The README's first steps, taken by the tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.help.walk import walk


@pytest.mark.slow
def test_first_steps_of_the_readme(place: Path, big: Callable[[str], Path]) -> None:
    """With fewer epochs and smaller images; `make twin` takes them as they stand."""
    walk(place, big, epochs=4, imgsz=160)
