"""Each private name of torch's that the adapter uses is still there."""

import sys
from typing import Any

import pytest
import torch
from private_names import used
from torch.distributed.fsdp._flat_param import FlatParameter

#: Who has each name, and what of ours would break without it. Python's own are not torch's.
NAMES: dict[str, tuple[Any, str]] = {
    "_foreach_zero_": (torch, "a reset of buffers"),
    "_foreach_copy_": (torch, "how parameters are put to the new anchor"),
    "_non_persistent_buffers_set": (torch.nn.Module(), "which running statistics a flush averages"),
    **{
        f"_optimizer_{when}_hooks": (torch.optim.SGD([torch.zeros(1)]), "the optimizer's hooks")
        for when in (
            "step_pre",
            "step_post",
            "state_dict_pre",
            "state_dict_post",
            "load_state_dict_pre",
            "load_state_dict_post",
        )
    },
    "_is_flat_param": (FlatParameter(torch.zeros(1)), "whether FSDP's parameters are refused"),
    "_getframe": (sys, "who calls step()"),
}
PYTHONS_OWN = {"_replace"}  #: of a named tuple


@pytest.mark.parametrize("name", NAMES)
def test_a_private_name_is_there(name: str) -> None:
    owner, what = NAMES[name]
    places = ", ".join(used("torch").get(name, []))
    assert hasattr(owner, name), (
        f"torch {torch.__version__} has no {name} any more, by which goes {what}: see {places}"
    )


def test_each_private_name_in_the_source_is_in_this_list() -> None:
    assert set(used("torch")) == set(NAMES) | PYTHONS_OWN
