"""Threads of one process: their syncs meet by name, and their first steps are refused."""

import re

from jobs import job


def test_two_threads_may_train_once_both_optimizers_have_begun_in_one() -> None:
    ended = job(
        2,
        """
        import threading

        small = worker(sync_period=4, slow_momentum=0.0)
        large = worker(sync_period=4, slow_momentum=0.0)
        sizes = {small: 1.0 + 2 * rank, large: 10.0 + 20 * rank}
        for this, size in sizes.items():
            this.step(size)

        def train(this):
            for _ in range(7):
                this.step(sizes[this])

        # The ranks start them the other way round.
        threads = [threading.Thread(target=train, args=[this]) for this in sizes]
        for thread in threads if rank == 0 else reversed(threads):
            thread.start()
        for thread in threads:
            thread.join()
        print(f"rank {rank} ends at {small.weights() + large.weights()}")
        """,
    )
    assert ended.code == 0, ended.output
    for rank in range(2):  # 8 steps along means of 2 and of 20
        assert f"rank {rank} ends at [-16.0, -160.0]" in ended.output, ended.output


def test_first_steps_in_two_threads_are_refused_in_one_sentence() -> None:
    """Nothing but their order would pair them with the other ranks' first steps."""
    ended = job(
        2,
        """
        import threading

        stepped, done = threading.Event(), threading.Event()
        first, second = worker(sync_period=2), worker(sync_period=2)

        def begin():
            first.step(1.0)
            stepped.set()
            done.wait()

        thread = threading.Thread(target=begin, name="that of the first")
        thread.start()
        stepped.wait()
        for this in (second, first):
            try:
                this.step(1.0)
            except Exception as error:
                assert "both make first steps" in str(error), error
                print(f"rank {rank} is refused: {error}")
        done.set()
        thread.join()
        """,
    )
    assert ended.code == 0, ended.output
    for rank in range(2):
        words = (
            rf"threads 'that of the first' and 'MainThread' of rank {rank} both make first steps.*"
            "make the first step of every optimizer.* in one thread"
        )
        assert re.search(words, ended.output), ended.output
        assert ended.output.count(f"rank {rank} is refused") == 2, ended.output
