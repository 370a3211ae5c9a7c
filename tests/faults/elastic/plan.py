"""What goes wrong in an elastic run, and when. Read by the cluster and by every worker."""

import dataclasses
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Where a worker may die. All but the last are found by the worker itself, which then kills
#: itself; "outside" is a kill by the cluster as soon as it hears of the step.
MOMENTS = (
    "inside a window",
    "before a sync's allreduce",  # where the others wait for it
    "during a sync's allreduce",
    "between a sync's buckets",  # the others have a model that is in part old and in part new
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
    step_before: bool = False  # take a training step before ``run``, as Horovod's examples do
    overlap_steps: int = 0
    fragments: int = 1

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def load(cls, path: Path) -> "Plan":
        raw = json.loads(path.read_text())
        raw["kills"] = tuple(Kill(**kill) for kill in raw["kills"])
        raw["sizes"] = {int(step): size for step, size in raw["sizes"].items()}
        return cls(**raw)


PERIOD = 12  # steps between two kills


def draw(seed: int, moments: Sequence[str]) -> Plan:
    """A plan with one kill at each of the moments, of random ranks at random steps.

    Four workers lose two, then two others come. Those arrive at a window's start or inside one,
    and commits are at windows' starts or not.
    """
    draws = random.Random(seed)
    commit_every = draws.choice((3, 4))
    gates = [0]
    for index in range(2, len(moments) + 2, 2):
        gates.append(index * PERIOD + draws.choice((0, 2)))
    kills = []
    for index, moment in enumerate(moments):
        if moment == "inside an elastic sync":
            step, survivors = gates[(index + 1) // 2], 2
        else:
            steps = range(index * PERIOD + 3, (index + 1) * PERIOD)
            step = draws.choice([step for step in steps if _fits(moment, step, commit_every)])
            survivors = 4 - index % 2
        kills.append(Kill(moment, step, draws.randrange(survivors)))
    return Plan(
        seed,
        steps=gates[-1] + 2 * PERIOD,
        commit_every=commit_every,
        workers=4,
        kills=tuple(kills),
        sizes=dict.fromkeys(gates, 4),
    )


def _fits(moment: str, step: int, commit_every: int) -> bool:
    if "commit" in moment:
        return step % commit_every == 0
    if "sync's" in moment:
        return step % Plan.sync_period == 0
    return moment != "inside a window" or step % Plan.sync_period > 0
