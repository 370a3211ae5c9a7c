"""Fetching and building: the hash, the environment of the build, the words for a lost network."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import slowmo_hvd
from slowmo_hvd.build_horovod import __main__, check, wheel
from slowmo_hvd.build_horovod.cache import sha256
from slowmo_hvd.build_horovod.errors import BuildError
from slowmo_hvd.build_horovod.wheel import build_environment, check_hash, is_offline, unpack


def test_another_archive_is_refused(tmp_path: Path) -> None:
    archive = tmp_path / wheel.ARCHIVE
    archive.write_bytes(b"something else")
    with pytest.raises(BuildError, match=r"horovod-0.28.1.tar.gz is not what it should be.*92a43f"):
        check_hash(archive)
    with pytest.raises(BuildError, match="is not what it should be"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_right_archive_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = tmp_path / wheel.ARCHIVE
    with tarfile.open(archive, "w:gz") as tar:
        member = tarfile.TarInfo("horovod-0.28.1/setup.py")
        member.size = 3
        tar.addfile(member, io.BytesIO(b"abc"))
    monkeypatch.setattr(wheel, "ARCHIVE_SHA256", sha256(archive))
    source = unpack(archive, tmp_path / "out")
    assert (source / "setup.py").read_text() == "abc"


def test_an_archive_in_the_cache_is_not_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / wheel.ARCHIVE
    archive.write_bytes(b"abc")
    monkeypatch.setattr(wheel, "ARCHIVE_SHA256", sha256(archive))
    wheel.fetch_archive(archive, Path("no such python"), tmp_path / "log")


def test_the_build_sees_only_the_variables_that_the_key_knows() -> None:
    caller = {
        "PATH": "/usr/bin",
        "HOME": "/home/me",
        "HOROVOD_WITH_MPI": "1",
        "MAKEFLAGS": " --jobserver-auth=3,4 -j",
        "MAKELEVEL": "1",
        "CXXFLAGS": "-g0",
    }
    variables = {"HOROVOD_WITH_GLOO": "1", "HOROVOD_CUDA_HOME": "/cuda"}
    assert build_environment(caller, variables, Path("/env/bin"), jobs=2) == {
        "PATH": "/env/bin:/cuda/bin:/usr/bin",
        "HOME": "/home/me",
        "HOROVOD_WITH_GLOO": "1",
        "HOROVOD_CUDA_HOME": "/cuda",
        "MAKEFLAGS": "-j2",
        "CXXFLAGS": "-g0 -include cstdint",
        "CMAKE_POLICY_VERSION_MINIMUM": "3.5",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }


def test_package_folders_are_those_that_hold_packages(tmp_path: Path) -> None:
    packages = tmp_path / "lib" / "site-packages"
    packages.mkdir(parents=True)
    path = ["", str(tmp_path), str(packages), str(tmp_path / "gone" / "site-packages")]
    assert wheel.package_folders(path) == [str(packages.resolve())]


@pytest.mark.parametrize(
    ("output", "offline"),
    [
        ("NewConnectionError: Temporary failure in name resolution", True),
        ("Failed to establish a new connection: [Errno 111] Connection refused", True),
        ("ERROR: No matching distribution found for wheel (from versions: none)", True),
        ("ERROR: No matching distribution found for cmake (from versions: 3.1)", False),
    ],
)
def test_a_lost_network_is_told_from_other_failures(output: str, offline: bool) -> None:
    assert is_offline(output) is offline


def test_the_sum_of_an_installed_wheel_is_what_pip_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Installed:
        """A distribution installed from a wheel."""

        def read_text(self, name: str) -> str:
            assert name == "direct_url.json"
            return '{"url": "file:///a.whl", "archive_info": {"hash": "sha256=abc"}}'

    monkeypatch.setattr("importlib.metadata.distribution", lambda name: Installed())
    assert check.installed_sum() == "abc"


def test_an_error_is_one_sentence_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise BuildError("no C++ compiler found: apt-get install g++")

    monkeypatch.setattr(__main__, "require_tools", fail)
    assert __main__.main(["--tools"]) == 1
    captured = capsys.readouterr()
    assert captured.err == "build_horovod: no C++ compiler found: apt-get install g++\n"


def test_the_command_needs_nothing_but_the_standard_library() -> None:
    root = Path(slowmo_hvd.__file__).parent.parent
    run = subprocess.run(
        # -S: no site-packages, so an import of anything installed fails.
        [sys.executable, "-S", "-m", "slowmo_hvd.build_horovod", "--help"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "--cpu" in run.stdout
