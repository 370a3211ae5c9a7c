"""Horovod's own arguments to DistributedOptimizer: kept where they mean something, or refused.

SlowMo sends no gradients, so what Horovod offers for sending gradients has no meaning here. Such
an argument is accepted at its default, since scripts spell defaults out, and refused otherwise:
to ignore it in silence would be to train something else than was asked for.
"""

from typing import Any

from slowmo_hvd.core.checks import check_integer

_WHY = {
    "gradient_predivide_factor": "it splits the division of averaged gradients",
    "num_groups": "it groups gradients for sending",
    "groups": "it groups gradients for sending",
}


def refuse_gradient_arguments(**given: tuple[Any, Any]) -> None:
    """Raise ValueError for the first argument that is not at its default.

    Args:
        given: for each argument's name, the value given and the default.
    """
    for name, (value, default) in given.items():
        if value is not default and value != default:
            raise ValueError(
                f"{name}={value!r} has no meaning for SlowMo: {_WHY[name]}, and SlowMo sends no "
                f"gradients but one fused displacement each sync_period steps; leave it at "
                f"{default!r}"
            )


def check_op(name: str, *, is_average: bool) -> None:
    """Raise ValueError unless the reduction ``op``, called ``name``, is Average."""
    if is_average:
        return
    why = (
        "Adasum combines gradients"
        if name == "Adasum"
        else "SlowMo is defined by the workers' mean"
    )
    raise ValueError(f"op={name} cannot be used with SlowMo: {why}; use op=hvd.Average")


def check_backward_passes(value: Any) -> int:
    """Horovod's ``backward_passes_per_step``: an int >= 1, or TypeError or ValueError.

    Gradients add up locally, as they do in Horovod, so there is nothing else to do with it.
    """
    return check_integer("backward_passes_per_step", value, least=1)
