"""Ranks that wait for one that does not come say why and what to do, and end."""

import framework
import pytest
from jobs import job

SOON = {"HOROVOD_STALL_CHECK_TIME_SECONDS": "2", "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "5"}


def test_a_rank_that_stops_calling_step_is_waited_for_with_a_warning_and_then_no_more() -> None:
    ended = job(
        2,
        """
        import threading

        this = worker(sync_period=2)
        for _ in range(3 if rank == 1 else 4):
            this.step(1.0)
        threading.Event().wait()  # rank 1 does something else
        """,
        **SOON,
    )
    assert ended.code != 0
    lines = [line for line in ended.output.splitlines() if "rank 0 has waited" in line]
    assert lines, ended.output
    assert all("in the sync after step 4" in line for line in lines), lines
    assert any("It waits on, up to 5 s" in line for line in lines), lines
    assert any("and ends the job" in line for line in lines), lines
    assert all("end every rank with hvd.join()" in line for line in lines), lines
    assert "rank 1 has waited" not in ended.output


def test_a_slow_link_that_carries_the_first_weights_is_blamed_on_no_rank() -> None:
    """20 MB may take 16 s, at 10 Mbit/s, before anyone is thought to be missing."""
    ended = job(
        2,
        """
        import importlib
        import time

        horovod = importlib.import_module(f"horovod.{framework.current()}")
        sends = "allreduce_async_" if framework.current() == "torch" else "allreduce"
        send = getattr(horovod, sends)

        def slowly(*args, name, **kwargs):
            if name.endswith("anchor.bucket0"):
                print(f"rank {rank} sends slowly", flush=True)
                time.sleep(4)
            return send(*args, name=name, **kwargs)

        setattr(horovod, sends, slowly)
        this = worker(5_000_000)
        this.step(1.0)
        """,
        **SOON,
    )
    assert ended.code == 0, ended.output
    assert ended.output.count("sends slowly") == 2, ended.output
    assert "has waited" not in ended.output, ended.output


@pytest.mark.only_all_cases("tensorflow")
def test_ranks_with_different_process_sets_are_told_of_it() -> None:
    ended = job(
        2,
        """
        import threading

        alone = hvd.add_process_set([1])
        this = worker(process_set=alone) if rank == 1 else worker()
        for _ in range(100):
            this.step(1.0)
        threading.Event().wait()  # rank 1 has trained with itself
        """,
        HOROVOD_DYNAMIC_PROCESS_SETS="1",
        **SOON,
    )
    assert ended.code != 0
    assert "rank 0 has waited" in ended.output
    assert "in the first step" in ended.output
    assert "trains with another process set" in ended.output


@pytest.mark.only_all_cases("tensorflow")
def test_a_rank_that_ends_early_is_an_error_on_the_others_that_names_the_cure() -> None:
    ended = job(
        2,
        """
        this = worker(sync_period=2)
        for _ in range(3 if rank == 1 else 4):
            this.step(1.0)
        print(f"rank {rank} is done", flush=True)
        """,
    )
    assert ended.code != 0
    assert "rank 1 is done" in ended.output
    assert "rank 0 is done" not in ended.output
    assert "Horovod has been shut down" in ended.output
    if framework.current() == "torch":  # an error out of a graph has Horovod's words alone
        assert "end every rank with hvd.join()" in ended.output
