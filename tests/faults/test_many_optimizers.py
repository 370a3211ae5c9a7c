"""Several optimizers in one process, one after another too, never meet on the wire."""

import gc
import importlib
import weakref
from pathlib import Path
from typing import Any

import framework
import pytest
from jobs import job
from ranks import by_rank, everyone
from workers import hvd, worker


@pytest.mark.ranks(1, 2)
@pytest.mark.parametrize("order", ["as made", "reversed"])
def test_two_of_different_periods_train_their_own_models(order: str) -> None:
    slow = worker(sync_period=3, slow_momentum=0.0)
    quick = worker(sync_period=2, slow_momentum=0.0)
    turns = [(slow, 1.0), (quick, 10.0)] if order == "as made" else [(quick, 10.0), (slow, 1.0)]
    for _ in range(6):
        for this, size in turns:
            this.step(size * by_rank(1.0, 3.0))
    mean = 1 if hvd().size() == 1 else 2
    assert (slow.weights(), quick.weights()) == ([-6.0 * mean], [-60.0 * mean])
    assert (slow.optimizer.sync_stats.syncs, quick.optimizer.sync_stats.syncs) == (2, 3)


@pytest.mark.ranks(1, 2)
def test_a_critic_may_step_more_often_than_the_generator() -> None:
    generator, critic = worker(sync_period=2), worker(sync_period=4)
    for _ in range(4):
        for _ in range(3):
            critic.step(by_rank(1.0, -3.0))
        generator.step(by_rank(1.0, -3.0))
    assert generator.optimizer.sync_stats.syncs == 2
    assert critic.optimizer.sync_stats.syncs == 3
    for this in (generator, critic):
        assert everyone(this.weights()) == [this.weights()] * hvd().size()


@pytest.mark.ranks(2)
def test_one_that_only_some_ranks_have_made_does_not_disturb_the_others() -> None:
    kept = [worker() for _ in range(hvd().rank())]
    this = worker(sync_period=1, slow_momentum=0.0)
    this.step(by_rank(1.0, 3.0))
    assert this.weights() == [-2.0]
    assert len(kept) == hvd().rank()


@pytest.mark.ranks(1, 2)
def test_wrapping_dropping_and_wrapping_again_leaks_neither_names_nor_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names: set[str] = set()
    horovod: Any = importlib.import_module(f"horovod.{framework.current()}")
    sends = "allreduce_async_" if framework.current() == "torch" else "allreduce"
    send = getattr(horovod, sends)

    def noting(*args: Any, name: str, **kwargs: Any) -> Any:
        names.add(name)
        return send(*args, name=name, **kwargs)

    monkeypatch.setattr(horovod, sends, noting)
    gone = []
    after_the_first: set[str] = set()
    gc.collect()
    for turn in range(5):
        this = worker(sync_period=1, buffers="average", momentum=0.5)
        this.step(1.0)
        gone.append(weakref.ref(this.optimizer))
        del this
        gc.collect()
        if turn == 0:
            after_the_first = set(names)
    assert [reference() for reference in gone] == [None] * 5
    assert names == after_the_first
    assert bool(names) == (hvd().size() > 1)


@pytest.mark.only_all_cases("tensorflow")
def test_disjoint_process_sets_train_different_models_at_once() -> None:
    ended = job(
        4,
        """
        pairs = [hvd.add_process_set([0, 1]), hvd.add_process_set([2, 3])]
        mine = rank // 2
        this = worker(
            1 + mine, process_set=pairs[mine], sync_period=2 + mine, slow_momentum=0.0
        )
        for _ in range(6 * (1 + mine)):  # one pair trains twice as long
            this.step(float(rank))
        print(f"rank {rank}: {this.weights()}, {this.optimizer.sync_stats.syncs} syncs")
        hvd.allgather_object("all are done")
        """,
        HOROVOD_DYNAMIC_PROCESS_SETS="1",
    )
    assert ended.code == 0, ended.output
    for rank, end in enumerate(["[-3.0], 3"] * 2 + ["[-30.0, -30.0], 4"] * 2):
        assert f"rank {rank}: {end} syncs" in ended.output, ended.output


BEGINS_TWICE = """
import pathlib
import time

old = worker(sync_period=2, slow_momentum=0.0)
for _ in range(3):
    old.step(1.0 + rank)
hvd.shutdown()
down = pathlib.Path({folder!r})
(down / str(rank)).touch()
while len(list(down.iterdir())) < 2:
    time.sleep(0.01)
hvd.init()
old.step(1.0 + rank)
new = worker(sync_period=1, slow_momentum=0.0)
new.step(10.0 + rank)
print("rank", rank, old.weights(), new.weights())
"""


def test_shutdown_and_init_again_goes_on_with_old_and_new_optimizers(tmp_path: Path) -> None:
    """All ranks shut down before one begins again, or that one may find where the others were.

    It may find that still, in Horovod's table of addresses: then it is refused, and tries again.
    """
    for attempt in range(5):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        ended = job(2, BEGINS_TWICE.format(folder=str(folder)))
        if "Connection refused" not in ended.output:
            break
    assert ended.code == 0, ended.output
    for rank in range(2):
        assert f"rank {rank} [-6.0] [-10.5]" in ended.output, ended.output
