"""Data is fetched where it can be, whole or not at all, and one sentence says what to do if not."""

import gzip
import stat
from pathlib import Path

import pytest

from experiments.data import fashion_mnist, fetching, libreoffice_help, translations
from experiments.data.fetching import DataError, data_folder, debian_package, kept
from experiments.data.pieces import END, byte_pairs
from experiments.data.translations import Pair


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no program to fetch with."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setattr(fashion_mnist, "KERAS", (tmp_path / "nowhere").as_uri() + "/")
    return tmp_path


def program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(exist_ok=True)
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n")
    file.chmod(file.stat().st_mode | stat.S_IEXEC)


def test_a_package_is_fetched_and_unpacked_without_root_and_once(cache: Path) -> None:
    program(
        cache / "bin", "apt-get", 'test "$*" = "download some-data" && : > some-data_1.0_all.deb'
    )
    program(cache / "bin", "dpkg", ': > "$3/unpacked-from-${2##*/}"')
    folder = debian_package("some-data")
    assert folder == data_folder() / "some-data"
    assert [file.name for file in folder.iterdir()] == ["unpacked-from-some-data_1.0_all.deb"]
    (cache / "bin" / "apt-get").unlink()
    assert debian_package("some-data") == folder


def test_without_a_way_to_fetch_it_the_error_says_what_to_do(cache: Path) -> None:
    with pytest.raises(DataError) as told:
        debian_package("some-data")
    assert str(told.value) == (
        "the Debian package some-data cannot be fetched (there is no apt-get here): fetch it on a "
        "Debian or Ubuntu machine with `apt-get download some-data`, and unpack it here with "
        f"`dpkg -x some-data_*.deb {data_folder() / 'some-data'}`"
    )
    program(cache / "bin", "apt-get", 'echo "E: No packages found" >&2; exit 100')
    with pytest.raises(DataError, match="cannot be fetched \\(E: No packages found\\)"):
        debian_package("some-data")
    assert list(data_folder().iterdir()) == []


def test_what_was_broken_off_leaves_nothing_behind() -> None:
    def half(folder: Path) -> None:
        (folder / "half").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept("some-data", half)
    assert list(data_folder().iterdir()) == []


def idx(folder: Path, sizes: tuple[int, int]) -> None:
    folder.mkdir(parents=True)
    for part, size in zip(("train", "t10k"), sizes, strict=True):
        images, labels = bytes(16) + bytes(size * 784), bytes(8) + bytes([7]) * size
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images, 1))
        (folder / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels, 1))


def test_fashion_mnist_is_downloaded_or_else_taken_from_the_package(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(
        DataError, match=r"nowhere/train-images.* cannot be fetched: .*; and the De"
    ):
        fashion_mnist.load()
    package = data_folder() / fashion_mnist.PACKAGE / "usr/share/datasets/fashion-mnist"
    idx(package, (3, 2))
    with pytest.raises(DataError, match="has not the 60,000 and 10,000 images of Fashion-MNIST"):
        fashion_mnist.load()
    idx(cache / "mirror", (60_000, 10_000))
    monkeypatch.setattr(fashion_mnist, "KERAS", (cache / "mirror").as_uri() + "/")
    images, labels, test_images, test_labels = fashion_mnist.load()
    assert images.shape == (60_000, 1, 28, 28)
    assert (len(test_images), len(test_labels), labels.unique().tolist()) == (10_000, 10_000, [7])


def test_paragraphs_are_read_by_their_marks() -> None:
    folder = fetching.data_folder() / "libreoffice-help-de/usr/share/libreoffice/help/de/text/scalc"
    folder.mkdir(parents=True)
    (folder / "a.html").write_text(
        '<h1 id="hd_id1">Abfragen</h1><p id="par_id2">Zum  <b>Drucken</b>\nhier.</p>'
        '<p id="other">nicht</p><p id="par_id3"> </p>',
        encoding="utf-8",
    )
    assert libreoffice_help.load("de") == {
        "scalc/a.html": {"hd_id1": "Abfragen", "par_id2": "Zum Drucken hier."}
    }


def test_no_english_side_is_in_two_parts_and_a_page_is_in_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def pairs(origin: str) -> list[Pair]:
        # The same sentences in many pages, which are dealt out page by page.
        sentences = [Pair(f"This is sentence {n}", f"Das ist Satz {n}", "") for n in range(400)]
        return [
            pair._replace(origin=f"{origin} {n % 100}", german=f"{pair.german} {origin}")
            for n, pair in enumerate(sentences)
        ]

    monkeypatch.setattr(translations, "_help", lambda: pairs("page"))
    monkeypatch.setattr(translations, "_interface", lambda: pairs("text"))
    parts = translations.load()
    assert all(parts.values())
    english = [{pair.english for pair in part} for part in parts.values()]
    origins = [{pair.origin for pair in part} for part in parts.values()]
    for of_parts in (english, origins):
        assert sum(map(len, of_parts)) == len(set.union(*of_parts))


@pytest.mark.parametrize(
    ("english", "german", "fits"),
    [
        ("a short phrase", "eine kurze Wendung", True),
        ("two words", "zwei Wörter", False),
        ("the same words", "the same words", False),
        ("far too long a translation", "kurz", False),
        ("word " * 31, "Wort " * 31, False),
    ],
)
def test_pairs_that_cannot_be_translations_are_left_out(
    english: str, german: str, fits: bool
) -> None:
    assert translations._fits(Pair(english, german, "")) == fits


def test_pieces_of_a_text_give_the_text_back() -> None:
    encoding = byte_pairs(["the cat sat on the mat"] * 3, 300)
    assert encoding.token_to_id(END) == 0
    assert encoding.decode(encoding.encode("Überall: the mat").ids) == "Überall: the mat"
