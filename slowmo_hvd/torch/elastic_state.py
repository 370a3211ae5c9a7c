"""SlowMo's optimizer in ``hvd.elastic.TorchState``: the slow state is synchronised too."""

from horovod.common.elastic import State
from horovod.torch.elastic.state import (
    OptimizerStateHandler,
    StateHandler,
    get_handler_registry,
    set_handler_registry,
)

from slowmo_hvd.core.elastic_job import watch_reset_callbacks
from slowmo_hvd.core.living import settle_everywhere
from slowmo_hvd.torch.functions import broadcast_optimizer_state


class SlowMoStateHandler(OptimizerStateHandler):  # type: ignore[misc]
    """Saves and restores by state_dict, like Horovod's handler; synchronises by our broadcast."""

    def sync(self) -> None:
        """Give every rank rank 0's state. A collective."""
        broadcast_optimizer_state(self.value, root_rank=0)


def prepare_states() -> None:
    """Replace Horovod's handler, which takes any torch optimizer, by ours; watch the callbacks.

    For optimizers that are not SlowMo's, our broadcast calls Horovod's. It finds ours in wrappers
    too.

    Saving an optimizer's state waits for what is under way, and may find there that a worker is
    lost. So every save waits first. Otherwise a commit could hold a model that is newer than the
    optimizer's state.
    """
    watch_reset_callbacks(State)
    set_handler_registry(
        [
            (type_, _settling(SlowMoStateHandler if of is OptimizerStateHandler else of))
            for type_, of in get_handler_registry()
        ]
    )


def _settling(handler: type[StateHandler]) -> type[StateHandler]:
    """The handler, changed to save only when nothing is on the wire."""

    class Settling(handler):  # type: ignore[misc]
        def save(self) -> None:
            settle_everywhere()
            super().save()

    Settling.__name__ = Settling.__qualname__ = handler.__name__
    return Settling
