"""Schedules for `sync_period`, `slow_lr` and `slow_momentum`, such as ``qsr(4, 0.2)``."""

from slowmo_hvd.core.schedules import constant, linear, qsr

__all__ = ["constant", "linear", "qsr"]
