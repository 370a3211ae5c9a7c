"""The schedule's counters in variables: a graph counts in them, and they are saved.

So steps are counted in the same way eagerly, in ``tf.function``, in ``fit``, and with more than one
step per execution.
"""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from slowmo_hvd.core.config import SlowMoConfig
from slowmo_hvd.core.schedule import MeanLearningRate, Schedule
from slowmo_hvd.tensorflow.native import native


class Counters:
    """The counters of one optimizer.

    Args:
        config: τ and the other settings.
        groups: the number of parameter groups.
        passes: the number of gradients that add up before each step.
        add_variable: makes a variable of the outer optimizer.
    """

    def __init__(
        self, config: SlowMoConfig, groups: int, passes: int, add_variable: Callable[..., Any]
    ) -> None:
        self._config = config
        self._passes = passes
        fresh = Schedule(config)  # before the first step
        fragments = len(fresh.fragments)

        def counter(
            name: str, shape: tuple[int, ...] = (), dtype: str = "int64", first: Any = 0
        ) -> Any:
            def begin(shape: Any, dtype: Any) -> Any:
                return tf.cast(tf.broadcast_to(first, shape), dtype)

            variable = add_variable(shape=shape, dtype=dtype, name=name, initializer=begin)
            return native(variable)

        self._attempt = counter("attempt") if passes > 1 else None
        self.step = counter("step")
        self._window = counter("window", (fragments,))
        self._position = counter("position", (fragments,), first=fresh.positions)
        self.landing = counter("landing", (fragments,))
        self._period = counter("period", (fragments,), first=fresh.periods)
        self._gamma = counter("gamma", (fragments,), "float64")
        #: The step after which the model's moving statistics were averaged.
        self.statistics_at = counter("statistics_at")
        # γ of each fragment's window so far: its mean over the window's steps, a sum and a count.
        self._lr_total = counter("lr_total", (fragments, groups), "float64")
        self._lr_steps = counter("lr_steps", (fragments,))
        self._samples = counter("samples", (fragments,))  # n of each fragment's window so far

    def named(self) -> dict[str, Any]:
        """All counters as tf.Variables, by the names under which they are saved."""
        named = {
            "step": self.step,
            "window": self._window,
            "position": self._position,
            "landing": self.landing,
            "period": self._period,
            "gamma": self._gamma,
            "statistics_at": self.statistics_at,
            "lr_total": self._lr_total,
            "lr_steps": self._lr_steps,
            "samples": self._samples,
        }
        return named if self._attempt is None else {**named, "attempt": self._attempt}

    def begin_afresh(self) -> None:
        """Go back to no step taken. Eager."""
        for variable in self.named().values():
            variable.assign(tf.zeros_like(variable))
        fresh = Schedule(self._config)
        self._position.assign(fresh.positions)
        self._period.assign(fresh.periods)

    def if_a_step(self, then: Callable[[], None]) -> None:
        """Count a gradient, and call ``then`` if enough have added up for a step."""
        if self._attempt is None:
            then()
            return
        self._attempt.assign_add(1)
        moves = tf.equal(self._attempt % self._passes, 0)
        tf.cond(moves, then, lambda: None)

    def contribute(self, samples: Any) -> None:
        """Count samples of the next step."""
        self._samples.assign_add(tf.fill(self._samples.shape, tf.cast(samples, tf.int64)))

    def count(self, schedule: Schedule, learning_rates: Any, counts: Any) -> Any:
        """Count a step; return whether anything is due after it.

        Args:
            schedule: decides what is due.
            learning_rates: γ of each group in this step, a float64 tensor.
            counts: whether the step counts.
        """
        one = tf.cast(counts, tf.int64)
        ones = tf.ones_like(self._position)
        self.step.assign_add(one)
        windowed = one * (1 - tf.cast(schedule.is_warmup(self.step), tf.int64))
        self._position.assign_add(windowed * ones)
        counted = tf.where(counts, learning_rates, tf.zeros_like(learning_rates))
        self._lr_total.assign_add(tf.broadcast_to(counted, self._lr_total.shape))
        self._lr_steps.assign_add(one * ones)
        ending = schedule.ends(self.step, self._position, self._period)
        landing = schedule.lands(self.step, self.landing)
        return counts & tf.reduce_any(ending | landing)

    def take(self, schedule: Schedule) -> tuple[list[list[MeanLearningRate]], list[int]]:
        """Set the schedule to these counters; return learning rates and samples. Eager."""
        schedule.step = int(self.step)
        schedule.windows = self._window.numpy().tolist()
        schedule.positions = self._position.numpy().tolist()
        schedule.landings = self.landing.numpy().tolist()
        schedule.periods = self._period.numpy().tolist()
        schedule.gammas = self._gamma.numpy().tolist()
        counted = zip(self._lr_total.numpy().tolist(), self._lr_steps.numpy().tolist(), strict=True)
        rates = [[MeanLearningRate(total, steps) for total in totals] for totals, steps in counted]
        return rates, self._samples.numpy().tolist()

    def give(
        self, schedule: Schedule, rates: list[list[MeanLearningRate]], samples: list[int]
    ) -> None:
        """Set these counters to the schedule's, after a sync. Eager."""
        self._window.assign(schedule.windows)
        self._position.assign(schedule.positions)
        self.landing.assign(schedule.landings)
        self._period.assign(schedule.periods)
        self._gamma.assign(schedule.gammas)
        self._lr_total.assign([[rate.total for rate in of_one] for of_one in rates])
        self._lr_steps.assign([of_one[0].steps for of_one in rates])
        self._samples.assign(samples)
