"""The cache: its key, and that it never hands out a damaged wheel."""

from pathlib import Path

import pytest

from slowmo_hvd.build_horovod import __main__ as command
from slowmo_hvd.build_horovod import cache
from slowmo_hvd.build_horovod.cache import cache_folder, cache_key, cached_wheel
from slowmo_hvd.build_horovod.environment import Frameworks


class FakeBuilder:
    """Writes a new wheel at each call, and counts the calls."""

    def __init__(self, folder: Path) -> None:
        self.calls = 0
        self.version = "0.28.1"
        self._folder = folder

    def __call__(self) -> Path:
        self.calls += 1
        wheel = self._folder / f"horovod-{self.version}-cp311-cp311-linux_x86_64.whl"
        wheel.write_text(f"build {self.calls}")
        return wheel


@pytest.fixture(name="builder")
def make_builder(tmp_path: Path) -> FakeBuilder:
    (tmp_path / "out").mkdir()
    return FakeBuilder(tmp_path / "out")


@pytest.fixture(name="commanded")
def make_commanded(
    tmp_path: Path, builder: FakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> FakeBuilder:
    """The builder, in the place of the command's own, with a cache in the test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(command, "require_tools", lambda: None)
    monkeypatch.setattr(command, "build_wheel", lambda *_, **__: builder())
    return builder


def test_the_key_names_all_that_a_wheel_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PATCH_LEVEL", 7)
    python = "cp311-linux_x86_64"
    torch, both = Frameworks("2.13.0+cpu", None), Frameworks("2.13.0+cpu", "2.21.0")
    assert cache_key("0.28.1", python, torch, "cpu") == (
        "horovod0.28.1-cp311-linux_x86_64-torch2.13.0+cpu-cpu-p7"
    )
    assert cache_key("0.28.1", python, both, "cpu") == (
        "horovod0.28.1-cp311-linux_x86_64-torch2.13.0+cpu-tf2.21.0-cpu-p7"
    )
    assert cache_key("0.29.0", python, Frameworks(None, "2.21.0"), "cpu") == (
        "horovod0.29.0-cp311-linux_x86_64-tf2.21.0-cpu-p7"
    )


def test_the_folder_respects_xdg_cache_home(tmp_path: Path) -> None:
    assert cache_folder({"XDG_CACHE_HOME": str(tmp_path)}) == tmp_path / "slowmo_hvd"
    home = Path.home() / ".cache/slowmo_hvd"
    assert cache_folder({}) == home
    assert cache_folder({"XDG_CACHE_HOME": "relative"}) == home


def test_sha256_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert cache.sha256(tmp_path / "empty").startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_a_wheel_is_built_once(tmp_path: Path, builder: FakeBuilder) -> None:
    first = cached_wheel(tmp_path / "key", builder)
    second = cached_wheel(tmp_path / "key", builder)
    assert builder.calls == 1
    assert first == second
    assert second.read_text() == "build 1"


def test_force_builds_again(tmp_path: Path, builder: FakeBuilder) -> None:
    cached_wheel(tmp_path / "key", builder)
    assert cached_wheel(tmp_path / "key", builder, force=True).read_text() == "build 2"


def test_a_wheel_of_another_name_takes_the_old_ones_place(
    tmp_path: Path, builder: FakeBuilder
) -> None:
    cached_wheel(tmp_path / "key", builder)
    builder.version = "0.29.0"
    new = cached_wheel(tmp_path / "key", builder, force=True)
    assert cached_wheel(tmp_path / "key", builder) == new
    assert new.name.startswith("horovod-0.29.0-")
    kept = {path.name for path in (tmp_path / "key").iterdir()}
    assert kept == {"lock", new.name, f"{new.name}.sha256"}


def test_the_command_looks_for_the_version_that_it_names(
    commanded: FakeBuilder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, wheels in (("0.28.1", 1), ("0.29.0", 2), ("0.28.1", 2)):
        monkeypatch.setattr(command, "VERSION", version)
        commanded.version = version
        assert command.main(["--no-install", "--cpu"]) == 0
        assert commanded.calls == wheels


def test_a_damaged_wheel_is_built_again(
    tmp_path: Path, builder: FakeBuilder, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel = cached_wheel(tmp_path / "key", builder)
    wheel.write_text("bui")
    assert cached_wheel(tmp_path / "key", builder).read_text() == "build 2"
    assert "is damaged and will be built anew" in capsys.readouterr().out
    assert cached_wheel(tmp_path / "key", builder).read_text() == "build 2"


def test_a_wheel_without_its_sum_is_built_again(tmp_path: Path, builder: FakeBuilder) -> None:
    wheel = cached_wheel(tmp_path / "key", builder)
    wheel.with_name(wheel.name + ".sha256").unlink()
    assert cached_wheel(tmp_path / "key", builder).read_text() == "build 2"


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path, builder: FakeBuilder) -> None:
    def fail() -> Path:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        cached_wheel(tmp_path / "key", fail)
    assert [path.name for path in (tmp_path / "key").iterdir()] == ["lock"]
    assert cached_wheel(tmp_path / "key", builder).read_text() == "build 1"


def test_a_wheel_is_left_for_other_machines_in_a_folder_that_says_what_it_is_for(
    tmp_path: Path, commanded: FakeBuilder, capsys: pytest.CaptureFixture[str]
) -> None:
    house = tmp_path / "house"
    assert command.main(["--no-install", "--cpu", "--wheelhouse", str(house)]) == 0
    (left,) = house.glob("horovod0.28.1-*/*.whl")
    assert left.read_text() == "build 1"
    assert f"pip install {left}" in capsys.readouterr().out


def test_a_wheelhouse_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, commanded: FakeBuilder, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    house = tmp_path / "file" / "house"
    assert command.main(["--no-install", "--cpu", "--wheelhouse", str(house)]) == 1
    assert "cannot leave the wheel in" in capsys.readouterr().err
