"""Processes that another launcher has started hear that Horovod does not see the others."""

import pytest

from slowmo_hvd.core.launchers import alone_among


@pytest.mark.parametrize(
    ("environment", "launcher"),
    [
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "mpirun"),
        ({"PMI_SIZE": "4"}, "mpirun"),
        ({"SLURM_STEP_NUM_TASKS": "4", "WORLD_SIZE": "1"}, "srun"),
        ({"WORLD_SIZE": "4"}, "torchrun"),
    ],
)
def test_one_of_four_that_sees_itself_alone_is_told(
    environment: dict[str, str], launcher: str
) -> None:
    (sentence,) = alone_among(1, environment)
    assert f"one of 4 processes that {launcher} has started" in sentence
    assert "horovodrun" in sentence
    assert alone_among(4, environment) == []


@pytest.mark.parametrize(
    "environment", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": ""}, {"PMI_SIZE": "x"}]
)
def test_a_process_that_is_alone_hears_nothing(environment: dict[str, str]) -> None:
    assert alone_among(1, environment) == []
