"""The edits that Horovod 0.28.1 needs, each with its reason.

An edit replaces a piece of text that occurs exactly once in its file. It says nothing about line
numbers, and it fails loudly when the text is not there, so an edit is never half applied and never
silently skipped.
"""

from dataclasses import dataclass
from pathlib import Path

from .errors import BuildError

# Part of the cache's key: raise it whenever an edit, or the way of building, changes the wheel.
PATCH_LEVEL = 1


@dataclass(frozen=True)
class Edit:
    """One replacement of `old` by `new` in `file`, a path relative to the unpacked archive."""

    file: str
    old: str
    new: str
    why: str


EDITS = (
    Edit(
        file="CMakeLists.txt",
        old="set(CMAKE_CXX_STANDARD 14)",
        new="set(CMAKE_CXX_STANDARD 20)",
        why="torch's headers need C++20 since 2.13; TensorFlow's need C++17",
    ),
    Edit(
        file="horovod/torch/CMakeLists.txt",
        old="set(CMAKE_CXX_STANDARD 14)",
        new="set(CMAKE_CXX_STANDARD 20)",
        why="torch's headers need C++20 since 2.13",
    ),
    Edit(
        file="horovod/tensorflow/CMakeLists.txt",
        old='list(APPEND TF_SOURCES "${PROJECT_SOURCE_DIR}/horovod/tensorflow/xla_mpi_ops.cc")\n',
        new="",
        why="the XLA operations use headers that TensorFlow no longer ships",
    ),
    Edit(
        file="horovod/common/common.h",
        old="#include <memory>\n",
        new="#include <memory>\n#include <stdexcept>\n",
        why="it throws std::logic_error; GCC 13 no longer includes <stdexcept> by the way",
    ),
    Edit(
        file="horovod/common/group_table.h",
        old="#include <queue>\n",
        new="#include <queue>\n#include <string>\n",
        why="it uses std::string; GCC 13 no longer includes <string> by the way",
    ),
    Edit(
        file="horovod/common/gloo/gloo_context.cc",
        # The line occurs in other functions too; what follows it tells them apart.
        old=(
            "device_attr.iface = gloo_iface_;\n"
            "  device_attr.ai_family = AF_UNSPEC;\n"
            "  auto dev = CreateDevice(device_attr);\n\n"
            "  global_ctx = global_context.ctx;\n"
        ),
        new=(
            "device_attr.iface = global_context.gloo_iface_;\n"
            "  device_attr.ai_family = AF_UNSPEC;\n"
            "  auto dev = CreateDevice(device_attr);\n\n"
            "  global_ctx = global_context.ctx;\n"
        ),
        why=(
            "a process set's own gloo_iface_ is empty, so Gloo bound to the address of the host's "
            "name, on Debian 127.0.1.1, and no other host could connect"
        ),
    ),
    Edit(
        file="horovod/runner/js_run.py",
        old="from distutils.spawn import find_executable\n",
        new="from shutil import which as find_executable\n",
        why="Python 3.12 has no distutils, and horovodrun imports this module always",
    ),
    Edit(
        file="horovod/torch/CMakeLists.txt",
        old='"from distutils.sysconfig import get_python_inc; print(get_python_inc())"',
        new="\"import sysconfig; print(sysconfig.get_path('include'))\"",
        why="Python 3.12 has no distutils",
    ),
    Edit(
        file="CMakeLists.txt",
        old="include(CheckLanguage)\ncheck_language(CUDA)\nif(NOT CMAKE_CUDA_COMPILER)\n",
        new=(
            "include(CheckLanguage)\n"
            'if(NOT "$ENV{HOROVOD_WITHOUT_CUDA}" STREQUAL "1")\n'
            "check_language(CUDA)\n"
            "endif()\n"
            'if(NOT CMAKE_CUDA_COMPILER AND NOT "$ENV{HOROVOD_WITHOUT_CUDA}" STREQUAL "1")\n'
        ),
        why="a CPU build must not depend on whether the CUDA compiler on the PATH works",
    ),
    Edit(
        file="cmake/Modules/FindPytorch.cmake",
        old="print(True if ((torch.version.cuda is not None) and (CUDA_HOME is not None))",
        new=(
            "import os; print(True if ((torch.version.cuda is not None) and "
            "(CUDA_HOME is not None) and (os.environ.get('HOROVOD_WITHOUT_CUDA') != '1'))"
        ),
        why="a CPU build must be possible beside a torch with CUDA and a toolkit",
    ),
    Edit(
        file="CMakeLists.txt",
        old='string(REPLACE "-O2" "-O3" CMAKE_CXX_FLAGS_RELWITHDEBINFO',
        new='string(REPLACE "-O2 -g" "-O3" CMAKE_CXX_FLAGS_RELWITHDEBINFO',
        why="debug information makes the build slower and the wheel several times larger",
    ),
)


def apply_edit(source: Path, edit: Edit) -> None:
    """Applies one edit below the folder `source`; raises BuildError unless it fits exactly once."""
    path = source / edit.file
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BuildError(
            f"cannot patch Horovod: {edit.file} cannot be read ({error.strerror})"
        ) from error
    count = text.count(edit.old)
    if count != 1:
        raise BuildError(
            f"cannot patch Horovod: {edit.file} should contain {edit.old!r} once, "
            f"found it {count} times"
        )
    path.write_text(text.replace(edit.old, edit.new), encoding="utf-8")


def apply_all(source: Path, edits: tuple[Edit, ...] = EDITS) -> None:
    """Applies every edit, in order, below the folder `source`."""
    for edit in edits:
        apply_edit(source, edit)
