"""What a notebook shows of a run, from the files that it keeps: it knows nothing of the trainer.

`facts` turns the files into numbers, `page` and `curves` the numbers into HTML and text; `board` shows them,
`downloads` looks after the files to take away, `gpus` asks the driver, `results` shows how good the best model is,
`errors` how one of the kit's errors looks.
"""

from kit.dashboard.board import Board, Progress
from kit.dashboard.downloads import show_downloads
from kit.dashboard.errors import show_errors
from kit.dashboard.results import show_results

__all__ = ["Board", "Progress", "show_downloads", "show_errors", "show_results"]
