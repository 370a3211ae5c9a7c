"""Names for the collectives of an optimizer: equal on all ranks, and its own while it lives.

Horovod pairs the ranks' tensors by their names, and remembers every name that it has seen. So an
optimizer gets a small number when the ranks first agree, and another may have it afterwards.
"""

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence

_MOST = 53  # the numbers that a float64 can hold as a set of bits
_NONE = -1.0


def claim(serial: int | None, others: Callable[[], Iterable[int | None]]) -> list[float]:
    """What a rank tells the others: its optimizer's number, if any, and those that are taken.

    Args:
        serial: the number that this optimizer has got before, which it keeps.
        others: tells the numbers of this rank's other living optimizers.
    """
    taken = set(others()) - {None}
    if len(taken) > _MOST // 2:  # some may be dropped, and only wait to be collected
        gc.collect()
        taken = set(others()) - {None}
    bits = sum(1 << other for other in taken if other is not None)
    return [_NONE if serial is None else float(serial), float(bits)]


def agreed_serial(claims: Mapping[int, Sequence[float]]) -> int:
    """The number of the optimizer about which the ranks, by rank, claim this.

    Raises:
        RuntimeError: too many optimizers live at once, or ranks have named this one differently,
            by a step before they met; on every rank alike.
    """
    named = {rank: int(serial) for rank, (serial, _) in claims.items() if serial != _NONE}
    if named:
        first = min(named)
        for rank, serial in named.items():
            if serial != named[first]:
                raise RuntimeError(
                    f"a DistributedOptimizer is number {named[first]} on rank {first} and number "
                    f"{serial} on rank {rank}: take the first steps of all optimizers in the same "
                    "order on every rank"
                )
        return named[first]
    taken = 0
    for _, of_others in claims.values():
        taken |= int(of_others)
    return _smallest_free(taken)


def _smallest_free(taken: int) -> int:
    free = next(number for number in range(_MOST + 1) if not taken >> number & 1)
    if free == _MOST:
        raise RuntimeError(f"more than {_MOST} DistributedOptimizers are in use at once")
    return free
