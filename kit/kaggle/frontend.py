"""Which front end this is, and how to show something in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from kit.kaggle import session


def shell() -> Any:
    """Return IPython's shell where this is a notebook's kernel, else None."""
    found = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return found if hasattr(found, "kernel") else None


def start_folder() -> Path:
    """Return the notebook's folder, whatever the current one is by now."""
    return Path(getattr(shell(), "starting_dir", "") or Path.cwd())


def on_colab() -> bool:
    """Tell Colab by its kernel: Kaggle has its variables and its package too."""
    return not session.on_kaggle() and type(shell()).__module__.startswith("google.colab")


def show(html: str, text: str, display_id: str = "", update: bool = False) -> None:
    """Show HTML in a notebook, elsewhere text; a display that has a name can be updated."""
    if shell() is None:
        print(text)
        return
    from IPython.display import display, update_display

    data = {"text/plain": text, "text/html": html}
    if update:
        update_display(data, display_id=display_id, raw=True)
    else:
        display(data, raw=True, **({"display_id": display_id} if display_id else {}))
