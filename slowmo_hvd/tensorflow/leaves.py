"""The optimizers that take the steps, inside the optimizers that only pass them on."""

from typing import Any, TypeAlias

import keras

#: MultiOptimizer, which is not in every release of Keras 3.
Multi = getattr(keras.optimizers, "MultiOptimizer", ())
Groups: TypeAlias = list[tuple[keras.optimizers.Optimizer, list[Any]]]


def leaves(optimizer: keras.optimizers.Optimizer) -> list[keras.optimizers.Optimizer]:
    """The optimizers that update variables themselves: one, or several in a MultiOptimizer."""
    if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        return leaves(optimizer.inner_optimizer)
    return list(optimizer.optimizers) if isinstance(optimizer, Multi) else [optimizer]


def groups_of(optimizer: keras.optimizers.Optimizer) -> Groups:
    """The built optimizer's leaves that have variables, each with its own.

    This leaves out variables that Keras overwrites with what replaces their gradient. They are not
    weights, but scales that float8 training measures on each worker.
    """
    pairs = [
        (
            leaf,
            [
                variable
                for variable in leaf._trainable_variables
                if not getattr(variable, "overwrite_with_gradient", False)
            ],
        )
        for leaf in leaves(optimizer)
    ]
    return [(leaf, variables) for leaf, variables in pairs if variables]


def accumulation_steps(groups: Groups) -> int:
    """The number of gradients that the leaves add up before each of their steps.

    Raises:
        ValueError: leaves of a MultiOptimizer add up different numbers.
    """
    numbers = {int(leaf.gradient_accumulation_steps or 1) for leaf, _ in groups}
    if len(numbers) > 1:
        raise ValueError(
            f"the optimizers in a MultiOptimizer have gradient_accumulation_steps {sorted(numbers)}"
            "; SlowMo counts the steps that all of them take, so give them one number"
        )
    return numbers.pop() if numbers else 1
