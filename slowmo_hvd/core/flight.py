"""An average that is under way in a thread of its own while local steps go on."""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from slowmo_hvd.core.average import Average
from slowmo_hvd.core.records import SyncRecord
from slowmo_hvd.core.schedule import MeanLearningRate, Sync


class UnderWay:
    """A call in a thread of its own, which does not keep the process alive if it never ends."""

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
            del self._call  # and with it the memory of all that it has worked on

    def wait(self) -> None:
        """Until it is over, however it ends."""
        self._thread.join()

    def result(self) -> Any:
        """Wait for it; what it returned, or the error that it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._value


class Flight:
    """From the launch of one fragment's average to its landing.

    Attributes:
        average: what is under way.
        window: t, that it ended.
        period: τ of that window.
        rates: its mean learning rates, should the launch be taken back.
        samples: likewise what this worker had counted in it.
        seconds: for which the launch made training stand still.
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
        """Begin, when the one launched before is over: one at a time is on the wire.

        Args:
            carry_out: does it.
            before: that one.
        """

        def run() -> None:
            try:
                if before is not None:
                    before.result()  # what it raises, all ranks raise from here on
                carry_out()
            finally:
                self._over = time.perf_counter()

        self._launched = time.perf_counter()
        self._thread = UnderWay(run, "average")

    def wait(self) -> None:
        """Until nothing of it is under way."""
        self._thread.wait()

    def result(self) -> None:
        """Likewise; raise what it has raised."""
        self._thread.result()

    def record(self, begin: float, waited: float) -> SyncRecord:
        """What happened, once it has landed.

        Args:
            begin: when the landing began, by ``time.perf_counter()``.
            waited: seconds that it had to wait.
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
    """What is under way of one optimizer, in the order in which it was launched."""

    def __init__(self) -> None:
        self._by_fragment: dict[int, Flight] = {}

    def __bool__(self) -> bool:
        return bool(self._by_fragment)

    def launch(self, fragment: int, flight: Flight, carry_out: Callable[[], None]) -> None:
        """Start a flight behind those that are under way."""
        before = next(reversed(self._by_fragment.values()), None)
        flight.start(carry_out, before)
        self._by_fragment[fragment] = flight

    def landing(self, fragment: int) -> Flight | None:
        """Wait for this one, and count it no more; None where it was launched elsewhere."""
        flight = self._by_fragment.get(fragment)
        if flight is not None:
            flight.wait()  # an interrupt here leaves it under way
            del self._by_fragment[fragment]
        return flight

    def wait(self) -> None:
        """Until nothing is on the wire, whatever becomes of it."""
        for flight in self._by_fragment.values():
            flight.wait()

    def results(self) -> list[Average]:
        """Wait; what they came to, or what went wrong in the first that did, which stays."""
        for flight in self._by_fragment.values():
            flight.result()
        return [flight.average for flight in self._by_fragment.values()]

    def give_up(self) -> None:
        """Wait, and count them no more: they are of a state that is replaced."""
        self.wait()
        self._by_fragment = {}
