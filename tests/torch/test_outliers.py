"""A worker that trains on something else is left out of the averages, in PyTorch."""

import warnings

import pytest
import torch
from models import number, step_with
from ranks import by_rank

import slowmo_hvd.torch as hvd


@pytest.mark.ranks(3)
@pytest.mark.parametrize("overlap", [0, 1])
def test_a_worker_with_wrong_data_is_left_out_where_it_would_ruin_the_run(overlap: int) -> None:
    ends = []
    for factor in (None, 4.0):
        param = number(1.0)
        inner = torch.optim.SGD([param], lr=0.1)
        settings = {"sync_period": 4, "outlier_factor": factor, "overlap_steps": overlap}
        optimizer = hvd.DistributedOptimizer(inner, slow_momentum=0.0, **settings)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            for _ in range(40):
                # The optimum is 0, and rank 2 takes its labels a thousand times too large.
                step_with(optimizer, param.item() - by_rank(0.0, 0.0, 1000.0))
            optimizer.flush()
        ends.append(abs(param.item()))
        assert bool(told) == (factor is not None)
    assert ends[0] > 100
    assert ends[1] < 0.1
    assert optimizer.sync_stats.last.outliers == (2,)
    assert optimizer.sync_stats.last.workers == 2
