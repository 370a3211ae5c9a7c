"""SlowMoConfig: what is legal, what is not, and that the error says both."""

import dataclasses
import math
import re
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from slowmo_hvd.core.config import BUFFER_STRATEGIES, NONFINITE, SlowMoConfig


def test_the_defaults() -> None:
    config = SlowMoConfig()
    assert (config.sync_period, config.slow_lr, config.slow_momentum) == (12, 1.0, 0.2)
    assert (config.nesterov, config.buffers, config.warmup_steps) == (False, "maintain", 0)


@pytest.mark.parametrize(
    ("name", "value", "legal"),
    [
        ("sync_period", 0, "an int >= 1"),
        ("sync_period", -3, "an int >= 1"),
        ("warmup_steps", -1, "an int >= 0"),
        ("slow_lr", 0, "a finite number > 0"),
        ("slow_lr", -0.5, "a finite number > 0"),
        ("slow_lr", math.nan, "a finite number > 0"),
        ("slow_lr", math.inf, "a finite number > 0"),
        ("slow_momentum", -0.1, "a number with 0 <= slow_momentum < 1"),
        ("slow_momentum", 1, "a number with 0 <= slow_momentum < 1"),
        ("slow_momentum", 1.5, "a number with 0 <= slow_momentum < 1"),
        ("slow_momentum", math.nan, "a number with 0 <= slow_momentum < 1"),
        ("slow_momentum", -math.inf, "a number with 0 <= slow_momentum < 1"),
        ("buffers", "zero", "one of 'maintain', 'reset', 'average'"),
        ("buffers", "Reset", "one of 'maintain', 'reset', 'average'"),
        ("on_nonfinite", "ignore", "one of 'exclude', 'raise'"),
        ("bucket_bytes", 7, ">= 8"),
    ],
)
def test_a_value_out_of_range_is_refused_with_what_is_legal(
    name: str, value: Any, legal: str
) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be ") as caught:
        SlowMoConfig(**{name: value})
    given = value if isinstance(value, int | str) else float(value)
    assert legal in str(caught.value)
    assert str(given) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "legal"),
    [
        ("sync_period", 2.0, "an int >= 1"),
        ("sync_period", "12", "an int >= 1"),
        ("sync_period", True, "an int >= 1"),
        ("sync_period", None, "an int >= 1"),
        ("sync_period", np.float64(2), "an int >= 1"),
        ("warmup_steps", 0.5, "an int >= 0"),
        ("warmup_steps", False, "an int >= 0"),
        ("slow_lr", "1.0", "a finite number > 0"),
        ("slow_lr", True, "a finite number > 0"),
        ("slow_lr", 1j, "a finite number > 0"),
        ("slow_lr", Decimal(1), "a finite number > 0"),
        ("slow_lr", [1.0], "a finite number > 0"),
        ("slow_momentum", None, "a number with 0 <= slow_momentum < 1"),
        ("slow_momentum", False, "a number with 0 <= slow_momentum < 1"),
        ("nesterov", 1, "True or False"),
        ("nesterov", "yes", "True or False"),
        ("nesterov", None, "True or False"),
        ("buffers", None, "one of 'maintain', 'reset', 'average'"),
        ("buffers", 0, "one of 'maintain', 'reset', 'average'"),
        ("on_nonfinite", True, "one of 'exclude', 'raise'"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_what_is_legal(
    name: str, value: Any, legal: str
) -> None:
    with pytest.raises(TypeError, match=f"^{name} must be ") as caught:
        SlowMoConfig(**{name: value})
    assert legal in str(caught.value)
    assert repr(value) in str(caught.value)


def test_an_unknown_keyword_is_refused_and_named() -> None:
    with pytest.raises(TypeError, match="sync_perod"):
        SlowMoConfig(sync_perod=3)  # type: ignore[call-arg]


def test_nesterov_without_momentum_is_refused_with_the_reason() -> None:
    with pytest.raises(ValueError, match=r"nesterov=True needs slow_momentum > 0, got 0\.0"):
        SlowMoConfig(nesterov=True, slow_momentum=0)


@pytest.mark.parametrize("integer", [3, np.int64(3), np.int32(3), np.uint8(3)])
def test_every_kind_of_integer_is_kept_as_an_int(integer: Any) -> None:
    config = SlowMoConfig(sync_period=integer, warmup_steps=integer)
    assert (config.sync_period, config.warmup_steps) == (3, 3)
    assert type(config.sync_period) is type(config.warmup_steps) is int


@pytest.mark.parametrize(
    "number", [0.5, np.float64(0.5), np.float32(0.5), np.float16(0.5), Fraction(1, 2)]
)
def test_every_kind_of_real_number_is_kept_as_a_float(number: Any) -> None:
    config = SlowMoConfig(slow_lr=number, slow_momentum=number)
    assert (config.slow_lr, config.slow_momentum) == (0.5, 0.5)
    assert type(config.slow_lr) is type(config.slow_momentum) is float


def test_an_int_serves_as_a_number() -> None:
    config = SlowMoConfig(slow_lr=2, slow_momentum=0)
    assert (type(config.slow_lr), type(config.slow_momentum)) == (float, float)


@pytest.mark.parametrize(
    "settings",
    [
        {"sync_period": 1},
        {"slow_lr": 5e-324},
        {"slow_momentum": 0.0},
        {"slow_momentum": math.nextafter(1, 0), "nesterov": True},
        {"warmup_steps": 10**12},
        *({"buffers": strategy} for strategy in BUFFER_STRATEGIES),
        *({"on_nonfinite": choice} for choice in NONFINITE),
    ],
)
def test_the_edges_of_what_is_legal_are_legal(settings: dict[str, Any]) -> None:
    config = SlowMoConfig(**settings)
    assert {name: getattr(config, name) for name in settings} == settings


def test_a_configuration_cannot_be_changed_past_its_validation() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        SlowMoConfig().sync_period = 0  # type: ignore[misc]


def test_asdict_is_builtins_alone_and_builds_the_same_configuration() -> None:
    config = SlowMoConfig(
        np.int64(3), np.float32(0.5), 0.25, True, "reset", 2, "raise", 8, 1, 2, 5, 3
    )
    settings = config.asdict()
    assert SlowMoConfig(**settings) == config
    types = [int, float, float, bool, str, int, str, int, int, int, float, float]
    assert [type(value) for value in settings.values()] == types


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"overlap_steps": -1}, "overlap_steps must be an int >= 0"),
        ({"clip_displacement": 0}, "clip_displacement must be a finite number > 0, or None, got 0"),
        ({"outlier_factor": 1}, "outlier_factor must be a finite number > 1, or None, got 1"),
        ({"fragments": 0}, "fragments must be an int >= 1"),
        ({"sync_period": 4, "overlap_steps": 4}, "must be less than sync_period=4: an average"),
        ({"sync_period": 4, "fragments": 5}, "must be at most sync_period=4: each fragment"),
        ({"overlap_steps": 1, "buffers": "average"}, "the buffers move on while their mean"),
    ],
)
def test_a_pace_that_makes_no_sense_is_refused_with_the_reason(
    settings: dict[str, Any], why: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(why)):
        SlowMoConfig(**settings)


def test_a_resumed_run_may_take_broken_workers_and_buckets_another_way() -> None:
    saved = SlowMoConfig(on_nonfinite="exclude", bucket_bytes=8).arithmetic()
    assert saved == SlowMoConfig(on_nonfinite="raise").arithmetic()
    assert not {"on_nonfinite", "bucket_bytes"} & set(saved)
