"""One line registers a logger, in fit and in its graph too, and one rank writes."""

from pathlib import Path
from typing import Any

import pytest
from one_weight import fit, model_of, modes, slowmo
from ranks import everyone
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util.tensor_util import make_ndarray

import slowmo_hvd.tensorflow.keras as hvd


@pytest.mark.ranks(2)
@modes
def test_one_rank_writes_a_row_for_each_sync(mode: dict[str, Any], tmp_path: Path) -> None:
    path = everyone(tmp_path / "syncs.csv")[0]  # one file for all ranks
    model = model_of(0.0, slowmo(sync_period=2), **mode)
    hvd.loggers.csv(model.optimizer, path)
    fit(model, [1.0] * 4)
    everyone("done")
    assert [line.split(",")[0] for line in path.read_text().splitlines()] == ["step", "2", "4"]


@pytest.mark.ranks(1)
@modes
def test_tensorboards_scalars_are_over_the_local_steps(
    mode: dict[str, Any], tmp_path: Path
) -> None:
    model = model_of(0.0, slowmo(sync_period=2), **mode)
    hvd.loggers.tensorboard(model.optimizer, tmp_path)
    fit(model, [1.0] * 4)
    events = EventAccumulator(str(tmp_path)).Reload()
    norms = events.Tensors("slowmo/displacement_norm")
    assert [(event.step, make_ndarray(event.tensor_proto).item()) for event in norms] == [
        (2, 2.0),
        (4, 2.0),
    ]
