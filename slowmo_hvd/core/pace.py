"""What cannot be combined with an overlap or with fragments."""

from collections.abc import Sequence

from slowmo_hvd.core.config import SlowMoConfig


def refuse_few(config: SlowMoConfig, count: int, of: str) -> None:
    """Raise ValueError if there are more fragments than ``count`` "parameters" or "variables"."""
    if config.fragments > count:
        raise ValueError(
            f"fragments={config.fragments} are more than the {count} {of} that they are to be dealt"
        )


def refuse_copies(config: SlowMoConfig, optimizer: str, names: Sequence[str] = ()) -> None:
    """Raise ValueError for an overlap with an optimizer that keeps the weights a second time.

    Args:
        config: tells whether there is an overlap.
        optimizer: the optimizer's name.
        names: the names of the copies, if they have any.
    """
    if config.overlap_steps:
        named = f" ({', '.join(names)})" if names else ""
        raise ValueError(
            f"overlap_steps={config.overlap_steps} cannot be used with {optimizer}: it keeps "
            f"copies of the weights{named} and steps in them, while the weights alone would land"
        )


def refuse_counts(config: SlowMoConfig, optimizer: str, names: Sequence[str] = ()) -> None:
    """Raise ValueError for resets of fragments if steps are counted once for all weights.

    Args:
        config: tells whether there are fragments, and what happens to the buffers.
        optimizer: the optimizer's name.
        names: the names of the counts, if they have any.
    """
    if config.fragments > 1 and config.buffers == "reset":
        named = f" ({', '.join(names)})" if names else ""
        raise ValueError(
            f"buffers='reset' cannot be used with fragments={config.fragments} and {optimizer}: it "
            f"counts its steps once for all weights{named}; use 'maintain'"
        )
