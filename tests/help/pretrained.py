"""Stand-ins for pretrained files, made by stock Ultralytics: a short training on drawn shapes, stripped at its end.

Each has the layout of a published file and as many classes, with the same names but for three: those of the drawn sets
of the tests, in another order than there. What they predict is worth nothing.

They are made in a process of their own, of which nothing is left but the files:
`python tests/help/pretrained.py FOLDER NAME ...`, where a name is that of a description of
Ultralytics', as in `yolo11n-seg` or `yolo11n-obb@80` for another number of classes, or `tiny-TASK-CLASSES[-wide]`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

PUBLISHED = {  # the task of each
    "yolov8n": "detect",
    "yolo11n": "detect",
    "yolo11s": "detect",
    "yolo26n": "detect",
    "yolo12n": "detect",
    "yolov10n": "detect",
    "yolo11n-seg": "segment",
    "yolo11n-pose": "pose",
    "yolo11n-obb": "obb",
    "yolo11n-cls": "classify",
}
TRAINED_ON = {  # the data set of the published files, as Ultralytics describes it
    "detect": "coco",
    "segment": "coco",
    "pose": "coco-pose",
    "obb": "DOTAv1",
    "classify": "ImageNet",
}
TINY = [f"tiny-{task}-80" for task in TRAINED_ON] + [f"tiny-detect-{nc}" for nc in ("3", "6", "200", "80-wide")]
QUICK = {
    "epochs": 1,
    "imgsz": 64,
    "batch": 2,
    "nbs": 2,
    "warmup_epochs": 0,  # a warm-up begins at a learning rate of 0
    "optimizer": "AdamW",
    "workers": 0,
    "device": "cpu",
    "plots": False,
    "verbose": False,
}


def make(name: str, folder: Path) -> Path:
    """Make a file where the folder does not hold it yet, and return its path; the first tiny one brings the others."""
    path = folder / f"{name}.pt"
    if not path.exists():
        wanted = [each for each in TINY if not (folder / f"{each}.pt").exists()] if name in TINY else [name]
        command = [sys.executable, str(Path(__file__).resolve()), str(folder), *wanted]
        made = subprocess.run(command, capture_output=True, text=True, check=False)
        assert path.exists(), made.stdout + made.stderr
    return path


def make_tiny(task: str, folder: Path, nc: int = 80, wide: bool = False) -> Path:
    """Make a file of the tests' own small model, or of one that is twice as wide."""
    return make(f"tiny-{task}-{nc}" + "-wide" * wide, folder)


def _train(name: str, place: Path) -> Path:
    """Train one and return what Ultralytics leaves of it."""
    import yaml
    from ultralytics import YOLO

    from kit.data import shapes
    from tests.help import training

    drawn = shapes.make(place, splits={"train": 4, "val": 1}, size=64)
    if tiny := re.fullmatch(r"tiny-(\w+)-(\d+)(-wide)?", name):
        model = YOLO(str(training.describe(place, tiny[1], 0.25 if tiny[3] else 0.125)))
        description = _description("ImageNet", int(tiny[2]))
    else:
        published, _, count = name.partition("@")
        model = YOLO(f"{published}.yaml")
        description = _description(TRAINED_ON[model.task]) | (_description("ImageNet", int(count)) if count else {})
    names = list(description["names"].values())
    if model.task == "classify":
        data, share = _sort(drawn.parent, names), 4 / len(names)
    else:
        data, share = training.relabel(drawn, model.task), 1.0
        _rename(data.parent, names, description.get("kpt_shape"))
        data.write_text(yaml.safe_dump(yaml.safe_load(data.read_text()) | description))
    model.train(data=str(data), project=str(place), name="stock", fraction=[share, share], **QUICK)
    return place / "stock/weights/last.pt"


def _description(dataset: str, count: int | None = None) -> dict[str, Any]:
    """Return what a data set of Ultralytics' says of its classes, the first so many, with three shapes among them."""
    from ultralytics.utils import ROOT, YAML

    found = YAML.load(ROOT / f"cfg/datasets/{dataset}.yaml")
    names = list(found["names"].values())[:count]
    if len(names) >= 3:
        names[0], names[1], names[-1] = "triangle", "circle", "square"
    return {key: found[key] for key in ("kpt_shape", "flip_idx") if key in found} | {"names": dict(enumerate(names))}


def _rename(folder: Path, names: list[str], keypoints: list[int] | None) -> None:
    """Give the labels of a drawn set the numbers that its classes have among these names, and more keypoints."""
    from kit.data import shapes

    for file in folder.glob("labels/*/*.txt"):
        lines = [line.split() for line in file.read_text().splitlines()]
        for line in lines:
            shape = shapes.NAMES[int(line[0])]
            line[0] = str(names.index(shape)) if shape in names else "0"
            if keypoints:
                line[5:] = (line[5:] * keypoints[0])[: keypoints[0] * keypoints[1]]
        file.write_text("".join(" ".join(line) + "\n" for line in lines))


def _sort(folder: Path, names: list[str]) -> Path:
    """Put an image into a folder for each class, and return what `data=` takes."""
    for split in ("train", "val"):
        for name in names:
            target = folder / "classes" / split / name
            target.mkdir(parents=True)
            os.link(folder / "images" / split / "0000.png", target / "image.png")
    return folder / "classes"


def _main(folder: Path, names: list[str]) -> None:
    """Make files in a folder; all else, settings and caches too, is in one of its own that is gone afterwards."""
    for variable in [each for each in os.environ if each.startswith(("KIT_", "YOLO_"))]:
        del os.environ[variable]
    with TemporaryDirectory(dir=folder) as work:
        os.environ["KIT_SCRATCH"] = work

        from kit.yolo import environment

        environment.prepare()
        from kit.yolo.train import quiet

        quiet()
        for name in names:
            os.replace(_train(name, Path(work) / name), folder / f"{name}.pt")  # whole, or not there


if __name__ == "__main__":
    _main(Path(sys.argv[1]).absolute(), sys.argv[2:])
