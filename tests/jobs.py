"""A job of its own for what would end the tests' own: a small script on ranks, in one framework."""

import dataclasses
import textwrap
import uuid

import framework
from launch import ROOT, horovodrun
from leftovers import MARK, left_over, nothing_is_left
from progress import IDLE

_HEAD = f"""
import sys

sys.path.insert(0, {str(ROOT / "tests")!r})
import framework

framework.start(sys.argv[1])
import workers

hvd = workers.hvd()
rank = hvd.rank()
worker = workers.worker
hvd.allgather_object("all are here")  # each took its time to start
"""


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a job ended.

    Attributes:
        code: horovodrun's exit code.
        output: what all ranks and horovodrun wrote.
    """

    code: int
    output: str


def job(ranks: int, script: str, *, timeout: float = IDLE, **env: str) -> Ended:
    """Run ``script``, which has ``hvd``, ``rank`` and ``worker``, in the session's framework.

    It must leave no process, and hangs once it is idle for ``timeout`` seconds.
    """
    mark = uuid.uuid4().hex
    code = _HEAD + textwrap.dedent(script)
    done = horovodrun(
        ranks, "-c", code, framework.current(), timeout=timeout, env={**env, MARK: mark}
    )
    assert nothing_is_left(mark), left_over(mark)
    return Ended(done.returncode, done.stdout)
