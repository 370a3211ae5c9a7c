"""The parameters of an optimizer at one moment: their identity, form, and which are trained."""

import dataclasses
import weakref
from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import Any

import torch
from torch import Tensor

from slowmo_hvd.core.schedule import MeanLearningRate

_switch = attrgetter("requires_grad")
_form = attrgetter("dtype", "device", "shape")


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters of all groups, end to end. A parameter's position is its index here."""
    return [param for group in optimizer.param_groups for param in group["params"]]


class Parameters:
    """The parameters that the ranks agreed to train, to compare with those that are there now.

    It keeps the tensors alive, so that no later tensor can have the identity of one of them.

    Attributes:
        groups: the parameters of each parameter group.
        all: the same, end to end.
        trained: the positions in ``all`` of those that are trained.
        frozen: the positions of the others: they need no gradient, or are not floating-point.
    """

    def __init__(
        self, groups: Iterable[Iterable[Tensor]], switches: Sequence[bool] | None = None
    ) -> None:
        """Look at the parameters.

        Args:
            groups: the parameters of each parameter group.
            switches: for each parameter, a value to use instead of its ``requires_grad``.
        """
        self.groups = [list(group) for group in groups]
        self.all = [param for group in self.groups for param in group]
        self._switches = list(map(_switch, self.all)) if switches is None else list(switches)
        self._forms = list(map(_form, self.all))
        self.trained = [
            position
            for position, (param, switch) in enumerate(zip(self.all, self._switches, strict=True))
            if switch and (param.is_floating_point() or param.is_complex())
        ]
        trained = set(self.trained)
        self.frozen = [position for position in range(len(self.all)) if position not in trained]

    def are(self, groups: Sequence[Sequence[Tensor]]) -> bool:
        """Whether ``groups`` hold the very same tensors. It takes 10 µs for 500 of them."""
        sizes, ours = map(len, groups), map(len, self.groups)
        return list(sizes) == list(ours) and all(map(is_, chain.from_iterable(groups), self.all))

    def switched_as(self, groups: Sequence[Sequence[Tensor]]) -> bool:
        """Whether the same ones need a gradient. It takes 20 µs for 500."""
        return list(map(_switch, chain.from_iterable(groups))) == self._switches

    def formed_as(self, groups: Sequence[Sequence[Tensor]]) -> bool:
        """Whether their dtypes, devices and shapes are the same. It takes 60 µs for 500."""
        return list(map(_form, chain.from_iterable(groups))) == self._forms

    def at_a_sync(self, groups: Iterable[Iterable[Tensor]]) -> "Parameters":
        """The parameters that are there now. A change of ``requires_grad`` does not count yet."""
        listed = [list(group) for group in groups]
        switches = dict(zip(map(id, self.all), self._switches, strict=True))
        params = chain.from_iterable(listed)
        return Parameters(listed, [switches.get(id(p), p.requires_grad) for p in params])

    def places_in(self, before: "Parameters") -> list[int]:
        """The position of each parameter ``before``; -1 if it is new, or has another shape."""
        places = {id(param): place for place, param in enumerate(before.all)}
        found = [places.get(id(param), -1) for param in self.all]
        return [
            place if place >= 0 and before._forms[place][2] == form[2] else -1
            for place, form in zip(found, self._forms, strict=True)
        ]

    def frozen_since(self, before: "Parameters") -> list[int]:
        """The positions of those that are frozen now and were trained ``before``."""
        trained, places = set(before.trained), self.places_in(before)
        return [position for position in self.frozen if places[position] in trained]

    def follow(
        self, before: "Parameters | None", rates: Sequence[MeanLearningRate]
    ) -> list[MeanLearningRate]:
        """γ so far of each group, from the group that had one of its parameters ``before``."""
        group_of: dict[int, int] = {}
        if before is not None:
            for index, group in enumerate(before.groups):
                group_of.update(dict.fromkeys(map(id, group), index))
        followed = []
        for group in self.groups:
            olds = [group_of[id(param)] for param in group if id(param) in group_of]
            followed.append(dataclasses.replace(rates[olds[0]]) if olds else MeanLearningRate())
        return followed

    def difference(self, before: "Parameters") -> str:
        """How many parameters were frozen, thawed, added and removed since ``before``, in words."""
        places = self.places_in(before)
        was_trained, is_trained = set(before.trained), set(self.trained)
        counts = {
            "frozen": len(self.frozen_since(before)),
            "thawed": sum(
                place >= 0 and place not in was_trained and position in is_trained
                for position, place in enumerate(places)
            ),
            "new": places.count(-1),
            "removed": len(set(range(len(before.all))) - set(places)),
        }
        said = [f"{count} {what}" for what, count in counts.items() if count]
        return ", ".join(said) or "in other groups or of other types"


class Names:
    """The parameters' names, if the script gives them."""

    def __init__(self, named: Iterable[tuple[str, Tensor]] = ()) -> None:
        # Weak: a layer that the script has replaced can be freed.
        self._of = {id(param): (name, weakref.ref(param)) for name, param in named}

    def of(self, groups: Sequence[Sequence[Tensor]]) -> list[str]:
        """A name for each parameter, or its place if it came later; empty without names."""
        if not self._of:
            return []
        return [
            self._name(param) or f"parameter {place} of group {index}"
            for index, group in enumerate(groups)
            for place, param in enumerate(group)
        ]

    def _name(self, param: Tensor) -> str | None:
        name, found = self._of.get(id(param), ("", lambda: None))
        return name if found() is param else None

    def __getstate__(self) -> dict[str, Any]:
        """For deepcopy and pickle: a copy has other parameters."""
        living = ((name, found()) for name, found in self._of.values())
        return {"named": [(name, param) for name, param in living if param is not None]}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["named"])  # type: ignore[misc]
