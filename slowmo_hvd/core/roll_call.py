"""Who takes part in a sync: one mark from each worker, in the sync's header.

Each worker has its own place in the header, and writes one of these numbers:

    0        it has called hvd.join(), and adds zeros to everything
    step     it contributes its displacement, and has taken this many local steps
    -step    its displacement is not finite: it adds zeros instead
    step+½   for it this is no sync: it is about to train other parameters, and adds zeros

The sum brings every mark to every worker. So all workers learn who contributed, and find the same
errors, without a second collective.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

#: The squared norm of a displacement that counts as finite: the largest float32. So the sum over
#: the workers is finite too.
LARGEST_SQUARE = (2 - 2**-23) * 2.0**127


class RollCall(NamedTuple):
    """The workers of one sync, the same on each of them.

    Attributes:
        ranks: the workers in the sync, including those whose numbers are not finite.
        excluded: the workers in ``ranks`` that are not in the average.
        outliers: the workers in ``excluded`` whose displacements are finite but too large.
        samples: n of each worker in the average, by rank, for each fragment; all 0, or empty, if
            nothing is weighted.
    """

    ranks: tuple[int, ...]
    excluded: tuple[int, ...] = ()
    outliers: tuple[int, ...] = ()
    samples: tuple[Mapping[int, int], ...] = ()

    def weight(self, rank: int, fragment: int) -> float:
        """The factor of a worker's displacement before the plain mean.

        With m workers in the average and factors n_i m / Σ n, the plain mean is Σ n_i d^i / Σ n.
        """
        counted = self.samples[fragment] if self.samples else {}
        total = sum(counted.values())
        return counted[rank] * len(counted) / total if total else 1.0

    @property
    def present(self) -> int:
        """The number of workers in the sync."""
        return len(self.ranks)

    @property
    def averaged(self) -> tuple[int, ...]:
        """The workers in the average."""
        return tuple(rank for rank in self.ranks if rank not in self.excluded)

    @property
    def contributors(self) -> int:
        """The number of workers in the average."""
        return len(self.ranks) - len(self.excluded)

    @property
    def sound(self) -> int:
        """The number of workers whose numbers are finite."""
        return self.contributors + len(self.outliers)


def is_sound(squared_norm: float, learning_rates: Sequence[float]) -> bool:
    """Whether a worker may contribute: ‖d‖² fits a float32, and each γ is finite."""
    return squared_norm <= LARGEST_SQUARE and all(map(math.isfinite, learning_rates))


def mark(step: int, *, sound: bool, changing: bool = False) -> float:
    """The number that a worker writes into its place after ``step`` local steps, at least 1.

    Args:
        step: the number of local steps attempted so far.
        sound: whether it contributes.
        changing: whether it is about to train other parameters.
    """
    return step + 0.5 if changing else float(step if sound else -step)


def call_roll(marks: Sequence[float], ranks: Sequence[int], on_nonfinite: str) -> RollCall:
    """Read the marks of all workers.

    Args:
        marks: the sum over the workers, one mark for each.
        ranks: the global rank of each worker.
        on_nonfinite: as in ``SlowMoConfig``.

    Raises:
        RuntimeError: the workers have taken different numbers of steps, so that this is not one
            sync; or only some of them are about to train other parameters.
        FloatingPointError: a displacement is not finite and ``on_nonfinite`` is "raise", or no
            displacement is finite. Like the error above, it is the same on every rank.
    """
    by_rank = {rank: mark for rank, mark in zip(ranks, marks, strict=True) if mark}
    changing = tuple(rank for rank, mark in by_rank.items() if mark % 1)
    if changing and len(changing) < len(by_rank):
        others = tuple(rank for rank in by_rank if rank not in changing)
        raise RuntimeError(
            f"{_named(changing)} changed which parameters to train, and {_named(others)} did not: "
            "freeze, thaw, add, remove and replace parameters on every rank, before the same step"
        )
    steps = {rank: int(abs(mark)) for rank, mark in by_rank.items()}
    first = min(by_rank)
    for rank, step in steps.items():
        if step != steps[first]:
            raise RuntimeError(
                f"the ranks are in different syncs: rank {first} after {steps[first]} steps, rank "
                f"{rank} after {step}; call step() equally often on every rank, flush() on "
                "all ranks or on none, and hvd.join() on a rank that has no more batches"
            )
    excluded = tuple(rank for rank, mark in by_rank.items() if mark < 0)
    if len(excluded) == len(by_rank):
        raise FloatingPointError(
            f"after {steps[first]} steps the weights of no worker are finite: lower the learning "
            "rate or clip the gradients, and go on from the last checkpoint"
        )
    if excluded and on_nonfinite == "raise":
        raise FloatingPointError(
            f"after {steps[first]} steps the weights of {_named(excluded)} are not finite; "
            "on_nonfinite='exclude' would go on without them"
        )
    return RollCall(tuple(by_rank), excluded)


def leave_out_outliers(roll: RollCall, norms: Mapping[int, float], factor: float) -> RollCall:
    """Exclude the workers that have moved much further than the median. These are at most half.

    Args:
        roll: the roll so far.
        norms: ‖d^i‖ by global rank, the same on every rank.
        factor: k. A worker is left out if it has more than k times the median of all workers whose
            numbers are finite. If the median is 0, none is left out.
    """
    moved = {rank: norms[rank] for rank in roll.averaged}
    bound = factor * statistics.median(moved.values())
    outliers = tuple(rank for rank, norm in moved.items() if norm > bound > 0)
    return roll._replace(excluded=(*roll.excluded, *outliers), outliers=outliers)


def count_samples(roll: RollCall, samples: Sequence[Mapping[int, int]], step: int) -> RollCall:
    """Add to the roll how many samples each worker has counted.

    Args:
        roll: the workers in the sync and in the average.
        samples: the samples of each worker by rank, for each fragment, the same on every rank.
        step: the number of local steps attempted.

    Raises:
        RuntimeError: on every rank, if some workers have counted samples and others have not.
    """
    counted = tuple({rank: of_one[rank] for rank in roll.averaged} for of_one in samples)
    for of_fragment in counted:
        none = tuple(rank for rank, number in of_fragment.items() if not number)
        some = tuple(rank for rank, number in of_fragment.items() if number)
        if none and some:
            raise RuntimeError(
                f"{_named(none)} counted no samples in the window that ends after step {step}, and "
                f"{_named(some)} did: call contribute(samples) before step() on every rank, or on "
                "none; hvd.join() is for a rank that has no more batches"
            )
    return roll._replace(samples=counted)


def exclusion(excluded: Sequence[int], outliers: Sequence[int], step: int) -> list[str]:
    """The warnings, on every rank, that some workers are not in an average."""
    broken = [rank for rank in excluded if rank not in outliers]
    said = []
    if broken:
        said.append(
            f"after {step} steps the weights of {_named(broken)} are not finite: left out of the "
            "average, to go on from the others' with fresh buffers of the inner optimizer; "
            "flush(model) also mends the model's own statistics, such as BatchNorm's"
        )
    if outliers:
        said.append(
            f"after {step} steps {_named(outliers)} moved by more than outlier_factor times the "
            "workers' median: left out of the average, to go on from the others'; look at that "
            "worker's data and learning rate"
        )
    return said


def powerless(factor: float) -> str:
    """The warning that, with two workers, none has more than ``factor`` times the median."""
    return (
        f"outlier_factor={factor:g} leaves nobody out where there are 2 workers: their median is "
        "their mean, and no worker has more than twice that; give it less than 2, or train with "
        "more workers"
    )


def frozen_without(excluded: Sequence[int], step: int) -> str:
    """The warning, on every rank, that some workers are not in the mean of what was frozen."""
    return (
        f"after {step} steps the weights that were frozen are not finite on {_named(excluded)}: "
        "left out of their mean"
    )


def _named(ranks: Sequence[int]) -> str:
    return f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
