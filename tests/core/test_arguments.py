"""Horovod's arguments: accepted where they change nothing, refused with the reason elsewhere."""

from types import ModuleType
from typing import Any

import pytest

from slowmo_hvd.core.arguments import (
    check_backward_passes,
    check_op,
    refuse_gradient_arguments,
)

DEFAULTS = {"gradient_predivide_factor": 1.0, "num_groups": 0, "groups": None}


def test_defaults_are_accepted_however_they_are_spelt() -> None:
    refuse_gradient_arguments(
        gradient_predivide_factor=(1, 1.0), num_groups=(0, 0), groups=(None, None)
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [("gradient_predivide_factor", 2.0), ("num_groups", 4), ("groups", 2), ("groups", [["p"]])],
)
def test_what_has_no_meaning_is_refused_with_the_reason_and_the_way_out(
    name: str, value: Any
) -> None:
    given = {key: (default, default) for key, default in DEFAULTS.items()}
    given[name] = (value, DEFAULTS[name])
    with pytest.raises(ValueError, match="has no meaning for SlowMo") as caught:
        refuse_gradient_arguments(**given)
    message = str(caught.value)
    assert message.startswith(f"{name}={value!r} ")
    assert "SlowMo sends no gradients" in message
    assert message.endswith(f"leave it at {DEFAULTS[name]!r}")


HOROVOD = ModuleType("horovod")
NAMES = ("Average", "Sum", "Adasum", "Min", "Max", "Product")
vars(HOROVOD).update({name: number for number, name in enumerate(NAMES)})


def test_average_is_the_one_reduction() -> None:
    check_op(HOROVOD.Average, HOROVOD)


@pytest.mark.parametrize("name", NAMES[1:])
def test_every_other_reduction_is_refused_with_the_way_out(name: str) -> None:
    with pytest.raises(ValueError, match=f"^op={name} cannot be used .*use op=hvd.Average$"):
        check_op(getattr(HOROVOD, name), HOROVOD)


def test_a_reduction_that_horovod_has_not_is_refused_by_its_value() -> None:
    with pytest.raises(ValueError, match=r"^op='mean' cannot be used"):
        check_op("mean", HOROVOD)


@pytest.mark.parametrize("passes", [1, 2, 100])
def test_backward_passes_are_counted_from_one(passes: int) -> None:
    assert check_backward_passes(passes) == passes


@pytest.mark.parametrize("passes", [0, -1])
def test_no_backward_pass_is_refused(passes: int) -> None:
    with pytest.raises(ValueError, match=f"must be an int >= 1, got {passes}$"):
        check_backward_passes(passes)


@pytest.mark.parametrize("passes", [1.0, "2", None, True])
def test_backward_passes_that_are_no_int_are_refused(passes: Any) -> None:
    with pytest.raises(TypeError, match=f"must be an int >= 1, got {passes!r}$"):
        check_backward_passes(passes)
