"""The rate of a link, and how ``tc`` is told of it."""

import re

UNSHAPED = "unshaped"  # as fast as the machine can
_UNITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}
_LARGEST_PACKET = 2**16  # bytes, as the kernel hands it over before it is cut to the link's size
_DELAY = 50  # milliseconds that a packet may wait in the queue


def bits_a_second(rate: str) -> int | None:
    """What a rate such as "1gbit", "2.5gbit" or "100mbit" says; None where it is "unshaped".

    Raises:
        ValueError: it is no rate.
    """
    if rate == UNSHAPED:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)(kbit|mbit|gbit)", rate)
    bits = round(float(match[1]) * _UNITS[match[2]]) if match else 0
    if not bits:
        raise ValueError(f'the rate {rate!r} is neither "{UNSHAPED}" nor such as 1gbit or 100mbit')
    return bits


def queue(rate: str) -> list[str]:
    """The queueing discipline that gives an interface this rate, in the words of ``tc``.

    A token bucket: what it holds is sent at once, so it is small, a millisecond's worth.
    """
    bits = bits_a_second(rate)
    if bits is None:
        return ["noqueue"]
    burst = max(_LARGEST_PACKET, bits // 8 // 1000)
    return ["tbf", "rate", f"{bits}bit", "burst", f"{burst}b", "latency", f"{_DELAY}ms"]
