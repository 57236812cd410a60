"""Staging memory: one instant, copied into buffers that are there already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kit.store import checkpoint, snapshot
from kit.store.snapshot import ALIGNMENT, FlatBuffer, ModuleTensors, StagingBuffer, laid_out_as, layout_of
from tests.help import training
from tests.help.training import differences


def tensors() -> dict[str, list[Tensor]]:
    """Two sections of several dtypes and layouts, a scalar and an empty tensor among them."""
    torch.manual_seed(0)
    image = torch.randn(2, 3, 4, 5)
    return {
        "model": [image, image.to(memory_format=torch.channels_last), torch.arange(6), torch.tensor(7.0)],
        "ema": [torch.randn(3, 3).half(), torch.randn(4, 4).t(), torch.randn(1, 5).expand(4, 5), torch.empty(0, 3)],
        "gradients": [],
    }


def same(one: dict[str, list[Tensor]], other: dict[str, list[Tensor]]) -> bool:
    return all(
        a.dtype == b.dtype and torch.equal(a, b) for name in one for a, b in zip(one[name], other[name], strict=True)
    )


def buffers(section: list[Tensor]) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in section if tensor.numel()}


def test_copy_equals_the_tensors_and_does_not_move_with_them() -> None:
    """What training does afterwards is not seen."""
    sections = tensors()
    staged, delivered = StagingBuffer().copy(sections)
    assert same(staged, sections)
    assert delivered() == 0.0
    for section in sections.values():
        for tensor in section:
            tensor.copy_(torch.zeros_like(tensor)) if tensor.is_contiguous() else None
    assert same(staged, tensors())


def test_memory_that_was_made_is_used_again() -> None:
    """No save makes memory of its own: the first touch of a page is the slow one."""
    slot, sections = StagingBuffer(), tensors()
    slot.allocate({name: [layout_of(tensor) for tensor in section] for name, section in sections.items()})
    made = {name: buffers(slot._staged[name].views) for name in ("model", "ema")}
    for _ in range(2):
        staged, _ = slot.copy(sections)
        assert {name: buffers(staged[name]) for name in made} == made


def test_each_section_has_one_buffer_per_dtype_and_shares_none() -> None:
    """A section that is saved again by itself takes no other with it, and a file has few records."""
    staged, _ = StagingBuffer().copy(tensors())
    assert len(buffers(staged["model"])) == len(buffers(staged["ema"])) == 2
    assert not buffers(staged["model"]) & buffers(staged["ema"])
    floats = [tensor for tensor in staged["model"] if tensor.dtype == torch.float32]
    used = sum(tensor.nbytes for tensor in floats)
    assert used <= staged["model"][0].untyped_storage().nbytes() < used + ALIGNMENT * len(floats)


def test_layout_of_the_memory_is_kept() -> None:
    """A channels_last tensor is copied as it lies; one with gaps or overlaps as a copy of it would."""
    staged, _ = StagingBuffer().copy(tensors())
    assert staged["model"][1].is_contiguous(memory_format=torch.channels_last)
    assert staged["ema"][1].stride() == (1, 4)
    assert staged["ema"][2].is_contiguous()


def test_section_that_comes_and_goes_keeps_its_memory() -> None:
    """Gradients are there between two steps of the optimizer and gone after one."""
    slot, sections = StagingBuffer(), tensors()
    sections["gradients"] = [torch.ones(5)]
    first = buffers(slot.copy(sections)[0]["gradients"])
    assert slot.copy({**sections, "gradients": []})[0]["gradients"] == []
    assert buffers(slot.copy(sections)[0]["gradients"]) == first


@pytest.mark.parametrize("other", [torch.ones(5), torch.ones(2, 3), torch.ones(6).double()])
def test_section_that_changed_its_form_gets_other_memory(other: Tensor) -> None:
    """Nothing is broadcast or rounded into memory of another form."""
    slot = StagingBuffer()
    slot.copy({"a": [torch.ones(6)]})
    assert same(slot.copy({"a": [other]})[0], {"a": [other]})


def settled() -> tuple[dict[str, list[Tensor]], dict[str, FlatBuffer]]:
    """Return sections of which one was taken in."""
    sections = tensors()
    flat = FlatBuffer([layout_of(tensor) for tensor in sections["model"]])
    flat.adopt(sections["model"])
    return sections, {"model": flat}


def test_tensors_that_are_taken_in_stay_what_they_are() -> None:
    """The same objects with the same values, strides and alignment, now side by side."""
    before = tensors()
    sections, flats = settled()
    assert same(sections, before)
    assert [tensor.stride() for tensor in sections["model"]] == [tensor.stride() for tensor in before["model"]]
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in sections["model"])
    assert flats["model"].owns(sections["model"])
    assert buffers(sections["model"]) == {buffer.data_ptr() for buffer in flats["model"].buffers.values()}


def test_snapshot_of_what_was_taken_in_is_a_copy_of_the_buffers() -> None:
    """What training does to the tensors is what it copies."""
    sections, flats = settled()
    sections["model"][0].mul_(2)
    staged, _ = StagingBuffer().copy(sections, flats)
    assert same(staged, sections)
    flats["model"].buffers[torch.device("cpu"), torch.int64].fill_(9)
    assert torch.equal(StagingBuffer().copy(sections, flats)[0]["model"][2], torch.full((6,), 9))


@pytest.mark.parametrize("leave", [lambda each: each.data, lambda each: each.half().float().clone()])
def test_tensor_that_has_left_its_home_is_copied_from_where_it_is(leave: Any) -> None:
    """Another object in its place, or other memory behind the same object."""
    sections, flats = settled()
    sections["model"][0].data = leave(sections["model"][0].clone()) + 1
    sections["model"][2] = torch.arange(6) + 1
    slot = StagingBuffer()
    for _ in range(2):
        assert same(slot.copy(sections, flats)[0], sections)


def test_tensors_that_share_memory_go_on_sharing_it() -> None:
    """A part that has two names is one part: nothing of that section is moved."""
    tensor = torch.arange(6.0)
    section = [tensor, tensor.view(2, 3), torch.ones(3)]
    flat = FlatBuffer([layout_of(each) for each in section])
    flat.adopt(section)
    tensor.fill_(5)
    assert torch.equal(section[1], torch.full((2, 3), 5.0))
    assert not flat.owns(section)
    assert same(StagingBuffer().copy({"a": section}, {"a": flat})[0], {"a": section})


@pytest.mark.parametrize("optimizer", ["SGD", "AdamW", "MuSGD"])
def test_checkpoint_of_a_snapshot_holds_what_state_dict_would(place: Path, optimizer: str) -> None:
    """Model, EMA and optimizer, name by name and bit by bit, with gradients in flight."""
    from tests.yolo.test_parity import build

    values = training.settings(place, epochs=1, nbs=8, optimizer=optimizer)
    trainer = build(values, "one", stock=False)
    seen: dict[str, Any] = {}

    def look(trainer: Any) -> None:
        sections, build_state = trainer.state.state_dict(0, trainer.batch)
        staged, _ = StagingBuffer().copy(sections, trainer.state.buffers)
        build_state(staged)  # of a new best model two files are made
        state = build_state(staged)
        assert repr(state["scaler_state_dict"]) == repr(trainer.scaler.state_dict()) != "{}"
        marked = build_state({**staged, "running": [torch.full_like(each, 7) for each in staged["running"]]})
        assert {float(each) for each in (marked["loop"]["loss"], *marked["loop"]["tloss"].values())} == {7.0}
        parameters = trainer.model.named_parameters()
        seen[str(trainer.batch)] = state
        expected = {
            "model_state_dict": dict(trainer.model.state_dict()),
            "ema_state_dict": dict(trainer.ema.ema.state_dict()),
            "optimizer_state_dict": checkpoint.plain(trainer.optimizer.state_dict()),
            "gradients": {name: each.grad for name, each in parameters if each.grad is not None},
        }
        assert [name for name in expected if list(state[name]) != list(expected[name])] == []
        assert differences(state, expected) == []

    trainer.add_callback("on_train_start", lambda trainer: setattr(trainer, "scaler", torch.amp.GradScaler("cpu")))
    trainer.add_callback("on_train_batch_end", look)
    trainer.train()
    assert {bool(state["gradients"]) for state in seen.values()} == {True, False}
    assert any(state["optimizer_state_dict"]["state"] for state in seen.values())


def test_part_of_a_module_that_is_shared_is_named_twice() -> None:
    """As in its state dict; buffers that are not persistent are left out."""
    module = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Linear(2, 2))
    module.append(module[1])
    module.register_buffer("scratch", torch.ones(1), persistent=False)
    assert ModuleTensors(module).names == list(module.state_dict())
    assert ModuleTensors(module)()[0] is module[0].weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool])
def test_staging_memory_begins_where_the_disk_wants_it(dtype: torch.dtype) -> None:
    """At a page, so that a checkpoint is written from where it lies."""
    staging = StagingBuffer()
    tensors = [torch.ones(5000, dtype=dtype), torch.ones(0, dtype=dtype), torch.ones(3, 7, dtype=dtype)]
    copies, _ = staging.copy({"model": tensors})
    assert copies["model"][0].untyped_storage().data_ptr() % 4096 == 0
    assert all(torch.equal(one, other) for one, other in zip(tensors, copies["model"], strict=True))


class Event:
    """Notes what is asked of CUDA's events, in their order."""

    calls: list[Any] = []  # noqa: RUF012

    def __init__(self, **flags: bool) -> None:
        self.calls.append(flags)

    def record(self, stream: str) -> None:
        self.calls.append(stream)

    def synchronize(self) -> None:
        self.calls.append("waited")

    def elapsed_time(self, other: Any) -> float:
        self.calls.append("measured")
        return 7.0


def test_copies_of_a_gpu_are_between_two_events_of_its_stream_for_which_the_writer_sleeps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An event that is not `blocking` is waited for by a core that spins, until all that was queued before is done."""
    monkeypatch.setattr(Event, "calls", calls := [])
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(snapshot, "_stream", lambda sources: "training's")
    copy = torch._foreach_copy_
    monkeypatch.setattr(torch, "_foreach_copy_", lambda *lists, **flags: (calls.append(flags), copy(*lists)))
    _, delivered = StagingBuffer().copy(tensors())
    flags = {"enable_timing": True, "blocking": True}
    assert calls == [flags, "training's", {"non_blocking": True}, flags, "training's"]
    assert delivered() == 0.007
    assert calls[5:] == ["waited", "measured"]


@pytest.mark.parametrize("refused", [False, True])
def test_memory_for_a_gpu_is_page_locked_where_the_machine_has_some(
    monkeypatch: pytest.MonkeyPatch, refused: bool
) -> None:
    """For what lies on a GPU alone; without it a save takes longer, and training goes on."""
    asked: list[bool] = []
    zeros = torch.zeros

    def fake(*size: Any, pin_memory: bool = False, **how: Any) -> Tensor:
        asked.append(pin_memory)
        if pin_memory and refused:
            raise RuntimeError("CUDA error: out of memory")
        return zeros(*size, **how)

    monkeypatch.setattr(torch, "zeros", fake)
    layouts = [layout_of(torch.ones(5))._replace(device=torch.device(name)) for name in ("cuda:1", "cpu")]
    flat = FlatBuffer(layouts, staging=True)
    assert asked == [True]
    assert [view.device.type for view in flat.views] == ["cpu", "cpu"]
    assert (flat.views[0].data_ptr() % 4096 == 0) or not refused


def test_copy_lies_as_its_parameter_does() -> None:
    """Fused optimizers refuse moments that do not, those of a CPU for a channels_last model for one."""
    parameter = torch.nn.Parameter(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last))
    value = torch.randn(2, 3, 4, 5)
    copy = laid_out_as(parameter, value)
    assert copy.stride() == parameter.stride() != value.stride()
    assert torch.equal(copy, value)
    assert not copy.requires_grad
    with pytest.raises(ValueError, match=r"gradient of shape \[1, 5\] for \[2, 3, 4, 5\]"):
        laid_out_as(parameter, torch.ones(1, 5))
