"""The contenders by name."""

import dataclasses
import importlib
from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.contenders.protocol import CannotRunError, Contender, Setting, Work

#: What benchmarks.contenders.families.overlap makes d and F of.
OVERLAP: dict[str, Any] = {"overlap": 1 / 2}
SHORT_OVERLAP: dict[str, Any] = {"overlap": 1 / 6}
FRAGMENTS: dict[str, Any] = {"overlap": 1 / 2, "fragments": True}
#: Local SGD, or local Adam, as the others have it: a plain average, and inner buffers that go on.
LOCAL_SGD: dict[str, Any] = {"slow_momentum": 0.0, "buffers": "maintain"}
#: DiLoCo's outer step (arXiv 2311.08105), and inner buffers that go on.
DILOCO: dict[str, Any] = {
    "slow_lr": 0.7,
    "slow_momentum": 0.9,
    "nesterov": True,
    "buffers": "maintain",
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """A contender.

    Attributes:
        family: the module that makes it, one of benchmarks.contenders.families.
        says: what it is.
        options: for the module's ``make``.
        baseline: the contender that trains alone, of the same framework.
    """

    family: str
    says: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    baseline: str = "local"

    def make(self, work: Work, setting: Setting) -> Contender:
        """Make it.

        Raises:
            CannotRunError: it cannot run here: something is missing, or it refuses.
        """
        try:
            module = importlib.import_module(f"benchmarks.contenders.families.{self.family}")
            made: Contender = module.make(work, setting, **self.options)
        except CannotRunError:
            raise
        except Exception as error:  # whatever a package of others has
            raise CannotRunError(f"{type(error).__name__}: {error}") from error
        return made


LOCAL = "local"
RAW = "raw"
BEHIND = "raw-behind"
KERAS_LOCAL = "keras-local"
CONTENDERS: dict[str, Entry] = {
    LOCAL: Entry("local", "PyTorch, each worker alone: the limit"),
    RAW: Entry("raw", "one raw in-place allreduce of Horovod's of as many bytes as the model has"),
    BEHIND: Entry(
        "local_over_raw", "local, a raw allreduce behind each window: an overlap's limit"
    ),
    "hvd-fp32": Entry("horovod_torch", "hvd.DistributedOptimizer: gradients"),
    "hvd-fp16": Entry("horovod_torch", "the same with Compression.fp16", {"fp16": True}),
    "ddp": Entry("torch_ddp", "torch DistributedDataParallel on Gloo: gradients"),
    "post-local-sgd": Entry("torch_post_local_sgd", "torch PostLocalSGDOptimizer with its hook"),
    "torchft-local-sgd": Entry("torchft_managed", "torchft LocalSGD"),
    "torchft-diloco": Entry("torchft_managed", "torchft DiLoCo", {"diloco": True}),
    "accelerate": Entry("accelerate_local_sgd", "accelerate LocalSGD"),
    "fairscale": Entry("fairscale_slowmo", "fairscale SlowMoDistributedDataParallel"),
    "slowmo": Entry("slowmo_torch", "ours: as the paper has it, training waits for a sync"),
    "slowmo-fp16": Entry("slowmo_torch", "ours with Compression.fp16", {"fp16": True}),
    "slowmo-local-fp16": Entry(
        "slowmo_torch", "ours without slow momentum, Compression.fp16", {"fp16": True, **LOCAL_SGD}
    ),
    "slowmo-short-overlap": Entry("slowmo_torch", "ours, a short overlap", SHORT_OVERLAP),
    "slowmo-short-overlap-fp16": Entry(
        "slowmo_torch", "ours, a short overlap, Compression.fp16", {"fp16": True, **SHORT_OVERLAP}
    ),
    "slowmo-overlap": Entry("slowmo_torch", "ours with overlap_steps", OVERLAP),
    "slowmo-overlap-fp16": Entry(
        "slowmo_torch", "ours, overlap_steps and Compression.fp16", {"fp16": True, **OVERLAP}
    ),
    "slowmo-fragments": Entry("slowmo_torch", "ours, overlap_steps and fragments", FRAGMENTS),
    "slowmo-diloco": Entry("slowmo_torch", "ours with DiLoCo's settings", DILOCO),
    "slowmo-diloco-fp16": Entry(
        "slowmo_torch", "ours with DiLoCo's settings and Compression.fp16", {"fp16": True, **DILOCO}
    ),
    KERAS_LOCAL: Entry("keras_local", "Keras, each worker alone: the limit", {}, KERAS_LOCAL),
    "keras-hvd": Entry(
        "keras_gradients", "Keras, gradients averaged by hand with Horovod", {}, KERAS_LOCAL
    ),
    "keras-slowmo": Entry("keras_slowmo", "ours in Keras", {}, KERAS_LOCAL),
    "keras-overlap": Entry(
        "keras_slowmo", "ours in Keras with overlap_steps", OVERLAP, KERAS_LOCAL
    ),
}


def takes_part(name: str, measure: str) -> bool:
    """Whether a contender is measured so: what only shows a limit has one measure."""
    return {RAW: "sync", BEHIND: "speed"}.get(name, measure) == measure


def with_baselines(names: Iterable[str], measure: str) -> list[str]:
    """The contenders that take part, in the table's order, and those they are compared with."""
    wanted = {name for name in names if takes_part(name, measure)}
    if measure == "learn":
        wanted -= {LOCAL, KERAS_LOCAL}  # which end with a model on each worker
    elif wanted:
        wanted |= {CONTENDERS[name].baseline for name in wanted}
        wanted |= {RAW} if measure == "sync" else set()
    return [name for name in CONTENDERS if name in wanted]
