"""Take the README's pictures from a real run in JupyterLab, in both themes: `make pictures`."""

from __future__ import annotations

import argparse
import io
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import nbformat
from PIL import Image
from playwright.sync_api import Error

from kit.kaggle import notebook
from kit.run import status
from tests.help.browser import FRONTS, Notebook, browsing, serving, wait_until

EPOCHS = 24
SCALE = 1.5
EDGE = 14  # pixels around a picture


def main(target: Path, epochs: int) -> None:
    """Train the quick start for so many epochs, stop it, go on, and look at it."""
    stop_at, look_at = epochs * 7 // 24, epochs * 15 // 24
    target.mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp())
    for name in ("working", "input", "scratch"):
        (place / name).mkdir()
        os.environ[f"KIT_{name.upper()}"] = str(place / name)
    node = notebook.build()
    for cell in node.cells:
        cell.source = cell.source.replace(
            "SETTINGS = dict(", f"SETTINGS = dict(epochs={epochs}, kit=dict(session_hours=9),"
        )
    nbformat.write(node, place / "working/train.ipynb")
    run, front = place / "working/runs/train", FRONTS["lab4"]

    def completed() -> int:
        return int(status.read(run).get("completed", 0))

    with serving(front, place) as server, browsing() as browser:
        page = browser.new_page(viewport={"width": 1180, "height": 1400}, device_scale_factor=SCALE)
        seen = Notebook(page, front, server)

        def picture(name: str, first: str = ".kit:has(.kit-head)", last: str = ".kit:has(.kit-files) + .kit") -> None:
            """Take what lies between two elements, with the colours that a small file has room for."""
            for attempt in range(5):
                try:
                    page.locator(first).first.scroll_into_view_if_needed()
                    break
                except Error:  # the display was just replaced
                    if attempt == 4:
                        raise
            top, bottom = page.locator(first).first.bounding_box(), page.locator(last).first.bounding_box()
            assert top
            assert bottom
            clip = {
                "x": top["x"] - EDGE,
                "y": top["y"] - EDGE,
                "width": top["width"] + 2 * EDGE,
                "height": bottom["y"] + bottom["height"] - top["y"] + 2 * EDGE,
            }
            taken = Image.open(io.BytesIO(page.screenshot(clip=clip, full_page=False)))
            taken.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(target / f"{name}.png", optimize=True)

        results = ".kit:has(img.kit-picture)"
        seen.open()
        page.evaluate("() => jupyterapp.commands.execute('application:toggle-left-area')")
        seen.run_all()
        wait_until(lambda: completed() >= stop_at, 900, "epochs")
        seen.stop()
        seen.wait_for_state("Stopped, everything is saved")
        picture("stopped")
        wait_until(lambda: page.locator("img.kit-picture").count() > 0, 300, "results")
        seen.run_all()
        wait_until(lambda: completed() >= look_at and seen.state() == "Training", 900, "epochs")
        picture("dashboard")
        page.set_viewport_size({"width": 560, "height": 1400})
        picture("narrow")
        page.set_viewport_size({"width": 1180, "height": 1400})
        page.evaluate(f"() => {front.dark}")
        page.wait_for_timeout(3000)
        picture("dashboard-dark")
        seen.wait_for_state("Finished", 900)
        wait_until(lambda: page.locator("img.kit-picture").count() > 0, 300, "results")
        page.wait_for_timeout(1000)
        picture("results-dark", results, results)
        page.evaluate("() => jupyterapp.commands.execute('apputils:change-theme', {theme: 'JupyterLab Light'})")
        page.wait_for_timeout(3000)
        picture("results", results, results)
        picture("finished")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, nargs="?", default=Path("docs"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    main(**vars(parser.parse_args()))
