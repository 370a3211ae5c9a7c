"""The framework of this session, which ``--framework`` chooses.

horovod.torch and horovod.tensorflow are two libraries with a state of their own, and a process can
initialise only one of them.
"""

import importlib
import importlib.util
import os
import time
from pathlib import Path
from typing import Any

NAMES = ("torch", "tensorflow")
TESTS = Path(__file__).resolve().parent
_name = ""
_horovod: Any = None


def installed(name: str) -> bool:
    """Whether a framework is there, found out without importing it."""
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None  # tests/torch is a torch without a file


def default() -> str:
    """The framework of a session that names none."""
    return "torch" if installed("torch") else "tensorflow"


def sessions_for(path: Path) -> tuple[str, ...]:
    """The frameworks whose sessions run the tests at ``path``."""
    parts = path.relative_to(TESTS).parts if path.is_relative_to(TESTS) else ()
    folder = parts[:1]
    if not folder:
        return NAMES  # the whole suite, or nothing of it
    if folder == ("tensorflow",):
        return ("tensorflow",)
    if folder == ("faults",):  # what these promise both adapters keep; some have a folder for each
        return tuple(name for name in NAMES if name in parts) or NAMES
    if folder[0] in ("core", "build_horovod") and not installed("torch"):
        return NAMES  # they need no framework, and one session is enough
    return ("torch",)


def start(name: str) -> None:
    """Initialise Horovod for a framework. The ranks share the cores, so one thread each."""
    global _name, _horovod
    _name = name
    if name == "torch":
        import torch

        torch.set_num_threads(1)
    else:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")  # every rank would take the whole GPU
        os.environ["KERAS_BACKEND"] = "tensorflow"
        os.environ["HOROVOD_DYNAMIC_PROCESS_SETS"] = "1"  # for a test that adds one
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(1)
        # As on a machine of one core: nothing of ours may wait in it for what needs it.
        tf.config.threading.set_inter_op_parallelism_threads(1)
    _horovod = importlib.import_module(f"horovod.{name}")
    if name == "torch":
        _wait_without_spinning()
    _horovod.init()  # once in a process: a second init after a failed test can abort it


def _wait_without_spinning() -> None:
    """Horovod's wait for PyTorch takes a whole core from other ranks, and looks like progress."""
    library = importlib.import_module("horovod.torch.mpi_lib_v2")
    wait_and_clear = library.horovod_torch_wait_and_clear

    def wait(handle: int) -> None:
        pause = 2e-5
        while not library.horovod_torch_poll(handle):
            time.sleep(pause)
            pause = min(1.25 * pause, 1e-3)
        wait_and_clear(handle)

    library.horovod_torch_wait_and_clear = wait


def current() -> str:
    """The framework of this session."""
    assert _name, "no session of tests/conftest.py has started"
    return _name


def horovod() -> Any:
    """The Horovod module of this session."""
    assert _horovod is not None, "no session of tests/conftest.py has started"
    return _horovod
