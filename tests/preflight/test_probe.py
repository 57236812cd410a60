"""What torch says of its GPUs: fake ones here, the real answer where there are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from kit.errors import ConfigError
from kit.kaggle import gpu
from kit.preflight import probe
from kit.yolo.settings import load
from tests.help import samples, training

NO_IMAGE = "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be ..."
NO_ENGINE = "GET was unable to find an engine to execute this computation"  # of a cuDNN that has dropped the card
GPU = torch.device("cuda", 0)


class FakeCuda:
    """GPUs that are there by name and architecture only, as `torch.cuda` tells of them."""

    def __init__(self, *gpus: tuple[str, tuple[int, int]]) -> None:
        self.gpus = gpus

    def device_count(self) -> int:
        return len(self.gpus)

    def get_device_name(self, device: Any) -> str:
        return self.gpus[torch.device("cuda", device).index if isinstance(device, int) else device.index][0]

    def get_device_capability(self, device: torch.device) -> tuple[int, int]:
        return self.gpus[device.index][1]

    def get_arch_list(self) -> list[str]:
        return ["sm_75", "sm_90"]


T4, P100 = ("Tesla T4", (7, 5)), ("Tesla P100-PCIE-16GB", (6, 0))


def failing(text: str) -> Any:
    """Return a kernel that fails with torch's words."""

    def kernel(device: torch.device) -> None:
        raise RuntimeError(text)

    return kernel


@pytest.mark.parametrize(
    ("variable", "way"),
    [("KAGGLE_KERNEL_RUN_TYPE", "Choose GPU T4 x2 in Session options"), ("", "Take another GPU or build of torch")],
)
@pytest.mark.parametrize("text", [NO_IMAGE, "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED_ARCH_MISMATCH", NO_ENGINE])
def test_gpu_without_kernels_is_named_with_a_way_out(
    monkeypatch: pytest.MonkeyPatch, variable: str, way: str, text: str
) -> None:
    """The sentence has the GPU, its architecture, torch's version, and what to choose instead."""
    if variable:
        monkeypatch.setenv(variable, "Interactive")
    with pytest.raises(ConfigError) as caught:
        gpu.check(GPU, failing(text), FakeCuda(P100))
    version = torch.__version__.partition("+")[0]
    assert str(caught.value) == (
        f"Tesla P100-PCIE-16GB (sm_60) has no kernels in torch {version} (built for sm_75, sm_90). "
        f"{way}, or device=cpu."
    )


def test_gpu_without_kernels_is_told_by_its_code() -> None:
    """Whatever torch's words for it are."""
    error = torch.AcceleratorError("Reworded.")
    error.error_code = gpu.NO_KERNELS  # type: ignore[attr-defined]

    def kernel(device: torch.device) -> None:
        raise error

    with pytest.raises(ConfigError, match="has no kernels in torch"):
        gpu.check(GPU, kernel, FakeCuda(P100))


def test_gpu_that_is_busy_is_not_taken_for_one_without_kernels() -> None:
    """Its memory may be full for a moment, with a run that is just ending."""
    with pytest.raises(RuntimeError, match="out of memory"):
        gpu.check(GPU, failing("CUDA out of memory. Tried to allocate 2 MiB"), FakeCuda(T4))


def test_cpu_is_not_asked() -> None:
    """There is nothing to find out, and no kernel is run."""
    gpu.check(torch.device("cpu"), failing(NO_IMAGE), FakeCuda())


def test_kernel_runs_on_a_device() -> None:
    """On the one that every machine has."""
    gpu.convolve(torch.device("cpu"))


def test_every_gpu_is_tried() -> None:
    """One by one: good, busy, without kernels."""
    failures = {1: "CUDA error: all CUDA-capable devices are busy\nand more", 2: NO_IMAGE}

    def kernel(device: torch.device) -> None:
        if device.index in failures:
            raise RuntimeError(failures[device.index])

    good, busy, old = probe.look(kernel, FakeCuda(T4, T4, P100))["gpus"]
    assert good == {"name": "Tesla T4", "problem": "", "hint": "", "kernels": True}
    assert busy["problem"] == "Tesla T4 cannot be used (CUDA error: all CUDA-capable devices are busy)."
    assert busy["hint"].startswith("End what else uses it")
    assert busy["kernels"]
    assert "(sm_60) has no kernels" in old["problem"]
    assert old["hint"].endswith("or device=cpu.")
    assert not old["kernels"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_machine_without_a_gpu_says_so(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two lines of JSON: torch without GPUs, and the checkpoints, the best one first."""
    run = place / "working/runs/train"
    samples.save(run / "checkpoints/latest.pt", samples.state(25))
    samples.save(run / "checkpoints/previous.pt", "nothing")
    probe.main("{}")
    facts, found = map(json.loads, capsys.readouterr().out.splitlines())
    assert facts == {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": []}
    good, bad = found["checkpoints"]
    assert (good["position"], good["summary"]["global_step"]) == ("epoch 2/5, batch 5/10", 25)
    assert (bad["position"], bad["summary"]) == ("", None)
    assert "is not a checkpoint" in bad["problem"]


def test_newest_checkpoint_is_verified(place: Path) -> None:
    """A flipped bit in it is found, and the one that a resume would take comes first among the good ones."""
    run = place / "working/runs/train"
    samples.flip_weights(samples.save(run / "checkpoints/latest.pt", samples.state(25)))
    samples.save(run / "checkpoints/previous.pt", samples.state(10))
    damaged, good = probe.checkpoints(load(None, {}))
    assert "is damaged" in damaged["problem"]
    assert damaged["summary"] is None
    assert (good["problem"], good["position"]) == ("", "epoch 1/5")


def test_training_ends_before_anything_is_written_where_the_gpu_has_no_kernels(place: Path) -> None:
    """Exit code 2 and a sentence in the first second, instead of a traceback after set-up."""
    from kit.yolo import train

    def check(device: torch.device) -> None:
        gpu.check(GPU, failing(NO_IMAGE), FakeCuda(P100))

    loaded = load(training._no_file(), training.settings(place))
    with pytest.raises(ConfigError, match=r"Tesla P100-PCIE-16GB \(sm_60\) has no kernels in torch"):
        train.train(loaded, check=check)
    assert list((place / "working").iterdir()) == []


def test_training_starts_where_the_gpu_is_busy_for_a_moment(place: Path) -> None:
    """The check comes before the lock: who holds the GPU may be the run that is just ending."""
    from kit.yolo import train

    loaded = load(training._no_file(), training.settings(place, epochs=1, val=False))
    train.train(loaded, check=failing("CUDA out of memory"))
    assert (place / "working/runs/train/checkpoints/latest.pt").exists()
