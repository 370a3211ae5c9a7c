"""Checkpoints of earlier releases load, and training goes on as it would have then."""

import json
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "saved"))
import runs


@pytest.mark.ranks(1)
def test_a_run_saved_before_the_engine_ends_as_it_would_have() -> None:
    model, optimizer = runs.torch_run()
    state = torch.load(runs.HERE / "torch.pt", weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    ours = runs.torch_steps(model, optimizer, range(runs.SAVED_AFTER, runs.STEPS))
    assert ours == pytest.approx(json.loads(runs.ENDS.read_text())["torch"], rel=1e-6)
