"""What an overlap and fragments do not go with, in one sentence each."""

from collections.abc import Sequence

from slowmo_hvd.core.config import SlowMoConfig


def refuse_few(config: SlowMoConfig, count: int, of: str) -> None:
    """Raise ValueError if there are more fragments than so many "parameters" or "variables"."""
    if config.fragments > count:
        raise ValueError(
            f"fragments={config.fragments} are more than the {count} {of} that they are to be dealt"
        )


def refuse_copies(config: SlowMoConfig, optimizer: str, names: Sequence[str] = ()) -> None:
    """Raise ValueError if averages overlap with steps of an optimizer that keeps the weights twice.

    Args:
        config: tells whether they overlap.
        optimizer: its name.
        names: of the copies, if they have some.
    """
    if config.overlap_steps:
        named = f" ({', '.join(names)})" if names else ""
        raise ValueError(
            f"overlap_steps={config.overlap_steps} cannot be used with {optimizer}: it keeps "
            f"copies of the weights{named} and steps in them, while the weights alone would land"
        )


def refuse_counts(config: SlowMoConfig, optimizer: str, names: Sequence[str] = ()) -> None:
    """Raise ValueError if a fragment's buffers are to be reset where steps are counted for all.

    Args:
        config: tells whether there are fragments, and what becomes of the buffers.
        optimizer: its name.
        names: of the counts, if they have some.
    """
    if config.fragments > 1 and config.buffers == "reset":
        named = f" ({', '.join(names)})" if names else ""
        raise ValueError(
            f"buffers='reset' cannot be used with fragments={config.fragments} and {optimizer}: it "
            f"counts its steps once for all weights{named}; use 'maintain'"
        )
