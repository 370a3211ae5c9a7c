"""What goes wrong in an elastic run, and when. Read by the cluster and by every worker."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

#: Where a worker may die. All but the last are found by the worker itself, which then kills
#: itself; "outside" is a kill by the cluster as soon as it hears of the step.
MOMENTS = (
    "inside a window",
    "before a sync's allreduce",  # where the others wait for it
    "during a sync's allreduce",
    "after a sync's allreduce",  # in its sync hook, while others may still be in the sync
    "inside a commit's copy",  # the model is copied, what follows it is not
    "after a commit's copy",  # where the others wait in the broadcast that ends a commit
    "inside an elastic sync",  # while a worker that has just arrived gets the state
    "outside",
)


@dataclass(frozen=True)
class Kill:
    """Rank ``rank`` dies by SIGKILL at ``moment`` of its step number ``step``, counted from 1."""

    moment: str
    step: int
    rank: int


@dataclass(frozen=True)
class Plan:
    """An elastic run."""

    seed: int = 0
    steps: int = 24
    sync_period: int = 4
    commit_every: int = 4  # steps
    workers: int = 3  # at the start
    kills: tuple[Kill, ...] = ()
    #: After this many steps the workers wait until they are so many; by steps.
    sizes: dict[int, int] = field(default_factory=dict)
    fit: bool = False  # Keras: with ``model.fit``

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "Plan":
        raw = json.loads(path.read_text())
        raw["kills"] = tuple(Kill(**kill) for kill in raw["kills"])
        raw["sizes"] = {int(step): size for step, size in raw["sizes"].items()}
        return cls(**raw)
