"""What is read off the environment: frameworks, tools, memory."""

from pathlib import Path

import pytest

from slowmo_hvd.build_horovod import environment
from slowmo_hvd.build_horovod.environment import (
    Frameworks,
    available_memory,
    find_frameworks,
    require_pip,
    require_tools,
)
from slowmo_hvd.build_horovod.errors import BuildError


def frameworks_of(**installed: str) -> Frameworks:
    """The frameworks found where these distributions are installed ('_' stands for '-')."""
    versions = {name.replace("_", "-"): version for name, version in installed.items()}
    return find_frameworks(versions.get)


def test_torch_alone() -> None:
    found = frameworks_of(torch="2.13.0+cpu")
    assert found.names() == ("torch",)
    assert found.build_variables() == {
        "HOROVOD_WITH_PYTORCH": "1",
        "HOROVOD_WITHOUT_TENSORFLOW": "1",
        "HOROVOD_WITHOUT_MXNET": "1",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_WITHOUT_MPI": "1",
    }


@pytest.mark.parametrize("distribution", ["tensorflow", "tensorflow_cpu", "tensorflow_gpu"])
def test_tensorflow_alone_under_any_name(distribution: str) -> None:
    found = frameworks_of(**{distribution: "2.21.0"})
    assert found.names() == ("tensorflow",)
    assert found.tensorflow == "2.21.0"
    assert found.build_variables()["HOROVOD_WITHOUT_PYTORCH"] == "1"
    assert found.build_variables()["HOROVOD_WITH_TENSORFLOW"] == "1"


def test_both() -> None:
    found = frameworks_of(torch="2.13.0", tensorflow_cpu="2.21.0")
    assert found.names() == ("torch", "tensorflow")
    assert found.describe() == "torch 2.13.0 and TensorFlow 2.21.0"
    assert found.build_variables()["HOROVOD_WITH_PYTORCH"] == "1"
    assert found.build_variables()["HOROVOD_WITH_TENSORFLOW"] == "1"


def test_no_framework_is_one_sentence() -> None:
    with pytest.raises(BuildError, match="neither torch nor tensorflow is installed"):
        frameworks_of(numpy="2.0")


def with_header(folder: Path) -> Path:
    """A folder with a Python.h in it."""
    (folder / "Python.h").touch()
    return folder


def everything(name: str) -> str | None:
    """A `which` that finds every program."""
    return f"/usr/bin/{name}"


def test_all_tools_there(tmp_path: Path) -> None:
    require_tools(everything, with_header(tmp_path), {})


def test_a_missing_compiler_names_its_package(tmp_path: Path) -> None:
    def which(name: str) -> str | None:
        return None if name in ("c++", "g++", "clang++") else name

    with pytest.raises(BuildError, match=r"no C\+\+ compiler found.*apt-get install g\+\+"):
        require_tools(which, with_header(tmp_path), {})
    with pytest.raises(BuildError, match=r"looked for clang\+\+\)"):
        require_tools(which, with_header(tmp_path), {"CXX": "clang++ -stdlib=libc++"})


def test_a_missing_make_names_its_package(tmp_path: Path) -> None:
    def which(name: str) -> str | None:
        return None if name in ("make", "gmake") else name

    with pytest.raises(BuildError, match="apt-get install make"):
        require_tools(which, with_header(tmp_path), {})


def test_a_missing_header_names_its_package(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"Python\.h.*apt-get install python3-dev"):
        require_tools(everything, tmp_path, {})


def test_a_missing_pip_says_how_to_get_it() -> None:
    with pytest.raises(BuildError, match="has no pip: run `python -m ensurepip`"):
        require_pip(lambda name: None)


def memory_files(root: Path, available_kb: int, limit: str) -> None:
    (root / "proc").mkdir()
    (root / "proc/meminfo").write_text(f"MemTotal: 99 kB\nMemAvailable: {available_kb} kB\n")
    (root / "sys/fs/cgroup").mkdir(parents=True)
    (root / "sys/fs/cgroup/memory.max").write_text(limit + "\n")


@pytest.mark.parametrize(("limit", "expected"), [("max", 4096), ("1000", 1000), ("9999", 4096)])
def test_memory_is_the_smaller_of_what_is_free_and_the_limit(
    tmp_path: Path, limit: str, expected: int
) -> None:
    memory_files(tmp_path, 4, limit)
    assert available_memory(tmp_path) == expected


def test_memory_is_unknown_where_there_is_no_proc(tmp_path: Path) -> None:
    assert available_memory(tmp_path) is None


@pytest.mark.parametrize(
    ("memory", "jobs"), [(None, 4), (100 * 1024**3, 4), (5 * 1024**3, 2), (1024**3, 1)]
)
def test_two_gigabytes_a_job(
    monkeypatch: pytest.MonkeyPatch, memory: int | None, jobs: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    monkeypatch.setattr(environment, "available_memory", lambda: memory)
    assert environment.job_count() == jobs
