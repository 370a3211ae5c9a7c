"""What is alike in both frameworks' transports."""

import math

import pytest

from slowmo_hvd.core.transport import scale_for


@pytest.mark.parametrize(
    ("peak", "scale"),
    [
        (1.0, 2.0**15),
        (3.0, 2.0**13),  # 24576; 2**14 would bring it past 2**15
        (2.0**15, 1.0),
        (2.0**16, 0.5),
        (1e-9, 2.0**44),
        (2.0**-200, 2.0**100),  # no further: half precision holds 6e-8 times that
        (0.0, 1.0),
        (math.inf, 1.0),
        (math.nan, 1.0),
    ],
)
def test_a_power_of_two_brings_the_largest_element_near_the_end_of_half_precision(
    peak: float, scale: float
) -> None:
    assert scale_for(peak) == scale
    if 1e-30 < peak < math.inf:
        assert 2**14 < peak * scale <= 2**15
