"""NCCL or the CPU, and why."""

from pathlib import Path

import pytest

from slowmo_hvd.build_horovod import cuda
from slowmo_hvd.build_horovod.cuda import GpuChoice, Nccl, Toolkit, TorchCuda
from slowmo_hvd.build_horovod.environment import Frameworks

TORCH = Frameworks(torch="2.13.0", tensorflow=None)
CUDA = TorchCuda("13.0", ("90",))
TOOLKIT = Toolkit(Path("/cuda"), "13.1")
NCCL = Nccl(Path("/nccl/include"), Path("/nccl/lib/libnccl.so.2"))


def choose(
    frameworks: Frameworks = TORCH,
    *,
    cpu_only: bool = False,
    torch_cuda: TorchCuda | None = CUDA,
    toolkit: Toolkit | None = TOOLKIT,
    nccl: Nccl | None = NCCL,
) -> GpuChoice:
    """The choice where everything for NCCL is there but what the caller takes away."""
    return cuda.choose(
        frameworks, cpu_only=cpu_only, torch_cuda=torch_cuda, toolkit=toolkit, nccl=nccl
    )


def test_nccl_where_everything_is_there() -> None:
    choice = choose()
    assert choice.with_nccl
    assert choice.reason.startswith("with NCCL: torch has CUDA 13.0")
    assert choice.tag() == "nccl-cuda13.1-sm90"
    assert choose(torch_cuda=TorchCuda("13.0")).tag() == "nccl-cuda13.1-allgpus"
    assert choose(torch_cuda=TorchCuda("13.0", ("80", "90"))).tag() == "nccl-cuda13.1-sm80-sm90"


def test_the_cpu_where_the_user_says_so() -> None:
    choice = choose(cpu_only=True)
    assert not choice.with_nccl
    assert choice.reason == "for the CPU: --cpu was given"
    assert choice.tag() == "cpu"


def test_the_cpu_where_torch_has_no_cuda() -> None:
    choice = choose(Frameworks(torch="2.13.0+cpu", tensorflow=None), torch_cuda=None)
    assert not choice.with_nccl
    assert "torch 2.13.0+cpu is a build without CUDA" in choice.reason


def test_the_cpu_without_torch_or_beside_tensorflow() -> None:
    assert "torch is not installed" in choose(Frameworks(None, "2.21.0")).reason
    beside = choose(Frameworks("2.13.0", "2.21.0"))
    assert not beside.with_nccl
    assert "use an environment with torch alone" in beside.reason


def test_the_cpu_where_a_part_is_missing_and_the_part_is_named() -> None:
    assert "no CUDA toolkit was found" in choose(toolkit=None).reason
    assert "install nvidia-nccl-cu13 or set NCCL_HOME" in choose(nccl=None).reason
    older = choose(toolkit=Toolkit(Path("/cuda"), "12.8"))
    assert older.reason == "for the CPU: torch has CUDA 13.0, but the toolkit in /cuda is 12.8"


def test_a_cpu_torch_is_known_by_its_version_alone() -> None:
    assert cuda.probe_torch("2.13.0+cpu") is None


def test_a_toolkit_is_found_by_its_nvcc(tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.8, V12.8.61'\n")
    nvcc.chmod(0o755)
    wrapper_only = cuda.find_toolkit({"CUDA_HOME": str(tmp_path), "PATH": ""})
    assert wrapper_only is None or wrapper_only.home != tmp_path
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_runtime.h").touch()
    assert cuda.find_toolkit({"CUDA_HOME": str(tmp_path)}) == Toolkit(tmp_path, "12.8")
    assert cuda.nvcc_version(tmp_path / "nowhere") is None


def test_nccl_needs_its_header_and_its_library(tmp_path: Path) -> None:
    empty, header_only, whole = (tmp_path / name for name in ("empty", "header", "whole"))
    for home in (header_only, whole):
        (home / "include").mkdir(parents=True)
        (home / "include/nccl.h").touch()
    (whole / "lib").mkdir()
    (whole / "lib/libnccl.so.2").touch()
    assert cuda.find_nccl([empty, header_only]) is None
    assert cuda.find_nccl([empty, header_only, whole]) == Nccl(
        whole / "include", whole / "lib/libnccl.so.2"
    )


def test_the_environment_says_first_where_nccl_is() -> None:
    homes = cuda.nccl_homes(TOOLKIT, {"NCCL_HOME": "/mine"})
    assert homes[0] == Path("/mine")
    assert homes[-2:] == [Path("/cuda"), Path("/usr")]


def test_a_cpu_build_is_told_to_leave_cuda_alone(tmp_path: Path) -> None:
    variables = cuda.build_variables(choose(cpu_only=True), tmp_path / "link")
    assert variables == {"HOROVOD_WITHOUT_CUDA": "1"}
    assert not (tmp_path / "link").exists()


def test_an_nccl_build_links_the_name_that_the_linker_wants(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("LDFLAGS", raising=False)
    variables = cuda.build_variables(choose(), tmp_path / "link")
    assert variables == {
        "HOROVOD_GPU_OPERATIONS": "NCCL",
        "HOROVOD_CUDA_HOME": "/cuda",
        "HOROVOD_NCCL_HOME": str(tmp_path / "link"),
        "HOROVOD_NCCL_LINK": "SHARED",
        "CUDA_HOME": "/cuda",
        "LDFLAGS": "-Wl,-rpath,/nccl/lib",
        "HOROVOD_BUILD_CUDA_CC_LIST": "90",
    }
    assert (tmp_path / "link/lib/libnccl.so").readlink() == NCCL.library
    assert (tmp_path / "link/include").readlink() == NCCL.include
