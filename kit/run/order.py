"""Every random number of a run, as a pure function of the position.

- The order of an epoch is f(seed, epoch).
- The augmentation of a sample is f(seed, epoch, position): every generator is seeded just before the sample is made,
  in whichever process makes it. The epoch travels in the sample's key, because loader workers live through epochs
  and prefetch across their ends.
- What the training process itself draws (multi-scale sizes, dropout) is f(seed, epoch, batch).

So the number of workers, prefetching, validation, plots and restarts do not matter, there is no generator whose state
would have to be saved, and seeking to any batch costs nothing.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy
import torch


class Sample(NamedTuple):
    """The key of one training sample: its place in the order of an epoch."""

    epoch: int
    position: int


def mix(*words: int | str) -> int:
    """Hash words into 63 bits, so that neighbouring epochs and indices get unrelated seeds."""
    digest = hashlib.blake2b(repr(words).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_all(value: int, cuda: bool = False) -> None:
    """Seed `random`, `numpy.random` and torch.

    Args:
        value: 63 bits.
        cuda: Seed every GPU too. Loader workers must not (it would make a CUDA context in each), and on the CPU
            generator alone seeding is 30 times faster than `torch.manual_seed`.
    """
    random.seed(value)
    numpy.random.seed(value & 0xFFFFFFFF)
    if cuda:
        torch.manual_seed(value)
    else:
        torch.default_generator.manual_seed(value)


class EpochOrder:
    """A batch sampler that can start anywhere: the batches of a run from (epoch, batch) on.

    Args:
        samples: Size of the data set.
        batch_size: Samples per batch; the last batch of an epoch may hold fewer.
        epochs: The iterator ends with this epoch, so that nothing is prefetched for one that never comes.
        seed: Of the shuffle.
        shuffle: Off, every epoch goes from first to last.

    Attributes:
        my_slices: The numbers of the slices of each batch that are wanted, out of `slices`; None leaves batches whole.
    """

    my_slices: range | None = None
    slices = 1

    def __init__(self, samples: int, batch_size: int, epochs: int, seed: int, shuffle: bool = True) -> None:
        self.samples, self.batch_size, self.epochs, self.seed, self.shuffle = samples, batch_size, epochs, seed, shuffle
        self.start = (0, 0)
        self._known: dict[int, list[int]] = {}

    def __len__(self) -> int:
        """Batches per epoch."""
        return -(-self.samples // self.batch_size)

    def permutation(self, epoch: int) -> list[int]:
        """Return the order of one epoch, a permutation of `range(samples)`."""
        if epoch not in self._known:
            order = list(range(self.samples))
            if self.shuffle:
                generator = torch.Generator().manual_seed(mix("order", self.seed, epoch))
                order = torch.randperm(self.samples, generator=generator).tolist()
            self._known = {epoch: order}  # the current one: samples ask for it one by one
        return self._known[epoch]

    def neighbours(self, position: int) -> range:
        """Return the positions that a sample's mosaic partners come from: a block of the order around it.

        Blocks of eight batches, as many images as Ultralytics keeps for that, so that each is decoded about once.
        """
        size = min(self.samples, 8 * self.batch_size, 1000)
        block = min(position // size, self.samples // size - 1)
        last = block == self.samples // size - 1  # the remainder of the epoch belongs to it
        return range(block * size, self.samples if last else (block + 1) * size)

    def __iter__(self) -> Iterator[list[Any]]:
        """Yield the batches from `start` to the end of the last epoch, or of each the slices `my_slices`."""
        first, skip = self.start
        for epoch in range(first, self.epochs):
            for at in range(skip * self.batch_size, self.samples, self.batch_size):
                batch = [Sample(epoch, position) for position in range(at, min(at + self.batch_size, self.samples))]
                wanted = self.my_slices
                yield batch if wanted is None else [cut(batch, number, self.slices) for number in wanted]
            skip = 0

    @property
    def sampler(self) -> EpochOrder:
        """Ultralytics' loader asks its batch sampler's `sampler` for the number of batches."""
        return self


def cut(batch: list[Sample], number: int, slices: int) -> list[Sample]:
    """Return one of the slices of a batch: contiguous, as equal as can be, the first empty only if all are."""
    first, last = (-(-len(batch) * each // slices) for each in (number, number + 1))
    return batch[first:last]


def generators() -> tuple[Any, Any, torch.Tensor, list[torch.Tensor]]:
    """Return the states of this process's generators as they give them, which takes no time."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    return random.getstate(), numpy.random.get_state(legacy=True), torch.get_rng_state(), cuda


def state_dict(states: tuple[Any, Any, torch.Tensor, list[torch.Tensor]] | None = None) -> dict[str, Any]:
    """Return the states of the generators, those of now or the given ones, as tensors and plain values."""
    (version, words, gauss), (name, keys, position, has_gauss, cached), cpu, cuda = states or generators()
    return {
        "python": {"version": version, "words": torch.tensor(words), "gauss": gauss},
        "numpy": {
            "name": name,
            "keys": torch.from_numpy(numpy.asarray(keys).astype("int64")),
            "position": int(position),
            "gauss": (int(has_gauss), float(cached)),
        },
        "torch": cpu,
        "cuda": cuda,
    }


def load_state_dict(state: dict[str, Any]) -> None:
    """Restore what `state_dict` captured; GPUs only where there are as many as there were."""
    python, array = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = array["keys"].numpy().astype("uint32")
    numpy.random.set_state((array["name"], keys, array["position"], *array["gauss"]))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.device_count() == len(state["cuda"]):
        torch.cuda.set_rng_state_all([value.cpu() for value in state["cuda"]])
