"""Every random number is a function of where it stands."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from kit.run import order as randomness
from kit.run.order import EpochOrder, Sample, mix


def draw() -> list[Any]:
    """Draw from all three generators; an odd number of normal values leaves one in two of the caches."""
    return [
        random.random(),
        random.gauss(0, 1),
        float(numpy.random.rand()),
        float(numpy.random.randn()),
        torch.rand(3).tolist(),
    ]


# --- seeds


def test_mixed_seed_is_the_same_everywhere_and_always() -> None:
    """A checkpoint of today goes on with the same random numbers in another session, on another machine."""
    assert mix("order", 0, 0) == 8105155533265743171
    assert mix("order", 0, 0) == mix("order", 0, 0)


def test_mixed_seeds_of_neighbours_are_unrelated_63_bit_numbers() -> None:
    """No two of many neighbouring words collide, not even in the 32 bits that numpy takes, and all 63 bits are used."""
    seeds = [mix("sample", 0, epoch, index) for epoch in range(20) for index in range(100)]
    assert len({seed & 0xFFFFFFFF for seed in seeds}) == len(seeds)
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert all(900 < sum(seed >> bit & 1 for seed in seeds) < 1100 for bit in range(63))


def test_words_that_read_alike_mix_differently() -> None:
    """Where one word ends and the next begins matters, and so does the type."""
    assert len({mix(1, 23), mix(12, 3), mix(123), mix("1", 23), mix("123")}) == 5


@pytest.mark.parametrize("cuda", [False, True])
def test_seeding_makes_all_three_generators_repeat(cuda: bool) -> None:
    """`random`, `numpy.random` and torch draw the same numbers after the same seed, and others after another."""
    drawn = []
    for seed in (1, 1, 2):
        randomness.seed_all(mix("test", seed), cuda)
        drawn.append(draw())
    assert drawn[0] == drawn[1]
    assert all(one != other for one, other in zip(drawn[0], drawn[2], strict=True))


def test_seeding_forgets_what_was_drawn_before() -> None:
    """Not even a cached normal value survives."""
    randomness.seed_all(1)
    expected = draw()
    draw()  # leaves a cached value in `random` and in numpy
    randomness.seed_all(1)
    assert draw() == expected


def test_largest_seed_is_taken() -> None:
    """All 63 bits, where numpy takes 32."""
    randomness.seed_all((1 << 63) - 1)


# --- order


def test_order_of_an_epoch_is_a_permutation() -> None:
    """Each sample comes once per epoch."""
    order = EpochOrder(samples=101, batch_size=8, epochs=3, seed=0)
    for epoch in range(3):
        assert sorted(order.permutation(epoch)) == list(range(101))


def test_order_of_an_epoch_is_a_pure_function_of_seed_and_epoch() -> None:
    """Not of the global generators, of what was asked before, or of batch size and number of epochs."""
    torch.manual_seed(1)
    one = EpochOrder(samples=50, batch_size=8, epochs=3, seed=0)
    first = [one.permutation(epoch) for epoch in range(3)]
    torch.manual_seed(2)
    other = EpochOrder(samples=50, batch_size=3, epochs=30, seed=0)
    assert [other.permutation(epoch) for epoch in (2, 1, 0)] == first[::-1]


def test_orders_of_other_epochs_and_seeds_differ() -> None:
    """Neither the next epoch nor another seed repeats an order."""
    orders = [tuple(EpochOrder(50, 8, 3, seed).permutation(epoch)) for seed in range(4) for epoch in range(4)]
    assert len(set(orders)) == 16


def test_drawing_an_order_leaves_the_global_generators_alone() -> None:
    """What else a run draws does not depend on how often an order was made."""
    randomness.seed_all(1)
    expected = draw()
    randomness.seed_all(1)
    list(EpochOrder(50, 8, 3, 0))
    assert draw() == expected


def test_order_without_shuffling_goes_from_first_to_last() -> None:
    """As for validation."""
    assert list(EpochOrder(5, 2, 1, 0, shuffle=False)) == [
        [Sample(0, 0), Sample(0, 1)],
        [Sample(0, 2), Sample(0, 3)],
        [Sample(0, 4)],
    ]


def test_batches_of_a_run_are_the_orders_of_its_epochs() -> None:
    """Each batch carries its epoch, the last of an epoch may be short, and the iterator ends with the last epoch."""
    order = EpochOrder(samples=10, batch_size=4, epochs=3, seed=5)
    batches = list(order)
    assert len(order) == 3
    assert [len(batch) for batch in batches] == [4, 4, 2] * 3
    for epoch in range(3):
        samples = [sample for batch in batches[3 * epoch : 3 * epoch + 3] for sample in batch]
        assert samples == [Sample(epoch, position) for position in range(10)]
        assert sorted(order.permutation(epoch)) == list(range(10))


@pytest.mark.parametrize("samples", [9, 10, 12, 3])
def test_order_started_anywhere_is_the_tail_of_the_whole(samples: int) -> None:
    """Going on at (epoch, batch) yields exactly what would have come: no batch twice, none left out."""
    whole = list(EpochOrder(samples, 4, 3, seed=5))
    per_epoch = len(whole) // 3
    for done in range(len(whole) + 1):
        order = EpochOrder(samples, 4, 3, seed=5)
        order.start = divmod(done, per_epoch)
        assert list(order) == whole[done:]


def test_order_started_after_the_last_batch_of_an_epoch_begins_the_next() -> None:
    """A snapshot before validation stands at (epoch, batches): nothing of that epoch is left."""
    whole = list(EpochOrder(10, 4, 3, seed=5))
    order = EpochOrder(10, 4, 3, seed=5)
    order.start = (0, len(order))
    assert list(order) == whole[3:]
    order.start = (3, 0)
    assert list(order) == []


# --- state


def test_generators_go_on_where_they_were_captured() -> None:
    """`load_state_dict(state_dict())` puts back all three, with the normal values in their caches."""
    randomness.seed_all(7)
    draw()
    state = randomness.state_dict()
    expected = [draw(), draw()]
    randomness.load_state_dict(state)
    assert [draw(), draw()] == expected


def test_capturing_draws_nothing() -> None:
    """A run with checkpoints has the random numbers of one without."""
    randomness.seed_all(7)
    expected = draw()
    randomness.seed_all(7)
    randomness.state_dict()
    assert draw() == expected


def test_generators_survive_a_checkpoint(tmp_path: Path) -> None:
    """Their state is tensors and plain values: plain `weights_only` loading opens it, and it is restored exactly."""
    randomness.seed_all(7)
    draw()
    torch.save(randomness.state_dict(), tmp_path / "state.pt")
    expected = draw()
    randomness.seed_all(8)
    randomness.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert draw() == expected


def test_captured_state_does_not_move_with_the_generators() -> None:
    """What was captured is a copy."""
    state = randomness.state_dict()
    before = [state["torch"].clone(), state["numpy"]["keys"].clone(), state["python"]["words"].clone()]
    torch.rand(1000)
    numpy.random.rand(1000)
    [random.random() for _ in range(1000)]
    after = [state["torch"], state["numpy"]["keys"], state["python"]["words"]]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
