"""`python scripts/train.py ...` is `python -m kit train ...`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from kit.cli import main

sys.exit(main(["train", *sys.argv[1:]]))
