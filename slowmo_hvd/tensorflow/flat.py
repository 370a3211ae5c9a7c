"""Many numbers end to end in a few variables, of which slices are read and written."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from slowmo_hvd.tensorflow.native import native

_CHUNK = 2**22  # the largest number of elements in one variable


class Flat:
    """One long vector, in variables of a bounded size.

    A variable is always assigned as a whole. TensorFlow can write into a part of a variable, but
    then copies all of it in every later read.

    Args:
        size: the number of elements.
        dtype: the dtype of the elements.
        name: the name of the variables; the second and later ones have a number after it.
        add_variable: the optimizer's method.
    """

    def __init__(self, size: int, dtype: str, name: str, add_variable: Callable[..., Any]) -> None:
        self.dtype = dtype
        self.variables = [
            native(
                add_variable(
                    shape=(min(_CHUNK, size - start),),
                    dtype=dtype,
                    name=f"{name}_{start // _CHUNK}" if start else name,
                )
            )
            for start in range(0, max(size, 1), _CHUNK)
        ]

    def read(self, inside: slice) -> Any:
        """A slice of the elements, as a tensor."""
        start, stop = inside.start, inside.stop
        parts = []
        while start < stop:
            index, begin = divmod(start, _CHUNK)
            end = min(_CHUNK, begin + stop - start)
            parts.append(self.variables[index].read_value()[begin:end])
            start += end - begin
        if not parts:
            return tf.zeros([0], self.dtype)
        return parts[0] if len(parts) == 1 else tf.concat(parts, 0)

    def whole(self, inside: slice) -> Any | None:
        """The variable that has exactly these elements, if there is one."""
        index, begin = divmod(inside.start, _CHUNK)
        if begin or index >= len(self.variables):
            return None
        variable = self.variables[index]
        return variable if inside.stop - inside.start == variable.shape[0] else None

    def write(self, updates: Iterable[tuple[slice, Any]]) -> None:
        """Write values into slices that do not overlap, in order.

        Each is asked for in its turn, so that only one variable's values are in memory.
        """
        index = 0
        parts: list[tuple[int, int, Any]] = []
        for inside, values in updates:
            start = inside.start
            while start < inside.stop:
                chunk, begin = divmod(start, _CHUNK)
                if chunk != index:
                    self._write(index, parts)
                    index, parts = chunk, []
                end = min(_CHUNK, begin + inside.stop - start)
                offset = start - inside.start
                parts.append((begin, end, values[offset : offset + end - begin]))
                start += end - begin
        self._write(index, parts)

    def _write(self, index: int, parts: Sequence[tuple[int, int, Any]]) -> None:
        """Write values into one variable. Each part is its begin and end there, and its values."""
        if not parts:
            return
        variable, pieces, reached = self.variables[index], [], 0
        for begin, end, part in parts:
            if reached < begin:
                pieces.append(variable.read_value()[reached:begin])
            pieces.append(part)
            reached = end
        if reached < variable.shape[0]:
            pieces.append(variable.read_value()[reached:])
        variable.assign(pieces[0] if len(pieces) == 1 else tf.concat(pieces, 0))
