"""The header of a sync: what each worker reports about itself, before anything has changed."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.roll_call import (
    RollCall,
    call_roll,
    count_samples,
    leave_out_outliers,
    mark,
)
from slowmo_hvd.core.transport import Transport
from slowmo_hvd.core.windows import Settings, check_settings


class Header(NamedTuple):
    """This worker's header.

    Attributes:
        config: decides what is compared; the same on every rank.
        step: the number of local steps attempted.
        sound: whether this worker's weights are finite.
        settings: τ, α and β as given by the user's functions.
        norm: ‖d^i‖; used with ``outlier_factor``.
        samples: n of each fragment, the number that this worker has counted in its window; 0 for a
            fragment that is not averaged. Empty if nothing is weighted.
        changing: whether this worker is about to train other parameters, so that for it this is no
            sync.
    """

    config: SlowMoConfig
    step: int
    sound: bool = True
    settings: Settings = Settings({}, {})
    norm: float = 0.0
    samples: Sequence[int] = ()
    changing: bool = False

    def send(
        self, transport: Transport, figures: Sequence[float], name: str
    ) -> tuple[RollCall, list[float]]:
        """Exchange headers; return who takes part, and the workers' sums of these figures.

        A collective: one sum, in which each worker has its own places.

        Args:
            transport: how to send.
            figures: other numbers to sum.
            name: the name of the sync's collectives.

        Raises:
            RuntimeError: as in `call_roll`, `check_settings` and `count_samples`.
            FloatingPointError: as in `call_roll`. Either error is the same on every rank.
        """
        counted = self.samples or [0] * self.config.fragments
        own = [mark(self.step, sound=self.sound, changing=self.changing), *map(float, counted)]
        if self.config.varies:
            own.append(self.settings.mark)
        if self.config.outlier_factor is not None:
            own.append(self.norm if self.sound else 0.0)
        workers, ranks = transport.workers, transport.ranks
        places = [0.0] * (len(own) * workers)
        places[transport.place :: workers] = own
        sums = transport.sum_numbers([*places, *figures], f"{name}.header")
        of_workers = [sums[at : at + workers] for at in range(0, len(places), workers)]
        with transport.critical.alike():
            roll = call_roll(of_workers.pop(0), ranks, self.config.on_nonfinite)
            samples = [dict(zip(ranks, map(int, of_workers.pop(0)), strict=True)) for _ in counted]
            if self.config.varies:
                gather = partial(transport.gather, name=f"{name}.settings")
                check_settings(self.settings, of_workers.pop(0), ranks, self.step, gather)
            if self.config.outlier_factor is not None and not self.changing:
                norms = dict(zip(ranks, of_workers.pop(0), strict=True))
                roll = leave_out_outliers(roll, norms, self.config.outlier_factor)
            roll = count_samples(roll, samples, self.step)
        return roll, sums[len(places) :]
