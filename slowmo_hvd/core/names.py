"""Names for an optimizer's collectives: equal on all ranks, and unique while it lives.

Horovod matches the ranks' tensors by their names, and remembers every name that it has seen. So an
optimizer gets a small number when the ranks first agree, and another optimizer can get that number
later.
"""

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence

_MOST = 53  # how many bits a float64 holds exactly
_NONE = -1.0


def claim(serial: int | None, others: Callable[[], Iterable[int | None]]) -> list[float]:
    """What a rank tells the others: its optimizer's number, if any, and the numbers in use.

    Args:
        serial: the number that this optimizer got before, which it keeps.
        others: returns the numbers of this rank's other living optimizers.
    """
    taken = set(others()) - {None}
    if len(taken) > _MOST // 2:  # some may be unused, and only wait to be collected
        gc.collect()
        taken = set(others()) - {None}
    bits = sum(1 << other for other in taken if other is not None)
    return [_NONE if serial is None else float(serial), float(bits)]


def agreed_serial(claims: Mapping[int, Sequence[float]]) -> int:
    """The number of an optimizer, given the claims of all ranks.

    Raises:
        RuntimeError: on every rank, if too many optimizers live at once, or if ranks have numbered
            this one differently, because they took a step before they met.
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
