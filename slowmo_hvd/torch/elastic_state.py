"""SlowMo's optimizer in ``hvd.elastic.TorchState``: the slow state is synchronised too."""

from horovod.torch.elastic.state import (
    OptimizerStateHandler,
    get_handler_registry,
    set_handler_registry,
)

from slowmo_hvd.torch.functions import broadcast_optimizer_state


class SlowMoStateHandler(OptimizerStateHandler):  # type: ignore[misc]
    """Saves and restores by state_dict, as Horovod's handler; synchronises by our broadcast."""

    def sync(self) -> None:
        """Give every rank rank 0's state. A collective."""
        broadcast_optimizer_state(self.value, root_rank=0)


def register_handler() -> None:
    """Put our handler into the place of Horovod's, which takes any torch optimizer.

    Our broadcast calls Horovod's for those that are not ours, and knows ours in wrappers too.
    """
    set_handler_registry(
        [
            (type_, SlowMoStateHandler if handler is OptimizerStateHandler else handler)
            for type_, handler in get_handler_registry()
        ]
    )
