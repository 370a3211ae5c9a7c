"""The error for a machine without a working Horovod."""

import contextlib
import importlib

BUILD_COMMAND = "python -m slowmo_hvd.build_horovod"


def require_horovod(framework: str) -> None:
    """Raise ImportError unless Horovod is installed and was built for ``framework``.

    Args:
        framework: "torch" or "tensorflow", the name of Horovod's module for it.
    """
    try:
        importlib.import_module("horovod")
    except ImportError as error:
        raise ImportError(
            f"slowmo_hvd.{framework} needs Horovod, which the package index offers only as source "
            f"that no longer builds; run `{BUILD_COMMAND}` to build and install it"
        ) from error
    try:
        # horovod.torch can be imported even if it was not built; it then prints a message.
        with contextlib.redirect_stdout(None):
            importlib.import_module(f"horovod.{framework}.mpi_ops")
    except Exception as error:  # the loader's error, if it was built for another version
        raise ImportError(
            f"the installed Horovod was not built for {framework}; run `{BUILD_COMMAND}` in the "
            f"environment that {framework} is installed in"
        ) from error
