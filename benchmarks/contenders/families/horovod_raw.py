"""One raw in-place allreduce of Horovod's of as many bytes as a model has."""

import horovod.torch as hvd
import torch


class Raw:
    """The tensor, made at the first call."""

    def __init__(self, elements: int) -> None:
        self._elements = elements
        self._tensor: torch.Tensor | None = None

    def __call__(self) -> None:
        """Do it."""
        if self._tensor is None:
            self._tensor = torch.ones(self._elements)
        hvd.allreduce_(self._tensor, name="raw", op=hvd.Average)
