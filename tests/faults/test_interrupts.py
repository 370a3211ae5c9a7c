"""Ctrl-C inside a collective: the ranks stay together, or this one says that they may not be."""

import framework
import pytest
from jobs import job

# A method that runs inside each: its module, class and name.
INSIDE = {
    "the sync after step 2": {
        "torch": ("core.engine", "Engine", "_squares"),
        "tensorflow": ("core.engine", "Engine", "_squares"),
    },
    "the first step": {
        "torch": ("torch.training", "Training", "_agree_on"),
        "tensorflow": ("tensorflow.training", "Training", "_agree"),
    },
}
# A graph waits for it: no interrupt reaches it, and nothing holds one back.
GRAPH = ("tensorflow", "the sync after step 2")
INTERRUPT = """
import importlib
import signal

owner = importlib.import_module("slowmo_hvd.{module}").{owner}
method = owner.{method}
interrupts = [signal.SIGINT] * ({times} if rank == 0 else 0)

def interrupted(*args, **kwargs):
    while interrupts:
        signal.raise_signal(interrupts.pop())
    return method(*args, **kwargs)

owner.{method} = interrupted
this = worker(sync_period=2, slow_momentum=0.0)
if framework.current() == "tensorflow":
    # A tf.function that is interrupted where it makes variables does nothing from then on.
    this.optimizer.build([this._weights])
"""


def interrupt(where: str, *, times: int = 1) -> str:
    module, owner, method = INSIDE[where][framework.current()]
    return INTERRUPT.format(module=module, owner=owner, method=method, times=times)


@pytest.mark.parametrize("where", INSIDE)
def test_one_that_is_caught_leaves_all_ranks_with_one_model(where: str) -> None:
    ended = job(
        2,
        interrupt(where)
        + """
caught = 0
while caught == 0 and rank == 0 or this.steps_taken() < 4:
    try:
        this.step(1.0 + 2 * rank)
    except KeyboardInterrupt:
        caught += 1
print(f"rank {rank} was interrupted {caught} times and ends at {this.weights()}")
""",
    )
    assert ended.code == 0, ended.output
    for rank in range(2):  # 4 steps along a mean of 2
        words = f"rank {rank} was interrupted {1 - rank} times and ends at [-8.0]"
        assert words in ended.output, ended.output
    if (framework.current(), where) != GRAPH:
        assert f"rank 0 is interrupted in {where}, and finishes it first" in ended.output


@pytest.mark.only_all_cases("tensorflow")
@pytest.mark.parametrize("where", INSIDE)
def test_a_second_one_breaks_it_off_and_all_that_comes_after_says_so(where: str) -> None:
    if (framework.current(), where) == GRAPH:
        pytest.skip("no interrupt reaches what a graph waits for")
    refused = ["this.step(1.0)", "this.step(1.0)"]
    if framework.current() == "torch":
        refused += ["this.optimizer.state_dict()"]
    if "sync" in where:
        refused += ["this.optimizer.flush()"]
    ended = job(
        2,
        interrupt(where, times=2)
        + f"""
try:
    for _ in range(2):
        this.step(1.0)
except KeyboardInterrupt:
    for call in {refused}:
        try:
            exec(call)
        except RuntimeError as error:
            print(f"{{call}} is refused: {{error}}", flush=True)
    sys.exit(1)
""",
    )
    assert ended.code != 0
    for call in refused:
        words = f"{call} is refused: {where} was broken off on rank 0 by KeyboardInterrupt, and"
        assert ended.output.count(words) == refused.count(call), ended.output
