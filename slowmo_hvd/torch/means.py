"""Sums of many tensors in buckets that are not parameters: the inner optimizer's or a model's."""

from collections.abc import Callable, Iterator, Mapping
from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from slowmo_hvd.core.buckets import Bucket, Leaf, plan
from slowmo_hvd.core.pipeline import Load
from slowmo_hvd.torch.rooms import read, real, slow_dtype

Key = TypeVar("Key")


class BufferKey(NamedTuple):
    """One tensor that some worker has, by its parameter's position and its key in the state."""

    position: int
    key: str
    elements: int
    wide: bool  #: float64, not float32, on the wire


def key_of(position: int, key: str, tensor: Tensor) -> BufferKey:
    """The key of a tensor like ``tensor``."""
    buffer = real(tensor)
    return BufferKey(position, key, buffer.numel(), slow_dtype(buffer.dtype) == torch.float64)


def sums(
    leaves: Mapping[Key, Leaf],
    given: Mapping[Key, Tensor],
    land: Callable[[Key, slice, Tensor], None],
    bucket_bytes: int,
    what: str,
) -> Iterator[Load]:
    """The loads that sum tensors over the workers, uncompressed.

    Args:
        leaves: all tensors that any worker has, with the same keys in the same order on every rank.
        given: the tensors that this worker adds; for the others it adds zeros.
        land: called with a key, a slice of its elements, and their sum.
        bucket_bytes: the largest size of a bucket.
        what: what the tensors are, for the name of each load.
    """
    keys = list(leaves)
    numbered = dict(enumerate(leaves.values()))
    buckets = plan(numbered, numbered, bucket_bytes).buckets
    for index, bucket in enumerate(buckets):
        yield _Sum(f"{what}.bucket{index}", bucket, keys, given, land)


class _Sum(Generic[Key]):
    """A bucket of these tensors."""

    exact = True

    def __init__(
        self,
        name: str,
        bucket: Bucket,
        keys: list[Key],
        given: Mapping[Key, Tensor],
        land: Callable[[Key, slice, Tensor], None],
    ) -> None:
        self.name, self.room, self.size = name, bucket.room, bucket.size
        self._bucket, self._keys, self._given, self._land = bucket, keys, given, land

    def _parts(self, wire: Tensor) -> Iterator[tuple[Key, slice, Tensor]]:
        for leaf, start, stop, offset in self._bucket.pieces:
            yield self._keys[leaf], slice(start, stop), wire[offset : offset + stop - start]

    def pack(self, wire: Tensor) -> None:
        for key, inside, part in self._parts(wire):
            if key in self._given:
                part.copy_(read(self._given[key], inside))
            else:
                part.zero_()

    def land(self, total: Tensor) -> None:
        for key, inside, part in self._parts(total):
            self._land(key, inside, part)
