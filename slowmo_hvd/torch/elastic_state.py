"""SlowMo's optimizer in ``hvd.elastic.TorchState``: the slow state is synchronised too."""

from horovod.torch.elastic.state import (
    OptimizerStateHandler,
    StateHandler,
    get_handler_registry,
    set_handler_registry,
)

from slowmo_hvd.core.living import settle_everywhere
from slowmo_hvd.torch.functions import broadcast_optimizer_state


class SlowMoStateHandler(OptimizerStateHandler):  # type: ignore[misc]
    """Saves and restores by state_dict, as Horovod's handler; synchronises by our broadcast."""

    def sync(self) -> None:
        """Give every rank rank 0's state. A collective."""
        broadcast_optimizer_state(self.value, root_rank=0)


def register_handler() -> None:
    """Put our handler into the place of Horovod's, which takes any torch optimizer.

    Our broadcast calls Horovod's for those that are not ours, and knows ours in wrappers too.

    A worker may be found to be lost where an optimizer's state is saved, which waits for what is
    under way. So everything waits for that, or a commit would have a model that is newer than it.
    """
    set_handler_registry(
        [
            (type_, _settling(SlowMoStateHandler if of is OptimizerStateHandler else of))
            for type_, of in get_handler_registry()
        ]
    )


def _settling(handler: type[StateHandler]) -> type[StateHandler]:
    """The handler, but that it saves only when nothing is on the wire."""

    class Settling(handler):  # type: ignore[misc]
        def save(self) -> None:
            settle_everywhere()
            super().save()

    Settling.__name__ = Settling.__qualname__ = handler.__name__
    return Settling
