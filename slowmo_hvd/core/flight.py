"""An average that runs in its own thread while local steps go on."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from slowmo_hvd.core.average import Average
from slowmo_hvd.core.records import SyncRecord
from slowmo_hvd.core.schedule import MeanLearningRate, Sync


class UnderWay:
    """A call in its own thread, which does not keep the process alive if it never ends."""

    def __init__(self, call: Callable[[], Any], what: str) -> None:
        self._call = call
        self._value: Any = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name=f"slowmo_hvd {what}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error
        finally:
            del self._call  # and so free the memory that it worked on

    def wait(self) -> None:
        """Wait until it is over, with or without an error."""
        self._thread.join()

    def result(self) -> Any:
        """Wait for it, and return its result or raise its error."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value


class Flight:
    """One fragment's average, from its launch to its landing.

    Attributes:
        average: the average that is under way.
        window: t, the window that it ended.
        period: τ of that window.
        rates: the window's mean learning rates, in case the launch is undone.
        samples: the samples that this worker counted in the window, in case the launch is undone.
        seconds: how long training stood still for the launch.
    """

    def __init__(
        self,
        average: Average,
        window: int,
        period: int,
        rates: Sequence[MeanLearningRate],
        samples: int,
    ) -> None:
        self.average = average
        self.window = window
        self.period = period
        self.rates = rates
        self.samples = samples
        self.seconds = 0.0
        self._launched = self._over = time.perf_counter()

    def start(self, carry_out: Callable[[], None], before: "Flight | None") -> None:
        """Start it once the flight launched before is over, so that only one is on the wire.

        Args:
            carry_out: carries it out.
            before: the flight launched before.
        """

        def run() -> None:
            try:
                if before is not None:
                    before.result()  # if it raises, all ranks raise from here on
                carry_out()
            finally:
                self._over = time.perf_counter()

        self._launched = time.perf_counter()
        self._thread = UnderWay(run, "average")

    def wait(self) -> None:
        """Wait until nothing of it is under way."""
        self._thread.wait()

    def result(self) -> None:
        """Wait until nothing of it is under way, and raise its error if it had one."""
        self._thread.result()

    def record(self, begin: float, waited: float) -> SyncRecord:
        """The record of the average, once it has landed.

        Args:
            begin: when the landing began, from ``time.perf_counter()``.
            waited: how many seconds the landing had to wait.
        """
        return self.average.record(
            Sync.WINDOW,
            self.window,
            self.period,
            seconds=self.seconds + time.perf_counter() - begin,
            waiting=waited,
            hidden=min(self._over, begin) - self._launched,
        )


class Flights:
    """The flights of one optimizer that are under way, in the order of their launch."""

    def __init__(self) -> None:
        self._by_fragment: dict[int, Flight] = {}

    def __bool__(self) -> bool:
        return bool(self._by_fragment)

    def launch(self, fragment: int, flight: Flight, carry_out: Callable[[], None]) -> None:
        """Start a flight after those that are under way."""
        before = next(reversed(self._by_fragment.values()), None)
        flight.start(carry_out, before)
        self._by_fragment[fragment] = flight

    def landing(self, fragment: int) -> Flight | None:
        """Wait for this fragment's flight and remove it; None if another process launched it."""
        flight = self._by_fragment.get(fragment)
        if flight is not None:
            flight.wait()  # an interrupt here leaves it under way
            del self._by_fragment[fragment]
        return flight

    def wait(self) -> None:
        """Wait until nothing is on the wire, and ignore errors."""
        for flight in self._by_fragment.values():
            flight.wait()

    def results(self) -> list[Average]:
        """Wait; return the averages, or raise the first error, which can be raised again."""
        for flight in self._by_fragment.values():
            flight.result()
        return [flight.average for flight in self._by_fragment.values()]

    def give_up(self) -> None:
        """Wait, and forget all flights: they belong to a state that is being replaced."""
        self.wait()
        self._by_fragment = {}
