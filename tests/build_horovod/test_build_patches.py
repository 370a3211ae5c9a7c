"""The edits of Horovod's sources: each fits exactly once, or says so."""

from pathlib import Path

import pytest

from slowmo_hvd.build_horovod import patches, wheel
from slowmo_hvd.build_horovod.cache import cache_folder
from slowmo_hvd.build_horovod.errors import BuildError
from slowmo_hvd.build_horovod.patches import EDITS, Edit, apply_all, apply_edit

EDIT = Edit(file="a.txt", old="14", new="20", why="a test")


def test_an_edit_replaces_its_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("set(STANDARD 14)\n")
    apply_edit(tmp_path, EDIT)
    assert (tmp_path / "a.txt").read_text() == "set(STANDARD 20)\n"


@pytest.mark.parametrize(("text", "count"), [("set(STANDARD 17)", 0), ("14 and 14", 2)])
def test_an_edit_that_does_not_fit_once_changes_nothing_and_says_so(
    tmp_path: Path, text: str, count: int
) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(BuildError, match=f"a.txt should contain '14' once, found it {count} times"):
        apply_edit(tmp_path, EDIT)
    assert (tmp_path / "a.txt").read_text() == text


def test_an_edit_cannot_be_applied_twice(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("14")
    apply_edit(tmp_path, EDIT)
    with pytest.raises(BuildError, match="found it 0 times"):
        apply_edit(tmp_path, EDIT)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"a\.txt cannot be read"):
        apply_edit(tmp_path, EDIT)


def test_every_edit_has_a_reason_and_changes_something() -> None:
    for edit in EDITS:
        assert edit.why
        assert edit.old != edit.new


def test_all_edits_apply_to_the_real_archive_once(tmp_path: Path) -> None:
    archive = cache_folder() / wheel.ARCHIVE
    if not archive.is_file():
        pytest.skip("the source archive is not in the cache: run the build once")
    source = wheel.unpack(archive, tmp_path)
    apply_all(source)
    context = (source / "horovod/common/gloo/gloo_context.cc").read_text()
    assert context.count("device_attr.iface = global_context.gloo_iface_;") == 1
    assert "distutils" not in (source / "horovod/runner/js_run.py").read_text()
    with pytest.raises(BuildError):
        apply_all(source)


def test_the_patch_level_counts_from_one() -> None:
    assert patches.PATCH_LEVEL >= 1
