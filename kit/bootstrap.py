"""Where the first cell of earlier notebooks looks: it still works, and says that there is a newer one."""

from __future__ import annotations

from kit.kaggle import bootstrap


def setup() -> str:
    """Do what `kit.kaggle.bootstrap.setup` does, and say what to do about the notebook."""
    return (
        f"{bootstrap.setup()}. The notebook is of an earlier version of the kit: copy the first cell of "
        "notebooks/train.ipynb over this one."
    )
